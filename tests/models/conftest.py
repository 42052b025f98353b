"""Real data for small models: scikit-learn's digits, 8 x 8 pixels."""

import pytest
from sklearn.datasets import load_digits

from small import small_models

__all__ = ["small_models"]


@pytest.fixture(scope="session")
def digits():
    """256 digits as rows of 64 pixels from 0 to 1, and their classes."""
    data = load_digits()
    return (data.data[:256] / 16).astype("float32"), data.target[:256].astype("int32")


@pytest.fixture
def loud():
    """The arguments of `compile` with a learning rate that drives weights out of any small set."""
    return {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}
