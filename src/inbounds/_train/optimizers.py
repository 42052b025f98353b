"""Finds the Keras optimizers of a model, and asks where the caller runs."""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import stateless_scope  # no public equivalent

WRAPPERS = (keras.optimizers.LossScaleOptimizer, *filter(None, [getattr(keras.optimizers, "MultiOptimizer", None)]))
"""Optimizers that leave the step to optimizers inside them. Keras 3.14 has no MultiOptimizer."""


def optimizers_of(model: Any) -> list[Any]:
    """The optimizers of a model: the compiled one, its attributes, and those inside them."""
    held = (getattr(model, "optimizer", None), *vars(model).values())
    return with_inner(*(value for value in held if isinstance(value, keras.optimizers.Optimizer)))


def with_inner(*optimizers: Any) -> list[Any]:
    """The given optimizers and those inside them, each once."""
    found: dict[int, Any] = {}
    pending = list(optimizers)
    while pending:
        optimizer = pending.pop()
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            inner = getattr(optimizer, "inner_optimizer", None)
            pending += [*getattr(optimizer, "optimizers", []), *filter(None, [inner])]
    return list(found.values())


def steppers_of(model: Any) -> list[Any]:
    """The optimizers of a model that step by themselves, without the wrappers."""
    return [optimizer for optimizer in optimizers_of(model) if not isinstance(optimizer, WRAPPERS)]


def in_stateless_scope() -> bool:
    """Whether the caller runs within a pure function of variables' values, as JAX's steps are."""
    return bool(stateless_scope.in_stateless_scope())


def in_tensorflow_strategy() -> bool:
    """Whether the caller runs within a strategy of TensorFlow, which has replicas."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())
