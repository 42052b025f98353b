"""Laid: weights laid out as rows to be measured, in float64 or on rows as they are.

What an audit sees of a weight. It shares no code with the units that projections are written in, so that an error in
one doesn't hide one in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, Array, cast, constant, dtype_of, namespace, to_numpy, working_dtype
from inbounds._errors import SetError, explain

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Laid:
    """Units as rows.

    Attributes:
        rows: of shape (units, size), in the dtype they are measured in.
        span: the shape of one unit in its weight; its product is `size`.
        dtype: of the weights, the coarsest: what an ulp is measured in.
        shapes: of the weights that the rows come from.
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
        """Rows as they are."""
        dtype = dtype_of(rows)
        shape = tuple(rows.shape)
        return cls(cast(rows, working_dtype(dtype)), shape[1:], dtype, (shape,), ((1,),))

    @classmethod
    def of_weights(cls, weights: Sequence[Any], axes: Sequence[Axes]) -> Laid:
        """Variables or arrays that make the units together, in float64.

        Args:
            weights: the variables or arrays.
            axes: for each, the axes that one unit spans.
        """
        dtype = min((dtype_of(weight) for weight in weights), key=MANTISSA_BITS.__getitem__)
        arrays = [to_numpy(weight) for weight in weights]
        spans = tuple(tuple(sorted(axis)) for axis in axes)
        rows = _lay(arrays, spans)
        span = tuple(arrays[0].shape[axis] for axis in spans[0]) if len(arrays) == 1 else rows.shape[1:]
        return cls(rows, span, dtype, tuple(array.shape for array in arrays), spans)

    @property
    def finite(self) -> Array:
        """For each row, whether all entries that belong to it are finite."""
        xp = namespace(self.rows)
        good = xp.isfinite(self.rows)
        if self.mask is not None:
            good = good | ~constant_mask(self.rows, self.mask)
        return xp.all(good, axis=1)

    @property
    def known(self) -> np.ndarray[Any, Any]:
        """The rows in NumPy, with 0 for what isn't finite or doesn't belong to its unit."""
        rows = np.nan_to_num(self.rows, nan=0.0, posinf=0.0, neginf=0.0)
        return rows if self.mask is None else np.where(self.mask, rows, 0.0)

    def where(self, mask: Any) -> Laid:
        """The rows of those entries that a mask marks, see `place`."""
        marked = self.place(mask) > 0
        return replace(self, mask=marked if self.mask is None else marked & self.mask)

    def place(self, value: Any) -> np.ndarray[Any, Any]:
        """Values for the weights, laid out as the rows are, in float64.

        Args:
            value: a number; an array that broadcasts to the weight; for several weights one entry for each of a unit's
                entries, rows, or a tuple with one array a weight.

        Raises:
            SetError: it fits none of these.
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
                explain(
                    "An array doesn't fit the weight: a shape that broadcasts to it, or for a Joint rows",
                    f"shape={array.shape}",
                    where=f"weights of shape {' and '.join(map(str, self.shapes))}",
                )
            ) from error


def constant_mask(like: Array, mask: np.ndarray[Any, Any]) -> Array:
    """A mask in the library of `like`."""
    return constant(like, mask.astype("float64")) > 0


def _lay(arrays: Sequence[np.ndarray[Any, Any]], spans: Sequence[Axes]) -> np.ndarray[Any, Any]:
    """Arrays as rows: for each a transposed copy, the axes that count units first, and one array after the other."""
    pieces = []
    for array, span in zip(arrays, spans, strict=True):
        counting = [axis for axis in range(array.ndim) if axis not in span]
        moved = np.asarray(array, dtype="float64").transpose(*counting, *span)
        pieces.append(moved.reshape(-1, math.prod(array.shape[axis] for axis in span)))
    return np.concatenate(pieces, axis=1)
