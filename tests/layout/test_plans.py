"""Plans over all layers: axes of all weights, weights that no argument reaches, own layers."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import inbounds as ib

from .layers import BY_NAME, CASES, find, read

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning"),  # nothing is saved here
    pytest.mark.filterwarnings("ignore:.*You passed `rms_scaling=True`"),  # deprecated, but models that have it exist
]

SHARED_BIAS = [
    case.name for case in CASES if case.name.startswith("EinsumDense") and "bias" in case.spans and not case.joint
]
NO_ARGUMENT = [
    ("RMSNormalization", "scale"),
    ("Attention", "scale"),
    ("Attention concat", "concat_score_weight"),
    ("AdditiveAttention", "scale"),
    ("STFTSpectrogram", "real_kernel"),
    ("STFTSpectrogram", "imag_kernel"),
    ("ReversibleEmbedding untied", "reverse_embeddings"),
]


class Rows(layers.Layer):
    """y = kernel @ x + bias: a unit is a row of the kernel."""

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(3, input_shape[-1]), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(3,), initializer="ones")

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel)) + self.bias


def kinds():
    """A class of the name Rows of which nothing is registered, and a subclass."""
    kind = type("Rows", (Rows,), {})
    return kind, type("RowsAgain", (kind,), {})


def built(layer, *shape):
    layer.build((None, *shape))
    return layer


def norms(kernel, axis):
    return np.linalg.norm(read(kernel), axis=axis)


# The layers of Keras.


@pytest.mark.parametrize("name", BY_NAME)
def test_axes_are_those_that_the_layer_sums_over(name):
    """A weight that has none is a single unit to a norm."""
    case = BY_NAME[name]
    layer = case.build()
    plan = ib.constrain(layer, [(find(layer, end), ib.MaxNorm(0.1)) for end in case.spans])
    axes = {entry.paths[0]: entry.axes[0] for entry in plan}
    weights = {end: find(layer, end) for end in case.spans}
    assert axes == {w.path: case.spans[end] or tuple(range(len(w.shape))) for end, w in weights.items()}
    listed = [*axes, *(weight.path for weight, _ in plan.free)]
    assert sorted(listed) == sorted({weight.path for weight in layer.weights})
    assert {why for _, why in plan.free} <= {"not trained by an optimizer"}
    assert not [entry.note for entry in plan if entry.note]
    for end, weight in weights.items():
        rows = read(weight).astype("float64") ** 2
        squares = rows.sum(axis=case.spans[end] or None)
        np.testing.assert_allclose(squares, 0.01, rtol=1e-5)


def test_every_keras_layer_that_adds_weights_is_in_the_table():
    def adds_weights(cls):
        builds = [vars(base)["build"] for base in cls.__mro__ if base is not layers.Layer and "build" in vars(base)]
        return any("add_weight" in inspect.unwrap(build).__code__.co_names for build in builds)

    public = {found for _, found in inspect.getmembers(layers, inspect.isclass) if issubclass(found, layers.Layer)}
    expected = {cls.__name__ for cls in public if adds_weights(cls)}
    assert {"Dense", "LSTMCell", "BatchNormalization"} <= expected
    covered = {type(layer).__name__ for case in CASES for layer in case.make()._flatten_layers()}
    assert expected - covered == {"Normalization"}  # which no optimizer trains


@pytest.mark.parametrize("name", SHARED_BIAS)
def test_a_joint_needs_entries_of_its_own_for_each_unit(name):
    layer = BY_NAME[name].build()
    before = [read(weight) for weight in layer.weights]
    with pytest.raises(ib.RuleError, match=r"a unit has no entries of its own in one of them\..*units have the axes"):
        ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1))})
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(read(weight), value)


def test_without_a_bias_the_kernel_carries_a_joint_alone():
    layer = BY_NAME["EinsumDense abc,cde->abde bias None"].build()
    (entry,) = ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1))})
    assert entry.paths == (layer.kernel.path,)
    assert entry.note == "no bias: the set holds for the rest"
    np.testing.assert_allclose(norms(layer.kernel, 0), 0.1, rtol=1e-5)


def test_the_stages_of_a_separable_convolution_form_no_joint_units():
    """Although there are as many filters in both here."""
    layer = BY_NAME["SeparableConv2D"].build()
    with pytest.raises(ib.RuleError, match="depthwise_kernel; its filters feed the pointwise kernel"):
        ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1), weights=("depthwise_kernel", "bias"))})


def test_weights_without_fan_in_form_joint_units_entry_by_entry():
    layer = BY_NAME["BatchNormalization"].build()
    (entry,) = ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1), weights=("gamma", "beta"))})
    assert entry.units == 4
    np.testing.assert_allclose(np.hypot(read(layer.gamma), read(layer.beta)), 0.1, rtol=1e-5)


@pytest.mark.parametrize(("name", "weight"), NO_ARGUMENT)
def test_weights_that_no_argument_reaches_are_kept_in_training(name, weight):
    case = BY_NAME[name]
    layer = case.build()
    variable = find(layer, weight)
    ib.constrain(layer, [(variable, ib.Box(-0.1, 0.1))])
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([variable])
    optimizer.apply([keras.ops.ones(variable.shape)], [variable])
    np.testing.assert_array_equal(read(variable), np.full(variable.shape, -0.1, dtype="float32"))


# Models.


def test_the_printed_plan_has_every_weight():
    x = layers.Input((3, 2))
    y = layers.Bidirectional(layers.LSTM(2), name="both")(layers.BatchNormalization(name="scaled")(x))
    z = layers.SpectralNormalization(layers.Dense(2, name="inner"), name="outer")(y)
    model = keras.Model(x, layers.MultiHeadAttention(1, 2, name="heads")(z[:, None], z[:, None]))
    text = str(ib.constrain(model, {"inner/kernel": ib.MaxNorm(1), "query/*": ib.Box(-1, 1)})).replace(",", " ").split()
    missing = [weight.path for weight in model.weights if weight.path not in text and f"{weight.path}:" not in text]
    assert len(model.weights) == 4 + 6 + 3 + 8
    assert not missing


def test_shared_layers_are_once_in_the_plan_and_nested_ones_are_found():
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([layers.Input((4,)), shared, layers.Dense(4, name="within")], name="inner")
    x = layers.Input((4,))
    model = keras.Model(x, layers.Dense(2, name="last")(inner(shared(shared(x)))))
    plan = ib.constrain(model, {layers.Dense: {"kernel": ib.MaxNorm(0.1)}})
    assert sorted(path.split("/")[-2] for entry in plan for path in entry.paths) == ["last", "shared", "within"]
    assert str(plan).count("shared/kernel") == 1
    for layer in (shared, inner.get_layer("within"), model.get_layer("last")):
        np.testing.assert_allclose(norms(layer.kernel, 0), 0.1, rtol=1e-5)


def test_one_rule_gives_each_kernel_of_an_attention_its_own_axes():
    case = BY_NAME["MultiHeadAttention gate"]
    layer = case.build()
    plan = ib.constrain(layer, {keras.layers.MultiHeadAttention: {"kernel": ib.UnitNorm()}})
    assert {entry.paths[0].split("/")[-2]: entry.axes[0] for entry in plan} == {
        "query": (0,),
        "key": (0,),
        "value": (0,),
        "gate": (0,),
        "attention_output": (0, 1),
    }
    squares = read(layer.output_dense.kernel).astype("float64") ** 2
    np.testing.assert_allclose(squares.sum(axis=(0, 1)), 1, rtol=1e-5)


def test_a_wrapper_that_holds_an_inner_weight_does_not_own_it():
    """SpectralNormalization has its layer's kernel as an attribute of its own."""
    inner = layers.Conv2DTranspose(3, 2)
    model = keras.Sequential([layers.Input((2, 2, 2)), layers.SpectralNormalization(inner)])
    plan = ib.constrain(model, {layers.Conv2DTranspose: ib.Joint(ib.MaxNorm(0.1))})
    (entry,) = plan
    assert [weight.layer for weight in entry.weights] == [inner, inner]
    assert entry.axes == ((0, 1, 3), ())


