"""Ways to project on an intersection, from the exact to the iterative; `way_of` chooses the first that serves.

Three facts do most of it. After a closed convex cone, a ball about 0 (or after an orthant, whatever a change of sign or
a smaller entry doesn't leave) is projected on exactly. The nearest point of C and a hyperplane a.w = b is P_C(x - t a)
for the one number t, its multiplier, at which the equation holds; of C and a ball about c it is P_C(c + t (x - c)).
Dykstra's algorithm needs nothing but the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from inbounds._arrays.ops import HUGE, Array, epsilon, iterate, namespace, repeat, without_gradient, working_dtype
from inbounds._arrays.units import Units, joined
from inbounds._sets.combine import Made
from inbounds._sets.entries import Interval, NonNeg
from inbounds._sets.matrices import SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm
from inbounds._sets.order import Monotone
from inbounds._sets.set import Set
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import NuclearNorm, PositiveSemidefinite, SpectralNorm
from inbounds._sets.sums import L1Ball, Linear, Simplex, SumTo

Projection = Callable[[Units], Units]
Ball = MaxNorm | MinMaxNorm | FrobeniusNorm
"""A ball of the Euclidean norm, where it is convex."""

LOOKS = 128
"""The most looks at a multiplier, to bracket it and again to close the bracket: halved each second time, to the last
bit of float64."""

ROUNDS = 1000
"""At most so many rounds of Dykstra's algorithm."""

SETTLED = 20
"""After so many rounds a unit that is still drawn near to the sets is doubled in any case."""

TURNS = 500
"""At most so many rounds of projections in turn."""

REPEATS = 8
"""At most so often a multiplier is looked for once more from the result; as a rule once moves the last bits."""

UNROLLED_LOOKS, UNROLLED_ROUNDS, UNROLLED_TURNS, UNROLLED_REPEATS = 24, 100, 4, 1
"""The same where none can be left out: where PyTorch exports or vectorizes."""

LIVE_ROUNDS = 40
"""Rounds of Dykstra's algorithm that are gone through again, from where it has ended, to be differentiated."""


@dataclass(frozen=True)
class Way:
    """How an intersection is projected on.

    Attributes:
        project: from units to units.
        words: what it does and gives.
        keeps: whether a unit that is inside comes back bit for bit by itself.
    """

    project: Projection
    words: str
    keeps: bool = False


def way_of(members: Sequence[Set], *, weighted: bool = False) -> Way:
    """The way for an intersection of these sets, in the Euclidean metric or in one that weighs each entry."""
    if len(members) == 1:
        return Way(members[0].nearest, "its own projection", keeps=True)
    for i, last in enumerate(members):
        rest = [*members[:i], *members[i + 1 :]]
        if exact_in_turn(rest, last, weighted=weighted):
            return _then(way_of(rest, weighted=weighted), rest, last)
    if not all(member.convex for member in members):
        ordered = sorted(members, key=lambda member: member.convex, reverse=True)
        return Way(
            lambda units: _in_turn(ordered, units),
            "not convex: projections in turn until every set holds; a point inside, not always the nearest",
        )
    split = [part for member in members for part in _parts(member)]
    for kind, way in ((Linear, _with_linear), (Ball, _with_ball), (L1Ball, _with_l1_ball)):
        for i, last in enumerate(split):
            rest = [*split[:i], *split[i + 1 :]]
            if isinstance(last, kind) and last.convex and (made := way(rest, last, weighted)) is not None:
                return Way(made, f"exact: one multiplier for {_named([last])}, with {_named(rest)}")
    return Way(lambda units: _dykstra(members, units), "Dykstra's algorithm, to rounding")


def _then(first: Way, rest: Sequence[Set], last: Set) -> Way:
    def project(units: Units) -> Units:
        ended = last.nearest(first.project(units))
        return first.project(ended) if mirrored else ended  # what rounding left of the symmetry

    mirrored = any(isinstance(member, (Symmetric, SkewSymmetric)) for member in rest)
    return Way(
        project,
        f"exact: {_named(rest)}, then {_named([last])}",
        keeps=first.keeps,
    )


def _parts(member: Set) -> list[Set]:
    return [NonNeg(), SumTo(member.total)] if isinstance(member, Simplex) else [member]


def _named(members: Sequence[Set]) -> str:
    return " and ".join(type(member).__name__ for member in members)


# One after the other.


