"""Sets made by operators: the intersection `a & b`; a set for some entries, `a.where(mask)` and `a.on(inputs=...)`."""

from __future__ import annotations

import copy
import math
import numbers
import operator
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import Any

import keras
import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, cast, dtype_of, is_concrete, namespace
from inbounds._arrays.units import Axes, Units
from inbounds._errors import FEW, SetError, explain, shown
from inbounds._sets.combine import Custom, Joint, Made, contains
from inbounds._sets.matrices import MatrixSet
from inbounds._sets.normal_form import Declaration
from inbounds._sets.set import Edge, Set, code_of, registered
from inbounds._sets.ways import Way, way_of


@registered
class Intersection(Made):
    """{w : w in every one of the sets}: what `a & b` makes.

    The projection is the nearest point of the intersection, which one projection after the other is not. How it is
    found depends on the sets, see `how`:

    - one after the other where that is exact: a cone (NonNeg, Monotone, Symmetric...) and then a ball about 0; an
      orthant and then L1Ball, a symmetric Box or Sparse; boxes; Monotone and then a Box; Symmetric and then a norm of
      the spectrum;
    - one unknown per unit, its multiplier, where one of the sets is linear (SumTo, Simplex, Halfspace, Hyperplane) or a
      ball, or for Box and L1Ball: a bracket that closes by secants and halving, to rounding, in 256 looks at most;
    - else Dykstra's algorithm, 1,000 rounds over the sets at most, until the rounds change nothing but rounding; then
      projections in turn until every set holds.

    A set that isn't convex (UnitNorm, Sparse, Grid...) has no nearest point that could be found in general: the sets
    are projected on in turn, 500 rounds at most, until all hold. The result is in the intersection, where that is
    found, and exact for Sparse with an orthant or a ball.

    Args:
        sets: two or more; intersections among them are taken apart. Their axes are the same, or not given.

    Raises:
        SetError: fewer than two sets, a Joint, different axes, or sets that have no point in common.

    Cost: that of the sets, one after the other; for a multiplier once for each look at it; for Dykstra's algorithm
    1,000 rounds over the sets at most, twice. A unit that is inside every set stays bit for bit.

    Source: Boyle and Dykstra, "A method for finding projections onto the intersection of convex sets in Hilbert
    spaces", 1986; Birgin and Raydan, "Robust stopping criteria for Dykstra's algorithm", 2005; Bauschke, Bui and Wang,
    "Projecting onto the intersection of a cone and a sphere", 2018.

    >>> from inbounds import MaxNorm, NonNeg
    >>> (NonNeg() & MaxNorm(1)).project([[3.0, 4.0], [-3.0, 0.5]])
    array([[0.6, 0.8],
           [0. , 0.5]])
    """

    def __init__(self, *sets: Set) -> None:
        flat = [inner for given in sets for inner in (given.members if isinstance(given, Intersection) else (given,))]
        wrong = [inner for inner in flat if not isinstance(inner, Set) or isinstance(inner, Joint)]
        if wrong or len(flat) < 2:
            raise SetError(
                explain(
                    "An intersection is not made of two or more sets, or one of them is a Joint",
                    f"sets={shown(sets)}",
                    instead="Joint(a & b)",
                )
            )
        axes = {inner.axis for inner in flat if inner.axis is not None}
        if len(axes) > 1:
            raise SetError(
                explain(
                    "The sets of an intersection span different axes",
                    f"axes {' and '.join(map(str, sorted(axes)))}",
                    where=repr(flat),
                    instead="leave `axis` out: the layer knows its units",
                )
            )
        self.members = tuple(flat)
        arrays = (getattr(member, name) for member in flat for name in member.argument_names())
        sizes = sorted({1, 2, 16, 256} | {array.size for array in arrays if isinstance(array, np.ndarray)})
        self._check_common_point([(n, n) for n in (2, 8)] if self.matrix else [(1, n) for n in sizes])

    @property
    def sets(self) -> tuple[Set, ...]:
        """The sets, as given."""
        return self.members

    @cached_property
    def way(self) -> Way:
        """How it is projected on."""
        return way_of(self.members)

    @cached_property
    def weighted_way(self) -> Way:
        """How it is projected on in a metric that weighs each entry."""
        return way_of(self.members, weighted=True)

    @property
    def how(self) -> str:
        """How it is projected on, in words."""
        return self.way.words

    def _project(self, units: Units) -> Units:
        if not any(units.free):
            return units
        way = self.way if units.metric is None else self.weighted_way
        if self.entrywise and way.keeps:
            return way.project(units)
        fixed = units.constants().costing(None)
        xp = namespace(fixed.parts[0])
        moved = self._by_matrix(xp.isfinite(fixed.max(xp.abs)), units)
        if not way.keeps:
            same = [fixed.same(member.nearest(fixed)) for member in self.members]
            moved = moved & ~self._by_matrix(reduce(operator.and_, same), units)
        if is_concrete(moved) and not bool(xp.any(moved)):
            return units
        return units.chosen(moved, way.project(units))

    def _by_matrix(self, told: Array, units: Units) -> Array:
        """What is told of each unit, or of all units of a matrix where one of the sets is a set of it."""
        if not any(member.whole for member in self.members):
            return told
        groups = self.members[0].counted(units.count) if self.whole else 1
        return units.alike(told, groups)

    def check_room(self, units: Units) -> None:
        """That the sets have a point in common, for units of this size.

        Raises:
            SetError: they have none.
        """
        self._check_common_point([(units.count if self.matrix else 1, units.size)])

    def _check_common_point(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Tried by projecting zeros in one of these shapes."""
        told = [m for m in self.members if isinstance(m, Custom) or m.center is not None or m.changes]
        if told or not self.convex or any(isinstance(member, (Where, On)) for member in self.members):
            return
        nearest = math.inf
        for shape in shapes:
            rows = np.zeros(shape)
            try:
                self.check_fit(Units.of([rows], [(1,)]))
            except SetError:
                continue
            if not self.measure([rows], [(1,)]).outside.any():
                return
            nearest = min(nearest, float(self.measure([self.project(rows)], [(1,)]).excess.max()))
            if nearest < 1e-6:
                return
        if nearest < math.inf:
            raise SetError(
                explain(
                    "The intersection is empty: its sets have no point in common",
                    repr(self),
                    where=f"units of {' or '.join(str(n) for _, n in shapes)} entries; the nearest try is outside "
                    f"of one by {nearest:.3g}",
                    instead="wider bounds",
                )
            )

    def _config(self) -> dict[str, Any]:
        return {"sets": [keras.saving.serialize_keras_object(member) for member in self.members]}

    @classmethod
    def _of_config(cls, config: dict[str, Any]) -> Set:
        given = (keras.saving.deserialize_keras_object(x) if isinstance(x, dict) else x for x in config["sets"])
        return cls(*given)

    def rebuilt(self, members: Sequence[Set]) -> Set:
        made = copy.copy(self)  # not made anew: a compiled step, where bounds are tensors, can't check them
        for found in ("way", "weighted_way"):
            made.__dict__.pop(found, None)
        made.__dict__["members"] = tuple(members)
        return made

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.members))


@registered
class Where(Made):
    """{w : the entries that a mask marks are in a set}: what `a.where(mask)` makes.

    The marked entries of a unit are the vector that the set holds for; the others are neither seen nor changed. Units
    may have different marks, and different numbers of them; a unit without any is inside.

    Args:
        set: of vectors or entries; a set of a whole matrix has no meaning for some of its entries.
        mask: booleans that broadcast to the weight (on rows: to the rows); within a Joint, one for each entry of a unit
            or one row for each unit.

    Raises:
        SetError: the mask isn't of booleans, marks nothing, or the set is one of a whole matrix or a callable.

    Cost: that of the set, and a selection in every pass.

    Source: the projection on a product of a set and a free space; nothing is approximated.

    >>> from inbounds import NonNeg
    >>> NonNeg().where([True, False]).project([[-1.0, -1.0]])
    array([[ 0., -1.]])
    """

    def __init__(self, set: Set, mask: Any) -> None:  # noqa: A002  # the word of the library
        _check_inner("where", "mask", set)
        marks = np.asarray(mask)
        if marks.dtype != bool or not marks.any():
            raise SetError(
                explain(
                    "`mask` of where is not an array of booleans of which some are True",
                    f"mask={shown(mask)}",
                    where=f"{set!r}.where(...)",
                    instead="where(np.array([True, True, False]))",
                )
            )
        marks = marks.copy()
        marks.setflags(write=False)
        self.set = set
        self.mask: Any = marks
        self.members = (set,)

    def check_fit(self, units: Units) -> None:
        self.set.check_fit(units.where(self.mask))

    def _project(self, units: Units) -> Units:
        return self.set.nearest(units.where(self.mask)).everywhere(units)

    def declaration(self, units: Units) -> Declaration:
        mask = units.where(self.mask).mask_rows()
        return self.set.declaration(units).within(cast(mask, dtype_of(units.parts[0])))

    def reduced(self, units: Units, gradient: Units) -> Units:
        marked = units.where(self.mask)
        return self.set.reduced(marked, gradient.everywhere(marked)).everywhere(units)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        return self.set.multiplier(units.where(self.mask), taken.where(self.mask))

    def edges(self, laid: Laid) -> list[Edge]:
        return self.set.edges(laid.where(self.mask))

    def _finite(self, laid: Laid, count: int) -> Array:
        return self.set._finite(laid.where(self.mask), count)

    def rebuilt(self, members: Sequence[Set]) -> Set:
        return Where(members[0], self.mask)

    def __repr__(self) -> str:
        return f"{_bracketed(self.set)}.where({_marks(self.mask)})"


class _Marked(Where):
    """A `Where` with a mask for each of several weights: what `On` becomes on a layer. It is never saved."""

    def __init__(self, set: Set, masks: tuple[np.ndarray[Any, Any], ...]) -> None:  # noqa: A002
        self.set, self.mask, self.masks, self.members = set, masks, masks, (set,)

    def rebuilt(self, members: Sequence[Set]) -> Set:
        return _Marked(members[0], self.masks)


@registered
class On(Made):
    """{w : the weights that come from some inputs are in a set}: what `a.on(inputs=...)` makes.

    The inputs are features of a Dense, channels of a convolution, tokens of an Embedding. The set holds for the vector
    of those weights of each unit; all others are free, the bias among them.

    Args:
        set: of vectors or entries, as for `where`.
        inputs: different indices, from 0.

    Raises:
        SetError: `inputs` are no such indices, or the set is one of a whole matrix or a callable; when the plan is
            made, the weight has fewer inputs, or has none.

    Cost: as `where`.

    Source: partial monotonicity by weights, as in Sill, "Monotonic networks", 1998.

    >>> from inbounds import NonNeg
    >>> NonNeg().on(inputs=[0, 2]).project([[-1.0, -1.0, -1.0]])
    array([[ 0., -1.,  0.]])
    """

    def __init__(self, set: Set, inputs: Any) -> None:  # noqa: A002
        _check_inner("on", "inputs", set)
        given = [inputs] if isinstance(inputs, numbers.Integral) else inputs
        indices = list(given) if isinstance(given, (list, tuple, range, np.ndarray)) else []
        whole = all(isinstance(i, numbers.Integral) and not isinstance(i, bool) and int(i) >= 0 for i in indices)
        if not indices or not whole or len({int(i) for i in indices}) < len(indices):
            raise SetError(
                explain(
                    "`inputs` of on are not different indices of inputs, from 0",
                    f"inputs={shown(inputs)}",
                    where=f"{set!r}.on(...)",
                    instead="on(inputs=[0, 3])",
                )
            )
        self.set = set
        self.inputs = [int(i) for i in indices]
        self.members = (set,)

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        masks = []
        for shape, axis in zip(shapes, inputs, strict=True):
            mask = np.zeros((1,) * len(shape) if axis is None else _along(axis, shape), dtype="bool")
            if axis is not None:
                if max(self.inputs) >= shape[axis]:
                    raise SetError(
                        explain(
                            f"`inputs` of on are not all below the number of inputs, {shape[axis]}",
                            f"inputs={self.inputs}",
                            where=f"{self!r} on a weight of shape {shape}",
                        )
                    )
                mask.reshape(-1)[self.inputs] = True
            masks.append(mask)
        if all(axis is None for axis in inputs):
            raise SetError(
                explain(
                    "`on` knows no axis of the weights that counts the inputs of the layer",
                    f"inputs={self.inputs}",
                    where=f"{self!r} on weights of shape {' and '.join(map(str, shapes))}, with none that is known",
                    instead="where(mask) with a mask that broadcasts to the weight",
                )
            )
        return _Marked(self.set, tuple(masks))

    def check_fit(self, units: Units) -> None:
        self._by_itself(units.axes, [tuple(part.shape) for part in units.parts]).check_fit(units)

    def _project(self, units: Units) -> Units:
        return self._by_itself(units.axes, [tuple(part.shape) for part in units.parts]).nearest(units)

    def declaration(self, units: Units) -> Declaration:
        return self._by_itself(units.axes, [tuple(part.shape) for part in units.parts]).declaration(units)

    def edges(self, laid: Laid) -> list[Edge]:
        return self._by_itself(laid.axes, laid.shapes).edges(laid)

    def _finite(self, laid: Laid, count: int) -> Array:
        return self._by_itself(laid.axes, laid.shapes)._finite(laid, count)

    def _by_itself(self, axes: Sequence[Axes], shapes: Sequence[tuple[int, ...]]) -> Set:
        """Without a layer, the inputs lie along the last axis of a unit."""
        return self.resolved(shapes, [max(axes[0], default=None), *(None for _ in shapes[1:])])

    def rebuilt(self, members: Sequence[Set]) -> Set:
        return On(members[0], self.inputs)

    def __repr__(self) -> str:
        inputs = self.inputs if len(self.inputs) <= FEW else shown(np.array(self.inputs))
        return f"{_bracketed(self.set)}.on(inputs={inputs})"


def _check_inner(name: str, argument: str, given: Any) -> None:
    if not isinstance(given, Set) or contains(given, (Joint, Custom, MatrixSet)):
        raise SetError(
            explain(
                f"`{name}` is given a set of a whole matrix, a callable, or no set",
                f"{given!r}.{name}(...)",
                instead=f"MaxNorm(1.0).{name}({argument}), or ZeroDiagonal() and the like by `&`",
            )
        )


def _along(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if i == axis % len(shape) else 1 for i, n in enumerate(shape))


def _bracketed(inner: Set) -> str:
    return f"({inner!r})" if isinstance(inner, Intersection) else repr(inner)


def _marks(mask: Any) -> str:
    if isinstance(mask, tuple):
        return "..."
    return code_of(mask)
