"""Set: the one abstraction, and all that follows from it.

A family of sets says three things: how units are projected (`_project`), how far rows are outside
(`_excess`), and how exact floating point lets it be (`_tolerance`). Everything else is here:
dtypes, shapes, axes, and the two doors, `project` and `violation` on rows and `__call__` on a
weight as Keras calls it.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np

from inbounds._arrays.judgement import Bound
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    MANTISSA_BITS,
    SMALLEST_NORMAL,
    Array,
    booleans,
    cast,
    constant,
    dtype_of,
    in_numpy,
    is_concrete,
    namespace,
    quiet,
    ulps,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes, Block, View, WeightLayout, blocks_of
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import array_of
from inbounds._sets.declaration import Declaration, Values
from inbounds._sets.reduced import by_multipliers, difference
from inbounds._sets.splitting import in_steps
from inbounds._sets.value import Value
from inbounds._types import (
    Constraint,
    Every,
    Gradient,
    Inputs,
    Integer,
    Kind,
    Latent,
    Mask,
    MaskName,
    Metric,
    Numbers,
    Rows,
    Step,
)

SetClass = TypeVar("SetClass", bound="type[Set]")

ULPS = 4  # what rounding may cost where no sum is compared with a bound, in units in the last place
CLASSES: dict[str, Callable[..., Set]] = {}  # by name; operators make sets of classes that import this module
Exceeded = tuple[Array, Any]  # how far each unit exceeds a bound, above 0 outside, and what of that counts as rounding
Exact = np.ndarray[Any, Any]  # an array of NumPy


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an audit finds of some units, one number for each."""

    excess: Exact  # above 0 outside, 0 on the boundary, below 0 inside; infinity where an entry is not finite
    slack: Exact  # how much of it counts as rounding; of both the largest over the set's bounds
    outside: Exact  # whether some bound is exceeded by more than its rounding
    active: Exact  # whether some bound is met, to its rounding


