"""The private facts of Keras that inbounds stands on.

Each test's name says what is true, its text what breaks otherwise.
"""

import ast
import copy
import functools
import inspect
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib

BACKEND = keras.backend.backend()
OPTIMIZERS = sorted(
    name
    for name, value in vars(keras.optimizers).items()
    if inspect.isclass(value) and name not in ("Optimizer", "OptimizerMap", "LossScaleOptimizer", "MultiOptimizer")
)


def made(name, **arguments):
    return getattr(keras.optimizers, name)(0.1, **arguments)


def dense(**arguments):
    layer = keras.layers.Dense(2, kernel_initializer="ones", **arguments)
    layer.build((None, 3))
    return layer


def ones(variables):
    return [keras.ops.ones(variable.shape) for variable in variables]


def listening(optimizer, method, told):
    """The optimizer with one method of the instance wrapped, as inbounds wraps it."""
    original = getattr(type(optimizer), method)

    def wrapped(*arguments):
        told.append("before " + method)
        result = original(optimizer, *arguments)
        told.append((method, arguments))
        return result

    vars(optimizer)[method] = wrapped
    return optimizer


# The update.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_step_in_backend_update_step_with_all_variables_at_once(name):
    """Else nothing would project after a step: `optimizer_hooks.backend_update_step`."""
    layer, told = dense(), []
    optimizer = listening(made(name), "_backend_update_step", told)
    before = np.array(keras.ops.convert_to_numpy(layer.kernel.value))
    optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
    after = np.array(keras.ops.convert_to_numpy(layer.kernel.value))
    (_, arguments) = told[-1]
    assert len(told) == 2
    assert len(arguments) == 3, "gradients, variables, learning rate"
    assert [v is w for v, w in zip(arguments[1], layer.trainable_variables, strict=True)] == [True, True]
    assert not np.array_equal(before, after)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's optimizers")
def test_the_update_sums_the_gradients_of_all_replicas_first():
    """Else the metric would be read of a replica's own gradients.

    See `optimizer_hooks.all_reduce_sum_gradients`.
    """
    layer, told = dense(), []
    optimizer = listening(made("SGD"), "_all_reduce_sum_gradients", told)
    optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
    ((_, (pairs,)),) = told[1:]
    assert [v is w.value for (_, v), w in zip(pairs, layer.trainable_variables, strict=True)] == [True, True]


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_weights_decay_in_a_method_of_their_own_before_the_update(name):
    """Else gradients would be reduced at weights that have left the boundary.

    See `optimizer_hooks.apply_weight_decay`.
    """
    layer, told = dense(), []
    optimizer = listening(listening(made(name), "_apply_weight_decay", told), "_backend_update_step", told)
    assert optimizer.weight_decay, "what says that there is any"
    optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
    assert [one if isinstance(one, str) else one[0] for one in told][::2] == [
        "before _apply_weight_decay",
        "before _backend_update_step",
    ]


def test_the_update_comes_after_weight_decay_and_before_the_moving_average():
    """Else the decay would leave the set, or the average would be of weights outside it."""
    layer, seen = dense(use_bias=False), {}
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.5, use_ema=True, ema_momentum=0.0)
    original = type(optimizer)._backend_update_step

    def watched(gradients, variables, rate):
        seen["decayed"] = float(np.max(keras.ops.convert_to_numpy(layer.kernel.value)))
        original(optimizer, gradients, variables, rate)
        layer.kernel.assign(keras.ops.full(layer.kernel.shape, 0.125))

    vars(optimizer)["_backend_update_step"] = watched
    optimizer.apply([keras.ops.zeros(layer.kernel.shape)], [layer.kernel])
    assert seen["decayed"] == 0.75
    average = optimizer._model_variables_moving_average[0]
    assert np.all(keras.ops.convert_to_numpy(average.value) == 0.125)


