"""Sets made of other sets: Composite, and Wrapped, which decides how one set sees the weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from inbounds._arrays.judgement import Bound
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, namespace
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes, WeightLayout
from inbounds._sets.declaration import Declaration
from inbounds._sets.set import Exceeded, Set, with_argument
from inbounds._sets.value import Training
from inbounds._types import Step

Seen = TypeVar("Seen", Units, Laid)


def _true_of(quantifier: Callable[[Iterable[Any]], bool], name: str) -> Any:
    """A property that is true where it is true of all, or of any, of the members."""
    return property(lambda self: quantifier(getattr(member, name) for member in self.members))


class Composite(Set):
    """A set made of other sets, its members, from which its properties follow."""

    members: tuple[Set, ...]

    def rebuilt(self, members: Sequence[Set]) -> Self:
        """The same set, made of other members.

        It is made without `__init__`, whose checks can't read the tensors of a compiled step.
        """
        return self._with(members=tuple(members))

    @property
    def axis(self) -> Axes | None:  # type: ignore[override]  # a fact of the members, not of the class
        return next((member.axis for member in self.members if member.axis is not None), None)

    entrywise = _true_of(all, "entrywise")
    separable = _true_of(all, "separable")
    convex = _true_of(all, "convex")
    whole = _true_of(all, "whole")
    allows_frozen = _true_of(all, "allows_frozen")
    exact_in_metric = _true_of(all, "exact_in_metric")
    has_reduced_gradient = _true_of(all, "has_reduced_gradient")
    has_normal_form = _true_of(all, "has_normal_form")
    couples_units = _true_of(any, "couples_units")
    matrix = _true_of(any, "matrix")
    changes = _true_of(any, "changes")
    needs_latent = _true_of(any, "needs_latent")

    @property
    def training(self) -> Training:  # type: ignore[override]  # likewise
        return Training(**reduce(operator.or_, [member.training.given for member in self.members]))

    @property
    def undone_steps(self) -> str:  # type: ignore[override]  # likewise
        return "; ".join(dict.fromkeys(member.undone_steps for member in self.members if member.undone_steps))

    @property
    def splittable(self) -> bool:
        return super().splittable and all(member.splittable for member in self.members)

    def changed(self, change: Callable[[Set], Set]) -> Set:
        """The same, made of what each member becomes; the set itself where each stays as it is."""
        members = [change(member) for member in self.members]
        same = all(one is other for one, other in zip(members, self.members, strict=True))
        return self if same else self.rebuilt(members)

    def _trained(self, owner: str, options: dict[str, Any]) -> Self:
        members = tuple(member._trained(owner, options) for member in self.members)
        return self._with(members=members) if options else self

    def at(self, step: Step) -> Set:
        return self.changed(lambda member: member.at(step))

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        return self.changed(lambda member: member.laid_out(layouts))

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        matrices = [member for member in self.members if member.matrix]
        return matrices[0].layer_span(shape, fan_in) if matrices else super().layer_span(shape, fan_in)

    def check_fit(self, units: Units) -> None:
        for member in self.members:
            member.check_fit(units)

    def reported_units(self, units: int) -> int:
        return max(member.reported_units(units) for member in self.members)

    def declaration(self, units: Units) -> Declaration:
        return reduce(operator.and_, [member.declaration(units) for member in self.members])

    def edges(self, laid: Laid) -> list[Exceeded]:
        return [edge for member in self.members for edge in member.edges(laid)]

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return reduce(namespace(rows).maximum, [excess for excess, _ in self.edges(Laid.of_rows(rows))])

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        return reduce(np.maximum, [member._tolerance(dtype, size) for member in self.members])


class Wrapped(Composite):
    """A set made of one other set.

    The other set holds for what `inside` shows it: here, for the units as they are.
    """

    passes_on: ClassVar[tuple[str, ...]] = ()  # the classes that are given the set in it, and not all of it

    @property
    def set(self) -> Set:
        """The set in it."""
        return self.members[0]

    def _made(self, to: str, *arguments: Any) -> Set:
        if to in self.passes_on:
            return self.rebuilt([self.set._made(to, *arguments)])
        return super()._made(to, *arguments)

    def inside(self, *given: Seen) -> tuple[Set, list[Seen]]:
        """The set in it, and units or rows as that sees them."""
        return self.set, list(given)

    def check_fit(self, units: Units) -> None:
        inner, (seen,) = self.inside(units)
        inner.check_fit(seen)

    def check_room(self, units: Units) -> None:
        inner, (seen,) = self.inside(units)
        inner.check_room(seen)

    def _project(self, units: Units) -> Units:
        inner, (seen,) = self.inside(units)
        return inner.nearest(seen).unseen(units)

    def reduced(self, units: Units, gradient: Units) -> Units:
        inner, (seen, slope) = self.inside(units, gradient)
        return inner.reduced(seen, slope).unseen(gradient)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        inner, (seen, normal) = self.inside(units, taken)
        return inner.multiplier(seen, normal)

    def edges(self, laid: Laid) -> list[Exceeded]:
        inner, (seen,) = self.inside(laid)
        return inner.edges(seen)


def parts_of(given: Set) -> Iterator[Set]:
    """A set, its members, their members, and so on."""
    yield given
    for member in given.members if isinstance(given, Composite) else ():
        yield from parts_of(member)


def contains(given: Set, kinds: tuple[type, ...]) -> bool:
    """Whether a set is of one of some classes, or made of one that is."""
    return any(isinstance(part, kinds) for part in parts_of(given))


def asks_for_center(given: Set) -> bool:
    """Whether a set, or one that it is made of, has the centre "current"."""
    return any(isinstance(part.center, str) for part in parts_of(given))


def with_center(given: Set, current: Array) -> Set:
    """A set with the centre "current" replaced by these values."""
    if isinstance(given, Composite):
        return given.changed(lambda member: with_center(member, current))
    return with_argument(given, "center", current) if isinstance(given.center, str) else given


def bracketed(given: Set) -> str:
    """The code of a set, to be followed by a method."""
    return f"({given!r})" if " & " in repr(given) else repr(given)
