"""Custom: the fixed points of any callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from inbounds._arrays.ops import Array, cast, constant, dtype_of, has_float64, namespace, to_numpy, ulp, working_dtype
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import axes, boolean, refused
from inbounds._sets.set import Measured, Set, registered
from inbounds._types import Axis, Bool


def callable_name(fn: Any) -> str:
    """A callable by its name; an object that Keras saves by its config as the code that makes it."""
    if isinstance(fn, keras.constraints.Constraint):
        config = fn.get_config().items()
        return f"{type(fn).__name__}({', '.join(f'{name}={value!r}' for name, value in config)})"
    return str(getattr(fn, "__qualname__", None) or repr(fn))


@registered
class Custom(Set):
    """{w : fn(w) = w}: the fixed points of any callable from tensor to tensor.

    What Keras accepts as a constraint, with a report: it is violated by as much as `fn` still moves
    a weight. `fn` sees the weight in its own shape. It has to be idempotent to be a projection;
    whether the result is nearest is for `fn` to ensure.

    Args:
        fn: takes a tensor (of the dtype it is computed in: float32 for half precision), returns one
            of the same shape; written with `keras.ops`, it works on every backend.
        axis: for reports, the axes that a unit spans; see `MaxNorm`.
        projection: whether `fn` gives the nearest point of a convex set. Then an optimizer is shown
            the reduced gradient, else all of it.

    A function that is registered with `keras.saving.register_keras_serializable` is saved with a
    model; a lambda is not, and `constrain` says so. The tolerance is 4 ulp at 1.

    Cost: that of `fn`, and a pass that keeps NaN and infinities.

    Source: Keras' own contract for constraints, a callable from tensor to tensor.

    >>> Custom(lambda w: keras.ops.clip(w, 0, 1)).violation(np.array([[2.0, 0.5]]))
    array([1.])
    """

    convex: ClassVar[bool] = False
    has_boundary: ClassVar[bool] = False

    def __init__(self, fn: Callable[[Any], Any], axis: Axis = None, projection: Bool = False) -> None:
        if isinstance(fn, Set) or not callable(fn) or isinstance(fn, type):
            wrong = "is not a callable from tensor to tensor, or it is a set or a class"
            raise refused("Custom", "fn", fn, wrong, "Custom(lambda w: keras.ops.clip(w, -1.0, 1.0))")
        instead = "Custom(fn, projection=True) where fn gives the nearest point of a convex set"
        self.projection = boolean("Custom", "projection", projection, instead)
        self.fn = fn
        self.axis = axes("Custom", axis)

    @property
    def entrywise(self) -> bool:
        return self.axis is None

    @property
    def has_reduced_gradient(self) -> bool:
        return self.projection

    @property
    def full_gradient_reason(self) -> str:
        return "" if self.projection else "the callable isn't said to be a projection"

    @property
    def couples_units(self) -> bool:
        """Always: the callable sees the whole weight, and may couple any of its entries."""
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
        return Measured(excess, slack, excess > slack, active=np.zeros(excess.shape, dtype="bool"))

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
            returned = "None" if result is None else f"the shape {tuple(getattr(result, 'shape', ()))}"
            wrong = "The callable of a Custom did not return a tensor of the shape it was given"
            where = f"a weight of shape {tuple(weight.shape)}"
            raise SetError(wrong, f"fn={shown(self.fn)}, which returned {returned}", where=where)
        if seen is weight:
            return cast(result, dtype_of(weight))
        # Entries that `fn` doesn't change keep their float64 value where the backend computes in float32.
        return np.where(to_numpy(result) == to_numpy(seen), weight, constant(weight, to_numpy(result)))

    def __repr__(self) -> str:
        name = callable_name(self.fn)
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"Custom({name}{axis}{', projection=True' * self.projection})"
