"""Two processes train on PyTorch, replicated and sharded.

The first prints JSON; `test_torch_devices.py` reads it. The arguments are a file in which the
processes meet, and the trainings, as in `keras, optimizer`; and `monotone` for that set too.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import json
import sys

import keras
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import inbounds as ib
from devices.heads import BATCH, RATE, SETS, STEPS, apart, audited, constrained, data, heads

WORLD = 2


def weights(model):
    def whole(value):
        return value.full_tensor() if isinstance(value, DTensor) else value

    return [(w.path.split("/")[0], whole(w.value).detach().numpy().copy()) for w in model.weights]


def batches(rank=None):
    """The batches, or the part of each that a process has."""
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH) if rank is None else slice(i * BATCH + rank, (i + 1) * BATCH, WORLD)
        yield [torch.tensor(part[rows]) for part in data()]


def trained(optimizer, metric, rank=None):
    """A model after a few steps of Keras' optimizer, or of PyTorch's; alone, or as one of two.

    The optimizer is Adam, in the metric given, or SGD where gradients are reduced.
    """
    # a matrix in a metric takes long; that it is right there is told elsewhere
    model = constrained(heads(), metric, without=["spectral"] if metric == "optimizer" else [])
    forward = model if rank is None else DistributedDataParallel(model)
    if optimizer == "keras":
        stepper = keras.optimizers.SGD(RATE, momentum=0.5) if metric == "reduced" else keras.optimizers.Adam(0.05)
        stepper.build(model.trainable_variables)
    else:
        stepper = (
            torch.optim.SGD(forward.parameters(), lr=RATE, momentum=0.5)
            if metric == "reduced"
            else torch.optim.Adam(forward.parameters(), lr=0.05, eps=1e-7)
        )
        if metric != "euclidean":
            ib.project_after(model, stepper)
    for x, y in batches(rank):
        model.zero_grad()
        torch.mean((forward(x) - y) ** 2).backward()
        if optimizer == "keras":
            with torch.no_grad():
                stepper.apply([v.value.grad for v in model.trainable_variables], model.trainable_variables)
        else:
            stepper.step()
            if metric == "euclidean":
                ib.project(model)
    return model


def replicated(rank, trainings):
    found = {}
    for training in trainings:
        optimizer, metric = training.split(", ")
        model = trained(optimizer, metric, rank)
        own = weights(model)
        theirs = [torch.tensor(value) for _, value in own]
        for value in theirs:
            dist.broadcast(value, src=0)
        alike = torch.tensor(all(np.array_equal(v, t.numpy()) for (_, v), t in zip(own, theirs, strict=True)) * 1)
        dist.all_reduce(alike, op=dist.ReduceOp.MIN)
        found[training] = {
            "replicas alike": bool(alike),
            "apart": apart(own, weights(trained(optimizer, metric))) if rank == 0 else None,
            "audit": audited(model),
        }
    return found


class Listening(TorchDispatchMode):
    """Notes each collective with the number of entries that a process gives to it."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        if DTensor in types or any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # so that it is taken apart into what each process does
        library, name = fn.name().split(".")[0].split("::")
        if library.startswith("_c10d_functional") and name.split("_")[0] in ("all", "reduce", "broadcast"):
            self.heard.append([name, args[0].numel()])
        return fn(*args, **(kwargs or {}))


