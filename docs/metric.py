"""Draws `docs/metric.svg`: two weights in a ball under Adam, with either projection: `python docs/metric.py`.

Both paths are computed: Adam's steps as Keras takes them, and `MaxNorm(1).project`, with and without the metric.
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import inbounds as ib

BALL = ib.MaxNorm(1.0)
TARGET, CURVES = np.array([1.6, 0.9]), np.array([1.0, 0.15])

START, STEPS, RATE = np.array([-0.3, -0.6]), 5000, 0.02


def loss_at(w: np.ndarray) -> np.ndarray:
    """The loss at weights along the last axis."""
    return np.sum(CURVES * (w - TARGET) ** 2, axis=-1) / 2


def path(in_metric: bool) -> Iterator[np.ndarray]:
    """The weights after each step."""
    w, mean, square = START, np.zeros(2), np.zeros(2)
    for step in range(1, STEPS + 1):
        yield w
        gradient = CURVES * (w - TARGET)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        metric = np.sqrt(square) + 1e-7
        rate = RATE * (1 - step / STEPS) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        (w,) = BALL.project([w - rate * mean / metric], [metric] if in_metric else None)
    yield w


def figure() -> Figure:
    """The ball, curves of equal loss, and both paths."""
    made = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = made.subplots()
    x, y = np.meshgrid(np.linspace(-1.2, 2.1, 221), np.linspace(-1.1, 1.5, 201))
    loss = loss_at(np.stack([x, y], axis=2))
    axes.contourf(x, y, np.hypot(x, y), levels=[0, 1], colors=["#deebf7"])
    right, wrong = (np.array(list(path(in_metric))) for in_metric in (True, False))
    levels = loss_at(right[-1]) * np.array([0.1, 0.4, 1.0, 1.8])
    axes.contour(x, y, loss, levels=levels, colors="0.7", linewidths=0.8)
    for points, color, name in ((wrong, "#d95f02", "Euclidean"), (right, "#08519c", "Adam's metric")):
        axes.plot(*points.T, color=color, linewidth=1.2, label=name)
        axes.plot(*points[-1], "o", color=color, markersize=6)
    axes.plot(*TARGET, "k+", markersize=8)
    axes.annotate("least loss", TARGET, (-12, 8), textcoords="offset points", fontsize=8)
    axes.set(xlim=(-1.2, 2.1), ylim=(-1.1, 1.5), aspect="equal")
    axes.tick_params(labelsize=7, length=2)
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    return made


if __name__ == "__main__":
    about = {"Title": "A ball, Adam, and two projections", "Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "inbounds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure().savefig(Path(__file__).parent / "metric.svg", metadata=about)
