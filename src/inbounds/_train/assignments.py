"""Assigns values to variables. No other module does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inbounds._arrays.ops import Array


def assign(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Assigns to each variable the value beside it."""
    for variable, value in pairs:
        variable.assign(value)


def assign_rows(variable: Any, rows: Any, values: Array) -> None:
    """Assigns values to some rows of a variable, on TensorFlow."""
    import tensorflow as tf

    variable.value.scatter_update(tf.IndexedSlices(values, rows))


def assign_at_once(pairs: Iterable[tuple[Any, Array]]) -> None:
    """`assign` in one call of PyTorch."""
    import torch

    variables, values = zip(*pairs, strict=True)
    torch._foreach_copy_([variable.value for variable in variables], list(values))
