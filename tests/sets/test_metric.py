"""Projections in a metric: nearest in `sum metric (y - x)^2` by a solver, and the laws there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import inbounds as ib
import repetition
from inbounds._arrays.units import Units
from sets.case import Case
from sets.solver import weighted_solver
from sets.table import SETS
from sets.tensors import BACKEND, LIBRARIES, array, compiled, exact, gradient, mapped, of_numpy, same_bits

pytestmark = pytest.mark.by_turns

CONVEX = {name: case for name, case in SETS.items() if case.convex}
WEIGHED = {name: case for name, case in CONVEX.items() if case.set.exact_in_metric and not case.set.separable}
OF_UNITS = {name: case for name, case in WEIGHED.items() if not case.by_entry}
IN_STEPS = {name: case for name, case in CONVEX.items() if not case.set.exact_in_metric}

SHAPES = ((1, 1), (1, 9), (3, 4), (16, 8)) if repetition.everything else ((3, 4),)
EACH = [(decades, scale) for decades in (0, 3, 8) for scale in (1.0, 10.0)]
DRAWN = EACH if repetition.everything else [EACH[1], EACH[2], EACH[5]]
"""How many powers of ten a metric spans, and the scale of rows."""


def cost(case: Case, found: Any, rows: Any, metric: Any) -> Any:
    """The square of the distance, of each unit."""
    return np.sum(metric * (found - rows) ** 2, axis=(0, 1) if case.whole else 1)


@of_numpy
@pytest.mark.parametrize("case", WEIGHED.values(), ids=WEIGHED)
def test_no_point_that_a_solver_finds_is_nearer(case: Case) -> None:
    rng = np.random.default_rng(4)
    assert case.program is not None
    sure = instances = 0
    for shape in case.shapes(*SHAPES):
        solve = weighted_solver(case.program, shape)
        for decades, scale in DRAWN:
            rows, metric = rng.standard_normal(shape) * scale, 10 ** rng.uniform(-decades, 0, shape)
            found = case.set.project(rows, metric)
            assert case.inside(found, "float64").all()
            expected, exact_enough = solve(rows, metric)
            if exact_enough:
                least = cost(case, expected, rows, metric)
                assert (np.sqrt(cost(case, found, rows, metric)) <= np.sqrt(least) + 1e-6 * max(1, scale)).all()
            sure += exact_enough
            instances += 1
    assert sure >= instances / 4


@of_numpy
@pytest.mark.parametrize("case", IN_STEPS.values(), ids=IN_STEPS)
def test_a_set_without_a_weighted_form_gets_there_in_steps(case: Case) -> None:
    rng = np.random.default_rng(4)
    assert case.program is not None
    for shape in case.shapes((3, 3), (4, 6)):
        solve = weighted_solver(case.program, shape)
        for decades in (0, 1, 2):
            rows, metric = rng.standard_normal(shape) * 3, 10 ** rng.uniform(-decades, 0, shape)
            found = case.set.project(rows, metric)
            assert case.inside(found, "float64").all()
            expected, _ = solve(rows, metric)
            least = cost(case, expected, rows, metric)
            assert (np.sqrt(cost(case, found, rows, metric)) <= np.sqrt(least) + 1e-4).all()


@pytest.mark.repeats("library")
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CONVEX.values(), ids=CONVEX)
def test_what_is_inside_stays_bit_for_bit(case: Case, library: str) -> None:
    rng = np.random.default_rng(5)
    for shape in case.shapes((6, 5)):
        metric = 10 ** rng.uniform(-4, 0, shape)
        once = case.set.project(array(rng.standard_normal(shape), "float32", library))
        assert same_bits(case.set.project(once, metric), once)


@of_numpy
@pytest.mark.parametrize("case", WEIGHED.values(), ids=WEIGHED)
def test_a_flat_metric_is_the_euclidean_one_whatever_its_scale(case: Case) -> None:
    rng = np.random.default_rng(6)
    for shape in case.shapes((1, 9), (5, 7)):
        rows = rng.standard_normal(shape) * 3
        for level in (1e-6, 1.0, 1e6):
            found = case.set.project(rows, np.full(shape, level))
            np.testing.assert_allclose(found, case.set.project(rows), atol=1e-8)


@pytest.mark.parametrize("case", WEIGHED.values(), ids=WEIGHED)
def test_tensors_give_the_same_to_rounding(case: Case) -> None:
    rng = np.random.default_rng(7)
    for shape in case.shapes((6, 5)):
        rows, metric = rng.standard_normal(shape) * 2, 10 ** rng.uniform(-3, 0, shape)
        expected = case.set.project(rows, metric)
        tensor = array(rows, "float32", BACKEND)
        found = case.set.project(tensor, metric)
        assert case.inside(exact(found), "float32").all()
        np.testing.assert_allclose(exact(found), expected, atol=3e-4)


PLAIN: dict[str, Any] = {
    "ball": ib.MaxNorm(1.0),
    "l1": ib.L1Ball(1.0),
    "simplex": ib.Simplex(),
    "sum": ib.SumTo(1.0),
    "order": ib.Monotone(),
    "orthant, ball": ib.NonNeg() & ib.MaxNorm(1.0),
}


@pytest.mark.parametrize("owner", PLAIN.values(), ids=PLAIN)
def test_it_is_compiled_vectorized_and_differentiated(owner: Any) -> None:
    rng = np.random.default_rng(8)
    rows, metric = rng.standard_normal((2, 3, 5)), 10 ** rng.uniform(-2, 0, (3, 5))
    expected = np.stack([owner.project(part, metric) for part in rows])
    tensors = array(rows, "float32", BACKEND)
    found = exact(compiled(lambda x: owner.project(x, metric), tensors[0]))
    np.testing.assert_allclose(found, expected[0], atol=1e-5)
    np.testing.assert_allclose(exact(mapped(lambda x: owner.project(x, metric), tensors)), expected, atol=1e-4)
    along = rng.standard_normal((3, 5))
    slope = gradient(lambda x: owner.project(x, metric), tensors[0], along)
    step = 1e-6
    for index in np.ndindex(3, 5):
        ahead, behind = rows[0].copy(), rows[0].copy()
        ahead[index] += step
        behind[index] -= step
        change = owner.project(ahead, metric) - owner.project(behind, metric)
        assert abs(exact(slope)[index] - np.sum(change * along) / (2 * step)) < 2e-3


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (np.ones((2, 2)), "shape"),
        (np.zeros((2, 3)), "above 0"),
        (-np.ones((2, 3)), "above 0"),
        (np.full((2, 3), np.nan), "finite"),
        (np.full((2, 3), np.inf), "finite"),
        (1.0, "shape"),
    ],
    ids=["shape", "zeros", "negative", "nan", "infinite", "number"],
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_metric_is_finite_above_0_and_shaped_like_the_rows(metric: Any, says: str, library: str) -> None:
    with pytest.raises(ib.SetError, match=says):
        ib.MaxNorm(1.0).project(array(np.ones((2, 3)), "float32", library), metric)


def test_what_is_not_convex_is_projected_in_the_euclidean_metric() -> None:
    rows, metric = np.array([[3.0, 1.0, -2.0]]), np.array([[1e-3, 1.0, 1e-3]])
    for owner in (ib.Sparse(1), ib.Grid(0.7), ib.Orthogonal(), ib.LowRank(1)):
        assert same_bits(owner.project(rows, metric), owner.project(rows))
    # A norm from above is a ball's; from below it is Euclidean.
    np.testing.assert_allclose(ib.UnitNorm().project(rows, metric), ib.MaxNorm(1.0).project(rows, metric))
    assert same_bits(ib.UnitNorm().project(rows / 100, metric), ib.UnitNorm().project(rows / 100))


def test_the_one_unknown_of_a_ball_is_where_its_norm_is_right() -> None:
    """By hand: d = (1, 1/3), x = (2, 2): y = 2 d / (d + t), of norm 1."""
    x, d = np.array([[2.0, 2.0]]), np.array([[1.0, 1 / 3]])
    y = ib.MaxNorm(1.0).project(x, d)
    t = d * (x / y - 1)
    np.testing.assert_allclose(t, t[:, :1] * [[1, 1]], rtol=1e-9)
    assert y[0, 0] > y[0, 1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_far_away_a_unit_goes_where_its_direction_leads(library: str) -> None:
    """From 1e15 bounds away the nearest point doesn't depend on the distance: x d, on the ball."""
    x, d = np.array([[3.0, -4.0, 1.0]]), np.array([[1.0, 0.1, 0.5]])
    expected = x * d / np.linalg.norm(x * d)
    for far in (1e15, 1e20, 1e30):
        found = ib.MaxNorm(1.0).project(array(x * far, "float32", library), array(d, "float32", library))
        np.testing.assert_allclose(exact(found), expected, rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.repeats("bad", "library")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("case", OF_UNITS.values(), ids=OF_UNITS)
def test_what_is_not_finite_stays_and_leaves_the_rest_of_its_unit_alone(case: Case, bad: float, library: str) -> None:
    rng = np.random.default_rng(2)
    ((shape, *_),) = [case.shapes((4, 6))]
    rows, metric = 3 * rng.standard_normal(shape), 10 ** rng.uniform(-3, 0, shape)
    spoilt = rows.copy()
    spoilt[1, -1] = bad
    given, costs = array(spoilt, "float32", library), array(metric, "float32", library)
    found = case.set.project(given, costs)
    if case.whole:
        assert same_bits(found, given)
        return
    assert same_bits(exact(found)[1], exact(given)[1])
    others = [0, 2, 3]
    clean = exact(case.set.project(array(rows, "float32", library), costs))
    np.testing.assert_allclose(exact(found)[others], clean[others], rtol=1e-5, atol=1e-6)


LONG = pytest.mark.repetition  # thousands of steps, each of many rounds
COUPLED = [
    pytest.param(ib.SpectralNorm(1.0), id="spectral"),
    pytest.param(ib.NonNeg() & ib.SpectralNorm(1.0), id="orthant, spectral", marks=LONG),
    pytest.param(ib.FrobeniusNorm(1.0), id="frobenius"),
    pytest.param(ib.Monotone() & ib.FrobeniusNorm(1.0), id="order, frobenius", marks=LONG),
]


@of_numpy
@pytest.mark.parametrize("owner", COUPLED)
def test_what_one_unit_costs_against_another_counts_where_a_set_looks_at_all(owner: Any) -> None:
    """A kernel's columns are its units, so that comparing costs by columns gives another metric."""
    rng = np.random.default_rng(9)
    kernel, metric = rng.standard_normal((4, 3)) * 2, 10 ** rng.uniform(-2, 0, (4, 3)) * [1.0, 0.1, 0.01]
    units = Units.of([kernel], [(0,)], metric=[metric]).comparable(owner.couples_units)
    expected = owner.project(kernel.T, metric.T).T
    np.testing.assert_allclose(owner.nearest(units).parts[0], expected, atol=1e-9)
    apart = owner.nearest(Units.of([kernel], [(0,)], metric=[metric]).comparable(False)).parts[0]
    assert np.abs(apart - expected).max() > 1e-3


@of_numpy
def test_in_training_faces_are_found_to_rounding() -> None:
    """Else optimizers end above the optimum.

    Lion ends 0.06 % above it under `L1Ball(3)`, and Adafactor 0.4 % under `Simplex()`.
    """
    rng = np.random.default_rng(0)
    far, metric = rng.standard_normal((200, 30)), rng.uniform(0.1, 1.0, (200, 30))
    for owner in (ib.L1Ball(1.0), ib.Simplex()):
        rows = owner.project(far, metric) + 1e-3 * rng.standard_normal(far.shape)  # after a step
        units = Units.of([rows.astype("float32")], [(1,)], metric=[metric.astype("float32")], training=True)
        found = owner.nearest(units.comparable(False)).parts[0]
        np.testing.assert_allclose(found, owner.project(rows, metric), atol=1e-5)


def test_part_of_the_way_is_part_of_the_way_in_a_metric_too() -> None:
    rows, metric = np.array([[3.0, 4.0], [0.1, 0.2]]), np.array([[1.0, 0.1], [0.5, 1.0]])
    whole = ib.MinMaxNorm(0.0, 1.0).project(rows, metric)
    half = ib.MinMaxNorm(0.0, 1.0, rate=0.5).project(rows, metric)
    np.testing.assert_allclose(half, (rows + whole) / 2)
    assert same_bits(half[1], rows[1])
