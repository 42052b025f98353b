"""The console script, in processes of its own; `test_backend.py` is about the backend it takes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import inbounds as ib

from .conftest import in_subprocess


@pytest.mark.once
def test_no_backend_to_run_on_is_one_message():
    error = in_subprocess("sets", KERAS_BACKEND="theano").error
    assert error.startswith("inbounds: error: KERAS_BACKEND='theano' names no backend that inbounds runs on.")


@pytest.mark.once
def test_a_command_in_a_process_of_its_own(free, rules):
    """As a user runs it: the report alone on stdout, nothing on stderr, the status of the audit."""
    path = rules('[rules]\n"**/kernel" = "MaxNorm(0.5)"\n')
    outcome = in_subprocess("audit", free, "--rules", path, KERAS_BACKEND="jax")  # which is imported in half the time
    assert outcome.status == 1
    assert outcome.out.startswith("Audit of net: ")
    assert outcome.err == ""


@pytest.mark.once
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_wait_for_no_library(argument):
    code = (
        "import sys, inbounds_launcher\n"
        "try: inbounds_launcher.main(sys.argv[1:])\n"
        "finally: assert not {'keras', 'inbounds', 'numpy'} & set(sys.modules)"
    )
    source = str(Path(ib.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code, argument], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "inbounds" in done.stdout


@pytest.mark.once
def test_the_package_run_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inbounds", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("inbounds", run_name="__main__")
    assert (stop.value.code, capsys.readouterr().out) == (0, f"inbounds {ib.__version__}\n")
