"""What a usual run leaves out, and `--all` runs: repetitions of a proof, say in another dtype.

Backends take turns at tests marked `by_turns`: what they prove doesn't depend on the backend, and
each test function is run on one. Marked `by_turns("case")`, a function is run on all backends, with
some of its cases on each: all backends compute by the same code, so that each law meets each
backend, and each set too.

Of tests that differ only in parameters named in `REPEATED`, or by the marker `repeats`, one stays
for each choice of the others. Which one goes round, so that each value has its turn.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

REPEATED = ("dtype", "scale", "seed", "shape", "size")
USUAL = {"numpy": "float64"}
"""The dtype of three samples in four, by library; float32 for the others."""

TURNS = (*["torch"] * 5, "tensorflow", *["torch"] * 5, "jax", *["torch"] * 12)
"""Whose turn it is, by test function; PyTorch has most, since it compiles nothing."""

TURNS_OF_CASES = (*["torch"] * 5, "tensorflow", "torch", "jax", "torch")
"""Likewise, by test function and case: both numbers are added, so that sets go round as laws do."""

everything = False
"""Whether this run leaves nothing out. A test with a loop of its own over repetitions asks here."""


def left_out(items: Iterable[Any]) -> list[Any]:
    """The tests of a collection that only repeat others of it."""
    alike: dict[tuple[Hashable, ...], list[Any]] = defaultdict(list)
    repeated = []
    for item in items:
        if item.get_closest_marker("repetition"):
            repeated.append(item)
        else:
            alike[_claim(item)].append(item)
    turns: Counter[Hashable] = Counter()
    for (function, *_), same in alike.items():
        kept = _sample(same, turns[function])
        turns[function] += 1
        repeated += [item for item in same if item is not kept]
    return repeated


def first_of(backends: Iterable[str]) -> str:
    """The backend that compiles least, of some."""
    return min(backends, key=["torch", "tensorflow", "jax"].index)


def is_of_another_backend(item: Any, backend: str) -> bool:
    """Whether it is another backend's turn; what a backend skips is of the others."""
    mark = item.get_closest_marker("by_turns")
    if mark is None or any(item.iter_markers("skipif")):
        return False
    return turn_of(_function_of(item), *(item.callspec.params[name] for name in mark.args)) != backend


def turn_of(function: str, *cases: Any) -> str:
    """The backend that runs a test function, or some cases of it."""
    turns = TURNS_OF_CASES if cases else TURNS
    return turns[sum(zlib.crc32(text.encode()) for text in (function, *map(_text, cases))) % len(turns)]


def _text(value: Any) -> str:
    """A text that is the same on every backend; of a row of the table of sets, that of its set."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(getattr(value, "set", value)))


def _claim(item: Any) -> tuple[Hashable, ...]:
    """What a test proves: its function, and the parameters that don't just repeat the proof."""
    repeated = {*REPEATED, *(name for mark in item.iter_markers("repeats") for name in mark.args)}
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return _function_of(item), *((name, _same(value)) for name, value in parameters.items() if name not in repeated)


def _function_of(item: Any) -> str:
    """Without parameters, and without the group that pytest-xdist adds."""
    return re.split(r"\[|@", item.nodeid)[0]


def _same(value: Any) -> Hashable:
    """Equal for the same value, and for the names of one layer in one, two or three dimensions."""
    return re.sub("[123]D", "D", repr(value)) if isinstance(value, str | int | float) else id(value)


def _sample(same: list[Any], turn: int) -> Any:
    if len(same) == 1:
        return same[0]
    usual = [item for item in same if _is_usual(**item.callspec.params)]
    others = [item for item in same if item not in usual]
    if not usual or (others and turn % 4 == 3):
        return others[turn // (4 if usual else 1) % len(others)]
    return usual[turn % len(usual)]


def _is_usual(*, dtype: Any = None, library: Any = None, **others: Any) -> bool:
    return dtype in (None, USUAL.get(library, "float32"))
