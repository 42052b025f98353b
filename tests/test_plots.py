"""Plots: what they show of sets, reports, pressures, and that names and NaN do no harm."""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds import Report, Row

pytestmark = pytest.mark.once

ROW = Row(("d/kernel",), "MaxNorm(max_value=1.0)", 3, tolerance=1e-6, status="holds", excess=(-1.0, -0.5, 0.0))
BROKEN = replace(ROW, paths=("$\\frac{/<b>",), excess=(np.inf, -1.0), entries=(0.0, np.nan))


def drawn(figure):
    """The panels of a figure, which a notebook has drawn too."""
    assert figure._repr_png_().startswith(b"\x89PNG")
    return figure.axes


def stairs(axes):
    """From colours to the heights of bars that aren't 0."""
    return {patch.get_facecolor(): patch.get_data().values[patch.get_data().values != 0] for patch in axes.patches}


@pytest.mark.parametrize(
    ("given", "half"),
    [(ib.MaxNorm(1.0), 2.0), (ib.MaxNorm(10.0), 20.0), (ib.NonNeg(), 2.0), (ib.Hyperplane([1, 2], 10), 8.0)],
    ids=repr,
)
def test_a_set_is_drawn_at_its_size_with_points_and_their_nearest(given, half):
    (axes,) = ib.plot_set(given).axes
    np.testing.assert_allclose(axes.get_xlim(), (-half, half))
    points = np.array([line.get_xydata()[0] for line in axes.lines])
    assert len(axes.texts) == len(points), "an arrow for each nearest point, a letter for each point"
    assert np.any(given.violation(points) > 0.1 * half)
    assert sum(given.violation(points) < 1e-9 * half) >= 4


def test_points_are_those_that_are_given():
    (axes,) = drawn(ib.plot_set(ib.Box(-1, [1.0, 0.5]), points=[(3.0, 3.0)]))
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1.0, 0.5]], [[3.0, 3.0]]]
    assert axes.get_xlim()[1] > 3.0


def test_a_set_of_matrices_has_no_picture():
    with pytest.raises(ib.SetError, match=r"^A set of whole weights has no picture.*Received: SpectralNorm\("):
        ib.plot_set(ib.SpectralNorm(1.0))


@pytest.mark.parametrize("points", [[(1.0, 2.0, 3.0)], (1.0, 2.0), [(1.0, "x")], [(0.0, np.inf)], 3], ids=repr)
def test_points_are_pairs_of_finite_numbers(points):
    with pytest.raises(ib.SetError, match=r"^`points` of plot_set .*Instead: points=\[\(1.5, 1.0\)"):
        ib.plot_set(ib.MaxNorm(1.0), points)


def test_a_set_shows_itself_in_a_notebook():
    shown = (ib.MaxNorm(2.0) & ib.NonNeg())._repr_html_()
    assert "<code>MaxNorm(max_value=2.0) &amp; NonNeg()</code>" in shown
    assert "{w : |w|_2 &lt;= max_value}" in ib.MaxNorm(2.0)._repr_html_()


def test_a_report_shows_units_against_the_bound_and_the_entries_and_what_bounds_cost():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    model.compile("sgd", "mse")
    ib.constrain(model, {"a/kernel": ib.MaxNorm(1.0), "b/kernel": ib.SpectralNorm(0.5)})
    pressure = ib.pressure(model, np.ones((8, 4)), np.full((8, 2), 9.0))
    kernel = np.array([[2.0, 0.5, 0.0]] + [[0.0] * 3] * 3)
    model.layers[0].kernel.assign(kernel)
    report = ib.audit(model)
    units, entries, costs, _, values, _ = report.plot(pressure).axes
    assert "a/kernel\nMaxNorm(max_value=1.0): violated" in units.get_title("left")
    outside, inside = (
        stairs(units).values() if 1.0 in next(iter(stairs(units).values())) else reversed(stairs(units).values())
    )
    assert (outside.tolist(), inside.tolist()) == ([1.0], [-0.5, -1.0])
    assert entries.lines[0].get_ydata().tolist() == np.sort(kernel.ravel()).tolist()
    assert "of units: their bound costs something" in costs.get_xlabel()
    np.testing.assert_allclose(
        values.lines[0].get_ydata(), np.linalg.svd(np.float64(model.layers[1].kernel), compute_uv=False), rtol=1e-6
    )
    assert len(report.plot().axes) == 4


@pytest.mark.parametrize(
    ("rows", "panels", "title"),
    [
        ((), 2, "Audit of $\\frac{: nothing is constrained"),
        ((replace(ROW, status="free"),), 2, "Audit of $\\frac{: nothing is constrained"),
        (
            (replace(ROW, paths=("$\\frac{/<b>",), excess=(np.inf, -1.0), entries=(0.0, np.nan)),),
            2,
            "Audit of $\\frac{",
        ),
        ((ROW,) * 15, 24, "Audit of $\\frac{, 12 of 15 sets"),
    ],
)
def test_empty_reports_markup_and_nan_are_drawn(rows, panels, title):
    figure = Report("$\\frac{", rows).plot()
    assert len(drawn(figure) if len(rows) < 2 else figure.axes) == panels
    assert figure.get_suptitle() == title
    nan = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(nan) == sum(row.excess[0] == np.inf for row in rows)


def test_what_does_not_hold_is_drawn_first():
    figure = Report("net", (*(ROW,) * 15, replace(ROW, status="unenforced"))).plot()
    assert figure.axes[0].get_title("left").endswith("unenforced")


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ib.InboundsError, match=r'^Nothing is drawn: matplotlib.* Instead: pip install "inbounds\[plots\]"'
    ):
        ib.plot_set(ib.NonNeg())
