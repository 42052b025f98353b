"""A model with one Dense layer for each set: one fit trains all sets, and none affects another."""

import keras
import numpy as np
from sklearn.datasets import load_digits

import inbounds as ib

SETS = {
    "max_norm": ib.MaxNorm(0.5),
    "joint": ib.Joint(ib.MaxNorm(0.5)),
    "l1_ball": ib.L1Ball(1.0),
    "both": ib.NonNeg() & ib.MaxNorm(0.5),
    "spectral": ib.SpectralNorm(1.0),
}
UNITS = 16
STEPS, BATCH = 6, 64
RATE = 6.0
"""Of SGD, which drives weights out of every set too."""


def data():
    """Digits, and targets that drive weights out of every set: the classes times 3, with noise."""
    x, y = load_digits(return_X_y=True)
    x, y = x[: STEPS * BATCH] / 16, y[: STEPS * BATCH]
    targets = 3 * np.eye(10)[y] @ np.random.default_rng(0).normal(size=(10, UNITS * len(SETS)))
    return x.astype("float32"), targets.astype("float32")


def heads():
    """The model, whose weights are the same each time.

    They are not drawn from Keras' own seed: setting it imports TensorFlow on every backend.
    """
    inputs = keras.Input((64,))
    outputs = [
        keras.layers.Dense(UNITS, kernel_initializer=keras.initializers.GlorotUniform(seed), name=name)(inputs)
        for seed, name in enumerate(SETS)
    ]
    return keras.Model(inputs, keras.layers.Concatenate()(outputs))


def constrained(model, metric, without=()):
    """The model with each head in its set, except the heads of `without`.

    All of the gradient is seen unless the metric is "reduced", which is for SGD: however little a
    face leaves of a gradient, Adam makes a step of its rate of it, and rounding decides when.
    """
    rules = [
        (model.get_layer(name), owner if isinstance(owner, ib.Joint) else {"kernel": owner})
        for name, owner in SETS.items()
        if name not in without
    ]
    ib.constrain(model, rules, **({} if metric == "reduced" else {"gradient": "full", "metric": metric}))
    return model


def near(name, training):
    """How near trainings of a head are that differ by rounding.

    The difference of two decompositions magnifies rounding.
    """
    return 1e-3 if name == "spectral" and "reduced" in training else 1e-5


def apart(one, other):
    """The largest difference between weights by layer, of lists of (name, array)."""
    found = {}
    for (name, a), (_, b) in zip(one, other, strict=True):
        found[name] = max(found.get(name, 0.0), float(np.max(np.abs(np.asarray(a) - np.asarray(b)))))
    return found


def audited(model):
    """Of each head the audit's status, and the share of its units that lie on their boundary."""
    return {row.paths[0].split("/")[0]: [row.status, row.active] for row in ib.audit(model).rows if row.set}
