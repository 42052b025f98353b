"""Code written for Keras with only its constraints' import changed; `constrain` is never called."""

import inspect

import keras
import numpy as np
import pytest
from measure import inside, norms, numbers, on_bound, slack

from inbounds.constraints import MaxNorm, NonNeg, get, max_norm, min_max_norm, non_neg, unit_norm

pytestmark = pytest.mark.by_turns

BOUND = 0.5

# Every layer of Keras with a `*_constraint` argument: its other arguments, an input, and for each
# of its constraint arguments the weights it reaches with the axes that Keras sums over for one
# unit. None: the weight is one vector.
ONE_KERNEL = {"kernel_constraint": {"kernel": (0,)}, "bias_constraint": {"bias": None}}
RECURRENT = {
    "kernel_constraint": {"/kernel": (0,)},
    "recurrent_constraint": {"recurrent_kernel": (0,)},
    "bias_constraint": {"bias": None},
}
NORMALIZATION = {"gamma_constraint": {"gamma": None}, "beta_constraint": {"beta": None}}
ATTENTION = {
    "kernel_constraint": {
        "query/kernel": (0,),
        "key/kernel": (0,),
        "value/kernel": (0,),
        "attention_output/kernel": (0, 1),
    },
    "bias_constraint": {"query/bias": None, "key/bias": None, "value/bias": None, "attention_output/bias": None},
}


def convolution(*axes):
    return {"kernel_constraint": {"kernel": axes}, "bias_constraint": {"bias": None}}


def conv_lstm(*axes):
    return {
        "kernel_constraint": {"/kernel": axes},
        "recurrent_constraint": {"recurrent_kernel": axes},
        "bias_constraint": {"bias": None},
    }


def depthwise(*axes):
    return {"depthwise_constraint": {"kernel": axes}, "bias_constraint": {"bias": None}}


def separable(window, pointwise):
    return {
        "depthwise_constraint": {"depthwise_kernel": window},
        "pointwise_constraint": {"pointwise_kernel": pointwise},
        "bias_constraint": {"bias": None},
    }


EINSUM = {"equation": "abc,cde->abde", "output_shape": (None, 2, 3), "bias_axes": "de"}
GROUPED = {"head_dim": 3, "num_query_heads": 2, "num_key_value_heads": 1}
FILTERS = {"filters": 3, "kernel_size": 2}
LAYERS = {
    "Dense": ({"units": 3}, (2, 4), ONE_KERNEL),
    "EinsumDense": (EINSUM, (2, 3, 4), ONE_KERNEL),
    "Embedding": ({"input_dim": 5, "output_dim": 3}, (2, 4), {"embeddings_constraint": {"embeddings": (1,)}}),
    "ReversibleEmbedding": ({"input_dim": 5, "output_dim": 3}, (2, 4), {"embeddings_constraint": {"embeddings": (1,)}}),
    "Conv1D": (FILTERS, (2, 5, 3), convolution(0, 1)),
    "Conv2D": (FILTERS, (2, 5, 5, 3), convolution(0, 1, 2)),
    "Conv3D": (FILTERS, (2, 3, 3, 3, 3), convolution(0, 1, 2, 3)),
    "Conv1DTranspose": (FILTERS, (2, 5, 4), convolution(0, 2)),
    "Conv2DTranspose": (FILTERS, (2, 5, 5, 4), convolution(0, 1, 3)),
    "Conv3DTranspose": (FILTERS, (2, 4, 4, 4, 4), convolution(0, 1, 2, 4)),
    "DepthwiseConv1D": ({"kernel_size": 3, "depth_multiplier": 2}, (2, 5, 3), depthwise(0)),
    "DepthwiseConv2D": ({"kernel_size": 3, "depth_multiplier": 2}, (2, 5, 5, 3), depthwise(0, 1)),
    "SeparableConv1D": (FILTERS, (2, 5, 4), separable((0,), (0, 1))),
    "SeparableConv2D": (FILTERS, (2, 5, 5, 4), separable((0, 1), (0, 1, 2))),
    "SimpleRNN": ({"units": 3}, (2, 4, 2), RECURRENT),
    "LSTM": ({"units": 3}, (2, 4, 2), RECURRENT),
    "GRU": ({"units": 3}, (2, 4, 2), RECURRENT),
    "SimpleRNNCell": ({"units": 3}, (2, 4), RECURRENT),
    "LSTMCell": ({"units": 3}, (2, 4), RECURRENT),
    "GRUCell": ({"units": 3}, (2, 4), RECURRENT),
    "ConvLSTM1D": (FILTERS, (2, 3, 5, 2), conv_lstm(0, 1)),
    "ConvLSTM2D": (FILTERS, (2, 3, 5, 5, 2), conv_lstm(0, 1, 2)),
    "ConvLSTM3D": (FILTERS, (2, 3, 4, 4, 4, 2), conv_lstm(0, 1, 2, 3)),
    "MultiHeadAttention": ({"num_heads": 2, "key_dim": 3}, ((2, 4, 6), (2, 4, 6)), ATTENTION),
    "GroupQueryAttention": (GROUPED, ((2, 4, 6), (2, 4, 6)), ATTENTION),
    "BatchNormalization": ({}, (2, 4), NORMALIZATION),
    "LayerNormalization": ({}, (2, 4), NORMALIZATION),
    "GroupNormalization": ({"groups": 2}, (2, 4), NORMALIZATION),
    "PReLU": ({}, (2, 4), {"alpha_constraint": {"alpha": None}}),
}  # fmt: skip


