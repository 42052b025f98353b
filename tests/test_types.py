"""Public signatures' types: mypy passes right code in strict mode, and rejects each wrong line."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import inbounds as ib

pytestmark = [pytest.mark.once, pytest.mark.xdist_group("types")]  # for both, mypy runs once

ROOT = Path(__file__).parent.parent

START = """
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import keras
import numpy as np

import inbounds as ib

layer = keras.layers.Dense(3)
model = keras.Sequential([layer])
values = [variable.value for variable in model.trainable_variables]
"""

RIGHT = """
class Own(keras.Model):  # type: ignore[misc]  # keras has no types
    pass

class Mix(keras.layers.Layer):  # type: ignore[misc]
    pass

ib.MaxNorm(), ib.MaxNorm(2), ib.MaxNorm(np.float32(2.0)), ib.MaxNorm(np.int64(2)), ib.MaxNorm(np.array(2.0))
ib.MaxNorm([1.0, 2]), ib.L1Ball(radius=np.ones(2)), ib.SumTo((0.0, 1)), ib.Halfspace([1.0], [2.0])
ib.MaxNorm(Fraction(1, 2)), ib.MaxNorm(np.mean(np.ones(3))), ib.MinMaxNorm(0.5, float("inf"), rate=1)
ib.MaxNorm(2.0, axis=0), ib.MaxNorm(2.0, axis=[0, 1]), ib.MaxNorm(2.0, (0, np.int64(1))), ib.UnitNorm(axis=None)
ib.MaxNorm(2.0, center="current"), ib.MaxNorm(2.0, center=np.ones(3)), ib.L1Ball(1, center=[[1.0, 2], [0, 1]])
ib.Box(-1, [0.0, 1]), ib.Box(np.zeros(3), ((1.0, 2.0), (1.0, np.float32(2)))), ib.Box(keras.ops.zeros(3), 1)
ib.Fixed([[[[0.0]]]]), ib.Fixed(range(3)), ib.Halfspace([1.0, -1.0], 0), ib.Hyperplane(np.arange(3), 1.0)
ib.Sparse(np.int32(3)), ib.LowRank(2, stack=4), ib.Monotone(np.True_), ib.Grid(0.5), ib.Simplex(), ib.SumTo(0)
ib.Equal("toeplitz"), ib.GroupSparse(2, "units"), ib.GroupL1Ball(1, [0, 1]), ib.Tied("a", "b", transpose=True)
ib.Joint(ib.MaxNorm(1.0), ["kernel", "bias"]), ib.Custom(lambda w: keras.ops.abs(w), projection=True), ib.Custom(abs)
ib.max_norm(2.0), ib.constraints.get("max_norm"), ib.constraints.get(None), ib.constraints.get(ib.NonNeg)

each: ib.Set = ib.NonNeg() & keras.constraints.MaxNorm(2) & ib.MaxNorm(1.0)
each = ib.NonNeg().where([True, False]) & ib.NonNeg().where(np.ones((2, 3)) > 0) & ib.NonNeg().where("banded", width=2)
each = ib.NonNeg().on([0, 2]) & ib.NonNeg().on(inputs=3) & ib.NonNeg().on(range(2)) & ib.NonNeg().on(np.arange(3))
each = ib.MaxNorm(1).scaled(keras.optimizers.schedules.ExponentialDecay(1, 2, 0.5)).at(3)
each = ib.MaxNorm(1).scaled(lambda step: 1.0 / (step + 1)).at(np.int64(3)).at(keras.ops.ones(()))
each.project([[1.0, 2.0]]), each.project(np.ones((2, 3)), np.ones((2, 3))), each.violation(keras.ops.ones((2, 3)))
each.tolerance("float32", np.ones((2, 3))), each([1.0]), each(np.ones(3)), each(layer.kernel)

ib.constrain(model), ib.constrain(layer, None), ib.constrain(Own(), {"**/kernel": ib.MaxNorm(1)}, every=np.int64(3))
ib.constrain(model, {"conv*/kernel": ib.MaxNorm(1.5), keras.layers.Dense: ib.Joint(ib.MaxNorm(2.0)),
                     layer: {"kernel": ib.NonNeg()}})
