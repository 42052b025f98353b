"""Ways to look at a weight: which of its entries make one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inbounds._arrays.ops import Array, namespace

Axes = tuple[int, ...]
Block = tuple[slice, ...]  # an index into a weight

BLOCK = 1 << 19
"""How many numbers are projected or measured at once outside of training steps, so that temporaries
stay small."""


@dataclass(frozen=True)
class View:
    """A weight as a set sees it."""

    shape: tuple[int, ...]  # that of the weight, or one in which an axis of it is two
    axes: Axes  # of this shape, those that one unit spans, in order

    @property
    def layout(self) -> WeightLayout:
        """What is known without the weight's layer: inputs lie along a unit's last axis."""
        return WeightLayout(self.shape, self.axes, max(self.axes, default=None))

    @property
    def counting(self) -> Axes:
        """The axes that count units."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    @property
    def units(self) -> tuple[int, ...]:
        """The shape of one number per unit."""
        return tuple(self.shape[axis] for axis in self.counting)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """The shape of one unit."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def count(self) -> int:
        """The number of units."""
        return math.prod(self.units)

    @property
    def size(self) -> int:
        """The number of entries of a unit."""
        return math.prod(self.unit_shape)

    def rows(self, weight: Array) -> Array:
        """A weight of the view's shape as rows, one unit a row."""
        xp = namespace(weight)
        return xp.reshape(xp.transpose(weight, (*self.counting, *self.axes)), (-1, self.size))

    def weight(self, rows: Array) -> Array:
        """The weight whose rows these are."""
        xp, order = namespace(rows), (*self.counting, *self.axes)
        back = sorted(range(len(order)), key=order.__getitem__)
        return xp.transpose(xp.reshape(rows, (*self.units, *self.unit_shape)), back)


def blocks_of(views: Sequence[View]) -> list[tuple[Block, ...]]:
    """Indices that cut weights into blocks of whole units, in the order of the units.

    A block has one index for each weight. Weights are cut along the first axis that counts more
    than one unit, into blocks of up to `BLOCK` numbers, or of one index of that axis where this is
    more. Weights that are small, or have no such axis in common, are a single block.
    """
    whole: list[tuple[Block, ...]] = [((),) * len(views)]
    if (numbers := sum(math.prod(view.shape) for view in views)) <= BLOCK:
        return whole
    axes = [next((axis for axis in view.counting if view.shape[axis] > 1), None) for view in views]
    lengths = {1 if axis is None else view.shape[axis] for view, axis in zip(views, axes, strict=True)}
    length = lengths.pop()
    if lengths or length == 1:
        return whole
    count = -(-length // max(1, BLOCK * length // numbers))
    ends = [length * i // count for i in range(count + 1)]
    return [tuple((slice(None),) * (axis or 0) + (slice(*cut),) for axis in axes) for cut in pairwise(ends)]


@dataclass(frozen=True)
class WeightLayout:
    """What the axes of one weight are in its layer."""

    shape: tuple[int, ...]
    fan_in: Axes | None = None  # those that one unit of the layer spans, () without fan-in; None: not known
    inputs: int | None = None  # the axis that counts the layer's inputs
    heads: int | None = None  # the axis that counts the heads of an attention
    gates: int = 0  # how many gates lie side by side along the last axis
    window: int = 0  # how many of the first axes are the window of a convolution

    @classmethod
    def guessed(cls, shape: tuple[int, ...]) -> WeightLayout:
        """That of a weight without a layer: units on the last axis, inputs on the one before."""
        return cls(shape, None, max(0, len(shape) - 2) if shape else None)

    def units_of(self, kind: str) -> View | None:
        """The weight in units of "inputs", "heads" or "gates"; None where it has none of these.

        A unit spans all axes but the one that counts them.
        """
        shape, axis = self.shape, self.inputs if kind == "inputs" else self.heads
        if kind == "gates":
            if not self.gates or not shape or shape[-1] % self.gates:
                return None
            *others, last = shape
            shape, axis = (*others, self.gates, last // self.gates), len(others)
        return None if axis is None else View(shape, tuple(i for i in range(len(shape)) if i != axis % len(shape)))
