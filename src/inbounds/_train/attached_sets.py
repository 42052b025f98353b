"""Sets attached to variables, as their `constraint`, and their projection outside of steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import Array, is_concrete, is_sharded
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve
from inbounds._model.weights import remember_layer
from inbounds._train.assignments import assign
from inbounds._train.optimizers import in_stateless_scope, in_tensorflow_strategy
from inbounds._train.step_projections import projection_of


class AttachedSet(keras.constraints.Constraint):  # type: ignore[misc]  # keras has no types
    """The `constraint` of a variable while a plan is in force."""

    def __init__(self, entry: Entry, given: Any, model: Any = None) -> None:
        self.entry = entry  # the set with all its weights
        self.given = given  # the constraint that the variable's layer was given, or None
        self._model = None if model is None else weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model of the plan; None for a set given to a layer, or once the model is gone."""
        return None if self._model is None else self._model()

    def __call__(self, w: Any) -> Array:
        """The projected weight, for optimizers whose own `apply` calls constraints."""
        if self.entry.training.every != 1:
            return w
        pairs = projection_of(self.entry).projected_values(keras.ops.convert_to_tensor)
        assign(pair for pair in pairs if pair[0] is not w)
        return next((value for variable, value in pairs if variable is w), w)

    def __repr__(self) -> str:
        return repr(self.entry.set)


def given_constraint(variable: Any) -> Any:
    """The constraint that a variable's layer was given, whatever plan is in force."""
    constraint = variable.constraint
    return constraint.given if isinstance(constraint, AttachedSet) else constraint


def current_constraint(variable: Any) -> Any:
    """The set in force on a variable, or else the constraint that its layer was given."""
    constraint = variable.constraint
    return constraint.entry.set if isinstance(constraint, AttachedSet) else constraint


def attach_set(entry: Entry, model: Any = None) -> None:
    """Attaches the set of an entry to its variables; `model` is None without a plan."""
    for weight in entry.weights:
        remember_layer(weight.variable, weight.layer)
        weight.variable.constraint = AttachedSet(entry, given_constraint(weight.variable), model)


def is_planned(entry: Entry) -> bool:
    """Whether the set comes from a plan, which has projected all weights once."""
    return any(one.model is not None for one in attached_sets(entry.variables))


def attached_sets(variables: Iterable[Any]) -> list[AttachedSet]:
    """The sets attached to some variables, one for each that has one."""
    constraints = (getattr(variable, "constraint", None) for variable in variables)
    return [one for one in constraints if isinstance(one, AttachedSet)]


def attached_entries(variables: Iterable[Any]) -> list[Entry]:
    """The entries attached to some variables, each once."""
    return list({id(one.entry): one.entry for one in attached_sets(variables)}.values())


def entries_in_force(model: Any) -> tuple[Entry, ...]:
    """The entries of a model, one at least: those of its plan, or the sets given to its layers."""
    entries = resolve(model, None, current_constraint).entries
    if not entries:
        wrong = "Nothing is constrained: the model has no plan, and no layer was given a set of inbounds"
        instead = "inbounds.constrain(model, {'**/kernel': MaxNorm(2.0)}) first"
        raise RuleError(wrong, f"{type(model).__name__} {model.name!r}", instead=instead)
    return entries


def project_in_numpy(entry: Entry, step_count: int) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Projects the weights of an entry after so many steps in NumPy, which compiles nothing.

    Frozen weights move only where a plan holds them and the trained weights alone can't bring the
    units inside. Returns the variables that moved, each with its previous value.
    """
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in entry.variables]
    inside, applied = projection_of(entry).project(before, step_count), entry.applied.at(step_count)
    may_move = is_planned(entry) and not all(variable.trainable for variable in entry.variables)
    if may_move and applied.measure(inside, entry.axes).outside.any():
        inside = projection_of(entry, include_frozen=True).project(before, step_count)
    trios = zip(entry.variables, before, inside, strict=True)
    moved = [(variable, old, new) for variable, old, new in trios if not np.array_equal(old, new, equal_nan=True)]
    assign((variable, new) for variable, _, new in moved)
    return [(variable, old) for variable, old, _ in moved]


def project_after_error(entries: Iterable[Entry], steps: Callable[[], int]) -> None:
    """Projects weights that a step may have left outside when it raised.

    `steps` counts the steps taken. In a trace nothing is projected. Nor are weights that devices
    share, since the other devices may not get here.
    """
    if in_stateless_scope() or in_tensorflow_strategy():
        return
    with ExitStack() as projections:  # which runs all of them, also where one fails
        for entry in entries:
            if all(is_concrete(v.value) and not is_sharded(v.value) for v in entry.variables):
                projections.callback(project_in_numpy, entry, steps())
