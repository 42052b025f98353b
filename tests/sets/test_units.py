"""Units: the same projection over any axes of any weights as over rows laid out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inbounds as ib
import repetition
from inbounds._arrays.units import Units
from sets.tensors import BACKEND, LIBRARIES, array, exact, numbers, same_bits

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the units lie: for each part its shape and the axes that one unit spans."""

    shapes: tuple[Shape, ...]
    axes: tuple[Shape, ...]

    def spans(self) -> list[Shape]:
        """For each part the axes of a unit, in order and not negative."""
        return [
            tuple(sorted(axis % len(shape) for axis in span))
            for shape, span in zip(self.shapes, self.axes, strict=True)
        ]

    def size(self) -> int:
        return sum(math.prod(s[a] for a in span) for s, span in zip(self.shapes, self.spans(), strict=True))

    def rows(self, parts: Any) -> Any:
        """The units as rows: a copy of each part, its units' axes first, side by side."""
        laid = []
        for part, span in zip(parts, self.spans(), strict=True):
            counting = [axis for axis in range(part.ndim) if axis not in span]
            laid.append(part.transpose(*counting, *span).reshape(-1, math.prod(part.shape[a] for a in span)))
        return np.concatenate(laid, axis=1)

    def parts(self, rows: Any) -> list[Any]:
        """The way back from rows."""
        parts, start = [], 0
        for shape, span in zip(self.shapes, self.spans(), strict=True):
            counting = [axis for axis in range(len(shape)) if axis not in span]
            order = [*counting, *span]
            width = math.prod(shape[a] for a in span)
            piece = rows[:, start : start + width].reshape([shape[a] for a in order])
            parts.append(piece.transpose(*np.argsort(order)))
            start += width
        return parts

    def draw(self, seed: int = 0) -> list[Any]:
        """Parts whose units have norms between about 0.1 and 10, and one unit of zeros."""
        rng = np.random.default_rng(seed)
        units = math.prod(n for axis, n in enumerate(self.shapes[0]) if axis not in self.spans()[0])
        rows = rng.standard_normal((units, self.size())) / np.sqrt(self.size()) * 10 ** rng.uniform(-1, 1, (units, 1))
        rows[units // 2] *= units == 1
        return self.parts(rows)


LAYOUTS = {
    "dense": Layout(((5, 4),), ((0,),)),
    "dense-negative": Layout(((5, 4),), ((-2,),)),
    "embedding": Layout(((7, 4),), ((1,),)),
    "conv1d": Layout(((3, 4, 6),), ((0, 1),)),
    "conv2d": Layout(((3, 2, 4, 6),), ((0, 1, 2),)),
    "conv2d-unordered": Layout(((3, 2, 4, 6),), ((2, 0, 1),)),
    "conv2d-transpose": Layout(((3, 2, 6, 4),), ((0, 1, 3),)),
    "depthwise": Layout(((3, 2, 4, 2),), ((0, 1),)),
    "conv3d": Layout(((2, 3, 2, 2, 3),), ((0, 1, 2, 3),)),
    "attention-query": Layout(((5, 2, 3),), ((0,),)),
    "attention-output": Layout(((2, 3, 5),), ((0, 1),)),
    "middle": Layout(((4, 5, 3),), ((1,),)),
    "whole": Layout(((4, 5),), ((0, 1),)),
    "bias-as-one": Layout(((6,),), ((0,),)),
    "scales": Layout(((6,),), ((),)),
    "dense+bias": Layout(((5, 4), (4,)), ((0,), ())),
    "bias+dense": Layout(((4,), (5, 4)), ((), (0,))),
    "conv2d+bias": Layout(((3, 2, 4, 6), (6,)), ((0, 1, 2), ())),
    "transposed+bias": Layout(((4, 5), (4,)), ((-1,), ())),
    "attention+bias": Layout(((5, 2, 3), (2, 3)), ((0,), ())),
    "attention+flat-bias": Layout(((5, 2, 3), (6,)), ((0,), ())),
    "output+bias": Layout(((2, 3, 5), (5,)), ((0, 1), ())),
    "lstm": Layout(((3, 8), (2, 8), (8,)), ((0,), (0,), ())),
    "gru-two-biases": Layout(((3, 6), (2, 6), (2, 6)), ((0,), (0,), (0,))),
    "separable": Layout(((3, 3, 4), (2, 4), (4,)), ((0, 1), (0,), ())),
    "rows+columns": Layout(((4, 5), (3, 4)), ((1,), (0,))),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
every_library = pytest.mark.parametrize(("dtype", "library"), [("float64", "numpy"), ("float32", BACKEND)])

VECTOR_SETS = {
    "NonNeg": ib.NonNeg(),
    "Box": ib.Box(-0.1, 0.3),
    "Fixed": ib.Fixed(0.25),
    "MaxNorm": ib.MaxNorm(1),
    "UnitNorm": ib.UnitNorm(),
    "MinMaxNorm": ib.MinMaxNorm(0.5, 2),
    "MinMaxNorm-half": ib.MinMaxNorm(0.5, 2, rate=0.5),
}
every_vector_set = pytest.mark.parametrize("owner", VECTOR_SETS.values(), ids=VECTOR_SETS)


def units(layout: Layout, parts: Any, dtype: str, library: str, free: Any = None) -> Units:
    return Units.of([array(part, dtype, library) for part in parts], layout.axes, free)


def assert_close(parts: Any, expected: Any) -> None:
    for part, like in zip(parts, expected, strict=True):
        assert tuple(part.shape) == like.shape
        np.testing.assert_allclose(exact(part), like, rtol=2e-6, atol=1e-7)


@pytest.mark.by_turns("layout")
@pytest.mark.repeats("owner")
@every_library
@every_vector_set
@every_layout
def test_units_are_projected_as_their_rows(layout: Layout, owner: ib.Set, dtype: str, library: str) -> None:
    parts = layout.draw()
    expected = layout.parts(owner.project(layout.rows(parts)))
    assert_close(owner._project(units(layout, parts, dtype, library)).parts, expected)


@pytest.mark.by_turns
@every_library
@every_layout
def test_an_array_has_an_entry_for_each_of_a_unit(layout: Layout, dtype: str, library: str) -> None:
    bounds = np.linspace(-0.2, 0.2, layout.size())
    owner = ib.Box(bounds, bounds + 0.1)
    parts = layout.draw()
    expected = layout.parts(np.clip(layout.rows(parts), bounds, bounds + 0.1))
    assert_close(owner._project(units(layout, parts, dtype, library)).parts, expected)


@pytest.mark.by_turns("layout")
@every_layout
def test_the_violation_of_weights_is_that_of_their_rows(layout: Layout) -> None:
    parts = layout.draw()
    for owner in (ib.MaxNorm(1), ib.UnitNorm(), ib.Box(-0.1, np.linspace(0, 1, layout.size()))):
        found = owner.measure(parts, layout.spans()).excess
        np.testing.assert_allclose(np.maximum(found, 0), owner.violation(layout.rows(parts)), atol=1e-14)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "layout", [layout for layout in LAYOUTS.values() if len(layout.shapes) == 1 and layout.axes[0]]
)
def test_a_weight_of_any_shape_is_projected_over_its_axes(layout: Layout) -> None:
    (part,), axes = layout.draw(), layout.axes[0]
    expected = layout.parts(ib.MaxNorm(1).project(layout.rows([part])))
    assert_close([ib.MaxNorm(1, axis=axes)(part)], expected)
    assert_close([ib.MaxNorm(1, axis=list(axes))(array(part, "float32", BACKEND))], expected)


@pytest.mark.by_turns
@settings(deadline=None, derandomize=True, max_examples=100 if repetition.everything else 25, database=None)
@given(st.data())
def test_any_axes_of_any_shape(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    order = data.draw(st.permutations(range(len(shape))))
    axes = tuple(order[: data.draw(st.integers(1, len(shape)))])
    signed = tuple(axis - len(shape) * data.draw(st.booleans()) for axis in axes)
    layout = Layout((shape,), (signed,))
    parts = layout.draw()
    for owner in (ib.MaxNorm(0.5), ib.UnitNorm(), ib.NonNeg()):
        expected = layout.parts(owner.project(layout.rows(parts)))
        assert_close(owner._project(units(layout, parts, "float64", "numpy")).parts, expected)


# Shapes and counts.


@pytest.mark.by_turns("layout")
@every_layout
def test_units_know_how_many_and_how_large_they_are(layout: Layout) -> None:
    view = units(layout, layout.draw(), "float32", "numpy")
    rows = layout.rows(layout.draw())
    assert (view.count, view.size) == rows.shape
    assert view.shape == tuple(n for axis, n in enumerate(layout.shapes[0]) if axis not in layout.spans()[0])
    np.testing.assert_allclose(view.sum(lambda x: x).reshape(-1), rows.sum(1), atol=1e-5)
    np.testing.assert_allclose(view.max(lambda x: x).reshape(-1), rows.max(1), rtol=1e-6)


def test_a_unit_of_mixed_dtypes_is_measured_in_the_coarsest() -> None:
    kernel, bias = np.full((4, 2), 0.5, "float32"), np.full(2, 0.01, "float16")
    view = Units.of([kernel, bias], [(0,), ()])
    assert view.dtype == "float16"
    kept = ib.MaxNorm(1)._project(view)  # a norm of 1.00005: within 4 ulp of float16
    assert same_bits(kept.parts[0], kernel)


# Frozen parts.

FROZEN = {name: layout for name, layout in LAYOUTS.items() if len(layout.shapes) > 1}
FROZEN_SETS = {name: VECTOR_SETS[name] for name in ("Box", "MaxNorm", "UnitNorm", "MinMaxNorm")}


def nearest_with_frozen(owner: ib.Set, rows: Any, frozen: Any) -> Any:
    """The nearest rows with some entries frozen, by formula.

    The free entries have the norm that the frozen ones leave.
    """
    if isinstance(owner, ib.Box):
        return np.where(frozen, rows, np.clip(rows, owner.low, owner.high))
    held = np.sum(np.where(frozen, rows, 0) ** 2, axis=1, keepdims=True)
    least, most = (np.sqrt(np.maximum(bound**2 - held, 0)) for bound in (owner.low, owner.high))
    moved = np.where(frozen, 0, rows)
    norm = np.sqrt(np.sum(moved**2, axis=1, keepdims=True))
    moved = np.where((norm == 0) & ~frozen, least / np.sqrt(np.sum(~frozen, axis=1, keepdims=True)), moved)
    norm = np.sqrt(np.sum(moved**2, axis=1, keepdims=True))
    return np.where(frozen, rows, moved * np.clip(norm, least, most) / np.where(norm == 0, 1, norm))


@pytest.mark.by_turns
@every_library
@pytest.mark.parametrize("owner", FROZEN_SETS.values(), ids=FROZEN_SETS)
@pytest.mark.parametrize("layout", FROZEN.values(), ids=FROZEN)
def test_a_frozen_part_stays_and_the_others_make_up_for_it(
    layout: Layout, owner: ib.Set, dtype: str, library: str
) -> None:
    for index in range(len(layout.shapes)):
        parts = [part * 0.3 if i == index else part for i, part in enumerate(layout.draw(index))]
        free = [i != index for i in range(len(parts))]
        mask = layout.rows([np.full(part.shape, not moves) for part, moves in zip(parts, free, strict=True)])
        rows = layout.rows([exact(array(part, dtype, library)) for part in parts])
        view = units(layout, parts, dtype, library, free)
        projected = owner._project(view)
        assert same_bits(projected.parts[index], view.parts[index])

        expected = nearest_with_frozen(owner, rows, mask)
        found = layout.rows([exact(part) for part in projected.parts])
        np.testing.assert_allclose(found, expected, atol=2e-6)
        possible = np.sum(np.where(mask, rows, 0) ** 2, axis=1) <= 0.95
        if not isinstance(owner, ib.Box):
            assert possible.any()
            assert (owner.violation(found)[possible] <= owner.tolerance(dtype)).all()
        again = owner._project(projected)
        assert all(same_bits(a, b) for a, b in zip(again.parts, projected.parts, strict=True))


@pytest.mark.by_turns("owner")
@every_library
@pytest.mark.parametrize("owner", VECTOR_SETS.values(), ids=VECTOR_SETS)
def test_all_parts_frozen_stay(owner: ib.Set, dtype: str, library: str) -> None:
    layout = LAYOUTS["dense+bias"]
    view = units(layout, layout.draw(), dtype, library, (False, False))
    assert all(same_bits(a, b) for a, b in zip(owner._project(view).parts, view.parts, strict=True))


@every_library
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 3e38])
def test_a_frozen_part_of_any_scale(dtype: str, library: str, scale: float) -> None:
    layout = LAYOUTS["dense+bias"]
    kernel, bias = np.full((5, 4), 0.6), np.full(4, 0.8)
    for owner in (ib.MaxNorm(scale), ib.UnitNorm(), ib.MinMaxNorm(0.5 * scale, scale)):
        for part in (0, 1):
            parts = [kernel * (0.5 * scale), bias * (0.5 * scale)]
            free = [i != part for i in range(2)]
            projected = owner._project(units(layout, parts, dtype, library, free)).parts
            rows = layout.rows([exact(array(p, dtype, library)) for p in parts])
            mask = layout.rows([np.full(p.shape, not moves) for p, moves in zip(parts, free, strict=True)])
            expected = nearest_with_frozen(owner, rows, mask)
            np.testing.assert_allclose(layout.rows([exact(p) for p in projected]), expected, rtol=2e-5, atol=1e-38)


