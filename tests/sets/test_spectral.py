"""What the laws don't say of spectral sets: sizes, stacks, methods in training, ties, bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds import LowRank, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from inbounds._arrays.decompositions import has_float64
from inbounds._arrays.units import Units
from inbounds._sets.composite import with_center
from sets.tables.spectral import SETS
from sets.tensors import (
    BACKEND,
    BACKEND_DTYPES,
    EPSILON,
    LIBRARIES,
    array,
    compiled,
    differences,
    exact,
    gradient,
    same_bits,
)

pytestmark = pytest.mark.by_turns

OWNERS: dict[str, tuple[Any, Any]] = {name: (case.set, case) for name, case in SETS.items() if "small" not in name}
every_set = pytest.mark.parametrize(("owner", "case"), OWNERS.values(), ids=OWNERS)
SIZES = ((64, 64), (256, 256), (100, 784), (784, 100))


def matrix(shape: tuple[int, ...], seed: int = 0, size: float = 1.0) -> Any:
    """A matrix with a largest singular value near 2 * size."""
    return np.random.default_rng(seed).standard_normal(shape) * size / np.sqrt(max(shape[-2:]))


def in_training(owner: ib.Set, weight: Any, concrete: bool = True) -> Any:
    """The nearest rows as a training step asks for them: nothing will be differentiated."""
    units = Units.of([weight], [(1,)], concrete=concrete)
    return keras.ops.cast(owner.nearest(units).parts[0], keras.backend.standardize_dtype(weight.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [1.0, 30.0])
@every_set
def test_large_matrices_end_inside_and_stay(
    owner: Any, case: Any, library: str, shape: tuple[int, int], dtype: str, size: float
) -> None:
    if case.square and shape[0] != shape[1]:
        return
    projected = owner.project(array(matrix(shape, size=size), dtype, library))
    assert case.inside(exact(projected), dtype).all()
    assert same_bits(owner.project(projected), projected)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@every_set
def test_large_matrices_are_the_nearest_to_rounding(owner: Any, case: Any, shape: tuple[int, int]) -> None:
    if case.square and shape[0] != shape[1]:
        return
    rows = array(matrix(shape), "float32", BACKEND)
    expected = case.nearest(exact(rows))
    # Singular vectors near a tie, or near 0, are known to the rounding of the others over the
    # distance between them.
    within = {"Orthogonal": 1e-3, "LowRank": 1e-4}.get(type(owner).__name__, 2e-5)
    off = np.linalg.norm(exact(owner.project(rows)) - expected) / np.linalg.norm(expected)
    assert off < within


@pytest.mark.parametrize("dtype", BACKEND_DTYPES)
@pytest.mark.repeats("nearness")
@pytest.mark.parametrize("nearness", [1e-3, 0.1, 1.0, 100.0])
@every_set
def test_training_takes_shorter_ways_to_the_same_matrix(owner: Any, case: Any, dtype: str, nearness: float) -> None:
    for seed, shape in enumerate(case.shapes((6, 5), (3, 200), (32, 32))):
        member = case.nearest(matrix(shape, seed) * 2)
        rows = array(member + matrix(shape, seed + 10, nearness), dtype, BACKEND)
        eager = in_training(owner, rows)
        assert case.inside(exact(eager), dtype).all()
        assert same_bits(in_training(owner, eager), eager)
        wide = EPSILON["float64" if dtype == "float64" else "float32"]
        within = 2 * EPSILON[dtype] + 1e3 * wide * max(1, nearness)
        others = [owner.project(rows)]
        if (dtype, nearness, seed) == ("float32", 0.1, 0):
            others.append(compiled(lambda x: in_training(owner, x, concrete=False), rows))
        for other in others:
            np.testing.assert_allclose(exact(other), exact(eager), rtol=0, atol=within * np.abs(exact(eager)).max())


@pytest.mark.parametrize("above", [3, 8, 12, 32])
def test_training_lowers_few_values_as_it_does_all(above: int) -> None:
    """Those above the bound are among the largest quarter, the largest half, or more."""
    left, _, right = np.linalg.svd(matrix((32, 48)), full_matrices=False)
    rows = array((left * np.where(np.arange(32) < above, 1.2, 0.8)) @ right, "float32", BACKEND)
    nearest = (left * np.where(np.arange(32) < above, 1.0, 0.8)) @ right
    for found in (in_training(SpectralNorm(1), rows), compiled(lambda x: in_training(SpectralNorm(1), x, False), rows)):
        np.testing.assert_allclose(exact(found), nearest, rtol=0, atol=1e-5)


@every_set
def test_what_is_well_inside_stays_in_training(owner: Any, case: Any) -> None:
    for shape in case.shapes((6, 5), (3, 200), (32, 32)):
        inside = array(case.nearest(matrix(shape)) * (1.0 if owner.convex is False else 0.25), "float32", BACKEND)
        assert same_bits(in_training(owner, inside), inside)


@pytest.mark.parametrize("library", LIBRARIES)
@every_set
def test_graded_matrices(owner: Any, case: Any, library: str) -> None:
    """Singular values from 1 to 1e-6, which one Gram matrix in float32 would not tell apart."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2))
    rows = array(left * np.logspace(0.5, -6, 12) @ right, "float32", library)
    projected = owner.project(rows)
    assert case.inside(exact(projected), "float32").all()
    if not isinstance(owner, Orthogonal):  # of which the smallest singular vectors are unknown in float32
        np.testing.assert_allclose(exact(projected), case.nearest(exact(rows)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("make", [SpectralNorm, NuclearNorm, Orthogonal, LowRank, PositiveSemidefinite])
def test_a_stack_is_projected_matrix_by_matrix(make: Any, library: str) -> None:
    arguments = {"LowRank": (2,), "NuclearNorm": (1.5,)}.get(make.__name__, ())
    one, three = make(*arguments), make(*arguments, stack=3)
    matrices = np.stack([matrix((5, 5), seed, size) for seed, size in enumerate((0.1, 1.0, 10.0))])
    rows = array(matrices.reshape(15, 5), "float32", library)
    alone = [exact(one.project(array(single, "float32", library))) for single in matrices]
    np.testing.assert_allclose(exact(three.project(rows)), np.concatenate(alone), rtol=0, atol=1e-5)
    violations = [exact(one.violation(array(single, "float32", library)))[0] for single in matrices]
    np.testing.assert_allclose(exact(three.violation(rows)), np.repeat(violations, 1), rtol=1e-5, atol=1e-5)
    assert np.shape(three.tolerance("float32", rows)) == (3,)


def test_what_is_not_finite_spoils_its_own_matrix_only() -> None:
    rows = np.concatenate([matrix((4, 4), 0, 5), matrix((4, 4), 1, 5)])
    rows[0, 0] = np.nan
    projected = SpectralNorm(1, stack=2).project(rows)
    assert same_bits(projected[:4], rows[:4])
    assert np.linalg.norm(projected[4:], 2) == pytest.approx(1)
    assert SpectralNorm(1, stack=2).violation(rows).tolist()[0] == np.inf


def test_a_kernel_is_the_matrix_of_its_filters() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4))
    flat = kernel.reshape(18, 4).T
    np.testing.assert_array_equal(SpectralNorm(1)(kernel), SpectralNorm(1).project(flat).T.reshape(kernel.shape))
    other = SpectralNorm(1, axis=(0, 1, 3))(kernel)
    rows = np.moveaxis(kernel, 2, 0).reshape(2, 36)
    np.testing.assert_array_equal(np.moveaxis(other, 2, 0).reshape(2, 36), SpectralNorm(1).project(rows))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("make", [SpectralNorm, NuclearNorm])
