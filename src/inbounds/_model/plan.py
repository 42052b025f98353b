"""Plan: rules resolved on one model. Data only; `rules` makes it, `attach` puts it in force."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inbounds._arrays.units import Axes
from inbounds._model.table import common_parts, grouped, table
from inbounds._model.weights import Weight
from inbounds._sets.set import Set
from inbounds._types import Gradient, Interval, Metric


@dataclass(frozen=True, eq=False)
class Entry:
    """One set, on one weight, or on several that form joint units.

    Attributes:
        set: the set.
        weights: the weights, in the order of the unit's entries.
        axes: for each weight, the axes that one unit spans.
        source: the rule it comes from, or the layer's argument.
        note: what a reader has to know of it.
        inputs: for each weight, the axis that counts the inputs of its layer; None where there is none.
        guessed: whether the axes are a guess, since the layer's layout is not known.
    """

    set: Set
    weights: tuple[Weight, ...]
    axes: tuple[Axes, ...]
    source: str
    note: str = ""
    inputs: tuple[int | None, ...] = ()
    guessed: bool = False

    @cached_property
    def applied(self) -> Set:
        """The set as it applies to these weights, with the inputs of `on` as a mask."""
        return self.set.resolved([weight.shape for weight in self.weights], self.inputs)

    @cached_property
    def variables(self) -> list[Any]:
        """Of its weights."""
        return [weight.variable for weight in self.weights]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(weight.path for weight in self.weights)

    @property
    def units(self) -> int:
        """How many units the weights make; of a set of a whole weight, how many matrices."""
        shape = self.weights[0].shape
        return self.set.counted(math.prod(n for axis, n in enumerate(shape) if axis not in self.axes[0]))

    def __repr__(self) -> str:
        return f"{self.set!r} on {' + '.join(self.paths)}"


@dataclass(frozen=True, eq=False)
class Plan:
    """The rules as they hold on one model; `print` shows every weight.

    Attributes:
        entries: what is constrained.
        free: the weights without a set, each with the reason.
        metric: the norm in which "nearest" is meant in training.
        every: the number of steps after which weights are projected, or "epoch".
        gradient: what the optimizer sees, "reduced" or "full".
        metrics: says of an entry what that norm is, with the optimizer that the model has when it is asked.
        whole: says of one likewise why the optimizer sees all of the gradient; nothing where it doesn't.
    """

    entries: tuple[Entry, ...]
    free: tuple[tuple[Weight, str], ...]
    metric: Metric = Set.metric
    every: Interval = 1
    gradient: Gradient = Set.gradient
    metrics: Callable[[Entry], str] = lambda entry: ""
    whole: Callable[[Entry], str] = lambda entry: ""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def _title(self) -> str:
        return f"Plan of {len(self.entries)} set{'s' * (len(self.entries) != 1)}"

    def __repr__(self) -> str:
        constrained = sum(len(entry.weights) for entry in self.entries)
        return f"<{self._title} on {constrained} of {constrained + len(self.free)} weights; print it to see them>"

    def __str__(self) -> str:  # every weight: in the table, or below it with the reason why it is free
        weights = [weight for entry in self.entries for weight in entry.weights] + [weight for weight, _ in self.free]
        prefix = common_parts(weight.path for weight in weights)
        rows: list[tuple[Any, ...]] = []
        notes = []
        metrics, seen = [], []
        for entry in self.entries:
            paths = [path.removeprefix(prefix) for path in entry.paths]
            spans = [f"{_axes(axes)} of {weight.shape}" for weight, axes in zip(entry.weights, entry.axes, strict=True)]
            rows.append(("\n".join(paths), repr(entry.set), entry.units, "\n".join(spans), entry.source))
            notes.append((" + ".join(paths), entry.note))
            metrics.append((" + ".join(paths), self.metrics(entry)))
            why = self.whole(entry)
            seen.append((" + ".join(paths), f"gradient: all of it, {why}" if why else ""))
        words = {said for _, said in metrics if said}
        in_all = f" ({next(iter(words))})" if len(words) == 1 else ""
        if len(words) > 1:
            notes += [(paths, f"metric: {said}") for paths, said in metrics]
        reduced = self.gradient == "reduced"
        notes += seen if reduced else []
        notes += [(weight.path.removeprefix(prefix), f"free, {why}") for weight, why in self.free]
        under = f", under {prefix}" if prefix else ""
        when = {1: "", "epoch": ", projected at the end of each epoch"}.get(self.every, f", each {self.every} steps")
        return table(
            f"{self._title}{', reduced gradient' if reduced else ''}, {self.metric} metric{in_all}{when}{under}",
            ("weight", "set", "units", "axes of a unit", "rule"),
            rows,
            grouped(notes),
        )


def reducing(entries: Iterable[Entry]) -> list[Entry]:
    """Those of which an optimizer is to see reduced gradients, whichever it is."""
    return [entry for entry in entries if entry.set.gradient == "reduced" and not entry.set.leaves_all]


def _axes(axes: Axes) -> str:
    return ", ".join(map(str, axes)) if axes else "none"
