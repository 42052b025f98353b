"""What a constraint costs: the time of a training step, over that of the unconstrained model.

The models are interleaved in one process. A round times a long and a short fit of each model; a
step is the difference of their times over that of their numbers of steps, so that what a fit does
once doesn't count. The tables have medians of the ratios of rounds, what the first fit takes longer
than a later one, which is tracing and compiling, and how far units are outside after the fits; for
the MLP on PyTorch also how many passes over the large weights a step takes. One backend a process,
or all by `benchmarks/run.py`:

    KERAS_BACKEND=jax python benchmarks/step_time.py
    KERAS_BACKEND=jax python benchmarks/step_time.py --models groups --rounds 5
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

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


KERAS = {"kernel_constraint": keras.constraints.MaxNorm(1.0), "bias_constraint": keras.constraints.NonNeg()}


class ByHand(keras.callbacks.Callback):
    """What people write where they have no constraint: it projects the weights after each batch."""

    def on_train_batch_end(self, batch, logs=None):
        for layer in self.model.layers:
            layer.kernel.assign(KERAS["kernel_constraint"](layer.kernel))
            layer.bias.assign(KERAS["bias_constraint"](layer.bias))


VECTORS = {
    "free": {},
    "Keras' MaxNorm and NonNeg": KERAS,
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

BY_HAND = "Keras' MaxNorm and NonNeg in a callback"
MORE_VECTORS = VECTORS | {BY_HAND: {}, "L1Ball, every=10": kernels(ib.L1Ball(5.0), ("auto", 10, "reduced"))}

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


class Workload(NamedTuple):
    build: Callable
    variants: dict
    short: int = 10  # steps of a fit; with `every=10`, one projection
    long: int = 50
    rounds: int = 1000  # at most


MODELS = {
    "mlp": Workload(mlp, MORE_VECTORS),
    "many": Workload(many, VECTORS),
    "conv": Workload(conv, VECTORS, short=5, long=10),
    "matrices": Workload(mlp, MATRICES, long=20, rounds=2),
    "groups": Workload(mlp, GROUPS),
}

BOUNDS = {"kernel": ib.MaxNorm(1.0), "bias": ib.NonNeg()}
MEANT = {
    "Keras' MaxNorm and NonNeg": BOUNDS,
    BY_HAND: BOUNDS,
    "an SVD in a constraint of Keras": {"kernel": ib.SpectralNorm(1.0)},
}
"""The sets by which constraints that aren't ours are measured."""


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


def seconds(model, x, y, steps, callbacks=()):
    x, y = x[: BATCH * steps], y[: BATCH * steps]
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks))
    return time.perf_counter() - start


def compare(models, x, y, short, rounds):
    """For each model its step in ms; over the free one's, its rounds and what compiling takes."""
    long = len(x) // BATCH
    called = {BY_HAND: [ByHand()]}
    first = {name: seconds(model, x, y, short, called.get(name, ())) for name, model in models.items()}
    steps, later = ({name: [] for name in models} for _ in range(2))
    for _ in range(rounds):
        for name, model in models.items():
            later[name].append(seconds(model, x, y, short, called.get(name, ())))
            more = seconds(model, x, y, long, called.get(name, ())) - later[name][-1]
            steps[name].append(more / (long - short))
    compiling = {name: first[name] - statistics.median(later[name]) for name in models}
    ends = {}
    for name, taken in steps.items():
        ratios = [one / free for one, free in zip(taken, steps["free"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
        ends[name] = {"ratio": middle, "quartiles": [low, high], "ms": 1000 * statistics.median(taken)}
        if keras.backend.backend() != "torch":
            ends[name]["compiling"] = compiling[name] / compiling["free"]
    return ends


def violation(model, variant):
    """How far the farthest unit is outside of its set, 0 if an audit finds all units inside."""
    rules = None
    if variant in MEANT:
        constrained = [one for one in model.layers if variant == BY_HAND or getattr(one, "kernel_constraint", None)]
        rules = [(layer, MEANT[variant]) for layer in constrained]
    report = ib.audit(model, rules)
    return max((row.violation for row in report.rows if row.status not in ("holds", "free", "unenforced")), default=0.0)


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

    seconds(model, x, y, 5)
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
        workload = MODELS[name]
        build, variants = workload.build, workload.variants
        chosen = [one for one in variants if one == "free" or one in (options.variants or variants)]
        ruled_by = {one: variants[one] for one in chosen if variants is GROUPS and one != "free"}
        models = {one: compiled(build, {} if one in ruled_by else variants[one]) for one in chosen}
        for variant, owner in ruled_by.items():
            ruled(owner, variant, models[variant])
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH * workload.long, *models["free"].input_shape[1:])).astype("float32")
        y = rng.normal(size=(BATCH * workload.long, models["free"].output_shape[-1])).astype("float32")
        seconds(compiled(build, {}), x, y, workload.short)  # what the process's first fit takes counts for none
        found[name] = compare(models, x, y, workload.short, min(options.rounds, workload.rounds))
        for variant, model in models.items():
            if variant != "free":
                found[name][variant]["outside"] = violation(model, variant)
        if keras.backend.backend() == "jax":
            free = bytes_of_step(models["free"])
            for variant, model in models.items():
                if variant != BY_HAND:  # which moves them outside of the step
                    found[name][variant]["bytes"] = round(bytes_of_step(model) - free, 1)
        if keras.backend.backend() == "torch" and build is mlp and not options.json:
            for variant, model in models.items():
                if variant != BY_HAND:
                    found[name][variant]["passes"] = round(passes_of_step(model, x, y))
    if options.json:
        print(json.dumps(found))
        return
    for name, ends in found.items():
        title = MODELS[name].build.__doc__.rstrip(".")
        print(f"{keras.backend.backend()}, {title}, free: {ends['free']['ms']:.2f} ms a step")
        for variant, end in ends.items():
            low, high = end["quartiles"]
            passes = f", {end['passes']} passes" if "passes" in end else ""
            compiling = f", compiling {end['compiling']:.2f}" if "compiling" in end else ""
            outside = f", outside by {end['outside']:.1e}" if end.get("outside") else ""
            print(f"  {variant:40} {end['ratio']:.3f} ({low:.3f} to {high:.3f}){compiling}{outside}{passes}")


if __name__ == "__main__":
    main()
