"""The commands, run in this process: their output, exit status, and every mistake of a user."""

import hashlib
import json
import math
import re
import sys

import keras
import numpy as np
import pytest

import inbounds as ib

from .conftest import small_model

pytestmark = pytest.mark.once

ROW = {
    "paths": list,
    "set": str,
    "units": int,
    "violated": int,
    "violation": (float, type(None)),
    "worst_unit": (list, type(None)),
    "active": (float, type(None)),
    "tolerance": float,
    "status": str,
    "note": str,
    "definition": str,
    "source": str,
    "excess": list,
    "entries": list,
    "singular_values": list,
}

KERNELS = '[rules]\n"**/kernel" = "MaxNorm(0.5)"\n'


# audit


def test_audit_of_a_model_inside_its_sets(command, held):
    outcome = command("audit", held)
    assert outcome.status == 0
    assert outcome.err == ""
    assert outcome.out.startswith("Audit of net: 3 holds, 7 free\n")
    assert re.search(r"^hidden/kernel +MaxNorm\(max_value=0\.5\) +5 +0 .* holds$", outcome.out, re.MULTILINE)
    assert max(map(len, outcome.out.splitlines())) <= 120


def test_audit_of_a_model_outside_its_sets(command, held, saved):
    model = keras.saving.load_model(held)
    model.get_layer("conv").kernel.assign(np.ones((3, 3, 1, 4)))
    outcome = command("audit", saved(model))
    assert outcome.status == 1
    assert outcome.out.startswith("Audit of net: 1 violated, 2 holds, 7 free\n")


def test_audit_with_rules_of_a_model_without_sets(command, free, rules):
    assert command("audit", free, "--rules", rules(KERNELS)).status == 1
    assert command("audit", free, "--rules", rules('[rules]\n"**/kernel" = "MaxNorm(100)"\n')).status == 0
    path = rules('[rules]\n"**" = "Joint(MaxNorm(100))"\n')
    error = command("audit", free, "--rules", path).error
    assert error.endswith(f"In: {path}, where [rules] are for weights and [layers] for layers.\n")


def test_audit_of_a_model_in_which_nothing_is_constrained(command, free):
    outcome = command("audit", free)
    assert outcome.status == 1
    assert outcome.out.startswith("Audit of net: nothing is constrained, 10 free\n")
    assert outcome.err.startswith("inbounds: Nothing is constrained: no weight of the model has a set.")
    assert outcome.err.endswith(f"Instead: inbounds audit {free} --rules FILE.toml.\n")
    assert json.loads(command("audit", free, "--json").out)["ok"] is False


def test_audit_accepts_an_axis_of_keras_where_told_to(command, saved):
    constraint = keras.constraints.MaxNorm(1.5)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv", kernel_constraint=constraint)]
    )
    model.layers[0].kernel.assign(np.full((3, 3, 3, 4), 0.45))
    path = saved(model)
    outcome = command("audit", path)
    assert outcome.status == 1
    assert re.search(r"^conv/kernel .* misaligned$", outcome.out, re.MULTILINE)
    assert command("audit", path, "--accept", "nothing/kernel").error.count("conv/kernel") >= 1
    assert command("audit", path, "--accept", "conv/kernel", "--accept", "conv/*").status == 0


def test_names_reach_the_terminal_and_files_without_control_characters(command, saved, tmp_path):
    layer = keras.layers.Dense(2, name="a\x1b[2Kb\nc", kernel_constraint=ib.MaxNorm(1.0))
    model = keras.Sequential([keras.Input((3,)), layer], name="net\x1b[1A")
    ib.constrain(model)
    page = tmp_path / "page.html"
    outcomes = [command("audit", saved(model), "--html", page), command("audit", saved(model), "--json")]
    outcomes += [command("layout", saved(model)), command("audit", tmp_path / "no\x1b[2K\nfile.keras")]
    texts = [text for outcome in outcomes for text in (outcome.out, outcome.err)] + [page.read_text(encoding="utf-8")]
    assert not any("\x1b" in text or "b\nc" in text or "no\n" in text for text in texts)
    assert json.loads(outcomes[1].out)["rows"][0]["paths"] == [r"a\x1b[2Kb\nc/kernel"]
    assert "does not exist" in outcomes[3].error


