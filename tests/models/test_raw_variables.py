"""Loops of TensorFlow that give a Keras optimizer `variable.value` for the variable; tracing."""

import keras
import numpy as np
import pytest

import inbounds as ib
from models.measure import norms, numbers, on_bound, same_bits, values_of
from models.test_metric import BOUND, gap_of, network, problem

BACKEND = keras.backend.backend()
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="on other backends Keras refuses raw values")
KERNELS = {"**/kernel": ib.MaxNorm(BOUND)}
JOINT = {keras.layers.Dense: ib.Joint(ib.MaxNorm(BOUND))}
o = keras.optimizers


def stepper(model, optimizer, *, traced=False):
    """One step on all data, in which the optimizer sees raw values only."""
    import tensorflow as tf

    x, y = problem()

    def step():
        raw = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, model(x)))
        optimizer.apply_gradients(zip(tape.gradient(loss, raw), raw, strict=True))

    return tf.function(step) if traced else step


def falling(rate):
    return o.schedules.CosineDecay(rate, 400, alpha=1e-3)


OPTIMIZERS = {
    "Adam": lambda: o.Adam(falling(0.02)),
    "loss scale": lambda: o.LossScaleOptimizer(o.Adam(falling(0.02)), initial_scale=1.0),
    "average": lambda: o.Adam(falling(0.02), use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
}


@tensorflow_only
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_raw_values_are_held_in_the_optimizers_metric(name):
    model, optimizer = network(), OPTIMIZERS[name]()
    ib.constrain(model, KERNELS)
    step = stepper(model, optimizer, traced=True)
    for _ in range(400):
        step()
    ib.check(model)
    assert gap_of(model) < 0.02


@tensorflow_only
def test_a_step_with_raw_values_is_the_step_with_the_variables():
    ends = []
    for raw in (True, False):
        model, optimizer = network(), o.Adam(0.1)
        ib.constrain(model, JOINT)
        for _ in range(3):
            given = [v.value if raw else v for v in model.trainable_variables]
            optimizer.apply([keras.ops.ones(v.shape) for v in given], given)
        ends.append(values_of(model))
    assert same_bits(*ends)


@tensorflow_only
@pytest.mark.parametrize("built", ["with values", "with variables"])
@pytest.mark.parametrize("rules", [KERNELS, JOINT], ids=["kernel", "joint"])
def test_a_plan_made_after_the_optimizer_was_built_holds(built, rules):
    model, optimizer = network(), o.SGD(5.0)
    optimizer.build([v.value if built == "with values" else v for v in model.trainable_variables])
    ib.constrain(model, rules)
    stepper(model, optimizer)()
    layer = model.layers[0]
    assert on_bound(norms((layer.kernel, (0,)), *([] if rules is KERNELS else [(layer.bias, ())])), BOUND)
    ib.release(model)
    stepper(model, optimizer)()
    assert norms((layer.kernel, (0,))) > BOUND


class OwnVariable(keras.layers.Layer):
    """x + v, without `add_weight` for v: until a plan is made, only the layer knows whose v is."""

    def build(self, shape):
        self.v = keras.Variable(np.zeros(shape[-1]), name="v")

    def call(self, x):
        return x + self.v


@tensorflow_only
@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # the layer takes no constraints as arguments
def test_a_plan_holds_for_values_that_the_optimizer_could_not_tell_when_it_was_built():
    model, optimizer = keras.Sequential([keras.Input((2,)), OwnVariable(name="own")]), o.SGD(5.0)
    (raw,) = [variable.value for variable in model.trainable_variables]
    optimizer.build([raw])
    ib.constrain(model, {"own/v": ib.Box(-1, 1)})
    optimizer.apply([keras.ops.ones(2)], [raw])
    assert numbers(raw.value()).tolist() == [-1, -1]


@tensorflow_only
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "tf.function"])
def test_sets_given_to_layers_hold_where_raw_values_are_stepped(traced):
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(1, kernel_constraint=ib.MaxNorm(BOUND))])
    optimizer = o.SGD(5.0)
    optimizer.build([variable.value for variable in model.trainable_variables])  # tf.function makes no variables later
    stepper(model, optimizer, traced=traced)()
    assert on_bound(norms((model.layers[0].kernel, (0,))), BOUND)


@tensorflow_only
def test_raw_values_of_no_layer_are_stepped_as_ever():
    import tensorflow as tf

    alone = tf.Variable([1.0, 2.0])
    o.SGD(0.5).apply([tf.ones(2)], [alone])
    assert numbers(alone.value()).tolist() == [0.5, 1.5]


@tensorflow_only
def test_autograph_reads_nothing_of_project(monkeypatch):
    """It would warn of what it can't read, and rewrite the rest."""
    import tensorflow as tf

    model, told = network(), []
    ib.constrain(model, KERNELS)
    model.layers[0].kernel.assign(np.ones((30, 1)))
    monkeypatch.setattr(tf.get_logger(), "warning", lambda *said: told.append(said))
    tf.function(lambda: ib.project(model))()
    assert on_bound(norms((model.layers[0].kernel, (0,))), BOUND)
    assert told == []


@pytest.mark.skipif(BACKEND != "jax", reason="of jax.jit")
def test_project_in_a_traced_function_is_an_error_and_leaves_no_tracer_behind():
    import jax

    model = network()
    ib.constrain(model, KERNELS)
    with pytest.raises(ib.RuleError, match=r"jax.jit traces.*stateless_project"):
        jax.jit(lambda x: (ib.project(model), x)[1])(1.0)
    assert isinstance(model.layers[0].kernel.value, jax.Array)
    assert not isinstance(model.layers[0].kernel.value, jax.core.Tracer)
    ib.check(model)