def sharded_layer(owner, dim, mesh):
    """A Dense layer of DTensors, its kernel sharded along one axis; and the same layer, whole."""
    layers = []
    for _ in range(2):
        normal = keras.initializers.RandomNormal(seed=0)
        layer = keras.layers.Dense(16, kernel_initializer=normal, bias_initializer=normal, name="dense")
        layer.build((None, 64))
        layer.set_weights([20 * w for w in layer.get_weights()])
        layers.append(layer)
    sharded, single = layers
    for variable in sharded.weights:
        place = Shard(dim if len(variable.shape) > 1 else 0)
        variable._value = torch.nn.Parameter(distribute_tensor(variable.value.detach(), mesh, [place]))
    for layer in layers:
        rule = {keras.layers.Dense: owner} if isinstance(owner, ib.Joint) else {"kernel": owner}
        # the weights are put outside again below, so that `project` has work
        before = [w.value.detach().clone() for w in layer.weights]
        ib.constrain(layer, rule)
        with torch.no_grad():
            for variable, value in zip(layer.weights, before, strict=True):
                variable.value.copy_(value)
    return sharded, single


def sharded(mesh, monotone):
    """`project` of DTensors: what it communicates, and how far from one process' result it ends."""
    sets = SETS | {
        "box": ib.Box(-0.1, np.linspace(0.1, 0.2, 64)),
        "sum_to": ib.SumTo(1.0),
        "sparse": ib.Sparse(3),
    }
    if monotone:  # for seconds
        sets["monotone"] = ib.Monotone()
    found = {}
    for name, owner in sets.items():
        for dim in (0, 1):
            layer, single = sharded_layer(owner, dim, mesh)
            with Listening() as listening:
                ib.project(layer)
            ib.project(single)
            found[f"{name}, {dim}"] = {
                "collectives": listening.heard,
                "apart": max(apart(weights(layer), weights(single)).values()),
                "kept": [str(w.value.placements) for w in layer.weights],
                "holds": ib.audit(layer).ok,
                "moved": float(np.max(np.abs(weights(single)[0][1]))),
            }
    return found


def trained_sharded(mesh, metric):
    """How far apart a few steps of PyTorch's Adam leave a sharded layer and a whole one."""
    ends = []
    for layer in sharded_layer(ib.MaxNorm(0.5), 0, mesh):
        optimizer = torch.optim.Adam([w.value for w in layer.weights], lr=0.05)
        if metric == "optimizer":
            ib.project_after(layer, optimizer)
        for x, y in batches():
            if isinstance(layer.kernel.value, DTensor):
                x, y = (distribute_tensor(part, mesh, [Replicate()]) for part in (x, y[:, :16].contiguous()))
            optimizer.zero_grad()
            ((layer(x) - y[:, :16]) ** 2).mean().backward()
            optimizer.step()
            if metric == "euclidean":
                ib.project(layer)
        ib.check(layer)
        ends.append(weights(layer))
    return max(apart(*ends).values())


def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def refused(mesh):
    """What is not to be had, and what is said of it."""
    model = constrained(heads(), "euclidean")
    fully_shard(model, mesh=mesh)
    model(next(batches())[0]).sum().backward()
    gradients = [parameter.grad is not None for parameter in model.parameters()]
    told = {
        name: error_of(lambda call=call: call(model))
        for name, call in {
            "project": ib.project,
            "audit": ib.audit,
            "constrain": lambda m: ib.constrain(m, {"**/kernel": ib.MaxNorm(1.0)}),
        }.items()
    }
    layer, _ = sharded_layer(ib.MaxNorm(1.0), 0, mesh)
    return told | {
        "gradients": gradients,
        "orthogonal": error_of(lambda: ib.constrain(layer, {"kernel": ib.Orthogonal()})),
    }


def main(rank, meeting, *names):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    found = {
        "replicated": replicated(rank, [name for name in names if name != "monotone"]),
        "sharded": sharded(mesh, "monotone" in names),
        "trained sharded": {metric: trained_sharded(mesh, metric) for metric in ("optimizer", "euclidean")},
        "refused": refused(mesh),
    }
    dist.destroy_process_group()
    return found


second = os.fork()  # when all is imported, which takes longest, and nothing has been computed yet
if second == 0:
    main(1, *sys.argv[1:])
else:
    found = main(0, *sys.argv[1:])
    assert os.waitpid(second, 0)[1] == 0
    print(json.dumps(found))