def test_a_set_given_as_an_argument_reaches_the_layer_inside_a_wrapper():
    """The optimizer alone, without `constrain`, finds the layer that owns the weight."""
    inner = layers.Conv2DTranspose(3, 2, kernel_constraint=ib.MaxNorm(0.1))
    layer = built(layers.SpectralNormalization(inner), 2, 2, 2)
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build([inner.kernel])
    optimizer.apply([keras.ops.ones(inner.kernel.shape)], [inner.kernel])
    squares = read(layer.kernel).astype("float64") ** 2
    np.testing.assert_allclose(squares.sum(axis=(0, 1, 3)), 0.01, rtol=1e-5)


# Layers of one's own.


@pytest.mark.filterwarnings("ignore::inbounds.LayoutWarning")  # the plan's note is what is tested
def test_an_unknown_layout_is_every_axis_but_the_last_and_says_so():
    layer = built(Rows(), 4)
    (entry,) = ib.constrain(layer, {"kernel": ib.MaxNorm(0.1)})
    assert (entry.axes, entry.units) == (((0,),), 4)
    assert entry.note == "units of Rows not known: every axis but the last; register_layout says otherwise"
    assert "register_layout" in str(ib.constrain(layer, {"kernel": ib.MaxNorm(0.1)}))


def test_a_guess_is_a_warning_with_the_line_that_ends_it():
    kind, _ = kinds()
    layer = built(kind(), 4)
    with pytest.warns(ib.LayoutWarning) as caught:
        ib.constrain(layer, {"kernel": ib.MaxNorm(0.1)})
    ours = (ib.LayoutWarning, ib.PlanNotSavedWarning)
    named = {warning.filename for warning in caught if issubclass(warning.category, ours)}
    assert named == {__file__}, "warnings name the line that constrains"
    (text,) = [str(warning.message) for warning in caught if warning.category is ib.LayoutWarning]
    assert "Received: rows/kernel of shape (3, 4). Where: Rows." in text
    line = text.split("Instead: inbounds.")[1].split(" with the axes")[0]
    assert line == "register_layout(Rows, {'kernel': (0,)})"
    eval(line, {"register_layout": ib.register_layout, "Rows": kind})
    ib.constrain(layer, {"kernel": ib.MaxNorm(0.1)})


