"""The audit finds what is outside, and only that; says what nothing would keep; and only reads."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from measure import norms, numbers, same_bits, slack, values_of

import inbounds as ib
from instead import run

pytestmark = pytest.mark.by_turns

EXACT = 1e-12  # what sums in float64 may differ by


def planted(layer, name, values):
    """Sets entries of one weight, and returns the first number as float32 has it."""
    variable = getattr(layer, name)
    value = np.array(keras.ops.convert_to_numpy(variable.value))
    for index, number in values.items():
        value[index] = number
    variable.assign(value)
    return float(np.float32(next(iter(values.values()))))


def zeroed(layer):
    """The layer with all its weights at zero."""
    for variable in layer.weights:
        variable.assign(np.zeros(tuple(variable.shape), "float32"))
    return layer


def model_of(*layers, shape=(64,)):
    """A functional model of these layers, all weights at zero."""
    inputs = outputs = keras.Input(shape)
    for layer in layers:
        outputs = layer(outputs)
        zeroed(layer)
    return keras.Model(inputs, outputs)


def rows(report):
    """The rows that aren't free, by their first path."""
    return {row.paths[0]: row for row in report.rows if row.status != "free"}


def bad(report):
    return {path: row for path, row in rows(report).items() if row.status != "holds"}


# What is outside.


def test_a_planted_violation_is_found_with_its_weight_unit_and_distance_and_nothing_else():
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), bias_constraint=ib.NonNeg(), name="hidden"),
        keras.layers.Dense(10, kernel_constraint=ib.MaxNorm(1.0), bias_constraint=ib.NonNeg(), name="out"),
    )
    ib.constrain(model)
    assert ib.audit(model).ok
    size = planted(model.get_layer("out"), "kernel", {(3, 7): 1.25})
    report = ib.audit(model)
    assert not report.ok
    assert list(bad(report)) == ["out/kernel"]
    row = bad(report)["out/kernel"]
    assert (row.status, row.units, row.violated, row.worst_unit) == ("violated", 10, 1, (7,))
    assert abs(row.violation - (size - 1.0)) < EXACT
    assert report.violation == row.violation


def test_the_worst_of_several_is_named_and_all_are_counted():
    model = model_of(keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), name="hidden"))
    ib.constrain(model)
    planted(model.layers[-1], "kernel", {(0, 2): 1.5, (1, 2): 2.0, (0, 5): 2.25, (9, 9): 1.0, (3, 3): 0.5})
    row = bad(ib.audit(model))["hidden/kernel"]
    assert (row.violated, row.worst_unit) == (2, (2,))
    assert abs(row.violation - (2.5 - 1.0)) < EXACT
    assert row.active == 1 / 12


def capped(w):
    return keras.ops.minimum(w, 0.5)


SETS = {
    "NonNeg": (ib.NonNeg(), -0.375, 0.375),
    "NonPos": (ib.NonPos(), 0.25, 0.25),
    "Box": (ib.Box(-0.5, 0.5), 0.75, 0.25),
    "Fixed": (ib.Fixed(0.0), 0.125, 0.125),
    "MaxNorm": (ib.MaxNorm(1.0), -1.5, 0.5),
    "FrobeniusNorm": (ib.FrobeniusNorm(1.0), 1.75, 0.75),
    "Custom": (ib.Custom(capped), 0.75, 0.25),
    "a callable": (capped, 0.75, 0.25),
}


@pytest.mark.parametrize("name", list(SETS))
def test_each_set_reports_how_far_the_weight_is_from_its_bound(name):
    constraint, plant, distance = SETS[name]
    model = model_of(keras.layers.Dense(12, kernel_constraint=constraint, name="hidden"))
    assert ib.audit(model).ok
    planted(model.layers[-1], "kernel", {(3, 7): plant})
    row = bad(ib.audit(model))["hidden/kernel"]
    assert abs(row.violation - distance) < EXACT
    assert row.violated == 1
    assert getattr(constraint, "__name__", type(constraint).__name__) in row.set


@pytest.mark.parametrize("constraint", [ib.UnitNorm(), ib.MinMaxNorm(1.0, 2.0)], ids=["UnitNorm", "MinMaxNorm"])
def test_units_that_are_too_small_are_outside_too(constraint):
    model = model_of(keras.layers.Dense(3, kernel_constraint=constraint, name="hidden"))
    model.layers[-1].kernel.assign(np.float32(np.eye(64, 3)))
    assert ib.audit(model).ok
    planted(model.layers[-1], "kernel", {(1, 1): 0.75})
    row = bad(ib.audit(model))["hidden/kernel"]
    assert (row.violated, row.worst_unit) == (1, (1,))
    assert abs(row.violation - 0.25) < EXACT


