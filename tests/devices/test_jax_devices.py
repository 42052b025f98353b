"""JAX with Keras' distribution API, on eight virtual devices: same weights, sharded, ungathered."""

import re
from pathlib import Path

import keras
import pytest

import repetition
from devices.heads import SETS, near
from devices.process import told_by

pytestmark = [
    pytest.mark.xdist_group("devices"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution places weights on JAX"),
]

ROOT = Path(__file__).parent.parent.parent
PART_OF_A_KERNEL = {"data": [64, 16], "units": [64, 2], "fan-in": [8, 16], "both": [32, 4]}
FITS = ["optimizer/both", "reduced/both"]
REDUCED = ["MaxNorm"]
GATHERED = ["Sparse(3)"]
SHARDINGS = ["units", "fan-in"]
if repetition.everything:  # each takes seconds to compile
    FITS = [f"{metric}/{sharding}" for metric in ("optimizer", "euclidean", "reduced") for sharding in PART_OF_A_KERNEL]
    REDUCED = ["Box", "MaxNorm", "Joint(MaxNorm)", "NonNeg & MaxNorm", "L1Ball", "Simplex"]
    GATHERED = ["Sparse(3)", "SpectralNorm"]
    SHARDINGS = ["units", "fan-in", "both"]
LOOPED = ("L1Ball", "Simplex")
UNITS = 64


@pytest.fixture(scope="module")
def told():
    """All of it from one process, which takes longest to start."""
    lists = FITS, [*REDUCED, *GATHERED], SHARDINGS, ["euclidean", "optimizer"]
    return told_by("jax_fit.py", *map(",".join, lists))


@pytest.fixture(scope="module")
def fits(told):
    return told["fits"]


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_on_eight_devices_ends_where_one_device_does(fits, fit):
    found = fits[fit]
    held = [name for name in SETS if name != "spectral" or not fit.startswith("optimizer")]
    assert all(found["moved"][name] > 0.2 for name in held), "without the sets the weights are elsewhere"
    assert all(found["apart"][name] < near(name, fit) for name in held), found["apart"]


@pytest.mark.parametrize("fit", FITS)
def test_the_audit_reads_sharded_weights(fits, fit):
    audit = fits[fit]["audit"]
    assert {status for status, _ in audit.values()} == {"holds"}
    assert audit["max_norm"][1] == audit["joint"][1] == 1.0, "all units are on their bound: the fit drove them there"


@pytest.mark.parametrize("fit", FITS)
def test_weights_keep_their_sharding(fits, fit):
    found = fits[fit]
    assert found["sharding kept"]
    assert (found["part of a kernel"], found["devices"]) == (PART_OF_A_KERNEL[fit.split("/")[1]], 8)


@pytest.fixture(scope="module")
def programs(told):
    return {(row["set"], row["metric"], row["sharding"]): row for row in told["programs"]}


@pytest.mark.parametrize("metric", ["optimizer", "euclidean"])
@pytest.mark.parametrize("name", REDUCED)
def test_where_a_reduction_is_enough_no_weight_moves_between_devices(programs, name, metric):
    for sharding in SHARDINGS:
        found = programs[name, metric, sharding]["collectives"]
        assert {kind for kind, _, _ in found} <= {"all-reduce"}
        sizes = [size for _, arrays, _ in found for size in arrays]
        a_device_has = {"units": UNITS // 8, "fan-in": UNITS, "both": UNITS // 4}[sharding]
        assert set(sizes) <= ({1} if sharding == "units" else {1, a_device_has})
        assert bool(a_device_has in sizes) is (sharding != "units" and name != "Box")


@pytest.mark.parametrize("name", [name for name in REDUCED if name not in LOOPED])
def test_sharded_along_units_nothing_is_communicated(programs, name):
    assert programs[name, "euclidean", "units"]["collectives"] == []


def test_sharded_along_units_a_loop_asks_whether_all_are_done_and_nothing_else(programs):
    for name in (name for name in REDUCED if name in ("MaxNorm", *LOOPED)):
        found = programs[name, "optimizer", "units"]["collectives"]
        assert found
        assert all(kind == "all-reduce" and sizes == [1] for kind, sizes, _ in found)


@pytest.mark.parametrize("name", GATHERED)
def test_sets_of_an_order_or_a_matrix_gather(programs, name):
    """If one no longer does, docs/devices.md and docs/measurements.md should say so."""
    kinds = {kind for kind, _, _ in programs[name, "euclidean", "fan-in"]["collectives"]}
    assert "all-gather" in kinds


def test_the_table_of_the_docs_is_what_is_measured(programs):
    text = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| (optimizer|euclidean) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    table = {(row[0], row[1]): row[2:] for row in rows}
    for name, metric in {key[:2] for key in programs}:
        measured = tuple(programs[name, metric, sharding]["summary"] for sharding in SHARDINGS)
        assert table[name, metric][: len(SHARDINGS)] == measured, name