class Set(Value):
    """The values that a unit may take. It knows numbers, never layers.

    Sets are values: they can't be changed, compare by their arguments, and print as the code that
    makes them.
    """

    axis: Axes | None = None  # the axes that a unit spans where the user says so; None: the layer's, see `span`
    center: Any = None  # a number or an array that the set is moved by; None: nothing; "current" until constrained
    changes: bool = False  # whether the set is another one as training goes on, see `at`
    whole: ClassVar[bool] = False  # whether it is a set of all units of a weight together
    matrix: ClassVar[bool] = False  # whether it is a set of the matrix that the units make
    convex: ClassVar[bool] = True
    entrywise: bool = False  # whether it looks at each entry by itself, so that units matter for reports only
    separable: ClassVar[bool] = False  # whether each entry is projected by itself, in every metric alike
    scales: bool = False  # whether `_project` reads no entry after `Units.scaled`, which may then work in place
    of_each_unit: ClassVar[tuple[str, ...]] = ()  # the arguments that may be arrays with one number for each unit
    needs_latent: ClassVar[bool] = False  # whether training stalls without latent weights, see `Training`
    undone_steps: ClassVar[str] = ""  # which steps the projection undoes, so that a weight may never move, in words

    namespace = staticmethod(namespace)
    """Returns the module with the operations for an array: NumPy, or those of the backend."""

    # What a family says of itself.

    @abstractmethod
    def _project(self, units: Units) -> Units:
        """The nearest units in the set.

        A unit inside comes back as it is; NaN and infinities stay, see `project`.
        """

    @abstractmethod
    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        """For each finite row, how far it is outside: 0 on the boundary, below 0 inside.

        A row is a unit of shape `unit_shape`.
        """

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        """How far from the set rounding may leave a unit of that size.

        Here entries are moved exactly, but XLA takes numbers below the smallest normal one for 0.
        """
        return SMALLEST_NORMAL[working_dtype(dtype)]

    def _magnitude(self, rows: Exact) -> Any:
        """For each row the size at which rounding is measured; 0 where the bound limits it."""
        return 0.0

    def _hidden(self, rows: Array, mask: Exact, laid: Laid) -> Array:
        """Rows in which the entries outside of a mask don't count for `_excess`."""
        xp = namespace(rows)
        return xp.where(booleans(rows, mask), rows, xp.zeros_like(rows))

    @property
    def has_reduced_gradient(self) -> bool:
        """Whether there is a reduced gradient: the set is convex, or smooth as a sphere is."""
        return self.convex

    @property
    def has_normal_form(self) -> bool:
        """Whether bounds, linear constraints, balls and 1-norms make it, see `declaration`."""
        return type(self).declaration is not Set.declaration

    def declaration(self, units: Units) -> Declaration:
        """What it asks of units, for intersections; only of sets that say `has_normal_form`."""
        raise NotImplementedError(f"{type(self).__name__} has no normal form")

    @property
    def exact_in_metric(self) -> bool:
        """Whether `_project` heeds the metric of the units."""
        return self.separable or self.has_normal_form

    @property
    def allows_frozen(self) -> bool:
        """Whether movable entries of a unit can make up for those that are frozen."""
        return self.separable or self.has_normal_form

    @property
    def couples_units(self) -> bool:
        """Whether where one unit goes depends on the others."""
        return self.whole

    # What is made of it.

    def __and__(self, other: Constraint) -> Set:
        """The intersection; its projection is its nearest point, not one projection after another.

        Args:
            other: a set, or a constraint of Keras' own, which becomes the set that it means, with
                its axis as given.
        """
        return _intersection(self, other, where=f"{self!r} & ...")

    def __rand__(self, other: Constraint) -> Set:
        """The intersection, with a constraint of Keras' own on the left."""
        return _intersection(other, self, where=f"... & {self!r}")

    def __bool__(self) -> bool:
        """Always an error: `a and b` would be one of the two, and the other would be lost."""
        wrong = "A set is neither true nor false, so that `and`, `or`, `not` and `if` can't drop one"
        where = "your code, or `enable_lora` of Keras, which takes no layer that has a constraint"
        instead = "a & b for both sets, `constraint is not None` to ask for one, `release(model)` before `enable_lora`"
        raise SetError(wrong, f"bool({self!r})", where=where, instead=instead)

    def where(self, mask: Mask | MaskName, width: Integer | None = None) -> Set:
        """The set for only those entries that a mask marks; others are neither seen nor changed.

        Args:
            mask: booleans that broadcast to the weight; within a `Joint`, one for each entry of a
                unit. Or "causal", where input i and unit j have i <= j, or "banded", abs(i - j) <=
                width; "not causal" and "not banded" mark the others.
            width: of a band.
        """
        return self._made("Where", mask, width)

    def on(self, inputs: Inputs) -> Set:
        """The set for those weights only that come from some inputs of the layer.

        Args:
            inputs: indices of input features (Dense), channels (convolutions) or tokens
                (Embedding).
        """
        return self._made("On", inputs)

    def per(self, kind: Kind) -> Set:
        """The set for units of another kind than the layer's output units.

        Args:
            kind: "units", "inputs", "weight", "heads", "gates" or "window", of which the layout of
                the layer knows the axes.
        """
        return self._made("Per", kind)

    def _made(self, to: str, *arguments: Any) -> Set:
        """The set that a class makes of this one, by the name of the class."""
        return CLASSES[to](self, *arguments)

    def scaled(self, schedule: Callable[[Any], Any]) -> Set:
        """The set times a factor that follows the steps of training, to tighten or loosen a bound.

        Args:
            schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a callable from a step
                to a factor.
        """
        return self._made("Scaled", schedule)

    def in_training(
        self,
        metric: Metric | None = None,
        every: Every | None = None,
        gradient: Gradient | None = None,
        latent: Latent | None = None,
    ) -> Set:
        """The same set with these arguments of `constrain`; None: as it is.

        What is made of the set is trained so too.

        Raises:
            SetError: an argument is none of what `constrain` takes; of `a & b`: `a` and `b` have
                different ones.
        """
        given = {"metric": metric, "every": every, "gradient": gradient, "latent": latent}
        return self._trained("in_training", {name: value for name, value in given.items() if value is not None})

    def at(self, step: Step) -> Set:
        """The set after so many steps of training, a number or a tensor; most sets never change."""
        return self

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        """The set on weights of such layouts, to whose axes `on`, `per` and group names refer."""
        return self

    # The engine, for sets and what puts them to work.

    def nearest(self, units: Units) -> Units:
        """The nearest units in the set, about its centre.

        They are nearest in their metric where the set is convex or heeds it.
        """
        if units.metric is not None and not self.exact_in_metric:
            if self.convex:
                return in_steps(self.nearest, units, couples=self.couples_units)
            return self.nearest(units.costing(None)).costing(units.costs)
        centers = self.center_values(units)
        if not isinstance(centers, Units):
            return self._project(units)
        shifted = units.about(centers)

        def back(x: Array, new: Array, old: Array, c: Array) -> Array:
            return namespace(x).where((new == old) | (new != new), x, c + new)

        return units.map(back, self._project(shifted), shifted, centers)

    def reduced(self, units: Units, gradient: Units) -> Units:
        """What the set leaves of a gradient for an optimizer to see, see the module `reduced`."""
        if self.has_normal_form:
            inside = self.nearest(units)
            return by_multipliers(self.declaration(inside), inside, gradient, whole=self.couples_units)
        return difference(self.nearest, units, gradient, together=self.couples_units)

    def multiplier(self, units: Units, taken: Units) -> Exact:
        """For each thing that a report counts, how fast the loss falls as its bound is loosened.

        Here, all bounds on single entries are loosened at once; any other set is widened on all
        sides. `taken` is the normal of the set, at `units`, in the direction of descent.
        """
        if self.separable:
            return self._by_count(taken.sum(np.abs))
        return np.asarray(np.sqrt(self._by_count(taken.total(np.square))))

    def _by_scale(self, units: Units, taken: Units, size: Bound) -> Exact:
        """`multiplier` of the size of a set that is this size times another, about its centre."""
        return self._by_count(taken.total(lambda n, x: n * x, self.centred(units))) / size

    def _by_count(self, numbers: Exact) -> Exact:
        """One number for each unit, added up to one for each thing that a report counts."""
        return np.asarray(np.sum(np.reshape(numbers, (self.reported_units(numbers.size), -1)), axis=1))

    def edges(self, laid: Laid) -> list[Exceeded]:
        """For each bound, how far units exceed it, and its slack.

        Units with entries that aren't finite exceed it by infinity.
        """
        rows = laid.rows
        xp = namespace(rows)
        rows = xp.where(xp.isfinite(rows), rows, xp.zeros_like(rows))
        if self.center is not None:
            self._check_center()
            rows = rows - constant(rows, laid.place(self.center))
        mask = laid.mask
        exceeded = self._edges(rows if mask is None else self._hidden(rows, mask, laid), laid)
        if mask is not None:
            some = constant(rows, mask.any(axis=1)) > 0  # a unit without an entry of its own is inside
            exceeded = [(xp.where(some, excess, xp.full_like(excess, -np.inf)), slack) for excess, slack in exceeded]
        known = [xp.all(xp.reshape(laid.finite, (excess.shape[0], -1)), axis=1) for excess, _ in exceeded]
        pairs = zip(exceeded, known, strict=True)
        return [(xp.where(finite, excess, xp.full_like(excess, np.inf)), slack) for (excess, slack), finite in pairs]

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        """`edges`, for rows that are finite, about the centre, and of the marked entries only."""
        return [(self._excess(rows, laid.unit_shape), self._slack(laid))]

    def _slack(self, laid: Laid) -> Any:
        """What counts as inside: `_tolerance`, plus 4 ulp of numbers that a bound doesn't limit."""
        size = laid.rows.shape[1] * (laid.rows.shape[0] if self.whole else 1)
        tolerance = self._tolerance(laid.dtype, size)
        if not isinstance(laid.rows, np.ndarray):  # who asks for violations only, of tensors, asks for no tolerance
            return tolerance
        return ULPS * ulps(self._magnitude(laid.known), laid.dtype) + tolerance

    def measure(self, weights: Sequence[Any], axes: Sequence[Axes]) -> Measured:
        """How far each unit that some weights make together is outside, in float64.

        `axes` has those that a unit spans, for each weight.
        """
        if len(blocks := self.blocks(weights, axes)) == 1:
            return self._measured(Laid.of_weights(weights, axes))
        arrays = list(map(in_numpy, weights))
        found = [self.measure([one[at] for one, at in zip(arrays, block, strict=True)], axes) for block in blocks]
        return Measured(**{name: np.concatenate([vars(one)[name] for one in found]) for name in vars(found[0])})

    def _measured(self, laid: Laid) -> Measured:
        excess, slack = map(np.stack, zip(*self._counted_edges(laid), strict=True))
        outside: Any = (excess > slack).any(axis=0)
        active: Any = (np.abs(excess) <= slack).any(axis=0) & (excess < np.inf).all(axis=0)
        return Measured(excess.max(axis=0), slack.max(axis=0), outside, active)

    def _counted_edges(self, laid: Laid) -> list[Exceeded]:
        """`edges`, all for as many units or matrices."""
        with quiet(laid.rows):
            edges = self.edges(laid)
        count = max(excess.shape[0] for excess, _ in edges)
        return [counted(edge, count) for edge in edges]

    def reported_units(self, units: int) -> int:
        """Of how many things a report speaks, on weights of that many units."""
        return 1 if self.whole else units

    def center_values(self, units: Units) -> Values:
        """The centre, entry by entry; the number 0 without one."""
        if self.center is None:
            return 0.0
        self._check_center()
        pairs = zip(units.parts, units.place(self.center), strict=True)
        return units.with_parts([constant(part, values) for part, values in pairs])

    def centred(self, units: Units) -> Units:
        """The units relative to the centre; as they are without one."""
        centers = self.center_values(units)
        return units.about(centers) if isinstance(centers, Units) else units

    def _check_center(self) -> None:
        if isinstance(self.center, str):
            wrong = "The centre is not known yet: the weights become it when a model is constrained"
            instead = "inbounds.constrain(model, rules), or give the values as `center`"
            raise SetError(wrong, f"center={self.center!r}", where=repr(self), instead=instead)

    # The doors.

    def project(self, rows: Rows, metric: Rows | None = None) -> Array:
        """The nearest rows in the set.

        Args:
            rows: array or tensor of shape (units, size), one unit a row, of a float dtype. For a
                set of a whole matrix the rows are the matrix.
            metric: finite, above 0, shaped like `rows`: nearest is in the norm `sum metric * (y -
                x)^2`. None: Euclidean. Sets of vectors and their intersections are exact in it,
                with one unknown per unit; convex sets of matrices take accelerated steps, to
                rounding or 2,000 of them. A set that is not convex is projected on in the Euclidean
                norm, but for a norm's upper bound.

        Returns:
            Rows of the same shape, dtype and library. float16 and bfloat16 are computed in float32
            and rounded once. A row that is inside comes back bit for bit; so does one with NaN or
            infinities, which `violation` shows (of a set that looks at each entry by itself: those
            entries). The derivative of a row that comes back is the identity, also of an equation
            such as `SumTo`, but for `Equal`.

        Raises:
            SetError: the shape, the dtype or the metric is wrong.
        """
        rows = _checked_rows(self, rows)
        if metric is not None:
            metric = _checked_metric(rows, metric)
        units = Units.of([rows], [(1,)], differentiable=True, metric=None if metric is None else [metric])
        with quiet(rows):
            return cast(self.nearest(units.comparable(self.couples_units)).parts[0], dtype_of(rows))

    def violation(self, rows: Rows) -> Array:
        """How far each row is outside; 0 inside, infinity for NaN and infinities.

        Args:
            rows: as for `project`.

        Returns:
            Numbers in the units of the weight, of shape (units,), or (1,) for a set of a whole
            matrix.
        """
        rows = _checked_rows(self, rows)
        xp = namespace(rows)
        excesses = [excess for excess, _ in self._counted_edges(Laid.of_rows(rows))]
        return functools.reduce(xp.maximum, excesses, xp.zeros_like(excesses[0]))

    def tolerance(self, dtype: str, rows: Rows | None = None) -> Any:
        """The largest violation that counts as inside for weights of that dtype.

        Args:
            dtype: "float16", "bfloat16", "float32" or "float64".
            rows: of shape (units, size): the answer for each of them. It depends on the rows where
                a bound doesn't limit the entries (sums, half-spaces, grids, sets about a centre):
                there rounding is measured at the size of what is added up. None: the answer for
                units of one entry.

        Returns:
            A float, or an array of shape (units,) where rows are given, in the units of the weight.
        """
        if dtype not in MANTISSA_BITS:
            wrong = "`dtype` is none of " + ", ".join(MANTISSA_BITS)
            raise SetError(wrong, f"dtype={shown(dtype)}", instead="tolerance('float32')")
        if rows is None:
            return self._tolerance(dtype)
        laid = Laid.of_weights([_checked_rows(self, rows)], [(1,)])
        return self._measured(dataclasses.replace(laid, dtype=dtype)).slack

    def __call__(self, w: Numbers) -> Array:
        """The nearest weight in the set to a variable or tensor of any shape, as Keras calls it."""
        weight: Any = keras.ops.convert_to_tensor(w) if isinstance(w, keras.Variable) else w
        weight = array_of(weight, "float64") if isinstance(weight, (list, tuple, float, int)) else weight
        _check_float(self, weight)
        shape = tuple(weight.shape)
        axes = self.span(shape)
        layout = WeightLayout.guessed(shape)
        own = self.laid_out([layout if self.axis is None else dataclasses.replace(layout, inputs=max(axes))])
        units = Units.of([weight], [axes], differentiable=True)
        own.check_fit(units)
        with quiet(weight):
            return cast(own.nearest(units).parts[0], dtype_of(weight))

    def span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        """The axes that one unit of a weight spans: the explicit `axis`, or `layer_span`."""
        rank = len(shape)
        if self.axis is not None:
            if len({axis % rank for axis in self.axis if -rank <= axis < rank}) < len(self.axis):
                wrong = f"`axis` names an axis that the weight hasn't, or one twice: it has {-rank} to {rank - 1}"
                where = f"{self!r} on a weight of shape {shape}"
                instead = "leave it out: the layer knows its units"
                raise SetError(wrong, f"axis={self.axis}", where=where, instead=instead)
            return tuple(axis % rank for axis in self.axis)
        return self.layer_span(shape, fan_in)

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        """The axes that one unit of a weight spans, with no explicit axis.

        All of them for a set of a whole weight. Else the layer's fan-in; () is that of a bias or
        scale, which is a single unit unless the set looks at entries one by one. None, without a
        layer: every axis but the last.
        """
        rank = len(shape)
        if self.matrix and (rank < 2 or fan_in == ()):
            wrong = f"{type(self).__name__} is a set of matrices, and this weight has no units with a fan-in"
            instead = "a rule for kernels, such as '**/kernel'"
            raise SetError(wrong, f"a weight of shape {shape}", where=repr(self), instead=instead)
        if (self.whole and not self.matrix) or (not fan_in and not self.entrywise and (rank < 2 or fan_in == ())):
            return tuple(range(rank))
        if fan_in is not None:
            return fan_in
        return tuple(range(rank - 1)) if rank > 1 else ()

    def check_fit(self, units: Units) -> None:
        """Raises where an argument of the set doesn't fit these units."""
        if self.center is not None and not isinstance(self.center, str):
            units.place(self.center)
        for name in self.of_each_unit:
            units.numbers(getattr(self, name))

    def check_room(self, units: Units) -> None:  # most sets have a point for units of any size
        """Raises where the set has no point for units of this size."""

    @property
    def splittable(self) -> bool:
        """Whether some units of a weight can be projected and measured without the others.

        None depends on another, and no array or list of the set may have a value for each of them.
        """

        def of_numbers(value: Any) -> bool:
            several = isinstance(value, (list, tuple)) and not all(isinstance(one, str) for one in value)
            return several or isinstance(value, np.ndarray)

        own = (value for name, value in vars(self).items() if name not in ("axis", "members"))
        return not self.couples_units and not any(map(of_numbers, own))

    def blocks(self, weights: Sequence[Array], axes: Sequence[Axes]) -> list[tuple[Block, ...]]:
        """Indices that cut large weights into blocks, see `blocks_of`.

        There is a single block where units can't be apart.
        """
        views = [View(tuple(one.shape), span) for one, span in zip(weights, axes, strict=True)]
        blocks = blocks_of(views)
        return blocks if len(blocks) == 1 or self.splittable else [((),) * len(views)]


