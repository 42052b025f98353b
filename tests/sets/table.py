"""The one table of all sets. A new set is a new row.

What a row says of its set comes from NumPy's formulas and CVXPY's sets, in float64, and from nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import keras
import numpy as np

import inbounds as ib

Rows = np.ndarray[Any, Any]
Edge = tuple[Any, Rows]
"""A bound, and how far above it the rows are: over 0 outside, 0 on it, below 0 inside."""

SIGNIFICAND_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
LEAST_EXPONENT = {"float16": -13, "bfloat16": -125, "float32": -125, "float64": -1021}


@dataclass(frozen=True)
class Case:
    """A set, and what is true of it.

    Attributes:
        set: ours.
        nearest: a nearest point of each row, by formula; for a zero row the documented one.
        edges: the bounds, and how far the rows exceed each.
        program: the constraints of CVXPY on a matrix of rows; None for a set that is not convex.
        size: of a unit, where the set has arrays.
        by_entry: whether each entry is projected by itself.
        whole: whether all rows are one unit.
    """

    set: ib.Set
    nearest: Callable[[Rows], Rows]
    edges: Callable[[Rows], Sequence[Edge]]
    program: Callable[[cp.Variable], list[cp.Constraint]] | None = None
    size: int | None = None
    by_entry: bool = False
    whole: bool = False

    @property
    def convex(self) -> bool:
        return self.program is not None

    def excess(self, rows: Rows) -> Rows:
        """For each unit how far it is outside, the largest over its bounds."""
        worst = np.max([np.max(np.broadcast_to(excess, rows.shape), axis=1) for _, excess in self.edges(rows)], axis=0)
        return worst.max(keepdims=True) if self.whole else worst

    def inside(self, rows: Rows, dtype: str) -> Rows:
        """For each row, whether it is within 4 ulp at each of its bounds."""
        kept = [np.broadcast_to(excess <= 4 * ulp(bound, dtype), rows.shape) for bound, excess in self.edges(rows)]
        return np.all(kept, axis=(0, 2))

    def shapes(self, *shapes: tuple[int, int]) -> list[tuple[int, int]]:
        """These shapes of rows, as far as the set's arrays let them."""
        return list(dict.fromkeys((units, self.size or size) for units, size in shapes))


def ulp(value: Any, dtype: str) -> Rows:
    """The unit in the last place of numbers in a dtype.

    At 0, a quarter of the smallest number that all libraries tell from 0: XLA computes with none that is not normal.
    """
    value = np.asarray(value, dtype="float64")
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))
    spacing = np.ldexp(1.0, np.maximum(exponent, LEAST_EXPONENT[dtype]) - SIGNIFICAND_BITS[dtype])
    least = 2.0**-1024 if dtype == "float64" else 2.0**-128
    return np.where(value == 0, least, np.where(np.isfinite(value), spacing, 0.0))


def bounds(owner: ib.Set, low: Any, high: Any) -> Case:
    """Low <= w <= high, entry by entry."""
    low, high = np.asarray(low, dtype="float64"), np.asarray(high, dtype="float64")

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        lows, highs = (np.broadcast_to(bound, rows.shape[1:]) for bound in (low, high))
        below, above = np.flatnonzero(np.isfinite(lows)), np.flatnonzero(np.isfinite(highs))
        return [rows[:, i] >= lows[i] for i in below] + [rows[:, i] <= highs[i] for i in above]

    return Case(
        owner,
        nearest=lambda rows: np.minimum(np.maximum(rows, low), high),
        edges=lambda rows: [(low, low - rows), (high, rows - high)],
        program=program,
        size=max(low.size, high.size) if low.ndim or high.ndim else None,
        by_entry=True,
    )


