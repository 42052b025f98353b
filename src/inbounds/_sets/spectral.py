"""Sets of matrices by their spectrum.

SpectralNorm, NuclearNorm, Orthogonal, LowRank, PositiveSemidefinite: the nearest matrix keeps the
singular vectors of the given one and changes its singular values only.

Newton-Schulz steps and Gram matrices decide what is inside, and finish what is nearly orthogonal,
without a decomposition: that is where products win, see docs/measurements.md.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np

from inbounds._arrays.decompositions import (
    NEAR,
    PLAIN,
    Spectrum,
    derivative,
    exact_products,
    in_working_precision,
    judged,
    largest,
    off_identity,
    orthonormal,
    polar,
    ratio,
    scale_of,
    singular_values,
    spectrum_of,
    top,
    transposed,
)
from inbounds._arrays.ops import (
    HUGE,
    SMALLEST_NORMAL,
    Array,
    branch,
    cast,
    constant,
    dtype_of,
    epsilon,
    has_float64,
    is_concrete,
    is_eager_torch,
    namespace,
    ulp,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._sets.arguments import at_most, axes, center_of, number, positive_integer, refused
from inbounds._sets.matrices import MatrixSet, SquareSet, stack_of
from inbounds._sets.reduced import SHARE
from inbounds._sets.set import ULPS, registered
from inbounds._types import Axis, Center, Integer, Number

AIM = 3  # projections aim `AIM + 2 sqrt(n)` epsilons below a bound: singular vectors are orthogonal to within that
MODEST = 1.5  # Singular values up to so many times the bound are lowered by eigenvectors of a Gram matrix.
OFF = 8  # the relative error of a singular value is less than so many epsilons, or than those of the aim


class _Spectral(MatrixSet):
    """Sets that look at the singular values of a matrix only."""

    @abstractmethod
    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        """`_nearest` for matrices no taller than wide; NumPy's come in, and go out, in float64."""

    @abstractmethod
    def _beyond(self, values: Array) -> Array:
        """`_excess` for singular values of shape (stack, k), descending up to rounding."""

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        return self._by_wide(lambda wide: self._nearest_wide(wide, units), matrices)

    def _by_wide(self, formula: Callable[..., tuple[Array, Any]], *matrices: Array) -> tuple[Array, Any]:
        """The results of a formula for matrices no taller than wide.

        Taller matrices are transposed for it, and its first result is transposed back.
        """
        turned = matrices[0].shape[1] > matrices[0].shape[2]
        with exact_products(matrices[0]):
            found, other = formula(*(in_working_precision(transposed(x) if turned else x) for x in matrices))
        found = cast(transposed(found) if turned else found, dtype_of(matrices[0]))
        # PyTorch rounds transposed views to half precision by other code, which changes NaN's bits.
        return found.contiguous() if is_eager_torch(found) else found, other

    def _reduced_by(self, formula: Callable[[Array, Array, Units], Array], units: Units, gradient: Units) -> Units:
        """`reduced` by a formula for wide matrices; the full gradient if something isn't finite."""
        given = gradient.rows()
        xp = namespace(given)
        matrices, slopes = self._matrices(units.rows()), self._matrices(given)
        finite = xp.all(xp.isfinite(matrices) & xp.isfinite(slopes), axis=(1, 2))[:, None, None]
        both = (xp.where(finite, x, xp.zeros_like(x)) for x in (matrices, slopes))
        left, _ = self._by_wide(lambda *wide: (formula(wide[0], wide[1], units), None), *both)
        return gradient.with_rows(xp.reshape(xp.where(finite, left, slopes), tuple(given.shape)))

    def _excess_of_matrices(self, matrices: Array) -> Array:
        with exact_products(matrices):
            return cast(self._beyond(singular_values(matrices)), dtype_of(matrices))


class _AtItsSize(MatrixSet):
    """Sets without a size of their own: rounding is measured at the largest singular value."""

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        return np.linalg.norm(self._matrices(rows), 2, axis=(1, 2))


