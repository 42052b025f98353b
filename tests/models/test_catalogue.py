"""The catalogue and its algebra in models: every kind of set trains, is audited, saved, loaded."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import inbounds as ib

pytestmark = pytest.mark.by_turns

IN, UNITS = 6, 5
MASK = np.random.default_rng(0).uniform(size=(IN, UNITS)) < 0.6

KERNELS = {
    "SumTo": ib.SumTo(0),
    "Sparse": ib.Sparse(2),
    "Grid": ib.Grid(0.125),
    "Orthogonal": ib.Orthogonal(),
    "Dykstra": ib.MaxNorm(0.5) & ib.MaxNorm(0.3).per("inputs"),
    "where": ib.L1Ball(0.3).where(MASK),
    "on": ib.NonNeg().on(inputs=[0, 3]),
    "center": ib.MaxNorm(0.01, center="current"),
    "per": ib.MaxNorm(0.3).per("inputs"),
    "Marginals": ib.Marginals(1.2, 1.0),
}
"""One of each kind. tests/models/test_decaying_rates.py trains all."""
JOINTS = {
    "L1Ball": ib.Joint(ib.L1Ball(1)),
    "Simplex": ib.Joint(ib.Simplex()),
    "SumTo": ib.Joint(ib.SumTo(1)),
    "& SumTo": ib.Joint(ib.Box(-1, 0.4) & ib.SumTo(0.5)),
    "where": ib.Joint(ib.L1Ball(0.5).where([True] * 3 + [False] * 3 + [True])),
    "on": ib.Joint(ib.L1Ball(0.5)).on(inputs=[1, 2]),
    "center": ib.Joint(ib.MaxNorm(0.01, center="current")),
}


def dense() -> keras.Model:
    model = keras.Sequential([keras.Input((IN,)), keras.layers.Dense(UNITS, name="one")])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


def trained(model: keras.Model, steps: int = 4) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16 * steps, *model.input_shape[1:]))
    y = rng.standard_normal((16 * steps, *model.output_shape[1:]))
    model.fit(x, y, batch_size=16, verbose=0)


def held(model: keras.Model) -> ib.Report:
    report = ib.audit(model)
    assert report.ok, report
    assert any(row.status == "holds" for row in report.rows)
    return report


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_trains_inside(name, tmp_path):
    model = dense()
    before = keras.ops.convert_to_numpy(model.layers[0].kernel)
    plan = ib.constrain(model, {"one/kernel": KERNELS[name]})
    held(model)
    trained(model)
    held(model)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(model.layers[0].kernel))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].kernel_constraint == plan.entries[0].set
    held(again)


@pytest.mark.parametrize("name", JOINTS)
def test_kernel_and_bias_train_inside_together(name, tmp_path):
    model = dense()
    ib.constrain(model, {keras.layers.Dense: JOINTS[name]})
    trained(model)
    held(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [row.paths for row in held(again).rows] == [("one/kernel", "one/bias")]
    if name == "center":
        trained(again)
        held(again)


@pytest.mark.repeats("name")
@pytest.mark.parametrize("name", ["L1Ball", "Simplex", "SumTo"])
def test_a_frozen_bias_takes_its_part(name):
    model = dense()
    model.layers[0].bias.assign(np.full(UNITS, 0.2))
    ib.constrain(model, {keras.layers.Dense: JOINTS[name]})
    bias = keras.ops.convert_to_numpy(model.layers[0].bias)
    model.layers[0].bias.trainable = False
    model.compile(keras.optimizers.Adam(0.05), "mse")
    ib.constrain(model, {keras.layers.Dense: JOINTS[name]})
    trained(model)
    held(model)
    assert np.array_equal(keras.ops.convert_to_numpy(model.layers[0].bias), bias)


def test_a_frozen_bias_is_refused_where_the_kernel_can_t_make_up_for_it():
    model = dense()
    model.layers[0].bias.trainable = False
    with pytest.raises(ib.RuleError, match="the others can't make up for it"):
        ib.constrain(model, {keras.layers.Dense: ib.Joint(ib.Monotone())})


# Inputs.


def norms(kernel, axes):
    return np.abs(kernel).sum(axis=axes)


INPUTS = {
    "Dense": (keras.layers.Dense(3), (5,), lambda k: norms(k[[0, 3]], 0)),
    "Conv1D": (keras.layers.Conv1D(3, 2), (7, 5), lambda k: norms(k[:, [0, 3]], (0, 1))),
    "Conv2D": (keras.layers.Conv2D(3, 2), (6, 6, 5), lambda k: norms(k[:, :, [0, 3]], (0, 1, 2))),
    "Conv3D": (keras.layers.Conv3D(3, 2), (4, 4, 4, 5), lambda k: norms(k[..., [0, 3], :], (0, 1, 2, 3))),
    "Conv2DTranspose": (keras.layers.Conv2DTranspose(3, 2), (4, 4, 5), lambda k: norms(k[..., [0, 3]], (0, 1, 3))),
    "DepthwiseConv2D": (keras.layers.DepthwiseConv2D(2), (4, 4, 5), lambda k: norms(k[..., [0, 3], :], (0, 1))),
    "EinsumDense": (keras.layers.EinsumDense("abc,cd->abd", (None, 3)), (2, 5), lambda k: norms(k[[0, 3]], 0)),
    "Embedding": (keras.layers.Embedding(5, 4), (3,), lambda k: norms(k[[0, 3]], 1)),
    "LSTM": (keras.layers.LSTM(3), (4, 5), lambda k: norms(k[[0, 3]], 0)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_on_holds_for_the_weights_of_some_inputs_and_leaves_the_others(name):
    layer, shape, measured = INPUTS[name]
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), layer])
    path = {"Embedding": "**/embeddings"}.get(name, "**/kernel")
    weight = next(w for w in model.weights if w.path.endswith(path[3:]))
    weight.assign(3 * np.random.default_rng(0).standard_normal(weight.shape))
    before = keras.ops.convert_to_numpy(weight)
    ib.constrain(model, {path: ib.L1Ball(0.5).on(inputs=[0, 3])})
    after = keras.ops.convert_to_numpy(weight)
    assert measured(before).min() > 0.5
    np.testing.assert_allclose(measured(after), 0.5, rtol=1e-5)
    held(model)
    changed = np.argwhere(before != after)
    outside = [axis for axis in range(before.ndim) if set(changed[:, axis]) <= {0, 3} and before.shape[axis] == 5]
    assert outside, "what changed is of inputs 0 and 3"


@pytest.mark.parametrize(
    ("layer", "shape", "path", "says"),
    [
        (keras.layers.Conv2D(4, 2, groups=2), (4, 4, 4), "**/kernel", "none that is known"),
        (keras.layers.Dense(3), (4,), "**/bias", "none that is known"),
        (keras.layers.Dense(3), (2,), "**/kernel", "below the number of inputs, 2"),
    ],
)
def test_inputs_that_a_weight_lacks_are_an_error(layer, shape, path, says):
    model = keras.Sequential([keras.Input(shape), type(layer).from_config(layer.get_config())])
    with pytest.raises(ib.RuleError, match=says):
        ib.constrain(model, {path: ib.NonNeg().on(inputs=[0, 3])})


# Centres.


def test_the_current_weights_become_the_centre_of_each_weight():
    model = keras.Sequential([keras.Input((IN,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    start = model.get_weights()
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.02, center="current")})
    trained(model)
    held(model)
    for before, after in list(zip(start, model.get_weights(), strict=True))[::2]:
        moved = np.linalg.norm(after - before, axis=0)
        assert moved.max() <= 0.02 * (1 + 1e-4)
        assert moved.max() > 0.01


def test_a_centre_that_is_not_there_yet_is_unenforced_and_named():
    given = ib.MaxNorm(0.1, center="current").in_training(gradient="full")
    layer = keras.layers.Dense(3, kernel_constraint=given)
    model = keras.Sequential([keras.Input((IN,)), layer])
    row = ib.audit(model).rows[0]
    assert row.status == "unenforced"
    assert "when the model is constrained" in row.note
    (entry,) = ib.constrain(model)
    assert entry.training.gradient == "full"
    held(model)


# Matrices.


def test_a_convolution_is_a_matrix_of_units_by_fan_in():
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 2)])
    ib.constrain(model, {"**/kernel": ib.SpectralNorm(0.3)})
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).reshape(-1, 4).T
    assert np.linalg.norm(kernel, 2) == pytest.approx(0.3, rel=1e-5)
    (row,) = [row for row in held(model).rows if row.status == "holds"]
    assert (row.units, row.active) == (1, 1.0)


def test_a_stack_has_a_matrix_for_each_gate_and_each_head():
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(5)])
    ib.constrain(model, {"**/recurrent_kernel": ib.Orthogonal(stack=4)})
    kernel = keras.ops.convert_to_numpy(model.layers[0].cell.recurrent_kernel)
    for gate in np.split(kernel, 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(5), atol=1e-5)
    x = keras.Input((4, 6))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 3)(x, x))
    with pytest.warns(ib.PlanNotSavedWarning):
        ib.constrain(model, {"**/query/kernel": ib.SpectralNorm(0.2, stack=2)})
    kernel = keras.ops.convert_to_numpy(next(w for w in model.weights if w.path.endswith("query/kernel")))
    for head in range(2):
        assert np.linalg.norm(kernel[:, head], 2) == pytest.approx(0.2, rel=1e-5)
    assert {row.units for row in held(model).rows if row.status == "holds"} == {2}


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        (ib.Symmetric(), "one/kernel", "square"),
        (ib.DoublyStochastic(), "one/kernel", "square"),
        (ib.SpectralNorm(1), "one/bias", "matrices"),
        (ib.SpectralNorm(1, stack=2), "one/kernel", "`stack` does not divide"),
        (ib.LowRank(9), "one/kernel", "rank"),
        (ib.Sparse(9), "one/kernel", "k"),
        (ib.Halfspace([1, 2], 3), "one/kernel", "one entry for each of a unit's"),
        (ib.Box(-1, 1) & ib.SumTo(9), "one/kernel", "no point in common"),
        (ib.NonNeg().where(np.ones((2, 2), bool)), "one/kernel", "a shape that broadcasts to it"),
    ],
    ids=repr,
)
def test_a_weight_that_a_set_can_t_apply_to_is_named_with_its_shape(given, path, says):
    model = dense()
    before = model.get_weights()
    with pytest.raises(ib.RuleError, match=says) as caught:
        ib.constrain(model, {path: given})
    assert path in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
