"""Sparse: what the laws don't say."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import inbounds as ib
from inbounds import Sparse
from sets.tensors import BACKEND, LIBRARIES, array, compiled, exact, numbers, same_bits

pytestmark = pytest.mark.by_turns


def nearest_distance(row: Any, k: int) -> float:
    """To the nearest vector with at most k entries that are not 0, of all sets of k places."""
    return min(float(np.linalg.norm(np.delete(row, places))) for places in combinations(range(len(row)), k))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_as_near_as_the_best_of_all_supports(k: int) -> None:
    rng = np.random.default_rng(k)
    rows = np.concatenate([rng.standard_normal((20, 6)), rng.integers(-2, 3, (20, 6))])
    projected = Sparse(k).project(rows)
    assert (np.count_nonzero(projected, axis=1) <= k).all()
    expected = [nearest_distance(row, k) for row in rows]
    np.testing.assert_allclose(np.linalg.norm(projected - rows, axis=1), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("k", [1, 40, 300, 699, 700])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("scale", [1e-37, 1.0, 3e38])
def test_long_rows_keep_the_largest(k: int, library: str, scale: float) -> None:
    rng = np.random.default_rng(k)
    values = rng.uniform(0.2, 1, (5, 700)) * rng.choice([-1, 1], (5, 700)) * scale
    values[1] = np.where(rng.random(700) < 0.9, 0, values[1])  # few that are not 0
    values[2] = np.round(values[2] / scale, 1) * scale  # ties
    values[3] = 0
    rows = array(values, "float32", library)
    ranks = np.argsort(np.argsort(-np.abs(exact(rows)), axis=1, kind="stable"), axis=1)
    assert (exact(Sparse(k).project(rows)) == np.where(ranks < k, exact(rows), 0)).all()


@pytest.mark.parametrize("k", [2, 40])
def test_compiled_as_eager(k: int) -> None:
    rows = array(np.random.default_rng(0).standard_normal((4, 100)).round(1), "float32", BACKEND)
    assert same_bits(compiled(Sparse(k).project, rows), Sparse(k).project(rows))


@pytest.mark.parametrize("library", LIBRARIES)
def test_of_ties_the_first_stay(library: str) -> None:
    rows = array([[1.0, -2.0, 2.0, -2.0, 2.0], [0.0, 0.0, 3.0, 3.0, 3.0]], "float32", library)
    assert exact(Sparse(2).project(rows)).tolist() == [[0, -2, 2, 0, 0], [0, 0, 3, 3, 0]]


@pytest.mark.parametrize("library", LIBRARIES)
def test_negative_zeros_are_zeros(library: str) -> None:
    rows = array([[-0.0, 1.0, -0.0, 0.0, 2.0]], "float32", library)
    assert same_bits(Sparse(2).project(rows), rows)
    assert exact(Sparse(2).violation(rows)).tolist() == [0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_mask_leaves_entries_out(library: str) -> None:
    rng = np.random.default_rng(4)
    mask = rng.random((30, 9)) < 0.5
    values = rng.standard_normal((30, 9))
    values[:, 0] = np.where(mask[:, 0], values[:, 0], 1e6)
    rows = array(values, "float32", library)
    owner = Sparse(2).where(mask)
    projected = numbers(owner.project(rows))
    assert same_bits(projected[~mask], numbers(rows)[~mask])
    for row, given, marked in zip(projected, numbers(rows), mask, strict=True):
        largest = np.sort(np.abs(given[marked]))[::-1][:2]
        assert np.sort(np.abs(row[marked]))[::-1][:2].tolist() == largest.tolist()
        assert np.count_nonzero(row[marked]) == min(2, marked.sum())
    third = [
        np.sort(np.append(np.abs(given[marked]), [0, 0, 0]))[-3]
        for given, marked in zip(exact(rows), mask, strict=True)
    ]
    np.testing.assert_allclose(exact(owner.violation(rows)), third, rtol=1e-6)


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, True, "3", None, [2]], ids=repr)
def test_k_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(
        ib.SetError, match=r"^`k` of Sparse is not a positive integer.* Received: k=.* Instead: Sparse\(k=10\)"
    ):
        Sparse(value)


def test_k_is_at_most_the_size_of_a_unit() -> None:
    with pytest.raises(
        ib.SetError, match=r"Received: k=7\. Where: Sparse\(k=7\) on 2 units of 6 entries\. Instead: k=6"
    ):
        Sparse(7).project(np.ones((2, 6)))
    assert same_bits(Sparse(6).project(np.ones((2, 6))), np.ones((2, 6)))


def test_a_radius_far_below_the_weights_keeps_the_largest_groups() -> None:
    rows = array(np.array([[3.0, 0.5], [4.0, 0.0]]) * 2e37, "float32", LIBRARIES[-1])
    np.testing.assert_allclose(exact(ib.GroupL1Ball(1.0).project(rows)), [[0.6, 0], [0.8, 0]], rtol=1e-6)
    np.testing.assert_allclose(exact(ib.GroupL1Ball(1.0, "units").project(rows)), [[0, 0], [1, 0]], rtol=1e-6)
