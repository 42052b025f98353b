"""The projection inside the training step: the one place that holds on to Keras' optimizers.

Keras hands a constraint one variable at a time, after the moving average is taken and on accumulation steps too. The
point just after the optimizer's update sees all variables, once per real step, before the average. It is private
(`_backend_update_step`), so all that relies on it is here, and `tests/test_keras_ground.py` names what breaks when
Keras changes.

`watch_optimizers` makes every optimizer look, when it is built, for variables that have a set. That one place serves a
model that is compiled after `constrain`, compiled again, loaded, cloned, or trained in a loop of the user's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import keras

from inbounds._arrays import dtype_of
from inbounds._bound import Bound, bind, given_constraint, projected
from inbounds._errors import RuleError, explain
from inbounds._metrics import LEAST, UNKNOWN, Step, lead_of, looks_back, step_of
from inbounds._plan import Entry
from inbounds._rules import resolve_given
from inbounds._set import Set
from inbounds._units import Units
from inbounds._weights import owners_of

SMALL = 1 << 15
"""On PyTorch, weights with fewer entries than this are projected as one stack: the calls cost more than the copies."""

WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
"""Optimizers that leave the step to those inside them, which are hooked."""

Leads = dict[int, tuple[Any, Any]]
"""By variables' ids, what an optimizer steps in place of them, and its share in them."""

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
    for entry in entries:
        _check_room(entry)
    if entries and not isinstance(optimizer, WRAPPERS):
        state = vars(optimizer)  # not setattr, which TensorFlow tracks
        state["_inbounds_held"] = _frozen_values(entries)
        for name in _HOOKED:
            state[name] = partial(globals()[name.strip("_")], optimizer)


def let_go(optimizer: Any) -> None:
    """Takes the hooks off an optimizer."""
    for name in (*_HOOKED, "_inbounds_held", "_inbounds_stacks"):
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


def _frozen_values(entries: Sequence[Entry]) -> list[tuple[Any, Any]]:
    """On JAX a compiled step sees the variables it trains only, so frozen ones are read beforehand."""
    if keras.backend.backend() != "jax":
        return []
    frozen = [weight.variable for entry in entries for weight in entry.weights if not weight.variable.trainable]
    return [(variable, keras.ops.convert_to_numpy(variable)) for variable in frozen]


def _check_room(entry: Entry) -> None:
    """That the frozen weights of an entry leave room for the others to keep the units inside.

    Raises:
        RuleError: they are outside by themselves. `constrain` projects them too, so this is said of a set that was
            given to layers only.
    """
    frozen = [weight for weight in entry.weights if not weight.variable.trainable]
    if not frozen or len(frozen) == len(entry.weights) or not _eager():
        return
    moved = {id(variable): value for variable, value in projected(entry, read=keras.ops.convert_to_numpy)}
    found = entry.applied.measure([moved.get(id(w.variable), w.variable) for w in entry.weights], entry.axes)
    if found.outside.any():
        names = " and ".join(weight.path for weight in frozen)
        raise RuleError(
            explain(
                "The weights of a Joint that are frozen leave room for the others to keep each unit inside",
                f"{names}, by themselves outside by up to {found.excess.max():.3g}",
                where=repr(entry),
                instead="inbounds.constrain(model), which projects frozen weights too, or unfreeze them",
            )
        )


def _eager() -> bool:
    """Whether variables can be read: TensorFlow may build an optimizer while it traces a function."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return bool(tf.executing_eagerly())


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
    """The update, and the projection of what it left outside, in the metric in which it stepped."""
    entries = _hooked_entries(optimizer)
    leads = _leads(optimizer, entries)
    before = {
        id(entry): _read_all(entry, leads.get(id(entry), {})) for entry in entries if _looks_back(optimizer, entry)
    }
    type(optimizer)._backend_update_step(optimizer, grads, trainable_variables, learning_rate)
    gradients = {id(variable): gradient for variable, gradient in zip(trainable_variables, grads, strict=True)}

    def step(entry: Entry) -> Step:
        variables = [weight.variable for weight in entry.weights]
        stepped = [gradients.get(id(variable)) for variable in variables]
        return step_of(optimizer, entry.set, variables, stepped, before.get(id(entry)))

    with no_gradient():
        for entry in entries:
            if id(entry) in leads:
                _follow(optimizer, entry, step(entry), leads[id(entry)])
    project_entries(optimizer, [entry for entry in entries if id(entry) not in leads], step)


def backend_apply_gradients(optimizer: Any, grads: Any, trainable_variables: Any) -> None:
    """The step; where it ends with the average in place of the weights, its projection.

    The average of weights inside a set that isn't convex can be outside.
    """
    type(optimizer)._backend_apply_gradients(optimizer, grads, trainable_variables)
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        project_entries(optimizer, [entry for entry in _hooked_entries(optimizer) if not entry.set.convex])


def finalize_variable_values(optimizer: Any, var_list: Any) -> None:
    """The end of `fit`, which puts the average in place of the weights if there is one, and its projection."""
    type(optimizer).finalize_variable_values(optimizer, var_list)
    if optimizer.use_ema:
        project_entries(optimizer, _entries(optimizer._trainable_variables))


def _hooked_entries(optimizer: Any) -> list[Entry]:
    """What holds in this step; an optimizer that is built within its first step wasn't hooked when that began."""
    entries: list[Entry] | None = vars(optimizer).get("_inbounds_entries")
    return _entries(optimizer._trainable_variables) if entries is None else entries


