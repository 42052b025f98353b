"""Rows of the table: sets of a unit's Euclidean norm."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import inbounds as ib
from sets.case import Case, Edge, Rows


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

    return Case(owner, nearest, edges, program if low == 0 else None, whole=whole, held=2.0, summed=0.5)


BELOW_2 = float(np.nextafter(2, 0))

SETS = {
    "MaxNorm": norms(ib.MaxNorm(1.5), 0, 1.5),
    "MaxNorm-small": norms(ib.MaxNorm(1e-3), 0, 1e-3),
    "MaxNorm-tiny": norms(ib.MaxNorm(1e-5), 0, 1e-5),
    "MaxNorm-below-2": norms(ib.MaxNorm(BELOW_2), 0, BELOW_2),
    "MaxNorm-zero": norms(ib.MaxNorm(0), 0, 0),
    "UnitNorm": norms(ib.UnitNorm(), 1, 1),
    "MinMaxNorm": norms(ib.MinMaxNorm(0.5, 2), 0.5, 2),
    "MinMaxNorm-ball": norms(ib.MinMaxNorm(0, 0.7), 0, 0.7),
    "MinMaxNorm-sphere": norms(ib.MinMaxNorm(3, 3), 3, 3),
    "MaxNorm-weight": norms(ib.MaxNorm(0.7).per("weight"), 0, 0.7, whole=True),
    "FrobeniusNorm": norms(ib.FrobeniusNorm(1.5), 0, 1.5, whole=True),
}
