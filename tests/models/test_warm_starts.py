"""Warm starts: a step's projection on a ball goes on from the last one's, and ends where a cold one does."""

import keras
import numpy as np
import pytest
from measure import inside, norms, numbers, on_bound
from sklearn.datasets import load_breast_cancer

import inbounds as ib

BOUND = 0.5
BALL = {"**/kernel": ib.MaxNorm(BOUND)}
JAX = keras.backend.backend() == "jax"


def model(rate=1e-3, inputs=30, units=8, **arguments):
    keras.utils.set_random_seed(0)
    built = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units)])
    built.compile(keras.optimizers.Adam(rate), "mse", **arguments)
    return built


def built_optimizer(of):
    of.optimizer.build(of.trainable_variables)
    return of.optimizer


def pulls(of, seed):
    noise = np.random.default_rng(seed)
    gradients = [noise.normal(0, 1e-3, v.shape) - 1e-3 * np.sign(numbers(v)) for v in of.trainable_variables]
    return [keras.ops.convert_to_tensor(g.astype("float32")) for g in gradients]


def lengths(of):
    return norms((of.layers[-1].kernel, (0,)))


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


STEPS = {"adam": (keras.optimizers.Adam, adams_step), "lion": (keras.optimizers.Lion, lions_step)}


@pytest.mark.parametrize(("kind", "step"), STEPS.values(), ids=STEPS)
def test_small_steps_end_near_the_nearest_point_in_the_metric(kind, step):
    held = model()
    held.compile(kind(1e-3), "mse")
    ib.constrain(held, BALL, gradient="full")
    optimizer = built_optimizer(held)
    kernel, kept, off, off_without_metric = held.layers[0].kernel, (0.0, 0.0), 0.0, 0.0
    for seed in range(12):
        before, gradients = numbers(kernel), pulls(held, seed)
        moved, metric, kept = step(optimizer, numbers(gradients[0]), kept, seed + 1)
        optimizer.apply(gradients, held.trainable_variables)
        stepped, metric = before - moved, np.maximum(metric, 1e-3 * metric.max(axis=0))
        nearest = ib.MaxNorm(BOUND).project(stepped.T, metric.T).T
        off += np.linalg.norm(numbers(kernel) - nearest)
        off_without_metric += np.linalg.norm(ib.MaxNorm(BOUND).project(stepped.T).T - nearest)
        assert on_bound(lengths(held), BOUND)
    assert off < 0.3 * off_without_metric  # of Adam's, most in the second step: its metric grows by a half


@pytest.mark.parametrize("metric", ["optimizer", "euclidean"])
def test_at_a_constant_rate_training_ends_where_the_gradient_is_along_the_weights(metric):
    x, y = load_breast_cancer(return_X_y=True)
    x, y = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32"), np.eye(2, dtype="float32")[y]
    held = model(0.02, units=2)
    ib.constrain(held, {"**/kernel": ib.MaxNorm(0.1)}, gradient="full", metric=metric)
    # One epoch: one that has a single step takes many times as long.
    held.fit(np.tile(x, (600, 1)), np.tile(y, (600, 1)), batch_size=len(x), shuffle=False, verbose=0)
    kernel, bias = map(numbers, held.get_weights())
    gradient = x.T.astype("float64") @ (x @ kernel + bias - y) / len(x)
    along = np.sum(gradient * kernel, axis=0) / 0.1**2 * kernel
    across = np.linalg.norm(gradient - along, axis=0) / np.linalg.norm(gradient, axis=0)
    assert on_bound(lengths(held), 0.1)
    assert np.all(across < 1e-4 if metric == "optimizer" else across > 0.1)


def test_a_step_that_is_larger_than_squares_can_be_ends_on_the_ball():
    held = model(1e25)
    ib.constrain(held, BALL, gradient="full")
    optimizer = built_optimizer(held)
    for seed in range(2):
        optimizer.apply(pulls(held, seed), held.trainable_variables)
        assert np.all(np.isfinite(numbers(held.layers[0].kernel)))
        assert on_bound(lengths(held), BOUND)


def test_what_is_not_finite_stays_in_its_unit():
    held = model(0.1)
    ib.constrain(held, BALL, gradient="full")
    optimizer = built_optimizer(held)
    for seed in range(3):
        gradients = pulls(held, seed)
        if seed == 1:
            broken = numbers(gradients[0])
            broken[3, 2] = np.nan
            gradients[0] = keras.ops.convert_to_tensor(broken.astype("float32"))
        optimizer.apply(gradients, held.trainable_variables)
    found = lengths(held)
    assert np.isnan(found[2])
    assert np.isnan(numbers(held.trainable_variables[0])).sum() == 1
    assert inside(np.delete(found, 2), BOUND)


