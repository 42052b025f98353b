"""How the steps of an optimizer treat a set, decided once, when the optimizer takes up the plan.

Keras' optimizers, those of `torch.optim` and the functions of values are adapters of this module:
they read the values of the weights, call `reduce` before a step and `project` after it, and assign.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import keras

from inbounds._arrays.ops import (
    Array,
    branch,
    cast,
    dtype_of,
    epsilon,
    is_sharded,
    is_sparse,
    namespace,
    quiet,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._sets.composite import contains
from inbounds._sets.sums import L1Ball
from inbounds._train import programs
from inbounds._train.metrics import NEED_FULL_GRADIENT, STEP_ANOTHER_SEQUENCE, OptimizerMetric, optimizer_metric

EUCLIDEAN = "Euclidean"

Read = Callable[[Any], Array]
"""Returns the value of a variable, as a tensor or a NumPy array: projections compute in its kind."""


@dataclass(frozen=True, eq=False)
class StepProjection:
    """How steps treat the set of one entry."""

    entry: Entry
    axes: tuple[Axes, ...]  # those of the entry
    free: tuple[bool, ...]  # for each weight, whether projections may move it
    optimizer: Any = None  # the one that steps the weights; None: none is known
    metric: OptimizerMetric | None = None  # the optimizer's, in which projections are nearest; None: Euclidean
    metric_words: str = ""  # the metric in words, or why it is the Euclidean one
    sparse_metric: OptimizerMetric | None = None  # that of a step with a sparse gradient, which isn't reduced
    full_gradient_reason: str = ""  # why the optimizer sees the full gradient, in words; empty if it doesn't
    latent: bool = False  # whether the optimizer steps latent weights, see `Training`
    latent_words: str = ""  # what the plan says of them; empty without them
    shared: bool = False  # whether the optimizer leaves some of the trained weights to another one
    by_rows: bool = False  # whether it is enough to project the rows that a sparse gradient names
    beside: int = 1  # how many weights alike it is for, side by side, see `Units`

    @cached_property
    def size(self) -> int:
        """The number of entries of the weights."""
        return sum(math.prod(weight.shape) for weight in self.entry.weights)

    @property
    def free_variables(self) -> list[Any]:
        """The variables that projections may move."""
        return [variable for variable, free in zip(self.entry.variables, self.free, strict=True) if free]

    def reduce(self, values: Sequence[Array], gradients: Sequence[Any], count: Any) -> list[Any]:
        """The reduced gradients, taken at these values, before a step; None for a weight that isn't stepped."""
        stepped = [gradient is not None for gradient in gradients]
        units = Units.of(values, self.axes, stepped, concrete=_is_eager(), beside=self.beside)
        parts = [
            keras.ops.zeros_like(part) if gradient is None else cast(gradient, dtype_of(part))
            for part, gradient in zip(units.parts, gradients, strict=True)
        ]
        with quiet(values[0]), _explain_dtensor_errors(self.entry):
            reduced = programs.run(programs.reduced, self.entry.applied, count, units, units.with_parts(parts))
        pairs = zip(gradients, reduced.parts, strict=True)
        return [None if old is None else cast(part, dtype_of(old)) for old, part in pairs]

    def project(
        self, values: Sequence[Array], count: Any = 0, metric: Sequence[Array] | None = None, concrete: bool = False
    ) -> list[Array]:
        """The projected values of the weights, in their dtypes, after so many steps.

        The metric holds the diagonal of each weight; see `Units` for `concrete`.
        """
        if not any(self.free):
            return list(values)
        training = metric is not None
        units = Units.of(
            values, self.axes, self.free, concrete=concrete, metric=metric, training=training, beside=self.beside
        )
        with quiet(values[0]), _explain_dtensor_errors(self.entry):
            nearest = programs.run(programs.nearest, self.entry.applied, count, units)
        parts = zip(values, nearest.parts, self.free, strict=True)
        return [cast(part, dtype_of(value)) if free else value for value, part, free in parts]

    # What the adapters have in common. Of latent weights, too: the adapter assigns `starts` before
    # the optimizer's step, and stores the weights after it, before they are projected.

    def starts(self, read: Read, read_latent: Read, count: Any) -> list[tuple[Any, Array]]:
        """The free variables with the values from which the optimizer steps: their latent weights, where they have any.

        A unit, or an entry of a set that looks at each by itself, starts from its own values where
        those are no longer the nearest point of its latent weights: NaN, or someone has assigned
        others.
        """
        variables, values = self.entry.variables, list(map(read, self.entry.variables))
        stored = [read_latent(v) if free else None for v, free in zip(variables, self.free, strict=True)]
        if all(latent is None for latent in stored):
            return []
        latents = [value if latent is None else latent for value, latent in zip(values, stored, strict=True)]

        def started() -> list[Array]:
            return self._continued(values, latents, self.project(latents, count, concrete=_is_eager()))

        if self.entry.training.every == 1:
            starts = started()
        else:  # between projections the weights are the latent ones
            both = zip(values, latents, strict=True)
            same = reduce(operator.and_, [keras.ops.all(value == latent) for value, latent in both])
            starts = branch(same, lambda: values, started)
        trios = zip(variables, starts, stored, strict=True)
        return [(variable, start) for variable, start, latent in trios if latent is not None]

    def _continued(self, values: Sequence[Array], latents: Sequence[Array], nearest: Sequence[Array]) -> list[Array]:
        """The latent weights where the values are their nearest point, but for rounding; else the values."""
        applied, units = self.entry.applied, Units.of(values, self.axes)
        xp, wide = namespace(values[0]), working_dtype(units.dtype)
        latent, nearest_units = (units.with_parts([cast(part, wide) for part in parts]) for parts in (latents, nearest))
        tolerance = max(epsilon(wide) ** 0.5, 2 * epsilon(units.dtype))

        def chosen(x: Array, latent: Array, off: Array, size: Array) -> Array:
            return xp.where(off <= tolerance * size, latent, x)

        off = units.map(lambda x, y: xp.abs(x - y), nearest_units)
        if applied.separable:
            started = units.map(chosen, latent, off, units.map(xp.abs))
        else:
            view, apart = units.together(applied.couples_units), off.together(applied.couples_units)
            started = view.map(chosen, latent, apart.max(lambda x: x), view.max(xp.abs))
        return [cast(part, dtype_of(value)) for part, value in zip(started.parts, values, strict=True)]

    def reduced_gradients(self, gradients: Mapping[int, Any], read: Read, count: Any) -> dict[int, Any]:
        """The reduced gradients by the ids of the variables; empty where none is known, or one is sparse."""
        variables = self.entry.variables
        own = [gradients.get(id(variable)) for variable in variables]
        if all(gradient is None for gradient in own) or any(map(is_sparse, own)):
            return {}
        reduced = self.reduce(list(map(read, variables)), own, count)
        return {id(v): gradient for v, gradient in zip(variables, reduced, strict=True) if gradient is not None}

    def projected_values(self, read: Read = keras.ops.convert_to_tensor, *state: Any) -> list[tuple[Any, Any]]:
        """The free variables with their projected values; `state` goes to `project`."""
        variables = self.entry.variables
        values = self.project(list(map(read, variables)), *state)
        return [(v, value) for v, value, free in zip(variables, values, self.free, strict=True) if free]

    def state_after(self, count: Any, stepped: Mapping[int, Any] | None) -> tuple[Any, Sequence[Array] | None, bool]:
        """What `project` needs besides the values, right after a step of the optimizer.

        `stepped` has by the ids of the variables that were stepped what the metric's reader takes,
        of optimizers of Keras the gradients; it is None outside of steps.
        """
        own = [] if stepped is None else [stepped.get(id(variable)) for variable in self.entry.variables]
        metric = self.sparse_metric if any(map(is_sparse, own)) else self.metric
        if metric is None or stepped is None:
            return count, None, _is_eager()
        return count, metric.diagonals(self.optimizer, self.entry.variables, own), _is_eager()