def test_iterations_count_up_after_the_update():
    """Else the count that a hook reads would be one too high."""
    layer, seen = dense(), []
    optimizer = keras.optimizers.SGD(0.1)
    original = type(optimizer)._backend_update_step

    def watched(*arguments):
        original(optimizer, *arguments)
        seen.append(int(optimizer.iterations))

    vars(optimizer)["_backend_update_step"] = watched
    for _ in range(2):
        optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
    assert seen == [0, 1]


def test_accumulation_updates_once_per_real_step():
    """Else sets that aren't idempotent, and the cost, would count every batch.

    JAX computes each update and keeps the real ones.
    """
    layer, told = dense(), []
    optimizer = listening(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), "_backend_update_step", told)
    for _ in range(6):
        optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
    assert len(told) == 2 * (6 if BACKEND == "jax" else 2)
    assert np.allclose(keras.ops.convert_to_numpy(layer.kernel.value), 0.8)


def test_a_real_step_is_told_by_the_count_of_all_steps():
    """Else `optimizer_hooks.backend_apply_gradients` would undo what a real step has moved."""
    layer = dense()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    for taken in range(6):
        before = keras.ops.convert_to_numpy(layer.kernel).copy()
        assert int(optimizer._iterations) == taken
        assert int(optimizer.iterations) == taken // 3
        optimizer.apply(ones(layer.trainable_variables), layer.trainable_variables)
        assert np.any(keras.ops.convert_to_numpy(layer.kernel).copy() != before) == ((taken + 1) % 3 == 0)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")  # the case under test
def test_a_variable_without_a_gradient_is_left_out_of_the_update():
    """The hook asks the optimizer, not the update, which variables there are."""
    layer, told = dense(), []
    optimizer = listening(keras.optimizers.SGD(0.1), "_backend_update_step", told)
    optimizer.apply([keras.ops.ones(layer.kernel.shape), None], layer.trainable_variables)
    assert [v is layer.kernel for v in told[-1][1][1]] == [True]
    assert [v.path for v in optimizer._trainable_variables] == [v.path for v in layer.trainable_variables]


OF_3_15 = pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras 3.14 has none")
"""MultiOptimizer, and plain callables as constraints."""


@OF_3_15
def test_apply_calls_the_constraints_of_variables_one_by_one_after_the_step():
    """`optimizer_hooks.hidden_constraints` hides them, or Keras would constrain a second time."""
    called = []

    def noted(w):
        called.append(w.path)
        return w

    layer = dense(kernel_constraint=noted, bias_constraint=noted)
    keras.optimizers.SGD(0.1).apply(ones(layer.trainable_variables), layer.trainable_variables)
    assert called == [v.path for v in layer.trainable_variables]


def test_backend_apply_gradients_ends_with_the_average_that_overwrites():
    """Else overwriting would leave nonconvex sets: `optimizer_hooks.backend_apply_gradients`."""
    layer, told = dense(use_bias=False), []
    arguments = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}
    optimizer = listening(keras.optimizers.SGD(0.5, **arguments), "_backend_apply_gradients", told)
    optimizer.apply(ones([layer.kernel]), [layer.kernel])
    assert len(told[-1][1]) == 2, "gradients, variables"
    average = keras.ops.convert_to_numpy(optimizer._model_variables_moving_average[0].value)
    assert np.array_equal(keras.ops.convert_to_numpy(layer.kernel.value), average)