def test_a_guess_for_a_set_that_a_layer_was_given_is_loud_too():
    layer = built(Rows(), 4)
    layer.kernel.constraint = ib.MaxNorm(0.1)
    with pytest.warns(ib.LayoutWarning, match="rows/kernel"):
        keras.optimizers.SGD(0.1).build([layer.kernel])


def wrapper(*, axis=None):
    """A layer of a class of Keras that wraps what another framework made."""
    kind = type("FlaxLayer", (keras.layers.FlaxLayer,), {"__init__": lambda self: layers.Layer.__init__(self)})
    layer = kind()
    layer.kernel = layer.add_weight(name="kernel", shape=(3, 4))
    layer.bias = layer.add_weight(name="bias", shape=(3,))
    layer.built = True
    return layer


def test_a_layer_of_another_framework_is_never_guessed_at():
    layer = wrapper()
    with pytest.raises(ib.RuleError, match=r"another framework.*kernel of shape \(3, 4\).*Instead: MaxNorm\(.*axis="):
        ib.constrain(layer, {"kernel": ib.MaxNorm(0.1)})
    for given in (ib.MaxNorm(0.1) & ib.NonNeg(), ib.Symmetric()):
        with pytest.raises(ib.RuleError, match="register_layout"):
            ib.constrain(layer, {"kernel": given})
    with pytest.raises(ib.RuleError, match="register_layout"):
        ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1))})
    plan = ib.constrain(layer, [("kernel", ib.MaxNorm(0.1, axis=1)), ("bias", ib.NonNeg())])
    assert [(entry.axes, entry.note) for entry in plan] == [(((1,),), ""), (((),), "")]
    np.testing.assert_array_less(norms(layer.kernel, 1), 0.1001)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a layer that wraps a module of PyTorch runs there")
