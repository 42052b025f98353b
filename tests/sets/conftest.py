"""Sets make no layers, so their tests, which are many, leave Keras' state as it is."""

import pytest


@pytest.fixture(autouse=True)
def fresh_keras() -> None:
    """In place of the cleaning that tests of models start with, which takes longer than most tests here."""
