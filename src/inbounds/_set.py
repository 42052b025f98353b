"""Set: the one abstraction, and all that follows from it.

A family of sets says three things: how units are projected (`_project`), how far rows are outside (`_excess`), and how
exact floating point lets it be (`_tolerance`). Everything else is here: dtypes, shapes, axes, saving, equality, repr,
and the two doors, `project` and `violation` on rows and `__call__` on a weight as Keras calls it.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np

from inbounds._arrays import MANTISSA_BITS, Array, cast, dtype_of, namespace, quiet, to_numpy, working_dtype
from inbounds._errors import SetError, explain
from inbounds._units import Axes, Units

SetClass = TypeVar("SetClass", bound="type[Set]")


class Set(keras.constraints.Constraint, ABC):  # type: ignore[misc]  # keras has no types
    """The values that a unit may take. It knows numbers, never layers.

    Sets are values: they can't be changed, compare by their arguments, and print as the code that makes them.
    """

    axis: Axes | None = None
    """The axes that a unit spans where the user says so; None: the layer's, see `span`."""
    whole: ClassVar[bool] = False
    """Whether the set is one of a whole weight, all its units together."""
    convex: ClassVar[bool] = True
    has_boundary: ClassVar[bool] = True
    """Whether it can be told if a unit lies on the boundary."""

    # What a family says of itself.

    @abstractmethod
    def _project(self, units: Units) -> Units:
        """The nearest units in the set. A unit inside comes back as it is; NaN and infinities stay, see `project`."""

    @abstractmethod
    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        """For each row how far it is outside: above 0 outside, 0 on the boundary, below 0 inside.

        Args:
            rows: finite, of shape (units, size).
            span: the shape of one unit in its weight; its product is `size`.
        """

    @abstractmethod
    def _tolerance(self, dtype: str) -> float:
        """What counts as inside in that dtype: how far from the set its projections may end, from rounding."""

    @property
    def entrywise(self) -> bool:
        """Whether the set looks at each entry by itself, so that units matter for reports only."""
        return False

    @property
    def same_in_every_metric(self) -> bool:
        """Whether each entry is projected by itself, so that the metric doesn't matter."""
        return False

    # The doors.

    def project(self, rows: Array, metric: Array | None = None) -> Array:
        """The nearest rows in the set.

        Args:
            rows: array or tensor of shape (units, size), one unit a row, of a float dtype. For a set of a whole matrix
                the rows are the matrix.
            metric: positive weights shaped like `rows`: nearest is in the norm `sum metric * (y - x)^2`. None:
                Euclidean.

        Returns:
            Rows of the same shape, dtype and library. float16 and bfloat16 are computed in float32 and rounded once.
            A row that is inside comes back bit for bit; so does one with NaN or infinities, which `violation` shows
            (of a set that looks at each entry by itself: those entries).

        Raises:
            SetError: the shape, the dtype or the metric is wrong.
        """
        rows = _checked_rows(self, rows)
        if metric is not None:
            self._check_metric(rows, metric)
        units = Units.of([rows], [(0, 1) if self.whole else (1,)])
        with quiet(rows):
            return cast(self._project(units).parts[0], dtype_of(rows))

    def violation(self, rows: Array) -> Array:
        """How far each row is outside, in the units of the weight; 0 inside, infinity for NaN and infinities.

        Args:
            rows: as for `project`.

        Returns:
            Shape (units,), or (1,) for a set of a whole matrix.
        """
        rows = _checked_rows(self, rows)
        xp = namespace(rows)
        return xp.maximum(self._outside(rows, tuple(rows.shape[1:])), 0)

    def tolerance(self, dtype: str) -> float:
        """The largest violation that counts as inside for weights of that dtype, in the units of the weight."""
        if dtype not in MANTISSA_BITS:
            raise SetError(
                explain(
                    "`dtype` is one of " + ", ".join(MANTISSA_BITS),
                    f"dtype={dtype!r}",
                    instead="tolerance('float32')",
                )
            )
        return self._tolerance(dtype)

    def __call__(self, w: Any) -> Array:
        """The nearest weight in the set, as Keras calls a constraint: with a variable or a tensor of any shape."""
        weight = keras.ops.convert_to_tensor(w) if isinstance(w, keras.Variable) else w
        weight = np.asarray(weight, dtype="float64") if isinstance(weight, (list, tuple, float, int)) else weight
        _check_float(self, weight)
        units = Units.of([weight], [self.span(tuple(weight.shape))])
        with quiet(weight):
            return cast(self._project(units).parts[0], dtype_of(weight))

    def span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        """The axes that one unit of a weight spans.

        Args:
            shape: of the weight.
            fan_in: the axes that the layer sums over for one of its units; None where the layer isn't known, () where
                the weight has no fan-in (a bias, a scale).

        Returns:
            All axes for a set of a whole weight. An explicit `axis` wins. Else the layer's fan-in; a weight without
            one is a single unit, unless the set looks at entries one by one. Without a layer: every axis but the last.

        Raises:
            SetError: an explicit axis is not one of the weight.
        """
        rank = len(shape)
        if self.axis is not None:
            if any(not -rank <= axis < rank for axis in self.axis) or len({a % rank for a in self.axis}) < len(
                self.axis
            ):
                raise SetError(
                    explain(
                        f"`axis` names different axes of the weight, here from {-rank} to {rank - 1}",
                        f"axis={self.axis}",
                        where=f"{self!r} on a weight of shape {shape}",
                        instead="leave it out: the layer knows its units",
                    )
                )
            return tuple(axis % rank for axis in self.axis)
        return self.layer_span(shape, fan_in)

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        """As `span`, with no explicit axis."""
        rank = len(shape)
        if self.whole or (not fan_in and not self.entrywise and (rank < 2 or fan_in == ())):
            return tuple(range(rank))
        if fan_in is not None:
            return fan_in
        return tuple(range(rank - 1)) if rank > 1 else ()

    def check_fit(self, units: Units) -> None:  # most sets fit any units
        """That the set's arguments fit these units.

        Raises:
            SetError: an array of the set has another shape.
        """

    def excess_of(self, weights: Sequence[Any], axes: Sequence[Axes]) -> np.ndarray[Any, Any]:
        """How far each unit of some weights is outside, in float64: above 0 outside, 0 on the boundary, below 0 inside.

        It lays the weights out as rows of its own and shares no code with the projections.

        Args:
            weights: variables or arrays that make the units together.
            axes: for each weight, the axes that one unit spans.
        """
        pieces, spans = [], []
        for weight, axis in zip(weights, axes, strict=True):
            array = to_numpy(weight)
            span = tuple(array.shape[a] for a in sorted(axis))
            counting = [a for a in range(array.ndim) if a not in axis]
            pieces.append(array.transpose(*counting, *sorted(axis)).reshape(-1, int(np.prod(span))))
            spans.append(span)
        rows = np.concatenate(pieces, axis=1)
        return np.asarray(self._outside(rows, spans[0] if len(spans) == 1 else rows.shape[1:]))

    def _outside(self, rows: Array, span: tuple[int, ...]) -> Array:
        """`_excess` in the dtype it is computed in, and infinity where a row has NaN or infinities."""
        xp = namespace(rows)
        wide = cast(rows, working_dtype(dtype_of(rows)))
        finite = xp.all(xp.isfinite(wide), axis=1)
        with quiet(wide):
            excess = self._excess(xp.where(xp.reshape(finite, (-1, 1)), wide, xp.zeros_like(wide)), span)
        return xp.where(xp.all(finite) if self.whole else finite, excess, xp.full_like(excess, float("inf")))

    def _check_metric(self, rows: Array, metric: Array) -> None:
        if tuple(np.shape(metric)) != tuple(rows.shape):
            raise SetError(
                explain(
                    "`metric` has the shape of `rows`",
                    f"metric.shape={tuple(np.shape(metric))}",
                    where=f"rows of shape {tuple(rows.shape)}",
                    instead="metric=None for the Euclidean norm",
                )
            )
        if not self.same_in_every_metric:
            raise SetError(
                explain(
                    f"{type(self).__name__} is projected in the Euclidean norm only, in this version",
                    "metric=an array",
                    instead="metric=None",
                )
            )

    # A value: arguments, equality, repr, saving.

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """The names of the constructor's arguments; each is an attribute too."""
        return tuple(inspect.signature(cls).parameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {name: _plain(getattr(self, name)) for name in self.argument_names()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Set:
        """The set with these arguments."""
        arguments = {
            name: keras.saving.deserialize_keras_object(value)
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        return cls(**arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) or (hasattr(type(self), name) and name not in self.argument_names()):
            raise AttributeError(
                explain(
                    "A set can't be changed: a compiled training step would not see it",
                    f"{name}={value!r}",
                    where=repr(self),
                    instead="make a new set and call inbounds.constrain(model, ...) again",
                )
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        arguments = ((name, getattr(self, name)) for name in self.argument_names())
        shown = ", ".join(f"{name}={_code(value)}" for name, value in arguments if value is not None)
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.argument_names())

    def __hash__(self) -> int:
        return hash(repr(self))


def registered(cls: SetClass) -> SetClass:
    """Registers a set for saving, as `inbounds>Name`."""
    return keras.saving.register_keras_serializable("inbounds")(cls)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Set):
        return keras.saving.serialize_keras_object(value)
    return list(value) if isinstance(value, tuple) else value


def _code(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return _code(value.tolist())
    if isinstance(value, list):
        return f"[{', '.join(map(_code, value))}]"
    return repr(value) if value not in (math.inf, -math.inf) else f"float('{value}')"


def _checked_rows(owner: Set, rows: Any) -> Array:
    rows = np.asarray(rows, dtype="float64") if isinstance(rows, (list, tuple)) else rows
    if len(rows.shape) != 2:
        raise SetError(
            explain(
                "Rows have the shape (units, size), one unit a row",
                f"rows.shape={tuple(rows.shape)}",
                instead="rows.reshape(1, -1) for one unit",
            )
        )
    _check_float(owner, rows)
    return rows


def _check_float(owner: Set, weight: Any) -> None:
    if dtype_of(weight) not in MANTISSA_BITS:
        raise SetError(
            explain(
                "A set applies to floating point weights: " + ", ".join(MANTISSA_BITS),
                f"dtype={dtype_of(weight)}",
                where=f"{owner!r} on a weight of shape {tuple(weight.shape)}",
                instead="cast it, to float32",
            )
        )
