"""Files that an earlier version saved: their plans are in force, whatever has moved since."""

import keras
import numpy as np
import pytest

import inbounds as ib
import repetition
from files.make import FILES, FOLDER, MADE, UNWRITTEN, data, rules_of
from inbounds._model.rules_file import read_rules
from models.measure import numbers, same_bits, values_of

BACKEND = keras.backend.backend()
MOMENTS = {"vectors": 1, "matrices": 0, "made": 2, "in_metric": 2}
"""So many variables has the optimizer for each weight."""


TRAINED = FILES if BACKEND == "torch" or repetition.everything else ("in_metric",)
"""The files whose models train on: those of all sets take JAX and TensorFlow half a minute."""


def loaded(name):
    return keras.models.load_model(FOLDER / f"{name}.keras")


def written(given, found):
    """A set as it was written, with the weights of that time where they are its centre."""
    return ib.MaxNorm(given.max_value, center=found.center) if given == MADE["current"] else given


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_an_earlier_version_has_its_plan_and_trains_on_inside(name):
    sets, arguments, _ = FILES[name]
    model = loaded(name)
    for layer, given in sets.items():
        found = model.get_layer(layer).kernel_constraint
        assert found == written(given, found), layer
        expected = {"metric": "auto", "every": 1, "gradient": "reduced"} | arguments
        assert {argument: getattr(found.training, argument) for argument in expected} == expected, layer
    assert [row.paths[0].split("/")[0] for row in ib.check(model).constrained] == list(sets)
    assert model.optimizer.iterations == 2
    moments = [slot for slot in model.optimizer.variables if slot.path.endswith(("momentum", "velocity"))]
    assert len(moments) == MOMENTS[name] * len(model.trainable_variables)
    assert all(np.any(numbers(slot)) for slot in moments)
    if name not in TRAINED:
        return
    model.run_eagerly = BACKEND != "jax"
    before = values_of(model)
    model.fit(*data(), batch_size=8, verbose=0)
    assert not same_bits(before, values_of(model))
    assert ib.check(model).ok
    assert model.optimizer.iterations == 3


@pytest.mark.parametrize("name", ["vectors", "made"])
def test_a_rules_file_of_an_earlier_version_means_the_same(name):
    meant = {layer: given for layer, given in FILES[name][0].items() if layer not in UNWRITTEN}
    read, settings = read_rules(FOLDER / f"{name}.toml", loaded(name))
    rules = {getattr(selector, "name", selector): given for selector, given in read.items()}
    assert rules == rules_of(meant)
    assert settings == {"metric": "euclidean", "every": 3, "gradient": "full", "latent": "auto"}
