"""The optimizer's metric in training: what the plan says of it, whom it follows, what is saved, whether it is right."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import inbounds as ib
from inbounds._bound import projected
from models.measure import numbers

pytestmark = pytest.mark.by_turns

BOUND = 0.6


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


def trained(model, steps, data=None):
    """So many steps with all data, as one epoch: 400 epochs of one step take TensorFlow a minute."""
    batch = data or problem()
    model.fit((batch for _ in range(steps)), steps_per_epoch=steps, shuffle=False, verbose=0)
    return model


def gap_to_stationarity(model, rtol=1e-5):
    """How far the gradient is from the outward normal of the ball at the kernel, in sine: 0 at the optimum."""
    x, y = (part.astype("float64") for part in problem())
    kernel, bias = (numbers(weight) for weight in model.get_weights())
    scores = 1 / (1 + np.exp(-(x @ kernel + bias)))
    gradient = x.T @ (scores - y)
    assert np.isclose(np.linalg.norm(kernel), BOUND, rtol=rtol), "the bound is met"
    cosine = -np.sum(gradient * kernel) / np.linalg.norm(gradient) / np.linalg.norm(kernel)
    return np.sqrt(max(0.0, 1 - cosine**2))


o = keras.optimizers
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
        schedule = o.schedules.CosineDecay(0.02, 400, alpha=1e-3)
        model = network(ADAPTIVE[name](schedule))
        ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, metric=metric)
        ends[metric] = gap_to_stationarity(trained(model, 400))
        ib.check(model)
    assert ends["optimizer"] < 0.02
    assert ends["euclidean"] > 0.1


@pytest.mark.repetition
def test_a_matrix_set_gets_there_in_steps_from_the_weights_before():
    ends = {}
    for metric in ("optimizer", "euclidean"):
        model = network(o.Adam(o.schedules.CosineDecay(0.02, 400, alpha=1e-3)))
        ib.constrain(model, {"**/kernel": ib.SpectralNorm(BOUND)}, metric=metric)  # of one column: its norm
        ends[metric] = gap_to_stationarity(trained(model, 400))
        ib.check(model)
    assert ends["optimizer"] < 0.05
    assert ends["euclidean"] > 0.1


def softmax_gap(model, bound):
    """As `gap_to_stationarity` for a softmax of the digits: the largest over the columns of the kernel."""
    x, y = digits()
    kernel, bias = (numbers(weight) for weight in model.get_weights())
    scores = np.exp(x @ kernel + bias)
    gradient = x.T @ (scores / scores.sum(axis=1, keepdims=True) - y)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), bound, rtol=1e-5)
    cosines = -np.sum(gradient * kernel, axis=0) / np.linalg.norm(gradient, axis=0) / np.linalg.norm(kernel, axis=0)
    return np.sqrt(np.maximum(0, 1 - cosines**2)).max()


def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32"), np.eye(10, dtype="float32")[y]


@pytest.mark.repetition  # of the cell of Muon "at the optimum"
def test_muon_which_steps_by_a_matrix_ends_at_the_constrained_optimum():
    ends = {}
    for metric in ("optimizer", "euclidean"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        schedule = o.schedules.CosineDecay(0.05, 400, alpha=1e-3)
        model.compile(o.Muon(schedule, weight_decay=None), keras.losses.CategoricalCrossentropy(from_logits=True))
        plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)}, metric=metric)
        trained(model, 400, digits())
        ib.check(model)
        ends[metric] = softmax_gap(model, 1.0)
    assert ends["optimizer"] < 0.02
    assert ends["euclidean"] > 0.1
    assert "Euclidean, as asked for" in str(plan)
    assert "go as far along the momentum instead" in str(ib.constrain(model, {"**/kernel": ib.Box(-1, 1)}))


def test_two_optimizers_on_one_unit_hold_it_in_the_euclidean_metric():
    x, y = digits()
    by_map = o.OptimizerMap(o.Adam(0.05))
    by_map[".*/kernel"] = o.Muon(0.05)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile(o.MultiOptimizer(by_map), keras.losses.CategoricalCrossentropy(from_logits=True))
    plan = ib.constrain(model, {keras.layers.Dense: ib.Joint(ib.MaxNorm(0.5))})
    model.fit(x, y, batch_size=600, epochs=2, verbose=0)
    ib.check(model)
    assert "Euclidean: 2 optimizers step weights of one unit" in str(plan)


@pytest.mark.repetition  # of the cell of ScheduleFreeAdamW "at the optimum"
def test_schedule_free_whose_weights_are_an_average_of_what_it_steps_gets_near_the_optimum():
    ends = {}
    for metric in ("optimizer", "euclidean"):
        model = network(o.ScheduleFreeAdamW(0.3))
        ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, metric=metric)
        trained(model, 400)
        ends[metric] = gap_to_stationarity(model, rtol=5e-3)  # an average comes from inside
    assert ends["optimizer"] < 0.05
    assert ends["euclidean"] > 0.1


def test_what_schedule_free_steps_is_inside_too():
    """With the average alone inside, it would run away."""
    model = network(o.ScheduleFreeAdamW(0.3))
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    trained(model, 30)
    ib.check(model)
    assert np.linalg.norm(numbers(model.optimizer._momentums[0])) <= BOUND * (1 + 1e-6)


def test_rounding_of_an_average_does_not_add_up():
    """What is within rounding of a bound stays, but for an average: in 3,000 steps it would leave the tolerance."""
    above = np.zeros((4, 2), "float32")
    above[0] = np.nextafter(np.float32(1), np.float32(2)), 0.5
    layer = keras.layers.Dense(2)
    layer.build((None, 4))
    layer.kernel.assign(above)
    (entry,) = ib.constrain(layer, {"**/kernel": ib.MaxNorm(1.0)}).entries
    ((_, stays),) = projected(entry)
    ((_, put),) = projected(entry, strict=True)
    np.testing.assert_array_equal(numbers(stays), above)
    assert numbers(put)[0].tolist() == [1.0, 0.5]


def test_sets_given_to_layers_are_projected_in_the_optimizers_metric():
    keras.utils.set_random_seed(0)
    given = keras.layers.Dense(1, kernel_constraint=ib.MaxNorm(BOUND))
    model = keras.Sequential([keras.Input((30,)), given])
    compiled(model, o.Adam(o.schedules.CosineDecay(0.02, 400, alpha=1e-3)))
    assert gap_to_stationarity(trained(model, 400)) < 0.02


def test_the_plan_says_what_the_metric_is_and_follows_the_optimizer():
    model = network()
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0), "**/bias": ib.NonNeg()})
    assert "once the model is compiled" in str(plan)
    assert "the same in all" in str(plan)
    compiled(model, "adam")
    assert "Adam: root of the second moment" in str(plan)
    compiled(model, o.Lion(0.1))
    assert "Lion: size of what the sign is taken of" in str(plan)
    compiled(model, "sgd")
    assert "Euclidean: SGD steps all entries alike" in str(plan)
    assert "Euclidean, as asked for" in str(ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)}, metric="euclidean"))
    assert "Euclidean: the set is not convex" in str(ib.constrain(model, {"**/kernel": ib.Sparse(2)}))


def test_a_model_compiled_again_is_projected_in_the_metric_of_the_new_optimizer():
    model = network("sgd")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    trained(model, 2)
    compiled(model, o.Adam(o.schedules.CosineDecay(0.02, 400, alpha=1e-3)))
    assert gap_to_stationarity(trained(model, 400)) < 0.02


def test_the_choice_of_the_euclidean_metric_is_saved(tmp_path):
    model = network(o.Adam(o.schedules.CosineDecay(0.02, 300, alpha=1e-3)))
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)}, metric="euclidean")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    compiled(loaded, o.Adam(o.schedules.CosineDecay(0.02, 300, alpha=1e-3)))
    assert gap_to_stationarity(trained(loaded, 300)) > 0.1
    again = ib.constrain(loaded)  # the choice is made anew
    assert "Adam" in str(again)


class Halved(keras.optimizers.SGD):
    """Steps entry by entry at half the rate for odd entries: a metric that is not SGD's."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * gradient / metric_of_halved(self, variable, gradient))


