"""What errors say to type instead runs as written: each text in the source that is no f-string."""

import ast
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib
from instead import codes, run

PACKAGE = Path(ib.__file__).parent
TAKES_IT_LAST = {"cadence", "_given_count", "_no_match_error"}
"""Functions that are given the text by position; `refused` takes it as the fifth."""

NOT_RUN = {"optimizer.update(gradients, state, values)": "an optimizer of optax_wrap; test_loops.py has such steps"}


def given():
    """Every expression in the source that is what to type instead."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield from (keyword.value for keyword in node.keywords if keyword.arg == "instead")
                if getattr(node.func, "id", None) in TAKES_IT_LAST:
                    yield node.args[-1]
                if getattr(node.func, "id", None) == "refused":
                    yield node.args[4]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                pairs = zip(node.targets[0].elts, getattr(node.value, "elts", ()), strict=False)
                yield from (value for target, value in pairs if _is_instead(target))
            elif isinstance(node, ast.Assign) and _is_instead(node.targets[0]):
                yield node.value


def _is_instead(target):
    return isinstance(target, ast.Name) and target.id == "instead"


def texts():
    """What is said instead, in both arms of conditional expressions.

    f-strings, which hold what is received, are left out.
    """
    nodes = list(given())
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.IfExp):
            nodes += [node.body, node.orelse]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


TEXTS = sorted({text for text in texts() if codes(text) and text not in NOT_RUN})


class MyAdam(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * gradient)


def names(tmp_path):
    """What the texts take for granted, by the names that they use."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(2, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(3, bias_constraint=ib.NonNeg()),
        ]
    )
    model.compile("sgd", "mse")
    rules = {"**/kernel": ib.MaxNorm(2.0)}
    ib.constrain(model, rules)
    one = ib.MaxNorm(1.0)
    values = [variable.value for variable in model.trainable_variables]
    return {
        "MyAdam": MyAdam,
        "a": one,
        "b": ib.NonNeg(),
        "cost": keras.ops.ones(()),
        "count": 1,
        "fn": keras.ops.abs,
        "gradients": values,
        "input_shape": (None, 6, 6, 1),
        "loss": "mse",
        "metric": np.ones((2, 3)),
        "mask": np.array([[True], [False]]),
        "model": model,
        "monitor": ib.Monitor(),
        "on": one.on,
        "optimizer": keras.optimizers.SGD(),
        "path": tmp_path / "model.keras",
        "rows": [3.0, 4.0],
        "rules": rules,
        "schedule": keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5),
        "tolerance": one.tolerance,
        "values": values,
        "variable": model.trainable_variables[0],
        "weight": np.ones((2, 2), "int32"),
        "where": one.where,
        "x": np.zeros((8, 6, 6, 1)),
        "y": np.zeros((8, 3)),
    }


@pytest.mark.by_turns("text")
@pytest.mark.parametrize("text", TEXTS)
def test_what_to_type_instead_runs(text, tmp_path):
    known = names(tmp_path)
    if "path" in text:
        known["model"].save(known["path"])
    for library, backend in {"torch": "torch", "optax": "jax"}.items():
        if library in text:
            if keras.backend.backend() != backend:
                pytest.skip(f"for {backend}")
            known[library] = pytest.importorskip(library)
    for result in run(text, **known):
        if isinstance(result, dict):
            axes = all(isinstance(value, tuple) for value in result.values())
            assert ib.Layout(result).spans == result if axes else len(ib.constrain(known["model"], result)) > 0
        if isinstance(result, ib.Custom):
            assert result.project(np.ones((2, 2))).shape == (2, 2)


def test_the_texts_are_found_and_what_is_not_run_is_among_them():
    assert len(TEXTS) > 40
    assert NOT_RUN.keys() <= set(texts())


def test_no_text_leaves_out_what_is_to_be_typed():
    assert [text for text in map(ast.unparse, given()) if "..." in text] == []


def test_what_begins_like_a_call_is_code():
    assert [text for text in texts() if re.match(r"[\w.]+\(", text) and not codes(text)] == []
