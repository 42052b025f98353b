"""Decides how the steps of an optimizer treat each set.

A decision says in which metric projections are nearest, whether the optimizer sees reduced
gradients, whether it steps latent weights, and whether a sparse gradient names all that is to be
projected. It is made when the optimizer takes up a plan, and again when either has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from inbounds._model.plan import Entry
from inbounds._sets.composite import contains, parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.sums import L1Ball
from inbounds._train.attached_sets import is_planned
from inbounds._train.metrics import STEP_ANOTHER_SEQUENCE, OptimizerMetric, optimizer_metric
from inbounds._train.step_projections import StepProjection, projection_of

EUCLIDEAN = "Euclidean"


def decide(entry: Entry, optimizers: Sequence[Any] = (), *, sparse_gradient: bool = False) -> StepProjection:
    """Decides how the steps of some optimizers treat an entry; sparse gradients aren't reduced."""
    shared = _shared(entry, optimizers)
    words, metric = _metric(entry, optimizers, shared, sparse_gradient)
    latent, latent_words = _latent(entry, optimizers, shared)
    optimizer = optimizers[0] if len(optimizers) == 1 else None
    return replace(
        projection_of(entry),
        optimizer=optimizer,
        metric=metric,
        metric_words=words,
        sparse_metric=_metric(entry, optimizers, shared, True)[1],
        full_gradient_reason=_full_gradient_reason(entry, optimizers, shared, sparse_gradient),
        latent=latent,
        latent_words=latent_words,
        shared=bool(shared),
        by_rows=_updates_given_rows_only(optimizer, entry),
    )


def in_given_metric(projection: StepProjection) -> StepProjection:
    """The projection in the metric that a caller gives, unless the plan says "euclidean"."""
    if projection.entry.training.metric == "euclidean":
        return projection
    return replace(projection, metric=OptimizerMetric(lambda optimizer, variable, diagonal: diagonal))


def signature(optimizer: Any, entries: Sequence[Entry]) -> Any:
    """What the decisions on some entries depend on; a value that differs means to decide again."""
    trained = [bool(variable.trainable) for entry in entries for variable in entry.variables]
    return optimizer_metric(optimizer), len(getattr(optimizer, "_trainable_variables", ())), entries, trained


def _metric(
    entry: Entry, optimizers: Sequence[Any], shared: str, sparse_gradient: bool
) -> tuple[str, OptimizerMetric | None]:
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
    if shared:
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
    full = training.gradient == "full" or not constraint.has_reduced_gradient
    drags = contains(constraint, (L1Ball,))
    return training.metric == "optimizer" or full or drags or not averages


def _full_gradient_reason(entry: Entry, optimizers: Sequence[Any], shared: str, sparse_gradient: bool) -> str:
    """Why optimizers see the full gradient, in words; empty if they see the reduced one."""
    constraint = entry.set
    if entry.training.gradient == "full":
        return "as asked for"
    if shared:
        return shared
    if _projects_in_metric(entry, averages=False):
        for optimizer in optimizers:
            if (metric := optimizer_metric(optimizer)) is not None and metric.needs_full_gradient:
                return f"{type(optimizer).__name__} {metric.needs_full_gradient}"
    another = any(isinstance(optimizer, STEP_ANOTHER_SEQUENCE) for optimizer in optimizers)
    if constraint.separable and not (another and constraint.has_reduced_gradient):
        return "each entry is projected by itself"
    if not constraint.has_reduced_gradient:
        custom = isinstance(constraint, Custom)
        return "the callable isn't said to be a projection" if custom else "the set is neither convex nor smooth"
    return "it names rows of a batch only" if sparse_gradient else ""


def _latent(entry: Entry, optimizers: Sequence[Any], shared: str) -> tuple[bool, str]:
    """Whether optimizers step latent weights of an entry, and what the plan says of it."""
    if not entry.keeps_latent or not any(variable.trainable for variable in entry.variables):
        return False, ""
    base = keras.optimizers.Optimizer
    own = [one for one in optimizers if isinstance(one, base) and type(one).apply is not base.apply]  # no hook there
    why = f"{type(own[0]).__name__} has an `apply` of its own" if own else shared
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


# Rows of an Embedding, whose gradient is sparse on TensorFlow.

_UPDATES_GIVEN_ROWS_ONLY: dict[type, Callable[[Any], bool]] = {
    keras.optimizers.SGD: lambda optimizer: not optimizer.momentum,
    keras.optimizers.Adagrad: lambda optimizer: True,
    keras.optimizers.RMSprop: lambda optimizer: not optimizer.momentum,
}
"""The optimizers that leave rows without a gradient unchanged, and under which condition."""


def _updates_given_rows_only(optimizer: Any, entry: Entry) -> bool:
    """Whether it is enough to project the rows that a sparse gradient names.

    It is once a plan has projected the other rows, unless these may move, or the set changes, keeps
    latent weights or tells rows apart.
    """
    return (
        keras.backend.backend() == "tensorflow"
        and len(entry.weights) == 1
        and entry.training.every == 1
        and not entry.keeps_latent
        and is_planned(entry)
        and _UPDATES_GIVEN_ROWS_ONLY.get(type(optimizer), lambda optimizer: False)(optimizer)
        and not optimizer.weight_decay
        and 0 not in entry.axes[0]
        and not entry.set.changes
        and entry.applied.splittable
        and all(getattr(part, "rate", 1.0) == 1 for part in parts_of(entry.applied))
    )