ARGUMENTS = {name: list(reached) for name, (_, _, reached) in LAYERS.items()}


def built(name, **constraints):
    """A layer with weights of known numbers; Keras' initializers take seconds to compile on JAX."""
    arguments, shape, _ = LAYERS[name]
    layer_class = getattr(keras.layers, name)
    zeros = {
        argument: "zeros" for argument in inspect.signature(layer_class).parameters if argument.endswith("_initializer")
    }
    layer = layer_class(**arguments, **zeros, **constraints)
    if isinstance(shape[0], tuple):
        layer.build(*shape)
    else:
        layer.build(shape)
    for variable, value in zip(layer.trainable_variables, drawn(layer, seed=1), strict=True):
        variable.assign(0.01 * value)  # well inside, where the whole gradient is seen
    return layer


def drawn(layer, seed):
    noise = np.random.default_rng(seed)
    return [noise.normal(0, 1, tuple(v.shape)).astype("float32") for v in layer.trainable_variables]


def stepped(layer):
    """The layer after one step of SGD, and by weights' paths where the step alone would lead."""
    pulls = drawn(layer, seed=2)
    for pull in pulls:
        pull.flat[0] += 5  # far enough for every set to be left
    free = {v.path: np.float32(numbers(v)) - pull for v, pull in zip(layer.trainable_variables, pulls, strict=True)}
    gradients = [keras.ops.convert_to_tensor(pull) for pull in pulls]
    keras.optimizers.SGD(1.0).apply(gradients, layer.trainable_variables)
    return layer, free


def weight(layer, end):
    """The layer's weight whose path ends so."""
    (found,) = [v for v in layer.trainable_variables if f"/{v.path}".endswith(f"/{end.strip('/')}")]
    return found


def in_ball(value, axes):
    """The nearest point whose units have norms of at most BOUND."""
    value = numbers(value)
    length = np.sqrt(np.sum(value**2, axis=axes, keepdims=True))
    return value * np.minimum(1.0, BOUND / length)


def assert_stepped(layer, free, bounded, positive):
    """That each weight is where its own constraint, or none, leaves it after the step."""
    reached = {weight(layer, end).path: axes for argument in bounded for end, axes in argument.items()}
    clipped = {weight(layer, end).path for argument in positive for end in argument}
    assert not reached.keys() & clipped
    for variable in layer.trainable_variables:
        alone = free[variable.path]
        if variable.path in reached:
            assert on_bound(norms((variable, reached[variable.path])), BOUND)
            nearest = in_ball(alone, reached[variable.path])
            np.testing.assert_allclose(numbers(variable), nearest, rtol=0, atol=slack(BOUND))
        elif variable.path in clipped:
            assert np.min(alone) < 0
            np.testing.assert_array_equal(numbers(variable), np.maximum(alone, 0))
        else:
            np.testing.assert_array_equal(numbers(variable), alone)


