"""These tests call hundreds of small layers once, and compiling them is nearly all that JAX does."""

from pathlib import Path

import keras
import pytest


def pytest_collection_modifyitems(items):
    """The tests of one layer come one after the other: what was compiled for one serves the next."""
    places = [i for i, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    names: dict[str, int] = {}
    layer = {i: (getattr(items[i], "callspec", None) and items[i].callspec.params.get("name")) or "" for i in places}
    for name in layer.values():
        names.setdefault(name, len(names))
    ordered = [items[i] for i in sorted(places, key=lambda i: names[layer[i]])]
    for i, item in zip(places, ordered, strict=True):
        items[i] = item


@pytest.fixture(autouse=True, scope="module")
def small_layers():
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
