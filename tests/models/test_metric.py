"""The optimizer's metric with full gradients: what plans say, whom it follows, if it is right."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import inbounds as ib
from models.measure import inside, norms, numbers, on_bound

pytestmark = pytest.mark.by_turns

BOUND = 0.6
STEPS = 100


def problem():
    """Logistic regression on data whose columns have sizes that differ: where metrics differ."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x = x * np.geomspace(0.2, 2.0, x.shape[1])
    return x.astype("float32"), y.astype("float32")[:, None]


def network(optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(1, name="dense")])
    if optimizer is not None:
        compiled(model, optimizer)
    return model


def compiled(model, optimizer):
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def trained(model, steps=STEPS, data=None):
    """So many steps with all data, as one epoch: 100 epochs of one step take TensorFlow long."""
    batch = data or problem()
    model.fit((batch for _ in range(steps)), steps_per_epoch=steps, shuffle=False, verbose=0)
    return model


def gap(kernel, bias, joint=False):
    """The sine between the ball's outward normal at the weights and descent: 0 at the optimum."""
    x, y = (part.astype("float64") for part in problem())
    pull = 1 / (1 + np.exp(-(x @ kernel + bias))) - y
    gradient, point = x.T @ pull, kernel
    if joint:
        gradient, point = np.append(gradient, pull.sum()), np.append(point, bias)
    gradient, point = gradient.ravel(), point.ravel()
    assert np.isclose(np.linalg.norm(point), BOUND, rtol=1e-5), "the bound is met"
    cosine = -gradient @ point / np.linalg.norm(gradient) / np.linalg.norm(point)
    return np.sqrt(max(0.0, 1 - cosine**2))


def gap_of(model, joint=False):
    return gap(*map(numbers, model.weights), joint=joint)


o = keras.optimizers


def falling():
    return o.schedules.CosineDecay(0.1, STEPS, alpha=1e-3)


ADAPTIVE = {
    "Adam": lambda rate: o.Adam(rate),
    "RMSprop": lambda rate: o.RMSprop(rate),
    "Lion": lambda rate: o.Lion(rate),
    "loss scale": lambda rate: o.LossScaleOptimizer(o.Adam(rate), initial_scale=8.0),
    "average": lambda rate: o.Adam(rate, use_ema=True, ema_momentum=0.5),
}


@pytest.mark.repeats("name")  # of the cells "at the optimum" of the conformance matrix
@pytest.mark.parametrize("name", list(ADAPTIVE))
def test_training_ends_at_the_constrained_optimum_and_without_the_metric_it_does_not(name):
    ends = {}
    for metric in ("optimizer", "euclidean"):
        schedule = falling()
        model = network(ADAPTIVE[name](schedule))
        ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full", metric=metric)
        ends[metric] = gap_of(trained(model))
        ib.check(model)
    assert ends["optimizer"] < 0.02
    assert ends["euclidean"] > 0.1


def test_two_optimizers_on_one_unit_see_all_of_their_gradients_and_hold_it():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), np.eye(10, dtype="float32")[y]
    by_map = o.OptimizerMap(o.Adam(0.05))
    by_map[".*/kernel"] = o.Muon(0.05)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile(o.MultiOptimizer(by_map), keras.losses.CategoricalCrossentropy(from_logits=True))
    plan = ib.constrain(model, {keras.layers.Dense: ib.Joint(ib.MaxNorm(0.5))})
    model.fit(x, y, batch_size=600, epochs=2, verbose=0)
    ib.check(model)
    assert "gradient: all of it, 2 optimizers step weights of one unit" in " ".join(str(plan).split())


