"""Intersection, which `a & b` returns, and the methods to project on it, exact ones first.

1. One projection after the other. It is exact for a closed convex cone and then a ball about 0, and
   for an orthant and then a set that contains every vector with smaller magnitudes.
2. The normal form, for bounds on entries, linear constraints, balls and 1-norms together.
3. Dykstra's algorithm, which needs the projections only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, is_concrete, namespace, quiet
from inbounds._arrays.units import Units
from inbounds._errors import SetError, shown
from inbounds._sets.composite import Composite, parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.entries import Interval
from inbounds._sets.equal import Equal
from inbounds._sets.group_sparsity import GroupSet
from inbounds._sets.joint import JointSet
from inbounds._sets.masks import On, Where
from inbounds._sets.matrices import MatrixSet, SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.normal_form import nearest
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm
from inbounds._sets.order import Monotone
from inbounds._sets.per import Per, by_units
from inbounds._sets.set import Exceeded, Set, counted, registered
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import NuclearNorm, PositiveSemidefinite, SpectralNorm
from inbounds._sets.splitting import Projection, dykstra, in_turn, until_inside
from inbounds._sets.sums import L1Ball, Linear, SumTo
from inbounds._sets.value import comparison_key

Ball = MaxNorm | MinMaxNorm | FrobeniusNorm  # a ball of the Euclidean norm, where it is convex


class AllOf(Composite):
    """A set that is the intersection of its members, with a name and arguments of its own."""

    def made_of(self, *members: Set) -> None:
        """Takes the members, for `__init__`; an error where they have no point in common."""
        self.members = members
        if self.kinds:  # shapes decide, see `check_room`
            return
        arrays = (getattr(member, name) for member in members for name in member.argument_names())
        sizes = {1, 2, 16, 256} | {array.size for array in arrays if isinstance(array, np.ndarray)}
        units = max([1, *(np.size(getattr(part, name)) for part in parts_of(self) for name in part.of_each_unit)])
        rows = [(units, size) for size in sorted(sizes, reverse=True)]  # large units first: most have a common point
        shapes = [(n, n) for n in (2, 8)] if self.matrix else rows
        self._check_common_point([Units.of([np.zeros(shape)], [(1,)]) for shape in shapes])

    @cached_property
    def kinds(self) -> list[Per]:
        """Where each member has units of a kind of its own, one set for each kind; else none."""
        return [kind for kind in _by_kind(self.members) if isinstance(kind, Per)]

    @property
    def has_normal_form(self) -> bool:
        return all(member.has_normal_form for member in self.members) and len(_groups(self.members)) == 1

    @cached_property
    def method(self) -> Method:
        """How it is projected on."""
        return method_of(self.members)

    @cached_property
    def weighted_method(self) -> Method:
        """How it is projected on in a metric that weighs each entry."""
        return method_of(self.members, weighted=True)

    @property
    def how(self) -> str:
        """How it is projected on, in words."""
        return self.method.words

    def _project(self, units: Units) -> Units:
        if not any(units.movable):
            return units
        method = self.method if units.metric is None else self.weighted_method
        if self.entrywise and method.keeps:
            return method.project(units)
        fixed = units.constants().costing(None)
        xp = namespace(fixed.parts[0])
        moved = self._by_matrix(xp.isfinite(fixed.largest()), units)
        if not method.keeps:
            same = [fixed.same(member.nearest(fixed)) for member in self.members]
            moved = moved & ~self._by_matrix(reduce(operator.and_, same), units)
        if is_concrete(moved) and not bool(xp.any(moved)):
            return units
        return units.chosen(moved, method.project(units))

    def reduced(self, units: Units, gradient: Units) -> Units:
        """The reduced gradient; of cones and a ball about 0, of the cones and then of the ball."""
        for rest, last in _splits(self.members):
            if _ball_after_cones(rest, last):
                cones = self.rebuilt(rest)
                return last.reduced(cones.nearest(units), cones.reduced(units, gradient))
        return super().reduced(units, gradient)

    def _by_matrix(self, true: Array, units: Units) -> Array:
        """A truth value for each unit.

        It is the unit's own, or where a set is one of matrices, that of all units of its matrix.
        """
        if not any(member.whole for member in self.members):
            return true
        groups = self.members[0].reported_units(units.count) if self.whole and not self.kinds else 1
        return units.alike(true, groups)

    def check_room(self, units: Units) -> None:
        weights = Units.of([np.zeros(part.shape) for part in units.parts], units.axes)
        pairs = zip(units.parts, units.axes, strict=True)
        shapes = [[n if axis in span else 1 for axis, n in enumerate(part.shape)] for part, span in pairs]
        one = Units.of([np.zeros(shape) for shape in shapes], units.axes)
        whole = bool(self.kinds) or self.matrix or not self._fits(one)
        self._check_common_point([weights if whole else one])

    def _fits(self, units: Units) -> bool:
        """Whether the arrays of the sets fit some units."""
        try:
            self.check_fit(units)
        except SetError:
            return False
        return True

    def _check_common_point(self, zeros: Sequence[Units]) -> None:
        """Projects zeros, and raises where no result is inside.

        Nothing is checked where the common point may depend on the weights.
        """
        parts = list(parts_of(self))
        unknown = any(isinstance(part, (Custom, Where, On)) or part.center is not None for part in parts)
        if unknown or self.changes or not self.convex:
            return
        nearest = math.inf
        for units in filter(self._fits, zeros):
            if not self.measure(units.parts, units.axes).outside.any():
                return
            with quiet(units.parts[0]):
                found = self.nearest(units)
            nearest = min(nearest, float(self.measure(found.parts, found.axes).excess.max()))
            if nearest < 1e-6:
                return
        if nearest < math.inf:
            wrong = "The intersection is empty: its sets have no point in common"
            sizes = " or ".join(str(units.size) for units in zeros)
            where = f"units of {sizes} entries; the nearest try is outside of one by {nearest:.3g}"
            raise SetError(wrong, repr(self), where=where, instead="wider bounds")

    # Where members have different units, a report has those of one kind after those of the other.

    def reported_units(self, units: int) -> int:
        return sum(kind.reported_units(units) for kind in self.kinds) or super().reported_units(units)

    def edges(self, laid: Laid) -> list[Exceeded]:
        counts = [kind.count(laid) for kind in self.kinds]
        edges = [_among(counts, i, edge) for i, kind in enumerate(self.kinds) for edge in kind.edges(laid)]
        return edges or super().edges(laid)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        return np.sqrt(np.reshape(taken.total(np.square), (-1,))) if self.kinds else super().multiplier(units, taken)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes that are copied and pickled: all but those computed from the members."""
        return {name: value for name, value in vars(self).items() if name not in ("kinds", "method", "weighted_method")}