def norms(owner: ib.Set, low: float, high: float, whole: bool = False) -> Case:
    """Low <= |w| <= high; a zero unit goes to the point with equal positive entries."""
    axes = (0, 1) if whole else 1

    def norm(rows: Rows) -> Rows:
        return np.sqrt(np.sum(rows**2, axis=axes, keepdims=True))

    def nearest(rows: Rows) -> Rows:
        entries = rows.size if whole else rows.shape[1]
        rows = np.where(norm(rows) == 0, low / np.sqrt(entries), rows)
        length = norm(rows)
        return rows * (np.clip(length, low, high) / np.where(length == 0, 1.0, length))

    def edges(rows: Rows) -> list[Edge]:
        return [(high, norm(rows) - high)] + ([(low, low - norm(rows))] if low > 0 else [])

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [cp.norm(rows, "fro") <= high if whole else cp.norm(rows, 2, axis=1) <= high]

    return Case(owner, nearest, edges, program if low == 0 else None, whole=whole)


def joint(case: Case) -> Case:
    """The same for the rows of several weights together."""
    return replace(case, set=ib.Joint(case.set))


@keras.saving.register_keras_serializable("tests")
def clip01(w: Any) -> Any:
    return keras.ops.clip(w, 0, 1)


LOWS = [-1.0, 0.0, 0.1, -np.inf, 0.2]
HIGHS = [0.5, 0.0, np.inf, -0.3, 0.2]
MIXED = [0.1, 0.2, 3.0, np.inf, -0.6]
BELOW_2 = float(np.nextafter(2, 0))
VALUES = [0.3, -2.0, 0.0, 1e-3, 0.7]

SETS = {
    "NonNeg": bounds(ib.NonNeg(), 0, np.inf),
    "NonPos": bounds(ib.NonPos(), -np.inf, 0),
    "Box": bounds(ib.Box(-0.5, 0.25), -0.5, 0.25),
    "Box-inexact": bounds(ib.Box(-0.1, 0.3), -0.1, 0.3),
    "Box-from": bounds(ib.Box(0.1, np.inf), 0.1, np.inf),
    "Box-upto": bounds(ib.Box(-np.inf, -0.3), -np.inf, -0.3),
    "Box-arrays": bounds(ib.Box(LOWS, HIGHS), LOWS, HIGHS),
    "Box-mixed": bounds(ib.Box(-0.7, MIXED), -0.7, MIXED),
    "Fixed": bounds(ib.Fixed(0.3), 0.3, 0.3),
    "Fixed-array": bounds(ib.Fixed(VALUES), VALUES, VALUES),
    "MaxNorm": norms(ib.MaxNorm(1.5), 0, 1.5),
    "MaxNorm-small": norms(ib.MaxNorm(1e-3), 0, 1e-3),
    "MaxNorm-tiny": norms(ib.MaxNorm(1e-5), 0, 1e-5),
    "MaxNorm-below-2": norms(ib.MaxNorm(BELOW_2), 0, BELOW_2),
    "MaxNorm-zero": norms(ib.MaxNorm(0), 0, 0),
    "UnitNorm": norms(ib.UnitNorm(), 1, 1),
    "MinMaxNorm": norms(ib.MinMaxNorm(0.5, 2), 0.5, 2),
    "MinMaxNorm-ball": norms(ib.MinMaxNorm(0, 0.7), 0, 0.7),
    "MinMaxNorm-sphere": norms(ib.MinMaxNorm(3, 3), 3, 3),
    "FrobeniusNorm": norms(ib.FrobeniusNorm(1.5), 0, 1.5, whole=True),
    "Joint-Box-arrays": joint(bounds(ib.Box(LOWS, HIGHS), LOWS, HIGHS)),
    "Joint-MaxNorm": joint(norms(ib.MaxNorm(1), 0, 1)),
    "Joint-UnitNorm": joint(norms(ib.UnitNorm(), 1, 1)),
    "Joint-FrobeniusNorm": joint(norms(ib.FrobeniusNorm(2), 0, 2, whole=True)),
    "Custom": replace(bounds(ib.Custom(clip01), 0, 1), program=None),
}
