"""Trains on two mirrored devices of TensorFlow, against one.

Prints JSON; `test_tensorflow_devices.py` reads it. Its arguments are names in `TRAININGS`, and
`half` for half precision.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import contextlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf

import inbounds as ib
from devices.heads import BATCH, RATE, STEPS, apart, audited, constrained, data, heads

halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)

o = keras.optimizers
TRAININGS = {
    "Adam": (lambda: o.Adam(0.05), "optimizer"),
    "Adam, Euclidean": (lambda: o.Adam(0.05), "euclidean"),
    "SGD, reduced": (lambda: o.SGD(RATE, momentum=0.5), "reduced"),
    "Lion": (lambda: o.Lion(0.05), "optimizer"),  # its metric is read from the gradient, which replicas have to share
    "loss scale": (lambda: o.LossScaleOptimizer(o.Adam(0.05), initial_scale=8.0), "optimizer"),
}
LOOPED = "Lion"
"""What is trained in a loop of the user's own; the reference is not compiled by XLA either."""

STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def made(optimizer, metric, xla="auto"):
    # a matrix in a metric takes long to trace
    model = constrained(heads(), metric, without=["spectral"] if metric == "optimizer" else [])
    model.compile(optimizer(), "mse", jit_compile=xla)
    return model


def fitted(optimizer, metric, mirrored, xla="auto"):
    if mirrored:
        with STRATEGY.scope():
            model = made(optimizer, metric)
    else:
        model = made(optimizer, metric, xla)
    model.fit(spread() if mirrored else batches(), epochs=1, shuffle=False, verbose=0)
    return model


def batches():
    return tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)


def spread():
    """The batches, half of each for either device.

    Without fetching ahead: on virtual devices what is fetched ahead sometimes never arrives.
    """
    return STRATEGY.experimental_distribute_dataset(
        batches(), tf.distribute.InputOptions(experimental_fetch_to_device=False)
    )


def looped(optimizer, metric):
    """A loop of the user's own, on both devices."""
    with STRATEGY.scope():
        model = made(optimizer, metric)
        model.optimizer.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.reduce_mean(tf.square(model(x, training=True) - y), axis=-1)) / BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    run = tf.function(lambda x, y: STRATEGY.run(step, args=(x, y)))
    for x, y in spread():
        run(x, y)
    return model


def replicas(model):
    """The weights as each device has them."""
    return [[(w.path.split("/")[0], w.value.values[i].numpy()) for w in model.weights] for i in range(2)]


def compared(model, one):
    first, second = replicas(model)
    return {
        "replicas alike": all(a.tobytes() == b.tobytes() for (_, a), (_, b) in zip(first, second, strict=True)),
        "apart": apart(first, [(w.path.split("/")[0], w.value.numpy()) for w in one.weights]),
        "audit": audited(model),
    }


def halved(mirrored):
    """How often each device applied a halving callable to a weight that no gradient moves."""
    with STRATEGY.scope() if mirrored else contextlib.nullcontext():
        layer = keras.layers.Dense(data()[1].shape[1], kernel_initializer="ones", name="dense")
        model = keras.Sequential([keras.Input((64,)), layer])
        model.compile(o.SGD(0.0), "mse")
    ib.constrain(model, {"**/kernel": ib.Custom(lambda w: 0.5 * w)})
    model.fit(spread() if mirrored else batches(), epochs=1, verbose=0)
    value = layer.kernel.value
    return [float(-np.log2(part.numpy()[0, 0])) for part in (value.values if mirrored else [value])]


def main(*names):
    found = {"fit": {}, "steps": STEPS, "halved": halved(mirrored=True)}
    (found["halved on one"],) = halved(mirrored=False)
    for name in names:
        if name in TRAININGS:
            one, both = (fitted(*TRAININGS[name], mirrored) for mirrored in (False, True))
            found["fit"][name] = compared(both, one)
    found["loop"] = compared(looped(*TRAININGS[LOOPED]), fitted(*TRAININGS[LOOPED], mirrored=False, xla=False))
    if "half" in names:
        found["half"] = in_half_precision()
    print(json.dumps(found))


def in_half_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    adam = TRAININGS["Adam"][0]
    one = fitted(adam, "optimizer", mirrored=False)
    optimizer = {"optimizer": type(one.optimizer).__name__}
    return compared(fitted(adam, "optimizer", mirrored=True), one) | optimizer


main(*sys.argv[1:])
