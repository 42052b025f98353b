"""The layout against the layers themselves: a unit's weights alone move its one output feature.

No table of axes is believed here, not even the tests' own: the entries of each unit are moved, and
the output says to which feature they belong.
"""

import functools

import numpy as np
import pytest

import inbounds as ib

from .layers import BY_NAME, CASES, find, read

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning"),  # nothing is saved here
    pytest.mark.filterwarnings("ignore:.*You passed `rms_scaling=True`"),  # deprecated, but models that have it exist
]

ALONE = [case.name for case in CASES if set(case.spans) > set(case.shared)]
SHARED = [case.name for case in CASES if case.shared]
JOINT = [case.name for case in CASES if case.joint]
GATED = ["LSTM", "GRU", "GRU reset before", "SimpleRNN"]
RADIUS = 0.1


@functools.cache
def ours(name: str, weight: str) -> tuple[int, ...]:
    """The axes of a unit of a weight, as inbounds says for a set that asks for none of its own."""
    layer = BY_NAME[name].build()
    (entry,) = ib.constrain(layer, [(find(layer, weight), ib.NonNeg())])
    return entry.axes[0]


@functools.cache
def moved(name: str, weight: str) -> np.ndarray:
    """Which output features move when all entries of one unit do; shape (units, features)."""
    case = BY_NAME[name]
    layer = case.build()
    case.prepare(layer, weight)
    variable = find(layer, weight)
    value, span = read(variable), ours(name, weight)
    before = case.output(layer, weight)
    moves = np.random.default_rng(2).uniform(0.25, 0.5, value.shape)
    unit_of = units_of(value.shape, span)
    result = np.zeros((unit_of.max() + 1, len(before)), dtype=bool)
    for unit in range(len(result)):
        variable.assign(value + moves * (unit_of == unit))
        result[unit] = np.abs(case.output(layer, weight) - before).max(axis=1) > 1e-5
    return result


def units_of(shape: tuple[int, ...], span: tuple[int, ...]) -> np.ndarray:
    """For each entry of a weight the number of its unit."""
    counting = [1 if axis in span else n for axis, n in enumerate(shape)]
    return np.broadcast_to(np.arange(np.prod(counting, dtype=int)).reshape(counting), shape)


@pytest.mark.parametrize("name", ALONE)
def test_a_unit_moves_one_output_feature_and_is_all_that_does(name):
    """Units are whole if each moves one feature and each feature has one, or one for each gate.

    This is enough since units share no entries.
    """
    case = BY_NAME[name]
    for weight in set(case.spans) - set(case.shared):
        units = moved(name, weight)
        assert (units.sum(axis=1) == 1).all(), weight
        each = units.sum(axis=0)
        if weight.rpartition("/")[2] != "bias":  # a GRU's has two rows of them
            assert set(each[each > 0]) == {case.gates}, weight


@pytest.mark.parametrize("name", SHARED)
def test_entries_that_are_not_of_one_unit_move_several_features(name):
    for weight in BY_NAME[name].shared:
        assert ours(name, weight) == ()
        assert (moved(name, weight).sum(axis=1) > 1).all(), weight


@pytest.mark.parametrize("name", JOINT)
def test_a_joint_bounds_all_weights_of_each_output_feature_together(name):
    case = BY_NAME[name]
    layer = case.build()
    plan = ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(RADIUS), weights=case.joint)})
    assert {len(entry.weights) for entry in plan} == {len(case.joint)}
    held = [weight for weight in case.spans if weight.rpartition("/")[2] != "depthwise_kernel"]
    assert sorted(path for entry in plan for path in entry.paths) == sorted(find(layer, end).path for end in held)
    for entry in plan:
        squares = 0.0
        for weight in entry.weights:
            (end,) = [end for end in held if find(layer, end) is weight.variable]
            unit_of, features = units_of(weight.shape, ours(name, end)), moved(name, end)
            squares = squares + np.bincount(unit_of.ravel(), read(weight.variable).ravel() ** 2) @ features
        squares = squares[squares > 0]
        assert entry.units == case.gates * len(squares)
        np.testing.assert_allclose(squares, case.gates * RADIUS**2, rtol=1e-5)


@pytest.mark.parametrize("name", GATED)
def test_a_gate_of_a_unit_has_the_same_column_in_all_weights(name):
    """From an input and a state of (1, 0), a kernel's first row acts as the bias does.

    Equal columns therefore move the output alike.
    """
    case = BY_NAME[name]
    layer = case.build()
    case.prepare(layer, "kernel")
    first = np.array([[[1.0, 0.0]]], dtype="float32")
    states = [first[0]] * len(case.keywords["initial_state"])

    def moves(variable, row):
        value = read(variable)
        before = read(layer(first, initial_state=states)).reshape(-1)
        result = []
        for column in range(value.shape[-1]):
            other = value.copy()
            other[(row, column) if value.ndim == 2 else column] += 0.25
            variable.assign(other)
            result.append(read(layer(first, initial_state=states)).reshape(-1) - before)
        variable.assign(value)
        return np.array(result)

    cell = layer.cell
    kernel, of_bias = moves(cell.kernel, 0), moves(cell.bias, 0)
    recurrent = moves(cell.recurrent_kernel, 0)
    apart = np.abs(kernel[:, None] - kernel[None]).max(axis=-1) + np.eye(len(kernel))
    assert apart.min() > 1e-3
    np.testing.assert_allclose(of_bias, kernel, atol=1e-5)
    if name.startswith("GRU"):  # its candidate sees the state through the reset gate, so it moves less, or not at all
        units = cell.units
        np.testing.assert_allclose(recurrent[: 2 * units], kernel[: 2 * units], atol=1e-5)
        recurrent = np.abs(recurrent[2 * units :])
        assert (recurrent.argmax(axis=1) == np.arange(units))[recurrent.max(axis=1) > 0].all()
    else:
        np.testing.assert_allclose(recurrent, kernel, atol=1e-5)
    if cell.bias.shape[0] == 2:
        of_recurrent_bias = moves(cell.bias, 1)
        np.testing.assert_allclose(of_recurrent_bias, moves(cell.recurrent_kernel, 0), atol=1e-5)

    ib.constrain(layer, {layer: ib.Joint(ib.MaxNorm(RADIUS), weights=case.joint)})
    columns = [read(v).reshape(-1, len(kernel)) for v in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    np.testing.assert_allclose((np.concatenate(columns) ** 2).sum(axis=0), RADIUS**2, rtol=1e-5)
