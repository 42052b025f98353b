"""Decompositions of stacks of matrices: singular values, orthonormal rows and derivatives.

NumPy arrays are decomposed by LAPACK's SVD in float64, the reference; tensors by their library's
SVD in their own precision. TensorFlow can't vectorize an SVD, and XLA takes 16 seconds for one of
256 x 256 on a CPU. There, eigenvectors of the smaller Gram matrix, which take 0.2, take its place.
They resolve only singular values near the largest, so that the smaller ones are decomposed again
among themselves (`_taken_apart`), and Newton-Schulz steps make the result orthonormal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np

from inbounds._arrays.ops import (
    HUGE,
    Array,
    blocked_sum,
    booleans,
    branch,
    cast,
    constant,
    dtype_of,
    epsilon,
    has_float64,
    iterate,
    namespace,
    to_numpy,
    without_gradient,
)

PLAIN = 1e10
"""Matrices with a largest entry between 1 / PLAIN and PLAIN need no scaling: squares neither
overflow nor vanish."""

PASSES = 4  # the largest number of Gram matrices that are decomposed

APART = {"float32": 2.0**-6, "float64": 2.0**-14}
"""The share of the largest singular value down to which one Gram matrix resolves the others.
`PASSES` of them resolve all singular values above rounding."""

SMALL_ANGLE = 0.01  # the largest angle for which a rotation is computed to first order
NEAR = 0.7  # matrices W with W W^T this near to the identity are made orthogonal by Newton-Schulz steps
STEPS = 8  # the number of Newton-Schulz steps from `NEAR` to the last bit of float64


class Spectrum(NamedTuple):
    """The singular value decomposition of matrices of shape (stack, k, n), k <= n."""

    left: Array  # orthogonal matrices of shape (stack, k, k), the left singular vectors as columns
    values: Array  # of shape (stack, k), the singular values, ascending up to rounding
    right: Array  # of shape (stack, k, n), the right singular vectors as rows
    resolved: Array  # of shape (stack, k), 1 where the right singular vector is resolved, else 0


def spectrum_of(matrices: Array, enough: Any = 0.0, *, fully: bool = False, floor: Any = None) -> Spectrum:
    """The singular value decomposition of matrices with safe squares, k <= n, without a derivative.

    Singular values below `enough` are resolved `fully` only, and those below `floor`, by default
    rounding, are 0; both are of shape (stack, 1).
    """
    xp, dtype = namespace(matrices), dtype_of(matrices)
    noise = epsilon(dtype) * (8 + 4 * matrices.shape[1] ** 0.5)
    rounding = noise * largest(_lengths(matrices))[:, None] if floor is None else floor
    if xp is not np and keras.backend.backend() == "tensorflow":
        least = rounding if fully else xp.maximum(rounding, enough)
        left, rows, apart = _taken_apart(matrices, least)
        values = _lengths(rows)
        resolved = apart * cast(values > least, dtype)
        right = rows * ratio(xp.ones_like(values), values)[:, :, None]
        right = xp.where(resolved[:, :, None] > 0, orthonormal(right * resolved[:, :, None], resolved), right)
        # Near rounding, unresolved values may add up to more than `enough`, and count as 0.
        values = xp.where((resolved == 0) & (enough > 0) & (rounding > enough / 4), 0 * values, values)
    else:
        left, values, right = (np.linalg if xp is np else keras.ops).svd(matrices, full_matrices=False)
        left, values, right = (xp.flip(x, axis=axis) for x, axis in ((left, 2), (values, 1), (right, 1)))
        resolved = cast(values > rounding, dtype)
    # Near rounding, u^T W v is more exact.
    along = xp.sum(left * xp.matmul(matrices, transposed(right)), axis=1)
    values = xp.where(resolved > 0, values, xp.minimum(values, xp.maximum(along, 0)))
    return Spectrum(left, values, right, resolved)


def derivative(spectrum: Spectrum, new: Array, slope: Array, step: Array) -> Array:
    """The derivative, along a step, of a map of the singular values (Daleckii and Krein).

    The map makes the singular values `new`, with the derivatives `slope`.
    """
    xp = namespace(step)
    left, old, right, resolved = spectrum
    right = right * resolved[:, :, None]
    across = xp.matmul(transposed(left), step)
    inner = xp.matmul(across, transposed(right))
    mirrored = transposed(inner)
    apart = old[:, :, None] - old[:, None, :]
    differs = apart != 0
    change = (new[:, :, None] - new[:, None, :]) / xp.where(differs, apart, xp.ones_like(apart))
    change = xp.where(differs, change, slope[:, :, None] + xp.zeros_like(change))
    turn = ratio(new[:, :, None] + new[:, None, :], old[:, :, None] + old[:, None, :])
    moved = change * (inner + mirrored) / 2 + turn * (inner - mirrored) / 2
    beside = across - xp.matmul(inner, right)
    share = xp.where(resolved > 0, ratio(new, old), slope)
    return xp.matmul(left, xp.matmul(moved, right) + share[:, :, None] * beside)


def polar(matrices: Array) -> tuple[Array, Spectrum, Array]:
    """The nearest matrices with orthonormal rows, see `Orthogonal`.

    Also the spectrum and the scale of the given matrices, for the derivative.
    """
    xp = namespace(matrices)
    count, size = matrices.shape[1:]
    scale = scale_of(matrices)
    spectrum = spectrum_of(matrices / scale[:, :, None])
    numbers = xp.arange(1, size + 1, dtype=dtype_of(matrices))
    diagonal = xp.eye(count, size, dtype=dtype_of(matrices))
    generic = xp.cos(0.7 * numbers[:count, None] * numbers)

    def product(spectrum: Spectrum) -> Array:
        return xp.matmul(spectrum.left, spectrum.right * spectrum.resolved[:, :, None])

    def complete(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """Fills missing directions with those nearest the diagonal, then a generic matrix."""
        found, taken = state
        model = xp.where(taken == 0, diagonal, generic)
        missing = model - xp.matmul(found, xp.matmul(transposed(found), model))
        missing = missing - xp.matmul(xp.matmul(missing, transposed(found)), found)
        floor = xp.ones_like(missing[:, :1, 0]) * (1e3 * epsilon(dtype_of(found)))
        found = found + product(spectrum_of(missing, floor=floor))
        return (found, taken + 1), _short(found)

    found = product(spectrum)
    start = (found, 0 * found[:, :1, :1])
    found = branch(xp.all(~_short(found)), lambda: found, lambda: iterate(complete, start, 2)[0])
    return orthonormal(found), spectrum, scale


def off_identity(matrices: Array, precise: float) -> Array:
    """How far each W W^T is from the identity: at least the largest |eigenvalue - 1|.

    At most k^(1/16) times that where it is near `precise` or at least `NEAR`, else k^(1/2) times,
    which takes three products less.
    """
    xp = namespace(matrices)
    near = xp.clip(matrices, -1e4, 1e4)
    off = _gram(near) - _identity(near)
    length = xp.sqrt(xp.sum(off * off, axis=(1, 2)))

    def precisely() -> Array:
        """The 16th root of the sum of the 16th powers of the eigenvalues."""
        size = xp.clip(length, 1 / PLAIN, PLAIN)
        power = off / size[:, None, None]
        for _ in range(3):
            power = xp.matmul(power, power)
        return xp.sum(power * power, axis=(1, 2)) ** (1 / 16) * size

    clear = (length > precise * matrices.shape[1] ** 0.5) & (length < NEAR)
    return branch(xp.all(clear), lambda: length, precisely)


def orthonormal(rows: Array, resolved: Array | None = None) -> Array:
    """The orthonormal rows nearest to almost orthonormal ones, by Newton-Schulz steps.

    Rows that aren't resolved become 0.
    """
    xp = namespace(rows)
    resolved = xp.ones_like(rows[:, :, 0]) if resolved is None else resolved
    near = epsilon(dtype_of(rows)) ** 0.5 / 2

    def step(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        (rows,) = state
        gram = _gram(rows)
        off = gram - _identity(rows) * resolved[:, :, None]
        return (1.5 * rows - 0.5 * xp.matmul(gram, rows),), xp.sum(off * off, axis=(1, 2)) > near**2

    (rows,) = iterate(step, (rows,), STEPS)
    return rows * ratio(resolved, _lengths(rows))[:, :, None]


def singular_values(matrices: Array) -> Array:
    """Singular values as u^T W v, descending up to rounding.

    Their error is of second order in that of u and v.
    """
    xp = namespace(matrices)
    matrices = in_working_precision(matrices)
    wide = transposed(matrices) if matrices.shape[1] > matrices.shape[2] else matrices
    scale = without_gradient(xp.clip(xp.max(xp.abs(wide), axis=(1, 2), keepdims=True), 1 / HUGE, HUGE))
    plain = wide / scale
    left, _, right, _ = (without_gradient(x) for x in spectrum_of(without_gradient(plain)))
    along = blocked_sum(xp.matmul(transposed(left), plain) * right, (2,))
    lengths = xp.sum(left * left, axis=1) * blocked_sum(right * right, (2,))
    found = along / xp.sqrt(xp.where(lengths > 0, lengths, xp.ones_like(lengths)))
    return xp.flip(xp.maximum(found, xp.zeros_like(found)), axis=1) * scale[:, :, 0]


def scale_of(matrices: Array) -> Array:
    """Divisors of matrices, of shape (stack, 1), so that squares neither overflow nor vanish.

    The divisor of a matrix that needs none is 1.
    """
    xp = namespace(matrices)
    largest = xp.clip(xp.max(xp.abs(matrices), axis=(1, 2)), 1 / HUGE, HUGE)
    plain = (largest > 1 / PLAIN) & (largest < PLAIN)
    return xp.where(plain, xp.ones_like(largest), largest)[:, None]


def in_working_precision(x: Array) -> Array:
    """NumPy arrays in float64, tensors as they are."""
    return x.astype("float64") if namespace(x) is np else x


def judged(matrices: Array, judge: Callable[[Array], Array]) -> Array:
    """The result of `judge` on the singular values of tensors, ascending, in float64.

    They are computed in NumPy where tensors can't be float64. A Gram matrix in float64 resolves
    them to single precision or better.
    """
    if not has_float64():
        wide = to_numpy(matrices)
        squares = np.linalg.eigvalsh(wide @ np.swapaxes(wide, 1, 2))
        return booleans(matrices, judge(np.sqrt(np.maximum(squares, 0))))
    xp = namespace(matrices)
    wide = cast(without_gradient(matrices), "float64")
    squares = keras.ops.eigh(xp.matmul(wide, transposed(wide)))[0]
    return judge(xp.sqrt(xp.maximum(squares, xp.zeros_like(squares))))


def exact_products(x: Array) -> AbstractContextManager[Any]:
    """A context in which JAX multiplies float32 matrices in full precision on accelerators."""
    if namespace(x) is np or keras.backend.backend() != "jax":
        return nullcontext()
    import jax

    context: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
    return context


def transposed(x: Array) -> Array:
    return namespace(x).swapaxes(x, 1, 2)


def largest(values: Array) -> Array:
    return namespace(values).max(values, axis=1)


def top(values: Array) -> Array:
    """The largest entry of each row, with the gradient of one entry: shapes (stack, k), (stack,).

    JAX's gradient of `max` compares entries with the maximum. A compiler may recompute them with
    another rounding: then none is equal, and the gradient is 0.
    """
    xp = namespace(values)
    if keras.backend.backend() != "jax":  # TensorFlow vectorizes no argmax
        return xp.max(values, axis=1)
    chosen = cast(xp.argmax(values, axis=1), dtype_of(values))[:, None] == constant(values, np.arange(values.shape[1]))
    return xp.sum(xp.where(chosen, values, xp.zeros_like(values)), axis=1)


def ratio(a: Array, b: Array) -> Array:
    """The quotient a / b, bounded by `HUGE`, and 0 where b is not positive."""
    xp = namespace(a)
    quotient = xp.minimum(a / xp.where(b > 0, b, xp.ones_like(b)), HUGE * xp.ones_like(a))
    return xp.where(b > 0, quotient, xp.zeros_like(quotient))


def _taken_apart(matrices: Array, least: Array) -> tuple[Array, Array, Array]:
    """Matrices as left @ rows with orthogonal `left`, and which rows are orthogonal.

    All rows longer than `least` are orthogonal.
    """
    xp = namespace(matrices)
    order = constant(matrices, 2 + np.arange(matrices.shape[1]) / matrices.shape[1])

    def take_apart(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """Rotates the remaining rows so that they are orthogonal, as far as their Gram resolves."""
        left, rows, apart = state
        unit = xp.clip(xp.sqrt(xp.sum((1 - apart) * blocked_sum(rows * rows, (2,)), axis=1)), 1 / HUGE, HUGE)[:, None]
        near = rows * ((1 - apart) / unit)[:, :, None]
        squares, turn = keras.ops.eigh(_gram(near) + _identity(rows) * (apart * order)[:, :, None])
        left, rows = _turned(left, rows, turn)
        apart = cast(squares > APART[dtype_of(rows)] ** 2, dtype_of(rows))
        return (left, rows, apart), largest((1 - apart) * _lengths(rows)) > least[:, 0]

    def straighten(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        """Rotates all rows by the remaining small angles between them, to first order."""
        left, rows = state
        gram = _gram(rows)
        squares = blocked_sum(rows * rows, (2,))
        apart = squares[:, None, :] - squares[:, :, None]
        small = xp.abs(gram) < SMALL_ANGLE * xp.abs(apart)
        angles = xp.where(small, gram / xp.where(small, apart, xp.ones_like(apart)), xp.zeros_like(gram))
        left, rows = _turned(left, rows, _identity(rows) + angles)
        return (left, rows), largest(largest(xp.abs(angles))) > epsilon(dtype_of(rows)) ** 0.5

    start = (_identity(matrices), matrices, xp.zeros_like(matrices[:, :, 0]))
    left, rows, apart = iterate(take_apart, start, PASSES)
    left, rows = iterate(straighten, (left, rows), 2)
    return orthonormal(left), rows, apart


def _turned(left: Array, rows: Array, turn: Array) -> tuple[Array, Array]:
    """The factors of left @ rows with a rotation and its inverse between them.

    A Newton-Schulz step first makes the rotation more exact.
    """
    xp = namespace(rows)
    turn = 1.5 * turn - 0.5 * xp.matmul(turn, xp.matmul(transposed(turn), turn))
    return xp.matmul(left, turn), xp.matmul(transposed(turn), rows)


def _short(found: Array) -> Array:
    """For each matrix, whether it has fewer orthonormal rows than rows."""
    return namespace(found).sum(found * found, axis=(1, 2)) < found.shape[1] - 0.5


def _identity(like: Array) -> Array:
    """Identity matrices, one per matrix of `like`, with as many rows."""
    xp = namespace(like)
    return xp.eye(like.shape[1], dtype=dtype_of(like)) + xp.zeros_like(like[:, :, :1])


def _gram(rows: Array) -> Array:
    """The Gram matrices of rows, with diagonals that are summed by `blocked_sum`."""
    xp = namespace(rows)
    return xp.where(_identity(rows) > 0, blocked_sum(rows * rows, (2,))[:, :, None], xp.matmul(rows, transposed(rows)))


def _lengths(rows: Array) -> Array:
    return namespace(rows).sqrt(blocked_sum(rows * rows, (2,)))
