"""The ball of the sum of the norms of groups: GroupL1Ball."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from inbounds._arrays.judgement import Bound, Judgement
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import HUGE, Array, constant, namespace, without_gradient
from inbounds._arrays.units import Units
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import axes, in_a_row, number_or_array, numbers_of_units
from inbounds._sets.declaration import Declaration, Row
from inbounds._sets.groups import groups_of, span_of
from inbounds._sets.one_row import nearest_on_one_row
from inbounds._sets.set import Edge, Set, registered
from inbounds._types import Axis, Numbers


@registered
class GroupL1Ball(Set):
    """{w : |w_1|_2 + ... + |w_g|_2 <= radius}, for the groups of its entries: few groups that are not 0.

    `L1Ball` on the norms of groups: entries of a group become 0 together. With the groups "inputs"
    it selects the inputs of a layer (features, channels), for all of its units at once; what no
    unit uses can be taken out.

    Args:
        radius: the largest sum of norms; above 0. With labels a number for all units, or an array
            with one for each.
        groups: "inputs", for a whole weight: a group is all that comes from one input of the layer,
            see `on`. Or labels, for each unit: an array of the unit's shape or one with a label for
            each entry, see `Equal`.
        axis: see `MaxNorm`; with labels.

    Raises:
        SetError: an argument is wrong; once the weight is known, it has no axis of inputs, or the
            labels don't fit its units.

    On rows, without a layer, inputs are columns.

    Cost: the norms of the groups, the search of `L1Ball` on these, and a scale for each group; with
    labels two copies by group too. A zero unit is inside. NaN and infinities stay.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables",
    2006; van den Berg, Schmidt, Friedlander and Murphy, "Group sparsity via linear-time
    projection", 2008.

    >>> GroupL1Ball(4).project([[3.0, 0.5], [4.0, 0.0]])  # inputs are columns
    array([[2.4, 0. ],
           [3.2, 0. ]])
    """

    allows_frozen: ClassVar[bool] = False
    of_each_unit = ("radius",)

    def __init__(
        self, radius: Numbers = 1.0, groups: Numbers | Literal["inputs"] = "inputs", axis: Axis = None
    ) -> None:
        self.radius = numbers_of_units("GroupL1Ball", "radius", radius, positive=True)
        self.level = in_a_row(self.radius)
        self.groups: Any = groups if isinstance(groups, str) else number_or_array("GroupL1Ball", "groups", groups)
        self.axis = axes("GroupL1Ball", axis)
        if isinstance(self.groups, float) or (isinstance(groups, str) and (groups != "inputs" or axis is not None)):
            raise SetError(
                '`groups` of GroupL1Ball is not "inputs", without an axis, or an array of labels',
                f"groups={shown(groups)}, axis={axis}",
                instead='GroupL1Ball(1.0, groups="inputs")',
            )

    @property
    def whole(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return isinstance(self.groups, str)

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        """With the axis of the inputs of a layer."""
        if not self.whole or isinstance(self, _OfInputs):
            return self
        if len(shapes) > 1 or inputs[0] is None:
            raise SetError(
                "`groups` of GroupL1Ball are the inputs of a layer, which no axis of the weight counts",
                f"groups={self.groups!r}",
                where=f"weights of shape {' and '.join(map(str, shapes))}",
                instead="GroupL1Ball(1.0, groups=[0, 0, 1]), with a label for each entry of a unit",
            )
        return _OfInputs(self.radius, inputs[0])

    def __call__(self, w: Any) -> Array:
        own = self.resolved([np.shape(w)], [max(0, np.ndim(w) - 2)])
        return super().__call__(w) if own is self else own(w)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        if not self.whole:
            groups_of("GroupL1Ball", self.groups, span_of(units))

    def _project(self, units: Units) -> Units:
        xp, one = namespace(units.parts[0]), units.together(self.whole)
        size = without_gradient(xp.clip(one.max(xp.abs), 1 / HUGE, HUGE))
        relative = one.map(lambda x, size: x / size, size).costing(None).apart(units)
        grouped, back = self._along_inputs(units, relative) if self.whole else self._by_labels(units, relative)
        squares = grouped.total(lambda x: x * x)
        some = squares > 0  # at 0 a root has no gradient
        norms = xp.where(some, xp.sqrt(xp.where(some, squares, xp.ones_like(squares))), squares)
        lengths = Units.of([norms], [(-1,)], differentiable=units.differentiable, concrete=units.concrete)
        held = self.level + Judgement(one.size, units.dtype).held(self.level)
        size = xp.reshape(size, lengths.shape)
        level, ceiling = (xp.minimum(lengths.numbers(bound) / size, HUGE) for bound in (self.level, held))
        total = lengths.constants().total(xp.abs)
        moved = (total > ceiling) & xp.isfinite(total)
        shorter = nearest_on_one_row(lengths, Declaration((Row("diamond", level),)), moved).parts[0]
        factor = shorter / xp.where(some, norms, xp.ones_like(norms))
        return back(xp.expand_dims(moved, -1) & xp.isfinite(factor), factor)

    def _along_inputs(self, units: Units, relative: Units) -> tuple[Units, Callable[[Array, Array], Units]]:
        """The groups as units, and from whether each is moved, and its factor, to the units."""
        inputs = self._axis_of_inputs(units.axes[0])
        others = tuple(axis for axis in range(len(units.parts[0].shape)) if axis != inputs)
        grouped = replace(units, axes=(others,))
        return replace(relative, axes=(others,)), lambda *given: grouped.map(_shortened, *given).apart(units)

    def _by_labels(self, units: Units, relative: Units) -> tuple[Units, Callable[[Array, Array], Units]]:
        rows, mask, groups = relative.rows(), units.mask_rows(), groups_of("GroupL1Ball", self.groups, span_of(units))
        xp = namespace(rows)
        entries = groups.gathered(rows if mask is None else xp.where(mask, rows, xp.zeros_like(rows)))
        present = constant(rows, groups.present) > 0

        def back(moved: Array, factor: Array) -> Units:
            return units.with_rows(_shortened(units.rows(), groups.spread(moved), groups.spread(factor)))

        return Units.of([xp.where(present, entries, xp.zeros_like(entries))], [(2,)]), back

    def _axis_of_inputs(self, span: tuple[int, ...]) -> int:
        return max(span)  # of rows, without a layer

    def _edges(self, rows: Array, laid: Laid) -> list[Edge]:
        xp = namespace(rows)
        if self.whole:
            (shape,), (span,) = laid.shapes, laid.axes
            order = [axis for axis in range(len(shape)) if axis not in span] + list(span)
            entries = xp.reshape(rows, tuple(shape[axis] for axis in order))
            within = tuple(i for i, axis in enumerate(order) if axis != self._axis_of_inputs(span))
        else:
            groups, within = groups_of("GroupL1Ball", self.groups, laid.span), (2,)
            entries = groups.gathered(rows)
            entries = xp.where(constant(rows, groups.present) > 0, entries, xp.zeros_like(entries))
        size = without_gradient(xp.clip(xp.max(xp.abs(entries), axis=within, keepdims=True), 1 / HUGE, HUGE))
        squares = xp.sum((entries / size) ** 2, axis=within, keepdims=True)
        some = squares > 0
        norms = xp.where(some, size * xp.sqrt(xp.where(some, squares, xp.ones_like(squares))), squares)
        sums = xp.sum(xp.reshape(norms, (1 if self.whole else rows.shape[0], -1)), axis=1)
        return [(sums - constant(rows, self.level), self._slack(laid))]

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        return self._edges(rows, Laid.of_rows(rows))[0][0]

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        return Judgement(size, dtype).tolerated(self.level)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        """That of the radius."""
        return self._by_scale(units, taken, self.level)


def _shortened(x: Array, moved: Array, factor: Array) -> Array:
    """Entries times a factor where they are moved; 0 has no sign."""
    xp = namespace(x)
    return xp.where(moved, xp.where(factor > 0, x * factor, xp.zeros_like(x)), x)


class _OfInputs(GroupL1Ball):
    """A `GroupL1Ball` of the inputs along an axis that is known: what it becomes on a layer. It is never saved."""

    def __init__(self, radius: Bound, inputs: int) -> None:
        self.radius, self.level, self.groups, self.inputs = radius, in_a_row(radius), "inputs", inputs

    def _axis_of_inputs(self, span: tuple[int, ...]) -> int:
        return self.inputs
