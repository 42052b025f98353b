"""Assigns values to variables. No other module does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from inbounds._arrays.ops import is_sharded, is_sparse
from inbounds._train.optimizers import in_stateless_scope


def assign(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Assigns to each variable the value beside it.

    On TensorFlow, `IndexedSlices` are assigned to the rows that they name.
    """
    given = list(pairs)
    if keras.backend.backend() == "torch" and not in_stateless_scope():
        given = _without_copied(given)
    for variable, value in given:
        if is_sparse(value):
            variable.value.scatter_update(value)
        else:
            variable.assign(value)


def _without_copied(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Copies values that are plain tensors of PyTorch in one call, and returns the other pairs."""
    import torch

    plain = [isinstance(value, torch.Tensor) and not is_sharded(value) for _, value in pairs]
    copies = [(variable.value, value) for (variable, value), copied in zip(pairs, plain, strict=True) if copied]
    copies = [(own, value) for own, value in copies if own is not value]
    if copies:
        with torch.no_grad():
            torch._foreach_copy_([own for own, _ in copies], [value for _, value in copies])
    return [pair for pair, copied in zip(pairs, plain, strict=True) if not copied]
