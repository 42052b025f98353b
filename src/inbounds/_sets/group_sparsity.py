"""Sets by the norms of groups: GroupL1Ball bounds their sum, GroupSparse how many are not 0."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias

from inbounds._arrays.judgement import Judgement
from inbounds._arrays.laid import Laid, norms_along
from inbounds._arrays.ops import HUGE, SMALLEST_NORMAL, Array, constant, dtype_of, namespace, without_gradient
from inbounds._arrays.units import Units
from inbounds._arrays.views import View, WeightLayout
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import at_most, axes, in_a_row, number_or_array, numbers_of_units, positive_integer
from inbounds._sets.declaration import Declaration, Limit
from inbounds._sets.equal import groups_of, unit_shape_of
from inbounds._sets.one_limit import nearest_on_one_limit
from inbounds._sets.set import Exceeded, Set, registered
from inbounds._sets.sparsity import k_largest, too_many
from inbounds._sets.sums import OfTotal
from inbounds._types import Axis, Integer, Numbers

NAMES = ("inputs", "units", "heads", "gates")  # the groups of a whole weight that have a name
ROOM = 2.0**100  # the largest entry in units of norms: a radius may be as much smaller, and more
OfGroups: TypeAlias = Numbers | Literal["inputs", "units", "heads", "gates"]
"""Labels for the entries of a unit, or a name for the groups of a whole weight."""


class GroupSet(Set):
    """A set of the norms of groups of entries; the nearest point has each group times a number.

    Attributes:
        groups: labels, or a name.
        view: how the weight is seen, so that an axis that no unit spans counts groups; None while
            the layer isn't known.
    """

    groups: Any
    view: View | None = None

    def _of_groups(self, groups: Any, axis: Any) -> None:
        """Checks the arguments that all have, and keeps them."""
        name = type(self).__name__
        self.groups = groups if isinstance(groups, str) else number_or_array(name, "groups", groups)
        self.axis = axes(name, axis)
        if isinstance(self.groups, float) or (isinstance(groups, str) and (groups not in NAMES or axis is not None)):
            raise SetError(
                f"`groups` of {name} is not one of {', '.join(NAMES)}, without an axis, or an array of labels",
                f"groups={shown(groups)}, axis={axis}",
                instead=f'{name}({self.argument_names()[0]}=1, groups="inputs")',
            )

    @abstractmethod
    def _shorter(self, norms: Array, unit: Array, units: Units) -> tuple[Array, Array]:
        """Whether each group is moved, and its new norm.

        Args:
            norms: of the groups, of shape (units, groups), divided by `unit`; not finite where an
                entry isn't.
            unit: of each unit the number over which norms are given, of shape (units, 1).
            units: what they come from.
        """

    @abstractmethod
    def _beyond(self, norms: Array) -> Array:
        """For each unit how far it is outside, of the norms of its groups."""

    @property
    def whole(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return isinstance(self.groups, str)

    @property
    def matrix(self) -> bool:  # type: ignore[override]  # likewise
        return self.whole and self.groups == "units"

    @property
    def _key(self) -> tuple[Any, ...]:
        return *super()._key, self.view

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        """With the axis of a layer's inputs, heads or gates, or an error where there is none."""
        if not self.whole or self.matrix or self.view is not None:
            return self
        view = layouts[0].units_of(self.groups)
        if len(layouts) > 1 or view is None:
            raise self._no_axis([layout.shape for layout in layouts])
        return self._with(view=view)

    def _no_axis(self, shapes: Sequence[tuple[int, ...]]) -> SetError:
        name = type(self).__name__
        return SetError(
            f"`groups` of {name} are the {self.groups} of a layer, which no axis of the weight counts",
            f"groups={self.groups!r}",
            where=f"weights of shape {' and '.join(map(str, shapes))}",
            instead=f"{name}({self.argument_names()[0]}=1, groups=[0, 0, 1]), a label for each entry of a unit",
        )

    def check_fit(self, units: Units) -> None:
        super().check_fit(units.together(self.whole))
        self._number(units)

    def _number(self, units: Units) -> int:
        """The number of groups of a unit; -1 where TensorFlow doesn't know it."""
        if not self.whole:
            return len(groups_of(type(self).__name__, self.groups, unit_shape_of(units)).table)
        return units.seen(self._views(units)).count

    def _view(self, shape: tuple[int, ...], span: tuple[int, ...]) -> View:
        view = View(shape, span) if self.matrix else self.view
        if view is None and self.groups == "inputs":  # of rows, without a layer
            view = View(shape, span).layout.units_of("inputs")
        if view is not None and len(shape) == len(view.shape):
            return replace(view, shape=shape)
        if view is None or math.prod(shape) != math.prod(view.shape):
            raise self._no_axis([shape])
        return view

    def _views(self, of: Units | Laid) -> list[View]:
        """How the set sees weights, whose units then are the groups."""
        return [self._view(view.shape, view.axes) for view in of.views]

    def _project(self, units: Units) -> Units:
        xp = namespace(units.parts[0])
        grouped, back = self._grouped(units)
        by_unit = (1, -1) if self.whole else (-1, grouped.shape[-1])
        most = xp.maximum(without_gradient(grouped.largest()), 0)  # of a group that a mask hides, -infinity
        scale = xp.where(most > 0, xp.clip(most, 1 / HUGE, HUGE), xp.ones_like(most))
        squares = grouped.total(lambda x, scale: (x / scale) ** 2, scale)
        some = ~(squares <= 0)  # or NaN; at 0 a root has no gradient
        squares = xp.where(some, squares, xp.ones_like(most))
        lengths, some, most, scale = (xp.reshape(one, by_unit) for one in (xp.sqrt(squares), some, most, scale))
        unit = xp.clip(xp.max(most, axis=1, keepdims=True) / ROOM, 1 / HUGE, HUGE)
        share = xp.maximum(scale / unit, SMALLEST_NORMAL[dtype_of(most)])  # so that none but zeros has the norm 0
        moved, norms = self._shorter(xp.where(some, share * lengths, xp.zeros_like(most)), unit, units)
        new = norms * unit / lengths

        def shortened(x: Array, moved: Array, new: Array, scale: Array) -> Array:
            return xp.where(moved, xp.where(new > 0, x / scale * new, xp.zeros_like(x)), x)  # 0 has no sign

        return back(shortened, *(xp.reshape(one, grouped.shape) for one in (moved, new, scale)))

    def _grouped(self, units: Units) -> tuple[Units, Callable[..., Units]]:
        """The groups as units, and a function that makes the units of the weight again.

        It takes a function of entries and of numbers, and these numbers, one for each group.
        """
        if self.whole:
            grouped = units.seen(self._views(units))
            return grouped, lambda fn, *numbers: grouped.map(fn, *numbers).unseen(units)
        rows, mask, groups = units.rows(), units.mask_rows(), groups_of("", self.groups, unit_shape_of(units))
        xp = namespace(rows)
        entries = groups.gathered(rows if mask is None else xp.where(mask, rows, xp.zeros_like(rows)))
        spread = groups.spread
        return Units.of([entries], [(2,)]), lambda fn, *numbers: units.with_rows(fn(rows, *map(spread, numbers)))

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        xp = namespace(rows)
        if not self.whole:
            entries = groups_of("", self.groups, laid.unit_shape).gathered(rows)
        else:
            entries = replace(laid, rows=rows).seen(self._views(laid)).rows
        norms = norms_along(entries, -1)
        return [(self._beyond(xp.reshape(norms, (1 if self.whole else rows.shape[0], -1))), self._slack(laid))]

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return self._edges(rows, Laid.of_rows(rows))[0][0]


