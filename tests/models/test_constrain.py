"""`constrain`, `release` and `project` on models of every kind, selectors, and every bad input."""

import keras
import numpy as np
import pytest
from measure import inside, norms, numbers, on_bound, same_bits, values_of

import inbounds as ib
from instead import run

pytestmark = pytest.mark.by_turns

BACKEND = keras.backend.backend()
BOUND = 0.4
KERNELS = {"**/kernel": ib.MaxNorm(BOUND)}


def functional(name=None):
    inputs = keras.Input((64,))
    x = keras.layers.Dense(12, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="out")(x), name=name)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(12, activation="relu", name="hidden")
        self.out = keras.layers.Dense(10, activation="softmax", name="out")

    def call(self, x):
        return self.out(self.hidden(x))


def compiled(model, rate=1.0, **arguments):
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", **arguments)
    return model


def fit(model, digits, steps=2, **arguments):
    model.fit(digits[0][: 32 * steps], digits[1][: 32 * steps], batch_size=32, verbose=0, **arguments)
    return model


def lengths(model):
    """The norms of the columns of every kernel."""
    kernels = [weight for weight in model.trainable_variables if weight.name == "kernel"]
    return np.concatenate([norms((kernel, tuple(range(len(kernel.shape) - 1)))) for kernel in kernels])


def built(model):
    model(np.zeros((1, 64), "float32"))
    return model


# When it takes effect.


def test_weights_that_are_inside_stay_bit_for_bit():
    model = functional()
    before = values_of(model)
    ib.constrain(model, {"**/kernel": ib.MaxNorm(100.0), "**/bias": ib.NonNeg()})
    assert same_bits(values_of(model), before)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch scales weights where they lie")
def test_scales_in_place_and_numbers_in_numpy_end_where_copies_and_tensors_do(digits, monkeypatch):
    rules = {"hidden": ib.Joint(ib.MaxNorm(BOUND)), "out/kernel": ib.UnitNorm(), "out/bias": ib.MinMaxNorm(0.1, 0.2)}

    def ended():
        keras.utils.set_random_seed(0)
        model = compiled(functional())
        ib.constrain(model, rules)
        return values_of(fit(model, digits))

    fast, changed = ended(), []
    monkeypatch.setattr("inbounds._arrays.units.Units.changeable", lambda units: changed.append(units) or units)
    assert same_bits(fast, ended())
    assert changed
    monkeypatch.setattr("inbounds._arrays.units.Units.read", lambda units, numbers: numbers)
    for one, other in zip(fast, ended(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_constraining_again_replaces_the_plan(digits):
    model = compiled(functional())
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND), "**/bias": ib.NonNeg()})
    fit(model, digits)
    plan = ib.constrain(model, {"hidden/kernel": ib.MaxNorm(0.2)})
    assert [repr(entry) for entry in plan] == ["MaxNorm(max_value=0.2) on hidden/kernel"]
    fit(model, digits)
    assert on_bound(norms((model.get_layer("hidden").kernel, (0,))), 0.2)
    assert not inside(norms((model.get_layer("out").kernel, (0,))), BOUND)
    assert np.min(numbers(model.get_layer("out").bias)) < 0


def test_an_optimizer_knows_one_attribute_of_inbounds_and_loses_its_hooks_with_the_plan(digits):
    model = compiled(functional())
    free = fit(compiled(functional()), digits).optimizer
    ib.constrain(model, KERNELS)
    fit(model, digits)
    hooks = {name for name in vars(model.optimizer) if callable(getattr(type(model.optimizer), name, None))}
    assert {name for name in vars(model.optimizer) if "inbounds" in name} == {"_inbounds"}
    assert {"_backend_update_step", "finalize_variable_values"} <= hooks
    inside_now = values_of(model)
    ib.release(model)
    assert same_bits(values_of(model), inside_now)
    assert not hooks & set(vars(model.optimizer))
    assert set(vars(free)) == set(vars(model.optimizer))


