"""Pictures of the sets in two dimensions: the set, some points, and the points of the set that are nearest to them.

All of it is computed: where the set is by `violation`, what is nearest by `project`. `docs/pictures.py` draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inbounds.constraints import (
    Box,
    Fixed,
    Grid,
    Halfspace,
    Hyperplane,
    L1Ball,
    MaxNorm,
    MinMaxNorm,
    Monotone,
    NonNeg,
    NonPos,
    Simplex,
    Sparse,
    SumTo,
    UnitNorm,
)

EDGE = 2
"""A picture goes from -EDGE to EDGE, both ways."""

COLUMNS, ROWS = 33, 17
"""A character is twice as high as wide."""

REACH = 0.1
"""A place is of the set if the violation there is below it: about half of the distance of two places."""

Points = tuple[tuple[float, float], ...]

USUAL: Points = ((1.5, 1.0), (-1.5, 0.5), (-0.5, -1.5), (1.0, -0.75))


@dataclass(frozen=True)
class Drawing:
    """A set of vectors of two entries, and points that are projected on it."""

    set: Any
    points: Points = USUAL

    @property
    def nearest(self) -> Points:
        """The nearest points of the set, one for each point; a point inside is its own."""
        return tuple((float(x), float(y)) for x, y in self.set.project(np.array(self.points)))

    @property
    def captions(self) -> list[str]:
        """What becomes of each point, in words."""
        return [
            f"{letter} {_pair(point)} {'stays' if near == point else f'goes to {_pair(near)}'}"
            for letter, point, near in self.marks
        ]

    @property
    def caption(self) -> str:
        """The set, and what becomes of each point, in one line."""
        return f"{self.set!r}: {'; '.join(self.captions)}"

    @property
    def marks(self) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
        """The points, each with its letter before it and its nearest point after it."""
        return [(chr(ord("a") + i), *pair) for i, pair in enumerate(zip(self.points, self.nearest, strict=True))]

    def violation(self, x: Any, y: Any) -> Any:
        """The violation at points, given by arrays of coordinates of one shape."""
        return self.set.violation(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)

    @property
    def text(self) -> str:
        """The picture in characters: points are small letters, their nearest points are capitals, the set is dots."""
        across, up = np.linspace(-EDGE, EDGE, COLUMNS), np.linspace(EDGE, -EDGE, ROWS)
        inside = self.violation(*np.meshgrid(across, up)) < REACH
        raster = np.where(inside, ".", " ")
        for letter, point, near in self.marks:
            for mark, (x, y) in ((letter.upper(), near), (letter, point)):
                raster[np.argmin(np.abs(up - y)), np.argmin(np.abs(across - x))] = mark
        rule = "".join("+" if x == round(x) else "-" for x in across)
        side = ["+" if y == round(y) else "|" for y in up]
        captions = [*self.captions, *[""] * (ROWS - len(self.points))]
        lines = [
            f"{tick}{''.join(row)}{tick}  {caption}".rstrip()
            for tick, row, caption in zip(side, raster, captions, strict=True)
        ]
        return "\n".join([f"+{rule}+", *lines, f"+{rule}+"])


DRAWINGS = {
    type(drawing.set).__name__: drawing
    for drawing in (
        Drawing(Box(-1, [1.5, 0.5])),
        Drawing(Fixed([0.5, -0.5]), USUAL[:1]),
        Drawing(Grid(1.0), ((1.375, 0.75), (-1.75, 0.25), (-0.625, -1.25), (0.25, -0.75))),
        Drawing(Halfspace([1, 2], 1), ((1.5, 1.0), (-0.5, 1.75), *USUAL[2:])),
        Drawing(Hyperplane([1, 2], 1)),
        Drawing(L1Ball(1.0)),
        Drawing(MaxNorm(1.0)),
        Drawing(MinMaxNorm(0.75, 1.5), ((1.75, 1.0), (-0.25, 0.25), (-0.75, -1.75), (1.0, -0.75))),
        Drawing(Monotone()),
        Drawing(NonNeg()),
        Drawing(NonPos()),
        Drawing(Simplex(), (*USUAL[:3], (0.5, 0.5))),
        Drawing(Sparse(1)),
        Drawing(SumTo(1.0)),
        Drawing(UnitNorm()),
        Drawing(MaxNorm(1.0) & Halfspace([1, 2], 1), ((1.5, 1.0), (-0.75, 1.5), *USUAL[2:])),
        Drawing(MaxNorm(1.0).where([True, False])),
        Drawing(NonNeg().on(inputs=[1])),
    )
}
"""A drawing for each set that two dimensions show, by the name of its class."""

UNDRAWN = {
    "Custom": "it is what its callable leaves as it is",
    "FrobeniusNorm": "for a weight of two entries it is the disc of MaxNorm",
    "Joint": "it is the set in it, with the entries of several weights along its axes",
    "Scaled": "it is larger or smaller at each step",
}
"""Why the others have none, by the names of their classes; for sets of matrices see `why_not`."""


def why_not(cls: Any) -> str:
    """Why a set has no drawing."""
    return "two dimensions hold no more of a matrix than a row" if cls.matrix is True else UNDRAWN[cls.__name__]


def _pair(point: tuple[float, float]) -> str:
    x, y = (f"{round(value, 2) + 0.0:g}" for value in point)
    return f"({x}, {y})"