class _Shrinking(_Spectral):
    """Sets for which some singular values stay and others are replaced by smaller ones."""

    @abstractmethod
    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array]:
        """The singular values of the nearest matrices over `_unit`, and their derivatives.

        `values` are the singular values, ascending, of the matrices divided by `scale`, which has
        the shape (stack, 1).
        """

    def _unit(self, scale: Array) -> Array:
        """What the new singular values are divided by, of matrices that are divided by `scale`."""
        return scale

    @abstractmethod
    def _outside(self, matrices: Array, values: Array, units: Units) -> Array:
        """Which matrices (stack, k, n), with ascending singular values (stack, k), are outside."""

    def _enough(self, scale: Array) -> Any:
        """The singular value of the divided matrices below which others need not be told apart."""
        return 0.0

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp, fixed = namespace(matrices), without_gradient(matrices)
        scale = scale_of(fixed)
        spectrum = spectrum_of(fixed / scale[:, :, None], self._enough(scale), fully=units.differentiable)
        new, slope = self._changed(spectrum.values, scale, units.dtype)
        outside = self._outside(fixed, spectrum.values * scale, units)
        # A value with a vector that is not resolved stays or becomes 0.
        rows = (new * xp.maximum(slope, spectrum.resolved))[:, :, None] * spectrum.right
        unit = self._unit(scale)
        nearest = xp.matmul(spectrum.left, rows) * unit[:, :, None]
        if units.differentiable:
            nearest = nearest + self._moved(spectrum, new * (unit / scale), slope, matrices - fixed)
        return nearest, outside

    def _moved(self, spectrum: Spectrum, new: Array, slope: Array, step: Array) -> Array:
        """How far the nearest matrix moves when the matrix takes a small step: linear in it."""
        return derivative(spectrum, new, slope, step)


class _SpectralOrNuclearNorm(_Shrinking):
    """A norm of the singular values is at most `max_value`."""

    max_value: float

    def __init__(self, max_value: Number, axis: Axis = None, center: Center = None, stack: Integer = 1) -> None:
        name = type(self).__name__
        self.max_value = number(name, "max_value", max_value, low=0)
        if self.max_value == 0:
            instead = f"{name}(max_value=1.0), or Fixed(0) for a matrix of zeros"
            raise refused(name, "max_value", max_value, "is not a number above 0", instead)
        self.axis = axes(name, axis)
        self.center = center_of(name, center)
        self.stack = stack_of(name, stack)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        return self._by_scale(units, taken, self.max_value)

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        # No wider dtype tells what is inside in float64.
        computed = 3 * self._off(math.sqrt(size), dtype) * self.max_value if dtype == "float64" else 0.0
        return ULPS * ulp(self.max_value, dtype) + computed

    def _unit(self, scale: Array) -> Array:
        return namespace(scale).ones_like(scale)  # the bound over a large scale would be subnormal

    @staticmethod
    def _off(count: float, dtype: str) -> float:
        """The largest relative error of a norm of so many singular values, near the bound."""
        return max(OFF, AIM + 2 * math.sqrt(count)) * epsilon(dtype)

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        if self.center is None:
            return 0.0
        return self._beyond(np.linalg.svd(self._matrices(rows), compute_uv=False)) + self.max_value

    def _margin(self, values: Array, dtype: str) -> float:
        """The relative distance below the bound at which projections aim.

        It is larger without float64, where the judgement errs too.
        """
        computed = dtype_of(values)
        if computed == "float32" and not has_float64():
            return 2 * self._off(values.shape[1], computed)
        return (AIM + 2 * float(values.shape[1] ** 0.5)) * epsilon(computed)

    def _aim(self, values: Array, dtype: str) -> float:
        return self.max_value * (1 - self._margin(values, dtype))

    def _outside(self, matrices: Array, values: Array, units: Units) -> Array:
        computed = dtype_of(values)
        tolerance = self._tolerance(units.dtype, units.size * units.count)
        excess, off = self._beyond(values) - tolerance, self._off(values.shape[1], computed) * self.max_value
        if computed == "float64":
            return excess > (-2 * off if units.dtype == "float64" else 0)
        if not has_float64() and not is_concrete(matrices):  # what may be outside is projected
            return excess > -off
        return branch(
            namespace(values).all(namespace(values).abs(excess) > off),
            lambda: excess > 0,
            lambda: judged(matrices, lambda values: self._beyond(values) > tolerance),
        )


