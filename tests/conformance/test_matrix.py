"""Cells of the conformance matrix: all of them on demand; in a usual run those that cover its axes.

A usual run has also the cells that fail with a mechanism switched off: here they pass with it on.
"""

import keras
import pytest

import repetition
from conformance import matrix
from conformance.mechanisms import MECHANISMS
from conformance.optimizers import OPTIMIZERS

BACKEND = keras.backend.backend()
OFF_HERE = [
    each
    for each in MECHANISMS.values()
    if BACKEND in (each.backends if repetition.everything else [repetition.first_of(each.backends)])
]
WITNESSES = [cell for each in OFF_HERE for cell in each.witnesses]

pytestmark = pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # asked for where a cell copies models


def chosen(config):
    count = config.getoption("--cells", None) or ("pairs" if repetition.everything else "values")
    seed = config.getoption("--cells-seed", 0)
    if count == "all":
        return matrix.cells()
    return matrix.sampled(count if count in ("values", "pairs") else int(count), seed, WITNESSES)


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        cells = matrix.refused() if "refusal" in metafunc.function.__name__ else chosen(metafunc.config)
        metafunc.parametrize("cell", cells, ids=str)


def ran(cell, folder, record):
    record("cell", str(cell))
    outcome = "failed"
    try:
        outcome = matrix.run(cell, folder)
    finally:
        record("outcome", outcome)
    return outcome


def test_cell(cell, tmp_path, record_property):
    assert ran(cell, tmp_path, record_property) in ("passed", "refused")


def test_every_refusal_is_as_declared(cell, tmp_path, record_property):
    assert ran(cell, tmp_path, record_property) == "refused"


# The sample.


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_has_each_value_of_each_axis_and_no_pair_of_a_situation_twice_before_others_once(seed):
    cells = matrix.sampled(50, seed)
    assert len(set(cells)) == len(cells) == 50
    assert_every_value_of_every_axis(cells)
    for axis in ("set", "optimizer"):
        pairs = [(cell.situation, getattr(cell, axis)) for cell in cells]
        assert len(set(pairs)) == len(pairs)


def test_a_usual_run_has_each_value_of_each_axis_in_few_cells():
    cells = matrix.sampled("values", 0, WITNESSES)
    assert set(WITNESSES) < set(cells)
    assert_every_value_of_every_axis(cells)
    assert len(set(cells)) == len(cells) < 60


def assert_every_value_of_every_axis(cells):
    assert {cell.situation for cell in cells} == set(matrix.possible_situations())
    assert {cell.set for cell in cells} == set(matrix.SETS)
    assert {cell.optimizer for cell in cells} == set(matrix.OPTIMIZERS)
    assert {cell.layer for cell in cells} == set(matrix.LAYERS)


@pytest.mark.repetition
def test_a_sample_of_pairs_has_each_pair_that_is_possible():
    covered = {pair for cell in matrix.sampled("pairs", 0) for pair in matrix.pairs_of(cell)}
    assert covered == {pair for cell in matrix.cells() for pair in matrix.pairs_of(cell)}


def test_the_axis_of_optimizers_has_all_that_keras_ships():
    built_in = {name for name, value in vars(keras.optimizers).items() if isinstance(value, type)}
    assert built_in - {"Optimizer", "OptimizerMap"} == {type(make()).__name__ for make in OPTIMIZERS.values()}
