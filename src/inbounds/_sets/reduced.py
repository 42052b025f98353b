"""What a set leaves of a gradient, for the optimizer to see.

At the constrained optimum the gradient isn't 0: it points straight out of the set. An optimizer
that measures that part scales its steps by what can't be used, and ends elsewhere. The reduced
gradient of a set with the projection P, at x,

    (P(x) - P(x - e g)) / e    for a small e,

is g inside, g less what points out of the set on the boundary, and 0 at the optimum: Nesterov's
gradient mapping; for a smooth set the Riemannian gradient. Given it, any optimizer behaves as it
does without constraints, and the projection after its step, in the Euclidean norm, keeps the
weights inside.

The difference of two projections loses digits. Formulas don't, where a set has one: balls and
spheres, sets in normal form, some sets of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from inbounds._arrays.judgement import Bound, extremes, finite_bound
from inbounds._arrays.ops import HUGE, MODERATE, Array, add_product, cast, dtype_of, epsilon, namespace
from inbounds._arrays.units import Units
from inbounds._sets.declaration import Declaration, Limit, Values, is_bounded
from inbounds._sets.normal_form import nearest

SHARE = 1e-3
"""How far `e g` reaches at least, as a share of the unit's largest entry; two grains of the weight
where that is more.

Farther, noise of small batches pushes units inside; less far, the difference of two projections
loses its digits."""


NEAR = 1e-5
"""`SHARE` for formulas that don't subtract two projections, and so lose no digits."""


def difference(project: Callable[[Units], Units], units: Units, gradient: Units, *, together: bool) -> Units:
    """The reduced gradient by two projections, right wherever the units are.

    A unit that stays inside when it takes the step has its gradient bit for bit. So has one whose
    gradient is 0, or where something isn't finite.

    Args:
        project: on the set, in the Euclidean norm.
        units: where the gradient is taken.
        gradient: the gradient, in units of the same parts.
        together: whether the set looks at all units at once, which then take steps of the same
            length.
    """
    fine = units.as_computed()  # else what is a grain of the weights outside would be left there
    one, slope = fine.together(together), gradient.together(together)
    e, _, usable = reach(units.together(together), slope)
    stepped = one.map(lambda x, g, e: x - e * g, slope, e).apart(units)
    ended = project(stepped).together(together)
    here, stepped = project(fine).together(together), stepped.together(together)
    left = here.map(lambda x, y, e: (x - y) / e, ended, e)
    stays = stepped.sum(lambda x, y: cast(x != y, dtype_of(x)), ended) == 0
    return slope.chosen(usable & ~stays, left).apart(units)


def by_multipliers(declaration: Declaration, units: Units, gradient: Units, *, whole: bool) -> Units:
    """The reduced gradient of a set in normal form: minus the nearest to -g of the steps inside.

    The steps d with x + e d inside have a normal form too, in which rounding doesn't grow by 1 / e:
    how far x is from a bound counts as 0 if it may be rounding. A ball is taken for the half-space
    that touches it where x points. No step is longer than the gradient, since projecting brings no
    two points farther apart; so of a 1-norm no entry is followed farther than that.

    Args:
        declaration: of the units.
        units: where the gradient is taken, inside.
        gradient: the gradient, in units of the same parts.
        whole: whether it is declared of all units together.
    """
    x, slope = units.together(whole), gradient.together(whole).costing(None)
    xp = namespace(x.parts[0])
    e, steepest, usable = reach(x, slope, NEAR)
    usable = usable & xp.isfinite(x.largest())
    steepest = xp.where(usable, steepest, xp.ones_like(steepest))
    # TensorFlow refuses to solve systems with NaN.
    x, known = (given.map(lambda x, good: xp.where(good, x, xp.zeros_like(x)), usable) for given in (x, slope))
    longest = steepest * xp.sqrt(known.map(lambda g, most: g / most, steepest).sum(lambda g: g * g))
    grain = 4 * epsilon(x.dtype) * x.largest()

    def moving(values: Units) -> Units:
        """The values, 0 of frozen parts, which take no step."""
        pairs = zip(values.parts, values.movable, strict=True)
        return values.with_parts([part if movable else namespace(part).zeros_like(part) for part, movable in pairs])

    def way_to(values: Values) -> Units:
        """How far each entry is from its value, in steps; 0 where that may be rounding."""

        def way(x: Array, to: Array, e: Array, grain: Array) -> Array:
            return xp.where(xp.abs(to - x) > grain, (to - x) / e, xp.zeros_like(x))

        return x.map(way, values, e, grain)

    def gap(limit: Limit, number: Array, terms: Array) -> Array:
        """How far each unit is from a limit, in steps; 0 of an equation, and of rounding."""
        short = xp.maximum(limit.level - number, 0)
        held = x.judged().held(1.0) * xp.maximum(terms, xp.zeros_like(terms) + abs(limit.level))
        none = short <= held if limit.kind != "equal" else short >= 0
        return xp.where(none | ~usable, xp.zeros_like(short), short / e)

    def of_steps(given: Limit) -> Limit:
        """What a limit of the units asks of their steps."""
        a, c = given.weights, given.center
        terms = x.sum(lambda x, a, c: xp.abs(a * x) + xp.abs(a * c + 0 * x), a, c)
        if given.kind in ("equal", "most"):
            return replace(given, level=gap(given, x.total(lambda x, a: a * x, a), terms))
        if given.kind == "diamond":
            left = gap(given, x.total(lambda x, a, c: xp.abs(a * (x - c)), a, c), terms)
            center = moving(way_to(c).map(lambda c, far: xp.clip(c, -far, far), longest))
            return replace(given, level=left + center.total(lambda c, a: xp.abs(a * c), a), center=center)
        largest = x.max(lambda x, a, c: xp.abs(a * (x - c)), a, c)
        size = xp.where(usable & (largest > 0), largest, xp.ones_like(largest))
        length = xp.sqrt(x.total(lambda x, a, c, size: (a * (x - c) / size) ** 2, a, c, size))
        outwards = moving(x.map(lambda x, a, c, size: a * (x - c) / size, a, c, size))
        level = gap(given, size * length, terms) * xp.where(usable, length, xp.ones_like(length))
        return Limit("most", level, outwards)

    low, high = (way_to(one) if is_bounded(one) else one for one in (declaration.low, declaration.high))
    inside = Declaration(tuple(map(of_steps, declaration.limits)), low, high)
    steps = nearest(moving(known.map(lambda g: -g)), inside, whole=False)
    taken = known.max(lambda g, d: xp.abs(g + d), steps)
    moved = usable & (taken > 4 * epsilon(dtype_of(taken)) * steepest)
    return slope.chosen(moved, steps.map(lambda d: -d)).apart(units)