def test_a_ball_about_a_centre(make: Any, library: str) -> None:
    center, rows = matrix((6, 4), 0, 50), matrix((6, 4), 1, 50)
    moved = make(0.5, center=center.astype("float32"))
    projected = moved.project(array(rows, "float32", library))
    expected = make(0.5).project(rows - center.astype("float32")) + center.astype("float32")
    np.testing.assert_allclose(exact(projected), expected, rtol=0, atol=1e-4)
    assert (exact(moved.violation(projected)) <= moved.tolerance("float32", exact(projected)).max()).all()
    assert with_center(moved, projected) is moved
    assert with_center(make(0.5, center="current"), rows).violation(rows).tolist() == [0]


# Orthogonal: what is nearest where many are.


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (5, 2)], ids=str)
def test_a_matrix_of_zeros_becomes_the_identity(shape: tuple[int, int], library: str) -> None:
    projected = Orthogonal().project(array(np.zeros(shape), "float32", library))
    np.testing.assert_allclose(exact(projected), np.eye(*shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_missing_directions_are_filled_by_the_nearest_to_the_identity(library: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 4), (3, 7), (6, 4)):
        rows = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
        # Rounded to float32, it has singular values of the size of rounding, which NumPy, in
        # float64, takes for more.
        projected = exact(Orthogonal().project(array(rows, "float64" if library == "numpy" else "float32", library)))
        assert np.sum(projected * rows) == pytest.approx(np.linalg.norm(rows), rel=1e-5)
        reached = np.linalg.norm(projected - np.eye(*shape))
        left, _, right = np.linalg.svd(rows)
        small = min(shape) - 1
        for seed in range(200):
            turn = np.random.default_rng(seed).standard_normal((shape[0] - 1, shape[1] - 1))
            u, _, v = np.linalg.svd(turn, full_matrices=False)
            other = left[:, :1] @ right[:1] + left[:, 1:] @ u[:, :small] @ v[:small] @ right[1:]
            other *= np.sign(np.sum(other * rows))
            assert reached <= np.linalg.norm(other - np.eye(*shape)) + 1e-5


@pytest.mark.parametrize("library", LIBRARIES)
def test_where_the_identity_says_nothing_the_result_is_orthogonal_still(library: str) -> None:
    rows = np.zeros((2, 2))
    rows[0, 1] = 3.0
    projected = exact(Orthogonal().project(array(rows, "float32", library)))
    np.testing.assert_allclose(projected @ projected.T, np.eye(2), atol=1e-6)
    assert projected[0, 1] == pytest.approx(1)


# LowRank beyond rank 1.


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", [(5, 5), (6, 20), (20, 6)], ids=str)
def test_a_rank(shape: tuple[int, int], rank: int, library: str) -> None:
    owner = LowRank(rank)
    rows = array(matrix(shape), "float32", library)
    projected = owner.project(rows)
    left, values, right = np.linalg.svd(exact(rows), full_matrices=False)
    np.testing.assert_allclose(exact(projected), (left[:, :rank] * values[:rank]) @ right[:rank], rtol=0, atol=1e-5)
    assert np.linalg.matrix_rank(exact(projected), tol=1e-5) == rank
    expected = values[rank] if rank < len(values) else 0.0
    assert exact(owner.violation(rows))[0] == pytest.approx(expected, abs=1e-6)
    assert same_bits(owner.project(projected), projected)


def test_no_factors_of_that_rank_are_nearer() -> None:
    """By alternating least squares from many starts, an answer of its own."""
    rng = np.random.default_rng(0)
    for rank in (1, 2, 3):
        rows = rng.standard_normal((4, 5))
        reached = np.linalg.norm(LowRank(rank).project(rows) - rows)
        for _ in range(20):
            right = rng.standard_normal((rank, 5))
            for _ in range(50):
                left = rows @ np.linalg.pinv(right)
                right = np.linalg.pinv(left) @ rows
            assert reached <= np.linalg.norm(left @ right - rows) + 1e-9


# Gradients where singular values are equal, or 0.

TIES: dict[str, Any] = {
    "identity": np.eye(4),
    "twice the identity": 2 * np.eye(4),
    "zeros": np.zeros((4, 4)),
    "rank 1": np.ones((4, 4)),
    "pairs": np.diag([3.0, 3.0, 0.5, 0.5]),
    "wide": np.eye(3, 6) * 2,
    "signs": np.diag([1.0, -1.0, 2.0, -2.0]),
}


@pytest.mark.parametrize("rows", TIES.values(), ids=TIES)
@pytest.mark.parametrize("owner", [SpectralNorm(1), NuclearNorm(2), Orthogonal(), LowRank(2), PositiveSemidefinite()])
def test_gradients_are_finite_at_ties(owner: Any, rows: Any) -> None:
    if owner.__class__.square and rows.shape[0] != rows.shape[1]:
        return
    x = array(rows, "float32", BACKEND)
    weights = np.random.default_rng(0).standard_normal(rows.shape)
    assert np.isfinite(gradient(owner.project, x, weights)).all()
    assert np.isfinite(gradient(owner.violation, x, 1.0)).all()


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)], ids=str)
@pytest.mark.parametrize("owner", [SpectralNorm(1), NuclearNorm(2), Orthogonal(), LowRank(2), PositiveSemidefinite()])
def test_gradients_are_right_with_equal_singular_values(owner: Any, shape: tuple[int, int]) -> None:
    """Where the projection is smooth despite the tie: both values on one side of the threshold."""
    if owner.__class__.square and shape[0] != shape[1]:
        return
    rng = np.random.default_rng(1)
    left, right = np.linalg.qr(rng.standard_normal((3, 3)))[0], np.linalg.qr(rng.standard_normal((6, 3)))[0]
    rows = (left * [2.0, 2.0, 0.4]) @ right.T
    if shape == (4, 4):
        turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
        rows = (turn * [2.0, 2.0, -0.5, -0.5]) @ turn.T
    rows = rows.T if shape == (6, 3) else rows
    weights = rng.standard_normal(shape)
    forward, backward = differences(owner.project, rows, weights, step=1e-5)
    np.testing.assert_allclose(forward, backward, atol=1e-3)
    found = gradient(owner.project, array(rows, "float32", BACKEND), weights)
    np.testing.assert_allclose(found, forward, rtol=1e-3, atol=2e-3)