LAYERS = {
    "Conv2D": (lambda **k: keras.layers.Conv2D(4, 3, **k), (8, 8, 2), "kernel", (1, 2, 0, 3), 4, (3,)),
    "Conv2DTranspose": (
        lambda **k: keras.layers.Conv2DTranspose(4, 3, **k),
        (8, 8, 2),
        "kernel",
        (1, 2, 3, 0),
        4,
        (3,),
    ),
    "Embedding": (
        lambda kernel_constraint: keras.layers.Embedding(6, 3, embeddings_constraint=kernel_constraint),
        (8,),
        "embeddings",
        (4, 1),
        6,
        (4,),
    ),
    "EinsumDense": (
        lambda **k: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), **k),
        (5, 4),
        "kernel",
        (3, 1, 2),
        6,
        (1, 2),
    ),
    "DepthwiseConv2D": (
        lambda kernel_constraint: keras.layers.DepthwiseConv2D(
            3, depth_multiplier=2, depthwise_constraint=kernel_constraint
        ),
        (8, 8, 2),
        "kernel",
        (1, 2, 1, 0),
        4,
        (1, 0),
    ),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_unit_is_named_in_the_axes_that_count_the_units_of_the_layer(name):
    make, shape, weight, index, units, unit = LAYERS[name]
    model = model_of(make(kernel_constraint=ib.MaxNorm(1.0)), shape=shape)
    planted(model.layers[-1], weight, {index: 1.5})
    (row,) = bad(ib.audit(model)).values()
    assert (row.units, row.violated, row.worst_unit, row.violation) == (units, 1, unit, 0.5)


def test_a_joint_is_one_row_with_both_weights():
    joint = ib.Joint(ib.MaxNorm(1.0))
    model = model_of(keras.layers.Dense(10, kernel_constraint=joint, bias_constraint=joint, name="out"))
    planted(model.layers[-1], "kernel", {(3, 7): 0.75})
    assert ib.audit(model).ok
    planted(model.layers[-1], "bias", {7: 1.0})
    row = bad(ib.audit(model))["out/kernel"]
    assert row.paths == ("out/kernel", "out/bias")
    assert (row.violated, row.worst_unit) == (1, (7,))
    assert abs(row.violation - 0.25) < EXACT


@pytest.mark.parametrize("owner", [ib.Sparse(2), ib.UnitNorm(), ib.LowRank(2), ib.Orthogonal()])
def test_every_unit_of_a_set_without_an_interior_is_on_its_boundary(owner):
    model = model_of(keras.layers.Dense(10, name="out"))
    ib.constrain(model, {"out/kernel": owner})
    assert rows(ib.audit(model))["out/kernel"].active == 1.0


def test_what_is_within_rounding_of_the_bound_holds_and_the_tolerance_is_shown():
    model = model_of(keras.layers.Dense(10, kernel_constraint=ib.MaxNorm(1.0), name="out"))
    planted(model.layers[-1], "kernel", {(3, 7): 1.0 + 0.5 * slack(1.0)})
    row = rows(ib.audit(model))["out/kernel"]
    assert (row.status, row.active) == ("holds", 0.1)
    assert 0.5 * slack(1.0) < row.tolerance <= slack(1.0, model.layers[-1].kernel.shape[0])
    planted(model.layers[-1], "kernel", {(3, 7): 1.0 + 1.5 * slack(1.0)})
    assert rows(ib.audit(model))["out/kernel"].status == "violated"


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "constraint",
    [ib.MaxNorm(1.0), ib.NonNeg(), ib.FrobeniusNorm(1.0), ib.Custom(keras.ops.abs), keras.constraints.MaxNorm(1.0)],
    ids=["MaxNorm", "NonNeg", "FrobeniusNorm", "Custom", "of Keras"],
)
def test_nan_and_infinities_count_as_violated(constraint, broken):
    model = model_of(keras.layers.Dense(10, kernel_constraint=constraint, name="out"))
    planted(model.layers[-1], "kernel", {(3, 7): broken})
    row = bad(ib.audit(model))["out/kernel"]
    assert row.violation == np.inf
    assert row.violated == 1


def test_half_precision_is_measured_in_its_own_rounding():
    layer = keras.layers.Dense(4, kernel_constraint=ib.MaxNorm(1.0), dtype="bfloat16", name="out")
    model = model_of(layer, shape=(3,))
    layer.kernel.assign(keras.ops.cast(np.eye(3, 4), "bfloat16"))
    assert ib.audit(model).ok
    layer.kernel.assign(keras.ops.cast(np.eye(3, 4) * 1.0625, "bfloat16"))
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.violated, row.violation) == (3, 0.0625)
    assert 2 * 2.0**-7 <= row.tolerance < 2.0001 * 2.0**-7


# Constraints that aren't sets of inbounds.


