"""Sets of a whole matrix, and those of them that linear algebra without a spectrum projects on.

The units of a weight are the rows of one matrix (units, size), or of a stack of matrices, one block of units after the
other: the heads of an attention, the gates of a recurrent layer.
"""

from __future__ import annotations

import numbers
from abc import abstractmethod
from typing import Any, ClassVar

from inbounds._arrays import Array, namespace
from inbounds._errors import SetError, explain
from inbounds._set import Set
from inbounds._units import Axes, Units


class MatrixSet(Set):
    """A set of the matrix that the units of a weight make, or of each matrix of a stack.

    Attributes:
        stack: how many matrices the units make, one block of units after the other.
        square: whether a matrix has as many rows as columns.
    """

    whole: ClassVar[bool] = True
    holds_frozen: ClassVar[bool] = False
    square: ClassVar[bool] = False
    stack: int = 1

    @abstractmethod
    def _nearest(self, matrices: Array, units: Units) -> tuple[Array, Array]:
        """The nearest matrices, and for each, of shape (stack,), whether it is outside by more than the tolerance.

        Args:
            matrices: finite, of shape (stack, rows, columns).
            units: what they were made of: for the weight's dtype, and whether a derivative may be asked for.
        """

    @abstractmethod
    def _excess_of_matrices(self, matrices: Array) -> Array:
        """`_excess`, for each matrix of a stack."""

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        if len(shape) < 2 or fan_in == ():
            raise SetError(
                explain(
                    f"{type(self).__name__} is a set of matrices, which take a weight with units and a fan-in",
                    f"a weight of shape {shape}",
                    where=repr(self),
                    instead="a rule for kernels, such as '**/kernel'",
                )
            )
        return fan_in or tuple(range(len(shape) - 1))

    def check_fit(self, units: Units) -> None:
        super().check_fit(units)
        if units.count % self.stack:
            raise SetError(
                explain(
                    "`stack` divides the number of units: each matrix has as many",
                    f"stack={self.stack}",
                    where=f"{self!r} on {units.count} units of {units.size} entries",
                    instead="stack=1, or the number of heads or gates",
                )
            )
        if self.square and units.count // self.stack != units.size:
            raise SetError(
                explain(
                    f"{type(self).__name__} is a set of square matrices: as many units as entries of a unit",
                    f"{self.stack} of {units.count // self.stack} units by {units.size} entries",
                    where=repr(self),
                    instead="a square weight, or `stack` for several square ones side by side",
                )
            )

    def counted(self, units: int) -> int:
        return self.stack

    def _project(self, units: Units) -> Units:
        rows = units.rows()
        xp = namespace(rows)
        matrices = xp.reshape(rows, (self.stack, -1, units.size))
        finite = xp.all(xp.isfinite(matrices), axis=(1, 2))
        held = xp.reshape(finite, (-1, 1, 1))
        nearest, outside = self._nearest(xp.where(held, matrices, xp.zeros_like(matrices)), units)
        moved = xp.reshape(outside, (-1, 1, 1)) & held
        return units.with_rows(xp.reshape(xp.where(moved, nearest, matrices), tuple(rows.shape)))

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        matrices = namespace(rows).reshape(rows, (self.stack, -1, rows.shape[1]))
        return self._excess_of_matrices(matrices)


def stack_of(owner: str, value: Any) -> int:
    """A positive integer: how many matrices a weight's units make.

    Raises:
        SetError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SetError(
            explain(
                f"`stack` of {owner} is a positive integer: how many matrices a weight's units make",
                f"stack={value!r}",
                instead=f"{owner}(..., stack=4) for the gates of an LSTM",
            )
        )
    return int(value)
