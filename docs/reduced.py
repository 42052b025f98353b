"""Draws `docs/reduced.svg`: two weights in a ball under Adam, given the full or reduced gradient.

Both paths are computed, with Adam's steps as Keras takes them: `python docs/reduced.py`.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import inbounds as ib

BALL = ib.MaxNorm(1.0)
TARGET, CURVES = np.array([1.6, 0.9]), np.array([1.0, 0.15])

START, STEPS, RATE, REACH = np.array([-0.3, -0.6]), 5000, 0.02, 1e-3


def loss_at(w: np.ndarray) -> np.ndarray:
    """The loss at weights along the last axis."""
    return np.sum(CURVES * (w - TARGET) ** 2, axis=-1) / 2


def inside(w: np.ndarray) -> np.ndarray:
    """The nearest weights in the ball."""
    return BALL.project(w[None])[0]


def left_of(gradient: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What the ball leaves of a gradient."""
    e = REACH / np.linalg.norm(gradient)
    return (w - inside(w - e * gradient)) / e


def path(reduced: bool) -> np.ndarray:
    """The weights after each step."""
    w, mean, square, passed = START, np.zeros(2), np.zeros(2), [START]
    for step in range(1, STEPS + 1):
        gradient = CURVES * (w - TARGET)
        seen = left_of(gradient, w) if reduced else gradient
        mean += 0.1 * (seen - mean)
        square += 0.001 * (seen**2 - square)
        rate = RATE * (1 - step / STEPS) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        w = inside(w - rate * mean / (np.sqrt(square) + 1e-7))
        passed.append(w)
    return np.array(passed)


def figure() -> Figure:
    """The ball, curves of equal loss, both paths, and at the end of one both of its gradients."""
    made = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = made.subplots()
    x, y = np.meshgrid(np.linspace(-1.2, 2.1, 221), np.linspace(-1.1, 1.5, 201))
    loss = loss_at(np.stack([x, y], axis=2))
    axes.contourf(x, y, np.hypot(x, y), levels=[0, 1], colors=["#deebf7"])
    right, wrong = path(reduced=True), path(reduced=False)
    axes.contour(x, y, loss, levels=loss_at(right[-1]) * np.array([0.1, 0.4, 1.0, 1.8]), colors="0.7", linewidths=0.8)
    for points, color, name in ((wrong, "#d95f02", "sees all"), (right, "#08519c", "sees what is left")):
        axes.plot(*points.T, color=color, linewidth=1.2, label=name)
        axes.plot(*points[-1], "o", color=color, markersize=6)
    end = wrong[-1]
    gradient = CURVES * (end - TARGET)
    for slope, color in ((gradient, "0.4"), (left_of(gradient, end), "k")):
        axes.annotate("", end - 0.6 * slope, end, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.2})
    axes.plot(*TARGET, "k+", markersize=8)
    axes.annotate("least loss", TARGET, (-12, 8), textcoords="offset points", fontsize=8)
    axes.set(xlim=(-1.2, 2.1), ylim=(-1.1, 1.5), aspect="equal")
    axes.tick_params(labelsize=7, length=2)
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    return made


if __name__ == "__main__":
    about = {"Title": "A ball, Adam, and two gradients", "Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "inbounds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure().savefig(Path(__file__).parent / "reduced.svg", metadata=about)
