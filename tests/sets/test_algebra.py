"""What operators make: intersections against a solver, their methods, masks, centres, refusals."""

from __future__ import annotations

import functools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import keras
import numpy as np
import pytest

import inbounds as ib
import repetition
from inbounds._arrays.units import Units
from sets.solver import solver
from sets.tensors import BACKEND, array, compiled, exact, gradient, mapped, of_numpy, same_bits

pytestmark = pytest.mark.by_turns

NORMAL = np.array([0.5, -2.0, 0.0, 1.0, 0.25])
LOWS = np.array([-1.0, -0.5, -0.2, 0.0, 0.0])
NORMALS = np.random.default_rng(0).standard_normal((40, 5))
Program = Callable[[cp.Variable], list[cp.Constraint]]


def rising(rows: cp.Variable) -> cp.Constraint:
    return rows[:, :-1] <= rows[:, 1:]


def sums(rows: cp.Variable) -> cp.Expression:
    return cp.sum(rows, axis=1)


def length(rows: Any, kind: int = 2) -> cp.Expression:
    return cp.norm(rows, kind, axis=1)


CASES: dict[str, tuple[Callable[[], ib.Set], Program, str]] = {
    "cone, ball": (
        lambda: ib.NonNeg() & ib.MaxNorm(1),
        lambda r: [r >= 0, length(r) <= 1],
        "exact: NonNeg, then MaxNorm",
    ),
    "ball, cone": (
        lambda: ib.MaxNorm(1) & ib.Monotone(),
        lambda r: [rising(r), length(r) <= 1],
        "exact: Monotone, then",
    ),
    "cones, ball": (
        lambda: ib.Monotone() & ib.NonNeg() & ib.MaxNorm(1),
        lambda r: [rising(r), r >= 0, length(r) <= 1],
        "exact: Monotone and NonNeg, then MaxNorm",
    ),
    "subspace, ball": (
        lambda: ib.SumTo(0) & ib.MaxNorm(1),
        lambda r: [sums(r) == 0, length(r) <= 1],
        "exact: SumTo, then MaxNorm",
    ),
    "orthant, l1": (lambda: ib.L1Ball(1) & ib.NonNeg(), lambda r: [r >= 0, sums(r) <= 1], "exact: NonNeg, then L1Ball"),
    "boxes": (lambda: ib.Box(-1, 0.5) & ib.Box(LOWS, 1), lambda r: [r >= LOWS[None], r <= 0.5], "exact: Box, then Box"),
    "order, box": (
        lambda: ib.Monotone() & ib.Box(-0.2, 0.6),
        lambda r: [rising(r), r >= -0.2, r <= 0.6],
        "exact: Monotone, t",
    ),
    "box, sum": (
        lambda: ib.Box(-0.2, 0.7) & ib.SumTo(1),
        lambda r: [r >= -0.2, r <= 0.7, sums(r) == 1],
        "multipliers for SumTo, with Box",
    ),
    "box, simplex": (
        lambda: ib.Box(0, 0.4) & ib.Simplex(),
        lambda r: [r >= 0, r <= 0.4, sums(r) == 1],
        "multipliers for Simplex, with Box",
    ),
    "box, l1": (
        lambda: ib.Box(-0.1, 0.4) & ib.L1Ball(0.6),
        lambda r: [r >= -0.1, r <= 0.4, length(r, 1) <= 0.6],
        "multipliers for L1Ball, with Box",
    ),
    "half-space, ball": (
        lambda: ib.Halfspace(NORMAL, -0.3) & ib.MaxNorm(1),
        lambda r: [r @ NORMAL <= -0.3, length(r) <= 1],
        "multipliers for Halfspace and MaxNorm",
    ),
    "half-space, plane": (
        lambda: ib.Halfspace(NORMAL, -0.3) & ib.SumTo(1),
        lambda r: [r @ NORMAL <= -0.3, sums(r) == 1],
        "multipliers for Halfspace and SumTo",
    ),
    "simplex, ball": (
        lambda: ib.Simplex(1) & ib.MaxNorm(0.6),
        lambda r: [r >= 0, sums(r) == 1, length(r) <= 0.6],
        "multipliers for Simplex and MaxNorm",
    ),
    "order, sum": (
        lambda: ib.Monotone() & ib.SumTo(1),
        lambda r: [rising(r), sums(r) == 1],
        "exact: Monotone, then SumTo",
    ),
    "l1, ball": (
        lambda: ib.L1Ball(1) & ib.MaxNorm(0.7),
        lambda r: [length(r, 1) <= 1, length(r) <= 0.7],
        "multipliers for L1Ball and MaxNorm",
    ),
    "two balls": (
        lambda: ib.MaxNorm(1) & ib.MaxNorm(1, center=0.3),
        lambda r: [length(r) <= 1, length(r - 0.3) <= 1],
        "multipliers for MaxNorm and MaxNorm",
    ),
    "two l1": (
        lambda: ib.L1Ball(1) & ib.L1Ball(1, center=0.3),
        lambda r: [length(r, 1) <= 1, length(r - 0.3, 1) <= 1],
        "Dykstra's algorithm",
    ),
    "order, l1": (
        lambda: ib.Monotone() & ib.L1Ball(1),
        lambda r: [rising(r), length(r, 1) <= 1],
        "exact: Monotone, then L1Ball",
    ),
    "order, l1, box": (
        lambda: ib.Monotone() & ib.L1Ball(1) & ib.Box(LOWS, 0.5),
        lambda r: [rising(r), length(r, 1) <= 1, r >= LOWS[None], r <= 0.5],
        "Dykstra's algorithm",
    ),
    "many": (
        lambda: (
            ib.Simplex()
            & ib.MaxNorm(0.6)
            & ib.Box(0, LOWS + 1.2)
            & ib.Halfspace(NORMAL, 0.1)
            & ib.Halfspace(NORMAL, 0.1)
        ),
        lambda r: [r >= 0, sums(r) == 1, length(r) <= 0.6, r <= LOWS[None] + 1.2, r @ NORMAL <= 0.1],
        "multipliers for Simplex and MaxNorm and Halfspace and Halfspace, with Box",
    ),
    "orthant, total": (
        lambda: ib.NonNeg() & ib.Halfspace(1.0, 1.0),
        lambda r: [r >= 0, sums(r) <= 1],
        "multipliers for Halfspace, with NonNeg",
    ),
    "more half-spaces than entries": (
        lambda: functools.reduce(operator.and_, [ib.Halfspace(normal, 0.01) for normal in NORMALS]),
        lambda r: [r @ NORMALS.T <= 0.01],
        "multipliers for Halfspace and Halfspace",
    ),
    "two l1, marked": (
        lambda: ib.L1Ball(1).where(NORMAL > 0) & ib.L1Ball(1, center=0.3).where(NORMAL > 0) & ib.Box(-0.2, 0.6),
        lambda r: [
            length(r[:, np.flatnonzero(NORMAL > 0)], 1) <= 1,
            length(r[:, np.flatnonzero(NORMAL > 0)] - 0.3, 1) <= 1,
            r >= -0.2,
            r <= 0.6,
        ],
        "Dykstra's algorithm",
    ),
    "masked": (
        lambda: ib.NonNeg().where(NORMAL > 0) & ib.MaxNorm(1),
        lambda r: [r[:, np.flatnonzero(NORMAL > 0)] >= 0, length(r) <= 1],
        "exact: Where, then MaxNorm",
    ),
}
MATRICES: dict[str, tuple[Callable[[], ib.Set], Program, str]] = {
    "spectral, orthant": (
        lambda: ib.SpectralNorm(1) & ib.NonNeg(),
        lambda r: [r >= 0, cp.sigma_max(r) <= 1],
        "Dykstra",
    ),
    "spectral, frobenius": (
        lambda: ib.SpectralNorm(1) & ib.FrobeniusNorm(1.5),
        lambda r: [cp.sigma_max(r) <= 1, cp.norm(r, "fro") <= 1.5],
        "Dykstra",
    ),
    "symmetric, spectral": (
        lambda: ib.Symmetric() & ib.SpectralNorm(1),
        lambda r: [r == r.T, cp.sigma_max(r) <= 1],
        "exact: Symmetric, then",
    ),
    "semidefinite, nuclear": (
        lambda: ib.PositiveSemidefinite() & ib.NuclearNorm(1),
        lambda r: [r == r.T, r >> 0, cp.trace(r) <= 1],
        "exact: Positive",
    ),
    "zero diagonal, symmetric": (
        lambda: ib.ZeroDiagonal() & ib.Symmetric(),
        lambda r: [r == r.T, cp.diag(r) == 0],
        "exact: ZeroDiagonal, then Symmetric",
    ),
    "units, matrix": (
        lambda: ib.MaxNorm(0.5) & ib.SpectralNorm(0.8),
        lambda r: [length(r) <= 0.5, cp.sigma_max(r) <= 0.8],
        "Dykstra",
    ),
}
ALL = CASES | MATRICES


