"""Finds the Keras optimizers of a model, which variables they step, and their step counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import keras
from keras.src.backend.common import stateless_scope  # no public equivalent

from inbounds._model.plan import Entry

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


def optimizers_stepping(model: Any, variables: Sequence[Any]) -> list[Any]:
    """The optimizers of a model that step some of the variables.

    If there are none, those that aren't built yet: of the compiled optimizer if any, else all. If
    the model holds none, those that stepped the variables last in a loop of the user's own.
    """
    steppers = steppers_of(model)
    unbuilt = [optimizer for optimizer in steppers if not optimizer.built]
    compiled = set(map(id, with_inner(*filter(None, [getattr(model, "optimizer", None)]))))
    of_compiled = [optimizer for optimizer in unbuilt if id(optimizer) in compiled]
    return _stepping(steppers, variables) or of_compiled or unbuilt or _last_steppers(variables)


def _stepping(optimizers: Iterable[Any], variables: Sequence[Any]) -> list[Any]:
    """Those of some optimizers that step some of the variables."""
    ids = set(map(id, variables))
    return [optimizer for optimizer in optimizers if ids & set(map(id, optimizer._trainable_variables))]


_STEPPER_OF: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""From the id of a variable with a set to the living optimizer that has taken the set up last."""


def _last_steppers(variables: Sequence[Any]) -> list[Any]:
    """The optimizers that stepped the variables last."""
    last = (_STEPPER_OF.get(id(variable)) for variable in variables)
    return _stepping({id(one): one for one in last if one is not None}.values(), variables)


_IN_OWN_LOOPS: WeakSet[Any] = WeakSet()
"""The optimizers that no model with a plan held when they took it up."""


def remember_stepper(optimizer: Any, variables: Iterable[Any], models: Iterable[Any]) -> None:
    """Notes the optimizer of some variables, which the models of their plans may not hold."""
    for variable in variables:
        _STEPPER_OF[id(variable)] = optimizer
    if not any(one is optimizer for model in models for one in optimizers_of(model)):
        _IN_OWN_LOOPS.add(optimizer)


def in_stateless_scope() -> bool:
    """Whether the caller runs within a pure function of variables' values, as JAX's steps are."""
    return bool(stateless_scope.in_stateless_scope())


def in_tensorflow_strategy() -> bool:
    """Whether the caller runs within a strategy of TensorFlow, which has replicas."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())


def steps_taken(model: Any, entry: Entry) -> int:
    """The step count of an entry's optimizer, if its set changes with the steps; else 0."""
    if not entry.set.changes:
        return 0
    own = [optimizer for optimizer in optimizers_stepping(model, entry.variables) if optimizer.built]
    own = own or [one for one in _last_steppers(entry.variables) if one in _IN_OWN_LOOPS]  # not the compiled one
    return int(own[0].iterations) if own else 0
