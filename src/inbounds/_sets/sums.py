"""Sets that bound a sum over a unit: SumTo, Halfspace, Hyperplane; Simplex, L1Ball.

A sum of signed entries is projected on by a shift along the normal, in closed form. Where entries
stop at 0 there is one unknown per unit, the threshold below which they become 0. It is found
without sorting: what remains above a threshold is convex and piecewise linear in it, so that
Newton's method from below ends after a few steps, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inbounds._arrays.judgement import Bound, Judgement
from inbounds._arrays.laid import Laid, flat
from inbounds._arrays.ops import (
    HUGE,
    SMALLEST_NORMAL,
    Array,
    above,
    constant,
    into,
    namespace,
    without_gradient,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._sets.arguments import axes, center_of, in_a_row, number_or_array, numbers_of_units, refused
from inbounds._sets.declaration import Declaration, Kind, Limit
from inbounds._sets.one_limit import LOOKS, from_the_left, nearest_on_one_limit
from inbounds._sets.reduced import NEAR, reach
from inbounds._sets.set import Exceeded, Set, registered
from inbounds._sets.splitting import repeated
from inbounds._types import Axis, Center, Numbers


class Linear(Set):
    """a.w = b, or a.w <= b, for a normal a whose largest entry is 1 in size."""

    equal: bool
    largest: float  # the normal's largest entry, in size
    slope: Any  # the normal over it
    level: Bound  # the offset over it

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        units.entries(self.slope)

    def declaration(self, units: Units) -> Declaration:
        kind: Kind = "equal" if self.equal else "most"
        slope = units.entries(self.slope) if np.shape(self.slope) else 1.0
        return Declaration((Limit(kind, units.numbers(self.level), slope),))

    def _project(self, units: Units) -> Units:
        slope = units.entries(self.slope)
        along = slope if units.costs is None else slope.map(lambda a, d: a / d, units.costs)
        squares = self.squares(units, along)

        def project(units: Units) -> Units:
            by = self._shift(units, slope, squares)
            return units.map(lambda x, a, by: namespace(x).where(by != 0, x - by * a, x), along, by)

        def moves_on(_: Units, new: Units) -> Array:
            return self._shift(new, slope, squares) != 0

        return repeated(project, units, moves_on, LOOKS)

    def _shift(self, units: Units, slope: Units, squares: Array) -> Array:
        """How far each unit is to move along the slope, over its cost; 0 where it is inside."""
        xp = namespace(units.parts[0])
        least = units.numbers(np.maximum(np.abs(self.level), 1 / HUGE))
        size = without_gradient(xp.minimum(xp.maximum(units.largest(), least), HUGE))  # lets no sum overflow
        level = units.numbers(self.level) / size
        apart = units.total(lambda x, a, size: a * (x / size), slope, size) - level
        terms = units.constants().sum(lambda x, a, size: xp.abs(a * (x / size)), slope, size)
        inside = units.judged().held(1.0) * xp.maximum(terms, xp.abs(level))
        moved = ((xp.abs(apart) if self.equal else apart) > inside) & xp.isfinite(apart) & (squares > 0)
        step = apart / xp.where(squares > 0, squares, xp.ones_like(squares))
        return xp.where(moved, size * step, xp.zeros_like(step))

    def squares(self, units: Units, along: Units) -> Array:
        """The sum over the movable entries of the slope times the way."""
        slope, moves = units.entries(self.slope), units.with_parts([float(movable) for movable in units.movable])
        return units.constants().sum(lambda x, a, b, m: m * a * b * namespace(x).ones_like(x), slope, along, moves)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        """That of the offset."""
        slope = units.entries(self.slope)
        along, squares = taken.total(lambda n, a: n * a, slope), self.squares(units, slope)
        return self._by_count(along / np.where(squares > 0, squares, 1.0)) / self.largest

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        apart = _beyond(rows, constant(rows, flat(self.slope, unit_shape)), np.asarray(self.level))
        return (namespace(rows).abs(apart) if self.equal else apart) / self._length(unit_shape)

    def _length(self, unit_shape: tuple[int, ...]) -> float:
        """What a.w - b is divided by: the normal's length, which makes it a distance."""
        return float(np.sqrt(np.sum(np.broadcast_to(flat(self.slope, unit_shape), int(np.prod(unit_shape))) ** 2)))

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        unit_shape = np.shape(self.slope) or (size,)
        return Judgement(size, dtype).tolerated(1.0) * np.abs(self.level) / self._length(unit_shape)

    def _slack(self, laid: Laid) -> Any:
        """Rounding is measured at the sum of the sizes of what is added up."""
        size, unit_shape = laid.rows.shape[1], laid.unit_shape
        if not isinstance(laid.rows, np.ndarray):
            return self._tolerance(laid.dtype, size)
        terms = np.maximum(np.sum(np.abs(laid.known * flat(self.slope, unit_shape)), axis=1), np.abs(self.level))
        return Judgement(size, laid.dtype).tolerated(1.0) * terms / self._length(unit_shape)


