"""The projection inside the training step: the one place that holds on to Keras' optimizers.

Keras hands a constraint one variable at a time, after the moving average is taken and on accumulation steps too. The
point just after the optimizer's update sees all variables, once per real step, before the average. It is private
(`_backend_update_step`), so all that relies on it is here, and `tests/test_keras_ground.py` names what breaks when
Keras changes.

`watch_optimizers` makes every optimizer look for variables that have a set: when it is built, and in a step, where it
was built before there was a plan. That one place serves a model that is compiled after `constrain`, compiled again,
loaded, cloned, or trained in a loop of the user's own. On TensorFlow such a loop may hand over raw values,
`variable.value`, which have no constraint for Keras to call.

Where a step raises, at any of its moments, its weights are put inside, and the constraints back on the variables.
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
from keras.src.backend.common.stateless_scope import in_stateless_scope  # no public name tells

from inbounds._arrays.ops import dense, dtype_of, is_concrete, is_sharded, no_gradient
from inbounds._errors import LayoutWarning, RuleError, explain
from inbounds._model.plan import Entry
from inbounds._model.rules import guess_warning, resolve_given
from inbounds._model.weights import layers_owning, variables_of_values
from inbounds._sets.set import Set
from inbounds._train.bound import Bound, bind, entries_of, given_constraint, projected, reduced_gradients
from inbounds._train.metrics import REGISTERED, UNKNOWN, Step, step_of, whole_of
from inbounds._train.optimizers import WRAPPERS
from inbounds._train.rows import project_rows, rows_moved
from inbounds._train.stacks import project_stack, stacks_of
from inbounds._train.threads import Use, used
from inbounds._train.warm_starts import is_asked, lengths_of, prepare, warm_of, without_warm_starts

_HOOKED = ("_apply_weight_decay", "_backend_update_step", "_backend_apply_gradients", "finalize_variable_values")

_OF_TENSORFLOW = "_all_reduce_sum_gradients"
"""Hooked too where there is one: from there the gradients are those of all replicas."""


@dataclass
class _Lifted:
    """What holds in a step, while its variables have no constraint for Keras to call.

    With a strategy of TensorFlow a step runs once for each replica, in threads that meet in its middle: the first to
    come in takes the constraints off, the last to go puts them back.
    """

    constraints: list[tuple[Any, Bound]]
    entries: list[Entry]
    threads: set[int] = field(default_factory=set)


_lifting = threading.Lock()
_of_replica = threading.local()
"""What one part of a step hands to a later one, in the thread of one replica: the weights before their decay, and the
gradients summed over replicas."""


def watch_optimizers() -> None:
    """Makes every Keras optimizer, when it is built, take up the sets of its variables. Done once, on import."""
    optimizer_class = keras.optimizers.Optimizer
    original, step = optimizer_class.build, optimizer_class.apply
    if getattr(original, "watched_by_inbounds", False):
        return

    def build(self: Any, variables: Sequence[Any]) -> None:
        known = variables_of_values(variables)
        original(self, known)
        take_up(self, known)

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        def applied() -> None:
            given = None if trainable_variables is None else list(trainable_variables)
            if given and not self.built and len(grads):
                self.build(given)  # as Keras is about to do, which is too late for this step
            elif self.built and not _is_hooked(self) and (entries_of(self._trainable_variables) or is_asked(self)):
                take_up(self, self._trainable_variables, begins=not in_stateless_scope())
            with hidden_constraints(self):
                step(self, grads, given)

        def undo(error: BaseException) -> None:
            vars(_of_replica).clear()
            _put_back(self)
            put_all_inside(self, error)

        used(Use("step", f"a step of {type(self).__name__}", lambda: self._trainable_variables), applied, undo)

    build.watched_by_inbounds = True  # type: ignore[attr-defined]
    optimizer_class.build, optimizer_class.apply = build, apply
    for name in ("save_own_variables", "load_own_variables"):
        setattr(optimizer_class, name, without_warm_starts(getattr(optimizer_class, name)))


def take_up(optimizer: Any, variables: Sequence[Any], *, begins: bool = True) -> None:
    """Hooks one optimizer if any of its variables has a set, given by a plan or by a layer's argument.

    Args:
        optimizer: which is built.
        variables: that it steps.
        begins: False while a step is traced, or a fit on JAX holds the list of the optimizer's variables: then none may
            be added.
    """
    given = [variable for variable in variables if isinstance(getattr(variable, "constraint", None), Set)]
    if given:
        wanted = {id(variable) for variable in given}
        found = resolve_given(layers_owning(given), given_constraint).entries
        taken = [entry for entry in found if any(id(variable) in wanted for variable in entry.variables)]
        for entry in taken:
            bind(entry)
        if text := guess_warning(taken):
            warnings.warn(text, LayoutWarning, stacklevel=2)
    entries = entries_of(variables)
    for entry in entries:
        _check_room(entry)
    if begins and not isinstance(optimizer, WRAPPERS):
        prepare(optimizer, entries)
    if (entries or is_asked(optimizer)) and not isinstance(optimizer, WRAPPERS):
        hooks: dict[str, Any] = {name: partial(globals()[name.strip("_")], optimizer) for name in _hooked(optimizer)}
        told = {"_inbounds_held": _frozen_values(entries), "_inbounds_metrics": len(REGISTERED)}
        vars(optimizer).update(hooks | told)  # not setattr, which TensorFlow tracks; at once, or an interrupt halves it


def _is_hooked(optimizer: Any) -> bool:
    return "_inbounds_held" in vars(optimizer)


def let_go(optimizer: Any) -> None:
    """Takes the hooks off an optimizer."""
    for name in ("_inbounds_held", *_hooked(optimizer), "_inbounds_metrics", "_inbounds_stacks"):
        vars(optimizer).pop(name, None)


def _hooked(optimizer: Any) -> list[str]:
    return [*_HOOKED, *([_OF_TENSORFLOW] if hasattr(type(optimizer), _OF_TENSORFLOW) else [])]


def look_again(optimizer: Any) -> bool:
    """Whether a compiled step is out of date: frozen weights, which it holds as constants, or metrics are others."""
    state = vars(optimizer)
    if not _is_hooked(optimizer):
        return False
    old, new = state["_inbounds_held"], _frozen_values(entries_of(optimizer._trainable_variables))
    state["_inbounds_held"] = new
    told, state["_inbounds_metrics"] = state["_inbounds_metrics"], len(REGISTERED)
    known = {id(variable): value for variable, value in old}
    return told < len(REGISTERED) or any(
        id(variable) not in known or not np.array_equal(known[id(variable)], value, equal_nan=True)
        for variable, value in new
    )


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
                "Frozen weights of a Joint leave no room for the others to keep each unit inside",
                f"{names}, by themselves outside by up to {found.excess.max():.3g}",
                where=repr(entry),
                instead="inbounds.constrain(model), which projects frozen weights too, or unfreeze them",
            )
        )


def _replicated() -> bool:
    """Whether the step of one of TensorFlow's replicas runs."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())


