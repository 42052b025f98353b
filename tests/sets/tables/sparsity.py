"""Rows of the table: few entries that are not zero."""

from __future__ import annotations

import numpy as np

import inbounds as ib
from inbounds import Sparse
from sets.case import Case, Edge, Rows


def few(owner: ib.Set, k: int, size: int | None = None) -> Case:
    """At most k entries that are not 0; of equal ones the first stay."""

    def nearest(rows: Rows) -> Rows:
        order = np.argsort(-np.abs(rows), axis=1, kind="stable")
        ranks = np.argsort(order, axis=1)
        return np.where(ranks < k, rows, 0.0)

    def edges(rows: Rows) -> list[Edge]:
        if rows.shape[1] <= k:
            return [(0, np.full(rows.shape, -np.inf))]
        return [(0, -np.sort(-np.abs(rows), axis=1)[:, [k]])]

    return Case(owner, nearest, edges, size=size)


SETS = {
    "Sparse": few(Sparse(1), 1),
    "Sparse-3": few(Sparse(3), 3, size=5),
    "Sparse-all": few(Sparse(6), 6, size=6),
    "Sparse-many": few(Sparse(50), 50, size=64),
}
