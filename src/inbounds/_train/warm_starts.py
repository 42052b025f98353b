"""State of inbounds that a training step hands to the next, or to who asks: beside the optimizer's own.

A warm start is carried from the projection after one step to that after the next, a number per unit. A Monitor may ask
how long the last gradient was, and what the sets left of it. Both live in variables of the optimizer. On JAX a compiled
step hands back only what the optimizer lists, so there they are listed. They are not saved, so that files are those of
the optimizer by itself; after loading, the first step finds the numbers anew.
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
from inbounds._train.metrics import metric_of
from inbounds._train.optimizers import with_inner

_KEPT = "_inbounds_kept"
"""In an optimizer, pairs of an entry and the variable with its warm start; of None and what a Monitor asks for."""

_ASKED = "_inbounds_asked"
"""In an optimizer that measures its gradients."""


def prepare(optimizer: Any, entries: Sequence[Entry]) -> None:
    """Gives a built optimizer variables for those of the entries that start warm; takes away all others."""
    old = vars(optimizer).pop(_KEPT, [])
    pairs: list[tuple[Entry | None, Any]] = []
    for entry in filter(partial(_starts_warm, optimizer), entries):
        of_first = [kept for before, kept in old if before is not None and _first(before) is _first(entry)]
        known = [kept for kept in of_first if tuple(kept.shape) == _shape(entry)]
        pairs.append((entry, known[0] if known else _made(optimizer, entry)))
    if is_asked(optimizer):
        lengths = [kept for before, kept in old if before is None]
        pairs.append((None, lengths[0] if lengths else _lengths(optimizer)))
    if keras.backend.backend() == "jax":
        listed = optimizer._variables
        listed[:] = [one for one in listed if not _among(one, old)] + [kept for _, kept in pairs]
    if pairs:
        vars(optimizer)[_KEPT] = pairs  # not setattr, which tracks


def warm_of(optimizer: Any, entry: Entry) -> Any:
    """The variable that keeps the warm start of an entry; None: it has none."""
    return next((kept for known, kept in vars(optimizer).get(_KEPT, ()) if known is entry), None)


def measure_gradients(optimizer: Any, entries: Sequence[Entry]) -> None:
    """Has an optimizer measure the gradients of its steps from now on, or once it is built."""
    vars(optimizer)[_ASKED] = True
    if optimizer.built:
        prepare(optimizer, entries)


def is_asked(optimizer: Any) -> bool:
    """Whether it measures its gradients."""
    return _ASKED in vars(optimizer)


def lengths_of(optimizer: Any) -> Any:
    """The variable with the squares of what sets left of the last gradient, and of all of it; None: nobody asked."""
    return next((kept for known, kept in vars(optimizer).get(_KEPT, ()) if known is None), None)


def without_warm_starts(method: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A method of optimizers that saves or loads their variables, without those that keep warm starts."""

    def of_its_own(self: Any, store: Any) -> None:
        with _unlisted(self):
            method(self, store)

    return of_its_own


@contextmanager
def _unlisted(optimizer: Any) -> Iterator[None]:
    """A context in which an optimizer, and those inside it, list no warm starts."""
    lists = [(one._variables, vars(one)[_KEPT]) for one in with_inner(optimizer) if _KEPT in vars(one)]
    whole = [list(listed) for listed, _ in lists]
    for listed, pairs in lists:
        if any(_among(one, pairs) for one in listed):
            listed[:] = [one for one in listed if not _among(one, pairs)]
    try:
        yield
    finally:
        for (listed, _), before in zip(lists, whole, strict=True):
            if len(listed) != len(before):
                listed[:] = before


def _starts_warm(optimizer: Any, entry: Entry) -> bool:
    """Whether a step of an optimizer on an entry is followed by a projection that can start warm."""
    metric = metric_of(optimizer)
    return (
        entry.applied.warm_starts
        and entry.set.every == 1
        and metric is not None
        and metric.reader is not None
        and entry.set.follows(metric.averages)
        and not any(is_sharded(weight.variable.value) for weight in entry.weights)
        and not _in_replicas(entry)
    )


def _in_replicas(entry: Entry) -> bool:
    """Whether a strategy of TensorFlow runs the steps, which would have one number for each replica."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    spread = any(isinstance(weight.variable.value, tf.distribute.DistributedValues) for weight in entry.weights)
    return spread or bool(tf.distribute.has_strategy())


def _made(optimizer: Any, entry: Entry) -> Any:
    first = _first(entry)
    with keras.name_scope(optimizer.name):
        zeros = np.zeros(_shape(entry), working_dtype(dtype_of(first)))
        name = f"{first.path.replace('/', '_')}_warm_start"  # as Keras names slots
        return keras.Variable(zeros, trainable=False, name=name)


def _lengths(optimizer: Any) -> Any:
    with keras.name_scope(optimizer.name):
        return keras.Variable(np.full(2, np.nan, "float32"), trainable=False, name="squares_of_gradients")


def _shape(entry: Entry) -> tuple[int, ...]:
    """That of one number per unit."""
    if entry.applied.whole:
        return ()
    return tuple(n for axis, n in enumerate(entry.weights[0].shape) if axis not in entry.axes[0])


def _first(entry: Entry) -> Any:
    return entry.weights[0].variable


def _among(variable: Any, pairs: Sequence[tuple[Entry | None, Any]]) -> bool:
    return any(variable is kept for _, kept in pairs)
