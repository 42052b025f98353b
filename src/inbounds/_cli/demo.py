"""The demo: five models on real data, with constraints given as for Keras, one of them joint.

To copy it: import the sets from `inbounds.constraints`, give them to layers as for Keras, call
`ib.constrain(model)` once the model is built, add `ib.Monitor()` to the callbacks, and print
`ib.audit(model)` at the end.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import inbounds as ib
from inbounds._model.table import Table
from inbounds.constraints import MaxNorm, NonNeg

Arrays = tuple[np.ndarray[Any, Any], ...]


# The data: the handwritten digits of scikit-learn, 8 x 8 pixels with grey levels from 0 to 16.


def load_digits() -> Arrays:
    """Training images, test images, training labels and test labels.

    Raises:
        InboundsError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ib.InboundsError(
            "The demo trains on the digits of scikit-learn, which is not installed. "
            'Instead: pip install "inbounds[jax,demo]".'
        ) from error
    digits = load_digits()
    arrays = train_test_split(digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0)
    return tuple(arrays)


def as_vectors(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return images.reshape(-1, 64) / 16


def as_pictures(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return images[..., np.newaxis] / 16


def as_solids(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each digit as a solid of 8 x 8 x 8 voxels, whose height is the darkness of the ink."""
    levels = 2 * np.arange(8)
    return (images[..., np.newaxis] > levels)[..., np.newaxis].astype("float32")


# The models. Only the import line of the constraints differs from Keras.


def dense_sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, activation="relu", kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg()),
            layers.Dense(10, kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg()),
        ],
        name="dense_sequential",
    )


def dense_functional() -> keras.Model:
    inputs = keras.Input((64,))
    wide = layers.Dense(64, activation="relu", kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg())(inputs)
    narrow = layers.Dense(32, activation="relu", kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg())(wide)
    both = layers.Concatenate()([wide, narrow])
    outputs = layers.Dense(10, kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg())(both)
    return keras.Model(inputs, outputs, name="dense_functional")


def conv_functional() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu", kernel_constraint=MaxNorm(1.0), bias_constraint=NonNeg())(inputs)
    x = layers.Conv2D(16, 3, activation="relu", kernel_constraint=MaxNorm(1.0), bias_constraint=NonNeg())(x)
    x = layers.Flatten()(x)
    outputs = layers.Dense(10, kernel_constraint=MaxNorm(2.0), bias_constraint=NonNeg())(x)
    return keras.Model(inputs, outputs, name="conv_functional")


def zero_mean(kernel: Any) -> Any:
    """A custom constraint, as Keras takes it: the entries of each filter sum to 0."""
    return kernel - ops.mean(kernel, axis=(0, 1, 2, 3), keepdims=True)


class Solids(keras.Model):  # type: ignore[misc]  # keras has no types
    """A subclassed model of three-dimensional convolutions."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.edges = layers.Conv3D(8, 3, activation="relu", kernel_constraint=zero_mean, bias_constraint=NonNeg())
        self.parts = layers.Conv3D(
            16, 3, strides=2, activation="relu", kernel_constraint=MaxNorm(1.5), bias_constraint=NonNeg()
        )
        self.flat = layers.Flatten()
        self.digit = layers.Dense(10, kernel_constraint=MaxNorm(1.5), bias_constraint=NonNeg())

    def call(self, solids: Any) -> Any:
        return self.digit(self.flat(self.parts(self.edges(solids))))


def conv3d_subclassed() -> keras.Model:
    model = Solids(name="conv3d_subclassed")
    model(np.zeros((1, 8, 8, 8, 1)))  # the first batch builds a subclassed model
    return model


def dense_joint() -> keras.Model:
    """A model with a bound on the norm of each neuron's kernel column and bias entry together."""
    inputs = keras.Input((64,))
    hidden, digit = ib.Joint(ib.MaxNorm(2.0)), ib.Joint(ib.MaxNorm(1.5))
    x = layers.Dense(64, activation="relu", kernel_constraint=hidden, bias_constraint=hidden)(inputs)
    outputs = layers.Dense(10, kernel_constraint=digit, bias_constraint=digit)(x)
    return keras.Model(inputs, outputs, name="dense_joint")


# Training.


def train(model: keras.Model, images: Arrays, labels: Arrays, epochs: int) -> tuple[float, ib.Report]:
    """Trains a model inside its sets and audits it.

    Returns:
        The accuracy on the test images, and the report.
    """
    (x, x_test), (y, y_test) = images, labels
    ib.constrain(model)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    bar = 1 if sys.stdout.isatty() else 2  # a progress bar, or one line an epoch
    model.fit(x, y, batch_size=32, epochs=epochs, callbacks=[ib.Monitor()], verbose=bar)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    return accuracy, ib.audit(model)


def demo() -> int:
    """Trains and audits the models, one after the other.

    Returns:
        0 if every set of every model holds, else 1.

    Raises:
        InboundsError: scikit-learn is not installed.
    """
    images, images_test, *labels = load_digits()
    print(f"{len(images)} handwritten digits to train on, {len(images_test)} to test, on {keras.backend.backend()}.")
    models = [
        (dense_sequential, as_vectors, 15),
        (dense_functional, as_vectors, 15),
        (conv_functional, as_pictures, 10),
        (conv3d_subclassed, as_solids, 8),
        (dense_joint, as_vectors, 15),
    ]
    rows = []
    for number, (make, prepare, epochs) in enumerate(models, 1):
        keras.utils.clear_session()  # layer names count from the start
        keras.utils.set_random_seed(0)
        model = make()
        print(f"\n{number} of {len(models)}: {model.name}, {model.count_params():,} weights\n", flush=True)
        accuracy, report = train(model, (prepare(images), prepare(images_test)), tuple(labels), epochs)
        print(f"\nTest accuracy: {accuracy:.1%}\n\n{report}", flush=True)
        sets = [row for row in report.rows if row.status != "free"]
        verdict = "all hold" if report.ok else "violated"
        rows.append(
            (
                model.name,
                f"{accuracy:.1%}",
                len(sets),
                sum(row.units for row in sets),
                sum(row.violated for row in sets),
                report.violation,
                f"{report.active:.0%}",
                verdict,
            )
        )
    columns = ("model", "test accuracy", "sets", "units", "violated", "largest violation", "active", "verdict")
    notes = [
        "A violation below the tolerance of its set, a few units in the last place of float32, is rounding.",
        "Active units lie on the boundary of their set.",
    ]
    print(f"\n{Table('Summary', columns, rows, notes)}")
    return 0 if all(row[-1] == "all hold" for row in rows) else 1
