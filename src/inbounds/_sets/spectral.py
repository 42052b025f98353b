"""Sets of matrices told by their spectrum: SpectralNorm, NuclearNorm, Orthogonal, LowRank, PositiveSemidefinite.

The nearest matrix keeps the singular vectors of the given one and changes its singular values only.

NumPy arrays are decomposed by LAPACK's SVD in float64, the reference; tensors by the SVD of their library, in their own
precision. TensorFlow can't vectorize an SVD, so there eigenvectors of the smaller Gram matrix and matrix products take
its place, at 2 to 4 times the cost. A Gram matrix knows singular values near its largest only, so those that are
smaller are taken apart again among themselves, see `_taken_apart`, and what comes out is made orthonormal by
Newton-Schulz steps. These, and Gram matrices, also decide what is inside, and finish what is nearly orthogonal, without
a decomposition: that is where products win, see docs/measurements.md.
"""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np

from inbounds._arguments import axes, center_of, number
from inbounds._arrays import (
    SMALLEST_NORMAL,
    Array,
    cast,
    constant,
    dtype_of,
    epsilon,
    is_concrete,
    is_eager_torch,
    iterate,
    namespace,
    ulp,
    whole,
    without_gradient,
    working_dtype,
)
from inbounds._errors import SetError, explain
from inbounds._set import ULPS, registered
from inbounds._sets.matrices import MatrixSet, stack_of
from inbounds._units import Units

HUGE = 2.0**120
"""Where scaling stops: near the largest float32, and its inverse is still a normal number."""

PLAIN = 1e10
"""Matrices with a largest entry between its inverse and this need no scaling: no square overflows or vanishes."""

PASSES = 4
"""How often singular values are taken apart."""

APART = {"float32": 2.0**-6, "float64": 2.0**-14}
"""Singular values from the largest down to this share of it are told apart by one Gram matrix; 4 times, all are."""

SMALL_ANGLE = 0.01
"""Up to here a rotation is its angle to first order."""

AIM = 3
"""By how many epsilons, and 2 sqrt(n), projections aim inside a bound: so much singular vectors are off orthogonal."""

NEAR = 0.7
"""Matrices W with W W^T this near to the identity are made orthogonal by Newton-Schulz steps."""

STEPS = 8
"""How many of them lead from there to the last bit of float64."""


class _Spectrum(NamedTuple):
    """Matrices (stack, k, n), k <= n, as left @ rows, with left orthogonal and rows orthogonal to each other.

    Attributes:
        left: of shape (stack, k, k).
        rows: of shape (stack, k, n), the singular values times the right singular vectors.
        values: of shape (stack, k), the singular values, ascending up to rounding.
        right: the right singular vectors as rows, 0 where they are not told.
        told: of shape (stack, k), 1 where the right singular vector is told, else 0.
    """

    left: Array
    rows: Array
    values: Array
    right: Array
    told: Array


class _Spectral(MatrixSet):
    """Sets that look at the singular values of a matrix only."""

    @abstractmethod
    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        """`_nearest` for matrices with as many rows as columns or fewer; NumPy's come and go in float64."""

    @abstractmethod
    def _beyond(self, values: Array) -> Array:
        """`_excess` for singular values of shape (stack, k), descending up to rounding."""

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        with _exact_products(matrices):
            turned = matrices.shape[1] > matrices.shape[2]
            wide = _working(_transposed(matrices) if turned else matrices)
            nearest, outside = self._nearest_wide(wide, units)
            nearest = cast(_transposed(nearest) if turned else nearest, dtype_of(matrices))
            # PyTorch rounds a transposed view to half precision by other code, which changes the bits of NaN.
            return nearest.contiguous() if is_eager_torch(nearest) else nearest, outside

    def _excess_of_matrices(self, matrices: Array) -> Array:
        with _exact_products(matrices):
            return cast(self._beyond(_measured(matrices)), dtype_of(matrices))


