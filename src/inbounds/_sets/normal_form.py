"""The normal form: one projection for all of bounds, linear constraints, balls and 1-norms.

The nearest point y of x in {y : low <= y <= high, A y = b, |y - c| <= r, ...}, in the norm `sum d
(y - x)^2`, is known entry by entry once one multiplier is known for each linear constraint (z),
ball (m) and 1-norm (t):

    y = clip(soft_t(d x - A' z + m c) / (d + m), low, high)

where `soft_t` draws towards the centre of the 1-norm by t. The multipliers maximize a concave
function, the dual. Its gradient is by how much each limit is exceeded. Its Hessian is -G diag(a)
G', where G has A, y - c and sign(y - c), and a is 1 / (d + m) for an entry that moves and 0 for one
that is clipped. Newton's method takes 4 to 60 steps as a rule, of a few sums over the unit and
systems with as many unknowns as limits.

Source: Li, Sun and Toh, "A highly efficient semismooth Newton augmented Lagrangian method for
solving lasso problems", 2018, for semismooth Newton steps on the dual; Boyd and Vandenberghe,
"Convex Optimization", 2004, chapter 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inbounds._arrays.ops import (
    HUGE,
    Array,
    at_once,
    blocked_sum,
    constant,
    dtype_of,
    epsilon,
    iterate,
    namespace,
    solve,
    without_gradient,
)
from inbounds._arrays.units import Units
from inbounds._sets.declaration import KINDS, Declaration, Kind, clip
from inbounds._sets.one_limit import nearest_on_one_limit

TURNS, UNROLLED = 250, 40  # the limit of looks at the multipliers, 4 to 60 as a rule; where PyTorch can't stop early
OVERSHOOT = 0.1  # how much the dual may fall at the end of a step, as a share of its rise at the beginning
DAMPING, LEAST, MOST = 1e-2, 1e-12, 1e6  # the damping of Newton's method at first, at least and at most
BY = 8.0  # what it is multiplied by after a bad step, or one of a single multiplier
PASSES = 2  # so often the multipliers that are to be 0 after a step are found anew
REACH = 4.0  # a ball's multiplier, and 1, grow to at most so many times what they are


def nearest(units: Units, declaration: Declaration, *, whole: bool) -> Units:
    """The units at the nearest points of a set declared of each, or of the whole.

    Units with NaN may end anywhere.
    """
    one = units.together(whole)
    if not declaration.limits:
        return one.map(clip, declaration.low, declaration.high).apart(units)
    if len(declaration.limits) == 1:
        xp = namespace(units.parts[0])
        everywhere = xp.zeros_like(one.largest()) == 0
        return nearest_on_one_limit(one, declaration, everywhere).apart(units)
    x = one.rows()
    moves = None if all(one.movable) else one.table(one.with_parts([float(movable) for movable in one.movable]))
    if one.masked:
        declaration = declaration.within(one.marks)
    limits = sorted(declaration.limits, key=lambda limit: KINDS.index(limit.kind))
    levels = (namespace(x).reshape(constant(x, limit.level), (-1, 1)) for limit in limits)
    tables = [(one.table(limit.weights), one.table(limit.center)) for limit in limits]
    given = [(weights, level, center) for (weights, center), level in zip(tables, levels, strict=True)]
    low, high = one.table(declaration.low), one.table(declaration.high)
    static = tuple(limit.kind for limit in limits), one.differentiable
    return one.with_rows(at_once(_nearest, x, one.metric_rows(), moves, low, high, given, static=static)).apart(units)


def _nearest(
    x: Array,
    costs: Array | None,
    moves: Array | None,
    low: Array,
    high: Array,
    given: Sequence[tuple[Array, Array, Array]],
    static: tuple[tuple[Kind, ...], bool],
) -> Array:
    """The nearest rows to x, computed with entries of the size of 1.

    `moves` is 1 for entries that may move, else 0. Of each limit of the declaration, in order of
    `KINDS`, `given` has the weights, level and centre, and `static` the kind, and whether a
    derivative is wanted.
    """
    kinds, differentiable = static
    xp = namespace(x)
    fixed = without_gradient(x)
    fixed = xp.where(xp.isfinite(fixed), fixed, xp.zeros_like(fixed))
    size = xp.max(xp.abs(fixed), axis=1, keepdims=True)
    for bound in (low, high, *(level for _, level, _ in given)):
        known = xp.where(xp.isfinite(bound), xp.abs(bound), xp.zeros_like(bound))
        size = xp.maximum(size, xp.max(known, axis=1, keepdims=True))
    size = xp.clip(size, 1 / HUGE, HUGE)
    limits = [(weights, level / size, center / size) for weights, level, center in given]
    problem = _Problem(fixed / size, 1.0 if costs is None else costs, moves, low / size, high / size, limits, kinds)
    z = problem.multipliers()
    y = problem.entries(z)[0] * size
    if differentiable:
        live = problem.differentiable(x / size, z) * size
        y = y + (live - without_gradient(live))
    y = xp.maximum(xp.minimum(y, high), low)  # dividing by the size may have moved a bound
    return y if moves is None else xp.where(moves > 0, y, x)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What there is to see at some multipliers."""

    exceeded: Array  # by how much each limit is exceeded, of shape (units, K)
    matrix: Array  # minus the Hessian of the dual, of shape (units, K, K)
    solved: Array  # whether all limits but the first ball are within rounding; of shape (units, 1)
    over: Array  # by how much that ball is exceeded, 0 where it is within rounding; of shape (units, 1)