def test_audit_as_json(command, free, held, rules):
    outcome = command("audit", free, "--rules", rules(KERNELS), "--json")
    assert outcome.status == 1
    report = json.loads(outcome.out)
    assert set(report) == {"model", "ok", "violation", "active", "provenance", "rules", "rows"}
    assert report["model"] == "net"
    assert report["ok"] is False
    assert math.isclose(report["violation"], 2.5, rel_tol=1e-6)
    assert len(report["rows"]) == 10
    assert report["rules"] == {"**/kernel": "MaxNorm(max_value=0.5)"}
    assert report["provenance"]["file"] == free.name
    assert report["provenance"]["sha256"] == hashlib.sha256(free.read_bytes()).hexdigest()
    for row in report["rows"]:
        assert set(row) == set(ROW)
        assert all(isinstance(row[name], kind) for name, kind in ROW.items())
    conv = report["rows"][0]
    assert (conv["paths"], conv["status"], conv["units"], conv["violated"]) == (["conv/kernel"], "violated", 4, 4)
    assert conv["worst_unit"] in ([0], [1], [2], [3])
    assert json.loads(command("audit", held, "--json").out)["ok"] is True


def test_audit_as_html(command, held, tmp_path):
    page = tmp_path / "report.html"
    outcome = command("audit", held, "--html", page, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out)["ok"] is True
    assert str(page) in outcome.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "hidden/kernel" in text
    assert "MaxNorm(max_value=0.5)" in text
    assert str(page) in command("audit", held, "--html", page, "--force").out


def test_html_that_cannot_be_written(command, held, tmp_path):
    target, written = tmp_path / "none" / "report.html", held.read_bytes()
    assert f"error: Can't write {str(target)!r}: No such file" in command("audit", held, "--html", target).error
    assert "it is the model" in command("audit", held, "--html", held, "--force").error
    page = tmp_path / "report.html"
    page.write_text("precious", encoding="utf-8")
    assert "--force" in command("audit", held, "--html", page).error
    assert (held.read_bytes(), page.read_text(encoding="utf-8")) == (written, "precious")
    assert command("audit", held, "--html", page, "--force").status == 0
    assert "All 3 sets hold." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_an_audit_fits_the_terminal(command, saved, monkeypatch, columns):
    model = small_model()
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.5)})
    path = saved(model)
    monkeypatch.setenv("COLUMNS", str(columns))
    out = command("audit", path).out
    assert max(map(len, out.splitlines())) <= columns
    assert re.search(r"^hidden/kernel", out, re.M)
    for word in ("MaxNorm(max_value=0.5)", "units", "tolerance", "holds"):
        assert word in out
    assert "7 weights without a set: 5 no rule, 2 not trained by an optimizer" in " ".join(out.split())


def test_names_with_markup_are_printed_as_they_are(command, saved):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="[red]x[bold]")])
    ib.constrain(model, {"kernel": ib.MaxNorm(0.5)})
    assert "\n[red]x[bold]/kernel  " in command("audit", saved(model)).out


@pytest.mark.parametrize(("environment", "colour"), [({}, 0), ({"FORCE_COLOR": "1"}, 2), ({"NO_COLOR": "1"}, 0)])
def test_only_a_terminal_shows_colour(command, held, monkeypatch, environment, colour):
    """FORCE_COLOR stands for a terminal; a pipe and NO_COLOR have none."""
    model = keras.saving.load_model(held)
    model.get_layer("conv").kernel.assign(np.ones((3, 3, 1, 4)))
    model.save(held)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"FORCE_COLOR": "1"} | environment if environment else {}).items():
        monkeypatch.setenv(name, value)
    out = command("audit", held).out
    assert out.count("\x1b[31mviolated\x1b[0m") == colour
    assert ("\x1b" in out) == bool(colour)


# compare


def cells_of(out, path):
    (line,) = re.findall(rf"^{path}  .*$", out, re.M)
    return re.split(r" {2,}", line)[1:]


