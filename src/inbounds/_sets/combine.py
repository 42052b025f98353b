"""Sets made of other things: Joint (several weights as one unit) and Custom (any callable)."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, ClassVar

import keras
import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, cast, constant, dtype_of, has_float64, namespace, to_numpy, ulp, working_dtype
from inbounds._arrays.units import Axes, Units
from inbounds._errors import SetError, explain, shown
from inbounds._sets.arguments import axes
from inbounds._sets.normal_form import Declaration
from inbounds._sets.set import Edge, Measured, Set, plain, registered

KERNEL_AND_BIAS = ("kernel", "bias")


def _true_of(quantifier: Callable[[Iterable[Any]], bool], name: str) -> Any:
    """A property of sets that are made of others: what is true of all, or of any, of the members."""
    return property(lambda self: quantifier(getattr(member, name) for member in self.members))


class Made(Set):
    """A set made of sets, its members: what is true of all of them is true of it."""

    members: tuple[Set, ...]

    @abstractmethod
    def rebuilt(self, members: Sequence[Set]) -> Set:
        """The same, made of other members."""

    @property
    def axis(self) -> Axes | None:  # type: ignore[override]  # a fact of the members, not of the class
        return next((member.axis for member in self.members if member.axis is not None), None)

    entrywise = _true_of(all, "entrywise")
    same_in_every_metric = _true_of(all, "same_in_every_metric")
    convex = _true_of(all, "convex")
    whole = _true_of(all, "whole")
    has_boundary = _true_of(all, "has_boundary")
    holds_frozen = _true_of(all, "holds_frozen")
    reduces = _true_of(all, "reduces")
    declares = _true_of(all, "declares")
    couples = _true_of(any, "couples")
    has_faces = _true_of(any, "has_faces")
    matrix = _true_of(any, "matrix")
    centers = _true_of(any, "centers")
    changes = _true_of(any, "changes")

    @property
    def swallows(self) -> str:  # type: ignore[override]  # likewise
        return "; ".join(dict.fromkeys(member.swallows for member in self.members if member.swallows))

    @property
    def weighs(self) -> bool:  # type: ignore[override]  # likewise
        return all(member.weighs or member.same_in_every_metric for member in self.members)

    @property
    def stackable(self) -> bool:
        return super().stackable and all(member.stackable for member in self.members)

    def at(self, step: Any) -> Set:
        return self.rebuilt([member.at(step) for member in self.members]) if self.changes else self

    def about(self, current: Array) -> Set:
        return self.rebuilt([member.about(current) for member in self.members]) if self.centers else self

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        return self.rebuilt([member.resolved(shapes, inputs) for member in self.members])

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        matrices = [member for member in self.members if member.matrix]
        return matrices[0].layer_span(shape, fan_in) if matrices else super().layer_span(shape, fan_in)

    def check_fit(self, units: Units) -> None:
        for member in self.members:
            member.check_fit(units)

    def counted(self, units: int) -> int:
        return max(member.counted(units) for member in self.members)

    def declaration(self, units: Units) -> Declaration:
        return reduce(operator.and_, [member.declaration(units) for member in self.members])

    def edges(self, laid: Laid) -> list[Edge]:
        return [edge for member in self.members for edge in member.edges(laid)]

    def _finite(self, laid: Laid, count: int) -> Array:
        return reduce(operator.and_, [member._finite(laid, count) for member in self.members])

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        return reduce(namespace(rows).maximum, [excess for excess, _ in self.edges(Laid.of_rows(rows))])

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return max(member._tolerance(dtype, size) for member in self.members)


def callable_name(fn: Any) -> str:
    """A callable by its name; an object that Keras saves by its config as the code that makes it."""
    if isinstance(fn, keras.constraints.Constraint):
        config = fn.get_config().items()
        return f"{type(fn).__name__}({', '.join(f'{name}={value!r}' for name, value in config)})"
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def parts_of(given: Set) -> Iterator[Set]:
    """A set, and all that it is made of."""
    yield given
    for member in given.members if isinstance(given, Made) else ():
        yield from parts_of(member)


def contains(given: Set, kinds: tuple[type, ...]) -> bool:
    """Whether a set is of one of some classes, or made of one that is."""
    return any(isinstance(part, kinds) for part in parts_of(given))


def with_axis(given: Set, axis: Any) -> Set:
    """A set that takes an `axis`, with another one."""
    arguments = {name: getattr(given, name) for name in given.argument_names()}
    made: Set = type(given)(**(arguments | {"axis": axis}))
    return made


@registered
class Joint(Made):
    """{(w, b) : w and b together in a set}: several weights of a layer, one vector per unit.

    A kernel's column (or filter) and its bias entry are one vector, and the set holds for that vector. Give the same
    Joint to both arguments of a layer, or use it in a rule for layers:

        j = Joint(MaxNorm(1.0))
        keras.layers.Dense(64, kernel_constraint=j, bias_constraint=j)

    Where the layer has no bias, or another rule holds for it, the kernel carries the set alone. A weight that is frozen
    stays, and the others keep the vector inside.

    Args:
        inner: a set of vectors.
        weights: the names of the weights in the layer that form a unit.

    Raises:
        SetError: `inner` is not a set, is itself a Joint or a Custom, or has an axis; `weights` are not different
            names.

    Cost: that of the inner set over both weights; nothing is copied or transposed.

    Source: an open wish of Keras' users since 2021, issue 14954, for the norm of kernel and bias together.

    >>> Joint(MaxNorm(1)).project([[3.0, 4.0]])  # rows are the joint vectors
    array([[0.6, 0.8]])
    """

    def __init__(self, inner: Set, weights: Sequence[str] = KERNEL_AND_BIAS) -> None:
        if not isinstance(inner, Set) or contains(inner, (Joint, Custom)):
            raise SetError(
                explain(
                    "Joint is not given a set of vectors, but a class, a callable, a Custom or a Joint",
                    f"inner={shown(inner)}",
                    instead="Joint(MaxNorm(1.0))",
                )
            )
        if inner.axis is not None:
            raise SetError(
                explain(
                    "A set in a Joint has an `axis`, and the units of a Joint come from the layer",
                    f"inner={shown(inner)}",
                    instead=f"Joint({with_axis(inner, None)!r})"
                    if "axis" in inner.argument_names()
                    else "leave `axis` out: the layer knows its units",
                )
            )
        names = (weights,) if isinstance(weights, str) else tuple(weights)
        if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
            raise SetError(
                explain(
                    "`weights` of Joint are not two or more different names",
                    f"weights={shown(weights)}",
                    instead="Joint(MaxNorm(1.0), weights=('kernel', 'bias'))",
                )
            )
        self.inner = inner
        self.weights = names
        self.members = (inner,)

    def __and__(self, other: Any) -> Set:
        """The intersection with another Joint of the same weights."""
        if not isinstance(other, Joint) or other.weights != self.weights:
            raise SetError(
                explain(
                    "A Joint can't meet what is no Joint of the same weights",
                    shown(other),
                    where=f"{self!r} & ...",
                    instead="Joint(a & b)",
                )
            )
        return Joint(self.inner & other.inner, self.weights)

    def where(self, mask: Any) -> Set:
        """The set for those entries of each joint vector only that a mask marks."""
        return Joint(self.inner.where(mask), self.weights)

    def on(self, inputs: Any) -> Set:
        """The set for those weights only that come from some inputs of the layer; a bias comes from none."""
        return Joint(self.inner.on(inputs), self.weights)

    def check_room(self, units: Units) -> None:
        self.inner.check_room(units)

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        return self.rebuilt([self.inner.resolved(shapes, inputs)])

    def rebuilt(self, members: Sequence[Set]) -> Set:
        return Joint(members[0], self.weights)

    @property
    def warm_starts(self) -> bool:
        return self.inner.warm_starts

    def reduced(self, units: Units, gradient: Units) -> Units:
        return self.inner.reduced(units, gradient)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        return self.inner.multiplier(units, taken)

    def go_on(self, units: Units, in_metric: Callable[[], Units], steady: bool) -> Units:
        return self.inner.go_on(units, in_metric, steady)

    def _project(self, units: Units) -> Units:
        return self.inner.nearest(units)

    def __call__(self, w: Any) -> Array:
        """Always an error: one weight is not the whole unit. Keras' optimizers don't come here, see `constrain`."""
        raise SetError(
            explain(
                "A Joint can't be applied to one weight: it holds for several at once",
                f"w={getattr(w, 'path', type(w).__name__)}",
                where=repr(self),
                instead="inbounds.constrain(model) once the model is built; inbounds.project(model) in loops "
                "without a Keras optimizer",
            )
        )

    def __repr__(self) -> str:
        names = "" if self.weights == KERNEL_AND_BIAS else f", weights={self.weights!r}"
        return f"Joint({self.inner!r}{names})"


@registered
class Custom(Set):
    """{w : fn(w) = w}: the fixed points of any callable from tensor to tensor.

    What Keras accepts as a constraint, with a report: it is violated by as much as `fn` still moves a weight. `fn` sees
    the weight in its own shape. It has to be idempotent to be a projection; whether the result is nearest is for `fn`
    to ensure.

    Args:
        fn: takes a tensor (of the dtype it is computed in: float32 for half precision), returns one of the same shape;
            written with `keras.ops`, it works on every backend.
        axis: for reports, the axes that a unit spans; see `MaxNorm`.
        projection: whether `fn` gives the nearest point of a convex set. Then an optimizer is shown the reduced
            gradient, else all of it.

    A function that is registered with `keras.saving.register_keras_serializable` is saved with a model; a lambda is
    not, and `constrain` says so. The tolerance is 4 ulp at 1.

    Cost: that of `fn`, and a pass that keeps NaN and infinities.

    Source: Keras' own contract for constraints, a callable from tensor to tensor.

    >>> Custom(lambda w: keras.ops.clip(w, 0, 1)).violation(np.array([[2.0, 0.5]]))
    array([1.])
    """

    convex: ClassVar[bool] = False
    has_boundary: ClassVar[bool] = False

    def __init__(self, fn: Callable[[Any], Any], axis: Any = None, projection: Any = False) -> None:
        if isinstance(fn, Set) or not callable(fn) or isinstance(fn, type):
            raise SetError(
                explain(
                    "`fn` of Custom is not a callable from tensor to tensor, or it is a set or a class",
                    f"fn={shown(fn)}",
                    instead="Custom(lambda w: keras.ops.clip(w, -1.0, 1.0))",
                )
            )
        if not isinstance(projection, (bool, np.bool_)):
            raise SetError(
                explain(
                    "`projection` of Custom is neither True nor False",
                    f"projection={shown(projection)}",
                    instead="Custom(fn, projection=True) where fn gives the nearest point of a convex set",
                )
            )
        self.fn = fn
        self.axis = axes("Custom", axis)
        self.projection = bool(projection)

    @property
    def entrywise(self) -> bool:
        return self.axis is None

    @property
    def reduces(self) -> bool:
        return self.projection

    @property
    def leaves_all(self) -> str:
        return "" if self.projection else "the callable isn't said to be a projection"

    @property
    def couples(self) -> bool:
        """Always, as far as one can tell: the callable sees the whole weight."""
        return True

    def _project(self, units: Units) -> Units:
        (part,) = units.parts
        xp = namespace(part)
        return units.with_parts([xp.where(xp.isfinite(part), self._applied(part), part)])

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        return xp.max(xp.abs(self._applied(rows) - rows), axis=1)

    def measure(self, weights: Sequence[Any], axes: Sequence[Axes]) -> Measured:
        """As for any set; `fn` sees the weight in its own shape, and in the dtype it is computed in."""
        (weight,), (span,) = weights, axes
        value = to_numpy(weight)
        seen = keras.ops.convert_to_tensor(value, dtype=working_dtype(dtype_of(weight)))
        finite = np.isfinite(value)
        moved = np.where(finite, np.abs(to_numpy(self._applied(seen)) - np.where(finite, value, 0)), np.inf)
        excess = np.nan_to_num(np.max(moved, axis=span) if span else moved, nan=np.inf, posinf=np.inf).reshape(-1)
        slack = np.full_like(excess, self._tolerance(dtype_of(weight)))
        return Measured(excess, slack, outside=excess > slack, active=np.zeros(excess.shape, dtype="bool"))

    @property
    def stackable(self) -> bool:
        """Never: the callable sees one weight in its own shape."""
        return False

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        computed = "float32" if dtype == "float64" and not has_float64() else dtype  # what `fn` computes in
        return 4 * ulp(1.0, computed)

    def _applied(self, weight: Array) -> Array:
        seen = keras.ops.convert_to_tensor(weight) if namespace(weight) is np else weight
        result = self.fn(seen)
        if result is None or tuple(getattr(result, "shape", ())) != tuple(weight.shape):
            raise SetError(
                explain(
                    "The callable of a Custom did not return a tensor of the shape it was given",
                    f"fn={shown(self.fn)}, which returned "
                    + ("None" if result is None else f"the shape {tuple(getattr(result, 'shape', ()))}"),
                    where=f"a weight of shape {tuple(weight.shape)}",
                )
            )
        if seen is weight:
            return cast(result, dtype_of(weight))
        # What `fn` leaves alone stays as it is, also where the backend has no float64.
        return np.where(to_numpy(result) == to_numpy(seen), weight, constant(weight, to_numpy(result)))

    def _config(self) -> dict[str, Any]:
        return {
            "fn": keras.saving.serialize_keras_object(self.fn),
            "axis": plain(self.axis),
            "projection": self.projection,
        }

    def __repr__(self) -> str:
        name = callable_name(self.fn)
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"Custom({name}{axis}{', projection=True' * self.projection})"