@functools.cache
def made(name: str) -> ib.Set:
    """A set of the table, made when needed: some take seconds to look for a common point."""
    return ALL[name][0]()


def draws(name: str, units: int = 6) -> Any:
    return np.random.default_rng(len(name)).standard_normal((5 if name in MATRICES else units, 5))


@of_numpy
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("name", ALL)
def test_the_nearest_point_is_that_of_a_solver(name: str, scale: float) -> None:
    """A point that is inside, and no farther than the solver's, is the nearest.

    It is so to the root of the solver's gap.
    """
    owner, (_, program, way) = made(name), ALL[name]
    rows = draws(name) * scale
    found, (theirs, _) = owner.project(rows), solver(program, rows.shape)(rows)
    assert not owner.measure([found], [(1,)]).outside.any()
    if name in MATRICES and way == "Dykstra" and scale > 1:
        return  # from far away 1,000 rounds don't end at the nearest point of curved sets; the result is inside
    assert same_bits(owner.project(found), found)
    axis = None if name in MATRICES else 1
    ours, solvers = (np.linalg.norm(rows - point, axis=axis) for point in (found, theirs))
    assert (ours <= solvers * (1 + 1e-8) + 1e-8).all()
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4 * max(1, scale))


@pytest.mark.parametrize("name", ALL)
def test_the_way_is_said(name: str) -> None:
    owner, way = made(name), ALL[name][2]
    assert way in owner.how  # type: ignore[attr-defined]