class _Shrinking(_Spectral):
    """Sets for which some singular values stay and others are replaced by smaller ones."""

    @abstractmethod
    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array, Array]:
        """The singular values of the nearest matrices, which of the old ones are kept, and which matrices are outside.

        Args:
            values: of matrices divided by `scale`, of shape (stack, k), ascending up to rounding.
            scale: of shape (stack, 1).
            dtype: of the weight.

        Returns:
            What replaces those not kept, 0 elsewhere; 1 where a value is kept, else 0; both of shape (stack, k), the
            first for the matrices as they are, not divided. And booleans of shape (stack,).
        """

    def _enough(self, scale: Array) -> Any:
        """What singular values of the divided matrices need not be told apart below; 0: all are to be."""
        return 0.0

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        fixed = without_gradient(matrices)
        scale = _scale(fixed)
        spectrum = _spectrum(fixed / scale[:, :, None], self._enough(scale), fully=units.differentiable)
        new, kept, outside = self._changed(spectrum.values, scale, units.dtype)
        nearest = self._composed(spectrum, new, kept, scale)
        if units.differentiable:
            nearest = nearest + self._moved(spectrum, new / scale, kept, matrices - fixed)
        return nearest, outside

    def _composed(self, spectrum: _Spectrum, new: Array, kept: Array, scale: Array) -> Array:
        rows = new[:, :, None] * spectrum.right + (kept[:, :, None] * spectrum.rows) * scale[:, :, None]
        return namespace(rows).matmul(spectrum.left, rows)

    def _moved(self, spectrum: _Spectrum, new: Array, kept: Array, step: Array) -> Array:
        """How far the nearest matrix moves when the matrix takes a small step: linear in it."""
        return _derivative(spectrum, new + kept * spectrum.values, kept, step)


class _Ball(_Shrinking):
    """A norm of the singular values is at most `max_value`."""

    max_value: float

    def _tolerance(self, dtype: str) -> float:
        return ULPS * ulp(self.max_value, dtype)

    def _magnitude(self, rows: np.ndarray[Any, Any], span: tuple[int, ...]) -> Any:
        if self.center is None:
            return 0.0
        matrices = rows.reshape(self.stack, -1, rows.shape[1])
        return self._beyond(np.linalg.svd(matrices, compute_uv=False)) + self.max_value

    def _margin(self, values: Array, dtype: str) -> float:
        """By how much of itself projections aim below the bound, so that rounding doesn't lead above it."""
        return (AIM + 2 * float(values.shape[1] ** 0.5)) * epsilon(dtype_of(values))

    def _bounds(self, values: Array, dtype: str) -> tuple[float, float]:
        """What projections aim at, and what is inside in spite of the rounding of what is compared with it."""
        rounding = epsilon(dtype_of(values)) * self.max_value
        return self.max_value - self._margin(values, dtype) * self.max_value, self.max_value + self._tolerance(
            dtype
        ) - 0.25 * rounding


@registered
class SpectralNorm(_Ball):
    """{W : sigma_1(W) <= max_value}, the whole matrix: the largest singular value is bounded.

    The layer stretches no input by more than `max_value`: for Lipschitz networks, critics, stable recurrences. Where
    every singular value shall be equal, see `Orthogonal`.

    Args:
        max_value: the largest singular value allowed; above 0.
        axis: the axes of the weight that a row of the matrix spans. None: the layer's fan-in where the layer is known,
            else every axis but the last.
        center: what the ball is about, see `MaxNorm`.
        stack: how many matrices the units make, one block of units after the other: the gates of a recurrent layer.

    Cost: an SVD, and 3 products of matrices. In training a matrix whose Gram matrix shows that it is inside costs that
    product only. NumPy is decomposed in float64. TensorFlow, which can't vectorize an SVD, takes eigenvectors of the
    Gram matrix and 7 products, once more, 3 times at most, for each factor of 64 (in float64 16384) by which the
    largest singular value exceeds the bound.

    A zero matrix is inside. Singular values below the bound stay; equal ones are no special case. What ends up at the
    bound is aimed 3 + 2 sqrt(n) epsilons of float32 (float64) below it, for n rows or columns, whichever are fewer, so
    that the tolerance is 4 ulp at every size; a large matrix within a few ulp of the bound may be moved by as much. NaN
    and infinities stay, and count as violated.

    Source: Lefkimmiatis, Ward and Unser, "Hessian Schatten-norm regularization for linear inverse problems", 2013;
    Sedghi, Gupta and Long, "The singular values of convolutional layers", 2019.

    >>> SpectralNorm(1).project([[3.0, 0.0], [0.0, 0.5]]).round(6)
    array([[1. , 0. ],
           [0. , 0.5]])
    """

    def __init__(self, max_value: Any = 1.0, axis: Any = None, center: Any = None, stack: Any = 1) -> None:
        self.max_value = _positive("SpectralNorm", max_value)
        self.axis = axes("SpectralNorm", axis)
        self.center = center_of("SpectralNorm", center)
        self.stack = stack_of("SpectralNorm", stack)

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        if units.differentiable:
            return super()._nearest_wide(matrices, units)
        xp = namespace(matrices)
        # The root of the sum of all singular values' fourth powers: not below the largest.
        low = xp.clip(matrices / self.max_value, -PLAIN, PLAIN)
        gram = xp.matmul(low, _transposed(low))
        inside = xp.all(xp.sum(gram * gram, axis=(1, 2)) <= 1)
        kept = matrices, xp.zeros_like(matrices[:, 0, 0]) > 0
        full = super()._nearest_wide
        nearest, outside = _either(inside, lambda: kept, lambda: full(matrices, units))
        return nearest, outside

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array, Array]:
        xp = namespace(values)
        aim, inside = self._bounds(values, dtype)
        above = values * scale > aim
        one = xp.ones_like(values)
        return xp.where(above, aim * one, 0 * one), xp.where(above, 0 * one, one), _largest(values * scale) > inside

    def _enough(self, scale: Array) -> Any:
        return 0.5 * self.max_value / scale

    def _beyond(self, values: Array) -> Array:
        return _largest(values) - self.max_value