def test_linear_and_convolutions_of_torch_have_their_units_first():
    import torch

    made = {
        "linear": (torch.nn.Linear(5, 3), (1,)),
        "conv": (torch.nn.Conv2d(2, 4, 3), (1, 2, 3)),
        "embedding": (torch.nn.Embedding(6, 2), None),
        "transposed": (torch.nn.ConvTranspose2d(2, 4, 3), None),
    }
    for name, (module, axes) in made.items():
        layer = keras.layers.TorchModuleWrapper(torch.nn.Sequential(module), name=name)
        rules = {(lambda layer, variable: len(variable.shape) > 1): ib.UnitNorm()}
        if axes is None:
            with pytest.raises(ib.RuleError, match=f"TorchModuleWrapper '{name}'.*axis"):
                ib.constrain(layer, rules)
            continue
        (entry,) = ib.constrain(layer, rules)
        assert (entry.axes, entry.units, entry.note) == ((axes,), module.weight.shape[0], "")
        np.testing.assert_allclose(
            norms(layer.weights[0], None if axes is None else axes[0]).ndim, module.weight.ndim - 1
        )
        (joint,) = ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1))})
        assert joint.axes == (axes, ())


@pytest.mark.filterwarnings("ignore::inbounds.LayoutWarning")  # the plan's note is what is tested
def test_an_unknown_layout_in_a_joint_says_so_too():
    class Columns(layers.Dense):
        pass

    class Alien(layers.Layer):
        def build(self, input_shape):
            self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], 3))
            self.bias = self.add_weight(name="bias", shape=(3,))

    (known,) = ib.constrain(built(Columns(3), 4), {Columns: ib.Joint(ib.MaxNorm(0.1))})
    (unknown,) = ib.constrain(built(Alien(), 4), {Alien: ib.Joint(ib.MaxNorm(0.1))})
    assert known.note == ""
    assert "units of Alien not known" in unknown.note
    assert known.axes == unknown.axes == ((0,), ())


def test_sets_that_need_no_units_need_no_layout():
    layer = built(Rows(), 4)
    plan = ib.constrain(layer, {"kernel": ib.NonNeg(), "bias": ib.MaxNorm(0.1)})
    assert [entry.note for entry in plan] == ["", ""]


def test_an_explicit_axis_is_for_any_layer():
    layer = built(Rows(), 4)
    (entry,) = ib.constrain(layer, {"kernel": ib.MaxNorm(0.1, axis=1)})
    assert (entry.axes, entry.units, entry.note) == (((1,),), 3, "")
    np.testing.assert_allclose(norms(layer.kernel, 1), 0.1, rtol=1e-5)


def test_an_explicit_axis_against_the_layer_is_kept_and_said():
    layer = built(layers.Dense(3), 4)
    (entry,) = ib.constrain(layer, {"kernel": ib.MaxNorm(0.1, axis=1)})
    assert (entry.axes, entry.note) == (((1,),), "the axis is not the layer's fan-in, (0,)")


@pytest.mark.parametrize(
    "layout",
    [
        {"kernel": (1,), "bias": ()},
        {"kernel": (-1,), "bias": ()},
        {"kernel": [1], "bias": []},
        ib.Layout({"kernel": (1,), "bias": ()}),
        lambda layer: {"kernel": (len(layer.kernel.shape) - 1,), "bias": ()},
        lambda layer: ib.Layout({"kernel": (1,), "bias": ()}),
    ],
    ids=["mapping", "from the end", "lists", "Layout", "function", "function of a Layout"],
)
def test_a_registered_layout_holds_for_the_class_and_its_subclasses(layout):
    kind, again = kinds()
    ib.register_layout(kind, layout)
    for cls in (kind, again):
        layer = built(cls(), 4)
        (entry,) = ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(0.1))})
        assert (entry.axes, entry.units, entry.note) == (((1,), ()), 3, "")
        joint = np.hypot(norms(layer.kernel, 1), read(layer.bias))
        np.testing.assert_allclose(joint, 0.1, rtol=1e-5)
        assert ib.audit(layer).ok