@pytest.mark.repetition  # of law 6 for rows of the table, and of `vmap` below; PyTorch traces it for 20 seconds
@pytest.mark.parametrize("name", ["cone, ball", "two l1", "half-space, plane"])
def test_it_is_compiled(name: str) -> None:
    if BACKEND == "torch" and name == "two l1":
        pytest.skip("100 rounds of 24 looks, unrolled, take minutes to export; vectorizing takes the same way")
    owner, way = made(name), ALL[name][2]
    rows = draws(name)
    found = exact(compiled(owner.project, array(rows, "float32", BACKEND)))
    # Of Dykstra's algorithm, PyTorch takes 100 rounds where it exports.
    close = 3e-3 if BACKEND == "torch" and "Dykstra" in way else 3e-5
    np.testing.assert_allclose(found, owner.project(rows), atol=close)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch.compile")
@pytest.mark.repetition  # to import what compiles takes 5 seconds
@pytest.mark.parametrize("name", ["orthant, l1", "l1, ball"])
def test_torch_compile_leaves_the_loops_to_python(name: str) -> None:
    import torch

    owner = made(name)
    rows = array(draws(name), "float32", BACKEND)
    found = torch.compile(owner.project, backend="eager")(rows)
    np.testing.assert_array_equal(exact(found), exact(owner.project(rows)))


OTHERWISE = ("order, box", "two balls", "two l1", "symmetric, spectral", "spectral, frobenius")
"""One for each way that no row of the table has."""


@pytest.mark.parametrize("name", ALL if repetition.everything else OTHERWISE)
def test_the_backend_finds_it_too(name: str) -> None:
    owner = made(name)
    found = exact(owner.project(array(draws(name), "float32", BACKEND)))
    np.testing.assert_allclose(found, owner.project(draws(name)), atol=3e-5)


@pytest.mark.repetition  # TensorFlow takes half a minute to trace 100 rounds
def test_dykstras_algorithm_is_vectorized() -> None:
    """The other ways are in the table of laws."""
    owner = made("two l1")
    rows = array(np.stack([draws("two l1"), 3 * draws("two l1")]), "float32", BACKEND)
    expected = np.stack([owner.project(exact(rows)[i]) for i in range(2)])
    np.testing.assert_allclose(exact(mapped(owner.project, rows)), expected, atol=3e-3)