@registered
class NuclearNorm(_Ball):
    """{W : sigma_1(W) + sigma_2(W) + ... <= max_value}, the whole matrix: the sum of singular values is bounded.

    The convex way to a low rank: small singular values become 0. For a rank that is known, see `LowRank`.

    Args:
        max_value: the largest sum; above 0.
        axis: see `SpectralNorm`.
        center: see `MaxNorm`.
        stack: see `SpectralNorm`.

    Cost: as `SpectralNorm`, with an SVD also where the matrix is inside. The threshold is a closed formula of the
    sorted singular values. TensorFlow takes eigenvectors once for each factor of 64 (in float64 16384) between the
    largest singular value and the smallest, 4 times at most; what is smaller still counts as noise.

    A zero matrix is inside. Rounding a matrix of n rows adds to each of its n singular values, which are summed here:
    the aim is 3 + 2 sqrt(n) epsilons of float32 (float64) below the bound, and from 56 rows on (sqrt(n) / 5 - 1.5)
    epsilons of the weight's dtype more, so that the tolerance stays 4 ulp at every size.

    Source: Cai, Candes and Shen, "A singular value thresholding algorithm for matrix completion", 2010; Duchi,
    Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball", 2008.

    >>> NuclearNorm(2).project([[3.0, 0.0], [0.0, 2.0]]).round(6)
    array([[1.5, 0. ],
           [0. , 0.5]])
    """

    def __init__(self, max_value: Any, axis: Any = None, center: Any = None, stack: Any = 1) -> None:
        self.max_value = _positive("NuclearNorm", max_value)
        self.axis = axes("NuclearNorm", axis)
        self.center = center_of("NuclearNorm", center)
        self.stack = stack_of("NuclearNorm", stack)

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array, Array]:
        xp = namespace(values)
        aim, inside = self._bounds(values, dtype)
        # Measured from the largest, so that nothing is lost where it is far above the bound.
        below = (values - _largest(values)[:, None]) * scale
        above = below[:, None, :] >= below[:, :, None]
        sums = xp.sum(xp.where(above, below[:, None, :], xp.zeros_like(below[:, None, :])), axis=2)
        counts = xp.sum(xp.where(above, xp.ones_like(below[:, None, :]), xp.zeros_like(below[:, None, :])), axis=2)
        threshold = xp.max((sums - aim) / counts, axis=1, keepdims=True)
        new = xp.maximum(below - threshold, xp.zeros_like(below))
        outside = xp.sum(values * scale, axis=1) > inside
        return new, xp.zeros_like(new), outside

    def _margin(self, values: Array, dtype: str) -> float:
        # Rounding n x n entries moves n singular values by 0.17 epsilons of |W|_F / sqrt(n) each, at the most.
        count = float(values.shape[1] ** 0.5)
        return super()._margin(values, dtype) + max(0.0, 0.2 * count - 1.5) * epsilon(dtype)

    def _moved(self, spectrum: _Spectrum, new: Array, kept: Array, step: Array) -> Array:
        xp = namespace(step)
        above = xp.where(new > 0, xp.ones_like(new), xp.zeros_like(new)) * spectrum.told
        along = xp.sum(spectrum.right * xp.matmul(_transposed(spectrum.left), step), axis=2)
        threshold = xp.sum(above * along, axis=1) / xp.maximum(xp.sum(above, axis=1), 1.0)
        with_threshold = (above * threshold[:, None])[:, :, None] * spectrum.right
        return _derivative(spectrum, new, above, step) - xp.matmul(spectrum.left, with_threshold)

    def _beyond(self, values: Array) -> Array:
        return namespace(values).sum(values, axis=1) - self.max_value


