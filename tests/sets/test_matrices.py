"""What the laws don't say of square matrices: stacks, layouts, size, distance, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import inbounds as ib
import repetition
from inbounds import DoublyStochastic, SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets import marginals
from sets.tables.matrices import birkhoff
from sets.tensors import (
    BACKEND,
    BACKEND_DTYPES,
    EPSILON,
    LIBRARIES,
    array,
    compiled,
    exact,
    gradient,
    mapped,
    numbers,
    same_bits,
)

pytestmark = pytest.mark.by_turns

Make = Callable[..., Any]
MAKE: dict[str, Make] = {cls.__name__: cls for cls in (Symmetric, SkewSymmetric, ZeroDiagonal, DoublyStochastic)}
every_matrix_set = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
both_libraries = pytest.mark.parametrize("library", LIBRARIES)


def raised(bad: Callable[[], Any]) -> str:
    with pytest.raises(ib.InboundsError) as caught:
        bad()
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def off_by(y: Any) -> float:
    """The violation of a doubly stochastic matrix, in ulp of 1, with sums that are exact."""
    sums = np.concatenate([y.sum(axis=axis, dtype="longdouble") for axis in (0, 1)])
    assert y.min() >= 0
    return float(np.abs(sums - 1).max()) / EPSILON[str(y.dtype)]


# What a weight has to be.


@every_matrix_set
def test_a_weight_is_square(make: Make) -> None:
    text = raised(lambda: make().project(np.ones((2, 3))))
    assert text == (
        f"{make.__name__} is for square matrices: as many units as entries of a unit. "
        f"Received: 1 of 2 units by 3 entries. Where: {make()!r}. "
        "Instead: a square weight, `stack` for several side by side, or Symmetric().per('window') for windows."
    )
    assert "2 of 3 units by 6 entries" in raised(lambda: make(stack=2)(np.ones((6, 6))))
    assert "1 of 3 units by 4 entries" in raised(lambda: make()(np.ones((2, 2, 1, 3))))


@every_matrix_set
def test_a_stack_divides_the_units(make: Make) -> None:
    text = raised(lambda: make(stack=2).project(np.ones((3, 3))))
    assert text.startswith("`stack` does not divide the number of units")
    assert f"Received: stack=2. Where: {make(stack=2)!r} on 3 units of 3 entries." in text


@every_matrix_set
def test_a_weight_has_two_axes_or_more(make: Make) -> None:
    text = raised(lambda: make()(np.ones(3)))
    assert text.startswith(f"{make.__name__} is a set of matrices, and this weight has no units with a fan-in.")
    assert "Received: a weight of shape (3,)." in text
    assert "Instead: a rule for kernels, such as '**/kernel'." in text


@pytest.mark.parametrize("stack", [0, -1, 1.0, True, "2", None, [2]], ids=repr)
@every_matrix_set
def test_a_stack_is_a_positive_integer(make: Make, stack: Any) -> None:
    text = raised(lambda: make(stack=stack))
    assert text.startswith(f"`stack` of {make.__name__} is not a positive integer")
    assert f"Received: stack={stack!r}." in text


@every_matrix_set
def test_a_set_is_a_value(make: Make) -> None:
    assert repr(make(stack=3)) == f"{make.__name__}(stack=3)"
    assert make.__name__ in repr(make())
    assert make(stack=3) == make(3) != make()
    assert make.from_config(make(stack=np.int64(3)).get_config()) == make(stack=3)  # type: ignore[attr-defined]


# Layouts.


@every_matrix_set
@both_libraries
def test_a_stack_is_each_of_its_matrices(make: Make, library: str) -> None:
    given = array(normal(3, 6, 6) * np.array([[[0.1]], [[1.0]], [[30.0]]]), "float32", library)
    together = exact(make(stack=3).project(given.reshape((18, 6)) if library == "numpy" else flat(given)))
    apart = np.concatenate([exact(make().project(given[i])) for i in range(3)])
    np.testing.assert_allclose(together, apart, rtol=0, atol=4 * EPSILON["float32"] * 30)
    violation = exact(make(stack=3).violation(given.reshape((18, 6)) if library == "numpy" else flat(given)))
    assert violation.shape == (3,)
    np.testing.assert_allclose(violation, [exact(make().violation(given[i]))[0] for i in range(3)], rtol=1e-5)


def flat(given: Any) -> Any:
    import keras

    return keras.ops.reshape(given, (18, 6))


@every_matrix_set
def test_one_matrix_of_a_stack_leaves_the_others(make: Make) -> None:
    inside = make().project(normal(4, 4))
    spoilt = normal(4, 4)
    spoilt[0, 0] = np.nan
    outside = normal(4, 4, seed=1)
    projected = make(stack=3).project(np.concatenate([inside, spoilt, outside]))
    assert same_bits(projected[:4], inside)
    assert same_bits(projected[4:8], spoilt)
    assert same_bits(projected[8:], make().project(outside))
    violation = make(stack=3).violation(np.concatenate([inside, spoilt, outside]))
    assert violation[0] <= make().tolerance("float64")
    assert violation[1] == np.inf
    assert 0.1 < violation[2] < np.inf


@every_matrix_set
@both_libraries
def test_a_convolution_kernel_is_a_matrix_of_filters_by_fan_in(make: Make, library: str) -> None:
    kernel = normal(2, 2, 3, 12)
    matrix = kernel.reshape(12, 12).T
    projected = exact(make()(array(kernel, "float32", library)))
    assert projected.shape == kernel.shape
    expected = exact(make().project(array(matrix, "float32", library)))
    np.testing.assert_allclose(projected.reshape(12, 12).T, expected, rtol=0, atol=4e-7)


# The three that are linear.


def test_what_is_mirrored_is_so_exactly() -> None:
    w = (normal(40, 40) * 10.0 ** np.random.default_rng(1).uniform(-30, 38, (40, 40))).astype("float32")
    symmetric, skew = Symmetric().project(w), SkewSymmetric().project(w)
    assert np.isfinite(symmetric).all()
    assert np.array_equal(symmetric, symmetric.T)
    assert np.array_equal(skew, -skew.T)
    assert not np.diag(skew).any()


def test_all_but_the_diagonal_stays_bit_for_bit() -> None:
    w = normal(5, 5)
    projected = ZeroDiagonal().project(w)
    assert not np.diag(projected).any()
    assert same_bits(projected[~np.eye(5, dtype=bool)], w[~np.eye(5, dtype=bool)])


def test_a_violation_is_that_of_the_worst_pair() -> None:
    w = np.array([[1.0, 2.0], [0.5, 4.0]])
    assert Symmetric().violation(w).tolist() == [1.5]
    assert SkewSymmetric().violation(w).tolist() == [8.0]
    assert ZeroDiagonal().violation(w).tolist() == [4.0]
    assert DoublyStochastic().violation(w).tolist() == [5.0]
    assert DoublyStochastic().violation([[1.5, -0.5], [-0.5, 1.5]]).tolist() == [0.5]


# Doubly stochastic matrices.


def inputs(n: int) -> dict[str, Any]:
    """Matrices that are near, far, degenerate, and of rows of many sizes."""
    rng = np.random.default_rng(n)
    mixed = sum(weight * np.eye(n)[rng.permutation(n)] for weight in rng.dirichlet(np.ones(4)))
    return {
        "normal": rng.standard_normal((n, n)),
        "far": 1e3 * rng.standard_normal((n, n)),
        "very far": 1e9 * rng.standard_normal((n, n)),
        "ties": np.round(2 * rng.standard_normal((n, n))) * 50,
        "rows": rng.standard_normal((n, n)) * 10 ** rng.uniform(-3, 3, (n, 1)),
        "one column": 1e3 * rng.standard_normal((n, n)) * (np.arange(n) == 0),
        "step": mixed + 1e-2 * rng.standard_normal((n, n)),
        "negative": -1e3 * np.eye(n),
    }


@pytest.mark.parametrize("n", [2, 17, pytest.param(128, marks=pytest.mark.repetition)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_permutation_is_farther_in_the_direction_moved(n: int, dtype: str) -> None:
    # This proves a point of the set the nearest: permutations are the corners of the set.
    for name, values in inputs(n).items():
        x = values.astype(dtype)
        y = DoublyStochastic().project(x)
        assert off_by(y) <= 2, name
        away = x.astype("float64") - y
        gap = away[linear_sum_assignment(-away)].sum() - np.sum(away * y)
        assert gap <= 8 * n * EPSILON[dtype] * max(1, np.abs(x).max()), name


@pytest.mark.parametrize("dtype", BACKEND_DTYPES)
def test_large_matrices_end_inside_on_every_backend(dtype: str) -> None:
    tolerance = 4 * EPSILON[dtype]
    for name, values in inputs(256 if repetition.everything else 128).items():
        projected = DoublyStochastic().project(array(np.clip(values, -6e4, 6e4), dtype, BACKEND))
        assert off_by(exact(projected)) * EPSILON["float64"] <= tolerance, name
        assert DoublyStochastic().violation(exact(projected)) <= tolerance, name
        assert exact(DoublyStochastic().violation(projected)) <= tolerance, name
        assert same_bits(DoublyStochastic().project(projected), projected), name


def test_a_member_that_is_moved_along_rows_and_columns_comes_back() -> None:
    # Numbers added to rows and columns don't count: in float32 the answer is as exact as their size
    # lets it be.
    inside = birkhoff(normal(20, 20))
    for size in (1e-2, 1.0, 1e2):
        moved = inside + size * (normal(20, 1, seed=1) + normal(20, seed=2))
        found = DoublyStochastic().project(moved.astype("float32"))
        np.testing.assert_allclose(found, inside, rtol=0, atol=40 * EPSILON["float32"] * max(size, 1))


def test_steps_that_run_out_end_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1, 3):
        monkeypatch.setattr(marginals, "STEPS", steps)
        for n in (2, 17, 64):
            for name, values in inputs(n).items():
                for dtype in ("float32", "float64"):
                    projected = DoublyStochastic().project(values.astype(dtype))
                    assert off_by(projected) <= 4, (name, n, steps)
                    assert same_bits(DoublyStochastic().project(projected), projected)


@pytest.mark.repetition  # the law of traced functions has one matrix
def test_the_same_where_functions_are_traced_or_vectorized() -> None:
    values = np.stack([inputs(12)[name] for name in ("normal", "far", "step")])
    given = array(values, "float32", BACKEND)
    expected = np.stack([birkhoff(exact(matrix)) for matrix in given])
    project = DoublyStochastic().project
    np.testing.assert_allclose(exact(mapped(project, given)), expected, rtol=0, atol=1e-3)
    found = exact(compiled(project, given[1]))
    np.testing.assert_allclose(found, expected[1], rtol=0, atol=1e-3)
    assert off_by(numbers(compiled(project, given[1]))) <= 4


def test_the_derivative_is_the_projection_on_the_face() -> None:
    x, weights = normal(8, 8) / 2, normal(8, 8, seed=1)
    y = birkhoff(x)
    free = np.flatnonzero(y.ravel() > 0)
    assert 20 < len(free) < 60
    sums = np.concatenate([np.kron(np.eye(8), np.ones((1, 8))), np.kron(np.ones((1, 8)), np.eye(8))])[:, free]
    along = np.eye(len(free)) - np.linalg.pinv(sums) @ sums
    expected = np.zeros(64)
    expected[free] = along @ weights.ravel()[free]
    found = gradient(DoublyStochastic().project, array(x, "float32", BACKEND), weights)
    np.testing.assert_allclose(found, expected.reshape(8, 8), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "values",
    [np.zeros((6, 6)), np.eye(6) * 5, np.ones((6, 6)), -np.ones((6, 6)), np.full((6, 6), 3e38), np.eye(6), np.eye(1)],
    ids=["zero", "corner", "ones", "negative", "huge", "member", "single"],
)
@every_matrix_set
def test_gradients_are_finite_where_entries_are_alike(make: Make, values: Any) -> None:
    given = array(values, "float32", BACKEND)
    weights = normal(*values.shape)
    assert np.isfinite(gradient(make().project, given, weights)).all()
    assert np.isfinite(gradient(make().violation, given, 1.0)).all()
