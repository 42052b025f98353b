"""A set in force on a variable, and the value that it asks for.

What `variable.constraint` is while a plan holds: who reads the variable, an optimizer or an audit, finds its set there.
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
from inbounds._train.metrics import UNKNOWN, Step


class Bound(keras.constraints.Constraint):  # type: ignore[misc]  # keras has no types
    """A set in force on one variable of one model: what `variable.constraint` is while a plan holds.

    Attributes:
        entry: the set with all its weights.
        given: the constraint that the variable had from its layer; None without one.
    """

    def __init__(self, entry: Entry, given: Any, model: Any = None) -> None:
        self.entry = entry
        self.given = given
        self._model = None if model is None else weakref.ref(model)

    @property
    def model(self) -> Any:
        """The model whose plan it is; None for a set that its layer was given, or when the model is gone."""
        return None if self._model is None else self._model()

    def __call__(self, w: Any) -> Array:
        """The projected weight, for an optimizer that has an `apply` of its own and calls the constraints itself."""
        if self.entry.set.every != 1:
            return w
        values = projected(self.entry)
        for variable, value in values:
            if variable is not w:
                variable.assign(value)
        return next((value for variable, value in values if variable is w), w)

    def __repr__(self) -> str:
        return repr(self.entry.set)


def given_constraint(variable: Any) -> Any:
    """The constraint that a variable was given by its layer, whatever plan holds now."""
    constraint = variable.constraint
    return constraint.given if isinstance(constraint, Bound) else constraint


def current_constraint(variable: Any) -> Any:
    """The set that is in force on a variable, or the constraint that it was given."""
    constraint = variable.constraint
    return constraint.entry.set if isinstance(constraint, Bound) else constraint


def bind(entry: Entry, model: Any = None) -> None:
    """Puts an entry in force on its variables, as one of the plan of a model where there is one."""
    for weight in entry.weights:
        weight.variable.constraint = Bound(entry, given_constraint(weight.variable), model)


def entries_of(variables: Iterable[Any]) -> list[Entry]:
    """What is in force on some variables, each entry once."""
    bound = (variable.constraint for variable in variables if isinstance(getattr(variable, "constraint", None), Bound))
    return list({id(constraint.entry): constraint.entry for constraint in bound}.values())


def in_force(model: Any) -> tuple[Entry, ...]:
    """What holds on a model: its plan, or the sets that were given to its layers.

    Raises:
        RuleError: nothing does.
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


def value_once(variable: Any) -> Array:
    """The value of a variable for a single projection: in NumPy nothing is compiled; a DTensor stays one."""
    value = variable.value
    return value if is_sharded(value) else keras.ops.convert_to_numpy(variable)


def projected(
    entry: Entry,
    *,
    frozen_too: bool = False,
    read: Callable[[Any], Array] = keras.ops.convert_to_tensor,
    concrete: bool = False,
    step: Step = UNKNOWN,
    at: Any = 0,
) -> list[tuple[Any, Array]]:
    """The variables of an entry with their nearest values in the set; all are computed before any is assigned.

    Last comes the variable that carries the step's warm start, if there is one, with its new value.

    Args:
        entry: what to project.
        frozen_too: whether frozen weights move too; else they stay and the others keep the unit inside.
        read: gives the value of a variable, as a tensor or a NumPy array: what the projection is computed with.
        concrete: as in `Units`.
        step: that led to the values; see `step_of`.
        at: how many steps have been taken, for a set that changes with them.

    Raises:
        RuleError: the weights are DTensors of PyTorch, and the set takes an operation that those don't have.
    """
    variables = entry.variables
    free = [frozen_too or bool(variable.trainable) for variable in variables]
    if not any(free):
        return []
    values = [read(variable) for variable in variables]
    applied = entry.applied.at(at)

    def in_metric(costs: Sequence[Array] | None, warm: Any = None) -> Units:
        return Units.of(
            values,
            entry.axes,
            free,
            concrete=concrete,
            metric=costs,
            training=step is not UNKNOWN,
            warm=warm,
        )

    with quiet(values[0]), _said_of_dtensors(entry):
        if (anew := step.anew) is not None and all(free):
            last = keras.ops.convert_to_tensor(step.warm)
            units = applied.go_on(in_metric(None, last), lambda: in_metric(anew()), step.steady)
            return [*_of_variables(variables, units, free), (step.warm, units.warm)]
        units = applied.nearest(in_metric(step.costs).comparable(applied.couples))
        return _of_variables(variables, units, free)


def reduced_gradients(
    entry: Entry, gradients: Mapping[int, Any], read: Callable[[Any], Array], at: Any
) -> dict[int, Array]:
    """What the set of an entry leaves of gradients, by variables' ids; nothing where none is known, or its rows are.

    Args:
        entry: the set and its weights.
        gradients: by variables' ids; what has none isn't stepped, and stays.
        read: gives the value of a variable, at which the gradients were taken.
        at: how many steps there are with this one, for a set that changes with them.
    """
    found = [gradients.get(id(variable)) for variable in entry.variables]
    free = [gradient is not None for gradient in found]
    if not any(free) or any(is_sparse(gradient) for gradient in found):
        return {}
    values = [read(variable) for variable in entry.variables]
    units = Units.of(values, entry.axes, free)
    parts = [
        keras.ops.zeros_like(part) if gradient is None else cast(gradient, dtype_of(part))
        for part, gradient in zip(units.parts, found, strict=True)
    ]
    with quiet(values[0]), _said_of_dtensors(entry):
        left = entry.applied.at(at).reduced(units, units.with_parts(parts))
    pairs = zip(entry.variables, found, left.parts, strict=True)
    return {id(variable): cast(part, dtype_of(old)) for variable, old, part in pairs if old is not None}


@contextmanager
def _said_of_dtensors(entry: Entry) -> Iterator[None]:
    """A context in which an error of PyTorch's DTensors says what to do instead."""
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


def _of_variables(variables: Sequence[Any], units: Units, free: Sequence[bool]) -> list[tuple[Any, Array]]:
    """Those that are free, with the parts of units in their dtypes."""
    parts = zip(variables, units.parts, free, strict=True)
    return [(variable, cast(part, dtype_of(variable))) for variable, part, moves in parts if moves]