@registered
class Orthogonal(_Spectral):
    """{W : W W^T = I, or W^T W = I for more rows than columns}, the whole matrix. Not convex.

    All singular values are 1. For layers that keep lengths, both ways through: recurrent kernels, deep linear parts,
    bases. The nearest such matrix is the factor of the polar decomposition, U V^T of the singular value decomposition.

    Args:
        axis: see `SpectralNorm`.
        stack: see `SpectralNorm`.

    Cost: for a matrix that is nearly orthogonal, as after a step of training, Newton-Schulz steps of two products of
    matrices each: 3 to 5, 8 at most. For others an SVD as in `NuclearNorm`, once more each where singular values are 0,
    and these steps after it. NumPy is decomposed in float64.

    A matrix with singular values of 0 has many nearest points: it goes to the one of them that is nearest to the matrix
    with ones on its diagonal; so does a matrix of zeros, which becomes that. Where these are many still, to one of
    them. The gradient, which grows as singular values vanish, is 0 along those that are 0. Rounding is measured at 1,
    and estimated from above when it is decided what is inside: a matrix of more than 1000 rows that is off by 2 to 4
    ulp may be moved by as much. NaN and infinities stay, and count as violated.

    Source: Higham, "Computing the polar decomposition, with applications", 1986; Bjorck and Bowie, "An iterative
    algorithm for computing the best estimate of an orthogonal matrix", 1971.

    >>> Orthogonal().project([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """

    convex: ClassVar[bool] = False

    def __init__(self, axis: Any = None, stack: Any = 1) -> None:
        self.axis = axes("Orthogonal", axis)
        self.stack = stack_of("Orthogonal", stack)

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        fixed = without_gradient(matrices)
        precise = 2 * self._tolerance(units.dtype)  # sigma^2 - 1 = 2 (sigma - 1), nearly
        off = _off_identity(fixed, precise)
        outside = off > precise
        if xp is not np and not units.differentiable:
            polished = _either(xp.all(off < NEAR), lambda: _orthonormal(fixed), lambda: _polar(fixed)[0])
            return _either(xp.all(~outside), lambda: fixed, lambda: polished), outside
        nearest, spectrum, scale = _polar(fixed)
        if units.differentiable:
            ones = xp.ones_like(spectrum.values)
            nearest = nearest + _derivative(spectrum, ones / scale, 0 * ones, matrices - fixed)
        return nearest, outside

    def _tolerance(self, dtype: str) -> float:
        return ULPS * epsilon(dtype)

    def _beyond(self, values: Array) -> Array:
        return _largest(namespace(values).abs(values - 1))


@registered
class LowRank(_Shrinking):
    """{W : rank W <= rank}, the whole matrix. Not convex.

    For weights that are to be factored into two thin ones, and adapters. The nearest matrix keeps the `rank` largest
    singular values; where the last of them equals the next, several are equally near, and one is given. For a convex
    set, see `NuclearNorm`.

    Args:
        rank: the largest rank allowed; a positive integer, not above the number of rows or columns.
        axis: see `SpectralNorm`.
        stack: see `SpectralNorm`.

    Raises:
        SetError: `rank` is not a positive integer; on a weight with fewer rows or columns.

    Cost: as `NuclearNorm`.

    The violation is the largest of the other singular values. It is compared with rounding at the size of the matrix:
    4 ulp of its largest singular value. A zero matrix is inside. The gradient grows as the two singular values approach
    each other, and stays finite. NaN and infinities stay, and count as violated.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.

    >>> LowRank(1).project([[3.0, 0.0], [0.0, 2.0]])
    array([[3., 0.],
           [0., 0.]])
    """

    convex: ClassVar[bool] = False
    has_boundary: ClassVar[bool] = False

    def __init__(self, rank: Any, axis: Any = None, stack: Any = 1) -> None:
        if isinstance(rank, bool) or not isinstance(rank, numbers.Integral) or rank < 1:
            raise SetError(
                explain(
                    "`rank` of LowRank is a positive integer",
                    f"rank={rank!r}",
                    instead="LowRank(rank=1), or Fixed(0) for a matrix of zeros",
                )
            )
        self.rank = int(rank)
        self.axis = axes("LowRank", axis)
        self.stack = stack_of("LowRank", stack)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        rows, columns = units.count // self.stack, units.size
        if self.rank > min(rows, columns):
            raise SetError(
                explain(
                    "`rank` of LowRank is at most the number of rows and of columns",
                    f"rank={self.rank}",
                    where=f"{self!r} on a matrix of shape ({rows}, {columns})",
                    instead=f"a rank below {min(rows, columns)}",
                )
            )

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array, Array]:
        xp = namespace(values)
        others = values.shape[1] - self.rank
        kept = xp.zeros_like(values) + constant(values, np.arange(values.shape[1]) >= others)
        rest = _largest((1 - kept) * values)
        return xp.zeros_like(values), kept, rest * scale[:, 0] > _slack(_largest(values) * scale[:, 0], dtype)

    def _composed(self, spectrum: _Spectrum, new: Array, kept: Array, scale: Array) -> Array:
        # Multiplied last: the singular values may be above the largest number where the entries aren't.
        return namespace(kept).matmul(spectrum.left, kept[:, :, None] * spectrum.rows) * scale[:, :, None]

    def _tolerance(self, dtype: str) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]

    def _magnitude(self, rows: np.ndarray[Any, Any], span: tuple[int, ...]) -> Any:
        return _size(rows, self.stack)

    def _beyond(self, values: Array) -> Array:
        others = values[:, self.rank :]
        return _largest(others) if others.shape[1] else 0 * _largest(values)


