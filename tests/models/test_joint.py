"""Joint: each unit's kernel and bias as one vector, given as a layer's arguments or in a rule."""

import keras
import numpy as np
import pytest
from measure import inside, joint_projection, norms, numbers, on_bound, slack

import inbounds as ib
from conformance.optimizers import OPTIMIZERS

pytestmark = pytest.mark.by_turns

BOUND = 0.4
BACKEND = keras.backend.backend()


def joint():
    return ib.Joint(ib.MaxNorm(BOUND))


def both(constraint):
    return {"kernel_constraint": constraint, "bias_constraint": constraint}


def sequential(constraints):
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(12, activation="relu", name="hidden", **constraints),
            keras.layers.Dense(10, activation="softmax", name="out", **constraints),
        ]
    )


def units(layer, axes=(0,)):
    """The norms of the joint vectors of a dense layer, or of one whose kernel has other axes."""
    return norms((layer.kernel, axes), (layer.bias, ()))


def train(model, digits, optimizer=None, steps=3, **arguments):
    model.compile(optimizer or keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", **arguments)
    return fit(model, digits, steps)


def fit(model, digits, steps=3):
    model.fit(digits[0][: 32 * steps], digits[1][: 32 * steps], batch_size=32, shuffle=False, verbose=0)
    return model


def dense(constraints, inputs=5, units=4, **arguments):
    """A built dense layer with random numbers in kernel and bias, some units outside."""
    layer = keras.layers.Dense(units, **constraints, **arguments)
    layer.build((None, inputs))
    noise = np.random.default_rng(3)
    for variable in layer.weights:
        variable.assign(noise.normal(0, 0.2, tuple(variable.shape)).astype("float32"))
    return layer


def skip_where_keras_fails(name):
    if "loss" in name and BACKEND == "jax":
        pytest.skip("Keras' own LossScaleOptimizer.apply leaks a tracer on JAX; fit, which is tested too, works")


def pulls(variables, seed=4):
    noise = np.random.default_rng(seed)
    return [keras.ops.convert_to_tensor(noise.normal(0, 1, tuple(v.shape)).astype("float32")) for v in variables]


# Every optimizer.

IN_THEIR_METRIC = ("RMSprop", "Adagrad", "Adadelta", "Ftrl")
"""Optimizers that step along each gradient as it comes.

Adafactor does too, at a rate for each weight of a Joint.
"""


def implied_metric(name, steps):
    """The metric of an optimizer that steps entry by entry: the gradient over its first step."""
    layer = dense({})
    gradients = np.concatenate([np.atleast_2d(numbers(pull)) for pull in pulls(layer.trainable_variables)])
    if name == "Ftrl":  # which starts from nothing, not from the weights; its documented formula
        return np.sqrt(0.1 + gradients**2).T
    return np.abs(gradients / np.concatenate([np.atleast_2d(step) for step in steps])).T


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Adafactor"])
def test_a_step_of_any_optimizer_is_its_own_step_and_the_nearest_joint_vectors(name):
    skip_where_keras_fails(name)
    free, held = dense({}), dense(both(joint()))
    for layer in (free, held):
        kernel, bias = joint_projection(layer.kernel, layer.bias, 0.95 * BOUND)  # inside, where gradients are whole
        layer.kernel.assign(kernel.astype("float32"))
        layer.bias.assign(bias.astype("float32"))
    before = numbers(free.kernel), numbers(free.bias)
    for layer in (free, held):
        OPTIMIZERS[name]().apply(pulls(layer.trainable_variables), layer.trainable_variables)
    assert not inside(units(free), BOUND), "the step leads outside"
    steps = numbers(free.kernel) - before[0], numbers(free.bias) - before[1]
    if "before" in name:  # two optimizers, one after the other, each with a step and a projection
        first = (steps[0], 0) if name.startswith("kernels") else (0, steps[1])
        halfway = joint_projection(before[0] + first[0], before[1] + first[1], BOUND)
        kernel, bias = joint_projection(halfway[0] + steps[0] - first[0], halfway[1] + steps[1] - first[1], BOUND)
    elif name in IN_THEIR_METRIC:
        rows = np.concatenate([numbers(free.kernel), np.atleast_2d(numbers(free.bias))]).T
        nearest = ib.MaxNorm(BOUND).project(rows, implied_metric(name, steps)).T
        kernel, bias = nearest[:-1], nearest[-1]
    else:
        kernel, bias = joint_projection(free.kernel, free.bias, BOUND)
    close = 2e-5 if name in IN_THEIR_METRIC else slack(BOUND)
    np.testing.assert_allclose(numbers(held.kernel), kernel, rtol=0, atol=close)
    np.testing.assert_allclose(numbers(held.bias), bias, rtol=0, atol=close)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_half_precision_weights_are_inside_within_their_own_rounding(policy):
    layer = keras.layers.Dense(4, dtype=policy, **both(joint()))
    layer.build((None, 5))
    gradients = [keras.ops.cast(pull, policy) for pull in pulls(layer.trainable_variables)]
    keras.optimizers.SGD(1.0).apply(gradients, layer.trainable_variables)
    ulp = BOUND * (2.0**-8 if policy == "bfloat16" else 2.0**-11) * 2
    assert np.all(units(layer) <= BOUND + 4 * ulp)
    assert np.any(units(layer) >= BOUND - 4 * ulp)


# One of the two doesn't train.


@pytest.mark.repeats("by")
@pytest.mark.parametrize("still", ["kernel", "bias"])
@pytest.mark.parametrize("by", ["arguments", "rule"])
def test_a_frozen_weight_stays_and_the_other_keeps_the_vector_inside(still, by, digits):
    model = sequential(both(joint()) if by == "arguments" else {})
    for layer in model.layers:
        layer.kernel.assign(numbers(layer.kernel).astype("float32") * 0.2)
        layer.bias.assign(np.linspace(0.05, 0.2, layer.units).astype("float32"))
        getattr(layer, still).trainable = False
    frozen = [numbers(getattr(layer, still)) for layer in model.layers]
    if by == "rule":
        ib.constrain(model, {keras.layers.Dense: joint()})
    free = sequential({})
    free.set_weights(model.get_weights())
    for layer in free.layers:
        getattr(layer, still).trainable = False
    train(free, digits, keras.optimizers.SGD(30.0))
    train(model, digits, keras.optimizers.SGD(30.0))
    assert not all(inside(units(layer), BOUND) for layer in free.layers), "training leads outside"
    for layer, before in zip(model.layers, frozen, strict=True):
        np.testing.assert_array_equal(numbers(getattr(layer, still)), before)
        assert inside(units(layer), BOUND)
    assert any(on_bound(units(layer), BOUND) for layer in model.layers)
    assert ib.audit(model).ok


def test_with_a_frozen_bias_the_kernel_goes_to_the_nearest_point_that_the_bias_leaves_it():
    layer = dense(both(joint()))
    layer.bias.assign([0.3, -0.1, 0.0, 0.2])
    layer.bias.trainable = False
    layer.kernel.assign(0.1 * numbers(layer.kernel))  # well inside, where the whole gradient is seen
    start = numbers(layer.kernel)
    gradient = pulls([layer.kernel])
    keras.optimizers.SGD(1.0).apply(gradient, [layer.kernel])
    stepped = start - numbers(gradient[0])
    radius = np.sqrt(BOUND**2 - numbers(layer.bias) ** 2)
    nearest = stepped * np.minimum(1.0, radius / np.sqrt(np.sum(stepped**2, axis=0)))
    np.testing.assert_allclose(numbers(layer.kernel), nearest, rtol=0, atol=slack(BOUND))


def test_a_frozen_bias_that_is_outside_by_itself_is_an_error_and_moves_nothing():
    layer = dense(both(joint()))
    layer.bias.assign(np.full(layer.units, 2 * BOUND, "float32"))
    layer.bias.trainable = False
    before = numbers(layer.kernel)
    with pytest.raises(ib.RuleError, match=r"leave no room.*Received: .*bias, by themselves outside.*constrain"):
        keras.optimizers.SGD(1.0).build([layer.kernel])
    np.testing.assert_array_equal(numbers(layer.kernel), before)


# Keras says that a gradient is missing; here that is the case under test.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize("without", [0, 1], ids=["kernel", "bias"])
def test_a_weight_without_a_gradient_still_belongs_to_the_vector(without):
    layer = dense(both(joint()))
    for variable in layer.trainable_variables:
        variable.assign(0.1 * numbers(variable))  # well inside, where whole gradients are seen
    expected = [numbers(v) for v in layer.trainable_variables]
    gradients = pulls(layer.trainable_variables)
    expected[1 - without] -= numbers(gradients[1 - without])
    gradients[without] = None
    keras.optimizers.SGD(1.0).apply(gradients, layer.trainable_variables)
    kernel, bias = joint_projection(*expected, BOUND)
    np.testing.assert_allclose(numbers(layer.kernel), kernel, rtol=0, atol=slack(BOUND))
    np.testing.assert_allclose(numbers(layer.bias), bias, rtol=0, atol=slack(BOUND))


def test_without_a_bias_the_kernel_carries_the_set_alone(digits):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, use_bias=False, **both(joint()))])
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, digits)
    assert on_bound(norms((model.layers[0].kernel, (0,))), BOUND)


