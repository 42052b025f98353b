"""Sets of a unit's Euclidean norm: MaxNorm, UnitNorm, MinMaxNorm, FrobeniusNorm.

All four move a unit along its own ray until its norm is in an interval; that point is the nearest
(the ball is convex; of a sphere it is the nearest unless the unit is zero, when all points of the
sphere are equally near).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np

from inbounds._arrays.judgement import Bound, Judgement, extremes, finite_bound
from inbounds._arrays.laid import norms_along
from inbounds._arrays.ops import (
    HUGE,
    Array,
    branch,
    constant,
    is_concrete,
    is_eager_torch,
    is_sharded,
    namespace,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import axes, center_of, in_a_row, number, numbers_of_units
from inbounds._sets.declaration import Declaration, Limit
from inbounds._sets.one_limit import level_left, nearest_on_one_limit
from inbounds._sets.reduced import radial
from inbounds._sets.set import Set, registered
from inbounds._types import Axis, Center, Number, Numbers

PLAIN = 1e20
"""Sums of squares between its inverse and this lost nothing on their way."""

SHORT = 1e-9
"""A unit whose sum of squares is too small to be right is shorter than this."""


class _NormInterval(Set):
    """low <= |w| <= high."""

    exact_in_metric = allows_frozen = True  # where it isn't convex too
    low: Bound
    high: Bound
    rate: float = 1.0

    @property
    def has_reduced_gradient(self) -> bool:
        return self.rate == 1

    @property
    def scales(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        own = type(self)._project is _NormInterval._project  # a subclass may read entries after it
        return own and self.rate == 1 and self.center is None

    def reduced(self, units: Units, gradient: Units) -> Units:
        if extremes(self.high)[0] == 0 or units.only(movable=False) is not None:
            return super().reduced(units, gradient)
        one = self.centred(units).together(self.whole)
        moved_by = one.rounding(_norm)
        return radial(one, gradient.together(self.whole), self.low, self.high, moved_by).apart(units)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        """Of a sphere that of its radius, below 0 where a smaller one is better."""
        length = super().multiplier(units, taken)
        sphere = np.equal(self.low, self.high)
        return np.where(sphere & (self._by_scale(units, taken, 1.0) < 0), -length, length)

    @property
    def has_normal_form(self) -> bool:
        return self.convex and bool(np.all(np.greater(self.high, 0)))

    def declaration(self, units: Units) -> Declaration:
        return Declaration((Limit("ball", units.numbers(self.high), center=self.center_values(units)),))

    def _project(self, units: Units) -> Units:
        nearest = _move_norm(units.together(self.whole), self.low, self.high).apart(units)
        if self.rate == 1:
            return nearest

        def part_of_the_way(x: Array, y: Array) -> Array:
            return namespace(x).where((x == y) | (x != x), x, self.rate * y + (1 - self.rate) * x)

        return units.map(part_of_the_way, nearest)

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        xp, norm = namespace(rows), norms_along(rows, None if self.whole else 1)
        low, high = (constant(rows, np.reshape(bound, (-1, 1))) for bound in (self.low, self.high))
        return xp.reshape(xp.maximum(norm - high, xp.where(low > 0, low - norm, -np.inf)), (-1,))

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        return Judgement(size, dtype, root=True).tolerated(finite_bound(self.low, self.high))

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        return 0.0 if self.center is None else np.sqrt(np.sum(rows**2, axis=None if self.whole else 1))


@registered
class MaxNorm(_NormInterval):
    """{w : |w|_2 <= max_value}, each unit: the Euclidean ball.

    The drop-in for `keras.constraints.MaxNorm`, exact: weights inside stay bit for bit, those
    outside are scaled onto the sphere of radius `max_value`. Keeps units from growing, a companion
    of dropout and of high learning rates.

    Args:
        max_value: the largest norm, for all units, or an array with that of each; not negative.
        axis: as in Keras the axes that are summed over. None: the layer's fan-in where the layer is
            known, else every axis but the last.
        center: what the ball is about, a number or an array that broadcasts to the weight (for a
            Joint: to its rows): {w : |w - center|_2 <= max_value}. "current" means the weights as
            they are when `constrain` is called, so that fine-tuning keeps them within a distance of
            where they started.

    Cost: three passes over the weight. A zero unit is inside. Norms from 1e-38 to 1e38 neither
    overflow nor vanish. NaN and infinities stay, and count as violated.

    Source: Srebro, Rennie and Jaakkola, "Maximum-margin matrix factorization", 2005; Hinton et al.,
    "Improving neural networks by preventing co-adaptation of feature detectors", 2012.

    >>> MaxNorm(1).project([[3.0, 4.0], [0.3, 0.4]])
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """

    of_each_unit = ("max_value",)

    def __init__(self, max_value: Numbers = 2.0, axis: Axis = None, center: Center = None) -> None:
        self.max_value = numbers_of_units("MaxNorm", "max_value", max_value, low=0)
        self.axis = axes("MaxNorm", axis)
        self.center = center_of("MaxNorm", center)
        self.low, self.high = 0.0, in_a_row(self.max_value)


@registered
class UnitNorm(_NormInterval):
    """{w : |w|_2 = 1}, each unit: the sphere. Not convex.

    The drop-in for `keras.constraints.UnitNorm`. A zero unit, to which all points are equally near,
    becomes the one with equal positive entries.

    Args:
        axis: see `MaxNorm`.

    Cost: as `MaxNorm`, and the edges too.

    Source: Salimans and Kingma, "Weight normalization", 2016, for directions apart from their
    lengths.

    >>> UnitNorm().project([[3.0, 4.0], [0.0, 0.0]]).round(6)
    array([[0.6     , 0.8     ],
           [0.707107, 0.707107]])
    """

    convex: ClassVar[bool] = False

    def __init__(self, axis: Axis = None) -> None:
        self.axis = axes("UnitNorm", axis)
        self.low = self.high = 1.0


@registered
class MinMaxNorm(_NormInterval):
    """{w : min_value <= |w|_2 <= max_value}, each unit: a shell. Convex only if `min_value` is 0.

    The drop-in for `keras.constraints.MinMaxNorm`.

    Args:
        min_value: the smallest norm, for all units, or an array with that of each; not negative.
        max_value: the largest, likewise; not below `min_value`. Infinity: no upper bound.
        rate: how much of the way to the set a projection goes, from 0 to 1. Below 1 the weights
            approach the set step by step and are reported as violated until they are there.
        axis: see `MaxNorm`.

    Raises:
        SetError: `min_value` is above `max_value`, or their arrays have different lengths.

    Cost: as `MaxNorm`. A zero unit goes to the point with equal positive entries; other edges as in
    `MaxNorm`.

    Source: Srebro, Rennie and Jaakkola, "Maximum-margin matrix factorization", 2005, for the upper
    bound; the lower one is Keras' own.

    >>> MinMaxNorm(1, 2).project([[0.3, 0.4], [3.0, 4.0]])
    array([[0.6, 0.8],
           [1.2, 1.6]])
    """

    of_each_unit = ("min_value", "max_value")

    def __init__(
        self, min_value: Numbers = 0.0, max_value: Numbers = 1.0, rate: Number = 1.0, axis: Axis = None
    ) -> None:
        self.min_value = numbers_of_units("MinMaxNorm", "min_value", min_value, low=0)
        self.max_value = numbers_of_units("MinMaxNorm", "max_value", max_value, low=0, infinite=True)
        self.rate = number("MinMaxNorm", "rate", rate, low=0, high=1)
        self.axis = axes("MinMaxNorm", axis)
        self.low, self.high = in_a_row(self.min_value), in_a_row(self.max_value)
        several = {np.size(self.low), np.size(self.high)} - {1}
        if len(several) > 1 or np.any(np.greater(self.low, self.high)):
            least, most = sorted((np.min(self.max_value), np.max(self.min_value)))
            raise SetError(
                "`min_value` of MinMaxNorm is above `max_value`, or they are for different numbers of units",
                f"min_value={shown(min_value)}, max_value={shown(max_value)}",
                instead=f"MinMaxNorm(min_value={least}, max_value={most})",
            )

    @property
    def convex(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return not np.any(self.low) and self.rate == 1


@registered
class FrobeniusNorm(_NormInterval):
    """{W : |W|_F <= max_value}: the root of the sum of all squares of a whole weight.

    A budget that the units of a weight share, where `MaxNorm` gives each its own.

    Args:
        max_value: the largest norm; not negative.
        center: see `MaxNorm`.

    Cost: as `MaxNorm`, and the edges too.

    Source: Golub and Van Loan, "Matrix computations", section 2.3, for the norm; it is the ball of
    `MaxNorm` for the weight as one vector.

    >>> FrobeniusNorm(1).project([[3.0, 0.0], [0.0, 4.0]])
    array([[0.6, 0. ],
           [0. , 0.8]])
    """

    whole: ClassVar[bool] = True

    def __init__(self, max_value: Number = 1.0, center: Center = None) -> None:
        self.max_value = number("FrobeniusNorm", "max_value", max_value, low=0)
        self.center = center_of("FrobeniusNorm", center)
        self.low, self.high = 0.0, self.max_value


def _move_norm(units: Units, low: Bound, high: Bound) -> Units:
    """Each unit scaled to the nearest norm in [low, high]; the units inside as they are.

    In a metric those above are drawn to the nearest point first, and scaled by what rounding left.

    A unit with NaN or infinities has no finite sum and stays.
    """
    movable = units.only(movable=True)
    if movable is None:
        return units
    bounded_below, frozen = extremes(low)[1] > 0, units.only(movable=False)
    top = finite_bound(low, high)  # without an upper bound no unit is moved there
    short_stay = not bounded_below and frozen is None and extremes(top)[0] > SHORT
    scale, squares = _squares(movable, units.read, -1 if short_stay else 1 / PLAIN)
    xp, inverse = namespace(squares), 1.0 if scale is None else scale
    finite = True if scale is None else squares < np.inf  # which NaN isn't either
    judged, moved_by = units.judged(root=True), units.rounding(_norm)
    moved_by = xp.reshape(moved_by, movable.shape) if hasattr(moved_by, "shape") else moved_by
    given = (low, top, low - judged.held(low), high + judged.held(high))
    least, most, floor, ceiling = (units.read(movable.numbers(bound)) for bound in given)
    floor, ceiling = floor - moved_by, ceiling + moved_by
    if frozen is not None:
        bounds = (least, most, floor, ceiling)
        least, most, floor, ceiling = (level_left(units, movable, Limit("ball", bound)) for bound in bounds)
        finite = finite & xp.reshape(xp.isfinite(frozen.largest()), movable.shape)

    moved = squares > (ceiling * inverse) ** 2
    moved = moved if finite is True else moved & finite
    if units.metric is not None:
        ball = Declaration((Limit("ball", units.numbers(top)),))
        drawn = nearest_on_one_limit(units, ball, xp.reshape(moved, units.shape))
        return _move_norm(drawn.costing(None), low, high).costing(units.costs) if bounded_below else drawn
    if bounded_below:
        moved_up = (squares < (floor * inverse) ** 2) & finite
        moved = moved | moved_up
    if units.concrete and not bool(xp.any(moved)):
        return units
    one = xp.ones_like(squares)
    target, some = one * most, moved
    if bounded_below:
        target, zero = xp.where(moved_up, one * least, target), squares == 0
        some = moved & ~zero
    step = [] if scale is None else [xp.where(moved, scale, one)]
    result = movable.scaled(moved, *step, xp.where(moved, target / xp.sqrt(xp.where(some, squares, one)), one))
    if bounded_below:
        length = units.read(movable.length)
        root = length**0.5 if isinstance(length, int) else xp.sqrt(xp.maximum(length, 1))
        result = result.map(lambda y, zero, fill: namespace(y).where(zero, fill, y), zero & moved, target / root)
    return units.with_movable(result)


def _squares(units: Units, read: Callable[[Array], Array], least: float = 1 / PLAIN) -> tuple[Array | None, Array]:
    """The factor of entries before they are squared, and the sums of the squares, both as read.

    The factor is one number per unit, or None for 1, so that no sum overflows or vanishes. It takes
    passes over a weight that are made only where a sum of the squares as they are is above `PLAIN`
    or below `least`; always where devices would have to tell each other.
    """

    def divided(plain: Array | None = None) -> tuple[Array, Array]:
        largest = read(without_gradient(units.max(namespace(units.parts[0]).abs)))
        xp = namespace(largest)
        inverse = 1 / xp.clip(largest, 1 / HUGE, HUGE)
        inverse = inverse if plain is None else xp.where(plain, xp.ones_like(inverse), inverse)
        return inverse, read(units.map(lambda x, inverse: x * inverse, inverse).total(lambda y: y * y))

    if keras.distribution.distribution() is not None:
        return divided()
    squares = read(units.dot(units))
    xp = namespace(squares)
    plain = squares < PLAIN if least < 0 else (squares < PLAIN) & (squares > least)
    readable = units.concrete or (is_concrete(squares) and not is_sharded(squares))
    if readable and bool(xp.all(plain)):
        return None, squares
    if readable or is_eager_torch(squares):
        return divided(plain)
    inverse, squares = branch(xp.all(plain), lambda: (xp.ones_like(squares), squares), lambda: divided(plain))
    return inverse, squares


def _norm(units: Units) -> Array:
    """The Euclidean norm of each unit; nothing overflows."""
    inverse, squares = _squares(units, units.read)
    xp = namespace(squares)
    root = xp.sqrt(xp.where(squares > 0, squares, xp.zeros_like(squares)))
    return root if inverse is None else root / inverse
