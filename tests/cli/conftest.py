"""The command line run in this process, small model files, and what is true of every error."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib
import inbounds_launcher


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def error(self):
        """A failed command's message: one line on stderr, no traceback or stdout, status 2."""
        assert self.status == 2, (self.status, self.err)
        assert self.err.startswith("inbounds: error: "), self.err
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        assert self.out == ""
        return self.err


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        capsys.readouterr()
        try:
            status = inbounds_launcher.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return Outcome(status, *capsys.readouterr())

    return run


def in_subprocess(*arguments, **environment):
    """Runs a command as a user does: by the installed script where there is one."""
    script = shutil.which("inbounds", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-m", "inbounds_launcher"]
    source = str(Path(ib.__file__).parent.parent)
    as_found = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}  # the tests' own
    done = subprocess.run(
        [*start, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**as_found, "PYTHONPATH": source, "COLUMNS": "80", **environment},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def small_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.Dense(3, name="head"),
        ],
        name="net",
    )


@pytest.fixture
def saved(tmp_path):
    """Saves a model under a name in the test's folder and returns the path."""

    def save(model, name="model.keras"):
        path = tmp_path / name
        model.save(path)
        return path

    return save


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """The folder of the files below, which tests copy."""
    folder = tmp_path_factory.mktemp("models")
    model = small_model()
    conv = model.get_layer("conv")
    conv.kernel.assign(np.ones(conv.kernel.shape))
    model.save(folder / "free.keras")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.5)})
    model.save(folder / "held.keras")
    return folder


@pytest.fixture
def free(made_once, tmp_path):
    """A model without sets; its convolution has filters of norm 3."""
    return Path(shutil.copy(made_once / "free.keras", tmp_path))


@pytest.fixture
def held(made_once, tmp_path):
    """The same model saved with a plan, inside its sets."""
    return Path(shutil.copy(made_once / "held.keras", tmp_path))


@pytest.fixture
def rules(tmp_path):
    """Writes a rules file."""

    def write(text, name="rules.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
