"""Hooks on Keras' optimizers that project weights after each update.

Keras calls a constraint for one variable at a time, after the moving average and on gradient
accumulation steps too. The hook on `_backend_update_step` runs once per update, sees all variables,
and runs before the moving average. That method is private to Keras, so only this module uses it,
and `tests/test_keras_ground.py` pins what it relies on.

`hook_optimizers` wraps `build` and `apply` of every optimizer. An optimizer is hooked when it is
built, or in its next step where the plan is newer. This covers models that are compiled before or
after `constrain`, compiled again, loaded, cloned, or trained in a custom loop. On TensorFlow a
custom loop may pass `variable.value`, which has no constraint that Keras could call.

Where a step raises, its weights are projected and the variables' constraints restored.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope  # no public equivalent

from inbounds._arrays.ops import dense, dtype_of, is_concrete, is_sharded, no_gradient
from inbounds._errors import LayoutWarning, RuleError, explain
from inbounds._model.plan import Entry
from inbounds._model.rules import guess_warning, resolve_given
from inbounds._model.weights import layers_owning, variables_of_values
from inbounds._sets.set import Set
from inbounds._train.attached_sets import (
    AttachedSet,
    attach_set,
    attached_entries,
    given_constraint,
    projected_values,
    reduced_gradients,
)
from inbounds._train.metrics import NO_METRIC, REGISTERED_OPTIMIZERS, StepMetric, full_gradient_reason, step_metric
from inbounds._train.optimizer_variables import (
    add_variables,
    gradient_norms_of,
    measures_gradients,
    warm_start_of,
    without_added_variables,
)
from inbounds._train.optimizers import WRAPPERS, in_tensorflow_strategy
from inbounds._train.sparse_updates import project_rows, updated_rows
from inbounds._train.stacks import project_stack, stacks_of
from inbounds._train.weight_access import WeightAccess, run_with_access

_METHODS = ("_apply_weight_decay", "_backend_update_step", "_backend_apply_gradients", "finalize_variable_values")

_TENSORFLOW_METHOD = "_all_reduce_sum_gradients"
"""Hooked where the optimizer has it: it sums the gradients over replicas."""


@dataclass
class _HiddenConstraints:
    """The constraints taken off an optimizer's variables during its step, so that Keras calls none.

    A strategy of TensorFlow runs the step in one thread per replica. The first thread to enter
    hides the constraints, the last one to leave restores them.
    """

    constraints: list[tuple[Any, AttachedSet]]
    entries: list[Entry]
    threads: set[int] = field(default_factory=set)


_hiding_lock = threading.Lock()
_replica_state = threading.local()
"""Values that one hook passes to a later one, in a replica's thread.

They are the weights before their decay, and the gradients summed over replicas.
"""


def hook_optimizers() -> None:
    """Wraps Keras' optimizer class so that optimizers hook themselves. Runs once, on import."""
    optimizer_class = keras.optimizers.Optimizer
    original, step = optimizer_class.build, optimizer_class.apply
    if getattr(original, "watched_by_inbounds", False):
        return

    def build(self: Any, variables: Sequence[Any]) -> None:
        variables = variables_of_values(variables)
        original(self, variables)
        hook_optimizer(self, variables)

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        def run_step() -> None:
            given = None if trainable_variables is None else list(trainable_variables)
            if given and not self.built and len(grads):
                self.build(given)  # Keras builds too late: this step would not be hooked
            elif self.built and not _is_hooked(self) and (entries_of(self) or measures_gradients(self)):
                hook_optimizer(self, self._trainable_variables, may_add_variables=not in_stateless_scope())
            with hidden_constraints(self):
                step(self, grads, given)

        def on_error(error: BaseException) -> None:
            vars(_replica_state).clear()
            _restore_constraints(self)
            _project_after_step_error(self, error)

        access = WeightAccess("step", f"a step of {type(self).__name__}", lambda: self._trainable_variables)
        run_with_access(access, run_step, on_error)

    build.watched_by_inbounds = True  # type: ignore[attr-defined]  # a mark on a function
    optimizer_class.build, optimizer_class.apply = build, apply
    for name in ("save_own_variables", "load_own_variables"):
        setattr(optimizer_class, name, without_added_variables(getattr(optimizer_class, name)))