def exact_in_turn(rest: Sequence[Set], last: Set, *, weighted: bool = False) -> bool:
    """Whether projecting on the intersection of `rest` and then on `last` gives the nearest point of all.

    In a metric that weighs each entry it does where what follows keeps signs, or looks at entries one by one.
    """
    if weighted:
        in_order = len(rest) == 1 and isinstance(rest[0], Monotone) and _box(last) and last.entrywise
        return (all(map(_orthant, rest)) and _solid(last)) or all(map(_box, [*rest, last])) or in_order
    apart = not any(member.whole for member in rest)
    centred = isinstance(last, (Ball, L1Ball, SpectralNorm, NuclearNorm)) and last.convex and last.center is None
    if isinstance(last, Ball) and centred and all(map(_cone, rest)) and (apart or last.whole):
        return True
    if all(map(_orthant, rest)) and _solid(last):
        return True
    sparse = all(_orthant(member) or isinstance(member, Sparse) for member in rest)
    if sparse and centred and isinstance(last, (MaxNorm, MinMaxNorm, L1Ball)):
        return True
    if all(map(_box, [*rest, last])):
        return True
    if len(rest) > 1:
        return False
    (first,) = rest
    match first:
        case Monotone():
            return _box(last) and last.entrywise
        case Symmetric() | SkewSymmetric() if centred and isinstance(last, (SpectralNorm, NuclearNorm)):
            return first.stack == last.stack
        case Symmetric() | ZeroDiagonal() if isinstance(last, (PositiveSemidefinite, Symmetric, SkewSymmetric)):
            return first.stack == last.stack and not (
                isinstance(first, ZeroDiagonal) and isinstance(last, PositiveSemidefinite)
            )
        case ZeroDiagonal():
            return _solid(last) or (_orthant(last) and not isinstance(last, Made))
        case PositiveSemidefinite() if centred and isinstance(last, (SpectralNorm, NuclearNorm)):
            return first.stack == last.stack
    return False


def _box(given: Set) -> bool:
    return isinstance(given, Interval) and given.center is None


def _orthant(given: Set) -> bool:
    """Whether it bounds entries by 0 or not at all, some of them where there is a mask."""
    inner = given.members[0] if isinstance(given, Made) and len(given.members) == 1 else given
    return _box(inner) and all(
        np.isin(np.asarray(bound), (0.0, np.inf, -np.inf)).all() for bound in (inner.low, inner.high)
    )


def _cone(given: Set) -> bool:
    inner = given.members[0] if isinstance(given, Made) and len(given.members) == 1 else given
    linear = isinstance(inner, Linear) and inner.level == 0
    cones = (Monotone, Symmetric, SkewSymmetric, ZeroDiagonal, PositiveSemidefinite)
    return _orthant(given) or linear or isinstance(inner, cones)


def _solid(given: Set) -> bool:
    """Whether a vector in it stays in it with other signs and with smaller entries, and Euclidean order is kept."""
    if isinstance(given, (Ball, L1Ball)) and given.convex:
        return given.center is None
    symmetric = _box(given) and np.array_equal(np.negative(given.low), given.high)
    return isinstance(given, Sparse) or symmetric


def _in_turn(members: Sequence[Set], units: Units) -> Units:
    """Projections one after the other, round by round, until a round changes nothing."""
    return _until_still(lambda units: _one_round(members, units), units, TURNS, UNROLLED_TURNS)


