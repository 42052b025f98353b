"""Value: a constraint that is compared, printed, saved and trained by its arguments."""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import html
import inspect
import math
from abc import ABC
from typing import Any, Self, get_args

import keras
import numpy as np

from inbounds._errors import FEW, InboundsError, SetError, explain, shown
from inbounds._sets.arguments import GivenAxes, cadence
from inbounds._types import Cadence, Gradient, Latent, Metric


@dataclasses.dataclass(frozen=True)
class Training:
    """How steps of training treat a set, see `constrain`."""

    metric: Metric = "auto"  # the norm in which the projection after a step is nearest
    every: Cadence = 1  # the number of steps between projections, or "epoch"
    gradient: Gradient = "reduced"  # what the optimizer sees, or the "full" one
    latent: Latent = "auto"  # whether it steps the weights before their projection; "auto": where the set needs it

    @property
    def given(self) -> dict[str, Any]:
        """The options that aren't the defaults."""
        return {name: value for name, value in vars(self).items() if value != getattr(Training, name)}

    @classmethod
    def checked(cls, owner: str, options: dict[str, Any], error: type[InboundsError] = SetError) -> Training:
        """The options by name, or their defaults; an error where one is none of what it may be."""
        given = vars(cls()) | options
        for name, choices in (("metric", get_args(Metric)), ("gradient", get_args(Gradient)), ("latent", _LATENT)):
            if not any(isinstance(given[name], type(choice)) and given[name] == choice for choice in choices):
                *others, last = map(repr, choices)
                wrong = f"`{name}` of {owner} is not {', '.join(others)} or {last}"
                raise error(wrong, f"{name}={shown(given[name])}", instead=f"{name}={others[0]}")
        return cls(**given | {"every": cadence(owner, given["every"], "steps", "every=100")})


_LATENT = (True, False, "auto")
NAMES = tuple(field.name for field in dataclasses.fields(Training))


READABLE = 64  # arrays of at most so many entries are saved entry by entry
PACKED = ("bool", "float32", "float64")  # the dtypes of arrays in a config


def comparison_key(value: Any) -> Any:
    """A key with a hash, equal for equal values, whether an array, a list or a tuple holds them."""
    if isinstance(value, np.ndarray):
        return value.shape, (value.astype("float64") + 0.0).tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(comparison_key, value))
    if isinstance(value, dict):
        return tuple(sorted((name, comparison_key(inner)) for name, inner in value.items()))
    cls = type(value)
    if (
        cls.__eq__ is not object.__eq__  # type: ignore[comparison-overlap]  # mypy binds one; it has an equality of its own
        or not hasattr(cls, "get_config")
        or (cls.get_config is keras.constraints.Constraint.get_config and vars(value))
    ):
        return value  # it has no config, or one that doesn't identify it
    try:
        return cls, comparison_key(value.get_config())
    except NotImplementedError:  # Keras' base classes raise it: then the object is only equal to itself
        return value