@every_library
@pytest.mark.repeats("bad")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_unit_with_a_part_that_is_not_finite_stays(dtype: str, library: str, bad: float) -> None:
    layout = LAYOUTS["dense+bias"]
    kernel, bias = layout.draw()
    bias = bias.copy()
    bias[1] = bad
    for free in ((True, True), (True, False), (False, True)):
        view = units(layout, (kernel, bias), dtype, library, free)
        projected = ib.MaxNorm(0.2)._project(view)
        for before, after in zip(view.parts, projected.parts, strict=True):
            assert same_bits(numbers(after)[..., 1], numbers(before)[..., 1])
        moved, here = (numbers(x.parts[free.index(True)]) for x in (projected, view))
        assert not same_bits(moved[..., 0], here[..., 0])


# Arrays over a unit.


def test_an_array_may_have_the_shape_of_a_unit_in_its_weight() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 4, 6))
    low = np.random.default_rng(1).uniform(-1, 0, (3, 2, 4))
    projected = ib.Box(low, np.inf)._project(Units.of([kernel], [(0, 1, 2)])).parts[0]
    assert (projected == np.maximum(kernel, low[..., None])).all()
    channels = np.array([-0.1, -0.2, 0.1, 0.2])
    projected = ib.Box(channels, np.inf)._project(Units.of([kernel], [(0, 1, 2)])).parts[0]
    assert (projected == np.maximum(kernel, channels[:, None])).all()