def test_the_plan_says_what_the_metric_is_and_follows_the_optimizer():
    model = network()
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0), "**/bias": ib.NonNeg()}, gradient="full")
    assert "once the model is compiled" in str(plan)
    assert "the same in all" in str(plan)
    compiled(model, "adam")
    assert "Adam: root of the second moment" in str(plan)
    compiled(model, o.Lion(0.1))
    assert "Lion: size of what the sign is taken of" in str(plan)
    compiled(model, "sgd")
    assert "Euclidean: SGD steps all entries alike" in str(plan)
    assert "Euclidean, as asked for" in str(
        ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)}, gradient="full", metric="euclidean")
    )
    assert "Euclidean: the set is not convex" in str(ib.constrain(model, {"**/kernel": ib.Sparse(2)}))
    matrices = ib.constrain(model, {"**/kernel": ib.SpectralNorm()}, metric="optimizer")
    assert "Euclidean: in another the set has no formula" in str(matrices)


def test_where_gradients_are_reduced_faces_of_a_1_norm_alone_follow_the_optimizer():
    model = network("adam")
    assert "Adam: root of the second moment" in str(ib.constrain(model, {"**/kernel": ib.L1Ball(1.0) & ib.NonNeg()}))
    assert "Euclidean: Adam sees the reduced gradient" in str(ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)}))
    assert "Adam" in str(ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)}, metric="optimizer"))
    compiled(model, "ftrl")
    plan = " ".join(str(ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)})).split())
    assert "gradient: all of it, Ftrl goes where the sums of whole gradients lead" in plan


def test_adafactor_makes_no_nan_where_a_set_leaves_rows_and_columns_of_zeros():
    layer = keras.layers.Dense(2, use_bias=False)
    layer.build((None, 4))
    layer.kernel.assign([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])  # of the first, all of the gradient is taken
    ib.constrain(layer, {"kernel": ib.Simplex()})
    pull = keras.ops.convert_to_tensor([[-1.0, -1.0], [1.0, 0.5], [1.0, 1.0], [1.0, 1.0]])
    o.Adafactor(0.1, relative_step=False).apply([pull], [layer.kernel])
    assert np.isfinite(numbers(layer.kernel)).all()
    assert ib.audit(layer).ok


def test_a_model_compiled_again_is_projected_in_the_metric_of_the_new_optimizer():
    model = network("sgd")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full")
    trained(model, 2)
    compiled(model, o.Adam(falling()))
    assert gap_of(trained(model)) < 0.02


def test_the_choice_of_the_euclidean_metric_is_saved(tmp_path):
    model = network(o.Adam(falling()))
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full", metric="euclidean")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    compiled(loaded, o.Adam(falling()))
    assert gap_of(trained(loaded)) > 0.1
    assert "(Euclidean, as asked for)" in str(ib.constrain(loaded)), "what a file says holds"
    assert "Adam" in str(ib.constrain(loaded, metric="optimizer"))


