"""Precision: under every dtype policy of Keras a fit with Adam moves the weights and ends inside.

float32 is what all other tests run in.
"""

import keras
import numpy as np
import pytest
from measure import numbers

import inbounds as ib

pytestmark = pytest.mark.by_turns

BACKEND = keras.backend.backend()
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
WIDE = ("MaxNorm", "Simplex", "NonNeg & MaxNorm", "Joint")
"""The sets for float64 and mixed policies, whose weights are float32; others compile for long."""

CASES = [
    *((policy, "optimizer") for policy in ("bfloat16", "mixed_float16", "float64")),
    *(pytest.param(policy, "optimizer", marks=pytest.mark.repetition) for policy in ("float16", "mixed_bfloat16")),
    pytest.param("bfloat16", "euclidean", marks=pytest.mark.repetition),
]


def column_norms(kernel, bias):
    return np.linalg.norm(kernel, axis=0)


# a set, what it bounds with nothing of inbounds, and the bound
SETS = {
    "MaxNorm": (ib.MaxNorm(0.5), column_norms, 0.5),
    "L1Ball": (ib.L1Ball(1.5), lambda kernel, bias: np.abs(kernel).sum(axis=0), 1.5),
    "Simplex": (
        ib.Simplex(1.0),
        lambda kernel, bias: (
            np.maximum(kernel.sum(axis=0), 2.0 - kernel.sum(axis=0)) - np.minimum(kernel.min(axis=0), 0)
        ),
        1.0,
    ),
    "NonNeg & MaxNorm": (
        ib.NonNeg() & ib.MaxNorm(0.5),
        lambda kernel, bias: column_norms(kernel, bias) - np.minimum(kernel.min(axis=0), 0),
        0.5,
    ),
    "Joint": (ib.Joint(ib.MaxNorm(0.5)), lambda kernel, bias: np.sqrt((kernel**2).sum(axis=0) + bias**2), 0.5),
    "SpectralNorm": (ib.SpectralNorm(0.7), lambda kernel, bias: np.linalg.norm(kernel, 2), 0.7),
}


@pytest.mark.parametrize(("policy", "metric"), CASES)
def test_a_fit_in_any_precision_moves_the_weights_and_ends_inside(policy, metric, digits):
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 unless asked for by a setting of the whole process")
    keras.mixed_precision.set_global_policy(policy)
    names = list(SETS) if policy in ("float16", "bfloat16") else WIDE
    inputs = keras.Input((64,))
    layers = {name: keras.layers.Dense(10, activation="softmax", name=name.replace(" & ", "_")) for name in names}
    model = keras.Model(inputs, [layer(inputs) for layer in layers.values()])
    rules = [
        (layers[name], value) if isinstance(value, ib.Joint) else (layers[name].kernel.path, value)
        for name, (value, _, _) in SETS.items()
        if name in names
    ]
    ib.constrain(model, rules, metric=metric)
    assert ib.audit(model).ok
    before = [numbers(layer.kernel) for layer in layers.values()]
    # Keras keeps Adam's numbers in the weights' dtype. In bfloat16 a beta_2 of 0.999 is 1, and no
    # step is taken; in float16 squares of small gradients are 0, and with an epsilon of 1e-7 steps
    # are huge or NaN.
    model.compile(keras.optimizers.Adam(0.02, beta_2=0.98, epsilon=1e-4), "sparse_categorical_crossentropy")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    model.fit(digits[0][:96], [digits[1][:96]] * len(names), batch_size=32, shuffle=False, verbose=0)
    report = ib.audit(model)
    assert report.ok, str(report)
    stored = policy if policy in ULP else "float32"
    for start, (name, layer) in zip(before, layers.items(), strict=True):
        _, size, bound = SETS[name]
        assert keras.backend.standardize_dtype(layer.kernel.dtype) == stored
        kernel = numbers(layer.kernel)
        assert np.mean(kernel != start) > 0.2, f"{name} moves"
        assert np.all(np.isfinite(kernel))
        (row,) = [row for row in report.rows if row.paths[0] == layer.kernel.path]
        largest = np.max(size(kernel, numbers(layer.bias)))
        assert largest <= bound + row.tolerance
        assert row.tolerance <= 64 * bound * ULP[stored], "what is allowed is rounding"
        assert largest >= bound * (1 - 32 * ULP[stored]), f"{name} is at its bound"
