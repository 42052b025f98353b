"""The set of an order: Monotone.

The nearest point is isotonic regression. Pool-adjacent-violators walks along a unit entry by entry;
here the halves of a unit are fitted first and then merged, all units and all pairs of halves at
once, each merge by binary search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    Array,
    at_once,
    cast,
    constant,
    dtype_of,
    how_many,
    is_concrete,
    iterate,
    namespace,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._sets.arguments import axes, boolean
from inbounds._sets.set import Set, finite_rows, registered
from inbounds._types import Axis, Bool

LARGE = 2.0**64  # rows are scaled down above it, where sums could overflow, and up below its inverse
FEW = 4  # up to this many entries are counted one by one, which a binary search of small units is slower than


@registered
class Monotone(Set):
    """{w : w_1 <= w_2 <= ... <= w_n}, each unit: entries in order, falling if `increasing=False`.

    For weights along an axis that means something: thresholds, dose or age classes, the bins of a
    calibration. The nearest point replaces runs of entries that are out of order by their mean,
    which is isotonic regression.

    Args:
        increasing: whether entries grow along the unit; equal ones are in order.
        axis: see `MaxNorm`. The entries of a unit with several axes are in the order of memory, the
            last axis fastest.

    Cost: the same for all values. Halves of a unit are merged log2(n) times, each a few passes over
    the weight and binary searches of log2(n)^2 steps at most. An eager step skips merges with
    nothing out of order.

    Units in order come back bit for bit, and a result is in order exactly: pooled entries are the
    same number, the mean to rounding, with its derivative. A zero unit is inside. A unit with NaN
    or infinities stays and counts as violated. float16 and bfloat16 are pooled in float32.

    Source: Ayer et al., "An empirical distribution function for sampling with incomplete
    information", 1955; Best and Chakravarti, "Active set algorithms for isotonic regression", 1990.

    >>> Monotone().project([[1.0, 3.0, 2.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    array([[1. , 2.5, 2.5, 4. ],
           [1.5, 1.5, 1.5, 1.5]])
    """

    exact_in_metric = True

    def __init__(self, increasing: Bool = True, axis: Axis = None) -> None:
        instead = "Monotone(increasing=False) for entries that fall"
        self.increasing = boolean("Monotone", "increasing", increasing, instead)
        self.axis = axes("Monotone", axis)

    def _project(self, units: Units) -> Units:
        rows, mask = units.rows(), units.mask_rows()
        xp = namespace(rows)
        finite, entries = finite_rows(rows, mask)
        rising = entries if self.increasing else -entries
        costs = units.metric_rows()
        if mask is None:
            fitted = at_once(_isotonic, rising, costs, static=units.differentiable)
        else:
            source, kept, places = _packing(mask)
            largest = without_gradient(xp.max(xp.where(mask, xp.abs(rising), 0 * rising), axis=1, keepdims=True))
            packed = xp.where(kept, _at(rising, source), largest)
            costs = None if costs is None else xp.where(kept, _at(costs, source), xp.ones_like(packed))
            fitted = _at(at_once(_isotonic, packed, costs, static=units.differentiable), places)
        return units.with_rows(xp.where(finite, fitted if self.increasing else -fitted, rows))

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        if rows.shape[1] == 1:
            return 0 * rows[:, 0] - np.inf
        steps = rows[:, 1:] - rows[:, :-1]
        return xp.max(-steps if self.increasing else steps, axis=1)

    def _hidden(self, rows: Array, mask: np.ndarray[Any, Any], laid: Laid) -> Array:
        """The entries that the mask marks, one after the other.

        A row with fewer of them goes on in steady steps.
        """
        xp = namespace(rows)
        marked = mask.sum(axis=1, keepdims=True)
        width = max(1, int(marked.max(initial=0)))
        places = np.arange(width)
        first = np.argsort(~mask, axis=1, kind="stable")
        index = np.take_along_axis(first, np.minimum(places, np.maximum(marked - 1, 0)), axis=1)
        entries = _at(rows, index if xp is np else constant(cast(rows[:1], "int32"), index))
        further = np.maximum(places - marked + 1, 0) * (1 if self.increasing else -1)
        largest = float(np.finfo(dtype_of(rows)).max)
        return xp.clip(entries + constant(rows, further) * (1 + xp.abs(entries)), -largest, largest)


def _isotonic(rows: Array, costs: Array | None, differentiable: bool) -> Array:
    """The nearest rows whose entries don't fall, in the norm of `costs`; None: the Euclidean."""
    xp = namespace(rows)
    units, size = rows.shape
    padded = 1 << (size - 1).bit_length()
    largest = without_gradient(xp.max(xp.abs(rows), axis=1, keepdims=True))
    if padded > size:  # with entries that are never out of order
        rows = xp.concatenate([rows, xp.tile(largest, (1, padded - size))], axis=1)
        costs = None if costs is None else xp.concatenate([costs, xp.ones_like(rows[:, size:])], axis=1)
    lift = xp.where(largest < 1 / LARGE, xp.full_like(largest, LARGE), xp.ones_like(largest))
    share = xp.where(largest > LARGE, xp.full_like(largest, 1 / padded), xp.ones_like(largest))
    fitted, half = rows * lift, 1
    while half < padded:
        shape = (units, padded // (2 * half), 2 * half)
        by = None if costs is None else xp.reshape(costs, shape)
        fitted = _merged(xp.reshape(fitted, shape), by, xp.reshape(share, (units, 1, 1)), differentiable)
        half *= 2
    return xp.reshape(fitted, (units, padded))[:, :size] / lift


def _merged(pairs: Array, costs: Array | None, share: Array, differentiable: bool) -> Array:
    """The nearest wholes in order, from pairs of halves that are each in order by themselves.

    The pairs, and the wholes, have the shape (units, pairs, size).

    What exceeds a level on the left, and what falls short of it on the right, becomes that level,
    which is the mean of what becomes it. Entry i of the left, counted from the middle, is above the
    level if it is above the mean of the entries up to it and of those that are less than it on the
    right; entry i of the right is below the level if it is below the mean of the entries before it
    and of those that are above the level on the left. Entries are added up times `share`, so that
    nothing overflows.
    """
    xp = namespace(pairs)
    half = pairs.shape[2] // 2
    left, right = pairs[:, :, :half], pairs[:, :, half:]
    crossed = left[:, :, -1:] > right[:, :, :1]
    if is_concrete(crossed) and not bool(xp.any(crossed)):
        return pairs
    lefts, rights = (without_gradient(x) * share for x in (xp.flip(left, axis=2), right))
    none = cast(xp.zeros_like(crossed), "int32")

    def cumulated(left: Array, right: Array) -> list[Array]:
        return [xp.cumsum(x, axis=2) for x in (left, right)]

    if costs is None:
        sums, cost_sums = cumulated(lefts, rights), None
    else:
        by_left, by_right = xp.flip(costs[:, :, :half], axis=2), costs[:, :, half:]
        sums, cost_sums = cumulated(lefts * by_left, rights * by_right), cumulated(by_left, by_right)

    def added(of_left: Array, of_right: Array) -> tuple[Array, Array]:
        """The sum and the cost of the first entries on the left, one at least, and on the right."""

        def upto(left: Array, right: Array) -> Array:
            total = _at(left, of_left - 1)
            return xp.where(of_right > 0, total + _at(right, xp.maximum(of_right - 1, 0)), total)

        return upto(*sums), cast(of_left + of_right, dtype_of(share)) if cost_sums is None else upto(*cost_sums)

    def is_above(i: Array) -> Array:
        entry = _at(lefts, i)
        total, cost = added(i + 1, _less(rights, entry))
        return total < entry * cost

    of_left = xp.maximum(_leading(is_above, half, none), 1)

    def is_below(j: Array) -> Array:
        total, cost = added(of_left, j)
        return _at(rights, j) * cost < total

    total, cost = added(of_left, _leading(is_below, half, none))
    level = total / cost / share
    if differentiable:  # the same mean, of what is beyond the level
        beyond = cast(xp.concatenate([left > level, right < level], axis=2), dtype_of(pairs))
        beyond = beyond if costs is None else beyond * costs
        number = xp.sum(beyond, axis=2, keepdims=True)
        mean = xp.sum(beyond * pairs * share, axis=2, keepdims=True) / xp.where(number > 0, number, 1) / share
        level = xp.where(number > 0, mean, level)
    left = xp.where(crossed & (left > level), level, left)
    right = xp.where(crossed & (right < level), level, right)
    return xp.concatenate([left, right], axis=2)


def _less(rising: Array, numbers: Array) -> Array:
    """For each number how many entries are less, along the last axis."""
    xp = namespace(rising)
    size = rising.shape[-1]
    if size <= FEW:
        return how_many(xp.expand_dims(rising, -2) < xp.expand_dims(numbers, -1))[..., 0]
    return _leading(lambda i: _at(rising, i) < numbers, size, cast(xp.zeros_like(numbers), "int32"))


def _leading(holds: Callable[[Array], Array], size: int, none: Array) -> Array:
    """How many of `size` entries satisfy a condition, by a binary search.

    The condition holds up to some entry and not beyond. For indices, `holds` says where it does;
    `none` is a zero, an integer, for each search.
    """
    xp = namespace(none)
    if size <= FEW and none.shape[-1] == 1:
        return how_many(holds(none + constant(none, np.arange(size))))

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        count, more = state
        longer = count + more
        good = (longer <= size) & holds(xp.minimum(longer, size) - 1)
        return (xp.where(good, longer, count), more // 2), more > 1

    return iterate(step, (none, constant(none, 1 << (size.bit_length() - 1))), size.bit_length())[0]


def _at(x: Array, index: Array) -> Array:
    """Entries along the last axis."""
    return namespace(x).take_along_axis(x, index, axis=len(x.shape) - 1)


def _packing(mask: Array) -> tuple[Array, Array, Array]:
    """How entries that a mask marks are moved to the front.

    For each place, the index of the entry that moves there, and whether that is a marked one; for
    each entry, the place to which it moves.
    """
    xp = namespace(mask)
    ranks = xp.cumsum(cast(mask, "int32"), axis=1)
    size = ranks.shape[1]
    place = xp.zeros_like(ranks) + constant(ranks, np.arange(size))
    source = _leading(lambda i: _at(ranks, i) <= place, size, xp.zeros_like(ranks))
    return xp.minimum(source, size - 1), place < ranks[:, -1:], xp.maximum(ranks - 1, 0)