@registered
class SumTo(Linear):
    """{w : sum of w = total}, each unit.

    The nearest unit adds the same number to every entry. A total of 0 centres the units (weights
    that see contrasts and no level, as in weight standardization); a total of 1 makes affine
    combinations. With entries above 0 it is `Simplex`.

    Args:
        total: what the entries add up to, in all units, or an array with that of each; finite.
        axis: see `MaxNorm`.

    Cost: four passes: a shift, and a look at what its rounding left, which as a rule moves nothing
    more (64 shifts at most). Rounding is measured at the sum of the entries' sizes, see
    `tolerance`. A zero unit gets equal entries. NaN and infinities stay.

    Source: Qiao et al., "Micro-batch training with batch-channel normalization and weight
    standardization", 2019.

    >>> SumTo(1).project([[1.0, 2.0]])
    array([[0., 1.]])
    """

    of_each_unit = ("total",)
    equal = True
    slope = largest = 1.0

    def __init__(self, total: Numbers = 0.0, axis: Axis = None) -> None:
        self.total = numbers_of_units("SumTo", "total", total)
        self.level = in_a_row(self.total)
        self.axis = axes("SumTo", axis)

    def _length(self, unit_shape: tuple[int, ...]) -> float:
        """One: the violation is how far the sum is off."""
        return 1.0


class _HalfspaceOrHyperplane(Linear):
    """A linear set with a normal of the user's."""

    of_each_unit = ("offset",)

    def __init__(self, normal: Numbers, offset: Numbers, axis: Axis = None) -> None:
        name = type(self).__name__
        self.normal = number_or_array(name, "normal", normal)
        self.offset = numbers_of_units(name, "offset", offset)
        self.axis = axes(name, axis)
        self.largest = float(np.max(np.abs(self.normal), initial=0.0))
        if self.largest == 0:
            instead = f"{name}(normal=[1.0, -1.0], offset=0.0)"
            raise refused(name, "normal", normal, "has no entry that is not 0", instead)
        self.slope, self.level = self.normal / self.largest, in_a_row(self.offset / self.largest)

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        """Under a mask the normal is what the mask leaves of it."""
        edges = super()._edges(rows, laid)
        if laid.mask is None:
            return edges
        left = np.sqrt(np.sum((flat(self.slope, laid.unit_shape) * laid.mask) ** 2, axis=1))
        longer = self._length(laid.unit_shape) / np.where(left > 0, left, 1.0)
        return [(excess * constant(rows, longer), slack * longer) for excess, slack in edges]


@registered
class Halfspace(_HalfspaceOrHyperplane):
    """{w : normal . w <= offset}, each unit.

    One linear inequality: a budget with prices, one weight at most as large as another, an ordering
    of two. Several of them meet by `&`. A unit outside moves along the normal onto the hyperplane.

    Args:
        normal: an array with one entry for each entry of a unit (or a shape that broadcasts to it),
            or one number for all; finite, not all 0.
        offset: a number for all units, or an array with one for each; finite.
        axis: see `MaxNorm`.

    Cost: four passes, as `SumTo`. The violation is the distance, (normal . w - offset) / |normal|;
    rounding is measured at the sum of the sizes of its terms, see `tolerance`. NaN and infinities
    stay.

    Source: Boyd and Vandenberghe, "Convex Optimization", 2004, section 8.1.

    >>> Halfspace([1, 1], 2).project([[2.0, 2.0], [0.0, 1.0]])
    array([[1., 1.],
           [0., 1.]])
    """

    equal = False


@registered
class Hyperplane(_HalfspaceOrHyperplane):
    """{w : normal . w = offset}, each unit.

    One linear equation: a weighted sum that is known, units at a right angle to a direction that
    shall not matter (an offset of 0).

    Args:
        normal: see `Halfspace`.
        offset: see `Halfspace`.
        axis: see `MaxNorm`.

    Cost: as `Halfspace`, and the edges too.

    Source: Boyd and Vandenberghe, "Convex Optimization", 2004, section 8.1.

    >>> Hyperplane([3, 4], 0).project([[3.0, 4.0]])
    array([[0., 0.]])
    """

    equal = True


