"""Rows of the table: multiples of a step that every dtype holds; test_grid.py has other steps."""

from __future__ import annotations

import math

import numpy as np

import inbounds as ib
from inbounds import Grid
from sets.case import Case, Edge, Rows


def multiples(owner: ib.Set, step: float) -> Case:
    """Entries that are multiples of a step; halfway between two, of the even one."""
    off = np.vectorize(lambda entry: math.remainder(entry, step) if math.isfinite(entry) else 0.0, otypes=["float64"])

    def edges(rows: Rows) -> list[Edge]:
        return [(np.max(np.abs(rows), axis=1, keepdims=True), np.abs(off(rows)))]

    return Case(owner, lambda rows: rows - off(rows), edges, by_entry=True)


SETS = {
    "Grid": multiples(Grid(0.25), 0.25),
    "Grid-coarse": multiples(Grid(3), 3),
    "Grid-other": multiples(Grid(0.375), 0.375),
}