@registered
class SpectralNorm(_SpectralOrNuclearNorm):
    """{W : sigma_1(W) <= max_value}, the whole matrix: the largest singular value is bounded.

    The layer stretches no input by more than `max_value`: for Lipschitz networks, critics, stable
    recurrences. Where every singular value shall be equal, see `Orthogonal`.

    Args:
        max_value: the largest singular value allowed; above 0.
        axis: the axes of the weight that a row of the matrix spans. None: the layer's fan-in where
            the layer is known, else every axis but the last.
        center: what the ball is about, see `MaxNorm`.
        stack: how many matrices the units make, one block of units after the other: the gates of a
            recurrent layer.

    Cost: an SVD, and 3 products of matrices. In training the eigenvectors of the Gram matrix, and
    up to 3 products; only the first of them where it shows that the matrix is inside; an SVD where
    the largest singular value exceeds the bound by half. TensorFlow, which can't vectorize an SVD,
    takes eigenvectors of the Gram matrix and 7 products, once more, 3 times at most, for each
    factor of 64 (in float64 16384) by which the largest singular value exceeds the bound. NumPy is
    decomposed in float64.

    A zero matrix is inside. Singular values below the bound stay; equal ones are no special case.
    What ends up at the bound is aimed 3 + 2 sqrt(n) epsilons of float32 (float64) below it, for n
    rows or columns, whichever are fewer, so that the tolerance of float32 is 4 ulp at every size;
    on JAX without float64 twice as far. A large matrix within a few ulp of the bound may be moved
    by as much. NaN and infinities stay, and count as violated.

    Source: Lefkimmiatis, Ward and Unser, "Hessian Schatten-norm regularization for linear inverse
    problems", 2013; Sedghi, Gupta and Long, "The singular values of convolutional layers", 2019.

    >>> SpectralNorm(1).project([[3.0, 0.0], [0.0, 0.5]]).round(6)
    array([[1. , 0. ],
           [0. , 0.5]])
    """

    def __init__(self, max_value: Number = 1.0, axis: Axis = None, center: Center = None, stack: Integer = 1) -> None:
        super().__init__(max_value, axis, center, stack)

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        if units.differentiable:
            return super()._nearest_wide(matrices, units)
        xp = namespace(matrices)
        # The root of the sum of all singular values' fourth powers: not below the largest.
        low = xp.clip(matrices / self.max_value, -PLAIN, PLAIN)
        gram = xp.matmul(low, transposed(low))
        inside = xp.all(xp.sum(gram * gram, axis=(1, 2)) <= 1)
        kept = matrices, xp.zeros_like(matrices[:, 0, 0]) > 0
        full = partial(super()._nearest_wide, matrices, units)

        def by_gram() -> tuple[Array, Array]:
            """By eigenvectors of the Gram matrix, exact to rounding where no value is large."""
            squares, left = _eigh(gram)
            values = xp.sqrt(xp.maximum(squares, xp.ones_like(squares) / 4))

            def lowered() -> tuple[Array, Array]:
                share = xp.maximum(1 - (1 - self._margin(values, units.dtype)) / values, 0)

                def by_last(count: int) -> Array:
                    vectors = left[:, :, -count:]
                    rows = xp.matmul(transposed(vectors), matrices)
                    return matrices - xp.matmul(vectors * share[:, None, -count:], rows)

                return _by_few(by_last, share), self._outside(matrices, values * self.max_value, units)

            small: tuple[Array, Array] = branch(xp.max(values) <= MODEST, lowered, full)
            return small

        nearest, outside = branch(inside, lambda: kept, full if xp is np else by_gram)
        return nearest, outside

    def reduced(self, units: Units, gradient: Units) -> Units:
        return self._reduced_by(self._left, self.centred(units), gradient)

    def _left(self, matrices: Array, slopes: Array, units: Units) -> Array:
        """The gradient less the part of its descent that would raise singular values at the bound.

        In their singular vectors u and v that part is u Z v^T, with Z the positive semidefinite
        part of the symmetric part of -u^T g v (Watson, "Characterization of the subdifferential of
        some matrix norms", 1992). Of a singular value that is off the bound by less than `SHARE` of
        it, a part is taken.
        """
        xp = namespace(matrices)
        low = xp.clip(matrices / self.max_value, -PLAIN, PLAIN)
        gram = xp.matmul(low, transposed(low))
        size = xp.clip(xp.max(xp.abs(slopes), axis=(1, 2), keepdims=True), 1 / HUGE, HUGE)
        rounding = 2 * (self._margin(low[:, :, 0], units.dtype) + self._tolerance(units.dtype) / self.max_value)
        if units.moved_from is not None:
            entries = xp.max(xp.abs(units.with_parts(units.moved_from).rows())) * (units.size * units.count) ** 0.5
            rounding = rounding + 2 * epsilon(units.dtype) * entries / self.max_value

        def taken() -> Array:
            squares, left = _eigh(gram)
            values = xp.sqrt(xp.maximum(squares, xp.ones_like(squares) / 4))
            share = xp.sqrt(xp.clip(1 - ((1 - values) / values - rounding) / SHARE, 0, 1))

            def by_last(count: int) -> Array:
                at = share[:, -count:, None]
                vectors = left[:, :, -count:]
                rows = xp.matmul(transposed(vectors), low) / values[:, -count:, None] * at
                pull = xp.matmul(xp.matmul(transposed(vectors), slopes / size), transposed(rows)) * at
                powers, turn = _eigh(-_symmetric_part(pull))
                upwards = turn * xp.sqrt(xp.maximum(powers, xp.zeros_like(powers)))[:, None, :]
                within = xp.matmul(vectors * transposed(at), xp.matmul(upwards, transposed(upwards)))
                return slopes + xp.matmul(within, rows) * size

            return _by_few(by_last, share)

        inside = xp.all(xp.sum(gram * gram, axis=(1, 2)) < (1 - 2 * SHARE - rounding) ** 4)
        left: Array = branch(inside, lambda: slopes, taken)
        return left

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array]:
        aim, old = self._aim(values, dtype), values * scale
        return namespace(values).minimum(old, aim), cast(old <= aim, dtype_of(values))

    def _enough(self, scale: Array) -> Any:
        return 0.5 * self.max_value / scale

    def _beyond(self, values: Array) -> Array:
        return top(values) - self.max_value


