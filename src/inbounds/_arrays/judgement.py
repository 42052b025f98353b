"""What counts as inside: one judgement for the step of training, which computes in float32, and for the audit.

A computed number is off by its error at most. A projection ends within two grains of its bound, and that error. So a
step that leaves its own results alone takes for inside what it computes to be within two grains and two errors. What it
leaves alone is, seen exactly, within two grains and three errors, and that is what an audit takes for inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from inbounds._arrays.ops import MANTISSA_BITS, SMALLEST_EXPONENT, epsilon, ulp, working_dtype


@dataclass(frozen=True)
class Judgement:
    """How numbers that are summed up over a unit are compared with a bound.

    Attributes:
        size: how many entries a unit has.
        dtype: of the weights; sums are computed in `working_dtype` of it.
        root: whether the number is the root of a sum of squares, which has half the error; else it is a sum.
    """

    size: int
    dtype: str
    root: bool = False

    def held(self, bound: float) -> float:
        """How far beyond a bound a step may compute what it leaves alone."""
        return self._within(bound, 2 * self._error(working_dtype(self.dtype)))

    def tolerated(self, bound: float) -> float:
        """How far beyond a bound an audit, which computes in float64, takes for inside."""
        return self._within(bound, 3 * self._error(working_dtype(self.dtype)) + self._error("float64"))

    def _error(self, dtype: str) -> float:
        """How wrong the number may be, computed in a dtype, as a share of the sum of the terms' sizes.

        Terms are rounded twice, and a sum by halves is off by log2(size) roundings at most (Higham, "Accuracy and
        stability of numerical algorithms", 2002, section 4.2). Backends add up blocks, which was measured to cost up to
        1.2 times that; 1.5 is allowed.
        """
        return 1.5 * (2 + math.log2(max(self.size, 1))) * epsilon(dtype) / (4 if self.root else 2)

    def _within(self, bound: float, error: float) -> float:
        if bound == 0 or not math.isfinite(bound):  # what is 0 is met exactly
            return 0.0
        grain = max(epsilon(self.dtype) * abs(bound), ulp(bound, self.dtype))
        smallest = math.ldexp(0.5, SMALLEST_EXPONENT[self.dtype] - MANTISSA_BITS[self.dtype])
        entries = self.size**0.5 if self.root else self.size  # each of which is rounded to a multiple of the smallest
        return 2 * grain + error * abs(bound) + entries * smallest