IN_THE_TABLE = [
    pytest.param(name, marks=pytest.mark.repetition) for name in ("box, sum", "l1, ball", "half-space, ball")
]
"""Of which law 6 proves it."""


@pytest.mark.parametrize("name", [*IN_THE_TABLE, "many", "two l1", "spectral, frobenius"])
def test_gradients_are_those_of_differences(name: str) -> None:
    owner = made(name)
    rows = draws(name, units=2)
    weights = np.round(np.random.default_rng(1).uniform(1, 2, rows.shape), 1)
    found = gradient(owner.project, array(rows, "float32", BACKEND), weights)
    assert np.isfinite(found).all()
    step = 1e-6
    for index in list(np.ndindex(rows.shape))[:: max(1, rows.size // (8 if repetition.everything else 4))]:
        moved = np.zeros_like(rows)
        moved[index] = step
        ahead, behind = (np.sum(weights * owner.project(rows + sign * moved)) for sign in (1, -1))
        assert abs(found[index] - (ahead - behind) / (2 * step)) < (2e-2 if "Dykstra" in ALL[name][2] else 5e-6)


@pytest.mark.repeats("bad")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["cone, ball", "box, sum", "order, l1", "l1, ball"])
def test_a_unit_that_is_not_finite_stays(name: str, bad: float) -> None:
    rows = draws(name)
    clean = made(name).project(rows)
    rows[2, 1] = bad
    found = made(name).project(rows)
    assert same_bits(found[2], rows[2])
    np.testing.assert_allclose(np.delete(found, 2, 0), np.delete(clean, 2, 0), atol=1e-12)


# Not convex: in turn.


def test_sparse_and_a_ball_is_exact() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 7))
    for owner, part in ((ib.MaxNorm(1), rows), (ib.NonNeg() & ib.L1Ball(1), np.maximum(rows, 0))):
        kept = np.where(np.abs(part) >= np.sort(np.abs(part), axis=1)[:, [-3]], part, 0)
        expected = (ib.L1Ball(1) if isinstance(owner, type(ib.NonNeg() & ib.L1Ball(1))) else owner).project(kept)
        np.testing.assert_allclose((owner & ib.Sparse(3)).project(rows), expected, atol=1e-14)


def test_what_is_not_convex_ends_inside_and_says_what_it_gives() -> None:
    owner = ib.UnitNorm() & ib.NonNeg()
    rows = np.random.default_rng(0).standard_normal((50, 4))
    assert "not convex" in owner.how  # type: ignore[attr-defined]
    assert not owner.convex
    assert not owner.measure([owner.project(rows)], [(1,)]).outside.any()


# Values.


def test_it_prints_as_the_code_that_makes_it_and_is_saved() -> None:
    sets = {
        "NonNeg() & MaxNorm(max_value=1.0)": ib.NonNeg() & ib.MaxNorm(1),
        "(NonNeg() & MaxNorm(max_value=1.0)).where([True, False])": (ib.NonNeg() & ib.MaxNorm(1)).where([True, False]),
        "MaxNorm(max_value=1.0).on(inputs=[0, 3])": ib.MaxNorm(1).on(inputs=[0, 3]),
        "MaxNorm(max_value=1.0, center=[0.5, 1.0])": ib.MaxNorm(1, center=[0.5, 1]),
        "Joint(NonNeg() & MaxNorm(max_value=1.0))": ib.Joint(ib.NonNeg() & ib.MaxNorm(1)),
        "Joint(L1Ball(radius=1.0).on(inputs=[1]))": ib.Joint(ib.L1Ball(1)).on(inputs=[1]),
    }
    for text, owner in sets.items():
        assert repr(owner) == text
        assert eval(text, vars(ib)) == owner
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(owner))
        assert again == owner
        assert hash(again) == hash(owner)
        owner.project(np.ones((1, 4)) if "on(" in text else np.ones((1, 2)))  # finds what isn't pickled
        assert pickle.loads(pickle.dumps(owner)) == owner


