"""Sets make no layers, so their tests, which are many, leave Keras' state as it is."""

import pytest


@pytest.fixture(autouse=True)
def fresh_keras() -> None:
    """Replaces the cleaning before tests of models, which takes longer than most tests here."""