@registered
class Intersection(AllOf):
    """{w : w in every one of the sets}: what `a & b` makes.

    The projection is the nearest point of the intersection, which one projection after the other is
    not. How it is found depends on the sets, see `how`:

    - one after the other where that is exact: a cone (NonNeg, Monotone, Symmetric...) and then a
      ball about 0; an orthant and then L1Ball, a symmetric Box or Sparse; boxes; Monotone and then
      a Box, SumTo or L1Ball; Symmetric and then a norm of the spectrum;
    - sets of bounds, linear constraints, balls and 1-norms about one centre together, by their
      normal form: one multiplier per unit for each but the bounds, found by Newton's method to
      rounding;
    - else Dykstra's algorithm, until its rounds change nothing but rounding; then projections in
      turn until every set holds.

    A set that isn't convex (UnitNorm, Sparse, Grid...) has no nearest point that could be found in
    general: the sets are projected on in turn, 500 rounds at most. The result is in the
    intersection, where that is found, and exact for Sparse with an orthant or a ball.

    Args:
        sets: two or more; intersections among them are taken apart. Where axes differ, or `per`
            names units, each set has its own units, and one that looks at each entry by itself
            those of another; else one axis holds for all of them.

    Raises:
        SetError: fewer than two sets, a Joint, or sets that have no point in common (where they
            have different units, when the plan is made).

    Cost: that of the sets, one after the other; for m multipliers 2 m + m^2 sums over the unit and
    a few systems of m unknowns in each step, as a rule 4 to 60 and 250 at most; for Dykstra's
    algorithm 1,000 rounds over the sets at most, twice. A unit inside every set stays bit for bit.

    Source: Boyle and Dykstra, "A method for finding projections onto the intersection of convex
    sets in Hilbert spaces", 1986; Birgin and Raydan, "Robust stopping criteria for Dykstra's
    algorithm", 2005; Bauschke, Bui and Wang, "Projecting onto the intersection of a cone and a
    sphere", 2018.

    >>> from inbounds import MaxNorm, NonNeg
    >>> (NonNeg() & MaxNorm(1)).project([[3.0, 4.0], [-3.0, 0.5]])
    array([[0.6, 0.8],
           [0. , 0.5]])
    """

    def __init__(self, *sets: Set) -> None:
        flat = [inner for given in sets for inner in (given.sets if isinstance(given, Intersection) else (given,))]
        if len(flat) < 2 or any(not isinstance(inner, Set) or isinstance(inner, JointSet) for inner in flat):
            wrong = "An intersection is not made of two or more sets, or one of them is a Joint"
            raise SetError(wrong, f"sets={shown(sets)}", instead="Joint(a & b)")
        given = [inner.training.given for inner in flat]
        for name, value in [option for options in given for option in options.items()]:
            if other := [options[name] for options in given if options.get(name, value) != value]:
                wrong = "Sets that meet are to be trained in two ways"
                received = f"{name}={value!r} and {name}={other[0]!r}"
                raise SetError(wrong, received, where=repr(sets), instead=f"(a & b).in_training({name}={value!r})")
        self.made_of(*by_units(flat))

    @property
    def sets(self) -> tuple[Set, ...]:
        """The sets, as given."""
        return tuple(member.set if isinstance(member, Per) and member.implied else member for member in self.members)

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.sets))