def test_release_frees_sets_given_as_arguments_too(digits):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, kernel_constraint=ib.MaxNorm(0.1))])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(digits[0][:32], np.eye(10)[digits[1][:32]], verbose=0)
    assert on_bound(lengths(model), 0.1)
    ib.release(model)
    model.fit(digits[0][:32], np.eye(10)[digits[1][:32]], verbose=0)
    assert not inside(lengths(model), 0.1)


def test_release_of_a_model_without_a_plan_changes_nothing(digits):
    model = compiled(functional())
    before = values_of(model)
    ib.release(model)
    assert same_bits(values_of(model), before)


def test_release_gives_a_constraint_of_keras_back(digits):
    theirs = keras.constraints.MaxNorm(0.3)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(10, activation="softmax", kernel_constraint=theirs)]
    )
    ib.constrain(model, {"**/kernel": ib.MaxNorm(2.0)})
    ib.release(model)
    assert model.layers[0].kernel.constraint is theirs
    assert model.layers[0].kernel_constraint is theirs
    fit(compiled(model), digits)
    assert inside(lengths(model), 0.3)


def test_blocks_of_large_weights_give_what_the_whole_gives_bit_for_bit(monkeypatch):
    rules = {
        "heads/kernel": ib.MaxNorm(0.2) & ib.NonNeg(),  # 2 x 40 units of 6 numbers
        "conv/kernel": ib.Simplex(),
        "dense/kernel": ib.L1Ball(0.5),
        "joint": ib.Joint(ib.L1Ball(0.5)),
        "whole/kernel": ib.FrobeniusNorm(0.5),
        "array/kernel": ib.MaxNorm(np.linspace(0.1, 0.5, 10)),
    }

    def ended():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 4, 6))
        flat = keras.layers.Flatten()(keras.layers.Conv2D(8, 3, name="conv")(inputs))
        outputs = [keras.layers.Dense(10, name=name)(flat) for name in ("dense", "joint", "whole", "array")]
        heads = keras.layers.EinsumDense("abcd,def->abcef", (None, 4, 2, 40), name="heads")(inputs)
        model = keras.Model(inputs, [heads, *outputs])
        plan = ib.constrain(model, rules)
        model.get_layer("conv").kernel.assign(2 * model.get_layer("conv").kernel)
        in_blocks = {one.paths[0] for one in plan if len(one.applied.blocks(one.variables, one.axes)) > 1}
        return in_blocks, values_of(model), ib.audit(model).rows

    none, values, rows = ended()
    monkeypatch.setattr("inbounds._arrays.views.BLOCK", 120)
    some, values_by_blocks, rows_by_blocks = ended()
    assert not none
    assert some == {"heads/kernel", "conv/kernel", "dense/kernel", "joint/kernel"}
    assert same_bits(values, values_by_blocks)
    assert rows == rows_by_blocks
    assert any(row.violated for row in rows)


def test_without_rules_the_layers_arguments_are_the_plan_and_hold_at_once():
    joint = ib.Joint(ib.MaxNorm(BOUND))
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(3, 3, kernel_constraint=ib.MaxNorm(BOUND), name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_constraint=joint, bias_constraint=joint, name="out"),
        ]
    )
    plan = ib.constrain(model)
    assert [([path.split("/", 1)[1] for path in entry.paths], entry.axes) for entry in plan] == [
        (["conv/kernel"], ((0, 1, 2),)),
        (["out/kernel", "out/bias"], ((0,), ())),
    ]
    assert on_bound(norms((model.get_layer("conv").kernel, (0, 1, 2))), BOUND)
    out = model.get_layer("out")
    assert on_bound(norms((out.kernel, (0,)), (out.bias, ())), BOUND)