def test_large_arrays_are_saved_exactly_and_not_printed() -> None:
    center = np.random.default_rng(0).standard_normal((20, 30))
    for owner in (
        ib.MaxNorm(1, center=center),
        ib.NonNeg().where(center > 0),
        ib.Box(center.reshape(-1).astype("float32"), 9),
    ):
        config = keras.saving.serialize_keras_object(owner)
        assert keras.saving.deserialize_keras_object(config) == owner
        assert len(repr(owner)) < 500
    other = ib.MaxNorm(1, center=center + 1e-9)
    assert other != ib.MaxNorm(1, center=center)


@pytest.mark.parametrize("name", ["half-space, ball", "cone, ball", "orthant, l1"])
def test_a_norm_from_0_on_is_a_ball(name: str) -> None:
    """`MinMaxNorm` with what Keras takes where nothing is said."""
    first, second = made(name).members
    ball = ib.MinMaxNorm(0.0, 1.0)
    same = ib.MaxNorm(1.0)
    for mine, theirs in ((first & ball, first & same), (second & ball, second & same)):
        assert mine.convex
        assert mine.how.replace("MinMaxNorm", "MaxNorm") == theirs.how
        np.testing.assert_array_equal(mine.project(draws(name)), theirs.project(draws(name)))
    assert not ib.MinMaxNorm(0.0, 1.0, rate=0.5).convex
    assert not ib.MinMaxNorm(0.5, 1.0).convex


def test_nested_intersections_are_one() -> None:
    a, b, c = ib.NonNeg(), ib.MaxNorm(1), ib.SumTo(0.5)
    assert ((a & b) & c) == (a & (b & c))
    assert ((a & b) & c).members == (a, b, c)  # type: ignore[attr-defined]


# Masks.


def test_units_may_have_masks_of_their_own() -> None:
    rng = np.random.default_rng(0)
    rows, mask = 3 * rng.standard_normal((30, 8)), rng.uniform(size=(30, 8)) < 0.5
    mask[4] = False
    for owner in (ib.MaxNorm(1), ib.L1Ball(1), ib.SumTo(2), ib.Simplex(), ib.UnitNorm(), ib.Monotone(), ib.Sparse(1)):
        found = owner.where(mask).project(rows)
        assert same_bits(found[~mask], rows[~mask])
        assert same_bits(found[4], rows[4])
        for i in range(len(rows)):
            if mask[i].any():
                np.testing.assert_allclose(found[i, mask[i]], owner.project(rows[i, mask[i]][None])[0], atol=1e-12)
                alone = owner.violation(rows[i, mask[i]][None])[0]
                np.testing.assert_allclose(owner.where(mask).violation(rows)[i], alone, atol=1e-12)


def test_arrays_of_a_set_are_those_of_the_whole_unit() -> None:
    mask = np.array([True, True, False, True, False])
    rows = np.random.default_rng(0).standard_normal((9, 5))
    found = ib.Halfspace(NORMAL, -0.3).where(mask).project(rows)
    expected = ib.Halfspace(NORMAL[mask], -0.3).project(rows[:, mask])
    np.testing.assert_allclose(found[:, mask], expected, atol=1e-14)


def test_under_a_mask_a_violation_is_the_distance_to_what_is_left() -> None:
    flat = ib.Halfspace([0.001, 1.0], 0.0).where([True, False])
    assert flat.violation([[5.0, 0.0]])[0] == pytest.approx(5.0)
    rows, mask = np.random.default_rng(0).standard_normal((9, 5)), np.array([True, True, False, True, False])
    for kind in (ib.Halfspace, ib.Hyperplane):
        found = kind(NORMAL, -0.3).where(mask).violation(rows)
        np.testing.assert_allclose(found, kind(NORMAL[mask], -0.3).violation(rows[:, mask]), atol=1e-14)


# Centres.