def metric_of_halved(optimizer, variable, gradient):
    odd = np.arange(np.prod(variable.shape)).reshape(variable.shape) % 2
    return keras.ops.convert_to_tensor(1.0 + odd, dtype="float32")


def test_an_unknown_optimizer_is_euclidean_and_says_so_until_its_metric_is_registered(monkeypatch):
    model = network(Halved(0.1))
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    assert "Euclidean: Halved is unknown, see register_metric" in str(plan)
    assert gap_to_stationarity(trained(model, 300)) > 0.05
    monkeypatch.setattr("inbounds._metrics._METRICS", dict(ib._metrics._METRICS))
    ib.register_metric(Halved, metric_of_halved, "twice for odd entries")
    assert "Halved: twice for odd entries" in str(plan)
    assert gap_to_stationarity(trained(model, 300)) < 0.02
    model = network(Halved(0.1))
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    assert gap_to_stationarity(trained(model, 300)) < 0.02


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


@pytest.mark.parametrize("told", ["sqrt", (1.0, 2.0), {"d": 1.0}, 1.0, np.ones((6, 2), dtype="bool")], ids=repr)
def test_what_a_reader_may_not_return_is_said_in_the_first_step(told, monkeypatch):
    monkeypatch.setattr("inbounds._metrics._METRICS", dict(ib._metrics._METRICS))
    ib.register_metric(Halved, lambda optimizer, variable, gradient: told)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile(Halved(0.1), "mse")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    with pytest.raises(ib.RuleError, match=r"a tensor of real numbers.*Received: \w+ with shape=.*dtype="):
        model.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)


