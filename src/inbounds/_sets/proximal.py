"""The nearest point in a metric by Euclidean projections: for convex sets whose weighted projection has no closed form.

`min over y in C of sum d (y - x)^2` by accelerated proximal gradient steps, `y <- P(z - d (z - x))`
for costs d of at most 1: each is a Euclidean projection. Every one ends inside, and a point that
all of them leave where it is is the solution, after whatever number of them.
"""

from __future__ import annotations

from collections.abc import Callable

from inbounds._arrays.ops import Array, epsilon, iterate, namespace, repeat, working_dtype
from inbounds._arrays.units import Units, joined

MOST = 2000  # the limit of steps
UNROLLED = 3  # the number of steps where PyTorch exports or vectorizes, and can't stop early
LIVE = 40  # the number of plain steps from the result that are differentiated


def in_steps(project: Callable[[Units], Units], units: Units, *, couples: bool) -> Units:
    """The units, with costs of at most 1, at the nearest point in their metric; what is inside stays."""
    xp = namespace(units.parts[0])
    costs = units.costs
    plain = units.costing(None)
    fixed = plain.constants()
    near = project(fixed)
    rounding = 4 * epsilon(working_dtype(units.dtype))

    def one(units: Units) -> Units:
        return units.together(couples)

    def pulled(ahead: Units, to: Units) -> Units:
        return project(ahead.map(lambda z, x, d: z - d * (z - x), to, costs))

    def look(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        old, ahead = fixed.split(state[:-1])
        new = pulled(ahead, fixed)
        back = one(ahead).sum(lambda z, y, o: (z - y) * (y - o), new, old)
        age = xp.where(back > 0, xp.zeros_like(back), state[-1] + 1)  # the gradient restart of O'Donoghue and Candes
        ahead = one(new).map(lambda y, o, by: y + by * (y - o), old, age / (age + 3))
        moved = one(new).max(lambda y, o: xp.abs(y - o), old)
        return (*joined([new, ahead]), age), moved > rounding * one(new).max(xp.abs)

    state = (*joined([near, near]), xp.zeros_like(one(fixed).max(xp.abs)))
    ended, _ = fixed.split(iterate(look, state, MOST, UNROLLED)[:-1])
    ended = one(fixed).chosen(~one(fixed).same(near), ended).apart(plain)
    if units.differentiable:
        live = plain.with_parts(repeat(lambda state: pulled(plain.with_parts(state), plain).parts, ended.parts, LIVE))
        ended = ended.map(lambda y, x, dead: y + (x - dead), live, live.constants())
    return ended.costing(costs)