def test_a_rule_wins_over_a_layers_argument(digits):
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(10, activation="softmax", kernel_constraint=ib.MaxNorm(0.1))]
    )
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    assert model.layers[0].kernel_constraint == ib.MaxNorm(BOUND)
    fit(compiled(model), digits)
    assert not inside(lengths(model), 0.1)
    assert on_bound(lengths(model), BOUND)


# Ways of training.


def test_project_works_on_arguments_alone_and_projects_frozen_weights_too():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, kernel_constraint=ib.MaxNorm(BOUND))])
    model.layers[0].trainable = False
    ib.project(model)
    assert on_bound(norms((model.layers[0].kernel, (0,))), BOUND)


class Late(keras.callbacks.Callback):
    """Constrains the model while it is being fitted."""

    def __init__(self, event):
        super().__init__()
        setattr(self, event, self.act)
        self.done = False

    def act(self, *arguments, **named):
        if not self.done:
            self.done = True
            ib.constrain(self.model, KERNELS)


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin", "on_epoch_end"])
def test_a_callback_may_constrain_in_the_middle_of_a_fit(event, digits):
    model = compiled(functional())
    fit(model, digits, epochs=2, callbacks=[Late(event)])
    assert on_bound(lengths(model), BOUND)


class Pair(keras.Model):
    """Two parts trained by turns, each with an optimizer of its own, as a GAN is."""

    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(12, name="one")
        self.two = keras.layers.Dense(10, activation="softmax", name="two")
        self.one_optimizer = keras.optimizers.SGD(1.0)
        self.two_optimizer = keras.optimizers.Adam(0.3)

    def call(self, x):
        return self.two(self.one(x))


@pytest.mark.parametrize("again", [False, True], ids=["before training", "while training"])
@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # of the subclassed model; see test_saving
def test_a_model_with_two_optimizers_of_its_own_is_held(again):
    pair = built(Pair())
    noise = np.random.default_rng(0)

    def steps():
        for layer, optimizer in ((pair.one, pair.one_optimizer), (pair.two, pair.two_optimizer)):
            pulls = [keras.ops.convert_to_tensor(noise.normal(0, 1, v.shape).astype("float32")) for v in layer.weights]
            optimizer.apply(pulls, layer.trainable_variables)

    if again:
        steps()
    ib.constrain(pair, {keras.layers.Dense: ib.Joint(ib.MaxNorm(BOUND))})
    steps()
    for layer in (pair.one, pair.two):
        assert on_bound(norms((layer.kernel, (0,)), (layer.bias, ())), BOUND)
    ib.release(pair)
    steps()
    for layer in (pair.one, pair.two):
        assert not inside(norms((layer.kernel, (0,)), (layer.bias, ())), BOUND)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_an_optimizer_that_no_model_knows_is_held_from_its_next_step_on(accumulated):
    ends = []
    for before in (True, False):
        keras.utils.set_random_seed(0)
        model = built(functional())
        optimizer = keras.optimizers.Adam(0.3, gradient_accumulation_steps=accumulated)
        if before:
            optimizer.build(model.trainable_variables)
        ib.constrain(model, KERNELS)
        noise = np.random.default_rng(0)
        for _ in range(4):
            pulls = [keras.ops.convert_to_tensor(noise.normal(0, 1, v.shape).astype("float32")) for v in model.weights]
            optimizer.apply(pulls, model.trainable_variables)
        assert on_bound(lengths(model), BOUND)
        ends.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


# Selectors.


def deep():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(2, 3, name="conv_1")(inputs)
    x = keras.layers.Conv2D(2, 3, name="conv_2")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten()(x)
    inner = keras.Sequential([keras.Input((32,)), keras.layers.Dense(4, name="dense")], name="block")
    return keras.Model(inputs, keras.layers.Dense(3, name="dense")(inner(x)))


