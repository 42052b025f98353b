"""Hooks on Keras' optimizers that reduce gradients before each update and project weights after it.

Keras calls a constraint for one variable at a time, after the moving average and on gradient
accumulation steps too. The hook on `_backend_update_step`, which `tests/test_keras_ground.py` pins,
runs once per update, sees all variables, and runs before the moving average.

An optimizer takes up a plan when it is built, or in its next step where the plan is newer: so for
models that are compiled before or after `constrain`, compiled again, loaded, cloned, or trained in
a custom loop. Where a step raises, its weights are projected and the constraints restored.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import dense, is_concrete
from inbounds._errors import LayoutWarning, RuleError
from inbounds._model.plan import Entry
from inbounds._model.rules import guess_warning, resolve_given
from inbounds._model.weights import layers_owning, variables_of_values, wrap_method
from inbounds._sets.set import Set
from inbounds._train.assignments import assign
from inbounds._train.attached_sets import (
    AttachedSet,
    attach_set,
    attached_entries,
    given_constraint,
    is_planned,
    project_after_error,
    project_in_numpy,
)
from inbounds._train.decisions import decide, signature
from inbounds._train.optimizers import WRAPPERS, with_inner
from inbounds._train.step_projections import Stepped, StepProjection, grouped, projection_of, reduced_gradients
from inbounds._train.taken_plans import add_latents, add_measures, latent_of, remember_optimizer, taken_plan
from inbounds._train.weight_access import WeightAccess, run_with_access

LATENT_PREFIX = "latent"  # what the names of latent weights in a file begin with; Keras' own are numbers

_hiding_lock = threading.Lock()


def hook_optimizers() -> None:
    """Wraps Keras' optimizer class so that optimizers hook themselves. Runs once, on import."""
    wrap_method(keras.optimizers.Optimizer, "build", _build)
    wrap_method(keras.optimizers.Optimizer, "apply", _apply)
    wrap_method(keras.optimizers.Optimizer, "save_own_variables", _save_own_variables)
    wrap_method(keras.optimizers.Optimizer, "load_own_variables", _load_own_variables)


def _build(build: Callable[..., None], optimizer: Any, variables: Sequence[Any]) -> None:
    """Builds an optimizer and has it take up the sets of its variables."""
    variables = variables_of_values(variables)
    build(optimizer, variables)
    add_measures(optimizer)
    take_up(optimizer)


def _apply(apply: Callable[..., None], optimizer: Any, grads: Any, trainable_variables: Any = None) -> None:
    """Runs `Optimizer.apply`, after the optimizer has taken up a newer plan, if any."""

    def run_step() -> None:
        given = None if trainable_variables is None else list(trainable_variables)
        if given and not optimizer.built and len(grads):
            optimizer.build(given)  # Keras builds too late: this step would not be hooked
        elif optimizer.built:
            take_up_changes(optimizer)
        with hidden_constraints(optimizer):
            apply(optimizer, grads, given)

    _run_with_access(optimizer, run_step)


def _save_own_variables(save: Callable[[Any, Any], None], optimizer: Any, store: Any) -> None:
    """Saves an optimizer's variables and latent weights, but no other variable added to it."""
    with _added_variables_hidden(optimizer):
        save(optimizer, store)
    for index, latent in taken_plan(optimizer).latents.items():
        store[f"{LATENT_PREFIX}{index}"] = keras.ops.convert_to_numpy(latent)


def _load_own_variables(load: Callable[[Any, Any], None], optimizer: Any, store: Any) -> None:
    """Loads an optimizer's variables and latent weights; those that the file lacks start anew."""
    stored = {key: store[key] for key in list(store.keys())}  # a store is no mapping
    found = {key: stored.pop(key) for key in list(stored) if key.startswith(LATENT_PREFIX)}
    with _added_variables_hidden(optimizer):
        load(optimizer, stored)
    taken = taken_plan(optimizer)
    taken.loaded_latents = {int(key.removeprefix(LATENT_PREFIX)): value for key, value in found.items()}
    for index, latent in taken.latents.items():
        value = taken.loaded_latents.pop(index, None)
        fits = value is not None and value.shape == tuple(latent.shape)
        assign([(latent, value if fits else np.full(latent.shape, np.nan))])


@contextmanager
def _added_variables_hidden(optimizer: Any) -> Iterator[None]:
    """A context in which an optimizer, and those inside it, list none of the added variables."""
    optimizers = with_inner(optimizer)
    lists = [one._variables for one in optimizers]
    for one in optimizers:
        taken = taken_plan(one)
        ours = [*taken.measures.values(), *taken.latents.values()]
        vars(one)["_variables"] = [v for v in one._variables if not any(v is our for our in ours)]
    try:
        yield
    finally:
        for one, variables in zip(optimizers, lists, strict=True):
            vars(one)["_variables"] = variables