def test_compare_shows_what_training_did_to_each_set(command, held, saved):
    model = keras.saving.load_model(held)
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.zeros(hidden.shape))
    before = saved(model, "before.keras")
    hidden.assign(np.pad([[0.3, 0.9], [0.4, 0.0]], ((0, 62), (0, 3))))
    model.get_layer("head").bias.assign([3.0, 4.0, 0.0])
    outcome = command("compare", before, saved(model))
    assert outcome.status == 1
    assert outcome.out.startswith("Comparison of net, before -> after\n")
    assert cells_of(outcome.out, "hidden/kernel") == [
        "MaxNorm(max_value=0.5)", "5", "0 -> 1", "0 -> 0.4", "- -> 1", "0% -> 20%", "1.03", "violated",
    ]  # fmt: skip
    assert "7 weights without a set moved by 5" in outcome.out
    same = command("compare", before, before)
    assert same.status == 0
    assert cells_of(same.out, "hidden/kernel")[-2:] == ["0", "holds"]


def test_compare_shows_what_a_quantization_did(command, saved):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="out")])
    ib.constrain(model, {"kernel": ib.MaxNorm(0.5)})
    model.layers[0].kernel.assign([[0.3, 0.1], [0.4, 0.1], [0.0, 0.0], [0.001, 0.0]])
    before, exact = saved(model, "before.keras"), keras.ops.convert_to_numpy(model.layers[0].kernel)
    model.layers[0].quantize("int8")
    stored, scale = (keras.ops.convert_to_numpy(w) for w in (model.layers[0]._kernel, model.layers[0].kernel_scale))
    out = command("compare", before, saved(model)).out
    assert float(cells_of(out, "out/kernel")[-2]) == pytest.approx(np.linalg.norm(stored / scale - exact), rel=0.01)
    assert "measured is what the integers stand for" in " ".join(out.split())


def test_compare_of_models_with_different_sets_and_weights(command, free, held, saved, rules):
    out = command("compare", free, held).out
    assert cells_of(out, "conv/kernel")[2] == "- -> 0"
    assert "a set only after" in out
    assert cells_of(command("compare", held, free).out, "conv/kernel")[-1] == "free"
    path = rules(KERNELS)
    assert cells_of(command("compare", free, held, "--rules", path).out, "conv/kernel")[2] == "4 -> 0"
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="hidden")], name="net")
    wide = saved(other, "wide.keras")
    out = command("compare", held, wide).out
    assert cells_of(out, "hidden/kernel")[-2:] == ["-", "free"]
    assert re.search("hidden/kernel, hidden/bias, .*: not in both models, or of another shape", " ".join(out.split()))
    lone = saved(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="other")], name="lone"), "lone.keras")
    assert "no weight in common" in command("compare", held, lone).error


def test_the_model_file_is_only_read(command, held):
    before = held.read_bytes()
    command("audit", held)
    command("layout", held)
    assert held.read_bytes() == before


# project


def test_project_saves_the_model_inside_its_sets_with_the_plan(command, free, rules, tmp_path):
    before = free.read_bytes()
    target = tmp_path / "out.keras"
    outcome = command("project", free, "-o", target, "--rules", rules(KERNELS))
    assert outcome.status == 0
    assert re.search(r"^conv/kernel +MaxNorm\(max_value=0\.5\) +4  4 -> 0 +2\.5 -> ", outcome.out, re.MULTILINE)
    assert outcome.out.endswith(f"\nWritten: {target}\n")
    assert max(map(len, outcome.out.splitlines())) <= 120
    assert free.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free.keras", "out.keras", "rules.toml"]

    model = keras.saving.load_model(target)
    norms = np.linalg.norm(keras.ops.convert_to_numpy(model.get_layer("conv").kernel).reshape(9, 4), axis=0)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 6, 6, 1)), 100 * np.ones((8, 3)), epochs=2, verbose=0)
    assert ib.check(model).rows[0].status == "holds"
    assert command("audit", target).status == 0