def _leads(optimizer: Any, entries: Sequence[Entry]) -> dict[int, Leads]:
    """By entries' ids, the leads of their weights, where the optimizer steps none of those themselves.

    Only for convex sets: weights that are averages of what is inside are inside.
    """
    lead = lead_of(optimizer)
    if lead is None:
        return {}
    own, found = set(map(id, optimizer._trainable_variables)), {}
    for entry in entries:
        free = [weight.variable for weight in entry.weights if weight.variable.trainable]
        if entry.set.convex and own.issuperset(map(id, free)):
            found[id(entry)] = {id(variable): lead(optimizer, variable) for variable in free}
    return found


def _read_all(entry: Entry, leads: Leads) -> list[Any]:
    """Copies of what is stepped, as it is now: PyTorch and TensorFlow would change it under the reader."""
    return [keras.ops.copy(leads.get(id(weight.variable), (weight.variable,))[0]) for weight in entry.weights]


def _follow(optimizer: Any, entry: Entry, step: Step, leads: Leads) -> None:
    """Puts inside what is stepped in place of an entry's weights, and lets them follow."""
    read = _reader(optimizer)
    for variable, value in projected(entry, read=lambda v: read(leads.get(id(v), (v,))[0]), step=step):
        sequence, share = leads[id(variable)]
        variable.assign_add(share * (value - sequence))
        sequence.assign(value)
    for variable, value in projected(entry, read=read, strict=True):
        variable.assign(value)


def _looks_back(optimizer: Any, entry: Entry) -> bool:
    return looks_back(optimizer, entry.set, [weight.variable for weight in entry.weights])


def project_entries(
    optimizer: Any, entries: Sequence[Entry], step: Callable[[Entry], Step] = lambda entry: UNKNOWN
) -> None:
    """Projects the weights of some entries and assigns them.

    Args:
        optimizer: that holds them.
        entries: what to project.
        step: what is known of the step of an entry that has just been taken.
    """
    if keras.backend.backend() == "torch":
        with no_gradient():
            for stack in _stacks(optimizer, entries):
                _project_stack(stack, list(map(step, stack)))
        return
    for entry in entries:
        for variable, value in projected(entry, read=_reader(optimizer), step=step(entry)):
            variable.assign(value)


def _reader(optimizer: Any) -> Callable[[Any], Any]:
    """What gives the value of a variable within a step."""
    held = {id(variable): value for variable, value in vars(optimizer)["_inbounds_held"]}
    return lambda variable: keras.ops.convert_to_tensor(held.get(id(variable), variable), dtype=dtype_of(variable))


# PyTorch runs operation by operation, so that for small weights the calls cost more than the arithmetic.


def _stacks(optimizer: Any, entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries, those that are small and alike together; remembered until they change."""
    signature = [(entry, *(weight.variable.trainable for weight in entry.weights)) for entry in entries]
    stacks: list[list[Entry]]
    known, stacks = vars(optimizer).get("_inbounds_stacks", (None, []))
    if known != signature:
        alike: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            alike[_likeness(optimizer, entry)].append(entry)
        stacks = list(alike.values())
        vars(optimizer)["_inbounds_stacks"] = (signature, stacks)
    return stacks


def _likeness(optimizer: Any, entry: Entry) -> Any:
    """What entries of one stack share; its own id for an entry that is large, or whose set takes one weight."""
    if (
        sum(math.prod(weight.shape) for weight in entry.weights) >= SMALL
        or not entry.applied.stackable
        or _looks_back(optimizer, entry)
    ):
        return id(entry)
    weights = tuple((w.shape, dtype_of(w.variable), bool(w.variable.trainable)) for w in entry.weights)
    return entry.applied, entry.set.metric, entry.axes, weights


def _project_stack(stack: Sequence[Entry], steps: Sequence[Step]) -> None:
    """Entries that are alike, as one with one more axis that counts units."""
    if len(stack) == 1:
        for variable, value in projected(stack[0], concrete=True, step=steps[0]):
            variable.assign(value)
        return
    import torch

    first = stack[0]
    columns = list(zip(*([weight.variable for weight in entry.weights] for entry in stack), strict=True))
    free = [bool(variables[0].trainable) for variables in columns]
    if not any(free):
        return
    parts = [torch.stack([variable.value for variable in variables]) for variables in columns]
    axes = [tuple(axis + 1 for axis in span) for span in first.axes]
    metric = None
    if any(step.costs is not None for step in steps):
        even = [torch.ones_like(part[0], dtype=torch.float32) for part in parts]
        metric = [torch.stack(costs) for costs in zip(*(step.costs or even for step in steps), strict=True)]
    units = Units.of(parts, axes, free, concrete=True, metric=metric, training=True).comparable(
        first.applied.couples, LEAST
    )
    result = first.applied.nearest(units)
    for variables, part, moves in zip(columns, result.parts, free, strict=True):
        if moves:
            torch._foreach_copy_([variable.value for variable in variables], list(part.unbind(0)))


def no_gradient() -> Any:
    """A context in which PyTorch records nothing; empty elsewhere."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()
