"""Groups of the entries of a unit, by labels: those of an array, or of a name for a window or a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from inbounds._arrays.ops import Array, constant, namespace
from inbounds._arrays.units import Units
from inbounds._errors import SetError

WINDOWS = ("symmetric", "radial")  # the groups of a window that have a name
MATRICES = ("toeplitz", "circulant")  # the groups of a matrix that have a name


@dataclass(frozen=True)
class Groups:
    """Groups of the entries of a unit."""

    labels: np.ndarray[Any, Any]  # of each entry the index of its group
    table: np.ndarray[Any, Any]  # of each group the entries, of shape (groups, most); a shorter one repeats its first
    present: np.ndarray[Any, Any]  # where the table doesn't repeat

    def gathered(self, rows: Array) -> Array:
        """Rows of entries by their groups, of shape (units, groups, most), with 0 for the repeated ones."""
        xp = namespace(rows)
        entries = xp.take(rows, self.table.reshape(-1), axis=1)
        return xp.reshape(entries, (-1, *self.table.shape)) * constant(rows, self.present)

    def spread(self, values: Array) -> Array:
        """One number for each group of each unit as one for each entry."""
        return namespace(values).take(values, self.labels, axis=1)


def span_of(units: Units) -> tuple[int, ...]:
    """The shape of one unit; of one that several weights form, its size."""
    if len(units.parts) > units.beside:
        return (units.size,)
    return tuple(units.parts[0].shape[axis] for axis in units.axes[0])


def groups_of(owner: str, given: Any, span: tuple[int, ...]) -> Groups:
    """The groups of units, or of a matrix, of the shape `span`, for the set `owner`.

    They are given as a name; or as labels of the unit's size, of a shape that broadcasts to the
    unit's, or of its first axes, where entries that differ in a further one are in different groups.
    """
    if isinstance(given, str):
        if given in MATRICES and (len(span) != 2 or (given == "circulant" and span[0] != span[1])):
            wrong = f"{owner}({given!r}) is for a {'square ' * (given == 'circulant')}matrix"
            where = f"entries of shape {span}"
            raise SetError(wrong, f"groups={given!r}", where=where, instead="an `axis` of two axes, or labels")
        return _named(given, span)
    size, ahead = int(np.prod(span)), span[: given.ndim]
    if given.ndim == len(span) > 1 and all(n in (1, most) for n, most in zip(given.shape, span, strict=True)):
        given = np.broadcast_to(given, span)
    if given.shape not in (ahead, (size,)):
        wrong = "`groups` don't fit the units: one label for each entry, or each of the first axes"
        where = f"{owner} on units of {size} entries, of shape {span}"
        raise SetError(wrong, f"groups.shape={given.shape}", where=where, instead=f"an array of shape {span}")
    return _by_labels(given.tobytes(), size)


def labels_of(name: str, window: tuple[int, ...]) -> Any:
    """The labels that a name means for a window, or a matrix, of some shape."""
    if name in MATRICES:
        diagonals = np.subtract.outer(*map(np.arange, window)).astype("float64")
        return diagonals % window[0] if name == "circulant" else diagonals
    from_middle = [np.abs(2 * place - (n - 1)) for place, n in zip(np.indices(window), window, strict=True)]
    if name == "radial":
        return np.sum(np.square(from_middle), axis=0).astype("float64")
    return np.ravel_multi_index(from_middle, window).astype("float64")


@lru_cache(maxsize=64)
def _named(name: str, span: tuple[int, ...]) -> Groups:
    return _by_labels(labels_of(name, span).tobytes(), int(np.prod(span)))


@lru_cache(maxsize=64)  # PyTorch asks in each step
def _by_labels(given: bytes, size: int) -> Groups:
    window = np.unique(np.frombuffer(given), return_inverse=True)[1].reshape(-1, 1)
    further = size // len(window)
    labels = (window * further + np.arange(further)).reshape(-1)
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    starts = np.cumsum(counts) - counts
    table = np.repeat(order[starts][:, None], counts.max(), axis=1)
    table[labels[order], np.arange(size) - starts[labels[order]]] = order
    present = np.arange(counts.max()) < counts[:, None]
    return Groups(labels.astype("int32"), table.astype("int32"), present.astype("float64"))
