"""Declared: a set of vectors of which only the normal form is written; all else follows from it."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterator
from functools import reduce
from typing import ClassVar

from inbounds._arrays.judgement import Judgement
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    HUGE,
    SMALLEST_NORMAL,
    Array,
    blocked_sum,
    cast,
    constant,
    dtype_of,
    epsilon,
    is_concrete,
    namespace,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._sets.dykstra import REPEATS, UNROLLED_REPEATS, until_still
from inbounds._sets.normal_form import Declaration, nearest
from inbounds._sets.set import Edge, Set


class Declared(Set):
    """{w : what `declaration` says}, each unit: bounds on entries, linear rows, balls and 1-norms.

    A centre is the rows' own. The distance to a linear row is measured along its normal. Rounding is measured at the
    sum of the sizes of what is added up, or at the bound where that is more.
    """

    exact_in_metric: ClassVar[bool] = True

    @abstractmethod
    def declaration(self, units: Units) -> Declaration:
        """What it asks of the rows of units."""

    @property
    def has_normal_form(self) -> bool:
        return True

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        self.declaration(units)

    def _project(self, units: Units) -> Units:
        return until_still(self._where_outside, units, REPEATS, UNROLLED_REPEATS)

    def _where_outside(self, units: Units) -> Units:
        """Once; a unit inside stays as it is."""
        xp = namespace(units.parts[0])
        x, mask = without_gradient(units.rows()), units.mask_rows()
        declaration = self.declaration(units)
        seen = declaration if mask is None else declaration.within(cast(mask, dtype_of(x)))
        beyond = [
            excess - Judgement(units.size, units.dtype, root).held(1.0) * size for excess, size, root in _rows(seen, x)
        ]
        beyond += [excess - 2 * epsilon(units.dtype) * xp.abs(bound) for excess, bound in _bounds(seen, x)]
        outside = [xp.max(excess, axis=1) > 0 for excess in beyond]
        moved = reduce(operator.or_, outside) & xp.all(xp.isfinite(x), axis=1)
        if is_concrete(moved) and not bool(xp.any(moved)):
            return units
        return units.chosen(xp.reshape(moved, units.shape), nearest(units, declaration, whole=False))

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        return reduce(namespace(rows).maximum, [excess for excess, _ in self.edges(Laid.of_rows(rows))])

    def _hidden(self, rows: Array, mask: object, span: tuple[int, ...]) -> Array:
        return rows

    def _edges(self, rows: Array, laid: Laid) -> list[Edge]:
        xp = namespace(rows)
        view = xp.reshape(rows, (-1, *laid.span))
        declaration = self.declaration(Units.of([view], [range(1, view.ndim)]))
        if laid.mask is not None:
            declaration = declaration.within(constant(rows, laid.mask.astype("float64")))
        edges = []
        for excess, size, root in _rows(declaration, rows):
            slack = Judgement(rows.shape[1], laid.dtype, root).tolerated(1.0)
            edges.append((excess[:, 0], (slack * size)[:, 0]))
        smallest = SMALLEST_NORMAL[working_dtype(laid.dtype)]
        for excess, bound in _bounds(declaration, rows):
            known = xp.where(xp.isfinite(bound), xp.abs(bound), xp.zeros_like(bound))
            slack = xp.max(4 * epsilon(laid.dtype) * known, axis=1) + smallest
            edges.append((xp.max(excess, axis=1), slack + xp.zeros_like(rows[:, 0])))
        return edges

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        """For numbers of the size of 1; `tolerance(dtype, rows)` gives that of rows."""
        return Judgement(size, dtype).tolerated(1.0)


def _rows(declaration: Declaration, x: Array) -> Iterator[tuple[Array, Array, bool]]:
    """Of each row of a declaration by how far rows exceed it, what its rounding is measured at, whether it is a root.

    All of shape (units, 1). Entries are divided by the largest, so that no square overflows or vanishes.
    """
    xp = namespace(x)
    for row in declaration.rows:
        most = xp.maximum(xp.max(xp.abs(x - row.center), axis=1, keepdims=True), xp.abs(row.level))
        most = xp.clip(most, 1 / HUGE, HUGE)
        terms = row.weights * ((x - row.center) / most)
        level = row.level / most
        sizes = _sum(xp.abs(terms))
        if row.kind in ("equal", "most"):
            length = xp.sqrt(_sum(row.weights * row.weights + xp.zeros_like(x)))
            length = xp.where(length > 0, length, xp.ones_like(length))
            apart = (_sum(terms) - level) / length
            size = xp.maximum(sizes, xp.abs(level)) / length
            yield most * (xp.abs(apart) if row.kind == "equal" else apart), most * size, False
        else:
            moved = 2 * xp.max(xp.abs(row.center) * xp.ones_like(x), axis=1, keepdims=True)  # by rounding of a centre
            number = xp.sqrt(_sum(terms * ((x - row.center) / most))) if row.kind == "ball" else sizes
            yield most * (number - level), row.level + moved, row.kind == "ball"


def _bounds(declaration: Declaration, x: Array) -> Iterator[tuple[Array, Array]]:
    """By how far entries exceed each of the two bounds, and the bound."""
    yield declaration.low - x, declaration.low
    yield x - declaration.high, declaration.high


def _sum(terms: Array) -> Array:
    return blocked_sum(terms, (1,))[:, None]
