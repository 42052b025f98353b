"""How far constrained training ends above the optimum: the tables of docs/measurements.md.

The problem is logistic regression with a bias (softmax, one Dense layer) on scikit-learn's digits
or breast cancer data. It is convex, so that there is one optimum, which Clarabel finds. Each
optimizer trains with a cosine schedule that ends at 1e-4 of its rate, except those that lower their
steps by themselves. A cell has the final loss over all data, in float64, above the optimum in
percent. Each pair of `--how` names what the optimizer sees of the gradient and the metric of the
projection. One backend a process:

    export KERAS_BACKEND=jax
    python benchmarks/optimum.py --batch 32 --how full/euclidean full/optimizer reduced/auto

`--decay 0.1` compares gradients reduced before decoupled weight decay, as the default is, with
gradients reduced after it. Of SGD the optimum is that of the loss with half the decay times the
squared weights; AdamW's decay has no such penalty, and of it the optimum is that of the loss.

`--of groups` takes, on digits, sets of groups of entries and sets of several weights together. One
of these makes four layers equal, each of which sees two lines of a digit. The optimum under
GroupSparse is the best of those for each class that may have no weights. Under UnitNorm and
Orthogonal, which aren't convex, it is that of the ball around them: with two classes (`--data
cancer`) the loss depends on the difference of two columns only, and a best point of the ball is in
the set.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cvxpy as cp
import keras
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

import inbounds as ib

Data = tuple[np.ndarray, np.ndarray]
Constraints = Callable[[Any, Any], list[Any]]

KERNEL = "**/kernel"


def columns(kernel: cp.Variable, norm: Callable[[Any], Any], bound: float) -> list[Any]:
    return [norm(kernel[:, j]) <= bound for j in range(kernel.shape[1])]


def joint(kernel: cp.Variable, bias: cp.Variable, norm: Callable[[Any], Any], bound: float) -> list[Any]:
    return [norm(cp.hstack([kernel[:, j], bias[j]])) <= bound for j in range(kernel.shape[1])]


def together(kernel: cp.Variable, bias: cp.Variable, norm: Callable[[Any], Any]) -> Any:
    return norm(cp.hstack([cp.vec(kernel, order="C"), bias]))


def without(one: int, kernel: cp.Variable, bias: cp.Variable) -> list[Any]:
    return [kernel[:, one] == 0, cp.norm(kernel, "fro") <= 3]


SETS: dict[str, tuple[Any, ...]] = {
    "MaxNorm(1)": ({KERNEL: ib.MaxNorm(1.0)}, lambda w, b: columns(w, cp.norm, 1)),
    "L1Ball(3)": ({KERNEL: ib.L1Ball(3.0)}, lambda w, b: columns(w, cp.norm1, 3)),
    "Simplex()": ({KERNEL: ib.Simplex()}, lambda w, b: [w >= 0, cp.sum(w, axis=0) == 1]),
    "NonNeg() & MaxNorm(1)": (
        {KERNEL: ib.NonNeg() & ib.MaxNorm(1.0)},
        lambda w, b: [w >= 0, *columns(w, cp.norm, 1)],
    ),
    "Joint(MaxNorm(1))": ({keras.layers.Dense: ib.Joint(ib.MaxNorm(1.0))}, lambda w, b: joint(w, b, cp.norm, 1)),
    "Joint(L1Ball(2))": ({keras.layers.Dense: ib.Joint(ib.L1Ball(2.0))}, lambda w, b: joint(w, b, cp.norm1, 2)),
    "Monotone() & MaxNorm(1)": (
        {KERNEL: ib.Monotone() & ib.MaxNorm(1.0)},
        lambda w, b: [w[1:] >= w[:-1], *columns(w, cp.norm, 1)],
    ),
    "Box(-0.2, 0.2)": ({KERNEL: ib.Box(-0.2, 0.2)}, lambda w, b: [w >= -0.2, w <= 0.2]),
    "SpectralNorm(2)": ({KERNEL: ib.SpectralNorm(2.0)}, lambda w, b: [cp.sigma_max(w) <= 2]),
    "UnitNorm()": ({KERNEL: ib.UnitNorm()}, lambda w, b: columns(w, cp.norm, 1)),
    "Orthogonal()": ({KERNEL: ib.Orthogonal()}, lambda w, b: [cp.sigma_max(w) <= 1]),
}


@keras.saving.register_keras_serializable("benchmarks")
class Diamond(ib.SupportSet):
    """L1Ball(3), by its vertices."""

    def farthest(self, directions):
        xp = self.namespace(directions)
        sizes = xp.abs(directions)
        place = xp.argmax(sizes, axis=1)[:, None] == xp.arange(directions.shape[1])[None]
        return xp.where(place, 3 * xp.sign(directions), xp.zeros_like(directions))


RADII = np.linspace(0.5, 1.5, 10)
MIRRORED = np.arange(64).reshape(8, 8)[:, ::-1].ravel()
"""Of each pixel of a digit, the one on the other side."""

ACROSS = np.abs(np.subtract.outer(np.arange(64), np.arange(10)))
"""Of each entry of the kernel how far it is from the diagonal."""

QUARTERS = "pqrs"
"""The layers that see two lines of a digit each."""

GROUPS: dict[str, tuple[Any, ...]] = {
    "Equal(labels) & MaxNorm(1)": (
        {KERNEL: ib.Equal(np.minimum(np.arange(64), MIRRORED)) & ib.MaxNorm(1.0)},
        lambda w, b: [w == w[MIRRORED], *columns(w, cp.norm, 1)],
    ),
    "Together(Equal(labels) & FrobeniusNorm(3))": (
        {"?/kernel": ib.Together(ib.Equal(np.tile(np.arange(160), 4)) & ib.FrobeniusNorm(3.0))},
        lambda w, b: [w[16:] == w[:-16], cp.norm(w, "fro") <= 3],
    ),
    "Together(FrobeniusNorm(3))": (
        {"*": ib.Together(ib.FrobeniusNorm(3.0))},
        lambda w, b: [together(w, b, cp.norm) <= 3],
    ),
    "Together(MaxNorm(3))": ({"*": ib.Together(ib.MaxNorm(3.0))}, lambda w, b: [together(w, b, cp.norm) <= 3]),
    "Together(L1Ball(20))": ({"*": ib.Together(ib.L1Ball(20.0))}, lambda w, b: [together(w, b, cp.norm1) <= 20]),
    "GroupL1Ball(8)": ({KERNEL: ib.GroupL1Ball(8.0)}, lambda w, b: [cp.sum(cp.norm(w, axis=1)) <= 8]),
    'GroupL1Ball(8, "units")': (
        {KERNEL: ib.GroupL1Ball(8.0, "units")},
        lambda w, b: [cp.sum(cp.norm(w, axis=0)) <= 8],
    ),
    'GroupSparse(9, "units") & FrobeniusNorm(3)': (
        {KERNEL: ib.GroupSparse(9, "units") & ib.FrobeniusNorm(3.0)},
        *(functools.partial(without, one) for one in range(10)),
    ),
    "MaxNorm(array)": ({KERNEL: ib.MaxNorm(RADII)}, lambda w, b: [cp.norm(w, axis=0) <= RADII]),
    "Hyperplane & MaxNorm(3), of all": (
        {KERNEL: ib.Hyperplane(np.ones((64, 10)), 5.0, axis=(0, 1)) & ib.MaxNorm(3.0, axis=(0, 1))},
        lambda w, b: [cp.sum(w) == 5, cp.norm(w, "fro") <= 3],
    ),
    'MaxNorm(1) & MaxNorm(0.3).per("inputs")': (
        {KERNEL: ib.MaxNorm(1.0) & ib.MaxNorm(0.3).per("inputs")},
        lambda w, b: [*columns(w, cp.norm, 1), *columns(w.T, cp.norm, 0.3)],
    ),
    "Marginals(1, 10 / 64)": (
        {KERNEL: ib.Marginals(1, 10 / 64)},
        lambda w, b: [w >= 0, cp.sum(w, axis=0) == 1, cp.sum(w, axis=1) == 10 / 64],
    ),
    "SupportSet of the vertices of L1Ball(3)": ({KERNEL: Diamond()}, lambda w, b: columns(w, cp.norm1, 3)),
    'Fixed(0).where("not banded", 40) & MaxNorm(1)': (
        {KERNEL: ib.Fixed(0.0).where("not banded", 40) & ib.MaxNorm(1.0)},
        lambda w, b: [w[ACROSS > 40] == 0, *columns(w, cp.norm, 1)],
    ),
}
TABLES = {"columns": SETS, "groups": GROUPS}

o = keras.optimizers
OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "SGD": (o.SGD, 0.5),
    "SGD, momentum": (lambda rate: o.SGD(rate, momentum=0.9), 0.1),
    "Adam": (o.Adam, 0.02),
    "Adam, amsgrad": (lambda rate: o.Adam(rate, amsgrad=True), 0.02),
    "AdamW": (lambda rate: o.AdamW(rate, weight_decay=0.0), 0.02),
    "Nadam": (o.Nadam, 0.02),
    "Adamax": (o.Adamax, 0.02),
    "RMSprop": (o.RMSprop, 0.01),
    "Adagrad": (o.Adagrad, 0.3),
    "Adadelta": (o.Adadelta, 3.0),
    "Adafactor": (o.Adafactor, 0.05),
    "Lion": (o.Lion, 0.003),
    "Lamb": (o.Lamb, 0.02),
    "Ftrl": (o.Ftrl, 0.3),
    "Muon": (lambda rate: o.Muon(rate, weight_decay=None, adam_weight_decay=None), 0.02),
    "ScheduleFreeAdamW": (o.ScheduleFreeAdamW, 0.02),
}


class DecayFirst:
    """Mixed into an optimizer, decays the weights before their gradients are reduced."""

    def _clip_gradients(self, grads: Any) -> Any:
        super()._apply_weight_decay(self._trainable_variables)
        return super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Does nothing more."""


