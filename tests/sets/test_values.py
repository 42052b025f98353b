"""A set is a value: it prints as code, compares, saves, never changes, and replaces Keras' own."""

from __future__ import annotations

import itertools
import json
from typing import Any

import keras
import numpy as np
import pytest

import inbounds as ib
from sets.table import SETS
from sets.tables.combine import clip01

pytestmark = pytest.mark.by_turns

OTHERS = [
    ib.Box([[-1.0, 0.0]], np.inf),
    ib.Box(np.float32(0.1), 1),
    ib.MaxNorm(),
    ib.MaxNorm(1e-37, axis=-1),
    ib.UnitNorm(axis=[0, 1]),
    ib.MinMaxNorm(0.5, 2.0, rate=0.25, axis=(0, 1, 2)),
    ib.Joint(ib.MaxNorm(2), weights=["kernel", "recurrent_kernel", "bias"]),
    ib.Custom(clip01, axis=0),
    ib.MaxNorm(1).per("inputs"),
    ib.MaxNorm(1).where("banded", width=np.int64(2)),
    (ib.NonNeg() & ib.MaxNorm(1)).per("heads"),
    ib.Joint(ib.MaxNorm(1).per("gates")),
    ib.NonNeg() & ib.MaxNorm(1) & ib.MaxNorm(2).per("inputs"),
    ib.MaxNorm(1, axis=0) & ib.MaxNorm(2, axis=1),
    ib.Marginals([1.0, 2.0], 1.5),
]
ALL = [case.set for case in SETS.values()] + OTHERS
every_set = pytest.mark.parametrize("owner", ALL, ids=repr)

PUBLIC = {name: getattr(ib, name) for name in ib.__all__} | {"clip01": clip01, "keras": keras}
KERAS_NAMES = [name for name in dir(keras.constraints) if not name.startswith("_")]
TWINS = {"max_norm": ib.MaxNorm, "min_max_norm": ib.MinMaxNorm, "non_neg": ib.NonNeg, "unit_norm": ib.UnitNorm}


def through_json(config: Any) -> Any:
    return json.loads(json.dumps(config))


def assert_same(a: ib.Set, b: ib.Set) -> None:
    assert type(a) is type(b)
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)


@pytest.mark.once
@every_set
def test_it_is_a_value_which_prints_as_its_code_is_saved_and_never_changes(owner: ib.Set) -> None:
    assert_same(eval(repr(owner), dict(PUBLIC)), owner)
    assert isinstance(owner, keras.constraints.Constraint)
    assert keras.constraints.get(owner) is owner
    saved = through_json(keras.saving.serialize_keras_object(owner))
    assert saved["registered_name"] == f"inbounds>{type(owner).__name__}"
    assert_same(keras.saving.deserialize_keras_object(saved), owner)
    assert_same(type(owner).from_config(through_json(owner.get_config())), owner)
    assert_same(ib.constraints.deserialize(through_json(ib.constraints.serialize(owner))), owner)
    assert_same(ib.constraints.get(through_json(ib.constraints.serialize(owner))), owner)
    before = repr(owner)
    for name in {*type(owner).argument_names(), *vars(owner), "axis", "convex"}:
        with pytest.raises(AttributeError):
            setattr(owner, name, 0.5)
    assert repr(owner) == before
    with pytest.raises(ib.SetError, match="a & b"):
        bool(owner)


def test_equality_is_by_arguments() -> None:
    assert not any(a == b for a, b in itertools.combinations(ALL, 2))
    assert len(set(ALL)) == len(ALL)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ib.MaxNorm(2), ib.MaxNorm(max_value=np.float64(2))),
        (ib.MaxNorm(2, axis=0), ib.MaxNorm(2, axis=[0])),
        (ib.Box(-1, [0, 1]), ib.Box(-1.0, np.array([0.0, 1.0]))),
        (ib.Box(-0.0, 1), ib.Box(0.0, 1)),
        (ib.Box([-0.0], 1), ib.Box([0.0], 1)),
        (ib.MaxNorm(-0.0), ib.MaxNorm(0.0)),
        (ib.Joint(ib.NonNeg()), ib.Joint(ib.NonNeg(), weights=["kernel", "bias"])),
    ],
    ids=repr,
)
def test_the_same_arguments_make_the_same_set(a: ib.Set, b: ib.Set) -> None:
    assert_same(a, b)


