"""The demo: in a usual run with few steps, with --all as a user runs it."""

import re
import sys
from dataclasses import replace

import cvxpy as cp
import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds._cli import demo

from .conftest import in_subprocess

MODELS = ("logistic", "dense", "functional", "convolutional")


@pytest.fixture
def few(monkeypatch):
    images = [part[:128] for part in demo.digits()]
    monkeypatch.setattr(demo, "digits", lambda: images)


@pytest.mark.once
def test_the_demo_shows_what_holds_and_what_does_not(command, few, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "TRIALS", [replace(trial, epochs=3, rate=0.1) for trial in demo.TRIALS])
    folder = tmp_path / "new" / "folder"
    outcome = command("demo", "--output", folder)
    assert outcome.status == 0, outcome.err
    told = rows(outcome.out)
    assert list(told) == [(model, kind) for model in MODELS for kind in ("nothing", "Keras", "inbounds")]
    for (model, kind), (accuracy, above, violation, verdict) in told.items():
        assert 0 < float(accuracy) < 100
        assert (above == "-") == (model != "logistic" or kind == "nothing")
        assert (verdict == "holds") == (float(violation) == 0)
        assert verdict == "holds" or kind != "inbounds"
    assert told["convolutional", "Keras"][3].endswith("outside")
    assert len(re.findall(r"^\w+: trained in \d+ s$", outcome.out, re.M)) == 4
    assert {path.name for path in folder.iterdir()} == {*demo.PAGES.values(), demo.PICTURE}

    (folder / "keras.html").write_text("mine")
    assert "keras.html': it exists" in command("demo", "-o", folder).error
    assert "keras.html': it is a file" in command("demo", "-o", folder / "keras.html").error
    assert (folder / "keras.html").read_text() == "mine"


@pytest.mark.once
def test_the_demo_fails_where_a_set_of_ours_does_not_hold_and_says_that_there_is_no_picture(
    command, few, monkeypatch, tmp_path
):
    untrained = demo.logistic()
    result = demo.Result(np.full(1, 9.0), 1.0, ib.audit(untrained, demo.TRIALS[0].rules))
    monkeypatch.setattr(demo, "train", lambda *_: result)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = command("demo", "-o", tmp_path)
    assert outcome.status == 1
    assert "outside" in rows(outcome.out)["logistic", "inbounds"][3]
    assert "No convergence.png. Nothing is drawn: matplotlib is not installed" in outcome.out
    assert "convergence" not in outcome.out.splitlines()[-1]


@pytest.mark.once
def test_the_optimum_is_the_one_that_clarabel_finds():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 6)), rng.integers(0, 10, 60)
    w = cp.Variable((6, 10))
    losses = cp.log_sum_exp(x @ w, axis=1) - cp.sum(cp.multiply(np.eye(10)[y], x @ w), axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum(losses) / 60), [cp.norm(w, axis=0) <= 1])
    assert abs(demo.optimum(x, y) - problem.solve(solver="CLARABEL")) < 1e-7


@pytest.mark.repetition
def test_the_demo_as_a_user_runs_it(tmp_path):
    outcome = in_subprocess("demo", "--output", tmp_path, KERAS_BACKEND=keras.backend.backend())
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    told = rows(outcome.out)
    assert all(float(accuracy) > 85 for accuracy, *_ in told.values())
    assert float(told["logistic", "Keras"][1]) > 10
    assert float(told["logistic", "inbounds"][1]) == 0
    assert max(map(len, outcome.out.split("Written:")[0].splitlines())) <= 80


def rows(out):
    """By model and constraints: accuracy, percent above the optimum, violation and verdict."""
    found = re.findall(
        r"^(\w+) +(nothing|Keras|inbounds) +([\d.]+)% +(-|[\d.]+)%? +(\S+) +(holds|\d+ of.*)$", out, re.M
    )
    return {(model, kind): told for model, kind, *told in found}
