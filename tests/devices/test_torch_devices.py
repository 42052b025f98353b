"""PyTorch in two processes: DistributedDataParallel, sharded DTensors, and what FSDP refuses."""

import sys

import keras
import pytest

import repetition
from devices.heads import near
from devices.process import told_by

pytestmark = [
    pytest.mark.xdist_group("devices"),
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed is of PyTorch"),
    pytest.mark.skipif(sys.platform != "linux", reason="a process with PyTorch in it can be forked on Linux"),
]

TRAININGS = ["torch, euclidean", "keras, reduced", "torch, reduced"]  # who steps and who projects, in each way
GATHERED = ["spectral", "sparse"]
if repetition.everything:
    TRAININGS += ["keras, optimizer", "keras, euclidean", "torch, optimizer"]
    GATHERED += ["monotone"]
UNITS = 16
KERNEL = 64 * UNITS
REDUCED = ("max_norm", "joint", "l1_ball", "both", "sum_to", "box")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    meeting = tmp_path_factory.mktemp("torch") / "meeting"
    return told_by("torch_processes.py", str(meeting), *TRAININGS, *GATHERED[2:])


@pytest.mark.parametrize("training", TRAININGS)
def test_replicas_are_alike_and_end_where_one_process_does(found, training):
    told = found["replicated"][training]
    assert told["replicas alike"]
    assert all(far < near(name, training) for name, far in told["apart"].items()), told["apart"]
    assert {status for status, _ in told["audit"].values()} == {"holds"}
    assert told["audit"]["max_norm"][1] == told["audit"]["joint"][1] == 1.0


@pytest.mark.parametrize("name", [*REDUCED, *GATHERED])
@pytest.mark.parametrize("dim", [0, 1])
def test_sharded_weights_are_projected_as_whole_ones_are(found, name, dim):
    told = found["sharded"][f"{name}, {dim}"]
    assert told["apart"] < 1e-6 * max(1.0, told["moved"])
    assert told["holds"]
    assert told["kept"] == [f"(Shard(dim={dim}),)", "(Shard(dim=0),)"]


@pytest.mark.parametrize("name", REDUCED)
def test_sharded_along_fan_in_only_numbers_of_units_are_communicated(found, name):
    heard = found["sharded"][f"{name}, 0"]["collectives"]
    assert all(size <= UNITS for _, size in heard)
    assert bool(heard) is (name != "box")
    assert name == "joint" or all(kind == "all_reduce" for kind, _ in heard), "a bias has a process' units only"


@pytest.mark.parametrize("name", REDUCED)
def test_sharded_along_units_only_flags_are_communicated(found, name):
    heard = found["sharded"][f"{name}, 1"]["collectives"]
    assert all(told == ["all_reduce", 1] for told in heard)
    assert name not in ("max_norm", "joint", "box") or not heard


@pytest.mark.parametrize("name", GATHERED)
def test_sets_of_an_order_or_a_matrix_gather(found, name):
    """If one no longer does, docs/devices.md should say so."""
    heard = found["sharded"][f"{name}, 0"]["collectives"]
    assert max(size for kind, size in heard if kind.startswith("all_gather")) == KERNEL // 2


@pytest.mark.parametrize("metric", ["optimizer", "euclidean"])
def test_a_sharded_layer_trains_as_a_whole_one_does(found, metric):
    assert found["trained sharded"][metric] < 1e-5


@pytest.mark.parametrize("door", ["project", "audit", "constrain"])
def test_fully_shard_is_refused_since_keras_layers_do_not_compute_with_what_it_shards(found, door):
    kind, text = found["refused"][door]
    assert not any(found["refused"]["gradients"]), "else Keras follows it now, and it needn't be refused"
    assert kind == "RuleError"
    assert "A parameter of the model is not the value of its Keras variable. Received: " in text
    assert "is a DTensor, which its layer doesn't compute with: it gets no gradient" in text
    assert "Instead: DistributedDataParallel, or variables whose values are DTensors" in text


def test_a_set_that_dtensors_have_no_operations_for_is_an_error(found):
    kind, text = found["refused"]["orthogonal"]
    assert kind == "RuleError"
    assert text.startswith("The set takes an operation that PyTorch lacks for DTensors. Received: aten.")
    assert "Where: Orthogonal" in text
