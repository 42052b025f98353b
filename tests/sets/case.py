"""A row of the table of all sets: a set, and what is true of it by float64 formulas not ours."""

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
        any_scale: whether it also projects rows near the largest and smallest number of a dtype.
        solved: shapes for which a solver is asked, with how often for each of five scales.
        exact: how near the formula's answer is in float64, relatively.
        largest: what rows near the largest number of their dtype are made of.
        smallest: and near the smallest: XLA computes with no number that is not normal.
        seen: which entries of a row the set sees; None for all.
        ambiguous: whether some rows have several nearest points; the order of units decides.
        slow: whether it is tried in fewer formats, since each projection takes many operations.
        curved: whether the solver, of cones beside other constraints, ends up to 1e-5 off.
        samples: how many members near an answer are tried, whether one is nearer.
        held: within how many ulp at each bound a unit has to be to come back bit for bit.
        audited: how many epsilons of float64 an audit's own numbers are off, beside those of sums.
        unseen: what an audit of float64 can't see, where the set computes in float32.
        summed: its share of the error of a sum over a unit: 1 for sums, 0.5 for norms, else 0.
        mixes: for answers made of several entries, by how many ulp of the largest one may be off.
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
    summed: float = 0.0
    audited: float = 0.0
    unseen: float = 0.0

    @property
    def convex(self) -> bool:
        return self.program is not None

    def excess(self, rows: Rows) -> Rows:
        """For each unit how far it is outside, the largest over its bounds."""
        worst = np.max([np.max(np.broadcast_to(excess, rows.shape), axis=1) for _, excess in self.edges(rows)], axis=0)
        return worst.max(keepdims=True) if self.whole else worst

    def inside(self, rows: Rows, dtype: str, ulps: float | None = None) -> Rows:
        """Whether each row is within what is allowed at each of its bounds, or within `ulps`."""
        kept = []
        for bound, excess in self.edges(rows):
            allowed = self.allowed(bound, dtype, rows.shape) if ulps is None else ulps * ulp(bound, dtype)
            kept.append(np.broadcast_to(excess <= allowed, rows.shape))
        return np.all(kept, axis=(0, 2))

    def allowed(self, bound: Any, dtype: str, shape: tuple[int, ...]) -> Rows:
        """4 ulp at a bound, and three errors of a sum over a unit in the dtype of computation."""
        size = shape[0] * shape[1] if self.whole else shape[1]
        computed = "float64" if dtype == "float64" else "float32"
        error = 1.5 * (2 + np.log2(size)) * 2.0 ** -SIGNIFICAND_BITS[computed] * self.summed
        entries = (size if self.summed == 1 else np.sqrt(size)) if self.summed else 0
        smallest = 2.0 ** (LEAST_EXPONENT[dtype] - SIGNIFICAND_BITS[dtype])
        errors = 4 if dtype == "float64" else 3.001  # an audit has its own in float64
        relative = errors * error + (self.audited * 2.0**-52 if dtype == "float64" else 0)
        absolute = entries * smallest + (self.unseen if dtype == "float64" else 0)
        return 4 * ulp(bound, dtype) + absolute + relative * np.abs(np.where(np.isfinite(bound), bound, 0))

    def shapes(self, *shapes: tuple[int, int]) -> list[tuple[int, int]]:
        """These shapes of rows, as far as the set's arrays let them."""
        sizes = [(units, self.size or size) for units, size in shapes]
        return list(dict.fromkeys((min(shape[1], 64),) * 2 if self.square else shape for shape in sizes))


def ulp(value: Any, dtype: str) -> Rows:
    """The unit in the last place of numbers in a dtype.

    At 0, a quarter of the smallest number that all libraries tell from 0: XLA computes with none
    that is not normal.
    """
    value = np.asarray(value, dtype="float64")
    _, exponent = np.frexp(np.where(np.isfinite(value), value, 0.0))
    spacing = np.ldexp(1.0, np.maximum(exponent, LEAST_EXPONENT[dtype]) - SIGNIFICAND_BITS[dtype])
    least = 2.0**-1024 if dtype == "float64" else 2.0**-128
    return np.where(value == 0, least, np.where(np.isfinite(value), spacing, 0.0))
