"""Effective weights: what a layer computes with where that isn't the weight it stores.

With LoRA the effective weight is the stored one plus the adapter's product; quantized, it is the
stored integers divided by their scale. It is computed in NumPy in float64 and rounded once.
`tests/models/test_audit.py` compares it with what Keras' layers compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import cast, dtype_of, to_numpy

ADAPTABLE_NAMES = ("kernel", "embeddings", "reverse_embeddings")
"""The names of the weights that Keras adapts or quantizes."""

INTEGER_MODES = ("int8", "int4")
"""The modes of quantization in which a layer stores integers and their scale."""


@dataclass(frozen=True)
class EffectiveWeight:
    """The weight that a layer computes with.

    Attributes:
        shape: its shape; int4 stores two entries in one.
        dtype: its dtype, before quantization.
        description: how it is computed, for notes in reports.
        value: computes it.
        quantized: whether the layer stores integers, which no training step changes.
        adapted: whether a LoRA adapter is added.
    """

    shape: tuple[int, ...]
    dtype: str
    description: str
    value: Callable[[], np.ndarray[Any, Any]]
    quantized: bool
    adapted: bool


def effective_weight(layer: Any, name: str, variable: Any) -> EffectiveWeight | None:
    """The effective weight of a layer's variable; None where the stored weight is used."""
    if name not in ADAPTABLE_NAMES:
        return None
    adapted = bool(getattr(layer, "lora_enabled", False)) and hasattr(layer, f"lora_{name}_a")
    scale = getattr(layer, f"{name}_scale", None) if dtype_of(variable) == "int8" else None
    mode = layer.quantization_mode
    if scale is None or mode not in INTEGER_MODES:
        if not adapted:
            return None
        scale = mode = None
    dtype = dtype_of(variable if scale is None else scale)
    said = [f"quantized to {mode}, so that no step moves it; measured is what the integers stand for"] if mode else []
    said += [f"with LoRA; measured is the sum, {name} + {_lora_scale(layer):g} A @ B"] if adapted else []
    value = partial(_value, layer, name, variable, mode, dtype, adapted=adapted)
    shape = _shape(layer, name, variable, mode)
    return EffectiveWeight(shape, dtype, ", and ".join(said), value, mode is not None, adapted)


def _value(layer: Any, name: str, variable: Any, mode: str | None, dtype: str, *, adapted: bool) -> Any:
    value = to_numpy(variable) if mode is None else _dequantized(layer, name, variable, mode)
    if adapted:
        down, up = (to_numpy(getattr(layer, f"lora_{name}_{part}")) for part in "ab")
        value = value + _lora_scale(layer) * np.matmul(down, up)
    return cast(value, dtype)


def _lora_scale(layer: Any) -> float:
    return float(layer.lora_alpha / layer.lora_rank)


def _shape(layer: Any, name: str, variable: Any, mode: str | None) -> tuple[int, ...]:
    if mode != "int4":
        return tuple(variable.shape)
    if name == "embeddings":
        return layer.input_dim, layer.output_dim
    if name == "reverse_embeddings":
        return layer.output_dim, layer.input_dim
    rows, columns = variable.shape[0], layer.kernel_scale.shape[-1]
    return tuple(getattr(layer, "original_kernel_shape", (rows, columns)))


def _dequantized(layer: Any, name: str, variable: Any, mode: str) -> np.ndarray[Any, Any]:
    """The integers divided by their scale, or with zero points multiplied by it, as in Keras."""
    scale, zero = to_numpy(getattr(layer, f"{name}_scale")), getattr(layer, f"{name}_zero", None)
    integers = to_numpy(variable) if mode == "int8" else _unpacked_int4(layer, name, variable, scale.shape[-1])
    if zero is not None:
        axis = -1 if name == "embeddings" else 0
        groups = to_numpy(layer.g_idx).astype("int64")
        integers = integers - np.take(to_numpy(zero), groups, axis)
        weight = integers * np.take(scale, groups, axis)
    elif name == "embeddings":
        weight = integers / scale[:, None]
    elif mode == "int8" and hasattr(layer, "equation"):
        weight = integers / _einsum_kernel_scale(layer.equation, scale)
    else:
        weight = integers / scale
    return np.reshape(weight, _shape(layer, name, variable, mode))


def _unpacked_int4(layer: Any, name: str, variable: Any, columns: int) -> np.ndarray[Any, Any]:
    length = columns if name == "kernel" else layer.output_dim
    axis = 0 if name == "reverse_embeddings" else -1
    return to_numpy(keras.quantizers.unpack_int4(keras.ops.convert_to_tensor(variable), length, axis))


def _einsum_kernel_scale(equation: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scale of an einsum's kernel, moved from the output's axes to the kernel's."""
    operands, output = equation.replace(" ", "").split("->")  # Keras quantizes no equation with "..."
    kernel = operands.split(",")[1]
    shared = [output.index(letter) for letter in kernel if letter in output]
    taken = np.einsum(scale, list(range(scale.ndim)), shared)  # the axes that are left out have size 1
    return np.expand_dims(taken, [axis for axis, letter in enumerate(kernel) if letter not in output])
