"""Weights as rows, for audits and violations: in float64, or in the rows' own precision.

This module shares no code with `units`, in which projections are written, so that an error in one
doesn't hide an error in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, Array, cast, constant, dtype_of, namespace, to_numpy, working_dtype
from inbounds._arrays.views import Axes, View
from inbounds._errors import SetError


@dataclass(frozen=True)
class Laid:
    """Units as rows.

    Attributes:
        rows: of shape (units, size), in the dtype they are measured in.
        span: the shape of one unit in its weight; the product is `size`.
        dtype: the coarsest dtype of the weights, in which an ulp is measured.
        shapes: the shapes of the weights that the rows come from.
        axes: for each weight, the axes that one unit spans.
        mask: which entries belong to their units, shaped like `rows`; None for all.
    """

    rows: Array
    span: tuple[int, ...]
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[Axes, ...]
    mask: np.ndarray[Any, Any] | None = None

    @classmethod
    def of_rows(cls, rows: Array) -> Laid:
        """Rows that are given as such, in their `working_dtype`."""
        dtype = dtype_of(rows)
        shape = tuple(rows.shape)
        return cls(cast(rows, working_dtype(dtype)), shape[1:], dtype, (shape,), ((1,),))

    @classmethod
    def of_weights(cls, weights: Sequence[Any], axes: Sequence[Axes]) -> Laid:
        """The units that several weights make together, in float64.

        Args:
            weights: the variables or arrays.
            axes: for each weight, the axes that one unit spans.
        """
        dtype = min((dtype_of(weight) for weight in weights), key=MANTISSA_BITS.__getitem__)
        arrays = [to_numpy(weight) for weight in weights]
        spans = tuple(tuple(sorted(axis)) for axis in axes)
        rows = _lay(arrays, spans)
        span = tuple(arrays[0].shape[axis] for axis in spans[0]) if len(arrays) == 1 else rows.shape[1:]
        return cls(rows, span, dtype, tuple(array.shape for array in arrays), spans)

    @property
    def finite(self) -> Array:
        """For each row, whether all entries of its unit are finite."""
        xp = namespace(self.rows)
        good = xp.isfinite(self.rows)
        if self.mask is not None:
            good = good | ~constant_mask(self.rows, self.mask)
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
            xp, pieces, start = namespace(rows), [], 0
            for own, view in zip(map(View, self.shapes, self.axes), views, strict=True):
                order = [*own.counting, *own.axes]
                width = math.prod(own.shape[axis] for axis in own.axes)
                piece = xp.reshape(rows[:, start : start + width], tuple(own.shape[axis] for axis in order))
                piece = xp.reshape(xp.transpose(piece, sorted(range(len(order)), key=order.__getitem__)), view.shape)
                pieces.append(xp.reshape(xp.transpose(piece, (*view.counting, *view.axes)), (view.count, -1)))
                start += width
            return pieces[0] if len(pieces) == 1 else xp.concatenate(pieces, axis=1)

        rows = laid(self.rows)
        span = tuple(views[0].shape[axis] for axis in views[0].axes) if len(views) == 1 else tuple(rows.shape[1:])
        shapes, axes = zip(*((view.shape, view.axes) for view in views), strict=True)
        return replace(
            self, rows=rows, span=span, shapes=shapes, axes=axes, mask=None if self.mask is None else laid(self.mask)
        )

    def entries(self, value: float | np.ndarray[Any, Any]) -> float | np.ndarray[Any, Any]:
        """Values for the entries of a unit, or of the weight, as an array that broadcasts against the rows."""
        of_unit = isinstance(value, float) or value.ndim <= max(len(self.span), 1)
        return flat(value, self.span) if of_unit else self.place(value)

    def place(self, value: Any) -> np.ndarray[Any, Any]:
        """Values for the weights as rows, in float64.

        Args:
            value: a number; an array that broadcasts to the weight; for several weights one value
                for each entry of a unit, rows, or a tuple with one array per weight.

        Raises:
            SetError: the value fits none of these.
        """
        if isinstance(value, tuple):
            pieces = [np.broadcast_to(piece, shape) for piece, shape in zip(value, self.shapes, strict=True)]
            return _lay(pieces, self.axes)
        array = np.asarray(value, dtype="float64")
        try:
            if len(self.shapes) == 1:
                return _lay([np.broadcast_to(array, self.shapes[0])], self.axes)
            return np.broadcast_to(array, tuple(self.rows.shape))
        except ValueError as error:
            raise SetError(
                "An array doesn't fit the weight: a shape that broadcasts to it, or for a Joint rows",
                f"shape={array.shape}",
                where=f"weights of shape {' and '.join(map(str, self.shapes))}",
            ) from error


def flat(value: float | np.ndarray[Any, Any], span: tuple[int, ...]) -> Any:
    """A number, or an array over a unit of shape `span`, as a number or as one row."""
    if isinstance(value, float):
        return value
    size = math.prod(span)
    return value if value.shape == (size,) else np.broadcast_to(value, span).reshape(size)


def constant_mask(like: Array, mask: np.ndarray[Any, Any]) -> Array:
    """A NumPy mask as an array of the library of `like`."""
    return constant(like, mask.astype("float64")) > 0


def _lay(arrays: Sequence[np.ndarray[Any, Any]], spans: Sequence[Axes]) -> np.ndarray[Any, Any]:
    """Arrays as rows: copied with the axes of their units last, then concatenated."""
    pieces = []
    for array, span in zip(arrays, spans, strict=True):
        counting = [axis for axis in range(array.ndim) if axis not in span]
        moved = np.asarray(array, dtype="float64").transpose(*counting, *span)
        pieces.append(moved.reshape(-1, math.prod(array.shape[axis] for axis in span)))
    return np.concatenate(pieces, axis=1)
