"""Rows of the table: sets of the groups of a unit's entries."""

from __future__ import annotations

from dataclasses import replace
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


def toeplitz(rows: Rows) -> Rows:
    """The first entry of each diagonal of the matrix that the rows are, in its place."""
    i, j = np.indices(rows.shape)
    least = np.minimum(i, j)
    return rows[i - least, j - least]


def mean_of_diagonals(rows: Rows) -> Rows:
    i, j = np.indices(rows.shape)
    found = np.zeros_like(rows)
    for k in range(1 - len(rows), rows.shape[1]):
        found[j - i == k] = np.diagonal(rows, k).mean()
    return found


def toeplitz_program(rows: cp.Variable) -> list[cp.Constraint]:
    return [rows[1:, 1:] == rows[:-1, :-1]] if min(rows.shape) > 1 else []


def norms_of_groups(labels: Rows | None, of_units: bool = False) -> tuple[Any, Any]:
    """Two functions: the norms of groups, and one that gives numbers of groups to their entries.

    Groups are the entries of a row with one label; without labels, whole columns, or whole rows.
    """

    def members(size: int) -> Rows:
        """For each group which columns it has."""
        own = np.arange(size) if labels is None else labels
        return np.arange(own.max() + 1)[:, None] == own

    def norms(rows: Rows) -> Rows:
        if of_units:
            return np.linalg.norm(rows, axis=1)[None]
        squares = rows**2 @ members(rows.shape[1]).T
        return np.sqrt(squares.sum(axis=0, keepdims=True) if labels is None else squares)

    def spread(numbers: Rows, rows: Rows) -> Rows:
        return numbers.T if of_units else numbers @ members(rows.shape[1])

    return norms, spread


def group_l1(owner: ib.Set, radius: float, labels: Rows | None) -> Case:
    """The sum of the norms of groups of entries, for each row; or of the columns of all rows."""
    norms, spread = norms_of_groups(labels)

    def shorter(lengths: Rows) -> Rows:
        return lengths if lengths.sum() <= radius else simplex_point(lengths, radius)

    def nearest(rows: Rows) -> Rows:
        lengths = norms(rows)
        factors = np.stack(list(map(shorter, lengths))) / np.where(lengths > 0, lengths, 1)
        return rows * spread(factors, rows)

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        if labels is None:
            return [cp.sum(cp.norm(rows, 2, axis=0)) <= radius]
        return [sum(cp.norm(rows[:, labels == one], 2, axis=1) for one in np.unique(labels)) <= radius]

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


def group_sparse(owner: ib.Set, k: int, labels: Rows | None = None) -> Case:
    """At most k groups of entries that are not 0, or k rows; of equal ones the first stay."""
    norms, spread = norms_of_groups(labels, of_units=labels is None)

    def nearest(rows: Rows) -> Rows:
        ranks = np.argsort(np.argsort(-norms(rows), axis=1, kind="stable"), axis=1)
        return np.where(spread(1.0 * (ranks < k), rows) > 0, rows, 0.0)

    def edges(rows: Rows) -> list[Edge]:
        found = norms(rows)
        return [(0, np.full((1, 1), -np.inf) if found.shape[1] <= k else -np.sort(-found, axis=1)[:, [k]])]

    return Case(owner, nearest, edges, size=None if labels is None else labels.size, whole=labels is None)


SETS = {
    "Equal-toeplitz": replace(
        equal(ib.Equal("toeplitz"), toeplitz, mean_of_diagonals), program=toeplitz_program, whole=True, slow=True
    ),
    "Equal": equal(ib.Equal(LABELS), lambda rows: rows[:, [0, 1, 0, 3, 0]], mean_of_groups, size=5),
    "GroupL1Ball": group_l1(ib.GroupL1Ball(1.5), 1.5, None),
    "GroupL1Ball-labels": group_l1(ib.GroupL1Ball(1.5, LABELS), 1.5, LABELS),
    "GroupSparse": group_sparse(ib.GroupSparse(1, "units"), 1),
    "GroupSparse-labels": replace(group_sparse(ib.GroupSparse(2, LABELS), 2, LABELS), slow=True),
    "Tied": replace(
        equal(ib.Tied("a/kernel", "b/kernel"), lambda rows: rows[:, [0, 0]], lambda rows: rows @ np.full((2, 2), 0.5)),
        size=2,
        slow=True,
    ),
}