def chosen(model, rules):
    return {path for entry in ib.constrain(model, rules) for path in entry.paths}


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        ("kernel", {"conv_1/kernel", "conv_2/kernel", "block/dense/kernel", "dense/kernel"}),
        ("**/kernel", {"conv_1/kernel", "conv_2/kernel", "block/dense/kernel", "dense/kernel"}),
        ("conv*/kernel", {"conv_1/kernel", "conv_2/kernel"}),
        ("conv_?/kernel", {"conv_1/kernel", "conv_2/kernel"}),
        ("conv?/kernel", None),
        ("*/kernel", {"conv_1/kernel", "conv_2/kernel", "block/dense/kernel", "dense/kernel"}),
        ("block/*/kernel", {"block/dense/kernel"}),
        ("block/**", {"block/dense/kernel", "block/dense/bias"}),
        ("block/**/kernel", {"block/dense/kernel"}),
        ("dense/kernel", {"block/dense/kernel", "dense/kernel"}),
        ("ense/kernel", None),
        ("norm/gam*", {"norm/gamma"}),
        ("/conv_1/kernel/", {"conv_1/kernel"}),
        ("conv.1/kernel", None),
        ("block/kernel", None),
        ("conv_1", None),
    ],
)
def test_a_glob_matches_the_end_of_a_path_by_whole_parts(selector, paths):
    model = deep()
    if paths is None:
        with pytest.raises(ib.RuleError, match=r"^(No weight matches|A plain set for a layer)"):
            ib.constrain(model, {selector: ib.NonNeg()})
    else:
        assert chosen(model, {selector: ib.NonNeg()}) == paths


def test_a_variable_a_callable_a_layer_and_a_class_select():
    model = deep()
    first, second = model.get_layer("conv_1"), model.get_layer("conv_2")
    assert chosen(model, [(first.bias, ib.NonNeg())]) == {"conv_1/bias"}  # Keras' variables can't be keys
    assert chosen(model, {lambda layer, variable: layer is second and variable.name == "kernel": ib.NonNeg()}) == {
        "conv_2/kernel"
    }
    assert chosen(model, {second: {"kernel": ib.NonNeg(), "bias": "NonPos"}}) == {"conv_2/kernel", "conv_2/bias"}
    assert chosen(model, {keras.layers.Conv2D: ib.Joint(ib.NonNeg())}) == {
        "conv_1/kernel",
        "conv_1/bias",
        "conv_2/kernel",
        "conv_2/bias",
    }
    assert chosen(model, {model.get_layer("block"): {"kernel": ib.NonNeg()}}) == {"block/dense/kernel"}


@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # of a function of Keras'; see test_saving
def test_a_set_may_be_named_or_be_any_callable():
    model = deep()
    plan = ib.constrain(model, {"conv_1/kernel": "non_neg", "conv_2/kernel": ib.NonNeg, "dense/bias": keras.ops.abs})
    assert [type(entry.set).__name__ for entry in plan] == ["NonNeg", "NonNeg", "Custom", "Custom"]


def test_the_last_rule_that_matches_a_weight_wins():
    model = deep()
    general, special = ib.MaxNorm(1.0), ib.MaxNorm(2.0)
    first = ib.constrain(model, {"**/kernel": general, "conv_1/kernel": special})
    assert {entry.paths[0]: entry.set for entry in first}["conv_1/kernel"] == special
    last = ib.constrain(model, {"conv_1/kernel": special, "**/kernel": general})
    assert {entry.paths[0]: entry.set for entry in last}["conv_1/kernel"] == general


def test_a_later_rule_takes_a_weight_out_of_a_joint_and_the_plan_says_so():
    model = functional()
    plan = ib.constrain(model, {keras.layers.Dense: ib.Joint(ib.MaxNorm(BOUND)), "out/bias": ib.NonNeg()})
    assert {entry.paths: repr(entry.set) for entry in plan} == {
        ("hidden/kernel", "hidden/bias"): "Joint(MaxNorm(max_value=0.4))",
        ("out/kernel",): "Joint(MaxNorm(max_value=0.4))",
        ("out/bias",): "NonNeg()",
    }
    assert "bias obeys NonNeg()" in str(plan)


