"""How many inner steps a set of matrices is worth in the optimizer's metric: the table of docs/optimizers.md.

Each step of training projects by so many accelerated steps from the weights before it. On the digits as they are, and
with columns whose sizes are spread over two decades, where the metric is what makes Adam fast: the final loss above the
optimum in percent, after few and after many training steps, full batches. One backend a process:

    KERAS_BACKEND=jax python benchmarks/inner_steps.py
"""

import keras
import numpy as np
from optimum import SETS, digits, optimum, trained

from inbounds import _proximal

COUNTS = (1, 2, 3, 5, 10)
STEPS = (300, 3000)
OWNER = "SpectralNorm(2)"


def main() -> None:
    x, y = digits()
    scales = np.random.default_rng(0).permutation(np.geomspace(0.1, 10.0, x.shape[1])).astype("float32")
    print(
        f"{keras.backend.backend()}, {OWNER}, Adam\n\n| data | training steps | Euclidean | "
        + " | ".join(map(str, COUNTS))
    )
    print("|---" * (len(COUNTS) + 3) + "|")
    for name, data in (("digits", (x, y)), ("badly scaled digits", (x * scales, y))):
        least = optimum(data, SETS[OWNER][1])
        for steps in STEPS:
            ends = [trained(data, SETS[OWNER][0], "Adam", "euclidean", None, steps)]
            for count in COUNTS:
                _proximal.IN_TRAINING = count
                ends.append(trained(data, SETS[OWNER][0], "Adam", "optimizer", None, steps))
            cells = " | ".join(f"{100 * (end / least - 1):.4f}" for end in ends)
            print(f"| {name} | {steps} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