def test_constraints_of_keras_are_audited_as_what_they_mean():
    theirs = keras.constraints
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=theirs.MaxNorm(1.0), bias_constraint=theirs.NonNeg(), name="hidden"),
        keras.layers.Dense(10, kernel_constraint=theirs.MinMaxNorm(0.0, 1.0), name="out"),
    )
    assert ib.audit(model).ok
    planted(model.get_layer("hidden"), "kernel", {(3, 7): 1.5})
    planted(model.get_layer("hidden"), "bias", {4: -0.25})
    planted(model.get_layer("out"), "kernel", {(0, 1): 1.25})
    found = {path: (row.worst_unit, row.violation) for path, row in bad(ib.audit(model)).items()}
    assert found == {"hidden/kernel": ((7,), 0.5), "hidden/bias": ((4,), 0.25), "out/kernel": ((1,), 0.25)}
    assert "keras MaxNorm(max_value=1.0, axis=0)" in str(ib.audit(model))


def typed(text, model, rules=None):
    """Runs the last line that a text tells to type."""
    (line,) = re.findall(r"(?:Instead|instead): (inbounds\.\w+\(.*?\))(?:, or|\.)(?:\s|$)", text)[-1:]
    exec(line, {"inbounds": ib, "model": model, "rules": rules, "keras": keras})


def of_keras(constraint, value=0.45):
    """A model whose convolution has a constraint of Keras, and all entries of its kernel equal."""
    layer = keras.layers.Conv2D(4, 3, kernel_constraint=constraint, name="conv")
    model = model_of(layer, keras.layers.Conv2D(2, 1, name="other"), shape=(8, 8, 3))
    layer.kernel.assign(np.full((3, 3, 3, 4), value, "float32"))
    return model


MISALIGNED = {
    "MaxNorm": (keras.constraints.MaxNorm(1.5), 0.45, "2.34", ib.MaxNorm(1.5)),
    "UnitNorm": (keras.constraints.UnitNorm(axis=1), 1 / 3**0.5, "3", ib.UnitNorm()),
    "MinMaxNorm": (keras.constraints.MinMaxNorm(0.5, 1.0, axis=[0, 1]), 0.2, "1.04", ib.MinMaxNorm(0.5, 1.0)),
}


@pytest.mark.parametrize("name", list(MISALIGNED))
def test_an_axis_of_keras_that_is_not_the_fan_in_is_misaligned_where_filters_are_outside(name):
    constraint, value, norm, meant = MISALIGNED[name]
    model = of_keras(constraint, value)
    report = ib.audit(model)
    row = bad(report)["conv/kernel"]
    assert (row.status, row.violated, row.worst_unit) == ("misaligned", 0, None)
    assert "is not the layer's fan-in (0, 1, 2): of its 4 units 4 are outside" in row.note
    assert f"with a norm of {norm};" in row.note
    assert f"inbounds.{meant!r}" in row.note
    assert "1 misaligned" in str(report).splitlines()[0]
    with pytest.raises(ib.ConstraintViolation, match="conv/kernel is misaligned") as caught:
        ib.check(model)
    typed(str(caught.value).splitlines()[0], model)
    assert ib.check(model).rows[0].set == repr(meant)


def test_an_axis_of_keras_is_accepted_by_any_selector_that_a_rule_takes():
    model = of_keras(keras.constraints.MaxNorm(1.5))
    conv = model.get_layer("conv")
    selectors = ["conv/kernel", "conv/*", "conv", "Conv2D", conv, keras.layers.Conv2D, [conv.kernel]]
    for accept in [*selectors, lambda layer, variable: variable is conv.kernel, ["other/kernel", conv]]:
        assert ib.audit(model, accept=accept).ok, accept
        assert ib.check(model, accept=accept).rows[0].status == "holds"
    assert not ib.audit(model, accept="other/kernel").ok
    ib.constrain(model, {"conv/kernel": keras.constraints.MaxNorm(1.5)})
    assert ib.audit(model).ok, "a rule says that it is meant so"


@pytest.mark.parametrize(
    "accept", ["con/kernel", keras.layers.Dense, keras.layers.Dense(1), lambda layer, variable: False, ["conv", "con"]]
)
def test_what_is_accepted_is_in_the_model(accept):
    with pytest.raises(ib.RuleError, match=r"No weight matches .*conv/kernel"):
        ib.audit(of_keras(keras.constraints.MaxNorm(1.5)), accept=accept)


def test_an_axis_of_ours_is_meant_so_and_one_along_which_filters_hold_too_is_no_fault():
    assert ib.audit(of_keras(ib.MaxNorm(1.5, axis=0))).ok
    report = ib.audit(of_keras(keras.constraints.MaxNorm(1.5), 0.1))
    assert report.ok
    assert "of its 4 units 0 are outside" in report.rows[0].note


@pytest.mark.parametrize("constraint", [ib.MaxNorm(1.0), ib.MaxNorm(1.0, axis=0), keras.constraints.MaxNorm(1.0)])
def test_an_axis_that_is_the_fan_in_is_not_remarked_on(constraint):
    model = model_of(keras.layers.Dense(10, kernel_constraint=constraint, name="out"))
    assert "fan-in" not in str(ib.audit(model))