class OfTotal(Set):
    """A set whose entries, in size, add up to a level, by which the set is scaled."""

    level: Bound

    def _tolerance(self, dtype: str, size: int = 1) -> Bound:
        return Judgement(size, dtype).tolerated(self.level)

    def multiplier(self, units: Units, taken: Units) -> np.ndarray[Any, Any]:
        """That of the level."""
        return self._by_scale(units, taken, self.level)


@registered
class Simplex(OfTotal):
    """{w : w >= 0, sum of w = total}, each unit: shares of a whole.

    Mixing weights, attention that is fixed, convex combinations of inputs. Unlike a softmax it
    reaches 0 exactly.

    Args:
        total: what the entries add up to, in all units, or an array with that of each; above 0.
        axis: see `MaxNorm`.

    Cost: two passes and one for each look at the threshold, 4 to 8 as a rule and 64 at most, where
    the threshold is known to half the bits of its dtype in the worst case; then a pass that scales
    to the total, so that the sum is right whatever the looks did. Nothing is sorted. A zero unit
    gets equal entries. NaN and infinities stay.

    Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", 1974; Michelot, "A
    finite algorithm for finding the projection of a point onto the canonical simplex", 1986;
    Condat, "Fast projection onto the simplex and the l1 ball", 2016.

    >>> Simplex().project([[0.5, 1.5], [-1.0, 0.0]])
    array([[0., 1.],
           [0., 1.]])
    """

    of_each_unit = ("total",)

    def __init__(self, total: Numbers = 1.0, axis: Axis = None) -> None:
        self.total = numbers_of_units("Simplex", "total", total, positive=True)
        self.level = in_a_row(self.total)
        self.axis = axes("Simplex", axis)

    def declaration(self, units: Units) -> Declaration:
        return Declaration((Limit("equal", units.numbers(self.level)),), low=0.0)

    def reduced(self, units: Units, gradient: Units) -> Units:
        return _reduced_on_a_face(units, gradient, self.level, signed=False)

    def _project(self, units: Units) -> Units:
        xp = namespace(units.parts[0])
        least = units.constants().max(lambda x: -x)
        off = units.constants().total(lambda x: x) - units.numbers(self.level)
        moved = (least > 0) | (xp.abs(off) > units.numbers(units.judged().held(self.level)))
        return nearest_on_one_limit(units, self.declaration(units), moved & (least < np.inf))

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        return namespace(rows).abs(_beyond(rows, 1.0, np.asarray(self.level)))

    def _edges(self, rows: Array, laid: Laid) -> list[Exceeded]:
        below = namespace(rows).max(-rows, axis=1)
        return [*super()._edges(rows, laid), (below, SMALLEST_NORMAL[working_dtype(laid.dtype)])]


@registered
class L1Ball(OfTotal):
    """{w : |w|_1 <= radius}, each unit: the sum of the entries' sizes is bounded.

    Few large weights rather than many small ones: the nearest unit has entries that are exactly 0.
    The hard form of an L1 penalty, with a radius that means something.

    Args:
        radius: the largest sum, for all units, or an array with that of each; above 0.
        axis: see `MaxNorm`.
        center: see `MaxNorm`.

    Cost: as `Simplex`; a unit inside costs the two passes that find it out. A zero unit is inside.
    NaN and infinities stay.

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball for
    learning in high dimensions", 2008; Condat, "Fast projection onto the simplex and the l1 ball",
    2016.

    >>> L1Ball(1).project([[1.0, -0.5], [0.2, 0.3]])
    array([[ 0.75, -0.25],
           [ 0.2 ,  0.3 ]])
    """

    of_each_unit = ("radius",)

    def __init__(self, radius: Numbers = 1.0, axis: Axis = None, center: Center = None) -> None:
        self.radius = numbers_of_units("L1Ball", "radius", radius, positive=True)
        self.level = in_a_row(self.radius)
        self.axis = axes("L1Ball", axis)
        self.center = center_of("L1Ball", center)

    def declaration(self, units: Units) -> Declaration:
        return Declaration((Limit("diamond", units.numbers(self.level), center=self.center_values(units)),))

    def reduced(self, units: Units, gradient: Units) -> Units:
        return _reduced_on_a_face(self.centred(units), gradient, self.level, signed=True)

    def _project(self, units: Units) -> Units:
        xp = namespace(units.parts[0])
        ceiling = units.numbers(self.level + units.judged().held(self.level))
        moved_by = units.rounding(lambda given: given.total(xp.abs))
        known = units.constants()
        sizes = known.with_parts(list(map(xp.abs, known.parts)))
        moved = sizes.total(lambda x: x) > ceiling + moved_by
        about_0 = Declaration((Limit("diamond", units.numbers(self.level)),))
        return nearest_on_one_limit(units, about_0, moved, sizes)

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        return xp.sum(xp.abs(rows), axis=1) - constant(rows, self.level)

    def _magnitude(self, rows: np.ndarray[Any, Any]) -> Any:
        return 0.0 if self.center is None else np.sum(np.abs(rows), axis=1)


