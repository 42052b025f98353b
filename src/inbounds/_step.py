"""The projection inside the training step: the one place that holds on to Keras' optimizers.

Keras hands a constraint one variable at a time, after the moving average is taken and on accumulation steps too. The
point just after the optimizer's update sees all variables, once per real step, before the average. It is private
(`_backend_update_step`), so all that relies on it is here, and `tests/test_keras_ground.py` names what breaks when
Keras changes.

`watch_optimizers` makes every optimizer look, when it is built, for variables that have a set. That one place serves a
model that is compiled after `constrain`, compiled again, loaded, cloned, or trained in a loop of the user's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import keras
import numpy as np

from inbounds._arrays import dtype_of
from inbounds._bound import Bound, bind, given_constraint, projected
from inbounds._plan import Entry
from inbounds._rules import resolve_given
from inbounds._set import Set
from inbounds._sets.combine import Custom, Joint
from inbounds._units import Units
from inbounds._weights import owners_of

SMALL = 1 << 15
"""On PyTorch, weights with fewer entries than this are projected as one stack: the calls cost more than the copies."""

_WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
"""Optimizers that leave the step to those inside them, which are hooked."""

_HOOKED = ("apply", "_backend_update_step", "_backend_apply_gradients", "finalize_variable_values")


def watch_optimizers() -> None:
    """Makes every Keras optimizer, when it is built, take up the sets of its variables. Done once, on import."""
    optimizer_class = keras.optimizers.Optimizer
    original = optimizer_class.build
    if getattr(original, "watched_by_inbounds", False):
        return

    def build(self: Any, variables: Sequence[Any]) -> None:
        original(self, variables)
        take_up(self, variables)

    build.watched_by_inbounds = True  # type: ignore[attr-defined]
    optimizer_class.build = build


def take_up(optimizer: Any, variables: Sequence[Any]) -> None:
    """Hooks one optimizer if any of its variables has a set, given by a plan or by a layer's argument."""
    given = [variable for variable in variables if isinstance(getattr(variable, "constraint", None), Set)]
    if given:
        for entry in resolve_given(owners_of(given), given_constraint).entries:
            if any(weight.variable is variable for weight in entry.weights for variable in given):
                bind(entry)
    entries = _entries(variables)
    if entries and not isinstance(optimizer, _WRAPPERS):
        state = vars(optimizer)  # not setattr, which TensorFlow tracks
        state["_inbounds_held"] = _frozen_values(entries)
        for name in _HOOKED:
            state[name] = partial(globals()[name.strip("_")], optimizer)


def let_go(optimizer: Any) -> None:
    """Takes the hooks off an optimizer."""
    for name in (*_HOOKED, "_inbounds_held"):
        vars(optimizer).pop(name, None)


def optimizers_of(model: Any) -> list[Any]:
    """The optimizers that a model holds: the compiled one, those in its attributes, and those inside them."""
    found: dict[int, Any] = {}
    pending = [
        value
        for value in (getattr(model, "optimizer", None), *vars(model).values())
        if isinstance(value, keras.optimizers.Optimizer)
    ]
    while pending:
        optimizer = pending.pop()
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            pending += [
                *getattr(optimizer, "optimizers", []),
                *filter(None, [getattr(optimizer, "inner_optimizer", None)]),
            ]
    return list(found.values())


def _entries(variables: Sequence[Any]) -> list[Entry]:
    bound = (variable.constraint for variable in variables if isinstance(getattr(variable, "constraint", None), Bound))
    return list({id(constraint.entry): constraint.entry for constraint in bound}.values())


def _frozen_values(entries: Sequence[Entry]) -> dict[int, Any]:
    """On JAX a compiled step sees the variables it trains only, so frozen ones are read beforehand."""
    if keras.backend.backend() != "jax":
        return {}
    frozen = [weight.variable for entry in entries for weight in entry.weights if not weight.variable.trainable]
    return {id(variable): np.asarray(keras.ops.convert_to_numpy(variable)) for variable in frozen}