# PositiveSemidefinite: as a solver finds it, and by the conditions that tell the nearest one.


def test_the_nearest_semidefinite_matrix_as_a_solver_finds_it() -> None:
    rng = np.random.default_rng(3)
    agreed = asked = 0
    for size, count in {1: 12, 2: 12, 3: 12, 5: 12, 8: 8, 12: 4}.items():
        rows, given = cp.Variable((size, size), PSD=True), cp.Parameter((size, size))
        problem = cp.Problem(cp.Minimize(cp.sum_squares(rows) / 2 - cp.sum(cp.multiply(given, rows))))
        for scale in (1e-3, 1e-1, 1.0, 1e1, 1e3) * count:
            values = rng.standard_normal((size, size))
            asked += 1
            values = [values, values + values.T, np.round(values), values @ values.T, -values @ values.T][asked % 5]
            given.value = values
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                problem.solve(solver="CLARABEL", tol_feas=1e-11, tol_gap_abs=1e-13, tol_gap_rel=1e-13)
            if problem.status == "optimal":  # otherwise it says itself that it didn't reach that
                projected = PositiveSemidefinite().project(scale * values) / scale
                np.testing.assert_allclose(projected, rows.value, rtol=0, atol=1e-6 * max(1, np.abs(values).max()))
                agreed += 1
    assert agreed >= 200


