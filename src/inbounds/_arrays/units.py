"""Units: a view of one or several weights, in which projections are written.

A unit is what a set applies to: the incoming weights of one neuron, one filter, or a kernel column
with its bias. Its entries may lie along any axes of several arrays. Almost every set needs only
reductions over a unit, maps entry by entry, and one number per unit broadcast to its entries.
Written in these, one definition serves rows, kernels of every layout and joint units, and no weight
is transposed or copied.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from inbounds._arrays.judgement import Judgement
from inbounds._arrays.ops import (
    MANTISSA_BITS,
    Array,
    blocked_sum,
    booleans,
    cast,
    constant,
    dtype_of,
    epsilon,
    from_numpy,
    into,
    is_eager_torch,
    namespace,
    select,
    shared_with_numpy,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.views import Axes, View
from inbounds._errors import SetError

Placed = Any  # a number, an array, or a tuple with one array per part: see `Units.place`


LEAST = 1e-3
"""The floor of the metric in training, as a share of the largest cost in the unit. An entry with a
smaller cost has hardly had a gradient and would take all of the unit's correction.
docs/optimizers.md compares floors."""


@dataclass(frozen=True, eq=False)
class Units:
    """Units that lie in several arrays, each along its own axes.

    One number per unit is an array of shape `shape`, the first part's shape without its axes, and
    with an axis of length `beside` in front where that isn't 1. A length that TensorFlow doesn't
    know while tracing is -1 there and in `count`, as `reshape` takes it. There is at most one such
    length.
    """

    parts: tuple[Array, ...]  # the arrays, in the dtype they are computed in
    axes: tuple[Axes, ...]  # of each part those that one unit spans; the others count units, in the same order
    movable: tuple[bool, ...]  # for each part, whether a projection may change it; frozen ones still belong to the unit
    dtype: str  # of the weights that the parts come from, in which an ulp is measured
    # Whether Python can read the values and take a shorter path: in an eager step that is not
    # traced, vectorized or differentiated.
    concrete: bool = False
    # Whether a derivative may be asked for, so that an iteration must be given one.
    differentiable: bool = False
    # For each part, which entries belong to the unit, as an array that broadcasts against the part;
    # None for all. Other entries are neither read nor changed.
    masks: tuple[Array | None, ...] = ()
    # For each part, the positive weight of each entry in the norm in which nearest is meant,
    # `sum metric * (y - x)^2`; None for the Euclidean norm.
    metric: tuple[Array, ...] | None = None
    # The parts before a centre was subtracted, which set the size of their rounding.
    moved_from: tuple[Array, ...] | None = None
    # Whether these are weights after a training step. In a metric, the nearest point of a ball is
    # then found only to the root of rounding, inside the set: the next step corrects the rest.
    training: bool = False
    # How many times the same shapes lie side by side, as if they were stacked, the parts of one
    # after those of the other.
    beside: int = 1
    # Whether `scaled` may change the parts where they lie, as PyTorch can: new memory costs as much
    # as a pass. Only for sets that read no part after it, see `Set.scales`.
    in_place: bool = False

    @classmethod
    def of(
        cls,
        parts: Sequence[Array],
        axes: Sequence[Sequence[int]],
        movable: Sequence[bool] | None = None,
        *,
        concrete: bool = False,
        differentiable: bool = False,
        metric: Sequence[Array] | None = None,
        training: bool = False,
        beside: int = 1,
    ) -> Units:
        """Units over arrays of any float dtype, cast to the dtype they are computed in."""
        arrays = tuple(cast(part, working_dtype(dtype_of(part))) for part in parts)
        spans = tuple(
            tuple(sorted(axis % len(part.shape) for axis in span)) for part, span in zip(arrays, axes, strict=True)
        )
        coarsest = min((dtype_of(part) for part in parts), key=MANTISSA_BITS.__getitem__)
        return cls(
            arrays,
            spans,
            tuple(movable) if movable is not None else (True,) * len(arrays),
            coarsest,
            concrete=concrete,
            differentiable=differentiable and namespace(arrays[0]) is not np,
            masks=(None,) * len(arrays),
            metric=None if metric is None else tuple(map(cast, metric, map(dtype_of, arrays))),
            training=training,
            beside=beside,
        )

    def _but(self, **changes: Any) -> Units:
        """`dataclasses.replace` in a tenth of the time, for eager projections."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), **changes)
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one number per unit."""
        lengths = (n for axis, n in enumerate(self.parts[0].shape) if axis not in self.axes[0])
        stacked = (self.beside,) if self.beside > 1 else ()
        return stacked + tuple(-1 if n is None else n for n in lengths)

    @property
    def views(self) -> tuple[View, ...]:
        """The parts, each with the axes that one unit spans."""
        return tuple(View(tuple(part.shape), span) for part, span in zip(self.parts, self.axes, strict=True))

    @property
    def count(self) -> int:
        """The number of units."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """The number of entries of a unit, including masked ones."""
        per = len(self.parts) // self.beside
        pairs = zip(self.parts[:per], self.axes[:per], strict=True)
        return sum(math.prod(part.shape[axis] for axis in span) for part, span in pairs)

    @property
    def length(self) -> Array | int:
        """The number of entries that belong to a unit: one number, or with a mask one per unit."""
        if not self.masked:
            return self.size
        return self.sum(lambda x: namespace(x).ones_like(x))

    @property
    def masked(self) -> bool:
        """Whether some entries don't belong to their units."""
        return any(mask is not None for mask in self.masks)

    def sum(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Array:
        """The sum over each unit of `fn(entries, *per_unit)`.

        `per_unit` holds arrays with one number per unit, or units over the same parts.
        """
        return self._reduced(namespace(self.parts[0]).sum, 0.0, fn, per_unit, lambda a, b: a + b)

    def total(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Array:
        """`sum` with the error of `Judgement`, to compare with bounds and to scale units."""
        return self._reduced(blocked_sum, 0.0, fn, per_unit, lambda a, b: a + b)

    def dot(self, other: Units) -> Array:
        """The `total` of the products of the entries with those of other units."""
        return self.total(operator.mul, other)

    def judged(self, *, root: bool = False) -> Judgement:
        """How a `total`, or its root, is compared with a bound."""
        return Judgement(self.size, self.dtype, root)

    def read(self, numbers: Array | float) -> Array | float:
        """One number per unit, in NumPy where Python can read it without a copy; else as it is.

        An operation on a few hundred numbers takes NumPy one microsecond, PyTorch five.
        """
        if not self.concrete or self.metric is not None or not all(self.movable):
            return numbers
        return shared_with_numpy(numbers)

    def max(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Array:
        """The maximum over each unit of `fn(entries, *per_unit)`."""
        xp = namespace(self.parts[0])
        return self._reduced(xp.max, -math.inf, fn, per_unit, xp.maximum)

    def largest(self) -> Array:
        """The size of the largest entry of each unit, in no memory of the entries' size.

        XLA writes out what two sums share: this and a sum of sizes, if both took `abs`.
        """
        xp = namespace(self.parts[0])
        if xp is np or is_eager_torch(self.parts[0]):
            least = self._reduced(xp.min, math.inf, lambda x: x, (), xp.minimum)
            return xp.maximum(self.max(lambda x: x), -least)
        return self.max(lambda x: xp.maximum(x, -x))

    def map(self, fn: Callable[..., Array], *per_unit: Array | Units) -> Units:
        """The units with the entries `fn(entries, *per_unit)`, except frozen and masked ones."""
        parts = []
        for i, (part, mask) in enumerate(zip(self.parts, self.masks, strict=True)):
            if not self.movable[i]:
                parts.append(part)
                continue
            new = fn(part, *(self._spread(number, i) for number in per_unit))
            parts.append(new if mask is None else namespace(part).where(mask, new, part))
        return self._but(parts=tuple(parts))

    def scaled(self, moved: Array, *factors: Array) -> Units:
        """The units multiplied by per-unit factors.

        A unit that isn't `moved` has factors of 1 and stays as it is.
        """
        if is_eager_torch(self.parts[0]):  # multiplying by 1 is exact and faster than a mask
            return self.map(lambda x, *by: reduce(operator.imul if self.in_place else operator.mul, by, x), *factors)
        return self.map(
            lambda x, moved, *by: namespace(x).where(moved, reduce(lambda a, b: a * b, by, x), x), moved, *factors
        )

    def changeable(self) -> Units:
        """The units with parts that `scaled` may change where they lie."""
        return self._but(in_place=True)

    def as_computed(self) -> Units:
        """The units as if the weights had the dtype that they are computed in."""
        return self._but(dtype=dtype_of(self.parts[0]))

    def with_parts(self, parts: Sequence[Array]) -> Units:
        """The units with other entries."""
        return self._but(parts=tuple(parts))

    def about(self, centers: Units) -> Units:
        """The units relative to a centre."""
        parts = (part - center for part, center in zip(self.parts, centers.parts, strict=True))
        return self._but(parts=tuple(parts), moved_from=self.parts)

    def rounding(self, norm: Callable[[Units], Array]) -> Array | float:
        """How far two grains of each entry, before a centre is subtracted, may change a norm."""
        if self.moved_from is None:
            return 0.0
        uncentred = self._but(parts=self.moved_from, moved_from=None)
        return 2 * epsilon(self.dtype) * norm(uncentred.constants())

    def with_movable(self, moved: Units) -> Units:
        """The units with their movable parts from `moved`, which `only(movable=True)` made."""
        new = iter(moved.parts)
        parts = (next(new) if movable else part for part, movable in zip(self.parts, self.movable, strict=True))
        return self._but(parts=tuple(parts))

    def only(self, movable: bool) -> Units | None:
        """The units of the movable or of the frozen parts only; None where there are none."""
        keep = [i for i in range(len(self.parts)) if self.movable[i] is movable]
        if not keep:
            return None
        if len(keep) == len(self.parts):
            return self
        return self._but(
            parts=tuple(self.parts[i] for i in keep),
            axes=tuple(self.axes[i] for i in keep),
            movable=(movable,) * len(keep),
            masks=tuple(self.masks[i] for i in keep),
            metric=self.metric and tuple(self.metric[i] for i in keep),
            moved_from=self.moved_from and tuple(self.moved_from[i] for i in keep),
        )

    @property
    def costs(self) -> Units | None:
        """The metric as units; None for the Euclidean one."""
        return None if self.metric is None else self.with_parts(self.metric)

    def costing(self, costs: Units | None) -> Units:
        """The units in the metric that other units hold; None for the Euclidean one."""
        return self._but(metric=None if costs is None else costs.parts)

    def comparable(self, together: bool) -> Units:
        """The units with their metric divided by its largest entry, over all units or in each.

        That changes no nearest point. Entries are raised to a floor, in training `LEAST`. Where the
        largest entry is 0 or not finite, the metric is Euclidean.
        """
        if (costs := self.costs) is None:
            return self
        if (movable := costs.only(movable=True)) is None:
            return self.costing(None)
        xp = namespace(self.parts[0])
        view = movable.together(together)
        most = view.max(lambda d: d)
        usable = xp.isfinite(most) & (most > 0)
        least = LEAST if self.training else 1e-30
        inverse = 1 / xp.where(usable, most, xp.ones_like(most))
        share = view.map(lambda d, inverse: into(product := d * inverse, "clip", product, least, math.inf), inverse)
        if not (self.concrete and bool(xp.all(usable))):
            share = share.map(lambda d, good: xp.where(good, d, xp.ones_like(d)), usable)
        return self.costing(costs.with_movable(share))

    def constants(self) -> Units:
        """The units as constants for differentiation."""
        return self.with_parts([without_gradient(part) for part in self.parts])

    def split(self, state: tuple[Array, ...]) -> list[Units]:
        """The units whose arrays `joined` put into one tuple."""
        count = len(self.parts)
        return [self.with_parts(state[i : i + count]) for i in range(0, len(state), count)]

    def together(self, wanted: bool = True) -> Units:
        """All units as one unit, if wanted."""
        if not wanted:
            return self
        return self._but(axes=tuple(tuple(range(len(part.shape))) for part in self.parts))

    def apart(self, like: Units) -> Units:
        """The units with the axes of `like`, from which `together` made one unit."""
        return self._but(axes=like.axes)

    def seen(self, views: Sequence[View]) -> Units:
        """The same entries by other units: a view for each part."""

        def arrays(given: Any) -> Any:
            if given is None:
                return None
            return tuple(
                piece
                if piece is None or tuple(part.shape) == view.shape
                else namespace(piece).reshape(namespace(piece).broadcast_to(piece, tuple(part.shape)), view.shape)
                for piece, part, view in zip(given, self.parts, views, strict=True)
            )

        given = {name: arrays(getattr(self, name)) for name in ("parts", "masks", "metric", "moved_from")}
        return self._but(axes=tuple(view.axes for view in views), **given)

    def unseen(self, like: Units) -> Units:
        """The units of `like`, with the entries of these, a view of them by `seen` or `where`."""
        pairs = zip(self.parts, like.parts, strict=True)
        return like.with_parts(
            [x if x.shape == old.shape else namespace(x).reshape(x, tuple(old.shape)) for x, old in pairs]
        )

    def where(self, mask: Placed) -> Units:
        """The units with a mask, see `place`: other entries are neither read nor changed."""
        masks = []
        for part, old, new in zip(self.parts, self.masks, self.place(mask), strict=True):
            marked = booleans(part, new)
            masks.append(marked if old is None else marked & old)
        return self._but(masks=tuple(masks))

    def chosen(self, moved: Array, other: Units) -> Units:
        """The units of `other` where `moved`, else these, bit for bit."""
        if self.concrete and not self.masked and bool(namespace(moved).all(moved)):
            return other
        return self.map(lambda x, y, moved: select(moved, y, x), other, moved)

    def alike(self, conditions: Array, groups: int) -> Array:
        """For each unit, whether its condition holds for all units of its group.

        Groups lie one after the other.
        """
        xp = namespace(self.parts[0])
        every = xp.all(xp.reshape(conditions, (groups, -1)), axis=1, keepdims=True)
        return xp.reshape(xp.broadcast_to(every, (groups, self.count // groups)), self.shape)

    def same(self, other: Units) -> Array:
        """For each unit, whether `other` rounded to the weight's dtype is equal, NaN included."""

        def differs(x: Array, y: Array) -> Array:
            xp = namespace(x)
            y = cast(cast(y, self.dtype), dtype_of(x))
            return xp.where((x == y) | (x != x), xp.zeros_like(x), xp.ones_like(x))

        return self.sum(differs, other) == 0

    # Rows, for the sets that need an order of the entries or a matrix.

    def rows(self) -> Array:
        """The units as a copy of shape (count, size), one unit a row, in the order of `shape`."""
        return self._laid(self.parts)

    @property
    def _one(self) -> Units:
        """The first of those that lie side by side."""
        per = slice(len(self.parts) // self.beside)
        parts, axes, masks = self.parts[per], self.axes[per], self.masks[per]
        return self._but(parts=parts, axes=axes, movable=self.movable[per], masks=masks, beside=1)

    def metric_rows(self) -> Array | None:
        """The metric as rows; None for the Euclidean one."""
        return None if self.metric is None else self._laid(self.metric)

    @property
    def marks(self) -> Units:
        """1 for each entry that belongs to its unit, else 0."""
        marks = []
        for part, mask in zip(self.parts, self.masks, strict=True):
            xp = namespace(part)
            ones = xp.ones_like(part)
            marks.append(ones if mask is None else xp.where(mask, ones, xp.zeros_like(part)))
        return self._but(parts=tuple(marks), masks=(None,) * len(marks))

    def mask_rows(self) -> Array | None:
        """The masks as rows; None without masks."""
        return self._laid(self.marks.parts) > 0 if self.masked else None

    def table(self, values: Units | float) -> Array:
        """Values that broadcast against the parts as an array that broadcasts against `rows`."""
        like = self.parts[0]
        if not isinstance(values, Units):
            return constant(like, [[values]])
        xp = namespace(like)
        pieces = [
            piece if len(getattr(piece, "shape", ())) else xp.reshape(constant(like, piece), (1,) * len(part.shape))
            for piece, part in zip(values.parts, self.parts, strict=True)
        ]
        each = list(zip(pieces, self.parts, self.axes, strict=True))
        if any(n != 1 for piece, _, span in each for axis, n in enumerate(piece.shape) if axis not in span):
            return self._laid([piece + xp.zeros_like(part) for piece, part, _ in each])
        if self.beside > 1:
            return self._one.table(values._one)
        lengths = [[n if axis in span else 1 for axis, n in enumerate(part.shape)] for _, part, span in each]
        return self._laid(list(map(xp.broadcast_to, pieces, lengths)), 1)

    def with_rows(self, rows: Array) -> Units:
        """The units with the entries of rows, except frozen and masked ones."""
        return self.map(lambda _, new: new, self.with_parts(self._from_rows(rows)))

    def _from_rows(self, rows: Array) -> list[Array]:
        """The parts that rows make, in their library."""
        xp, parts, column = namespace(rows), [], 0
        for i, (part, span) in enumerate(zip(self.parts, self.axes, strict=True)):
            order = self._order(part, span)
            width = math.prod(part.shape[axis] for axis in span)
            piece = rows if width == self.size else rows[:, column : column + width]
            if self.beside > 1:
                count, first = self.count // self.beside, i * self.beside // len(self.parts)
                piece = piece[first * count : (first + 1) * count]
            piece = xp.reshape(piece, tuple(part.shape[axis] for axis in order))
            back = sorted(range(len(order)), key=order.__getitem__)
            parts.append(piece if back == order == sorted(order) else xp.transpose(piece, back))
            column = (column + width) % self.size
        return parts

    def _laid(self, parts: Sequence[Array], count: int | None = None) -> Array:
        """Arrays like the parts as rows, of which each part has so many."""
        xp, laid, per = namespace(parts[0]), [], len(parts) // self.beside
        count = self.count // self.beside if count is None else count
        for part, span in zip(parts, self.axes, strict=True):
            order = self._order(part, span)
            moved = part if order == sorted(order) else xp.transpose(part, order)
            laid.append(xp.reshape(moved, (count, math.prod(part.shape[axis] for axis in span))))
        wide = laid if per == 1 else [xp.concatenate(laid[i : i + per], axis=1) for i in range(0, len(laid), per)]
        return wide[0] if len(wide) == 1 else xp.concatenate(wide, axis=0)

    @staticmethod
    def _order(part: Array, span: Axes) -> list[int]:
        return [axis for axis in range(len(part.shape)) if axis not in span] + list(span)

    # Arrays that a set holds, as arrays that broadcast against the parts.

    def place(self, value: Placed) -> tuple[Array, ...]:
        """Values for the weights as one array per part that broadcasts against it.

        The value is a number; with one part an array that broadcasts to it; with several one value
        for each entry of a unit, or rows; or a tuple with one array per part.
        """
        if isinstance(value, tuple):
            return value * self.beside
        shape = np.shape(value)
        if not shape:
            return (value,) * len(self.parts)
        if self.beside > 1:
            return self._one.place(value) * self.beside
        if len(self.parts) == 1 and _broadcasts(shape, tuple(self.parts[0].shape)):
            return (value,)
        if len(self.parts) > 1 and shape == (self.size,):
            return self._split(np.asarray(value, dtype="float64"))
        if len(self.parts) > 1 and shape == (self.count, self.size):
            return tuple(self._from_rows(np.asarray(value, dtype="float64")))
        weights = " and ".join(str(tuple(part.shape)) for part in self.parts)
        raise SetError(
            "An array doesn't fit the weight: a shape that broadcasts to it, or for a Joint rows",
            f"shape={shape}",
            where=f"weights of shape {weights}: {self.count} units of {self.size} entries",
            instead=f"an array of shape {tuple(self.parts[0].shape)}"
            if len(self.parts) == 1
            else f"an array of shape ({self.count}, {self.size}) or ({self.size},)",
        )

    def numbers(self, value: float | np.ndarray[Any, Any]) -> Array | float:
        """One number for all units, or an array of shape `shape` with one for each.

        The array is given in shape (count,) or `shape`.
        """
        if not isinstance(value, np.ndarray) or not value.shape:
            return float(value)
        if self.count >= 0 and value.shape not in ((self.count,), self.shape):
            wrong = "An array doesn't fit the units: one number for each"
            where = f"{self.count} units of {self.size} entries"
            instead = f"give a number, or an array of shape ({self.count},)"
            raise SetError(wrong, f"shape={value.shape}", where=where, instead=instead)
        return constant(self.parts[0], np.reshape(value, self.shape))

    def entries(self, value: Array) -> Units:
        """Values for the entries of a unit as units, whose parts broadcast against these.

        The value is a number; an array with one value for each entry of a unit, part after part;
        with one part an array that broadcasts to the part's axes of a unit, or with as many axes as
        the part to that; with several rows.
        """
        shape = tuple(getattr(value, "shape", ()))
        if not shape:
            return self.with_parts([value] * len(self.parts))
        rank = len(self.parts[0].shape) if len(self.parts) == 1 else 2
        own = len(shape) == rank > len(self.axes[0])
        pieces = zip(self.parts, self.place(value) if own else self._split(value), strict=True)
        return self.with_parts([constant(part, piece) for part, piece in pieces])

    def _split(self, value: Array) -> tuple[Array, ...]:
        """`entries` of an array, in NumPy."""
        if self.beside > 1:
            return self._one._split(value) * self.beside
        shape, each = tuple(value.shape), list(zip(self.parts, self.axes, strict=True))
        shapes = [tuple(part.shape[axis] for axis in span) for part, span in each]
        # For each part, the shape of one unit, with length 1 for each axis that counts units.
        alone = [tuple(n if axis in span else 1 for axis, n in enumerate(part.shape)) for part, span in each]
        if shape == (self.size,):
            pieces = np.split(value, np.cumsum(list(map(math.prod, shapes)))[:-1])
        elif len(shapes) == 1 and _broadcasts(shape, shapes[0]):
            pieces = [np.broadcast_to(value, shapes[0])]
        else:
            wrong = "An array doesn't fit the units: one entry for each of a unit's, or a shape that broadcasts to it"
            where = f"units of {self.size} entries, of shape {' and '.join(map(str, shapes))}"
            instead = f"give a number, or an array of shape ({self.size},)"
            raise SetError(wrong, f"shape={shape}", where=where, instead=instead)
        return tuple(np.reshape(piece, one) for piece, one in zip(pieces, alone, strict=True))

    def _reduced(
        self,
        over: Callable[..., Array],
        nothing: float,
        fn: Callable[..., Array],
        per_unit: tuple[Array | Units, ...],
        join: Callable[[Array, Array], Array],
    ) -> Array:
        totals, shape = [], self.shape[self.beside > 1 :]
        for i, part in enumerate(self.parts):
            xp = namespace(part)
            terms = fn(part, *(self._spread(number, i) for number in per_unit))
            if self.masks[i] is not None:
                terms = xp.where(self.masks[i], terms, nothing)
            total = over(terms, self.axes[i]) if self.axes[i] else terms
            totals.append(total if tuple(total.shape) == shape else xp.reshape(total, shape))
        if self.beside == 1:
            return reduce(join, totals)
        per = len(totals) // self.beside
        return xp.stack([reduce(join, totals[start : start + per]) for start in range(0, len(totals), per)])

    def _spread(self, number: Array | Units, i: int) -> Array:
        """One number per unit as an array that broadcasts against part `i`."""
        if isinstance(number, Units):
            return number.parts[i]
        number = from_numpy(self.parts[i], number)  # from `read`
        if not tuple(getattr(number, "shape", ())):
            return number
        number = number if self.beside == 1 else number[i // (len(self.parts) // self.beside)]
        part = self.parts[i]
        lengths = (-1 if n is None else n for n in part.shape)
        shape = tuple(1 if axis in self.axes[i] else n for axis, n in enumerate(lengths))
        return namespace(part).reshape(number, shape)


def joined(units: Sequence[Units]) -> tuple[Array, ...]:
    """The arrays of several units over the same weights, as the state of a loop."""
    return tuple(part for view in units for part in view.parts)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
