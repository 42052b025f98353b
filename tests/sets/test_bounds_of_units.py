"""Bounds that differ by unit: each unit is projected and judged as by a set with its own number."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import inbounds as ib
from sets.tensors import BACKEND, array, compiled, exact, same_bits

BOUNDS = np.array([0.5, 1.0, 2.0, 30.0])
NORMAL = [1.0, 2.0, -1.0, 0.0, 1.0, 1.0]
MAKERS = {
    "MaxNorm": ib.MaxNorm,
    "MaxNorm-centre": lambda bound: ib.MaxNorm(bound, center=0.3),
    "MinMaxNorm": lambda bound: ib.MinMaxNorm(0.5 * bound, bound),
    "MinMaxNorm-sphere": lambda bound: ib.MinMaxNorm(bound, bound),
    "MinMaxNorm-below": lambda bound: ib.MinMaxNorm(bound, np.inf),
    "L1Ball": ib.L1Ball,
    "Simplex": ib.Simplex,
    "SumTo": ib.SumTo,
    "Halfspace": lambda bound: ib.Halfspace(NORMAL, bound),
    "Hyperplane": lambda bound: ib.Hyperplane(NORMAL, bound),
    "NonNeg & MaxNorm": lambda bound: ib.NonNeg() & ib.MaxNorm(bound),
    "Box & SumTo": lambda bound: ib.Box(-2, 40) & ib.SumTo(bound),
    "L1Ball & MaxNorm": lambda bound: ib.L1Ball(1.5 * bound) & ib.MaxNorm(bound),
    "scaled": lambda bound: ib.L1Ball(bound).scaled(lambda step: 0.5),
    "where": lambda bound: ib.MaxNorm(bound).where([True, True, False, True, True, True]),
}


@pytest.mark.once
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_each_unit_is_held_by_its_own(make: Any) -> None:
    rng = np.random.default_rng(0)
    rows, metric = 3 * rng.standard_normal((4, 6)), np.exp(rng.standard_normal((4, 6)))
    together = make(BOUNDS)
    for weights in (None, metric):
        projected = together.project(rows, weights)
        for i, bound in enumerate(BOUNDS.tolist()):
            alone = make(bound).project(rows[i : i + 1], None if weights is None else weights[i : i + 1])
            np.testing.assert_allclose(projected[i : i + 1], alone, atol=1e-9)
        assert not together.measure([projected], [(1,)]).outside.any()
        assert same_bits(together.project(projected), projected)
    alone = [make(bound).violation(rows[i : i + 1])[0] for i, bound in enumerate(BOUNDS.tolist())]
    np.testing.assert_allclose(together.violation(rows), alone, atol=1e-12)


def test_a_model_trains_inside_them_and_the_file_has_them(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    inner = keras.layers.Conv2D(3, 2, activation="relu", name="conv")
    model = keras.Sequential([keras.Input((5, 5, 2)), inner, keras.layers.Flatten(), keras.layers.Dense(2, name="out")])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    radii = np.array([0.1, 0.2, 0.4])
    rules = {"conv/kernel": ib.MaxNorm(radii), model.layers[-1]: ib.Joint(ib.L1Ball([0.3, 5.0]))}
    plan = ib.constrain(model, rules)
    assert "MaxNorm(max_value=[0.1, 0.2, 0.4])" in str(plan)
    model.fit(rng.standard_normal((64, 5, 5, 2)), rng.standard_normal((64, 2)) + 3, epochs=2, verbose=0)
    assert ib.audit(model).ok
    norms = np.linalg.norm(exact(inner.kernel).reshape(-1, 3), axis=0)
    assert (norms <= radii * (1 + 1e-5)).all()
    assert np.isclose(norms, radii, rtol=1e-5).any()
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[0].kernel_constraint == ib.MaxNorm(radii)
    assert ib.audit(again).ok


@pytest.mark.by_turns
def test_another_number_of_units_is_an_error_before_anything_moves() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
    before = exact(model.layers[0].kernel)
    with pytest.raises(
        ib.RuleError, match=r"one number for each.* Received: shape=\(2,\).*array of shape \(4,\).*a/kernel"
    ):
        ib.constrain(model, {"**/kernel": ib.MaxNorm([0.1, 0.2])})
    assert same_bits(exact(model.layers[0].kernel), before)
    with pytest.raises(ib.SetError, match=r"`radius` of L1Ball is not above 0. Received: radius=\[1, 0\]"):
        ib.L1Ball([1, 0])


LONG = pytest.mark.repetition  # XLA takes ten seconds to compile it, and TensorFlow as long for the first: JAX does too
SCALED = [
    pytest.param(
        ib.L1Ball(BOUNDS) & ib.Box(-0.2, [0.3] * 6), id="radii, bounds", marks=[LONG] * (BACKEND == "tensorflow")
    ),
    pytest.param(ib.Box(-1, 1) & ib.Halfspace(NORMAL, 0.2) & ib.MaxNorm(1), id="bounds, half-space, ball", marks=LONG),
]


@pytest.mark.parametrize("owner", SCALED)
def test_a_compiled_step_computes_the_factor_of_all_bounds(owner: ib.Set) -> None:
    owner = owner.scaled(lambda step: 2.0 / (step + 1.0))
    rows = 3 * np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    given, step = array(rows, "float32", BACKEND), array(3.0, "float32", BACKEND)
    run = compiled if BACKEND != "torch" else lambda fn, x: fn(x)  # whose steps are not compiled
    found = run(lambda step: owner.at(step).project(given), step)
    np.testing.assert_allclose(exact(found), owner.at(3).project(rows.astype("float64")), atol=1e-5)


@keras.saving.register_keras_serializable("test")
class Below(ib.Set):
    """{w : w <= limit}, each unit with a limit of its own, from a list."""

    def __init__(self, limits: list[float]) -> None:
        self.limits = list(limits)

    def _project(self, units: Any) -> Any:
        return units.map(self.namespace(units.parts[0]).minimum, units.numbers(np.array(self.limits)))

    def _excess(self, rows: Any, unit_shape: Any) -> Any:
        return self.namespace(rows).max(rows - np.array(self.limits)[:, None], axis=1)


@pytest.mark.once
def test_a_large_weight_is_not_cut_where_a_list_has_a_number_for_each_unit() -> None:
    weight, limits = np.ones((1100, 1000), "float32"), np.linspace(0.5, 2, 1000)
    found = Below(list(limits)).measure([weight], [(0,)])
    np.testing.assert_allclose(found.excess, 1 - limits)
    assert len(ib.MaxNorm(1.0).blocks([weight], [(0,)])) > 1


def test_a_normal_that_is_a_number_has_the_tolerance_of_equal_entries() -> None:
    rows = np.full((1, 100), 0.05, "float32")
    owners = ib.Hyperplane(2.0, 10.0), ib.Hyperplane(np.full(100, 2.0), 10.0)
    one, several = (owner.tolerance("float32", rows) for owner in owners)
    np.testing.assert_allclose(one, several)
