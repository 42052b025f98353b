"""Value: a constraint that is its arguments, by which it is compared, printed and saved."""

from __future__ import annotations

import copy
import functools
import html
import inspect
from abc import ABC
from typing import Any, Self

import keras

from inbounds._errors import SetError, explain, shown
from inbounds._sets.serialization import comparison_key, from_json, to_code, to_json
from inbounds._sets.training import NAMES, Training

LEFT_OUT = ("center", "width")  # the arguments that a config has only where they are given


class Value(keras.constraints.Constraint, ABC):  # type: ignore[misc]  # keras has no types
    """A constraint that is its arguments: it can't be changed, and prints as the code that makes it."""

    training: Training = Training()  # how steps of training treat it, see `Set.in_training`

    @classmethod
    @functools.cache
    def argument_names(cls) -> tuple[str, ...]:
        """The names of the constructor's arguments; each is an attribute too."""
        return tuple(inspect.signature(cls).parameters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON; what Keras' sets lack (a centre, training) only if given."""
        arguments = {name: to_json(getattr(self, name)) for name in self.argument_names()}
        given = {name: value for name, value in arguments.items() if value is not None or name not in LEFT_OUT}
        default = vars(Training())
        return given | {name: value for name, value in vars(self.training).items() if value != default[name]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The set with these arguments; an error where the config, which may come from a file, holds others."""
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
        """The same with other options of training; an error of their `owner` where they are wrong."""
        training = Training.checked(owner, vars(self.training) | options)
        return self if training == self.training else self._with(training=training)

    def _with(self, **attributes: Any) -> Self:
        """A copy with other attributes, such as what a layer or a step of training makes of the set."""
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
        return isinstance(other, Value) and self._key == other._key

    def __hash__(self) -> int:
        try:
            return hash(self._key)
        except TypeError:  # a callable of the user's may have no hash
            return hash(type(self))
