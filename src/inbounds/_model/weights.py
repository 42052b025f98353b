"""The weights of a model, each with the layer that owns it and the name it has there.

Keras has no public way down to the layers inside layers, nor from a variable to its layer: what is private here is in
this module only, and `tests/test_keras_ground.py` says when it changes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._arrays.ops import dtype_of
from inbounds._errors import printable
from inbounds._model.effective import Used, used_of


@dataclass(frozen=True, eq=False)
class Weight:
    """A variable in its layer.

    Attributes:
        variable: the `keras.Variable`.
        layer: the innermost layer that owns it.
        born_trainable: whether the layer made it for an optimizer to train (it may be frozen since).
    """

    variable: Any
    layer: Any
    born_trainable: bool

    @property
    def path(self) -> str:
        """As it is printed, without control characters."""
        return printable(str(self.variable.path))

    @property
    def name(self) -> str:
        return str(self.variable.name)

    @property
    def used(self) -> Used | None:
        """What the layer computes with in place of it; None: the weight as it is stored."""
        return used_of(self.layer, self.name, self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is used: int4 is stored two in one."""
        return tuple(self.variable.shape) if (used := self.used) is None else used.shape

    @property
    def dtype(self) -> str:
        """Of the weight as it is used: float where integers are stored with a scale."""
        return dtype_of(self.variable) if (used := self.used) is None else used.dtype

    @property
    def quantized(self) -> bool:
        """Whether integers are stored, so that no step moves it."""
        return (used := self.used) is not None and used.quantized

    @property
    def declared(self) -> Any:
        """The constraint that the layer was given for it; None: none."""
        return getattr(self.layer, self.argument) if self.argument else None

    @property
    def argument(self) -> str | None:
        """The layer's attribute that holds the constraint of this weight and is saved with the layer, or None."""
        candidates = {
            "recurrent_kernel": ["recurrent_constraint"],
            "depthwise_kernel": ["depthwise_constraint"],
            "pointwise_kernel": ["pointwise_constraint"],
            "kernel": ["depthwise_constraint", "kernel_constraint"],
        }.get(self.name, [f"{self.name}_constraint"])
        return next((name for name in candidates if hasattr(self.layer, name)), None)


def layers_of(model: Any) -> list[Any]:
    """A model or layer and every layer inside it, each once."""
    return list({id(layer): layer for layer in model._flatten_layers()}.values())


def weights_of(layers: Iterable[Any]) -> list[Weight]:
    """The weights that these layers own themselves, each once, in Keras' order.

    A wrapper may hold a weight of the layer inside it as its own (SpectralNormalization): the inner layer owns it.
    """
    found: dict[int, Weight] = {}
    for layer in layers:
        for variables, trainable in ((layer._trainable_variables, True), (layer._non_trainable_variables, False)):
            for variable in variables:
                known = found.get(id(variable))
                if known is None or any(inner is layer for inner in layers_of(known.layer)):
                    found[id(variable)] = Weight(variable, layer, trainable)
    return list(found.values())


def variables_of(model: Any) -> list[Any]:
    """The variables of all weights of a model, each once."""
    return [weight.variable for weight in weights_of(layers_of(model))]


def variables_behind(values: Sequence[Any]) -> list[Any]:
    """The variables that some values belong to; a variable is its own, and what belongs to none stays.

    A loop of TensorFlow may hand an optimizer `variable.value`, which knows no constraint, in place of the variable.
    Where there is such a value, all living variables are looked at, once per optimizer.
    """
    if all(isinstance(value, keras.Variable) for value in values):
        return list(values)
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), keras.Variable)]
    behind = {id(variable.value): variable for variable in alive}
    return [value if isinstance(value, keras.Variable) else behind.get(id(value), value) for value in values]


def owners_of(variables: Sequence[Any]) -> list[Any]:
    """The living layers that own these variables.

    A constraint given to a layer's constructor is handed a variable, and from there is no way back to the layer, which
    it needs for the axes and for the bias that belongs to a kernel. All living layers are looked at, once per
    optimizer.
    """
    wanted = {id(variable) for variable in variables}
    alive = [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), keras.Layer) and "_trainable_variables" in vars(thing)
    ]
    return [layer for layer in alive if any(id(weight.variable) in wanted for weight in weights_of([layer]))]
