"""Fits on eight devices of JAX, sharded, against one; and what projections communicate.

Prints JSON; `test_jax_devices.py` reads it. Its arguments are lists with commas between: the metric
and the sharding of each fit, as in `optimizer/data`; and the sets, the shardings and the metrics of
the programs whose communication is read.
"""

import itertools
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import collectives  # which makes the devices
import jax
import keras
import numpy as np

from devices.heads import BATCH, RATE, SETS, apart, audited, constrained, data, heads

SHARDINGS = {  # the mesh, and how kernels and biases lie on it
    "units": ((1, 8), (None, "model"), ("model",)),
    "fan-in": ((1, 8), ("model", None), (None,)),
    "both": ((2, 4), ("batch", "model"), ("model",)),
}


def distribution(name):
    devices = keras.distribution.list_devices("cpu")
    if name == "data":
        return keras.distribution.DataParallel(devices=devices)
    shape, kernel, bias = SHARDINGS[name]
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh(shape, ("batch", "model"), devices))
    for head in SETS:
        layout[f".*{head}/kernel"], layout[f".*{head}/bias"] = kernel, bias
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def fitted(metric, sharding=None):
    keras.distribution.set_distribution(distribution(sharding) if sharding else None)
    model = heads()
    if metric:  # a matrix in a metric takes long to compile; that it is right there is told elsewhere
        constrained(model, metric, without=["spectral"] if metric == "optimizer" else [])
    model.compile(
        keras.optimizers.SGD(RATE, momentum=0.5) if metric == "reduced" else keras.optimizers.Adam(0.05), "mse"
    )
    before = [str(weight.value.sharding) for weight in model.weights]
    model.fit(*data(), batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    return model, before


def weights(model):
    return [(weight.path.split("/")[0], np.array(weight.value)) for weight in model.weights]


def programs(*lists):
    """What is measured of programs, which XLA optimizes as for users.

    A matrix in a metric is left out: it takes long to compile.
    """
    asked = [each for each in itertools.product(*lists) if (each[0], each[2]) != ("SpectralNorm", "optimizer")]
    return [collectives.measured(*each, inputs=128, units=64) for each in asked]


def fits(*asked):
    jax.config.update("jax_disable_most_optimizations", True)  # of programs that run six times
    found = {}
    free = weights(fitted(None)[0])  # under Adam
    ones = {metric: weights(fitted(metric)[0]) for metric in dict.fromkeys(fit.split("/")[0] for fit in asked)}
    for fit in asked:
        metric, name = fit.split("/")
        model, before = fitted(metric, name)
        after = [weight.value.sharding for weight in model.weights]
        kernel = model.get_layer("max_norm").kernel.value
        found[fit] = {
            "moved": apart(ones[metric], free),
            "apart": apart(weights(model), ones[metric]),
            "audit": audited(model),
            "sharding kept": before == [str(sharding) for sharding in after],
            "part of a kernel": list(kernel.addressable_shards[0].data.shape),
            "devices": len({shard.device for shard in kernel.addressable_shards}),
        }
    return found


asked, *of_programs = [argument.split(",") for argument in sys.argv[1:]]
print(json.dumps({"programs": programs(*of_programs), "fits": fits(*asked)}))