@registered
class GroupL1Ball(OfTotal, GroupSet):
    """{w : |w_1|_2 + ... + |w_g|_2 <= radius}, for the groups of its entries: few are not 0.

    `L1Ball` on the norms of groups: entries of a group become 0 together. With the groups "inputs"
    it selects the inputs of a layer (features, channels), for all of its units at once; what no
    unit uses can be taken out. With "units" it selects units (neurons, filters). How many groups
    are left depends on the radius and the data; `GroupSparse` says how many.

    Args:
        radius: the largest sum of norms; above 0. With labels a number for all units, or an array
            with one for each.
        groups: for a whole weight, "inputs": a group is all that comes from one input of the layer,
            see `on`; "units": a group is a unit; "heads" or "gates": see `per`. Or labels, for each
            unit: an array of the unit's shape or one with a label for each entry, see `Equal`.
        axis: see `MaxNorm`; with labels.

    Raises:
        SetError: an argument is wrong; once the weight is known, it has no inputs, heads or gates,
            or the labels don't fit its units.

    On rows, without a layer, inputs are columns.

    Cost: the norms of the groups, the search of `L1Ball` on these, and a scale for each group; with
    labels two copies by group too. In a metric, accelerated steps of these. A zero unit is inside.
    NaN and infinities stay.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables",
    2006; van den Berg, Schmidt, Friedlander and Murphy, "Group sparsity via linear-time
    projection", 2008.

    >>> GroupL1Ball(4).project([[3.0, 0.5], [4.0, 0.0]])  # inputs are columns
    array([[2.4, 0. ],
           [3.2, 0. ]])
    """

    of_each_unit = ("radius",)

    def __init__(self, radius: Numbers = 1.0, groups: OfGroups = "inputs", axis: Axis = None) -> None:
        self.radius = numbers_of_units("GroupL1Ball", "radius", radius, positive=True)
        self.level = in_a_row(self.radius)
        self._of_groups(groups, axis)

    def _shorter(self, norms: Array, unit: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(norms)
        lengths = Units.of([norms], [(1,)], differentiable=units.differentiable, concrete=units.concrete)
        held = self.level + Judgement(units.together(self.whole).size, units.dtype).held(self.level)
        unit = xp.reshape(unit, lengths.shape)
        level, ceiling = (xp.minimum(lengths.numbers(bound) / unit, HUGE) for bound in (self.level, held))
        total = lengths.constants().total(xp.abs)
        moved = (total > ceiling) & xp.isfinite(total)
        shorter = nearest_on_one_limit(lengths, Declaration((Limit("diamond", level),)), moved).parts[0]
        return xp.expand_dims(moved, -1) & xp.isfinite(shorter), shorter

    def _beyond(self, norms: Array) -> Array:
        return namespace(norms).sum(norms, axis=1) - constant(norms, self.level)


@registered
class GroupSparse(GroupSet):
    """{w : at most k groups of the entries of w are not 0}. Not convex.

    `Sparse` for groups: the k with the largest 2-norms stay bit for bit, the entries of the others
    become 0. Structured pruning while training: k inputs, channels, filters or heads are left, and
    the others can be taken out. Steps smaller than what revives a group are lost, as under
    `Sparse`; `constrain(..., latent=True)` keeps them.

    Args:
        k: how many groups may differ from 0; at most as many as there are.
        groups: see `GroupL1Ball`: "inputs", "units", "heads" or "gates" of a whole weight, or
            labels for each unit.
        axis: see `MaxNorm`; with labels.

    Raises:
        SetError: `k` is not a positive integer, or another argument is wrong; once the weight is
            known, `k` is above the number of groups, it has no inputs, heads or gates, or the
            labels don't fit its units.

    On rows, without a layer, inputs are columns.

    Cost: the norms of the groups, and the selection of `Sparse` among these; with labels two copies
    by group too.

    Of groups equal in norm the first stay, in the order of inputs, units or labels. A group of
    zeros stays as it is, so that a zero unit is inside. A unit with NaN or infinities stays and
    counts as violated. The violation is the norm of the largest group that is too much.

    Source: Baraniuk, Cevher, Duarte and Hegde, "Model-based compressive sensing", 2010, for
    thresholding blocks; Wen, Wu, Wang, Chen and Li, "Learning structured sparsity in deep neural
    networks", 2016.

    >>> GroupSparse(1).project([[3.0, 0.5, 2.0], [4.0, 0.0, 5.0]])  # inputs are columns
    array([[0., 0., 2.],
           [0., 0., 5.]])
    """

    convex: ClassVar[bool] = False
    undone_steps: ClassVar[str] = (
        "a step that leaves a group below the k largest is lost, so that small ones never revive it"
    )

    def __init__(self, k: Integer, groups: OfGroups = "inputs", axis: Axis = None) -> None:
        self.k = positive_integer("GroupSparse", "k", k, "GroupSparse(k=10)", ": how many groups may differ from 0")
        self._of_groups(groups, axis)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        number = self._number(units)
        where = f"{units.count} units of {units.size} entries, with {number} groups"
        at_most(self, "k", number if number >= 0 else self.k, "the number of groups", where)

    def _shorter(self, norms: Array, unit: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(norms)
        norms = without_gradient(norms)
        finite = xp.all(xp.isfinite(norms), axis=1, keepdims=True)
        norms = xp.where(finite, norms, xp.zeros_like(norms))
        return ~(k_largest(norms, self.k) | (norms <= 0) | ~finite), xp.zeros_like(norms)

    def _beyond(self, norms: Array) -> Array:
        return too_many(norms, self.k)
