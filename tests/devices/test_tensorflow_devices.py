"""TensorFlow with MirroredStrategy: replicas on two virtual devices agree, also with one device."""

import keras
import pytest

import repetition
from devices.heads import near
from devices.process import told_by

pytestmark = [
    pytest.mark.xdist_group("devices"),
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is of TensorFlow"),
]

TRAININGS = ["SGD, reduced"]  # the loop is in a metric
if repetition.everything:  # each takes seconds to trace
    TRAININGS += ["Lion", "Adam", "Adam, Euclidean", "loss scale"]
CASES = [*TRAININGS, "loop"]


@pytest.fixture(scope="module")
def found():
    told = told_by("tensorflow_mirrored.py", *TRAININGS, *(["half"] if repetition.everything else []))
    return told | told.pop("fit")


HALF = pytest.param("half", marks=pytest.mark.repetition)


@pytest.mark.parametrize("case", [*CASES, HALF])
def test_replicas_are_alike_bit_for_bit(found, case):
    assert found[case]["replicas alike"]


@pytest.mark.parametrize("case", CASES)
def test_two_devices_end_where_one_does(found, case):
    held = found[case]["apart"].keys() - ({"spectral"} if case not in ("Adam, Euclidean", "SGD, reduced") else set())
    assert all(found[case]["apart"][name] < near(name, case) for name in held), found[case]["apart"]


@pytest.mark.repetition
def test_in_half_precision_they_end_near_it(found):
    assert found["half"]["optimizer"] == "LossScaleOptimizer"
    assert all(far < 5e-3 for far in found["half"]["apart"].values()), found["half"]["apart"]


@pytest.mark.parametrize("case", [*CASES, HALF])
def test_weights_are_inside_and_were_driven_to_their_bounds(found, case):
    audit = found[case]["audit"]
    assert {status for status, _ in audit.values()} == {"holds"}
    assert audit["max_norm"][1] == audit["joint"][1] == 1.0


def test_a_step_projects_once_on_each_device_and_on_one(found):
    """Besides once when the model is constrained, and once when `fit` begins."""
    assert found["halved"] == [2 + found["steps"]] * 2
    assert found["halved on one"] == 2 + found["steps"]