# What the layer computes with is not what it stores.


def einsum(equation, output_shape, inputs, back=lambda out: out):
    layer = keras.layers.EinsumDense(equation, output_shape, name="probed")
    return layer, "kernel", np.float32(inputs), lambda: back(numbers(layer(np.float32(inputs))))


def embedding(reverse=False, **arguments):
    made = keras.layers.ReversibleEmbedding if arguments else keras.layers.Embedding
    layer = made(6, 5, name="probed", **arguments)
    tokens = np.arange(6)

    def read():
        return numbers(layer(np.eye(5, dtype="float32"), reverse=True) if reverse else layer(tokens))

    return layer, "reverse_embeddings" if reverse else "embeddings", tokens, read


def dense():
    layer = keras.layers.Dense(3, name="probed")
    return layer, "kernel", np.eye(5, dtype="float32"), lambda: numbers(layer(np.eye(5, dtype="float32")))


def convolution():
    layer = keras.layers.Conv2D(3, 2, name="probed")
    taps = np.eye(20, dtype="float32").reshape(20, 2, 2, 5)
    return layer, "kernel", taps, lambda: numbers(layer(taps)).reshape(2, 2, 5, 3)


# a layer, its weight, what it is built on, and the weight as its outputs on unit vectors show it
PROBES = {
    "Dense": dense,
    "abc,cde->abde": lambda: einsum("abc,cde->abde", (None, 2, 3), np.eye(5)[None], lambda out: out[0]),
    "abc,bcd->ad": lambda: einsum("abc,bcd->ad", 3, np.eye(8).reshape(8, 2, 4), lambda out: out.reshape(2, 4, 3)),
    "abc,dc->abd": lambda: einsum("abc,dc->abd", (None, 3), np.eye(5)[None], lambda out: out[0].T),
    "abc,bcd->abd": lambda: einsum(
        "abc,bcd->abd", (2, 3), np.repeat(np.eye(5)[:, None], 2, axis=1), lambda out: out.transpose(1, 0, 2)
    ),
    "Embedding": embedding,
    "ReversibleEmbedding, forwards": lambda: embedding(tie_weights=False),
    "ReversibleEmbedding, backwards": lambda: embedding(reverse=True, tie_weights=False),
    "Conv2D": convolution,
}


def int8(layer):
    layer.quantize("int8", config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))


def int4(block_size):
    def quantize(layer):
        config = keras.quantizers.Int4QuantizationConfig(activation_quantizer=None, block_size=block_size)
        layer.quantize("int4", config=config)

    return quantize


def lora(layer):
    layer.enable_lora(2, lora_alpha=3.0)
    for weight in layer.weights:
        if "lora" in weight.name:
            weight.assign(np.random.default_rng(1).normal(0, 0.5, tuple(weight.shape)).astype("float32"))


WAYS = {
    "int8": [int8],
    "int4": [int4(-1)],
    "int4 in blocks": [int4(2)],
    "LoRA": [lora],
    "int4 and LoRA": [int4(2), lora],
}


def ways(name):
    """What Keras can do to a layer.

    It quantizes no convolution, and adapts an embedding's forward weight only.
    """
    if name == "Conv2D":
        return ["LoRA"]
    unable = {"abc,dc->abd": ["int4 and LoRA"], "ReversibleEmbedding, backwards": ["LoRA", "int4 and LoRA"]}
    return [way for way in WAYS if way not in unable.get(name, [])]


def every_way_with_a_probe():
    """A usual run has each way, and each layer, once."""
    pairs = [(name, way) for name in PROBES for way in ways(name)]
    firsts = {key: pair for pair in reversed(pairs) for key in pair}.values()
    return [pytest.param(*pair, marks=[] if pair in firsts else pytest.mark.repetition) for pair in pairs]


