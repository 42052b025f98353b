"""The weight that a layer computes with in place of the one it stores: under LoRA a sum, quantized a product.

In NumPy, in float64, from what the layer stores and the public names of its parts, and rounded once to the dtype that
the weight had. `tests/test_keras_ground.py` compares it with what each layer of Keras computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import cast, dtype_of, to_numpy

NAMES = ("kernel", "embeddings", "reverse_embeddings")
"""The weights that Keras adapts or quantizes."""

INTEGERS = ("int8", "int4")
"""The modes of quantization in which a layer stores integers and their scale."""


@dataclass(frozen=True)
class Used:
    """A weight as its layer computes with it.

    Attributes:
        shape: of it; int4 is stored two in one.
        dtype: that it had, and that it is rounded to.
        words: what it is made of.
        value: computes it.
        quantized: whether what is stored are integers, so that no step moves them.
    """

    shape: tuple[int, ...]
    dtype: str
    words: str
    value: Callable[[], np.ndarray[Any, Any]]
    quantized: bool
    adapted: bool


def used_of(layer: Any, name: str, variable: Any) -> Used | None:
    """What a layer computes with in place of one of its weights; None: the weight as it is stored.

    Args:
        layer: that owns the weight.
        name: of the weight in it.
        variable: that is stored.
    """
    if name not in NAMES:
        return None
    adapted = bool(getattr(layer, "lora_enabled", False)) and hasattr(layer, f"lora_{name}_a")
    scale = getattr(layer, f"{name}_scale", None) if dtype_of(variable) == "int8" else None
    mode = layer.quantization_mode
    if scale is None or mode not in INTEGERS:
        if not adapted:
            return None
        scale = mode = None
    dtype = dtype_of(variable if scale is None else scale)
    words = [f"quantized to {mode}, so that no step moves it; measured is what the integers stand for"] if mode else []
    words += [f"with LoRA; measured is the sum, {name} + {_factor(layer):g} A @ B"] if adapted else []
    value = partial(_value, layer, name, variable, mode, dtype, adapted=adapted)
    return Used(_shape(layer, name, variable, mode), dtype, ", and ".join(words), value, mode is not None, adapted)


def _value(layer: Any, name: str, variable: Any, mode: str | None, dtype: str, *, adapted: bool) -> Any:
    value = to_numpy(variable) if mode is None else _dequantized(layer, name, variable, mode)
    if adapted:
        down, up = (to_numpy(getattr(layer, f"lora_{name}_{part}")) for part in "ab")
        value = value + _factor(layer) * np.matmul(down, up)
    return cast(value, dtype)


def _factor(layer: Any) -> float:
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
    """The numbers that the integers stand for. Keras divides by a scale, or where it has zero points multiplies."""
    scale, zero = to_numpy(getattr(layer, f"{name}_scale")), getattr(layer, f"{name}_zero", None)
    integers = to_numpy(variable) if mode == "int8" else _unpacked(layer, name, variable, scale.shape[-1])
    if zero is not None:
        axis = -1 if name == "embeddings" else 0
        groups = to_numpy(layer.g_idx).astype("int64")
        integers = integers - np.take(to_numpy(zero), groups, axis)
        numbers = integers * np.take(scale, groups, axis)
    elif name == "embeddings":
        numbers = integers / scale[:, None]
    elif mode == "int8" and hasattr(layer, "equation"):
        numbers = integers / _over_kernel(layer.equation, scale)
    else:
        numbers = integers / scale
    return np.reshape(numbers, _shape(layer, name, variable, mode))


def _unpacked(layer: Any, name: str, variable: Any, columns: int) -> np.ndarray[Any, Any]:
    length = columns if name == "kernel" else layer.output_dim
    axis = 0 if name == "reverse_embeddings" else -1
    return to_numpy(keras.quantizers.unpack_int4(keras.ops.convert_to_tensor(variable), length, axis))


def _over_kernel(equation: str, scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scale of an einsum's kernel, which Keras lays over the output, laid over the kernel."""
    operands, output = equation.replace(" ", "").split("->")  # Keras quantizes no equation with "..."
    kernel = operands.split(",")[1]
    shared = [output.index(letter) for letter in kernel if letter in output]
    taken = np.einsum(scale, list(range(scale.ndim)), shared)  # the axes that are left out are of size 1
    return np.expand_dims(taken, [axis for axis, letter in enumerate(kernel) if letter not in output])
