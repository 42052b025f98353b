"""What the least cost of an entry does to new data: the table of docs/measurements.md on them.

Logistic regression on 200 of scikit-learn's digits, some of whose pixels are always 0, with Adam in
batches of 32 and a set on the kernel. A cell has the loss on the other digits, the mean of several
draws, and its standard error.

    KERAS_BACKEND=jax python benchmarks/dead_entries.py
"""

import keras
import numpy as np
from optimum import KERNEL, batches, digits, loss

import inbounds as ib
from inbounds._arrays import units

OWNERS = (ib.MaxNorm(1.0), ib.MaxNorm(3.0), ib.L1Ball(3.0), ib.Simplex())
SHARES = (1e-9, 1e-3, 1e-2, 0.1, 1.0, "Euclidean")
DRAWS, KNOWN, STEPS = 6, 200, 600


def test_loss(owner: ib.Set, share: float | str, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(digits()[0]))
    known, new = ([part[chosen] for part in digits()] for chosen in (order[:KNOWN], order[KNOWN:]))
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    schedule = keras.optimizers.schedules.CosineDecay(0.02, STEPS, alpha=1e-3)
    model.compile(keras.optimizers.Adam(schedule), keras.losses.CategoricalCrossentropy(from_logits=True))
    if share == "Euclidean":
        ib.constrain(model, {KERNEL: owner}, gradient="full", metric="euclidean")
    else:
        units.LEAST = share
        ib.constrain(model, {KERNEL: owner}, gradient="full")
    model.fit(batches(known, 32), steps_per_epoch=STEPS, shuffle=False, verbose=0)
    return loss(new, *model.get_weights())


def main() -> None:
    print(f"{keras.backend.backend()}\n\n| least share | " + " | ".join(map(str, SHARES)) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for owner in OWNERS:
        losses = [[test_loss(owner, share, seed) for seed in range(DRAWS)] for share in SHARES]
        cells = [f"{np.mean(one):.3f} ({np.std(one, ddof=1) / DRAWS**0.5:.3f})" for one in losses]
        print(f"| `{owner}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
