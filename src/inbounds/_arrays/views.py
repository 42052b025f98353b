"""Ways to look at a weight: which of its entries make one unit."""

from __future__ import annotations

from dataclasses import dataclass

Axes = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A weight as a set sees it.

    Attributes:
        shape: that of the weight, or one in which an axis of it is two.
        axes: of this shape, those that one unit spans, in order.
    """

    shape: tuple[int, ...]
    axes: Axes


@dataclass(frozen=True)
class WeightLayout:
    """What the axes of one weight are in its layer.

    Attributes:
        shape: of the weight.
        fan_in: the axes that one unit of the layer spans, () where the weight has no fan-in; None
            where they are not known.
        inputs: the axis that counts the layer's inputs; None where there is none.
        heads: the axis that counts the heads of an attention; None where there is none.
        gates: how many gates lie side by side along the last axis; 0 without gates.
        window: how many of the first axes are the window of a convolution; 0 without one.
    """

    shape: tuple[int, ...]
    fan_in: Axes | None = None
    inputs: int | None = None
    heads: int | None = None
    gates: int = 0
    window: int = 0

    @classmethod
    def guessed(cls, shape: tuple[int, ...]) -> WeightLayout:
        """That of a weight without a layer: units on the last axis, inputs on the one before."""
        return cls(shape, None if len(shape) > 1 else (), max(0, len(shape) - 2) if len(shape) > 1 else None)

    def counted(self, kind: str) -> tuple[tuple[int, ...], int] | None:
        """The shape in which one axis counts the "inputs", "heads" or "gates", and that axis; None without any."""
        if kind == "gates":
            if not self.gates or not self.shape or self.shape[-1] % self.gates:
                return None
            *others, last = self.shape
            return (*others, self.gates, last // self.gates), len(others)
        axis = self.inputs if kind == "inputs" else self.heads
        return None if axis is None else (self.shape, axis % len(self.shape))