@pytest.mark.parametrize(("name", "way"), every_way_with_a_probe())
def test_the_weight_that_is_measured_is_the_one_that_the_layers_outputs_show(name, way, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # Keras does so when it quantizes; here it takes most of the time
    layer, weight, inputs, shown = PROBES[name]()
    layer(inputs)
    stored = shown()
    for change in WAYS[way]:
        change(layer)
    used = shown()
    assert np.abs(used - stored).max() > 1e-5, "it is another"
    report = ib.audit(layer, {f"**/{weight}": lambda w: keras.ops.convert_to_tensor(used.astype("float32"))})
    (row,) = rows(report).values()
    assert row.violation < 2e-6


def quantized(mode, constraint, kernel, **rest):
    """A constrained dense layer of 3 units with this kernel, quantized."""
    model = model_of(keras.layers.Dense(3, name="out", **rest), shape=(4,))
    selector = model.get_layer("out") if isinstance(constraint, ib.Joint) else "out/kernel"
    ib.constrain(model, {selector: constraint})
    model.get_layer("out").kernel.assign(np.float32(kernel))
    assert ib.audit(model).ok
    model.get_layer("out").quantize(mode)
    return model


UNEVEN = np.array([[0.2424, 0.0, 0.1], [1.0, 0.0, 0.1], [0.0, 0.5, 0.1], [0.0, 0.0, 0.1]])
UNEVEN[:, 0] /= np.linalg.norm(UNEVEN[:, 0])
"""Units of norms 1, 0.5 and 0.2. What 0.2424 of the largest becomes is rounded up in all modes."""


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_kernel_that_rounding_to_integers_took_outside_is_violated_by_as_much(mode):
    model = quantized(mode, ib.MaxNorm(1.0), UNEVEN)
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.units, row.violated, row.worst_unit) == ("violated", 3, 1, (0,))
    shown = norms(
        (model.get_layer("out")(np.eye(4, dtype="float32")), (0,))
    )  # its inputs are rounded too, but for 0 and 1
    assert row.violation > 1e-5
    assert abs(row.violation - (shown.max() - 1.0)) < 2e-6
    assert f"kernel is quantized to {mode}" in row.note
    assert "measured is what the integers stand for" in row.note


def test_a_quantized_kernel_that_is_inside_holds_since_no_step_moves_it():
    report = ib.audit(quantized("int8", ib.MaxNorm(1.5), UNEVEN))
    assert report.ok
    row = rows(report)["out/kernel"]
    assert (row.status, row.units, row.violated) == ("holds", 3, 0)
    assert "no step moves it" in row.note


def test_signs_and_zeros_survive_int8():
    assert ib.audit(quantized("int8", ib.NonNeg(), UNEVEN)).ok
    assert ib.audit(quantized("int8", ib.Sparse(2), UNEVEN * (UNEVEN != 0.1))).ok


def test_a_constraint_of_keras_on_a_quantized_kernel_is_measured_too():
    layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.9), name="out")
    model = model_of(layer, shape=(4,))
    layer.kernel.assign(np.float32(UNEVEN))
    layer.quantize("int8")
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.violated, row.worst_unit) == ("violated", 1, (0,))
    assert abs(row.violation - 0.1) < 0.01


def test_a_joint_over_a_quantized_kernel_is_unenforced_while_its_bias_trains():
    model = quantized("int8", ib.Joint(ib.MaxNorm(1.5)), UNEVEN)
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.paths) == ("unenforced", ("out/kernel", "out/bias"))
    assert "nothing keeps the units inside while bias trains" in row.note
    model.trainable = False
    assert ib.audit(model).ok
    planted(model.get_layer("out"), "bias", {1: 2.0})
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.worst_unit) == ("violated", (1,))


@pytest.mark.parametrize("rule", [ib.MaxNorm(1.5), ib.Joint(ib.MaxNorm(1.5))], ids=["kernel", "joint"])
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_model_is_loaded_and_audited_as_it_was(mode, rule, tmp_path):
    model = quantized(mode, rule, UNEVEN)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert ib.audit(again).to_dict()["rows"] == ib.audit(model).to_dict()["rows"]
    assert rows(ib.audit(again))["out/kernel"].violation == 0.0


def test_training_the_bias_of_a_quantized_joint_is_an_error_where_nothing_can_hold_it(tmp_path):
    model = quantized("int8", ib.Joint(ib.MaxNorm(1.5)), UNEVEN)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ib.RuleError, match=r"is quantized.*Received: .*out/kernel\..*release"):
        ib.constrain(again)
    again.compile("adam", "mse")
    with pytest.raises(ib.SetError, match="A Joint can't be applied to one weight"):
        again.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    again = keras.models.load_model(tmp_path / "model.keras")
    again.compile("adam", "mse")
    ib.release(again)
    again.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    assert not rows(ib.audit(again))


def test_float8_leaves_the_kernel_to_train_inside_its_set_and_the_scales_alone(digits):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax", name="out")])
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.3)})
    model.quantize("float8", filters="out")
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    scale = model.layers[0].inputs_amax_history
    before = numbers(model.layers[0].kernel)
    model.fit(digits[0][:64], digits[1][:64], verbose=0)
    assert np.any(numbers(model.layers[0].kernel) != before)
    assert np.any(numbers(scale) != 0), "Keras overwrites it"
    report = ib.audit(model)
    assert report.ok
    (row,) = rows(report).values()
    assert row.active > 0.5
    with pytest.raises(ib.RuleError, match=r"the layer writes it itself.*inputs_scale") as caught:
        ib.constrain(model, {"**/inputs_scale": ib.NonNeg()})
    (rules,) = run(str(caught.value).split("Instead: ")[1])
    with pytest.warns(ib.PlanNotSavedWarning):
        plan = ib.constrain(model, rules)
    assert [entry.set for entry in plan.entries] == [ib.NonNeg()] * 2, "of the kernel and the bias"