@registered
class PositiveSemidefinite(MatrixSet):
    """{W : W = W^T and x^T W x >= 0 for every x}, the whole matrix, square: symmetric, no negative eigenvalue.

    For kernels, covariances, metrics and recurrent weights with an energy. The nearest such matrix is the symmetric
    part without its negative eigenvalues.

    Args:
        stack: see `SpectralNorm`.

    Raises:
        SetError: on a weight whose matrices are not square.

    Cost: the eigenvectors, and 5 products of matrices, in float32; NumPy in float64.

    The violation is the largest of |w_ij - w_ji| and -lambda, lambda the smallest eigenvalue of the symmetric part. It
    is compared with rounding at the size of the matrix: 4 ulp of its largest singular value. What is projected is
    symmetric bit for bit. A zero matrix is inside. Equal eigenvalues are no special case. NaN and infinities stay, and
    count as violated.

    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix", 1988.

    >>> PositiveSemidefinite().project([[2.0, 0.0], [0.0, -1.0]])
    array([[2., 0.],
           [0., 0.]])
    """

    square: ClassVar[bool] = True

    def __init__(self, stack: Any = 1) -> None:
        self.stack = stack_of("PositiveSemidefinite", stack)

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        with _exact_products(matrices):
            wide = _working(matrices)
            fixed = without_gradient(wide)
            scale = _scale(fixed)[:, :, None]
            symmetric = _symmetric_part(fixed / scale)
            vectors = _orthonormal((np.linalg if xp is np else keras.ops).eigh(symmetric)[1])
            values = xp.sum(vectors * xp.matmul(symmetric, vectors), axis=1)
            positive = xp.maximum(values, xp.zeros_like(values))
            root = vectors * xp.sqrt(positive)[:, None, :]
            nearest = _symmetric_part(xp.matmul(root, _transposed(root))) * scale
            off = xp.max(xp.abs(fixed / scale - _transposed(fixed / scale)), axis=(1, 2))
            size = xp.abs(values)
            outside = xp.maximum(off, _largest(-values)) * scale[:, 0, 0] > _slack(
                _largest(size) * scale[:, 0, 0], units.dtype
            )
            if units.differentiable:
                share = _ratio(positive[:, :, None] + positive[:, None, :], size[:, :, None] + size[:, None, :])
                inner = xp.matmul(xp.matmul(_transposed(vectors), _symmetric_part(wide - fixed)), vectors)
                nearest = nearest + xp.matmul(xp.matmul(vectors, share * inner), _transposed(vectors))
            return cast(nearest, dtype_of(matrices)), outside

    def _tolerance(self, dtype: str) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]

    def _magnitude(self, rows: np.ndarray[Any, Any], span: tuple[int, ...]) -> Any:
        return _size(rows, self.stack)

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        half = matrices / 2
        symmetric = half + xp.swapaxes(half, 1, 2)
        if xp is np:
            least = np.linalg.eigvalsh(symmetric.astype("float64"))[:, 0].astype(matrices.dtype)
        else:
            with _exact_products(matrices):
                scale = without_gradient(xp.clip(xp.max(xp.abs(half), axis=(1, 2), keepdims=True), 1 / HUGE, HUGE))
                vectors = without_gradient(keras.ops.eigh(without_gradient(symmetric / scale))[1])
                along = xp.sum(vectors * xp.matmul(symmetric / scale, vectors), axis=1)
                least = xp.min(along / xp.sum(vectors * vectors, axis=1), axis=1) * scale[:, 0, 0]
        return xp.maximum(xp.max(xp.abs(matrices - xp.swapaxes(matrices, 1, 2)), axis=(1, 2)), -least)


def _positive(owner: str, value: Any) -> float:
    result = number(owner, "max_value", value, low=0)
    if result == 0:
        raise SetError(
            explain(
                f"`max_value` of {owner} is a number above 0",
                f"max_value={value!r}",
                instead=f"{owner}(max_value=1.0), or Fixed(0) for a matrix of zeros",
            )
        )
    return result


def _transposed(x: Array) -> Array:
    return namespace(x).swapaxes(x, 1, 2)


def _largest(values: Array) -> Array:
    return namespace(values).max(values, axis=1)


def _slack(sizes: Array, dtype: str) -> Array:
    """4 ulp of some numbers, or of the next smaller ones."""
    xp = namespace(sizes)
    exponents = xp.floor(xp.log2(xp.clip(sizes, SMALLEST_NORMAL["float32"], 2 * HUGE)) - 1e-6)
    return ULPS * epsilon(dtype) * (2 * xp.ones_like(exponents)) ** exponents


