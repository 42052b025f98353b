"""Monotone: what the laws don't say."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

import inbounds as ib
from inbounds import Monotone
from sets.tensors import BACKEND, EPSILON, LIBRARIES, array, exact, gradient, numbers, same_bits

pytestmark = pytest.mark.by_turns


def fitted(rows: Any, increasing: bool = True) -> Any:
    """The nearest rows as scikit-learn finds them."""
    return np.stack([isotonic_regression(row, increasing=increasing) for row in rows])


def shaped(kind: str, size: int) -> Any:
    """Rows that are hard to put in order."""
    rng = np.random.default_rng(size)
    place = np.arange(size)
    return {
        "noise": rng.standard_normal((3, size)),
        "falling": -np.sort(-rng.standard_normal((3, size)), axis=1),
        "teeth": np.stack([place % 7 - 0.1 * place, -(place % 13) + 0.3 * place, (place // 5) % 2 - 0.01 * place]),
        "trend": 3 * place / size + rng.standard_normal((3, size)),
        "ties": rng.integers(0, 3, (3, size)).astype("float64"),
        "one late": np.concatenate(
            [np.tile(np.arange(size - 1.0), (3, 1)), np.array([[-1.0], [-size], [-1e3 * size]])], 1
        ),
        "tails": rng.standard_cauchy((3, size)),
    }[kind]


@pytest.mark.parametrize("kind", ["noise", "falling", "teeth", "trend", "ties", "one late", "tails"])
@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
@pytest.mark.parametrize("increasing", [True, False])
def test_as_scikit_learn_finds_it(kind: str, size: int, increasing: bool) -> None:
    rows = shaped(kind, size)
    projected = Monotone(increasing).project(rows)
    np.testing.assert_allclose(projected, fitted(rows, increasing), rtol=0, atol=1e-13 * size * np.abs(rows).max())
    assert (np.diff(projected if increasing else -projected, axis=1) >= 0).all()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["noise", "falling", "one late", "tails"])
def test_long_rows_in_single_precision(kind: str, library: str) -> None:
    rows = array(shaped(kind, 3000), "float32", library)
    projected = exact(Monotone().project(rows))
    off = np.abs(projected - fitted(exact(rows))).max(axis=1)
    assert (off <= 64 * EPSILON["float32"] * np.abs(exact(rows)).max(axis=1)).all()
    assert (np.diff(projected, axis=1) >= 0).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_pooled_entries_are_the_same_number(library: str) -> None:
    rows = array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.1, 9.0]], "float32", library)
    assert len(np.unique(numbers(Monotone().project(rows)))) == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_entries_of_all_sizes_in_one_row(library: str) -> None:
    rows = array([[3e38, -3e38, 1e-30, 2e-30, 3e38, 3e38, 2.9e38, 2.8e38]], "float32", library)
    projected = exact(Monotone().project(rows))
    np.testing.assert_allclose(projected, fitted(exact(rows)), rtol=1e-6, atol=1e32)
    assert (np.diff(projected, axis=1) >= 0).all()
    assert exact(Monotone().violation(rows)).tolist() == [np.inf]  # of float32: 6e38


@pytest.mark.parametrize("library", LIBRARIES)
def test_zeros_of_either_sign_are_in_order(library: str) -> None:
    rows = array([[0.0, -0.0, 0.0, -0.0, 1.0]], "float32", library)
    assert same_bits(Monotone().project(rows), rows)


def test_violation_is_the_largest_step_the_wrong_way() -> None:
    rows = np.array([[0.0, 3.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    assert Monotone().violation(rows).tolist() == [2.0, 0.0]
    assert Monotone(increasing=False).violation(rows).tolist() == [3.0, 1.0]
    assert Monotone().violation(np.ones((2, 1))).tolist() == [0.0, 0.0]


MASKS = {
    "some": np.random.default_rng(0).random((20, 11)) < 0.5,
    "few": np.random.default_rng(1).random((20, 11)) < 0.1,
    "the same": np.tile(np.arange(11) % 3 > 0, (20, 1)),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.repeats("increasing")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("increasing", [True, False])
def test_a_mask_leaves_entries_out(mask: Any, increasing: bool, library: str) -> None:
    values = np.random.default_rng(2).standard_normal((20, 11)).round(1)
    values[:, 3] = np.where(mask[:, 3], values[:, 3], 1e6)
    rows = array(values, "float32", library)
    owner = Monotone(increasing).where(mask)
    expected = exact(rows).copy()
    for row, marked in zip(expected, mask, strict=True):
        if marked.any():
            row[marked] = isotonic_regression(row[marked], increasing=increasing)
    projected = owner.project(rows)
    np.testing.assert_allclose(exact(projected), expected, rtol=1e-6, atol=1e-7)
    assert same_bits(numbers(projected)[~mask], numbers(rows)[~mask])
    assert same_bits(owner.project(projected), projected)

    sign = 1 if increasing else -1
    drops = [max([0.0, *(-sign * np.diff(row[marked]))]) for row, marked in zip(exact(rows), mask, strict=True)]
    np.testing.assert_allclose(exact(owner.violation(rows)), drops, rtol=1e-6)
    assert (exact(owner.violation(projected)) == 0).all()


def test_a_mask_makes_no_boundary() -> None:
    rows = np.array([[1.0, 0.0, 2.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    mask = np.array([[True, False, True, False], [True, False, True, False]])
    ragged = np.array([[True, False, True, False], [True, False, True, True]])
    for owner in (Monotone().where(mask), Monotone().where(ragged)):
        excess = owner.measure([rows], [(1,)]).excess
        assert excess[0] < 0
        assert excess[1] == (0 if owner == Monotone().where(mask) else 1)


@pytest.mark.parametrize("size", [3, 8])
def test_the_derivative_is_that_of_means(size: int) -> None:
    rows = array(np.arange(size, 0.0, -1)[np.newaxis], "float32", BACKEND)
    weights = np.arange(1.0, size + 1)[np.newaxis]
    np.testing.assert_allclose(
        gradient(Monotone().project, rows, weights), np.full((1, size), (size + 1) / 2), rtol=1e-6
    )


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX compiles each operation of an eager call")
def test_it_is_one_program_where_jax_differentiates_operation_by_operation() -> None:
    import jax

    rows = array([[3.0, 2.0, 1.0]], "float32", BACKEND)
    text = str(jax.make_jaxpr(jax.grad(lambda x: keras.ops.sum(Monotone().project(x) ** 2)))(rows))
    assert "name=_isotonic" in text
    slope = jax.grad(lambda x: keras.ops.sum(Monotone().project(x) ** 2))(rows)
    np.testing.assert_allclose(exact(slope), [[4.0, 4.0, 4.0]], rtol=1e-6)


def test_a_kernel_has_an_order_along_its_inputs() -> None:
    kernel = np.random.default_rng(3).standard_normal((7, 4)).astype("float32")
    projected = numbers(Monotone()(keras.ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(projected, fitted(kernel.T.astype("float64")).T, rtol=1e-5, atol=1e-6)
    across = numbers(Monotone(axis=-1)(keras.ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(across, fitted(kernel.astype("float64")), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1, 0, None, "up", np.ones(2)], ids=repr)
def test_increasing_is_true_or_false(value: Any) -> None:
    with pytest.raises(
        ib.SetError, match=r"`increasing` of Monotone is neither True nor False\. Received: increasing="
    ):
        Monotone(value)