# Adapters.


def test_a_kernel_under_lora_is_unenforced_and_its_sum_is_measured():
    layer = keras.layers.Dense(3, name="out")
    model = model_of(layer, shape=(4,))
    ib.constrain(model, {"out/bias": ib.NonNeg()})
    layer.kernel.constraint = ib.MaxNorm(1.0)
    layer.enable_lora(2, lora_alpha=4.0)
    layer.lora_kernel_a.assign(np.float32([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.25]]))
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.violated, row.units) == ("unenforced", 0, 3)
    assert "LoRA" in row.note
    layer.lora_kernel_b.assign(np.float32([[0.25, 1.25, 0.0], [0.0, 0.0, 0.0]]))
    row = bad(ib.audit(model))["out/kernel"]
    assert (row.status, row.violated, row.worst_unit, row.violation) == ("violated", 1, (1,), 0.25)
    assert "kernel + 2 A @ B" in row.note
    assert "doesn't hold" in row.note


def test_lora_on_a_quantized_kernel_is_unenforced():
    model = quantized("int8", ib.MaxNorm(1.5), UNEVEN)
    layer = model.get_layer("out")
    layer.kernel_constraint = None  # else Keras refuses
    layer.enable_lora(2)
    layer.kernel_constraint = ib.MaxNorm(1.5)
    row = bad(ib.audit(model))["out/kernel"]
    assert row.status == "unenforced"
    assert "nothing keeps the units inside while the adapter trains" in row.note


ADAPTED = {
    "Dense": (lambda: keras.layers.Dense(3, name="adapted"), (4,), "kernel"),
    "EinsumDense": (
        lambda: keras.layers.EinsumDense("ab,bc->ac", 3, bias_axes="c", name="adapted"),
        (4,),
        "kernel",
    ),
    "Conv1D": (lambda: keras.layers.Conv1D(3, 2, name="adapted"), (5, 4), "kernel"),
    "Embedding": (lambda: keras.layers.Embedding(6, 3, name="adapted"), (4,), "embeddings"),
}


@pytest.mark.parametrize("name", list(ADAPTED))
def test_keras_refuses_to_adapt_a_weight_that_has_a_set(name):
    """It asks whether the layer's constraint is true, which no set is."""
    make, shape, weight = ADAPTED[name]
    model = model_of(make(), shape=shape)
    ib.constrain(model, {f"adapted/{weight}": ib.NonNeg()})
    with pytest.raises(ValueError, match=r"neither true nor false.*`enable_lora` of Keras"):
        model.get_layer("adapted").enable_lora(1)
    ib.release(model)
    model.get_layer("adapted").enable_lora(1)


@pytest.mark.parametrize("name", list(ADAPTED))
def test_a_set_on_an_adapted_weight_is_an_error_but_the_others_of_the_model_are_held(name, digits):
    make, shape, weight = ADAPTED[name]
    layer = make()
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="out")(x))
    layer.enable_lora(2)
    with pytest.raises(ib.RuleError, match=rf"LoRA.*adapted/{weight} .*Instead: merge the adapter"):
        ib.constrain(model, {f"**/{weight}": ib.NonNeg()})
    ib.constrain(
        model, {"out/kernel": ib.MaxNorm(0.3), "adapted/bias" if weight == "kernel" else "out/bias": ib.NonPos()}
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    before = numbers(getattr(layer, f"lora_{weight}_b"))
    data = np.abs(digits[0][:32].reshape(32, -1)[:, : int(np.prod(shape))]).reshape(32, *shape)
    model.fit(np.round(5 * data) if name == "Embedding" else data, digits[1][:32], verbose=0, epochs=2)
    assert np.any(numbers(getattr(layer, f"lora_{weight}_b")) != before), "the adapter trains"
    report = ib.audit(model)
    assert report.ok
    assert rows(report)["out/kernel"].active > 0


def test_merging_an_adapter_by_saving_and_loading_gives_the_sum_that_was_measured(tmp_path):
    layer = keras.layers.Dense(3, name="out")
    model = model_of(layer, shape=(4,))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones((2, 3), "float32"))
    rule = {"out/kernel": ib.MaxNorm(0.5)}
    apart = bad(ib.audit(model, rule))["out/kernel"]
    model.save_weights(tmp_path / "merged.weights.h5")
    merged = model_of(keras.layers.Dense(3, name="out"), shape=(4,))
    merged.load_weights(tmp_path / "merged.weights.h5")
    whole = bad(ib.audit(merged, rule))["out/kernel"]
    assert abs(apart.violation - whole.violation) < 1e-6
    assert apart.violation > 0.1
    ib.constrain(merged, rule)
    assert ib.audit(merged).ok


