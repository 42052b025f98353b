"""Arguments of sets as keys for comparison, as JSON, and as code."""

from __future__ import annotations

import base64
import math
from typing import Any

import keras
import numpy as np

from inbounds._errors import FEW, SetError, shown
from inbounds._sets.arguments import GivenAxes

READABLE = 64  # arrays of at most so many entries are saved entry by entry
PACKED = ("bool", "float32", "float64")  # the dtypes of arrays in a config


def comparison_key(value: Any) -> Any:
    """A key with a hash, equal for equal values, whether an array, a list or a tuple holds them."""
    if isinstance(value, np.ndarray):
        return value.shape, (value.astype("float64") + 0.0).tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(comparison_key, value))
    if isinstance(value, dict):
        return tuple(sorted((name, comparison_key(inner)) for name, inner in value.items()))
    cls = type(value)
    if (
        cls.__eq__ is not object.__eq__  # type: ignore[comparison-overlap]  # mypy binds one; it has an equality of its own
        or not hasattr(cls, "get_config")
        or (cls.get_config is keras.constraints.Constraint.get_config and vars(value))
    ):
        return value  # it has no config, or one that doesn't identify it
    try:
        return cls, comparison_key(value.get_config())
    except NotImplementedError:  # Keras' base classes raise it: then the object is only equal to itself
        return value


def to_json(value: Any) -> Any:
    """An argument, ready for JSON."""
    if isinstance(value, GivenAxes):
        return value.given
    if isinstance(value, np.ndarray) and value.size > READABLE:
        single = value.astype("float32") if value.dtype == "float64" else value
        exact = single if np.array_equal(single, value) else value
        packed = base64.b64encode(np.ascontiguousarray(exact).tobytes()).decode("ascii")
        return {"base64": packed, "dtype": exact.dtype.name, "shape": list(exact.shape)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if callable(value):  # a set, a constraint of Keras or a function
        return keras.saving.serialize_keras_object(value)
    return [to_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def from_json(owner: str, name: str, value: Any) -> Any:
    """An argument from a config; an error where it is an array that can't be read."""
    if isinstance(value, list):
        return [from_json(owner, name, one) for one in value]
    if isinstance(value, dict) and "base64" in value:
        try:
            dtype = PACKED[PACKED.index(value["dtype"])]
            array = np.frombuffer(base64.b64decode(value["base64"], validate=True), dtype=dtype).reshape(value["shape"])
        except (TypeError, ValueError, KeyError) as error:
            raise SetError(
                f"`{name}` of {owner} is not an array that can be read: {error}",
                shown({key: inner for key, inner in value.items() if key != "base64"}),
                where=f"the config of {owner}, as saved with a model",
                instead="base64 of its bytes, dtype (" + " or ".join(PACKED) + ") and shape",
            ) from error
        return array if dtype == "bool" else array * 1.0
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def to_code(value: Any) -> str:
    """An argument as code; of a large array its shape and first entries."""
    if isinstance(value, np.ndarray):
        return shown(value) if value.size > FEW else to_code(value.tolist())
    if isinstance(value, list):
        return f"[{', '.join(map(to_code, value))}]"
    return repr(value) if value not in (math.inf, -math.inf) else f"float('{value}')"