class Halved(keras.optimizers.SGD):
    """Steps entry by entry at half the rate for odd entries: a metric that is not SGD's."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * gradient / metric_of_halved(self, variable, gradient))


def metric_of_halved(optimizer, variable, gradient):
    odd = np.arange(np.prod(variable.shape)).reshape(variable.shape) % 2
    return keras.ops.convert_to_tensor(1.0 + odd, dtype="float32")


def test_an_unknown_optimizer_is_euclidean_and_says_so_until_its_metric_is_registered():
    kind = type("Halved", (Halved,), {})
    model = network(kind(0.3))
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full")
    assert "Euclidean: that of Halved is not known, see register_metric" in str(plan)
    assert gap_of(trained(model)) > 0.05
    ib.register_metric(kind, metric_of_halved, "twice for odd entries")
    assert "Halved: twice for odd entries" in str(plan)
    assert gap_of(trained(model)) < 0.02


def three(optimizer, variable, gradient):
    raise AssertionError("it is never called")


@pytest.mark.parametrize(
    ("kind", "reader", "words"),
    [
        (int, three, "words"),
        ("adam", three, "words"),
        (keras.optimizers.SGD, "sqrt", "words"),
        (keras.optimizers.SGD, lambda optimizer: 1.0, "words"),
        (keras.optimizers.SGD, three, None),
        (keras.optimizers.Optimizer, three, "words"),
        (keras.optimizers.LossScaleOptimizer, three, "words"),
    ],
)
def test_what_is_no_metric_is_refused(kind, reader, words):
    with pytest.raises(ib.RuleError, match=r"register_metric is not given a class of optimizers.*Received: optimizer="):
        ib.register_metric(kind, reader, words)


WRONG = ["sqrt", (1.0, 2.0), {"d": 1.0}, 1.0, np.ones((6, 2), dtype="bool")]
WRONG += [np.ones(shape) for shape in ((), (1, 2), (6, 1), (2, 6))]


@pytest.mark.parametrize("told", WRONG, ids=repr)
def test_what_a_reader_may_not_return_is_said_in_the_first_step(told):
    kind = type("Halved", (Halved,), {})
    ib.register_metric(kind, lambda optimizer, variable, gradient: told)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile(kind(0.1), "mse")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full")
    with pytest.raises(ib.RuleError, match=r"real numbers shaped like the variable. Received: \w+ with shape=.*dtype="):
        model.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)


def test_before_a_step_the_plan_tells_what_can_be_known():
    layers = keras.layers
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])
    by_map = o.OptimizerMap(o.Adam())
    by_map[".*b/kernel"] = o.SGD()
    model.compile(o.MultiOptimizer(by_map), "mse")
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full")
    assert "known once the optimizers are built" in str(plan)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert "Adam: root of the second moment" in str(plan)
    assert "Euclidean: SGD steps all entries alike" in str(plan)

    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])
    model.spare = keras.optimizers.SGD()
    model.compile("adam", "mse")
    model.get_layer("a").trainable = False
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, gradient="full")
    assert "a/kernel: metric: none: frozen, no step moves it" in str(plan)
    assert "b/kernel: metric: Adam: root of the second moment" in str(plan)


@pytest.mark.parametrize("kind", ["adam", "lion", "adadelta"])
def test_gradients_of_embeddings_that_come_as_slices_are_read(kind):
    """TensorFlow's hold the rows used; those of Lion and Adadelta are part of the metric."""
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), layers.Embedding(50, 6), layers.GlobalAveragePooling1D(), layers.Dense(2)]
    )
    model.compile(kind, "mse")
    ib.constrain(model, {"embedding*/embeddings": ib.MaxNorm(0.05)})
    rng = np.random.default_rng(0)
    model.fit(rng.integers(0, 50, (32, 4)), rng.random((32, 2)), epochs=2, verbose=0)
    ib.check(model)


# On a ball, step by step.

BALL = {"**/kernel": ib.MaxNorm(0.5)}