ib.constrain(model, {lambda layer, variable: True: abs, Mix: {"kernel": "NonNeg", "bias": ib.NonNeg}})
ib.constrain(model, {"**/kernel": lambda w: w, "dense": {"kernel": lambda w: w}}, gradient="full", every="epoch")
ib.constrain(model, {"a": keras.constraints.NonNeg(), "b": keras.constraints.NonNeg}, metric="euclidean")
ib.constrain(model, [(layer.kernel, ib.NonNeg()), ("dense", {"bias": ib.Box(-1, 1)}), (Mix, ib.Joint(ib.MaxNorm(1)))])
ib.constrain(model, [ib.Tied("a", "b")]), ib.constrain(model, [ib.Tied("a", "b"), ("c", ib.NonNeg()), ("d", abs)])

plain = {"conv*/kernel": ib.MaxNorm(1.5)}
sets = {"conv*/kernel": ib.MaxNorm(1.5), "dense/kernel": ib.NonNeg() & ib.MaxNorm(1)}
mixed = {"conv*/kernel": ib.MaxNorm(1.5), keras.layers.Dense: ib.Joint(ib.MaxNorm(2.0)), layer: {"kernel": ib.NonNeg()}}
names = {"**/kernel": ib.MaxNorm(1.5), "dense": {"kernel": ib.NonNeg()}}
layers = {"dense": {"kernel": ib.NonNeg(), "bias": ib.Box(-1, 1)}, "other": {"kernel": ib.NonNeg()}}
kinds = {"a": ib.NonNeg(), "b": abs, "c": "NonNeg", "d": ib.NonNeg}
classes = {Mix: ib.Joint(ib.MaxNorm(1)), "dense": {"kernel": ib.NonNeg()}}
pairs = [(layer.kernel, ib.NonNeg()), (layer.bias, ib.Box(-1, 1))]
other_pairs = [(layer.kernel, ib.NonNeg()), ("dense", {"bias": ib.Box(-1, 1)}), (Mix, abs)]
ib.constrain(model, plain), ib.constrain(model, sets), ib.constrain(model, mixed), ib.constrain(model, names)
ib.constrain(model, layers), ib.constrain(model, kinds), ib.constrain(model, classes)
ib.constrain(model, pairs), ib.constrain(model, other_pairs)

plan = ib.constrain(model, plain)
ib.constrain(model, plain, gradient=plan.gradient, metric=plan.metric, every=plan.every)
report = ib.audit(model, mixed, accept="**/kernel")
report = ib.check(model, accept=["**/kernel", layer, layer.kernel, keras.layers.Dense])
ib.project(model)
ib.release(model)
ib.Monitor(), ib.Monitor(100), ib.Monitor(every="epoch", stop_on_violation=True)
ib.pressure(model, np.ones((2, 3)), np.ones(2), batch_size=8), ib.pressure(model, [np.ones(3)], {"y": np.ones(3)})
ib.stateless_project(model, values, [None], step=3), ib.stateless_reduce(model, values, tuple(values))

def loops(optimizer: Any) -> None:
    ib.project_after(model, optimizer), ib.optax_wrap(model, optimizer)