def _eager() -> bool:
    """Whether variables can be read: TensorFlow may build an optimizer while it traces a function."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return bool(tf.executing_eagerly())


@contextmanager
def hidden_constraints(optimizer: Any) -> Iterator[None]:
    """A context in which Keras doesn't constrain once more what the step of a hooked optimizer projects.

    Where it is left by an exception, `_put_back` is to be called.
    """
    if not _is_hooked(optimizer):
        yield
        return
    state, own = vars(optimizer), optimizer._trainable_variables
    with _lifting:
        lifted: _Lifted | None = state.get("_inbounds_lifted")
        if lifted is None:
            bound = [variable for variable in own if isinstance(getattr(variable, "constraint", None), Bound)]
            lifted = _Lifted([(variable, variable.constraint) for variable in bound], entries_of(bound))
            state["_inbounds_lifted"] = lifted
            for variable in bound:
                variable.constraint = None
        lifted.threads.add(threading.get_ident())
    yield
    _put_back(optimizer)


def _put_back(optimizer: Any) -> None:
    """Ends what `hidden_constraints` began in this thread."""
    with _lifting:
        lifted: _Lifted | None = vars(optimizer).get("_inbounds_lifted")
        if lifted is None:
            return
        lifted.threads.discard(threading.get_ident())
        if not lifted.threads:
            for variable, constraint in lifted.constraints:
                variable.constraint = constraint
            del vars(optimizer)["_inbounds_lifted"]


def put_all_inside(optimizer: Any, error: BaseException) -> None:
    """Puts inside what a step of an optimizer that has raised may have left outside; see `mend`."""
    mend(entries_of(optimizer._trainable_variables), lambda: int(optimizer.iterations), error)


def mend(entries: Sequence[Entry], steps: Callable[[], int], error: BaseException) -> None:
    """Puts inside what a step that has raised may have left outside.

    Not in a trace, and not weights that several devices share, of which the others may never come to such a step; a fit
    puts the replicas of TensorFlow inside when it ends.

    Args:
        entries: that the step may have moved.
        steps: gives the number of steps, for sets that change with them.
        error: that the step raised; a failure of this is added to it as a note.
    """
    if in_stateless_scope() or _replicated():
        return
    for entry in entries:
        if all(is_concrete(v.value) and not is_sharded(v.value) for v in entry.variables):
            inside_or_noted(error, lambda: put_inside(entry, steps()))  # noqa: B023  # called at once


def inside_or_noted(error: BaseException, put: Callable[[], Any]) -> None:
    """Puts weights inside after an error; where that fails, the error says so."""
    try:
        put()
    except Exception as failure:
        error.add_note(f"inbounds could not put the weights inside: {failure}")


def put_inside(entry: Entry, at: int) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Projects the weights of an entry where they are outside; what they were is returned.

    In NumPy, where there is nothing to compile. Frozen weights stay if the others can make up for them, or if no plan
    holds them.

    Args:
        entry: the set and its weights.
        at: how many steps have been taken, for a set that changes with them.
    """
    variables = entry.variables
    were = {id(variable): np.array(keras.ops.convert_to_numpy(variable)) for variable in variables}

    def values(frozen_too: bool) -> dict[int, np.ndarray[Any, Any]]:
        found = projected(entry, frozen_too=frozen_too, read=lambda variable: were[id(variable)], at=at)
        return were | {id(variable): np.asarray(value) for variable, value in found}

    inside = values(frozen_too=False)
    planned = any(isinstance(v.constraint, Bound) and v.constraint.model is not None for v in variables)
    if planned and not all(v.trainable for v in variables):
        found = entry.applied.at(at).measure([inside[id(variable)] for variable in variables], entry.axes)
        if found.outside.any():
            inside = values(frozen_too=True)
    moved = []
    with no_gradient():
        for variable in variables:
            if not np.array_equal(were[id(variable)], inside[id(variable)], equal_nan=True):
                moved.append((variable, were[id(variable)]))
                variable.assign(inside[id(variable)])
    return moved


