"""How exact the projections are: every row of the tests' table of sets, on NumPy.

Instances are those of the test that asks Clarabel for the nearest point (shapes, five scales, six
places). A distance is the largest difference between entries, over max(1, the largest entry of the
answer). Violations are what the table's formulas find, in float64, after a projection, in units in
the last place at the bound.

    KERAS_BACKEND=jax python benchmarks/accuracy.py
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np

import inbounds as ib

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sets.case import Case, ulp
from sets.solver import solver
from sets.table import SETS
from sets.test_laws import PLACES, SCALES, SHAPES, rows_of_many_sizes
from sets.test_per import CASES


def instances(case: Case, most: int | None) -> Iterator[tuple[tuple[int, int], Any]]:
    """Shapes and rows, as in the law."""
    rng = np.random.default_rng(3)
    number = 0
    for given, count in case.solved.items():
        (shape,) = case.shapes(given)
        for scale in SCALES * (count if most is None else min(count, most)):
            yield shape, PLACES[number % len(PLACES)](case, rng.standard_normal(shape) * scale)
            number += 1


def apart(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))


def beyond(case: Case, rows: Any) -> float:
    """The largest violation of some rows, in ulp at the bound of their dtype."""
    worst = 0.0
    for bound, excess in case.edges(rows.astype("float64")):
        unit = ulp(bound, str(rows.dtype))
        excess, unit = np.broadcast_arrays(np.maximum(excess, 0), unit)
        bounded = unit > 0
        worst = max(worst, float(np.max(excess[bounded] / unit[bounded], initial=0.0)))
    return worst


def measured(case: Case, most: int | None) -> dict[str, Any]:
    """A line of the table, by column."""
    solvers: dict[tuple[int, int], Any] = {}
    found = {"instances": 0, "to Clarabel": 0.0, "to the formula": 0.0, "float32": 0.0, "float64": 0.0}
    if not case.convex:
        found["to Clarabel"] = None
    for shape, rows in instances(case, most):
        projected = case.set.project(rows)
        if case.program is not None:
            if shape not in solvers:
                solvers[shape] = solver(case.program, shape)
            found["to Clarabel"] = max(found["to Clarabel"], apart(projected, solvers[shape](rows)[0]))
        found["to the formula"] = max(found["to the formula"], apart(projected, case.nearest(rows)))
        found["instances"] += 1
        for dtype in ("float32", "float64"):
            found[dtype] = max(found[dtype], beyond(case, case.set.project(rows.astype(dtype))))
    for seed, shape in enumerate(case.shapes(*SHAPES)):
        for dtype in ("float32", "float64"):
            rows = rows_of_many_sizes(case, shape, seed).astype(dtype)
            found[dtype] = max(found[dtype], beyond(case, case.set.project(rows)))
    return found


class Hull(ib.SupportSet):
    """{w : w is a mean of the vertices}."""

    def __init__(self, vertices: Any) -> None:
        self.vertices = np.asarray(vertices, "float64")

    def farthest(self, directions: Any) -> Any:
        return self.vertices.astype(directions.dtype)[np.argmax(directions @ self.vertices.T, axis=1)]


def means(rows: cp.Variable) -> list[Any]:
    shares = cp.Variable((rows.shape[0], len(VERTICES)), nonneg=True)
    return [rows == shares @ VERTICES, cp.sum(shares, axis=1) == 1]


VERTICES = np.random.default_rng(0).standard_normal((12, 5))
MIXED = CASES | {"SupportSet": (lambda: Hull(VERTICES), means)}


def measured_mixed(name: str) -> dict[str, Any]:
    """The same for sets of different units, of `tests/sets/test_per.py`; violations in ulp at 1."""
    make, program = MIXED[name]
    owner, solve, rng = make(), solver(program, (4, 5)), np.random.default_rng(3)
    found = {"instances": 0, "to Clarabel": 0.0, "to the formula": None, "float32": 0.0, "float64": 0.0}
    for scale in SCALES * 6:
        rows = rng.standard_normal((4, 5)) * scale
        found["to Clarabel"] = max(found["to Clarabel"], apart(owner.project(rows), solve(rows)[0]))
        found["instances"] += 1
        for dtype in ("float32", "float64"):
            violation = owner.violation(owner.project(rows.astype(dtype)).astype("float64")).max()
            found[dtype] = max(found[dtype], float(violation) / np.finfo(dtype).eps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, help="how often each scale is taken; as in the law where left out")
    parser.add_argument("--sets", nargs="*", metavar="NAME", default=list(SETS), choices=[*SETS, *MIXED])
    options = parser.parse_args()
    print(f"NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}; float32, float64: violation in ulp at the bound\n")
    print("| row | instances | to Clarabel | to the formula | float32 | float64 | s |\n|---|---|---|---|---|---|---|")
    for name in options.sets:
        start = time.perf_counter()
        line = measured(SETS[name], options.most) if name in SETS else measured_mixed(name)
        distances = [
            ("not convex" if name in SETS else "none") if line[column] is None else f"{line[column]:.1e}"
            for column in ("to Clarabel", "to the formula")
        ]
        ulps = [f"{line[dtype]:.2f}" for dtype in ("float32", "float64")]
        seconds = f"{time.perf_counter() - start:.0f}"
        print(f"| {' | '.join([name, str(line['instances']), *distances, *ulps, seconds])} |", flush=True)


if __name__ == "__main__":
    main()
