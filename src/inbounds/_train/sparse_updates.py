"""Projects only the rows that a sparse gradient updates, on TensorFlow.

TensorFlow's gradient of an Embedding is sparse: it names the rows that the batch used. Projecting
those alone avoids reading and writing the whole table in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import keras

from inbounds._arrays.ops import is_sparse
from inbounds._model.plan import Entry
from inbounds._sets.composite import contains
from inbounds._sets.masks import On
from inbounds._sets.set import Set
from inbounds._train.assignments import assign_rows
from inbounds._train.attached_sets import is_planned
from inbounds._train.optimizers import in_tensorflow_strategy
from inbounds._train.step_projections import StepProjection

_UPDATES_GIVEN_ROWS_ONLY: dict[type, Callable[[Any], bool]] = {
    keras.optimizers.SGD: lambda optimizer: not optimizer.momentum,
    keras.optimizers.Adagrad: lambda optimizer: True,
    keras.optimizers.RMSprop: lambda optimizer: not optimizer.momentum,
}
"""The optimizers that leave rows without a gradient unchanged, and under which condition."""


def updates_given_rows_only(optimizer: Any, entry: Entry) -> bool:
    """Whether it is enough to project the rows that a sparse gradient names, since a plan has projected the others.

    It isn't where other rows may move, or the set changes, keeps latent weights or tells rows apart.
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
        and not contains(entry.applied, (On,))
        and _treats_rows_alike(entry.applied)
    )


def project_updated_rows(projection: StepProjection, count: Any, gradients: Mapping[int, Any] | None) -> bool:
    """Projects the rows that a step has updated, in its metric, and returns whether that is enough."""
    if gradients is None or not projection.by_rows or in_tensorflow_strategy():  # each replica has rows of its own
        return False
    gradient = gradients.get(id(projection.entry.variables[0]))
    if gradient is None or not is_sparse(gradient):
        return False
    import tensorflow as tf

    rows, (_, metric, _) = gradient.indices, projection.state_after(count, gradients)
    metric = metric and [tf.gather(diagonal, rows) for diagonal in metric]
    for variable, value in projection.projected_values(lambda one: tf.gather(one.value, rows), count, metric):
        assign_rows(variable, rows, value)
    return True


def _treats_rows_alike(value: Any) -> bool:
    """Whether a set asks the same of each row, by its own arguments and those of the sets in it."""
    if isinstance(value, Set):
        arguments = [getattr(value, name) for name in value.argument_names()]
        return value.stackable and getattr(value, "rate", 1.0) == 1 and all(map(_treats_rows_alike, arguments))
    if isinstance(value, (list, tuple)):
        return all(map(_treats_rows_alike, value))
    return value is None or isinstance(value, (Number, str))