@dataclass(frozen=True, eq=False)
class Method:
    """How an intersection is projected on."""

    project: Projection
    words: str  # what it does and gives
    keeps: bool = False  # whether a unit that is inside comes back bit for bit by itself


def method_of(members: Sequence[Set], *, weighted: bool = False) -> Method:
    """The method for an intersection, in the Euclidean metric or in one that weighs each entry."""
    members = _by_kind(members)
    if len(members) == 1:
        (only,) = members
        inner = only.set if isinstance(only, Per) else None
        words = inner.how if isinstance(inner, AllOf) else "its own projection"
        return Method(only.nearest, words, keeps=not isinstance(only, Per))
    for rest, last in _splits(members):
        if exact_in_turn(rest, last, weighted=weighted):
            return _then(method_of(rest, weighted=weighted), rest, last)
    if not all(member.convex for member in members):
        ordered = [member.nearest for member in sorted(members, key=lambda member: member.convex, reverse=True)]
        return Method(
            lambda units: in_turn(ordered, units),
            "not convex: projections in turn until every set holds; a point inside, not always the nearest",
        )
    groups = _groups(members)
    if len(groups) == 1:
        bounds, others = (_named([m for m in members if m.separable is separable]) for separable in (True, False))
        words = f"multipliers for {others}{f', with {bounds}' if bounds else ''}" if others else "bounds"
        solve, each = partial(_by_normal_form, members), [member.nearest for member in members]
        return Method(lambda units: until_inside(solve, each, units), f"exact: {words}")
    projections = [method_of(group, weighted=weighted).project for group in groups]
    return Method(lambda units: dykstra(projections, units), "Dykstra's algorithm, to rounding")


def _by_kind(members: Sequence[Set]) -> list[Set]:
    """The sets, where each has units of a kind one set for each kind."""
    kinds: dict[Any, list[Per]] = {}
    for member in members:
        if not isinstance(member, Per):
            return list(members)
        kinds.setdefault(member.key, []).append(member)
    for same in kinds.values():
        if len(same) > 1:
            both = object.__new__(Intersection)  # without `__init__`, whose checks all members have passed
            both.__dict__["members"] = tuple(member.set for member in same)
            same[0] = same[0].rebuilt([both])
    return [same[0] for same in kinds.values()]


def _among(counts: Sequence[int], kind: int, edge: Exceeded) -> Exceeded:
    """An edge of one kind's units as one of all that are reported; the others are far inside."""
    excess, slack = counted(edge, counts[kind])
    xp = namespace(excess)

    def padded(values: Array, otherwise: Any) -> Array:
        other = xp.full_like(values[:1], otherwise)
        before, after = (xp.repeat(other, sum(some)) for some in (counts[:kind], counts[kind + 1 :]))
        return xp.concatenate([before, values, after])

    if isinstance(excess, np.ndarray):  # who asks for violations only, of tensors, asks for no slack
        slack = padded(slack, 0.0)
    return padded(excess, -np.inf), slack


def _groups(members: Sequence[Set]) -> list[list[Set]]:
    """The sets in groups, each of which has one normal form.

    The sets of a group are all of units or all of matrices, and their 1-norms have one centre.
    """
    balls = [[part for part in parts_of(member) if isinstance(part, L1Ball)] for member in members]
    centers = [{comparison_key(ball.center) for ball in some} for some in balls]
    center = next((about for about in centers if about), set())
    whole = all(member.whole for member in members if member.has_normal_form and not member.separable)
    groups: dict[Any, list[Set]] = {}
    for i, (member, about) in enumerate(zip(members, centers, strict=True)):
        kind = whole if member.separable else member.whole
        groups.setdefault(kind if member.has_normal_form and about <= center else -i - 1, []).append(member)
    return list(groups.values())


