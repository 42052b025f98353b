"""Polytopes by a support function: `SupportSet`, a base for sets of one's own."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, constant, dtype_of, epsilon, iterate, namespace, solve, without_gradient
from inbounds._arrays.units import Units
from inbounds._errors import SetError
from inbounds._sets.set import Exceeded, Set

STEPS = 400
"""The limit of steps; to a vertex it is 2, to a mean of n vertices some 2 n."""

UNROLLED = 60
"""The number of steps where PyTorch exports or vectorizes, and can't stop early."""

EXACT = 64
"""How many epsilons of the set's size may be wrong: the distance of what counts as inside."""

LARGEST = 128
"""The most entries of a unit: a step solves a linear system of as many unknowns for each unit."""


class SupportSet(Set):
    """{w : g . w <= s(g) for every g}, each unit: a polytope of your own, by its support function s.

    A subclass says which point of the set is the farthest in a direction. The support function
    follows: s(g) = g . farthest(g). Of a convex hull it is the farthest vertex, of a zonotope the
    sum of the generators with the signs of their inner products, of a sum of sets the sum of their
    farthest points, of the hull of several sets the farthest of theirs.

    The nearest point is a mean of points that `farthest` gave, and so it is in the set wherever the
    search ends, after 400 steps at most. A unit that is as near to the set as rounding, 32 epsilons
    of its largest entry, stays. No derivative goes through the projection. A set that is smooth
    has no finite number of such points: the search ends at about the root of epsilon from its
    nearest point.

    Raises:
        SetError: a unit has more than 128 entries, or only some of its entries are to be in the
            set (`where`, `on`, frozen weights); `farthest` returns another shape.

    Cost: in each step `farthest`, and a linear system of n + 2 unknowns for each unit of n entries,
    n^3; as a rule two steps for each vertex that the nearest point is a mean of. The violation is
    the largest entry of the distance, found in the same way in float64.

    Source: Wolfe, "Finding the nearest point in a polytope", 1976; Lacoste-Julien and Jaggi, "On
    the global linear convergence of Frank-Wolfe optimization variants", 2015.
    """

    allows_frozen: ClassVar[bool] = False

    @abstractmethod
    def farthest(self, directions: Array) -> Array:
        """For each direction a point of the set with the largest inner product.

        Args:
            directions: of shape (units, size), NumPy's or the backend's, see `namespace`.

        Returns:
            Points of the same shape and dtype.
        """

    def check_fit(self, units: Units) -> None:
        if units.size > LARGEST or units.mask_rows() is not None:
            raise SetError(
                f"A set by its support function is for whole units of at most {LARGEST} entries",
                f"{units.count} units of {units.size} entries",
                where=repr(self),
                instead="a subclass of Set with a projection of its own",
            )
        probe = self.farthest(np.ones((1, units.size)))
        if tuple(probe.shape) != (1, units.size):
            raise SetError(
                "`farthest` does not return a point for each direction",
                f"shape={tuple(probe.shape)}",
                where=f"{self!r}, for directions of shape {(1, units.size)}",
            )

    def _project(self, units: Units) -> Units:
        rows = without_gradient(units.rows())
        xp = namespace(rows)
        near, size = self._nearest(rows)
        apart = xp.max(xp.abs(rows - near), axis=1, keepdims=True)
        finite = xp.all(xp.isfinite(rows), axis=1, keepdims=True)
        return units.with_rows(xp.where(finite & (apart > EXACT / 2 * epsilon(units.dtype) * size), near, rows))

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        xp = namespace(rows)
        near, size = self._nearest(rows)
        return [(xp.max(xp.abs(rows - near), axis=1), EXACT * epsilon(laid.dtype) * size[:, 0])]

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        return self._edges(rows, Laid.of_rows(rows))[0][0]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return EXACT * epsilon(dtype)

    def _nearest(self, rows: Array) -> tuple[Array, Array]:
        """The nearest points, and the largest entry of the set's points that were met, of shape (units, 1)."""
        xp = namespace(rows)
        rows = xp.where(xp.isfinite(rows), rows, xp.zeros_like(rows))
        rounding, slots = epsilon(dtype_of(rows)), rows.shape[1] + 2
        place = constant(rows, np.arange(slots)[None])

        def steepest(away: Array) -> tuple[Array, Array]:
            most = xp.max(xp.abs(away), axis=1, keepdims=True)
            flat = most <= 0
            return xp.where(flat, xp.ones_like(away), away / xp.where(flat, xp.ones_like(most), most)), most

        def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            points, shares, settled, before = state
            here = xp.sum(points * shares[:, :, None], axis=1)
            slope, most = steepest(rows - here)
            size = xp.max(xp.abs(points), axis=(1, 2), keepdims=True)[:, :, 0]
            ahead = self.farthest(slope)
            gap = xp.sum(slope * (ahead - here), axis=1, keepdims=True)
            distance = most * xp.sqrt(xp.sum(slope**2, axis=1, keepdims=True))
            going = (gap > 8 * rounding * size) & (most > 8 * rounding * size)
            going = going & (~settled | (distance < before * (1 - rounding)))  # or what is left is rounding
            before = xp.where(settled, distance, before)
            # a point more, once the mean of the others is the nearest of their affine hull
            least = xp.min(shares, axis=1, keepdims=True)
            first = xp.min(xp.where(shares <= least, place, slots), axis=1, keepdims=True)
            new = (place == first) & settled & going
            points = xp.where(new[:, :, None], ahead[:, None], points)
            shares = xp.where(new, xp.zeros_like(shares), shares)
            active = new | (shares > 0)
            # towards the nearest point of the affine hull, until a share is 0
            one = xp.where(active, xp.ones_like(shares), xp.zeros_like(shares))
            legs = (points - here[:, None]) * one[:, :, None] / size[:, :, None]
            gram = xp.matmul(legs, xp.transpose(legs, (0, 2, 1))) + one[:, :, None] * one[:, None]
            diagonal = constant(rows, np.eye(slots)[None])
            gram = gram + diagonal * (1 - one + 4 * rounding)[:, :, None]
            right = xp.stack([xp.sum(legs * slope[:, None], axis=2), one], axis=2)
            found = solve(gram, right)
            by, ones = found[:, :, 0], found[:, :, 1]
            total = xp.sum(ones, axis=1, keepdims=True)
            by = (by - xp.sum(by, axis=1, keepdims=True) / total * ones) * one
            falling = active & (by < 0)
            room = xp.where(falling, shares / xp.where(falling, -by, xp.ones_like(by)), xp.full_like(by, np.inf))
            limit = xp.min(room, axis=1, keepdims=True)
            full = most / size <= limit
            length = xp.where(full, most / size, limit)
            moved = xp.where(falling & (room <= length), xp.zeros_like(shares), xp.maximum(shares + length * by, 0))
            moved = xp.where(active, moved, xp.zeros_like(moved))
            moved = moved / xp.sum(moved, axis=1, keepdims=True)
            return (points, xp.where(going, moved, shares), full | ~going, before), going

        start = self.farthest(steepest(rows)[0])
        points = xp.where((place == 0)[:, :, None], start[:, None], xp.zeros_like(rows)[:, None])
        shares = xp.where(place == 0, xp.ones_like(rows[:, :1]), xp.zeros_like(rows[:, :1]))
        state = points, shares, xp.isfinite(rows[:, :1]), xp.full_like(rows[:, :1], np.inf)
        points, shares, *_ = iterate(step, state, STEPS, UNROLLED)
        here = xp.sum(points * shares[:, :, None], axis=1)
        return here, xp.max(xp.abs(points), axis=(1, 2), keepdims=True)[:, :, 0]
