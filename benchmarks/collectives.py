"""What the projection of a sharded weight communicates and moves, read from XLA's program for it.

A weight of a Dense layer is projected like in the training step (`step_projections`), compiled for
eight devices with sharded inputs and outputs. No weight is made: the program is compiled and read.

    python benchmarks/collectives.py  # the table of docs/measurements.md, small kernels
    python benchmarks/collectives.py --inputs 4096 --units 4096 --sets MaxNorm,L1Ball
    python benchmarks/collectives.py --looks  # how often loops look, in training
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import argparse
import math
import re
from collections import Counter

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import inbounds as ib
from inbounds._train.step_projections import projection_of

SETS = {
    "Box": ib.Box(-0.1, 0.1),
    "Grid": ib.Grid(0.1),
    "MaxNorm": ib.MaxNorm(1.0),
    "Joint(MaxNorm)": ib.Joint(ib.MaxNorm(1.0)),
    "UnitNorm": ib.UnitNorm(),
    "FrobeniusNorm": ib.FrobeniusNorm(1.0),
    "NonNeg & MaxNorm": ib.NonNeg() & ib.MaxNorm(1.0),
    "L1Ball": ib.L1Ball(1.0),
    "Joint(L1Ball)": ib.Joint(ib.L1Ball(1.0)),
    "Simplex": ib.Simplex(),
    "SumTo": ib.SumTo(0.0),
    "Halfspace": ib.Halfspace(1.0, 1.0),
    "Sparse(3)": ib.Sparse(3),
    "Sparse(48)": ib.Sparse(48),
    "Monotone": ib.Monotone(),
    "SpectralNorm": ib.SpectralNorm(1.0),
}
SHARDINGS = {  # the mesh, and how it shards the kernel and the bias
    "units": ((1, 8), P(None, "model"), P("model")),
    "fan-in": ((1, 8), P("model", None), P()),
    "both": ((2, 4), P("batch", "model"), P("model")),
}
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
COLLECTIVE = re.compile(rf"= (.+?) ({KINDS})(?:-start)?\(")
ARRAY = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")


def compiled(rule_set, sharding, metric, inputs, units):
    """The program of one projection, for weights that Keras distributes."""
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=keras.distribution.list_devices()))
    layer = keras.layers.Dense(units, kernel_initializer="zeros", name="dense")
    layer.build((None, inputs))
    rule = {keras.layers.Dense: rule_set} if isinstance(rule_set, ib.Joint) else {"kernel": rule_set}
    (entry,) = ib.constrain(layer, rule, metric=metric).entries
    variables = [weight.variable for weight in entry.weights]
    shape, *specs = SHARDINGS[sharding]
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("batch", "model"))
    places = [NamedSharding(mesh, specs[len(v.shape) == 1]) for v in variables]

    def step(values, costs):
        known = metric == "optimizer" and entry.set.exact_in_metric and not entry.set.separable
        return list(projection_of(entry).project(values, 0, costs if known else None))

    args = [
        jax.ShapeDtypeStruct(v.shape, "float32", sharding=place) for v, place in zip(variables, places, strict=True)
    ]
    return jax.jit(step, out_shardings=places).lower(args, args).compile()


def collectives(text):
    """The collectives of a program, as (kind, entries of its arrays, whether it is in a loop)."""
    blocks, name = {}, ""
    for line in text.splitlines():
        if line.endswith("{") and " = " not in line.split("(")[0]:
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            blocks[name] = []
        elif name:
            blocks[name].append(line)
    looped, pending = set(), re.findall(r"(?:body|condition)=%?([\w.\-]+)", text)
    while pending:
        block = pending.pop()
        if block in blocks and block not in looped:
            looped.add(block)
            pending += re.findall(r"%([\w.\-]+)", "\n".join(blocks[block]))
    found = []
    for block, lines in blocks.items():
        for match in filter(None, map(COLLECTIVE.search, lines)):
            sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in ARRAY.findall(match[1])]
            found.append((match[2], sizes, block in looped))
    return found


def measured(name, sharding, metric, inputs, units):
    program = compiled(SETS[name], sharding, metric, inputs, units)
    found = collectives(program.as_text())
    return {
        "set": name,
        "sharding": sharding,
        "metric": metric,
        "collectives": found,
        "summary": summary(found, units),
        "bytes_per_weight": program.cost_analysis()["bytes accessed"] / (inputs * units / 8),
    }


def summary(found, units):
    """The collectives in words: a flag all-reduces one number, a sum at most one number a unit."""
    said = Counter()
    for kind, sizes, looped in found:
        size = max(sizes)
        if kind == "all-reduce":
            kind = "flag" if size == 1 else "sum" if size <= units else "large all-reduce"
        said[looped, kind] += len(sizes) if kind == "sum" else 1  # XLA makes one message of several sums
    parts = [f"{count} {kind}{' a look' if looped else ''}" for (looped, kind), count in sorted(said.items())]
    return ", ".join(parts) or "none"


def looks(name, metric):
    """How many looks the loop of a projection takes in each step of a training, as a histogram."""
    from sklearn.datasets import load_digits

    from inbounds._sets import one_limit

    x, y = load_digits(return_X_y=True)
    taken = Counter()
    original = one_limit.iterate

    def iterate(step, *arguments):
        count = 0

        def look(state):
            nonlocal count
            count += 1
            return step(state)

        result = original(look, *arguments)
        taken[count] += 1
        return result

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, run_eagerly=True)  # else Python doesn't see the loop
    ib.constrain(model, {"**/kernel": SETS[name]}, gradient="full", metric=metric)
    one_limit.iterate = iterate
    try:
        model.fit((x / 16).astype("float32"), y, batch_size=64, epochs=3, verbose=0)
    finally:
        one_limit.iterate = original
    return dict(sorted(taken.items()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--shardings", default=",".join(SHARDINGS))
    parser.add_argument("--metrics", default="euclidean,optimizer")
    parser.add_argument("--looks", action="store_true")
    given = parser.parse_args()
    if given.looks:
        for name, metric in (("MaxNorm", "optimizer"), ("L1Ball", "euclidean"), ("L1Ball", "optimizer")):
            print(f"{name:18} {metric:10} looks: projections {looks(name, metric)}", flush=True)
        return
    for name in given.sets.split(","):
        for metric in given.metrics.split(","):
            for sharding in given.shardings.split(","):
                row = measured(name, sharding, metric, given.inputs, given.units)
                moved = f"{row['bytes_per_weight']:8.1f} B a weight"
                print(f"{name:18} {metric:10} {sharding:7} {moved}  {row['summary']}", flush=True)


if __name__ == "__main__":
    main()