class _Problem:
    """What is to be solved for the multipliers z, of shape (units, K).

    Those of linear constraints come first, then those of balls, then those of diamonds.
    """

    def __init__(
        self, x: Array, d: Any, moves: Array | None, low: Array, high: Array, limits: Any, kinds: Sequence[Kind]
    ) -> None:
        xp = self.xp = namespace(x)
        self.x, self.d, self.moves, self.low, self.high, self.count = x, d, moves, low, high, len(kinds)
        starts = [sum(kind in KINDS[:i] for kind in kinds) for i in range(len(KINDS) + 1)]
        self.linear, self.balls, self.diamonds = slice(0, starts[2]), slice(*starts[2:4]), slice(*starts[3:5])
        self.weights = self._stacked([weights for weights, _, _ in limits])
        self.center = self._stacked([center for _, _, center in limits])
        is_ball = self.is_ball = constant(x, [[float(kind == "ball") for kind in kinds]])
        self.equal = constant(x, [[float(kind == "equal") for kind in kinds]]) > 0
        self.first_ball = constant(x, [[float(i == starts[2] and kind == "ball") for i, kind in enumerate(kinds)]])
        level = xp.concatenate([level + xp.zeros_like(x[:, :1]) for _, level, _ in limits], axis=1)
        self.radius = xp.maximum(level, math.pow(epsilon(dtype_of(x)), 0.8))  # less would vanish in sums
        self.half = 1 - 0.5 * is_ball
        self.one = constant(x, np.eye(len(kinds)))
        squares = xp.sum(self.weights * self.weights, axis=2)
        self.unheld = xp.where(is_ball > 0, self.radius * self.radius, xp.maximum(squares, 1 / HUGE))
        self.level = xp.where(is_ball > 0, 0.5 * self.radius * self.radius, level)

    def _stacked(self, arrays: Sequence[Array]) -> Array:
        """One array of shape (units or 1, K, size)."""
        alike = all(array.shape[0] == 1 for array in arrays)
        like = self.xp.zeros_like(self.x[:1] if alike else self.x)
        return self.xp.stack([array + like for array in arrays], axis=1)

    def entries(self, z: Array, x: Array | None = None) -> tuple[Array, Array, Array]:
        """The entries at some multipliers, the speed of each, and the size of its terms.

        The speed is the derivative of the entry in what pulls it.
        """
        xp = self.xp
        x = self.x if x is None else x
        by = z[:, :, None] * self.weights
        pull, weight = self.d * x, self.d + xp.zeros_like(x)
        size = xp.abs(pull)
        if self.linear.stop:
            pull = pull - xp.sum(by[:, self.linear], axis=1)
            size = size + xp.sum(xp.abs(by[:, self.linear]), axis=1)
        if self.balls.stop > self.balls.start:
            pull = pull + xp.sum(by[:, self.balls] * self.center[:, self.balls], axis=1)
            weight = weight + xp.sum(by[:, self.balls], axis=1)
        y, moving = pull / weight, xp.ones_like(x)
        if self.diamonds.stop > self.diamonds.start:
            center, threshold = self.center[:, self.diamonds.start], xp.sum(by[:, self.diamonds], axis=1)
            away = pull - weight * center
            left = xp.maximum(xp.abs(away) - threshold, 0)
            y = xp.where(threshold > 0, center + xp.sign(away) * left / weight, y)
            moving = xp.where((threshold > 0) & (left == 0), xp.zeros_like(y), moving)
        moving = xp.where((y >= self.low) & (y <= self.high), moving, xp.zeros_like(y))
        y = xp.where(xp.max(xp.abs(z), axis=1, keepdims=True) > 0, y, x)
        y = xp.maximum(xp.minimum(y, self.high), self.low)
        if self.moves is not None:
            y, moving = xp.where(self.moves > 0, y, x), moving * self.moves
        return y, moving / weight, xp.abs(y) + moving * size / weight

    def exceeded(self, y: Array) -> tuple[Array, Array]:
        """By how much each limit is exceeded, and the gradient of that in y.

        A ball is exceeded by half the difference of squares.
        """
        xp = self.xp
        apart = y[:, None] - self.center
        gradient = xp.concatenate(
            [
                self.weights[:, self.linear] + xp.zeros_like(apart[:, self.linear]),
                self.weights[:, self.balls] * apart[:, self.balls],
                self.weights[:, self.diamonds] * xp.sign(apart[:, self.diamonds]),
            ],
            axis=1,
        )
        return blocked_sum(gradient * apart, (2,)) * self.half - self.level, gradient

    def hessian(self, gradient: Array, speed: Array) -> Array:
        """Minus the Hessian of the dual; it may be singular."""
        xp = self.xp
        weighed = speed[:, None] * gradient
        return xp.stack([xp.sum(weighed[:, k : k + 1] * gradient, axis=2) for k in range(self.count)], axis=1)

    def damped(self, matrix: Array, damping: Array | float) -> Array:
        """A Hessian with a share of a diagonal added, so that it isn't singular.

        That diagonal is what the Hessian's own is where no entry is held.
        """
        xp = self.xp
        most = xp.max(xp.max(matrix * self.one, axis=2), axis=1, keepdims=True)
        least = 8 * epsilon(dtype_of(self.x)) * (1 + most / xp.max(self.unheld, axis=1, keepdims=True))
        return matrix + self.one * ((damping + least) * self.unheld)[:, None]

    def solution(self, matrix: Array, held: Array, right: Array) -> Array:
        """The solution of the system of a Hessian, with 0 for those that are held."""
        xp = self.xp
        right = xp.where(held, xp.zeros_like(right), right)
        matrix = xp.where(held[:, :, None] | held[:, None], self.one + xp.zeros_like(matrix), matrix)
        return solve(matrix, right[:, :, None])[:, :, 0]

    def look(self, z: Array) -> _Seen:
        xp = self.xp
        y, speed, size = self.entries(z)
        exceeded, gradient = self.exceeded(y)
        terms = xp.sum(xp.abs(gradient) * size[:, None], axis=2) + xp.abs(self.level)
        wrong = xp.where(self.idle(z), xp.maximum(exceeded, 0), exceeded)
        wrong = xp.where(xp.abs(wrong) > epsilon(dtype_of(z)) * self.half * terms, wrong, xp.zeros_like(wrong))
        solved = xp.max(xp.abs(wrong * (1 - self.first_ball)), axis=1, keepdims=True) == 0
        return _Seen(exceeded, self.hessian(gradient, speed), solved, self.of_ball(wrong))

    def step(self, z: Array, exceeded: Array, matrix: Array) -> tuple[Array, Array]:
        """Newton's step of all but the first ball's multiplier, to what is allowed.

        It is the maximum of the quadratic model over what is allowed, if a few passes over its
        active set find nearly that; else of the one multiplier along which it rises most. The
        second result is whether they do, of shape (units, 1).
        """
        xp = self.xp
        bounded = ~self.equal & (self.first_ball == 0)
        held = (self.first_ball > 0) | (self.idle(z) & (exceeded <= 0))
        step = self.solution(matrix, held, exceeded)

        def rise(step: Array) -> Array:
            curved = xp.sum(matrix * step[:, None], axis=2)
            return xp.sum((exceeded - 0.5 * curved) * step, axis=1, keepdims=True)

        for _ in range(PASSES):
            left = exceeded - xp.sum(matrix * step[:, None], axis=2)
            held = (bounded & ((z + step < 0) | (held & (left <= 0)))) | (self.first_ball > 0)
            ends = xp.where(held & bounded, -z, xp.zeros_like(z))
            step = self.solution(matrix, held, exceeded - xp.sum(matrix * ends[:, None], axis=2))
            step = step + ends
        step = self.allowed(z + step) - z
        alone = self.allowed(z + xp.where(self.first_ball > 0, 0 * z, exceeded) / xp.sum(matrix * self.one, axis=2)) - z
        gain = exceeded * alone
        alone = xp.where(gain >= xp.max(gain, axis=1, keepdims=True), alone, xp.zeros_like(alone))
        found = rise(step) >= 0.5 * rise(alone)
        return xp.where(found, step, alone), found

    def turn_of_ball(self, z: Array, seen: _Seen, low: Array, high: Array) -> Array:
        """The multipliers with a step of the first ball's.

        The inverse of the length is nearly linear in that multiplier.
        """
        xp = self.xp
        coupling = xp.sum(seen.matrix * self.first_ball[:, None], axis=2)
        held = (self.first_ball > 0) | (self.idle(z) & (seen.exceeded <= 0))
        tilt = self.solution(self.damped(seen.matrix, 0.0), held, coupling)
        curvature = self.of_ball(coupling) - xp.sum(coupling * tilt, axis=1, keepdims=True)
        squares = xp.maximum(self.of_ball(2 * (seen.exceeded + self.level)), 0)
        length = xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))
        over = length / xp.where(self.of_ball(self.radius) > 0, self.of_ball(self.radius), xp.ones_like(length)) - 1
        change = squares * over / xp.maximum(curvature, 1 / HUGE)

        multiplier = self.of_ball(z)
        farthest = REACH * (1 + multiplier)
        unbounded = high == np.inf
        slow = unbounded & (multiplier > 0) & (change > 0.3 * multiplier)
        middle = xp.where(unbounded, farthest, xp.sqrt((1 + xp.maximum(low, 0)) * (1 + high)) - 1)
        new = xp.where(slow, farthest, xp.minimum(multiplier + change, farthest))
        new = xp.maximum(xp.where((new > low) & (new < high), new, middle), 0)
        return self.allowed(z + (self.first_ball - tilt) * (new - multiplier))

    def multipliers(self) -> Array:
        """The solution, by Newton's method, damped as by Levenberg and Marquardt.

        Newton's steps are taken between those of the first ball's multiplier.
        """
        xp = self.xp
        zero = xp.zeros_like(self.x[:, :1])

        def turn(state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            z, exceeded, matrix, damping, low, high, open_ = state
            step, found = self.step(z, exceeded, self.damped(matrix, damping))
            ahead = z + step
            seen = self.look(ahead)
            still = xp.max(xp.abs(ahead - z), axis=1, keepdims=True) == 0
            rise, end = (xp.sum(by * step, axis=1, keepdims=True) for by in (exceeded, seen.exceeded))
            looked = xp.max(xp.abs(exceeded), axis=1, keepdims=True) > 0
            rounded = (still & looked) | (damping >= MOST)  # a step that is too short to be seen
            good = (open_ > 0) & ((end >= -OVERSHOOT * rise) | seen.solved | still | rounded)
            settled = good & (seen.solved | rounded)
            anew = xp.zeros_like(settled)
            new = seen.exceeded
            if self.balls.stop > self.balls.start:
                multiplier = self.of_ball(ahead)
                low = xp.where(settled & (seen.over > 0), multiplier, low)
                high = xp.where(settled & (seen.over < 0), multiplier, high)
                ahead = xp.where(settled & (seen.over != 0), self.turn_of_ball(ahead, seen, low, high), ahead)
                anew = settled & (self.of_ball(ahead) != multiplier)
                new = xp.where(anew, xp.zeros_like(new), new)  # nothing is known there: the next turn looks first
            open_ = xp.where(settled & ~anew, zero, open_)
            return (
                xp.where(good, ahead, z),
                xp.where(good, new, exceeded),
                xp.where(good[:, :, None], seen.matrix, matrix),
                xp.clip(xp.where(good & found, damping / BY, damping * BY), LEAST, MOST),
                low,
                high,
                open_,
            ), (open_ > 0)[:, 0]

        nothing = xp.zeros_like(self.level)
        start = (nothing, nothing, self.one + nothing[:, :, None], zero + DAMPING, zero - 1, zero + np.inf, zero + 1)
        return iterate(turn, start, TURNS, UNROLLED)[0]

    def idle(self, z: Array) -> Array:
        """Which limits are inequalities whose multiplier is 0."""
        return ~self.equal & (z <= 0)

    def allowed(self, z: Array) -> Array:
        """Multipliers, of inequalities not below 0."""
        return self.xp.where(self.equal, z, self.xp.maximum(z, 0))

    def of_ball(self, numbers: Array) -> Array:
        """What a number is for the first ball; 0 where there is none."""
        return self.xp.sum(numbers * self.first_ball, axis=1, keepdims=True)

    def differentiable(self, x: Array, z: Array) -> Array:
        """The entries at a solution, with their derivative in what is projected.

        The derivative includes that of the multipliers.
        """
        fixed, speed, _ = self.entries(z)
        exceeded, gradient = self.exceeded(fixed)
        live = self.exceeded(self.entries(z, x)[0])[0] - exceeded  # 0, with a derivative
        matrix, idle = self.hessian(gradient, speed), self.idle(z)
        damped = self.damped(matrix, 0.0)
        moved = self.solution(damped, idle, live)
        more = self.solution(damped, idle, live - self.xp.sum(matrix * moved[:, None], axis=2))
        return self.entries(z + moved + more, x)[0]