def test_an_average_is_of_the_values_that_its_method_is_given():
    """Else latent weights would not be averaged: `optimizer_hooks.update_moving_average`."""
    layer = dense(use_bias=False)
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.0)
    average = type(optimizer)._update_model_variables_moving_average
    optimizer._update_model_variables_moving_average = lambda variables: average(
        optimizer, [keras.ops.full(v.shape, 7.0) for v in variables]
    )
    optimizer.apply(ones([layer.kernel]), [layer.kernel])
    assert np.all(keras.ops.convert_to_numpy(optimizer._model_variables_moving_average[0].value) == 7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_build_reaches_the_build_of_the_public_base_class(name, monkeypatch):
    """Else it would never take up its variables' sets: `optimizer_hooks.hook_optimizers`."""
    built = []
    base = keras.optimizers.Optimizer
    original = base.build
    monkeypatch.setattr(base, "build", lambda self, variables: (built.append(self), original(self, variables))[1])
    layer = dense()
    optimizer = made(name)
    optimizer.build(layer.trainable_variables)
    assert any(one is optimizer for one in built)
    assert [v is w for v, w in zip(optimizer._trainable_variables, layer.trainable_variables, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_apply_is_that_of_the_public_base_class(name):
    """Else one built before a plan would go unhooked: `optimizer_hooks.hook_optimizers`."""
    assert getattr(keras.optimizers, name).apply is keras.optimizers.Optimizer.apply


@OF_3_15
def test_wrapping_optimizers_build_and_step_those_inside():
    """Else loss scaling and MultiOptimizer would go unhooked: `optimizers.optimizers_of`."""
    layer = dense()
    inner = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    scaled.build(layer.trainable_variables)
    assert scaled.inner_optimizer is inner
    assert inner.built
    first, rest = keras.optimizers.Adam(0.1), keras.optimizers.SGD(0.1)
    several = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(rest, {".*kernel": first}))
    several.build(layer.trainable_variables)
    assert several.optimizers == [first, rest]
    assert first._trainable_variables == [layer.kernel]
    assert rest._trainable_variables == [layer.bias]


def test_fit_ends_with_finalize_variable_values():
    """Else fit's average would not be projected: `optimizer_hooks.finalize_variable_values`."""
    model, told = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), []
    model.compile(listening(keras.optimizers.SGD(0.1), "finalize_variable_values", told), "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), epochs=2, verbose=0)
    assert len(told) == 2
    ((method, arguments),) = told[1:]
    assert method == "finalize_variable_values"
    assert [v.path for v in arguments[0]] == [v.path for v in model.trainable_variables]


def test_a_fitted_model_compiles_its_step_anew_when_forced():
    """Else a plan would not take effect on a model that has been fitted: `attach._rehook`."""
    model, told = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), []
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    listening(model.optimizer, "_backend_update_step", told)
    model.make_train_function(force=True)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert told, "the step runs the method as it is now"


def test_a_method_that_is_a_partial_in_the_instance_follows_a_deep_copy():
    """Else the copy's hooks would step the original optimizer."""
    optimizer = keras.optimizers.SGD(0.1)
    vars(optimizer)["probe"] = functools.partial(id, optimizer)
    again = copy.copy(vars(optimizer)["probe"])
    assert again.args[0] is optimizer
    held = {"optimizer": optimizer.name, "probe": functools.partial(len, [optimizer.name])}
    copied = copy.deepcopy(held)
    assert copied["probe"].args[0] is not held["probe"].args[0]


def test_an_optimizer_with_methods_in_its_instance_is_saved_without_them(tmp_path):
    """Else a constrained model could not be saved, or would be loaded with stale hooks."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    name = "finalize_variable_values"
    vars(model.optimizer)[name] = functools.partial(getattr(type(model.optimizer), name), model.optimizer)
    model.save(tmp_path / "model.keras")
    assert name not in vars(keras.models.load_model(tmp_path / "model.keras").optimizer)


# Layers and their weights.


def test_flatten_layers_reaches_every_layer_inside_layers_once():
    """Else weights in wrappers, cells and nested models would be missed: `weights.layers_of`."""
    inputs = keras.Input((4, 6))
    x = keras.layers.Bidirectional(keras.layers.LSTM(2, return_sequences=True))(inputs)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(2))(x)
    inner = keras.Sequential([keras.Input((4, 2)), keras.layers.Conv1D(2, 2)])
    shared = keras.layers.Dense(2)
    model = keras.Model(inputs, shared(shared(inner(x))))
    layers = list(model._flatten_layers())
    assert {type(layer).__name__ for layer in layers} >= {"LSTMCell", "EinsumDense", "Dense", "Conv1D", "Functional"}
    owned = [v for layer in layers for v in layer._trainable_variables]
    assert {id(v) for v in owned} == {id(v) for v in model.trainable_variables}


def test_a_layers_own_variables_are_listed_apart_by_whether_they_were_made_to_train():
    """Else weights that no optimizer trains could not be told: `weights.own_weights`."""
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    assert [v.name for v in layer._trainable_variables] == ["gamma", "beta"]
    assert [v.name for v in layer._non_trainable_variables] == ["moving_mean", "moving_variance"]
    layer.trainable = False
    assert [v.name for v in layer._trainable_variables] == ["gamma", "beta"]


def test_a_weight_gets_its_constraint_in_add_weight_only():
    """Else a set given to a layer would not find the layer of its weight: `weights.hook_layers`."""
    setting = []
    for path in (Path(keras.__file__).parent / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if ".constraint = " in text and not path.stem.endswith("_test"):
            for function in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)):
                targets = [node.targets[0] for node in ast.walk(function) if isinstance(node, ast.Assign)]
                setting += [function.name for target in targets if getattr(target, "attr", "") == "constraint"]
    assert setting == ["add_weight"]
    assert keras.Layer.add_weight.__wrapped__.__module__ == keras.Layer.__module__


def test_variables_in_lists_of_a_layer_are_its_own():
    """Else such weights of custom layers would be missed."""

    class Listed(keras.layers.Layer):
        def build(self, shape):
            self.parts = [self.add_weight(shape=(2,), name="a"), self.add_weight(shape=(2,), name="b")]

    layer = Listed()
    layer.build((None, 2))
    assert [v.name for v in layer._trainable_variables] == ["a", "b"]


@pytest.mark.once
def test_convolutional_lstm_cells_are_where_they_were_and_own_the_weights():
    """Else ConvLSTM1D to 3D would have no layout: `layout._register_keras`."""
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

    layer = keras.layers.ConvLSTM1D(2, 2)
    layer.build((1, 3, 5, 2))
    assert isinstance(layer.cell, ConvLSTMCell)
    assert [v.name for v in layer.cell._trainable_variables] == ["kernel", "recurrent_kernel", "bias"]


@pytest.mark.once
def test_functional_and_sequential_models_can_be_told_from_subclassed_ones():
    """Else it could not be said what a file loses: `unsaved_sets._saved_layers`."""
    from keras.src.models.functional import Functional

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(inputs)

    class Own(keras.Model):
        pass

    assert isinstance(keras.Model(inputs, outputs), Functional)
    assert not isinstance(Own(), Functional)
    assert not isinstance(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), Functional)


CONSTRAINED = {
    "Dense": ((2,), (2, 3)),
    "EinsumDense": (("abc,cd->abd", (None, 2), None, "d"), (2, 3, 4)),
    "Embedding": ((4, 2), (2, 3)),
    "ReversibleEmbedding": ((4, 2), (2, 3)),
    "Conv1D": ((2, 2), (2, 5, 3)),
    "Conv2D": ((2, 2), (2, 5, 5, 3)),
    "Conv3D": ((2, 2), (2, 4, 4, 4, 3)),
    "Conv1DTranspose": ((2, 2), (2, 5, 3)),
    "Conv2DTranspose": ((2, 2), (2, 5, 5, 3)),
    "Conv3DTranspose": ((2, 2), (2, 4, 4, 4, 3)),
    "DepthwiseConv1D": ((2,), (2, 5, 3)),
    "DepthwiseConv2D": ((2,), (2, 5, 5, 3)),
    "SeparableConv1D": ((2, 2), (2, 5, 3)),
    "SeparableConv2D": ((2, 2), (2, 5, 5, 3)),
    "SimpleRNNCell": ((2,), (2, 3)),
    "LSTMCell": ((2,), (2, 3)),
    "GRUCell": ((2,), (2, 3)),
    "BatchNormalization": ((), (2, 3)),
    "LayerNormalization": ((), (2, 3)),
    "GroupNormalization": ((1,), (2, 3)),
    "PReLU": ((), (2, 3)),
}


@pytest.mark.once
@pytest.mark.parametrize("name", list(CONSTRAINED))
def test_a_layers_constraint_argument_is_an_attribute_named_after_its_weight_and_saved(name):
    """Else plans would not be saved with models: `weights.Weight.constraint_argument`, `carry`."""
    from inbounds._model.weights import own_weights

    arguments, shape = CONSTRAINED[name]
    layer = getattr(keras.layers, name)(*arguments)
    layer.build(shape)
    named = {weight.name: weight.constraint_argument for weight in own_weights([layer]) if weight.created_trainable}
    taken = {a for a in inspect.signature(type(layer)).parameters if a.endswith("_constraint")}
    assert set(named.values()) == taken
    for number, argument in enumerate(named.values()):
        setattr(layer, argument, ib.MaxNorm(number + 1.0))
    again = type(layer).from_config(layer.get_config())
    again.build(shape)
    for number, (weight, argument) in enumerate(named.items()):
        assert getattr(again, argument) == ib.MaxNorm(number + 1.0)
        (variable,) = [v for v in again.trainable_variables if v.name == weight]
        assert variable.constraint == ib.MaxNorm(number + 1.0)


@pytest.mark.once
def test_a_recurrent_layers_arguments_are_read_only_properties_of_its_cells():
    """Else `attach._set_layer_argument` would set an attribute other than the saved one."""
    layer = keras.layers.LSTM(2)
    layer.build((1, 3, 2))
    assert isinstance(type(layer).kernel_constraint, property)
    layer.cell.kernel_constraint = ib.MaxNorm(1.0)
    assert layer.get_config()["kernel_constraint"]["config"]["max_value"] == 1.0


def test_a_plain_attribute_of_a_variable_holds_its_constraint():
    """Else no plan could be put on a variable."""
    variable = dense().kernel
    mark = ib.MaxNorm(1.0)
    variable.constraint = mark
    assert variable.constraint is mark


@pytest.mark.by_turns
def test_quantization_replaces_the_variable_and_forgets_its_constraint():
    """If it kept it, an audit could stop saying that the set is unenforced."""
    layer = dense(kernel_constraint=keras.constraints.NonNeg())
    old = layer.kernel
    layer.quantize("int8")
    assert layer._kernel is not old
    assert layer._kernel.constraint is None


QUANTIZED = {
    "Dense": ((2,), (None, 4), ["int8", "int4", "float8"]),
    "EinsumDense": (("ab,bc->ac", 2), (None, 4), ["int8", "int4", "float8"]),
    "Embedding": ((4, 2), (None, 3), ["int8", "int4"]),
    "ReversibleEmbedding": ((4, 2), (None, 3), ["int8", "int4"]),
}


def test_only_these_layers_of_keras_quantize():
    """Else a layer has another weight that it doesn't compute with as stored: see `weights`."""
    base = keras.layers.Layer.quantize
    classes = [c for c in vars(keras.layers).values() if inspect.isclass(c) and issubclass(c, keras.layers.Layer)]
    assert {
        c.__name__ for c in classes if c.quantize is not base and c.__module__.startswith("keras.src.layers")
    } == set(QUANTIZED)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, (_, _, modes) in QUANTIZED.items() for mode in modes]
)
def test_a_quantized_layer_names_its_mode_and_stores_integers_beside_their_scale(name, mode):
    """Else `weights` would take integers for the weight.

    test_audit compares its numbers with outputs.
    """
    arguments, shape, _ = QUANTIZED[name]
    layer = getattr(keras.layers, name)(*arguments)
    layer.build(shape)
    assert layer.quantization_mode is None
    weight = "embeddings" if "Embedding" in name else "kernel"
    layer.quantize(mode, type_check=False)
    assert layer.quantization_mode == mode
    (variable,) = [v for v in layer.weights if v.name == weight]
    if mode == "float8":
        assert keras.backend.standardize_dtype(variable.dtype) == "float32"
        assert variable.trainable
        assert all(v.overwrite_with_gradient for v in layer.trainable_weights if v.name not in (weight, "bias"))
        return
    assert keras.backend.standardize_dtype(variable.dtype) == "int8"
    assert not variable.trainable
    assert isinstance(getattr(layer, f"{weight}_scale"), keras.Variable)
    if mode == "int4":
        assert variable.shape[-1] == 1, "two in one"
        assert weight == "embeddings" or layer.kernel_scale.shape[-1] == 2
        assert name != "EinsumDense" or tuple(layer.original_kernel_shape) == (4, 2)