def test_a_centre_moves_the_set() -> None:
    rng = np.random.default_rng(0)
    rows, center = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    for make in (
        lambda c: ib.MaxNorm(0.5, center=c),
        lambda c: ib.L1Ball(0.5, center=c),
        lambda c: ib.Box(-0.1, 0.2, center=c),
        lambda c: ib.FrobeniusNorm(0.5, center=c),
        lambda c: ib.SpectralNorm(0.5, center=c),
        lambda c: ib.NuclearNorm(0.5, center=c),
    ):
        found = make(center).project(rows)
        np.testing.assert_allclose(found, center + make(None).project(rows - center), atol=1e-12)
        assert same_bits(make(center).project(found), found)
        assert not make(center).measure([found], [(1,)]).outside.any()


# What is refused.


def refused(bad: Callable[[], Any]) -> str:
    with pytest.raises(ib.SetError) as caught:
        bad()
    return str(caught.value)


@of_numpy
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: ib.MaxNorm(1) & 3, "`&` meets something that is not a set"),
        (lambda: ib.MaxNorm(1) & ib.Joint(ib.NonNeg()), "one of them is a Joint"),
        (lambda: ib.Joint(ib.NonNeg()) & ib.MaxNorm(1), "A Joint can't meet what is no Joint"),
        (lambda: ib.Box(0, 1) & ib.Box(2, 3), "no point in common"),
        (lambda: ib.NonNeg() & ib.SumTo(-1), "no point in common"),
        pytest.param(lambda: ib.L1Ball(1) & ib.Simplex(2), "no point in common", marks=pytest.mark.repetition),
        pytest.param(lambda: ib.NonPos() & ib.Simplex(), "no point in common", marks=pytest.mark.repetition),
        pytest.param(
            lambda: ib.MaxNorm(1) & ib.Halfspace(NORMAL, -100), "no point in common", marks=pytest.mark.repetition
        ),
        (lambda: ib.NonNeg().where([1.0, 0.0]), "not an array of booleans"),
        (lambda: ib.NonNeg().where([False, False]), "some are True"),
        (lambda: ib.SpectralNorm(1).where([True, False]), "is given a set of a whole matrix"),
        (lambda: ib.Custom(abs).where([True, False]), "a callable, or no set"),
        (lambda: (ib.NonNeg() & ib.Custom(abs)).where([True, False]), "a callable, or no set"),
        (lambda: ib.Joint(ib.NonNeg() & ib.Custom(abs)), "is not given a set of vectors"),
        (lambda: (ib.NonNeg() & ib.Custom(abs)).scaled(float), "can't be scaled"),
        (lambda: (ib.MaxNorm(1, center=2.0) & ib.NonNeg()).scaled(float), "has a centre"),
        (lambda: ib.NonNeg().project(3.0), "The rows don't have the shape (units, size)"),
        (lambda: ib.NonNeg().violation(None), "The rows don't have the shape (units, size)"),
        (lambda: ib.Box(0, 1, center=np.ones(4)).project(np.ones((2, 3))), "a shape that broadcasts to it"),
        (lambda: ib.NonNeg().on(inputs=[]), "not different indices"),
        (lambda: ib.NonNeg().on(inputs=[1, 1]), "not different indices"),
        (lambda: ib.NonNeg().on(inputs=[-1]), "not different indices"),
        (lambda: ib.NonNeg().on(inputs=[0.5]), "not different indices"),
        (lambda: ib.NonNeg().on(inputs=[5]).project(np.ones((2, 3))), "not all below the number of inputs, 3"),
        (lambda: ib.NonNeg().where([True, False]).project(np.ones((2, 3))), "a shape that broadcasts to it"),
        (lambda: ib.MaxNorm(1, center=np.ones(4)).project(np.ones((2, 3))), "a shape that broadcasts to it"),
        (lambda: ib.MaxNorm(1, center="here"), '"current", a number'),
        (lambda: ib.MaxNorm(1, center=np.nan), "is NaN"),
        (lambda: ib.MaxNorm(1, center="current").project(np.ones((2, 3))), "when a model is constrained"),
    ],
)
def test_bad_input_is_refused(bad: Callable[[], Any], says: str) -> None:
    text = refused(bad)
    assert says in text
    assert "Received: " in text


def test_sums_that_a_ball_holds_in_larger_units_are_fine() -> None:
    owner = ib.MaxNorm(1) & ib.SumTo(5)
    owner.check_room(Units.of([np.zeros((1, 64))], [(1,)]))
    assert owner.project(np.zeros((1, 64))).sum() == pytest.approx(5)