@pytest.mark.parametrize(
    "other", [ib.MaxNorm(3), ib.MaxNorm(2, axis=0), ib.FrobeniusNorm(2), keras.constraints.MaxNorm(2), 2.0, None]
)
def test_other_arguments_make_another_set(other: Any) -> None:
    assert ib.MaxNorm(2) != other


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        (ib.NonNeg(), "NonNeg()"),
        (ib.MaxNorm(2), "MaxNorm(max_value=2.0)"),
        (ib.MaxNorm(2, axis=0), "MaxNorm(max_value=2.0, axis=(0,))"),
        (ib.Box(-1, np.inf), "Box(low=-1.0, high=float('inf'))"),
        (ib.Box([-1, -np.inf], 0), "Box(low=[-1.0, float('-inf')], high=0.0)"),
        (ib.Joint(ib.MaxNorm(2)), "Joint(MaxNorm(max_value=2.0))"),
        (ib.Joint(ib.NonNeg(), ("a", "b")), "Joint(NonNeg(), weights=('a', 'b'))"),
        (ib.Custom(clip01), "Custom(clip01)"),
    ],
    ids=repr,
)
def test_its_repr_is_short(owner: ib.Set, text: str) -> None:
    assert repr(owner) == text


def test_the_error_of_a_change_says_what_to_do() -> None:
    owner = ib.MaxNorm(2)
    with pytest.raises(AttributeError) as caught:
        owner.max_value = 3.0
    text = str(caught.value)
    assert text.startswith("A set can't be changed")
    assert "Received: max_value=3.0. Where: MaxNorm(max_value=2.0). Instead: make a new set" in text


def test_its_arrays_are_its_own() -> None:
    given = np.array([0.0, 1.0])
    owner = ib.Box(given, 2)
    given[0] = 1.5
    assert repr(owner) == "Box(low=[0.0, 1.0], high=2.0)"
    with pytest.raises(ValueError, match="read-only"):
        owner.low[0] = 1.5


@pytest.mark.parametrize("name", KERAS_NAMES)
def test_every_name_of_keras_constraints_is_here(name: str) -> None:
    assert hasattr(ib.constraints, name)
    assert name in ib.constraints.__all__


def test_there_are_names_of_keras_to_mirror() -> None:
    assert {"MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm", "get", "serialize", *TWINS} <= set(KERAS_NAMES)


@pytest.mark.parametrize(("name", "cls"), TWINS.items(), ids=TWINS)
def test_snake_case_twins_are_the_classes(name: str, cls: type[ib.Set]) -> None:
    assert getattr(ib, name) is getattr(ib.constraints, name) is cls
    assert getattr(keras.constraints, name) is getattr(keras.constraints, cls.__name__)
    assert_same(ib.constraints.get(name), cls())
    assert_same(ib.constraints.get(cls.__name__), cls())
    assert_same(ib.constraints.get(cls), cls())


@pytest.mark.parametrize("name", [name for name in KERAS_NAMES if isinstance(getattr(keras.constraints, name), type)])
def test_code_for_keras_needs_only_its_import_changed(name: str) -> None:
    theirs, ours = getattr(keras.constraints, name), getattr(ib.constraints, name)
    if name == "Constraint":
        assert ours is theirs
        return
    assert {key: value for key, value in ours().get_config().items() if key != "axis"} == {
        key: value for key, value in theirs().get_config().items() if key != "axis"
    }


@pytest.mark.parametrize("name", TWINS)
def test_it_does_what_keras_does_to_columns(name: str) -> None:
    kernel = np.random.default_rng(0).standard_normal((5, 4)).astype("float32")
    ours, theirs = getattr(ib.constraints, name)(), getattr(keras.constraints, name)()
    expected = keras.ops.convert_to_numpy(theirs(keras.ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(ours(kernel), expected, rtol=1e-5)
    tensor = keras.ops.convert_to_tensor(kernel)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(tensor)), expected, rtol=1e-5)


