"""The public mirror of `keras.constraints`: code for Keras needs only its import line changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras
from keras.constraints import Constraint, deserialize, serialize

from inbounds._errors import SetError, shown, similar
from inbounds._sets import public
from inbounds._sets.intersection import Intersection
from inbounds._sets.masks import On, Where
from inbounds._sets.per import Per
from inbounds._sets.public import *  # noqa: F403  # all that its `__all__` lists
from inbounds._sets.scaled import Scaled
from inbounds._sets.set import Set

__all__ = ["Constraint", "deserialize", "get", "serialize"]
__all__ += public.__all__

Named = TypeVar("Named")

BY_NAME: dict[str, type[Set]] = {name: getattr(public, name) for name in public.__all__}
"""Every public set by each of its names."""

SETS = {name: cls for name, cls in BY_NAME.items() if name == cls.__name__}
"""Every public set by the name of its class."""

MADE = {
    "a & b": Intersection,
    "a.where(mask)": Where,
    "a.on(inputs=...)": On,
    "a.per(kind)": Per,
    "a.scaled(schedule)": Scaled,
}
"""The classes of the sets that operators and methods of sets return, by their code."""

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
    "inner": public.MaxNorm(2.0),
    "groups": "symmetric",
    "rows": 1.0,
    "columns": 1.0,
    "fn": abs,
}
"""A value for each argument that has no default, for the calls that errors show."""


def signature(cls: type[Constraint]) -> str:
    """A class with its arguments and their defaults, as code."""
    arguments = [given.replace(annotation=given.empty) for given in inspect.signature(cls).parameters.values()]
    return f"{cls.__name__}{inspect.Signature(arguments)}"


def call_of(cls: type[Constraint]) -> str:
    """The call that makes a constraint, with its arguments written out.

    For a class that isn't a set, or has an argument with neither a default nor a sample, it is the
    signature of the class.
    """
    required = {name for name, given in inspect.signature(cls).parameters.items() if given.default is given.empty}
    if issubclass(cls, Set) and required <= _SAMPLES.keys():
        return repr(cls(**{name: _SAMPLES[name] for name in required}))
    return signature(cls)


def without_arguments(given: str | type[Any]) -> Any:
    """The constraint that a class or a name alone means, where it takes no arguments.

    Raises:
        SetError: it takes some, so that a default would hold that nobody wrote; or it is something
            else.
    """
    cls: Any = named(given, BY_NAME, f"identifier={given!r}") if isinstance(given, str) else given
    if not issubclass(cls, Constraint):
        raise SetError("A class is not one of sets", shown(given), instead="MaxNorm(max_value=2.0)")
    name = str(cls.__name__)
    if cls is not Constraint and cls is getattr(keras.constraints, name, None):
        cls = SETS[name]
    if inspect.signature(cls).parameters:
        wrong = f"{name} takes arguments, and a {'name' if isinstance(given, str) else 'class'} alone has none"
        raise SetError(wrong, shown(given), instead=call_of(cls))
    return cls()


def named(name: str, known: Mapping[str, Named], received: str) -> Named:
    """What has this name.

    Raises:
        SetError: nothing has; the text tells the most similar names.
    """
    if name not in known:
        instead = " or ".join(similar(name, known) or sorted(SETS))
        raise SetError(f"No set has the name {name!r}", received, instead=instead)
    return known[name]


def get(identifier: str | dict[str, Any] | type[Any] | Callable[[Any], Any] | None) -> Any:
    """The constraint that is meant: by name, by config, as a class, or as it is.

    Args:
        identifier: None, the name of a set (`"MaxNorm"` or, as in Keras, `"max_norm"`), a config, a
            class or a callable.

    Raises:
        SetError: no set has that name, or the set needs arguments.
    """
    if isinstance(identifier, str):
        identifier = named(identifier, BY_NAME, f"identifier={identifier!r}")
    if isinstance(identifier, type) and issubclass(identifier, Constraint):
        try:
            return identifier()
        except TypeError as error:
            wrong = f"{identifier.__name__} needs arguments ({error})"
            raise SetError(wrong, f"identifier={identifier!r}", instead=call_of(identifier)) from error
    return keras.constraints.get(identifier)
