"""Effective weights: what a layer computes with, which may not be the weight that it stores.

With LoRA the effective weight is the stored one plus the adapter's product; quantized, it is the
stored integers divided by their scale. It is computed in NumPy in float64 and rounded once.
`tests/models/test_audit.py` compares it with what Keras' layers compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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
    """

    layer: Any
    name: str
    variable: Any

    @cached_property
    def mode(self) -> str | None:
        """How the layer stores integers, "int8" or "int4", which no training step changes; else None."""
        if self.name not in ADAPTABLE_NAMES or dtype_of(self.variable) != "int8":
            return None
        scaled = getattr(self.layer, f"{self.name}_scale", None) is not None
        return self.layer.quantization_mode if scaled and self.layer.quantization_mode in INTEGER_MODES else None

    @cached_property
    def adapted(self) -> bool:
        """Whether a LoRA adapter is added."""
        enabled = self.name in ADAPTABLE_NAMES and bool(getattr(self.layer, "lora_enabled", False))
        return enabled and hasattr(self.layer, f"lora_{self.name}_a")

    @property
    def quantized(self) -> bool:
        return self.mode is not None

    @property
    def is_stored(self) -> bool:
        """Whether the layer computes with the weight as it stores it."""
        return not self.quantized and not self.adapted

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
        """How the weight is computed, for notes in reports; empty if it is stored."""
        said = []
        if self.quantized:
            said.append(f"quantized to {self.mode}, so that no step moves it; measured is what the integers stand for")
        if self.adapted:
            said.append(f"with LoRA; measured is the sum, {self.name} + {self._lora_scale:g} A @ B")
        return ", and ".join(said)

    def value(self) -> Any:
        """The variable where the weight is stored, else an array, in the weight's dtype."""
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


def _einsum_kernel_scale(equation: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scale of an einsum's kernel, moved from the output's axes to the kernel's."""
    operands, output = equation.replace(" ", "").split("->")  # Keras quantizes no equation with "..."
    kernel = operands.split(",")[1]
    shared = [output.index(letter) for letter in kernel if letter in output]
    taken = np.einsum(scale, list(range(scale.ndim)), shared)  # the axes that are left out have size 1
    return np.expand_dims(taken, [axis for axis, letter in enumerate(kernel) if letter not in output])
