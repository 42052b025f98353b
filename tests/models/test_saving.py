"""Plans in files: a `.keras` file's plan is in force after loading; what it can't save is said."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from measure import inside, norms, numbers, on_bound, same_bits, values_of

import inbounds as ib

pytestmark = pytest.mark.by_turns

BACKEND = keras.backend.backend()
BOUND = 0.4


def model_of(constraints=None):
    constraints = constraints or {}
    inputs = keras.Input((64,))
    x = keras.layers.Reshape((8, 8, 1))(inputs)
    x = keras.layers.Conv2D(3, 3, strides=2, name="conv", **constraints)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="out", **constraints)(x))


RULES = {keras.layers.Conv2D: ib.Joint(ib.MaxNorm(BOUND)), "out/kernel": ib.MaxNorm(BOUND), "out/bias": ib.NonNeg()}


def planned():
    model = model_of()
    ib.constrain(model, RULES)
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    return model


def fit(model, digits, **arguments):
    return model.fit(digits[0][:64], digits[1][:64], batch_size=32, verbose=0, **arguments)


def assert_held(model):
    convolution, out = model.get_layer("conv"), model.get_layer("out")
    assert on_bound(norms((convolution.kernel, (0, 1, 2)), (convolution.bias, ())), BOUND)
    assert on_bound(norms((out.kernel, (0,))), BOUND)
    assert np.min(numbers(out.bias)) == 0
    assert ib.audit(model).ok


@pytest.mark.repeats("trained")
@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
def test_a_loaded_model_is_the_same_and_is_held_when_it_trains_on(trained, digits, tmp_path):
    model = planned()
    if trained:
        fit(model, digits)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert same_bits(values_of(again), values_of(model))
    assert [(r.paths, r.set, r.status) for r in ib.audit(again).rows] == [
        (r.paths, r.set, r.status) for r in ib.audit(model).rows
    ]
    fit(again, digits)
    assert_held(again)
    assert not same_bits(values_of(again), values_of(model))


def test_a_loaded_model_is_held_after_compiling_it_anew(digits, tmp_path):
    planned().save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    again.compile(keras.optimizers.Adam(0.3), "sparse_categorical_crossentropy")
    fit(again, digits)
    assert_held(again)


def test_a_plan_goes_through_many_files(digits, tmp_path):
    model = planned()
    for turn in range(3):
        model.save(tmp_path / f"{turn}.keras")
        model = keras.models.load_model(tmp_path / f"{turn}.keras")
        ib.constrain(model)
    fit(model, digits)
    assert_held(model)


ELSEWHERE = """
import json, sys
import numpy as np
import keras
import inbounds as ib
from sklearn.datasets import load_digits

