"""What every test starts from: a clean Keras state, a fixed seed, and the backend that KERAS_BACKEND names."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # channels first, on processors where it isn't the default

import keras
import pytest

pytest_plugins = ["conformance.report"]

BACKEND = keras.backend.backend()

if os.environ.get("KERAS_BACKEND", BACKEND) != BACKEND:
    raise RuntimeError(f"KERAS_BACKEND={os.environ['KERAS_BACKEND']}, but Keras runs on {BACKEND}")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names start anew, and nothing random depends on the test before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