def test_the_printed_plan_shows_every_weight_with_its_set_units_axes_or_why_it_has_none():
    model = deep()
    lines = str(ib.constrain(model, {"conv_1/kernel": ib.MaxNorm(1.0)})).splitlines()
    (line,) = [line for line in lines if "conv_1/kernel " in line]
    for part in ("MaxNorm(max_value=1.0)", "0, 1, 2", "(3, 3, 1, 2)", " 2 "):
        assert part in line
    text = "\n".join(lines)
    for weight in model.weights:
        assert weight.path in text
    assert "no rule" in text
    assert "not trained by an optimizer" in text


def test_frozen_weights_are_projected_once_and_the_plan_says_so(digits):
    model = functional()
    model.get_layer("hidden").trainable = False
    plan = ib.constrain(model, KERNELS)
    assert on_bound(norms((model.get_layer("hidden").kernel, (0,))), BOUND)
    assert "frozen" in str(plan)
    fit(compiled(model), digits)
    assert inside(lengths(model), BOUND)
    assert ib.audit(model).ok


# Bad input: each error says the rule, what was received and what to type instead; nothing is
# touched.


def normed():
    inputs = keras.Input((64,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(12, name="hidden")(inputs))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="out")(x))


class Other(keras.layers.Layer):
    pass


def anything(layer, variable):
    return False


