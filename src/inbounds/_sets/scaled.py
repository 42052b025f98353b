"""A set times a factor that follows the steps of training: what `a.scaled(schedule)` makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from inbounds._arrays.judgement import Bound
from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, cast, dtype_of, is_concrete, namespace, ulps
from inbounds._arrays.units import Units
from inbounds._errors import SetError
from inbounds._sets.arguments import refused
from inbounds._sets.composite import Wrapped, bracketed, parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.declaration import Declaration
from inbounds._sets.joint import JointSet
from inbounds._sets.set import Exceeded, Set, registered
from inbounds._sets.value import shown_callable


@registered
class Scaled(Wrapped):
    """{s w : w in a set}, where s follows the steps of training: what `a.scaled(schedule)` makes.

    A bound that tightens, or loosens, as training goes on: `MaxNorm(1).scaled(schedule)` with a
    schedule from 4 to 1 bounds the norm by 4 at first and by 1 in the end. A cone (NonNeg,
    Monotone...) is the same at every scale. After n steps of the optimizer the set is that of step
    n, also in the audit; where no Keras optimizer counts steps, it is that of step 0, see `at`.

    Args:
        set: without a centre; not a callable.
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a callable from a step, a
            number or a tensor, to a factor, written with `keras.ops`. It is above 0.

    Raises:
        SetError: the set is a callable, a Joint (scale what it joins) or has a centre, the schedule
            isn't callable or isn't above 0 at step 0; later where it ends up at 0 and can be seen.

    The tolerance is the set's times the factor, 4 to 8 ulp at the bound, and one more of the
    largest entry. Weights are divided by the factor, so that large ones overflow where it is small.

    Cost: that of the set, and two more maps.

    Source: the projection on a multiple of a set is that multiple of the projection: P_sC(x) = s
    P_C(x / s).

    >>> from inbounds import MaxNorm
    >>> halving = keras.optimizers.schedules.ExponentialDecay(4.0, decay_steps=1, decay_rate=0.5)
    >>> MaxNorm(1).scaled(halving).at(2).project(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]])
    """

    def __init__(self, set: Set, schedule: Callable[[Any], Any]) -> None:  # noqa: A002  # the word of the library
        parts = list(parts_of(set)) if isinstance(set, Set) else []
        if not parts or any(isinstance(part, (JointSet, Custom)) or part.center is not None for part in parts):
            wrong = "A set that is a callable, a Joint, or has a centre can't be scaled"
            raise SetError(wrong, f"{set!r}.scaled(...)", instead="Joint(MaxNorm(1.0).scaled(schedule))")
        if not callable(schedule):
            wrong, instead = "is not a callable from a step to a factor", "a schedule of keras.optimizers.schedules"
            raise refused("scaled", "schedule", schedule, wrong, instead, where=f"{set!r}.scaled(...)")
        self.members, self.schedule = (set,), schedule
        self.factor = self._factor_at(0)

    changes = True  # what it is at one step doesn't

    def at(self, step: Any) -> Set:
        if not self.changes:
            return self
        return self._with(members=(self.set.at(step),), factor=self._factor_at(step), changes=False)

    def _factor_at(self, step: Any) -> Any:
        """The factor after so many steps: a number, or a tensor in a compiled step."""
        factor = self.schedule(step)
        if not is_concrete(factor):
            return factor
        factor = float(keras.ops.convert_to_numpy(factor))
        if not 0 < factor < math.inf:
            wrong = "`schedule` of scaled gave a factor that is not finite and above 0"
            instead = "a schedule that ends above 0"
            raise SetError(wrong, f"{factor:g} at step {int(step)}", where=repr(self), instead=instead)
        return factor

    def inside(self, *given: Any) -> tuple[Set, list[Any]]:
        """The set in it, and the units divided by the factor.

        The gradient there isn't divided, since P_sC(x) = s P_C(x / s).
        """
        units, *others = given
        return self.set, [units.with_parts([part / self._factor(part) for part in units.parts]), *others]

    def _project(self, units: Units) -> Units:
        _, (inner,) = self.inside(units)
        moved = self.set.nearest(inner)
        grown = moved.map(lambda x: x * self._factor(x))
        return units.map(
            lambda x, new, old, grown: namespace(x).where((new == old) | (new != new), x, grown), moved, inner, grown
        )

    def declaration(self, units: Units) -> Declaration:
        return self.set.declaration(units).times(self._factor(units.parts[0]), units)

    def edges(self, laid: Laid) -> list[Exceeded]:
        factor = self._factor(laid.rows)

        def grown(excess: Array, slack: Any) -> Exceeded:
            slack = slack * factor
            if isinstance(laid.rows, np.ndarray):  # who asks for violations only, of tensors, asks for no slack
                sizes = np.abs(laid.known).max(axis=1).reshape(len(excess), -1)
                slack = slack + ulps(sizes.max(axis=1), laid.dtype)
            return excess * factor, slack

        return [grown(*edge) for edge in self.set.edges(replace(laid, rows=laid.rows / factor))]

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        return float(self.factor) * self.set._tolerance(dtype, size)

    def _factor(self, like: Array) -> Array:
        return self.factor if isinstance(self.factor, float) else cast(self.factor, dtype_of(like))

    @property
    def _key(self) -> tuple[Any, ...]:
        return *super()._key, None if self.changes else self.factor

    def __repr__(self) -> str:
        if self.changes:
            return f"{bracketed(self.set)}.scaled({shown_callable(self.schedule)})"
        factor = f"{float(self.factor):g}" if is_concrete(self.factor) else "..."
        return f"{self.set!r} * {factor}"