def test_get_leaves_what_is_no_name_to_keras() -> None:
    assert ib.constraints.get(None) is None
    assert ib.constraints.get(clip01) is clip01
    owner = ib.Box(0, 1)
    assert ib.constraints.get(owner) is owner


def test_half_the_way_with_a_rate() -> None:
    rows = np.array([[0.0, 4.0], [0.0, 0.5], [0.6, 0.8], [0.0, 0.0]])
    projected = ib.MinMaxNorm(1, 2, rate=0.5).project(rows)
    np.testing.assert_allclose(projected, [[0, 3], [0, 0.75], [0.6, 0.8], [0.5**1.5, 0.5**1.5]])
    assert (ib.MinMaxNorm(1, 2, rate=0).project(rows) == rows).all()


def test_lists_are_rows_too() -> None:
    assert ib.NonNeg().project([[-1, 2]]).tolist() == [[0.0, 2.0]]
    assert ib.NonNeg().violation(((-1.0, 2.0), (3.0, 4.0))).tolist() == [1.0, 0.0]


def test_the_metric_does_not_matter_to_entries() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 5))
    metric = np.random.default_rng(1).uniform(0.1, 10, (4, 5))
    for name, case in SETS.items():
        if case.by_entry and case.convex:
            np.testing.assert_allclose(case.set.project(rows, metric), case.nearest(rows), rtol=1e-12, err_msg=name)


# What is compared, and what can't be.


def test_large_arrays_are_compared_by_value() -> None:
    low = np.full(70, -1.0)
    a, b = ib.Joint(ib.Box(low, 1)), ib.Joint(ib.Box(0.5 * low, 1))
    assert a != b
    assert len({a, b, ib.Joint(ib.Box(low.astype("float32"), 1))}) == 2
    mask = np.eye(9) > 0
    assert ib.NonNeg().where(mask) == ib.NonNeg().where(mask.copy()) != ib.NonNeg().where(~mask)


def test_a_large_array_is_no_wall() -> None:
    assert repr(ib.NonNeg().where(np.eye(8) > 0)) == "NonNeg().where(<array of shape (8, 8): True, False, False, ...>)"
    assert "..." in repr(ib.NonNeg().on(inputs=range(99)))


@pytest.mark.parametrize("axis", [1, None, [0, 1], (0, 1)], ids=repr)
def test_a_config_has_the_axis_as_it_was_given(axis: Any) -> None:
    for name in ("MaxNorm", "UnitNorm", "MinMaxNorm"):
        assert getattr(ib, name)(axis=axis).get_config() == getattr(keras.constraints, name)(axis=axis).get_config()


def test_constraints_of_keras_become_sets() -> None:
    theirs = keras.constraints
    assert theirs.MaxNorm(1.5, axis=1) & ib.NonNeg() == ib.MaxNorm(1.5, axis=1) & ib.NonNeg()
    assert ib.NonNeg() & theirs.MinMaxNorm(0.5, 2.0) == ib.NonNeg() & ib.MinMaxNorm(0.5, 2.0, axis=0)


@pytest.mark.parametrize(
    "field", [{"every": 0}, {"every": 1.5}, {"metric": "evil"}, {"metric": 7}, {"radius": 1}], ids=repr
)
def test_a_config_is_checked_when_it_is_read(field: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    with pytest.raises(ib.SetError, match=rf"MaxNorm.*Received: {name}={value!r}"):
        ib.MaxNorm.from_config({"max_value": 1.0} | field)


def test_which_sets_swallow_steps_is_handed_on() -> None:
    for grid in (ib.Grid(0.5) & ib.Box(-1, 1), ib.Grid(0.5).where([True, False]), ib.Joint(ib.Grid(0.5))):
        assert grid.undone_steps == ib.Grid(0.5).undone_steps != ""
    assert (ib.NonNeg() & ib.MaxNorm(1)).undone_steps == ""


def test_a_shell_without_an_upper_bound() -> None:
    found = ib.MinMaxNorm(1.0, np.inf).project([[0.3, 0.4], [30.0, 40.0]])
    np.testing.assert_allclose(found, [[0.6, 0.8], [30.0, 40.0]], rtol=1e-12)
