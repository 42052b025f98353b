"""Sets of a whole matrix, and those of them that linear algebra without a spectrum projects on.

The units of a weight are the rows of one matrix (units, size), or of a stack of matrices, one block
of units after the other: the heads of an attention, the gates of a recurrent layer.
"""

from __future__ import annotations

import numbers
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import (
    HUGE,
    MANTISSA_BITS,
    SMALLEST_NORMAL,
    Array,
    constant,
    dtype_of,
    epsilon,
    is_concrete,
    iterate,
    namespace,
    ulp,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Axes, Units
from inbounds._errors import SetError, explain, shown
from inbounds._sets.set import ULPS, Edge, Set, registered
from inbounds._types import Integer

STEPS = 100
"""At most so many of Newton's steps to a doubly stochastic matrix: a few from close by, 20 to 60
from far away."""

UNROLLED = 60
"""The same where PyTorch traces or vectorizes, and has to take all of them."""

ZOOM = 16.0
"""By how much a matrix that is far from the doubly stochastic ones comes back to its size at a
time."""

ROUGH = 0.5
"""How near 1 all sums are before it does."""

CLOSE = 1e-3
"""How near 1 all sums are where a full step is never too long."""

GRAIN = 2.0**-20
"""What entries are split into multiples of: in float32 the sums of such are exact up to 16."""

LENGTHS = tuple(8.0**-power for power in (4, 3, 2, 1, 0))
"""How much of a step is tried."""


class MatrixSet(Set):
    """A set of the matrix that the units of a weight make, or of each matrix of a stack.

    Attributes:
        stack: how many matrices the units make, one block of units after the other.
        square: whether a matrix has as many rows as columns.
    """

    whole: ClassVar[bool] = True
    matrix: ClassVar[bool] = True
    allows_frozen: ClassVar[bool] = False
    square: ClassVar[bool] = False
    stack: int = 1

    @abstractmethod
    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        """The nearest matrices, and for each, of shape (stack,), whether it is outside by more than the tolerance.

        Args:
            matrices: finite, of shape (stack, rows, columns).
            units: what they were made of: for the weight's dtype, and whether a derivative may be
                asked for.
        """

    @abstractmethod
    def _excess_of_matrices(self, matrices: Array) -> Array:
        """`_excess`, for each matrix of a stack."""

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        if len(shape) < 2 or fan_in == ():
            raise SetError(
                explain(
                    f"{type(self).__name__} is a set of matrices, and this weight has no units with a fan-in",
                    f"a weight of shape {shape}",
                    where=repr(self),
                    instead="a rule for kernels, such as '**/kernel'",
                )
            )
        return fan_in or tuple(range(len(shape) - 1))

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        if units.count % self.stack:
            raise SetError(
                explain(
                    "`stack` does not divide the number of units",
                    f"stack={self.stack}",
                    where=f"{self!r} on {units.count} units of {units.size} entries",
                    instead="stack=1, or the number of heads or gates",
                )
            )
        if self.square and units.count // self.stack != units.size:
            raise SetError(
                explain(
                    f"{type(self).__name__} is for square matrices: as many units as entries of a unit",
                    f"{self.stack} of {units.count // self.stack} units by {units.size} entries",
                    where=repr(self),
                    instead="a square weight, or `stack` for several square ones side by side",
                )
            )

    def reported_units(self, units: int) -> int:
        return self.stack

    def _project(self, units: Units) -> Units:
        rows = units.rows()
        xp = namespace(rows)
        matrices = xp.reshape(rows, (self.stack, -1, units.size))
        finite = xp.all(xp.isfinite(matrices), axis=(1, 2))
        held = xp.reshape(finite, (-1, 1, 1))
        nearest, outside = self._nearest(xp.where(held, matrices, xp.zeros_like(matrices)), units)
        moved = xp.reshape(outside, (-1, 1, 1)) & held
        return units.with_rows(xp.reshape(xp.where(moved, nearest, matrices), tuple(rows.shape)))

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        matrices = namespace(rows).reshape(rows, (self.stack, -1, rows.shape[1]))
        return self._excess_of_matrices(matrices)


def stack_of(owner: str, value: Any) -> int:
    """A positive integer: how many matrices a weight's units make.

    Raises:
        SetError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SetError(
            explain(
                f"`stack` of {owner} is not a positive integer: how many matrices a weight's units make",
                f"stack={shown(value)}",
                instead="stack=4 for the gates of an LSTM",
            )
        )
    return int(value)


class _Mirrored(MatrixSet):
    """W = sign * W^T."""

    square: ClassVar[bool] = True
    sign: ClassVar[float]

    def __init__(self, stack: Integer = 1) -> None:
        self.stack = stack_of(type(self).__name__, stack)

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        mirrored = self.sign * xp.swapaxes(matrices, 1, 2)
        apart = xp.max(xp.abs(without_gradient(matrices - mirrored)), axis=(1, 2))
        return 0.5 * matrices + 0.5 * mirrored, apart > self._tolerance(units.dtype)  # the sum could overflow

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        return xp.max(xp.abs(matrices - self.sign * xp.transpose(matrices, (0, 2, 1))), axis=(1, 2))

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]


@registered
class Symmetric(_Mirrored):
    """{W : W = W^T}, the whole weight: symmetric matrices.

    Interactions that are the same both ways: energies (Hopfield networks, Boltzmann machines),
    bilinear forms, graphs without directions. The nearest one is (W + W^T) / 2, exactly symmetric.
    The violation is the largest |w_ij - w_ji|.

    Args:
        stack: how many square matrices the units of a weight make, one block of units after the
            other.

    Raises:
        SetError: on a weight that isn't square, or a bias.

    Cost: about ten passes over the weight, some of them across its rows.

    A zero matrix is inside. Numbers up to the largest don't overflow. A matrix with NaN or
    infinities stays, and counts as violated.

    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix", 1988.

    >>> Symmetric().project([[1.0, 2.0], [0.0, 3.0]])
    array([[1., 1.],
           [1., 3.]])
    """

    sign = 1.0


@registered
class SkewSymmetric(_Mirrored):
    """{W : W = -W^T}, the whole weight: skew-symmetric matrices.

    Recurrent weights that neither damp nor amplify, generators of rotations: exp(W) and the Cayley
    transform of such a W are orthogonal. The nearest one is (W - W^T) / 2, its diagonal exactly 0.
    The violation is the largest
    |w_ij + w_ji|.

    Args:
        stack: see `Symmetric`.

    Raises:
        SetError: on a weight that isn't square, or a bias.

    Cost: about ten passes over the weight, some of them across its rows.

    Edges as in `Symmetric`.

    Source: Chang et al., "AntisymmetricRNN: a dynamical system view on recurrent neural networks",
    2019.

    >>> SkewSymmetric().project([[1.0, 2.0], [0.0, 3.0]])
    array([[ 0.,  1.],
           [-1.,  0.]])
    """

    sign = -1.0


@registered
class ZeroDiagonal(MatrixSet):
    """{W : w_ii = 0 for each i}, the whole weight: nothing acts on itself.

    Recurrent weights without a loop from a neuron to itself, features that are predicted from the
    others (item-to-item models, causal graphs). All other entries stay bit for bit. The violation
    is the largest |w_ii|.

    Args:
        stack: see `Symmetric`.

    Raises:
        SetError: on a weight that isn't square, whose diagonal would pair unlike things, or a bias.

    Cost: about eight passes over the weight.

    A zero matrix is inside. A matrix with NaN or infinities stays, and counts as violated.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", 2019.

    >>> ZeroDiagonal().project([[1.0, 2.0], [0.5, 3.0]])
    array([[0. , 2. ],
           [0.5, 0. ]])
    """

    square: ClassVar[bool] = True

    def __init__(self, stack: Integer = 1) -> None:
        self.stack = stack_of("ZeroDiagonal", stack)

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        diagonal = xp.eye(units.size, dtype=dtype_of(matrices))
        largest = xp.max(xp.abs(without_gradient(matrices)) * diagonal, axis=(1, 2))
        cleared = xp.where(diagonal > 0, xp.zeros_like(matrices), matrices)
        return cleared, largest > self._tolerance(units.dtype)

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        return xp.max(xp.abs(xp.diagonal(matrices, axis1=1, axis2=2)), axis=1)

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]


@registered
class DoublyStochastic(MatrixSet):
    """{W : W >= 0, each row and each column sums to 1}, the whole weight: soft permutations.

    Matchings, orderings and routings that are learned; mixing of channels, tokens or neighbours
    that neither creates nor loses anything. The nearest one reaches 0 exactly, which Sinkhorn's
    scaling doesn't. The violation is the largest of -w_ij and of the distances of row and column
    sums from 1.

    Args:
        stack: see `Symmetric`.

    Raises:
        SetError: on a weight that isn't square, or a bias.

    Cost: for an n x n matrix at most 100 of Newton's steps, each a linear system of n unknowns
    (n^3) and some thirty passes; 3 to 10 from close by, as in training, 20 to 60 from far away.
    Then it is the nearest matrix, to rounding. Were the steps used up, the result would be scaled
    until rows and columns sum to 1 all the same: in the set, and not the nearest. Where PyTorch
    traces or vectorizes, 60 are taken, each time. A weight that is inside costs five passes.

    A zero matrix becomes the one with all entries 1 / n. Differences within a matrix are known to
    the rounding of its largest entry; with entries above 2^30 (2^59 in float64), where that is all
    that counts, they are taken for so large. Gradients are those of the zeros that the result has.
    A matrix with NaN or infinities stays, and counts as violated.

    Source: Li, Sun and Toh, "On the efficient computation of a projector over the Birkhoff
    polytope", 2020.

    >>> DoublyStochastic().project([[2.0, 0.0], [0.0, 1.5]])
    array([[1., 0.],
           [0., 1.]])
    """

    square: ClassVar[bool] = True

    def __init__(self, stack: Integer = 1) -> None:
        self.stack = stack_of("DoublyStochastic", stack)

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        values = without_gradient(matrices)
        bounded = xp.clip(values, -2.0, 2.0)  # what is larger is outside anyway
        outside = _largest(*_defects(bounded)) > self._tolerance(units.dtype)
        outside = outside | (xp.max(-values, axis=(1, 2)) > SMALLEST_NORMAL[dtype_of(values)])
        if is_concrete(outside) and not bool(xp.any(outside)):
            return matrices, outside
        nearest = _summing_to_one(values, outside)
        if units.differentiable:
            nearest = nearest + _tangent(matrices - values, nearest > 0)
        return nearest, outside

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        size = without_gradient(xp.clip(xp.max(xp.abs(matrices), axis=(1, 2), keepdims=True), 1.0, HUGE))
        scaled = matrices / size  # the sums could overflow
        coarse = without_gradient(xp.floor(scaled * 2.0**20) * 2.0**-20)  # whose sums are exact
        size, fine = xp.squeeze(size, 2), scaled - coarse
        below, across = ((xp.sum(coarse, axis=axis) - 1 / size) + xp.sum(fine, axis=axis) for axis in (1, 2))
        return xp.max(size * xp.maximum(xp.abs(below), xp.abs(across)), axis=1)

    def _edges(self, rows: Array, laid: Laid) -> list[Edge]:
        xp = namespace(rows)
        below = xp.max(xp.reshape(-rows, (self.stack, -1)), axis=1)
        return [*super()._edges(rows, laid), (below, SMALLEST_NORMAL[working_dtype(laid.dtype)])]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return ULPS * ulp(1.0, dtype)


# The nearest doubly stochastic matrix to X is Y = max(X - a 1^T - 1 b^T, 0) for some numbers a, one
# a row, and b, one a column: those at which Y's rows and columns sum to 1, which minimise |Y|^2 / 2
# + sum a + sum b. Newton's method finds them. Only Z = X - a 1^T - 1 b^T is kept, and changed by
# what a step adds to a and b, so that the entries that matter, which are between 0 and 1 at the
# end, are rounded at their own size however large X is. From far away, where most steps would be
# short, the answer is first found for X / left, with `left` large, and then for smaller ones.


def _summing_to_one(matrices: Array, outside: Array) -> Array:
    """The nearest doubly stochastic matrices to those that are outside; of the others, anything."""
    xp = namespace(matrices)
    enough = 1.5 * epsilon(dtype_of(matrices))

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        z, left, rows, columns = state
        off = _largest(rows, columns)
        mask = xp.where(z > 0, xp.ones_like(z), xp.zeros_like(z))
        a, b = _shifts(mask, rows, columns, 1e-3 * xp.minimum(off, xp.ones_like(off)))
        shift = xp.expand_dims(a, 2) + xp.expand_dims(b, 1)
        length = _length(z, shift, xp.sum(rows * a + columns * b, axis=1), xp.sum(a + b, axis=1))
        length = xp.where(off < CLOSE, xp.ones_like(length), length)
        going = outside & ((off > enough) | (left > 1))
        z = xp.where(_each(going), z - _each(length) * shift, z)

        rows, columns = _defects(xp.maximum(z, 0))
        ready = going & (left > 1) & (_largest(rows, columns) < ROUGH)
        zoom = xp.where(ready, xp.minimum(left, ZOOM), xp.ones_like(left))
        factor = xp.expand_dims(zoom, 1)
        rows, columns = (xp.where(factor > 1, factor * (sums + 1) - 1, sums) for sums in (rows, columns))
        left = left / zoom
        unfinished = outside & ((_largest(rows, columns) > enough) | (left > 1))
        return (z * _each(zoom), left, rows, columns), unfinished

    z, left = _start(matrices)
    z, *_ = iterate(step, (z, left, *_defects(xp.maximum(z, 0))), STEPS, UNROLLED)
    return _scaled_to_one(xp.maximum(z, 0))


def _start(matrices: Array) -> tuple[Array, Array]:
    """Matrices whose rows and columns sum to 1, shifted from those given over `left`, and that number, 1 or more."""
    xp = namespace(matrices)
    size = xp.clip(xp.max(xp.abs(matrices), axis=(1, 2)), 1.0, HUGE)
    centred = matrices / _each(size)
    for axis in (1, 2):
        centred = centred - xp.mean(centred, axis=axis, keepdims=True)
    peak = xp.max(xp.abs(centred), axis=(1, 2))
    far = size * peak > 1
    centred = centred * _each(xp.where(far, 1 / xp.where(far, peak, xp.ones_like(peak)), size))
    left = xp.clip(size * peak, 1.0, 2.0 ** (MANTISSA_BITS[dtype_of(matrices)] + 7))
    return centred + 1 / matrices.shape[1], left


def _defects(matrices: Array) -> tuple[Array, Array]:
    """By how much rows and columns sum to more than 1, to less than an ulp of it.

    Entries are split into multiples of a number so large that their sums are exact, and a small
    rest.
    """
    xp = namespace(matrices)
    coarse = xp.floor(matrices / GRAIN) * GRAIN
    rest = matrices - coarse
    rows, columns = ((xp.sum(coarse, axis=axis) - 1) + xp.sum(rest, axis=axis) for axis in (2, 1))
    return rows, columns


def _shifts(mask: Array, rows: Array, columns: Array, ridge: Array) -> tuple[Array, Array]:
    """The a and b for which `mask * (a 1^T + 1 b^T)` has these sums of rows and columns, nearly.

    A ridge makes them unique; as small as it may be, it is larger than what rounding does to the
    system, whose diagonal it lets dominate: by how much is summed up from positive terms.
    """
    xp = namespace(mask)
    counts = xp.sum(mask, axis=2)
    least = 8 * epsilon(dtype_of(mask)) * xp.maximum(xp.max(counts, axis=1), xp.max(xp.sum(mask, axis=1), axis=1))
    ridge = xp.expand_dims(xp.maximum(ridge, least), 1)
    inverse = 1 / (counts + ridge)
    over = xp.swapaxes(mask, 1, 2)
    eye = xp.eye(mask.shape[1], dtype=dtype_of(mask))
    shared = xp.matmul(over, xp.expand_dims(inverse, 2) * mask) * (1 - eye)
    excess = ridge + _applied(over, ridge * inverse)
    system = eye * xp.expand_dims(xp.sum(shared, axis=2) + excess, 2) - shared
    target = xp.expand_dims(columns - _applied(over, inverse * rows), 2)
    b = xp.squeeze(xp.linalg.solve(system, target), 2)
    return inverse * (rows - _applied(mask, b)), b


def _length(z: Array, shift: Array, fall: Array, total: Array) -> Array:
    """How much of a shift is taken: all of it, or as far as the function that is minimised falls, nearly.

    Its slope along the shift rises from below 0. Where it ends above, it is 0 between two of some
    lengths.

    Args:
        z: the matrices.
        shift: what would be subtracted.
        fall: minus the slope at the beginning.
        total: the slope, were no entry above 0.
    """
    xp = namespace(z)
    zeros, ones = xp.zeros_like(z[:, :1, 0]), xp.ones_like(z[:, :1, 0])
    lengths = constant(z, np.asarray([LENGTHS])) * ones
    z, shift = xp.expand_dims(z, 1), xp.expand_dims(shift, 1)
    parts = xp.maximum(z - xp.reshape(lengths, (-1, len(LENGTHS), 1, 1)) * shift, 0) * shift
    slopes = xp.expand_dims(total, 1) - xp.sum(parts, axis=(2, 3))
    falls = slopes <= 0
    low = xp.max(xp.where(falls, lengths, zeros), axis=1)
    at_low = xp.max(xp.where(falls, slopes, -xp.expand_dims(fall, 1)), axis=1)
    high = -xp.max(xp.where(falls, -ones, -lengths), axis=1)
    at_high = -xp.max(xp.where(falls, -HUGE * ones, -slopes), axis=1)
    between = low - (high - low) * at_low / xp.maximum(at_high - at_low, 1e-30)
    return xp.where(slopes[:, -1] <= 0.1 * xp.abs(fall), ones[:, 0], between)


def _scaled_to_one(matrices: Array) -> Array:
    """The matrices; where sums are off by more than 3 ulp, scaled to below 1, and what is missing spread over all."""
    xp = namespace(matrices)
    ulp_of_one = epsilon(dtype_of(matrices))
    off = _largest(*_defects(matrices)) > 3 * ulp_of_one
    above = 1 + 4 * ulp_of_one  # rounding leaves no sum above 1
    scaled = matrices / xp.expand_dims(above + xp.maximum(_defects(matrices)[0], 0), 2)
    scaled = scaled / xp.expand_dims(above + xp.maximum(_defects(scaled)[1], 0), 1)
    rows, columns = (xp.maximum(-defects, 0) for defects in _defects(scaled))
    missing = xp.sum(rows, axis=1, keepdims=True)
    share = rows / xp.where(missing > 0, missing, xp.ones_like(missing))
    return xp.where(_each(off), scaled + xp.expand_dims(share, 2) * xp.expand_dims(columns, 1), matrices)


def _tangent(change: Array, free: Array) -> Array:
    """The change of the nearest doubly stochastic matrices where the given ones change and the zeros stay."""
    xp = namespace(change)
    mask = xp.where(free, xp.ones_like(change), xp.zeros_like(change))
    moved = mask * change
    a, b = _shifts(mask, xp.sum(moved, axis=2), xp.sum(moved, axis=1), xp.zeros_like(mask[:, 0, 0]))
    return moved - mask * (xp.expand_dims(a, 2) + xp.expand_dims(b, 1))


def _largest(rows: Array, columns: Array) -> Array:
    """The largest size among the numbers of a matrix' rows and columns."""
    xp = namespace(rows)
    return xp.max(xp.maximum(xp.abs(rows), xp.abs(columns)), axis=1)


def _applied(matrices: Array, vectors: Array) -> Array:
    """Matrices times vectors."""
    xp = namespace(matrices)
    return xp.squeeze(xp.matmul(matrices, xp.expand_dims(vectors, 2)), 2)


def _each(numbers: Array) -> Array:
    """One number for each matrix, against their entries."""
    return namespace(numbers).reshape(numbers, (-1, 1, 1))
