"""Sets of matrices with given sums of rows and columns: Marginals, DoublyStochastic.

The nearest matrix to X with row sums r and column sums c is Y = max(X - a 1^T - 1 b^T, 0). Its
multipliers are a column a, one number for each row, and a row b, one for each column. They
minimise the dual function |Y|^2 / 2 + r.a + c.b, whose gradient is 0 where Y's rows and columns
have these sums, and are found by Newton's method. The state is Z = X - a 1^T - 1 b^T instead of a
and b: the entries of Y are between 0 and the largest sum, and so keep their digits however large X
is. From far away most steps would be short. There the answer is first found for X / left, with
`left` large, and then for smaller ones. Numbers of matrices have the shape (stack, 1, 1), of rows
(stack, n, 1), of columns (stack, 1, m). All are in a unit in which the largest sum is 1 to 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from inbounds._arrays.decompositions import transposed
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    HUGE,
    MANTISSA_BITS,
    SMALLEST_NORMAL,
    Array,
    cast,
    constant,
    dtype_of,
    epsilon,
    is_concrete,
    iterate,
    namespace,
    solve,
    ulp,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._errors import SetError
from inbounds._sets.arguments import numbers_of_units, refused
from inbounds._sets.matrices import MatrixSet, stack_of
from inbounds._sets.set import ULPS, Exceeded, registered
from inbounds._types import Integer, Numbers

STEPS = 100  # the limit of Newton's steps to a matrix of given sums: a few from close by, 20 to 60 from far away
UNROLLED = 60  # the number of steps where PyTorch traces or vectorizes, and can't stop early
ZOOM = 16.0  # the largest factor by which a matrix far from the set is enlarged between two steps
ROUGH = 0.1  # what is wrong in all sums, as a share of what they add up to, at which a matrix is enlarged
CLOSE = 1e-3  # the same, from which on full steps are taken
GRAIN = 2.0**-20  # Float32 adds multiples of it exactly, up to a sum of 16
LENGTHS = tuple(2.0**-k for k in range(9))  # the shares of a step that the line search tries


class _GivenSums(MatrixSet):
    """Nonnegative matrices with given sums of rows and of columns."""

    rows: Any  # the sum of each row: a number for all, or an array
    columns: Any  # likewise

    def _sums(self, shape: tuple[int, ...]) -> _Sums:
        """The sums of matrices of shape (stack, rows, columns); an error if they don't fit."""
        given = zip(("rows", "columns"), (self.rows, self.columns), shape[1:], strict=True)
        wrong = [f"{name}.shape={np.shape(sums)}" for name, sums, n in given if np.ndim(sums) and np.size(sums) != n]
        where = f"{self!r} on a matrix of {shape[1]} rows and {shape[2]} columns"
        if wrong:
            text = "An array doesn't fit the matrix: one number for each row, or column"
            instead = f"arrays of shape ({shape[1]},) and ({shape[2]},)"
            raise SetError(text, ", ".join(wrong), where=where, instead=instead)
        rows = np.broadcast_to(np.reshape(self.rows, (-1, 1)), (shape[1], 1))
        columns = np.broadcast_to(np.reshape(self.columns, (1, -1)), (1, shape[2]))
        total, other = rows.sum(), columns.sum()
        if abs(other - total) > 1e-6 * total:
            text = "The sums of the rows and of the columns don't add up to the same"
            instead = f"columns that add up to {total:g}"
            raise SetError(text, f"{total:g} and {other:g}", where=where, instead=instead)
        columns = columns * (total / other)
        unit = float(2.0 ** np.floor(np.log2(max(rows.max(), columns.max()))))
        return _Sums(rows / unit, columns / unit, unit)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        self._sums((self.stack, units.count // self.stack, units.size))

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        values, sums = without_gradient(matrices), self._sums(tuple(matrices.shape))
        bounded = xp.clip(values, -4 * sums.unit, 4 * sums.unit)  # larger entries are outside anyway
        outside = _largest(*_defects(bounded / sums.unit, sums.of(values))) > self._tolerance(units.dtype) / sums.unit
        outside = outside | (xp.max(-values, axis=(1, 2), keepdims=True) > SMALLEST_NORMAL[dtype_of(values)])
        if is_concrete(outside) and not bool(xp.any(outside)):
            return matrices, outside[:, 0, 0]
        if matrices.shape[2] > matrices.shape[1]:
            nearest = transposed(_summing(transposed(values), outside, sums.transposed)) * sums.unit
        else:
            nearest = _summing(values, outside, sums) * sums.unit
        if units.differentiable:
            nearest = nearest + _tangent(matrices - values, nearest > 0)
        return nearest, outside[:, 0, 0]

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp, sums = namespace(matrices), self._sums(tuple(matrices.shape))
        largest = xp.max(xp.abs(matrices), axis=(1, 2), keepdims=True)
        far = without_gradient(xp.clip(largest, sums.unit, HUGE))  # sums could overflow
        size = xp.where(far > 4 * sums.unit, far, xp.full_like(far, sums.unit))  # a power of 2 divides exactly
        defects = _defects(matrices / size, sums.of(matrices), sums.unit / size)
        return (size * _largest(*defects))[:, 0, 0]

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        below = namespace(rows).max(-self._matrices(rows), axis=(1, 2))
        return [*super()._edges(rows, laid), (below, SMALLEST_NORMAL[working_dtype(laid.dtype)])]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return ULPS * ulp(float(max(np.max(self.rows), np.max(self.columns))), dtype)


@registered
class Marginals(_GivenSums):
    """{W : W >= 0, each row sums to rows, each column to columns}, a whole weight: transport plans.

    How much goes from each source to each sink where what leaves and what arrives is known:
    couplings, assignments with capacities, tables with given margins. Rows are the units of the
    weight, columns the entries of a unit. The nearest one reaches 0 exactly, which Sinkhorn's
    scaling doesn't. The violation is the largest of -w_ij and of the distances of row and column
    sums from their totals; the tolerance is 4 ulp of the largest sum.

    Args:
        rows: the sum of each row: a number for all, or an array with one for each; not negative.
        columns: the sum of each column, likewise. Both add up to the same, but for rounding.
        stack: see `Symmetric`; all of its matrices have the same sums.

    Raises:
        SetError: an argument is wrong; once both numbers of sums are known, the sums of rows and of
            columns don't add up to the same; on a bias.

    Cost: for n rows or columns, whichever are fewer, 100 of Newton's steps at most, each a linear
    system of n unknowns (n^3) and some thirty passes; 3 to 10 from close by, as in training, 20 to
    90 from far away; where PyTorch traces or vectorizes, 60 each time. Where the steps are used up,
    far away and with sums that differ by orders of magnitude, the result is scaled to the sums: in
    the set, and not the nearest. A weight that is inside costs five passes.

    A zero matrix becomes the one with equal entries where all sums are equal, else the shortest.
    Differences within a matrix are known to the rounding of its largest entry; entries above 2^30
    (2^59 in float64) of the largest sum are taken for so large. Gradients are those of the zeros
    that the result has. A matrix with NaN or infinities stays, and counts as violated.

    Source: Li, Sun and Toh, "On the efficient computation of a projector over the Birkhoff
    polytope", 2020; Cuturi, "Sinkhorn distances", 2013, for transport.

    >>> Marginals(rows=[1, 2], columns=[2, 1]).project([[0.5, 0.5], [2.0, 0.0]]).round(6)
    array([[0.25, 0.75],
           [1.75, 0.25]])
    """

    def __init__(self, rows: Numbers, columns: Numbers, stack: Integer = 1) -> None:
        self.rows = numbers_of_units("Marginals", "rows", rows, low=0)
        self.columns = numbers_of_units("Marginals", "columns", columns, low=0)
        self.stack = stack_of("Marginals", stack)
        for name, sums in (("rows", self.rows), ("columns", self.columns)):
            if not np.any(np.greater(sums, 0)):
                raise refused("Marginals", name, sums, "are all 0", "Fixed(0.0)")
        if np.ndim(self.rows) and np.ndim(self.columns):
            self._sums((1, np.size(self.rows), np.size(self.columns)))


@registered
class DoublyStochastic(_GivenSums):
    """{W : W >= 0, each row and each column sums to 1}, the whole weight: soft permutations.

    Matchings, orderings and routings that are learned; mixing of channels, tokens or neighbours
    that neither creates nor loses anything. It is `Marginals(1, 1)`.

    Args:
        stack: see `Symmetric`.

    Raises:
        SetError: on a weight that isn't square, or a bias.

    Cost: as `Marginals`, and the edges too. A zero matrix becomes the one with all entries 1 / n.

    Source: Li, Sun and Toh, "On the efficient computation of a projector over the Birkhoff
    polytope", 2020.

    >>> DoublyStochastic().project([[2.0, 0.0], [0.0, 1.5]])
    array([[1., 0.],
           [0., 1.]])
    """

    square: ClassVar[bool] = True

    def __init__(self, stack: Integer = 1) -> None:
        self.rows = self.columns = 1.0
        self.stack = stack_of("DoublyStochastic", stack)


@dataclass(frozen=True, eq=False)
class _Sums:
    """The sums of rows and columns."""

    rows: np.ndarray[Any, Any]  # of each row, of shape (n, 1), in units
    columns: np.ndarray[Any, Any]  # of each column, of shape (1, m), in units
    unit: float  # a power of 2, so that the largest sum is 1 to 2

    @property
    def transposed(self) -> _Sums:
        """Those of the transposed matrices."""
        return _Sums(self.columns.T, self.rows.T, self.unit)

    def of(self, like: Array) -> _Wanted:
        """The sums of rows and of columns, as arrays of the library and dtype of `like`.

        With each array comes another, of what the dtype can't hold of it.
        """
        held = [sums.astype(dtype_of(like)).astype("float64") for sums in (self.rows, self.columns)]
        rests = (self.rows - held[0], self.columns - held[1])
        rows, columns = ((constant(like, a[None]), constant(like, b[None])) for a, b in zip(held, rests, strict=True))
        return rows, columns


_Wanted = tuple[tuple[Array, Array], tuple[Array, Array]]


def _summing(matrices: Array, outside: Array, sums: _Sums) -> Array:
    """The nearest matrices with these sums to those outside, in units; for the others, anything."""
    xp = namespace(matrices)
    enough = 1.5 * epsilon(dtype_of(matrices))
    wanted = (of_rows, _), (of_columns, _) = sums.of(matrices)
    most = float(sums.rows.sum())

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        z, left, rows, columns = state
        off = _largest(rows, columns)
        a, b = _shifts(cast(z > 0, dtype_of(z)), rows, columns, 1e-3 * xp.minimum(off, 1))
        fall, total = _total(rows * a, columns * b), _total(of_rows * a, of_columns * b)
        close = _wrong(rows, columns) < CLOSE * most
        length = xp.where(close, xp.ones_like(off), _length(z, a + b, fall, total))
        going = outside & ((off > enough) | (left > 1))
        z = xp.where(going, z - length * (a + b), z)

        rows, columns = _defects(xp.maximum(z, 0), wanted)
        ready = going & (left > 1) & (_wrong(rows, columns) < ROUGH * most)
        zoom = xp.where(ready, xp.minimum(left, ZOOM), xp.ones_like(left))
        rows, columns = (
            xp.where(zoom > 1, zoom * (defects + given) - given, defects)
            for defects, given in ((rows, of_rows), (columns, of_columns))
        )
        left = left / zoom
        unfinished = outside & ((_largest(rows, columns) > enough) | (left > 1))
        return (z * zoom, left, rows, columns), unfinished

    z, left = _start(matrices, sums)
    z, *_ = iterate(step, (z, left, *_defects(xp.maximum(z, 0), wanted)), STEPS, UNROLLED)
    return _scaled(xp.maximum(z, 0), wanted)


def _start(matrices: Array, sums: _Sums) -> tuple[Array, Array]:
    """Matrices with these sums, in units, from which the steps start; and `left`, at least 1.

    They are the given matrices divided by `left`, and shifted.
    """
    xp = namespace(matrices)
    size = xp.clip(xp.max(xp.abs(matrices), axis=(1, 2), keepdims=True), sums.unit, HUGE)
    centred = matrices / size
    for axis in (1, 2):
        centred = centred - xp.mean(centred, axis=axis, keepdims=True)
    peak = xp.max(xp.abs(centred), axis=(1, 2), keepdims=True)
    size = xp.minimum(size / sums.unit, HUGE)
    far = size * peak > 1
    centred = centred * xp.where(far, 1 / xp.where(far, peak, xp.ones_like(peak)), size)
    left = xp.clip(size * peak, 1.0, 2.0 ** (MANTISSA_BITS[dtype_of(matrices)] + 7))
    n, m = len(sums.rows), sums.columns.size
    evenly = sums.rows / m + sums.columns / n - sums.rows.sum() / (n * m)
    return centred + constant(matrices, evenly), left


def _defects(matrices: Array, wanted: _Wanted, share: Array | float = 1.0) -> tuple[Array, Array]:
    """The sums of rows and of columns less a share of those wanted, to less than an ulp of 1.

    Entries are split into multiples of `GRAIN`, whose sums are exact, and a small rest.
    """
    xp = namespace(matrices)
    coarse = without_gradient(xp.floor(matrices / GRAIN) * GRAIN)
    exact, rest = ([xp.sum(x, axis=axis, keepdims=True) for axis in (2, 1)] for x in (coarse, matrices - coarse))
    parts = zip(exact, rest, wanted, strict=True)
    rows, columns = ((sums - share * most) + (less - share * left) for sums, less, (most, left) in parts)
    return rows, columns


def _shifts(mask: Array, rows: Array, columns: Array, ridge: Array) -> tuple[Array, Array]:
    """The a and b for which `mask * (a 1^T + 1 b^T)` has these sums of rows and columns, nearly.

    A ridge, which is larger than the rounding of the system, makes them unique.
    """
    xp = namespace(mask)
    counts, over = xp.sum(mask, axis=2, keepdims=True), transposed(mask)
    most = _largest(counts, xp.sum(mask, axis=1, keepdims=True))
    ridge = xp.maximum(ridge, 8 * epsilon(dtype_of(mask)) * most)
    inverse = 1 / (counts + ridge)
    eye = xp.eye(mask.shape[2], dtype=dtype_of(mask))
    shared = xp.matmul(over, inverse * mask) * (1 - eye)
    excess = ridge + xp.matmul(over, ridge * inverse)
    system = eye * (xp.sum(shared, axis=2, keepdims=True) + excess) - shared
    b = solve(system, transposed(columns) - xp.matmul(over, inverse * rows))
    return inverse * (rows - xp.matmul(mask, b)), transposed(b)


def _length(z: Array, shift: Array, fall: Array, total: Array) -> Array:
    """The share of a step to `z - shift`: the largest at which the slope isn't clearly above 0.

    The slope of the dual function is `-fall` at first, and would be `total`, were no entry above 0.
    """
    xp = namespace(z)
    lengths = constant(z, np.reshape(LENGTHS, (-1, 1, 1, 1)))
    slopes = total - xp.sum(xp.maximum(z - lengths * shift, 0) * shift, axis=(2, 3), keepdims=True)
    return xp.max(xp.where(slopes <= 0.1 * xp.abs(fall), lengths, 0 * lengths + LENGTHS[-1]), axis=0)


def _scaled(matrices: Array, wanted: _Wanted) -> Array:
    """The matrices as they are where their sums are within 3 ulp of 1 of these.

    Others are scaled to sums below these, and then filled up.
    """
    xp = namespace(matrices)
    ulp_of_one = epsilon(dtype_of(matrices))
    scaled = matrices
    for side, (sums, _) in enumerate(wanted):  # to sums that rounding leaves below those wanted
        most = (1 + 4 * ulp_of_one) * sums + xp.maximum(_defects(scaled, wanted)[side], 0)
        scaled = scaled * xp.where(sums > 0, sums / xp.where(sums > 0, most, xp.ones_like(most)), sums)
    rows, columns = (xp.maximum(-defects, 0) for defects in _defects(scaled, wanted))
    missing = xp.sum(rows, axis=1, keepdims=True)
    filled = scaled + rows / xp.where(missing > 0, missing, xp.ones_like(missing)) * columns
    return xp.where(_largest(*_defects(matrices, wanted)) > 3 * ulp_of_one, filled, matrices)


def _tangent(change: Array, positive: Array) -> Array:
    """The change of the nearest matrices where the given ones change and the zeros stay."""
    xp = namespace(change)
    mask = cast(positive, dtype_of(change))
    moved = mask * change
    rows, columns = (xp.sum(moved, axis=axis, keepdims=True) for axis in (2, 1))
    a, b = _shifts(mask, rows, columns, 0 * mask[:, :1, :1])
    return moved - mask * (a + b)


def _largest(rows: Array, columns: Array) -> Array:
    """For each matrix, the largest size among numbers of its rows and columns."""
    xp = namespace(rows)
    return xp.maximum(*(xp.max(xp.abs(sums), axis=(1, 2), keepdims=True) for sums in (rows, columns)))


def _wrong(rows: Array, columns: Array) -> Array:
    """For each matrix, the sum of the sizes of numbers of its rows and columns."""
    return _total(namespace(rows).abs(rows), namespace(rows).abs(columns))


def _total(rows: Array, columns: Array) -> Array:
    """For each matrix, the sum of numbers of its rows and columns."""
    first, second = (namespace(rows).sum(sums, axis=(1, 2), keepdims=True) for sums in (rows, columns))
    return first + second