def test_the_nearest_class_and_the_last_registration_hold():
    kind, again = kinds()
    ib.register_layout(kind, {"kernel": (0,)})
    ib.register_layout(again, {"kernel": (0, 1)})
    ib.register_layout(kind, {"kernel": (1,)})
    axes = [ib.constrain(built(cls(), 4), {"kernel": ib.MaxNorm(1)}).entries[0].axes for cls in (kind, again)]
    assert axes == [((1,),), ((0, 1),)]


def test_subclasses_of_keras_layers_have_their_layout():
    class Mine(layers.Conv2DTranspose):
        pass

    (entry,) = ib.constrain(built(Mine(3, 2), 4, 4, 2), {"kernel": ib.MaxNorm(1)})
    assert entry.axes == ((0, 1, 3),)


@pytest.mark.filterwarnings("ignore::inbounds.LayoutWarning")  # the plan's note is what is tested
def test_a_weight_that_a_layout_leaves_out_is_not_known():
    kind, _ = kinds()
    ib.register_layout(kind, {"bias": ()})
    (entry,) = ib.constrain(built(kind(), 4), {"kernel": ib.MaxNorm(1)})
    assert "not known" in entry.note


@pytest.mark.parametrize(
    ("layer_class", "layout", "said"),
    [
        (Rows(), {}, "`layer_class` is not a class of keras.Layer. Received: layer_class=<Rows"),
        (dict, {}, "`layer_class` is not a class of keras.Layer. Received: layer_class=<class 'dict'>"),
        (Rows, None, "neither a mapping of weight names to axes nor a function of the layer. Received: layout=None"),
        (
            Rows,
            "kernel",
            "neither a mapping of weight names to axes nor a function of the layer. Received: layout='kernel'",
        ),
        (Rows, {"kernel": 1}, r"a tuple of integers. Received: 'kernel': 1. Instead: {'kernel': \(0,\)}"),
        (Rows, {"kernel": (0.5,)}, r"a tuple of integers. Received: 'kernel': \(0.5,\)"),
        (Rows, {"kernel": "0"}, "a tuple of integers. Received: 'kernel': '0'"),
    ],
)
def test_a_bad_registration_is_an_error(layer_class, layout, said):
    with pytest.raises(ib.LayoutError, match=said):
        ib.register_layout(layer_class, layout)


@pytest.mark.parametrize("axes", [(2,), (-3,), (0, 0), (0, -2)])
@pytest.mark.parametrize("rule", [{"kernel": ib.MaxNorm(1)}, {Rows: ib.Joint(ib.MaxNorm(1))}], ids=["set", "joint"])
def test_axes_that_a_weight_lacks_are_an_error(axes, rule):
    kind, _ = kinds()
    ib.register_layout(kind, {"kernel": axes, "bias": ()})
    layer = built(kind(), 4)
    with pytest.raises(ib.RuleError, match=r"it has -2 to 1\. Received: 'kernel'.*shape \(3, 4\).*Rule: "):
        ib.constrain(layer, rule)
    np.testing.assert_array_equal(read(layer.kernel), np.ones((3, 4)))


def test_a_function_that_returns_no_layout_is_an_error():
    kind, _ = kinds()
    ib.register_layout(kind, lambda layer: None)
    with pytest.raises(
        ValueError, match=r"did not return a mapping of weight names to axes\. Received: None\. Where: Rows"
    ):
        ib.constrain(built(kind(), 4), {"kernel": ib.MaxNorm(1)})


def test_a_joint_of_another_number_of_units_is_an_error():
    kind, _ = kinds()
    ib.register_layout(kind, {"kernel": (0,), "bias": ()})
    with pytest.raises(ib.RuleError, match=r"different numbers of units.*kernel of shape \(3, 4\) has 4.*bias.*has 3"):
        ib.constrain(built(kind(), 4), {kind: ib.Joint(ib.MaxNorm(1))})


