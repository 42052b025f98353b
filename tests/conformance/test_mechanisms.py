"""Each mechanism of inbounds is switched off in turn, and cells of the matrix fail.

`-rA` prints which, and how. With all of them on, `test_matrix.py` passes the same cells.
"""

import random

import keras
import pytest

import repetition
from conformance import matrix
from conformance.mechanisms import MECHANISMS

BACKEND = keras.backend.backend()

pytestmark = pytest.mark.filterwarnings("ignore")  # of Keras and of NumPy, when something essential is missing


def run(cell, folder):
    """As a test of its own would: from a clean state."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy("float32")
    folder.mkdir()
    return matrix.run(cell, folder)


def failure_of(cell, folder):
    """How a cell fails; None where it doesn't."""
    try:
        run(cell, folder)
    except Exception as error:  # an assertion, or whatever follows from the lack
        return f"{cell}: {type(error).__name__}: {str(error)[:100]}".replace("\n", " ")
    return None


def sample(config):
    count = config.getoption("--cells-off", 0)
    cells = matrix.sampled(count, config.getoption("--cells-seed", 0)) if count else []
    return random.Random(0).sample(cells, len(cells))


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_each_mechanism_is_needed(name, tmp_path, monkeypatch, record_property, request):
    mechanism = MECHANISMS[name]
    if BACKEND not in mechanism.backends:
        pytest.skip(f"on {BACKEND}, {mechanism.why}")
    if not repetition.everything and repetition.first_of(mechanism.backends) != BACKEND:
        pytest.skip(f"a usual run tries it on {repetition.first_of(mechanism.backends)}")
    with monkeypatch.context() as patch:
        mechanism.off(patch)
        tried = [*mechanism.witnesses, *sample(request.config)]
        found = [failure_of(cell, tmp_path / f"off {place}") for place, cell in enumerate(tried)]
    record_property("mechanism", name)
    record_property("tried", len(tried))
    record_property("failing", len(tried) - found.count(None))
    record_property("failures", [text for text in found if text])
    still = [str(cell) for cell, text in zip(mechanism.witnesses, found, strict=False) if text is None]
    assert not still, f"without it these pass: {still}"
