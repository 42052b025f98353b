"""The projection on one limit with bounds on entries: one multiplier per unit, found in a bracket.

The entries are known by a formula once the multiplier t is known (see `normal_form`), and what they
add up to falls in t. Newton's method finds where it meets the level; a step that leaves the bracket
of what has been seen is replaced by its middle. A sum of positive parts is convex and piecewise
linear in t, so that the steps come from one side, need no bracket and end exactly, after 4 to 8 as
a rule.

Source: Condat, "Fast projection onto the simplex and the l1 ball", 2016, for Newton's method on
thresholds; Kiwiel, "Breakpoint searching algorithms for the continuous quadratic knapsack problem",
2008, for sums with bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from inbounds._arrays.judgement import Judgement
from inbounds._arrays.ops import (
    HUGE,
    MODERATE,
    Array,
    above,
    dtype_of,
    epsilon,
    into,
    iterate,
    less_product,
    namespace,
    positive_part,
    signed,
    times,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._sets.declaration import Declaration, Limit, Values, clip, is_bounded

LOOKS, UNROLLED = 64, 12
"""At most so many looks at a multiplier; where PyTorch exports or vectorizes, so many for sums of
positive parts."""

PATIENCE = 8
"""Of the looks after so many, each third halves the bracket."""

FARTHEST = 1e-12
"""A unit whose norm is more than the inverse times the bound goes on along its ray, as the nearest
point does to rounding: the squares of what is left would vanish."""


def nearest_on_one_limit(units: Units, declaration: Declaration, moved: Array, away: Units | None = None) -> Units:
    """The units that are moved, at their nearest points.

    The result meets the level where bounds leave it room.

    Args:
        units: of any parts, in their metric.
        declaration: bounds, and one limit.
        moved: which units are outside, one for each; the others stay bit for bit, and so do those
            with NaN or infinities.
        away: of a 1-norm about 0, the sizes of the entries, where they are known.
    """
    movable = units.only(movable=True)
    if movable is None:
        return units
    xp = namespace(movable.parts[0])
    problem = _OneLimit(units, movable, declaration, None if away is None else away.only(movable=True))
    moved = xp.reshape(moved, movable.shape) & problem.finite
    t = problem.multiplier(moved)
    y = problem.finished(problem.entries(problem.base, t), t, moved)
    if units.differentiable:
        y = problem.with_derivative(y, t, moved)
    return units.with_movable(y if problem.keeps else movable.chosen(moved, y))


class _OneLimit:
    """One limit and the movable entries of units, over a number per unit, to be of the size of 1.

    Attributes:
        level: what the entries are to add up to, or at most.
        base: for each entry, what the multiplier is taken from: its distance below the largest
            where only positive parts count, which loses no digits; else the entry, or its size.
        ease: by how much a multiplier of 1 moves each entry.
        none: the multiplier that moves nothing, below which that of an inequality doesn't go.
        keeps: whether a multiplier of 0 gives back what isn't moved bit for bit.
        noise: the part of a sum that may be rounding.
        slack: how near to a ball is enough: the next step of training makes up for the rest, see
            `Units`.
    """

    def __init__(self, units: Units, movable: Units, declaration: Declaration, away: Units | None) -> None:
        self.xp = xp = namespace(movable.parts[0])
        (limit,) = declaration.limits
        self.weights, self.offset, self.lowest, self.highest = (
            _of(values, movable=True) for values in (limit.weights, limit.center, declaration.low, declaration.high)
        )
        self.movable = movable
        rounding = epsilon(dtype_of(movable.parts[0]))
        self.slack = rounding**0.5 / 4 if units.training else 8 * rounding
        self.noise = Judgement(units.size, dtype_of(movable.parts[0])).held(1.0) / 2
        self.kind, self.linear = limit.kind, limit.kind in ("equal", "most")
        self.bounded = is_bounded(self.lowest) or is_bounded(self.highest)
        self.costs: Values = 1.0 if movable.costs is None else movable.costs
        self.positive = limit.kind == "diamond" and not self.bounded
        if self.linear and self.lowest == 0.0 and not is_bounded(self.highest) and self.weights == 1.0:
            self.positive, self.bounded, self.lowest = True, False, -np.inf
        self.from_top = self.positive and self.costs == 1.0 and self.weights == 1.0

        self.keeps = self.positive and limit.kind == "diamond" and self.offset == 0.0 and self.weights == 1.0

        known = movable.constants()
        away = away or self.away(known)
        level = level_left(units, movable, limit)
        self.top: Any = 0.0
        self.plain = False  # whether the number per unit is 1
        if self.from_top:
            largest = away.max(lambda x: x)
            level = level + xp.zeros_like(largest)
            self.unit = xp.where(level > 0, level, xp.ones_like(level))
            self.plain = units.concrete and not bool(xp.any(largest > 2 * level))  # no threshold is far above the level
            self.top = 0.0 if self.plain else largest
        else:
            largest = movable.constants().largest() if self.keeps else _largest(known, declaration, limit)
            level = level + xp.zeros_like(largest)
            scale = xp.maximum(largest, xp.abs(level))
            self.unit = xp.clip(scale, 1 / HUGE, HUGE)
            moderate = (scale > 1 / MODERATE) & (scale < MODERATE)
            self.plain = units.concrete and self.positive and bool(xp.all(moderate))
        self.unit = 1.0 if self.plain else self.unit
        self.keeps &= self.plain and not movable.masked
        self.largest = largest
        self.finite = xp.isfinite(largest)
        if (frozen := units.only(movable=False)) is not None:
            self.finite = self.finite & xp.reshape(xp.isfinite(frozen.largest()), movable.shape)
        self.level = level / self.unit
        self.low, self.high = (
            known.map(lambda _, v, c, unit: _less(v, c) / unit, bound, self.offset, self.unit)
            if is_bounded(bound)
            else bound
            for bound in (self.lowest, self.highest)
        )
        self.ease = self.weights if self.costs == 1.0 else known.map(_over, self.weights, self.costs)
        self.sign: Values = 1.0
        if self.kind == "diamond" and self.bounded:
            self.sign = known.map(lambda x, c: xp.sign(_less(x, c)), self.offset)
        self.base = self.over_unit(away)
        self.none = xp.zeros_like(level) - self.top / self.unit
        if limit.kind == "equal":
            self.none = xp.full_like(level, -np.inf)

    def away(self, x: Units) -> Units:
        """Entries relative to the centre, of a 1-norm their sizes; they may carry a derivative."""
        return x.map(lambda x, c: self.xp.abs(_less(x, c)) if self.kind == "diamond" else _less(x, c), self.offset)

    def over_unit(self, away: Units) -> Units:
        """The `base` of entries that are `away` from the centre."""
        if self.plain:
            return away
        if self.from_top:
            return away.map(lambda x, top, unit: self.xp.maximum((x - top) / unit, -1.0), self.top, self.unit)
        return away.map(lambda x, unit: x / unit, self.unit)

    def entries(self, base: Units, t: Array) -> Units:
        """The entries at a multiplier, relative to the centre.

        Those of a 1-norm without bounds have no sign.
        """

        def entry(b: Array, a: Any, e: Any, d: Any, sign: Any, low: Any, high: Any, t: Array) -> Array:
            y = b * (d / (d + times(a, t))) if self.kind == "ball" else less_product(b, e, t)
            y = positive_part(y) if self.positive or self.kind == "diamond" else y
            return clip(times(sign, y), low, high) if self.bounded else y

        return base.map(entry, self.weights, self.ease, self.costs, self.sign, self.low, self.high, t)

    def number(self, y: Units, size: bool = False) -> Array:
        """What is compared with the level, for a ball its square.

        If `size`, it is the sum of the sizes of what is added up.
        """
        xp = self.xp

        def term(y: Array, a: Any) -> Array:
            away = times(a, y)
            if self.kind == "ball":
                return away * away
            return away if self.positive or (self.linear and not size) else xp.abs(away)

        return y.total(term, self.weights)

    def moving(self, y: Array, low: Any, high: Any) -> Array:
        """1 if an entry moves with the multiplier, 0 if a bound or a 1-norm's centre holds it."""
        if self.positive:
            return above(y, 0.0)
        one: Any = self.xp.sign(self.xp.abs(y)) if self.kind == "diamond" else 1.0
        one = times(one, above(y, low)) if is_bounded(low) else one
        one = times(one, above(-y, -high)) if is_bounded(high) else one
        return one if hasattr(one, "shape") else self.xp.ones_like(y)

    def slope(self, y: Units, t: Array) -> Array:
        """How fast that falls in the multiplier, half as fast as its square for a ball."""

        def slope(y: Array, a: Any, e: Any, d: Any, low: Any, high: Any, t: Array) -> Array:
            if self.kind != "ball":
                return times(a, times(e, self.moving(y, low, high)))
            away = times(a, y)
            fall = away * away / (d + times(a, t))
            return fall * self.moving(y, low, high) if self.bounded else fall

        return y.sum(slope, self.weights, self.ease, self.costs, self.low, self.high, t)

    def look(self, t: Array) -> tuple[Array, Array, Array]:
        """How far the level is exceeded; Newton's step to where it is met; how much is rounding."""
        xp = self.xp
        y = self.entries(self.base, t)
        number = self.number(y)
        slope = y.sum(self.steepness, self.weights, self.ease) if self.positive else self.slope(y, t)
        safe = xp.where(slope > 0, slope, xp.ones_like(slope))
        if self.kind == "ball":
            over = xp.sqrt(number) / xp.maximum(self.level, FARTHEST) - 1
            step = over * number / safe
            near = xp.zeros_like(over) + self.slack
        else:
            over = number - self.level
            step = over / safe
            size = number if self.positive else self.number(y, size=True)
            near = self.noise * (size + xp.abs(self.level))  # on a face, what is left here adds up over steps
        return over, xp.where(slope > 0, step, xp.zeros_like(step)), near

    @staticmethod
    def steepness(y: Array, a: Any, e: Any) -> Array:
        """How fast positive parts fall; takes their memory."""
        fall = into(y, "sign", y)
        for factor in (a, e):
            fall = fall if isinstance(factor, float) else into(fall, "multiply", fall, factor)
        return fall

    def multiplier(self, moved: Array) -> Array:
        """Where the level is met, for the units that are moved."""
        xp = self.xp
        start = self.none
        if self.from_top:  # after a step the threshold is near 0, as a rule
            zero = xp.zeros_like(self.largest)
            top, nothing = (self.largest, zero) if self.plain else (zero, -self.top / self.unit)
            least = top - self.level
            start = xp.maximum(nothing, least)
            if self.kind == "equal":
                start = xp.where(self.largest > 0, start, least)
        elif self.kind == "equal" or (self.keeps and self.costs != 1.0):  # where it is met if nothing is held
            slope = self.base.sum(
                lambda x, a, e: times(times(a, e), xp.sign(x) if self.keeps else 1 + 0 * x), self.weights, self.ease
            )
            start = (self.number(self.base) - self.level) / xp.where(slope > 0, slope, xp.ones_like(slope))
        search = from_the_left if self.positive else in_a_bracket
        return search(self.look, xp.where(moved, start, xp.zeros_like(start)), self.none, moved)

    def finished(self, y: Units, t: Array, moved: Array) -> Units:
        """The entries as weights, after a step that makes up for rounding.

        The step scales entries, or shifts those that move.
        """
        xp = self.xp
        number = self.number(y)
        if self.linear and not self.positive:
            slope = self.slope(y, t)
            left = xp.where(slope > 0, number - self.level, xp.zeros_like(number))
            left = left / xp.where(slope > 0, slope, xp.ones_like(slope))
            left = xp.maximum(left, 0) if self.kind == "most" else left

            def shifted(y: Array, e: Any, by: Array, low: Any, high: Any) -> Array:
                return y - times(e, by) * self.moving(y, low, high)

            return self.as_weights(y.map(shifted, self.ease, left, self.low, self.high))
        length = xp.sqrt(number) if self.kind == "ball" else number
        factor = self.level / xp.where(length > 0, length, xp.ones_like(length))
        if self.kind == "most" or self.bounded:
            factor = xp.minimum(factor, 1)
        if self.keeps:
            factor = xp.where(moved, factor, xp.ones_like(factor))

        def scaled(y: Array, a: Any, by: Array) -> Array:
            return into(y, "multiply", y, by) if isinstance(a, float) else xp.where(a > 0, by * y, y)

        return self.as_weights(y.map(scaled, self.weights, factor))

    def as_weights(self, y: Units) -> Units:
        """Entries as they are for the weights, exactly within the bounds."""

        def weight(y: Array, x: Array, c: Any, unit: Any, low: Any, high: Any) -> Array:
            y = y if self.plain else into(y, "multiply", y, unit)
            y = signed(y, _less(x, c)) if self.kind == "diamond" and not self.bounded else y
            return clip(y if isinstance(c, float) and c == 0 else c + y, low, high)

        return y.map(weight, self.movable.constants(), self.offset, self.unit, self.lowest, self.highest)

    def with_derivative(self, y: Units, t: Array, moved: Array) -> Units:
        """The entries with their derivative in what is projected, and the multiplier's with it."""
        xp = self.xp
        live = self.movable.map(lambda x, moved: xp.where(moved, x, xp.zeros_like(x)), moved)
        live = self.over_unit(self.away(live))
        fixed = self.entries(live.constants(), t)
        slope = self.slope(fixed, t)
        share = xp.where(
            (slope > 0) & moved & (t > self.none), (0.5 if self.kind == "ball" else 1.0) / slope, 0 * slope
        )
        number = self.number(self.entries(live, t))
        ahead = self.as_weights(self.entries(live, t + share * (number - without_gradient(number))))

        def with_it(y: Array, live: Array, dead: Array, fixed: Array, low: Any, high: Any) -> Array:
            return y + self.moving(fixed, low, high) * (live - dead)

        return y.map(with_it, ahead, ahead.constants(), fixed, self.low, self.high)


