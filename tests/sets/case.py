"""A row of the table of all sets: a set, and what is true of it by formulas in float64 that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np

import inbounds as ib

Rows = np.ndarray[Any, Any]
Edge = tuple[Any, Rows]
"""A bound, and how far above it the rows are: over 0 outside, 0 on it, below 0 inside."""

SOLVED = {(1, 1): 8, (1, 9): 8, (7, 1): 8, (3, 4): 8, (16, 8): 6, (33, 17): 2, (64, 64): 1}

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
        square: whether the rows are as many as their entries.
        any_scale: whether rows near the largest and the smallest number of their dtype are projected too.
        solved: shapes for which a solver is asked, with how often for each of five scales.
        exact: how near the formula's answer is in float64, relatively.
        largest: what rows near the largest number of their dtype are made of.
        smallest: and near the smallest: XLA computes with no number that is not normal.
        seen: which entries of a row the set sees; None for all.
        ambiguous: whether some rows have several nearest points, of which the order of the units decides.
        slow: whether it is tried in fewer formats, since each projection takes many operations.
        curved: whether the solver, of cones beside other constraints, ends up to 1e-5 off.
        samples: how many members near an answer are tried, whether one is nearer.
        held: within how many ulp at each bound a unit has to be to come back bit for bit.
        mixes: for a set whose answers are made of several entries, by how many ulp of the largest entry one may be off.
    """

    set: ib.Set
    nearest: Callable[[Rows], Rows]
    edges: Callable[[Rows], Sequence[Edge]]
    program: Callable[[cp.Variable], list[cp.Constraint]] | None = None
    size: int | None = None
    by_entry: bool = False
    whole: bool = False
    square: bool = False
    any_scale: bool = True
    solved: dict[tuple[int, int], int] = field(default_factory=lambda: SOLVED)
    exact: float = 1e-12
    mixes: float = 0.0
    largest: float = 3e38
    smallest: float = 1e-37
    seen: Rows | None = None
    ambiguous: bool = False
    slow: bool = False
    curved: bool = False
    samples: int = 100
    held: float = 4.0

    @property
    def convex(self) -> bool:
        return self.program is not None

    def excess(self, rows: Rows) -> Rows:
        """For each unit how far it is outside, the largest over its bounds."""
        worst = np.max([np.max(np.broadcast_to(excess, rows.shape), axis=1) for _, excess in self.edges(rows)], axis=0)
        return worst.max(keepdims=True) if self.whole else worst

    def inside(self, rows: Rows, dtype: str, ulps: float = 4.0) -> Rows:
        """For each row, whether it is within 4 ulp at each of its bounds."""
        kept = [np.broadcast_to(excess <= ulps * ulp(bound, dtype), rows.shape) for bound, excess in self.edges(rows)]
        return np.all(kept, axis=(0, 2))

    def shapes(self, *shapes: tuple[int, int]) -> list[tuple[int, int]]:
        """These shapes of rows, as far as the set's arrays let them."""
        sizes = [(units, self.size or size) for units, size in shapes]
        return list(dict.fromkeys((min(shape[1], 64),) * 2 if self.square else shape for shape in sizes))


def ulp(value: Any, dtype: str) -> Rows:
    """The unit in the last place of numbers in a dtype.

    At 0, a quarter of the smallest number that all libraries tell from 0: XLA computes with none that is not normal.
    """
    value = np.asarray(value, dtype="float64")
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))
    spacing = np.ldexp(1.0, np.maximum(exponent, LEAST_EXPONENT[dtype]) - SIGNIFICAND_BITS[dtype])
    least = 2.0**-1024 if dtype == "float64" else 2.0**-128
    return np.where(value == 0, least, np.where(np.isfinite(value), spacing, 0.0))