def _beyond(rows: Array, slope: Array, level: np.ndarray[Any, Any]) -> Array:
    """For each row the sum of slope times entries, less the level; no sum on the way overflows."""
    xp = namespace(rows)
    least = constant(rows, np.maximum(np.abs(level), 1 / HUGE))
    size = without_gradient(xp.minimum(xp.maximum(xp.max(xp.abs(rows), axis=1), least), HUGE))
    return size * (xp.sum((rows / size[:, None]) * slope, axis=1) - constant(rows, level) / size)


def _reduced_on_a_face(units: Units, gradient: Units, total: Bound, *, signed: bool) -> Units:
    """The reduced gradient of a set whose entries are lowered to add up to a total.

    If `signed`, their sizes are. With a = x / e - g, the point after a step `e g` is e a, with
    entries drawn towards 0 by up to e t, for one t a unit; so g + clip(a, -t, t) is left of g. What
    entries lose of their sizes is added up without these, beside which rounding would swallow it.
    """
    xp = namespace(units.parts[0])
    movable, pull = units.only(movable=True), gradient.only(movable=True)
    assert movable is not None
    assert pull is not None
    e, _, usable = reach(units, gradient, NEAR)

    def added(terms: Units) -> Array:
        return xp.reshape(terms.total(lambda x: x), units.shape)

    inverse = 1 / e
    slopes = pull.with_parts(list(map(xp.abs, pull.parts)))
    size = added(slopes)
    noise = units.judged().held(1.0) / 2 * size
    ahead = movable.map(lambda x, g, e: into(point := x / e, "subtract", point, g), pull, e)
    if signed:
        moved_by = units.rounding(lambda given: given.total(xp.abs))
        least = units.numbers(total - units.judged().held(total))  # rounding is nothing
        gap = xp.minimum(units.total(xp.abs) - least + moved_by, 0) * inverse  # how far inside
        # Of a step `e g`, the part that draws an entry nearer to 0 counts, less the part beyond.
        memory = pull.map(_towards_0, movable, e)
        over = gap + size - added(memory) * inverse
        sizes = ahead.map(xp.abs)
    else:
        memory, over, sizes = slopes, -added(pull), ahead

    def look(t: Array) -> tuple[Array, Array, Array]:
        held = sizes.total(lambda size, t, memory: into(memory, "minimum", size, t), t, memory)
        count = sizes.sum(lambda size, t, memory: above(size, t, memory), t, memory)
        left = over - xp.reshape(held, units.shape)
        return left, left / xp.maximum(xp.reshape(count, units.shape), 1), noise

    points_out = usable & (over > 2 * noise) if signed else usable
    length = movable.length
    start = over / (length if isinstance(length, int) else xp.reshape(length, units.shape))
    t = from_the_left(look, start, xp.full_like(e, -np.inf), points_out)
    if signed:
        taken = ahead.map(lambda a, t: into(a, "clip", a, -t, t), t)
    else:
        taken = ahead.map(lambda a, t: into(a, "minimum", a, t), t)
        points_out = points_out & (added(taken.map(xp.abs)) > 2 * noise)
    tangential = taken.map(lambda taken, g: into(taken, "add", g, taken), pull)
    return gradient.chosen(points_out, gradient.with_movable(tangential))


def _towards_0(g: Array, x: Array, e: Array) -> Array:
    """Twice how far a step `e g` leads each entry nearer to 0.

    There is no `abs(g)` in it, nor a 0, which XLA would write out for all sums that share it.
    """
    step = e * g
    nearer = namespace(g).minimum(x, step)
    farther = into(step, "maximum", x, step)
    nearer = into(nearer, "maximum", nearer, into(farther, "negative", farther))  # negative where it leads away
    return into(nearer, "add", nearer, into(farther, "abs", nearer))
