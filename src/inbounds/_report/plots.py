"""Plots: a set in two dimensions, the units of a report, what a Monitor has seen.

Only drawing imports matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from inbounds._errors import InboundsError, SetError, printable, shown
from inbounds._report.html import FLAT
from inbounds._sets.arguments import number_or_array, refused
from inbounds._sets.set import Set

Points = Sequence[tuple[float, float]]

DEFAULT_POINTS: Points = ((1.5, 1.0), (-1.5, 0.5), (-0.5, -1.5), (1.0, -0.75))
HALF_WIDTH = 2.0  # a picture of a set spans -HALF_WIDTH to HALF_WIDTH on both axes, unless the set is larger or smaller

INSIDE, OUTSIDE, NEAREST = "#9ecae1", "#d95f02", "#08519c"

LINE = 0.0125
"""The margin around a set that is drawn with it, as a share of the half width, so that lines and
points are seen."""

FAR = 1e6  # points so far away show how large a set is, unless it is unbounded
MOST_ROWS = 12  # how many sets of a report are drawn
MOST_NAMES = 8  # how many weights a legend names


@dataclass(frozen=True, eq=False)
class Drawing:
    """A set of two-dimensional vectors, and points that are projected on it."""

    set: Any
    points: Points = DEFAULT_POINTS

    @property
    def nearest(self) -> Points:
        """The nearest point in the set for each point; a point inside is its own."""
        return tuple((float(x), float(y)) for x, y in self.set.project(np.array(self.points)))

    @property
    def captions(self) -> list[str]:
        """A text for each point that says where it is projected."""
        return [
            f"{letter} {_pair(point)} {'stays' if near == point else f'goes to {_pair(near)}'}"
            for letter, point, near in self.marks
        ]

    @property
    def caption(self) -> str:
        """The set and its captions in one line."""
        return f"{self.set!r}: {'; '.join(self.captions)}"

    @property
    def marks(self) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
        """The points, each after its letter and before its nearest point."""
        return [(chr(ord("a") + i), *pair) for i, pair in enumerate(zip(self.points, self.nearest, strict=True))]

    def violation(self, x: Any, y: Any) -> Any:
        """The violation at points that are given by arrays of coordinates."""
        return self.set.violation(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)


def _pair(point: tuple[float, float]) -> str:
    x, y = (f"{round(value, 2) + 0.0:g}" for value in point)
    return f"({x}, {y})"


def plot_set(set: Set, points: Points | None = None) -> Any:  # noqa: A002  # the name of what it draws
    """Draws a set of vectors with two entries, and arrows from points to the nearest points in it.

    Args:
        set: a set of vectors or entries, whose arrays have two entries or one.
        points: pairs of numbers. None: four points around the set.

    Returns:
        A figure of matplotlib: a notebook shows it, and `figure.savefig(path)` writes it. It isn't
        one of pyplot's, which would keep it until it is closed.

    Raises:
        SetError: the set is one of a whole weight, or doesn't fit two entries; `points` aren't
            pairs of finite numbers.
        InboundsError: matplotlib isn't installed.

    Cost: the violations of 40,000 points.

    Example:
        >>> figure = plot_set(MaxNorm(1.0) & NonNeg(), points=[(1.5, 1.0)])
        >>> len(figure.axes)
        1
    """
    if not isinstance(set, Set) or set.couples_units:
        wrong = "A set of whole weights has no picture (two entries show no more than a row), nor has what is no set"
        raise SetError(wrong, shown(set), instead="a set of vectors, such as inbounds.MaxNorm(1.0)")
    half = HALF_WIDTH * _size(set)
    scaled = tuple((x * half / HALF_WIDTH, y * half / HALF_WIDTH) for x, y in DEFAULT_POINTS)
    example = "points=[(1.5, 1.0), (0.0, 2.0)]"
    places = np.asarray(number_or_array("plot_set", "points", scaled if points is None else points, instead=example))
    if places.ndim != 2 or places.shape[1] != 2:
        raise refused("plot_set", "points", points, "is not pairs of numbers", example)
    given = tuple((x, y) for x, y in places.tolist())
    return set_figure(Drawing(set, given), max(half, 1.1 * float(np.abs(given).max(initial=0.0))))


def _size(given: Set) -> float:
    """The size of a set in two dimensions, 1 for one that ends nowhere or is a point at 0."""
    directions = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y])
    reached = float(np.abs(given.project(FAR * directions)).max())
    if not reached < FAR / 2:
        reached = float(np.abs(given.project(np.zeros((1, 2)))).max())
    return reached if 0 < reached < math.inf else 1.0


def set_figure(drawing: Drawing, half: float = HALF_WIDTH) -> Any:
    """The figure of a drawing, from -half to half on both axes."""
    figure = new_figure(2.8, 2.8)
    axes = figure.subplots()
    places = np.linspace(-half, half, 201)
    x, y = np.meshgrid(places, places)
    axes.contourf(x, y, drawing.violation(x, y), levels=[-1, LINE * half], colors=[INSIDE])
    for letter, point, near in drawing.marks:
        if point != near:
            axes.annotate("", near, point, arrowprops={"arrowstyle": "->", "color": "0.4", "shrinkA": 3, "shrinkB": 3})
            axes.plot(*near, "o", color=NEAREST, markersize=4)
        axes.plot(*point, "o", color=OUTSIDE, markersize=4)
        axes.annotate(letter, point, (4, 4), textcoords="offset points", fontsize=9)
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    if half == HALF_WIDTH:
        axes.set_xticks(range(-2, 3))
        axes.set_yticks(range(-2, 3))
    axes.tick_params(labelsize=7, length=2)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    return figure


def report_figure(model: str, rows: Sequence[Any], pressures: Mapping[tuple[str, ...], Any]) -> Any:
    """The figure of a report: each set's units against the bound, its entries, and what it costs.

    Args:
        model: its name.
        rows: those of a report that have a set, the most important ones first.
        pressures: for some rows the numbers of a pressure, by the rows' paths.
    """
    shown, columns = rows[:MOST_ROWS], 3 if pressures else 2
    figure = new_figure(3.2 * columns, 0.6 + 1.4 * max(len(shown), 1))
    left = f", {MOST_ROWS} of {len(rows)} sets" if len(rows) > MOST_ROWS else "" if rows else ": nothing is constrained"
    figure.suptitle(f"Audit of {model}{left}", fontsize=10, parse_math=False)
    for panels, row in zip(figure.subplots(max(len(shown), 1), columns, squeeze=False), shown, strict=False):
        for axes in panels:
            axes.tick_params(labelsize=7, length=2)
        _draw_units(panels[0], row)
        _draw_values(panels[1], row)
        if pressures:
            _draw_pressure(panels[2], pressures.get(row.paths, np.empty(0)))
    for axes in figure.axes if not shown else ():
        axes.set_axis_off()
    return figure


def _draw_units(axes: Any, row: Any) -> None:
    """Bars from the bound, a line: up for units outside, down for those inside.

    NaN and infinities are striped.
    """
    excess = np.array(row.excess, dtype="float64")
    known = np.where(np.isfinite(excess), excess, 0.0)
    out = known > row.tolerance
    for chosen, color in ((~out, INSIDE), (out, OUTSIDE)):
        axes.stairs(np.where(chosen, known, 0.0), fill=True, color=color)
    for i in np.flatnonzero(~np.isfinite(excess)):
        axes.axvspan(i, i + 1, facecolor="none", edgecolor=OUTSIDE, hatch="////")
    axes.axhline(0.0, color="k", linewidth=0.8)
    half = FLAT / 2 * row.tolerance
    axes.set_ylim(min(1.1 * known.min(initial=0.0), -half), max(1.1 * known.max(initial=0.0), half) or 1.0)
    axes.set_title(f"{' + '.join(row.paths)}\n{row.set}: {row.status}", fontsize=7, loc="left", parse_math=False)
    axes.set_xlabel("units, or the worst of neighbours; 0 is the bound", fontsize=7)


def _draw_values(axes: Any, row: Any) -> None:
    """The singular values where they are known, else the entries, the smallest first."""
    values = [value for value in row.singular_values or row.entries if math.isfinite(value)]
    axes.plot(values, ".-", color=NEAREST, markersize=3, linewidth=0.8)
    axes.set_xlabel("singular values" if row.singular_values else "sorted entries", fontsize=7)


def _draw_pressure(axes: Any, values: Any) -> None:
    """The pressure of each unit, the largest first."""
    finite = values[np.isfinite(values)]
    axes.stairs(np.sort(finite)[::-1] if finite.size else [0.0], fill=True, color=OUTSIDE)
    axes.axhline(0.0, color="k", linewidth=0.8)
    text = f"{np.mean(finite != 0):.0%} of units: their bound costs something" if finite.size else "no pressure"
    axes.set_xlabel(text, fontsize=7)


def history_figure(model: Mapping[str, Sequence[float]], weights: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """The figure of what a Monitor has kept, audit by audit.

    It shows the violation, the share of active units and the distance moved.
    """
    lines = weights or {"the model": model}
    texts = {"violation": "violation", "active": "share of units active"}
    texts |= {"moved": "moved by projections"} if weights else {}
    figure = new_figure(6.4, 2.4 * len(texts))
    panels = figure.subplots(len(texts), 1, sharex=True)
    for axes, (name, text) in zip(panels, texts.items(), strict=True):
        for numbers in lines.values():
            axes.plot(numbers["batch"], numbers[name], ".-", markersize=4, linewidth=1.0)
        axes.set_ylabel(text, fontsize=9)
        axes.tick_params(labelsize=8)
    panels[0].set_ylim(bottom=0.0)
    panels[1].set_ylim(-0.05, 1.05)
    panels[-1].set_xlabel("batches", fontsize=9)
    legend = panels[0].legend(panels[0].lines[:MOST_NAMES], [" " + name for name in lines][:MOST_NAMES], fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches, which a notebook shows.

    Raises:
        InboundsError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        wrong = "Nothing is drawn: matplotlib is not installed"
        raise InboundsError(wrong, printable(str(error)), instead='pip install "inbounds[plots]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]  # IPython looks for it
    return figure


def _png(figure: Any) -> bytes:
    """A figure as a picture, for notebooks."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    return file.getvalue()
