"""The nearest point in a metric by Euclidean projections: for convex sets whose weighted projection has no closed form.

`min over y in C of sum d (y - x)^2` by accelerated proximal gradient steps, `y <- P(z - d / L (z - x))` with the
largest cost as L: each is a Euclidean projection. Every one ends inside, and a point that all of them leave where it is
is the solution, after whatever number of them.
"""

from __future__ import annotations

from collections.abc import Callable

from inbounds._arrays import Array, epsilon, iterate, namespace, repeat, working_dtype
from inbounds._units import Units

TO_THE_END = 2000
"""At most so many steps where the point before is not known, from the Euclidean projection."""

IN_TRAINING = 3
"""So many from the weights before the training step, which are near; see docs/optimizers.md for others tried."""

LIVE = 40
"""Plain steps that are gone through again, from where it ended, to be differentiated."""


def in_steps(project: Callable[[Units], Units], units: Units, *, whole: bool) -> Units:
    """The units at the nearest point in their metric, or on the way to it.

    Args:
        project: on the set, in the Euclidean metric.
        units: with a metric; where they have parts from before, steps begin there, and are few.
        whole: whether the set looks at all units together.
    """
    xp = namespace(units.parts[0])
    view = units.together() if whole else units
    costs = view.relative_costs.apart(units)
    plain = units.costing(None)
    fixed = plain.constants()
    rounding = 4 * epsilon(working_dtype(units.dtype))

    def pulled(from_: Units, to: Units) -> Units:
        return project(from_.map(lambda z, x, d: z - d * (z - x), to, costs))

    def look(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        count = len(units.parts)
        old, ahead = fixed.with_parts(state[:count]), fixed.with_parts(state[count:-1])
        new = pulled(ahead, fixed)
        as_one = fixed.together() if whole else fixed
        back = as_one.sum(lambda x, z, y, o: (z - y) * (y - o), ahead, new, old)
        age = xp.where(back > 0, xp.zeros_like(back), state[-1] + 1)  # the start anew of O'Donoghue and Candes
        by = age / (age + 3)
        ahead = new.apart(as_one).map(lambda y, o, by: y + by * (y - o), old.apart(as_one), by).apart(fixed)
        moved = as_one.max(lambda x, y, o: xp.abs(y - o), new, old)
        size = as_one.max(lambda x, y: xp.abs(y), new)
        return (*new.parts, *ahead.parts, age), moved > rounding * size

    if units.before is None:
        start, limit = project(fixed), TO_THE_END
    else:
        start, limit = fixed.map(lambda _, b: b, fixed.with_parts(units.before)), IN_TRAINING
    zero = (fixed.together() if whole else fixed).max(xp.abs) * 0
    ended = plain.with_parts(iterate(look, (*start.parts, *start.parts, zero), limit, IN_TRAINING)[: len(units.parts)])
    if units.differentiable:

        def turn(state: tuple[Array, ...]) -> tuple[Array, ...]:
            return pulled(plain.with_parts(state), plain).parts

        live = plain.with_parts(repeat(turn, ended.parts, LIVE))
        ended = ended.map(lambda y, x, dead: y + (x - dead), live, live.constants())
    return ended.costing(units)