@registered
class NuclearNorm(_SpectralOrNuclearNorm):
    """{W : sigma_1(W) + sigma_2(W) + ... <= max_value}, singular values of the whole matrix.

    The convex way to a low rank: small singular values become 0. For a rank that is known, see
    `LowRank`.

    Args:
        max_value: the largest sum; above 0.
        axis: see `SpectralNorm`.
        center: see `MaxNorm`.
        stack: see `SpectralNorm`.

    Cost: as `SpectralNorm`, with an SVD also where the matrix is inside. The threshold is a closed
    formula of the sorted singular values. TensorFlow takes eigenvectors once for each factor of 64
    (in float64 16384) between the largest singular value and the smallest, 4 times at most; what is
    smaller still counts as noise.

    A zero matrix is inside. Rounding a matrix of n rows adds to each of its n singular values,
    which are summed here: the aim is 3 + 2 sqrt(n) epsilons of float32 (float64) below the bound,
    and from 56 rows on (sqrt(n) / 5 - 1.5) epsilons of the weight's dtype more, so that the
    tolerance stays 4 ulp at every size.

    Source: Cai, Candes and Shen, "A singular value thresholding algorithm for matrix completion",
    2010; Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball", 2008.

    >>> NuclearNorm(2).project([[3.0, 0.0], [0.0, 2.0]]).round(6)
    array([[1.5, 0. ],
           [0. , 0.5]])
    """

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array]:
        xp = namespace(values)
        # Measured from the largest, so that nothing is lost where it is far above the bound.
        below = (values - largest(values)[:, None]) * scale
        others = below[:, None, :]
        above = others >= below[:, :, None]
        sums = xp.sum(xp.where(above, others, xp.zeros_like(others)), axis=2)
        counts = xp.sum(cast(above, dtype_of(values)), axis=2)
        threshold = xp.max((sums - self._aim(values, dtype)) / counts, axis=1, keepdims=True)
        new = xp.maximum(below - threshold, xp.zeros_like(below))
        return new, cast(new > 0, dtype_of(new))

    def _margin(self, values: Array, dtype: str) -> float:
        # Rounding n x n entries moves n singular values by 0.17 epsilons of |W|_F / sqrt(n) each,
        # at the most.
        count = float(values.shape[1] ** 0.5)
        return super()._margin(values, dtype) + max(0.0, 0.2 * count - 1.5) * epsilon(dtype)

    def _moved(self, spectrum: Spectrum, new: Array, slope: Array, step: Array) -> Array:
        xp = namespace(step)
        above = slope * spectrum.resolved
        along = xp.sum(spectrum.right * xp.matmul(transposed(spectrum.left), step), axis=2)
        threshold = xp.sum(above * along, axis=1, keepdims=True) / xp.maximum(xp.sum(above, axis=1, keepdims=True), 1.0)
        with_threshold = (above * threshold)[:, :, None] * spectrum.right
        return derivative(spectrum, new, above, step) - xp.matmul(spectrum.left, with_threshold)

    def _beyond(self, values: Array) -> Array:
        return namespace(values).sum(values, axis=1) - self.max_value