def of_keras(constraint: Any) -> Any:
    """The set that Keras' own constraint means, with its axis as given; anything else as it is."""
    cls = type(constraint)
    if cls is keras.constraints.Constraint or cls is not getattr(keras.constraints, cls.__name__, None):
        return constraint
    return CLASSES[cls.__name__](**constraint.get_config())


def _intersection(one: Any, other: Any, where: str) -> Set:
    sets = [of_keras(given) for given in (one, other)]
    for given in sets:
        if not isinstance(given, Set):
            wrong = "`&` meets something that is not a set"
            raise SetError(wrong, shown(given), where=where, instead="Custom(fn), which makes a set of a callable")
    return CLASSES["Intersection"](*sets)


def registered(cls: SetClass) -> SetClass:
    """Registers a set for saving, as `inbounds>Name`."""
    CLASSES[cls.__name__] = cls
    return keras.saving.register_keras_serializable("inbounds")(cls)  # type: ignore[no-any-return]


def with_argument(given: Set, name: str, value: Any) -> Set:
    """A set that takes an argument, with another value of it."""
    made = type(given)(**({one: getattr(given, one) for one in given.argument_names()} | {name: value}))
    return made._with(training=given.training)


def finite_rows(rows: Array, mask: Array | None) -> tuple[Array, Array]:
    """Whether all marked entries of each row are finite, and the rows with 0 for what isn't."""
    xp = namespace(rows)
    good = xp.isfinite(rows)
    finite = xp.all(good if mask is None else good | ~mask, axis=1, keepdims=True)
    return finite, xp.where(finite & good, rows, xp.zeros_like(rows))