def take_up(optimizer: Any) -> None:
    """Decides how a built optimizer's steps treat each set of its variables, and hooks them."""
    if isinstance(optimizer, WRAPPERS):
        return
    taken = taken_plan(optimizer)
    _attach_given_sets(optimizer._trainable_variables)
    entries = attached_entries(optimizer._trainable_variables)
    known = set(taken.entries)
    for entry in entries:
        if entry not in known:
            _make_room_beside_frozen_weights(optimizer, entry)
    remember_optimizer(optimizer, optimizer._trainable_variables)
    projections = grouped(decide(entry, [optimizer]) for entry in entries)
    add_latents(optimizer, projections)
    hooks = {name: partial(hook, optimizer) for name, hook in HOOKS.items() if hasattr(type(optimizer), name)}
    if projections or taken.measures:
        vars(optimizer).update(hooks)  # TensorFlow tracks what setattr sets
    else:
        for name, hook in hooks.items():
            if getattr(vars(optimizer).get(name), "func", None) is hook.func:
                del vars(optimizer)[name]
    new, frozen = signature(optimizer, entries), _frozen_values(entries)
    vars(taken).update(projections=projections, signature=new, frozen_values=frozen)  # an interrupt can't halve it


def take_up_changes(optimizer: Any) -> bool:
    """Takes up the plan again if its decisions are out of date, and returns whether they were."""
    taken = taken_plan(optimizer)
    with _hiding_lock:
        variables = variables_of_values(optimizer._trainable_variables)
        if any(map(operator.is_not, variables, optimizer._trainable_variables)):
            vars(optimizer).update(_trainable_variables=variables)  # `constrain` told whose the values are
        entries = attached_entries(variables)
        if taken.threads or taken.signature == signature(optimizer, entries):
            return False
        take_up(optimizer)
        return True


def update_compiled_constants(optimizer: Any) -> bool:
    """Stores what a compiled step holds, and returns whether that has changed.

    It holds the decisions and the frozen weights.
    """
    if not optimizer.built or isinstance(optimizer, WRAPPERS):
        return False
    changed, taken = take_up_changes(optimizer), taken_plan(optimizer)
    old, taken.frozen_values = taken.frozen_values, _frozen_values(taken.entries)
    pairs = zip(old, taken.frozen_values, strict=True)
    return changed or any(not np.array_equal(one[1], other[1], equal_nan=True) for one, other in pairs)


def _attach_given_sets(variables: Sequence[Any]) -> None:
    """Attaches the sets that layers were given as arguments to the variables and their partners."""
    given = [variable for variable in variables if isinstance(getattr(variable, "constraint", None), Set)]
    if not given:
        return
    ids = set(map(id, given))
    resolved = resolve_given(layers_owning(given), given_constraint).entries
    attached = [entry for entry in resolved if not ids.isdisjoint(map(id, entry.variables))]
    for entry in attached:
        attach_set(entry)
    if text := guess_warning(attached):
        warnings.warn(text, LayoutWarning, stacklevel=2)


def _frozen_values(entries: Iterable[Entry]) -> list[tuple[Any, Any]]:
    """The frozen weights of some entries with their values, on JAX; elsewhere none.

    JAX's compiled steps receive only the trained weights.
    """
    of_jax = entries if keras.backend.backend() == "jax" else ()
    frozen = [variable for entry in of_jax for variable in entry.variables if not variable.trainable]
    return [(variable, keras.ops.convert_to_numpy(variable)) for variable in frozen]


def _make_room_beside_frozen_weights(optimizer: Any, entry: Entry) -> None:
    """Puts inside the units that the trained weights alone can't bring inside.

    It moves frozen weights, as only plans do. For a set given to layers it is an error.
    """
    frozen = [weight for weight in entry.weights if not weight.variable.trainable]
    if not frozen or len(frozen) == len(entry.weights) or not is_concrete(frozen[0].variable.value):
        return  # TensorFlow may build an optimizer in a traced function
    count = int(optimizer.iterations) if entry.set.changes else 0
    values = projection_of(entry).project(list(map(keras.ops.convert_to_numpy, entry.variables)), count)
    measured = entry.applied.at(count).measure(values, entry.axes)
    if measured.outside.any() and is_planned(entry):
        project_in_numpy(entry, count)
    elif measured.outside.any():
        names = " and ".join(weight.path for weight in frozen)
        wrong = "Frozen weights of a Joint leave no room for the others to keep each unit inside"
        received = f"{names}, by themselves outside by up to {measured.excess.max():.3g}"
        instead = "inbounds.constrain(model), which projects frozen weights too, or unfreeze them"
        raise RuleError(wrong, received, where=repr(entry), instead=instead)


