"""Weights as rows, for audits and violations: in float64, or in the rows' own precision.

This module shares no code with `units`, in which projections are written, so that an error in one
doesn't hide an error in the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inbounds._arrays.ops import (
    HUGE,
    MANTISSA_BITS,
    Array,
    booleans,
    cast,
    dtype_of,
    namespace,
    to_numpy,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.views import Axes, View


@dataclass(frozen=True, eq=False)
class Laid:
    """Units as rows."""

    rows: Array  # of shape (units, size), in the dtype they are measured in
    views: tuple[View, ...]  # the weights that the rows come from, each with the axes that one unit spans
    dtype: str  # the coarsest dtype of the weights, in which an ulp is measured
    mask: np.ndarray[Any, Any] | None = None  # which entries belong to their units, like `rows`; None: all

    @classmethod
    def of_rows(cls, rows: Array) -> Laid:
        """Rows that are given as such, in their `working_dtype`."""
        dtype = dtype_of(rows)
        return cls(cast(rows, working_dtype(dtype)), (View(tuple(rows.shape), (1,)),), dtype)

    @classmethod
    def of_weights(cls, weights: Sequence[Any], axes: Sequence[Axes]) -> Laid:
        """The units that variables or arrays make together, in float64, each along its own axes."""
        dtype = min((dtype_of(weight) for weight in weights), key=MANTISSA_BITS.__getitem__)
        views = tuple(View(tuple(one.shape), tuple(sorted(span))) for one, span in zip(weights, axes, strict=True))
        return cls(_rows(views, map(to_numpy, weights)), views, dtype)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """The shape of one unit in its weight; of one that several weights form, its size."""
        return self.views[0].unit_shape if len(self.views) == 1 else tuple(self.rows.shape[1:])

    @property
    def finite(self) -> Array:
        """For each row, whether all entries of its unit are finite."""
        xp = namespace(self.rows)
        good = xp.isfinite(self.rows)
        if self.mask is not None:
            good = good | ~booleans(self.rows, self.mask)
        return xp.all(good, axis=1)

    @property
    def known(self) -> np.ndarray[Any, Any]:
        """The rows in NumPy, with 0 for entries that aren't finite or don't belong to the unit."""
        rows = np.nan_to_num(self.rows, nan=0.0, posinf=0.0, neginf=0.0)
        return rows if self.mask is None else np.where(self.mask, rows, 0.0)

    def where(self, mask: Any) -> Laid:
        """The rows with a mask: only the marked entries belong to the units. See `place`."""
        marked = self.place(mask) > 0
        return replace(self, mask=marked if self.mask is None else marked & self.mask)

    def seen(self, views: Sequence[View]) -> Laid:
        """The same weights by other units: a view for each weight."""

        def laid(rows: Array) -> Array:
            weights, start = [], 0
            for old, new in zip(self.views, views, strict=True):
                weights.append(namespace(rows).reshape(old.weight(rows[:, start : start + old.size]), new.shape))
                start += old.size
            return _rows(views, weights)

        mask = None if self.mask is None else laid(self.mask)
        return replace(self, rows=laid(self.rows), views=tuple(views), mask=mask)

    def entries(self, value: float | np.ndarray[Any, Any]) -> Any:
        """Values for the entries of a unit or a weight, in a shape that broadcasts to the rows."""
        of_unit = isinstance(value, float) or value.ndim <= max(len(self.unit_shape), 1)
        return flat(value, self.unit_shape) if of_unit else self.place(value)

    def place(self, value: Any) -> Array:
        """Values for the weights as rows, or as an array that broadcasts to them.

        The value is a number, an array that broadcasts to the weight, or for several weights one
        value for each entry of a unit, rows, or a tuple with one array per weight.
        """
        pieces = value if isinstance(value, tuple) else (np.asarray(value, dtype="float64"),)
        if len(pieces) < len(self.views):
            return np.broadcast_to(pieces[0], tuple(self.rows.shape))
        pairs = zip(pieces, self.views, strict=True)
        return _rows(self.views, (np.broadcast_to(piece, view.shape) for piece, view in pairs))


def flat(value: float | np.ndarray[Any, Any], unit_shape: tuple[int, ...]) -> Any:
    """A number, or an array over a unit of shape `unit_shape`, as a number or as one row."""
    if isinstance(value, float):
        return value
    size = math.prod(unit_shape)
    return value if value.shape == (size,) else np.broadcast_to(value, unit_shape).reshape(size)


def norms_along(rows: Array, axis: int | None) -> Array:
    """The Euclidean norms along an axis, or of all entries, with the axes kept at length 1.

    The derivative at zero is 0.
    """
    xp = namespace(rows)
    size = without_gradient(xp.clip(xp.max(xp.abs(rows), axis=axis, keepdims=True), 1 / HUGE, HUGE))
    squares = xp.sum((rows / size) ** 2, axis=axis, keepdims=True)
    some = squares > 0
    return xp.where(some, size * xp.sqrt(xp.where(some, squares, xp.ones_like(squares))), squares)


def _rows(views: Sequence[View], weights: Iterable[Array]) -> Array:
    """The rows of several weights side by side."""
    pieces = [view.rows(weight) for view, weight in zip(views, weights, strict=True)]
    return pieces[0] if len(pieces) == 1 else namespace(pieces[0]).concatenate(pieces, axis=1)