def test_project_keeps_how_the_model_was_compiled_and_its_optimizer(command, saved, rules, tmp_path):
    model = small_model()
    model.compile(keras.optimizers.Adam(0.0123), "mse", metrics=["mae"])
    model.fit(np.ones((8, 6, 6, 1)), np.ones((8, 3)), epochs=3, verbose=0)
    target = tmp_path / "out.keras"
    assert command("project", saved(model), "-o", target, "--rules", rules(KERNELS)).status == 0
    again = keras.saving.load_model(target)
    assert int(again.optimizer.iterations) == 3
    assert float(again.optimizer.learning_rate) == pytest.approx(0.0123)


def test_project_overwrites_its_input_only_where_told_to(command, free, rules):
    assert command("project", free, "-o", free, "--rules", rules(KERNELS)).status == 0
    assert command("audit", free).out.startswith("Audit of net: 3 holds, 7 free\n")


def test_a_save_that_fails_leaves_the_output_as_it_was(command, free, rules, tmp_path, monkeypatch):
    def fail(model, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", fail)
    target = tmp_path / "out.keras"
    target.write_bytes(b"precious")
    assert "No space left" in command("project", free, "-o", target, "--rules", rules(KERNELS)).error
    assert target.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free.keras", "out.keras", "rules.toml"]


def test_project_of_weights_that_no_projection_can_help(command, free, rules, tmp_path):
    model = keras.saving.load_model(free)
    model.get_layer("conv").kernel.assign(np.full((3, 3, 1, 4), np.nan))
    model.save(free)
    outcome = command("project", free, "-o", tmp_path / "out.keras", "--rules", rules(KERNELS))
    assert outcome.status == 1
    assert "inf -> inf" in outcome.out


@pytest.mark.filterwarnings("default::inbounds.PlanNotSavedWarning")
def test_project_says_what_a_file_does_not_carry(command, saved, rules, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.RMSNormalization(name="rms")])
    path = rules('[rules]\n"scale" = "Box(0.5, 2)"\n')
    outcome = command("project", saved(model), "-o", tmp_path / "out.keras", "--rules", path)
    assert outcome.status == 0
    assert outcome.err.startswith("inbounds: warning: A .keras file does not carry the whole plan")


def test_outputs_that_cannot_be_written(command, free, rules, tmp_path):
    path = rules(KERNELS)
    assert "No such file" in command("project", free, "-o", tmp_path / "none" / "o.keras", "--rules", path).error
    assert "out.keras" in command("project", free, "-o", tmp_path / "out.h5", "--rules", path).error
    assert "model.keras" in command("project", free, "-o", ".", "--rules", path).error


def test_a_fault_of_inbounds_is_no_verdict(command, free, monkeypatch):
    monkeypatch.setattr("inbounds._cli.cli.audit", lambda *_: 1 / 0)
    outcome = command("audit", free)
    assert outcome.status == 2
    assert outcome.err.endswith("ZeroDivisionError: division by zero\n")


# layout


def test_layout_shows_every_weight(command, free):
    outcome = command("layout", free)
    assert outcome.status == 0
    assert outcome.out.startswith("Layout of net: 10 weights\n")
    lines = [line.split("  ") for line in outcome.out.splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["conv/kernel"] == ["(3, 3, 1, 4)", "Conv2D", "0, 1, 2", "4", "9"]
    assert cells["conv/bias"] == ["(4,)", "Conv2D", "none", "4", "1"]
    assert cells["head/kernel"] == ["(5, 3)", "Dense", "0", "3", "5"]
    assert cells["norm/moving_mean"] == ["(4,)", "BatchNormalization", "none", "4", "1"]


# models that can't be read


def test_files_that_are_no_models(command, tmp_path, rules):
    text = rules(KERNELS)
    (tmp_path / "text.keras").write_text("not a model", encoding="utf-8")
    (tmp_path / "text.h5").write_text("not a model", encoding="utf-8")
    for name in ("audit", "layout"):
        missing = str(tmp_path / "none.keras")
        assert f"error: Can't read the model {missing!r}: it does not exist" in command(name, missing).error
        assert "is a folder" in command(name, tmp_path).error
        assert "zip archive" in command(name, tmp_path / "text.keras").error
    assert "does not end in .keras" in command("audit", text).error
    assert "error: Keras can't load the model" in command("audit", tmp_path / "text.h5").error
    out = tmp_path / "out.keras"
    assert "does not exist" in command("project", tmp_path / "none.keras", "-o", out, "--rules", text).error
    assert not out.exists()


def test_a_model_file_that_is_cut_off(command, free):
    free.write_bytes(free.read_bytes()[:-100])
    assert "cut off" in command("audit", free).error


def test_a_model_without_weights(command, saved, rules):
    path = saved(keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]))
    assert "weights" in command("audit", path).error
    assert "weights" in command("layout", path).error
    assert "weights" in command("audit", path, "--rules", rules(KERNELS)).error