@pytest.mark.once
@pytest.mark.parametrize("name", ["Dense", "EinsumDense", "Embedding", "Conv1D", "Conv2D", "Conv3D"])
def test_an_adapter_is_two_weights_named_after_theirs_and_their_share(name):
    """Else `weights` would not find the sum, nor `rules.why_unenforceable` that there is one."""
    layers = {
        "Dense": (keras.layers.Dense(2), (None, 3)),
        "EinsumDense": (keras.layers.EinsumDense("ab,bc->ac", 2), (None, 3)),
        "Embedding": (keras.layers.Embedding(4, 2), (None, 3)),
        "Conv1D": (keras.layers.Conv1D(2, 2), (None, 5, 3)),
        "Conv2D": (keras.layers.Conv2D(2, 2), (None, 5, 5, 3)),
        "Conv3D": (keras.layers.Conv3D(2, 2), (None, 5, 5, 5, 3)),
    }
    layer, shape = layers[name]
    layer.build(shape)
    layer.enable_lora(2, lora_alpha=3.0)
    weight = "embeddings" if name == "Embedding" else "kernel"
    down, up = (getattr(layer, f"lora_{weight}_{part}") for part in "ab")
    assert (layer.lora_alpha, layer.lora_rank, layer.lora_enabled) == (3.0, 2, True)
    (stored,) = [v for v in layer.weights if v.name == weight]
    assert (*down.shape[:-1], up.shape[-1]) == tuple(stored.shape)
    assert not stored.trainable


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_torch_tells_what_is_vectorized():
    """Else `ops.is_concrete` would look at values that vmap hides.

    Loops of projections would fail in it.
    """
    import torch

    told = []
    asked = torch._C._functorch.is_functorch_wrapped_tensor
    torch.func.vmap(lambda x: (told.append(asked(x)), x)[1])(torch.ones(2, 3))
    assert told == [True]
    assert not asked(torch.ones(3))


