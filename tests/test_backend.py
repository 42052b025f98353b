"""The backend that `import inbounds` takes, and the README as a script on one backend alone."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from inbounds import _backend

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

ALONE = """
import os, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        others = {{"jax", "torch", "tensorflow"}} - {{{backend!r}}}
        return None if name.partition(".")[0] in others else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
before = dict(os.environ)
for file in [f"pasted_{{number}}.py" for number in range({count})]:
    exec(compile(open(file, encoding="utf-8").read(), file, "exec"), {{"__name__": "__main__"}})
assert sys.modules["keras"].backend.backend() == {backend!r}
assert os.environ.get("KERAS_BACKEND") == before.get("KERAS_BACKEND")
"""


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """What is taken where only these backends are installed."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def choose(installed, given=None, config=None):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (name if name in installed else None) if name in _backend.BACKENDS else found(name),
        )
        if config is not None:
            (tmp_path / "keras.json").write_text(config, encoding="utf-8")
        return _backend._chosen(given)

    return choose


@pytest.mark.parametrize(
    ("installed", "given", "config", "taken"),
    [
        ("jax torch tensorflow", "torch", '{"backend": "jax"}', "torch"),
        ("jax torch tensorflow", "", '{"backend": "torch"}', "torch"),
        ("jax torch", None, '{"backend": "tensorflow"}', "jax"),  # as Keras writes it by itself
        ("torch", None, '{"backend": "jax"}', "torch"),
        ("torch", None, "not JSON", "torch"),
        ("torch", None, "[]", "torch"),
        ("jax torch", None, '{"backend": "numpy"}', "jax"),  # nothing trains on it
        ("jax torch tensorflow", None, None, "tensorflow"),  # Keras' own choice
        ("jax torch", None, None, "jax"),
        ("torch", None, None, "torch"),
    ],
)
def test_what_keras_takes_by_itself_where_it_is_installed_else_the_first_that_is(
    chosen, installed, given, config, taken
):
    assert chosen(installed.split(), given, config) == taken


@pytest.mark.parametrize(
    ("installed", "given", "said"),
    [
        ("", None, "Keras has no backend to run on.*Instead: pip install 'inbounds\\[jax\\]'"),
        ("jax", "torch", "KERAS_BACKEND='torch' names a backend that isn't.*pip install 'inbounds\\[torch\\]'"),
        ("jax", "numpy", "KERAS_BACKEND='numpy' names no backend that inbounds runs on.*KERAS_BACKEND=jax"),
    ],
)
def test_no_backend_to_run_on_is_an_error_that_says_what_to_type(chosen, installed, given, said):
    with pytest.raises(ImportError, match=said):
        chosen(installed.split(), given)


def test_a_finder_that_refuses_a_name_means_that_it_is_not_installed(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib.util, "find_spec", refuse)
    assert not _backend._installed("jax")


@(pytest.mark.repetition if keras.backend.backend() != "jax" else pytest.mark.repeats())  # which the README installs
def test_the_readme_runs_with_this_backend_alone_and_none_named(tmp_path):
    """Keras' settings name TensorFlow, as on a machine where Keras was imported before.

    That no backend is imported which isn't running, `test_architecture.py` shows of each.
    """
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}', encoding="utf-8")
    for number, snippet in enumerate(SNIPPETS):
        (tmp_path / f"pasted_{number}.py").write_text(snippet, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(Path(_backend.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(backend=keras.backend.backend(), count=len(SNIPPETS))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_has_snippets():
    assert SNIPPETS
