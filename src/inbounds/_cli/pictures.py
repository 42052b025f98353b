"""Pictures of sets in two dimensions: the set, some points, and their nearest points in the set.

`violation` says where the set is, `project` gives the nearest points.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inbounds import constraints as sets
from inbounds._report.plots import DEFAULT_POINTS, HALF_WIDTH, Drawing

COLUMNS, ROWS = 33, 17  # a character is twice as high as it is wide
INSIDE_BELOW = 0.1  # a character is inside the set if the violation there is below this, about half a column


def text_picture(drawing: Drawing) -> str:
    """The picture as text: points in lower case, nearest points in capitals, the set dotted."""
    across, up = np.linspace(-HALF_WIDTH, HALF_WIDTH, COLUMNS), np.linspace(HALF_WIDTH, -HALF_WIDTH, ROWS)
    inside = drawing.violation(*np.meshgrid(across, up)) < INSIDE_BELOW
    raster = np.where(inside, ".", " ")
    for letter, point, near in drawing.marks:
        for mark, (x, y) in ((letter.upper(), near), (letter, point)):
            raster[np.argmin(np.abs(up - y)), np.argmin(np.abs(across - x))] = mark
    rule = "".join("+" if x == round(x) else "-" for x in across)
    side = ["+" if y == round(y) else "|" for y in up]
    captions = [*drawing.captions, *[""] * (ROWS - len(drawing.points))]
    lines = [
        f"{tick}{''.join(row)}{tick}  {caption}".rstrip()
        for tick, row, caption in zip(side, raster, captions, strict=True)
    ]
    return "\n".join([f"+{rule}+", *lines, f"+{rule}+"])


DRAWINGS = {
    type(drawing.set).__name__: drawing
    for drawing in (
        Drawing(sets.Box(-1, [1.5, 0.5])),
        Drawing(sets.Equal([0, 0])),
        Drawing(sets.Fixed([0.5, -0.5]), DEFAULT_POINTS[:1]),
        Drawing(sets.Grid(1.0), ((1.375, 0.75), (-1.75, 0.25), (-0.625, -1.25), (0.25, -0.75))),
        Drawing(sets.Halfspace([1, 2], 1), ((1.5, 1.0), (-0.5, 1.75), *DEFAULT_POINTS[2:])),
        Drawing(sets.Hyperplane([1, 2], 1)),
        Drawing(sets.L1Ball(1.0)),
        Drawing(sets.MaxNorm(1.0)),
        Drawing(sets.MinMaxNorm(0.75, 1.5), ((1.75, 1.0), (-0.25, 0.25), (-0.75, -1.75), (1.0, -0.75))),
        Drawing(sets.Monotone()),
        Drawing(sets.NonNeg()),
        Drawing(sets.NonPos()),
        Drawing(sets.Simplex(), (*DEFAULT_POINTS[:3], (0.5, 0.5))),
        Drawing(sets.Sparse(1)),
        Drawing(sets.SumTo(1.0)),
        Drawing(sets.UnitNorm()),
        Drawing(sets.MaxNorm(1.0) & sets.Halfspace([1, 2], 1), ((1.5, 1.0), (-0.75, 1.5), *DEFAULT_POINTS[2:])),
        Drawing(sets.MaxNorm(1.0).where([True, False])),
        Drawing(sets.NonNeg().on(inputs=[1])),
    )
}
"""The drawings by class name, one for each set that two dimensions show."""

NO_DRAWING_REASONS = {
    "Custom": "it is what its callable leaves as it is",
    "FrobeniusNorm": "for a weight of two entries it is the disc of MaxNorm",
    "GroupL1Ball": "for two entries it is the disc of MaxNorm, or the diamond of L1Ball",
    "GroupSparse": "for two entries it is all of the plane, or the axes of Sparse",
    "Joint": "it is the set in it, with the entries of several weights along its axes",
    "Per": "it is the set in it, with other entries of a weight along its axes",
    "Scaled": "it is larger or smaller at each step",
    "Tied": "for two weights of one entry it is the line of Equal",
    "Together": "it is the set in it, with the entries of all the weights along its axes",
}
"""Why a set has no drawing, by class name; for sets of matrices see `no_drawing_reason`."""


def no_drawing_reason(cls: Any) -> str:
    """The reason why a set has no drawing."""
    if cls.matrix is True:
        return "two dimensions hold no more of a matrix than a row"
    return NO_DRAWING_REASONS.get(cls.__name__, "it is new")