class Told(keras.optimizers.Adam):
    """Adam with a metric that a test makes up."""


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
@pytest.mark.parametrize("inputs", [1, 30])
@pytest.mark.parametrize("cost", [np.nan, np.inf, 0.0])
def test_costs_that_make_no_sense_leave_units_on_the_ball(cost, inputs, eager):
    told = np.ones((30, 8), "float32")
    told[:inputs] = cost
    ib.register_metric(Told, lambda optimizer, variable, gradient: keras.ops.where(optimizer.iterations < 8, 1.0, told))
    held = model()
    held.compile(Told(1e-3), "mse", run_eagerly=eager)
    ib.constrain(held, BALL, gradient="full")
    noise = np.random.default_rng(0)
    x, y = noise.normal(size=(64, 30)).astype("float32"), 9 * noise.normal(size=(64, 8)).astype("float32")
    held.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert on_bound(lengths(held), BOUND)


def test_a_reader_may_hand_over_what_the_optimizer_keeps():
    def kept(optimizer, variable, gradient):
        return optimizer._velocities[optimizer._get_variable_index(variable)].value

    ib.register_metric(Told, kept)
    held = model()
    held.compile(Told(1e-3), "mse")
    ib.constrain(held, BALL, gradient="full")
    optimizer, expected = built_optimizer(held), 0.0
    for seed in range(4):
        gradients = pulls(held, seed)
        expected = expected + (numbers(gradients[0]) ** 2 - expected) * (1 - optimizer.beta_2)
        optimizer.apply(gradients, held.trainable_variables)
    np.testing.assert_allclose(numbers(optimizer._velocities[0]), expected, rtol=1e-4)
    assert on_bound(lengths(held), BOUND)


def test_units_inside_stay_as_the_step_left_them():
    held, free = model(), model()
    ib.constrain(held, {"**/kernel": ib.MaxNorm(50.0)}, gradient="full")
    for one in (held, free):
        for seed in range(3):
            built = one.optimizer if one.optimizer.built else built_optimizer(one)
            built.apply(pulls(one, seed), one.trainable_variables)
    assert all(np.array_equal(a, b) for a, b in zip(held.get_weights(), free.get_weights(), strict=True))


def test_files_are_those_of_the_optimizer_by_itself(tmp_path):
    x, y = np.ones((32, 30), "float32"), np.ones((32, 8), "float32")
    held, free = model(), model()
    ib.constrain(held, BALL, gradient="full")
    for one in (held, free):
        one.fit(x, y, verbose=0)
        one.save_weights(tmp_path / f"{one.name}.weights.h5")
    held.save(tmp_path / "held.keras")
    again = keras.models.load_model(tmp_path / "held.keras")
    for mine, theirs in zip(held.optimizer._velocities, again.optimizer._velocities, strict=True):
        assert np.array_equal(numbers(mine), numbers(theirs))
    for one, other in ((held, free), (free, held)):  # Keras would warn of another number of variables
        one.load_weights(tmp_path / f"{other.name}.weights.h5")
        assert int(one.optimizer.iterations) == 1
    again.fit(x, y, verbose=0)
    assert inside(lengths(again), BOUND)


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, keras.optimizers.LossScaleOptimizer], ids=["alone", "loss scale"]
)
def test_an_optimizer_and_one_around_it_save_as_many_numbers_as_without_a_plan(wrap):
    saved = []
    for rules in (None, BALL):
        held = model()
        held.compile(wrap(keras.optimizers.Adam()), "mse")
        if rules:
            ib.constrain(held, rules, gradient="full")
        store = {}
        built_optimizer(held).save_own_variables(store)
        held.optimizer.load_own_variables(store)
        saved.append(list(store))
    assert saved[0] == saved[1]


def test_the_optimizer_lists_them_on_jax_only_and_while_a_plan_holds():
    """JAX hands back what is listed and nothing else."""
    held = model()
    before = len(built_optimizer(held).variables)
    for _ in range(2):
        ib.constrain(held, BALL, gradient="full")
        assert len(held.optimizer.variables) == before + JAX
    ib.release(held)
    assert len(held.optimizer.variables) == before


def test_each_has_a_path_of_its_own():
    held = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(3)])
    held.compile("adam", "mse")
    ib.constrain(held, BALL, gradient="full")
    held.optimizer.build(held.trainable_variables)
    assert sum("warm_start" in variable.path for variable in held.optimizer.variables) == 2 * JAX
    assert len(held.get_state_tree()["optimizer_variables"]) == 1  # Keras raises where a path is found twice


@pytest.mark.skipif(not JAX, reason="stateless steps are JAX's")
def test_stateless_steps_hand_them_on():
    import jax

    held = model()
    ib.constrain(held, BALL, gradient="full")
    optimizer = built_optimizer(held)
    step = jax.jit(optimizer.stateless_apply)
    trained, state = [v.value for v in held.trainable_variables], [v.value for v in optimizer.variables]
    for seed in range(6):
        trained, state = step(state, pulls(held, seed), trained)
    kept = [value for value, variable in zip(state, optimizer.variables, strict=True) if "warm" in variable.name]
    assert len(kept) == 1
    assert np.all(np.asarray(kept[0]) > 0)
    assert on_bound(norms((trained[0], (0,))), BOUND)
