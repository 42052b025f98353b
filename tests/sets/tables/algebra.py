"""Rows of the table: sets made by operators, and sets about a centre.

The formulas are of the textbook: one after the other for a cone and a ball, bisection for one
multiplier, and for the rest Dykstra's algorithm in a few lines of NumPy, run until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import keras
import numpy as np

import inbounds as ib
from sets.case import Case, Edge, Rows
from sets.tables.entries import bounds
from sets.tables.norms import norms
from sets.tables.order import monotone
from sets.tables.sums import l1_ball, linear

Oracle = Callable[[Rows], Rows]


def both(owner: ib.Set, cases: Sequence[Case], nearest: Oracle, **more: Any) -> Case:
    """All of some cases at once."""

    def edges(rows: Rows) -> list[Edge]:
        return [edge for case in cases for edge in case.edges(rows)]

    def program(rows: cp.Variable) -> list[cp.Constraint]:
        return [constraint for case in cases for constraint in (case.program or list)(rows)]

    size = max((case.size or 0 for case in cases), default=0) or None
    convex = all(case.convex for case in cases)
    more["summed"] = max(case.summed for case in cases)
    return Case(owner, nearest, edges, program if convex else None, size=size, **more)


def in_turn(*cases: Case) -> Oracle:
    def nearest(rows: Rows) -> Rows:
        for case in cases:
            rows = case.nearest(rows)
        return rows

    return nearest


def with_multiplier(family: Callable[[Rows, Rows], Rows], gap: Callable[[Rows], Rows]) -> Oracle:
    """By bisection on one number per row, in [-big, big].

    A family that begins at 0 takes all below for 0, so that it is bisected in [0, big].
    """

    def nearest(rows: Rows) -> Rows:
        big = 1e3 * (1 + np.abs(rows).max(axis=1, keepdims=True))
        low, high = -big, big
        for _ in range(200):
            middle = 0.5 * (low + high)
            more = gap(family(rows, middle)) > 0
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return family(rows, high)

    return nearest


def dykstra(*cases: Case) -> Oracle:
    def nearest(rows: Rows) -> Rows:
        here, taken = rows, [np.zeros_like(rows) for _ in cases]
        for _ in range(20000):
            before = [part.copy() for part in taken]
            for i, case in enumerate(cases):
                back = here + taken[i]
                here = case.nearest(back)
                taken[i] = back - here
            if max(np.abs(a - b).max() for a, b in zip(before, taken, strict=True)) <= 1e-15 * np.abs(rows).max():
                break
        return here

    return nearest


def positive(number: Rows) -> Rows:
    return np.maximum(number, 0)


NORMAL = [0.5, -2.0, 0.0, 1.0, 0.25]
LENGTH = float(np.linalg.norm(NORMAL))
MASK = np.array([True, False, True, False, True])
CENTER = [0.5, -0.2, 0.0, 0.1, 1.0]

box, small = bounds(ib.Box(-0.2, 0.7), -0.2, 0.7), bounds(ib.Box(-0.1, 0.4), -0.1, 0.4)
orthant, ball = bounds(ib.NonNeg(), 0, np.inf), norms(ib.MaxNorm(1), 0, 1)
total = linear(ib.SumTo(0.3), 1.0, 0.3, 1.0, equal=True)
half = linear(ib.Halfspace(NORMAL, -0.3), NORMAL, -0.3, LENGTH, equal=False)
diamond = l1_ball(ib.L1Ball(1.2), 1.2)
rising = monotone(ib.Monotone())


STILL = keras.optimizers.schedules.PolynomialDecay(0.3, 1, 0.3)
FACTOR = float(np.float32(0.3))
"""A schedule that stands still, and its factor, which has all the digits that float32 has."""


def lowered(rows: Rows, number: Rows) -> Rows:
    return np.sign(rows) * positive(np.abs(rows) - positive(number))


def size(rows: Rows) -> Rows:
    return np.abs(rows).sum(axis=1, keepdims=True)


def length(rows: Rows) -> Rows:
    return np.sqrt((rows**2).sum(axis=1, keepdims=True))


def where(owner: ib.Set, case: Case, mask: Rows) -> Case:
    """The case for the marked entries of a row."""

    def edges(rows: Rows) -> list[Edge]:
        marked = rows[:, mask]
        return [(b, np.broadcast_to(e, marked.shape).max(axis=1, keepdims=True)) for b, e in case.edges(marked)]

    def scattered(rows: Rows) -> Rows:
        result = rows.copy()
        result[:, mask] = case.nearest(rows[:, mask])
        return result

    return replace(
        case,
        set=owner,
        nearest=scattered,
        edges=edges,
        program=lambda rows: (case.program or list)(rows[:, np.flatnonzero(mask)]),
        size=mask.size,
        seen=mask,
    )


def about(owner: ib.Set, case: Case, center: Any, measured: Oracle) -> Case:
    """The case moved by a centre; rounding is that of the moved numbers, in the norm of the set."""
    center = np.asarray(center, dtype="float64")

    def edges(rows: Rows) -> list[Edge]:
        return [(measured(rows) + np.abs(bound), excess) for bound, excess in case.edges(rows - center)]

    return replace(
        case,
        set=owner,
        nearest=lambda rows: center + case.nearest(rows - center),
        edges=edges,
        program=lambda rows: (case.program or list)(rows - np.broadcast_to(center, rows.shape)),
        size=center.size if center.ndim else None,
        mixes=max(case.mixes, 4),
        held=1.0,
        any_scale=False,
        smallest=1.0,
    )


def scaled(owner: ib.Set, case: Case, factor: float) -> Case:
    """The case times a factor; rounding is that before, which may be twice as wide."""

    def edges(rows: Rows) -> list[Edge]:
        return [(2 * factor * np.asarray(bound), factor * excess) for bound, excess in case.edges(rows / factor)]

    return replace(
        case,
        set=owner,
        nearest=lambda rows: factor * case.nearest(rows / factor),
        edges=edges,
        program=lambda rows: (case.program or list)(rows / factor),
        held=1.0,
        any_scale=False,
    )


SOLVED_FEW = {(1, 1): 8, (1, 9): 8, (7, 1): 8, (3, 4): 10, (16, 8): 6, (33, 17): 1}
numeric: dict[str, Any] = {
    "any_scale": False,
    "mixes": 16,
    "held": 1.0,
    "solved": SOLVED_FEW,
    "exact": 1e-9,
    "samples": 10,
}

SETS = {
    "NonNeg-MaxNorm": both(ib.NonNeg() & ib.MaxNorm(1), [orthant, ball], in_turn(orthant, ball), curved=True),
    "Box-SumTo": both(
        ib.Box(-0.2, 0.7) & ib.SumTo(0.3),
        [box, total],
        with_multiplier(lambda rows, t: np.clip(rows - t, -0.2, 0.7), lambda rows: rows.sum(1, keepdims=True) - 0.3),
        **numeric,
    ),
    "Halfspace-MaxNorm": both(
        ib.Halfspace(NORMAL, -0.3) & ib.MaxNorm(1),
        [half, ball],
        with_multiplier(
            lambda rows, t: ball.nearest(rows - positive(t) * np.array(NORMAL)),
            lambda rows: rows @ np.array(NORMAL)[:, None] + 0.3,
        ),
        **numeric,
    ),
    "L1Ball-MaxNorm": both(
        ib.L1Ball(1.2) & ib.MaxNorm(1),
        [diamond, ball],
        with_multiplier(lambda rows, t: diamond.nearest(rows / (1 + positive(t))), lambda rows: length(rows) - 1),
        **numeric,
    ),
    "Box-L1Ball": both(
        ib.Box(-0.1, 0.4) & ib.L1Ball(1.2),
        [small, diamond],
        with_multiplier(lambda rows, t: np.clip(lowered(rows, t), -0.1, 0.4), lambda rows: size(rows) - 1.2),
        **numeric,
    ),
    "Where-L1Ball": where(ib.L1Ball(1.2).where(MASK), diamond, MASK),
    "Where-Monotone": where(ib.Monotone().where(MASK), rising, MASK),
    "Where-Box": where(ib.Box(0.2, 0.7).where(MASK), bounds(ib.Box(0.2, 0.7), 0.2, 0.7), MASK),
    "On-MaxNorm": where(ib.MaxNorm(1).on(inputs=[0, 2, 4]), ball, MASK),
    "MaxNorm-scaled": scaled(ib.MaxNorm(1).scaled(STILL), ball, FACTOR),
    "L1Ball-scaled": scaled(ib.L1Ball(1.2).scaled(STILL), diamond, FACTOR),
    "Box-scaled": scaled(ib.Box(-0.2, 0.7).scaled(STILL), box, FACTOR),
    "MaxNorm-center": about(ib.MaxNorm(1, center=CENTER), ball, CENTER, length),
    "Box-center": about(
        ib.Box(-0.2, 0.7, center=CENTER), box, CENTER, lambda rows: np.abs(rows).max(axis=1, keepdims=True)
    ),
}
