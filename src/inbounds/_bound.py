"""A set in force on a variable, and the value that it asks for.

What `variable.constraint` is while a plan holds: who reads the variable, an optimizer or an audit, finds its set there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from inbounds._arrays import Array, cast, dtype_of
from inbounds._plan import Entry
from inbounds._units import Units


class Bound(keras.constraints.Constraint):  # type: ignore[misc]  # keras has no types
    """A set in force on one variable of one model: what `variable.constraint` is while a plan holds.

    Attributes:
        entry: the set with all its weights.
        given: the constraint that the variable had from its layer; None without one.
    """

    def __init__(self, entry: Entry, given: Any) -> None:
        self.entry = entry
        self.given = given

    def __call__(self, w: Any) -> Array:
        """The projected weight, for an optimizer that was built before it could be hooked."""
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


def bind(entry: Entry) -> None:
    """Puts an entry in force on its variables."""
    for weight in entry.weights:
        weight.variable.constraint = Bound(entry, given_constraint(weight.variable))


def projected(
    entry: Entry, *, frozen_too: bool = False, held: Mapping[int, Any] | None = None
) -> list[tuple[Any, Array]]:
    """The variables of an entry with their nearest values in the set; all are computed before any is assigned.

    Args:
        entry: what to project.
        frozen_too: whether frozen weights move too; else they stay and the others keep the unit inside.
        held: values to read in place of some variables', by id.
    """
    variables = [weight.variable for weight in entry.weights]
    free = [frozen_too or bool(variable.trainable) for variable in variables]
    if not any(free):
        return []
    units = entry.set._project(Units.of([_read(variable, held or {}) for variable in variables], entry.axes, free))
    parts = zip(variables, units.parts, free, strict=True)
    return [(variable, cast(part, dtype_of(variable))) for variable, part, moves in parts if moves]


def _read(variable: Any, held: Mapping[int, Any]) -> Array:
    if id(variable) in held:
        return keras.ops.convert_to_tensor(held[id(variable)], dtype=dtype_of(variable))
    return keras.ops.convert_to_tensor(variable)