def test_a_model_with_layers_of_ones_own(command, saved, tmp_path, monkeypatch):
    """Its class is missing until the module that registers it is imported."""
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "import inbounds as ib\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Mix(keras.layers.Layer):\n"
        "    def build(self, shape):\n"
        "        self.mix = self.add_weight(shape=(3, shape[-1]), name='mix')\n"
        "    def call(self, x):\n"
        "        return x @ keras.ops.transpose(self.mix)\n"
        "ib.register_layout(Mix, {'mix': (1,)})\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import mine

    path = saved(keras.Sequential([keras.Input((4,)), mine.Mix(name="mixer")]))
    keras.saving.get_custom_objects().pop("mine>Mix")
    monkeypatch.delitem(sys.modules, "mine")
    monkeypatch.setattr(sys, "path", sys.path[1:])

    error = command("audit", path).error
    assert "Mix" in error
    assert "--import" in error
    outcome = command("layout", path, "--import", "mine")
    assert outcome.status == 0
    assert outcome.out.startswith("Layout of sequential: 1 weight\n")
    assert re.search(r"^mixer/mix +\(3, 4\) +Mix +1 +3 +4$", outcome.out, re.M)
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    for name in ("nowhere", "broken", ""):
        assert f"Can't import {name!r}" in command("audit", path, "--import", name).error


# rules and arguments that mean nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[rules]\n"kernel" = "MaxNrom(1)"\n', "MaxNorm"),
        ('[rules]\n"kernel" = "MaxNorm(-1)"\n', "max_value=-1"),
        ('[rules]\n"kernel = "NonNeg"\n', "line 2"),
        ('[rulez]\n"kernel" = "NonNeg"\n', "rules"),
        ('[rules]\n"hiden/kernel" = "NonNeg"\n', "hidden/kernel"),
        ('[layers]\nhiden = "Joint(NonNeg)"\n', "hidden"),
        ('[layers]\nDense = "NonNeg"\n', "Joint(NonNeg())"),
        ('[layers]\nDense = {kernl = "NonNeg"}\n', "kernel"),
        ('[rules]\n"hidden/*" = "Joint(NonNeg)"\n', "A Joint is for a layer"),
        ('[rules]\n"hidden/kernel" = "Box(0, [1, 2])"\n', "hidden/kernel"),
        ('[rules]\n"hidden/kernel" = "MaxNorm(1, axis=2)"\n', "axis"),
    ],
)
def test_mistakes_in_a_rules_file(command, free, rules, tmp_path, text, said):
    path = rules(text)
    assert said in command("audit", free, "--rules", path).error
    assert said in command("project", free, "-o", tmp_path / "out.keras", "--rules", path).error
    assert not (tmp_path / "out.keras").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["audi"],
        ["audit"],
        ["audit", "a.keras", "b.keras"],
        ["audit", "a.keras", "--jsn"],
        ["audit", "a.keras", "--rules"],
        ["project", "a.keras"],
        ["project", "a.keras", "-o", "b.keras"],
        ["layout"],
        ["demo", "--fast"],
    ],
    ids=" ".join,
)
def test_arguments_that_mean_nothing(command, arguments):
    assert "--help" in command(*arguments).error


def test_help_and_version(command):
    outcome = command("--help")
    assert outcome.status == 0
    for name in ("audit", "compare", "project", "sets", "layout", "demo"):
        assert re.search(rf"^ +{name} ", outcome.out, re.M)
        assert command(name, "--help").out.startswith(f"usage: inbounds {name}")
    assert command("--version").out == f"inbounds {ib.__version__}\n"


def test_the_demo_without_scikit_learn(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert 'pip install "inbounds[jax,demo]"' in command("demo").error
