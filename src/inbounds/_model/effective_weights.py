"""Effective weights: what a layer computes with where that isn't the weight it stores.

With LoRA the effective weight is the stored one plus the adapter's product; quantized, it is the
stored integers divided by their scale. It is computed in NumPy in float64 and rounded once.
`tests/models/test_audit.py` compares it with what Keras' layers compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import cast, dtype_of, to_numpy

ADAPTABLE_NAMES = ("kernel", "embeddings", "reverse_embeddings")
"""The names of the weights that Keras adapts or quantizes."""

INTEGER_MODES = ("int8", "int4")
"""The modes of quantization in which a layer stores integers and their scale."""


@dataclass(frozen=True, eq=False)
class EffectiveWeight:
    """The weight that a layer computes with.

    Attributes:
        layer: the layer.
        name: the name of the weight in the layer.
        variable: the variable that the layer stores.
        mode: "int8" or "int4" where the layer stores integers, which no training step changes.
        adapted: whether a LoRA adapter is added.
    """

    layer: Any
    name: str
    variable: Any
    mode: str | None
    adapted: bool

    @property
    def quantized(self) -> bool:
        """Whether the layer stores integers."""
        return self.mode is not None

    @property
    def dtype(self) -> str:
        """The dtype of the weight before quantization."""
        return dtype_of(getattr(self.layer, f"{self.name}_scale") if self.quantized else self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight; int4 stores two entries in one."""
        stored = tuple(self.variable.shape)
        if self.mode != "int4":
            return stored
        if self.name == "kernel":
            return tuple(getattr(self.layer, "original_kernel_shape", (stored[0], self.layer.kernel_scale.shape[-1])))
        shape = self.layer.input_dim, self.layer.output_dim
        return shape if self.name == "embeddings" else shape[::-1]

    @property
    def description(self) -> str:
        """How the weight is computed, for notes in reports."""
        said = []
        if self.quantized:
            said.append(f"quantized to {self.mode}, so that no step moves it; measured is what the integers stand for")
        if self.adapted:
            said.append(f"with LoRA; measured is the sum, {self.name} + {self._lora_scale:g} A @ B")
        return ", and ".join(said)

    def value(self) -> np.ndarray[Any, Any]:
        """The weight, in its dtype."""
        value = self._dequantized() if self.quantized else to_numpy(self.variable)
        if self.adapted:
            down, up = (to_numpy(getattr(self.layer, f"lora_{self.name}_{part}")) for part in "ab")
            value = value + self._lora_scale * np.matmul(down, up)
        return cast(value, self.dtype)  # type: ignore[no-any-return]

    @property
    def _lora_scale(self) -> float:
        return float(self.layer.lora_alpha / self.layer.lora_rank)

    def _dequantized(self) -> np.ndarray[Any, Any]:
        """The integers divided by their scale, or with zero points multiplied by it, as in Keras."""
        layer, name = self.layer, self.name
        integers, scale = to_numpy(self.variable), to_numpy(getattr(layer, f"{name}_scale"))
        if self.mode == "int4":
            length = scale.shape[-1] if name == "kernel" else layer.output_dim
            packed, axis = keras.ops.convert_to_tensor(self.variable), 0 if name == "reverse_embeddings" else -1
            integers = to_numpy(keras.quantizers.unpack_int4(packed, length, axis))
        if (zero := getattr(layer, f"{name}_zero", None)) is not None:
            axis = -1 if name == "embeddings" else 0
            groups = to_numpy(layer.g_idx).astype("int64")
            weight = (integers - np.take(to_numpy(zero), groups, axis)) * np.take(scale, groups, axis)
        elif name == "embeddings":
            weight = integers / scale[:, None]
        elif self.mode == "int8" and hasattr(layer, "equation"):
            weight = integers / _einsum_kernel_scale(layer.equation, scale)
        else:
            weight = integers / scale
        return np.reshape(weight, self.shape)


def effective_weight(layer: Any, name: str, variable: Any) -> EffectiveWeight | None:
    """The effective weight of a layer's variable; None where the stored weight is used."""
    if name not in ADAPTABLE_NAMES:
        return None
    adapted = bool(getattr(layer, "lora_enabled", False)) and hasattr(layer, f"lora_{name}_a")
    scaled = dtype_of(variable) == "int8" and getattr(layer, f"{name}_scale", None) is not None
    mode = layer.quantization_mode if scaled and layer.quantization_mode in INTEGER_MODES else None
    return EffectiveWeight(layer, name, variable, mode, adapted) if mode or adapted else None


def _einsum_kernel_scale(equation: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scale of an einsum's kernel, moved from the output's axes to the kernel's."""
    operands, output = equation.replace(" ", "").split("->")  # Keras quantizes no equation with "..."
    kernel = operands.split(",")[1]
    shared = [output.index(letter) for letter in kernel if letter in output]
    taken = np.einsum(scale, list(range(scale.ndim)), shared)  # the axes that are left out have size 1
    return np.expand_dims(taken, [axis for axis, letter in enumerate(kernel) if letter not in output])
