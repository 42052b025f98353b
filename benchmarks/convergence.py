"""Draws `docs/convergence.svg`: the loss above the constrained optimum, by steps.

Steps along all of the gradient are compared with steps along the reduced gradient, for the first
row of the table of `optimum.py`: full batches of digits under `MaxNorm(1)`. matplotlib draws it.

    KERAS_BACKEND=jax python benchmarks/convergence.py
"""

import itertools
from pathlib import Path

import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from optimum import SETS, digits, loss, optimum, trained

OWNER, STEPS = "MaxNorm(1)", 3000
SEEN = np.unique(np.geomspace(1, STEPS, 60).astype(int))
COLORS = {"Adam": "#08519c", "Lion": "#7a0177", "SGD": "0.5"}
FLOOR = 1e-8
"""Relative: below it is the rounding of float32."""


class Watch(keras.callbacks.Callback):
    """The loss after some of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch + 1 in SEEN:
            self.losses.append(loss(digits(), *self.model.get_weights()))


def main() -> None:
    least = optimum(digits(), SETS[OWNER][1])
    made = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = made.subplots()
    for (kind, color), how in itertools.product(COLORS.items(), ("full/euclidean", "reduced/auto")):
        if kind == "SGD" and how == "reduced/auto":
            continue
        watch = Watch()
        trained(digits(), SETS[OWNER][0], kind, how, None, STEPS, [watch])
        above = np.maximum(np.array(watch.losses) / least - 1, FLOOR)
        reduced = how == "reduced/auto"
        name = kind if kind == "SGD" else f"{kind}, {'what is left' if reduced else 'all'}"
        axes.plot(SEEN, above, color=color, linestyle="-" if reduced else "--", linewidth=1.3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="loss above the optimum, relative")
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    about = {"Title": "Loss above the constrained optimum", "Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "inbounds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        made.savefig(Path(__file__).parent.parent / "docs" / "convergence.svg", metadata=about)


if __name__ == "__main__":
    main()
