"""Rows of an Embedding on TensorFlow: where a step has moved those of its batch only, only those are projected.

TensorFlow's gradient of an Embedding names the rows that the batch used. A table of a million rows would else be read
and written whole in each step, which the optimizer itself doesn't do.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

import keras

from inbounds._arrays.ops import is_sparse
from inbounds._model.plan import Entry
from inbounds._sets.set import Set
from inbounds._train.bound import projected
from inbounds._train.metrics import Step

_LEAVES_OTHERS: dict[type, Callable[[Any], bool]] = {
    keras.optimizers.SGD: lambda optimizer: not optimizer.momentum,
    keras.optimizers.Adagrad: lambda optimizer: True,
    keras.optimizers.RMSprop: lambda optimizer: not optimizer.momentum,
}
"""The optimizers that leave rows without a gradient where they are, and when."""


def rows_moved(optimizer: Any, entry: Entry, gradient: Any) -> Any:
    """The numbers of the rows of an entry that a step has moved, which are enough to project.

    None where other rows may have moved, or leave a set that changes, or where the set tells rows apart.
    """
    if keras.backend.backend() != "tensorflow" or len(entry.weights) > 1:
        return None
    import tensorflow as tf

    leaves_others = _LEAVES_OTHERS.get(type(optimizer), lambda optimizer: False)
    enough = (
        is_sparse(gradient)
        and leaves_others(optimizer)
        and not optimizer.weight_decay
        and 0 not in entry.axes[0]
        and not entry.set.changes
        and _sees_each_alike(entry.applied)
        and not tf.distribute.has_strategy()  # each replica has rows of its own
    )
    return gradient.indices if enough else None


def project_rows(entry: Entry, rows: Any, step: Step, at: Any) -> None:
    """Projects some rows of the one weight of an entry, in the metric of the step that moved them."""
    import tensorflow as tf

    taken = None if step.costs is None else [tf.gather(cost, rows) for cost in step.costs]
    for variable, value in projected(entry, read=lambda v: tf.gather(v.value, rows), step=Step(taken), at=at):
        variable.value.scatter_update(tf.IndexedSlices(value, rows))


def _sees_each_alike(value: Any) -> bool:
    """Whether a set asks the same of each row: by its arguments, and by those of the sets that it is made of."""
    if isinstance(value, Set):
        arguments = [getattr(value, name) for name in value.argument_names()]
        return value.stackable and getattr(value, "rate", 1.0) == 1 and all(map(_sees_each_alike, arguments))
    if isinstance(value, (list, tuple)):
        return all(map(_sees_each_alike, value))
    return value is None or isinstance(value, (Number, str))