data = load_digits()
x, y = (data.data[:64] / 16).astype("float32"), data.target[:64].astype("int32")
model = keras.models.load_model(sys.argv[1], compile=sys.argv[2] == keras.backend.backend())
if not model.compiled:  # Keras on PyTorch saves optimizers of its own, which don't run on another backend
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
before = [float(np.sum(np.abs(w))) for w in model.get_weights()]
first = ib.audit(model)
model.fit(x, y, batch_size=32, verbose=0)
model.fit(x, 0 * y, batch_size=32, epochs=3, verbose=0)  # draws the biases of all other classes down
last = ib.audit(model)
conv, out = model.get_layer("conv"), model.get_layer("out")
k, b = (np.float64(w) for w in conv.get_weights())
joint = np.sqrt(np.sum(k**2, axis=(0, 1, 2)) + b**2)
print(json.dumps({
    "backend": keras.backend.backend(),
    "first": first.ok, "last": last.ok, "sets": [row.set for row in last.rows],
    "moved": before != [float(np.sum(np.abs(w))) for w in model.get_weights()],
    "joint": float(joint.max()),
    "columns": float(np.sqrt(np.sum(np.float64(out.get_weights()[0]) ** 2, axis=0)).max()),
    "bias": float(out.get_weights()[1].min()),
}))
"""


@pytest.mark.by_turns  # files that JAX saved are loaded on all: test_earlier_files.py
@pytest.mark.repeats("backend")
@pytest.mark.parametrize("backend", sorted({"jax", "torch", "tensorflow"} - {BACKEND}))
def test_in_a_new_process_on_another_backend_the_plan_is_in_force(backend, digits, tmp_path):
    model = planned()
    fit(model, digits)
    model.save(tmp_path / "model.keras")
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(Path(ib.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "model.keras"), BACKEND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == backend
    assert found["first"], "inside when loaded"
    assert found["last"], "inside after more training"
    assert found["moved"]
    assert found["sets"] == ["Joint(MaxNorm(max_value=0.4))", "MaxNorm(max_value=0.4)", "NonNeg()"]
    assert inside([found["joint"], found["columns"]], BOUND)
    assert found["bias"] == 0


def test_weights_only_files_leave_the_plan_of_the_model_in_force(digits, tmp_path):
    free = model_of()
    free.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    fit(free, digits)
    free.save_weights(tmp_path / "free.weights.h5")
    model = planned()
    model.load_weights(tmp_path / "free.weights.h5")
    assert not ib.audit(model).ok, "loading doesn't project"
    fit(model, digits)
    assert_held(model)


def test_a_released_model_is_free_in_its_file_too(digits, tmp_path):
    model = planned()
    ib.release(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert all(row.status == "free" for row in ib.audit(again).rows)


def test_arrays_and_explicit_axes_come_back_as_they_were(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")])
    rules = {"out/kernel": ib.Box([-1.0, -2.0, -3.0], 0.5), "out/bias": ib.MaxNorm(1.0, axis=0)}
    ib.constrain(model, rules)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].kernel.constraint == rules["out/kernel"]
    assert again.layers[0].bias.constraint == rules["out/bias"]


@keras.saving.register_keras_serializable("tests")
def capped(w):
    return keras.ops.minimum(w, 0.25)


def test_a_registered_callable_comes_back(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones", name="out")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ib.PlanNotSavedWarning)
        ib.constrain(model, {"out/kernel": capped})
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    ib.constrain(again)
    assert np.all(numbers(again.layers[0].kernel) == 0.25)


# What a file can't carry.


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    given = None

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.hidden = keras.layers.Dense(4, kernel_constraint=self.given, name="hidden")
        self.out = keras.layers.Dense(3, name="out")

    def build(self, shape):
        self.hidden.build(shape)
        self.out.build((None, 4))
        self.built = True

    def call(self, x):
        return self.out(self.hidden(x))


@keras.saving.register_keras_serializable("tests")
class OwnArguments(keras.Model):
    """A functional model with arguments of its own, which Keras saves in place of the layers."""

    def __init__(self, units=3, **arguments):
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(units, name="hidden")(inputs), **arguments)


def subclassed():
    model = Subclassed()
    model.build((None, 5))
    return model


def one(layer, shape):
    return keras.Sequential([keras.Input(shape), layer])


def attention():
    inputs = keras.Input((4, 6))
    return keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3, name="mha")(inputs, inputs))


def nested():
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, name="deep")], name="inner")
    return keras.Sequential([keras.Input((5,)), inner, keras.layers.RMSNormalization(name="rms")])


def shared():
    inputs = keras.Input((5,))
    layer = keras.layers.Dense(5, name="shared")
    return keras.Model(inputs, layer(layer(inputs)))


JOINT = ib.Joint(ib.MaxNorm(1.0))
# model, rules, and the ends of the paths of the weights whose sets a file loses
PLANS = {
    "Dense": (lambda: one(keras.layers.Dense(3), (4,)), {keras.layers.Dense: JOINT}, set()),
    "kernel and bias": (
        lambda: one(keras.layers.Dense(3), (4,)),
        {"**/kernel": ib.MaxNorm(1.0), "**/bias": ib.NonNeg()},
        set(),
    ),
    "Conv2D": (lambda: one(keras.layers.Conv2D(3, 2), (4, 4, 1)), {keras.layers.Conv2D: JOINT}, set()),
    "SeparableConv2D": (
        lambda: one(keras.layers.SeparableConv2D(3, 2), (4, 4, 2)),
        {"**/depthwise_kernel": ib.NonNeg(), "**/pointwise_kernel": ib.MaxNorm(1.0)},
        set(),
    ),
    "LSTM": (
        lambda: one(keras.layers.LSTM(3), (4, 2)),
        {"**/kernel": ib.MaxNorm(1.0), "**/recurrent_kernel": ib.MaxNorm(2.0), "**/bias": ib.NonNeg()},
        set(),
    ),
    "Bidirectional, one direction": (
        lambda: one(keras.layers.Bidirectional(keras.layers.LSTM(3)), (4, 2)),
        {"forward_lstm/**/kernel": ib.MaxNorm(1.0)},
        None,
    ),
    "TimeDistributed": (
        lambda: one(keras.layers.TimeDistributed(keras.layers.Dense(3)), (4, 2)),
        {"**/kernel": ib.MaxNorm(1.0)},
        set(),
    ),
    "Embedding": (lambda: one(keras.layers.Embedding(5, 3), (4,)), {"**/embeddings": ib.MaxNorm(1.0)}, set()),
    "BatchNormalization": (
        lambda: one(keras.layers.BatchNormalization(), (4,)),
        {"**/gamma": ib.NonNeg(), "**/beta": ib.NonPos()},
        set(),
    ),
    "RMSNormalization": (
        lambda: one(keras.layers.RMSNormalization(name="rms"), (4,)),
        {"**/scale": ib.NonNeg()},
        {"rms/scale"},
    ),
    "untied embedding": (
        lambda: one(keras.layers.ReversibleEmbedding(5, 3, tie_weights=False, name="emb"), (4,)),
        {"**/embeddings": ib.NonNeg(), "**/reverse_embeddings": ib.NonNeg()},
        {"emb/reverse_embeddings"},
    ),
    "MHA, one set": (attention, {"**/kernel": ib.MaxNorm(1.0)}, None),
    "MHA, different sets": (
        attention,
        {"**/kernel": ib.MaxNorm(1.0), "**/query/kernel": ib.MaxNorm(2.0)},
        None,
    ),
    "lambda": (lambda: one(keras.layers.Dense(3, name="out"), (4,)), {"out/kernel": lambda w: w * 1}, {"out/kernel"}),
    "subclassed": (subclassed, {"hidden/kernel": ib.NonNeg()}, {"hidden/kernel"}),
    "functional, subclassed": (OwnArguments, {"hidden/kernel": ib.NonNeg()}, {"hidden/kernel"}),
    "nested": (nested, {"deep/kernel": ib.NonNeg(), "rms/scale": ib.NonNeg()}, {"rms/scale"}),
    "shared": (shared, {"shared/kernel": ib.MaxNorm(1.0)}, set()),
}


def said(call):
    """The PlanNotSavedWarnings of a call, as text; any other warning fails the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "__array__ implementation")  # Keras' own, as in pyproject.toml
        call()
    assert all(warning.category is ib.PlanNotSavedWarning for warning in caught), [str(w.message) for w in caught]
    return " ".join(str(warning.message) for warning in caught)


