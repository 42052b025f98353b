"""Errors of sums over a unit, the backend's and inbounds', in roundings.

They are also given as a share of 2 + log2(size).

KERAS_BACKEND=jax python benchmarks/sums.py
"""

from __future__ import annotations

import keras
import numpy as np

from inbounds._arrays.ops import blocked_sum

SIZES = (13, 31, 64, 128, 300, 784, 1000, 1023, 3000, 20000)


def compiled(fn):
    """`fn` as a training step runs it."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(fn)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(fn, autograph=False)
    return fn


def error(fn, values: np.ndarray, axis: int) -> float:
    """The largest error of sums of squares, in roundings of float32."""
    found = keras.ops.convert_to_numpy(compiled(lambda x: fn(x * x, axis))(keras.ops.convert_to_tensor(values)))
    return float(np.max(np.abs(found / np.sum(values.astype("float64") ** 2, axis=axis) - 1))) * 2.0**24


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{keras.backend.backend()}: roundings (as a share of 2 + log2 size), the worst of 12 arrays")
    for size in SIZES:
        worst = {"the backend's": 0.0, "inbounds'": 0.0}
        for units in (1, 16):
            for axis in (0, 1):
                shape = (size, units) if axis == 0 else (units, size)
                each = rng.uniform(0.1, 1, units)
                for values in (
                    np.broadcast_to(each if axis == 0 else each[:, None], shape),
                    rng.uniform(0, 1, shape),
                    rng.standard_normal(shape),
                ):
                    given = np.ascontiguousarray(values.astype("float32"))
                    sums = (lambda x, axis: keras.ops.sum(x, axis), lambda x, axis: blocked_sum(x, (axis,)))
                    for name, fn in zip(worst, sums, strict=True):
                        worst[name] = max(worst[name], error(fn, given, axis))
        scale = 2 + np.log2(size)
        print(
            f"{size:6d}", *(f"{name} {roundings:6.1f} ({roundings / scale:.2f})" for name, roundings in worst.items())
        )


if __name__ == "__main__":
    main()
