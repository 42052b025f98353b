"""The set of the units with few entries that are not zero: Sparse."""

from __future__ import annotations

from typing import ClassVar

import keras
import numpy as np

from inbounds._arrays.ops import (
    SMALLEST_NORMAL,
    Array,
    cast,
    dtype_of,
    how_many,
    is_concrete,
    is_eager_torch,
    iterate,
    namespace,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._sets.arguments import at_most, axes, positive_integer
from inbounds._sets.set import Set, finite_rows, registered
from inbounds._types import Axis, Integer

FEW = 32  # so many of the largest entries are faster taken than bisected for


@registered
class Sparse(Set):
    """{w : at most k entries of w are not 0}, each unit. Not convex.

    The k entries that are largest in magnitude stay bit for bit, the others become 0: iterative
    hard thresholding, or magnitude pruning during training. The number is per unit, so that no unit
    dies out.

    Args:
        k: how many entries may differ from 0; at most the size of a unit.
        axis: see `MaxNorm`.

    Raises:
        SetError: `k` is not a positive integer, or, once the weight is known, larger than its
            units.

    Cost: a selection, no sort: 3 to 30 passes over the weight. NumPy partitions, PyTorch takes the
    k largest, JAX and TensorFlow bisect the magnitudes, at most 200 times.

    Of entries equal in magnitude the first in the unit stay. -0.0 counts as 0. A zero unit is
    inside. A unit with NaN or infinities stays and counts as violated. The violation is the
    magnitude of the largest entry that is too much.

    Source: Blumensath and Davies, "Iterative hard thresholding for compressed sensing", 2009.

    >>> Sparse(2).project([[0.5, -3.0, 0.0, 2.0, -2.0]])
    array([[ 0., -3.,  0.,  2.,  0.]])
    """

    k: int
    convex: ClassVar[bool] = False
    undone_steps: ClassVar[str] = (
        "a step that leaves an entry below the k largest of its unit is lost, so that small ones never revive it"
    )

    def __init__(self, k: Integer, axis: Axis = None) -> None:
        self.k = positive_integer("Sparse", "k", k, "Sparse(k=10)", ": how many entries of a unit may differ from 0")
        self.axis = axes("Sparse", axis)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        where = f"{units.count} units of {units.size} entries"
        at_most(self, "k", units.size, "the size of a unit", where)

    def _project(self, units: Units) -> Units:
        rows, mask = units.rows(), units.mask_rows()
        xp = namespace(rows)
        finite, entries = finite_rows(rows, mask)
        sizes = xp.abs(without_gradient(entries))
        if mask is not None:
            sizes = xp.where(mask, sizes, -xp.ones_like(sizes))
        kept = k_largest(sizes, self.k) | (sizes <= 0) | ~finite
        return units.with_rows(xp.where(kept, rows, xp.zeros_like(rows)))

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return too_many(namespace(rows).abs(rows), self.k)


def too_many(sizes: Array, k: int) -> Array:
    """The largest number of each row besides k larger ones; where there is none, below 0."""
    xp = namespace(sizes)
    if k >= sizes.shape[1]:
        return 0 * sizes[:, 0] - np.inf
    most = xp.sort(sizes, axis=1)[:, sizes.shape[1] - k - 1]
    return xp.where(most > 0, most, xp.zeros_like(most))  # at 0 the derivative is 0


def k_largest(sizes: Array, k: int) -> Array:
    """Which are the k largest of each row; of equal ones the first."""
    xp = namespace(sizes)
    least = _threshold(sizes, k)
    above, level = sizes > least, sizes == least
    room = k - how_many(above)
    if is_concrete(sizes) and bool(xp.all(how_many(level) <= room)):
        return above | level
    return above | (level & (xp.cumsum(cast(level, "int32"), axis=1) <= room))


def _threshold(sizes: Array, k: int) -> Array:
    """For each row a number that at most k entries are above, and at least k are not below."""
    xp = namespace(sizes)
    if xp is np:
        return np.partition(sizes, -k, axis=1)[:, -k, np.newaxis]
    if is_eager_torch(sizes) or k <= FEW:
        return xp.min(keras.ops.top_k(sizes, k, sorted=False)[0], axis=1, keepdims=True)
    smallest = SMALLEST_NORMAL[dtype_of(sizes)]

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        low, high, reached = state
        half = xp.where(high > 1, low / 2 + high / 2, (low + high) / 2)
        middle = xp.where(high > 2 * low, xp.sqrt(xp.maximum(low, smallest)) * xp.sqrt(high), half)
        number = how_many(sizes > middle)
        unfinished = (middle > low) & (middle < high) & (reached != k)
        up, down = unfinished & (number > k), unfinished & (number <= k)
        state = xp.where(up, middle, low), xp.where(down, middle, high), xp.where(down, number, reached)
        return state, unfinished

    low = xp.zeros_like(sizes[:, :1])
    number = how_many(sizes > 0)
    high = xp.where(number > k, xp.max(sizes, axis=1, keepdims=True), low)
    return iterate(step, (low, high, xp.where(number > k, xp.zeros_like(number), number)), 200)[1]