@contextmanager
def hidden_constraints(optimizer: Any) -> Iterator[None]:
    """A context that hides sets from Keras, which would call them.

    If the body raises, call `_restore_constraints`.
    """
    taken = taken_plan(optimizer)
    if not taken.projections:
        yield
        return
    with _hiding_lock:
        if not taken.threads:
            own = optimizer._trainable_variables
            taken.hidden = [(v, v.constraint) for v in own if isinstance(getattr(v, "constraint", None), AttachedSet)]
            for variable, _ in taken.hidden:
                variable.constraint = None
        taken.threads.add(threading.get_ident())
    yield
    _restore_constraints(optimizer)


def _restore_constraints(optimizer: Any) -> None:
    """Ends `hidden_constraints` for the current thread."""
    taken = taken_plan(optimizer)
    with _hiding_lock:
        taken.threads.discard(threading.get_ident())
        if not taken.threads:
            for variable, constraint in taken.hidden:
                variable.constraint = constraint
            taken.hidden = []


def _run_with_access(optimizer: Any, run: Callable[[], None]) -> None:
    """Runs a function that moves an optimizer's weights; where it raises, projects the weights."""

    def after_error() -> None:
        _restore_constraints(optimizer)
        project_after_error(attached_entries(optimizer._trainable_variables), lambda: int(optimizer.iterations))

    access = WeightAccess("step", f"a step of {type(optimizer).__name__}", lambda: optimizer._trainable_variables)
    run_with_access(access, run, after_error)


# The hooks. Each is stored in an optimizer as a `partial`, which `copy.deepcopy` copies with it.


def apply_weight_decay(optimizer: Any, variables: Any) -> None:
    """Does nothing: `backend_update_step`, called next, decays after it has reduced gradients."""


def all_reduce_sum_gradients(optimizer: Any, grads_and_vars: Any) -> Any:
    """Returns gradients as they are: `backend_update_step` has summed them over replicas before."""
    return grads_and_vars