def projection_of(entry: Entry, *, include_frozen: bool = False) -> StepProjection:
    """The Euclidean projection of an entry outside of steps; with or without frozen weights."""
    return StepProjection(entry, entry.axes, tuple(include_frozen or bool(v.trainable) for v in entry.variables))


def decide(entry: Entry, optimizers: Sequence[Any] = (), *, sparse_gradient: bool = False) -> StepProjection:
    """Decides how the steps of some optimizers treat an entry; a gradient that is sparse isn't reduced."""
    words, metric = _metric(entry, optimizers, sparse_gradient)
    latent, latent_words = _latent(entry, optimizers)
    return replace(
        projection_of(entry),
        optimizer=optimizers[0] if len(optimizers) == 1 else None,
        metric=metric,
        metric_words=words,
        sparse_metric=_metric(entry, optimizers, True)[1],
        full_gradient_reason=_full_gradient_reason(entry, optimizers, sparse_gradient),
        latent=latent,
        latent_words=latent_words,
        shared=bool(_shared(entry, optimizers)),
    )


def signature(optimizer: Any, entries: Sequence[Entry]) -> Any:
    """What the decisions on some entries depend on; a value that differs means to decide again."""
    trained = [(entry, *(bool(variable.trainable) for variable in entry.variables)) for entry in entries]
    return optimizer_metric(optimizer), len(getattr(optimizer, "_trainable_variables", ())), trained


def _is_eager() -> bool:
    """Whether Python can read values within a step, see `Units`."""
    return bool(keras.backend.backend() == "torch")


