"""Sets attached to variables, and the projected values and reduced gradients that follow from them.

An attached set is the variable's `constraint`, where optimizers and audits find it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from inbounds._arrays.ops import Array, cast, dtype_of, is_sharded, is_sparse, quiet
from inbounds._arrays.units import Units
from inbounds._errors import RuleError, explain
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve
from inbounds._train.metrics import NO_METRIC, StepMetric


class AttachedSet(keras.constraints.Constraint):  # type: ignore[misc]  # keras has no types
    """The `constraint` of a variable while a plan is in force.

    Attributes:
        entry: the set with all its weights.
        given: the constraint that the variable's layer was given, or None.
    """

    def __init__(self, entry: Entry, given: Any, model: Any = None) -> None:
        self.entry = entry
        self.given = given
        self._model = None if model is None else weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model of the plan; None for a set given to a layer, or once the model is gone."""
        return None if self._model is None else self._model()

    def __call__(self, w: Any) -> Array:
        """The projected weight, for optimizers with an `apply` of their own that call constraints."""
        if self.entry.set.every != 1:
            return w
        result = w
        for variable, value in projected_values(self.entry):
            if variable is w:
                result = value
            else:
                variable.assign(value)
        return result

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
        weight.variable.constraint = AttachedSet(entry, given_constraint(weight.variable), model)


def attached_entries(variables: Iterable[Any]) -> list[Entry]:
    """The entries attached to some variables, each once."""
    attached = (
        variable.constraint for variable in variables if isinstance(getattr(variable, "constraint", None), AttachedSet)
    )
    return list({id(constraint.entry): constraint.entry for constraint in attached}.values())


def entries_in_force(model: Any) -> tuple[Entry, ...]:
    """The entries of a model: those of its plan, or the sets given to its layers.

    Raises:
        RuleError: the model has none.
    """
    entries = resolve(model, None, current_constraint).entries
    if not entries:
        raise RuleError(
            explain(
                "Nothing is constrained: the model has no plan, and no layer was given a set of inbounds",
                f"{type(model).__name__} {model.name!r}",
                instead="inbounds.constrain(model, {'**/kernel': MaxNorm(2.0)}) first",
            )
        )
    return entries


def numpy_or_dtensor(variable: Any) -> Array:
    """The value of a variable in NumPy, which compiles nothing; a DTensor stays one."""
    value = variable.value
    return value if is_sharded(value) else keras.ops.convert_to_numpy(variable)


def projected_values(
    entry: Entry,
    *,
    include_frozen: bool = False,
    read: Callable[[Any], Array] = keras.ops.convert_to_tensor,
    concrete: bool = False,
    metric: StepMetric = NO_METRIC,
    step_count: Any = 0,
) -> list[tuple[Any, Array]]:
    """The variables of an entry with their projected values; no variable is assigned here.

    With a warm start, the last pair is the warm start's variable and its new value.

    Args:
        entry: the set and its weights.
        include_frozen: whether frozen weights move too; else only the others do.
        read: returns the value of a variable, as a tensor or a NumPy array; the projection is
            computed in the same kind.
        concrete: see `Units`.
        metric: the metric of the step that led to the values.
        step_count: the number of steps taken, for a set that changes with them.

    Raises:
        RuleError: the weights are DTensors of PyTorch, which lack an operation that the set takes.
    """
    variables = entry.variables
    free = [include_frozen or bool(variable.trainable) for variable in variables]
    if not any(free):
        return []
    values = [read(variable) for variable in variables]
    applied = entry.applied.at(step_count)

    def units_in(diagonals: Sequence[Array] | None, warm: Any = None) -> Units:
        return Units.of(
            values, entry.axes, free, concrete=concrete, metric=diagonals, training=metric is not NO_METRIC, warm=warm
        )

    with quiet(values[0]), _explain_dtensor_errors(entry):
        if (reread := metric.reread) is not None and all(free):
            warm_start = keras.ops.convert_to_tensor(metric.warm_start)
            units = applied.project_warm(units_in(None, warm_start), lambda: units_in(reread()), metric.steady)
            return [*_free_values(variables, units, free), (metric.warm_start, units.warm)]
        units = applied.nearest(units_in(metric.diagonals).comparable(applied.couples_units))
        return _free_values(variables, units, free)


def reduced_gradients(
    entry: Entry, gradients: Mapping[int, Any], read: Callable[[Any], Array], step_count: Any
) -> dict[int, Array]:
    """The reduced gradients of an entry, by the ids of its variables.

    Empty where no gradient is known, or where one is sparse.

    Args:
        entry: the set and its weights.
        gradients: the gradients by the ids of variables; a variable without one isn't stepped.
        read: returns the value of a variable, at which the gradients were taken.
        step_count: the number of steps including this one, for a set that changes with them.
    """
    own = [gradients.get(id(variable)) for variable in entry.variables]
    free = [gradient is not None for gradient in own]
    if not any(free) or any(is_sparse(gradient) for gradient in own):
        return {}
    values = [read(variable) for variable in entry.variables]
    units = Units.of(values, entry.axes, free)
    parts = [
        keras.ops.zeros_like(part) if gradient is None else cast(gradient, dtype_of(part))
        for part, gradient in zip(units.parts, own, strict=True)
    ]
    with quiet(values[0]), _explain_dtensor_errors(entry):
        reduced = entry.applied.at(step_count).reduced(units, units.with_parts(parts))
    pairs = zip(entry.variables, own, reduced.parts, strict=True)
    return {id(variable): cast(part, dtype_of(old)) for variable, old, part in pairs if old is not None}


@contextmanager
def _explain_dtensor_errors(entry: Entry) -> Iterator[None]:
    """A context that turns an error of PyTorch's DTensors into one that says what to do instead."""
    try:
        yield
    except RuntimeError as error:
        if not any(is_sharded(variable.value) for variable in entry.variables):
            raise
        raise RuleError(
            explain(
                "The set takes an operation that PyTorch lacks for DTensors",
                str(error).split("\n")[0],
                where=repr(entry),
                instead="a set of entries, norms or sums (docs/devices.md), or weights that aren't sharded",
            )
        ) from error


def _free_values(variables: Sequence[Any], units: Units, free: Sequence[bool]) -> list[tuple[Any, Array]]:
    """The free variables with their parts of the units, in the variables' dtypes."""
    parts = zip(variables, units.parts, free, strict=True)
    return [(variable, cast(part, dtype_of(variable))) for variable, part, is_free in parts if is_free]