BAD = {
    "glob that matches nothing": (
        {"hiden/kernel": ib.NonNeg()},
        "{'hiden/kernel': NonNeg()}",
        "Instead: {'hidden/kernel': NonNeg()}",
    ),
    "callable that matches nothing": ({anything: ib.NonNeg()}, "anything: NonNeg()", "hidden/kernel"),
    "class that is not there": ({keras.layers.Conv2D: ib.Joint(ib.NonNeg())}, "{Conv2D: Joint(NonNeg())}", "Dense"),
    "layer that is not there": (
        {keras.layers.Dense(2, name="stray"): ib.Joint(ib.NonNeg())},
        "{stray: Joint",
        "a model with ",
    ),
    "plain set for a class": (
        {keras.layers.Dense: ib.MaxNorm(1.0)},
        "Dense: MaxNorm(max_value=1.0)",
        "{'kernel': MaxNorm(max_value=1.0)}}, or {keras.layers.Dense: Joint(MaxNorm(max_value=1.0))} for",
    ),
    "callable for a class": ({keras.layers.Dense: keras.ops.abs}, "Dense: <function abs", "{'kernel': abs}"),
    "lambda for a class": (
        {keras.layers.Dense: lambda w: w},
        "Dense: <function",
        "Instead: {keras.layers.Dense: {'kernel': fn}}.",
    ),
    "class of sets for a class": (
        {keras.layers.Dense: ib.NonNeg},
        "Dense: <class",
        "Instead: {keras.layers.Dense: {'kernel': NonNeg()}}, or {keras.layers.Dense: Joint(NonNeg())} for",
    ),
    "set with an axis for a class": (
        {keras.layers.Dense: ib.MaxNorm(1.0, axis=0)},
        "Dense: MaxNorm(max_value=1.0, axis=(0,))",
        "Instead: {keras.layers.Dense: {'kernel': MaxNorm(max_value=1.0, axis=(0,))}}.",
    ),
    "set for a layer without a kernel": (
        {keras.layers.BatchNormalization: ib.NonNeg()},
        "BatchNormalization: NonNeg()",
        "Instead: {'norm': {'gamma': NonNeg()}}.",
    ),
    "joint for a layer without a kernel": (
        {keras.layers.BatchNormalization: ib.Joint(ib.NonNeg())},
        "BatchNormalization: Joint(NonNeg())",
        "Instead: {'norm': {'gamma': NonNeg()}}.",
    ),
    "joint for weights that no optimizer trains": (
        {"norm": ib.Joint(ib.NonNeg(), weights=("moving_mean", "moving_variance"))},
        "layer norm: Joint(NonNeg(), ",
        "Instead: a Joint of weights that are trained",
    ),
    "name that the layer lacks": (
        {keras.layers.Dense: {"kernal": ib.NonNeg(), "bias": ib.NonPos()}},
        "Dense: {'kernal': NonNeg()}",
        "Instead: {keras.layers.Dense: {'kernel': NonNeg(), 'bias': NonPos()}}",
    ),
    "joint in a mapping": (
        {keras.layers.Dense: {"kernel": ib.Joint(ib.NonNeg())}},
        "Dense: {'kernel': Joint(NonNeg())}",
        "Instead: {keras.layers.Dense: Joint(NonNeg())}",
    ),
    "joint for weights": (
        {"**/kernel": ib.Joint(ib.NonNeg())},
        "{'**/kernel': Joint(NonNeg())}",
        "Instead: {keras.layers.Dense: Joint(",
    ),
    "joint for weights of a layer": (
        {"hidden/*": ib.Joint(ib.NonNeg())},
        "{'hidden/*': ",
        "Instead: {'hidden': Joint(",
    ),
    "joint for all weights": (
        {"**": ib.Joint(ib.NonNeg())},
        "{'**': Joint(NonNeg())}. Where: a model with the layer hidden, the layer out.",
        "Instead: {keras.layers.Dense: Joint(NonNeg())}.",
    ),
    "name of a layer that is not there": (
        {"hiden": ib.NonNeg()},
        "{'hiden': ",
        "Instead: {'hidden': {'kernel': NonNeg()",
    ),
    "plain set for the name of a layer": (
        {"norm": ib.NonNeg()},
        "layer norm: ",
        "Instead: {'norm': {'gamma': NonNeg()",
    ),
    "mapping for weights": (
        {"**/kernel": {"kernel": ib.NonNeg()}},
        "{'**/kernel': {'kernel': NonNeg()}}",
        "Instead: {keras.layers.Dense: {'kernel': NonNeg()}}",
    ),
    "mapping with a constraint of Keras for weights": (
        {"**/kernel": {"kernel": keras.constraints.NonNeg()}},
        "{'**/kernel': {'kernel': <keras",
        "Instead: {keras.layers.Dense: {'kernel': NonNeg()}}",
    ),
    "empty mapping for a layer": ({keras.layers.Dense: {}}, "Dense: {}", "{keras.layers.Dense: {'kernel': "),
    "empty mapping for a layer without a kernel": (
        {keras.layers.BatchNormalization: {}},
        "BatchNormalization: {}",
        "Instead: {'norm': {'gamma': MaxNorm(2.0)}}.",
    ),
    "set for a layer without weights": (
        {keras.layers.InputLayer: ib.NonNeg()},
        "InputLayer: NonNeg()",
        "Instead: layers that have weights.",
    ),
    "number for a layer": (
        {keras.layers.Dense: 1.5},
        "Dense: 1.5",
        "Instead: {keras.layers.Dense: {'kernel': MaxNorm(2.0)}}.",
    ),
    "number in a mapping": (
        {keras.layers.Dense: {"kernel": 1.5}},
        "Dense: kernel: 1.5",
        "Instead: MaxNorm(2.0).",
    ),
    "number for a set": ({"**/kernel": 1.5}, "**/kernel: 1.5", "MaxNorm(2.0)"),
    "None for a set": ({"**/kernel": None}, "**/kernel: None", "MaxNorm(2.0)"),
    "name of no set": ({"**/kernel": "maxnorm"}, "identifier='maxnorm'", "MaxNorm"),
    "class that needs arguments": ({"**/kernel": ib.Box}, "<class", "Instead: Box(low=-1.0, high=1.0)"),
    "number for a selector": ({3: ib.NonNeg()}, "selector=3", "{'**/kernel': "),
    "None for a selector": ({None: ib.NonNeg()}, "selector=None", "{'**/kernel': "),
    "tuple for a selector": ({("hidden", "kernel"): ib.NonNeg()}, "selector=('hidden', 'kernel')", "{'**/kernel': "),
    "class of no layer": ({int: ib.Joint(ib.NonNeg())}, "{int", "Dense"),
    "empty glob": ({"": ib.NonNeg()}, "selector=''", "'**/kernel'"),
    "no rules": ({}, "rules={}", "{'**/kernel': "),
    "a list of no pairs": (["**/kernel", ib.NonNeg()], "rules=['**/kernel'", "{'**/kernel': "),
    "an empty list": ([], "rules=[]", "{'**/kernel': "),
    "a set for all rules": (ib.NonNeg(), "rules=NonNeg()", "{'**/kernel': "),
    "array of another shape": ({"hidden/kernel": ib.Box([0.0, 1.0], 2.0)}, "shape=(2,)", "an array of shape (64,)"),
    "axis that the weight lacks": ({"hidden/kernel": ib.MaxNorm(1.0, axis=2)}, "axis=(2,)", "leave it out"),
    "axis given twice": ({"hidden/kernel": ib.MaxNorm(1.0, axis=[0, -2])}, "axis=(0, -2)", "leave it out"),
    "weight that no optimizer trains": (
        {"norm/moving_mean": ib.NonNeg()},
        "norm/moving_mean: NonNeg()",
        "{(lambda layer, variable: variable.trainable): NonNeg()}",
    ),
    "weights some of which no optimizer trains": ({"norm/*": ib.NonNeg()}, "norm/*: NonNeg()", "variable.trainable"),
}


