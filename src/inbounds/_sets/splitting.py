"""Nearest points by nothing but projections.

The methods are Dykstra's algorithm, projections in turn, and proximal gradient steps.

Source: Boyle and Dykstra, "A method for finding projections onto the intersection of convex sets in
Hilbert spaces", 1986; Birgin and Raydan, "Robust stopping criteria for Dykstra's algorithm", 2005;
Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce

from inbounds._arrays.decompositions import ratio
from inbounds._arrays.ops import Array, epsilon, iterate, namespace, repeat, working_dtype
from inbounds._arrays.units import Units, joined

Projection = Callable[[Units], Units]

ROUNDS, TURNS = 1000, 500  # the limits of rounds of Dykstra's algorithm, and of projections in turn
SETTLED = 20  # the number of rounds after which a scaled-down unit is doubled though it still moves
REPEATS = 8  # the limit of repeated projections from a result. As a rule one is enough, and moves the last bits
UNROLLED_ROUNDS, UNROLLED_TURNS, UNROLLED_REPEATS = 100, 4, 1  # where PyTorch can't stop early, see `iterate`
LIVE = 40  # the number of rounds, or of plain steps, from the result that are differentiated
STEPS, UNROLLED_STEPS = 2000, 3  # the limit of proximal gradient steps; where PyTorch can't stop early


def in_turn(projections: Sequence[Projection], units: Units) -> Units:
    """Projections one after the other, round by round, until a round changes nothing."""
    one_round = partial(_one_round, projections)
    return repeated(one_round, units, lambda old, new: ~old.same(new), TURNS, UNROLLED_TURNS)


def repeated(
    project: Projection, units: Units, unfinished: Callable[[Units, Units], Array], limit: int, unrolled: int = 0
) -> Units:
    """A projection, repeated from its result while units are unfinished.

    The derivative is that of the first.
    """
    first = project(units)
    fixed = replace(first.constants(), differentiable=False)

    def again(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        old = fixed.with_parts(state)
        new = project(old)
        return new.parts, unfinished(old, new)

    begin = unfinished(units.constants(), fixed)
    return _with_derivative_of(first.with_parts(iterate(again, fixed.parts, limit, unrolled, begin)), first)


def _one_round(projections: Sequence[Projection], units: Units) -> Units:
    for project in projections:
        units = project(units)
    return units


def _with_derivative_of(value: Units, other: Units) -> Units:
    """Units as they are, with the derivative of others that differ by rounding."""
    if not other.differentiable:
        return value

    def kept(x: Array, live: Array, dead: Array) -> Array:
        return x + namespace(x).where(namespace(x).isfinite(dead), live - dead, namespace(x).zeros_like(x))

    live = value.map(kept, other, other.constants())
    return replace(live, differentiable=True)


def until_inside(project: Projection, members: Sequence[Projection], units: Units) -> Units:
    """A projection, repeated from its result, where rounding is finer, until no member moves it."""

    def outside(_: Units, new: Units) -> Array:
        plain = new.costing(None)
        return ~reduce(operator.and_, [plain.same(member(plain)) for member in members])

    return repeated(project, units, outside, REPEATS, UNROLLED_REPEATS)


def dykstra(projections: Sequence[Projection], units: Units) -> Units:
    """Dykstra's algorithm, and once more from its result.

    What rounding leaves after that is at the size of the sets.
    """
    first, taken = _dykstra_from_near(projections, replace(units.constants(), differentiable=False))
    again, _ = _dykstra_from_near(projections, first)
    ended = in_turn(projections, again.costing(None)).costing(units.costs)
    if not units.differentiable:
        return ended
    live = units
    for view in taken:
        live = live.map(lambda x, p: x - p, view)

    def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
        here, *taken = units.split(state)
        here, taken = _dykstra_round(projections, here, taken)
        return joined([here, *taken])

    here, *_ = units.split(repeat(turn, joined([live, *taken]), LIVE))
    return _with_derivative_of(ended, here)


def _dykstra_from_near(projections: Sequence[Projection], units: Units) -> tuple[Units, list[Units]]:
    """Where Dykstra's algorithm ends, and what each set has taken away.

    Rounds grow in number with the distance from the sets. So the unit begins at `2^-left` of itself
    and is doubled, with all that the sets have taken away, as soon as that has settled.
    """
    xp = namespace(units.parts[0])
    size = units.largest()
    size = xp.where(xp.isfinite(size), size, xp.zeros_like(size))
    reached = xp.maximum(_one_round(projections, units).largest(), 1e-12 * size)
    doublings = xp.ceil(xp.log2(xp.maximum(ratio(size, reached), 1)))
    rounding = 8 * epsilon(working_dtype(units.dtype)) * size

    def scaled(left: Array) -> Units:
        return units.map(lambda x, by: x * by, xp.exp2(-left))

    def turn(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        here, *taken = units.split(state[:-2])
        left, since = state[-2:]
        here, new = _dykstra_round(projections, here, taken)
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
    state = (*scaled(doublings).parts, *(zeros * len(projections)), doublings, xp.zeros_like(doublings))
    here, *taken = units.split(iterate(turn, state, ROUNDS, UNROLLED_ROUNDS)[:-2])
    return here, taken


def _dykstra_round(projections: Sequence[Projection], here: Units, taken: Sequence[Units]) -> tuple[Units, list[Units]]:
    new = []
    for project, before in zip(projections, taken, strict=True):
        back = here.map(lambda x, p: x + p, before)
        here = project(back)
        new.append(before.map(lambda _, x, y: x - y, back, here))
    return here, new


def in_steps(project: Callable[[Units], Units], units: Units, *, couples: bool) -> Units:
    """The units at the nearest point of a convex set in their metric; what is inside stays.

    Accelerated proximal gradient steps `y <- P(z - d (z - x))`, for costs d of at most 1, are
    Euclidean projections. Every one ends inside, and a point that all of them leave where it is is
    the solution, after whatever number of them.
    """
    xp = namespace(units.parts[0])
    costs = units.costs
    plain = units.costing(None)
    fixed = plain.constants()
    near = project(fixed)
    rounding = 4 * epsilon(working_dtype(units.dtype))

    def one(units: Units) -> Units:
        return units.together(couples)

    def pulled(ahead: Units, to: Units) -> Units:
        return project(ahead.map(lambda z, x, d: z - d * (z - x), to, costs))

    def look(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        old, ahead = fixed.split(state[:-1])
        new = pulled(ahead, fixed)
        back = one(ahead).sum(lambda z, y, o: (z - y) * (y - o), new, old)
        age = xp.where(back > 0, xp.zeros_like(back), state[-1] + 1)  # the gradient restart of O'Donoghue and Candes
        ahead = one(new).map(lambda y, o, by: y + by * (y - o), old, age / (age + 3))
        moved = one(new).max(lambda y, o: xp.abs(y - o), old)
        return (*joined([new, ahead]), age), moved > rounding * one(new).largest()

    state = (*joined([near, near]), xp.zeros_like(one(fixed).largest()))
    ended, _ = fixed.split(iterate(look, state, STEPS, UNROLLED_STEPS)[:-1])
    ended = one(fixed).chosen(~one(fixed).same(near), ended).apart(plain)
    if units.differentiable:
        live = plain.with_parts(repeat(lambda state: pulled(plain.with_parts(state), plain).parts, ended.parts, LIVE))
        ended = _with_derivative_of(ended, live)
    return ended.costing(costs)
