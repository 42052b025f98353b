"""What sets in normal form declare: bounds on entries, linear constraints, balls and 1-norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from inbounds._arrays.ops import Array, namespace
from inbounds._arrays.units import Units

Values = Units | float  # a number for all entries, or units whose parts broadcast against those that it is declared of
Kind = Literal["equal", "most", "ball", "diamond"]
KINDS: tuple[Kind, ...] = ("equal", "most", "ball", "diamond")


@dataclass(frozen=True, eq=False)
class Limit:
    """One number of each unit that is compared with a level: equal to it, or at most.

    It is the sum of `weights * y` ("equal", "most"), the 2-norm ("ball") or the 1-norm ("diamond")
    of `weights * (y - center)`.
    """

    kind: Kind
    level: Array | float  # one number for all units, or an array with one for each
    weights: Values = 1.0  # of a norm 1 or 0, else the largest is 1
    center: Values = 0.0  # of a norm


@dataclass(frozen=True, eq=False)
class Declaration:
    """{y : low <= y <= high, and all limits hold}, each unit."""

    limits: tuple[Limit, ...] = ()
    low: Values = -math.inf
    high: Values = math.inf

    def __and__(self, other: Declaration) -> Declaration:
        return Declaration(
            self.limits + other.limits,
            _tighter("maximum", self.low, other.low),
            _tighter("minimum", self.high, other.high),
        )

    def within(self, mask: Units) -> Declaration:
        """The declaration for entries that a mask of 0 and 1 marks; other entries are unbounded."""
        some = mask.max(lambda marked: marked)

        def marked(values: Values, otherwise: float) -> Values:
            return each(lambda m, v: namespace(m).where(m > 0, v + 0 * m, otherwise + 0 * m), mask, values)

        return Declaration(
            tuple(
                replace(limit, weights=each(lambda m, a: m * a, mask, limit.weights), level=some * limit.level)
                for limit in self.limits
            ),
            marked(self.low, -math.inf) if is_bounded(self.low) else self.low,
            marked(self.high, math.inf) if is_bounded(self.high) else self.high,
        )

    def times(self, factor: Array | float, units: Units) -> Declaration:
        """The declaration of the set times a number, which may be a tensor of a compiled step."""

        def grown(values: Values) -> Values:
            if isinstance(values, Units):
                return each(lambda v: v * factor, values)
            if values == 0 or math.isinf(values):
                return values
            multiple = values * factor
            return multiple if isinstance(multiple, float) else units.with_parts([multiple] * len(units.parts))

        limits = (replace(limit, level=limit.level * factor, center=grown(limit.center)) for limit in self.limits)
        return Declaration(tuple(limits), grown(self.low), grown(self.high))


def each(fn: Callable[..., Any], *values: Values) -> Values:
    """A function of values, part by part; a number where all values are numbers."""
    like = next((value for value in values if isinstance(value, Units)), None)
    if like is None:
        return float(fn(*values))
    parts = range(len(like.parts))
    return like.with_parts([fn(*(v.parts[i] if isinstance(v, Units) else v for v in values)) for i in parts])


def is_bounded(bound: Values | Array) -> bool:
    """Whether a bound is not just an infinite number."""
    return not isinstance(bound, float) or math.isfinite(bound)


def clip(x: Array, low: Any, high: Any) -> Array:
    """Entries within their bounds; an infinite number is none."""
    xp = namespace(x)
    x = x if isinstance(low, float) and low == -math.inf else xp.maximum(x, low)
    return x if isinstance(high, float) and high == math.inf else xp.minimum(x, high)


def _tighter(which: Literal["maximum", "minimum"], one: Values, other: Values) -> Values:
    if not is_bounded(one) or not is_bounded(other):
        return other if is_bounded(other) else one
    if isinstance(one, float) and isinstance(other, float):
        return max(one, other) if which == "maximum" else min(one, other)
    first, second = (one, other) if isinstance(one, Units) else (other, one)
    return each(lambda a, b: getattr(namespace(a), which)(a, b), first, second)