def test_table_has_every_layer_and_every_constraint_argument():
    for name, layer_class in vars(keras.layers).items():
        if inspect.isclass(layer_class) and issubclass(layer_class, keras.Layer):
            arguments = {a for a in inspect.signature(layer_class).parameters if a.endswith("_constraint")}
            known = name.replace("Convolution", "Conv")
            assert arguments == (set(LAYERS[known][2]) if arguments else set()), name


@pytest.mark.parametrize("name", list(LAYERS))
def test_every_layer_obeys_a_norm_on_one_argument_and_a_sign_on_the_others(name):
    first, *others = ARGUMENTS[name]
    layer, free = stepped(built(name, **{first: MaxNorm(BOUND)}, **dict.fromkeys(others, NonNeg())))
    reached = LAYERS[name][2]
    assert_stepped(layer, free, [reached[first]], [reached[argument] for argument in others])


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name in ("Dense", "LSTM", "SeparableConv2D", "EinsumDense") for argument in ARGUMENTS[name]],
)
def test_each_argument_bounds_the_units_of_its_own_weights_only(name, argument):
    layer, free = stepped(built(name, **{argument: MaxNorm(BOUND)}))
    assert_stepped(layer, free, [LAYERS[name][2][argument]], [])


@pytest.mark.parametrize("name", ["Bidirectional", "TimeDistributed", "RNN", "SpectralNormalization"])
def test_wrapped_layers_obey_their_own_arguments(name):
    inner = {"RNN": keras.layers.LSTMCell, "Bidirectional": keras.layers.LSTM}.get(name, keras.layers.Dense)
    layer = getattr(keras.layers, name)(inner(3, kernel_constraint=MaxNorm(BOUND), bias_constraint=NonNeg()))
    layer.build((2, 4) if name == "SpectralNormalization" else (2, 4, 2))
    for variable in layer.trainable_variables:
        variable.assign(0.01 * numbers(variable))  # well inside, as in `built`
    layer, free = stepped(layer)
    ends = {v.path: v.name for v in layer.trainable_variables}
    kernels = [{path: (0,)} for path, end in ends.items() if end == "kernel"]
    biases = [{path: None} for path, end in ends.items() if end == "bias"]
    assert len(kernels) == len(biases) == (2 if name == "Bidirectional" else 1)
    assert_stepped(layer, free, kernels, biases)


# Models, as in Keras' guides.


def functional(**constraints):
    inputs = keras.Input((64,))
    x = keras.layers.Dense(16, activation="relu", name="hidden", **constraints)(inputs)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="out", **constraints)(x))


class Subclassed(keras.Model):
    def __init__(self, **constraints):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation="relu", **constraints)
        self.out = keras.layers.Dense(10, activation="softmax", **constraints)

    def call(self, x):
        return self.out(self.hidden(x))


def convolutional(**constraints):
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(4, 2, activation="relu", **constraints),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", **constraints),
        ]
    )


def fitted(make, digits, steps=4, **constraints):
    keras.utils.set_random_seed(2)
    model = make(**constraints)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="sparse_categorical_crossentropy")
    model.fit(digits[0][: 32 * steps], digits[1][: 32 * steps], batch_size=32, verbose=0)
    return model


def kernels(model):
    return [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]


def biases(model):
    return [layer.bias for layer in model.layers if hasattr(layer, "bias")]


def all_but_last(kernel):
    return tuple(range(len(kernel.shape) - 1))


def test_fit_without_constraints_leads_outside(digits):
    free = fitted(functional, digits)
    assert not all(inside(norms((kernel, all_but_last(kernel))), BOUND) for kernel in kernels(free))
    assert min(np.min(numbers(bias)) for bias in biases(free)) < 0


