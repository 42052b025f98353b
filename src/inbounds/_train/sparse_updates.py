"""Projects only the rows that a sparse gradient updates, on TensorFlow.

TensorFlow's gradient of an Embedding is sparse: it names the rows that the batch used. Projecting
those alone avoids reading and writing the whole table in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

import keras

from inbounds._arrays.ops import is_sparse
from inbounds._model.plan import Entry
from inbounds._sets.set import Set
from inbounds._train.attached_sets import projected_values
from inbounds._train.metrics import StepMetric
from inbounds._train.optimizers import in_tensorflow_strategy

_UPDATES_GIVEN_ROWS_ONLY: dict[type, Callable[[Any], bool]] = {
    keras.optimizers.SGD: lambda optimizer: not optimizer.momentum,
    keras.optimizers.Adagrad: lambda optimizer: True,
    keras.optimizers.RMSprop: lambda optimizer: not optimizer.momentum,
}
"""The optimizers that leave rows without a gradient unchanged, and under which condition."""


def updated_rows(optimizer: Any, entry: Entry, gradient: Any) -> Any:
    """The indices of the rows that a step has updated, where projecting those is enough; else None.

    It isn't enough where other rows may have moved, where the set changes with the steps, or where
    it treats rows differently.
    """
    if keras.backend.backend() != "tensorflow" or len(entry.weights) > 1:
        return None
    updates_given_rows_only = _UPDATES_GIVEN_ROWS_ONLY.get(type(optimizer), lambda optimizer: False)
    enough = (
        is_sparse(gradient)
        and updates_given_rows_only(optimizer)
        and not optimizer.weight_decay
        and 0 not in entry.axes[0]
        and not entry.set.changes
        and _treats_rows_alike(entry.applied)
        and not in_tensorflow_strategy()  # each replica has rows of its own
    )
    return gradient.indices if enough else None


def project_rows(entry: Entry, rows: Any, metric: StepMetric, step_count: Any) -> None:
    """Projects some rows of an entry's only weight, in the metric of the step."""
    import tensorflow as tf

    diagonals = None if metric.diagonals is None else [tf.gather(diagonal, rows) for diagonal in metric.diagonals]
    for variable, value in projected_values(
        entry, read=lambda v: tf.gather(v.value, rows), metric=StepMetric(diagonals), step_count=step_count
    ):
        variable.value.scatter_update(tf.IndexedSlices(value, rows))


def _treats_rows_alike(value: Any) -> bool:
    """Whether a set asks the same of each row, by its own arguments and those of the sets in it."""
    if isinstance(value, Set):
        arguments = [getattr(value, name) for name in value.argument_names()]
        return value.stackable and getattr(value, "rate", 1.0) == 1 and all(map(_treats_rows_alike, arguments))
    if isinstance(value, (list, tuple)):
        return all(map(_treats_rows_alike, value))
    return value is None or isinstance(value, (Number, str))
