"""The public mirror of `keras.constraints`: code written for Keras needs only its import line changed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras.constraints import Constraint, deserialize, serialize

from inbounds._errors import SetError, explain, shown
from inbounds._sets.custom import Custom
from inbounds._sets.entries import Box, Fixed, NonNeg, NonPos
from inbounds._sets.grid import Grid
from inbounds._sets.intersection import Intersection
from inbounds._sets.joint import Joint
from inbounds._sets.masks import On, Where
from inbounds._sets.matrices import DoublyStochastic, SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm, UnitNorm
from inbounds._sets.order import Monotone
from inbounds._sets.scaled import Scaled
from inbounds._sets.set import Set
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import LowRank, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from inbounds._sets.sums import Halfspace, Hyperplane, L1Ball, Simplex, SumTo

__all__ = [
    "Box",
    "Constraint",
    "Custom",
    "DoublyStochastic",
    "Fixed",
    "FrobeniusNorm",
    "Grid",
    "Halfspace",
    "Hyperplane",
    "Joint",
    "L1Ball",
    "LowRank",
    "MaxNorm",
    "MinMaxNorm",
    "Monotone",
    "NonNeg",
    "NonPos",
    "NuclearNorm",
    "Orthogonal",
    "PositiveSemidefinite",
    "Simplex",
    "SkewSymmetric",
    "Sparse",
    "SpectralNorm",
    "SumTo",
    "Symmetric",
    "UnitNorm",
    "ZeroDiagonal",
    "deserialize",
    "get",
    "max_norm",
    "min_max_norm",
    "non_neg",
    "serialize",
    "unit_norm",
]

max_norm = MaxNorm
min_max_norm = MinMaxNorm
non_neg = NonNeg
unit_norm = UnitNorm

_BY_NAME: dict[str, type[Set]] = {
    name: given
    for name, given in sorted(vars().items())
    if name in __all__ and isinstance(given, type) and issubclass(given, Set)
}
SETS = {name: cls for name, cls in _BY_NAME.items() if name == cls.__name__}
"""Every set by its name."""

MADE = {"a & b": Intersection, "a.where(mask)": Where, "a.on(inputs=...)": On, "a.scaled(schedule)": Scaled}
"""What operators on sets make, by the code that makes it."""

_SAMPLES = {
    "low": -1.0,
    "high": 1.0,
    "value": 0.0,
    "normal": [1.0, -1.0],
    "offset": 0.0,
    "k": 1,
    "step": 0.125,
    "rank": 1,
    "max_value": 1.0,
    "inner": MaxNorm(2.0),
    "fn": abs,
}
"""A value for each argument that has no default, for the calls that errors show."""


def call_of(cls: type[Constraint]) -> str:
    """The call that makes a constraint, with its defaults written out."""
    parameters = inspect.signature(cls).parameters
    if issubclass(cls, Set):
        return repr(cls(**{name: _SAMPLES[name] for name, given in parameters.items() if given.default is given.empty}))
    defaults = [
        name if given.default is given.empty else f"{name}={given.default!r}" for name, given in parameters.items()
    ]
    return f"{cls.__name__}({', '.join(defaults)})"


def without_arguments(given: str | type[Any]) -> Any:
    """The constraint that a class or a name alone means, where it takes no arguments.

    Raises:
        SetError: it takes some, so that a default would hold that nobody wrote; or it is something
            else.
    """
    cls: Any = _named(given) if isinstance(given, str) else given
    if not issubclass(cls, Constraint):
        raise SetError(explain("A class is not one of sets", shown(given), instead="MaxNorm(max_value=2.0)"))
    name = str(cls.__name__)
    if cls is not Constraint and cls is getattr(keras.constraints, name, None):
        cls = SETS[name]
    if inspect.signature(cls).parameters:
        raise SetError(
            explain(
                f"{name} takes arguments, and a {'name' if isinstance(given, str) else 'class'} alone has none",
                shown(given),
                instead=call_of(cls),
            )
        )
    return cls()


def _named(name: str) -> Any:
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=3) or sorted(SETS)
        raise SetError(explain(f"No set has the name {name!r}", f"identifier={name!r}", instead=" or ".join(near)))
    return _BY_NAME[name]


def get(identifier: str | dict[str, Any] | type[Any] | Callable[[Any], Any] | None) -> Any:
    """The constraint that is meant: by name, by config, as a class, or as it is.

    Args:
        identifier: None, the name of a set (`"MaxNorm"` or, as in Keras, `"max_norm"`), a config, a
            class or a callable.

    Raises:
        SetError: no set has that name, or the set needs arguments.
    """
    if isinstance(identifier, str):
        identifier = _named(identifier)
    if isinstance(identifier, type) and issubclass(identifier, Constraint):
        try:
            return identifier()
        except TypeError as error:
            raise SetError(
                explain(
                    f"{identifier.__name__} needs arguments ({error})",
                    f"identifier={identifier!r}",
                    instead=call_of(identifier),
                )
            ) from error
    return keras.constraints.get(identifier)
