"""The axis of sets, each with its own test of membership: NumPy in float64, one unit a row."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

import inbounds as ib

Edge = tuple[np.ndarray, np.ndarray]
"""How far each unit is beyond a bound (0: on it, below 0: inside); the size of what is compared."""


@dataclass(frozen=True)
class Held:
    """One set of the matrix.

    Attributes:
        short: its name in the table.
        make: makes it.
        edges: from rows and the number of steps taken to what each bound of it says of each unit.
        onto: from rows to rows on the boundary, with no entry at 0.
        normal: from these to a gradient whose descent leads straight out of the set, or None.
        solid: whether it has an inside, to go back to from the boundary.
        joint: whether it holds for kernel and bias of each unit as one vector.
        convex: whether the average of what is inside is inside.
        changes: whether it is another set as training goes on.
    """

    short: str
    make: Callable[[], ib.Set]
    edges: Callable[[np.ndarray, int], list[Edge]]
    normal: Callable[[np.ndarray], np.ndarray] | None = None
    onto: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
    solid: bool = True
    joint: bool = False
    convex: bool = True
    changes: bool = False

    def looks(self, rows: np.ndarray, step: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
        """For each unit whether it is inside, and whether it is on the boundary.

        Args:
            rows: one unit a row.
            step: how many steps have been taken.
            spacing: the distance of 1 from the next number of the weights' dtype. Rounding may
                cost 4 of it and the errors of a sum, and a loop in this dtype may end 16 of it
                below a bound.
        """
        edges = self.edges(rows, step)
        sums = 2.25 * (2 + np.log2(rows.size)) * 2.0**-23  # three errors of a sum in float32
        close = [
            (4 * spacing * 2.0 ** np.floor(np.log2(np.maximum(size, 1e-30))) + sums * size) * (size > 0)
            for _, size in edges
        ]
        inside = np.all([excess <= slack for (excess, _), slack in zip(edges, close, strict=True)], axis=0)
        touched = np.any([np.abs(excess) <= 4 * slack for (excess, _), slack in zip(edges, close, strict=True)], axis=0)
        return inside, inside & touched


def length(rows):
    return np.sqrt(np.sum(rows**2, axis=1))


def at(bound, rows):
    return np.full(len(rows), float(bound))


def no_size(rows):
    """Nothing is rounded: entries are compared."""
    return np.zeros(len(rows))


def max_norm(bound):
    return lambda rows, step: [(length(rows) - bound, at(bound, rows))]


def unit_norm(rows, step):
    return [(np.abs(length(rows) - 1), at(1, rows))]


def non_neg(rows, step):
    return [(-rows.min(axis=1), no_size(rows))]


def box(low, high):
    def edges(rows, step):
        return [(low - rows.min(axis=1), at(abs(low), rows)), (rows.max(axis=1) - high, at(high, rows))]

    return edges


def l1_ball(radius):
    return lambda rows, step: [(np.abs(rows).sum(axis=1) - radius, at(radius, rows))]


def simplex(rows, step):
    return [(np.abs(rows.sum(axis=1) - 1), at(1, rows)), *non_neg(rows, step)]


def sum_to(total):
    return lambda rows, step: [(np.abs(rows.sum(axis=1) - total), np.abs(rows).sum(axis=1))]


def monotone(rows, step):
    return [(-np.diff(rows, axis=1).min(axis=1), no_size(rows))]


def sparse(k):
    return lambda rows, step: [(np.count_nonzero(rows, axis=1) - float(k), no_size(rows))]


def both(*parts):
    return lambda rows, step: [edge for part in parts for edge in part(rows, step)]


def of_matrix(measure, bound):
    return lambda rows, step: [(at(measure(rows) - bound, rows), at(bound, rows))]


def falling(step):
    """The schedule of the scaled set, as Keras documents it: linear from 3 to 1 in 6 steps."""
    return 3.0 - 2.0 * min(step, 6) / 6


def ball(bound):
    """A ball of 2-norms: what is normal at its boundary, and how to get there."""
    return {"normal": lambda rows: -rows, "onto": lambda rows: rows * bound / length(rows)[:, None]}


def cross(radius):
    """A ball of 1-norms, where no entry is 0."""
    return {
        "normal": lambda rows: -np.sign(rows),
        "onto": lambda rows: rows * radius / np.abs(rows).sum(axis=1, keepdims=True),
    }


def plane(total):
    """A sum."""
    return {
        "normal": lambda rows: -np.ones_like(rows),
        "onto": lambda rows: rows + (total - rows.sum(axis=1, keepdims=True)) / rows.shape[1],
        "solid": False,
    }


def one_ball(bound):
    """A ball of matrices."""
    return {"normal": lambda rows: -rows, "onto": lambda rows: rows * bound / np.linalg.norm(rows)}


SETS = {
    "MaxNorm": Held("MaxNorm", lambda: ib.MaxNorm(0.4), max_norm(0.4), **ball(0.4)),
    "UnitNorm": Held("Unit", ib.UnitNorm, unit_norm, convex=False),
    "NonNeg": Held("NonNeg", ib.NonNeg, non_neg),
    "Box": Held("Box", lambda: ib.Box(-0.2, 0.3), box(-0.2, 0.3)),
    "L1Ball": Held("L1Ball", lambda: ib.L1Ball(0.6), l1_ball(0.6), **cross(0.6)),
    "Simplex": Held("Simplex", ib.Simplex, simplex),
    "SumTo": Held("SumTo", lambda: ib.SumTo(0.5), sum_to(0.5), **plane(0.5)),
    "Monotone": Held("Monot.", ib.Monotone, monotone),
    "Sparse": Held("Sparse", lambda: ib.Sparse(2), sparse(2), convex=False),
    "NonNeg & MaxNorm": Held("N & M", lambda: ib.NonNeg() & ib.MaxNorm(0.4), both(non_neg, max_norm(0.4))),
    "SpectralNorm": Held("Spectr.", lambda: ib.SpectralNorm(0.5), of_matrix(lambda rows: np.linalg.norm(rows, 2), 0.5)),
    "FrobeniusNorm": Held("Frobn.", lambda: ib.FrobeniusNorm(0.3), of_matrix(np.linalg.norm, 0.3), **one_ball(0.3)),
    "MaxNorm, scaled": Held(
        "scaled",
        lambda: ib.MaxNorm(0.2).scaled(keras.optimizers.schedules.PolynomialDecay(3.0, 6, 1.0)),
        lambda rows, step: max_norm(0.2 * falling(step))(rows, step),
        changes=True,
    ),
    "Joint(MaxNorm)": Held("J(Max)", lambda: ib.Joint(ib.MaxNorm(0.4)), max_norm(0.4), **ball(0.4), joint=True),
    "Joint(L1Ball)": Held("J(L1)", lambda: ib.Joint(ib.L1Ball(0.6)), l1_ball(0.6), **cross(0.6), joint=True),
}
