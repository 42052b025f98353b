"""A report's page: what is on it, what its plots show, and that nothing comes from elsewhere.

Pages are parsed. Where Chromium is installed, one of 1,000 layers is opened, sorted and filtered
in it.
"""

import base64
import hashlib
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds import Report, Row

pytestmark = pytest.mark.once

VOID = {"meta", "link", "br", "input", "option", "path"}
NAMES = """
html head title style body header main section article figure figcaption div p h1 h2 h3 b strong span code small dl dt
dd label select output button table caption thead tbody tr th td svg script
"""
CLICKS = """
const first = () => document.querySelector("tbody tr:not([hidden]) th").textContent;
const [words, status, count] = document.querySelectorAll("input, select, output"), found = [];
const laid = document.body.offsetHeight, milliseconds = Math.round(performance.now());
document.querySelectorAll("thead button")[5].click();
found.push(first());
words.value = "block_7 kernel";
words.dispatchEvent(new Event("input"));
found.push(count.textContent);
status.value = "violated";
status.dispatchEvent(new Event("change"));
found.push(count.textContent, first());
addEventListener("load", () => {
  document.body.innerHTML = `<pre>${[...found, milliseconds].join("|")}</pre>`;
});
"""
"""What a reader does: sorts by violation, filters by two words, then by the status."""

TAGS = VOID | set(NAMES.split())
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """The elements of a page, with attributes and all their text; raises where tags don't match."""

    def __init__(self, text):
        super().__init__()
        self.text, self.found, self._open = text, [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS, tag
        self.found.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(self.found[-1])

    def handle_startendtag(self, tag, attributes):
        assert tag in TAGS, tag
        self.found.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag):
        return ["".join(text) for name, _, text in self.found if name == tag]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.found if name == tag]

    @property
    def rows(self):
        """The rows of the table, as lists of texts."""
        cells = [("".join(text), name) for name, _, text in self.found if name in ("tr", "th", "td")]
        rows = []
        for text, name in cells:
            rows += [[]] if name == "tr" else []
            if name != "tr":
                rows[-1].append(text)
        return rows[1:]


@pytest.fixture
def page(tmp_path):
    return lambda report: Page(report.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))


def row(path="layer/kernel", excess=(), **values):
    units = max(len(excess), 1)
    made = Row((path,), "MaxNorm(max_value=1.0)", units, 0, 0.0, None, 0.5, 1e-6, "holds", excess=tuple(excess))
    return replace(made, **values)


def model_of(*layers):
    return keras.Sequential([keras.Input((4,)), *layers], name="net")


def test_the_verdict_comes_first_then_what_fails_then_every_weight(page):
    model = model_of(
        keras.layers.Dense(3, name="hidden", kernel_constraint=ib.MaxNorm(1.0)),
        keras.layers.Dense(2, name="out", kernel_constraint=ib.NonNeg(), bias_constraint=ib.Box(-1, 1)),
    )
    ib.constrain(model)
    model.get_layer("hidden").kernel.assign(np.array([[2.0, 0.5, 0.0]] + [[0.0] * 3] * 3))
    report = ib.audit(model)
    read = page(report)
    assert read.all("h1") == ["1 of 3 sets does not hold."]
    assert read.all("title") == ["net: 1 of 3 sets does not hold."]
    places = [read.text.index(text) for text in ("<h1", "What does not hold", "<table", "Evidence")]
    assert places == sorted(places)
    (failure,) = read.all("article")
    assert "violated 1 of 3 units outside, unit 0 by 1; up to" in failure
    assert [cells[0] for cells in read.rows] == [" + ".join(one.paths) for one in report.rows]
    assert read.rows[0][1] == "{w : ‖w‖₂ ≤ 1}MaxNorm(max_value=1.0)"
    assert read.rows[0][3:7] == ["3", "1", "0", "1"]
    assert read.rows[0][9] == "violated"
    assert read.rows[1] == ["net/hidden/bias", "no rule", "", *["\N{EN DASH}"] * 6, "free"]
    for text in (ib.__version__, keras.__version__, "Dense(kernel_constraint=...)", "1 weight: no rule"):
        assert text in "".join(read.all("body"))


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ((), "Nothing is constrained."),
        ((row(set="", status="free"),), "Nothing is constrained."),
        ((row(),), "The set holds."),
        ((row(), row("other/kernel")), "All 2 sets hold."),
    ],
)
def test_verdicts(page, rows, verdict):
    read = page(Report("net", rows))
    assert read.all("h1") == [verdict]
    assert "What does not hold" not in read.text
    assert len(read.rows) == len(rows)


def test_hostile_names_are_text(page):
    bad = row(HOSTILE, [1.0], set=HOSTILE, note=HOSTILE, definition=HOSTILE, source=HOSTILE, violated=1, violation=1.0)
    report = ib.audit(model_of(keras.layers.Dense(2, name="d")))
    report = replace(report, model=HOSTILE, rows=(replace(bad, status="violated"), replace(bad, status="free")))
    read = page(replace(report, provenance=replace(report.provenance, file=HOSTILE)))
    assert len(read.all("script")) == 1
    assert not [name for _, attributes, _ in read.found for name in attributes if name.startswith("on")]
    assert [cells[0] for cells in read.rows] == [HOSTILE, HOSTILE]
    assert "".join(read.all("body")).count(HOSTILE) >= 12


