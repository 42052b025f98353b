"""How steps of training treat a set: saved with it, and of no effect on the values that it holds."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from inbounds._errors import InboundsError, SetError, shown
from inbounds._sets.arguments import interval
from inbounds._types import Gradient, Interval, Latent, Metric


@dataclasses.dataclass(frozen=True)
class Training:
    """How steps of training treat a set, see `constrain`."""

    metric: Metric = "auto"  # the norm in which the projection after a step is nearest
    every: Interval = 1  # the number of steps between projections, or "epoch"
    gradient: Gradient = "reduced"  # what the optimizer sees, or the "full" one
    latent: Latent = "auto"  # whether it steps the weights before their projection; "auto": where the set needs it

    @classmethod
    def checked(cls, owner: str, options: dict[str, Any], error: type[InboundsError] = SetError) -> Training:
        """The options by name, or their defaults; an error where one is none of what it may be."""
        given = vars(cls()) | options
        for name, choices in (("metric", get_args(Metric)), ("gradient", get_args(Gradient)), ("latent", _LATENT)):
            if not any(isinstance(given[name], type(choice)) and given[name] == choice for choice in choices):
                *others, last = map(repr, choices)
                wrong = f"`{name}` of {owner} is not {', '.join(others)} or {last}"
                raise error(wrong, f"{name}={shown(given[name])}", instead=f"{name}={others[0]}")
        return cls(**given | {"every": interval(owner, given["every"], "steps", "every=100")})


_LATENT = (True, False, "auto")
NAMES = tuple(field.name for field in dataclasses.fields(Training))
