"""The nearest point as a solver of convex programs finds it: CVXPY with Clarabel, in float64."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np

Program = Callable[[cp.Variable], list[cp.Constraint]]


@functools.cache  # to compile a problem takes longer than to solve it
def solver(program: Program, shape: tuple[int, int]) -> Callable[[Any], tuple[Any, bool]]:
    """The nearest rows under a program's constraints, by Clarabel, and whether it is sure."""
    rows, given, unit = cp.Variable(shape), cp.Parameter(shape), cp.Parameter(nonneg=True)
    objective = cp.Minimize(unit * cp.sum_squares(rows) / 2 - cp.sum(cp.multiply(given, rows)))
    problem = cp.Problem(objective, program(rows))

    def solve(values: Any) -> tuple[Any, bool]:
        unit.value = 1 / max(1, np.abs(values).max())
        given.value = values * unit.value
        return _solved(problem, rows, (1e-14, 1e-13, 1e-12))

    return solve


def weighted_solver(program: Program, shape: tuple[int, int]) -> Callable[[Any, Any], tuple[Any, bool]]:
    """The same in the norm of a metric; sure of the squared distance to 1e-9."""
    rows, given, root = cp.Variable(shape), cp.Parameter(shape), cp.Parameter(shape, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(root, rows) - given)), program(rows))

    def solve(values: Any, metric: Any) -> tuple[Any, bool]:
        root.value = np.sqrt(metric)
        given.value = root.value * values
        return _solved(problem, rows, (1e-11, 1e-10, 1e-9))

    return solve


def _solved(problem: cp.Problem, rows: cp.Variable, gaps: tuple[float, ...]) -> tuple[Any, bool]:
    for gap in gaps:
        accuracy = {
            "tol_gap_abs": gap,
            "tol_gap_rel": gap,
            "reduced_tol_gap_abs": 1e-8,
            "reduced_tol_gap_rel": 1e-8,
        }
        with warnings.catch_warnings(), contextlib.suppress(cp.SolverError):
            warnings.simplefilter("ignore", UserWarning)  # CVXPY's of a gap that isn't reached, which the result tells
            problem.solve(solver="CLARABEL", tol_feas=1e-10, warm_start=False, **accuracy)
            if problem.status == cp.OPTIMAL:
                return rows.value, True
    if rows.value is not None:
        return rows.value, False
    raise AssertionError(f"no solution for rows of shape {rows.shape}")
