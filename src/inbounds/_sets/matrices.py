"""Sets of a whole matrix, and those of them that linear algebra without a spectrum projects on.

The units of a weight are the rows of one matrix (units, size), or of a stack of matrices, one block
of units after the other: the heads of an attention, the gates of a recurrent layer.
"""

from __future__ import annotations

from abc import abstractmethod
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
from inbounds._sets.arguments import positive_integer
from inbounds._sets.set import ULPS, Edge, Set, registered
from inbounds._types import Integer

STEPS = 100
"""The limit of Newton's steps to a doubly stochastic matrix: a few from close by, 20 to 60 from far
away."""

UNROLLED = 60
"""The number of steps where PyTorch traces or vectorizes, and can't stop early."""

ZOOM = 16.0
"""The largest factor by which a matrix far from the set is enlarged between two steps."""

ROUGH = 0.5
"""The largest defect of a sum at which a matrix is enlarged."""

CLOSE = 1e-3
"""The largest defect of a sum from which on full steps are taken."""

GRAIN = 2.0**-20
"""Float32 adds multiples of it exactly, up to a sum of 16."""

LENGTHS = (1, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""The shares of a step that the line search tries."""


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

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        if units.count % self.stack:
            raise SetError(
                "`stack` does not divide the number of units",
                f"stack={self.stack}",
                where=f"{self!r} on {units.count} units of {units.size} entries",
                instead="stack=1, or the number of heads or gates",
            )
        if self.square and units.count // self.stack != units.size:
            raise SetError(
                f"{type(self).__name__} is for square matrices: as many units as entries of a unit",
                f"{self.stack} of {units.count // self.stack} units by {units.size} entries",
                where=repr(self),
                instead="a square weight, or `stack` for several square ones side by side",
            )

    def reported_units(self, units: int) -> int:
        return self.stack

    def _project(self, units: Units) -> Units:
        rows = units.rows()
        xp = namespace(rows)
        matrices = self._matrices(rows)
        finite = xp.all(xp.isfinite(matrices), axis=(1, 2))[:, None, None]
        nearest, outside = self._nearest(xp.where(finite, matrices, xp.zeros_like(matrices)), units)
        moved = xp.where(outside[:, None, None] & finite, nearest, matrices)
        return units.with_rows(xp.reshape(moved, tuple(rows.shape)))

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        return self._excess_of_matrices(self._matrices(rows))

    def _matrices(self, rows: Array) -> Array:
        return namespace(rows).reshape(rows, (self.stack, -1, rows.shape[1]))

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]


def stack_of(owner: str, value: Any) -> int:
    """A positive integer: how many matrices a weight's units make."""
    meaning = ": how many matrices a weight's units make"
    return positive_integer(owner, "stack", value, "stack=4 for the gates of an LSTM", meaning)


class SquareSet(MatrixSet):
    """A set of square matrices."""

    square: ClassVar[bool] = True

    def __init__(self, stack: Integer = 1) -> None:
        self.stack = stack_of(type(self).__name__, stack)


class _Subspace(SquareSet):
    """{W : W = image(W)}. The image is W mirrored at the set, or the nearest matrix itself."""

    mirrored: ClassVar[bool] = True

    @abstractmethod
    def _image(self, matrices: Array) -> Array:
        """A linear map, which leaves the matrices of the set as they are and changes all others."""

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        outside = self._excess_of_matrices(without_gradient(matrices)) > self._tolerance(units.dtype)
        image = self._image(matrices)
        return 0.5 * matrices + 0.5 * image if self.mirrored else image, outside  # the sum could overflow

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        return xp.max(xp.abs(matrices - self._image(matrices)), axis=(1, 2))


@registered
class Symmetric(_Subspace):
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

    def _image(self, matrices: Array) -> Array:
        return transposed(matrices)


@registered
class SkewSymmetric(_Subspace):
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

    def _image(self, matrices: Array) -> Array:
        return -transposed(matrices)


@registered
class ZeroDiagonal(_Subspace):
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

    mirrored = False

    def _image(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        diagonal = xp.eye(matrices.shape[1], dtype=dtype_of(matrices)) > 0
        return xp.where(diagonal, xp.zeros_like(matrices), matrices)


@registered
class DoublyStochastic(SquareSet):
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

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        values = without_gradient(matrices)
        bounded = xp.clip(values, -2.0, 2.0)  # sums of larger entries may overflow, and are outside anyway
        outside = _largest(*_defects(bounded)) > self._tolerance(units.dtype)
        outside = outside | (xp.max(-values, axis=(1, 2), keepdims=True) > SMALLEST_NORMAL[dtype_of(values)])
        if is_concrete(outside) and not bool(xp.any(outside)):
            return matrices, outside[:, 0, 0]
        nearest = _summing_to_one(values, outside)
        if units.differentiable:
            nearest = nearest + _tangent(matrices - values, nearest > 0)
        return nearest, outside[:, 0, 0]

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        size = without_gradient(xp.clip(xp.max(xp.abs(matrices), axis=(1, 2), keepdims=True), 1.0, HUGE))
        return (size * _largest(*_defects(matrices / size, 1 / size)))[:, 0, 0]  # the sums could overflow

    def _edges(self, rows: Array, laid: Laid) -> list[Edge]:
        below = namespace(rows).max(-self._matrices(rows), axis=(1, 2))
        return [*super()._edges(rows, laid), (below, SMALLEST_NORMAL[working_dtype(laid.dtype)])]

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return ULPS * ulp(1.0, dtype)


# The nearest doubly stochastic matrix to X is Y = max(X - a 1^T - 1 b^T, 0). Its multipliers are a
# column a, one number for each row, and a row b, one for each column. They minimise the dual
# function |Y|^2 / 2 + sum a + sum b, whose gradient is 0 where Y's rows and columns sum to 1, and
# are found by Newton's method. The state is Z = X - a 1^T - 1 b^T instead of a and b: the entries of
# Y are between 0 and 1, and so keep their digits however large X is. From far away most steps would
# be short. There the answer is first found for X / left, with `left` large, and then for smaller
# ones. Numbers of matrices have the shape (stack, 1, 1), of rows (stack, n, 1), of columns
# (stack, 1, n).


def _summing_to_one(matrices: Array, outside: Array) -> Array:
    """The nearest doubly stochastic matrices to those that are outside; of the others, anything."""
    xp = namespace(matrices)
    enough = 1.5 * epsilon(dtype_of(matrices))

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        z, left, rows, columns = state
        off = _largest(rows, columns)
        a, b = _shifts(cast(z > 0, dtype_of(z)), rows, columns, 1e-3 * xp.minimum(off, 1))
        fall, total = _total(rows * a, columns * b), _total(a, b)
        length = xp.where(off < CLOSE, xp.ones_like(off), _length(z, a + b, fall, total))
        going = outside & ((off > enough) | (left > 1))
        z = xp.where(going, z - length * (a + b), z)

        rows, columns = _defects(xp.maximum(z, 0))
        ready = going & (left > 1) & (_largest(rows, columns) < ROUGH)
        zoom = xp.where(ready, xp.minimum(left, ZOOM), xp.ones_like(left))
        rows, columns = (xp.where(zoom > 1, zoom * (sums + 1) - 1, sums) for sums in (rows, columns))
        left = left / zoom
        unfinished = outside & ((_largest(rows, columns) > enough) | (left > 1))
        return (z * zoom, left, rows, columns), unfinished

    z, left = _start(matrices)
    z, *_ = iterate(step, (z, left, *_defects(xp.maximum(z, 0))), STEPS, UNROLLED)
    return _scaled_to_one(xp.maximum(z, 0))


def _start(matrices: Array) -> tuple[Array, Array]:
    """Matrices with rows and columns that sum to 1, shifted from those given over `left`, and `left`, at least 1."""
    xp = namespace(matrices)
    size = xp.clip(xp.max(xp.abs(matrices), axis=(1, 2), keepdims=True), 1.0, HUGE)
    centred = matrices / size
    for axis in (1, 2):
        centred = centred - xp.mean(centred, axis=axis, keepdims=True)
    peak = xp.max(xp.abs(centred), axis=(1, 2), keepdims=True)
    far = size * peak > 1
    centred = centred * xp.where(far, 1 / xp.where(far, peak, xp.ones_like(peak)), size)
    left = xp.clip(size * peak, 1.0, 2.0 ** (MANTISSA_BITS[dtype_of(matrices)] + 7))
    return centred + 1 / matrices.shape[1], left


def _defects(matrices: Array, one: Array | float = 1.0) -> tuple[Array, Array]:
    """The sums of rows and of columns less `one`, to less than an ulp of 1.

    Entries are split into multiples of `GRAIN`, whose sums are exact, and a small rest.
    """
    xp = namespace(matrices)
    coarse = without_gradient(xp.floor(matrices / GRAIN) * GRAIN)
    sums = [[xp.sum(x, axis=axis, keepdims=True) for x in (coarse, matrices - coarse)] for axis in (2, 1)]
    rows, columns = ((exact - one) + rest for exact, rest in sums)
    return rows, columns


def _shifts(mask: Array, rows: Array, columns: Array, ridge: Array) -> tuple[Array, Array]:
    """The a and b for which `mask * (a 1^T + 1 b^T)` has these sums of rows and columns, nearly.

    A ridge makes them unique. It is larger than the rounding of the system, whose diagonal exceeds
    the sum of its row by positive terms only.
    """
    xp = namespace(mask)
    counts, over = xp.sum(mask, axis=2, keepdims=True), transposed(mask)
    most = _largest(counts, xp.sum(mask, axis=1, keepdims=True))
    ridge = xp.maximum(ridge, 8 * epsilon(dtype_of(mask)) * most)
    inverse = 1 / (counts + ridge)
    eye = xp.eye(mask.shape[1], dtype=dtype_of(mask))
    shared = xp.matmul(over, inverse * mask) * (1 - eye)
    excess = ridge + xp.matmul(over, ridge * inverse)
    system = eye * (xp.sum(shared, axis=2, keepdims=True) + excess) - shared
    b = solve(system, transposed(columns) - xp.matmul(over, inverse * rows))
    return inverse * (rows - xp.matmul(mask, b)), transposed(b)


def _length(z: Array, shift: Array, fall: Array, total: Array) -> Array:
    """The share of a step that is taken: the largest of `LENGTHS` at which the slope is not clearly above 0.

    Args:
        z: the matrices.
        shift: the step, which is subtracted.
        fall: minus the slope of the dual function at the beginning; along the step the slope rises.
        total: the slope, were no entry above 0.
    """
    xp = namespace(z)
    lengths = constant(z, np.reshape(LENGTHS, (-1, 1, 1, 1)))
    slopes = total - xp.sum(xp.maximum(z - lengths * shift, 0) * shift, axis=(2, 3), keepdims=True)
    return xp.max(xp.where(slopes <= 0.1 * xp.abs(fall), lengths, 0 * lengths + LENGTHS[-1]), axis=0)


def _scaled_to_one(matrices: Array) -> Array:
    """Matrices with sums within 3 ulp of 1 as they are; others scaled to sums below 1, and filled up to 1."""
    xp = namespace(matrices)
    ulp_of_one = epsilon(dtype_of(matrices))
    scaled = matrices
    for side in (0, 1):  # to sums that rounding leaves below 1
        scaled = scaled / (1 + 4 * ulp_of_one + xp.maximum(_defects(scaled)[side], 0))
    rows, columns = (xp.maximum(-defects, 0) for defects in _defects(scaled))
    missing = xp.sum(rows, axis=1, keepdims=True)
    filled = scaled + rows / xp.where(missing > 0, missing, xp.ones_like(missing)) * columns
    return xp.where(_largest(*_defects(matrices)) > 3 * ulp_of_one, filled, matrices)


def _tangent(change: Array, free: Array) -> Array:
    """The change of the nearest doubly stochastic matrices where the given ones change and the zeros stay."""
    xp = namespace(change)
    mask = cast(free, dtype_of(change))
    moved = mask * change
    rows, columns = (xp.sum(moved, axis=axis, keepdims=True) for axis in (2, 1))
    a, b = _shifts(mask, rows, columns, 0 * mask[:, :1, :1])
    return moved - mask * (a + b)


def _largest(rows: Array, columns: Array) -> Array:
    """For each matrix, the largest size among numbers of its rows and columns."""
    xp = namespace(rows)
    return xp.max(xp.maximum(xp.abs(rows), xp.abs(transposed(columns))), axis=1, keepdims=True)


def _total(rows: Array, columns: Array) -> Array:
    """For each matrix, the sum of numbers of its rows and columns."""
    return namespace(rows).sum(rows + transposed(columns), axis=1, keepdims=True)