def test_a_page_loads_nothing_and_runs_its_own_script_only(page):
    read = page(Report("net", (row(excess=[0.5]),)))
    assert [attributes for _, attributes, _ in read.found if {"src", "href"} & set(attributes)] == [
        {"rel": "icon", "href": "data:,"}
    ]
    assert not re.search(r"://|url\(|@import|import\(|fetch", read.text)
    (policy,) = (meta["content"] for meta in read.attributes("meta") if "http-equiv" in meta)
    (script,) = read.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'"
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_table_sorts_with_buttons_whose_state_is_announced(page):
    read = page(Report("net", (row(),)))
    headings = [attributes for attributes in read.attributes("th") if attributes.get("scope") == "col"]
    assert [heading.get("aria-sort") for heading in headings] == ["none"] * 2 + [None] + ["none"] * 7
    assert read.attributes("button") == [{"type": "button"}] * 9
    assert len(read.all("label")) == 2


def test_a_page_of_many_layers_is_small(page):
    excess = np.random.default_rng(0).normal(size=64)
    names = [f"model/block_{i}/attention/query_dense/{name}" for i in range(200) for name in ("kernel", "bias")]
    rows = tuple(row(name, excess, status="violated", violated=30, violation=2.0, note="a" * 80) for name in names)
    read = page(Report("net", rows))
    assert len(read.text) < 1_000_000
    assert len(read.rows) == 400
    assert len(read.all("article")) == 20
    assert "The table has 380 more." in read.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_page_of_1000_layers_opens_sorts_and_filters_in_chromium_without_an_error(tmp_path):
    excess = np.random.default_rng(0).normal(size=64)
    bad = {"status": "violated", "violated": 30}
    rows = [
        row(f"block_{i % 20}/dense_{i}/kernel", excess, violation=i / 1e3, **(bad if i % 2 else {}))
        for i in range(1000)
    ]
    free = [row(f"block_{i % 20}/dense_{i}/bias", set="", status="free", note="no rule") for i in range(1000)]
    path = Report("net", (*rows, *free)).to_html(tmp_path / "report.html")
    assert path.stat().st_size < 5_000_000
    text = path.read_text(encoding="utf-8")
    added = f"{{{CLICKS}}}"
    allowed = base64.b64encode(hashlib.sha256(added.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{allowed}' ", 1)
    path.write_text(text.replace("</body>", f"<script>{added}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    command = ["chromium", *options, "--dump-dom", path.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr, ran.stderr
    *found, milliseconds = re.findall("<pre>(.*?)</pre>", ran.stdout)[0].split("|")
    print(f"{path.stat().st_size / 1e6:.1f} MB open after {milliseconds} ms")
    assert found == ["block_19/dense_999/kernel", "50 of 2000 rows", "50 of 2000 rows", "block_7/dense_987/kernel"]


@pytest.mark.parametrize(
    ("excess", "inside", "outside", "unknown"),
    [
        ([-1.0, -0.5, 0.0], 3, 0, 0),
        ([-1.0, 0.5], 1, 1, 0),
        ([1e-8, -1e-8, 0.0], 3, 0, 0),
        ([math.inf, -0.5, 2.0], 1, 1, 1),
        ([math.inf], 0, 0, 1),
        ([3e38, -3e38], 1, 1, 0),
        (list(np.linspace(-1, 1, 64)), 32, 32, 0),
    ],
)
def test_a_plot_has_a_bar_for_each_number_within_its_frame(page, excess, inside, outside, unknown):
    read = page(Report("net", (row(excess=excess),)))
    (frame,) = (attributes["viewbox"] for attributes in read.attributes("svg"))
    assert frame == "0 0 128 32"
    paths = {attributes["class"]: attributes["d"] for attributes in read.attributes("path")}
    counts = [paths.get(kind, "").count("M") for kind in ("inside", "outside", "unknown")]
    assert counts == [inside, outside, unknown]
    bound = float(re.fullmatch(r"M0 (\S+)H128", paths["bound"])[1])
    for kind, above in (("inside", False), ("outside", True)):
        for x, top in re.findall(r"M(\S+) 32V([^M]+)", paths.get(kind, "")):
            assert 0 < float(x) < 128
            assert 0 < float(top) < 32
            assert (float(top) < bound - 0.01) == above


@pytest.mark.parametrize(("units", "run"), [(5, 1), (64, 1), (65, 2), (300, 5)])
def test_an_audit_keeps_the_worst_of_neighbouring_units_for_plots(units, run):
    values = np.random.default_rng(0).normal(size=(4, units))
    model = model_of(keras.layers.Dense(units, name="d", kernel_constraint=ib.MaxNorm(1.0)))
    model.layers[0].kernel.assign(values)
    norms = np.linalg.norm(np.float64(np.float32(values)), axis=0) - 1
    worst = [norms[i : i + run].max() for i in range(0, units, run)]
    np.testing.assert_allclose(ib.audit(model).rows[0].excess, worst, rtol=1e-12)


def test_plots_leave_out_units_without_an_entry_and_follow_the_fan_in():
    layer = keras.layers.Dense(3, name="d", kernel_constraint=keras.constraints.MaxNorm(1.0, axis=1))
    model = model_of(layer)
    layer.kernel.assign([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9], [0.5, 0.5, 0.5]])
    (kernel, _) = ib.audit(model).rows
    assert kernel.status == "misaligned"
    np.testing.assert_allclose(kernel.excess, np.sqrt(0.81 + 0.25) - 1, rtol=1e-6)
    mask = np.ones((4, 3), bool) & [True, False, True]
    (kernel, _) = ib.audit(model, {"kernel": ib.MaxNorm(1.0).where(mask)}).rows
    assert len(kernel.excess) == 2


def test_the_docs_name_every_key_of_the_json():
    text = (Path(__file__).parent.parent.parent / "docs" / "reports.md").read_text(encoding="utf-8")
    read = ib.audit(model_of(keras.layers.Dense(2, name="d"))).to_dict()
    for keys in (read, read["provenance"], read["rows"][0]):
        assert [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("given", "definition"),
    [
        (ib.Box(-1, 0.5), "{w : \N{MINUS SIGN}1 ≤ w ≤ 0.5}"),
        (ib.Box(-1, [1, 2, 3, 4, 5]), "{w : \N{MINUS SIGN}1 ≤ w ≤ high}"),
        (ib.MaxNorm(1, center=0.5), "{w : ‖w‖₂ ≤ 1} + 0.5"),
        (ib.Monotone(increasing=False), "{w : w₁ ≥ w₂ ≥ … ≥ wₙ}"),
        (ib.SumTo(2), "{w : Σ wᵢ = 2}"),
        (ib.Halfspace([1, 2, 0, 0, 0], 1), "{w : normal · w ≤ 1}"),
        (ib.LowRank(2), "{W : rank W ≤ 2}"),
        (ib.SpectralNorm(3), "{W : \N{GREEK SMALL LETTER SIGMA}₁(W) ≤ 3}"),
        (ib.SkewSymmetric(), "{W : W = -Wᵀ}"),
        (ib.Custom(keras.ops.relu), "{w : relu(w) = w}"),
        (ib.Custom(lambda w: w), "{w : fn(w) = w}"),
        (ib.NonNeg() & ib.L1Ball(2), "{w : w ≥ 0} ∩ {w : ‖w‖₁ ≤ 2}"),
        (ib.NonNeg().on(inputs=range(5)), "{w : w[inputs 0, 1, 2, 3, …] ∈ {w : w ≥ 0}}"),
        (ib.UnitNorm().where(np.eye(5, dtype=bool)), "{w : w[mask] ∈ {w : ‖w‖₂ = 1}}"),
        (ib.MaxNorm(1).scaled(lambda step: 2.0), "s · {w : ‖w‖₂ ≤ 1}, s by the steps of training"),
        (ib.Joint(ib.MaxNorm(2)), "(kernel, bias) ∈ {w : ‖w‖₂ ≤ 2}"),
    ],
    ids=str,
)
def test_sets_in_mathematics(given, definition):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, name="d")])
    report = ib.audit(model, {"d": given if isinstance(given, ib.Joint) else {"kernel": given}})
    assert report.rows[0].definition == definition


