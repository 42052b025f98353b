"""The set of units in which entries share values: Equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from inbounds._arrays.ops import SMALLEST_NORMAL, Array, cast, constant, namespace, working_dtype
from inbounds._arrays.units import Units
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import axes, number_or_array
from inbounds._sets.groups import NAMES, groups_of, labels_of, span_of
from inbounds._sets.set import Set, registered
from inbounds._types import Axis, Numbers


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
            from its centre. For a unit of one axis both are its entries and their mirror images.
        axis: see `MaxNorm`. With all axes of a weight its entries are one unit, so that labels
            i - j make Toeplitz matrices, and (i - j) % n circulant ones.

    Raises:
        SetError: `groups` is neither; once the weight is known, its shape isn't that of its units.

    Weights of several layers share values by `Together(Equal(labels))`, with the labels of the
    weights one after the other.

    Cost: two copies of the weight by group, and four passes over one. A group all of whose entries
    are equal stays bit for bit, and so does a unit with NaN or infinities, which is violated. The
    violation is the largest difference of an entry from the first of its group. A zero unit is
    inside.

    Source: Cohen and Welling, "Group equivariant convolutional networks", 2016, for weights that
    symmetries share; the mean is the projection on a subspace.

    >>> Equal([0, 1, 0]).project([[1.0, 5.0, 2.0]])
    array([[1.5, 5. , 1.5]])
    """

    exact_in_metric: ClassVar[bool] = True
    allows_frozen: ClassVar[bool] = False

    def __init__(self, groups: Numbers | Literal["symmetric", "radial"], axis: Axis = None) -> None:
        named = isinstance(groups, str)
        self.groups: Any = groups if named else number_or_array("Equal", "groups", groups)
        self.axis = axes("Equal", axis)
        if isinstance(self.groups, float) or (named and groups not in NAMES):
            raise SetError(
                '`groups` of Equal is not an array of labels, "symmetric" or "radial"',
                f"groups={shown(groups)}",
                instead='Equal("symmetric") for a convolution, or Equal([0, 1, 0])',
            )

    def resolved(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int | None]) -> Set:
        """With the labels of a name, for the window of a convolution's kernel: all axes but its last two."""
        window = shapes[0][:-2]
        return Equal(labels_of(self.groups, window), self.axis) if isinstance(self.groups, str) and window else self

    def __call__(self, w: Any) -> Array:
        own = self.resolved([np.shape(w)], [None])
        return super().__call__(w) if own is self else own(w)

    def check_fit(self, units: Units) -> None:
        groups_of("Equal", self.groups, span_of(units))

    def reduced(self, units: Units, gradient: Units) -> Units:
        return self._project(gradient.costing(None))

    def _project(self, units: Units) -> Units:
        rows, mask, costs = units.rows(), units.mask_rows(), units.metric_rows()
        xp, groups = namespace(rows), groups_of("Equal", self.groups, span_of(units))
        good = xp.isfinite(rows)
        finite = xp.all(good if mask is None else good | ~mask, axis=1, keepdims=True)
        share = xp.ones_like(rows) if costs is None else costs
        share = share if mask is None else xp.where(mask, share, xp.zeros_like(share))
        share = groups.gathered(share) * constant(rows, groups.present)
        entries = groups.gathered(xp.where(finite & good, rows, xp.zeros_like(rows)))
        total = xp.sum(share, axis=2, keepdims=True)
        mean = xp.sum(entries * (share / xp.where(total > 0, total, 1)), axis=2)
        high = xp.max(xp.where(share > 0, entries, -np.inf), axis=2)
        low = xp.min(xp.where(share > 0, entries, np.inf), axis=2)
        moved = groups.spread(xp.where(high > low, xp.ones_like(mean), xp.zeros_like(mean))) > 0
        return units.with_rows(xp.where(moved & finite, groups.spread(mean), rows))

    def _excess(self, rows: Array, span: tuple[int, ...]) -> Array:
        xp = namespace(rows)
        first = xp.take(rows, groups_of("Equal", self.groups, span).first, axis=1)
        return xp.max(xp.abs(rows - first), axis=1)

    def _tolerance(self, dtype: str, size: int = 1) -> float:
        return SMALLEST_NORMAL[working_dtype(dtype)]

    def _hidden(self, rows: Array, mask: np.ndarray[Any, Any], span: tuple[int, ...]) -> Array:
        """Entries outside of the mask as the first marked one of their group."""
        groups, place = groups_of("Equal", self.groups, span), np.arange(mask.shape[1])
        marked = np.where(mask, place, len(place) - 1)[:, groups.table].min(axis=2)[:, groups.labels]
        source = np.where(mask, place, marked)
        source = source if namespace(rows) is np else constant(cast(rows[:1], "int32"), source)
        return namespace(rows).take_along_axis(rows, source, axis=1)