def decaying(decay: float) -> dict[str, tuple[Callable[[Any], Any], float]]:
    """The optimizers with a decay that `--decay` compares."""
    found = {}
    for kind, rate in (o.SGD, 0.5), (o.AdamW, 0.02):
        late = type(kind.__name__, (DecayFirst, kind), {})
        for when, cls in ("before", kind), ("after", late):
            found[f"{kind.__name__}, reduced {when} its decay"] = functools.partial(cls, weight_decay=decay), rate
    return found


CONSTANT = ("Ftrl", "ScheduleFreeAdamW")
"""Optimizers that lower their steps by themselves, and may not be given a schedule."""


def digits() -> Data:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32"), np.eye(10, dtype="float32")[y]


def cancer() -> Data:
    x, y = load_breast_cancer(return_X_y=True)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32"), np.eye(2, dtype="float32")[y]


def optimum(data: Data, *choices: Constraints, penalty: float = 0.0) -> float:
    """The least loss under the constraints of one of some choices, as Clarabel finds it.

    `penalty` is what half the squared weights cost.
    """
    x, y = (part.astype("float64") for part in data)
    kernel, bias = cp.Variable((x.shape[1], y.shape[1])), cp.Variable(y.shape[1])
    scores = x @ kernel + cp.reshape(bias, (1, y.shape[1]), order="C")
    losses = cp.log_sum_exp(scores, axis=1) - cp.sum(cp.multiply(y, scores), axis=1)
    squares = cp.sum_squares(kernel) + cp.sum_squares(bias)
    least = np.inf
    for constraints in choices:
        problem = cp.Problem(cp.Minimize(cp.sum(losses) / len(x) + penalty / 2 * squares), constraints(kernel, bias))
        least = min(least, float(problem.solve(solver="CLARABEL")))
    return least