def test_a_definition_with_the_word_of_an_argument():
    report = ib.audit(
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), {"kernel": ib.GroupSparse(1, [0, 0, 1])}
    )
    assert report.rows[0].definition == "{w : at most 1 groups of the entries of w are not 0}"


def test_singular_values_are_those_of_each_matrix_also_of_an_intersection():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6)])
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).astype("float64")
    for owner, matrices in (
        (ib.SpectralNorm(9) & ib.MaxNorm(9), [kernel]),
        (ib.SpectralNorm(9, stack=2) & ib.MaxNorm(9), [kernel[:, :3], kernel[:, 3:]]),
    ):
        (row, _) = ib.audit(model, {"kernel": owner}).rows
        np.testing.assert_allclose(row.singular_values, np.ravel(np.linalg.svd(np.array(matrices), compute_uv=False)))


def test_a_report_of_a_file_has_its_name_and_hash(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"a model")
    report = ib.audit(model_of(keras.layers.Dense(2, name="d")))
    named = report.of_file(path)
    assert named == report
    assert (named.provenance.file, named.provenance.sha256) == ("model.keras", hashlib.sha256(b"a model").hexdigest())


def test_a_notebook_shows_reports_and_plans_as_tables():
    model = model_of(keras.layers.Dense(2, name="<b>d"))
    plan = ib.constrain(model, {"kernel": ib.MaxNorm(1.0)})
    for shown in (plan._repr_html_(), ib.audit(model)._repr_html_()):
        assert "&lt;b&gt;d/kernel" in shown
        assert "<b>" not in shown
        assert "MaxNorm(max_value=1.0)" in shown