@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 5), (2, 3, 4)], ids=repr)
def test_an_array_of_another_shape_is_an_error(shape: Shape) -> None:
    layout = LAYOUTS["conv2d"]
    view = units(layout, layout.draw(), "float32", "numpy")
    with pytest.raises(ib.SetError) as caught:
        view.entries(np.zeros(shape))
    text = str(caught.value)
    assert text.startswith(
        "An array doesn't fit the units: one entry for each of a unit's, or a shape that broadcasts to it."
    )
    assert f"Received: shape={shape}. Where: units of 24 entries, of shape (3, 2, 4)." in text
    assert "Instead: give a number, or an array of shape (24,)." in text


def test_an_array_for_a_joint_covers_all_its_parts() -> None:
    layout = LAYOUTS["dense+bias"]
    view = units(layout, layout.draw(), "float32", "numpy")
    with pytest.raises(ib.SetError, match=r"units of 6 entries, of shape \(5,\) and \(\)") as caught:
        ib.Joint(ib.Box(np.zeros(5), 1)).check_fit(view)
    assert "an array of shape (6,)" in str(caught.value)
    ib.Joint(ib.Box(np.zeros(6), 1)).check_fit(view)


def test_a_callable_sees_a_tensor_of_the_backend_also_of_numpy_rows() -> None:
    seen = []
    rows = np.array([[1.0, 3.0], [2.0, 2.0]], "float32")
    centred = ib.Custom(lambda w: seen.append(w) or w - sum(w[0]) / 2).project(rows)
    assert type(seen[0]) is type(array(rows, "float32", BACKEND))
    np.testing.assert_array_equal(centred, rows - 2)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e-3, 1.0, 10.0, 1e12, 1e37])
