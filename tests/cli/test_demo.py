"""The demo: in a usual run for one epoch a model, with --all as a user runs it."""

import re

import keras
import pytest

from inbounds._cli import demo

from .conftest import in_subprocess

MODELS = ("dense_sequential", "dense_functional", "conv_functional", "conv3d_subclassed", "dense_joint")


@pytest.mark.once
def test_the_demo_trains_and_audits_every_model(command, monkeypatch):
    train = demo.train
    monkeypatch.setattr(demo, "train", lambda model, images, labels, epochs: train(model, images, labels, 1))
    outcome = command("demo")
    assert outcome.status == 0, outcome.err
    assert len(re.findall(r"violation: \S+ - active: ", outcome.out)) == 5
    assert_told(outcome.out, accuracy=20, violation=1e-5)


@pytest.mark.repetition
def test_the_demo_as_a_user_runs_it_is_right_nine_times_in_ten():
    outcome = in_subprocess("demo", KERAS_BACKEND=keras.backend.backend())
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "inbounds: " not in outcome.err
    assert len(re.findall(r"violation: \S+ - active: ", outcome.out)) >= 5 * 5
    assert_told(outcome.out, accuracy=90, violation=1e-6)


def assert_told(out, accuracy, violation):
    assert len(re.findall(r"^Audit of \w+: \d+ holds$", out, re.M)) == 5
    summary = out[out.index("Summary") :]
    for name in MODELS:
        line = re.search(rf"^{name} +([\d.]+)% +\d+ +\d+ +0 +(\S+) +\d+% +all hold$", summary, re.M)
        assert line, summary
        assert float(line[1]) > accuracy, line[0]
        assert float(line[2]) < violation, line[0]
    assert "Joint(MaxNorm(max_value=2.0))" in out
    assert "Custom(zero_mean)" in out
    assert max(map(len, out.splitlines())) <= 120
