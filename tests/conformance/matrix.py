"""Cells of the matrix: which there are and why others can't be, how they are sampled and run.

A combination that Keras or inbounds refuses is declared in `REFUSALS`, and is a cell whose error is
checked. One that says nothing about the library is declared in `LEFT_OUT` with its reason, and is
no cell.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import keras
import pytest

import inbounds as ib
from conformance.layers import LAYERS
from conformance.optimizers import OPTIMIZERS
from conformance.sets import SETS
from conformance.situations import SITUATIONS
from conformance.trial import Trial

BACKEND = keras.backend.backend()
ON_CPU = BACKEND == "jax" and "cpu" in keras.distribution.list_devices()[0]
AXES = {"situation": SITUATIONS, "set": SETS, "optimizer": OPTIMIZERS, "layer": LAYERS}


@dataclass(frozen=True)
class Cell:
    """One value of each axis, by name, in the order of `AXES`."""

    situation: str
    set: str
    optimizer: str
    layer: str

    def __str__(self) -> str:
        return " | ".join(astuple(self))

    @property
    def joint(self) -> bool:
        return SETS[self.set].joint


@dataclass(frozen=True)
class Refusal:
    """Cells that end with an error.

    Attributes:
        why: they do.
        when: which cells.
        error: its class.
        text: a piece of it, as a regular expression.
        cell: one of them, where this backend has any.
    """

    why: str
    when: Callable[[Cell], bool]
    error: type[Exception]
    text: str
    cell: Cell


@dataclass(frozen=True)
class LeftOut:
    """Combinations that are no cells, and why."""

    why: str
    when: Callable[[Cell], bool]


LOOPS = ("a loop with apply", "a weight without a gradient", "at the optimum", "accumulation in a loop")
COPIES = ("saved and loaded", "cloned", "deep-copied")
SWAPS = ("average swapped in for evaluation", "average swapped in at an epoch's end")
MULTI = ("kernels before the rest", "the rest before kernels")

REFUSALS = [
    Refusal(
        "a Joint needs a kernel and a bias, or other weights that it names",
        lambda cell: cell.joint and not LAYERS[cell.layer].joints,
        ib.RuleError,
        "has any of the weights|A Joint was given to a weight that it doesn.t name",
        Cell("constrain, compile, fit", "Joint(MaxNorm)", "Adam", "Embedding"),
    ),
    Refusal(
        "a set of matrices needs one, and a scale isn't",
        lambda cell: cell.set == "SpectralNorm" and cell.layer == "BatchNormalization",
        ib.RuleError,
        "this weight has no units with a fan-in",
        Cell("constrain, compile, fit", "SpectralNorm", "Adam", "BatchNormalization"),
    ),
    Refusal(
        "a file or a copy of such a model has no sets, which constrain says",
        lambda cell: cell.situation in COPIES and not LAYERS[cell.layer].carried,
        ib.PlanNotSavedWarning,
        r"does not carry the whole plan.*call constrain again",
        Cell("saved and loaded", "NonNeg", "Adam", "MultiHeadAttention"),
    ),
    Refusal(
        "Keras on PyTorch takes one step at a time",
        lambda cell: BACKEND == "torch" and cell.situation == "two steps an execution",
        ValueError,
        "steps_per_execution` must be 1 with the PyTorch backend",
        Cell("two steps an execution", "NonNeg", "Adam", "Dense"),
    ),
    Refusal(
        "Keras' Nadam on PyTorch divides by a number in bfloat16, which PyTorch doesn't take",
        lambda cell: BACKEND == "torch" and cell.situation == "bfloat16" and cell.optimizer == "Nadam",
        TypeError,
        "_foreach_div",
        Cell("bfloat16", "NonNeg", "Nadam", "Dense"),
    ),
    Refusal(
        "Keras' LossScaleOptimizer.apply leaks a tracer on JAX outside of a fit",
        lambda cell: BACKEND == "jax" and cell.situation in LOOPS and cell.optimizer == "Adam in a loss scale",
        Exception,  # of JAX, or of Keras from it
        "unexpected tracer",
        Cell("a loop with apply", "NonNeg", "Adam in a loss scale", "Dense"),
    ),
    Refusal(
        "JAX computes no attention in float16 on a CPU",
        lambda cell: ON_CPU and cell.situation == "mixed_float16" and cell.layer == "MultiHeadAttention",
        ValueError,
        "is not supported by dot_general on CPU",
        Cell("mixed_float16", "NonNeg", "Adam", "MultiHeadAttention"),
    ),
]

LEFT_OUT = [
    LeftOut(
        "torch.compile needs a C++ compiler and a minute",
        lambda cell: BACKEND == "torch" and cell.situation == "jit",
    ),
    LeftOut(
        "it has one weight, and nothing is left to train",
        lambda cell: cell.situation == "one weight frozen" and cell.layer == "Embedding",
    ),
    LeftOut(
        "no gradient is written down that is normal to the set",
        lambda cell: cell.situation == "at the optimum" and SETS[cell.set].normal is None,
    ),
    LeftOut(
        "it decays the weights, or starts from nothing: another optimum",
        lambda cell: cell.situation == "at the optimum" and cell.optimizer in ("AdamW", "Ftrl"),
    ),
    LeftOut(
        "it has no metric that is known: it is to see reduced gradients",
        lambda cell: cell.situation == "at the optimum" and cell.optimizer in ("Muon", "ScheduleFreeAdamW"),
    ),
    LeftOut(
        "the metric of a set of matrices has no formula: it is to have reduced gradients",
        lambda cell: cell.situation == "at the optimum" and cell.set == "SpectralNorm",
    ),
    LeftOut(
        "the rates of weights are read after the step, which is near enough for small ones only",
        lambda cell: cell.situation == "at the optimum" and cell.optimizer in ("Lamb", "Adafactor") and cell.joint,
    ),
    LeftOut(
        "steps of one size along a gradient that is reduced keep the order by themselves",
        lambda cell: (
            cell.situation in ("every third step", "every epoch")
            and cell.set == "Monotone"
            and cell.optimizer == "Lion"
        ),
    ),
    LeftOut(
        "two optimizers step the weights of one unit, whose metric is then the Euclidean one",
        lambda cell: cell.situation == "at the optimum" and cell.optimizer in MULTI and cell.joint,
    ),
]


def refusal_of(cell: Cell) -> Refusal | None:
    return next((refusal for refusal in REFUSALS if refusal.when(cell)), None)


def left_out(cell: Cell) -> LeftOut | None:
    return next((reason for reason in LEFT_OUT if reason.when(cell)), None)


def combined() -> Iterator[Cell]:
    """Every combination, also those that are no cells."""
    return (Cell(*values) for values in product(*AXES.values()))


@cache
def cells() -> tuple[Cell, ...]:
    """All cells of this backend."""
    return tuple(cell for cell in combined() if left_out(cell) is None)


@cache
def possible_situations() -> tuple[str, ...]:
    """Those in which something isn't refused."""
    others = [list(values) for axis, values in AXES.items() if axis != "situation"]
    return tuple(s for s in SITUATIONS if any(_runs(Cell(s, *chosen)) for chosen in product(*others)))