Look = Callable[[Array], tuple[Array, Array, Array]]
"""Gives a falling function at some numbers, the step to where Newton's method sees 0, and how near
to 0 is rounding."""


def from_the_left(look: Look, start: Array, least: Array, moved: Array) -> Array:
    """`in_a_bracket` for a convex, piecewise linear function, by Newton's method alone.

    No step from the left passes the 0, and one from the right ends on the left. Each step at least
    quarters the product of the function and its slope.
    """
    xp = namespace(start)

    def turn(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        t, open_ = state
        over, step, near = look(t)
        new = xp.where(open_, xp.maximum(t + step, least), t)
        open_ = open_ & (xp.abs(over) > near) & (new != t)
        return (new, open_), open_

    return iterate(turn, (start, moved), LOOKS, UNROLLED)[0]


def in_a_bracket(look: Look, start: Array, least: Array, moved: Array) -> Array:
    """For each unit that is moved, the number at which a falling function is 0, to rounding.

    Args:
        look: of the function.
        start: where the search begins.
        least: the number below which it never goes.
        moved: the units that are searched for.
    """
    xp = namespace(start)
    zero = xp.zeros_like(start)

    def turn(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        t, low, high, count = state
        over, step, near = look(t)
        low, high = xp.where(over > 0, t, low), xp.where(over < 0, t, high)
        far = 2 + 2 * xp.abs(t)
        middle = 0.5 * (xp.where(low > -np.inf, low, t - far) + xp.where(high < np.inf, high, t + far))
        new, halve = t + step, (count >= PATIENCE) & (count % 3 == 2)
        new = xp.where((step != 0) & (new > low) & (new < high) & ~halve, new, middle)
        going = moved & (xp.abs(over) > near) & (new > low) & (new < high)
        return (xp.where(going, new, t), low, high, count + 1), going

    return iterate(turn, (start, least, zero + np.inf, zero), LOOKS, 3 * UNROLLED)[0]


def _over(_: Array, weights: Any, costs: Any) -> Any:
    if isinstance(weights, float) and weights == 1:
        return namespace(costs).reciprocal(costs)
    return weights / costs


def _less(x: Array, center: Any) -> Array:
    return x if isinstance(center, float) and center == 0 else x - center


def _of(values: Values, *, movable: bool) -> Values:
    return values.only(movable=movable) or 0.0 if isinstance(values, Units) else values


def level_left(units: Units, movable: Units, limit: Limit) -> Array | float:
    """The level that frozen entries leave for the movable ones."""
    xp = namespace(movable.parts[0])
    level = xp.reshape(limit.level, movable.shape) if len(getattr(limit.level, "shape", ())) else limit.level
    if (frozen := units.only(movable=False)) is None:
        return level
    weights, center = _of(limit.weights, movable=False), _of(limit.center, movable=False)
    if limit.kind in ("equal", "most"):
        return level - xp.reshape(frozen.total(lambda x, a: a * x, weights), movable.shape)
    if limit.kind == "diamond":
        return xp.maximum(
            level - xp.reshape(frozen.total(lambda x, a, c: xp.abs(a * (x - c)), weights, center), movable.shape), 0
        )
    radius = xp.reshape(xp.zeros_like(frozen.largest()), movable.shape) + level
    size = xp.clip(radius, 1 / HUGE, HUGE)
    taken = frozen.total(lambda x, a, c, size: (a * (x - c) / size) ** 2, weights, center, size)
    share = radius / size  # 1 as a rule
    return size * xp.sqrt(xp.maximum(share * share - xp.reshape(taken, movable.shape), 0))


def _largest(known: Units, declaration: Declaration, limit: Limit) -> Array:
    """The size of the largest of the entries and of what they are compared with, for each unit."""
    xp = namespace(known.parts[0])

    def size(x: Array, *others: Any) -> Array:
        for other in others:
            finite = xp.isfinite(other + 0 * x)
            x = xp.maximum(xp.abs(x), xp.where(finite, xp.abs(other + 0 * x), xp.zeros_like(x)))
        return xp.abs(x)

    others = [v for v in (declaration.low, declaration.high, limit.center) if is_bounded(v) and v != 0.0]
    return known.max(size, *(_of(other, movable=True) for other in others))
