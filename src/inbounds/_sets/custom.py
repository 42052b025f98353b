"""Sets of a user's own.

Custom: the fixed points of a callable. SupportSet: a polytope by its support function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    Array,
    cast,
    constant,
    dtype_of,
    epsilon,
    has_float64,
    iterate,
    namespace,
    solve,
    to_numpy,
    ulp,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import axes, boolean, refused
from inbounds._sets.set import Exceeded, Measured, Set, registered
from inbounds._sets.value import shown_callable
from inbounds._types import Axis, Bool


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
    couples_units = True  # the callable sees one weight as a whole, and may couple any of its entries

    def __init__(self, fn: Callable[[Any], Any], axis: Axis = None, projection: Bool = False) -> None:
        if isinstance(fn, Set) or not callable(fn) or isinstance(fn, type):
            wrong = "is not a callable from tensor to tensor, or it is a set or a class"
            raise refused("Custom", "fn", fn, wrong, "Custom(lambda w: keras.ops.clip(w, -1.0, 1.0))")
        instead = "Custom(fn, projection=True) where fn gives the nearest point of a convex set"
        self.projection = boolean("Custom", "projection", projection, instead)
        self.fn = fn
        self.axis = axes("Custom", axis)

    @property
    def entrywise(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return self.axis is None

    @property
    def has_reduced_gradient(self) -> bool:
        return self.projection

    def _project(self, units: Units) -> Units:
        (part,) = units.parts
        xp = namespace(part)
        return units.with_parts([xp.where(xp.isfinite(part), self._applied(part), part)])

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        return xp.max(xp.abs(self._applied(rows) - rows), axis=1)

    def measure(self, weights: Sequence[Any], axes: Sequence[Axes]) -> Measured:
        """As for any set; `fn` sees the weight in its own shape and in the dtype of computing."""
        (weight,), (span,) = weights, axes
        value = to_numpy(weight)
        seen = keras.ops.convert_to_tensor(value, dtype=working_dtype(dtype_of(weight)))
        finite = np.isfinite(value)
        moved = np.where(finite, np.abs(to_numpy(self._applied(seen)) - np.where(finite, value, 0)), np.inf)
        excess = np.nan_to_num(np.max(moved, axis=span) if span else moved, nan=np.inf, posinf=np.inf).reshape(-1)
        slack = np.full_like(excess, self._tolerance(dtype_of(weight)))
        return Measured(excess, slack, excess > slack, active=np.zeros(excess.shape, dtype="bool"))

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
        # Where the backend computes in float32, entries that `fn` doesn't change keep their float64
        # value.
        return np.where(to_numpy(result) == to_numpy(seen), weight, constant(weight, to_numpy(result)))

    def __repr__(self) -> str:
        name = shown_callable(self.fn)
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"Custom({name}{axis}{', projection=True' * self.projection})"


STEPS = 400
"""The limit of steps; to a vertex it is 2, to a mean of n vertices some 2 n."""

UNROLLED = 60
"""The number of steps where PyTorch exports or vectorizes, and can't stop early."""

EXACT = 64
"""How many epsilons of the set's size may be wrong: the distance of what counts as inside."""

LARGEST = 128
"""The most entries of a unit: a step solves a linear system of as many unknowns for each unit."""


