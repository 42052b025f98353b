"""Ways to project on an intersection, from the exact to the iterative; `way_of` chooses the first that serves.

After a closed convex cone, a ball about 0 (or after an orthant, whatever a change of sign or a smaller entry doesn't
leave) is projected on exactly. Sets of bounds, linear rows, balls and 1-norms have one projection together, their
normal form. Dykstra's algorithm, for all else, needs nothing but the projections.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from inbounds._arrays.ops import Array, epsilon, iterate, namespace, repeat, working_dtype
from inbounds._arrays.units import Units, joined
from inbounds._sets.combine import Made, parts_of
from inbounds._sets.entries import Interval
from inbounds._sets.matrices import SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.normal_form import nearest
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm
from inbounds._sets.order import Monotone
from inbounds._sets.set import Set, key_of
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import NuclearNorm, PositiveSemidefinite, SpectralNorm
from inbounds._sets.sums import L1Ball, Linear, SumTo

Projection = Callable[[Units], Units]
Ball = MaxNorm | MinMaxNorm | FrobeniusNorm
"""A ball of the Euclidean norm, where it is convex."""

ROUNDS = 1000
"""At most so many rounds of Dykstra's algorithm."""

SETTLED = 20
"""After so many rounds a unit that is still drawn near to the sets is doubled in any case."""

TURNS = 500
"""At most so many rounds of projections in turn."""

REPEATS = 8
"""At most so often a multiplier is looked for once more from the result; as a rule once moves the last bits."""

UNROLLED_ROUNDS, UNROLLED_TURNS, UNROLLED_REPEATS = 100, 4, 1
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
        ordered = [member.nearest for member in sorted(members, key=lambda member: member.convex, reverse=True)]
        return Way(
            lambda units: _in_turn(ordered, units),
            "not convex: projections in turn until every set holds; a point inside, not always the nearest",
        )
    groups = _groups(members)
    if len(groups) == 1:
        bounds = [member for member in members if member.same_in_every_metric]
        words = _named([member for member in members if member not in bounds])
        words = (
            f"exact: multipliers for {words}{f', with {_named(bounds)}' if bounds else ''}"
            if words
            else "exact: bounds"
        )
        return Way(_to_the_last_bits(lambda units: _by_normal_form(members, units)), words)
    projections = [way_of(group, weighted=weighted).project for group in groups]
    return Way(lambda units: _dykstra(projections, units), "Dykstra's algorithm, to rounding")


def _groups(members: Sequence[Set]) -> list[list[Set]]:
    """The sets, those together that have one normal form: of each unit or of all, with 1-norms about one centre."""
    diamonds = [{key_of(part.center) for part in parts_of(member) if isinstance(part, L1Ball)} for member in members]
    center = next((about for about in diamonds if about), set())
    whole = all(member.whole for member in members if member.declares and not member.same_in_every_metric)
    groups: dict[Any, list[Set]] = {}
    for i, (member, about) in enumerate(zip(members, diamonds, strict=True)):
        kind = whole if member.same_in_every_metric else member.whole
        groups.setdefault(kind if member.declares and about <= center else -i - 1, []).append(member)
    return list(groups.values())


def _by_normal_form(members: Sequence[Set], units: Units) -> Units:
    declaration = reduce(operator.and_, [member.declaration(units) for member in members])
    return nearest(units, declaration, whole=any(member.whole for member in members))


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
        case Monotone():  # what follows moves all entries alike, and so keeps their order
            return (_box(last) and last.entrywise) or isinstance(last, SumTo) or (isinstance(last, L1Ball) and centred)
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


def _in_turn(projections: Sequence[Projection], units: Units) -> Units:
    """Projections one after the other, round by round, until a round changes nothing."""
    return _until_still(lambda units: _one_round(projections, units), units, TURNS, UNROLLED_TURNS)


def _until_still(project: Projection, units: Units, limit: int, unrolled: int) -> Units:
    """A projection, and again from its result until nothing changes, with the derivative of the first."""
    first = project(units)
    fixed = replace(first.constants(), differentiable=False)

    def again(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        old = fixed.with_parts(state)
        new = project(old)
        return new.parts, ~old.same(new)

    return _with_derivative_of(first.with_parts(iterate(again, fixed.parts, limit, unrolled)), first)


def _one_round(projections: Sequence[Projection], units: Units) -> Units:
    for project in projections:
        units = project(units)
    return units


def _with_derivative_of(value: Units, other: Units) -> Units:
    """Units as they are, with the derivative of others that differ by rounding."""
    if not other.differentiable:
        return value
    live = value.map(lambda x, live, dead: x + (live - dead), other, other.constants())
    return replace(live, differentiable=True)


def _to_the_last_bits(project: Projection) -> Projection:
    """Again from the result: what rounding leaves is at the size of what was given."""
    return lambda units: _until_still(project, units, REPEATS, UNROLLED_REPEATS)


# Nothing but the projections.


def _dykstra(projections: Sequence[Projection], units: Units) -> Units:
    """Dykstra's algorithm, and once more from its result: what rounding left there is at the size of the sets."""
    first, taken = _dykstra_from_near(projections, replace(units.constants(), differentiable=False))
    again, _ = _dykstra_from_near(projections, first)
    ended = _in_turn(projections, again.costing(None)).costing(units.costs)
    if not units.differentiable:
        return ended
    live = units
    for view in taken:
        live = live.map(lambda x, p: x - p, view)

    def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
        here, *taken = units.split(state)
        here, taken = _dykstra_round(projections, here, taken)
        return joined([here, *taken])

    here, *_ = units.split(repeat(turn, joined([live, *taken]), LIVE_ROUNDS))
    return _with_derivative_of(ended, here)


def _dykstra_from_near(projections: Sequence[Projection], units: Units) -> tuple[Units, list[Units]]:
    """Where Dykstra's algorithm ends, and what each set has taken away.

    From a point that is far away, in terms of the sets' size, it needs as many rounds as it is times as far. So the
    unit begins at `2^-left` of itself, and is doubled as soon as that has settled: with everything taken doubled too,
    the same point is still nearest to one that is off by the size of the sets only.
    """
    xp = namespace(units.parts[0])
    size = units.max(xp.abs)
    size = xp.where(xp.isfinite(size), size, xp.zeros_like(size))
    reached = xp.maximum(_one_round(projections, units).max(xp.abs), 1e-12 * size)
    ratio = xp.where(reached > 0, size / xp.where(reached > 0, reached, xp.ones_like(reached)), xp.ones_like(size))
    ratio = xp.where(xp.isfinite(ratio), ratio, xp.ones_like(ratio))
    doublings = xp.ceil(xp.log2(xp.maximum(ratio, 1)))
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
        new.append(back.map(lambda x, y: x - y, here).frozen_as_zero())
    return here, new