def test_frozen_weights_that_are_inside_hold_and_those_outside_are_violated():
    model = model_of(keras.layers.Dense(10, kernel_constraint=ib.MaxNorm(1.0), name="out"))
    model.trainable = False
    assert ib.audit(model).ok
    planted(model.layers[-1], "kernel", {(3, 7): 1.5})
    assert bad(ib.audit(model))["out/kernel"].status == "violated"


def test_weights_without_a_set_are_free_and_listed():
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), name="hidden"), keras.layers.Dense(10, name="out")
    )
    report = ib.audit(model)
    assert [(row.paths, row.status) for row in report.rows] == [
        (("hidden/kernel",), "holds"),
        (("hidden/bias",), "free"),
        (("out/kernel",), "free"),
        (("out/bias",), "free"),
    ]
    assert report.ok


# Rules of its own.


def test_an_audit_with_rules_asks_about_these_only_and_needs_no_plan():
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), name="hidden"), keras.layers.Dense(10, name="out")
    )
    planted(model.get_layer("hidden"), "kernel", {(0, 0): 1.5})
    planted(model.get_layer("out"), "kernel", {(0, 0): 0.75})
    report = ib.audit(model, {"out/kernel": ib.MaxNorm(0.5)})
    assert {path: (row.status, row.violation) for path, row in rows(report).items()} == {
        "out/kernel": ("violated", 0.25)
    }
    assert ib.audit(model, {"out/kernel": ib.MaxNorm(1.0)}).ok
    joint = ib.audit(model, {keras.layers.Dense: ib.Joint(ib.MaxNorm(1.0))})
    assert {row.paths: row.status for row in joint.rows} == {
        ("hidden/kernel", "hidden/bias"): "violated",
        ("out/kernel", "out/bias"): "holds",
    }


def test_an_audit_with_a_bad_rule_is_an_error():
    model = model_of(keras.layers.Dense(12, name="hidden"))
    with pytest.raises(ib.RuleError, match="hidden/kernel"):
        ib.audit(model, {"hiden/kernel": ib.MaxNorm(1.0)})


# Reads only.


@pytest.mark.parametrize(
    "rules", [None, {"**/kernel": ib.UnitNorm(), "**/bias": keras.ops.abs}], ids=["declared", "rules"]
)
def test_an_audit_changes_no_bit_no_constraint_and_no_later_step(rules, digits):
    def made():
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(0.4), name="hidden"),
                keras.layers.Dense(10, kernel_constraint=keras.constraints.MaxNorm(0.4), activation="softmax"),
            ]
        )
        ib.constrain(model, {"hidden/kernel": ib.MaxNorm(0.4)})
        model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
        return model

    watched, alone = made(), made()
    for turn in range(2):
        for model in (watched, alone):
            model.fit(digits[0][:64], digits[1][:64], verbose=0, shuffle=False)
        before = values_of(watched)
        constraints = [weight.constraint for weight in watched.weights]
        step = watched.train_function
        ib.audit(watched, rules)
        assert same_bits(values_of(watched), before)
        assert all(a is b for a, b in zip([w.constraint for w in watched.weights], constraints, strict=True))
        assert watched.train_function is step
        assert same_bits(before, values_of(alone)), turn


def test_an_audit_does_not_believe_the_projections(monkeypatch):
    """With every projection broken, planted violations are still found, with the same numbers."""
    everything = [
        ib.MaxNorm,
        ib.UnitNorm,
        ib.MinMaxNorm,
        ib.FrobeniusNorm,
        ib.NonNeg,
        ib.NonPos,
        ib.Box,
        ib.Fixed,
        ib.Joint,
    ]

    def garbage(self, *arguments, **named):
        raise AssertionError("a projection was called")

    for owner in (ib.Set, *everything):
        for name in ("_project", "project", "__call__"):
            if name in {attribute for cls in owner.__mro__ for attribute in vars(cls)}:
                monkeypatch.setattr(owner, name, garbage)
    joint = ib.Joint(ib.MaxNorm(1.0))
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), bias_constraint=ib.Box(-1, 1), name="hidden"),
        keras.layers.Dense(10, kernel_constraint=joint, bias_constraint=joint, name="out"),
    )
    planted(model.get_layer("hidden"), "kernel", {(0, 0): 1.5})
    planted(model.get_layer("hidden"), "bias", {3: -1.25})
    planted(model.get_layer("out"), "kernel", {(0, 2): 1.75})
    found = {path: (row.worst_unit, row.violation) for path, row in bad(ib.audit(model)).items()}
    assert found == {"hidden/kernel": ((0,), 0.5), "hidden/bias": ((3,), 0.25), "out/kernel": ((2,), 0.75)}


# What it is given out as.


def mixed():
    model = model_of(
        keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), bias_constraint=keras.ops.abs, name="hidden"),
        keras.layers.Dense(10, kernel_constraint=ib.NonNeg(), name="out"),
    )
    planted(model.get_layer("hidden"), "kernel", {(3, 7): 1.5})
    planted(model.get_layer("out"), "kernel", {(0, 1): np.nan})
    return model


