"""Rows of the table: sets of the groups of a unit's entries."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

import inbounds as ib
from sets.case import Case, Edge, Rows
from sets.tables.sums import simplex_point

LABELS = np.array([0, 1, 0, 2, 0])


def equal(owner: ib.Set, image: Any, mean: Any, size: int | None = None) -> Case:
    """Entries that are those of their image: the first of their group, or the mirrored ones."""

    def edges(rows: Rows) -> list[Edge]:
        return [(0, np.abs(rows - image(rows)))]

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [rows == image(rows)]

    return Case(owner, mean, edges, program, size=size, mixes=4)


def mean_of_groups(rows: Rows) -> Rows:
    shares = (LABELS[:, None] == LABELS) / np.bincount(LABELS)[LABELS]
    return rows @ shares


def group_l1(owner: ib.Set, radius: float, labels: Rows | None) -> Case:
    """The sum of the norms of groups of entries, for each row; or of the columns of all rows."""

    def members(size: int) -> Rows:
        """For each group which columns it has."""
        own = np.arange(size) if labels is None else labels
        return np.arange(own.max() + 1)[:, None] == own

    def norms(rows: Rows) -> Rows:
        squares = rows**2 @ members(rows.shape[1]).T
        return np.sqrt(squares.sum(axis=0, keepdims=True) if labels is None else squares)

    def shorter(lengths: Rows) -> Rows:
        return lengths if lengths.sum() <= radius else simplex_point(lengths, radius)

    def nearest(rows: Rows) -> Rows:
        lengths = norms(rows)
        factors = np.stack(list(map(shorter, lengths))) / np.where(lengths > 0, lengths, 1)
        return rows * (factors @ members(rows.shape[1]))

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        if labels is None:
            return [cp.sum(cp.norm(rows, 2, axis=0)) <= radius]
        return [sum(cp.norm(rows[:, one], 2, axis=1) for one in members(labels.size)) <= radius]

    return Case(
        owner,
        nearest,
        edges=lambda rows: [(radius, norms(rows).sum(axis=1, keepdims=True) - radius)],
        program=program,
        size=None if labels is None else labels.size,
        whole=labels is None,
        mixes=4,
        held=2.0,
        summed=1.0,
    )


SETS = {
    "Equal": equal(ib.Equal(LABELS), lambda rows: rows[:, [0, 1, 0, 3, 0]], mean_of_groups, size=5),
    "GroupL1Ball": group_l1(ib.GroupL1Ball(1.5), 1.5, None),
    "GroupL1Ball-labels": group_l1(ib.GroupL1Ball(1.5, LABELS), 1.5, LABELS),
}