# The hooked methods; each is bound to an optimizer instance with `partial`, which `copy.deepcopy` follows.


def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> None:
    """`optimizer.apply`, in which Keras doesn't constrain once more what the step has projected."""
    bound = [variable for variable in optimizer._trainable_variables if isinstance(variable.constraint, Bound)]
    constraints = [variable.constraint for variable in bound]
    vars(optimizer)["_inbounds_entries"] = _entries(bound)
    for variable in bound:
        variable.constraint = None
    try:
        type(optimizer).apply(optimizer, grads, trainable_variables)
    finally:
        del vars(optimizer)["_inbounds_entries"]
        for variable, constraint in zip(bound, constraints, strict=True):
            variable.constraint = constraint


def backend_update_step(optimizer: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
    """The update, and the projection of what it left outside."""
    type(optimizer)._backend_update_step(optimizer, grads, trainable_variables, learning_rate)
    project_entries(_hooked_entries(optimizer), vars(optimizer)["_inbounds_held"])


def backend_apply_gradients(optimizer: Any, grads: Any, trainable_variables: Any) -> None:
    """The step; where it ends with the average in place of the weights, its projection.

    The average of weights inside a set that isn't convex can be outside.
    """
    type(optimizer)._backend_apply_gradients(optimizer, grads, trainable_variables)
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        project_entries(
            [entry for entry in _hooked_entries(optimizer) if not entry.set.convex], vars(optimizer)["_inbounds_held"]
        )


def finalize_variable_values(optimizer: Any, var_list: Any) -> None:
    """The end of `fit`, which puts the average in place of the weights if there is one, and its projection."""
    type(optimizer).finalize_variable_values(optimizer, var_list)
    if optimizer.use_ema:
        project_entries(_entries(optimizer._trainable_variables), vars(optimizer)["_inbounds_held"])


def _hooked_entries(optimizer: Any) -> list[Entry]:
    """What holds in this step; an optimizer that is built within its first step wasn't hooked when that began."""
    entries: list[Entry] | None = vars(optimizer).get("_inbounds_entries")
    return _entries(optimizer._trainable_variables) if entries is None else entries


def project_entries(entries: Sequence[Entry], held: dict[int, Any]) -> None:
    """Projects the weights of some entries and assigns them."""
    if keras.backend.backend() != "torch":
        for entry in entries:
            for variable, value in projected(entry, held=held):
                variable.assign(value)
        return
    import torch

    stacks: dict[Any, list[Entry]] = defaultdict(list)
    with torch.no_grad():
        for entry in entries:
            size = sum(int(np.prod(weight.shape)) for weight in entry.weights)
            if size < SMALL and not isinstance(_vector_set(entry.set), Custom):
                key = (
                    entry.set,
                    entry.axes,
                    tuple((w.shape, dtype_of(w.variable), w.variable.trainable) for w in entry.weights),
                )
                stacks[key].append(entry)
            else:
                stacks[id(entry)].append(entry)
        for stack in stacks.values():
            if len(stack) == 1:
                for variable, value in projected(stack[0]):
                    variable.assign(value)
            else:
                _project_stack(stack)


def _project_stack(stack: Sequence[Entry]) -> None:
    """Entries that are alike, as one more axis that counts units."""
    import torch

    first = stack[0]
    columns = list(zip(*([weight.variable for weight in entry.weights] for entry in stack), strict=True))
    free = [variables[0].trainable for variables in columns]
    if not any(free):
        return
    parts = [torch.stack([variable.value for variable in variables]) for variables in columns]
    axes = [tuple(axis + 1 for axis in span) for span in first.axes]
    result = first.set._project(Units.of(parts, axes, free))
    for variables, part, moves in zip(columns, result.parts, free, strict=True):
        if moves:
            torch._foreach_copy_([variable.value for variable in variables], list(part.unbind(0)))


def _vector_set(constraint: Set) -> Set:
    return constraint.inner if isinstance(constraint, Joint) else constraint


def no_gradient() -> Any:
    """A context in which PyTorch records nothing; empty elsewhere."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()
