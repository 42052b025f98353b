"""Groups of entries, by labels or by a name, and Equal, the units whose groups share values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import Array, cast, constant, namespace
from inbounds._arrays.units import Units
from inbounds._arrays.views import WeightLayout
from inbounds._errors import SetError
from inbounds._sets.arguments import axes, number_or_array, refused
from inbounds._sets.set import Set, finite_rows, registered
from inbounds._types import Axis, Numbers

WINDOWS = ("symmetric", "radial")  # the groups of a window that have a name
MATRICES = ("toeplitz", "circulant")  # the groups of a matrix that have a name


@dataclass(frozen=True)
class Groups:
    """Groups of the entries of a unit."""

    labels: np.ndarray[Any, Any]  # of each entry the index of its group
    table: np.ndarray[Any, Any]  # of each group the entries, of shape (groups, most); a shorter one repeats its first
    present: np.ndarray[Any, Any]  # where the table doesn't repeat

    def gathered(self, rows: Array) -> Array:
        """Rows by their groups, of shape (units, groups, most), with 0 where the table repeats."""
        xp = namespace(rows)
        entries = xp.take(rows, self.table.reshape(-1), axis=1)
        return xp.reshape(entries, (-1, *self.table.shape)) * constant(rows, self.present)

    def spread(self, values: Array) -> Array:
        """One number for each group of each unit as one for each entry."""
        return namespace(values).take(values, self.labels, axis=1)


def unit_shape_of(units: Units) -> tuple[int, ...]:
    """The shape of one unit; of one that several weights form, its size."""
    if len(units.parts) > units.beside:
        return (units.size,)
    return tuple(units.parts[0].shape[axis] for axis in units.axes[0])


def groups_of(owner: str, given: Any, shape: tuple[int, ...]) -> Groups:
    """The groups of units, or of a matrix, of this shape, for the set `owner`.

    They are given as a name or as labels. Labels have the unit's size, a shape that broadcasts to
    the unit's, or the shape of its first axes. In the last case entries that differ in a further
    axis are in different groups.
    """
    if isinstance(given, str):
        if given in MATRICES and (len(shape) != 2 or (given == "circulant" and shape[0] != shape[1])):
            wrong = f"{owner}({given!r}) is for a {'square ' * (given == 'circulant')}matrix"
            where = f"entries of shape {shape}"
            raise SetError(wrong, f"groups={given!r}", where=where, instead="an `axis` of two axes, or labels")
        given = labels_of(given, shape)
    size, ahead = int(np.prod(shape)), shape[: given.ndim]
    if given.ndim == len(shape) > 1 and all(n in (1, most) for n, most in zip(given.shape, shape, strict=True)):
        given = np.broadcast_to(given, shape)
    if given.shape not in (ahead, (size,)):
        wrong = "`groups` don't fit the units: one label for each entry, or each of the first axes"
        where = f"{owner} on units of {size} entries, of shape {shape}"
        raise SetError(wrong, f"groups.shape={given.shape}", where=where, instead=f"an array of shape {shape}")
    return _by_labels(given.tobytes(), size)


@lru_cache(maxsize=64)
def labels_of(name: str, window: tuple[int, ...]) -> Any:
    """The labels that a name means for a window, or a matrix, of some shape."""
    if name in MATRICES:
        diagonals = np.subtract.outer(*map(np.arange, window)).astype("float64")
        return diagonals % window[0] if name == "circulant" else diagonals
    from_middle = [np.abs(2 * place - (n - 1)) for place, n in zip(np.indices(window), window, strict=True)]
    if name == "radial":
        return np.sum(np.square(from_middle), axis=0).astype("float64")
    return np.ravel_multi_index(from_middle, window).astype("float64")


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


@registered
class Equal(Set):
    """{w : w_i = w_j for all i and j of a group}, each unit: entries that share one value.

    Convolutions that don't know left from right or any direction, weights that are tied. A group
    becomes its mean, in a metric the weighted one.

    Args:
        groups: labels, as an array of the unit's own shape or one with a label for each entry:
            entries with equal labels are a group. An array of the shape of a window is for each
            channel by itself. Or a name for the window of a convolution: "symmetric", places that
            mirror each other along any axis of the window; "radial", places at the same distance
            from its centre. For a unit of one axis both are its entries and their mirror images. Or
            a name for the matrix whose rows are the units: "toeplitz", equal along each diagonal;
            "circulant", for a square one, the same with diagonals that go on at the other side.
        axis: see `MaxNorm`. With all axes of a weight its entries are one unit. With a name for
            matrices, their two axes; each index of the other axes has a matrix of its own.

    Raises:
        SetError: `groups` is neither; once the weight is known, its shape isn't that of its units,
            or, of a name for matrices, not that of a matrix.

    Weights of several layers share values by `Tied`, or by `Together(Equal(labels))`, with the
    labels of the weights one after the other.

    Cost: two copies of the weight by group, and four passes over one. A group all of whose entries
    are equal stays bit for bit, and so does a unit with NaN or infinities, which is violated. The
    violation is the largest difference of an entry from the first of its group. A zero unit is
    inside.

    Source: Cohen and Welling, "Group equivariant convolutional networks", 2016, for weights that
    symmetries share; the mean is the projection on a subspace.

    >>> Equal([0, 1, 0]).project([[1.0, 5.0, 2.0]])
    array([[1.5, 5. , 1.5]])
    """

    exact_in_metric = True

    def __init__(
        self, groups: Numbers | Literal["symmetric", "radial", "toeplitz", "circulant"], axis: Axis = None
    ) -> None:
        named = isinstance(groups, str)
        self.groups: Any = groups if named else number_or_array("Equal", "groups", groups)
        self.axis = axes("Equal", axis)
        if isinstance(self.groups, float) or (named and groups not in WINDOWS + MATRICES):
            wrong = f"is not an array of labels, or one of {', '.join(WINDOWS + MATRICES)}"
            instead = 'Equal("symmetric") for a convolution, or Equal([0, 1, 0])'
            raise refused("Equal", "groups", groups, wrong, instead)

    @property
    def whole(self) -> bool:  # type: ignore[override]  # of the arguments, not of the class
        return isinstance(self.groups, str) and self.groups in MATRICES and self.axis is None

    @property
    def matrix(self) -> bool:  # type: ignore[override]  # likewise
        return self.whole

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        """With the labels of a name, for a kernel's window, which is all axes but the last two."""
        window = layouts[0].shape[:-2] if isinstance(self.groups, str) and self.groups in WINDOWS else ()
        return Equal(labels_of(self.groups, window), self.axis) if window else self

    def check_fit(self, units: Units) -> None:
        self._groups((units.count, units.size) if self.whole else unit_shape_of(units))

    def reduced(self, units: Units, gradient: Units) -> Units:
        return self._project(gradient.costing(None))

    def _groups(self, shape: tuple[int, ...]) -> Groups:
        return groups_of("Equal", self.groups, shape)

    def _flat(self, rows: Array) -> Array:
        """The rows of a matrix as one row; units as they are."""
        return namespace(rows).reshape(rows, (1, -1)) if self.whole else rows

    def _project(self, units: Units) -> Units:
        laid, mask, costs = units.rows(), units.mask_rows(), units.metric_rows()
        xp, rows = namespace(laid), self._flat(laid)
        groups = self._groups(tuple(laid.shape) if self.whole else unit_shape_of(units))
        mask, costs = (given if given is None else self._flat(given) for given in (mask, costs))
        finite, known = finite_rows(rows, mask)
        if costs is None and mask is None:
            share = constant(rows, groups.present[None])
        else:
            share = xp.ones_like(rows) if costs is None else costs
            share = groups.gathered(share if mask is None else xp.where(mask, share, xp.zeros_like(share)))
        entries = groups.gathered(known)
        total = xp.sum(share, axis=2, keepdims=True)
        mean = xp.sum(entries * (share / xp.where(total > 0, total, 1)), axis=2)
        high = xp.max(xp.where(share > 0, entries, -np.inf), axis=2)
        low = xp.min(xp.where(share > 0, entries, np.inf), axis=2)
        between = xp.minimum(xp.maximum(mean, low), high)  # of equal entries, that entry
        new = xp.where(finite, groups.spread(between), rows)
        return units.with_rows(xp.reshape(new, tuple(laid.shape)))

    def _excess(self, rows: Array, unit_shape: tuple[int, ...]) -> Array:
        groups, rows = self._groups(tuple(rows.shape) if self.whole else unit_shape), self._flat(rows)
        xp = namespace(rows)
        return xp.max(xp.abs(rows - xp.take(rows, groups.table[groups.labels, 0], axis=1)), axis=1)

    def _hidden(self, rows: Array, mask: np.ndarray[Any, Any], laid: Laid) -> Array:
        """Entries outside of the mask as the first marked one of their group."""
        xp, shape = namespace(rows), tuple(rows.shape)
        groups, rows, mask = self._groups(shape if self.whole else laid.unit_shape), self._flat(rows), self._flat(mask)
        place = np.arange(mask.shape[1])
        marked = np.where(mask, place, len(place) - 1)[:, groups.table].min(axis=2)[:, groups.labels]
        source = np.where(mask, place, marked)
        source = source if xp is np else constant(cast(rows[:1], "int32"), source)
        return xp.reshape(xp.take_along_axis(rows, source, axis=1), shape)
