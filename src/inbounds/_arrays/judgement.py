"""The judgement of what is inside a set, for training steps in float32 and audits in float64.

A grain is one rounding of the weight's dtype at the bound; an error is the largest error of a
computed sum or norm. A projection ends within two grains and one error of its bound. A training
step computes that value again, so it leaves alone what it computes to be within two grains and two
errors. The exact value is then within two grains and three errors, which is what an audit
tolerates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, SMALLEST_EXPONENT, epsilon, ulp, ulps, working_dtype

Bound = float | np.ndarray[Any, Any]  # one number for all units, or an array with one for each


def extremes(bound: Bound) -> tuple[float, float]:
    """The smallest and the largest of some bounds; NumPy takes ten times as long for a number."""
    return (bound.min(), bound.max()) if isinstance(bound, np.ndarray) else (bound, bound)


def finite_bound(low: Bound, high: Bound) -> Bound:
    """The upper bounds, and the lower ones where there is no upper bound."""
    if isinstance(low, np.ndarray) or isinstance(high, np.ndarray):
        return np.where(np.isinf(high), low, high)
    return low if math.isinf(high) else high


@dataclass(frozen=True)
class Judgement:
    """How a sum or a norm over a unit is compared with a bound."""

    size: int  # the number of entries of a unit
    dtype: str  # of the weights; sums are computed in its `working_dtype`
    root: bool = False  # whether it is the root of a sum of squares, which has half the error of a sum

    def held(self, bound: Bound) -> Bound:
        """How far beyond the bound, or each of several, a training step leaves a unit alone."""
        return _held(self, bound) if isinstance(bound, float) else self._held(bound)

    def _held(self, bound: Bound) -> Bound:
        return self._within(bound, 2 * self._error(working_dtype(self.dtype)))

    def tolerated(self, bound: Bound) -> Bound:
        """How far beyond the bound an audit, which computes in float64, calls a unit inside."""
        return self._within(bound, 3 * self._error(working_dtype(self.dtype)) + self._error("float64"))

    def _error(self, dtype: str) -> float:
        """The largest error in a dtype, as a share of the sum of the terms' absolute values.

        Each term is rounded twice, and a pairwise sum is off by at most log2(size) roundings
        (Higham, "Accuracy and stability of numerical algorithms", 2002, section 4.2). The blocked
        sums of the backends were measured at up to 1.2 times that; the bound is 1.5 times.
        """
        return 1.5 * (2 + math.log2(max(self.size, 1))) * epsilon(dtype) / (4 if self.root else 2)

    def _within(self, bound: Bound, error: float) -> Bound:
        smallest = math.ldexp(0.5, SMALLEST_EXPONENT[self.dtype] - MANTISSA_BITS[self.dtype])
        entries = self.size**0.5 if self.root else self.size  # each is rounded to a multiple of the smallest
        if isinstance(bound, np.ndarray):
            grain = np.maximum(epsilon(self.dtype) * np.abs(bound), ulps(bound, self.dtype))
            within = 2 * grain + error * np.abs(bound) + entries * smallest
            return np.where((bound == 0) | ~np.isfinite(bound), 0.0, within)
        if bound == 0 or not math.isfinite(bound):  # a bound of 0 is met exactly
            return 0.0
        grain = max(epsilon(self.dtype) * abs(bound), ulp(bound, self.dtype))
        return 2 * grain + error * abs(bound) + entries * smallest


@lru_cache(maxsize=1024)
def _held(judgement: Judgement, bound: float) -> Bound:
    """`Judgement.held` of one number, which each step asks for again."""
    return judgement._held(bound)
