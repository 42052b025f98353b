"""Sets of some entries only: `a.where(mask)` and `a.on(inputs=...)`."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array
from inbounds._arrays.units import Units
from inbounds._arrays.views import WeightLayout
from inbounds._errors import FEW, SetError, shown
from inbounds._sets.composite import Composite, bracketed, contains
from inbounds._sets.custom import Custom
from inbounds._sets.declaration import Declaration
from inbounds._sets.joint import JointSet
from inbounds._sets.matrices import MatrixSet
from inbounds._sets.serialization import to_code
from inbounds._sets.set import Edge, Set, registered
from inbounds._types import Inputs, Integer, Mask, MaskName

NAMES = get_args(MaskName)
"""The masks that have a name."""


@registered
class Where(Composite):
    """{w : the entries that a mask marks are in a set}: what `a.where(mask)` makes.

    The marked entries of a unit are the vector that the set holds for; the others are neither seen
    nor changed. Units may have different marks, and different numbers of them; a unit without any
    is inside.

    Args:
        set: of vectors or entries; a set of a whole matrix has no meaning for some of its entries.
        mask: booleans that broadcast to the weight (on rows: to the rows); within a Joint, one for
            each entry of a unit or one row for each unit. Or a name, for a weight in which each of
            the layer's inputs i has one entry for each unit j: "causal" marks i <= j, "banded"
            abs(i - j) <= width; "not causal" and "not banded" mark the others. Each head and each
            gate has its own i and j.
        width: how far from the diagonal a band reaches; 0 is the diagonal.

    Raises:
        SetError: the mask isn't of booleans or a name, marks nothing, or the set is one of a whole
            matrix or a callable; `width` is missing, or given without a band; when the plan is
            made, of a name: the weight has several axes of inputs or of units, or none.

    Cost: that of the set, and a selection in every pass.

    Source: the projection on a product of a set and a free space; nothing is approximated.

    >>> from inbounds import NonNeg
    >>> NonNeg().where([True, False]).project([[-1.0, -1.0]])
    array([[ 0., -1.]])
    """

    width: int | None = None

    def __init__(self, set: Set, mask: Mask | MaskName, width: Integer | None = None) -> None:  # noqa: A002  # the word of the library
        _check_inner("where", "mask", set)
        named = isinstance(mask, str)
        marks: Any = mask if named else np.array(mask)
        if not (mask in NAMES if named else marks.dtype == bool and marks.any()):
            raise SetError(
                "`mask` of where is not an array of booleans of which some are True, or one of " + ", ".join(NAMES),
                f"mask={shown(mask)}",
                where=f"{set!r}.where(...)",
                instead="where(np.array([True, True, False]))",
            )
        if (named and "banded" in marks) != (isinstance(width, numbers.Integral) and width >= 0):
            raise SetError(
                "`width` of where is not an integer of 0 or more for a band, or None for other masks",
                f"mask={shown(mask)}, width={shown(width)}",
                where=f"{set!r}.where(...)",
                instead='where("banded", width=2)',
            )
        if not named:
            marks.setflags(write=False)
        self.set, self.mask, self.members = set, marks, (set,)
        self.width = width if width is None else int(width)

    @property
    def named(self) -> bool:
        """Whether the mask depends on the units of the weight."""
        return isinstance(self.mask, str)

    @property
    def entrywise(self) -> bool:
        return self.set.entrywise and not self.named

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        laid = super().laid_out(layouts)
        return Where(laid.set, self._named_mask(layouts)) if self.named else laid

    def _named_mask(self, layouts: Sequence[WeightLayout]) -> np.ndarray[Any, Any]:
        """The mask that a name means for a weight, in its shape or one that broadcasts to it."""
        layout, rank = layouts[0], len(layouts[0].shape)
        fan_in = range(rank - 1) if layout.fan_in is None else layout.fan_in
        inputs, units = (
            [axis for axis in range(rank) if (axis in fan_in) == within and axis != layout.heads]
            for within in (True, False)
        )
        if len(layouts) > 1 or len(inputs) != 1 or len(units) != 1:
            raise SetError(
                f"The mask {self.mask!r} is for a weight with one axis of inputs and one of units",
                repr(self),
                where=f"weights of shape {' and '.join(str(one.shape) for one in layouts)}, inputs along {fan_in}",
                instead="where(mask) with an array of booleans that broadcasts to the weight",
            )
        i, j = (
            np.expand_dims(np.arange(layout.shape[axis]), [k for k in range(rank) if k != axis])
            for (axis,) in (inputs, units)
        )
        j = j % (j.size // max(1, layout.gates))
        marks = i <= j if self.width is None else abs(i - j) <= self.width
        marks = ~marks if self.mask.startswith("not") else marks
        if not marks.any():
            raise SetError(
                f"The mask {self.mask!r} marks no entry", repr(self), where=f"a weight of shape {layout.shape}"
            )
        return marks

    def _marks(self, of: Units | Laid) -> Any:
        """The mask; without a layer a name is by the units as they are."""
        if not self.named:
            return self.mask
        return self._named_mask([WeightLayout(view.shape, view.axes) for view in of.views])

    def check_fit(self, units: Units) -> None:
        self.set.check_fit(units.where(self._marks(units)))

    def _project(self, units: Units) -> Units:
        return self.set.nearest(units.where(self._marks(units))).everywhere(units)

    def declaration(self, units: Units) -> Declaration:
        return self.set.declaration(units).within(units.where(self._marks(units)).marks)

    def reduced(self, units: Units, gradient: Units) -> Units:
        marked = units.where(self._marks(units))
        return self.set.reduced(marked, gradient.everywhere(marked)).everywhere(units)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        return self.set.multiplier(*(one.where(self._marks(units)) for one in (units, taken)))

    def edges(self, laid: Laid) -> list[Edge]:
        return self.set.edges(laid.where(self._marks(laid)))

    def _finite(self, laid: Laid, count: int) -> Array:
        return self.set._finite(laid.where(self._marks(laid)), count)

    def _config(self) -> dict[str, Any]:
        return {name: value for name, value in super()._config().items() if value is not None}

    def __repr__(self) -> str:
        mask = "..." if isinstance(self.mask, tuple) else to_code(self.mask)
        return f"{bracketed(self.set)}.where({mask}{'' if self.width is None else f', width={self.width}'})"


class _Marked(Where):
    """A `Where` with a mask for each of several weights: what `On` becomes on a layer. It is never saved."""

    def __init__(self, set: Set, masks: tuple[np.ndarray[Any, Any], ...]) -> None:  # noqa: A002  # the word of the library
        self.set, self.mask, self.masks, self.members = set, masks, masks, (set,)


@registered
class On(Composite):
    """{w : the weights that come from some inputs are in a set}: what `a.on(inputs=...)` makes.

    The inputs are features of a Dense, channels of a convolution, tokens of an Embedding. The set
    holds for the vector of those weights of each unit; all others are free, the bias among them.

    Args:
        set: of vectors or entries, as for `where`.
        inputs: different indices, from 0.

    Raises:
        SetError: `inputs` are no such indices, or the set is one of a whole matrix or a callable;
            when the plan is made, the weight has fewer inputs, or has none.

    Cost: as `where`.

    Source: partial monotonicity by weights, as in Sill, "Monotonic networks", 1998.

    >>> from inbounds import NonNeg
    >>> NonNeg().on(inputs=[0, 2]).project([[-1.0, -1.0, -1.0]])
    array([[ 0., -1.,  0.]])
    """

    def __init__(self, set: Set, inputs: Inputs) -> None:  # noqa: A002  # the word of the library
        _check_inner("on", "inputs", set)
        given = [inputs] if isinstance(inputs, numbers.Integral) else inputs
        indices = list(given) if isinstance(given, (list, tuple, range, np.ndarray)) else []
        whole = all(isinstance(i, numbers.Integral) and not isinstance(i, bool) and int(i) >= 0 for i in indices)
        if not indices or not whole or len({int(i) for i in indices}) < len(indices):
            raise SetError(
                "`inputs` of on are not different indices of inputs, from 0",
                f"inputs={shown(inputs)}",
                where=f"{set!r}.on(...)",
                instead="on(inputs=[0, 3])",
            )
        self.set = set
        self.inputs = [int(i) for i in indices]
        self.members = (set,)

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        masks = []
        for shape, axis in zip(shapes, inputs, strict=True):
            mask = np.zeros([1] * len(shape), dtype="bool")
            if axis is not None:
                mask = mask.repeat(shape[axis], axis)
                if max(self.inputs) >= shape[axis]:
                    raise SetError(
                        f"`inputs` of on are not all below the number of inputs, {shape[axis]}",
                        f"inputs={self.inputs}",
                        where=f"{self!r} on a weight of shape {shape}",
                    )
                mask.reshape(-1)[self.inputs] = True
            masks.append(mask)
        if all(axis is None for axis in inputs):
            raise SetError(
                "`on` knows no axis of the weights that counts the inputs of the layer",
                f"inputs={self.inputs}",
                where=f"{self!r} on weights of shape {' and '.join(map(str, shapes))}, with none that is known",
                instead="where(mask) with a mask that broadcasts to the weight",
            )
        return _Marked(self.set, tuple(masks))

    def check_fit(self, units: Units) -> None:
        self._by_itself(units).check_fit(units)

    def _project(self, units: Units) -> Units:
        return self._by_itself(units).nearest(units)

    def declaration(self, units: Units) -> Declaration:
        return self._by_itself(units).declaration(units)

    def edges(self, laid: Laid) -> list[Edge]:
        return self._by_itself(laid).edges(laid)

    def _finite(self, laid: Laid, count: int) -> Array:
        return self._by_itself(laid)._finite(laid, count)

    def _by_itself(self, of: Units | Laid) -> Set:
        """Without a layer, the inputs lie along the last axis of a unit."""
        shapes = [view.shape for view in of.views]
        return self.resolved(shapes, [max(of.views[0].axes, default=None), *(None for _ in shapes[1:])])

    def __repr__(self) -> str:
        inputs = self.inputs if len(self.inputs) <= FEW else shown(np.array(self.inputs))
        return f"{bracketed(self.set)}.on(inputs={inputs})"


def _check_inner(name: str, argument: str, given: Any) -> None:
    if not isinstance(given, Set) or contains(given, (JointSet, Custom, MatrixSet)):
        raise SetError(
            f"`{name}` is given a set of a whole matrix, a callable, or no set",
            f"{given!r}.{name}(...)",
            instead=f"MaxNorm(1.0).{name}({argument}), or ZeroDiagonal() and the like by `&`",
        )