# Units of another kind.

KINDS = [
    ("Dense", "kernel", "inputs", (1,)),
    ("Conv2D", "kernel", "inputs", (0, 1, 3)),
    ("Conv2DTranspose", "kernel", "inputs", (0, 1, 2)),
    ("Embedding", "embeddings", "inputs", (1,)),
    ("LSTM", "recurrent_kernel", "weight", (0, 1)),
    ("MultiHeadAttention gate", "query/kernel", "heads", (0, 2)),
    ("MultiHeadAttention gate", "attention_output/kernel", "heads", (1, 2)),
    ("GroupQueryAttention", "key/bias", "heads", (1,)),
]


@pytest.mark.parametrize(("name", "end", "kind", "axes"), KINDS)
def test_a_layout_knows_the_axes_of_other_units(name, end, kind, axes):
    layer = BY_NAME[name].build()
    weight = find(layer, end)
    (entry,) = ib.constrain(layer, [(weight, ib.MaxNorm(0.1).per(kind))])
    assert entry.axes == (axes,)
    assert entry.units == np.prod([n for axis, n in enumerate(weight.shape) if axis not in axes])
    np.testing.assert_allclose(np.sqrt((read(weight).astype("float64") ** 2).sum(axis=axes)), 0.1, rtol=1e-5)


@pytest.mark.parametrize(("name", "gates"), [("LSTM", 4), ("GRU", 3), ("ConvLSTM2D", 4)])
def test_a_gate_is_a_unit_with_all_its_columns(name, gates):
    layer = BY_NAME[name].build()
    kernel, bias = find(layer, "recurrent_kernel"), find(layer, "bias")
    joint = ib.Joint(ib.MaxNorm(0.1).per("gates"), weights=("recurrent_kernel", "bias"))
    plan = ib.constrain(layer, {type(kernel_owner(layer)): joint})
    assert [entry.units for entry in plan] == [gates]
    parts = [np.split(read(weight).astype("float64"), gates, axis=-1) for weight in (kernel, bias)]
    np.testing.assert_allclose(
        [np.hypot(*map(np.linalg.norm, gate)) for gate in zip(*parts, strict=True)], 0.1, rtol=1e-5
    )
    assert f"({gates}, 2)" not in str(plan).split("rule")[0]
    assert f"{gates}, {kernel.shape[-1] // gates})" in str(plan), "the plan says how the weight is seen"


def kernel_owner(layer):
    """The layer within that has the kernels."""
    return next(inner for inner in layer._flatten_layers() if hasattr(inner, "recurrent_kernel"))


def test_matrices_of_heads_and_gates_are_a_stack():
    layer = BY_NAME["MultiHeadAttention"].build()
    plan = ib.constrain(layer, {"**/kernel": ib.SpectralNorm(0.1).per("heads")})
    assert [(entry.axes[0], entry.units) for entry in plan] == [((0,), 2)] * 3 + [((1,), 2)]
    for head in np.moveaxis(read(layer.query_dense.kernel), 1, 0):
        np.testing.assert_allclose(np.linalg.norm(head, 2), 0.1, rtol=1e-5)
    for head in read(layer.output_dense.kernel):
        np.testing.assert_allclose(np.linalg.norm(head, 2), 0.1, rtol=1e-5)


def test_rows_and_columns_of_a_kernel_are_held_at_once():
    layer = BY_NAME["Dense"].build()
    (entry,) = ib.constrain(layer, {"kernel": ib.MaxNorm(0.2) & ib.MaxNorm(0.1).per("inputs")})
    inputs, units = layer.kernel.shape
    assert entry.units == inputs + units
    assert (norms(layer.kernel, 0) <= 0.2001).all()
    assert (norms(layer.kernel, 1) <= 0.1001).all()
    report = ib.audit(layer)
    assert report.rows[0].units == inputs + units
    assert report.ok
    text = str(ib.constrain(layer, {"kernel": ib.MaxNorm(0.2) & ib.MaxNorm(0.1).per("inputs")}))
    assert f"0 of ({inputs}, {units})" in text
    assert f"1 of ({inputs}, {units})" in text