def to_json(value: Any) -> Any:
    """An argument, ready for JSON."""
    if isinstance(value, GivenAxes):
        return value.given
    if isinstance(value, np.ndarray) and value.size > READABLE:
        single = value.astype("float32") if value.dtype == "float64" else value
        exact = single if np.array_equal(single, value) else value
        packed = base64.b64encode(np.ascontiguousarray(exact).tobytes()).decode("ascii")
        return {"base64": packed, "dtype": exact.dtype.name, "shape": list(exact.shape)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if callable(value):  # a set, a constraint of Keras or a function
        return keras.saving.serialize_keras_object(value)
    return [to_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def from_json(owner: str, name: str, value: Any) -> Any:
    """An argument from a config; an error where it is an array that can't be read."""
    if isinstance(value, list):
        return [from_json(owner, name, one) for one in value]
    if isinstance(value, dict) and "base64" in value:
        try:
            dtype = PACKED[PACKED.index(value["dtype"])]
            array = np.frombuffer(base64.b64decode(value["base64"], validate=True), dtype=dtype).reshape(value["shape"])
        except (TypeError, ValueError, KeyError) as error:
            raise SetError(
                f"`{name}` of {owner} is not an array that can be read: {error}",
                shown({key: inner for key, inner in value.items() if key != "base64"}),
                where=f"the config of {owner}, as saved with a model",
                instead="base64 of its bytes, dtype (" + " or ".join(PACKED) + ") and shape",
            ) from error
        return array if dtype == "bool" else array * 1.0
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def to_code(value: Any) -> str:
    """An argument as code; of a large array its shape and first entries."""
    if isinstance(value, np.ndarray):
        return shown(value) if value.size > FEW else to_code(value.tolist())
    if isinstance(value, list):
        return f"[{', '.join(map(to_code, value))}]"
    return repr(value) if value not in (math.inf, -math.inf) else f"float('{value}')"


def shown_callable(fn: Any) -> str:
    """A callable as the code that makes it, where it has a config, or by its name."""
    kind = type(fn)
    if not hasattr(fn, "get_config"):
        return str(getattr(fn, "__qualname__", None) or repr(fn))
    given = ((name, value) for name, value in fn.get_config().items() if value not in (None, kind.__name__))
    home = "keras.optimizers.schedules." if kind.__module__.startswith("keras.src.optimizers") else ""
    return f"{home}{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"


LEFT_OUT = ("center", "width")  # the arguments that a config has only where they are given


class Value(keras.constraints.Constraint, ABC):  # type: ignore[misc]  # keras has no types
    """A constraint that is its arguments: it can't change, and prints as the code that makes it."""

    training: Training = Training()  # how steps of training treat it, see `Set.in_training`

    @classmethod
    @functools.cache
    def argument_names(cls) -> tuple[str, ...]:
        """The names of the constructor's arguments; each is an attribute too."""
        return tuple(inspect.signature(cls).parameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON.

        What Keras' sets lack (a centre, training) is among them only if given.
        """
        arguments = {name: to_json(getattr(self, name)) for name in self.argument_names()}
        given = {name: value for name, value in arguments.items() if value is not None or name not in LEFT_OUT}
        return given | self.training.given

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The set with these arguments; an error where the config holds others.

        A config may come from a file.
        """
        arguments = {name: value for name, value in config.items() if name not in NAMES}
        where = f"the config of {cls.__name__}, as saved with a model"
        if unknown := sorted(arguments.keys() - set(cls.argument_names())):
            wrong = f"{cls.__name__} has no argument {unknown[0]!r}"
            instead = " or ".join((*cls.argument_names(), *NAMES))
            raise SetError(wrong, f"{unknown[0]}={shown(arguments[unknown[0]])}", where=where, instead=instead)
        parameters = inspect.signature(cls).parameters.values()
        several = next((one.name for one in parameters if one.kind is one.VAR_POSITIONAL), None)
        try:
            given = {name: from_json(cls.__name__, name, value) for name, value in arguments.items()}
            each = () if several is None else given.pop(several)
            made = cls(*each, **given)
        except (TypeError, KeyError) as error:
            wrong = f"{cls.__name__} can't be made of its config: {error}"
            instead = f"all of {', '.join(cls.argument_names())}"
            raise SetError(wrong, shown(config), where=where, instead=instead) from error
        return made._trained(f"{made!r} in a saved plan", {name: config[name] for name in NAMES if name in config})

    def _trained(self, owner: str, options: dict[str, Any]) -> Self:
        """The same with other options of training; an error of `owner` where they are wrong."""
        training = Training.checked(owner, vars(self.training) | options)
        return self if training == self.training else self._with(training=training)

    def _with(self, **attributes: Any) -> Self:
        """A copy with other attributes, such as a layer or a step of training gives it."""
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        of_class = hasattr(type(self), name) and name not in self.argument_names()
        if name in vars(self) or of_class or isinstance(getattr(type(self), name, None), property):
            wrong = "A set can't be changed: a compiled training step would not see it"
            instead = "make a new set and call inbounds.constrain(model, rules) again"
            raise AttributeError(explain(wrong, f"{name}={value!r}", where=repr(self), instead=instead))
        super().__setattr__(name, value)

    def _repr_html_(self) -> str:
        """The definition and the code, for a notebook."""
        definition = " ".join(inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0].split())
        return f"<p>{html.escape(definition)}<br><code>{html.escape(repr(self))}</code></p>"

    def __repr__(self) -> str:
        arguments = ((name, getattr(self, name)) for name in self.argument_names())
        code = ", ".join(f"{name}={to_code(value)}" for name, value in arguments if value is not None)
        return f"{type(self).__name__}({code})"

    @property
    def _key(self) -> tuple[Any, ...]:
        """What makes the set the one that it is: its class and its arguments."""
        return type(self), *(comparison_key(getattr(self, name)) for name in self.argument_names())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Value) and self._key == other._key)

    def __hash__(self) -> int:
        try:
            return hash(self._key)
        except TypeError:  # a callable of the user's may have no hash
            return hash(type(self))