# Copies.


@pytest.mark.repeats("by", "trained")
@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("by", ["arguments", "rule"])
def test_a_model_made_from_json_keeps_its_joint_vectors_inside(by, trained, digits):
    model = sequential(both(joint()) if by == "arguments" else {})
    if by == "rule":
        ib.constrain(model, {keras.layers.Dense: joint()})
    if trained:
        train(model, digits)
    again = keras.models.model_from_json(model.to_json())
    assert again.layers[0].kernel_constraint == joint()
    train(again, digits)
    assert all(inside(units(layer), BOUND) for layer in again.layers)
    assert any(on_bound(units(layer), BOUND) for layer in again.layers)
    assert ib.audit(again).ok
    assert not any(a is b for a, b in zip(model.weights, again.weights, strict=True))


def test_one_object_serves_many_layers_each_with_its_own_vectors(digits):
    shared = joint()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(3, 3, **both(shared)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, **both(shared)),
            keras.layers.Dense(10, activation="softmax", **both(shared)),
        ]
    )
    train(model, digits)
    _, convolution, _, *ends = model.layers
    assert on_bound(units(convolution, (0, 1, 2)), BOUND)
    assert all(inside(units(layer), BOUND) for layer in ends)
    assert any(on_bound(units(layer), BOUND) for layer in ends)