def test_every_list_of_callbacks_is_handed_its_model_by_set_model(monkeypatch):
    """Else no fit would have a ProjectionCallback: `fit_hooks.hook_fits`."""
    handed = []
    original = keras.callbacks.CallbackList.set_model
    monkeypatch.setattr(
        keras.callbacks.CallbackList,
        "set_model",
        lambda self, model: handed.append(type(self.callbacks[0]).__name__) or original(self, model),
    )
    model = keras.Sequential([dense()])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    assert handed == ["History"]


def test_a_fit_begins_an_epoch_after_all_callbacks_have_begun_and_evaluates_before_the_epoch_ends():
    """Else ProjectionCallback would project before callbacks load weights, or after they save."""
    events = []

    class Listening(keras.callbacks.Callback):
        def __getattribute__(self, name):
            if name in ("on_train_begin", "on_epoch_begin", "on_test_begin", "on_epoch_end", "on_train_end"):
                events.append(name)
            return super().__getattribute__(name)

    model = keras.Sequential([dense()])
    model.compile("sgd", "mse")
    data = np.ones((2, 3)), np.ones((2, 2))
    callbacks = keras.callbacks.CallbackList([Listening()], model=model, add_history=True, epochs=1, verbose=0, steps=1)
    events.clear()
    model.fit(*data, verbose=0, validation_data=data, callbacks=callbacks)
    assert list(dict.fromkeys(events)) == [
        "on_train_begin",
        "on_epoch_begin",
        "on_test_begin",
        "on_epoch_end",
        "on_train_end",
    ]


