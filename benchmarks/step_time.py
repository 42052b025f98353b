"""What a constraint costs: the time of a training step, over that of the unconstrained model.

The models are interleaved in one process. A round times a long and a short fit of each model; a
step is the difference of their times over that of their numbers of steps, so that what a fit does
once doesn't count. The tables have medians of the ratios of rounds, and the first fit, in which
everything is compiled; for the MLP on PyTorch also how many passes over the large weights a step
takes. One backend a process, or all by `benchmarks/run.py`:

    KERAS_BACKEND=jax python benchmarks/step_time.py
    KERAS_BACKEND=jax python benchmarks/step_time.py --models groups --rounds 5
"""

import argparse
import json
import statistics
import time
from unittest import mock

import keras
import numpy as np

import inbounds as ib

BATCH = 64
SHORT = 5
"""Steps of the short fit."""


def mlp(**arguments):
    """784-512x4-10."""
    layers = [keras.layers.Dense(512, activation="relu", **arguments) for _ in range(4)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10, **arguments)])


def many(**arguments):
    """41 Dense(32)."""
    return keras.Sequential([keras.Input((32,)), *(keras.layers.Dense(32, **arguments) for _ in range(41))])


def conv(**arguments):
    """3 Conv2D(32) on 28 x 28."""
    layers = [keras.layers.Conv2D(32, 3, activation="relu", **arguments) for _ in range(3)]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


PLAIN, DEFAULT = ("euclidean", 1, "full"), ("auto", 1, "reduced")


def separate(how, bound=1.0):
    return {
        "kernel_constraint": ib.MaxNorm(bound).in_training(*how),
        "bias_constraint": ib.NonNeg().in_training(*how),
    }


def joint(how):
    both = ib.Joint(ib.MaxNorm(1.0)).in_training(*how)
    return {"kernel_constraint": both, "bias_constraint": both}


def kernels(owner, how):
    return {"kernel_constraint": owner.in_training(*how)}


def clipped_by_svd(weight):
    """What a constraint of one's own does in place of `SpectralNorm`."""
    u, values, v = keras.ops.svd(weight, full_matrices=False)
    return keras.ops.matmul(u * keras.ops.minimum(values, 1.0), v)


VECTORS = {
    "free": {},
    "Keras' MaxNorm and NonNeg": {
        "kernel_constraint": keras.constraints.MaxNorm(1.0),
        "bias_constraint": keras.constraints.NonNeg(),
    },
    "MaxNorm and NonNeg, plain": separate(PLAIN),
    "MaxNorm and NonNeg": separate(DEFAULT),
    "the same, no unit near its bound": separate(DEFAULT, bound=1e3),
    "Joint(MaxNorm), plain": joint(PLAIN),
    "Joint(MaxNorm)": joint(DEFAULT),
    "L1Ball, plain": kernels(ib.L1Ball(5.0), PLAIN),
    "L1Ball": kernels(ib.L1Ball(5.0), DEFAULT),
    "Simplex, plain": kernels(ib.Simplex(), PLAIN),
    "Simplex": kernels(ib.Simplex(), DEFAULT),
}

MATRICES = {
    "free": {},
    "an SVD in a constraint of Keras": {"kernel_constraint": clipped_by_svd},
    "SpectralNorm, plain": kernels(ib.SpectralNorm(1.0), PLAIN),
    "SpectralNorm": kernels(ib.SpectralNorm(1.0), DEFAULT),
    "SpectralNorm, every=10": kernels(ib.SpectralNorm(1.0), ("auto", 10, "reduced")),
}

GROUPS = {
    "free": {},
    'Equal("symmetric")': ib.Equal("symmetric"),
    "Together(FrobeniusNorm)": ib.Together(ib.FrobeniusNorm(20.0)),
    "Together(L1Ball)": ib.Together(ib.L1Ball(5000.0)),
    "Tied": None,
    "GroupL1Ball": ib.GroupL1Ball(200.0),
    "GroupSparse": ib.GroupSparse(256),
    'MaxNorm.per("inputs")': ib.MaxNorm(0.5).per("inputs"),
    'MaxNorm & MaxNorm.per("inputs")': ib.MaxNorm(1.0) & ib.MaxNorm(0.5).per("inputs"),
    'Fixed(0).where("not causal")': ib.Fixed(0.0).where("not causal"),
    "MaxNorm(array)": None,
    "Marginals": ib.Marginals(1.0, 1.0),  # takes minutes
}
"""Sets of groups of entries and of weights together, on the kernels of the MLP."""

SQUARE = ("Tied", "MaxNorm(array)", "Marginals")
"""Those on the three kernels between hidden layers."""

MODELS = {
    "mlp": (mlp, 45, VECTORS),
    "many": (many, 45, VECTORS),
    "conv": (conv, 10, VECTORS),
    "matrices": (mlp, 25, MATRICES),
    "groups": (mlp, 45, GROUPS),
}
"""With the steps of the long fit, and how it is constrained."""


