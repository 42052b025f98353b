"""What a projection costs: the time of `set.project(rows)`, over that of a copy of the same array.

The cells are interleaved in one process: each round takes each cell of a line once, right after a
copy of the array it reads. A cell has the median of the ratios over the rounds, their quartiles,
and the median time. "Outside" are standard normal rows; "inside" are projected rows, which is what
a training step mostly sees. One backend a process, JAX or PyTorch:

    KERAS_BACKEND=jax python benchmarks/projections.py
"""

import argparse
import importlib.util
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

    def __str__(self) -> str:
        low, middle, high = (
            statistics.quantiles(self.ratios, n=4, method="inclusive") if len(self.ratios) > 1 else self.ratios * 3
        )
        return f"{middle:.3g} ({low:.3g} to {high:.3g}), {1000 * statistics.median(self.seconds):.3g} ms"


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


def modes() -> dict[str, Callable[[Callable[[Any], Any]], Callable[[Any], Any]]]:
    """How a projection is called, by name."""
    if BACKEND == "jax":
        import jax

        return {"eager": lambda fn: fn, "jit": jax.jit}
    return {"eager": lambda fn: fn}


# The peers.


def keras_peers() -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    known = keras.constraints
    return {
        "keras NonNeg": (False, known.NonNeg()),
        "keras MaxNorm": (False, known.MaxNorm(1.0, axis=1)),
        "keras UnitNorm": (False, known.UnitNorm(axis=1)),
        "keras MinMaxNorm": (False, known.MinMaxNorm(0.5, 1.0, axis=1)),
    }


def scipy_peers() -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    from scipy.optimize import isotonic_regression

    def rising(x: Any) -> Any:
        return np.stack([isotonic_regression(row).x for row in keras.ops.convert_to_numpy(x)])

    return {
        "scipy isotonic_regression, unit by unit": (False, rising),
        "numpy svd": (True, lambda x: np.linalg.svd(keras.ops.convert_to_numpy(x))),
    }


def optax_peers(size: int) -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    import jax
    from optax import projections

    normal = tensor(np.random.default_rng(1).standard_normal(size))
    far = -10 * float(np.linalg.norm(normal))
    by_unit = {
        "projection_non_negative": projections.projection_non_negative,
        "projection_box": lambda row: projections.projection_box(row, -0.5, 0.5),
        "projection_l2_ball": projections.projection_l2_ball,
        "projection_l2_sphere": projections.projection_l2_sphere,
        "projection_hyperplane": lambda row: projections.projection_hyperplane(row, normal, far),
        "projection_halfspace": lambda row: projections.projection_halfspace(row, normal, far),
        "projection_simplex": projections.projection_simplex,
        "projection_l1_ball": projections.projection_l1_ball,
    }
    return {f"optax {name}, vmap, jit": (False, jax.jit(jax.vmap(fn))) for name, fn in by_unit.items()}


def jax_peers() -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    import jax
    import jax.numpy as jnp

    return {
        "jax svd, jit": (True, jax.jit(jnp.linalg.svd)),
        "jax eigh, jit": (True, jax.jit(jnp.linalg.eigh)),
        "jax sort, jit": (False, jax.jit(jnp.sort)),
    }


