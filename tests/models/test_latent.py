"""Latent weights: the optimizer steps them, and the layer uses their nearest point."""

import keras
import numpy as np
import pytest
from measure import numbers

import inbounds as ib
from instead import run

BACKEND = keras.backend.backend()
TERNARY = ib.Grid(1.0) & ib.Box(-1, 1)
STEP = 0.25
ROUND = ib.Grid(STEP)
x, y = np.random.default_rng(0).normal(size=(2, 16, 3)).astype("float32")


def linear(rule=ROUND, start=0.3, **arguments):
    """A model with one kernel (3, 3), and its plan."""
    built = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="h")])
    built.layers[-1].kernel.assign(np.full((3, 3), start))
    return built, ib.constrain(built, {"h/kernel": rule}, **arguments)


def gradient_at(weights):
    """That of the mean square error."""
    return (2 / y.size * x.T @ (x @ weights - y)).astype("float32")


def rounded(weights):
    return np.round(weights / STEP) * STEP


def stepped(optimizer, model, steps, then=lambda step: None):
    """The weights after each of some steps of a loop."""
    (kernel,) = model.trainable_variables
    found = []
    for step in range(steps):
        gradient = keras.ops.convert_to_tensor(gradient_at(numbers(kernel)).astype("float32"))
        optimizer.apply([gradient], [kernel])
        found.append(numbers(kernel))
        then(step)
    return found


