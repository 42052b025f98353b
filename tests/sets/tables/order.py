"""Rows of the table: entries in order."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import inbounds as ib
from inbounds import Monotone
from sets.case import Case, Edge, Rows

SOLVED = {(1, 1): 6, (1, 9): 8, (7, 1): 6, (3, 4): 8, (16, 8): 6, (33, 17): 4, (64, 64): 2}


def pooled(row: Rows) -> Rows:
    """Isotonic regression of one row by pool-adjacent-violators, entry by entry."""
    means: list[float] = []
    counts: list[int] = []
    for entry in row:
        means.append(float(entry))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            count = counts[-2] + counts[-1]
            mean = means[-2] * (counts[-2] / count) + means[-1] * (counts[-1] / count)
            means[-2:], counts[-2:] = [mean], [count]
    return np.repeat(means, counts)


def monotone(owner: ib.Set, increasing: bool = True) -> Case:
    """Entries that grow along each row, or fall."""
    sign = 1 if increasing else -1

    def nearest(rows: Rows) -> Rows:
        return sign * np.stack([pooled(row) for row in sign * rows])

    def edges(rows: Rows) -> list[Edge]:
        if rows.shape[1] == 1:
            return [(0, np.full(rows.shape, -np.inf))]
        drops = -sign * np.diff(rows, axis=1)
        return [(0, np.max(drops, axis=1, keepdims=True))]

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [sign * rows[:, :-1] <= sign * rows[:, 1:]] if rows.shape[1] > 1 else []

    return Case(owner, nearest, edges, program, solved=SOLVED, mixes=32)


SETS = {
    "Monotone": monotone(Monotone()),
    "Monotone-falling": monotone(Monotone(increasing=False), increasing=False),
}