def ruled(owner, name, model):
    """The model with a set of `GROUPS`."""
    kernels = [layer.kernel for layer in model.layers[name in SQUARE : 4 if name in SQUARE else 5]]
    if name == "Tied":
        rules = [ib.Tied(*(kernel.path for kernel in kernels))]
    else:
        owner = ib.MaxNorm(np.linspace(0.5, 1.5, 512)) if owner is None else owner
        rules = [(kernel, owner) for kernel in kernels]
    ib.constrain(model, rules)
    return model


def compiled(build, arguments):
    keras.utils.set_random_seed(0)
    model = build(**arguments)
    model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError())
    return model


def seconds(model, x, y, steps):
    start = time.perf_counter()
    model.fit(x[: BATCH * steps], y[: BATCH * steps], batch_size=BATCH, shuffle=False, verbose=0)
    return time.perf_counter() - start


def compare(models, x, y, rounds):
    """For each model its rounds and first fit, over those of "free", and its step in ms."""
    long = len(x) // BATCH
    first = {name: seconds(model, x, y, SHORT) for name, model in models.items()}  # compiles it
    rows = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            short = seconds(model, x, y, SHORT)
            rows[name].append((seconds(model, x, y, long) - short) / (long - SHORT))
    ends = {}
    for name, taken in rows.items():
        ratios = [one / free for one, free in zip(taken, rows["free"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ends[name] = {
            "ratio": middle,
            "quartiles": [low, high],
            "first": first[name] / first["free"],
            "ms": 1000 * statistics.median(taken),
        }
    return ends


def bytes_of_step(model):
    """What the optimizer's step, compiled by XLA, reads and writes, in sizes of the weights.

    Of the branches of a conditional only the usual one counts.
    """
    import jax

    optimizer = model.optimizer
    weights, state = ([one.value for one in group] for group in (model.trainable_variables, optimizer.variables))
    with mock.patch("keras.ops.cond", lambda test, usual, rare: usual()):  # XLA would add what both access
        program = jax.jit(optimizer.stateless_apply).lower(state, weights, weights).compile()
    return program.cost_analysis()["bytes accessed"] / sum(weight.nbytes for weight in weights)


def passes_of_step(model, x, y):
    """How many passes over the large weights PyTorch's operations make in one step of the fit."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    large = [weight.value.numel() for weight in model.trainable_variables if weight.value.numel() > 1 << 17]
    seen = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, given=(), named=None):
            result = operation(*given, **(named or {}))
            sizes = [one.numel() for one in (result, *given) if isinstance(one, torch.Tensor)]
            seen.append(0 if operation.is_view else max(sizes, default=0))
            return result

    seconds(model, x, y, SHORT)
    seen.clear()
    with Count():
        seconds(model, x, y, 1)
    return sum(size for size in seen if size >= min(large)) / sum(large)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", nargs="*", default=[one for one in MODELS if one != "groups"], choices=list(MODELS))
    parser.add_argument("--variants", nargs="*", help="all where left out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    options = parser.parse_args()
    found = {}
    for name in options.models:
        build, steps, variants = MODELS[name]
        chosen = [one for one in variants if one == "free" or one in (options.variants or variants)]
        ruled_by = {one: variants[one] for one in chosen if variants is GROUPS and one != "free"}
        models = {one: compiled(build, {} if one in ruled_by else variants[one]) for one in chosen}
        for variant, owner in ruled_by.items():
            ruled(owner, variant, models[variant])
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH * steps, *models["free"].input_shape[1:])).astype("float32")
        y = rng.normal(size=(BATCH * steps, models["free"].output_shape[-1])).astype("float32")
        found[name] = compare(models, x, y, options.rounds)
        if keras.backend.backend() == "jax":
            free = bytes_of_step(models["free"])
            for variant, model in models.items():
                found[name][variant]["bytes"] = round(bytes_of_step(model) - free, 1)
        if keras.backend.backend() == "torch" and build is mlp:
            for variant, model in models.items():
                found[name][variant]["passes"] = round(passes_of_step(model, x, y))
        for variant, model in models.items():
            if "Keras" not in variant and variant != "free":
                ib.check(model)
    if options.json:
        print(json.dumps(found))
        return
    for name, ends in found.items():
        title = MODELS[name][0].__doc__.rstrip(".")
        print(f"{keras.backend.backend()}, {title}, free: {ends['free']['ms']:.2f} ms a step")
        for variant, end in ends.items():
            low, high = end["quartiles"]
            passes = f", {end['passes']} passes" if "passes" in end else ""
            print(f"  {variant:34} {end['ratio']:.3f} ({low:.3f} to {high:.3f}), first fit {end['first']:.2f}{passes}")


if __name__ == "__main__":
    main()
