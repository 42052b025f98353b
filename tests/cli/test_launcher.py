"""The console script: the choice of a backend before Keras is imported, in processes of their own."""

import importlib.util
import os

import keras
import pytest

import inbounds as ib
import inbounds_launcher

from .conftest import Outcome, in_subprocess


@pytest.fixture
def launched(monkeypatch, capsys):
    """Runs the launcher where only these backends are installed, and returns the outcome and the one that it chose."""
    monkeypatch.setenv("KERAS_BACKEND", "")
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back after the test, whatever the launcher makes of it

    def launch(*installed, wanted=""):
        os.environ["KERAS_BACKEND"] = wanted
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
        status = inbounds_launcher.main(["sets"])
        return Outcome(status, *capsys.readouterr()), os.environ["KERAS_BACKEND"]

    return launch


@pytest.mark.parametrize(
    ("installed", "wanted", "chosen"),
    [
        (("tensorflow", "torch", "jax"), "", "jax"),
        (("tensorflow", "torch"), "", "torch"),
        (("tensorflow",), "", "tensorflow"),
        (("jax", "torch"), "torch", "torch"),
    ],
)
def test_the_backend_that_is_named_else_the_first_that_is_installed(launched, installed, wanted, chosen):
    outcome, backend = launched(*installed, wanted=wanted)
    assert outcome.status == 0
    assert backend == chosen


@pytest.mark.parametrize(
    ("installed", "wanted", "said"),
    [
        ((), "", 'pip install "inbounds[jax]"'),
        (("jax",), "torch", 'pip install "inbounds[torch]"'),
        (("jax", "numpy"), "numpy", "KERAS_BACKEND='numpy'"),
        (("jax",), "jaxx", 'pip install "inbounds[jax]"'),
    ],
)
def test_no_backend_to_run_on(launched, installed, wanted, said):
    assert said in launched(*installed, wanted=wanted)[0].error


@pytest.mark.once
def test_an_unknown_backend_in_a_process_of_its_own():
    assert "KERAS_BACKEND='theano'" in in_subprocess("sets", KERAS_BACKEND="theano").error


def test_a_command_in_a_process_of_its_own(free, rules):
    """As a user runs it: nothing but the report on stdout, nothing on stderr, the status of the audit."""
    path = rules('[rules]\n"**/kernel" = "MaxNorm(0.5)"\n')
    outcome = in_subprocess("audit", free, "--rules", path, KERAS_BACKEND=keras.backend.backend())
    assert outcome.status == 1
    assert outcome.out.startswith("Audit of net: ")
    assert outcome.err == ""


@pytest.mark.once
def test_an_error_in_a_process_of_its_own_where_no_backend_is_named(tmp_path):
    assert "does not exist" in in_subprocess("audit", tmp_path / "none.keras", KERAS_BACKEND="").error


@pytest.mark.once
def test_the_package_run_as_a_module():
    outcome = in_subprocess("--version", module="inbounds", KERAS_BACKEND=keras.backend.backend())
    assert (outcome.status, outcome.out) == (0, f"inbounds {ib.__version__}\n")