def hook_optimizer(optimizer: Any, variables: Sequence[Any], *, may_add_variables: bool = True) -> None:
    """Hooks an optimizer if a plan or a layer's argument gives any of its variables a set.

    Args:
        optimizer: a built optimizer.
        variables: the variables that it steps.
        may_add_variables: False while a step is traced, and in a fit on JAX, which holds the list
            of the optimizer's variables.
    """
    given = [variable for variable in variables if isinstance(getattr(variable, "constraint", None), Set)]
    if given:
        ids = set(map(id, given))
        resolved = resolve_given(layers_owning(given), given_constraint).entries
        attached = [entry for entry in resolved if not ids.isdisjoint(map(id, entry.variables))]
        for entry in attached:
            attach_set(entry)
        if text := guess_warning(attached):
            warnings.warn(text, LayoutWarning, stacklevel=2)
    entries = attached_entries(variables)
    for entry in entries:
        _check_frozen_weights(entry)
    if isinstance(optimizer, WRAPPERS):
        return
    if may_add_variables:
        add_variables(optimizer, entries)
    if entries or measures_gradients(optimizer):
        hooks: dict[str, Any] = {
            name: partial(globals()[name.strip("_")], optimizer) for name in _hooked_methods(optimizer)
        }
        constants = {
            "_inbounds_frozen_values": _frozen_values(entries),
            "_inbounds_registered": len(REGISTERED_OPTIMIZERS),
        }
        # TensorFlow tracks what setattr sets. One `update` can't be interrupted halfway.
        vars(optimizer).update(hooks | constants)


def _is_hooked(optimizer: Any) -> bool:
    return "_inbounds_frozen_values" in vars(optimizer)


def unhook_optimizer(optimizer: Any) -> None:
    """Removes the hooks from an optimizer."""
    for name in ("_inbounds_frozen_values", *_hooked_methods(optimizer), "_inbounds_registered", "_inbounds_stacks"):
        vars(optimizer).pop(name, None)


def _hooked_methods(optimizer: Any) -> list[str]:
    return [*_METHODS, *([_TENSORFLOW_METHOD] if hasattr(type(optimizer), _TENSORFLOW_METHOD) else [])]


def update_compiled_constants(optimizer: Any) -> bool:
    """Stores the constants that a compiled step holds, and returns whether they have changed.

    The constants are the values of frozen weights and the registered metrics. Where they have
    changed, the step has to be compiled again.
    """
    state = vars(optimizer)
    if not _is_hooked(optimizer):
        return False
    old, new = state["_inbounds_frozen_values"], _frozen_values(entries_of(optimizer))
    state["_inbounds_frozen_values"] = new
    registered, state["_inbounds_registered"] = state["_inbounds_registered"], len(REGISTERED_OPTIMIZERS)
    old_values = {id(variable): value for variable, value in old}
    return registered < len(REGISTERED_OPTIMIZERS) or any(
        id(variable) not in old_values or not np.array_equal(old_values[id(variable)], value, equal_nan=True)
        for variable, value in new
    )


def _frozen_values(entries: Sequence[Entry]) -> list[tuple[Any, Any]]:
    """The frozen weights of some entries with their values, on JAX; empty on the other backends.

    A compiled step of JAX receives the trained variables only.
    """
    if keras.backend.backend() != "jax":
        return []
    frozen = [weight.variable for entry in entries for weight in entry.weights if not weight.variable.trainable]
    return [(variable, keras.ops.convert_to_numpy(variable)) for variable in frozen]


