"""For tests of hundreds of small models called a few times: compiling is nearly all their work."""

import keras
import pytest


@pytest.fixture(autouse=True, scope="module")
def small_models():
    """JAX compiles without optimizing, and PyTorch computes on one thread."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    elif backend == "torch":
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
    else:
        yield