def sets(model):
    return {
        weight.path: repr(weight.constraint) if weight.constraint is not None else None
        for weight in model.trainable_variables
    }


def lost(model, path):
    """The paths whose sets are gone after saving and loading; all, if the file can't be loaded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")  # one of the cases
        model.save(path)
    try:
        again = keras.models.load_model(path)
    except (TypeError, ValueError):
        return {name for name, held in sets(model).items() if held}
    both = zip(sets(model).items(), sets(again).values(), strict=True)
    return {name for (name, held), loaded in both if held and loaded != held}


@pytest.mark.parametrize("name", list(PLANS))
def test_what_is_warned_of_is_exactly_what_a_file_loses(name, tmp_path):
    make, rules, expected = PLANS[name]
    model = make()
    text = said(lambda: ib.constrain(model, rules))
    gone = lost(model, tmp_path / "model.keras")
    warned = {path for path in sets(model) if any(path == word.strip(".,") for word in text.split())}
    assert warned == gone
    if expected is not None:
        assert {next(path for path in sets(model) if path.endswith(end)) for end in expected} == gone
    if gone:
        assert "A .keras file does not carry the whole plan" in text
        assert "call constrain again with the same rules after loading" in text
    assert sum(held is not None for held in sets(model).values()) >= 1


def test_a_file_that_lost_a_set_takes_the_same_rules_again(tmp_path):
    make, rules, _ = PLANS["RMSNormalization"]
    model = make()
    said(lambda: ib.constrain(model, rules))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert "rms/scale" in said(lambda: ib.constrain(again, rules))
    assert list(sets(again).values()) == list(sets(model).values())


@keras.saving.register_keras_serializable("tests")
class GivesItself(Subclassed):
    """A subclassed model whose own code gives its layers their sets."""

    given = ib.MaxNorm(0.3)


def test_sets_that_a_models_own_code_gives_are_carried_without_a_warning(tmp_path):
    model = GivesItself()
    model.build((None, 5))
    assert said(lambda: ib.constrain(model)) == ""
    assert lost(model, tmp_path / "model.keras") == set()
    assert "own code" in said(lambda: ib.constrain(model, every=2))  # which the code doesn't give again


@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")  # Keras' call of JAX
def test_a_plan_is_no_hindrance_to_an_export(tmp_path):
    model = planned()
    if BACKEND == "torch":
        pytest.skip("Keras' export of SavedModel from PyTorch fails by itself")
    pytest.importorskip("tensorflow", reason="SavedModel is written by TensorFlow")
    model.export(tmp_path / "served", verbose=False)
    assert (tmp_path / "served" / "saved_model.pb").exists()