def wide(optimizer, **arguments):
    """A model under `BALL` whose optimizer is built."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(8)])
    model.compile(optimizer, "mse", **arguments)
    ib.constrain(model, BALL, gradient="full", metric="optimizer")
    model.optimizer.build(model.trainable_variables)
    return model


def on_ball(model):
    return on_bound(norms((model.layers[0].kernel, (0,))), 0.5)


def pulls(of, seed):
    noise = np.random.default_rng(seed)
    gradients = [noise.normal(0, 1e-3, v.shape) - 1e-3 * np.sign(numbers(v)) for v in of.trainable_variables]
    return [keras.ops.convert_to_tensor(g.astype("float32")) for g in gradients]


def adams_step(optimizer, gradient, kept, taken):
    """What a step of Adam takes off, its metric, and what it keeps for the next."""
    momentum, velocity = (
        beta * before + (1 - beta) * power
        for beta, before, power in zip((optimizer.beta_1, optimizer.beta_2), kept, (gradient, gradient**2), strict=True)
    )
    alpha = 1e-3 * np.sqrt(1 - optimizer.beta_2**taken) / (1 - optimizer.beta_1**taken)
    metric = np.sqrt(velocity) + optimizer.epsilon
    return alpha * momentum / metric, metric, (momentum, velocity)


def lions_step(optimizer, gradient, kept, taken):
    """Likewise of Lion, whose metric wanders."""
    pushed, momentum = (beta * kept[0] + (1 - beta) * gradient for beta in (optimizer.beta_1, optimizer.beta_2))
    return 1e-3 * np.sign(pushed), np.abs(pushed), (momentum,)


BY_HAND = {"adam": (keras.optimizers.Adam, adams_step), "lion": (keras.optimizers.Lion, lions_step)}


@pytest.mark.parametrize(("kind", "step"), BY_HAND.values(), ids=BY_HAND)
def test_small_steps_end_near_the_nearest_point_in_the_metric(kind, step):
    held = wide(kind(1e-3))
    kernel, kept, off, off_without_metric = held.layers[0].kernel, (0.0, 0.0), 0.0, 0.0
    for seed in range(12):
        before, gradients = numbers(kernel), pulls(held, seed)
        moved, metric, kept = step(held.optimizer, numbers(gradients[0]), kept, seed + 1)
        held.optimizer.apply(gradients, held.trainable_variables)
        stepped, metric = before - moved, np.maximum(metric, 1e-3 * metric.max(axis=0))
        nearest = ib.MaxNorm(0.5).project(stepped.T, metric.T).T
        off += np.linalg.norm(numbers(kernel) - nearest)
        off_without_metric += np.linalg.norm(ib.MaxNorm(0.5).project(stepped.T).T - nearest)
        assert on_ball(held)
    assert off < 0.01 * off_without_metric


def test_a_step_that_is_larger_than_squares_can_be_ends_on_the_ball():
    held = wide(keras.optimizers.Adam(1e25))
    for seed in range(2):
        held.optimizer.apply(pulls(held, seed), held.trainable_variables)
        assert np.all(np.isfinite(numbers(held.layers[0].kernel)))
        assert on_ball(held)


def test_what_is_not_finite_stays_in_its_unit():
    held = wide(keras.optimizers.Adam(0.1))
    for seed in range(3):
        gradients = pulls(held, seed)
        if seed == 1:
            broken = numbers(gradients[0])
            broken[3, 2] = np.nan
            gradients[0] = keras.ops.convert_to_tensor(broken.astype("float32"))
        held.optimizer.apply(gradients, held.trainable_variables)
    found = norms((held.layers[0].kernel, (0,)))
    assert np.isnan(found[2])
    assert np.isnan(numbers(held.trainable_variables[0])).sum() == 1
    assert inside(np.delete(found, 2), 0.5)


class Told(keras.optimizers.Adam):
    """Adam with a metric that a test makes up."""


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_costs_that_make_no_sense_leave_units_on_the_ball(eager):
    told = np.ones((30, 8), "float32")
    for unit, cost in enumerate((np.nan, np.inf, 0.0)):  # of one entry, and of all
        told[0, unit] = told[:, unit + 3] = cost
    ib.register_metric(Told, lambda optimizer, variable, gradient: keras.ops.where(optimizer.iterations < 8, 1.0, told))
    held = wide(Told(1e-3), run_eagerly=eager)
    noise = np.random.default_rng(0)
    x, y = noise.normal(size=(64, 30)).astype("float32"), 9 * noise.normal(size=(64, 8)).astype("float32")
    held.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert on_ball(held)


def test_a_reader_may_hand_over_what_the_optimizer_keeps():
    def kept(optimizer, variable, gradient):
        return optimizer._velocities[optimizer._get_variable_index(variable)].value

    ib.register_metric(Told, kept)
    held = wide(Told(1e-3))
    optimizer, expected = held.optimizer, 0.0
    for seed in range(4):
        gradients = pulls(held, seed)
        expected = expected + (numbers(gradients[0]) ** 2 - expected) * (1 - optimizer.beta_2)
        held.optimizer.apply(gradients, held.trainable_variables)
    np.testing.assert_allclose(numbers(optimizer._velocities[0]), expected, rtol=1e-4)
    assert on_ball(held)