def radial(units: Units, gradient: Units, low: Bound, high: Bound, moved_by: Array | float) -> Units:
    """The reduced gradient of {w : low <= |w| <= high}: without what points out along a unit's ray.

    Of a unit that is off a bound by less than `SHARE` of its norm, a part of that is taken. Two
    sums and a map, of which one sum is left where the values can be read and no unit is near its
    bound.

    Args:
        units: where the gradient is taken, all movable.
        gradient: the gradient, in units of the same parts.
        low: the smallest norm, or 0.
        high: the largest, or infinity.
        moved_by: how far a centre may move the norm by rounding.
    """
    size = finite_bound(low, high)
    smallest, largest = extremes(size)
    if smallest > 1 / MODERATE and largest < MODERATE:
        size = 1.0
    else:  # so that only units far inside underflow
        size = np.clip(size, 1 / HUGE, HUGE)
        units = units.map(lambda x, bound: x * (1 / bound), units.numbers(size))
    bound, least, most = (units.read(units.numbers(given)) for given in (size, low / size, high / size))
    squares = units.read(units.dot(units))
    xp = namespace(squares)
    inverse = 1 / xp.sqrt(squares)
    rounding = 2 * units.judged(root=True).held(1.0)

    def share(short: Array | float) -> Array:
        """The share that is taken of what points out of the set.

        `short` is the distance of a unit from the bound, as a part of its norm; rounding counts as
        nothing.
        """
        return xp.maximum(xp.minimum((1 + rounding / SHARE) - short / SHARE, 1), 0)

    bounded_below = extremes(low)[1] > 0
    outer = share((most - moved_by / bound) * inverse - 1)
    if units.concrete and not bounded_below and not bool(xp.any(outer > 0)):
        return gradient
    downhill = units.read(units.dot(gradient))
    if bounded_below:
        inner = share(1 - (least + moved_by / bound) * inverse)
        if np.any(sphere := np.equal(low, high)):  # has no inner side
            one = units.read(units.numbers(sphere.astype("float64")))
            outer, inner = outer + one * (1 - outer), inner + one * (1 - inner)
        taken = xp.where(downhill < 0, outer, inner) * downhill * inverse * inverse
    else:
        taken = outer * xp.minimum(downhill, 0) * inverse * inverse
    usable = xp.isfinite(taken)  # not of a unit of zeros, or where something isn't finite
    if units.concrete and bool(xp.all(usable)):
        # Adding 0 changes nothing and is faster than a mask.
        return gradient.map(add_product, units, -taken) if bool(xp.any(taken)) else gradient
    taken = xp.where(usable, taken, xp.zeros_like(taken))
    return gradient.chosen(taken != 0, gradient.map(add_product, units, -taken))


def reach(units: Units, gradient: Units, share: float = SHARE) -> tuple[Array, Array, Array]:
    """For each unit e, the gradient's largest entry, and whether that is neither 0 nor infinite.

    Args:
        units: where the gradient is taken.
        gradient: the gradient, in units of the same parts.
        share: how far `e g` reaches at least, see `SHARE`.
    """
    movable, pull = units.only(movable=True), gradient.only(movable=True)
    assert movable is not None
    assert pull is not None
    xp = namespace(movable.parts[0])
    size, slope = (xp.reshape(given.largest(), units.shape) for given in (movable, pull))
    size = xp.where(size > 0, size, xp.max(xp.maximum(size, 0)))  # a unit of zeros reaches as far as the others do
    size = xp.where(size > 0, size, xp.ones_like(size))
    usable = (slope > 0) & xp.isfinite(slope) & xp.isfinite(size)
    e = max(share, 2 * epsilon(units.dtype)) * size / xp.where(usable, slope, xp.ones_like(slope))
    return xp.where(usable, e, xp.ones_like(e)), slope, usable
