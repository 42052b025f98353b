"""Units of another kind, sets of different units at once, and given sums of rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import inbounds as ib
from inbounds._arrays.views import WeightLayout
from inbounds.testing import check_rows
from sets.solver import solver, weighted_solver
from sets.tensors import BACKEND, EPSILON, array, exact, gradient, of_numpy, same_bits

pytestmark = pytest.mark.by_turns

BY_KIND = {"units": ib.MaxNorm(1), "inputs": ib.MaxNorm(0.5).per("inputs")}
ROWS, COLUMNS = np.array([1.0, 2.0, 0.0, 0.5]), np.array([0.3, 0.7, 1.5, 0.0, 1.0])


def length(w: Any, axis: int) -> Any:
    return cp.norm(w, 2, axis=axis)


CASES: dict[str, tuple[Callable[[], ib.Set], Any]] = {
    "norms": (
        lambda: ib.MaxNorm(1) & ib.MaxNorm(0.5).per("inputs"),
        lambda w: [length(w, 1) <= 1, length(w, 0) <= 0.5],
    ),
    "axes": (
        lambda: ib.MaxNorm(1, axis=1) & ib.L1Ball(0.5, axis=0),
        lambda w: [length(w, 1) <= 1, *(cp.norm1(w[:, j]) <= 0.5 for j in range(5))],
    ),
    "signs": (
        lambda: ib.NonNeg() & ib.MaxNorm(1) & ib.MaxNorm(0.5).per("inputs"),
        lambda w: [w >= 0, length(w, 1) <= 1, length(w, 0) <= 0.5],
    ),
    "weight": (
        lambda: ib.Monotone() & ib.MaxNorm(1).per("weight"),
        lambda w: [w[:, 1:] >= w[:, :-1], cp.norm(w, "fro") <= 1],
    ),
    "Marginals": (
        lambda: ib.Marginals(ROWS, COLUMNS),
        lambda w: [w >= 0, cp.sum(w, axis=1) == ROWS, cp.sum(w, axis=0) == COLUMNS],
    ),
}
each_case = pytest.mark.parametrize(("make", "program"), CASES.values(), ids=CASES)


def drawn(seed: int, scale: float = 1.0) -> Any:
    return np.random.default_rng(seed).standard_normal((4, 5)) * scale


def test_the_set_in_it_sees_other_entries() -> None:
    rows = drawn(0)
    for owner in (ib.MaxNorm(0.5), ib.Simplex(), ib.Monotone(), ib.NonNeg() & ib.MaxNorm(0.5), ib.Sparse(2)):
        assert same_bits(owner.per("inputs").project(rows), np.ascontiguousarray(owner.project(rows.T.copy()).T))
        np.testing.assert_array_equal(owner.per("inputs").violation(rows), owner.violation(rows.T.copy()))
        assert same_bits(owner.per("units").project(rows), owner.project(rows))
        assert same_bits(owner.per("weight").project(rows), owner.project(rows.reshape(1, -1)).reshape(rows.shape))
    check_rows(ib.MaxNorm(1).per("inputs"), rows)
    kernel = np.random.default_rng(1).standard_normal((2, 2, 3, 5))
    np.testing.assert_allclose(ib.MaxNorm(1).per("inputs")(kernel), ib.MaxNorm(1, axis=(0, 1, 3))(kernel))


@of_numpy
@each_case
def test_it_is_nearest_as_a_solver_finds_it(make: Callable[[], ib.Set], program: Any) -> None:
    owner, solve = make(), solver(program, (4, 5))
    for seed, scale in enumerate((0.1, 1.0, 10.0)):
        rows = drawn(seed, scale)
        found, (expected, _) = owner.project(rows), solve(rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * max(1, np.abs(rows).max()))
        assert not owner.measure([found], [(1,)]).outside.any()
        assert same_bits(owner.project(found), found)
        moved, kept = owner.project(found + 1e-3 * drawn(9)), found.copy()
        kept[0, 0] = np.nan
        assert not np.array_equal(moved, found)
        assert owner.violation(kept).max() == np.inf


@of_numpy
def test_rows_and_columns_are_nearest_in_a_metric() -> None:
    make, program = CASES["norms"]
    metric = np.random.default_rng(3).uniform(0.2, 1, (4, 5))
    expected, _ = weighted_solver(program, (4, 5))(drawn(4), metric)
    np.testing.assert_allclose(make().project(drawn(4), metric), expected, rtol=0, atol=1e-5)


def test_tensors_end_where_arrays_do() -> None:
    owner, rows = CASES["norms"][0](), drawn(5, 0.5)
    given = array(rows, "float32", BACKEND)
    found = owner.project(given)
    np.testing.assert_allclose(exact(found), owner.project(exact(given)), rtol=0, atol=2e-6)
    assert (exact(owner.violation(found)) <= owner.tolerance("float32", exact(found))).all()
    assert same_bits(owner.project(found), found)


def test_a_gradient_goes_through_both() -> None:
    owner, rows, weights = CASES["norms"][0](), drawn(6, 0.4), np.round(drawn(7), 1)
    found = gradient(owner.project, array(rows, "float32", BACKEND), weights)
    step = 1e-4 * drawn(8)
    change = np.sum(weights * (owner.project(rows + step) - owner.project(rows - step))) / 2
    np.testing.assert_allclose(np.sum(found * step), change, rtol=2e-2)


def test_a_report_counts_the_units_of_each_kind() -> None:
    both, rows = CASES["norms"][0](), drawn(0)
    expected = np.maximum(np.concatenate([np.linalg.norm(rows, axis=1) - 1, np.linalg.norm(rows, axis=0) - 0.5]), 0)
    np.testing.assert_allclose(both.violation(rows), expected)
    assert both.how == "Dykstra's algorithm, to rounding"
    assert (ib.NonNeg() & ib.MaxNorm(1).per("inputs")).how == "exact: NonNeg, then MaxNorm"


def test_a_mask_with_a_name_is_by_the_inputs_and_units_of_each_head_and_gate() -> None:
    causal, banded = ib.Fixed(0.0).where("not causal"), ib.NonNeg().where("banded", width=1)
    i, j = np.indices((3, 4))
    for layout, copies in ((WeightLayout((3, 16), (0,), gates=4), (1, 4)), (WeightLayout((2, 3, 4), (1,), heads=0), 1)):
        for owner, marked in ((causal, i > j), (banded, abs(i - j) <= 1)):
            expected = np.broadcast_to(np.tile(marked, copies), layout.shape)
            np.testing.assert_array_equal(np.broadcast_to(owner.laid_out([layout]).mask, layout.shape), expected)
    both = causal & ib.MaxNorm(1).per("inputs")
    found = both.project(drawn(0))  # units are rows
    np.testing.assert_array_equal(found != 0, np.tri(4, 5) > 0)
    np.testing.assert_allclose(found, (ib.MaxNorm(1).per("inputs")).project(np.tril(drawn(0))))
    np.testing.assert_array_equal(causal.violation(drawn(0)), np.abs(np.triu(drawn(0), 1)).max(axis=1))


# Marginals.


@of_numpy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_given_sums_hold_within_the_stated_tolerance_near_and_far(dtype: str) -> None:
    for n, (rows, columns) in enumerate(((3, 200), (200, 3), (40, 40))):
        rng = np.random.default_rng(n)
        of_rows, of_columns = (rng.dirichlet(np.ones(k)) * 10.0 ** (3 * n - 3) for k in (rows, columns))
        owner, largest = ib.Marginals(of_rows, of_columns), max(of_rows.max(), of_columns.max())
        allowed = 4 * EPSILON[dtype] * 2 ** np.floor(np.log2(largest))
        assert owner.tolerance(dtype) == allowed
        for size in (1, 100):
            w = (rng.standard_normal((rows, columns)) * size * largest).astype(dtype)
            found = owner.project(w)
            y = found.astype("float64")
            assert y.min() >= 0
            assert np.abs(y.sum(axis=1) - of_rows).max() <= allowed
            assert np.abs(y.sum(axis=0) - of_columns).max() <= allowed
            assert same_bits(owner.project(found), found)
            if (
                dtype == "float64"
            ):  # nearest: what is taken is the same along rows and columns, of entries that are left
                free = y > 1e-12 * largest
                away = w - y - along_rows_and_columns(w - y, free)
                assert np.abs(away[free]).max() <= 1e-11 * size * largest
                assert away[~free].max() <= 1e-11 * size * largest
            else:
                np.testing.assert_allclose(y, owner.project(w.astype("float64")), rtol=0, atol=2e-5 * size * largest)


def along_rows_and_columns(moved: Any, free: Any) -> Any:
    """The a_i + b_j that is nearest to what is moved, among free entries."""
    n, m = moved.shape
    i, j = np.nonzero(free)
    system = np.zeros((len(i), n + m))
    system[np.arange(len(i)), i] = system[np.arange(len(i)), n + j] = 1
    ab = np.linalg.lstsq(system, moved[free], rcond=None)[0]
    return ab[:n, None] + ab[n:]


def test_doubly_stochastic_is_a_case_of_it() -> None:
    w = np.random.default_rng(0).standard_normal((6, 6))
    assert same_bits(ib.Marginals(1, 1).project(w), ib.DoublyStochastic().project(w))
    stacked = ib.Marginals([1.0, 2.0], [1.5, 0.5, 1.0], stack=2).project(np.vstack([w[:2, :3], w[2:4, :3]]))
    np.testing.assert_allclose(stacked.sum(axis=1), [1, 2, 1, 2])


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (
            lambda: ib.MaxNorm(1).per("columns"),
            "`kind` of per is not 'units', 'inputs', 'weight', 'heads', 'gates' or 'window'",
        ),
        (lambda: ib.MaxNorm(1, axis=0).per("inputs"), "A set has an `axis`, and so its units"),
        (lambda: ib.MaxNorm(1).per("inputs").per("heads"), "or one that has its units"),
        (lambda: ib.FrobeniusNorm(1).per("inputs"), "a set of a whole weight, or a stack"),
        (lambda: ib.Orthogonal(stack=2).per("heads"), "a set of a whole weight, or a stack"),
        (lambda: ib.MaxNorm(1).per("heads").project(np.ones((2, 3))), "The layer's layout knows no heads"),
        (lambda: ib.Orthogonal().per("inputs").project(np.ones((2, 3))), "are no matrices of the layer's units"),
        (lambda: (ib.MaxNorm(1) & ib.MaxNorm(1).per("inputs")).where([[True]]) & ib.NonNeg(), "and meets a third"),
        (
            lambda: ib.NonNeg().where("lower"),
            "or one of causal, not causal, banded, not banded.",
        ),
        (lambda: ib.NonNeg().where("banded"), "`width` of where is not an integer of 0 or more"),
        (lambda: ib.NonNeg().where("causal", 1), "Received: mask='causal', width=1."),
        (lambda: ib.NonNeg().where("causal")(np.ones((2, 2, 2))), "with one axis of inputs and one of units"),
        (lambda: ib.NonNeg().where("not banded", 3).project(np.ones((2, 2))), "'not banded' marks no entry"),
        (lambda: ib.Marginals([1, 2], [1, 1]), "don't add up to the same. Received: 3 and 2."),
        (lambda: ib.Marginals(1, 1).project(np.ones((2, 3))), "don't add up to the same. Received: 2 and 3."),
        (lambda: ib.Marginals([1, 2], 1).project(np.ones((3, 3))), "one number for each row, or column"),
        (lambda: ib.Marginals(0, 0), "are all 0"),
        (lambda: ib.Marginals(-1, -1), "is not a number of 0 or more"),
    ],
)
def test_what_can_not_be_is_an_error(bad: Callable[[], Any], text: str) -> None:
    with pytest.raises(ib.SetError) as caught:
        bad()
    assert text in str(caught.value)
