"""The demo, run once as a user runs it."""

import re

import keras
import pytest

from .conftest import in_subprocess

MODELS = ("dense_sequential", "dense_functional", "conv_functional", "conv3d_subclassed", "dense_joint")


@pytest.mark.once
def test_the_demo_trains_every_model_inside_its_sets():
    outcome = in_subprocess("demo", KERAS_BACKEND=keras.backend.backend())
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "inbounds: " not in outcome.err
    assert len(re.findall(r"violation: \S+ - active: ", outcome.out)) >= 5 * 5
    assert len(re.findall(r"^Audit of \w+: \d+ holds$", outcome.out, re.M)) == 5
    summary = outcome.out[outcome.out.index("Summary") :]
    for name in MODELS:
        line = re.search(rf"^{name} +([\d.]+)% +\d+ +\d+ +0 +(\S+) +\d+% +all hold$", summary, re.M)
        assert line, summary
        assert float(line[1]) > 90, line[0]
        assert float(line[2]) < 1e-6, line[0]
    assert "Joint(MaxNorm(max_value=2.0))" in outcome.out
    assert "Custom(zero_mean)" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 120
