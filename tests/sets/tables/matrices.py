"""Rows of the table: sets of a square matrix that linear algebra projects on without a spectrum."""

from __future__ import annotations

from functools import lru_cache

import cvxpy as cp
import numpy as np
from scipy.optimize import linear_sum_assignment

import inbounds as ib
from inbounds import Marginals, SkewSymmetric, Symmetric, ZeroDiagonal
from sets.case import Case, Edge, Rows


def mirrored(owner: ib.Set, sign: float) -> Case:
    """W = sign * W^T."""

    def mirror(w: Rows) -> Rows:
        return sign * w.T.reshape(w.shape)  # for no rows too

    return Case(
        owner,
        nearest=lambda w: w / 2 + mirror(w) / 2,
        edges=lambda w: [(0.0, np.abs(w - mirror(w)))],
        program=lambda w: [w == sign * w.T],
        whole=True,
        square=True,
        mixes=1,
    )


def zero_diagonal() -> Case:
    return Case(
        ZeroDiagonal(),
        nearest=lambda w: w * (1 - np.eye(len(w))),
        edges=lambda w: [(0.0, np.abs(w * np.eye(*w.shape)))],
        program=lambda w: [cp.diag(w) == 0],
        whole=True,
        square=True,
    )


def lead(x: Rows, y: Rows) -> float:
    """How much farther along x - y than y some permutation lies; 0 at the nearest matrix.

    It is at least half of |y - nearest|^2.
    """
    away = (x - y) / max(1.0, np.abs(x).max())
    return float(away[linear_sum_assignment(-away)].sum() - np.sum(away * y))


def birkhoff(x: Rows) -> Rows:
    """The nearest doubly stochastic matrix, as `lead` proves.

    It is found from an interior point; where that is lost in rounding, among permutations.
    """
    return known(x.astype("float64").tobytes(), len(x)).copy()


@lru_cache(maxsize=1000)
def known(values: bytes, n: int) -> Rows:
    x = np.frombuffer(values).reshape(n, n)
    best = []
    for find in (interior_point, vertex):
        with np.errstate(all="ignore"):
            y = find(x)
        if np.isfinite(y).all() and np.abs(np.r_[y.sum(0), y.sum(1)] - 1).max() < 1e-14:
            best.append((lead(x, y), y))
        if best and best[-1][0] < 1e-13 * n:
            return best[-1][1]
    raise AssertionError(f"no nearest matrix found, only {[gap for gap, _ in best]} for {x!r}")


def vertex(x: Rows) -> Rows:
    y = np.zeros_like(x)
    y[linear_sum_assignment(-x / max(1.0, np.abs(x).max()))] = 1
    return y


def both_ways(weight: Rows, z: Rows) -> tuple[Rows, Rows]:
    """The a and b for which z - weight * (a 1^T + 1 b^T) has rows and columns that sum to 1."""
    rows, columns, total = z.sum(1) - 1, z.sum(0) - 1, weight.sum(1)
    system = np.diag(weight.sum(0)) - (weight.T / total) @ weight
    system += 1e-10 * np.diag(np.diag(system) + 1e-10)  # one number of each block is free
    b = np.linalg.solve(system, columns - weight.T @ (rows / total))
    return ((rows - weight @ b) / total)[:, None], b


def interior_point(x: Rows) -> Rows:
    """Mehrotra's method, and then the equations of the entries above 0."""
    n = len(x)
    x = x - x.mean(axis=0)
    x = x - x.mean(axis=1, keepdims=True)
    y, s, a, b = np.full((n, n), 1 / n), np.full((n, n), max(1.0, np.abs(x).max())), np.zeros((n, 1)), np.zeros(n)
    scale = s.max()

    def direction(y: Rows, s: Rows, target: Rows) -> tuple[Rows, Rows, Rows, Rows]:
        dual = x - a - b + s - y
        weight = y / (y + s)
        pull = weight * (dual + (target - y * s) / y)
        da, db = both_ways(weight, pull + y)
        dy = pull - weight * (da + db)
        return dy, (target - y * s - s * dy) / y, da, db

    def longest(value: Rows, change: Rows) -> float:
        return float(min(1.0, 0.9999 * np.min(np.where(change < 0, -value / change, np.inf))))

    for _ in range(60):
        gap = np.mean(y * s)
        if gap < 1e-14 and np.abs(x - a - b + s - y).max() < 1e-13 * scale:
            break
        try:
            dy, ds, _, _ = direction(y, s, np.zeros_like(y))
            after = np.mean((y + longest(y, dy) * dy) * (s + longest(s, ds) * ds))
            dy, ds, da, db = direction(y, s, (after / gap) ** 3 * gap - dy * ds)
        except np.linalg.LinAlgError:
            break
        step = min(longest(y, dy), longest(s, ds))
        y, s, a, b = y + step * dy, s + step * ds, a + step * da, b + step * db

    z = x - a - b
    inside = (y > s).astype(float)
    for _ in range(20):
        sums = np.r_[(inside * z).sum(1), (inside * z).sum(0)] - 1
        da, db = both_ways(inside, inside * z)
        z = z - (da + db)
        if np.array_equal(inside, z > 0) and np.abs(sums).max() < 1e-15 * n:
            break
        inside = (z > 0).astype(float)
    return np.maximum(z, 0)


def marginals(total: float) -> Case:
    def sums(w: Rows) -> Rows:
        columns, rows = (np.abs(w.sum(axis=axis, dtype="longdouble") - total).astype("float64") for axis in (0, 1))
        return np.maximum(columns[None], rows[:, None])

    def edges(w: Rows) -> list[Edge]:
        return [(total, sums(w)), (0.0, -w)]

    def program(w: cp.Variable) -> list[cp.Constraint]:
        return [w >= 0, cp.sum(w, axis=0) == total, cp.sum(w, axis=1) == total]

    return Case(
        Marginals(total, total),
        lambda w: total * birkhoff(w / total),
        edges,
        program,
        whole=True,
        square=True,
        exact=1e-9,
        mixes=8,
        audited=8,
    )


SETS = {
    "Symmetric": mirrored(Symmetric(), 1.0),
    "SkewSymmetric": mirrored(SkewSymmetric(), -1.0),
    "ZeroDiagonal": zero_diagonal(),
    "Marginals": marginals(0.7),
}
