"""Sets of other units than a layer's own: what `a.per(kind)` makes.

A kind of units is a name for the axes of a weight that one unit spans, which the layout of the
layer knows. The set in a `Per` sees the same weight along those axes, as a view: so one class
serves every set and every kind, and sets with different units can meet in an intersection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes, View, WeightLayout
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import refused
from inbounds._sets.composite import Composite, Seen, Wrapped, asks_for_center, bracketed, contains, parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.equal import Equal
from inbounds._sets.joint import JointSet
from inbounds._sets.matrices import MatrixSet, Symmetric
from inbounds._sets.set import Set, registered, with_argument
from inbounds._types import Kind

KINDS: tuple[Kind, ...] = ("units", "inputs", "weight", "heads", "gates", "window")


@registered
class Per(Wrapped):
    """{w : each unit of another kind is in a set}: what `a.per(kind)` makes.

    The layout of the layer knows which axes of a weight a unit of each kind spans:

    - "units": the layer's output units, as without `per`.
    - "inputs": a unit is all that comes from one input feature, channel or token.
    - "weight": the whole weight is one unit.
    - "heads": a unit is one head of an attention.
    - "gates": a unit is one gate of an LSTM, a GRU or a ConvLSTM, with all of its columns.
    - "window": a unit is the window of a convolution, of one channel and one filter.

    Of a set of matrices, each head or gate is a matrix of the layer's units, as with `stack`; a
    window is a matrix for `Symmetric`.

    Args:
        set: of vectors, entries or matrices, without an axis.
        kind: one of the six. On rows, without a layer, units are rows and inputs are columns.

    Raises:
        SetError: the kind is none of these, or the set has an axis, is a callable or a Joint, or is
            one of a whole weight (`FrobeniusNorm`, `GroupL1Ball`), whose units make no difference;
            when the plan is made, a weight has no inputs, heads, gates or window, or the window
            isn't square for `Symmetric`.

    Cost: that of the set. A view copies nothing.

    Source: the projection on a product of sets is that on each of them, whichever entries it has.

    >>> from inbounds import MaxNorm
    >>> MaxNorm(1).per("inputs").project([[3.0, 0.3], [4.0, 0.4]])
    array([[0.6, 0.3],
           [0.8, 0.4]])
    """

    whole: ClassVar[bool] = True
    matrix: ClassVar[bool] = False
    passes_on = ("Where", "On", "Scaled")
    couples_units = True
    has_normal_form = False
    axis = None
    views: tuple[View, ...] = ()  # of each weight how it is seen; empty where the weights are not known
    spanning: Set  # the set whose own units are seen where the kind is "units"
    implied = False  # whether only an intersection of sets with different units made it: it is neither shown nor saved

    def __init__(self, set: Set, kind: Kind) -> None:  # noqa: A002  # the word of the library
        code = "MaxNorm(1.0).per('inputs')"
        if not isinstance(kind, str) or kind not in KINDS:
            wrong = f"is not {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}"
            raise refused("per", "kind", kind, wrong, code, where=f"{set!r}.per(...)")
        parts = list(parts_of(set)) if isinstance(set, Set) else []
        if not parts or contains(set, (JointSet, Custom, Per)):
            wrong = "`per` is given no set, or a callable, or one that has its units"
            raise SetError(wrong, f"{set!r}.per({kind!r})", instead=code)
        if any(part.axis is not None for part in parts):
            wrong = "A set has an `axis`, and so its units: they can't be given by `per` too"
            raise SetError(wrong, f"{set!r}.per({kind!r})", instead="one of the two")
        if any(part.whole and not part.matrix for part in parts) or _stacked(parts):
            wrong = "`per` is given a set of a whole weight, or a stack of matrices, which has no other units"
            raise SetError(wrong, f"{set!r}.per({kind!r})", instead=f"MaxNorm(1.0).per({kind!r})")
        self.kind, self.spanning = kind, set
        self.members = (set,)

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        if self.views:
            return self
        views = tuple(self._view(layout) for layout in layouts)
        counts = [view.count for view in views]
        if len(set(counts)) > 1:
            wrong = f"Weights have different numbers of {self.kind}, and so no units together"
            where = f"{self!r} on weights of shape {' and '.join(str(one.shape) for one in layouts)}"
            raise SetError(wrong, " and ".join(map(str, counts)), where=where, instead="a set for each weight")
        if asks_for_center(self.set) and any(view.shape != one.shape for view, one in zip(views, layouts, strict=True)):
            wrong = 'The centre "current" is not known by gates'
            raise SetError(wrong, repr(self), instead=f"an array of shape {views[0].shape} as `center`")
        pairs = zip(views, layouts, strict=True)
        inner = self.set.laid_out([_seen_layout(view, layout) for view, layout in pairs])
        if self.set.matrix and self.kind in ("heads", "gates", "inputs"):
            inner = _with_stack(inner, views[0].units[0])
        if self.kind == "window":
            inner = _of_window(inner, views[0].unit_shape)
        return self._with(members=(inner,), views=views)

    def _view(self, layout: WeightLayout) -> View:
        """How the set in it sees a weight."""
        if self.kind == "weight" and not self.set.matrix:
            return View(layout.shape, tuple(range(len(layout.shape))))
        if self.kind in ("units", "weight"):
            return View(layout.shape, tuple(sorted(self.spanning.span(layout.shape, layout.fan_in))))
        if self.kind == "window" and layout.window:
            return View(layout.shape, tuple(range(layout.window)))
        if layout == WeightLayout.guessed(layout.shape[:1]):  # a vector without a layer is one unit
            layout = replace(layout, inputs=None)
        if self.kind == "window" or (view := layout.units_of(self.kind)) is None:
            known = [kind for kind in ("heads", "gates", "inputs") if layout.units_of(kind)]
            wrong = f"The layer's layout knows no {self.kind} of this weight"
            instead = f"per({(known or ['weight'])[0]!r}), or an `axis` in the set"
            raise SetError(wrong, repr(self), where=f"a weight of shape {layout.shape}", instead=instead)
        if not self.set.matrix:
            return view
        (axis,) = view.counting
        view = View(view.shape, tuple(one for one in layout.fan_in or () if one != axis))
        if not view.axes or view.counting[0] != axis:
            wrong = f"The {self.kind} of this weight are no matrices of the layer's units, one after the other"
            where = f"a weight of shape {layout.shape}"
            raise SetError(wrong, repr(self), where=where, instead=f"{self.set!r}, for the whole weight")
        return view

    @property
    def key(self) -> Any:
        """What is equal of sets with the same units."""
        own = self.spanning
        of_whole = own.whole and not own.matrix
        return ("weight", False, None) if of_whole else (self.kind, own.matrix, own.axis)

    def count(self, laid: Laid) -> int:
        """How many units a report has of these weights."""
        inner, (seen,) = self.inside(laid)
        return inner.reported_units(seen.rows.shape[0])

    def reported_units(self, units: int) -> int:
        return self.set.reported_units(self.views[0].count) if self.views else 1

    def layer_span(self, shape: tuple[int, ...], fan_in: Axes | None = None) -> Axes:
        return tuple(range(len(shape)))

    def _project(self, units: Units) -> Units:
        inner, (seen,) = self.inside(units)
        return inner.nearest(seen.comparable(inner.couples_units)).unseen(units)

    def inside(self, *given: Seen) -> tuple[Set, list[Seen]]:
        own: Any = self if self.views else self.laid_out([view.layout for view in given[0].views])
        return own.set, [one.seen(own.views) for one in given]

    def __repr__(self) -> str:
        return repr(self.set) if self.implied else f"{bracketed(self.set)}.per({self.kind!r})"


def by_units(sets: Sequence[Set]) -> list[Set]:
    """The members of an intersection: where units differ, each with its own; else as they are.

    A set that looks at each entry by itself has the units of the first that doesn't.
    """
    axes = {given.axis for given in sets if given.axis is not None}
    if len(axes) < 2 and not any(contains(given, (Per,)) for given in sets):
        return list(sets)
    for given in sets:
        if contains(given, (Per,)) and not isinstance(given, Per):
            wrong = "A set whose units are those of `per` is in another one, and meets a third"
            raise SetError(wrong, shown(given), where=repr(list(sets)), instead="a.where(mask).per('inputs') & b")
    first = next((given for given in sets if not given.separable), sets[0])
    return [given if isinstance(given, Per) else _implied(given, first if given.separable else given) for given in sets]


def _implied(given: Set, other: Set) -> Per:
    """A set as a member of an intersection, with the units of another or with its own."""
    made = object.__new__(Per)  # without `__init__`, which takes no set with an axis
    kind, spanning = (other.kind, other.spanning) if isinstance(other, Per) else ("units", other)
    made.__dict__.update(members=(given,), kind=kind, spanning=spanning, implied=True)
    return made


def of_axes(given: Set, shapes: Sequence[tuple[int, ...]]) -> tuple[Set, tuple[Axes, ...]] | None:
    """A set whose units are those of `per`, as the set in it and axes of the weights.

    None where axes of the weights don't tell its units.
    """
    if isinstance(given, JointSet):
        inner = of_axes(given.inner, shapes)
        return inner and (given.rebuilt([inner[0]]), inner[1])
    if not isinstance(given, Per) or any(view.shape != shape for view, shape in zip(given.views, shapes, strict=True)):
        return None
    return given.set, tuple(view.axes for view in given.views)


def views_of(given: Set) -> list[View]:
    """How a set sees weights, each view once; empty for a set whose units are those of an entry."""
    return list(dict.fromkeys(view for part in parts_of(given) if isinstance(part, Per) for view in part.views))


def _stacked(parts: Sequence[Set]) -> bool:
    return any(isinstance(part, MatrixSet) and part.stack > 1 for part in parts)


def _seen_layout(view: View, layout: WeightLayout) -> WeightLayout:
    """What the axes of a view are; those that count gates and heads are alike."""
    if view.shape == layout.shape:
        return layout
    return replace(layout, shape=view.shape, heads=len(view.shape) - 2, gates=0)


def _with_stack(given: Set, count: int) -> Set:
    """A set with so many matrices side by side."""
    if isinstance(given, Composite):
        return given.changed(lambda member: _with_stack(member, count))
    return with_argument(given, "stack", count) if isinstance(given, MatrixSet) else given


def _of_window(given: Set, window: tuple[int, ...]) -> Set:
    """A set for the windows of a convolution, of which a symmetric one has equal entries."""
    if isinstance(given, Composite):
        return given.changed(lambda member: _of_window(member, window))
    if not given.matrix:
        return given
    if not isinstance(given, Symmetric) or len(window) != 2 or window[0] != window[1]:
        raise SetError(
            "The window of a convolution is no matrix, but for Symmetric a square one",
            f"{given!r}.per('window')",
            where=f"a window of shape {window}",
            instead="Symmetric().per('window') for a window such as (3, 3)",
        )
    labels = np.arange(window[0] ** 2).reshape(window)
    return Equal(np.minimum(labels, labels.T))