def _metric(entry: Entry, optimizers: Sequence[Any], sparse_gradient: bool) -> tuple[str, OptimizerMetric | None]:
    """The metric in which an entry is projected, in words, and as the optimizer has it."""
    constraint = entry.set
    if entry.training.metric == "euclidean":
        return f"{EUCLIDEAN}, as asked for", None
    if constraint.separable:
        return "the same in all: each entry by itself", None
    if entry.keeps_latent:
        return f"{EUCLIDEAN}: of latent weights", None
    if not constraint.exact_in_metric:
        why = "in another the set has no formula" if constraint.has_reduced_gradient else "the set is not convex"
        return f"{EUCLIDEAN}: {why}", None
    if not any(variable.trainable for variable in entry.variables):
        return "none: frozen, no step moves it", None
    if not optimizers:
        return "known once the model is compiled", None
    if len(optimizers) > 1 and not any(optimizer.built for optimizer in optimizers):
        return "that of the one that steps it, known once the optimizers are built", None
    if shared := _shared(entry, optimizers):
        return f"{EUCLIDEAN}: {shared}", None
    name, metric = type(optimizers[0]).__name__, optimizer_metric(optimizers[0])
    if not _projects_in_metric(entry, (metric is None or metric.averages_gradients) and not sparse_gradient):
        return f"{EUCLIDEAN}: {name} sees the reduced gradient", None
    if metric is None:
        return f"{EUCLIDEAN}: that of {name} is not known, see register_metric", None
    if metric.reader is None:
        return f"{EUCLIDEAN}: {name} steps all entries alike", None
    return f"{name}: {metric.description}", metric


def _projects_in_metric(entry: Entry, averages: bool) -> bool:
    """Whether the projection after a step is in the optimizer's metric, where that is known.

    With reduced gradients the Euclidean one ends at the constrained optimum as well, and takes
    less. But steps of one size, as Lion's, drag a face along with them; and noise that the
    optimizer doesn't average away moves weights inwards, from where the way back isn't straight out
    in the Euclidean metric.
    """
    constraint, training = entry.set, entry.training
    if training.metric == "euclidean" or constraint.separable or not constraint.exact_in_metric:
        return False
    full = training.gradient == "full" or bool(constraint.full_gradient_reason)
    has_faces = contains(constraint, (L1Ball,))
    return training.metric == "optimizer" or full or has_faces or not averages


def _full_gradient_reason(entry: Entry, optimizers: Sequence[Any], sparse_gradient: bool) -> str:
    """Why optimizers see the full gradient, in words; empty if they see the reduced one."""
    constraint = entry.set
    if entry.training.gradient == "full":
        return "as asked for"
    if shared := _shared(entry, optimizers):
        return shared
    if _projects_in_metric(entry, averages=False):
        for kind, why in NEED_FULL_GRADIENT.items():
            if any(isinstance(optimizer, kind) for optimizer in optimizers):
                return f"{kind.__name__} {why}"
    another = any(isinstance(optimizer, STEP_ANOTHER_SEQUENCE) for optimizer in optimizers)
    reason = "" if another and constraint.has_reduced_gradient else constraint.full_gradient_reason
    return reason or ("it names rows of a batch only" if sparse_gradient else "")


def _latent(entry: Entry, optimizers: Sequence[Any]) -> tuple[bool, str]:
    """Whether optimizers step latent weights of an entry, and what the plan says of it."""
    if not entry.keeps_latent or not any(variable.trainable for variable in entry.variables):
        return False, ""
    base = keras.optimizers.Optimizer
    own = [one for one in optimizers if isinstance(one, base) and type(one).apply is not base.apply]  # no hook there
    why = f"{type(own[0]).__name__} has an `apply` of its own" if own else _shared(entry, optimizers)
    if why:
        return False, "; ".join(filter(None, [f"no latent weights: {why}", entry.set.undone_steps]))
    names = " or ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
    where = names or "an optimizer of Keras, `project_after` or `optax_wrap`"
    return True, f"latent weights beside the state of {where}"


def _shared(entry: Entry, optimizers: Sequence[Any]) -> str:
    """Why no built optimizer steps all trained weights, in words; empty if one does."""
    built = [optimizer for optimizer in optimizers if getattr(optimizer, "built", False)]
    if len(optimizers) > 1 and built:
        return f"{len(optimizers)} optimizers step weights of one unit"
    trained = {id(variable) for variable in entry.variables if variable.trainable}
    apart = any(trained.difference(map(id, optimizer._trainable_variables)) for optimizer in built)
    return "its optimizer doesn't step all weights of a unit" if apart else ""


@contextmanager
def _explain_dtensor_errors(entry: Entry) -> Iterator[None]:
    """A context that turns an error of PyTorch's DTensors into one that says what to do instead."""
    try:
        yield
    except RuntimeError as error:
        if not any(is_sharded(variable.value) for variable in entry.variables):
            raise
        wrong = "The set takes an operation that PyTorch lacks for DTensors"
        instead = "a set of entries, norms or sums (docs/devices.md), or weights that aren't sharded"
        raise RuleError(wrong, str(error).split("\n")[0], where=repr(entry), instead=instead) from error
