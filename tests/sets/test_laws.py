"""The six laws of a set, each over the table of all sets, every dtype, NumPy and the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import repetition
from inbounds.testing import BAD_NUMBERS, check_rows
from sets.case import Case
from sets.solver import solver
from sets.table import SETS
from sets.tensors import (
    BACKEND,
    BACKEND_DTYPES,
    EPSILON,
    FORMATS,
    NUMPY_DTYPES,
    array,
    compiled,
    differences,
    exact,
    gradient,
    mapped,
    numbers,
    of_numpy,
    same_bits,
)

pytestmark = pytest.mark.by_turns("case")

Test = Callable[..., None]

every_set = pytest.mark.parametrize("case", SETS.values(), ids=SETS)
convex_sets = pytest.mark.parametrize(
    "case", [case for case in SETS.values() if case.convex], ids=[name for name, case in SETS.items() if case.convex]
)
SLOW_FORMATS = [("float64", "numpy"), ("float32", "numpy"), ("float32", BACKEND), ("bfloat16", BACKEND)]


def in_formats(cases: dict[str, Case], formats: list[tuple[str, str]]) -> Any:
    """Every case in every format; those that are slow in fewer."""
    rows = [
        pytest.param(case, *form, id="-".join([name, *form]))
        for name, case in cases.items()
        for form in formats
        if not case.slow or form in SLOW_FORMATS
    ]
    return pytest.mark.parametrize(("case", "dtype", "library"), rows)


def in_dtypes(cases: dict[str, Case], long: tuple[str, ...] = ()) -> Any:
    """Every case in every dtype of the backend; slow ones in float32 only.

    Those named in `long` run only with `--all`.
    """
    rows = [
        pytest.param(
            case, dtype, id=f"{name}-{dtype}-{BACKEND}", marks=[pytest.mark.repetition] if name in long else []
        )
        for name, case in cases.items()
        for dtype in BACKEND_DTYPES
        if not case.slow or dtype == "float32"
    ]
    return pytest.mark.parametrize(("case", "dtype"), rows)


every_set_and_format = in_formats(SETS, FORMATS)
every_set_and_dtype = in_dtypes(SETS)

ORDINARY = (6, 5)
SHAPES = ((1, 1), ORDINARY, (3, 2048))


def ordinary(case: Case) -> tuple[int, int]:
    """The shape of a few rows."""
    return case.shapes(ORDINARY)[0]


def rows_of_many_sizes(case: Case, shape: tuple[int, int], seed: int = 0) -> Any:
    """Rows of norms of about 1e-3 to 1e3, most outside one bound or the other, and one of zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3, (shape[0], 1)) / np.sqrt(shape[1])
    rows[shape[0] // 2 :: 7] = 0
    return rows


def slack(case: Case, rows: Any, dtype: str) -> Any:
    """What counts as inside, for each unit of some rows: more than 0."""
    return case.set.tolerance(dtype, exact(rows))


def mixing(case: Case, rows: Any, dtype: str) -> Any:
    """How far an entry of an answer made of other entries may be off: in ulp of a row's largest."""
    wide = EPSILON["float64" if dtype == "float64" else "float32"]
    largest = np.abs(rows).max(keepdims=True) if case.whole else np.abs(rows).max(axis=1, keepdims=True)
    return case.mixes * wide * np.maximum(largest, case.smallest)


def members(case: Case, shape: tuple[int, int], seed: int = 1) -> Any:
    """Rows of the set, on its boundary and inside."""
    rng = np.random.default_rng(seed)
    return case.nearest(rng.standard_normal(shape) * rng.choice([0.1, 1.0, 10.0], (shape[0], 1)) / np.sqrt(shape[1]))


def shapes(case: Case, dtype: str, library: str) -> list[tuple[int, tuple[int, int]]]:
    """With the seed of each.

    Of NumPy's arrays all; of a backend's, which compiles each shape anew, in a usual run only the
    ordinary one.
    """
    few = library != "numpy" and (not repetition.everything or (case.slow and dtype == "bfloat16"))
    every = enumerate(case.shapes(*SHAPES))
    return [(seed, shape) for seed, shape in every if not few or shape == ordinary(case)]


def each_shape(case: Case, make: Callable[..., Any], dtype: str, library: str) -> Iterator[Any]:
    for seed, shape in shapes(case, dtype, library):
        yield array(make(case, shape, seed), dtype, library)


@of_numpy
def test_each_backend_meets_each_law_and_each_set_though_they_take_turns(request: Any) -> None:
    tests = {name: test for name, test in globals().items() if name.startswith("test_")}
    once = {name for name, test in tests.items() if of_numpy.mark in getattr(test, "pytestmark", ())}
    laws = [f"{request.node.parent.nodeid}::{name}" for name in tests.keys() - once]
    assert len(laws) > 12
    for backend in ("torch", "tensorflow", "jax"):
        met = [(law, name) for law in laws for name in SETS if repetition.turn_of(law, SETS[name]) == backend]
        assert {law for law, _ in met} == set(laws)
        assert {name for _, name in met} == set(SETS)


# What needs no other solution, of all six laws, is in `check_set`: projecting again changes no
# bit, dtypes, what is not finite, units apart.


@every_set_and_format
def test_the_laws_that_check_set_runs(case: Case, dtype: str, library: str) -> None:
    assert case.whole or case.square or case.by_entry or not case.set.couples_units
    turn = len(repr(case.set)) % len(BAD_NUMBERS)
    bad = BAD_NUMBERS if library == "numpy" or repetition.everything else BAD_NUMBERS[turn:][:1]
    for rows in each_shape(case, rows_of_many_sizes, dtype, library):
        check_rows(case.set, rows, bad)


# 1. After a projection, an audit finds the units inside, to the tolerance that it shows: 4 ulp and
# the error of a sum.


@every_set_and_format
def test_law_1_projections_end_inside(case: Case, dtype: str, library: str) -> None:
    for rows in each_shape(case, rows_of_many_sizes, dtype, library):
        projected = case.set.project(rows)
        assert case.inside(exact(projected), dtype).all()
        assert (case.excess(exact(projected)) <= slack(case, projected, dtype)).all()
        assert (exact(case.set.violation(projected)) <= slack(case, projected, dtype)).all()


NEAR = (0.5, 1, 2, 3, 4, 6, 8, 11, 16)
"""How far from the boundary, in ulp, what a step takes for inside is told from what it doesn't."""


@every_set_and_format
def test_law_1_what_is_left_near_the_boundary_is_inside(case: Case, dtype: str, library: str) -> None:
    rng = np.random.default_rng(4)
    long = (5, 300)
    for shape in case.shapes(*([ORDINARY, long] if repetition.everything or library == "numpy" else [long])):
        on = members(case, shape)
        signs, any_way = rng.choice([-1, 1], on.shape), rng.standard_normal(on.shape)
        size = np.abs(on).max(axis=1, keepdims=True)
        near = [on + ulps * EPSILON[dtype] * away for ulps in NEAR for away in (on, -on, on * signs, size * any_way)]
        for rows in near[:: 5 if case.slow else 1] if case.whole else [np.concatenate(near[:: 5 if case.slow else 1])]:
            projected = case.set.project(array(rows, dtype, library))
            found = case.set.measure([projected], [(1,)])
            assert not found.outside.any()
            assert case.inside(exact(projected), dtype).all()
            assert same_bits(case.set.project(projected), projected)


@of_numpy
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@every_set
def test_law_1_the_tolerance_is_derived(case: Case, dtype: str) -> None:
    for shape in case.shapes(ORDINARY, (3, 2048)):
        rows = exact(array(members(case, shape), dtype, "numpy"))
        allowed = max(np.max(case.allowed(bound, dtype, shape)) for bound, _ in case.edges(rows))
        assert 0 <= case.set.tolerance(dtype) <= allowed
        assert (slack(case, rows, dtype) <= allowed).all()


@every_set_and_format
def test_law_1_violation_is_the_distance_beyond_the_bound(case: Case, dtype: str, library: str) -> None:
    for rows in each_shape(case, rows_of_many_sizes, dtype, library):
        expected = np.maximum(case.excess(exact(rows)), 0)
        size = np.abs(exact(rows)).max() * np.sqrt(rows.shape[1]) * max(1, case.mixes) + 1
        wide = "float64" if dtype == "float64" else "float32"
        np.testing.assert_allclose(exact(case.set.violation(rows)), expected, atol=4 * size * EPSILON[wide])


# 2. What is inside comes back bit for bit.


@every_set_and_format
def test_law_2_inside_stays_bit_for_bit(case: Case, dtype: str, library: str) -> None:
    # Bounds of entries are met to rounding: only members are inside. Norms are met to 4 ulp.
    for nudge in (0,) if case.by_entry else (0, 1.5, -1.5):
        for seed, shape in shapes(case, dtype, library):
            nudged = exact(array(members(case, shape, seed), dtype, "numpy")) * (1 + nudge * EPSILON[dtype])
            given = array(nudged, dtype, library)
            held = case.inside(exact(given), dtype, case.held)
            assert held.all() or (nudge and case.held < 4) or dtype == "float64"  # the formula's own rounding
            assert same_bits(numbers(case.set.project(given))[held], numbers(given)[held])


# 3. A nearest point.

SCALES = (1e-3, 1e-1, 1.0, 1e1, 1e3)


@of_numpy
@convex_sets
def test_law_3_nearest_as_a_solver_finds_it(case: Case) -> None:
    rng = np.random.default_rng(3)
    drawn = instances = sure = 0
    usual = list(case.solved)[len(case.solved) // 2]
    for given_shape, count in case.solved.items():
        (shape,) = case.shapes(given_shape)
        assert case.program is not None
        if given_shape != usual and not repetition.everything:
            continue
        solve = solver(case.program, shape)
        for scale in (SCALES * count)[: None if repetition.everything else len(PLACES)]:
            rows = PLACES[drawn % len(PLACES)](case, rng.standard_normal(shape) * scale)
            drawn += 1
            expected, exact_enough = solve(rows)
            found = case.set.project(rows)
            # A point that is inside, and no farther than the solver's, is the nearest to the root
            # of the solver's gap. It is compared too: with the solver's where that is sure, else
            # with the formula's.
            assert case.inside(found, "float64").all()
            further = distance(case, found, rows) - distance(case, expected, rows)
            assert (further <= 1e-8 * (1 + distance(case, expected, rows))).all()
            within = (1e-4 if case.curved and exact_enough else 1e-6) * max(1, np.abs(rows).max())
            answer = expected if exact_enough else case.nearest(rows)
            np.testing.assert_allclose(found, answer, rtol=0, atol=within)
            sure += exact_enough
            instances += 1
    assert instances >= (200 if repetition.everything else len(PLACES))
    assert sure >= instances / 3 or not repetition.everything  # how often differs between machines


PLACES: tuple[Callable[[Case, Any], Any], ...] = (
    lambda case, rows: rows,
    lambda case, rows: case.nearest(rows),  # on the boundary, or inside
    lambda case, rows: np.round(2 * rows / np.abs(rows).max()) * np.abs(rows).max() / 2,  # ties
    lambda case, rows: rows * (np.arange(rows.shape[1]) == 0),  # along an axis
    lambda case, rows: 2 * rows - case.nearest(rows),  # straight out of the set
    lambda case, rows: 0.5 * rows + 0.5 * case.nearest(rows),
)


WITHOUT_A_SOLVER = [pytest.param(case, marks=[pytest.mark.repetition] if case.convex else []) for case in SETS.values()]
"""A usual run leaves out the convex sets, of which the test before proves it."""


@of_numpy
@pytest.mark.parametrize("case", WITHOUT_A_SOLVER, ids=SETS)
def test_law_3_no_member_is_nearer(case: Case) -> None:
    for seed, shape in enumerate(case.shapes((1, 1), (4, 2), (5, 3), (2, 64))):
        for scale in SCALES:
            rows = np.random.default_rng(seed).standard_normal(shape) * scale
            projected = case.set.project(rows)
            reached = distance(case, projected, rows)
            for other in range(case.samples if repetition.everything else 10):
                near = case.nearest(projected + members(case, shape, other) * 10.0 ** -(other % 5))
                assert (reached <= distance(case, near, rows) * (1 + case.exact) + case.exact).all()


@every_set_and_format
def test_law_3_nearest_as_the_formula_says(case: Case, dtype: str, library: str) -> None:
    for rows in each_shape(case, rows_of_many_sizes, dtype, library):
        expected = case.nearest(exact(rows))
        # What is within the tolerance stays.
        bands = 4 * slack(case, rows, dtype).max() + mixing(case, exact(rows), dtype) + case.exact
        bands = bands + float(ml_dtypes.finfo(dtype).smallest_subnormal)
        assert_near(case.set.project(rows), expected, 6 * EPSILON[dtype], bands)


def assert_near(found: Any, expected: Any, rtol: float, atol: Any) -> None:
    off = np.abs(exact(found) - exact(expected)) - rtol * np.abs(exact(expected)) - atol
    assert off.max() <= 0, f"off by {off.max():.3g} more than allowed"


def distance(case: Case, a: Any, b: Any) -> Any:
    return np.sqrt(np.sum((a - b) ** 2, axis=(0, 1) if case.whole else 1))


# 4. Shape and dtype; one rounding; neither overflow nor underflow.


@in_formats(SETS, [pair for pair in FORMATS if "float16" in pair[0]])
def test_law_4_half_precision_is_rounded_once(case: Case, dtype: str, library: str) -> None:
    for rows in each_shape(case, rows_of_many_sizes, dtype, library):
        excess = np.broadcast_to(case.excess(exact(rows)), rows.shape[:1])
        clear = (excess <= 0) | (excess > 2 * slack(case, rows, dtype))  # the tolerance of float32 is another
        wide = case.set.project(array(exact(rows), "float32", library))
        assert clear.any()
        assert same_bits(numbers(case.set.project(rows))[clear], numbers(wide).astype(NUMPY_DTYPES[dtype])[clear])


@pytest.mark.parametrize("scale", [1e-37, 3e38])
@in_formats(SETS, [pair for pair in FORMATS if pair[0] != "float16"])
def test_law_4_no_scale_overflows_or_vanishes(case: Case, dtype: str, library: str, scale: float) -> None:
    scale = max(min(scale if case.any_scale else scale**0.25, case.largest), case.smallest)
    for seed, shape in shapes(case, dtype, library):
        rng = np.random.default_rng(seed)
        rows = array(rng.uniform(0.5, 1, shape) * rng.choice([-1, 1], shape) * scale, dtype, library)
        projected = exact(case.set.project(rows))
        tiny = case.set.tolerance(dtype) * (1e-3 if case.mixes == 0 else 4)
        assert_near(projected, case.nearest(exact(rows)), 6 * EPSILON[dtype], tiny + mixing(case, exact(rows), dtype))
        assert case.inside(projected, dtype).all()
        largest = float(np.finfo("float64" if dtype == "float64" else "float32").max)
        expected = np.maximum(case.excess(exact(rows)), 0)
        violation = exact(case.set.violation(rows))
        np.testing.assert_allclose(np.minimum(violation, largest), np.minimum(expected, largest), rtol=1e-5, atol=1e-37)


# 5. Zero units, and what is not finite.


@every_set_and_format
def test_law_5_a_zero_unit_ends_where_it_is_documented(case: Case, dtype: str, library: str) -> None:
    for _, shape in shapes(case, dtype, library):
        projected = exact(case.set.project(array(np.zeros(shape), dtype, library)))
        assert_near(projected, case.nearest(np.zeros(shape)), 2 * EPSILON[dtype], case.mixes * EPSILON[dtype])
        assert case.inside(projected, dtype).all()


# 6. Units are independent; every library computes the same, and can trace, vectorize and
# differentiate it.


@every_set_and_dtype
def test_law_6_the_backend_computes_what_numpy_does(case: Case, dtype: str) -> None:
    for seed, shape in shapes(case, dtype, BACKEND):
        values = rows_of_many_sizes(case, shape, seed)
        ours, numpys = array(values, dtype, BACKEND), array(values, dtype, "numpy")
        close = 6 * EPSILON[dtype], mixing(case, exact(numpys), dtype)
        assert_near(case.set.project(ours), case.set.project(numpys), *close)
        violations = exact(case.set.violation(ours)), exact(case.set.violation(numpys))
        close = {"rtol": 1e-5, "atol": 1e-5 * (1 + np.abs(values).max() * EPSILON[dtype])}
        np.testing.assert_allclose(*violations, **close)


def both(case: Case) -> Callable[[Any], Any]:
    return lambda rows: (case.set.project(rows), case.set.violation(rows))


UNROLLED = (
    *("Box-L1Ball", "Box-SumTo", "GroupL1Ball-labels", "Halfspace", "Halfspace-MaxNorm", "Halfspace-cone"),
    *("Hyperplane", "L1Ball-MaxNorm", "Marginals", "SumTo"),
)
"""Sets whose loops PyTorch unrolls in tracing, for up to half a minute; `vmap` tries them too."""

TRACED_LONG = (
    *UNROLLED,
    *("LowRank", "NuclearNorm", "NuclearNorm-small", "Orthogonal", "SpectralNorm", "SpectralNorm-small"),
)
"""Sets whose vectorized loops TensorFlow traces for 10 to 25 seconds each."""

COMPILED_LONG = ("Box-center", "GroupSparse", "SumTo-one", "Tied")
"""Sets for which TensorFlow and XLA take 3 to 5 seconds each; the next test traces them too."""

# On JAX the next test compiles what it vectorizes; of what TensorFlow vectorizes, XLA compiles a
# part there.
PROVEN_NEXT = {"torch": UNROLLED, "tensorflow": COMPILED_LONG, "jax": tuple(SETS)}


@in_dtypes(SETS, long=PROVEN_NEXT[BACKEND])
def test_law_6_works_where_functions_are_compiled(case: Case, dtype: str) -> None:
    rows = array(rows_of_many_sizes(case, ordinary(case)), dtype, BACKEND)
    for result, eager, rtol in zip(
        compiled(both(case), rows), both(case)(rows), (6 * EPSILON[dtype], 1e-5), strict=True
    ):
        assert result.dtype == eager.dtype
        np.testing.assert_allclose(exact(result), exact(eager), rtol=rtol, atol=loose(case, rows))


def loose(case: Case, rows: Any) -> float:
    return 1e-6 + case.mixes * EPSILON["float32"] * float(np.abs(exact(rows)).max())


@in_dtypes(SETS, long=TRACED_LONG if BACKEND == "tensorflow" else ())
def test_law_6_works_where_functions_are_vectorized(case: Case, dtype: str) -> None:
    rows = array(np.stack([rows_of_many_sizes(case, ordinary(case), seed) for seed in range(3)]), dtype, BACKEND)
    one_by_one = zip(*[both(case)(rows[i]) for i in range(3)], strict=True)
    for result, singles, rtol in zip(mapped(both(case), rows), one_by_one, (6 * EPSILON[dtype], 1e-5), strict=True):
        stacked = np.stack([exact(x) for x in singles])
        np.testing.assert_allclose(exact(result), stacked, rtol=rtol, atol=loose(case, rows))


def apart(case: Case) -> bool:
    """Whether each row is projected by itself."""
    return not (case.whole or case.square or case.ambiguous)


@every_set_and_dtype
def test_law_6_gradients_are_finite_and_right(case: Case, dtype: str) -> None:
    rng = np.random.default_rng(5)
    shape = ordinary(case)
    sizes = np.array([[0.1], [0.5], [1.0], [2.0], [4.0], [0.0]])
    rows = array(rng.standard_normal(shape) * (1 if case.whole else sizes), dtype, BACKEND)
    weights = np.round(rng.uniform(1, 2, shape), 1)
    found = gradient(case.set.project, rows, weights)
    assert np.isfinite(found).all()

    forward, backward = differences(case.nearest, exact(rows), weights, apart=apart(case))
    smooth = np.abs(forward - backward) < 1e-3
    if not case.whole:
        smooth[5] = False  # where the bound is 0: what counts as inside passes gradients on as it is
    smooth[np.broadcast_to(np.abs(case.excess(exact(rows))), len(rows)) <= slack(case, rows, dtype)] = False
    assert smooth.mean() > 0.6
    close = 20 * EPSILON[dtype]
    np.testing.assert_allclose(found[smooth], forward[smooth], rtol=close, atol=close + 1e-3)


@every_set_and_dtype
def test_law_6_gradients_of_the_violation_are_finite_and_right(case: Case, dtype: str) -> None:
    rng = np.random.default_rng(6)
    shape = ordinary(case)
    sizes = np.array([[0.1], [0.5], [1.0], [2.0], [4.0], [0.0]])
    rows = array(rng.standard_normal(shape) * (1 if case.whole else sizes), dtype, BACKEND)
    found = gradient(case.set.violation, rows, 1.0)
    assert np.isfinite(found).all()

    forward, backward = differences(lambda x: np.maximum(case.excess(x), 0), exact(rows), apart=apart(case))
    smooth = np.abs(forward - backward) < 1e-3
    assert smooth[:5].mean() > 0.8
    close = 20 * EPSILON[dtype]
    np.testing.assert_allclose(found[smooth], forward[smooth], rtol=close, atol=close + 1e-3)


# Any numbers at all: subnormals, infinities, NaN, signed zeros.

any_rows = array_shapes(min_dims=2, max_dims=2, max_side=5).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(width=32))
)