@pytest.mark.filterwarnings("ignore:A .keras file does not carry")
@pytest.mark.parametrize("fault", list(BAD))
def test_bad_rules_are_errors_that_say_what_to_type_and_touch_nothing(fault):
    rules, received, remedy = BAD[fault]
    model = normed()
    ib.constrain(model, {"out/kernel": ib.MaxNorm(BOUND)})
    before = values_of(model)
    also = {"hidden/kernel": ib.MaxNorm(1e-3)}  # a good rule before the bad one, which must not have been applied
    with pytest.raises(ib.RuleError) as caught:
        ib.constrain(model, {**also, **rules} if isinstance(rules, dict) and rules else rules)
    text = str(caught.value)
    assert f"Received: {received}" in text
    assert remedy in text
    assert text.index("Received: ") > 10, "the rule comes first"
    assert same_bits(values_of(model), before)
    assert [(row.paths, row.set) for row in ib.audit(model).rows if row.status != "free"] == [
        (("out/kernel",), "MaxNorm(max_value=0.4)")
    ]
    for instead in run(text.split("Instead: ")[1], abs=keras.ops.abs, fn=keras.ops.relu):
        ib.constrain(model, instead if isinstance(instead, dict) else {"hidden/kernel": instead})


def test_after_an_error_the_plan_before_is_still_in_force(digits):
    model = compiled(functional())
    ib.constrain(model, KERNELS)
    with pytest.raises(ib.RuleError):
        ib.constrain(model, {"nothing/like/it": ib.NonNeg()})
    fit(model, digits)
    assert on_bound(lengths(model), BOUND)


ARGUMENTS = [
    ({"metric": "adam"}, r"'euclidean'.*Received: metric='adam'.*Instead: metric='auto'"),
    *(({"gradient": bad}, "`gradient` of constrain is not 'reduced' or 'full'") for bad in ("small", None, 1, True)),
    *(({"every": bad}, "`every` of constrain is") for bad in (0, -1, 1.5, True, "batch", None)),
    ({"latent": "yes"}, r"Received: latent='yes'"),
]


