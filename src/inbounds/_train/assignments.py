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
    copied = [pair for pair, one in zip(pairs, plain, strict=True) if one]
    overwrite([variable.value for variable, _ in copied], [value for _, value in copied])
    return [pair for pair, one in zip(pairs, plain, strict=True) if not one]


def overwrite(tensors: Iterable[Any], values: Iterable[Any]) -> None:
    """Copies values into tensors of PyTorch that hold others, in one call."""
    import torch

    copies = [(own, value) for own, value in zip(tensors, values, strict=True) if own is not value]
    if copies:
        with torch.no_grad():
            torch._foreach_copy_([own for own, _ in copies], [value for _, value in copies])
