"""Rows of the table: sets that bound each entry by itself."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

import inbounds as ib
from sets.case import Case


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


LOWS = [-1.0, 0.0, 0.1, -np.inf, 0.2]
HIGHS = [0.5, 0.0, np.inf, -0.3, 0.2]
MIXED = [0.1, 0.2, 3.0, np.inf, -0.6]
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
}