def loss(data: Data, kernel: np.ndarray, bias: np.ndarray, penalty: float = 0.0) -> float:
    """Over all data, in float64, with `penalty` as for `optimum`."""
    x, y = (part.astype("float64") for part in data)
    scores = x @ kernel.astype("float64") + bias
    largest = scores.max(axis=1, keepdims=True)
    mean = np.mean(np.log(np.exp(scores - largest).sum(axis=1)) + largest[:, 0] - (y * scores).sum(axis=1))
    return float(mean + penalty / 2 * (np.sum(kernel.astype("float64") ** 2) + np.sum(bias.astype("float64") ** 2)))


def batches(data: Data, size: int | None) -> Iterator[Data]:
    """All data again and again, or batches of `size`, reshuffled each time; a rest is left out."""
    rng = np.random.default_rng(0)
    x, y = data
    while True:
        if size is None:
            yield x, y
            continue
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            yield x[order[start : start + size]], y[order[start : start + size]]


def network(inputs: int, classes: int, quarters: bool) -> Any:
    """One Dense layer, or one for each quarter of the inputs, whose sum is the same."""
    x, dense = keras.Input((inputs,)), keras.layers.Dense
    if not quarters:
        return keras.Model(x, dense(classes)(x))
    n = inputs // 4
    parts = [dense(classes, use_bias=i == 0, name=name)(x[:, n * i : n * (i + 1)]) for i, name in enumerate(QUARTERS)]
    return keras.Model(x, sum(parts))


