"""What a constraint on a large Embedding costs on TensorFlow: a step's time over the free model's.

After `constrain`, only the rows of the batch are projected where the optimizer moves no others,
else all rows; a set in the layer's argument projects all rows. The models are interleaved in one
process; a ratio is the median over rounds:

    KERAS_BACKEND=tensorflow python benchmarks/embedding.py
"""

import argparse

import keras
import numpy as np
from step_time import BATCH, compare

import inbounds as ib

WIDTH, TOKENS = 64, 16


def compiled(optimizer, rows, given=None):
    keras.utils.set_random_seed(0)
    table = keras.layers.Embedding(rows, WIDTH, embeddings_constraint=given)
    layers = [table, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((TOKENS,), dtype="int32"), *layers])
    model.compile(optimizer(), "mse")
    return model


def constrained(optimizer, rows):
    model = compiled(optimizer, rows)
    ib.constrain(model, {"**/embeddings": ib.MaxNorm(1.0)})
    return model


VARIANTS = {
    "free": compiled,
    "keras": lambda optimizer, rows: compiled(optimizer, rows, keras.constraints.MaxNorm(1.0, axis=1)),
    "argument": lambda optimizer, rows: compiled(optimizer, rows, ib.MaxNorm(1.0)),
    "constrain": constrained,
}
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "Adam": lambda: keras.optimizers.Adam(0.01),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    if keras.backend.backend() != "tensorflow":
        parser.error("only TensorFlow's gradients name the rows that a batch used: KERAS_BACKEND=tensorflow")
    rng = np.random.default_rng(0)
    x = rng.integers(0, options.rows, (BATCH * options.steps, TOKENS))
    y = rng.normal(size=(BATCH * options.steps, 1)).astype("float32")
    print(f"Embedding({options.rows}, {WIDTH}), MaxNorm(1.0), {BATCH} x {TOKENS} tokens a step: time over the free one")
    print(f"median of {options.rounds} rounds (quartiles)")
    for name, optimizer in OPTIMIZERS.items():
        models = {variant: make(optimizer, options.rows) for variant, make in VARIANTS.items()}
        ends = compare(models, x, y, options.rounds)
        print(f"{name}, free: {ends['free']['ms']:.2f} ms a step")
        for variant, end in list(ends.items())[1:]:
            low, high = end["quartiles"]
            print(f"  {variant:10} {end['ratio']:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