# The hooked methods; each is bound to an optimizer instance with `partial`, which `copy.deepcopy` follows.


def apply_weight_decay(optimizer: Any, variables: Any) -> None:
    """The decay, which is no part of the gradient: that is reduced at the weights as they were before."""
    vars(_of_replica).pop("undecayed", None)  # of a step that has raised
    own = type(optimizer)._apply_weight_decay is not keras.optimizers.Optimizer._apply_weight_decay  # as Muon's
    if own or optimizer.weight_decay is not None:
        kept = [v for entry in _reducing(optimizer) for v in entry.variables if v.trainable]
        read = _reader(optimizer)
        _of_replica.undecayed = {id(variable): keras.ops.copy(read(variable)) for variable in kept}
    type(optimizer)._apply_weight_decay(optimizer, variables)


def backend_update_step(optimizer: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
    """The update, of what sets leave of the gradients, and the projection of what it left outside."""
    if not hasattr(type(optimizer), _OF_TENSORFLOW):
        grads = _seen(optimizer, grads, trainable_variables)
    entries = [entry for entry in _hooked_entries(optimizer) if entry.set.every != "epoch"]
    type(optimizer)._backend_update_step(optimizer, grads, trainable_variables, learning_rate)
    grads = vars(_of_replica).pop("gradients", grads)
    stepped_ones = _known(optimizer, trainable_variables)
    gradients = {id(variable): gradient for variable, gradient in zip(stepped_ones, grads, strict=True)}

    def step(entry: Entry) -> Step:
        variables = entry.variables
        return step_of(optimizer, entry.set, variables, [gradients.get(id(variable)) for variable in variables])

    rows = _rows_moved(optimizer, entries, gradients)
    for entry in entries:
        if id(entry) in rows:
            project_rows(entry, rows[id(entry)], step(entry), optimizer.iterations + 1)
    for every, due in _by_interval(entries).items():
        _project_when_due(optimizer, every, [entry for entry in due if id(entry) not in rows], step)


def _rows_moved(optimizer: Any, entries: Sequence[Entry], gradients: dict[int, Any]) -> dict[int, Any]:
    """By entries' ids, the rows that the step has moved, where it is enough to project those.

    Only for a plan: `constrain` has put all rows inside. Nobody has where a layer was given a set as an argument.
    """
    lifted: _Lifted | None = vars(optimizer).get("_inbounds_lifted")
    planned = [] if lifted is None else [bound.entry for _, bound in lifted.constraints if bound.model is not None]
    found = {}
    for entry in entries:
        if entry.set.every == 1 and any(entry is one for one in planned):
            found[id(entry)] = rows_moved(optimizer, entry, gradients.get(id(entry.weights[0].variable)))
    return {key: rows for key, rows in found.items() if rows is not None}


def all_reduce_sum_gradients(optimizer: Any, grads_and_vars: Any) -> Any:
    """On TensorFlow, the gradients summed over replicas, as the optimizer is to see them.

    They are kept for `backend_update_step`, which reads the metric of them: of a replica's own gradients, replicas
    would read different ones.
    """
    summed = list(type(optimizer)._all_reduce_sum_gradients(optimizer, grads_and_vars))
    variables = [variable for _, variable in summed]
    _of_replica.gradients = _seen(optimizer, [gradient for gradient, _ in summed], variables)
    return list(zip(_of_replica.gradients, variables, strict=True))


def _seen(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The gradients as the optimizer is to see them: what their sets leave of them, where that was asked for."""
    known, undecayed, now = _known(optimizer, variables), vars(_of_replica).pop("undecayed", {}), _reader(optimizer)

    def read(variable: Any) -> Any:
        return undecayed[id(variable)] if id(variable) in undecayed else now(variable)

    seen = {id(variable): gradient for variable, gradient in zip(known, gradients, strict=True)}
    with no_gradient():
        reduced = _reducing(optimizer)
        for entry in reduced:
            seen |= reduced_gradients(entry, seen, read, optimizer.iterations + 1)
        if (lengths := lengths_of(optimizer)) is not None:
            left = dict(seen)
            for entry in _hooked_entries(optimizer):
                if entry.set.reduces and entry not in reduced and _owns(optimizer, entry):
                    left |= reduced_gradients(entry, left, read, optimizer.iterations + 1)
            lengths.assign(keras.ops.stack([_squares(left.values()), _squares(gradients)]))
    return [seen[id(variable)] for variable in known]


def _squares(gradients: Iterable[Any]) -> Any:
    """The sum of all squares."""
    return sum(keras.ops.sum(keras.ops.square(keras.ops.cast(dense(g), "float32"))) for g in gradients)


def backend_apply_gradients(optimizer: Any, grads: Any, trainable_variables: Any) -> None:
    """The step; where it ends with the average in place of the weights, its projection.

    The average of weights inside is inside but of a set that isn't convex, one that was larger before, or one on
    weights that two optimizers step and average by turns.
    """
    others = _of_others(optimizer)
    real = others and (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
    before = [variable.value for variable in others]
    type(optimizer)._backend_apply_gradients(optimizer, grads, trainable_variables)
    for variable, value in zip(others, before, strict=True):
        variable.assign(keras.ops.where(real, variable.value, value))
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        entries = [
            entry
            for entry in _hooked_entries(optimizer)
            if not entry.set.convex or entry.set.changes or not _owns(optimizer, entry)
        ]
        for every, due in _by_interval([entry for entry in entries if entry.set.every != "epoch"]).items():
            _project_when_due(optimizer, math.lcm(every, optimizer.ema_overwrite_frequency), due)


def _of_others(optimizer: Any) -> list[Any]:
    """On JAX with accumulation, what the projection of a Joint moves though another optimizer steps it.

    There Keras computes the update in every step, and takes back what it does to the optimizer's own variables.
    """
    if keras.backend.backend() != "jax" or not optimizer.gradient_accumulation_steps:
        return []
    own = set(map(id, optimizer._trainable_variables))
    moved = [v for entry in _hooked_entries(optimizer) for v in entry.variables if v.trainable]
    return [variable for variable in moved if id(variable) not in own]


def finalize_variable_values(optimizer: Any, var_list: Any) -> None:
    """The end of `fit`, which puts the average in place of the weights if there is one, and its projection.

    What is projected at times only is so at the end too.
    """
    try:
        vars(optimizer).pop("_inbounds_averages", None)
        type(optimizer).finalize_variable_values(optimizer, var_list)
        entries = entries_of(optimizer._trainable_variables)
        due = [entry for entry in entries if optimizer.use_ema or entry.set.every != 1]
        project_entries(optimizer, due, optimizer.iterations)
    except BaseException as error:
        put_all_inside(optimizer, error)
        raise


def _reducing(optimizer: Any) -> list[Entry]:
    """The entries of which an optimizer is to see reduced gradients; not those of which another has a part of it."""
    return [
        entry
        for entry in _hooked_entries(optimizer)
        if _owns(optimizer, entry) and not whole_of([optimizer], entry.set)
    ]


def _known(optimizer: Any, variables: Sequence[Any]) -> list[Any]:
    """The variables that an optimizer was built with, where it is handed their values."""
    own = optimizer._trainable_variables
    return [v if isinstance(v, keras.Variable) else own[optimizer._get_variable_index(v)] for v in variables]


def _hooked_entries(optimizer: Any) -> list[Entry]:
    """What holds in this step; an optimizer with an `apply` of its own hides no constraints."""
    lifted: _Lifted | None = vars(optimizer).get("_inbounds_lifted")
    return entries_of(optimizer._trainable_variables) if lifted is None else lifted.entries


def _owns(optimizer: Any, entry: Entry) -> bool:
    """Whether an optimizer steps all weights of an entry that are trained."""
    own = set(map(id, optimizer._trainable_variables))
    return own.issuperset(id(weight.variable) for weight in entry.weights if weight.variable.trainable)


def _by_interval(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """The entries by the number of steps after which they are projected."""
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[int(entry.set.every)].append(entry)
    return groups


def _project_when_due(
    optimizer: Any, every: int, entries: Sequence[Entry], step: Callable[[Entry], Step] = lambda entry: UNKNOWN
) -> None:
    """Projects entries in each step, or in one of so many: a branch of the compiled step."""
    at = optimizer.iterations + 1
    if every == 1 or (keras.backend.backend() == "torch" and bool(at % every == 0)):
        project_entries(optimizer, entries, at, step)
    elif keras.backend.backend() != "torch":
        read = _reader(optimizer)
        for entry in entries:
            moved = [weight.variable for weight in entry.weights if weight.variable.trainable]

            def inside(entry: Entry = entry) -> list[Any]:
                return [value for _, value in projected(entry, read=read, step=step(entry), at=at)]

            def as_it_is(moved: Sequence[Any] = moved) -> list[Any]:
                return [read(variable) for variable in moved]

            for variable, value in zip(moved, keras.ops.cond(at % every == 0, inside, as_it_is), strict=True):
                variable.assign(value)


def project_entries(
    optimizer: Any, entries: Sequence[Entry], at: Any, step: Callable[[Entry], Step] = lambda entry: UNKNOWN
) -> None:
    """Projects the weights of some entries and assigns them.

    Args:
        optimizer: that holds them.
        entries: what to project.
        at: how many steps there are, with one that has just been taken.
        step: what is known of the step of an entry that has just been taken.
    """

    def warm(entry: Entry) -> Step:
        known, kept = step(entry), warm_of(optimizer, entry)
        if kept is None or known.costs is None:
            return known
        ready = [known.costs] if eager else []  # what has been computed serves the first time; a trace drops it
        return replace(known, warm=kept, anew=lambda: ready.pop() if ready else step(entry).costs)

    eager = keras.backend.backend() == "torch"
    if eager:
        with no_gradient():
            for stack in stacks_of(optimizer, entries):
                project_stack(stack, list(map(warm, stack)), at)
        return
    for entry in entries:
        for variable, value in projected(entry, read=_reader(optimizer), step=warm(entry), at=at):
            variable.assign(value)


def _reader(optimizer: Any) -> Callable[[Any], Any]:
    """What gives the value of a variable within a step."""
    held = {id(variable): value for variable, value in vars(optimizer)["_inbounds_held"]}
    return lambda variable: keras.ops.convert_to_tensor(held.get(id(variable), variable), dtype=dtype_of(variable))
