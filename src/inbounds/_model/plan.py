"""Plans: the rules resolved on one model, as data. `_train.attach` puts a plan in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from inbounds._arrays.views import Axes, View, WeightLayout
from inbounds._errors import LayoutError
from inbounds._model.table import Table, Tabular, common_prefix, quantity
from inbounds._model.weights import Weight
from inbounds._sets.joint import JointSet
from inbounds._sets.per import of_axes, views_of
from inbounds._sets.set import Set
from inbounds._sets.value import Training
from inbounds._types import Cadence, Gradient, Latent, Metric


@dataclass(frozen=True, eq=False)
class Entry:
    """One set on one weight, or on several weights that form joint units.

    Attributes:
        set: the set.
        weights: the weights, in the order of the unit's entries.
        source: the rule, or the layer's argument, that assigns the set.
        note: what the plan prints about the entry, besides the columns of its table.
        layouts: for each weight, what its axes are in its layer.
        guessed: whether the axes are a guess, because no layout names the weight.
    """

    set: Set
    weights: tuple[Weight, ...]
    source: str
    note: str = ""
    layouts: tuple[WeightLayout, ...] = ()
    guessed: bool = False

    @cached_property
    def _laid_out(self) -> tuple[Set, tuple[Axes, ...]]:
        """`applied`, without a `per` whose units have axes of the weights, and `axes`."""
        given, shapes = self.set.laid_out(self.layouts), [weight.shape for weight in self.weights]
        if (found := of_axes(given, shapes)) is not None:
            return found
        if not isinstance(given, JointSet):
            return given, (given.span(shapes[0], self.layouts[0].fan_in),)
        if given.whole and not given.matrix:
            return given, tuple(tuple(range(len(shape))) for shape in shapes)
        fans = [layout.fan_in for layout in self.layouts]
        axes = (tuple(range(len(shape) - 1)) if fan is None else fan for shape, fan in zip(shapes, fans, strict=True))
        views = [View(shape, span) for shape, span in zip(shapes, axes, strict=True)]
        if len({view.count for view in views}) > 1:
            named = zip(self.weights, views, strict=True)
            wrong = "These weights form no joint units: they have different numbers of units"
            received = ", ".join(f"{weight.name} of shape {weight.shape} has {view.count}" for weight, view in named)
            instead = "register_layout for this layer, or constrain the weights separately"
            raise LayoutError(wrong, received, where=type(self.weights[0].layer).__name__, instead=instead)
        return given, tuple(view.axes for view in views)

    @property
    def axes(self) -> tuple[Axes, ...]:
        """For each weight, the axes that one unit spans; all if a set has several kinds of units.

        Raises:
            SetError: the set doesn't apply to such weights.
            LayoutError: the weights have different numbers of units.
        """
        return self._laid_out[1]

    @property
    def other_span(self) -> Axes | None:
        """The axes of a unit by the layer's fan-in, where the set's `axis` differs; else None."""
        (axes, *_), layout = self.axes, self.layouts[0]
        if self.set.axis is None or layout.fan_in is None:
            return None
        span = self.set.layer_span(layout.shape, layout.fan_in)
        return None if set(span) == set(axes) else span

    @property
    def views(self) -> list[View]:
        """The weights, each with the axes that one unit spans."""
        return [View(weight.shape, span) for weight, span in zip(self.weights, self.axes, strict=True)]

    @property
    def applied(self) -> Set:
        """The set on these weights, see `Set.laid_out`."""
        return self._laid_out[0]

    @cached_property
    def variables(self) -> list[Any]:
        """The variables of the weights."""
        return [weight.variable for weight in self.weights]

    @cached_property
    def training(self) -> Training:
        """How steps of training treat the set."""
        return self.set.training

    @property
    def keeps_latent(self) -> bool:
        """Whether training keeps latent weights."""
        return self.set.needs_latent if self.training.latent == "auto" else self.training.latent

    @property
    def lost_steps(self) -> str:
        """The steps that are lost because no latent weights keep them, in words; empty: none."""
        return "" if self.keeps_latent else self.set.undone_steps

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(weight.path for weight in self.weights)

    def index_of(self, place: int, count: int) -> tuple[int, ...]:
        """The index of one of `count` numbers.

        Where each unit has one, it is an index into the weight's axes that count units.
        """
        view = self.views[0]
        return tuple(map(int, np.unravel_index(place, view.units if view.count == count else (count,))))

    @property
    def units(self) -> int:
        """How many units the weights make; for a set of matrices, how many matrices."""
        return self.applied.reported_units(self.views[0].count)

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
        treatment: a function from an entry to how the steps of the model's present optimizer treat
            it, in words: the metric of the projection, why the optimizer sees the full gradient,
            and a remark on latent weights; each may be empty.
    """

    entries: tuple[Entry, ...]
    free: tuple[tuple[Weight, str], ...]
    metric: Metric = Training.metric
    every: Cadence = 1
    gradient: Gradient = Training.gradient
    latent: Latent = Training.latent
    treatment: Callable[[Entry], tuple[str, str, str]] = lambda entry: ("", "", "")

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
        prefix = common_prefix([*(path for entry in self for path in entry.paths), *(one.path for one, _ in self.free)])
        treated = [(entry, *self.treatment(entry)) for entry in self]
        metrics = dict.fromkeys(metric for _, metric, _, _ in treated if metric)
        in_all = f" ({next(iter(metrics))})" if len(metrics) == 1 else ""
        notes = [(one.paths, note) for one, _, _, latent in treated for note in (one.note, one.lost_steps, latent)]
        others = [entry for entry in self if entry.training.every != self.every]
        notes += [(entry.paths, f"projected {_when(entry.training.every)}") for entry in others]
        if len(metrics) > 1:
            notes += [(entry.paths, metric and f"metric: {metric}") for entry, metric, _, _ in treated]
        reduced = any(entry.training.gradient == "reduced" and not why for entry, _, why, _ in treated)
        if reduced or self.gradient == "reduced":
            notes += [(entry.paths, why and f"gradient: all of it, {why}") for entry, _, why, _ in treated]
        notes += [((weight.path,), f"free, {why}") for weight, why in self.free]
        when = "" if self.every == 1 else f", projected {_when(self.every)}"
        under = f", under {prefix}" if prefix else ""
        return Table.of_weights(
            f"{self._title}{', reduced gradient' if reduced else ''}, {self.metric} metric{in_all}{when}{under}",
            ("weight", "set", "units", "axes of a unit", "rule"),
            [(entry.paths, (repr(entry.set), entry.units, _axes(entry), entry.source)) for entry in self],
            notes,
            prefix,
        )


def _when(every: Cadence) -> str:
    return {1: "in each step", "epoch": "at the end of each epoch"}.get(every, f"each {every} steps")


def _axes(entry: Entry) -> str:
    """The axes of a unit in each weight of an entry, one a line.

    Of a set with several kinds of units, the axes of each kind.
    """
    views = views_of(entry.applied) or entry.views
    return "\n".join(f"{', '.join(map(str, view.axes)) or 'none'} of {view.shape}" for view in views)