@registered
class Orthogonal(_Spectral):
    """{W : W W^T = I, or W^T W = I for more rows than columns}, the whole matrix. Not convex.

    All singular values are 1. For layers that keep lengths, both ways through: recurrent kernels,
    deep linear parts, bases. The nearest such matrix is the factor of the polar decomposition, U
    V^T of the singular value decomposition.

    Args:
        axis: see `SpectralNorm`.
        stack: see `SpectralNorm`.

    Cost: for a matrix that is nearly orthogonal, as after a step of training, Newton-Schulz steps
    of two products of matrices each: 3 to 5, 8 at most. For others an SVD as in `NuclearNorm`, once
    more each where singular values are 0, and these steps after it. NumPy is decomposed in float64.

    A matrix with singular values of 0 has many nearest points: it goes to one of those that are
    nearest to the matrix with ones on its diagonal; a matrix of zeros becomes that. The gradient,
    which grows as singular values vanish, is 0 along those that are 0. Rounding is measured at 1,
    and estimated from above: a matrix of more than 1000 rows that is off by 2 to 4 ulp may be moved
    by as much. NaN and infinities stay, and count as violated.

    Source: Higham, "Computing the polar decomposition, with applications", 1986; Bjorck and Bowie,
    "An iterative algorithm for computing the best estimate of an orthogonal matrix", 1971.

    >>> Orthogonal().project([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """

    convex: ClassVar[bool] = False
    has_reduced_gradient = True

    def __init__(self, axis: Axis = None, stack: Integer = 1) -> None:
        self.axis = axes("Orthogonal", axis)
        self.stack = stack_of("Orthogonal", stack)

    def reduced(self, units: Units, gradient: Units) -> Units:
        return self._reduced_by(self._left, units, gradient)

    def _left(self, matrices: Array, slopes: Array, units: Units) -> Array:
        """The tangential part of the gradient (Absil, Mahony and Sepulchre, 2008, section 3.6)."""
        xp = namespace(matrices)
        nearest, _ = self._nearest_wide(matrices, units)
        return slopes - xp.matmul(_symmetric_part(xp.matmul(slopes, transposed(nearest))), nearest)

    def _nearest_wide(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        fixed = without_gradient(matrices)
        precise = 2 * self._tolerance(units.dtype)  # sigma^2 - 1 = 2 (sigma - 1), nearly
        off = off_identity(fixed, precise)
        outside = off > precise
        if xp is not np and not units.differentiable:
            return branch(xp.all(off < NEAR), lambda: orthonormal(fixed), lambda: polar(fixed)[0]), outside
        nearest, spectrum, scale = polar(fixed)
        if units.differentiable:
            ones = xp.ones_like(spectrum.values)
            nearest = nearest + derivative(spectrum, ones / scale, 0 * ones, matrices - fixed)
        return nearest, outside

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return ULPS * epsilon(dtype)

    def _beyond(self, values: Array) -> Array:
        return top(namespace(values).abs(values - 1))


@registered
class LowRank(_AtItsSize, _Shrinking):
    """{W : rank W <= rank}, the whole matrix. Not convex.

    For weights that are to be factored into two thin ones, and adapters. The nearest matrix keeps
    the `rank` largest singular values; where the last of them equals the next, several are equally
    near, and one is given. For a convex set, see `NuclearNorm`.

    Args:
        rank: the largest rank allowed; a positive integer, not above the number of rows or columns.
        axis: see `SpectralNorm`.
        stack: see `SpectralNorm`.

    Raises:
        SetError: `rank` is not a positive integer; on a weight with fewer rows or columns.

    Cost: as `NuclearNorm`.

    The violation is the largest of the other singular values. It is compared with rounding at the
    size of the matrix: 4 ulp of its largest singular value. A zero matrix is inside. The gradient
    grows as the two singular values approach each other, and stays finite. NaN and infinities stay,
    and count as violated.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.

    >>> LowRank(1).project([[3.0, 0.0], [0.0, 2.0]])
    array([[3., 0.],
           [0., 0.]])
    """

    rank: int
    convex: ClassVar[bool] = False
    undone_steps: ClassVar[str] = (
        "the part of a step that would raise the rank is lost, unless it outgrows a singular value that is kept"
    )

    def __init__(self, rank: Integer, axis: Axis = None, stack: Integer = 1) -> None:
        self.rank = positive_integer("LowRank", "rank", rank, "LowRank(rank=1), or Fixed(0) for a matrix of zeros")
        self.axis = axes("LowRank", axis)
        self.stack = stack_of("LowRank", stack)

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        rows, columns = units.count // self.stack, units.size
        where = f"a matrix of shape ({rows}, {columns})"
        at_most(self, "rank", min(rows, columns), "the number of rows or of columns", where)

    def _changed(self, values: Array, scale: Array, dtype: str) -> tuple[Array, Array]:
        kept = self._kept(values)
        return values * kept, kept

    def _outside(self, matrices: Array, values: Array, units: Units) -> Array:
        return largest((1 - self._kept(values)) * values) > _slack(largest(values), units.dtype)

    def _kept(self, values: Array) -> Array:
        kept = constant(values, np.arange(values.shape[1]) >= values.shape[1] - self.rank)
        return kept + namespace(values).zeros_like(values)

    def _beyond(self, values: Array) -> Array:
        others = values[:, self.rank :]
        return top(others) if others.shape[1] else 0 * largest(values)


@registered
class PositiveSemidefinite(_AtItsSize, SquareSet):
    """{W : W = W^T and x^T W x >= 0 for every x}, the whole matrix, square: no negative eigenvalue.

    For kernels, covariances, metrics and recurrent weights with an energy. The nearest such matrix
    is the symmetric part without its negative eigenvalues.

    Args:
        stack: see `SpectralNorm`.

    Raises:
        SetError: on a weight whose matrices are not square.

    Cost: the eigenvectors, and 5 products of matrices, in float32; NumPy in float64.

    The violation is the largest of |w_ij - w_ji| and -lambda, lambda the smallest eigenvalue of the
    symmetric part. It is compared with rounding at the size of the matrix: 4 ulp of its largest
    singular value. What is projected is symmetric bit for bit. A zero matrix is inside. Equal
    eigenvalues are no special case. NaN and infinities stay, and count as violated.

    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix", 1988.

    >>> PositiveSemidefinite().project([[2.0, 0.0], [0.0, -1.0]])
    array([[2., 0.],
           [0., 0.]])
    """

    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        xp = namespace(matrices)
        with exact_products(matrices):
            wide = in_working_precision(matrices)
            fixed = without_gradient(wide)
            scale = scale_of(fixed)
            plain = fixed / scale[:, :, None]
            symmetric = _symmetric_part(plain)
            vectors = orthonormal(_eigh(symmetric)[1])
            values = xp.sum(vectors * xp.matmul(symmetric, vectors), axis=1)
            positive = xp.maximum(values, xp.zeros_like(values))
            root = vectors * xp.sqrt(positive)[:, None, :]
            nearest = _symmetric_part(xp.matmul(root, transposed(root))) * scale[:, :, None]
            off, sizes = xp.max(xp.abs(plain - transposed(plain)), axis=(1, 2)), xp.abs(values)
            excess, size = (x * scale[:, 0] for x in (xp.maximum(off, largest(-values)), largest(sizes)))
            if units.differentiable:
                share = ratio(positive[:, :, None] + positive[:, None, :], sizes[:, :, None] + sizes[:, None, :])
                inner = xp.matmul(xp.matmul(transposed(vectors), _symmetric_part(wide - fixed)), vectors)
                nearest = nearest + xp.matmul(xp.matmul(vectors, share * inner), transposed(vectors))
            return cast(nearest, dtype_of(matrices)), excess > _slack(size, units.dtype)

    def _excess_of_matrices(self, matrices: Array) -> Array:
        xp = namespace(matrices)
        with exact_products(matrices):
            wide = in_working_precision(matrices)
            scale = scale_of(without_gradient(wide))
            symmetric = _symmetric_part(wide / scale[:, :, None])
            vectors = without_gradient(_eigh(without_gradient(symmetric))[1])
            along = xp.sum(vectors * xp.matmul(symmetric, vectors), axis=1)
            below = cast(xp.max(-along / xp.sum(vectors * vectors, axis=1), axis=1) * scale[:, 0], dtype_of(matrices))
        return xp.maximum(xp.max(xp.abs(matrices - transposed(matrices)), axis=(1, 2)), below)


def _slack(sizes: Array, dtype: str) -> Array:
    """4 ulp of some numbers, or of the next smaller ones."""
    xp = namespace(sizes)
    exponents = xp.floor(xp.log2(xp.clip(sizes, SMALLEST_NORMAL["float32"], 2 * HUGE)) - 1e-6)
    return ULPS * epsilon(dtype) * (2 * xp.ones_like(exponents)) ** exponents


def _by_few(by_last: Callable[[int], Array], shares: Array) -> Array:
    """`by_last` of the last quarter or half of the values, if the shares of the others are 0.

    Else of all. The shares have the shape (stack, k).
    """
    xp, count = namespace(shares), shares.shape[1]
    found = partial(by_last, count)
    for few in (-(-count // 2), -(-count // 4)):  # the eigenvectors of half the matrix take a sixth of the time
        found = partial(branch, xp.all(shares[:, :-few] == 0), partial(by_last, few), found)
    return found()


def _eigh(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors as columns."""
    values, vectors = (np.linalg if namespace(symmetric) is np else keras.ops).eigh(symmetric)
    return values, vectors


def _symmetric_part(x: Array) -> Array:
    return (x + transposed(x)) / 2