def backend_update_step(optimizer: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
    """Reduces gradients, puts latent weights in place, decays, steps and projects the weights."""
    cls, taken = type(optimizer), taken_plan(optimizer)
    if hasattr(cls, "_all_reduce_sum_gradients"):
        pairs = zip(grads, trainable_variables, strict=True)
        grads = [summed for summed, _ in cls._all_reduce_sum_gradients(optimizer, pairs)]
    own = optimizer._trainable_variables
    variables = [
        v if isinstance(v, keras.Variable) else own[optimizer._get_variable_index(v)] for v in trainable_variables
    ]
    gradients = _reduced(optimizer, dict(zip(map(id, variables), grads, strict=True)))

    def read_latent(variable: Any) -> Any:
        return taken.value_of(latent_of(optimizer, variable))

    for latent in [one for one in taken.projections if one.latent]:
        assign(latent.starts(taken.value_of, read_latent, optimizer.iterations))
    cls._apply_weight_decay(optimizer, trainable_variables)
    cls._backend_update_step(optimizer, list(gradients.values()), trainable_variables, learning_rate)
    _store_latents(optimizer)
    moves = taken.measures.get("moves")
    movable = [v for one in taken.projections for v in one.movable_variables] if moves is not None else []
    before = [keras.ops.copy(taken.value_of(variable)) for variable in movable]
    project_when_due(optimizer, taken.projections, gradients)
    if moves is not None:
        pairs = zip(movable, before, strict=True)
        moved = {id(variable): _sum_of_squares([taken.value_of(variable) - old]) for variable, old in pairs}
        assign([(moves, keras.ops.stack([moved.get(id(variable), keras.ops.zeros([])) for variable in own]))])


def _reduced(optimizer: Any, gradients: dict[int, Any]) -> dict[int, Any]:
    """The gradients by the ids of their variables, reduced for the entries that ask for it."""
    taken = taken_plan(optimizer)
    read, count = taken.value_of, _coming_step(optimizer, taken.projections)
    reduced = reduced_gradients(taken.projections, gradients, read, count)
    if (norms := taken.measures.get("gradients")) is not None:
        all_reduced = dict(reduced)
        for one in taken.projections:
            if one.full_gradient_reason and not one.shared and one.entry.set.has_reduced_gradient:
                all_reduced |= one.reduced_gradients(all_reduced, read, count)
        squares = [_sum_of_squares(all_reduced.values()), _sum_of_squares(gradients.values())]
        assign([(norms, keras.ops.stack(squares))])
    return reduced


def _sum_of_squares(gradients: Iterable[Any]) -> Any:
    return sum(keras.ops.sum(keras.ops.square(keras.ops.cast(dense(g), "float32"))) for g in gradients)


def _store_latents(optimizer: Any, where: Any = None) -> None:
    """Stores weights, before their projection, as the latent ones; `where` a condition holds."""
    taken = taken_plan(optimizer)
    for variable in [v for one in taken.projections if one.latent for v in one.movable_variables]:
        latent, value = latent_of(optimizer, variable), keras.ops.copy(taken.value_of(variable))
        assign([(latent, value if where is None else keras.ops.where(where, value, taken.value_of(latent)))])


def backend_apply_gradients(optimizer: Any, grads: Any, trainable_variables: Any) -> None:
    """Runs the step, and projects weights that it overwrites with their moving average.

    The average may be outside where the set is not convex, has changed, has latent weights, or
    weights that two optimizers average.
    """
    others = _other_optimizers_variables(optimizer)
    updates = others and (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
    before = [variable.value for variable in others]
    type(optimizer)._backend_apply_gradients(optimizer, grads, trainable_variables)
    pairs = zip(others, before, strict=True)
    assign((variable, keras.ops.where(updates, variable.value, value)) for variable, value in pairs)
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        _store_latents(optimizer, where=(optimizer.iterations + 1) % optimizer.ema_overwrite_frequency == 0)
        taken = taken_plan(optimizer).projections
        left = [one for one in taken if one.shared or one.latent or one.entry.set.changes or not one.entry.set.convex]
        project_when_due(optimizer, left, frequency=optimizer.ema_overwrite_frequency)


def update_moving_average(optimizer: Any, trainable_variables: Any) -> None:
    """Averages the latent weights where there are any: they are what the optimizer steps."""
    taken = taken_plan(optimizer)
    stepped = {id(v): latent_of(optimizer, v) for one in taken.projections if one.latent for v in one.movable_variables}

    def averaged(variable: Any) -> Any:
        if id(variable) not in stepped:
            return variable
        own, latent = taken.value_of(variable), taken.value_of(stepped[id(variable)])
        return keras.ops.where(keras.ops.isnan(latent), own, latent)  # NaN before the first update

    type(optimizer)._update_model_variables_moving_average(optimizer, list(map(averaged, trainable_variables)))


def _other_optimizers_variables(optimizer: Any) -> list[Any]:
    """The weights of a Joint that other optimizers step, on JAX with gradient accumulation.

    In steps that only accumulate gradients, Keras undoes only the updates of the optimizer's own
    weights.
    """
    if keras.backend.backend() != "jax" or not optimizer.gradient_accumulation_steps:
        return []
    own = set(map(id, optimizer._trainable_variables))
    shared = [variable for one in taken_plan(optimizer).projections if one.shared for variable in one.variables]
    return [variable for variable in shared if variable.trainable and id(variable) not in own]


def finalize_variable_values(optimizer: Any, var_list: Any) -> None:
    """Ends `fit` with the moving averages; projects them and weights not projected in each step."""

    def finalize() -> None:
        take_up_changes(optimizer)
        taken = taken_plan(optimizer)
        taken.averages = []
        type(optimizer).finalize_variable_values(optimizer, var_list)
        if optimizer.use_ema:  # the next fit goes on from the averages
            _store_latents(optimizer)
        due = [one for one in taken.projections if optimizer.use_ema or one.entry.training.every != 1]
        project_now(optimizer, due, optimizer.iterations)

    _run_with_access(optimizer, finalize)


HOOKS: dict[str, Callable[..., Any]] = {
    "_apply_weight_decay": apply_weight_decay,
    "_backend_update_step": backend_update_step,
    "_backend_apply_gradients": backend_apply_gradients,
    "_all_reduce_sum_gradients": all_reduce_sum_gradients,  # on TensorFlow only
    "_update_model_variables_moving_average": update_moving_average,
    "finalize_variable_values": finalize_variable_values,
}
"""The methods of an optimizer that hooks shadow."""


def _coming_step(optimizer: Any, projections: Iterable[StepProjection], *, counted: bool = False) -> Any:
    """The number of the step under way, which Keras hasn't counted yet; 0 if it doesn't matter."""
    matters = counted or any(one.entry.set.changes or one.entry.training.every != 1 for one in projections)
    return optimizer.iterations + 1 if matters else 0


def project_when_due(
    optimizer: Any, projections: Sequence[StepProjection], stepped: Stepped = None, frequency: int = 1
) -> None:
    """Projects each set that is due in this step, if the step is a multiple of `frequency`."""
    read, count = taken_plan(optimizer).value_of, _coming_step(optimizer, projections, counted=frequency > 1)
    for projection in projections:
        assign(projection.values_when_due(read, count, stepped, frequency))


def project_now(optimizer: Any, projections: Iterable[StepProjection], count: Any) -> None:
    """Projects sets after so many steps; outside of steps, projections are Euclidean."""
    for projection in projections:
        assign(projection.projected_values(taken_plan(optimizer).value_of, count))