def test_averages_are_swapped_in_and_out_by_one_method_that_is_told_apart_by_a_flag():
    """Else averages would be evaluated as they are: `fit_hooks._project_after_swap`."""
    model = keras.Sequential([dense()])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    seen = []
    callback._swap_variables = lambda: seen.append(callback._ema_weights_in_model)
    callback.on_test_begin()
    callback.on_test_end()
    assert seen == [False, True]
    assert len(model.optimizer._model_variables_moving_average) == len(model.optimizer._trainable_variables)


def test_an_optimizer_keeps_what_it_lists_and_saves_in_a_plain_list():
    """Else norms of gradients would be lost between steps on JAX, or be in files: `taken_plans`."""
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable(np.ones(2))])
    extra = keras.Variable(np.ones(3), trainable=False)
    before = len(optimizer.variables)
    optimizer._variables.append(extra)
    assert optimizer.variables[-1] is extra
    saved = {}
    optimizer.save_own_variables(saved)
    assert len(saved) == before + 1
    for method in ("save_own_variables", "load_own_variables"):
        assert not any(
            method in vars(kind)
            for kind in vars(keras.optimizers).values()
            if kind is not keras.optimizers.Optimizer and isinstance(kind, type)
        )


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only JAX keeps the state of a fit apart from the variables"
)
def test_on_jax_a_fit_is_told_by_the_state_that_it_holds():
    """Else a plan made in a fit would lengthen a list that the fit has taken: `attach._rehook`."""
    model = keras.Sequential([dense()])
    model.compile("sgd", "mse")
    seen = []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(bool(model._jax_state)))
    model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0, callbacks=[look])
    assert seen == [True]
    assert not model._jax_state