ib.register_layout(Mix, {"kernel": (1,), "bias": ()})
ib.register_layout(Mix, lambda layer: {"kernel": [0, 1]})
ib.register_layout(Mix, ib.Layout({"kernel": [0]}, inputs={"kernel": 0}))
ib.register_metric(keras.optimizers.SGD, lambda optimizer, variable, gradient: None)
"""

WRONG = """
ib.MaxNorm("x")
ib.MaxNorm(None)
ib.MaxNorm(1j)
ib.FrobeniusNorm(ib.NonNeg)
ib.MaxNorm(1.0, axis=0.5)
ib.MaxNorm(1.0, axis="0")
ib.MaxNorm(1.0, center="now")
ib.MaxNorm(1.0, centre=0.0)
ib.MinMaxNorm(0.0, "1")
ib.FrobeniusNorm("x")
ib.FrobeniusNorm([1.0])
ib.SpectralNorm("x")
ib.SpectralNorm(1.0, stack=1.5)
ib.Symmetric("4")
ib.Box("x", 1.0)
ib.Box(0.0, ["x"])
ib.Box(0.0, None)
ib.Fixed("0")
ib.Simplex("x")
ib.SumTo(None)
ib.Halfspace("x", 0.0)
ib.Halfspace([1.0], "x")
ib.Sparse(1.5)
ib.Sparse("3")
ib.LowRank(1.5)
ib.Equal("round")
ib.GroupSparse(1, "rows")
ib.Tied("a", 3)
ib.Monotone("yes")
ib.Grid("x")
ib.Joint("MaxNorm")
ib.Custom(3)
ib.Custom(abs, projection="yes")
ib.NonNeg().where(["x"])
ib.NonNeg().where("diagonal")
ib.NonNeg().where([0.5])
ib.NonNeg().on("0")
ib.NonNeg().on([0.5])
ib.NonNeg().scaled(0.5)
ib.NonNeg().project("x")
ib.NonNeg().project(1.0)
ib.NonNeg().violation(None)
ib.constraints.get(3)
ib.constrain(model, {"a": 3})
ib.constrain(model, {"a": None})
ib.constrain(model, {layer: 3})
ib.constrain(model, {"a": {"kernel": 3}})
ib.constrain(model, {"a": {3: ib.NonNeg()}})
ib.constrain(model, [("a", 3)])
ib.constrain(model, ["a"])
ib.constrain(model, "a")
ib.constrain(model, ib.NonNeg)
ib.constrain({"a": ib.NonNeg()}, model)
ib.constrain(model, gradient="none")
ib.constrain(model, metric="manhattan")
ib.constrain(model, every="batch")
ib.constrain(model, every=0.5)
ib.audit(model, {"a": 3})
ib.audit(model, accept=3)
ib.check("model")
ib.project(3)
ib.release(None)
ib.Monitor(every="batch")
ib.Monitor(stop_on_violation="yes")
ib.pressure(model, 3)
ib.pressure(model, np.ones(3), batch_size="all")
ib.stateless_project(model, 3)
ib.stateless_reduce(model, values, 3)
ib.stateless_project(model, values, step="x")
ib.project_after(model, "adam")
ib.optax_wrap(model, "adam")
ib.register_metric("sgd", lambda optimizer, variable, gradient: None)
ib.register_metric(keras.optimizers.SGD, 3)
ib.register_layout("dense", {"kernel": (0,)})
ib.register_layout(keras.layers.Dense, {"kernel": 0})
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By file, the lines that mypy rejects and what it says; one run, with our own settings."""
    folder = tmp_path_factory.mktemp("types")
    files = [folder / "right.py", folder / "wrong.py"]
    home = Path(ib.__file__).parent.parent
    for file, lines in zip(files, (RIGHT, WRONG), strict=True):
        file.write_text(START + lines, encoding="utf-8")
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            ROOT / "pyproject.toml",
            "--cache-dir",
            folder / "cache",
            *files,
        ],
        cwd=folder,
        env=os.environ | ({"MYPYPATH": str(home)} if home == ROOT / "src" else {}),  # else what is installed is tested
        capture_output=True,
        text=True,
    )
    assert not found.stderr, found.stderr
    errors = re.findall(r"(right|wrong)\.py:(\d+): (error: .*)", found.stdout)
    assert errors, found.stdout
    return {
        name: {int(number): text for file, number, text in errors if file == name} for name in ("right", "wrong")
    } | {"all": found.stdout}


def test_right_code_passes_in_strict_mode(said):
    assert not said["right"], said["all"]


def test_each_wrong_line_is_rejected(said):
    lines = (START + WRONG).split("\n")
    accepted = [line for number, line in enumerate(lines, 1) if line and number not in said["wrong"]]
    assert accepted == [line for line in START.split("\n") if line], said["all"]


def test_no_public_argument_is_of_any_type():
    public = {name: getattr(ib, name) for name in ib.__all__}
    sets = {name: member for name, member in public.items() if inspect.isclass(member) and issubclass(member, ib.Set)}
    functions = {name: member for name, member in public.items() if inspect.isfunction(member)}
    for name, member in (sets | functions | {"Monitor": ib.Monitor, "get": ib.constraints.get}).items():
        for argument, told in inspect.signature(member).parameters.items():
            assert told.annotation not in ("Any", inspect.Parameter.empty), f"{name}({argument})"
