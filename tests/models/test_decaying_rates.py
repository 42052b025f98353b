"""At every learning rate down to 0, what steps leave passes an audit: all kinds of sets at once."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import inbounds as ib
import repetition

SIZE, UNITS = 120, 6
NORMAL = np.random.default_rng(1).standard_normal(SIZE)
MASK = np.random.default_rng(2).uniform(size=(SIZE, 1)) < 0.6
STEPS = 60 if repetition.everything else 12
HALVING = keras.optimizers.schedules.CosineDecay(1.0, STEPS, alpha=0.5)


def vectors():
    """Made in the test: to look for a common point takes some of them seconds."""
    return {
        "MaxNorm": ib.MaxNorm(0.4),
        "UnitNorm": ib.UnitNorm(),
        "MinMaxNorm": ib.MinMaxNorm(0.3, 0.31),
        "FrobeniusNorm": ib.FrobeniusNorm(0.9),
        "L1Ball": ib.L1Ball(1.5),
        "Simplex": ib.Simplex(0.7),
        "SumTo": ib.SumTo(0.3),
        "Halfspace": ib.Halfspace(NORMAL, -0.1),
        "Hyperplane": ib.Hyperplane(NORMAL, 0.2),
        "Box": ib.Box(-0.03, 0.1),
        "Monotone": ib.Monotone(),
        "Sparse": ib.Sparse(40),
        "Grid": ib.Grid(0.01),
        "centre": ib.MaxNorm(0.1, center="current"),
        "scaled": ib.MaxNorm(0.8).scaled(HALVING),
        "where": ib.L1Ball(1.0).where(MASK),
        "on": ib.MaxNorm(0.3).on(inputs=range(20)),
        "Joint": ib.Joint(ib.MaxNorm(0.4)),
        "Joint of sums": ib.Joint(ib.L1Ball(1.1)),
        "cone and ball": ib.NonNeg() & ib.MaxNorm(0.4),
        "cone and cross": ib.NonNeg() & ib.L1Ball(1.1),
        "box and sum": ib.Box(-0.05, 0.05) & ib.SumTo(0.3),
        "half-space and ball": ib.Halfspace(NORMAL, -0.1) & ib.MaxNorm(0.4),
        "cross and ball": ib.L1Ball(1.5) & ib.MaxNorm(0.3),
        "box and cross": ib.Box(-0.02, 0.03) & ib.L1Ball(1.1),
        "simplex and ball": ib.Simplex() & ib.MaxNorm(0.2),
        "order and ball": ib.Monotone() & ib.MaxNorm(0.4),
        "sphere and cone": ib.UnitNorm() & ib.NonNeg(),
    }


def matrices():
    return {
        "SpectralNorm": ib.SpectralNorm(0.5),
        "NuclearNorm": ib.NuclearNorm(1.0),
        "Orthogonal": ib.Orthogonal(),
        "LowRank": ib.LowRank(3),
        "Symmetric": ib.Symmetric(),
        "SkewSymmetric": ib.SkewSymmetric(),
        "PositiveSemidefinite": ib.PositiveSemidefinite(),
        "ZeroDiagonal": ib.ZeroDiagonal(),
        "DoublyStochastic": ib.DoublyStochastic(),
        "matrix and cone": ib.SpectralNorm(0.5) & ib.NonNeg(),
    }


@pytest.mark.repeats("policy")
@(pytest.mark.repetition if keras.backend.backend() != "torch" else pytest.mark.repeats())  # compiled for minutes
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("make", [vectors, matrices])
def test_weights_are_inside_at_every_rate(make, policy):
    sets = make()
    size, units = (SIZE, UNITS) if make is vectors else (12, 12)
    inputs = keras.Input((size,))
    layers = [keras.layers.Dense(units, dtype=policy) for _ in sets]
    model = keras.Model(inputs, keras.layers.Concatenate(dtype="float32")([layer(inputs) for layer in layers]))
    rules = zip(layers, sets.values(), strict=True)
    ib.constrain(model, {layer: one if isinstance(one, ib.Joint) else {"kernel": one} for layer, one in rules})
    assert ib.audit(model).ok, ib.audit(model)
    rate = keras.optimizers.schedules.CosineDecay(0.02, STEPS)  # and 0 from there on
    model.compile(keras.optimizers.Adam(rate, epsilon=1e-3 if policy == "float16" else 1e-7), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, size)), 3 * rng.standard_normal((64, units * len(sets)))
    for epochs in (STEPS // 12, STEPS // 2):  # of two steps
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
        assert ib.audit(model).ok, ib.audit(model)
