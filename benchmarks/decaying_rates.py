"""How near to its tolerance a violation comes in fits whose learning rate decays to 0.

KERAS_BACKEND=jax python benchmarks/decaying_rates.py

Each line has one size and one dtype, and for each set the largest violation over tolerance that an
audit finds after any of the epochs; above 1 the audit says "violated".
"""

from __future__ import annotations

import keras
import numpy as np

import inbounds as ib

SETS = {
    "MaxNorm": ib.MaxNorm(0.4),
    "UnitNorm": ib.UnitNorm(),
    "L1Ball": ib.L1Ball(1.5),
    "Simplex": ib.Simplex(),
    "SumTo": ib.SumTo(0.3),
    "NonNeg & MaxNorm": ib.NonNeg() & ib.MaxNorm(0.4),
    "Joint(MaxNorm)": ib.Joint(ib.MaxNorm(0.4)),
}
SIZES = (13, 300, 3000)
POLICIES = ("float32", "mixed_bfloat16", "float16", "bfloat16")


class Audited(keras.callbacks.Callback):
    """The largest violation over tolerance of each weight, after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.worst: dict[str, float] = {}

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        for row in ib.audit(self.model).rows:
            if row.set:
                ratio = row.violation / row.tolerance if row.violation else 0.0
                self.worst[row.set] = max(self.worst.get(row.set, 0.0), ratio)


def main() -> None:
    rng = np.random.default_rng(0)
    for size in SIZES:
        for policy in POLICIES:
            keras.utils.set_random_seed(0)
            inputs = keras.Input((size,))
            layers = [keras.layers.Dense(16, dtype=policy) for _ in SETS]
            model = keras.Model(inputs, keras.layers.Concatenate(dtype="float32")([layer(inputs) for layer in layers]))
            rules = zip(layers, SETS.values(), strict=True)
            ib.constrain(model, {layer: one if isinstance(one, ib.Joint) else {"kernel": one} for layer, one in rules})
            rate = keras.optimizers.schedules.CosineDecay(3e-3, 150)
            model.compile(keras.optimizers.Adam(rate, epsilon=1e-3 if policy == "float16" else 1e-7), "mse")
            x, y = rng.standard_normal((320, size)), 3 * rng.standard_normal((320, 16 * len(SETS)))
            audited = Audited()
            model.fit(x, y, batch_size=32, epochs=20, verbose=0, callbacks=[audited])
            print(size, policy, {name: round(ratio, 2) for name, ratio in audited.worst.items()}, flush=True)


if __name__ == "__main__":
    main()