def _ratio(a: Array, b: Array) -> Array:
    """The quotient a / b, finite, and 0 where b is not above 0."""
    xp = namespace(a)
    quotient = xp.minimum(a / xp.where(b > 0, b, xp.ones_like(b)), HUGE * xp.ones_like(a))
    return xp.where(b > 0, quotient, xp.zeros_like(quotient))


def _working(x: Array) -> Array:
    """NumPy in float64, tensors as they are."""
    return x.astype("float64") if namespace(x) is np else x


def _exact_products(x: Array) -> AbstractContextManager[Any]:
    """Products of float32 matrices in float32, where JAX would take fewer bits on an accelerator."""
    if namespace(x) is np or keras.backend.backend() != "jax":
        return nullcontext()
    import jax

    return jax.default_matmul_precision("highest")  # type: ignore[no-any-return]


def _either(test: Array, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`then()` where a test holds, else `otherwise()`, which is right in any case.

    Where PyTorch traces or vectorizes, and no value can be looked at, `otherwise()`.
    """
    if is_concrete(test):
        return then() if bool(whole(test)) else otherwise()
    return otherwise() if is_eager_torch(test) else keras.ops.cond(test, then, otherwise)


def _scale(matrices: Array) -> Array:
    """What matrices are divided by, of shape (stack, 1): 1 where their squares neither overflow nor vanish."""
    xp = namespace(matrices)
    largest = xp.clip(xp.max(xp.abs(matrices), axis=(1, 2)), 1 / HUGE, HUGE)
    plain = (largest > 1 / PLAIN) & (largest < PLAIN)
    return xp.where(plain, xp.ones_like(largest), largest)[:, None]


def _identity(like: Array) -> Array:
    """Identity matrices, as many as `like` has and with as many rows."""
    xp = namespace(like)
    return xp.eye(like.shape[1], dtype=dtype_of(like)) + xp.zeros_like(like[:, :, :1])


def _orthonormal(rows: Array, told: Array | None = None) -> Array:
    """The nearest orthonormal rows to some that are nearly so, by Newton-Schulz steps; those that aren't told are 0."""
    xp = namespace(rows)
    told = xp.ones_like(rows[:, :, 0]) if told is None else told
    near = epsilon(dtype_of(rows)) ** 0.5 / 2

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        (rows,) = state
        gram = _gram(rows)
        off = gram - _identity(rows) * told[:, :, None]
        return (1.5 * rows - 0.5 * xp.matmul(gram, rows),), xp.sum(off * off, axis=(1, 2)) > near**2

    (rows,) = iterate(step, (rows,), STEPS)
    return rows * _ratio(told, _lengths(rows))[:, :, None]


def _added(x: Array) -> Array:
    """The sums along the last of three axes; in two stages where XLA adds one by one, and loses bits of long sums."""
    xp = namespace(x)
    if xp is np or is_eager_torch(x):
        return xp.sum(x, axis=2)
    width = 2 ** ((x.shape[2] - 1).bit_length() // 2)
    padded = xp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % width)))
    return xp.sum(xp.sum(xp.reshape(padded, (x.shape[0], x.shape[1], -1, width)), axis=3), axis=2)


def _lengths(rows: Array) -> Array:
    return namespace(rows).sqrt(_added(rows * rows))


def _gram(rows: Array) -> Array:
    """The products of all rows with each other; those with themselves, which add up, in two stages."""
    xp = namespace(rows)
    return xp.where(_identity(rows) > 0, _added(rows * rows)[:, :, None], xp.matmul(rows, _transposed(rows)))


def _spectrum(matrices: Array, enough: Any = 0.0, *, fully: bool = False, floor: Any = None) -> _Spectrum:
    """The singular value decomposition of matrices (stack, k, n), k <= n, without a derivative.

    Args:
        matrices: with squares that neither overflow nor vanish.
        enough: of shape (stack, 1), or 0: singular values below it need not be told apart.
        fully: whether they are nevertheless, for a derivative.
        floor: of shape (stack, 1): singular values below it count as 0; None: those of rounding.
    """
    xp = namespace(matrices)
    noise = epsilon(dtype_of(matrices)) * (8 + 4 * matrices.shape[1] ** 0.5)
    rounding = noise * _largest(_lengths(matrices))[:, None] if floor is None else floor
    enough = enough + xp.zeros_like(rounding)
    if _by_products(matrices):
        least = rounding if fully else xp.maximum(rounding, enough)
        left, rows, apart = _taken_apart(matrices, least)
        values = _lengths(rows)
        right = rows * _ratio(xp.ones_like(values), values)[:, :, None]
        told = xp.where(values > least, apart, xp.zeros_like(apart))
        polished = _orthonormal(right * told[:, :, None], told)
    else:
        left, values, right = _svd(matrices)
        left, values, right = (xp.flip(x, axis=axis) for x, axis in ((left, 2), (values, 1), (right, 1)))
        told = xp.where(values > rounding, xp.ones_like(values), xp.zeros_like(values))
        polished = right * told[:, :, None]
    # Of what is not told, the part that isn't rounding; none of it where that may be above what is enough.
    along = xp.sum(left * xp.matmul(matrices, _transposed(right)), axis=1)
    rest = xp.minimum(values, xp.maximum(along, xp.zeros_like(along)))
    rest = xp.where((enough > 0) & (rounding > enough / 4), xp.zeros_like(rest), rest)
    values = xp.where(told > 0, values, rest)
    return _Spectrum(left, right * values[:, :, None], values, polished, told)