@pytest.mark.parametrize(("argument", "said"), ARGUMENTS, ids=str)
def test_an_argument_of_another_kind_is_an_error_that_touches_nothing(argument, said):
    model = functional()
    before = values_of(model)
    with pytest.raises(ValueError, match=said):
        ib.constrain(model, KERNELS, **argument)
    assert same_bits(values_of(model), before)
    assert model.get_layer("out").kernel.constraint is None


@pytest.mark.parametrize(
    ("make", "received", "remedy"),
    [
        (Subclassed, "The model is not built", "model.build(input_shape)"),
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "The model is not built", "model.build(input_shape)"),
        (
            lambda: keras.Sequential([keras.Input((2,)), keras.layers.Flatten()]),
            "The model has no weights",
            "layers with weights",
        ),
        (lambda: "model.keras", "model='model.keras'", ""),
        (lambda: None, "model=None", ""),
        (lambda: keras.layers.Dense(2), "The model is not built", "build"),
    ],
    ids=["subclassed", "sequential", "without weights", "path", "None", "layer"],
)
@pytest.mark.parametrize(
    "door", [lambda model: ib.constrain(model, KERNELS), ib.audit, ib.project], ids=["constrain", "audit", "project"]
)
def test_a_model_that_has_no_weights_yet_is_an_error_that_says_how_to_build_it(make, received, remedy, door):
    with pytest.raises(ib.RuleError) as caught:
        door(make())
    assert "Received: model=" in str(caught.value)
    assert received in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("model", [None, "model.keras"])
def test_release_of_what_is_no_model_is_the_same_error(model):
    with pytest.raises(ib.RuleError, match="`model` is not a keras"):
        ib.release(model)


class Forgetful(keras.Model):
    """A model with a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.used = keras.layers.Dense(2)
        self.spare = keras.layers.Dense(2, name="spare")

    def call(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore:.*was called on layer 'forgetful'")  # Keras remarks on it too
def test_a_layer_that_was_never_built_is_an_error_that_names_it():
    model = Forgetful()
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(ib.RuleError, match=r"is not built.*layer spare \(Dense\).*call the model once"):
        ib.constrain(model, KERNELS)


def test_without_rules_and_without_arguments_there_is_nothing_to_hold():
    with pytest.raises(ib.RuleError, match=r"^Nothing is constrained.*Instead: inbounds\.constrain\(model, \{"):
        ib.constrain(functional())
    with pytest.raises(ib.RuleError, match=r"^Nothing is constrained.*inbounds\.constrain\(model, \{"):
        ib.project(functional())


def test_a_bad_set_in_an_argument_is_an_error_before_a_weight_is_touched():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, kernel_constraint=ib.Box([0.0, 1.0], 2.0))])
    before = values_of(model)
    with pytest.raises(
        ib.RuleError, match=r"shape=\(2,\).*Rule: 'Dense\(kernel_constraint=\.\.\.\)' on [a-z/]*dense/kernel"
    ):
        ib.constrain(model)
    assert same_bits(values_of(model), before)


def test_a_quantized_kernel_is_an_error_that_says_why():
    model = functional()
    model.get_layer("hidden").quantize("int8")
    with pytest.raises(ib.RuleError, match=r"floating point.*dtype=int8.*hidden/kernel.*before it is quantized"):
        ib.constrain(model, {"hidden/kernel": ib.MaxNorm(1.0)})


def test_a_callable_that_returns_another_shape_is_an_error_before_a_weight_is_touched():
    model = functional()
    before = values_of(model)
    with pytest.raises(
        ib.InboundsError, match=r"did not return a tensor of the shape it was given.*returned the shape \(\)"
    ):
        ib.constrain(model, {"hidden/bias": ib.NonNeg(), "hidden/kernel": keras.ops.sum})
    assert same_bits(values_of(model), before)
