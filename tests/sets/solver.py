"""The nearest point as a solver of convex programs finds it: CVXPY with Clarabel, in float64."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np


def solver(
    program: Callable[[cp.Variable], list[cp.Constraint]], shape: tuple[int, int]
) -> Callable[[Any], tuple[Any, bool]]:
    """The nearest rows under the constraints of a program, as Clarabel finds them, and whether it is sure."""
    rows, given, unit = cp.Variable(shape), cp.Parameter(shape), cp.Parameter(nonneg=True)
    objective = cp.Minimize(unit * cp.sum_squares(rows) / 2 - cp.sum(cp.multiply(given, rows)))
    problem = cp.Problem(objective, program(rows))

    def solve(values: Any) -> Any:
        unit.value = 1 / max(1, np.abs(values).max())
        given.value = values * unit.value
        for gap in (1e-14, 1e-13, 1e-12):
            accuracy = {
                "tol_gap_abs": gap,
                "tol_gap_rel": gap,
                "reduced_tol_gap_abs": 1e-8,
                "reduced_tol_gap_rel": 1e-8,
            }
            with warnings.catch_warnings(), contextlib.suppress(cp.SolverError):
                warnings.simplefilter("ignore", UserWarning)
                problem.solve(solver="CLARABEL", tol_feas=1e-10, warm_start=False, **accuracy)
                if problem.status == cp.OPTIMAL:
                    return rows.value, True
        if rows.value is not None:
            return rows.value, False
        raise AssertionError(f"no solution for rows of shape {shape}")

    return solve