@pytest.mark.skipif(BACKEND == "tensorflow", reason="where Keras calls no callback from another thread")
def test_callbacks_are_asked_again_whether_they_are_safe_in_another_thread():
    """Else a Monitor in no list would audit while the model steps.

    See `fit_hooks._add_projection_callback`.
    """
    callbacks = keras.callbacks.CallbackList()
    assert callbacks._async_train
    callbacks._configure_async_dispatch([ib.Monitor()])
    assert not callbacks._async_train


@pytest.mark.parametrize("name", ["fit", "train_on_batch"])
def test_every_model_of_keras_is_trained_by_the_method_of_keras_model(name):
    """Else a training that raises would end outside, and other threads wouldn't know of it.

    See `fit_hooks.hook_fits`.
    """
    inputs = keras.Input((3,))
    for model in (keras.Sequential([dense()]), keras.Model(inputs, dense()(inputs))):
        assert getattr(type(model), name) is getattr(keras.Model, name)
    assert getattr(keras.Model, name).watched_by_inbounds
    assert inspect.signature(getattr(keras.Model, name)).parameters["x"].name == "x"


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX takes the values out of variables")
def test_on_jax_a_fit_empties_the_variables_which_have_no_initializer_any_more():
    """Else `weight_access.has_lost_value` would take an emptied variable for one with a value."""
    model = keras.Sequential([dense()])
    model.compile("sgd", "mse")
    seen = []

    def lost(state, iterator):
        for variable in model.variables:
            with pytest.raises(TypeError):
                _ = variable.value
            seen.append(variable.path)
        raise OSError("it is over")

    model.make_train_function()
    model.train_function = lost
    with pytest.raises(OSError, match="it is over"):
        model.fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    assert len(seen) == 2


def test_no_other_private_name_of_keras_is_used():
    """What the library reaches for by a private name of Keras is pinned in this file."""
    pinned = {
        "_backend_update_step",
        "_backend_apply_gradients",
        "_all_reduce_sum_gradients",
        "_apply_weight_decay",
        "_update_model_variables_moving_average",
        "_iterations",
        "_trainable_variables",
        "_non_trainable_variables",
        "_variables",  # of an optimizer
        "_flatten_layers",
        "_get_variable_index",
        "_ema_weights_in_model",
        "_configure_async_dispatch",
        "_foreach_copy_",  # of torch
        "_C",  # of torch
        "_functorch",  # of torch
    }
    own = set()
    used = set()
    for path in Path(ib.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
                used.add(node.attr)
    assert used - own == pinned - {"_backend_update_step", "_backend_apply_gradients"} | (
        used & {"_backend_update_step", "_backend_apply_gradients"}
    )
