"""Units: the view of one or several weights that a projection is written in.

A unit is what a set applies to: the incoming weights of one neuron, one filter, or a kernel column together with its
bias. Its entries may lie along any axes, in several arrays. Almost every set needs three things of it only: reductions
over a unit, maps entry by entry, and one number per unit broadcast back to its entries. Written in these, one
definition serves rows, kernels of every layout and joint units, and no weight is transposed or copied to be projected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from inbounds._arrays import MANTISSA_BITS, Array, cast, constant, dtype_of, is_eager_torch, namespace, working_dtype
from inbounds._errors import SetError, explain

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Units:
    """Units that lie in `parts`, each along its own axes.

    Attributes:
        parts: the arrays, in the dtype they are computed in.
        axes: for each part, the axes that one unit spans; the others count the units, in the same order in every part.
        free: for each part, whether a projection may change it. What is not free still belongs to the unit.
        dtype: the dtype of the weights that the parts come from: what an ulp is measured in.
        concrete: whether Python may look at the values and take a shorter way: in an eager step, which nothing traces,
            vectorizes or differentiates.

    One number per unit is an array of shape `shape`: what is left of the first part without its axes.
    """

    parts: tuple[Array, ...]
    axes: tuple[Axes, ...]
    free: tuple[bool, ...]
    dtype: str
    concrete: bool = False

    @classmethod
    def of(
        cls,
        parts: Sequence[Array],
        axes: Sequence[Sequence[int]],
        free: Sequence[bool] | None = None,
        *,
        concrete: bool = False,
    ) -> Units:
        """Units over arrays of any float dtype, cast to the dtype they are computed in."""
        arrays = tuple(cast(part, working_dtype(dtype_of(part))) for part in parts)
        spans = tuple(
            tuple(sorted(axis % len(part.shape) for axis in span)) for part, span in zip(arrays, axes, strict=True)
        )
        coarsest = min((dtype_of(part) for part in parts), key=MANTISSA_BITS.__getitem__)
        return cls(arrays, spans, tuple(free) if free is not None else (True,) * len(arrays), coarsest, concrete)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one number per unit."""
        return tuple(n for axis, n in enumerate(self.parts[0].shape) if axis not in self.axes[0])

    @property
    def count(self) -> int:
        """How many units there are."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """How many entries a unit has."""
        return sum(
            math.prod(part.shape[axis] for axis in span) for part, span in zip(self.parts, self.axes, strict=True)
        )

    def sum(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Array:
        """The sum over each unit of `fn(entries, *per_unit)`.

        An argument is one number per unit, or other units of the same parts, given entry by entry.
        """
        return self._reduced("sum", fn, per_unit, lambda a, b: a + b)

    def max(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Array:
        """The maximum over each unit of `fn(entries, *per_unit)`."""
        return self._reduced("max", fn, per_unit, namespace(self.parts[0]).maximum)

    def map(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Units:
        """The units with `fn(entries, *per_unit)` for their entries; what is not free stays."""
        parts = tuple(
            fn(part, *(self._spread(number, i) for number in per_unit)) if self.free[i] else part
            for i, part in enumerate(self.parts)
        )
        return replace(self, parts=parts)

    def scaled(self, moved: Array, *factors: Array) -> Units:
        """The units where `moved`, times one factor per unit after the other; the others bit for bit.

        Each factor is 1 where a unit isn't moved.
        """
        if is_eager_torch(self.parts[0]):  # times 1 is exact, and a selection is slow
            return self.map(lambda x, *by: reduce(lambda a, b: a * b, by, x), *factors)
        return self.map(
            lambda x, moved, *by: namespace(x).where(moved, reduce(lambda a, b: a * b, by, x), x), moved, *factors
        )

    def with_parts(self, parts: Sequence[Array]) -> Units:
        """The units with other entries."""
        return replace(self, parts=tuple(parts))

    def with_free(self, moved: Units) -> Units:
        """The units with the parts of `moved`, which was `only(free=True)`, for those that are free."""
        new = iter(moved.parts)
        return self.with_parts([next(new) if free else part for part, free in zip(self.parts, self.free, strict=True)])

    def only(self, free: bool) -> Units | None:
        """The units of the parts that are free, or of those that aren't; None when there are none."""
        keep = [i for i in range(len(self.parts)) if self.free[i] is free]
        if not keep:
            return None
        parts, axes = ([field[i] for i in keep] for field in (self.parts, self.axes))
        return Units(tuple(parts), tuple(axes), (free,) * len(keep), self.dtype, self.concrete)

    def entries(self, value: Array) -> tuple[Array, ...]:
        """A number, or an array that broadcasts over a unit, as one array per part that broadcasts against it.

        An array has one axis with an entry for each of a unit's entries (the parts' one after the other), or, where
        there is one part, a shape that broadcasts to the part's own axes of a unit.

        Raises:
            SetError: the array fits none of these.
        """
        shape = tuple(getattr(value, "shape", ()))
        if not shape:
            return (value,) * len(self.parts)
        spans = [tuple(part.shape[axis] for axis in span) for part, span in zip(self.parts, self.axes, strict=True)]
        if shape == (self.size,):
            pieces, start = [], 0
            for span in spans:
                pieces.append(value[start : start + math.prod(span)].reshape(span))
                start += math.prod(span)
        elif len(spans) == 1 and _broadcasts(shape, spans[0]):
            pieces = [value.reshape((1,) * (len(spans[0]) - len(shape)) + shape)]
        else:
            raise SetError(
                explain(
                    "An array in a set has one entry for each entry of a unit, or a shape that broadcasts to it",
                    f"shape={shape}",
                    where=f"units of {self.size} entries, of shape {' and '.join(map(str, spans))}",
                    instead=f"give a number, or an array of shape ({self.size},)",
                )
            )
        return tuple(
            constant(part, self._along(piece, i))
            for i, (part, piece) in enumerate(zip(self.parts, pieces, strict=True))
        )

    def _along(self, piece: Array, i: int) -> Array:
        """An array over a unit's axes of part `i`, with an axis of 1 for each axis that counts units."""
        sizes = iter(piece.shape)
        span = sorted(self.axes[i])
        return piece.reshape(tuple(next(sizes) if axis in span else 1 for axis in range(len(self.parts[i].shape))))

    def _reduced(
        self,
        name: str,
        fn: Callable[..., Array],
        per_unit: tuple[Array | Units, ...],
        join: Callable[[Array, Array], Array],
    ) -> Array:
        totals = []
        for i, part in enumerate(self.parts):
            xp = namespace(part)
            terms = fn(part, *(self._spread(number, i) for number in per_unit))
            total = getattr(xp, name)(terms, axis=self.axes[i]) if self.axes[i] else terms
            totals.append(total if tuple(total.shape) == self.shape else xp.reshape(total, self.shape))
        return reduce(join, totals)

    def _spread(self, number: Array | Units, i: int) -> Array:
        """One number per unit as an array that broadcasts against part `i`."""
        if isinstance(number, Units):
            return number.parts[i]
        if not getattr(number, "shape", ()):
            return number
        part = self.parts[i]
        shape = tuple(1 if axis in self.axes[i] else n for axis, n in enumerate(part.shape))
        return namespace(part).reshape(number, shape)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