def _by_products(matrices: Array) -> bool:
    """Whether matrices are decomposed by products: TensorFlow's, which can't vectorize an SVD."""
    return namespace(matrices) is not np and keras.backend.backend() == "tensorflow"


def _svd(matrices: Array) -> Any:
    return (np.linalg if namespace(matrices) is np else keras.ops).svd(matrices, full_matrices=False)


def _taken_apart(matrices: Array, least: Array) -> tuple[Array, Array, Array]:
    """Matrices as left @ rows, left orthogonal, and rows that are orthogonal to each other where the last says so.

    Args:
        matrices: of shape (stack, k, n).
        least: of shape (stack, 1): rows shorter than that need not be.
    """
    xp = namespace(matrices)
    order = constant(matrices, 2 + np.arange(matrices.shape[1]) / matrices.shape[1])

    def take_apart(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """Rotates the rows that are not apart so that they are orthogonal to each other, as far as their Gram tells."""
        left, rows, apart = state
        unit = xp.clip(xp.sqrt(xp.sum((1 - apart) * _added(rows * rows), axis=1)), 1 / HUGE, HUGE)[:, None]
        near = rows * ((1 - apart) / unit)[:, :, None]
        squares, turn = keras.ops.eigh(_gram(near) + _identity(rows) * (apart * order)[:, :, None])
        left, rows = _turned(left, rows, turn)
        apart = xp.where(squares > APART[dtype_of(rows)] ** 2, xp.ones_like(squares), xp.zeros_like(squares))
        return (left, rows, apart), _largest((1 - apart) * _lengths(rows)) > least[:, 0]

    def straighten(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """Rotates all rows by the small angles that are left between them, to first order."""
        left, rows = state
        gram = _gram(rows)
        squares = _added(rows * rows)
        apart = squares[:, None, :] - squares[:, :, None]
        small = xp.abs(gram) < SMALL_ANGLE * xp.abs(apart)
        angles = xp.where(small, gram / xp.where(small, apart, xp.ones_like(apart)), xp.zeros_like(gram))
        left, rows = _turned(left, rows, _identity(rows) + angles)
        return (left, rows), _largest(_largest(xp.abs(angles))) > epsilon(dtype_of(rows)) ** 0.5

    start = (_identity(matrices), matrices, xp.zeros_like(matrices[:, :, 0]))
    left, rows, apart = iterate(take_apart, start, PASSES)
    left, rows = iterate(straighten, (left, rows), 2)
    return _orthonormal(left), rows, apart


def _turned(left: Array, rows: Array, turn: Array) -> tuple[Array, Array]:
    """The factors of left @ rows with a rotation, made more exact, and its inverse between them."""
    xp = namespace(rows)
    turn = 1.5 * turn - 0.5 * xp.matmul(turn, xp.matmul(_transposed(turn), turn))
    return xp.matmul(left, turn), xp.matmul(_transposed(turn), rows)


def _derivative(spectrum: _Spectrum, new: Array, slope: Array, step: Array) -> Array:
    """How far a matrix with the same singular vectors and other singular values moves (Daleckii and Krein).

    Divided differences where two singular values differ, the slope of the new value where they don't.

    Args:
        spectrum: of a matrix.
        new: the other singular values, a function of the old ones, of shape (stack, k).
        slope: its derivative.
        step: by which the matrix moves.
    """
    xp = namespace(step)
    left, _, old, right, told = spectrum
    across = xp.matmul(_transposed(left), step)
    inner = xp.matmul(across, _transposed(right))
    mirrored = _transposed(inner)
    apart = old[:, :, None] - old[:, None, :]
    differs = apart != 0
    change = (new[:, :, None] - new[:, None, :]) / xp.where(differs, apart, xp.ones_like(apart))
    change = xp.where(differs, change, slope[:, :, None] + xp.zeros_like(change))
    turn = _ratio(new[:, :, None] + new[:, None, :], old[:, :, None] + old[:, None, :])
    moved = change * (inner + mirrored) / 2 + turn * (inner - mirrored) / 2
    beside = across - xp.matmul(inner, right)
    share = xp.where(told > 0, _ratio(new, old), slope)
    return xp.matmul(left, xp.matmul(moved, right) + share[:, :, None] * beside)


def _off_identity(matrices: Array, precise: float) -> Array:
    """How far each W W^T is from the identity: its largest eigenvalue apart from 1, or more.

    At most k^(1/16) times as much where it is near `precise` or from `NEAR` on, else at most k^(1/2) times.
    """
    xp = namespace(matrices)
    near = xp.clip(matrices, -1e4, 1e4)
    off = _gram(near) - _identity(near)
    length = xp.sqrt(xp.sum(off * off, axis=(1, 2)))
    size = xp.clip(length, 1 / PLAIN, PLAIN)

    def precisely() -> Array:
        """The root of the sum of the 16th powers of all eigenvalues."""
        power = off / size[:, None, None]
        for _ in range(3):
            power = xp.matmul(power, power)
        return xp.sum(power * power, axis=(1, 2)) ** (1 / 16) * size

    clear = (length > precise * matrices.shape[1] ** 0.5) & (length < NEAR)
    return _either(xp.all(clear), lambda: length, precisely)


def _polar(matrices: Array) -> tuple[Array, _Spectrum, Array]:
    """The nearest matrices with orthonormal rows, as `Orthogonal` documents it, and what tells their derivative."""
    xp = namespace(matrices)
    count, size = matrices.shape[1:]
    scale = _scale(matrices)
    spectrum = _spectrum(matrices / scale[:, :, None])
    found = xp.matmul(spectrum.left, spectrum.right)
    numbers = xp.arange(1, size + 1, dtype=dtype_of(matrices))
    diagonal = xp.eye(count, size, dtype=dtype_of(matrices))
    generic = xp.cos(0.7 * numbers[:count, None] * numbers)

    def complete(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """What is nearest to the diagonal, then to anything, in the directions that are missing."""
        found, taken = state
        model = xp.where(taken == 0, diagonal, generic)
        missing = model - xp.matmul(found, xp.matmul(_transposed(found), model))
        missing = missing - xp.matmul(xp.matmul(missing, _transposed(found)), found)
        floor = xp.ones_like(missing[:, :1, 0]) * (1e3 * epsilon(dtype_of(found)))
        more = _spectrum(missing, floor=floor)
        found = found + xp.matmul(more.left, more.right)
        return (found, taken + 1), _short(found)

    start = (found, 0 * found[:, :1, :1])
    found = _either(xp.all(~_short(found)), lambda: found, lambda: iterate(complete, start, 2)[0])
    return _orthonormal(found), spectrum, scale


def _short(found: Array) -> Array:
    """Which of some matrices have fewer orthonormal rows than rows."""
    return namespace(found).sum(found * found, axis=(1, 2)) < found.shape[1] - 0.5


def _symmetric_part(x: Array) -> Array:
    return (x + _transposed(x)) / 2


# Measured apart from the projections.


def _size(rows: np.ndarray[Any, Any], stack: int) -> Any:
    """The largest singular value of each matrix."""
    return np.linalg.svd(rows.reshape(stack, -1, rows.shape[1]), compute_uv=False)[:, 0]


def _measured(matrices: Array) -> Array:
    """Singular values, descending up to rounding: u^T W v, exact to second order in the vectors, and so differentiated.

    The vectors are an SVD's, of NumPy arrays in float64; except with TensorFlow, which can't vectorize one.
    """
    xp = namespace(matrices)
    matrices = _working(matrices)
    wide = xp.swapaxes(matrices, 1, 2) if matrices.shape[1] > matrices.shape[2] else matrices
    scale = without_gradient(xp.clip(xp.max(xp.abs(wide), axis=(1, 2), keepdims=True), 1 / HUGE, HUGE))
    plain = wide / scale
    if _by_products(plain):
        spectrum = _spectrum(without_gradient(plain))
        left, right = xp.flip(spectrum.left, axis=2), xp.flip(spectrum.right, axis=1)
    else:
        left, _, right = _svd(without_gradient(plain))
        left, right = without_gradient(left), without_gradient(right)
    along = _added(xp.matmul(xp.swapaxes(left, 1, 2), plain) * right)
    lengths = xp.sum(left * left, axis=1) * _added(right * right)
    found = along / xp.sqrt(xp.where(lengths > 0, lengths, xp.ones_like(lengths)))
    return xp.maximum(found, xp.zeros_like(found)) * scale[:, :, 0]
