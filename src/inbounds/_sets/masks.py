"""Sets of some entries only: `a.where(mask)` and `a.on(inputs=...)`."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.units import Units
from inbounds._arrays.views import WeightLayout
from inbounds._errors import FEW, SetError, shown
from inbounds._sets.arguments import array_of
from inbounds._sets.composite import Seen, Wrapped, bracketed, contains
from inbounds._sets.custom import Custom
from inbounds._sets.declaration import Declaration
from inbounds._sets.joint import JointSet
from inbounds._sets.matrices import MatrixSet
from inbounds._sets.set import Set, registered
from inbounds._sets.value import comparison_key, to_code
from inbounds._types import Inputs, Integer, Mask, MaskName

NAMES = get_args(MaskName)
"""The masks that have a name."""

Masks = tuple[np.ndarray[Any, Any], ...]


class _Marked(Wrapped):
    """A set of the entries that a mask marks."""

    @abstractmethod
    def _marks(self, of: Units | Laid) -> Any:
        """The mask, see `Units.place`.

        Where it depends on a layer that isn't known, it follows from the units as they are.
        """

    def inside(self, *given: Seen) -> tuple[Set, list[Seen]]:
        marks = self._marks(given[0])
        return self.set, [one.where(marks) for one in given]

    def check_room(self, units: Units) -> None:
        """Nothing: how many entries are marked differs from unit to unit."""

    def declaration(self, units: Units) -> Declaration:
        inner, (seen,) = self.inside(units)
        return inner.declaration(units).within(seen.marks)


@registered
class Where(_Marked):
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
        marks: Any = mask if named else array_of(mask)
        if not (mask in NAMES if named else isinstance(marks, np.ndarray) and marks.dtype == bool and marks.any()):
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
        self.mask, self.members = marks, (set,)
        self.width = width if width is None else int(width)

    @property
    def named(self) -> bool:
        """Whether the mask depends on the units of the weight."""
        return isinstance(self.mask, str)

    @property
    def entrywise(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
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
                where=f"weights of shape {_shapes(layouts)}, inputs along {fan_in}",
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
        if not self.named:
            return self.mask
        return self._named_mask([view.layout for view in of.views])

    def __repr__(self) -> str:
        width = "" if self.width is None else f", width={self.width}"
        return f"{bracketed(self.set)}.where({to_code(self.mask)}{width})"


@registered
class On(_Marked):
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

    masks: Masks = ()  # one for each weight, once the layer is known

    def __init__(self, set: Set, inputs: Inputs) -> None:  # noqa: A002  # the word of the library
        _check_inner("on", "inputs", set)
        given = [inputs] if isinstance(inputs, numbers.Integral) else inputs
        given = given.tolist() if isinstance(given, np.ndarray) else given
        indices = list(given) if isinstance(given, (list, tuple, range)) else []
        whole = all(isinstance(i, numbers.Integral) and not isinstance(i, bool) and int(i) >= 0 for i in indices)
        if not indices or not whole or len({int(i) for i in indices}) < len(indices):
            raise SetError(
                "`inputs` of on are not different indices of inputs, from 0",
                f"inputs={shown(inputs)}",
                where=f"{set!r}.on(...)",
                instead="on(inputs=[0, 3])",
            )
        self.inputs = [int(i) for i in indices]
        self.members = (set,)

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        made = super().laid_out(layouts)
        return made if self.masks else made._with(masks=self._masks_by(layouts))

    def _masks_by(self, layouts: Sequence[WeightLayout]) -> Masks:
        """A mask for each weight, in a shape that broadcasts to it."""
        masks = []
        for shape, axis in ((layout.shape, layout.inputs) for layout in layouts):
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
        if all(layout.inputs is None for layout in layouts):
            raise SetError(
                "`on` knows no axis of the weights that counts the inputs of the layer",
                f"inputs={self.inputs}",
                where=f"{self!r} on weights of shape {_shapes(layouts)}, with none that is known",
                instead="where(mask) with a mask that broadcasts to the weight",
            )
        return tuple(masks)

    def _marks(self, of: Units | Laid) -> Masks:
        return self.masks or self._masks_by([view.layout for view in of.views])

    @property
    def _key(self) -> tuple[Any, ...]:
        return *super()._key, comparison_key(self.masks)

    def __repr__(self) -> str:
        inputs = self.inputs if len(self.inputs) <= FEW else shown(np.array(self.inputs))
        return f"{bracketed(self.set)}.on(inputs={inputs})"


def _shapes(layouts: Sequence[WeightLayout]) -> str:
    return " and ".join(str(layout.shape) for layout in layouts)


def _check_inner(name: str, argument: str, given: Any) -> None:
    if not isinstance(given, Set) or contains(given, (JointSet, Custom, MatrixSet)):
        raise SetError(
            f"`{name}` is given a set of a whole matrix, a callable, or no set",
            f"{given!r}.{name}(...)",
            instead=f"MaxNorm(1.0).{name}({argument}), or ZeroDiagonal() and the like by `&`",
        )
