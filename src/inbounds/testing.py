"""The laws of a set, for sets of your own: `check_set` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, Array, dtype_of, epsilon, has_float64, to_numpy
from inbounds._errors import explain, printable, shown
from inbounds._sets.arguments import positive_integer
from inbounds._sets.composite import contains
from inbounds._sets.masks import On, Where
from inbounds._sets.per import Per
from inbounds._sets.set import Set
from inbounds._types import Integer

__all__ = ["check_set"]

SCALES = (1.0, 1e-3, 1e3, 1e-30, 1e30)
"""The sizes of the rows that are projected; float16 has the first three only."""

BAD_NUMBERS = (np.nan, np.inf, -np.inf)

EXACT = 1e-6
"""By what share of the distances to it a nearest point may be off."""


def check_set(given: Set, size: Integer = 5, units: Integer = 6) -> None:
    """Runs the laws of a set on random rows, in every dtype, of NumPy and of the backend.

    - What `project` returns is inside, and projecting it again changes no bit of it.
    - It is the nearest point: of a convex set no other one of it lies towards the rows, in a metric
      too where the set says that it is exact in one; of another set none that is tried is nearer.
    - Shape, dtype and library are kept, and NumPy's numbers are those of the backend, to rounding.
    - Rows of zeros, and from 1e-30 to 1e30 (float16: 1e-3 to 1e3), have finite results.
    - NaN and infinities stay, and count as violated.
    - A unit's result doesn't depend on the others, unless the set says that it couples them.
    - The set is equal to the one that is made of its config.

    Args:
        given: an object of the class.
        size: the number of entries of a unit.
        units: the number of rows; for a set of square matrices, `size`.

    Raises:
        AssertionError: a law doesn't hold. The text has the law, the rows and the result.

    >>> from inbounds import MaxNorm
    >>> check_set(MaxNorm(1.0), size=3)
    """
    if not isinstance(given, Set):
        raise TypeError(
            explain("check_set is given no set", shown(given), instead="inbounds.testing.check_set(MaxNorm(1.0))")
        )
    counts = {"units": units, "size": size}
    shape = tuple(positive_integer("check_set", name, count, f"{name}=5") for name, count in counts.items())
    if (again := type(given).from_config(given.get_config())) != given:
        raise _broken("a set is equal to the one made of its config", given, None, given.get_config(), again)
    drawn = np.random.default_rng(0).standard_normal(shape)
    drawn[shape[0] // 2] = 0
    for dtype in MANTISSA_BITS:
        for scale in SCALES[:3] if dtype == "float16" else SCALES:
            rows = (drawn * scale).astype(dtype)
            check_rows(given, rows)
            if dtype != "float64" or has_float64():
                wide = rows.astype("float64" if dtype == "float64" else "float32")
                tensors = keras.ops.convert_to_tensor(wide, dtype=dtype)
                if scale == 1.0:  # elsewhere there is no more to see in it
                    check_rows(given, tensors)
                ours, theirs = (to_numpy(given.project(one)) for one in (rows, tensors))
                rounding = 16 * epsilon(dtype) * np.abs(to_numpy(rows)).max()
                if not np.allclose(ours, theirs, rtol=1e-5, atol=rounding):
                    raise _broken("the backend computes what NumPy does", given, rows, ours, theirs)
    _check_nearest(given, drawn)


def check_rows(given: Set, rows: Array, bad_numbers: Sequence[float] = BAD_NUMBERS) -> None:
    """The laws that need no other solution, on some rows.

    One row gets each of `bad_numbers` in turn.

    Raises:
        AssertionError: a law doesn't hold.
    """
    ours, projected = to_numpy(rows), given.project(rows)
    found = to_numpy(projected)

    def law(says: str, holds: Any, other: Any = None) -> None:
        if not np.all(holds):
            raise _broken(says, given, rows, found, other)

    def sees(entry: int) -> bool:
        """Whether an entry counts for the set, which a mask may hide."""
        spoilt = ours.copy()
        spoilt[:, entry] = np.nan
        return bool(np.isinf(to_numpy(given.violation(_like(rows, spoilt)))).any())

    kept = type(projected) is type(rows) and found.shape == ours.shape and dtype_of(projected) == dtype_of(rows)
    law("shape, dtype and library are kept", kept, f"{type(projected).__name__} of {dtype_of(projected)}")
    counted, couples = len(given.measure([rows], [(1,)]).excess), given.couples_units
    violation = to_numpy(given.violation(rows))
    law("violation has one number for each unit, 0 or more", violation.shape == (counted,), violation)
    law("violation has one number for each unit, 0 or more", violation >= 0, violation)
    law("finite rows have finite results", np.isfinite(found))
    measured = given.measure([projected], [(1,)])
    law("results are inside", ~measured.outside, measured.excess)
    again = to_numpy(given.project(projected))
    law("projecting again changes no bit", _same(again, found), again)
    row = min(1, len(ours) - 1)
    others = np.arange(len(ours)) != row
    rounding = 64 * epsilon(dtype_of(rows)) * np.maximum(np.abs(ours), np.abs(found)).max(axis=1, keepdims=True)
    if not couples:
        alone = np.zeros_like(ours)
        alone[row] = ours[row]
        of_it = to_numpy(given.project(_like(rows, alone)))
        law("units are independent of each other", np.abs(of_it[row] - found[row]) <= rounding[row], of_it)
    masked = contains(given, (Where, On))
    entry = next(filter(sees, reversed(range(ours.shape[1]))), -1) if masked else -1
    for bad in bad_numbers:
        spoilt = ours.copy()
        spoilt[row, entry] = bad
        of_spoilt = _like(rows, spoilt)
        left, violated = to_numpy(given.project(of_spoilt)), to_numpy(given.violation(of_spoilt))
        law(f"{bad} stays", _same(left[row, entry], spoilt[row, entry]), left)
        law(f"{bad} is violated by infinity", violated.max() == np.inf, violated)
        if not contains(given, (Per,)) and (given.separable or not given.entrywise):  # whose units are no rows
            rest = found if given.separable else spoilt
            others_of_unit = (np.delete(one[row], entry) for one in (left, rest))
            law(f"{bad} leaves the rest of a unit as it is", _same(*others_of_unit), left)
        if not couples:
            law(f"{bad} leaves other units as they are", (np.abs(left - found) <= rounding)[others], left)
            law(f"{bad} leaves other units as they are", violated[others] == violation[others], violated)


def _check_nearest(given: Set, drawn: np.ndarray[Any, Any]) -> None:
    """Checks that results are nearest, against points of the set near and far.

    The rows are NumPy's, in float64, of several sizes.
    """
    over = None if given.couples_units else 1  # each unit, or all of them where the set couples them
    for rows in (drawn * scale for scale in (0.1, 1.0, 10.0)):
        costs = np.random.default_rng(1).uniform(0.2, 1.0, rows.shape)
        for metric in (None, costs) if given.exact_in_metric and given.convex else (None,):
            by, found = 1.0 if metric is None else metric, given.project(rows, metric)
            chance = np.random.default_rng(2)
            for scale in (1e-3, 0.1, 1.0, 10.0) * 5:
                member = given.project(found + scale * chance.standard_normal(found.shape))
                away, aside = rows - found, member - found
                lengths = [np.sqrt(np.sum(x**2, axis=over)) for x in (away, aside)]
                rounding = 1e-8 * np.abs(member).max()  # of a vertex that both are
                if given.convex:
                    nearer = np.sum(by * away * aside, axis=over) > EXACT * lengths[0] * (lengths[1] + rounding)
                else:
                    nearer = np.sum((member - rows) ** 2, axis=over) < lengths[0] ** 2 * (1 - EXACT)
                if np.any(nearer):
                    raise _broken(
                        "results are nearest" + " in a metric" * (metric is not None), given, rows, found, member
                    )


def _like(rows: Array, values: np.ndarray[Any, Any]) -> Array:
    if isinstance(rows, np.ndarray):
        return values.astype(rows.dtype)
    wide = values.astype("float64" if dtype_of(rows) == "float64" else "float32")
    return keras.ops.convert_to_tensor(wide, dtype=dtype_of(rows))


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether numbers agree bit for bit, but for kinds of NaN."""
    signs = (np.signbit(one) == np.signbit(other)) | np.isnan(one)
    return np.array_equal(one, other, equal_nan=True) and bool(np.all(signs))


def _broken(law: str, given: Set, rows: Any, found: Any, other: Any) -> AssertionError:
    numbers = {"rows": None if rows is None else to_numpy(rows), "project(rows)": found, "against": other}
    received = ", ".join(
        f"{name}={' '.join(repr(value).split())}" for name, value in numbers.items() if value is not None
    )
    kind = "" if rows is None else f" on {dtype_of(rows)} rows of {type(rows).__module__.split('.')[0]}"
    return AssertionError(
        printable(explain(f"A law doesn't hold: {law}", received, where=f"{given!r}{kind}"), lines=True)
    )