def torch_peers(size: int) -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    import torch
    from torch.nn.utils import parametrizations

    def weight(parametrize: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A forward pass of a parametrization, which has its own weight and reads no argument."""
        torch.manual_seed(0)
        layer = parametrize(torch.nn.Linear(size, size, bias=False))

        def forward(_: Any) -> Any:
            with torch.no_grad():
                return layer.weight

        return forward

    peers = {
        "torch svd": torch.linalg.svd,
        "torch eigh": torch.linalg.eigh,
        "torch spectral_norm (power iteration)": weight(parametrizations.spectral_norm),
    }
    for kind in ("matrix_exp", "cayley", "householder"):
        peers[f"torch orthogonal, {kind}"] = weight(
            lambda layer, kind=kind: parametrizations.orthogonal(layer, orthogonal_map=kind)
        )
    peers |= geotorch_peers(size, weight) if importlib.util.find_spec("geotorch") else {}
    return {name: (True, fn) for name, fn in peers.items()} | {"torch sort": (False, torch.sort)}


def geotorch_peers(size: int, weight: Callable[..., Any]) -> dict[str, Callable[[Any], Any]]:
    import geotorch

    def parametrized(name: str, *arguments: Any) -> Callable[[Any], Any]:
        def parametrize(layer: Any) -> Any:
            getattr(geotorch, name)(layer, "weight", *arguments)
            return layer

        return weight(parametrize)

    rank = max(1, size // 16)
    return {
        "geotorch orthogonal": parametrized("orthogonal"),
        "geotorch low_rank": parametrized("low_rank", rank),
        "geotorch positive_semidefinite": parametrized("positive_semidefinite"),
        "geotorch symmetric": parametrized("symmetric"),
    }


def peers(size: int, side: int) -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    """What others compute of the same rows, by name: whether of the square matrix, and how."""
    found = keras_peers()
    missing = [name for name in ("scipy", "optax", "geotorch") if importlib.util.find_spec(name) is None]
    if "scipy" not in missing:
        found |= scipy_peers()
    if BACKEND == "jax":
        found |= jax_peers() | ({} if "optax" in missing else optax_peers(size))
    else:
        found |= torch_peers(side)
    if missing:
        print(f"Not installed, so not measured: {', '.join(missing)}.")
    return found


# The tables.


def measurements(owner: ib.Set, rows: Any) -> dict[str, Measurement]:
    """The cells of a set's line, by column."""
    line = {}
    places = {"outside": rows, "inside": owner.project(rows)}
    for mode, wrap in modes().items():
        fn = wrap(owner.project)
        for place, values in places.items():
            line[f"{mode}, {place}"] = Measurement(finished(fn, values), copied(values))
    return line


def print_line(name: str, line: dict[str, Measurement], count: int, budget: float) -> None:
    """Measures a line of the table and prints it: each cell once, to compile, and then in turns."""
    for cell in line.values():
        cell.run()
        cell.copy()
    for turn in range(count):
        for cell in line.values():
            if turn == 0 or sum(cell.seconds) < budget:
                cell.take()
    turns = ", ".join(str(len(cell.ratios)) for cell in line.values())
    print(f"| {name} | {' | '.join(map(str, line.values()))} | {turns} |", flush=True)


def print_head(columns: list[str]) -> None:
    print(f"\n| | {' | '.join(columns)} | rounds |\n|---{'|---' * len(columns)}|---|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--size", type=int, default=4096, help="entries of a unit")
    parser.add_argument("--square", type=int, default=512, help="rows and columns, for sets of square matrices")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for one cell; 1 round at least")
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="as in the first column; all where left out")
    parser.add_argument("--no-peers", action="store_true")
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
    print(f"{BACKEND}, float32, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start: time over that of")
    print(f"a copy, median (quartiles), and milliseconds. Sets of units: {options.units} x {options.size};", end=" ")
    print(f"of square matrices: {options.square} x {options.square}.")
    if left_out:
        print(f"Not measured: {', '.join(sorted(left_out))}.")

    print_head([f"{mode}, {place}" for mode in modes() for place in ("outside", "inside")])
    for group, rows in zip(groups, arrays, strict=True):
        for name, owner in group.items():
            if not options.sets or name in options.sets:
                print_line(name, measurements(owner, rows), options.rounds, options.budget)
    if not options.no_peers:
        others = peers(options.size, options.square)
        print_head(["outside"])
        for name, (whole, fn) in others.items():
            line = {"outside": Measurement(finished(fn, arrays[whole]), copied(arrays[whole]))}
            print_line(name, line, options.rounds, options.budget)
    copies = [1000 * statistics.median(timed(copied(rows)) for _ in range(15)) for rows in arrays]
    print(f"\nA copy takes {copies[0]:.3g} ms of the units, {copies[1]:.3g} ms of the square matrix;", end=" ")
    print(f"load {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
