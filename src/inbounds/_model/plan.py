"""Plans: the rules resolved on one model, as data. `_train.attach` puts a plan in force."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inbounds._arrays.units import Axes
from inbounds._model.table import Table, Tabular, common_prefix, merged_notes, quantity
from inbounds._model.weights import Weight
from inbounds._sets.set import Set
from inbounds._types import Gradient, Interval, Latent, Metric


@dataclass(frozen=True, eq=False)
class Entry:
    """One set on one weight, or on several weights that form joint units.

    Attributes:
        set: the set.
        weights: the weights, in the order of the unit's entries.
        axes: for each weight, the axes that one unit spans.
        source: the rule, or the layer's argument, that assigns the set.
        note: what the plan prints about the entry, besides the columns of its table.
        inputs: for each weight, the axis of the layer's inputs, or None.
        guessed: whether the axes are a guess, because no layout names the weight.
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
        """The set with the inputs of `on` as a mask of these weights."""
        return self.set.resolved([weight.shape for weight in self.weights], self.inputs)

    @cached_property
    def variables(self) -> list[Any]:
        """The variables of the weights."""
        return [weight.variable for weight in self.weights]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(weight.path for weight in self.weights)

    @property
    def units(self) -> int:
        """How many units the weights make; for a set of matrices, how many matrices."""
        shape = self.weights[0].shape
        return self.set.reported_units(math.prod(n for axis, n in enumerate(shape) if axis not in self.axes[0]))

    def __repr__(self) -> str:
        return f"{self.set!r} on {' + '.join(self.paths)}"


@dataclass(frozen=True, eq=False)
class Plan(Tabular):
    """The rules resolved on one model; `print` shows every weight.

    Attributes:
        entries: the sets, each with its weights.
        free: the weights without a set, each with the reason.
        metric: the norm in which "nearest" is meant in training, as given to `constrain`.
        every: the number of steps between projections, or "epoch".
        gradient: which gradient the optimizer sees, "reduced" or "full".
        latent: whether the optimizer steps latent weights: True, False or "auto".
        metrics: from an entry to the name of its metric under the model's present optimizer.
        whole: from an entry to the reason why that optimizer sees its full gradient, "" if it
            doesn't.
        latents: from an entry to what there is to say of its latent weights, "" without them.
    """

    entries: tuple[Entry, ...]
    free: tuple[tuple[Weight, str], ...]
    metric: Metric = Set.metric
    every: Interval = 1
    gradient: Gradient = Set.gradient
    latent: Latent = Set.latent
    metrics: Callable[[Entry], str] = lambda entry: ""
    whole: Callable[[Entry], str] = lambda entry: ""
    latents: Callable[[Entry], str] = lambda entry: ""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def _title(self) -> str:
        return f"Plan of {quantity(len(self.entries), 'set')}"

    def __repr__(self) -> str:
        constrained = sum(len(entry.weights) for entry in self.entries)
        return f"<{self._title} on {constrained} of {constrained + len(self.free)} weights; print it to see them>"

    def _table(self) -> Table:
        weights = [weight for entry in self.entries for weight in entry.weights] + [weight for weight, _ in self.free]
        prefix = common_prefix(weight.path for weight in weights)
        rows: list[tuple[Any, ...]] = []
        notes, metrics, gradients = [], [], []
        for entry in self.entries:
            paths = [path.removeprefix(prefix) for path in entry.paths]
            spans = [f"{_axes(axes)} of {weight.shape}" for weight, axes in zip(entry.weights, entry.axes, strict=True)]
            rows.append(("\n".join(paths), repr(entry.set), entry.units, "\n".join(spans), entry.source))
            subject = " + ".join(paths)
            notes += [(subject, entry.note), (subject, entry.set.lost_steps), (subject, self.latents(entry))]
            metrics.append((subject, self.metrics(entry)))
            why = self.whole(entry)
            gradients.append((subject, f"gradient: all of it, {why}" if why else ""))
        distinct = {metric for _, metric in metrics if metric}
        in_all = f" ({next(iter(distinct))})" if len(distinct) == 1 else ""
        if len(distinct) > 1:
            notes += [(subject, f"metric: {metric}") for subject, metric in metrics]
        reduced = self.gradient == "reduced"
        notes += gradients if reduced else []
        notes += [(weight.path.removeprefix(prefix), f"free, {why}") for weight, why in self.free]
        under = f", under {prefix}" if prefix else ""
        when = {1: "", "epoch": ", projected at the end of each epoch"}.get(self.every, f", each {self.every} steps")
        return Table(
            f"{self._title}{', reduced gradient' if reduced else ''}, {self.metric} metric{in_all}{when}{under}",
            ("weight", "set", "units", "axes of a unit", "rule"),
            rows,
            merged_notes(notes),
        )


def _axes(axes: Axes) -> str:
    return ", ".join(map(str, axes)) if axes else "none"