def _runs(cell: Cell) -> bool:
    return left_out(cell) is None and refusal_of(cell) is None


def size() -> tuple[int, int]:
    """How many cells there are, and how many combinations are none."""
    combinations_in_all = math.prod(map(len, AXES.values()))
    return len(cells()), combinations_in_all - len(cells())


def run(cell: Cell, folder: Path) -> str:
    """Runs a cell, fails where it is wrong, and returns "passed" or, as declared, "refused"."""
    refusal = refusal_of(cell)
    if refusal is None:
        _try(cell, folder)
        return "passed"
    with pytest.raises(refusal.error, match=refusal.text):
        _try(cell, folder)
    return "refused"


def _try(cell: Cell, folder: Path) -> None:
    slow = (
        cell.optimizer == "Adafactor" and cell.layer == "Embedding"
    )  # it steps by a share of weights, here of small ones
    reaches = cell.optimizer != "ScheduleFreeAdamW" and not slow
    trial = Trial(SETS[cell.set], LAYERS[cell.layer], OPTIMIZERS[cell.optimizer], reaches, folder)
    trial.check(SITUATIONS[cell.situation](trial))


# Sampling.

SLOW = ("LSTM", "GRU", "Bidirectional", "MultiHeadAttention")
"""Layers that XLA compiles for long, which a sample therefore has less often."""


def sampled(count: int | str, seed: int, start: Iterable[Cell] = ()) -> list[Cell]:
    """Cells that cover pairs of values as evenly as they can.

    Situations come in turns. The others are then chosen one by one: first what has been seen least
    with those that are chosen already, then what has been seen least at all. Cells that are refused
    come only where pairs need them.

    Args:
        count: how many; "values": until each possible value has been covered; "pairs": until each
            possible pair of values of two axes has been.
        seed: decides between equals.
        start: the first of them.
    """
    draw = random.Random(seed)
    seen: Counter[Any] = Counter()
    missing = {"values": possible_values, "pairs": possible_pairs}[count]() if isinstance(count, str) else set()
    found: dict[Cell, None] = {}

    def take(cell: Cell) -> None:
        found[cell] = None
        seen.update([*named(cell), *pairs_of(cell)])
        missing.difference_update([*named(cell), *pairs_of(cell)])

    for cell in start:
        take(cell)
    while missing if isinstance(count, str) else len(found) < count:
        cell = _with_one_of(missing, draw) if count == "pairs" and draw.random() < 0.5 else _least_seen(seen, draw)
        if cell in found or left_out(cell) is not None or (refusal_of(cell) is not None and count != "pairs"):
            seen.update(pairs_of(cell))  # else it would be the next again
        else:
            take(cell)
    return list(found)


def possible_values() -> set[Any]:
    """Of each axis, by name."""
    return {(axis, value) for axis, values in AXES.items() for value in values if axis != "situation"} | {
        ("situation", value) for value in possible_situations()
    }


def possible_pairs() -> set[Any]:
    return {pair for cell in cells() for pair in pairs_of(cell)}


def named(cell: Cell) -> list[tuple[str, str]]:
    return list(zip(AXES, astuple(cell), strict=True))


def pairs_of(cell: Cell) -> list[tuple[tuple[str, str], ...]]:
    """The values of a cell, two and two."""
    return list(combinations(named(cell), 2))


def _least_seen(seen: Counter[Any], draw: random.Random) -> Cell:
    picked: list[tuple[str, str]] = []
    for axis, values in AXES.items():
        values = possible_situations() if axis == "situation" else values
        ranked = {
            value: (
                sum(seen[before, (axis, value)] for before in picked) + seen[axis, value] * (value in SLOW),
                seen[axis, value],
                draw.random(),
            )
            for value in values
        }
        picked.append((axis, min(ranked, key=ranked.__getitem__)))
    return Cell(*(value for _, value in picked))


def _with_one_of(missing: set[Any], draw: random.Random) -> Cell:
    pair = dict(draw.choice(sorted(missing)))
    return Cell(*(pair.get(axis) or draw.choice(list(values)) for axis, values in AXES.items()))


def refused() -> list[Cell]:
    """One cell for each refusal that this backend has."""
    return [each.cell for each in REFUSALS if refusal_of(each.cell) is each]