@pytest.mark.parametrize("size", [1, 2, 5, 17, 64])
def test_the_conditions_of_the_nearest_semidefinite_matrix(size: int) -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((size, size)) * 10.0 ** (seed % 7 - 3)
        found = PositiveSemidefinite().project(rows)
        rest = found - (rows + rows.T) / 2
        large = np.abs(rows).max() * size
        assert same_bits(found, found.T.copy())
        assert np.linalg.eigvalsh(found).min() >= -1e-14 * large
        assert np.linalg.eigvalsh(rest).min() >= -1e-14 * large
        assert abs(np.sum(found * rest)) <= 1e-13 * large**2


# Arguments.


def raised(bad: Callable[[], Any]) -> str:
    with pytest.raises(ib.SetError) as caught:
        bad()
    return str(caught.value)


@pytest.mark.parametrize("make", [SpectralNorm, NuclearNorm])
@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), "1", True, None, [1.0]], ids=repr)
def test_a_bound_is_above_0(make: Any, value: Any) -> None:
    text = raised(lambda: make(value))
    assert text.startswith(f"`max_value` of {make.__name__} is not a")
    assert f"Received: max_value={value!r}." in text
    assert f"{make.__name__}(max_value=1.0)" in text


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, "1", True, None, [1]], ids=repr)
def test_a_rank_is_a_positive_integer(value: Any) -> None:
    text = raised(lambda: LowRank(value))
    assert text.startswith("`rank` of LowRank is not a positive integer.")
    assert f"Received: rank={value!r}." in text
    assert "Instead: LowRank(rank=1)" in text


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None], ids=repr)
@pytest.mark.parametrize("make", [SpectralNorm, Orthogonal, PositiveSemidefinite])
def test_a_stack_is_a_positive_integer(make: Any, value: Any) -> None:
    text = raised(lambda: make(stack=value))
    assert text.endswith("Instead: stack=4 for the gates of an LSTM.")
    assert text.startswith(f"`stack` of {make.__name__} is not a positive integer")
    assert f"Received: stack={value!r}." in text


