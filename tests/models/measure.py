"""What these tests measure with: NumPy in float64, and nothing of inbounds."""

import keras
import numpy as np


def numbers(variable):
    """A variable's value in float64."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return np.array(keras.ops.convert_to_numpy(value), dtype="float64")


def norms(*parts):
    """The Euclidean norm of each unit, over parts of (variable or array, the axes of one unit)."""
    squares = [np.sum(numbers(part) ** 2, axis=axes).ravel() for part, axes in parts]
    return np.sqrt(np.sum(squares, axis=0))


def slack(bound, size=128):
    """What rounding to float32 may cost at a bound: 4 ulp and three errors of a norm of `size`."""
    return 4 * float(np.spacing(np.float32(bound))) + 3 * 0.75 * (2 + np.log2(size)) * 2.0**-24 * bound


def inside(values, bound):
    """Whether values are at most the bound, within rounding."""
    return bool(np.all(np.asarray(values) <= bound + slack(bound)))


def on_bound(values, bound):
    """Whether some value lies on the bound, within rounding, and none is above it."""
    return inside(values, bound) and bool(np.any(np.abs(np.asarray(values) - bound) <= slack(bound)))


def joint_projection(kernel, bias, bound, axes=(0,)):
    """The nearest kernel and bias whose units, a filter and its bias, have norms up to `bound`."""
    kernel, bias = numbers(kernel), numbers(bias)
    length = np.sqrt(np.sum(kernel**2, axis=axes) + bias**2)
    factor = np.where(length > bound, bound / np.maximum(length, 1e-300), 1.0)
    return kernel * np.expand_dims(factor, axes), bias * factor


def values_of(model):
    """Every weight of a model, copied."""
    return [np.array(keras.ops.convert_to_numpy(weight.value)) for weight in model.weights]


def same_bits(one, other):
    """Whether two lists of arrays agree bit for bit."""
    return len(one) == len(other) and all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))