def _by_normal_form(members: Sequence[Set], units: Units) -> Units:
    declaration = reduce(operator.and_, [member.declaration(units) for member in members])
    return nearest(units, declaration, whole=any(member.whole for member in members))


def _then(first: Method, rest: Sequence[Set], last: Set) -> Method:
    def project(units: Units) -> Units:
        ended = last.nearest(first.project(units))
        return first.project(ended) if mirrored else ended  # rounding breaks symmetry

    mirrored = any(isinstance(member, (Symmetric, SkewSymmetric)) for member in rest)
    return Method(project, f"exact: {_named(rest)}, then {_named([last])}", keeps=first.keeps)


def _splits(members: Sequence[Set]) -> list[tuple[list[Set], Set]]:
    """Each set as the last one, after the rest."""
    return [([*members[:i], *members[i + 1 :]], last) for i, last in enumerate(members)]


def _named(members: Sequence[Set]) -> str:
    return " and ".join(type(member).__name__ for member in members)


# One after the other.


def exact_in_turn(rest: Sequence[Set], last: Set, *, weighted: bool = False) -> bool:
    """Whether projecting on the intersection of `rest`, then on `last`, gives the nearest point."""
    if (all(map(_orthant, rest)) and _solid(last)) or all(map(_box, [*rest, last])):
        return True
    first = rest[0] if len(rest) == 1 else None
    if isinstance(first, (Monotone, Equal)) and _box(last) and last.entrywise:
        return True
    if weighted:
        return False
    about_zero = last.convex and last.center is None
    sparse = all(_orthant(member) or isinstance(member, Sparse) for member in rest)
    if _ball_after_cones(rest, last) or (sparse and about_zero and isinstance(last, (MaxNorm, MinMaxNorm, L1Ball))):
        return True
    if isinstance(first, (Monotone, Equal)) and isinstance(last, SumTo) and not first.whole:  # moves all entries alike
        return True
    if isinstance(first, Monotone):
        return isinstance(last, L1Ball) and about_zero
    if isinstance(first, MatrixSet) and isinstance(last, MatrixSet) and type(last) in _IN_TURN.get(type(first), ()):
        return about_zero and first.stack == last.stack
    return isinstance(first, ZeroDiagonal) and (_solid(last) or (_orthant(last) and not isinstance(last, Composite)))


_IN_TURN: dict[type, tuple[type, ...]] = {
    Symmetric: (SpectralNorm, NuclearNorm, PositiveSemidefinite, Symmetric, SkewSymmetric),
    SkewSymmetric: (SpectralNorm, NuclearNorm),
    PositiveSemidefinite: (SpectralNorm, NuclearNorm),
    ZeroDiagonal: (Symmetric, SkewSymmetric),
}
"""Sets of matrices, each with those whose projection keeps a matrix in it."""


def _ball_after_cones(rest: Sequence[Set], last: Set) -> bool:
    apart = last.whole or not any(member.whole for member in rest)
    return isinstance(last, Ball) and last.convex and last.center is None and all(map(_cone, rest)) and apart


def _box(given: Set) -> bool:
    return isinstance(given, Interval) and given.center is None


def _orthant(given: Set) -> bool:
    """Whether each bound on an entry is 0 or infinite, with or without a mask."""
    inner = _unmasked(given)
    return _box(inner) and all(np.isin(bound, (0.0, np.inf, -np.inf)).all() for bound in (inner.low, inner.high))


def _cone(given: Set) -> bool:
    inner = _unmasked(given)
    cones = (Monotone, Equal, Symmetric, SkewSymmetric, ZeroDiagonal, PositiveSemidefinite)
    return _orthant(given) or isinstance(inner, cones) or (isinstance(inner, Linear) and not np.any(inner.level))


def _unmasked(given: Set) -> Set:
    """The member of a set that is made of one; any other set as it is."""
    return given.members[0] if isinstance(given, Composite) and len(given.members) == 1 else given


def _solid(given: Set) -> bool:
    """Whether it contains every vector with smaller magnitudes, whatever the signs, about 0."""
    if isinstance(given, (Ball, L1Ball)) and given.convex:
        return given.center is None
    symmetric = _box(given) and np.array_equal(np.negative(given.low), given.high)
    return isinstance(given, (Sparse, GroupSet)) or symmetric
