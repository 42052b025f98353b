"""The Keras optimizers of a model: which there are, which of them step some variables, and how often they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from inbounds._model.plan import Entry

WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
"""Optimizers that leave the step to those inside them."""


def optimizers_of(model: Any) -> list[Any]:
    """The optimizers that a model holds: the compiled one, those in its attributes, and those inside them."""
    held = (getattr(model, "optimizer", None), *vars(model).values())
    return with_inner(*(value for value in held if isinstance(value, keras.optimizers.Optimizer)))


def with_inner(*optimizers: Any) -> list[Any]:
    """Some optimizers and those inside them, each once."""
    found: dict[int, Any] = {}
    pending = list(optimizers)
    while pending:
        optimizer = pending.pop()
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            pending += [
                *getattr(optimizer, "optimizers", []),
                *filter(None, [getattr(optimizer, "inner_optimizer", None)]),
            ]
    return list(found.values())


def stepping(model: Any, variables: Sequence[Any]) -> list[Any]:
    """The optimizers of a model that step some of these variables.

    Where none does, those that aren't built yet: the compiled one, or those inside it; where it is, all others.
    """
    ids = set(map(id, variables))
    steps = [optimizer for optimizer in optimizers_of(model) if not isinstance(optimizer, WRAPPERS)]
    own = [optimizer for optimizer in steps if ids & set(map(id, optimizer._trainable_variables))]
    coming = [optimizer for optimizer in steps if not optimizer.built]
    compiled = set(map(id, with_inner(*filter(None, [getattr(model, "optimizer", None)]))))
    return own or [optimizer for optimizer in coming if id(optimizer) in compiled] or coming


def steps_taken(model: Any, entry: Entry) -> int:
    """How many steps the optimizer of an entry has taken, where its set changes with them; 0 without one."""
    if not entry.set.changes:
        return 0
    own = [optimizer for optimizer in stepping(model, entry.variables) if optimizer.built]
    return int(own[0].iterations) if own else 0