def counted(edge: Exceeded, count: int) -> Exceeded:
    """An edge for each of so many units or matrices, several of which may share an excess."""
    excess, slack = edge
    own = excess.shape[0]
    shares = 1 if own == count else count // own
    if isinstance(excess, np.ndarray):  # who asks for violations only, of tensors, asks for no slack
        slack = np.repeat(np.broadcast_to(slack, excess.shape), shares)
    return excess if shares == 1 else namespace(excess).repeat(excess, shares), slack


def _checked_rows(owner: Set, rows: Any) -> Array:
    rows = array_of(rows, "float64") if isinstance(rows, (list, tuple)) else rows
    rows = keras.ops.convert_to_tensor(rows) if isinstance(rows, keras.Variable) else rows
    shape = getattr(rows, "shape", None)
    if shape is None or len(shape) != 2 or 0 in tuple(shape):
        wrong = "The rows don't have the shape (units, size), one unit a row, one entry at least"
        instead = "np.reshape(rows, (1, -1)) for one unit"
        raise SetError(wrong, f"rows={shown(rows)}" if shape is None else f"rows.shape={tuple(shape)}", instead=instead)
    _check_float(owner, rows)
    owner.check_fit(Units.of([rows], [(1,)]))
    return rows


def _checked_metric(rows: Array, metric: Array) -> Array:
    metric = array_of(metric) if isinstance(metric, (list, tuple)) else metric
    shape = getattr(metric, "shape", None)
    if shape is None or tuple(shape) != tuple(rows.shape):
        wrong = "`metric` doesn't have the shape of `rows`"
        received = f"metric={shown(metric)}" if shape is None else f"metric.shape={tuple(shape)}"
        where = f"rows of shape {tuple(rows.shape)}"
        raise SetError(wrong, received, where=where, instead="metric=None for the Euclidean norm")
    xp = namespace(rows)
    metric = without_gradient(constant(cast(rows, working_dtype(dtype_of(rows))), metric))
    good = xp.isfinite(metric) & (metric > 0)
    if is_concrete(good) and not bool(xp.all(good)):
        wrong = "`metric` is not finite and above 0 everywhere"
        received = f"metric=an array with {int(xp.sum(cast(~good, 'int32')))} entries that are not"
        instead = "a floor, such as metric.clip(1e-6 * metric.max()), or metric=None for the Euclidean norm"
        raise SetError(wrong, received, where=f"rows of shape {tuple(rows.shape)}", instead=instead)
    return metric


def _check_float(owner: Set, weight: Any) -> None:
    if isinstance(weight, (list, tuple)):
        wrong = "The weight is a list that is no array of numbers: its rows have different lengths, or aren't numbers"
        raise SetError(wrong, shown(weight), where=repr(owner), instead=f"{owner!r}(np.ones((2, 3)))")
    if dtype_of(weight) not in MANTISSA_BITS:
        wrong = "The weight is not of floating point numbers: " + ", ".join(MANTISSA_BITS)
        where = f"{owner!r} on a weight of shape {tuple(weight.shape)}"
        raise SetError(wrong, f"dtype={dtype_of(weight)}", where=where, instead="keras.ops.cast(weight, 'float32')")