def test_the_printed_report_shows_weight_set_unit_distance_and_status():
    lines = str(ib.audit(mixed())).splitlines()
    (line,) = [line for line in lines if "hidden/kernel" in line]
    for part in ("MaxNorm(max_value=1.0)", " 12 ", " 1 ", "0.5", "7", "violated"):
        assert part in line
    (line,) = [line for line in lines if "out/kernel" in line]
    assert "inf" in line
    assert "2 violated" in lines[0]


def test_json_is_standard_json_with_every_row_and_field():
    report = ib.audit(mixed())

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(report.to_json(), parse_constant=refuse)
    assert (read["model"], read["ok"], read["violation"]) == (report.model, False, None)
    assert len(read["rows"]) == len(report.rows) == 4
    for row, data in zip(report.rows, read["rows"], strict=True):
        assert set(data) == {field.name for field in dataclasses.fields(row)}
        assert tuple(data["paths"]) == row.paths
        assert data["status"] == row.status
    assert read["rows"][0]["violation"] == 0.5
    assert [row["violation"] for row in read["rows"]] == [0.5, 0.0, None, 0.0]
    assert read["rows"][1]["active"] is None, "a callable has no boundary that is known"
    assert read["rows"][0]["worst_unit"] == [7]
    assert read["rows"][0]["excess"][7] == 0.5
    assert read["rows"][2]["excess"].count(None) == 1
    assert read["rules"] == {
        "Dense(kernel_constraint=...)": "MaxNorm(max_value=1.0), NonNeg()",
        "Dense(bias_constraint=...)": read["rows"][1]["set"],
    }
    assert read["provenance"]["backend"].split()[0] == keras.backend.backend()


def test_check_returns_the_report_when_all_holds_and_else_raises_with_it():
    model = model_of(keras.layers.Dense(12, kernel_constraint=ib.MaxNorm(1.0), name="hidden"))
    assert ib.check(model).ok
    planted(model.layers[-1], "kernel", {(3, 7): 1.5})
    with pytest.raises(
        ib.ConstraintViolation, match=r"MaxNorm\(max_value=1\.0\) on hidden/kernel.*1 of 12 units"
    ) as caught:
        ib.check(model)
    assert not caught.value.report.ok
    assert caught.value.report.violation == 0.5
    assert ib.check(model, {"hidden/kernel": ib.MaxNorm(2.0)}).ok


@pytest.mark.parametrize(
    "constraint",
    [ib.MaxNorm(1.0), ib.MaxNorm(1.0) & ib.Box(-9, 9), keras.constraints.MaxNorm(1.0)],
    ids=["ours", "several", "Keras"],
)
@pytest.mark.parametrize("late", [False, True], ids=["violated", "unenforced"])
def test_check_says_first_what_is_wrong_and_last_what_to_type(constraint, late):
    model = model_of(keras.layers.Dense(12, name="hidden", kernel_constraint=None if late else constraint))
    layer = model.get_layer("hidden")
    layer.kernel_constraint = constraint
    if not late:
        planted(layer, "kernel", {(3, 7): 1.5})
    status = "unenforced.*set after the layer was built" if late else "violated, 1 of 12 units by up to 0.5"
    with pytest.raises(ib.ConstraintViolation, match=rf"^(keras )?MaxNorm.* on hidden/kernel is {status}") as caught:
        ib.check(model)
    typed(str(caught.value).splitlines()[0], model)
    assert ib.check(model)


def test_check_of_rules_says_to_constrain_by_them_and_of_several_which_is_worst():
    rules = {"out/kernel": ib.MaxNorm(0.25), "out/bias": ib.Box(-1, 0.5)}
    model = model_of(keras.layers.Dense(10, name="out"))
    planted(model.layers[-1], "kernel", {(0, 0): 1.0})
    planted(model.layers[-1], "bias", {0: 1.0})
    with pytest.raises(ib.ConstraintViolation, match=r"on out/kernel is violated.*the worst of 2 that") as caught:
        ib.check(model, rules)
    typed(str(caught.value).splitlines()[0], model, rules)
    assert ib.check(model, rules)


def test_an_audit_of_nothing_is_not_ok_and_says_so():
    model = model_of(keras.layers.Dense(10, name="out"))
    report = ib.audit(model)
    assert not report.ok
    assert str(report).startswith("Audit of functional: nothing is constrained, 2 free\n")
    assert json.loads(report.to_json())["ok"] is False
    with pytest.raises(ib.ConstraintViolation, match=r"^Nothing is constrained: no weight of the model has") as caught:
        ib.check(model)
    assert caught.value.report.rows == report.rows
    typed(str(caught.value), model)
    assert ib.check(model)
    ib.release(model)
    assert not ib.audit(model).ok
