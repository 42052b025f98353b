"""A set, a layout and a metric, each added as CONTRIBUTING shows it, in as few lines as it says."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import keras
import numpy as np
import pytest

import inbounds as ib
from sets.solver import solver, weighted_solver
from sets.tensors import array, exact

pytestmark = pytest.mark.by_turns

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
NORMAL = [1.0, -0.5, 0.25, 0.0, 2.0]
LOW, HIGH = -0.25, 0.5


def snippet(heading):
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return code


def lines(code):
    """The lines of what a snippet adds: without imports, docstrings and empty lines."""
    kept = set(range(1, code.count("\n") + 1))
    for node in ast.walk(ast.parse(code)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, (ast.Import, ast.ImportFrom)):
            kept -= set(range(node.lineno, node.end_lineno + 1))
    return len([number for number in kept if code.splitlines()[number - 1].strip()])


def run(heading, **names):
    names |= {"__name__": "contributed", "inbounds": ib, "keras": keras}
    exec(compile(snippet(heading), heading, "exec"), names)
    return names


class Mix(keras.layers.Layer):
    """y = kernel @ x + bias: one unit a row."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, shape[-1]), initializer="random_normal", name="kernel")
        self.bias = self.add_weight(shape=(3,), initializer="zeros", name="bias")

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel)) + self.bias


class Signed(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * keras.ops.sign(gradient))


@pytest.fixture(scope="module")
def band():
    return run("A set")["Band"](NORMAL, LOW, HIGH)


@pytest.mark.once
@pytest.mark.parametrize(("heading", "limit"), [("A set", 15), ("A layout", 5), ("A metric", 5)])
def test_each_takes_few_lines(heading, limit):
    assert 0 < lines(snippet(heading)) < limit


def within(rows):
    return [rows @ np.array(NORMAL) <= HIGH, rows @ np.array(NORMAL) >= LOW]


def test_the_set_projects_on_the_nearest_point_in_every_metric(band):
    chance = np.random.default_rng(0)
    rows, metric = chance.normal(size=(6, 5)), chance.uniform(0.1, 1.0, size=(6, 5))
    nearest, sure = solver(within, rows.shape)(rows)
    weighted, sure_too = weighted_solver(within, rows.shape)(rows, metric)
    assert sure
    assert sure_too
    np.testing.assert_allclose(band.project(rows), nearest, rtol=0, atol=1e-6)
    np.testing.assert_allclose(band.project(rows, metric), weighted, rtol=0, atol=1e-4)
    once = band.project(array(100 * rows, "float32", "keras"))
    assert np.all(exact(band.project(once)) == exact(once)), "a unit that is inside stays bit for bit"
    assert not band.measure([once], [(1,)]).outside.any()
    off = rows @ np.array(NORMAL)
    distance = np.maximum(np.maximum(off - HIGH, LOW - off), 0) / np.linalg.norm(NORMAL)
    np.testing.assert_allclose(band.violation(rows), distance, rtol=1e-12)


def test_the_set_meets_others_and_masks(band):
    rows = np.random.default_rng(1).normal(size=(6, 5))
    both, _ = solver(lambda rows: [*within(rows), cp.norm(rows, 2, axis=1) <= 0.5], rows.shape)(rows)
    np.testing.assert_allclose((band & ib.MaxNorm(0.5)).project(rows), both, rtol=0, atol=1e-6)
    mask = np.array([True, True, False, True, False])
    some, _ = solver(lambda rows: within(cp.multiply(rows, mask[None] * 1.0)), rows.shape)(rows)
    np.testing.assert_allclose(band.where(mask).project(rows), some, rtol=0, atol=1e-6)
    assert not band.where(mask).measure([some], [(1,)]).excess.max() > 1e-6


ADDED = """
import inbounds as ib
from inbounds._cli.catalogue import card_of
from inbounds._model.rules_file import parse_set

band = ib.Band([1.0, -0.5], -0.25, 0.5)
assert ib.Band is ib.constraints.Band and {"Band"} <= {*ib.__all__} & {*ib.constraints.__all__}
assert parse_set(repr(band)) == band
assert card_of("Band").definition == "{w : low <= normal . w <= high}, each unit" and card_of("Band").text
for wrong in (lambda: ib.constraints.get("Bend"), lambda: ib.constraints.get("Band")):
    try:
        wrong()
    except ib.SetError as error:
        print(error)
"""


@pytest.mark.once
def test_a_file_and_a_name_in_one_list_make_a_set_public(tmp_path):
    package = tmp_path / "inbounds"
    shutil.copytree(Path(ib.__file__).parent, package)
    (package / "_sets" / "band.py").write_text(snippet("A set"), encoding="utf-8")
    public = package / "_sets" / "public.py"
    text = public.read_text(encoding="utf-8").replace("__all__ = [", '__all__ = [\n    "Band",')
    public.write_text(f"from inbounds._sets.band import Band\n{text}", encoding="utf-8")
    said = subprocess.run(
        [sys.executable, "-c", ADDED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "KERAS_BACKEND": "jax"},  # which is imported in half the time
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert "identifier='Bend'. Instead: Band" in said.stdout
    assert "Instead: Band(normal=[1.0, -1.0], low=-1.0, high=1.0)." in said.stdout


@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # Mix takes no constraints as arguments
def test_all_three_train_together(band):
    run("A layout", Mix=Mix)
    run("A metric", Signed=Signed)
    model = keras.Sequential([keras.Input((4,)), Mix(name="mix")])
    model.compile(Signed(10.0), "mse")  # each step leads out of the band
    plan = ib.constrain(model, {Mix: ib.Joint(band)}, gradient="full")
    (entry,) = plan
    inputs = [layout.inputs for layout in entry.layouts]
    assert (entry.units, entry.axes, entry.guessed, inputs) == (3, ((1,), ()), False, [1, None])
    assert "Signed: size of the gradient" in str(plan)
    chance = np.random.default_rng(0)
    model.fit(chance.normal(size=(16, 4)), chance.normal(size=(16, 3)) + 1, batch_size=4, verbose=0)
    assert ib.check(model).rows[0].active > 0


def test_the_set_is_saved_with_a_model_and_prints_as_its_code(band, tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, name="out")])
    ib.constrain(model, {"out/kernel": band})
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("out").kernel_constraint == band
    assert ib.check(again).rows[0].set == repr(band) == f"Band(normal={NORMAL}, low={LOW}, high={HIGH})"
