"""The demo: the same models without constraints, with Keras' and with inbounds, on real data.

To copy it: write rules for the weights, call `ib.constrain(model, rules)` once the model is built,
call `fit` as always, and print `ib.audit(model)`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.constraints import MaxNorm, NonNeg
from rich.progress import Progress

import inbounds as ib
from inbounds._model.table import Table
from inbounds._report.plots import new_figure

Array = np.ndarray[Any, Any]

KINDS = ("nothing", "Keras", "inbounds")  # what keeps the weights of a model inside

PAGES, PICTURE = {"Keras": "keras.html", "inbounds": "inbounds.html"}, "convergence.png"
"""The demo's files: audits of the convolutional model, losses of the logistic regression."""


# The models. Each layer is given the same constraints of Keras, or none.


def logistic(**constraints: Any) -> keras.Model:
    head = layers.Dense(10, use_bias=False, **constraints)
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), head], name="logistic")


def dense(**constraints: Any) -> keras.Model:
    hidden, head = layers.Dense(64, activation="relu", **constraints), layers.Dense(10, **constraints)
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), hidden, head], name="dense")


def functional(**constraints: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    wide = layers.Dense(64, activation="relu", **constraints)(layers.Flatten()(inputs))
    narrow = layers.Dense(32, activation="relu", **constraints)(wide)
    outputs = layers.Dense(10, **constraints)(layers.Concatenate()([wide, narrow]))
    return keras.Model(inputs, outputs, name="functional")


def convolutional(**constraints: Any) -> keras.Model:
    edges, parts = (layers.Conv2D(16, 3, activation="relu", **constraints) for _ in range(2))
    head = layers.Dense(10, **constraints)
    return keras.Sequential([keras.Input((8, 8, 1)), edges, parts, layers.Flatten(), head], name="convolutional")


@dataclass(frozen=True)
class Trial:
    """A model and the sets of its weights.

    Attributes:
        make: makes the model.
        rules: the sets, for `ib.constrain`.
        of_keras: what comes nearest to them in Keras, as arguments of each layer.
        epochs: how often the training passes over the data.
        batch: the images in a batch; None: all.
        rate: the learning rate at first.
    """

    make: Callable[..., keras.Model]
    rules: Mapping[Any, ib.Set]
    of_keras: Mapping[str, Any]
    epochs: int = 10
    batch: int | None = 32
    rate: float = 0.02

    @property
    def name(self) -> str:
        return self.make.__name__


BALL = ib.MaxNorm(1.0)
SEPARATE = {"**/kernel": ib.MaxNorm(1.5), "**/bias": ib.NonNeg()}
SEPARATE_IN_KERAS = {"kernel_constraint": MaxNorm(1.5), "bias_constraint": NonNeg()}
TRIALS = (
    Trial(logistic, {"**/kernel": BALL}, {"kernel_constraint": MaxNorm(1.0)}, epochs=200, batch=None, rate=0.05),
    Trial(
        dense,
        {layers.Dense: ib.Joint(ib.MaxNorm(2.0))},  # kernel and bias of a neuron as one vector
        {"kernel_constraint": MaxNorm(2.0), "bias_constraint": MaxNorm(2.0)},
    ),
    Trial(functional, SEPARATE, SEPARATE_IN_KERAS),
    Trial(convolutional, SEPARATE, SEPARATE_IN_KERAS),
)


# Training, and the constrained optimum.


def digits() -> list[Array]:
    """The handwritten digits of scikit-learn: training and test images, training and test labels.

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
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1) / 16
    return list(train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0))


@dataclass(frozen=True)
class Result:
    """The loss in each epoch, the accuracy on the test images, and the audit."""

    losses: Array
    accuracy: float
    report: ib.Report


def train(trial: Trial, kind: str, data: Sequence[Array], after_epoch: Callable[..., None]) -> Result:
    """Trains a model by Adam, whose rate falls to 0, and audits it."""
    x, x_test, y, y_test = data
    keras.utils.clear_session()  # layer names count from the start
    keras.utils.set_random_seed(0)
    model = trial.make(**trial.of_keras) if kind == "Keras" else trial.make()
    if kind == "inbounds":
        ib.constrain(model, trial.rules)
    batch = trial.batch or len(x)
    rate = keras.optimizers.schedules.CosineDecay(trial.rate, trial.epochs * math.ceil(len(x) / batch))
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    progress = keras.callbacks.LambdaCallback(on_epoch_end=after_epoch)
    history = model.fit(x, y, batch_size=batch, epochs=trial.epochs, verbose=0, callbacks=[progress]).history
    guesses = np.argmax(keras.ops.convert_to_numpy(model(x_test)), axis=1)
    return Result(np.array(history["loss"]), np.mean(guesses == y_test), ib.audit(model, trial.rules))


def optimum(x: Array, y: Array, precision: float = 1e-8) -> float:
    """The least loss of the logistic regression in BALL, by accelerated projected gradients.

    The acceleration restarts. Since the loss is convex, no point of BALL has a loss that is lower
    by more than the first-order gap. Sources: Beck and Teboulle, "A fast iterative
    shrinkage-thresholding algorithm", 2009; O'Donoghue and Candes, "Adaptive restart for
    accelerated gradient schemes", 2015; the gap: Jaggi, "Revisiting Frank-Wolfe", 2013.
    """
    labels = np.eye(10)[y]
    step = 2 * len(x) / np.linalg.norm(x, 2) ** 2  # one over a bound on the curvature
    here = ahead = np.zeros((10, x.shape[1]))  # a row is a class
    since = 0
    while True:
        scores = np.exp(x @ ahead.T)
        shares = scores / scores.sum(axis=1, keepdims=True)
        gradient = (shares - labels).T @ x / len(x)
        if since == 0:  # ahead is in BALL
            farthest = BALL.project(-1e6 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True))
            if np.sum(gradient * (ahead - farthest)) < precision:
                return float(-np.log(shares[labels == 1]).mean())
        new = BALL.project(ahead - step * gradient)
        since = 0 if since == 200 or np.sum(gradient * (new - here)) > 0 else since + 1
        here, ahead = new, new + since / (since + 3) * (new - here)


def demo(data: Sequence[Array], folder: Path) -> int:
    """Trains each model three times, prints a table, and writes two audits and a picture.

    Returns:
        0 if every set of every model under inbounds holds, else 1.
    """
    x, x_test, y, _ = data
    print(f"{len(x):,} handwritten digits to train on, {len(x_test)} to test, on {keras.backend.backend()}.\n")
    results = {}
    with Progress(disable=not sys.stdout.isatty()) as progress:
        for trial in TRIALS:
            began, task = time.monotonic(), progress.add_task(trial.name, total=len(KINDS) * trial.epochs)
            for kind in KINDS:
                results[trial.name, kind] = train(trial, kind, data, lambda *_, task=task: progress.advance(task))
            if progress.disable:
                print(f"{trial.name}: trained in {time.monotonic() - began:.0f} s", flush=True)

    least = optimum(x.reshape(len(x), -1), y)
    rows = []
    for (name, kind), result in results.items():
        outside, units = (sum(getattr(row, key) for row in result.report.rows) for key in ("violated", "units"))
        percent = round(100 * (result.losses[-1] / least - 1), 2) + 0.0  # never -0.0
        above = f"{percent:.2f}%" if name == "logistic" and kind != "nothing" else "-"
        verdict = f"{outside} of {units} outside" if outside else "holds"
        rows.append((name, kind, f"{result.accuracy:.1%}", above, result.report.violation * (outside > 0), verdict))
    columns = ("model", "kept by", "accuracy", "over optimum", "violation", "verdict")
    rules = {trial.name: results[trial.name, "inbounds"].report.rules.items() for trial in TRIALS}
    notes = [f"{name}: {', '.join(f'{sets} on {where}' for where, sets in rules[name])}" for name in rules]
    notes += [
        f"accuracy: on the test images, one of which is {1 / len(x_test):.1%}; differences of a percent are chance",
        f"over optimum: the training loss at the end over the least in the set, {least:.6f}",
    ]
    print(f"\n{Table('The same models, kept in their sets by nothing, Keras, and inbounds', columns, rows, notes)}\n")

    written = draw({kind: results["logistic", kind].losses / least - 1 for kind in KINDS[1:]}, folder / PICTURE)
    written += [results["convolutional", kind].report.to_html(folder / page) for kind, page in PAGES.items()]
    print(f"Written: {', '.join(map(str, written))}")
    return 0 if all(result.report.ok for (_, kind), result in results.items() if kind == "inbounds") else 1


def draw(losses: Mapping[str, Array], path: Path) -> list[Path]:
    """Draws the losses above the constrained optimum, step by step.

    Returns:
        The path of the picture; nothing if matplotlib is not installed.
    """
    try:
        figure = new_figure(6, 3.6)
    except ib.InboundsError as error:
        print(f"No {path.name}. {error}")
        return []
    axes = figure.subplots()
    for kind, above in losses.items():
        axes.plot(np.maximum(above, 1e-7), label=kind)
    axes.set(yscale="log", xlabel="steps of Adam", ylabel="loss above the optimum, relative")
    axes.legend()
    figure.savefig(path, dpi=150)
    return [path]