def test_before_a_step_the_plan_tells_what_can_be_known():
    layers = keras.layers
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])
    by_map = o.OptimizerMap(o.Adam())
    by_map[".*b/kernel"] = o.SGD()
    model.compile(o.MultiOptimizer(by_map), "mse")
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    assert "known once the optimizers are built" in str(plan)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert "Adam: root of the second moment" in str(plan)
    assert "Euclidean: SGD steps all entries alike" in str(plan)

    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])
    model.spare = keras.optimizers.SGD()
    model.compile("adam", "mse")
    model.get_layer("a").trainable = False
    plan = ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    assert "a/kernel: metric: none: frozen, no step moves it" in str(plan)
    assert "b/kernel: metric: Adam: root of the second moment" in str(plan)


@pytest.mark.parametrize("shape", [(), (1, 2), (6, 1), (2, 6)])
def test_a_metric_of_another_shape_is_refused_in_the_first_step(shape, monkeypatch):
    monkeypatch.setattr("inbounds._metrics._METRICS", dict(ib._metrics._METRICS))
    ib.register_metric(Halved, lambda optimizer, variable, gradient: keras.ops.ones(shape))
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile(Halved(0.1), "mse")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND)})
    with pytest.raises(ib.RuleError, match=r"shaped like the variable. Received: \w+ with shape=\("):
        model.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)


@pytest.mark.parametrize("kind", ["adam", "lion", "adadelta"])
def test_gradients_of_embeddings_that_come_as_slices_are_read(kind):
    """TensorFlow's hold the rows that were used; those of Lion and Adadelta are part of the metric."""
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), layers.Embedding(50, 6), layers.GlobalAveragePooling1D(), layers.Dense(2)]
    )
    model.compile(kind, "mse")
    ib.constrain(model, {"embedding*/embeddings": ib.MaxNorm(0.05)})
    rng = np.random.default_rng(0)
    model.fit(rng.integers(0, 50, (32, 4)), rng.random((32, 2)), epochs=2, verbose=0)
    ib.check(model)