@pytest.mark.parametrize(
    ("name", "rules", "text"),
    [
        ("Dense", {"kernel": ib.MaxNorm(1).per("heads")}, "The layer's layout knows no heads of this weight"),
        ("Dense", {"bias": ib.MaxNorm(1).per("inputs")}, "Instead: per('weight')"),
        ("LSTM", {"recurrent_kernel": ib.MaxNorm(1).per("inputs")}, "knows no inputs of this weight"),
        ("LSTM", {"recurrent_kernel": ib.MaxNorm(1).per("inputs")}, "Instead: per('gates')"),
        ("Dense", {keras.layers.Dense: ib.Joint(ib.MaxNorm(1)).per("inputs")}, "knows no inputs"),
        ("Dense", {"kernel": ib.Box(1, 2) & ib.MaxNorm(0.1).per("inputs")}, "its sets have no point in common"),
        ("Dense", {"kernel": ib.Marginals(1, 1)}, "don't add up to the same"),
        ("LSTM", {"recurrent_kernel": ib.MaxNorm(1, center="current").per("gates")}, "as `center`"),
    ],
)
def test_units_that_a_weight_has_not_are_an_error_before_it_moves(name, rules, text):
    layer = BY_NAME[name].build()
    before = [read(weight) for weight in layer.weights]
    with pytest.raises(ib.RuleError) as caught:
        ib.constrain(layer, rules)
    assert text in str(caught.value)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(read(weight), value)


def test_a_layer_of_ones_own_says_what_its_heads_are():
    kind, _ = kinds()
    ib.register_layout(kind, ib.Layout({"kernel": (1,), "bias": ()}, heads={"kernel": 0}, gates=3))
    layer = built(kind(), 4)
    plan = ib.constrain(layer, {"kernel": ib.MaxNorm(0.1).per("heads"), "bias": ib.MaxNorm(0.1).per("gates")})
    assert [entry.units for entry in plan] == [3, 3]


def test_bounds_may_be_arrays_of_a_unit_or_of_the_weight():
    model = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 3), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4))
    conv, dense = model.layers[0], model.layers[2]
    filters, kernel, bias = (np.array(keras.ops.convert_to_numpy(v)) for v in (conv.kernel, dense.kernel, dense.bias))
    rows, kept = np.c_[kernel.T, bias], np.indices(filters.shape).sum(axis=0) % 2 == 0
    near = ib.Box(kernel - 0.1, kernel + 0.1)
    of_unit = ib.Box(filters[..., 0], np.inf)
    for rules in (
        {conv: {"kernel": ib.Fixed(filters).where(kept)}, dense: {"kernel": near & ib.MaxNorm(2.0)}},
        {conv: {"kernel": of_unit}, dense: ib.Joint(ib.Box(rows - 0.1, rows + 0.1))},
    ):
        ib.constrain(model, rules)
        for variable in (conv.kernel, dense.kernel, dense.bias):
            variable.assign(keras.ops.add(variable, 1.0))
        assert not ib.audit(model).ok
        ib.project(model)
        assert ib.audit(model).ok
    assert np.all(keras.ops.convert_to_numpy(conv.kernel) >= filters[..., :1])
    assert np.abs(keras.ops.convert_to_numpy(dense.kernel) - kernel).max() < 0.1001
    with pytest.raises(ib.RuleError, match="The intersection is empty"):
        ib.constrain(model, {dense: {"kernel": near & ib.MaxNorm(0.01)}})
    with pytest.raises(ib.RuleError, match=r"shape=\(3, 4\).*Instead: an array of shape \(12, 4\)"):
        ib.constrain(model, {dense: {"kernel": ib.Box(np.zeros((3, 4)), 1.0)}})
