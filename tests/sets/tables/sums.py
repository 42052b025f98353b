"""Rows of the table: sets that bound a sum over a unit."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

import inbounds as ib
from sets.case import Case, Edge, Rows


def total_of(rows: Rows, weights: Any = 1.0) -> Rows:
    return np.sum(rows * weights, axis=1, keepdims=True)


def size_of(rows: Rows, weights: Any = 1.0) -> Rows:
    return total_of(np.abs(rows * weights))


def linear(owner: ib.Set, normal: Any, offset: float, length: float, equal: bool) -> Case:
    """Normal . w = offset, or at most offset; the bound is as large as what is added up."""
    normal = np.asarray(normal, dtype="float64")

    def apart(rows: Rows) -> Rows:
        size = np.abs(rows).max(axis=1, keepdims=True) + abs(offset) + 1e-300
        gap = size * (total_of(rows / size, normal) - offset / size)
        return np.abs(gap) if equal else gap

    def nearest(rows: Rows) -> Rows:
        size = np.abs(rows).max(axis=1, keepdims=True) + abs(offset) + 1e-300
        gap = total_of(rows / size, normal) - offset / size
        gap = gap if equal else np.maximum(gap, 0)
        return rows - normal * (size * gap / np.sum(np.broadcast_to(normal, rows.shape[1:]) ** 2))

    def edges(rows: Rows) -> list[Edge]:
        return [(np.maximum(size_of(rows, normal), abs(offset)) / length, apart(rows) / length)]

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        sums = rows @ np.broadcast_to(normal, rows.shape[1:])
        return [sums == offset if equal else sums <= offset]

    return Case(
        owner,
        nearest,
        edges,
        program,
        size=normal.size if normal.ndim else None,
        mixes=8,
        largest=3e37,
        held=1.0,
        smallest=1e-33,
        summed=1.0,
    )


def simplex_point(values: Rows, total: float) -> Rows:
    """By sorting, as Held, Wolfe and Crowder.

    Entries are taken as distances below the largest, which changes nothing.
    """
    values = values - values.max()
    ordered = np.sort(values)[::-1]
    thresholds = (np.cumsum(ordered) - total) / np.arange(1, len(values) + 1)
    return np.maximum(values - thresholds[np.flatnonzero(ordered > thresholds)[-1]], 0)


def simplex(owner: ib.Set, total: float) -> Case:
    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [rows >= 0, cp.sum(rows, axis=1) == total]

    return Case(
        owner,
        nearest=lambda rows: np.stack([simplex_point(row, total) for row in rows]),
        edges=lambda rows: [(total, np.abs(total_of(rows) - total)), (0.0, -rows)],
        program=program,
        mixes=4,
        held=2.0,
        summed=1.0,
    )


def l1_ball(owner: ib.Set, radius: float) -> Case:
    def point(row: Rows) -> Rows:
        return row if np.abs(row).sum() <= radius else np.sign(row) * simplex_point(np.abs(row), radius)

    return Case(
        owner,
        nearest=lambda rows: np.stack([point(row) for row in rows]),
        edges=lambda rows: [(radius, size_of(rows) - radius)],
        program=lambda rows: [cp.norm(rows, 1, axis=1) <= radius],
        mixes=4,
        held=2.0,
        summed=1.0,
    )


NORMAL = [0.5, -2.0, 0.0, 1.0, 0.25]
LENGTH = float(np.linalg.norm(NORMAL))

SETS = {
    "SumTo": linear(ib.SumTo(0), 1.0, 0.0, 1.0, equal=True),
    "SumTo-one": linear(ib.SumTo(1), 1.0, 1.0, 1.0, equal=True),
    "Halfspace": linear(ib.Halfspace(NORMAL, 0.3), NORMAL, 0.3, LENGTH, equal=False),
    "Halfspace-cone": linear(ib.Halfspace(NORMAL, 0), NORMAL, 0.0, LENGTH, equal=False),
    "Hyperplane": linear(ib.Hyperplane(NORMAL, -0.7), NORMAL, -0.7, LENGTH, equal=True),
    "Simplex": simplex(ib.Simplex(), 1.0),
    "Simplex-small": simplex(ib.Simplex(0.3), 0.3),
    "L1Ball": l1_ball(ib.L1Ball(1.5), 1.5),
    "L1Ball-small": l1_ball(ib.L1Ball(1e-3), 1e-3),
}
