"""The set of the multiples of a step: Grid."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from inbounds._arrays.ops import (
    MANTISSA_BITS,
    SMALLEST_EXPONENT,
    SMALLEST_NORMAL,
    Array,
    constant,
    dtype_of,
    epsilon,
    namespace,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._errors import SetError
from inbounds._sets.arguments import number, refused
from inbounds._sets.set import Set, registered
from inbounds._types import Number

LARGEST = {dtype: (2 - 2.0**-bits) * 2.0 ** (1 - SMALLEST_EXPONENT[dtype]) for dtype, bits in MANTISSA_BITS.items()}
"""The largest number of each dtype."""


@registered
class Grid(Set):
    """{w : every entry is a multiple of step}. Not convex.

    Each entry becomes the nearest multiple, rounded to the weight's dtype: weights that are to be
    stored as small integers times a step, quantization. Halfway between two it becomes the even
    one: 0.5 and -0.5 steps become 0, 1.5 becomes 2. It is the same in every metric.
    Steps of less than half a grid step add up in latent weights, see `constrain`.

    Args:
        step: the distance from one multiple to the next; above 0.

    Raises:
        SetError: `step` is not above 0, or, once the weight is known, too small for the dtype it is
            computed in.

    Cost: one pass. Where the floats of the weight's dtype are about as far apart as the multiples
    (entries of 2^22 steps in float32, 2^9 in float16, 2^6 in bfloat16), entries stay, within 4 ulp
    of a multiple. An entry beyond the last multiple that the dtype can hold becomes that one. A
    zero unit is inside. NaN and infinities stay, and count as violated; the other entries of the
    unit are rounded. The derivative is 0, but for entries that are too large to move.

    Source: Courbariaux, Bengio and David, "BinaryConnect: training deep neural networks with binary
    weights during propagations", 2015, for weights on a grid during training.

    >>> Grid(0.5).project([[0.3, -0.9, 0.25, 0.75]])
    array([[ 0.5, -1. ,  0. ,  1. ]])
    """

    convex: ClassVar[bool] = False
    entrywise = separable = True
    needs_latent: ClassVar[bool] = True
    undone_steps: ClassVar[str] = "a step of less than half a grid step is lost, so that small ones never move a weight"

    def __init__(self, step: Number) -> None:
        self.step = number("Grid", "step", step)
        if self.step <= 0:
            raise refused("Grid", "step", step, "is not above 0", "Grid(step=0.125)")

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        least = SMALLEST_NORMAL[working_dtype(units.dtype)]
        if self.step < least:
            wrong = f"`step` of Grid is below {least:g}, the smallest normal number of {units.dtype} weights"
            raise SetError(wrong, f"step={self.step!r}", where=repr(self), instead="a larger step")

    def _project(self, units: Units) -> Units:
        wide = working_dtype(units.dtype)
        step = float(np.asarray(min(self.step, LARGEST[wide]), wide))
        finest = 2.0 ** (MANTISSA_BITS[units.dtype] - 1)
        last = min(LARGEST[units.dtype] // max(self.step, step), finest)
        first = step if step == self.step else _truncated(step, MANTISSA_BITS[wide] // 2)
        rest = self.step - first if last else 0.0

        def nearest(x: Array) -> Array:
            xp = namespace(x)
            steps = x / (step + 0 * x)  # by a constant, XLA would multiply with a rounded inverse
            whole = xp.clip(xp.round(steps), -last, last)
            multiple = whole * first + whole * rest if rest else whole * first  # the first product is exact
            moved = xp.abs(multiple - x) > 2 * epsilon(wide) * xp.abs(x)
            return xp.where(xp.abs(steps) < finest, xp.where(moved, multiple, without_gradient(x)), x)

        return units.map(nearest)

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        step = min(self.step, LARGEST[dtype_of(rows)])
        beyond = xp.abs(rows)
        for multiple in (step * 2.0**64, step):  # PyTorch has no remainder where the quotient overflows
            if multiple < LARGEST[dtype_of(rows)]:
                beyond = xp.mod(beyond, constant(rows, multiple))
        short = step - beyond if step == self.step else beyond
        halfway = beyond == short  # the farthest there is: the derivative is 0
        return xp.max(xp.where(halfway, without_gradient(beyond), xp.minimum(beyond, short)), axis=1)

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        return np.max(np.abs(rows), axis=1)


def _truncated(number: float, bits: int) -> float:
    """A positive number with the first bits of its significand."""
    significand, exponent = math.frexp(number)
    return math.ldexp(math.floor(math.ldexp(significand, bits)), exponent - bits)
