"""Rows of the table: sets of matrices by their spectrum, with NumPy's SVD and eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np

from inbounds import LowRank, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from sets.case import Case, Edge, Rows

SMALL = {(1, 1): 8, (1, 6): 8, (5, 1): 8, (2, 3): 8, (4, 4): 6, (8, 5): 2, (16, 12): 1}


def singular(rows: Rows) -> Rows:
    """Singular values as u^T W v.

    LAPACK's own are off by up to 10 ulp; its vectors are off by as much, which here counts squared.
    """
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    lengths = np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=1))
    return np.abs(np.sum((left.T @ rows) * right, axis=1)) / lengths


def decomposed(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """The singular value decomposition, with vectors that are more orthogonal than LAPACK's."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    return 1.5 * left - 0.5 * left @ (left.T @ left), values, 1.5 * right - 0.5 * (right @ right.T) @ right


def spectral(
    owner: Any,
    values: Callable[[Rows], Rows],
    bound: Callable[[Rows], tuple[Any, Any]],
    program: Callable[[cp.Variable], list[cp.Constraint]] | None = None,
    **fields: Any,
) -> Case:
    """A set told by the singular values of a matrix.

    From these, `values` gives those of the nearest matrix, and `bound` a bound and their excess.
    """

    def nearest(rows: Rows) -> Rows:
        left, old, right = decomposed(rows)
        return (left * values(old)) @ right

    def edges(rows: Rows) -> list[Edge]:
        if not rows.size:
            return [(1.0, np.zeros((1, 1)))]
        bounded, excess = bound(singular(rows))
        return [(bounded, np.full((1, 1), excess))]

    return Case(owner, nearest, edges, program, whole=True, solved=SMALL, **fields)


def shrunk(values: Rows, total: float) -> Rows:
    """The nearest numbers >= 0 with at most that sum, by bisection."""
    low, high = 0.0, float(values.max())
    if values.sum() <= total:
        return values
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > total else (low, middle)
    return np.maximum(values - high, 0)


def largest(bound: float, **fields: Any) -> Case:
    return spectral(
        SpectralNorm(bound),
        lambda values: np.minimum(values, bound),
        lambda values: (bound, values.max() - bound),
        lambda rows: [cp.sigma_max(rows) <= bound],
        audited=70,
        **fields,
    )


def total(bound: float, **fields: Any) -> Case:
    return spectral(
        NuclearNorm(bound),
        lambda values: shrunk(values, bound),
        lambda values: (bound, values.sum() - bound),
        lambda rows: [(cp.norm(rows, "fro") if min(rows.shape) == 1 else cp.normNuc(rows)) <= bound],
        audited=70,
        **fields,
    )


def ranked(rank: int, **fields: Any) -> Case:
    return spectral(
        LowRank(rank),
        lambda values: np.where(np.arange(len(values)) < rank, values, 0.0),
        lambda values: (values.max(), values[rank:].max(initial=0.0)),
        **fields,
    )


def orthogonal(**fields: Any) -> Case:
    def nearest(rows: Rows) -> Rows:
        """U V^T; where singular values are 0, what makes it nearest to the identity."""
        left, values, right = np.linalg.svd(rows)
        count = int(np.sum(values > 1e-12 * max(values.max(), 1e-300)))
        model = left[:, count:].T @ np.eye(*rows.shape) @ right[count:].T
        inner, _, outer = np.linalg.svd(model, full_matrices=False)
        result = left[:, :count] @ right[:count] + left[:, count:] @ inner @ outer @ right[count:]
        # What LAPACK calls orthogonal is off by several ulp.
        return result + (result - result @ result.T @ result) / 2

    def edges(rows: Rows) -> list[Edge]:
        if not rows.size:
            return [(1.0, np.zeros((1, 1)))]
        return [(1.0, np.full((1, 1), np.abs(singular(rows) - 1).max()))]

    return Case(Orthogonal(), nearest, edges, whole=True, **fields)


def semidefinite(**fields: Any) -> Case:
    def nearest(rows: Rows) -> Rows:
        values, vectors = np.linalg.eigh(rows / 2 + rows.T / 2)
        return (vectors * np.maximum(values, 0)) @ vectors.T

    def edges(rows: Rows) -> list[Edge]:
        if not rows.size:
            return [(1.0, np.zeros((1, 1)))]
        least = np.linalg.eigvalsh(rows / 2 + rows.T / 2).min()
        size = np.linalg.svd(rows, compute_uv=False).max()
        return [(size, np.full((1, 1), max(np.abs(rows - rows.T).max(), -least)))]

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [rows == cp.Variable(rows.shape, PSD=True)]

    solved = {(1, 1): 8, (2, 2): 10, (3, 3): 10, (5, 5): 8, (8, 8): 4, (12, 12): 1}
    return Case(PositiveSemidefinite(), nearest, edges, program, whole=True, square=True, solved=solved, **fields)


SETS = {
    "SpectralNorm": largest(1.5, mixes=16),
    "SpectralNorm-small": largest(1e-3, mixes=16),
    "NuclearNorm": total(2.0, mixes=16),
    "NuclearNorm-small": total(2.2e-3, mixes=16),
    "Orthogonal": orthogonal(mixes=65536, ambiguous=True),
    "LowRank": ranked(1, mixes=256, largest=1e36, smallest=1e-30),
    "PositiveSemidefinite": semidefinite(mixes=64, largest=1e36, smallest=1e-30),
}