def _check_frozen_weights(entry: Entry) -> None:
    """Checks that the trained weights of an entry can bring its units inside.

    Raises:
        RuleError: the frozen weights alone are outside. This only concerns sets given to layers:
            `constrain` projects frozen weights too.
    """
    frozen = [weight for weight in entry.weights if not weight.variable.trainable]
    if not frozen or len(frozen) == len(entry.weights) or not _runs_eagerly():
        return
    moved = {id(variable): value for variable, value in projected_values(entry, read=keras.ops.convert_to_numpy)}
    measured = entry.applied.measure([moved.get(id(w.variable), w.variable) for w in entry.weights], entry.axes)
    if measured.outside.any():
        names = " and ".join(weight.path for weight in frozen)
        raise RuleError(
            explain(
                "Frozen weights of a Joint leave no room for the others to keep each unit inside",
                f"{names}, by themselves outside by up to {measured.excess.max():.3g}",
                where=repr(entry),
                instead="inbounds.constrain(model), which projects frozen weights too, or unfreeze them",
            )
        )


def _runs_eagerly() -> bool:
    """Whether variables can be read: TensorFlow may build an optimizer in a traced function."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return bool(tf.executing_eagerly())


@contextmanager
def hidden_constraints(optimizer: Any) -> Iterator[None]:
    """A context in which a hooked optimizer's variables have no constraint for Keras to call.

    Where the body raises, the caller has to call `_restore_constraints`.
    """
    if not _is_hooked(optimizer):
        yield
        return
    state, own = vars(optimizer), optimizer._trainable_variables
    with _hiding_lock:
        hidden: _HiddenConstraints | None = state.get("_inbounds_hidden")
        if hidden is None:
            attached = [variable for variable in own if isinstance(getattr(variable, "constraint", None), AttachedSet)]
            constraints = [(variable, variable.constraint) for variable in attached]
            hidden = _HiddenConstraints(constraints, attached_entries(attached))
            state["_inbounds_hidden"] = hidden
            for variable in attached:
                variable.constraint = None
        hidden.threads.add(threading.get_ident())
    yield
    _restore_constraints(optimizer)


def _restore_constraints(optimizer: Any) -> None:
    """Ends `hidden_constraints` for the current thread."""
    with _hiding_lock:
        hidden: _HiddenConstraints | None = vars(optimizer).get("_inbounds_hidden")
        if hidden is None:
            return
        hidden.threads.discard(threading.get_ident())
        if not hidden.threads:
            for variable, constraint in hidden.constraints:
                variable.constraint = constraint
            del vars(optimizer)["_inbounds_hidden"]


def _project_after_step_error(optimizer: Any, error: BaseException) -> None:
    """Projects the weights of an optimizer whose step has raised."""
    project_after_error(entries_of(optimizer), lambda: int(optimizer.iterations), error)


def project_after_error(entries: Sequence[Entry], steps: Callable[[], int], error: BaseException) -> None:
    """Projects weights that a step may have left outside when it raised.

    Skipped in a trace; for weights that several devices share, since the other devices may not get
    here; and in a replica of TensorFlow, whose weights the end of the fit projects.

    Args:
        entries: the entries that the step may have moved.
        steps: returns the number of steps taken, for sets that change with them.
        error: the error that the step raised; a failure to project is added to it as a note.
    """
    if in_stateless_scope() or in_tensorflow_strategy():
        return
    for entry in entries:
        if all(is_concrete(v.value) and not is_sharded(v.value) for v in entry.variables):
            project_or_add_note(error, lambda: project_in_numpy(entry, steps()))  # noqa: B023  # called at once


def project_or_add_note(error: BaseException, project: Callable[[], Any]) -> None:
    """Runs a projection after an error; where the projection fails, adds a note to the error."""
    try:
        project()
    except Exception as failure:
        error.add_note(f"inbounds could not put the weights inside: {failure}")


def project_in_numpy(entry: Entry, step_count: int) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Projects the weights of an entry in NumPy, which compiles nothing.

    Frozen weights move only where a plan holds them and the trained weights alone can't bring the
    units inside.

    Args:
        entry: the set and its weights.
        step_count: the number of steps taken, for a set that changes with them.

    Returns:
        The variables that moved, each with its previous value.
    """
    variables = entry.variables
    before = {id(variable): np.array(keras.ops.convert_to_numpy(variable)) for variable in variables}

    def values(include_frozen: bool) -> dict[int, np.ndarray[Any, Any]]:
        pairs = projected_values(
            entry, include_frozen=include_frozen, read=lambda variable: before[id(variable)], step_count=step_count
        )
        return before | {id(variable): np.asarray(value) for variable, value in pairs}

    inside = values(include_frozen=False)
    planned = any(isinstance(v.constraint, AttachedSet) and v.constraint.model is not None for v in variables)
    if planned and not all(v.trainable for v in variables):
        measured = entry.applied.at(step_count).measure([inside[id(variable)] for variable in variables], entry.axes)
        if measured.outside.any():
            inside = values(include_frozen=True)
    moved = []
    with no_gradient():
        for variable in variables:
            if not np.array_equal(before[id(variable)], inside[id(variable)], equal_nan=True):
                moved.append((variable, before[id(variable)]))
                variable.assign(inside[id(variable)])
    return moved


