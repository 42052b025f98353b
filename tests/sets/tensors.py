"""Rows in every dtype, in NumPy and in the backend, and what the backend does with functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

BACKEND = keras.backend.backend()

NUMPY_DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
EPSILON = {name: float(ml_dtypes.finfo(dtype).eps) for name, dtype in NUMPY_DTYPES.items()}

# JAX has no float64 unless jax_enable_x64 asks for it: there NumPy alone is tested in float64.
BACKEND_DTYPES = [name for name in NUMPY_DTYPES if not (BACKEND == "jax" and name == "float64")]

# On NumPy arrays the library does the same whatever the backend: a run on several backends tries
# them on the first.
LIBRARIES = ("numpy", BACKEND)
of_numpy = pytest.mark.once

DTYPES = {"numpy": list(NUMPY_DTYPES), BACKEND: BACKEND_DTYPES}
FORMATS = [(name, library) for library in LIBRARIES for name in DTYPES[library]]


def array(values: Any, dtype: str, library: str) -> Any:
    """Numbers as an array of a dtype, in NumPy or in the backend."""
    rounded = np.asarray(values).astype(NUMPY_DTYPES[dtype])
    if library == "numpy":
        return rounded
    wide = rounded.astype("float64" if dtype == "float64" else "float32")
    return keras.ops.convert_to_tensor(wide, dtype=dtype)


def numbers(x: Any) -> np.ndarray[Any, Any]:
    """An array of either library as NumPy, in its own dtype."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    wide = x if dtype == "float64" else keras.ops.cast(x, "float32")
    return np.asarray(keras.ops.convert_to_numpy(wide)).astype(NUMPY_DTYPES[dtype])


def exact(x: Any) -> np.ndarray[Any, Any]:
    """An array of either library as NumPy float64."""
    return numbers(x).astype("float64")


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays are the same bit for bit, signs of zeros and kinds of NaN included."""
    a, b = numbers(a), numbers(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def compiled(fn: Callable[[Any], Any], x: Any) -> Any:
    """`fn(x)` as the backend traces and computes it: no number may decide what is computed."""
    if BACKEND == "jax":
        import jax

        return jax.jit(fn)(x)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(fn, jit_compile=True)(x)
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda x: fn(x), tracing_mode="fake")(x)(x)


def mapped(fn: Callable[[Any], Any], x: Any) -> Any:
    """Fn over the first axis, vectorized by the backend."""
    if BACKEND == "jax":
        import jax

        return jax.jit(jax.vmap(fn))(x)  # as one program: operation by operation takes ten times as long
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.vectorized_map(fn, x, fallback_to_while_loop=False)
    import torch

    return torch.func.vmap(fn)(x)


@functools.cache
def _compiled_gradient(fn: Callable[[Any], Any]) -> Any:
    """On JAX, compiled once for all rows of a shape."""
    import jax

    def total(x: Any, weights: Any) -> Any:
        value = fn(x)
        return keras.ops.sum(value * keras.ops.cast(weights, value.dtype))

    return jax.jit(jax.grad(total))


def gradient(fn: Callable[[Any], Any], x: Any, weights: Any) -> np.ndarray[Any, Any]:
    """The gradient at x of sum(weights * fn(x)), as NumPy float64."""

    def total(x: Any) -> Any:
        value = fn(x)
        return keras.ops.sum(value * keras.ops.convert_to_tensor(weights, dtype=value.dtype))

    if BACKEND == "jax":
        return exact(_compiled_gradient(fn)(x, weights))  # likewise
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = total(x)
        return exact(tape.gradient(value, x))
    x = x.detach().clone().requires_grad_()
    total(x).backward()
    return exact(x.grad)


def differences(
    fn: Callable[[Any], Any], x: Any, weights: Any = 1.0, *, apart: bool = False, step: float = 1e-6
) -> tuple[Any, Any]:
    """The gradient of sum(weights * fn(x)) by forward and backward differences: two at a kink.

    Entries are moved one by one; with `apart`, where each row of fn(x) is of that row of x alone,
    in all rows at once.
    """
    if apart:
        weights = np.broadcast_to(weights, (len(x), 1) if np.ndim(weights) == 0 else weights.shape)
        rows, entries = np.indices(x.shape).reshape(2, -1)
        moved = step * (np.arange(x.shape[1]) == entries[:, None])
        middle, ahead, behind = (
            (weights[rows] * np.reshape(fn(at), (len(rows), -1))).sum(axis=1)
            for at in (x[rows], x[rows] + moved, x[rows] - moved)
        )
        return ((ahead - middle) / step).reshape(x.shape), ((middle - behind) / step).reshape(x.shape)
    middle = np.sum(weights * fn(x))
    forward, backward = np.empty_like(x), np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[index] = step
        forward[index] = (np.sum(weights * fn(x + moved)) - middle) / step
        backward[index] = (middle - np.sum(weights * fn(x - moved))) / step
    return forward, backward
