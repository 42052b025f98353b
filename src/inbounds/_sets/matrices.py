"""Sets of a whole matrix, and those of them that linear algebra without a spectrum projects on.

The units of a weight are the rows of one matrix (units, size), or of a stack of matrices, one block
of units after the other: the heads of an attention, the gates of a recurrent layer.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from inbounds._arrays.decompositions import transposed
from inbounds._arrays.ops import Array, dtype_of, namespace, without_gradient
from inbounds._arrays.units import Units
from inbounds._errors import SetError
from inbounds._sets.arguments import positive_integer
from inbounds._sets.set import Set, registered
from inbounds._types import Integer


class MatrixSet(Set):
    """A set of the matrix that the units of a weight make, or of each matrix of a stack."""

    whole: ClassVar[bool] = True
    matrix: ClassVar[bool] = True
    square: ClassVar[bool] = False  # whether a matrix has as many rows as columns
    stack: int = 1  # how many matrices the units make, one block of units after the other

    @abstractmethod
    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        """The nearest to finite matrices of some units, and for each whether it is outside.

        Outside is what exceeds the tolerance. The matrices have the shape (stack, rows, columns),
        the second result (stack,).
        """

    @abstractmethod
    def _excess_of_matrices(self, matrices: Array) -> Array:
        """`_excess`, for each matrix of a stack."""

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        if units.count % self.stack:
            wrong = "`stack` does not divide the number of units"
            where = f"{self!r} on {units.count} units of {units.size} entries"
            instead = "stack=1, or the number of heads or gates"
            raise SetError(wrong, f"stack={self.stack}", where=where, instead=instead)
        if self.square and units.count // self.stack != units.size:
            wrong = f"{type(self).__name__} is for square matrices: as many units as entries of a unit"
            shape = f"{self.stack} of {units.count // self.stack} units by {units.size} entries"
            instead = "a square weight, `stack` for several side by side, or Symmetric().per('window') for windows"
            raise SetError(wrong, shape, where=repr(self), instead=instead)

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

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return self._excess_of_matrices(self._matrices(rows))

    def _matrices(self, rows: Array) -> Array:
        return namespace(rows).reshape(rows, (self.stack, -1, rows.shape[1]))


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

    A zero matrix is inside. A matrix with NaN or infinities stays, and counts as violated.

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
    The violation is the largest |w_ij + w_ji|.

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
