"""Saves the files of this folder: models with plans, after two steps, and a rules file.

Run by the version whose files they are, on JAX (Keras on PyTorch saves optimizers of its own):

    git worktree add /tmp/before ed335c7
    KERAS_BACKEND=jax PYTHONPATH=/tmp/before/src python tests/files/make.py

The tests import what is written here to compare it with what they load.
"""

import zipfile
from pathlib import Path

import keras
import numpy as np

import inbounds as ib

FOLDER = Path(__file__).parent
SIZE = 4
MASK = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 > 0


@keras.saving.register_keras_serializable("tests.files")
def capped(w):
    return keras.ops.minimum(w, 0.25)


VECTORS = {
    "non_neg": ib.NonNeg(),
    "non_pos": ib.NonPos(),
    "box": ib.Box([-1.0, -0.5, -np.inf, 0.0], 0.5),
    "fixed": ib.Fixed([0.0, 0.5, 0.0, -1.0]),
    "max_norm": ib.MaxNorm(0.5),
    "keras_axis": ib.MaxNorm(0.5, axis=[0]),
    "unit_norm": ib.UnitNorm(),
    "min_max_norm": ib.MinMaxNorm(0.25, 0.5),
    "l1_ball": ib.L1Ball(0.5),
    "simplex": ib.Simplex(2.0),
    "sum_to": ib.SumTo(1.0),
    "halfspace": ib.Halfspace([1.0, -1.0, 0.0, 0.5], 0.0),
    "hyperplane": ib.Hyperplane([1.0, 2.0, 3.0, 4.0], 1.0),
    "monotone": ib.Monotone(increasing=False),
    "sparse": ib.Sparse(2),
    "grid": ib.Grid(0.125),
}
MATRICES = {
    "frobenius": ib.FrobeniusNorm(0.5),
    "spectral": ib.SpectralNorm(0.5),
    "nuclear": ib.NuclearNorm(0.5),
    "orthogonal": ib.Orthogonal(),
    "low_rank": ib.LowRank(2),
    "symmetric": ib.Symmetric(),
    "skew": ib.SkewSymmetric(),
    "semidefinite": ib.PositiveSemidefinite(),
    "zero_diagonal": ib.ZeroDiagonal(),
    "stochastic": ib.DoublyStochastic(),
}
MADE = {
    "joint": ib.Joint(ib.MaxNorm(0.5)),
    "joint_sum": ib.Joint(ib.NonNeg() & ib.SumTo(1.0)),
    "where": ib.L1Ball(0.25).where(MASK),
    "on": ib.NonNeg().on(inputs=[0, 3]),
    "cone_ball": ib.NonNeg() & ib.MaxNorm(0.5),
    "box_sum": ib.Box(-0.25, 0.5) & ib.SumTo(0.25),
    "dykstra": ib.SpectralNorm(0.5) & ib.NonNeg(),
    "scaled": ib.MaxNorm(0.5).scaled(keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)),
    "center": ib.L1Ball(0.25, center=np.linspace(-1.0, 1.0, SIZE * SIZE).reshape(SIZE, SIZE)),
    "current": ib.MaxNorm(0.25, center="current"),
    "custom": ib.Custom(capped),
    "projection": ib.Custom(capped, projection=True),
}
IN_METRIC = {"joint": ib.Joint(ib.MaxNorm(0.5))}

# file -> the sets of its layers, the other arguments of constrain, the optimizer
FILES = {
    "vectors": (VECTORS, {}, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "matrices": (MATRICES, {"every": "epoch"}, lambda: keras.optimizers.SGD(0.1)),
    "made": (MADE, {}, lambda: keras.optimizers.Adam(0.1)),
    "in_metric": (
        IN_METRIC,
        {"metric": "optimizer", "gradient": "full", "every": 2},
        lambda: keras.optimizers.Adam(0.1, use_ema=True),
    ),
}


def rules_of(sets):
    """A rule for the kernel of each layer named, or for the layer where the set is a Joint."""
    return {name if isinstance(given, ib.Joint) else f"{name}/kernel": given for name, given in sets.items()}


def data():
    chance = np.random.default_rng(0)
    return chance.normal(size=(8, SIZE)).astype("float32"), chance.normal(size=(8, 1)).astype("float32")


def saved(name):
    sets, arguments, optimizer = FILES[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE,))
    outputs = [keras.layers.Dense(SIZE, name=layer)(inputs) for layer in sets]
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(keras.layers.Concatenate()([inputs, *outputs])))
    ib.constrain(model, rules_of(sets), **arguments)
    model.compile(optimizer(), "mse", run_eagerly=True)  # also once loaded: only JAX is faster compiled
    model.fit(*data(), batch_size=4, verbose=0)
    ib.check(model)
    path = FOLDER / f"{name}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        content = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, bytes_ in content.items():
            file.writestr(entry, bytes_)


def written(sets):
    """A rules file with what the sets print as."""
    rules, layers = ["[rules]"], ["[layers]"]
    for selector, given in rules_of(sets).items():
        (layers if isinstance(given, ib.Joint) else rules).append(f'"{selector}" = "{given!r}"')
    return "\n".join(['metric = "euclidean"', "every = 3", 'gradient = "full"', "", *rules, "", *layers, ""])


UNWRITTEN = {"scaled", "custom", "projection"}
"""Sets that hold functions, which a rules file can't."""

if __name__ == "__main__":
    for name in FILES:
        saved(name)
    for name, sets in {"vectors": VECTORS, "made": MADE}.items():
        rules = {layer: given for layer, given in sets.items() if layer not in UNWRITTEN}
        (FOLDER / f"{name}.toml").write_text(written(rules), encoding="utf-8")