def test_a_rank_fits_the_matrix() -> None:
    text = raised(lambda: LowRank(4).project(np.ones((3, 5))))
    assert text.startswith("`rank` of LowRank is above the number of rows or of columns. Received: rank=4.")
    assert "on a matrix of shape (3, 5). Instead: rank=3, or less." in text
    text = raised(lambda: LowRank(4, stack=2).project(np.ones((6, 5))))
    assert "on a matrix of shape (3, 5)" in text
    LowRank(3).project(np.ones((3, 5)))


def test_a_semidefinite_matrix_is_square() -> None:
    text = raised(lambda: PositiveSemidefinite().project(np.ones((3, 5))))
    assert "square" in text
    assert "1 of 3 units by 5 entries" in text


@pytest.mark.parametrize("owner", [SpectralNorm(1), NuclearNorm(2), Orthogonal(), LowRank(1), PositiveSemidefinite()])
def test_a_bias_is_no_matrix(owner: Any) -> None:
    assert "a set of matrices" in raised(lambda: owner(np.ones(3)))


@pytest.mark.parametrize("owner", [ib.SpectralNorm(2.0), ib.NuclearNorm(2.0)], ids=repr)
@pytest.mark.parametrize("shape", [(2, 30), (8, 16), (10, 64)], ids=repr)
def test_what_a_small_step_leaves_just_outside_ends_inside(owner: ib.Set, shape: tuple[int, int]) -> None:
    """Singular values in single precision are off by a few ulp, as far as these lie outside."""
    rng = np.random.default_rng(0)
    for far in range(3, 13):
        for spread in (1.0, 1e-3):
            matrix = rng.standard_normal((shape[0], 1)) * rng.standard_normal((1, shape[1]))
            matrix = matrix + spread * rng.standard_normal(shape)
            values = np.linalg.svd(matrix, compute_uv=False)
            size = values[0] if isinstance(owner, ib.SpectralNorm) else values.sum()
            rows = array(matrix / size * 2.0 * (1 + far * 2.0**-23), "float32", BACKEND)
            found = [owner.nearest(Units.of([rows], [(1,)], training=True)).parts[0]]
            found += [owner.project(rows)] if has_float64() else []
            assert all(owner.violation(exact(part))[0] <= owner.tolerance("float32") for part in found)