@of_numpy
@every_set
def test_laws_hold_for_any_numbers(case: Case) -> None:
    @settings(deadline=None, derandomize=True, max_examples=60 if repetition.everything else 10, database=None)
    @given(any_rows)
    def holds(rows: Any) -> None:
        (shape,) = case.shapes((len(rows), rows.shape[1]))
        rows = np.resize(rows, shape)
        most = np.float32((case.largest if case.largest < 3e38 else np.inf) if case.any_scale else 1e9)
        least = case.smallest if case.smallest > 1e-37 else 0.0  # a set that divides by the unit's largest entry first
        if np.isfinite(rows).all():
            rows = np.where(np.abs(rows) < least, 0 * rows, np.clip(rows, -most, most))
        projected = case.set.project(rows)
        finite = np.isfinite(rows)
        finite_seen = finite if case.seen is None else finite | ~case.seen
        good = np.broadcast_to(finite_seen.all() if case.whole else finite_seen.all(axis=1), len(rows))
        assert same_bits(projected[~finite], rows[~finite])
        assert not good.any() or case.inside(exact(projected[good]), "float32").all()
        assert same_bits(case.set.project(projected), projected)
        assert ((case.set.violation(rows) == np.inf) >= ~(good.all() if case.whole else good)).all()

    holds()
