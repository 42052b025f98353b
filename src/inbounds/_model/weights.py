"""The weights of a model, each with the layer that owns it and its name in that layer.

Keras has no public way to list nested layers. The private attributes that do it are used in this
module only and pinned by `tests/test_keras_ground.py`. Nor has Keras a way from a variable to its
layer, so that `hook_layers` notes the layer where a weight is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import keras

from inbounds._errors import printable
from inbounds._model.effective_weights import EffectiveWeight
from inbounds._model.keras_methods import wrap_method


@dataclass(frozen=True, eq=False)
class Weight:
    """A variable in its layer.

    Attributes:
        variable: the `keras.Variable`.
        layer: the innermost layer that owns it.
        created_trainable: whether the layer created it as trainable; it may be frozen since.
    """

    variable: Any
    layer: Any
    created_trainable: bool

    def __str__(self) -> str:
        return f"{self.path} of shape {self.shape}"

    @property
    def path(self) -> str:
        """The path of the variable, without control characters."""
        return printable(str(self.variable.path))

    @property
    def name(self) -> str:
        return str(self.variable.name)

    @property
    def effective(self) -> EffectiveWeight:
        """The weight that the layer computes with."""
        return EffectiveWeight(self.layer, self.name, self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the effective weight: int4 stores two entries in one."""
        return self.effective.shape

    @property
    def dtype(self) -> str:
        """The dtype of the effective weight: a float, also where integers are stored."""
        return self.effective.dtype

    @property
    def quantized(self) -> bool:
        """Whether the layer stores integers, which no training step changes."""
        return self.effective.quantized

    @property
    def declared_constraint(self) -> Any:
        """The constraint in the layer's argument for this weight, or None."""
        return getattr(self.layer, self.constraint_argument) if self.constraint_argument else None

    @property
    def constraint_argument(self) -> str | None:
        """The layer's argument for the constraint of this weight, saved with the layer, or None."""
        candidates = {
            "recurrent_kernel": ["recurrent_constraint"],
            "depthwise_kernel": ["depthwise_constraint"],
            "pointwise_kernel": ["pointwise_constraint"],
            "kernel": ["depthwise_constraint", "kernel_constraint"],
        }.get(self.name, [f"{self.name}_constraint"])
        return next((name for name in candidates if hasattr(self.layer, name)), None)

    @property
    def argument_code(self) -> str:
        """The layer with the argument for the constraint of this weight, as code."""
        return f"{type(self.layer).__name__}({self.constraint_argument or f'{self.name}.constraint'}=...)"


def layers_of(*models: Any) -> list[Any]:
    """Models or layers and all layers nested in them, each once."""
    return list({id(layer): layer for model in models for layer in model._flatten_layers()}.values())


def weights_of(*models: Any) -> list[Weight]:
    """The weights of models or layers and all layers nested in them, each once."""
    return own_weights(layers_of(*models))


def own_weights(layers: Iterable[Any]) -> list[Weight]:
    """The weights that these layers own themselves, each once, in Keras' order.

    A wrapper such as SpectralNormalization lists a weight of its inner layer as its own. The inner
    layer is taken as the owner.
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
    return [weight.variable for weight in weights_of(model)]


_LAYER_OF: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""From the id of a variable to its layer, as long as the layer lives."""


def remember_layer(variable: Any, layer: Any) -> None:
    """Notes the layer of a variable, which `variables_of_values` and `layers_owning` look up."""
    _LAYER_OF[id(variable)] = layer


def hook_layers() -> None:
    """Wraps `Layer.add_weight`, so that the layer of each weight is known. Runs once, on import.

    Keras gives a constraint or an optimizer the variable only. A set also needs the layer, for the
    axes of a unit and the bias of a kernel.
    """
    wrap_method(keras.Layer, "add_weight", _add_weight)


def _add_weight(add_weight: Callable[..., Any], layer: Any, *arguments: Any, **named: Any) -> Any:
    variable = add_weight(layer, *arguments, **named)
    remember_layer(variable, layer)
    return variable


def layers_owning(variables: Iterable[Any]) -> list[Any]:
    """The layers that made these variables, each once."""
    known = (_LAYER_OF.get(id(variable)) for variable in variables)
    return list({id(layer): layer for layer in known if layer is not None}.values())


def variables_of_values(values: Sequence[Any]) -> list[Any]:
    """The Keras variables that these values belong to; variables and unknown values stay.

    A TensorFlow loop may give an optimizer `variable.value`, which has no constraint.
    """
    if all(isinstance(value, keras.Variable) for value in values):
        return list(values)
    layers = {id(layer): layer for layer in list(_LAYER_OF.values())}
    by_value = {id(weight.variable.value): weight.variable for weight in own_weights(layers.values())}
    return [value if isinstance(value, keras.Variable) else by_value.get(id(value), value) for value in values]
