"""Variables that inbounds adds to an optimizer: warm starts, and squared norms of gradients.

A warm start, one number per unit, passes from one step's projection to the next. The squared norms
of the full and the reduced gradient are for a Monitor. On JAX a compiled step returns only the
variables that the optimizer lists, so these are listed there. They are not saved: files stay those
of the optimizer alone, and the first step after loading starts cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import dtype_of, is_sharded, working_dtype
from inbounds._model.plan import Entry
from inbounds._train.attached_sets import attached_entries
from inbounds._train.metrics import optimizer_metric
from inbounds._train.optimizers import in_tensorflow_strategy, with_inner

_ADDED = "_inbounds_added"
"""Attribute of an optimizer: pairs of an entry and its warm start, or of None and the norms."""

_MEASURES = "_inbounds_measures"
"""Attribute of an optimizer that measures its gradients."""


def add_variables(optimizer: Any, entries: Sequence[Entry]) -> None:
    """Adds the variables that a built optimizer needs for some entries; removes other ones."""
    old = vars(optimizer).pop(_ADDED, [])
    pairs: list[tuple[Entry | None, Any]] = []
    for entry in filter(partial(_uses_warm_start, optimizer), entries):
        reusable = [
            added
            for owner, added in old
            if owner is not None
            and owner.variables[0] is entry.variables[0]
            and tuple(added.shape) == _warm_start_shape(entry)
        ]
        pairs.append((entry, reusable[0] if reusable else _new_warm_start(optimizer, entry)))
    if measures_gradients(optimizer):
        norms = [added for owner, added in old if owner is None]
        pairs.append((None, norms[0] if norms else _new_gradient_norms(optimizer)))
    if keras.backend.backend() == "jax":
        listed = optimizer._variables
        listed[:] = [v for v in listed if not _is_added(v, old)] + [added for _, added in pairs]
    if pairs:
        vars(optimizer)[_ADDED] = pairs  # Keras and TensorFlow track what setattr sets


def warm_start_of(optimizer: Any, entry: Entry) -> Any:
    """The variable with the warm start of an entry; None if it has none."""
    return next((added for owner, added in vars(optimizer).get(_ADDED, ()) if owner is entry), None)


def measure_gradients(optimizer: Any) -> None:
    """Makes an optimizer measure its gradients from now on, or once it is built."""
    vars(optimizer)[_MEASURES] = True
    if optimizer.built:
        add_variables(optimizer, attached_entries(optimizer._trainable_variables))


def measures_gradients(optimizer: Any) -> bool:
    """Whether an optimizer measures its gradients."""
    return _MEASURES in vars(optimizer)


def gradient_norms_of(optimizer: Any) -> Any:
    """The variable with the squared norms of the last gradient, reduced and full, or None."""
    return next((added for owner, added in vars(optimizer).get(_ADDED, ()) if owner is None), None)


def without_added_variables(method: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Wraps an optimizer's method that saves or loads variables so that it skips the added ones."""

    def wrapped(self: Any, store: Any) -> None:
        with _unlisted_added_variables(self):
            method(self, store)

    return wrapped


@contextmanager
def _unlisted_added_variables(optimizer: Any) -> Iterator[None]:
    """A context in which an optimizer, and those inside it, don't list the added variables."""
    lists = [(one._variables, vars(one)[_ADDED]) for one in with_inner(optimizer) if _ADDED in vars(one)]
    complete_lists = [list(listed) for listed, _ in lists]
    for listed, pairs in lists:
        if any(_is_added(one, pairs) for one in listed):
            listed[:] = [one for one in listed if not _is_added(one, pairs)]
    try:
        yield
    finally:
        for (listed, _), before in zip(lists, complete_lists, strict=True):
            if len(listed) != len(before):
                listed[:] = before


def _uses_warm_start(optimizer: Any, entry: Entry) -> bool:
    """Whether an optimizer's projections on an entry can start warm."""
    metric = optimizer_metric(optimizer)
    return (
        entry.applied.supports_warm_start
        and entry.set.every == 1
        and metric is not None
        and metric.reader is not None
        and entry.set.projects_in_metric(metric.averages_gradients)
        and not any(is_sharded(variable.value) for variable in entry.variables)
        and not _is_replicated(entry)
    )


def _is_replicated(entry: Entry) -> bool:
    """Whether replicas of TensorFlow run the steps: each would have a warm start of its own."""
    if keras.backend.backend() != "tensorflow":
        return False
    if in_tensorflow_strategy():
        return True
    import tensorflow as tf

    return any(isinstance(variable.value, tf.distribute.DistributedValues) for variable in entry.variables)


def _new_warm_start(optimizer: Any, entry: Entry) -> Any:
    first = entry.variables[0]
    with keras.name_scope(optimizer.name):
        zeros = np.zeros(_warm_start_shape(entry), working_dtype(dtype_of(first)))
        name = f"{first.path.replace('/', '_')}_warm_start"  # like Keras' slot variables
        return keras.Variable(zeros, trainable=False, name=name)


def _new_gradient_norms(optimizer: Any) -> Any:
    with keras.name_scope(optimizer.name):
        return keras.Variable(np.full(2, np.nan, "float32"), trainable=False, name="squares_of_gradients")


def _warm_start_shape(entry: Entry) -> tuple[int, ...]:
    """The shape of one number per unit."""
    if entry.applied.whole:
        return ()
    return tuple(n for axis, n in enumerate(entry.weights[0].shape) if axis not in entry.axes[0])


def _is_added(variable: Any, pairs: Sequence[tuple[Entry | None, Any]]) -> bool:
    return any(variable is added for _, added in pairs)