# Arguments of other names, and units with entries in three weights. tests/layout has all layers,
# under rules.


ALL_THREE = ib.Joint(ib.MaxNorm(BOUND), weights=("kernel", "recurrent_kernel", "bias"))
LAYERS = {
    "LSTM": (
        lambda: keras.layers.LSTM(3, recurrent_constraint=ALL_THREE, **both(ALL_THREE)),
        (2, 4, 2),
        lambda cell: norms((cell.kernel, (0,)), (cell.recurrent_kernel, (0,)), (cell.bias, ())),
    ),
    "GRU": (
        lambda: keras.layers.GRU(3, **both(joint())),
        (2, 4, 2),
        lambda cell: norms((cell.kernel, (0,)), (cell.bias, (0,))),
    ),
    "SeparableConv2D": (
        lambda: keras.layers.SeparableConv2D(3, 2, pointwise_constraint=joint(), bias_constraint=joint()),
        (2, 5, 5, 4),
        lambda layer: norms((layer.pointwise_kernel, (0, 1, 2)), (layer.bias, ())),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_arguments_of_a_layer_make_its_joint_vectors(name):
    make, shape, measured = LAYERS[name]
    layer = make()
    layer.build(shape)
    keras.optimizers.SGD(1.0).apply(pulls(layer.trainable_variables), layer.trainable_variables)
    assert on_bound(measured(getattr(layer, "cell", layer)), BOUND)


def test_a_joint_of_a_sign_is_the_sign_on_both():
    layer = dense(both(ib.Joint(ib.NonNeg())))
    keras.optimizers.SGD(1.0).apply(pulls(layer.trainable_variables), layer.trainable_variables)
    assert np.min(numbers(layer.kernel)) == 0 == np.min(numbers(layer.bias))


def test_a_joint_with_array_bounds_has_one_for_each_entry_of_the_vector():
    layer = dense({}, inputs=2, units=3)
    ib.constrain(layer, {layer: ib.Joint(ib.Box([-1, -2, -3], [0.1, 0.2, 0.05]))})
    for variable in layer.weights:
        variable.assign(keras.ops.ones(variable.shape))
    ib.project(layer)
    np.testing.assert_array_equal(numbers(layer.kernel), np.float32([[0.1] * 3, [0.2] * 3]))
    np.testing.assert_array_equal(numbers(layer.bias), np.float32([0.05] * 3))


# What can't be.


@pytest.mark.parametrize("given", ["kernel", "bias"])
def test_a_joint_on_one_argument_only_is_an_error_that_says_what_to_do(given, digits):
    model = sequential({f"{given}_constraint": joint()})
    other = "bias" if given == "kernel" else "kernel"
    with pytest.raises(ib.RuleError, match=f"or the same Joint for {other} too"):
        train(model, digits)
    with pytest.raises(ib.RuleError, match=f"Received: none for [a-z/]*hidden/{other}"):
        ib.constrain(model)


def test_a_joint_called_on_one_weight_is_an_error_that_says_what_to_do():
    layer = dense({})
    with pytest.raises(ib.SetError, match=r"Received: w=dense/kernel.*constrain\(model\)"):
        joint()(layer.kernel)


def test_a_joint_over_units_that_do_not_match_is_an_error_that_says_why():
    layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e", kernel_constraint=joint())
    layer.build((2, 3, 4))
    with pytest.raises(ib.RuleError, match="units share entries of the bias"):
        ib.constrain(layer, {layer: joint()})


def test_a_joint_naming_weights_that_the_layer_lacks_is_an_error_that_names_those_it_has():
    layer = dense({})
    with pytest.raises(
        ib.RuleError, match=r"alpha.*a model with bias, kernel\. Instead: {'dense': {'kernel': MaxNorm\(.*\)}}\."
    ):
        ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(1.0), weights=("alpha", "beta"))})


def test_a_joint_on_the_only_weight_of_a_layer_is_an_error_that_says_the_set_alone():
    layer = keras.layers.Embedding(5, 3, embeddings_constraint=joint())
    layer.build()
    with pytest.raises(ib.RuleError, match=rf"doesn't name.*Instead: MaxNorm\(max_value={BOUND}\)\."):
        ib.constrain(layer)
