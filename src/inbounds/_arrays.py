"""One vocabulary for NumPy arrays and the tensors of Keras' backend.

NumPy stays NumPy, so that float64 is float64 even where the backend has none (JAX without x64); everything else goes
through `keras.ops`. Both spell the operations that sets need alike; this module holds the few that differ.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

Array = Any
"""A NumPy array or a tensor of Keras' backend."""

MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
"""The explicit bits of the significand: what a unit in the last place is measured in."""


def namespace(x: Array) -> Any:
    """The module with the operations for `x`: numpy for NumPy arrays, else keras.ops."""
    return np if isinstance(x, (np.ndarray, np.generic)) else keras.ops


def dtype_of(x: Array) -> str:
    """The dtype of an array, a tensor or a variable, as Keras names it."""
    return str(keras.backend.standardize_dtype(x.dtype))


def working_dtype(dtype: str) -> str:
    """What a weight of this dtype is computed in: float64 for float64, float32 for all others."""
    return "float64" if dtype == "float64" else "float32"


def cast(x: Array, dtype: str) -> Array:
    """`x` in another dtype; `x` itself when it has it."""
    if dtype_of(x) == dtype:
        return x
    return x.astype(keras_numpy_dtype(dtype)) if namespace(x) is np else keras.ops.cast(x, dtype)


def keras_numpy_dtype(dtype: str) -> Any:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes, which Keras installs."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def constant(like: Array, value: Any) -> Array:
    """`value` as an array of the same library and dtype as `like`."""
    if namespace(like) is np:
        return np.asarray(value, dtype=like.dtype)
    return keras.ops.convert_to_tensor(value, dtype=dtype_of(like))


def without_gradient(x: Array) -> Array:
    """`x` as a constant for differentiation."""
    return x if namespace(x) is np else keras.ops.stop_gradient(x)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """A copy of an array, tensor or variable as NumPy float64."""
    return np.array(keras.ops.convert_to_numpy(x), dtype="float64")


def ulp(value: float, dtype: str) -> float:
    """The unit in the last place of `value` in a dtype; 0 for 0, since a bound of 0 is met exactly."""
    if value == 0 or not np.isfinite(value):
        return 0.0
    exponent = int(np.floor(np.log2(abs(value))))
    return float(2.0 ** (exponent - MANTISSA_BITS[dtype]))