class SupportSet(Set):
    """{w : g . w <= s(g) for every g}, each unit: your own polytope, by its support function s.

    A subclass says which point of the set is the farthest in a direction. The support function
    follows: s(g) = g . farthest(g). Of a convex hull it is the farthest vertex, of a zonotope the
    sum of the generators with the signs of their inner products, of a sum of sets the sum of their
    farthest points, of the hull of several sets the farthest of theirs.

    The nearest point is a mean of points that `farthest` gave, and so it is in the set wherever the
    search ends, after 400 steps at most. A unit that is as near to the set as rounding, 32 epsilons
    of its largest entry, stays. No derivative goes through the projection. A set that is smooth
    has no finite number of such points: the search ends at about the root of epsilon from its
    nearest point.

    Raises:
        SetError: a unit has more than 128 entries, or only some of its entries are to be in the
            set (`where`, `on`, frozen weights); `farthest` returns another shape.

    Cost: in each step `farthest`, and a linear system of n + 2 unknowns for each unit of n entries,
    n^3; as a rule two steps for each vertex that the nearest point is a mean of. The violation is
    the largest entry of the distance, found in the same way in float64.

    Source: Wolfe, "Finding the nearest point in a polytope", 1976; Lacoste-Julien and Jaggi, "On
    the global linear convergence of Frank-Wolfe optimization variants", 2015.
    """

    @abstractmethod
    def farthest(self, directions: Array) -> Array:
        """For each direction a point of the set with the largest inner product.

        Args:
            directions: of shape (units, size), NumPy's or the backend's, see `namespace`.

        Returns:
            Points of the same shape and dtype.
        """

    def check_fit(self, units: Units) -> None:
        if units.size > LARGEST or units.mask_rows() is not None:
            raise SetError(
                f"A set by its support function is for whole units of at most {LARGEST} entries",
                f"{units.count} units of {units.size} entries",
                where=repr(self),
                instead="a subclass of Set with a projection of its own",
            )
        where = f"{self!r}, for directions of shape {(1, units.size)}"
        try:
            probe = self.farthest(np.ones((1, units.size)))
        except Exception as error:  # it may be for units of another size
            raise SetError(
                "`farthest` fails for units of this size", f"{type(error).__name__}: {error}", where=where
            ) from error
        if tuple(probe.shape) != (1, units.size):
            wrong = "`farthest` does not return a point for each direction"
            raise SetError(wrong, f"shape={tuple(probe.shape)}", where=where)

    def _project(self, units: Units) -> Units:
        rows = without_gradient(units.rows())
        xp = namespace(rows)
        near, size = self._nearest(rows)
        apart = xp.max(xp.abs(rows - near), axis=1, keepdims=True)
        finite = xp.all(xp.isfinite(rows), axis=1, keepdims=True)
        return units.with_rows(xp.where(finite & (apart > EXACT / 2 * epsilon(units.dtype) * size), near, rows))

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        xp = namespace(rows)
        near, size = self._nearest(rows)
        return [(xp.max(xp.abs(rows - near), axis=1), EXACT * epsilon(laid.dtype) * size[:, 0])]

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return self._edges(rows, Laid.of_rows(rows))[0][0]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return EXACT * epsilon(dtype)

    def _nearest(self, rows: Array) -> tuple[Array, Array]:
        """The nearest points, and the size of the set, of shape (units, 1).

        The size is the largest entry, in magnitude, of the points of the set that the search met.
        """
        xp = namespace(rows)
        rows = xp.where(xp.isfinite(rows), rows, xp.zeros_like(rows))
        rounding, slots = epsilon(dtype_of(rows)), rows.shape[1] + 2
        place = constant(rows, np.arange(slots)[None])

        def steepest(away: Array) -> tuple[Array, Array]:
            most = xp.max(xp.abs(away), axis=1, keepdims=True)
            flat = most <= 0
            return xp.where(flat, xp.ones_like(away), away / xp.where(flat, xp.ones_like(most), most)), most

        def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            points, shares, settled, before = state
            here = xp.sum(points * shares[:, :, None], axis=1)
            slope, most = steepest(rows - here)
            size = xp.max(xp.abs(points), axis=(1, 2), keepdims=True)[:, :, 0]
            ahead = self.farthest(slope)
            gap = xp.sum(slope * (ahead - here), axis=1, keepdims=True)
            distance = most * xp.sqrt(xp.sum(slope**2, axis=1, keepdims=True))
            going = (gap > 8 * rounding * size) & (most > 8 * rounding * size)
            going = going & (~settled | (distance < before * (1 - rounding)))  # or what is left is rounding
            before = xp.where(settled, distance, before)
            # a point more, once the mean of the others is the nearest of their affine hull
            least = xp.min(shares, axis=1, keepdims=True)
            first = xp.min(xp.where(shares <= least, place, slots), axis=1, keepdims=True)
            new = (place == first) & settled & going
            points = xp.where(new[:, :, None], ahead[:, None], points)
            shares = xp.where(new, xp.zeros_like(shares), shares)
            active = new | (shares > 0)
            # towards the nearest point of the affine hull, until a share is 0
            one = xp.where(active, xp.ones_like(shares), xp.zeros_like(shares))
            legs = (points - here[:, None]) * one[:, :, None] / size[:, :, None]
            gram = xp.matmul(legs, xp.transpose(legs, (0, 2, 1))) + one[:, :, None] * one[:, None]
            diagonal = constant(rows, np.eye(slots)[None])
            gram = gram + diagonal * (1 - one + 4 * rounding)[:, :, None]
            right = xp.stack([xp.sum(legs * slope[:, None], axis=2), one], axis=2)
            found = solve(gram, right)
            by, ones = found[:, :, 0], found[:, :, 1]
            total = xp.sum(ones, axis=1, keepdims=True)
            by = (by - xp.sum(by, axis=1, keepdims=True) / total * ones) * one
            falling = active & (by < 0)
            room = xp.where(falling, shares / xp.where(falling, -by, xp.ones_like(by)), xp.full_like(by, np.inf))
            limit = xp.min(room, axis=1, keepdims=True)
            full = most / size <= limit
            length = xp.where(full, most / size, limit)
            moved = xp.where(falling & (room <= length), xp.zeros_like(shares), xp.maximum(shares + length * by, 0))
            moved = xp.where(active, moved, xp.zeros_like(moved))
            moved = moved / xp.sum(moved, axis=1, keepdims=True)
            return (points, xp.where(going, moved, shares), full | ~going, before), going

        start = self.farthest(steepest(rows)[0])
        points = xp.where((place == 0)[:, :, None], start[:, None], xp.zeros_like(rows)[:, None])
        shares = xp.where(place == 0, xp.ones_like(rows[:, :1]), xp.zeros_like(rows[:, :1]))
        state = points, shares, xp.isfinite(rows[:, :1]), xp.full_like(rows[:, :1], np.inf)
        points, shares, *_ = iterate(step, state, STEPS, UNROLLED)
        here = xp.sum(points * shares[:, :, None], axis=1)
        return here, xp.max(xp.abs(points), axis=(1, 2), keepdims=True)[:, :, 0]
