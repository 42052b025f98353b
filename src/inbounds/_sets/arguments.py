"""Checks of the arguments of sets: each returns the value in its final form, or raises an error."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from inbounds._arrays.judgement import Bound
from inbounds._errors import SetError, shown
from inbounds._types import Cadence


def refused(owner: str, name: str, value: Any, wrong: str, instead: str, where: str = "") -> SetError:
    """The error of an argument of a set that is wrong."""
    return SetError(f"`{name}` of {owner} {wrong}", f"{name}={shown(value)}", where=where, instead=instead)


def at_most(owner: Any, name: str, most: int, what: str, where: str) -> None:
    """Raises where an argument of a set is above what the units that it meets allow."""
    if getattr(owner, name) > most:
        wrong, where = f"is above {what}", f"{owner!r} on {where}"
        raise refused(type(owner).__name__, name, getattr(owner, name), wrong, f"{name}={most}, or less", where)


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    infinite: bool = False,
    instead: str = "",
) -> float:
    """A number in [low, high], as a float; finite, unless infinity is allowed."""
    real = not isinstance(value, (bool, str)) and isinstance(_scalar(value), numbers.Real)
    try:
        result = float(_scalar(value)) + 0.0 if real else math.nan  # -0.0 becomes 0.0: equal sets have one repr
    except OverflowError:  # an integer beyond every float
        result = math.nan
    if not low <= result <= high or (math.isinf(result) and not infinite):
        raise refused(owner, name, value, f"is not a number{_interval(low, high)}", instead or f"{owner}({name}=1.0)")
    return result


def positive_integer(owner: str, name: str, value: Any, instead: str, meaning: str = "") -> int:
    """An integer of 1 or more."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral) or value < 1:
        raise refused(owner, name, value, f"is not a positive integer{meaning}", instead)
    return int(value)


def boolean(owner: str, name: str, value: Any, instead: str) -> bool:
    """True or False, of Python or NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise refused(owner, name, value, "is neither True nor False", instead)
    return bool(value)


def names(owner: str, name: str, value: Any, kind: str, instead: str) -> tuple[str, ...]:
    """Two or more different strings."""
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(values) < 2 or not all(isinstance(one, str) for one in values) or len(set(values)) < len(values):
        raise refused(owner, name, value, f"are not two or more different {kind}", instead)
    return values


def array_of(given: Any, dtype: str | None = None) -> Any:
    """What is given as an array of NumPy's; as it is where it is none, such as a ragged list."""
    try:
        return np.array(given, dtype=dtype)
    except (TypeError, ValueError):
        return given


def number_or_array(owner: str, name: str, value: Any, *, infinite: bool = False, instead: str = "") -> Bound:
    """A number, or an array of numbers as read-only NumPy float64; none of them NaN."""
    instead = instead or "give a number such as 0.5, or one number for each entry of a unit"
    wrong = ""
    array = np.zeros(())
    try:
        given = np.asarray(value)
        if given.dtype.kind in "bcSU" or (given.dtype.kind == "O" and any(x is None for x in given.reshape(-1))):
            raise TypeError("not real numbers")
        array = np.array(value, dtype="float64") + 0.0  # as in `number`
    except (TypeError, ValueError, OverflowError):
        wrong = "is not a number or an array of numbers"
    if not array.size:
        wrong = "is empty"
    elif np.isnan(array).any():
        wrong = "is NaN, or holds it"
    elif not infinite and not np.isfinite(array).all():
        wrong = "is not finite"
    if wrong:
        raise refused(owner, name, value, wrong, instead)
    if array.ndim == 0:
        return float(array)
    array.setflags(write=False)
    return array


def numbers_of_units(
    owner: str, name: str, value: Any, *, low: float = -math.inf, positive: bool = False, infinite: bool = False
) -> Bound:
    """One number for all units, or an array of one for each; in [low, infinity], or above 0."""
    instead = f"{owner}({name}=1.0), or an array with one number for each unit"
    if not isinstance(value, (list, tuple)) and not getattr(value, "shape", ()):
        given: Bound = number(owner, name, value, low=low, infinite=infinite, instead=instead)
    else:
        given = number_or_array(owner, name, value, infinite=infinite, instead=instead)
    if np.any(np.less(given, low)) or (positive and np.any(np.less_equal(given, 0))):
        raise refused(owner, name, value, f"is not {'above 0' if positive else f'{low:g} or more'}", instead)
    return given


def in_a_row(given: Bound) -> Bound:
    """The numbers of units as an array with one axis, in the order in which reports count units."""
    return given.reshape(-1) if isinstance(given, np.ndarray) else given


class GivenAxes(tuple[int, ...]):
    """Axes, with the form in which they were given and are saved: an integer, a list or a tuple."""

    given: int | list[int] | tuple[int, ...]


def axes(owner: str, value: Any) -> tuple[int, ...] | None:
    """None, an axis, or several different ones: the axes that a unit spans, as Keras' `axis`."""
    if value is None:
        return None
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    integers = all(isinstance(axis, numbers.Integral) and not isinstance(axis, bool) for axis in values)
    if not values or not integers or len(set(values)) < len(values):
        wrong = "is not an integer, or a list of different integers"
        raise refused(owner, "axis", value, wrong, "leave it out: the layer knows its units")
    found = GivenAxes(int(axis) for axis in values)
    found.given = type(value)(found) if isinstance(value, (list, tuple)) else found[0]
    return found


def center_of(owner: str, value: Any) -> Any:
    """None, "current", a finite number, or an array of such: what a set is moved by."""
    if value is None or (isinstance(value, str) and value == "current"):
        return value
    if isinstance(value, str):
        wrong = 'is not "current", a number, or an array that broadcasts to the weight'
        raise refused(owner, "center", value, wrong, 'center="current"')
    return number_or_array(owner, "center", value)


def cadence(owner: str, value: Any, unit: str, instead: str) -> Cadence:
    """A positive whole number of batches or steps, or "epoch"."""
    if value != "epoch" and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 1):
        raise refused(owner, "every", value, f'is not "epoch" or a positive number of {unit}', instead)
    return "epoch" if isinstance(value, str) else int(value)


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _interval(low: float, high: float) -> str:
    if high < math.inf:
        return f" from {low:g} to {high:g}"
    return f" of {low:g} or more" if low > -math.inf else " that is finite"
