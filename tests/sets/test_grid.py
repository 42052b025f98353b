"""Grid: steps that no dtype holds, large and small ones, ties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import inbounds as ib
from inbounds import Grid
from sets.case import ulp
from sets.tensors import BACKEND_DTYPES, FORMATS, LIBRARIES, NUMPY_DTYPES, array, exact, same_bits

pytestmark = pytest.mark.by_turns

every_format = pytest.mark.parametrize(("dtype", "library"), FORMATS, ids=["-".join(pair) for pair in FORMATS])
STEPS = [0.1, 1 / 3, 0.25, 7e-4, 3.3]


def off(rows: Any, step: float) -> Any:
    """How far each entry is from the nearest multiple."""
    return np.abs(np.vectorize(lambda entry: math.remainder(entry, step))(rows))


def some(step: float, dtype: str, library: str) -> Any:
    """Entries of up to 1000 steps."""
    rng = np.random.default_rng(0)
    return array(rng.uniform(-1, 1, (6, 200)) * 10 ** rng.uniform(-1, 3, (6, 1)) * step, dtype, library)


@every_format
@pytest.mark.parametrize("step", STEPS)
def test_no_multiple_nearby_is_nearer(step: float, dtype: str, library: str) -> None:
    rows = some(step, dtype, library)
    projected = exact(Grid(step).project(rows))
    multiples = np.floor(exact(rows) / step)[..., np.newaxis] * step + step * np.arange(-1, 3)
    nearest = np.min(np.abs(exact(rows)[..., np.newaxis] - multiples), axis=-1)
    allowed = 2 * ulp(exact(rows), dtype) + 2 * ulp(projected, dtype)
    assert (np.abs(projected - exact(rows)) <= nearest + allowed).all()
    assert (off(projected, step) <= 4 * ulp(projected, dtype)).all()


@every_format
@pytest.mark.parametrize("step", STEPS)
def test_a_multiple_rounded_to_the_dtype_comes_back(step: float, dtype: str, library: str) -> None:
    multiples = np.arange(-3000, 3001)[np.newaxis] * step
    rows = array(multiples, dtype, library)
    projected = Grid(step).project(rows)
    few = np.abs(multiples) < step * (60 if dtype == "bfloat16" else 500)
    assert same_bits(exact(projected)[few], exact(rows)[few])
    assert same_bits(Grid(step).project(projected), projected)
    assert (exact(Grid(step).violation(projected)) <= Grid(step).tolerance(dtype, exact(projected))).all()


@every_format
def test_halfway_goes_to_the_even_multiple(dtype: str, library: str) -> None:
    rows = array([[0.125, 0.375, 0.625, -0.125, -0.375, 2.125]], dtype, library)
    assert exact(Grid(0.25).project(rows)).tolist() == [[0, 0.5, 0.5, 0, -0.5, 2.0]]


@every_format
def test_halfway_is_told_where_the_inverse_of_the_step_is_inexact(dtype: str, library: str) -> None:
    place = np.arange(15)
    rows = array([(place + 0.5) * 7], dtype, library)
    assert exact(Grid(7).project(rows)).tolist() == [(7 * (place + place % 2)).tolist()]


@pytest.mark.parametrize("library", LIBRARIES)
def test_large_entries_stay(library: str) -> None:
    rows = array([[3e38, -1e20, 2.0**30 + 128, np.inf]], "float32", library)
    assert same_bits(Grid(0.1).project(rows), rows)


@every_format
def test_a_step_may_be_larger_than_all_numbers(dtype: str, library: str) -> None:
    largest = float(np.finfo("float64" if dtype == "float64" else "float32").max) if dtype != "float16" else 65504.0
    if dtype == "bfloat16":
        largest = 255 * 2.0**120
    rows = array([[largest, -largest, 1.0, 0.0]], dtype, library)
    step = float(NUMPY_DTYPES[dtype](0.7 * largest))
    assert exact(Grid(step).project(rows)).tolist() == [[step, -step, 0, 0]]  # twice the step is no number
    if dtype != "float64":
        assert (exact(Grid(1e300).project(rows)) == 0).all()
        assert exact(Grid(1e300).violation(rows)).tolist() == [largest]


@pytest.mark.parametrize("dtype", ["float64", *BACKEND_DTYPES])
def test_a_step_is_a_normal_number(dtype: str) -> None:
    step = 1e-310 if dtype == "float64" else 1e-39
    with pytest.raises(ib.SetError, match=rf"^`step` of Grid is below .* of {dtype} weights\. Received: step=1e-3"):
        Grid(step).project(array(np.ones((1, 2)), dtype, "numpy"))


@pytest.mark.parametrize("value", [0, -1, -0.0], ids=repr)
def test_a_step_is_above_0(value: Any) -> None:
    with pytest.raises(
        ib.SetError, match=rf"^`step` of Grid is not above 0\. Received: step={value}\. Instead: Grid\(step=0\.125\)"
    ):
        Grid(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None, [1.0]], ids=repr)
def test_a_step_is_a_number(value: Any) -> None:
    with pytest.raises(ib.SetError, match=r"^`step` of Grid is not a number"):
        Grid(value)
