"""What a constraint costs: the time of a training step, over that of the same model without constraints.

Interleaved in one process, medians of the ratios of rounds. One backend a process:

    KERAS_BACKEND=jax python benchmarks/step_time.py
"""

import argparse
import statistics
import time

import keras
import numpy as np

import inbounds as ib

BATCH = 64


def mlp(**arguments):
    """784-512x4-10."""
    layers = [keras.layers.Dense(512, activation="relu", **arguments) for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10, **arguments)])


def many(**arguments):
    """41 Dense(32)."""
    return keras.Sequential([keras.Input((32,)), *(keras.layers.Dense(32, **arguments) for _ in range(41))])


def conv(**arguments):
    """Three Conv2D on 28x28 images."""
    layers = [keras.layers.Conv2D(32, 3, activation="relu", **arguments) for _ in range(3)]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


def separate(gradient, metric):
    return {
        "kernel_constraint": ib.MaxNorm(1.0).in_training(metric, 1, gradient),
        "bias_constraint": ib.NonNeg().in_training(metric, 1, gradient),
    }


def joint(gradient, metric):
    both = ib.Joint(ib.MaxNorm(1.0)).in_training(metric, 1, gradient)
    return {"kernel_constraint": both, "bias_constraint": both}


VARIANTS = {
    "free": {},
    "keras": {"kernel_constraint": keras.constraints.MaxNorm(1.0), "bias_constraint": keras.constraints.NonNeg()},
    "separate, plain": separate("full", "euclidean"),
    "joint, plain": joint("full", "euclidean"),
    "separate": separate("reduced", "auto"),
    "joint": joint("reduced", "auto"),
}


def compiled(build, arguments):
    keras.utils.set_random_seed(0)
    model = build(**arguments)
    model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError())
    return model


def seconds(model, x, y):
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    return time.perf_counter() - start


def compare(label, models, x, y, rounds):
    """Prints what a step of each model takes, over one of the model called "free"."""
    steps = len(x) // BATCH
    first = {variant: seconds(model, x, y) for variant, model in models.items()}  # compiles it
    taken = [{variant: seconds(model, x, y) for variant, model in models.items()} for _ in range(rounds)]
    print(f"{label}, free: {1000 * statistics.median(r['free'] for r in taken) / steps:.2f} ms a step")
    for variant in list(models)[1:]:
        low, middle, high = statistics.quantiles((r[variant] / r["free"] for r in taken), n=4)
        compiling = (first[variant] - taken[0][variant]) / (first["free"] - taken[0]["free"])
        print(f"  {variant:20} {middle:.3f} ({low:.3f} to {high:.3f}), first epoch {compiling:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--models", nargs="*", default=["mlp", "many", "conv"], choices=["mlp", "many", "conv"])
    options = parser.parse_args()
    print(f"{keras.backend.backend()}, batch 64, Adam: step time over the free one")
    print(f"median of {options.rounds} rounds (quartiles)")
    for name in options.models:
        build = {"mlp": mlp, "many": many, "conv": conv}[name]
        steps = options.steps if name != "conv" else max(5, options.steps // 5)
        models = {variant: compiled(build, arguments) for variant, arguments in VARIANTS.items()}
        shape = models["free"].input_shape[1:]
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH * steps, *shape)).astype("float32")
        y = rng.normal(size=(BATCH * steps, models["free"].output_shape[-1])).astype("float32")
        compare(build.__doc__.rstrip("."), models, x, y, options.rounds)


if __name__ == "__main__":
    main()
