"""What a projection costs: the time of `set.project(rows)`, over that of a copy of the same array.

The cells are interleaved in one process: each round takes each cell of a line once, right after a
copy of the array it reads. A cell has the median of the ratios over the rounds, their quartiles,
and the median time. "Outside" are standard normal rows; "inside" are projected rows; "after a step"
are projected rows whose entries were moved by 1e-3, which is what a training step of Adam sees. On
JAX functions are compiled. One backend a process, JAX or PyTorch, or by `benchmarks/run.py`:

    KERAS_BACKEND=jax python benchmarks/projections.py
"""

import argparse
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

import inbounds as ib
from inbounds import constraints

BACKEND = keras.backend.backend()
PLACES = "outside", "inside", "after a step"


def rectangular(size: int) -> dict[str, ib.Set]:
    """A set for every class that takes units of any size, by its name in the table."""
    normal = np.random.default_rng(1).standard_normal(size)
    far = -10 * float(np.linalg.norm(normal))  # no unit of the standard normal is on that side
    mask = np.arange(size) % 2 == 0
    return {
        "NonNeg": ib.NonNeg(),
        "NonPos": ib.NonPos(),
        "Box": ib.Box(-0.5, 0.5),
        "Fixed": ib.Fixed(0.3),
        "Grid": ib.Grid(0.25),
        "MaxNorm": ib.MaxNorm(1.0),
        "UnitNorm": ib.UnitNorm(),
        "MinMaxNorm": ib.MinMaxNorm(0.5, 1.0),
        "FrobeniusNorm": ib.FrobeniusNorm(1.0),
        "SumTo": ib.SumTo(1.0),
        "Hyperplane": ib.Hyperplane(normal, far),
        "Halfspace": ib.Halfspace(normal, far),
        "Simplex": ib.Simplex(),
        "L1Ball": ib.L1Ball(1.0),
        "Monotone": ib.Monotone(),
        "Sparse": ib.Sparse(max(1, size // 16)),
        "NonNeg & MaxNorm": ib.NonNeg() & ib.MaxNorm(1.0),
        "Box & SumTo": ib.Box(-0.5, 0.5) & ib.SumTo(1.0),
        "Monotone & L1Ball": ib.Monotone() & ib.L1Ball(1.0),
        "MaxNorm.where": ib.MaxNorm(1.0).where(mask),
        "MaxNorm.on": ib.MaxNorm(1.0).on(inputs=np.flatnonzero(mask).tolist()),
        "MaxNorm, center": ib.MaxNorm(1.0, center=0.1),
        "Joint": ib.Joint(ib.MaxNorm(1.0)),
        "Custom": ib.Custom(keras.ops.relu),
    }


def square(size: int) -> dict[str, ib.Set]:
    """A set for every class of whole matrices but FrobeniusNorm, by its name in the table."""
    return {
        "SpectralNorm": ib.SpectralNorm(1.0),
        "NuclearNorm": ib.NuclearNorm(10.0),
        "Orthogonal": ib.Orthogonal(),
        "LowRank": ib.LowRank(max(1, size // 16)),
        "PositiveSemidefinite": ib.PositiveSemidefinite(),
        "DoublyStochastic": ib.DoublyStochastic(),
        "Symmetric": ib.Symmetric(),
        "SkewSymmetric": ib.SkewSymmetric(),
        "ZeroDiagonal": ib.ZeroDiagonal(),
    }


@dataclass
class Measurement:
    """One cell of a table.

    Attributes:
        run: what is timed, until its result is there.
        copy: the copy that it is compared with.
        ratios: over the copy, a round each.
        seconds: a round each.
    """

    run: Callable[[], Any]
    copy: Callable[[], Any]
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self) -> None:
        copy = min(timed(self.copy) for _ in range(3))
        self.seconds.append(timed(self.run))
        self.ratios.append(self.seconds[-1] / copy)

    def figures(self) -> dict[str, Any]:
        low, middle, high = (
            statistics.quantiles(self.ratios, n=4, method="inclusive") if len(self.ratios) > 1 else self.ratios * 3
        )
        return {"ratio": middle, "quartiles": [low, high], "ms": 1000 * statistics.median(self.seconds)}

    def __str__(self) -> str:
        found = self.figures()
        low, high = found["quartiles"]
        return f"{found['ratio']:.3g} ({low:.3g} to {high:.3g}), {found['ms']:.3g} ms"


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# What the two backends say in other words.


def tensor(values: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(values, dtype="float32")


def finished(fn: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    """The call of a function that ends when its result is there."""
    if BACKEND == "jax":
        import jax

        return lambda: jax.block_until_ready(fn(x))
    return lambda: fn(x)


def copied(x: Any) -> Callable[[], Any]:
    if BACKEND == "jax":
        import jax.numpy as jnp

        return finished(jnp.copy, x)
    return x.clone


def compiled(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if BACKEND == "jax":
        import jax

        return jax.jit(fn)
    return fn


# The peers: for a set's name in the table, what others compute of the same rows.

Peers = dict[str, dict[str, Callable[[Any], Any]]]


def keras_peers() -> Peers:
    known = keras.constraints
    return {
        "NonNeg": {"Keras": known.NonNeg()},
        "MaxNorm": {"Keras": known.MaxNorm(1.0, axis=1)},
        "UnitNorm": {"Keras": known.UnitNorm(axis=1)},
        "MinMaxNorm": {"Keras": known.MinMaxNorm(0.5, 1.0, axis=1)},
    }


def scipy_peers() -> Peers:
    from scipy.optimize import isotonic_regression

    def rising(x: Any) -> Any:
        return np.stack([isotonic_regression(row).x for row in keras.ops.convert_to_numpy(x)])

    return {"Monotone": {"scipy, unit by unit": rising}}


def optax_peers(size: int) -> Peers:
    from optax import projections

    normal = tensor(np.random.default_rng(1).standard_normal(size))
    far = -10 * float(np.linalg.norm(normal))
    by_unit = {
        "NonNeg": projections.projection_non_negative,
        "Box": lambda row: projections.projection_box(row, -0.5, 0.5),
        "MaxNorm": projections.projection_l2_ball,
        "UnitNorm": projections.projection_l2_sphere,
        "Hyperplane": lambda row: projections.projection_hyperplane(row, normal, far),
        "Halfspace": lambda row: projections.projection_halfspace(row, normal, far),
        "Simplex": projections.projection_simplex,
        "L1Ball": projections.projection_l1_ball,
    }
    return unit_by_unit("optax", by_unit)


def jaxopt_peers() -> Peers:
    from jaxopt import projection

    by_unit = {
        "NonNeg": projection.projection_non_negative,
        "Box": lambda row: projection.projection_box(row, (-0.5, 0.5)),
        "MaxNorm": projection.projection_l2_ball,
        "UnitNorm": projection.projection_l2_sphere,
        "Simplex": projection.projection_simplex,
        "L1Ball": projection.projection_l1_ball,
    }
    return unit_by_unit("jaxopt", by_unit)


def unit_by_unit(library: str, functions: dict[str, Callable[[Any], Any]]) -> Peers:
    import jax

    return {name: {library: jax.jit(jax.vmap(fn))} for name, fn in functions.items()}


def jax_peers() -> Peers:
    import jax
    import jax.numpy as jnp

    def thin(x: Any) -> Any:
        return jnp.linalg.svd(x, full_matrices=False)

    return {
        "SpectralNorm": {"an SVD alone": jax.jit(thin)},
        "PositiveSemidefinite": {"eigh alone": jax.jit(jnp.linalg.eigh)},
    }


def parametrized(shape: tuple[int, int], parametrize: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A forward pass of a parametrization, which has its own weight and reads no argument."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(*shape[::-1], bias=False)
    parametrize(layer)

    def forward(_: Any) -> Any:
        with torch.no_grad():
            return layer.weight

    return forward


def torch_peers(side: int) -> Peers:
    import torch
    from torch.nn.utils import parametrizations

    whole = side, side
    orthogonal = {
        f"torch {kind}": parametrized(
            whole, lambda layer, kind=kind: parametrizations.orthogonal(layer, orthogonal_map=kind)
        )
        for kind in ("matrix_exp", "cayley", "householder")
    }
    return {
        "SpectralNorm": {
            "an SVD alone": lambda x: torch.linalg.svd(x, full_matrices=False),
            "torch spectral_norm, which scales": parametrized(whole, parametrizations.spectral_norm),
        },
        "Orthogonal": orthogonal,
        "PositiveSemidefinite": {"eigh alone": torch.linalg.eigh},
    }


def geotorch_peers(units: int, size: int, side: int) -> Peers:
    import geotorch

    def by(name: str, shape: tuple[int, int], *arguments: Any) -> dict[str, Callable[[Any], Any]]:
        return {"geotorch": parametrized(shape, lambda layer: getattr(geotorch, name)(layer, "weight", *arguments))}

    whole = side, side
    return {
        "UnitNorm": by("sphere", (units, size)),
        "Orthogonal": by("orthogonal", whole),
        "LowRank": by("low_rank", whole, max(1, side // 16)),
        "PositiveSemidefinite": by("positive_semidefinite", whole),
        "Symmetric": by("symmetric", whole),
    }


def peers(units: int, size: int, side: int) -> tuple[Peers, list[str]]:
    """What others compute, and which of them can't be imported."""
    makers = {"keras": keras_peers, "scipy": scipy_peers}
    if BACKEND == "jax":
        makers |= {"jax": jax_peers, "optax": lambda: optax_peers(size), "jaxopt": jaxopt_peers}
    else:
        makers |= {"torch": lambda: torch_peers(side), "geotorch": lambda: geotorch_peers(units, size, side)}
    found: Peers = {}
    missing = []
    for library, make in makers.items():
        try:
            importlib.import_module(library)
        except ImportError:
            missing.append(library)
            continue
        for name, functions in make().items():
            found[name] = found.get(name, {}) | functions
    return found, missing


# The tables.


def measurements(owner: ib.Set, rows: Any, places: list[str]) -> dict[str, Measurement]:
    """The cells of a set's line, by column."""
    fn, projected = compiled(owner.project), owner.project(rows)
    step = tensor(1e-3 * np.sign(np.random.default_rng(2).standard_normal(rows.shape)))
    values = {"outside": rows, "inside": projected, "after a step": projected + step}
    return {place: Measurement(finished(fn, values[place]), copied(values[place])) for place in places}


def take(line: dict[str, Measurement], count: int, budget: float) -> None:
    """Measures the cells of a line: each once, to compile, and then in turns."""
    for cell in line.values():
        cell.run()
        cell.copy()
    for turn in range(count):
        for cell in line.values():
            if turn == 0 or sum(cell.seconds) < budget:
                cell.take()


def print_tables(lines: dict[str, dict[str, Measurement]], places: list[str]) -> None:
    print(f"\n| | {' | '.join(places)} | rounds | others |\n|---{'|---' * len(places)}|---|---|")
    for name, line in lines.items():
        rounds = ", ".join(str(len(line[place].ratios)) for place in places)
        others = "; ".join(f"{peer} {cell}" for peer, cell in line.items() if peer not in places)
        print(f"| {name} | {' | '.join(str(line[place]) for place in places)} | {rounds} | {others} |")


def as_json(lines: dict[str, dict[str, Measurement]], places: list[str]) -> dict[str, Any]:
    """The figures of each set and place; those of others beside the first place."""
    found = {f"{name}, {place}": line[place].figures() for name, line in lines.items() for place in places}
    for name, line in lines.items():
        others = {peer: cell.figures() for peer, cell in line.items() if peer not in places}
        found[f"{name}, {places[0]}"]["others"] = others
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--size", type=int, default=4096, help="entries of a unit")
    parser.add_argument("--square", type=int, default=512, help="rows and columns, for sets of square matrices")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for one cell; 1 round at least")
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="as in the first column; all where left out")
    parser.add_argument("--places", nargs="*", default=list(PLACES), choices=PLACES, help="all where left out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    options = parser.parse_args()
    if BACKEND not in ("jax", "torch"):
        parser.error(f"KERAS_BACKEND is jax or torch, not {BACKEND}")

    groups = rectangular(options.size), square(options.square)
    unknown = set(options.sets or ()) - {name for group in groups for name in group}
    if unknown:
        parser.error(f"--sets: no {', '.join(sorted(unknown))}")
    left_out = set(constraints.SETS) - {name for group in groups for name in group}
    rng = np.random.default_rng(0)
    arrays = [tensor(rng.standard_normal(shape)) for shape in ((options.units, options.size), (options.square,) * 2)]
    others, missing = peers(options.units, options.size, options.square)
    lines = {}
    load = os.getloadavg()[0]
    for group, rows in zip(groups, arrays, strict=True):
        for name, owner in group.items():
            if not options.sets or name in options.sets:
                lines[name] = measurements(owner, rows, options.places)
                for peer, fn in others.get(name, {}).items():
                    lines[name][peer] = Measurement(finished(fn, rows), copied(rows))
                take(lines[name], options.rounds, options.budget)
    if options.json:
        print(json.dumps(as_json(lines, options.places)))
        return
    print(f"{BACKEND}, float32, {os.cpu_count()} cores, load {load:.1f} at the start: time over that of")
    print(f"a copy, median (quartiles), and milliseconds. Sets of units: {options.units} x {options.size};", end=" ")
    print(f"of square matrices: {options.square} x {options.square}.")
    if left_out:
        print(f"Not measured: {', '.join(sorted(left_out))}.")
    if missing:
        print(f"Can't be imported, so not measured: {', '.join(missing)}.")
    print_tables(lines, options.places)
    copies = [1000 * statistics.median(timed(copied(rows)) for _ in range(15)) for rows in arrays]
    print(f"\nA copy takes {copies[0]:.3g} ms of the units, {copies[1]:.3g} ms of the square matrix;", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