@pytest.mark.parametrize("free", [(True, True), (True, False)], ids=["all free", "one frozen"])
@pytest.mark.parametrize("chosen", [ib.MaxNorm(1.0), ib.UnitNorm(), ib.MinMaxNorm(0.5, 1.0)], ids=repr)
def test_the_shorter_way_of_an_eager_step_leads_to_the_same_units(chosen: ib.Set, free: Any, scale: float) -> None:
    draw = np.random.default_rng(0).standard_normal
    kernel, bias = draw((50, 7)) * scale, draw(7) * min(scale, 0.1)
    kernel[:, 0], kernel[3, 1] = 0, np.nan
    parts = [array(part, "float32", BACKEND) for part in (kernel, bias)]
    safe, short = (chosen._project(Units.of(parts, [(0,), ()], free, concrete=way)) for way in (False, True))
    for expected, found in zip(safe.parts, short.parts, strict=True):
        np.testing.assert_allclose(exact(found), exact(expected), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("size", [31, 300, 1000, 3000])
def test_totals_are_as_exact_as_a_judgement_takes_them_to_be(size):
    """Numbers that are all equal round the same way, the worst case of a sum in a fixed order."""
    for units in (1, 16):
        rows = np.broadcast_to(np.linspace(0.1, 0.7, units, dtype="float32")[:, None], (units, size))
        for part, span in ((rows.T, (0,)), (rows, (1,))):
            for library in LIBRARIES:
                view = Units.of([array(part, "float32", library)], [span])
                expected = np.sum(rows.astype("float64") ** 2, axis=1)
                found = exact(view.total(lambda x: x * x)).reshape(-1)
                judgement = view.judged()
                assert (np.abs(found - expected) <= (judgement.tolerated(1.0) - judgement.held(1.0)) * expected).all()