def _until_still(project: Projection, units: Units, limit: int, unrolled: int) -> Units:
    """A projection, and again from its result until nothing changes, with the derivative of the first."""
    first = project(units)
    fixed = replace(first.constants(), differentiable=False)

    def again(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        old = fixed.with_parts(state)
        new = project(old)
        return new.parts, ~old.same(new)

    return _with_derivative_of(first.with_parts(iterate(again, fixed.parts, limit, unrolled)), first)


def _one_round(members: Sequence[Set], units: Units) -> Units:
    for member in members:
        units = member.nearest(units)
    return units


def _with_derivative_of(value: Units, other: Units) -> Units:
    """Units as they are, with the derivative of others that differ by rounding."""
    if not other.differentiable:
        return value
    live = value.map(lambda x, live, dead: x + (live - dead), other, other.constants())
    return replace(live, differentiable=True)


# One unknown for each unit: a multiplier.


@dataclass(frozen=True)
class Family:
    """Units by one number each, from 0 on, and how far they are from those that are sought.

    Attributes:
        at: the units at a number; at 0 they are the nearest without the last set.
        gap: how far units are beyond the last set: above 0 where the number has to be larger. It falls in the number.
        equal: whether the gap has to be 0, not only not above it.
        guess: a number above 0 to look at first.
        rounding: a gap that is as good as 0.
    """

    at: Callable[[Units, Array], Units]
    gap: Callable[[Units], Array]
    equal: bool
    guess: Array
    rounding: Array | float


def _solved(units: Units, family: Family) -> Units:
    """The units of a family whose gap is 0, or is not above it at 0."""
    fixed = replace(units.constants(), differentiable=False)
    xp = namespace(fixed.parts[0])
    dtype = working_dtype(units.dtype)

    def look(number: Array) -> Array:
        return family.gap(family.at(fixed, number))

    number = _root(look, family, dtype)
    if not units.differentiable:
        return family.at(units, number)
    step = 4 * epsilon(dtype) ** 0.5 * number
    slope = look(number + step) - look(number - step)
    live = family.gap(family.at(units, number))
    falls = slope < 0
    moved = (live - without_gradient(live)) * 2 * step / xp.where(falls, slope, -xp.ones_like(slope))
    moved = xp.where(falls, -moved, xp.zeros_like(moved))
    return _with_derivative_of(family.at(fixed, number), family.at(units, number + moved))


def _root(look: Callable[[Array], Array], family: Family, dtype: str) -> Array:
    """The number, for each unit, at which a falling function is 0; 0 where it is not above 0 there.

    Doubling finds a bracket. Secants, weighted as in the Illinois rule, close it, and the middle after each secant that
    didn't halve it.
    """
    xp = namespace(family.guess)
    low = xp.zeros_like(family.guess)
    at_low = look(low)
    going = (at_low > family.rounding) & (at_low < np.inf)  # a unit with infinities stays as it is
    guess = xp.where(going & xp.isfinite(family.guess), family.guess, low)

    def widen(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        low, high, at_low, _ = state
        gap = look(high)
        beyond = going & (gap > family.rounding) & (high < HUGE)
        return (
            xp.where(beyond, high, low),
            xp.where(beyond, 2 * high, high),
            xp.where(beyond, gap, at_low),
            xp.where(beyond, -gap, gap),
        ), beyond

    def close(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        low, high, at_low, at_high, light, heavy, side, slow, open_ = state
        fall = light - heavy
        part = xp.where(fall > 0, light / xp.where(fall > 0, fall, xp.ones_like(fall)), 0.5)
        part = xp.where(slow > 0, 0.5, part)
        width = high - low
        probe = low + part * width
        gap = look(probe)
        up = gap > family.rounding
        new_low, new_high = xp.where(up, probe, low), xp.where(up, high, probe)
        narrow = new_high - new_low <= 2 * epsilon(dtype) * new_high
        new = (
            new_low,
            new_high,
            xp.where(up, gap, at_low),
            xp.where(up, at_high, gap),
            xp.where(up, gap, xp.where(side < 0, 0.5 * light, light)),
            xp.where(up, xp.where(side > 0, 0.5 * heavy, heavy), gap),
            xp.where(up, 1.0, -1.0) * xp.ones_like(low),
            xp.where((slow == 0) & (new_high - new_low > 0.5 * width), xp.ones_like(low), xp.zeros_like(low)),
            xp.where(narrow | (xp.abs(gap) <= family.rounding), xp.zeros_like(low), open_),
        )
        return tuple(xp.where(open_ > 0, a, b) for a, b in zip(new, state, strict=True)), new[-1] * open_ > 0

    low, high, at_low, at_high = iterate(widen, (low, guess, at_low, -at_low), LOOKS, UNROLLED_LOOKS)
    zero = xp.zeros_like(low)
    open_ = xp.where(going, xp.ones_like(zero), zero)
    state = (low, high, at_low, at_high, at_low, at_high, zero, zero, open_)
    low, high, at_low, at_high, *_ = iterate(close, state, LOOKS, UNROLLED_LOOKS)
    if family.equal:
        return xp.where(xp.abs(at_high) < xp.abs(at_low), high, low)
    return high


def _with_linear(rest: Sequence[Set], last: Linear, weighted: bool) -> Projection | None:
    """The sets of `rest`, moved along the normal of a linear one: P_C(x - t a), with costs P_C(x - t a / d)."""
    if any(member.whole for member in rest):
        return None
    others = way_of(rest, weighted=weighted).project

    def once(units: Units) -> Units:
        xp = namespace(units.parts[0])
        slope = units.with_parts(units.entries(last.slope))
        along = last.along(units)
        squares = last.squares(units)
        fixed = replace(units.constants(), differentiable=False)
        gap = last.gap(others(fixed), slope)
        terms = fixed.sum(lambda x, a: xp.abs(a * x), slope)
        rounding = epsilon(working_dtype(units.dtype)) * xp.maximum(terms, abs(last.level))
        sign = xp.sign(gap) if last.equal else xp.ones_like(gap)
        return _solved(
            units,
            Family(
                at=lambda units, number: others(last.shifted(units, along, sign * number)),
                gap=lambda units: sign * last.gap(units, slope),
                equal=last.equal,
                guess=xp.abs(gap) / xp.where(squares > 0, squares, xp.ones_like(squares)),
                rounding=rounding,
            ),
        )

    return _to_the_last_bits(once)


def _to_the_last_bits(project: Projection) -> Projection:
    """Again from the result: what rounding leaves is at the size of what was given."""
    return lambda units: _until_still(project, units, REPEATS, UNROLLED_REPEATS)


def _with_ball(rest: Sequence[Set], last: Ball, weighted: bool) -> Projection | None:
    """The sets of `rest`, drawn to the centre of a ball: P_C(c + (x - c) / (1 + t)).

    With costs it is d / (d + t) of the way to the centre that is left, and P_C in the costs d + t.
    """
    if last.max_value == 0 or (any(member.whole for member in rest) and not last.whole):
        return None
    others = way_of(rest, weighted=weighted).project

    def project(units: Units) -> Units:
        xp = namespace(units.parts[0])
        centers = last.centers_of(units)
        costs = units.costs

        def norm(units: Units) -> Array:
            apart = units.map(lambda x, c: x - c, centers)
            view = apart.together(last.whole)
            size = without_gradient(xp.clip(view.max(xp.abs), 1 / HUGE, HUGE))
            squares = view.sum(lambda x, size: (x / size) ** 2, size)
            root = xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))
            return size * xp.where(squares > 0, root, xp.zeros_like(root))

        def at(units: Units, number: Array) -> Units:
            if costs is None:
                return others(units.map(lambda x, c, t: xp.where(t > 0, c + (x - c) / (1 + t), x), centers, number))
            dearer = costs.map(lambda d, t: d + t, number)
            drawn = units.map(lambda x, c, d, e: xp.where(e > d, c + (x - c) * (d / e), x), centers, costs, dearer)
            return others(drawn.costing(dearer)).costing(costs)

        start = norm(units.constants())
        guess = xp.maximum(start / last.max_value - 1, 1e-3)
        rounding = epsilon(working_dtype(units.dtype)) * last.max_value
        return _solved(units, Family(at, lambda units: norm(units) - last.max_value, False, guess, rounding))

    return project


def _with_l1_ball(rest: Sequence[Set], last: L1Ball, weighted: bool) -> Projection | None:
    """Boxes, with distances from the centre lowered, c + sign(x - c) max(|x - c| - t, 0), and an order before that.

    Boxes and the ball look at each entry by itself, so that the box of what is lowered is nearest. An order stays when
    all are lowered by the same. With costs they are lowered by t / d; then what the order makes of x - t / d is right
    above 0, and what it makes of x + t / d below.
    """
    orders = [member for member in rest if isinstance(member, Monotone)]
    boxes = [member for member in rest if not isinstance(member, Monotone)]
    if len(orders) > 1 or not all(map(_box, boxes)):
        return None
    if orders and (last.center is not None or not all(member.entrywise for member in boxes)):
        return None

    def once(units: Units) -> Units:
        xp = namespace(units.parts[0])
        centers = last.centers_of(units)
        ease = None if units.costs is None else units.costs.map(lambda d: 1 / d)
        by_cost = [] if ease is None else [ease]

        def low(x: Array, c: Array, t: Array, e: Array | float = 1.0) -> Array:
            return xp.where(t > 0, c + xp.sign(x - c) * xp.maximum(xp.abs(x - c) - t * e, 0), x)

        def at(units: Units, number: Array) -> Units:
            if orders and ease is not None:
                above = orders[0].nearest(units.map(lambda x, e, t: x - t * e, ease, number))
                below = orders[0].nearest(units.map(lambda x, e, t: x + t * e, ease, number))
                drawn = above.map(lambda x, y: xp.maximum(x, 0) + xp.minimum(y, 0), below)
            else:
                drawn = _one_round(orders, units).map(low, centers, number, *by_cost)
            return _one_round(boxes, drawn)

        def beyond(units: Units) -> Array:
            return units.sum(lambda x, c: xp.abs(x - c), centers) - last.radius

        gap = beyond(units.constants())
        guess = xp.maximum(gap, last.radius) / (units.length if ease is None else ease.sum(lambda e: e))
        rounding = epsilon(working_dtype(units.dtype)) * last.radius
        return _solved(units, Family(at, beyond, False, guess, rounding))

    return _to_the_last_bits(once)


# Nothing but the projections.


def _dykstra(members: Sequence[Set], units: Units) -> Units:
    """Dykstra's algorithm, and once more from its result: what rounding left there is at the size of the sets."""
    first, taken = _dykstra_from_near(members, replace(units.constants(), differentiable=False))
    again, _ = _dykstra_from_near(members, first)
    ended = _in_turn(members, again.costing(None)).costing(units.costs)
    if not units.differentiable:
        return ended
    live = units
    for view in taken:
        live = live.map(lambda x, p: x - p, view)

    def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
        here, *taken = units.split(state)
        here, taken = _dykstra_round(members, here, taken)
        return joined([here, *taken])

    here, *_ = units.split(repeat(turn, joined([live, *taken]), LIVE_ROUNDS))
    return _with_derivative_of(ended, here)


def _dykstra_from_near(members: Sequence[Set], units: Units) -> tuple[Units, list[Units]]:
    """Where Dykstra's algorithm ends, and what each set has taken away.

    From a point that is far away, in terms of the sets' size, it needs as many rounds as it is times as far. So the
    unit begins at `2^-left` of itself, and is doubled as soon as that has settled: with everything taken doubled too,
    the same point is still nearest to one that is off by the size of the sets only.
    """
    xp = namespace(units.parts[0])
    size = units.max(xp.abs)
    size = xp.where(xp.isfinite(size), size, xp.zeros_like(size))
    reached = xp.maximum(_one_round(members, units).max(xp.abs), 1e-12 * size)
    ratio = xp.where(reached > 0, size / xp.where(reached > 0, reached, xp.ones_like(reached)), xp.ones_like(size))
    ratio = xp.where(xp.isfinite(ratio), ratio, xp.ones_like(ratio))
    doublings = xp.ceil(xp.log2(xp.maximum(ratio, 1)))
    rounding = 8 * epsilon(working_dtype(units.dtype)) * size

    def scaled(left: Array) -> Units:
        return units.map(lambda x, by: x * by, xp.exp2(-left))

    def turn(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        here, *taken = units.split(state[:-2])
        left, since = state[-2:]
        here, new = _dykstra_round(members, here, taken)
        changes = [a.max(lambda x, y: xp.abs(x - y), b) for a, b in zip(new, taken, strict=True)]
        moving = reduce(xp.maximum, changes) > rounding * xp.exp2(-left)
        double = (left > 0) & (~moving | (since >= SETTLED))
        left = xp.where(double, left - 1, left)
        new = [view.map(lambda p, double: xp.where(double, 2 * p, p), double) for view in new]
        start = scaled(left)
        for view in new:
            start = start.map(lambda x, p: x - p, view)
        here = here.chosen(double, start)
        since = xp.where(double, xp.zeros_like(since), since + 1)
        return (*joined([here, *new]), left, since), moving | double | (left > 0)

    zeros = tuple(xp.zeros_like(part) for part in units.parts)
    state = (*scaled(doublings).parts, *(zeros * len(members)), doublings, xp.zeros_like(doublings))
    here, *taken = units.split(iterate(turn, state, ROUNDS, UNROLLED_ROUNDS)[:-2])
    return here, taken


def _dykstra_round(members: Sequence[Set], here: Units, taken: Sequence[Units]) -> tuple[Units, list[Units]]:
    new = []
    for member, before in zip(members, taken, strict=True):
        back = here.map(lambda x, p: x + p, before)
        here = member.nearest(back)
        new.append(back.map(lambda x, y: x - y, here).frozen_as_zero())
    return here, new
