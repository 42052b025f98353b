"""Every bad argument is refused.

The error says the rule, what was received, and what to give instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import inbounds as ib
from instead import run
from sets.tensors import same_bits

pytestmark = pytest.mark.by_turns

NAN, INF = float("nan"), float("inf")
ROWS = np.ones((2, 3), dtype="float32")
Bad = Callable[[], Any]


def raised(bad: Bad) -> str:
    """The text of the SetError that `bad` raises."""
    with pytest.raises(ib.SetError) as caught:
        bad()
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def assert_says(bad: Bad, rule: str, received: str, instead: str) -> None:
    text = raised(bad)
    assert text.startswith(rule), text
    assert f"Received: {received}." in text
    assert text.index("Received: ") < text.index("Instead: ")
    assert instead in text[text.index("Instead: ") :]
    layer = keras.layers.Dense(2, kernel_constraint=ib.NonNeg())
    layer.build((None, 3))
    tolerance = ib.NonNeg().tolerance
    run(text.split("Instead: ")[1], fn=abs, rows=ROWS, weight=ROWS, metric=ROWS, tolerance=tolerance, model=layer)


NUMBERS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "MaxNorm": (lambda value: ib.MaxNorm(value), "max_value", "a number of 0 or more"),
    "MinMaxNorm-min": (lambda value: ib.MinMaxNorm(value, 2), "min_value", "a number of 0 or more"),
    "SpectralNorm": (lambda value: ib.SpectralNorm(value), "max_value", "a number of 0 or more"),
    "MinMaxNorm-rate": (lambda value: ib.MinMaxNorm(0, 1, value), "rate", "a number from 0 to 1"),
    "FrobeniusNorm": (lambda value: ib.FrobeniusNorm(value), "max_value", "a number of 0 or more"),
}


@pytest.mark.parametrize("value", [-1, -1e-300, NAN, INF, -INF, "1", "one", True, None, 1j], ids=repr)
@pytest.mark.parametrize(("make", "name", "within"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_finite_and_in_range(make: Callable[[Any], Any], name: str, within: str, value: Any) -> None:
    owner = type(make(0.5)).__name__
    assert_says(
        lambda: make(value), f"`{name}` of {owner} is not {within}.", f"{name}={value!r}", f"{owner}({name}=1.0)"
    )


@pytest.mark.parametrize("value", [[1.0], np.ones(2)], ids=repr)
@pytest.mark.parametrize("name", ["SpectralNorm", "MinMaxNorm-rate", "FrobeniusNorm"])
def test_one_number_is_not_several(name: str, value: Any) -> None:
    make, argument, within = NUMBERS[name]
    assert raised(lambda: make(value)).startswith(f"`{argument}` of {type(make(0.5)).__name__} is not {within}.")


def test_a_number_is_not_beyond_every_float() -> None:
    assert raised(lambda: ib.MaxNorm(10**400)).startswith("`max_value` of MaxNorm is not a number of 0 or more.")
    assert raised(lambda: ib.Box(0, 10**400)).startswith("`high` of Box is not a number")


def test_a_rate_is_at_most_one() -> None:
    assert_says(lambda: ib.MinMaxNorm(rate=1.5), "`rate` of MinMaxNorm", "rate=1.5", "rate=1.0")


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0)], ids=lambda value: str(type(value))
)
def test_any_real_number_will_do(value: Any) -> None:
    assert ib.MaxNorm(value) == ib.MaxNorm(max_value=2.0)


ARRAYS: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "Box-low": (lambda value: ib.Box(value, 9), "low", True),
    "Box-high": (lambda value: ib.Box(-9, value), "high", True),
    "Fixed": (lambda value: ib.Fixed(value), "value", False),
}


@pytest.mark.parametrize(
    "value",
    [NAN, [0.0, NAN], None, [None, 1.0], "1", ["1", "2"], True, [True, False], 1j, [[1.0], [1.0, 2.0]], {}, ib.NonNeg],
    ids=repr,
)
@pytest.mark.parametrize(("make", "name"), [row[:2] for row in ARRAYS.values()], ids=ARRAYS)
def test_an_array_holds_numbers(make: Callable[[Any], Any], name: str, value: Any) -> None:
    owner = type(make(0.5)).__name__
    rule = f"`{name}` of {owner} is {'NaN, or holds it' if value in (NAN, [0.0, NAN]) else 'not a number or an array'}"
    assert_says(lambda: make(value), rule, f"{name}={value!r}", "give a number such as 0.5")


@pytest.mark.parametrize("value", [INF, [0.0, -INF]], ids=repr)
def test_a_fixed_value_is_finite(value: Any) -> None:
    assert_says(
        lambda: ib.Fixed(value),
        "`value` of Fixed is not finite.",
        f"value={value!r}",
        "0.5",
    )


@pytest.mark.parametrize(
    ("low", "high"), [(1, -1), (0.5, [1.0, 0.4]), ([0.0, 1.0], [1.0, 0.0]), (INF, INF), (-INF, -INF)], ids=repr
)
def test_a_box_is_not_crossed_or_empty(low: Any, high: Any) -> None:
    assert_says(
        lambda: ib.Box(low, high),
        "`low` of Box is above `high`, or both are the same infinity.",
        f"low={low!r}, high={high!r}",
        "Box(low=-1.0, high=1.0)",
    )


def test_the_bounds_of_a_box_broadcast() -> None:
    assert_says(
        lambda: ib.Box([0.0, 0.0], [1.0, 1.0, 1.0]),
        "`low` and `high` of Box don't broadcast together.",
        "low.shape=(2,), high.shape=(3,)",
        "the shape of a unit",
    )


@pytest.mark.parametrize(("low", "high"), [(3, 2), ([2, 2], [3, 3, 3])], ids=repr)
def test_a_smallest_norm_is_not_above_the_largest(low: Any, high: Any) -> None:
    assert_says(
        lambda: ib.MinMaxNorm(low, high),
        "`min_value` of MinMaxNorm is above `max_value`, or they are for different numbers of units.",
        f"min_value={low!r}, max_value={high!r}",
        "MinMaxNorm(min_value=2.0, max_value=3.0)",
    )


@pytest.mark.parametrize("axis", [0.0, "0", True, [0, 0], [], (1, "2"), [None], {0}, np.array([0])], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda axis: ib.MaxNorm(axis=axis),
        lambda axis: ib.UnitNorm(axis=axis),
        lambda axis: ib.MinMaxNorm(axis=axis),
        lambda axis: ib.Custom(abs, axis=axis),
    ],
    ids=["MaxNorm", "UnitNorm", "MinMaxNorm", "Custom"],
)
def test_axes_are_different_integers(make: Callable[[Any], ib.Set], axis: Any) -> None:
    owner = type(make(0)).__name__
    rule = f"`axis` of {owner} is not an integer, or a list of different integers."
    assert_says(lambda: make(axis), rule, f"axis={axis!r}", "the layer knows its units")


@pytest.mark.parametrize("axis", [2, -3, (0, 5), (0, -2)], ids=repr)
def test_axes_are_those_of_the_weight(axis: Any) -> None:
    owner = ib.MaxNorm(1, axis=axis)
    rule = "`axis` names an axis that the weight hasn't, or one twice: it has -2 to 1."
    assert_says(lambda: owner(ROWS), rule, f"axis={owner.axis}", "the layer knows its units")
    assert f"Where: {owner!r} on a weight of shape (2, 3)." in raised(lambda: owner(ROWS))


DOORS = {"project": ib.MaxNorm(1).project, "violation": ib.MaxNorm(1).violation}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_rows_have_two_axes(door: Callable[[Any], Any]) -> None:
    rule = "The rows don't have the shape (units, size), one unit a row, one entry at least."
    assert_says(lambda: door(np.ones((0, 2))), rule, "rows.shape=(0, 2)", "np.reshape(rows, (1, -1))")
    assert_says(lambda: door([1.0, 2.0]), rule, "rows.shape=(2,)", "np.reshape(rows, (1, -1))")
    assert_says(lambda: door([[1.0], [2.0, 3.0]]), rule, "rows=[[1.0], [2.0, 3.0]]", "np.reshape(rows, (1, -1))")
    assert_says(lambda: door(np.ones((2, 2, 2))), rule, "rows.shape=(2, 2, 2)", "np.reshape(rows, (1, -1))")
    assert_says(lambda: door(keras.ops.ones((4,))), rule, "rows.shape=(4,)", "np.reshape(rows, (1, -1))")


@pytest.mark.parametrize("door", [*DOORS.values(), ib.MaxNorm(1)], ids=[*DOORS, "call"])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_rows_are_of_a_float_dtype(door: Callable[[Any], Any], dtype: str) -> None:
    rule = "The weight is not of floating point numbers: float16, bfloat16, float32, float64."
    assert_says(lambda: door(np.ones((2, 3), dtype)), rule, f"dtype={dtype}", "float32")
    assert "Where: MaxNorm(max_value=1.0) on a weight of shape (2, 3)." in raised(lambda: door(np.ones((2, 3), dtype)))
    assert_says(lambda: door(keras.ops.ones((2, 3), dtype)), rule, f"dtype={dtype}", "float32")


@pytest.mark.parametrize("dtype", ["int8", "float", "", None], ids=repr)
def test_a_tolerance_is_that_of_a_float_dtype(dtype: Any) -> None:
    rule = "`dtype` is none of float16, bfloat16, float32, float64."
    assert_says(lambda: ib.NonNeg().tolerance(dtype), rule, f"dtype={dtype!r}", "tolerance('float32')")


def test_a_metric_has_the_shape_of_the_rows() -> None:
    for metric in (np.ones((2, 4)), np.ones(3), [[1.0, 1.0]], keras.ops.ones((3, 2))):
        received = f"metric.shape={tuple(np.shape(metric))}"
        assert_says(
            lambda metric=metric: ib.NonNeg().project(ROWS, metric),
            "`metric` doesn't have the shape of `rows`.",
            received,
            "metric=None",
        )


def test_a_metric_is_above_0() -> None:
    rule = "`metric` is not finite and above 0 everywhere."
    for owner in (ib.MaxNorm(1), ib.NonNeg()):
        assert_says(
            lambda owner=owner: owner.project(ROWS, np.zeros((2, 3))),
            rule,
            "metric=an array with 6 entries that are not",
            "a floor",
        )


def test_a_custom_takes_a_function() -> None:
    for fn in (ib.NonNeg(), ib.NonNeg, 3, None, "relu"):
        assert_says(
            lambda fn=fn: ib.Custom(fn),
            "`fn` of Custom is not a callable from tensor to tensor",
            f"fn={fn!r}",
            "Custom(lambda w: keras.ops.clip(w, -1.0, 1.0))",
        )


@pytest.mark.parametrize(
    ("fn", "returned"),
    [
        (lambda w: None, "None"),
        (lambda w: w[:1], "the shape (1, 3)"),
        (lambda w: keras.ops.sum(w), "the shape ()"),
        (lambda w: 1.0, "the shape ()"),
    ],
    ids=["None", "other shape", "no shape", "number"],
)
def test_a_custom_returns_the_shape_it_was_given(fn: Callable[[Any], Any], returned: str) -> None:
    rule = "The callable of a Custom did not return a tensor of the shape it was given."
    for rows in (ROWS, keras.ops.convert_to_tensor(ROWS)):
        text = raised(lambda rows=rows: ib.Custom(fn).project(rows))
        assert text.startswith(rule)
        assert f"Received: fn={fn!r}, which returned {returned}." in text
        assert "Where: a weight of shape (2, 3)." in text


def test_a_joint_takes_a_set_of_vectors() -> None:
    rule = "Joint is not given a set of vectors, but a class, a callable, a Custom or a Joint."
    for inner in (
        ib.MaxNorm,
        "MaxNorm",
        None,
        abs,
        ib.Custom(abs),
        ib.Joint(ib.MaxNorm(1)),
        keras.constraints.MaxNorm(1),
    ):
        assert_says(lambda inner=inner: ib.Joint(inner), rule, f"inner={inner!r}", "Joint(MaxNorm(1.0))")


def test_a_joint_takes_no_axis() -> None:
    inner = ib.MaxNorm(1, axis=0)
    assert_says(
        lambda: ib.Joint(inner),
        "A set in a Joint has an `axis`, and the units of a Joint come from the layer.",
        f"inner={inner!r}",
        "Joint(MaxNorm(max_value=1.0))",
    )


@pytest.mark.parametrize("weights", [(), ("kernel",), "kernel", ("kernel", "kernel"), ("kernel", 3), 1], ids=repr)
def test_a_joint_has_two_names_or_more(weights: Any) -> None:
    rule = "`weights` of Joint are not two or more different names."
    assert_says(lambda: ib.Joint(ib.MaxNorm(1), weights), rule, f"weights={weights!r}", "weights=('kernel', 'bias')")


def test_a_joint_is_not_for_one_weight() -> None:
    rule = "A Joint can't be applied to one weight: it holds for several at once."
    variable = keras.Variable(ROWS, name="lonely")
    assert_says(lambda: ib.Joint(ib.MaxNorm(1))(variable), rule, f"w={variable.path}", "inbounds.constrain(model)")


@pytest.mark.parametrize("owner", [ib.MaxNorm(1), ib.L1Ball(1), ib.Monotone(), ib.NonNeg() & ib.SumTo(1)], ids=repr)
def test_a_variable_is_taken_as_what_it_holds(owner: ib.Set) -> None:
    variable = keras.Variable(ROWS)
    tensor = keras.ops.convert_to_tensor(variable)
    assert same_bits(owner.project(variable), owner.project(tensor))
    assert same_bits(owner.violation(variable), owner.violation(tensor))


@pytest.mark.parametrize(
    ("name", "near"), [("MaxNrm", "MaxNorm"), ("maxnorm", "max_norm"), ("nonneg", "non_neg"), ("zzz", "UnitNorm")]
)
def test_a_name_is_that_of_a_set(name: str, near: str) -> None:
    rule = f"No set has the name {name!r}."
    assert_says(lambda: ib.constraints.get(name), rule, f"identifier={name!r}", near)


def test_a_name_alone_makes_no_set_that_needs_arguments() -> None:
    assert_says(
        lambda: ib.constraints.get("Box"), "Box needs arguments", f"identifier={ib.Box!r}", "Box(low=-1.0, high=1.0)"
    )


@pytest.mark.parametrize("shape", [(2,), (4, 1), (2, 2)], ids=repr)
def test_an_array_fits_the_unit_or_the_weight(shape: tuple[int, ...]) -> None:
    rule = "An array doesn't fit the units: one entry for each of a unit's, or a shape that broadcasts to it."
    where, fits = "units of 3 entries, of shape (3,)", "an array of shape (3,)"
    if len(shape) == ROWS.ndim:
        rule = "An array doesn't fit the weight: a shape that broadcasts to it, or for a Joint rows."
        where, fits = "weights of shape (2, 3): 2 units of 3 entries", "an array of shape (2, 3)"
    owner = ib.Fixed(np.zeros(shape))
    assert_says(lambda: owner.project(ROWS), rule, f"shape={shape}", fits)
    assert f"Where: {where}." in raised(lambda: owner.project(ROWS))