def test_a_network_on_a_grid_learns_and_is_on_it_after_each_step(digits):
    class OnGrid(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert np.isin(numbers(self.model.layers[0].kernel), [-1, 0, 1]).all()

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10), keras.layers.Rescaling(0.3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    ib.constrain(model, {"**/kernel": TERNARY})
    history = model.fit(*digits, epochs=10, batch_size=64, verbose=0, callbacks=[OnGrid()])
    assert history.history["accuracy"][-1] > 0.9


RATE = 0.4
CASES = {
    "plain": ({}, {}),
    "accumulated": ({"gradient_accumulation_steps": 2}, {}),
    "averaged": ({"use_ema": True, "ema_momentum": 0.5}, {}),
    "overwritten": ({"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}, {}),
    "decayed": ({"weight_decay": 0.1}, {}),
    "clipped": ({"clipvalue": 0.1}, {}),
    "now and then": ({}, {"every": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_weights_before_their_projection(case):
    options, rule = CASES[case]
    model, _ = linear(**rule)
    optimizer = keras.optimizers.SGD(RATE, **options)
    optimizer.build(model.trainable_variables)
    (kernel,) = model.trainable_variables
    latent = weights = average = rounded(np.full((3, 3), 0.3))
    summed, every, farthest = 0.0, rule.get("every", 1), 0.0
    for step in range(1, 12):
        gradient = gradient_at(numbers(kernel))
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        summed = summed + gradient
        if case != "accumulated" or step % 2 == 0:
            gradient, summed = summed / (2 if case == "accumulated" else 1), 0.0
            decay, clip = options.get("weight_decay", 0.0), options.get("clipvalue", np.inf)
            latent = latent * (1 - RATE * decay) - RATE * np.clip(gradient, -clip, clip)
            weights = latent if step % every else rounded(latent)
        average = latent if step == 1 else 0.5 * average + 0.5 * latent  # as Keras begins
        farthest = max(farthest, np.abs(latent - rounded(latent)).max())
        if case == "overwritten" and step % 3 == 0:
            latent = average
            weights = rounded(average)
        np.testing.assert_allclose(numbers(kernel), weights, atol=1e-6, err_msg=f"step {step}")
    assert farthest > 0.1
    if options.get("use_ema"):
        optimizer.finalize_variable_values(model.trainable_variables)
        np.testing.assert_allclose(numbers(kernel), rounded(average), atol=1e-6)
        gradient = gradient_at(numbers(kernel))
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        latent = average - RATE * gradient
        weights = 0.5 * average + 0.5 * latent if case == "overwritten" else latent
        np.testing.assert_allclose(numbers(kernel), rounded(weights), atol=1e-6)


def test_an_average_in_the_weights_place_is_inside_where_the_latent_one_is_not():
    model, _ = linear(ib.MaxNorm(0.5), latent=True)
    optimizer = keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1)
    optimizer.build(model.trainable_variables)
    stepped(optimizer, model, 3, then=lambda step: ib.check(model))


def test_training_goes_on_after_loading_as_if_uninterrupted(tmp_path):
    def compiled():
        model, _ = linear(start=0.0)
        inner = keras.optimizers.SGD(RATE / 2, momentum=0.9)
        model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0), "mse")
        return model

    whole, parted = compiled(), compiled()
    for _ in range(2):
        parted.train_on_batch(x, y)
    parted.save(tmp_path / "model.keras")
    parted.layers[-1].kernel_constraint = None
    parted.save(tmp_path / "without.keras")
    parted, without = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("model", "without"))
    ib.constrain(without, {"h/kernel": ROUND})
    found = [{v.path: numbers(v).tolist() for v in model.optimizer.variables} for model in (parted, without)]
    assert found[0] == found[1], "a set that a file lacks doesn't find its latent weights there"
    for _ in range(3):
        whole.train_on_batch(x, y)
        parted.train_on_batch(x, y)
    for _ in range(2):
        whole.train_on_batch(x, y)
    assert np.ptp(numbers(whole.layers[-1].kernel)) > 0
    both = [[numbers(v) for v in (*model.trainable_variables, *model.optimizer.variables)] for model in (whole, parted)]
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    weights = tmp_path / "released.weights.h5"
    parted.save_weights(weights)
    ib.constrain(parted, {"h/kernel": ROUND}, latent=False)
    parted.load_weights(weights)  # Keras would warn of a number of variables that is another one


@pytest.mark.parametrize(
    ("rule", "assigned", "restarts"),
    [
        (ROUND, [0.0, 0.25, 0.5], [False, True, True]),  # each entry by itself
        (ib.Sparse(1), [0.0, 0.0, 0.1], [True, True, True]),  # the unit as a whole
        (ib.Sparse(1), [0.2, 0.0, 0.0], [False, False, False]),
    ],
)
def test_weights_that_are_assigned_are_where_the_next_step_begins(rule, assigned, restarts):
    model, _ = linear(rule, 0.0, latent=True)
    (kernel,) = model.trainable_variables
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([kernel])

    def step(down):
        optimizer.apply([keras.ops.convert_to_tensor(np.tile(np.float32(down)[:, None], 3))], [kernel])

    first = np.array([0.2, 0.1, -0.05]) if restarts != [False, True, True] else np.array([0.1, 0.1, 0.1])
    step(-first)
    kernel.assign(np.tile(np.float32(assigned)[:, None], 3))
    step([-0.03, 0.0, 0.0])
    latent = numbers(next(v for v in optimizer.variables if "latent" in v.path))
    expected = np.where(restarts, assigned, first) + np.array([0.03, 0.0, 0.0])
    np.testing.assert_allclose(latent, np.tile(expected[:, None], 3), atol=1e-6)


def test_a_unit_is_projected_with_all_of_its_latent_weights_and_frozen_ones_stay():
    layer = keras.layers.Dense(2, bias_initializer=keras.initializers.Constant(0.5))
    model = keras.Sequential([keras.Input((2,)), layer])
    layer.kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    ib.constrain(model, {layer: ib.Joint(ib.Sparse(1))}, latent=True)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    down = [keras.ops.convert_to_tensor(np.float32(g)) for g in ([[-0.2, -0.1], [0.0, 0.0]], [0.0, 0.0])]
    for _ in range(3):
        optimizer.apply(down, model.trainable_variables)
    np.testing.assert_allclose(numbers(layer.kernel), [[0.6, 0.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(numbers(layer.bias), [0.0, 0.5], atol=1e-6)

    frozen = keras.layers.Dense(2, name="f")
    frozen.build((None, 2))
    frozen.trainable = False
    model = keras.Sequential([keras.Input((2,)), frozen, keras.layers.Dense(2, name="g", use_bias=False)])
    print(plan := ib.constrain(model, {"*/kernel": ROUND}))
    assert str(plan).count("latent weights") == 1
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    assert sum("latent" in variable.path for variable in optimizer.variables) == 1


@pytest.mark.by_turns("rule")  # steps of latent weights, on each backend, are above
@pytest.mark.parametrize(
    "rule", [ib.Sparse(1), ib.LowRank(1), ib.MaxNorm(0.5), ib.UnitNorm(), ROUND & ib.Box(-0.5, 0.5)]
)
def test_any_set_keeps_latent_weights_where_asked_and_holds(rule):
    model, plan = linear(rule, latent=True)
    assert "latent weights beside the state of" in str(plan)
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)
    loss = [np.mean((x @ kernel - y) ** 2) for kernel in stepped(optimizer, model, 30, lambda _: ib.check(model))]
    assert min(loss) < loss[0] - 0.01


def test_where_latent_weights_are_lost_an_error_or_the_plan_says_so():
    model, plan = linear()
    with pytest.raises(ib.RuleError, match=r"keeps no latent weights.*latent=False"):
        ib.stateless_project(model, [v.value for v in model.trainable_variables])
    assert "without" not in str(plan)
    _, plan = linear(latent=False)
    assert "a step of less than half a grid step is lost" in str(plan)
    assert plan.latent is False
    layer = keras.layers.Dense(3)
    joint = keras.Sequential([keras.Input((3,)), layer])
    by_path = keras.optimizers.OptimizerMap(keras.optimizers.Adam(), {".*kernel": keras.optimizers.SGD()})
    optimizer = keras.optimizers.MultiOptimizer(by_path)
    joint.compile(optimizer, "mse")
    plan = ib.constrain(joint, {layer: ib.Joint(ROUND)})
    optimizer.build(joint.trainable_variables)
    assert "no latent weights: 2 optimizers step weights of one unit; a step of less" in " ".join(str(plan).split())


def test_a_set_says_itself_whether_it_keeps_them():
    own = ib.Sparse(1).in_training(latent=True)
    assert own == ib.Sparse(1)
    assert type(own).from_config(own.get_config()).training.latent is True
    with pytest.raises(ib.SetError, match="`latent` of in_training is not True, False or 'auto'"):
        own.in_training(latent=1)
    _, plan = linear(own, latent=False)
    assert not plan.entries[0].keeps_latent
    made = (own, ib.Together(own), own.where("causal"), own.per("inputs"), ib.NonNeg() & own, (own & ib.NonNeg()) & own)
    for rule in (one.in_training(every=3) for one in made):
        assert type(rule).from_config(rule.get_config()).training == rule.training
        _, plan = linear(rule & ib.Together(ib.NonNeg()) if isinstance(rule, ib.Together) else rule)
        assert plan.entries[0].keeps_latent
        assert "h/kernel: projected each 3 steps" in str(plan)
    with pytest.raises(ib.SetError, match="latent=True and latent=False") as caught:
        own & ib.NonNeg().in_training(latent=False)
    (whole,) = run(str(caught.value).split("Instead: ")[1], a=ib.Sparse(1), b=ib.NonNeg())
    assert whole.training.latent is True


@pytest.mark.skipif(BACKEND != "jax", reason="stateless steps are JAX's")
def test_on_jax_latent_weights_are_there_before_a_compiled_step():
    model, _ = linear(ib.NonNeg())
    model.compile("sgd", "mse")

    class Late(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with pytest.raises(ib.RuleError, match="within a fit on JAX"):
                ib.constrain(self.model, {"h/kernel": ROUND})

    model.fit(x, y, verbose=0, callbacks=[Late()])
    optimizer = keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)
    ib.constrain(model, {"h/kernel": ROUND})
    values = [v.value for v in model.trainable_variables]
    with pytest.raises(ib.RuleError, match=r"before optimizer\.build"):
        optimizer.stateless_apply([v.value for v in optimizer.variables], values, values)


def loop_oracle(steps):
    """The weights after each step of gradient descent on the latent ones."""
    latent, found = rounded(np.full((3, 3), 0.3)), []
    for _ in range(steps):
        latent = latent - RATE * gradient_at(rounded(latent))
        found.append(rounded(latent))
    return found


@pytest.mark.skipif(BACKEND != "torch", reason="torch.optim is PyTorch's")
def test_torch_optim_steps_latent_weights_which_its_state_dict_holds():
    import torch

    found = []
    model, _ = linear()
    (kernel,) = model.trainable_variables
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    ib.project_after(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = torch.mean((model(torch.tensor(x)) - torch.tensor(y)) ** 2)
        loss.backward()
        return loss

    for step in range(12):
        if step % 2:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        found.append(numbers(kernel))
        if step == 5:
            saved = optimizer.state_dict()
            optimizer = torch.optim.SGD(model.parameters(), RATE)
            for _ in range(2):  # the last call holds
                ib.project_after(model, optimizer)
            optimizer.load_state_dict(saved)
    np.testing.assert_allclose(found, loop_oracle(12), atol=1e-6)
    kernel.assign(np.full((3, 3), 5.0))
    closure()
    optimizer.step()
    (state,) = optimizer.state.values()
    np.testing.assert_allclose(numbers(state["latent"]), 5.0 - RATE * gradient_at(np.full((3, 3), 5.0)), atol=1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="optax is JAX's")
@pytest.mark.parametrize("every", [1, 3])
def test_optax_steps_latent_weights_in_its_state(every):
    import jax

    optax = pytest.importorskip("optax")
    model, _ = linear(every=every)
    optimizer = ib.optax_wrap(model, optax.sgd(RATE))
    values = [v.value for v in model.trainable_variables]
    state = optimizer.init(values)

    @jax.jit
    def step(values, state):
        gradients = [2 / y.size * x.T @ (x @ values[0] - y)]
        updates, state = optimizer.update(gradients, state, values)
        return optax.apply_updates(values, updates), state

    latent = weights = rounded(np.full((3, 3), 0.3))
    for count in range(1, 13):
        latent = latent - RATE * gradient_at(weights)
        weights = latent if count % every else rounded(latent)
        values, state = step(values, state)
        np.testing.assert_allclose(values[0], weights, atol=1e-6)
    values, state = step([0 * values[0] + 5.0], state)
    np.testing.assert_allclose(state.latents[0], 5.0 - RATE * gradient_at(np.full((3, 3), 5.0)), atol=1e-6)
    ib.constrain(model, {"h/kernel": ib.NonNeg()})
    older = optimizer.init(values)
    ib.constrain(model, {"h/kernel": ROUND})
    with pytest.raises(ib.RuleError, match="older than the set"):
        optimizer.update(values, older, values)
