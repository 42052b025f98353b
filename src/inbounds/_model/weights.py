"""The weights of a model, each with its layer, its name there, and what the layer computes with.

Only this module uses the private attributes of Keras that list nested layers. Keras has no way from
a variable to its layer, so that `hook_layers` notes the layer where a weight is made.

The effective weight, with which a layer computes, may not be the weight that it stores. With LoRA
it is the stored one plus the adapter's product; quantized, it is the stored integers divided by
their scale. It is computed in NumPy in float64 and rounded once.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import keras
import numpy as np

from inbounds._arrays.ops import cast, dtype_of, to_numpy
from inbounds._errors import printable

ADAPTABLE_NAMES = ("kernel", "embeddings", "reverse_embeddings")
"""The names of the weights that Keras adapts or quantizes."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A variable in its layer. Its shape and dtype are those of the effective weight."""

    variable: Any  # the `keras.Variable` that the layer stores
    layer: Any  # the innermost layer that owns it
    created_trainable: bool  # it may be frozen since

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
    def declared_constraint(self) -> Any:
        """The constraint in the layer's argument for this weight, or None."""
        return getattr(self.layer, self.constraint_argument) if self.constraint_argument else None

    @property
    def constraint_argument(self) -> str | None:
        """The layer's argument for the constraint of this weight, saved with the layer, or None."""
        names = [f"{self.name}_constraint", f"{self.name.removesuffix('_kernel')}_constraint"]
        candidates = ["depthwise_constraint"] * (self.name == "kernel") + names
        return next((name for name in candidates if hasattr(self.layer, name)), None)

    @property
    def argument_code(self) -> str:
        """The layer with the argument for the constraint of this weight, as code."""
        return f"{type(self.layer).__name__}({self.constraint_argument or f'{self.name}.constraint'}=...)"

    @property
    def integer_mode(self) -> str | None:
        """How the layer stores integers, "int8" or "int4", or None where it doesn't.

        No training step changes integers.
        """
        if self.created_trainable or self.name not in ADAPTABLE_NAMES or dtype_of(self.variable) != "int8":
            return None
        scaled, mode = getattr(self.layer, f"{self.name}_scale", None) is not None, self.layer.quantization_mode
        return mode if scaled and mode in ("int8", "int4") else None

    @property
    def quantized(self) -> bool:
        return self.integer_mode is not None

    @property
    def adapted(self) -> bool:
        """Whether a LoRA adapter is added."""
        enabled = self.name in ADAPTABLE_NAMES and bool(getattr(self.layer, "lora_enabled", False))
        return enabled and hasattr(self.layer, f"lora_{self.name}_a")

    @property
    def is_stored(self) -> bool:
        """Whether the layer computes with the weight as it stores it."""
        return not self.quantized and not self.adapted

    @property
    def dtype(self) -> str:
        """A float dtype, also where integers are stored."""
        return dtype_of(getattr(self.layer, f"{self.name}_scale") if self.quantized else self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; int4 stores two entries in one."""
        stored = tuple(self.variable.shape)
        if self.integer_mode != "int4":
            return stored
        if self.name == "kernel":
            return tuple(getattr(self.layer, "original_kernel_shape", (stored[0], self.layer.kernel_scale.shape[-1])))
        shape = self.layer.input_dim, self.layer.output_dim
        return shape if self.name == "embeddings" else shape[::-1]

    @property
    def effective_description(self) -> str:
        """How the effective weight is computed, for notes in reports; empty if it is stored."""
        mode = self.integer_mode
        integers = f"quantized to {mode}, so that no step moves it; measured is what the integers stand for"
        sums = f"with LoRA; measured is the sum, {self.name} + {self._lora_scale:g} A @ B" if self.adapted else ""
        return ", and ".join(filter(None, [integers if mode else "", sums]))

    def effective_value(self) -> Any:
        """The variable if it stores the effective weight, else an array in the weight's dtype."""
        if self.is_stored:
            return self.variable
        value = self._dequantized() if self.quantized else to_numpy(self.variable)
        if self.adapted:
            down, up = (to_numpy(getattr(self.layer, f"lora_{self.name}_{part}")) for part in "ab")
            value = value + self._lora_scale * np.matmul(down, up)
        return cast(value, self.dtype)

    @property
    def _lora_scale(self) -> float:
        return float(self.layer.lora_alpha / self.layer.lora_rank)

    def _dequantized(self) -> np.ndarray[Any, Any]:
        """Integers over their scale; with zero points, (integers - zero) * scale, as in Keras."""
        layer, name = self.layer, self.name
        integers, scale = to_numpy(self.variable), to_numpy(getattr(layer, f"{name}_scale"))
        if self.integer_mode == "int4":
            length = scale.shape[-1] if name == "kernel" else layer.output_dim
            packed, axis = keras.ops.convert_to_tensor(self.variable), 0 if name == "reverse_embeddings" else -1
            integers = to_numpy(keras.quantizers.unpack_int4(packed, length, axis))
        if (zero := getattr(layer, f"{name}_zero", None)) is not None:
            axis = -1 if name == "embeddings" else 0
            groups = to_numpy(layer.g_idx).astype("int64")
            weight = (integers - np.take(to_numpy(zero), groups, axis)) * np.take(scale, groups, axis)
        elif name == "embeddings":
            weight = integers / scale[:, None]
        elif self.integer_mode == "int8" and hasattr(layer, "equation"):
            weight = integers / _einsum_kernel_scale(layer.equation, scale)
        else:
            weight = integers / scale
        return np.reshape(weight, self.shape)


def _einsum_kernel_scale(equation: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scale of an einsum's kernel, moved from the output's axes to the kernel's."""
    operands, output = equation.replace(" ", "").split("->")  # Keras quantizes no equation with "..."
    kernel = operands.split(",")[1]
    shared = [output.index(letter) for letter in kernel if letter in output]
    taken = np.einsum(scale, list(range(scale.ndim)), shared)  # the axes that are left out have size 1
    return np.expand_dims(taken, [axis for axis, letter in enumerate(kernel) if letter not in output])


def layers_of(*models: Any) -> list[Any]:
    """Models or layers and all layers nested in them, each once."""
    return list({id(layer): layer for model in models for layer in model._flatten_layers()}.values())


def weights_of(*models: Any) -> list[Weight]:
    """The weights of models or layers and all layers nested in them, each once."""
    return own_weights(layers_of(*models))


def own_weights(layers: Iterable[Any]) -> list[Weight]:
    """The weights that these layers own themselves, each once, in Keras' order.

    SpectralNormalization lists a weight of the layer in it as its own, which the inner layer owns.
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


def wrap_method(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Makes calls of a method go to `around(method, self, ...)`; wraps it only once.

    Of an object the wrapper is a method too, as PyTorch's schedulers expect; they copy its mark.
    """
    original = getattr(owner, name)
    if getattr(original, "watched_by_inbounds", False):
        return

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return around(original, self, *arguments, **named)

    method.watched_by_inbounds = True  # type: ignore[attr-defined]  # a mark on a function
    setattr(owner, name, method if isinstance(owner, type) else types.MethodType(method, owner))


def hook_layers() -> None:
    """Wraps `Layer.add_weight`, so that the layer of each weight is known. Runs once, on import."""

    def add_weight(original: Callable[..., Any], layer: Any, *arguments: Any, **named: Any) -> Any:
        variable = original(layer, *arguments, **named)
        remember_layer(variable, layer)
        return variable

    wrap_method(keras.Layer, "add_weight", add_weight)


def layers_owning(variables: Iterable[Any]) -> list[Any]:
    """The layers that made these variables, each once."""
    known = (_LAYER_OF.get(id(variable)) for variable in variables)
    return list({id(layer): layer for layer in known if layer is not None}.values())


def variables_of_values(values: Sequence[Any]) -> list[Any]:
    """The Keras variables that these values belong to; variables and unknown values stay.

    A TensorFlow loop may give an optimizer `variable.value`, which has no constraint.
    """
    if all(issubclass(kind, keras.Variable) for kind in set(map(type, values))):
        return list(values)
    layers = {id(layer): layer for layer in list(_LAYER_OF.values())}
    by_value = {id(weight.variable.value): weight.variable for weight in own_weights(layers.values())}
    return [value if isinstance(value, keras.Variable) else by_value.get(id(value), value) for value in values]