# The hooks, bound to an optimizer with `partial`, which `copy.deepcopy` copies with it.


def apply_weight_decay(optimizer: Any, variables: Any) -> None:
    """Applies weight decay, and stores the weights before it: the gradients belong to those."""
    vars(_replica_state).pop("undecayed", None)  # left by a step that raised
    overridden = type(optimizer)._apply_weight_decay is not keras.optimizers.Optimizer._apply_weight_decay
    if overridden or optimizer.weight_decay is not None:
        reduced = [v for entry in _entries_to_reduce(optimizer) for v in entry.variables if v.trainable]
        read = _value_reader(optimizer)
        _replica_state.undecayed = {id(variable): keras.ops.copy(read(variable)) for variable in reduced}
    type(optimizer)._apply_weight_decay(optimizer, variables)


def backend_update_step(optimizer: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
    """Reduces the gradients, runs the optimizer's update, and projects the weights."""
    if not hasattr(type(optimizer), _TENSORFLOW_METHOD):
        grads = _reduced(optimizer, grads, trainable_variables)
    entries = [entry for entry in entries_of(optimizer) if entry.set.every != "epoch"]
    type(optimizer)._backend_update_step(optimizer, grads, trainable_variables, learning_rate)
    grads = vars(_replica_state).pop("gradients", grads)
    gradients = dict(zip(map(id, _as_variables(optimizer, trainable_variables)), grads, strict=True))

    def metric(entry: Entry) -> StepMetric:
        variables = entry.variables
        return step_metric(optimizer, entry.set, variables, [gradients.get(id(variable)) for variable in variables])

    rows = _rows_to_project(optimizer, entries, gradients)
    for entry in entries:
        if id(entry) in rows:
            project_rows(entry, rows[id(entry)], metric(entry), optimizer.iterations + 1)
    for every, due in _by_interval(entries).items():
        _project_when_due(optimizer, every, [entry for entry in due if id(entry) not in rows], metric)


def _rows_to_project(optimizer: Any, entries: Sequence[Entry], gradients: dict[int, Any]) -> dict[int, Any]:
    """By the ids of entries, the rows that the step has updated, where projecting those is enough.

    This only applies to entries of a plan, all of whose rows `constrain` has projected. The other
    rows of a set given as a layer's argument may still be outside.
    """
    hidden: _HiddenConstraints | None = vars(optimizer).get("_inbounds_hidden")
    constraints = [] if hidden is None else hidden.constraints
    planned = {id(attached.entry) for _, attached in constraints if attached.model is not None}
    rows = {
        id(entry): updated_rows(optimizer, entry, gradients.get(id(entry.weights[0].variable)))
        for entry in entries
        if entry.set.every == 1 and id(entry) in planned
    }
    return {key: indices for key, indices in rows.items() if indices is not None}


def all_reduce_sum_gradients(optimizer: Any, grads_and_vars: Any) -> Any:
    """On TensorFlow, sums the gradients over replicas and reduces them.

    `backend_update_step` reads the metric from these sums: each replica's own gradients would give
    a metric of its own.
    """
    summed = list(type(optimizer)._all_reduce_sum_gradients(optimizer, grads_and_vars))
    variables = [variable for _, variable in summed]
    _replica_state.gradients = _reduced(optimizer, [gradient for gradient, _ in summed], variables)
    return list(zip(_replica_state.gradients, variables, strict=True))


def _reduced(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The gradients, reduced for the entries that ask for it."""
    undecayed = vars(_replica_state).pop("undecayed", {})
    read_current = _value_reader(optimizer)

    def read(variable: Any) -> Any:
        return undecayed[id(variable)] if id(variable) in undecayed else read_current(variable)

    ids = list(map(id, _as_variables(optimizer, variables)))
    result = dict(zip(ids, gradients, strict=True))
    with no_gradient():
        entries = _entries_to_reduce(optimizer)
        for entry in entries:
            result |= reduced_gradients(entry, result, read, optimizer.iterations + 1)
        if (gradient_norms := gradient_norms_of(optimizer)) is not None:
            all_reduced = dict(result)
            for entry in entries_of(optimizer):
                if entry.set.has_reduced_gradient and entry not in entries and _steps_all_weights(optimizer, entry):
                    all_reduced |= reduced_gradients(entry, all_reduced, read, optimizer.iterations + 1)
            norms = [_sum_of_squares(all_reduced.values()), _sum_of_squares(gradients)]
            gradient_norms.assign(keras.ops.stack(norms))
    return [result[key] for key in ids]


def _sum_of_squares(gradients: Iterable[Any]) -> Any:
    return sum(keras.ops.sum(keras.ops.square(keras.ops.cast(dense(g), "float32"))) for g in gradients)


def backend_apply_gradients(optimizer: Any, grads: Any, trainable_variables: Any) -> None:
    """Runs the step, and projects where it overwrites the weights with their moving average.

    The average of weights inside a set is inside, unless the set is not convex, has become smaller,
    or has weights that two optimizers step and average by turns.
    """
    others = _other_optimizers_variables(optimizer)
    updates = others and (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
    before = [variable.value for variable in others]
    type(optimizer)._backend_apply_gradients(optimizer, grads, trainable_variables)
    for variable, value in zip(others, before, strict=True):
        variable.assign(keras.ops.where(updates, variable.value, value))
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        entries = [
            entry
            for entry in entries_of(optimizer)
            if not entry.set.convex or entry.set.changes or not _steps_all_weights(optimizer, entry)
        ]
        for every, due in _by_interval([entry for entry in entries if entry.set.every != "epoch"]).items():
            _project_when_due(optimizer, math.lcm(every, optimizer.ema_overwrite_frequency), due)


def _other_optimizers_variables(optimizer: Any) -> list[Any]:
    """On JAX with gradient accumulation, the weights of a Joint that another optimizer steps.

    There Keras computes the update in every step and undoes it for the optimizer's own variables
    only.
    """
    if keras.backend.backend() != "jax" or not optimizer.gradient_accumulation_steps:
        return []
    own = set(map(id, optimizer._trainable_variables))
    moved = [v for entry in entries_of(optimizer) for v in entry.variables if v.trainable]
    return [variable for variable in moved if id(variable) not in own]


def finalize_variable_values(optimizer: Any, var_list: Any) -> None:
    """Ends `fit`, where Keras may overwrite the weights with their moving averages, and projects.

    Weights that aren't projected in each step are projected here too.
    """
    try:
        vars(optimizer).pop("_inbounds_averages", None)
        type(optimizer).finalize_variable_values(optimizer, var_list)
        entries = entries_of(optimizer)
        due = [entry for entry in entries if optimizer.use_ema or entry.set.every != 1]
        project_entries(optimizer, due, optimizer.iterations)
    except BaseException as error:
        _project_after_step_error(optimizer, error)
        raise


def _entries_to_reduce(optimizer: Any) -> list[Entry]:
    """The entries whose gradients are reduced: this optimizer steps all their trained weights."""
    return [
        entry
        for entry in entries_of(optimizer)
        if _steps_all_weights(optimizer, entry) and not full_gradient_reason([optimizer], entry.set)
    ]


def _as_variables(optimizer: Any, variables: Sequence[Any]) -> list[Any]:
    """The optimizer's variables for a list of variables or of their values."""
    own = optimizer._trainable_variables
    return [v if isinstance(v, keras.Variable) else own[optimizer._get_variable_index(v)] for v in variables]


def entries_of(optimizer: Any) -> list[Entry]:
    """The entries attached to an optimizer's variables, also while a step hides them."""
    hidden: _HiddenConstraints | None = vars(optimizer).get("_inbounds_hidden")
    return attached_entries(optimizer._trainable_variables) if hidden is None else hidden.entries


def _steps_all_weights(optimizer: Any, entry: Entry) -> bool:
    """Whether an optimizer steps all trained weights of an entry."""
    own = set(map(id, optimizer._trainable_variables))
    return own.issuperset(id(variable) for variable in entry.variables if variable.trainable)


def _by_interval(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """The entries merged_notes by `every`, the number of steps between projections."""
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[int(entry.set.every)].append(entry)
    return groups


def _project_when_due(
    optimizer: Any,
    every: int,
    entries: Sequence[Entry],
    metric: Callable[[Entry], StepMetric] = lambda entry: NO_METRIC,
) -> None:
    """Projects entries every so many steps; on JAX and TensorFlow in a compiled branch."""
    step_count = optimizer.iterations + 1
    if every == 1 or (keras.backend.backend() == "torch" and bool(step_count % every == 0)):
        project_entries(optimizer, entries, step_count, metric)
    elif keras.backend.backend() != "torch":
        read = _value_reader(optimizer)
        for entry in entries:
            trained = [variable for variable in entry.variables if variable.trainable]

            def project(entry: Entry = entry) -> list[Any]:
                pairs = projected_values(entry, read=read, metric=metric(entry), step_count=step_count)
                return [value for _, value in pairs]

            def keep(trained: Sequence[Any] = trained) -> list[Any]:
                return [read(variable) for variable in trained]

            for variable, value in zip(trained, keras.ops.cond(step_count % every == 0, project, keep), strict=True):
                variable.assign(value)


def project_entries(
    optimizer: Any,
    entries: Sequence[Entry],
    step_count: Any,
    metric: Callable[[Entry], StepMetric] = lambda entry: NO_METRIC,
) -> None:
    """Projects the weights of some entries and assigns them.

    Args:
        optimizer: the optimizer that steps the weights.
        entries: the entries to project.
        step_count: the number of steps taken, including the current one.
        metric: returns the metric of an entry in the current step.
    """

    def with_warm_start(entry: Entry) -> StepMetric:
        cold, warm_start = metric(entry), warm_start_of(optimizer, entry)
        if warm_start is None or cold.diagonals is None:
            return cold
        # Eagerly, the first call reuses the diagonals. A trace drops those that it doesn't use.
        ready = [cold.diagonals] if eager else []
        return replace(cold, warm_start=warm_start, reread=lambda: ready.pop() if ready else metric(entry).diagonals)

    eager = keras.backend.backend() == "torch"
    if eager:
        with no_gradient():
            for stack in stacks_of(optimizer, entries):
                project_stack(stack, list(map(with_warm_start, stack)), step_count)
        return
    for entry in entries:
        read = _value_reader(optimizer)
        for variable, value in projected_values(entry, read=read, metric=with_warm_start(entry), step_count=step_count):
            variable.assign(value)


def _value_reader(optimizer: Any) -> Callable[[Any], Any]:
    """A function that returns the value of a variable within a step."""
    frozen = {id(variable): value for variable, value in vars(optimizer)["_inbounds_frozen_values"]}
    return lambda variable: keras.ops.convert_to_tensor(frozen.get(id(variable), variable), dtype=dtype_of(variable))
