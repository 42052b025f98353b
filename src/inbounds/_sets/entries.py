"""Sets that bound each entry by itself: NonNeg, NonPos, Box, Fixed.

Their projections are exact in floating point: an entry that is outside becomes its bound, rounded
to the weight's dtype. So the tolerance is no more than that rounding, or the smallest normal
number: XLA takes what is smaller for 0. They are the same in every metric.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from inbounds._arrays.judgement import Bound
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import SMALLEST_NORMAL, Array, booleans, clip_finite, constant, namespace, working_dtype
from inbounds._arrays.units import Units
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import center_of, number_or_array
from inbounds._sets.declaration import Declaration, Values, each, is_bounded
from inbounds._sets.set import Exceeded, Set, registered
from inbounds._types import Center, Numbers


class Interval(Set):
    """low <= w <= high, entry by entry."""

    low: Bound
    high: Bound
    separable = True

    @property
    def entrywise(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return isinstance(self.low, float) and isinstance(self.high, float)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        units.entries(self.low)
        units.entries(self.high)

    def declaration(self, units: Units) -> Declaration:
        center = self.center_values(units)

        def bound(given: Bound) -> Values:
            values = given if isinstance(given, float) else units.entries(given)
            return values if center == 0.0 or not is_bounded(values) else each(operator.add, center, values)

        return Declaration(low=bound(self.low), high=bound(self.high))

    def _project(self, units: Units) -> Units:
        low, high = (units.entries(bound) for bound in (self.low, self.high))
        return units.map(clip_finite, low, high)

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return self._edges(rows, Laid.of_rows(rows))[0][0]

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        xp = namespace(rows)
        low, high = (constant(rows, laid.entries(bound)) for bound in (self.low, self.high))
        return [(xp.max(xp.maximum(low - rows, rows - high), axis=1), self._slack(laid))]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return max(_rounding(self.low, dtype), _rounding(self.high, dtype), SMALLEST_NORMAL[working_dtype(dtype)])

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        return 0.0 if self.center is None else np.max(np.abs(rows), axis=1)

    def _hidden(self, rows: Array, mask: np.ndarray[Any, Any], laid: Laid) -> Array:
        inside = np.broadcast_to(np.clip(0.0, laid.entries(self.low), laid.entries(self.high)), tuple(rows.shape))
        return namespace(rows).where(booleans(rows, mask), rows, constant(rows, inside))


@registered
class NonNeg(Interval):
    """{w : w >= 0}, every entry.

    The exact nearest point: negative entries become 0, all others stay bit for bit. For weights
    that may only add: monotone networks, mixing weights, activities.

    Cost: one pass over the weight.

    NaN and infinities stay, and count as violated.

    Source: Lawson and Hanson, "Solving least squares problems", 1974; Sill, "Monotonic networks",
    1998.

    >>> NonNeg().project([[-1.0, 2.0]])
    array([[0., 2.]])
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, np.inf


@registered
class NonPos(Interval):
    """{w : w <= 0}, every entry.

    For weights that may only take away; otherwise as `NonNeg`.

    Cost: one pass over the weight.

    Source: see `NonNeg`.

    >>> NonPos().project([[-1.0, 2.0]])
    array([[-1.,  0.]])
    """

    def __init__(self) -> None:
        self.low, self.high = -np.inf, 0.0


@registered
class Box(Interval):
    """{w : low <= w <= high}, every entry.

    For weights with a known range, or one side of it: an infinite bound leaves that side open.

    Args:
        low: a number; an array that broadcasts over a unit: one entry for each entry of the unit,
            or a shape that broadcasts to the unit's own (for a filter: (rows, columns, channels));
            or an array with as many axes as the weight, which broadcasts to it.
        high: the same; not below `low`.
        center: what the box is moved by: {w : low <= w - center <= high}, see `MaxNorm`.

    Raises:
        SetError: a bound is NaN, `low` is above `high`, or the two don't broadcast.

    Cost: one pass over the weight; a centre adds a difference and a sum.

    NaN and infinities stay, and count as violated.

    Source: Arjovsky, Chintala and Bottou, "Wasserstein GAN", 2017, for weights in a box; Bertsekas,
    "On the Goldstein-Levitin-Polyak gradient projection method", 1976.

    >>> Box(-1, [0.5, 1]).project([[-2.0, 3.0]])
    array([[-1.,  1.]])
    """

    def __init__(self, low: Numbers, high: Numbers, center: Center = None) -> None:
        self.center = center_of("Box", center)
        self.low = number_or_array("Box", "low", low, infinite=True)
        self.high = number_or_array("Box", "high", high, infinite=True)
        try:
            crossed = np.any(np.asarray(self.low) > self.high)
            empty = np.any(np.asarray(self.low) == np.inf) or np.any(np.asarray(self.high) == -np.inf)
        except ValueError as error:
            raise SetError(
                "`low` and `high` of Box don't broadcast together",
                f"low.shape={np.shape(self.low)}, high.shape={np.shape(self.high)}",
                instead="give both the shape of a unit, or one of them as a number",
            ) from error
        if crossed or empty:
            wrong = "`low` of Box is above `high`, or both are the same infinity"
            raise SetError(wrong, f"low={shown(low)}, high={shown(high)}", instead="Box(low=-1.0, high=1.0)")


@registered
class Fixed(Interval):
    """{value}: every entry has its given value.

    For entries that training must not move, with `where` in a rule or for a whole weight; the
    weight still takes part in the forward pass. NaN and infinities stay, and count as violated.

    Args:
        value: a number, or an array for a unit or for the weight (see `Box`); finite.

    Cost: one pass over the weight.

    Source: none is needed; a single point is nearest to all.

    >>> Fixed(0.5).project([[-2.0, 3.0]])
    array([[0.5, 0.5]])
    """

    def __init__(self, value: Numbers) -> None:
        self.value = number_or_array("Fixed", "value", value)
        self.low = self.high = self.value


def _rounding(bound: Bound, dtype: str) -> float:
    """How far rounding to a dtype moves a bound.

    It is the larger of two distances: from the bound itself, and from its value in the dtype of
    computing.
    """
    exact = np.asarray(bound, dtype="float64")
    finite = exact[np.isfinite(exact)]
    computed = finite.astype(working_dtype(dtype))
    rounded = computed.astype(dtype).astype("float64")
    return float(np.max(np.abs([rounded - finite, rounded - computed]), initial=0.0))