def trained(
    data: Data,
    rules: Any,
    kind: str,
    how: str,
    size: int | None,
    steps: int,
    callbacks: Sequence[Any] = (),
    penalty: float = 0.0,
) -> float:
    """The loss after training."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = network(*(part.shape[1] for part in data), quarters="?/kernel" in rules)
    make, rate = OPTIMIZERS[kind]
    schedule = rate if kind in CONSTANT else keras.optimizers.schedules.CosineDecay(rate, steps, alpha=1e-4)
    model.compile(make(schedule), keras.losses.CategoricalCrossentropy(from_logits=True))
    gradient, metric = how.split("/")
    ib.constrain(model, rules, gradient=gradient, metric=metric)
    model.fit(batches(data, size), steps_per_epoch=steps, shuffle=False, callbacks=list(callbacks), verbose=0)
    ib.check(model)
    weights = model.get_weights()
    kernel, bias = np.concatenate([one for one in weights if one.ndim == 2]), next(w for w in weights if w.ndim == 1)
    return loss(data, kernel, bias, penalty)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cancer"), default="digits")
    parser.add_argument("--batch", type=int, help="all data where left out")
    parser.add_argument("--examples", type=int, help="how many of the data, from the first; all where left out")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--of", choices=list(TABLES), default="columns", help="of which sets")
    parser.add_argument("--sets", nargs="*", metavar="SET", help="all of these where left out")
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), choices=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--how", nargs="*", default=["full/euclidean", "reduced/auto"], metavar="GRADIENT/METRIC")
    parser.add_argument("--decay", type=float, help="SGD and AdamW with this weight decay, in place of all optimizers")
    given = parser.parse_args()
    if given.decay is not None:
        OPTIMIZERS.update(decaying(given.decay))
        given.optimizers = list(decaying(given.decay))
    x, y = {"digits": digits, "cancer": cancer}[given.data]()
    data = x[: given.examples], y[: given.examples]
    sets = {name: one for name, one in TABLES[given.of].items() if given.sets is None or name in given.sets}
    least = functools.cache(lambda name, penalty: optimum(data, *sets[name][1:], penalty=penalty))
    told = f"batch {given.batch or 'all'}, {given.steps} steps, {' and '.join(given.how)}"
    print(f"{keras.backend.backend()}, {given.data}, {told}\n")
    print("| optimizer | " + " | ".join(f"`{name}`" for name in sets) + " |")
    print("|---" * (len(sets) + 1) + "|", flush=True)
    for kind in given.optimizers:
        print(f"| {kind} |", end="", flush=True)
        cost = given.decay if given.decay is not None and kind.startswith("SGD") else 0.0
        for name in sets:
            ends = (
                trained(data, sets[name][0], kind, how, given.batch, given.steps, penalty=cost) for how in given.how
            )
            cell = " / ".join(f"{round(100 * (end / least(name, cost) - 1), 4) + 0.0:.4f}" for end in ends)
            print(f" {cell} |", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