@pytest.mark.parametrize("make", [Subclassed, convolutional])
def test_fit_keeps_kernels_in_the_ball_and_biases_from_below_zero(make, digits):
    model = fitted(make, digits, kernel_constraint=max_norm(BOUND), bias_constraint=non_neg())
    assert all(on_bound(norms((kernel, all_but_last(kernel))), BOUND) for kernel in kernels(model))
    together = np.concatenate([numbers(bias) for bias in biases(model)])
    assert np.min(together) == 0 < np.max(together)


def test_a_filter_is_what_max_norm_bounds_on_a_convolution_unlike_in_keras(digits):
    shared = MaxNorm(BOUND)  # one object for all layers, as a loop over a config would
    model = fitted(convolutional, digits, kernel_constraint=shared)
    kernel = model.layers[1].kernel
    assert tuple(kernel.shape) == (2, 2, 1, 4)
    assert on_bound(norms((kernel, (0, 1, 2))), BOUND)
    theirs = fitted(convolutional, digits, kernel_constraint=keras.constraints.MaxNorm(BOUND))
    assert not inside(norms((theirs.layers[1].kernel, (0, 1, 2))), BOUND), "Keras bounds along the first axis only"


def test_an_explicit_axis_is_obeyed_as_in_keras(digits):
    model = fitted(convolutional, digits, kernel_constraint=max_norm(0.1, axis=0))
    kernel = model.layers[1].kernel
    assert on_bound(norms((kernel, (0,))), 0.1)
    assert not inside(norms((kernel, (0, 1, 2))), 0.1)


@pytest.mark.parametrize(
    ("constraint", "low", "high"),
    [
        (unit_norm(), 1.0, 1.0),
        (min_max_norm(1.5, 2.0, rate=1.0, axis=0), 1.5, 2.0),
        (max_norm(), 0.0, 2.0),
        (keras.constraints.NonNeg(), 0.0, np.inf),
    ],
    ids=["unit_norm", "min_max_norm", "max_norm", "keras NonNeg"],
)
def test_each_constraint_of_keras_has_a_twin_with_its_arguments(constraint, low, high, digits):
    model = fitted(functional, digits, kernel_constraint=constraint)
    for kernel in kernels(model):
        length = norms((kernel, (0,)))
        assert np.all(length >= low - slack(1.0))
        assert np.all(length <= high + slack(2.0))


def test_plain_callables_work_as_in_keras(digits):
    def half_range(w):
        return keras.ops.clip(w, -0.05, 0.05)

    model = fitted(functional, digits, kernel_constraint=half_range, bias_constraint=lambda w: keras.ops.abs(w))
    for kernel, bias in zip(kernels(model), biases(model), strict=True):
        assert np.max(np.abs(numbers(kernel))) == np.float32(0.05)
        assert np.min(numbers(bias)) >= 0
    assert model.layers[1].kernel_constraint is half_range


def test_a_constraint_class_or_a_name_works_where_keras_takes_one(digits):
    model = fitted(functional, digits, kernel_constraint=get("max_norm"), bias_constraint=NonNeg)
    assert all(inside(norms((kernel, (0,))), 2.0) for kernel in kernels(model))
    assert all(np.min(numbers(bias)) >= 0 for bias in biases(model))
    assert isinstance(model.layers[1].bias_constraint, NonNeg)


def test_a_weight_of_zeros_that_gets_no_pull_stays_zero():
    layer = keras.layers.Dense(3, kernel_constraint=MaxNorm(1.0), kernel_initializer="zeros")
    layer.build((2, 4))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([keras.ops.zeros(v.shape) for v in layer.trainable_variables], layer.trainable_variables)
    assert np.all(numbers(layer.kernel) == 0)


def test_weights_inside_are_not_worn_away_by_many_steps():
    layer = keras.layers.Dense(
        3, kernel_constraint=MaxNorm(2.0), kernel_initializer=keras.initializers.RandomNormal(0, 1e-4, seed=1)
    )
    layer.build((2, 4))
    before = numbers(layer.kernel)
    optimizer = keras.optimizers.SGD(1.0)
    for _ in range(50):
        optimizer.apply([keras.ops.zeros(v.shape) for v in layer.trainable_variables], layer.trainable_variables)
    np.testing.assert_array_equal(numbers(layer.kernel), before)
