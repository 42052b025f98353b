"""Every snippet of the README and the docs runs; every docstring example gives what it says."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib

pytestmark = pytest.mark.by_turns

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.md"))
MODULES = [module.name for module in pkgutil.walk_packages(ib.__path__, "inbounds.") if "__main__" not in module.name]


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if snippets(page)], ids=lambda page: page.stem)
def test_snippets_run(page, tmp_path, monkeypatch):
    """A snippet fails by raising; it asserts what its page claims. README: test_backend.py."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for snippet in snippets(page):
        exec(compile(snippet, page.name, "exec"), names)


@pytest.mark.repetition
@pytest.mark.parametrize("page", GALLERY, ids=lambda page: page.stem)
def test_the_gallery_runs(page, tmp_path, monkeypatch):
    """Packages of which a page takes the data alone are installed as it says."""
    for package in re.findall(r"^    pip install --no-deps (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        folder = ROOT / ".pytest_cache" / package
        if not folder.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), package]
            subprocess.run(pip, check=True)
        monkeypatch.syspath_prepend(folder)
    test_snippets_run(page, tmp_path, monkeypatch)


@pytest.mark.once
def test_pages_of_the_gallery_are_notebooks_too(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "gallery.py", "--notebooks", tmp_path], check=True)
    for page in GALLERY:
        cells = json.loads((tmp_path / f"{page.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        assert code == [snippet.strip() for snippet in snippets(page)]


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES + GALLERY, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", "mse")
    x, y = np.zeros((8, 6, 6, 1)), np.zeros((8, 3))
    names = {name: getattr(ib, name) for name in ib.__all__} | {
        "keras": keras,
        "np": np,
        "model": model,
        "x": x,
        "y": y,
    }
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    loaded = importlib.import_module(module)
    for test in finder.find(loaded, extraglobs=names):
        output = []
        runner.run(test, out=output.append)
        assert not output, "".join(output)
