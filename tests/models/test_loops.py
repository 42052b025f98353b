"""Loops without a Keras optimizer: `torch.optim`, optax, functional loops, tf.Variables."""

import importlib.util
import re
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

import inbounds as ib
from instead import run
from models.measure import inside, norms, numbers, on_bound, same_bits, values_of
from models.test_metric import BOUND, gap, gap_of, network, problem

BACKEND = keras.backend.backend()
OPTAX = importlib.util.find_spec("optax") is not None
if BACKEND == "torch":
    import torch
elif BACKEND == "tensorflow":
    import tensorflow as tf
else:
    import jax

    if OPTAX:
        import optax

ONLY = {
    backend: pytest.mark.skipif(backend != BACKEND, reason=f"a loop of {backend}")
    for backend in ("jax", "torch", "tensorflow")
}
KERNELS = {"**/kernel": ib.MaxNorm(BOUND)}
JOINT = {keras.layers.Dense: ib.Joint(ib.MaxNorm(BOUND))}
PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text(encoding="utf-8")


def length(model):
    return norms((model.layers[-1].kernel, (0,)))


def joint_length(model):
    return norms((model.layers[0].kernel, (0,)), (model.layers[0].bias, ()))


# torch.optim.


def trained(model, optimizer, steps=100):
    """Steps on all data, with a rate that falls as a cosine to a thousandth."""
    x, y = map(torch.as_tensor, problem())
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1e-3 + 0.999 * (1 + np.cos(np.pi * step / steps)) / 2
    )
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
        rates.step()
    return model


def grown(model, optimizer, *, leave_out=()):
    """One step with gradients that drive every weight up."""
    for variable in model.trainable_variables:
        variable.value.grad = None if variable.name in leave_out else -torch.ones_like(variable.value)
    optimizer.step()


def adam(model, rate=0.1, **arguments):
    return torch.optim.Adam(model.parameters(), lr=rate, **arguments)


def held(rules=KERNELS, make=adam, *, how=None, **arguments):
    """A model in its sets, and an optimizer whose steps are projected."""
    model = network()
    ib.constrain(model, rules, **(how or {}))
    optimizer = make(model, **arguments)
    ib.project_after(model, optimizer)
    return model, optimizer


def of_kind(kind, lr=0.1, **arguments):
    return lambda model: getattr(torch.optim, kind)(model.parameters(), lr=lr, **arguments)


FULL = {"gradient": "full"}
SAME_READER = {"AdamW": {"weight_decay": 0.0}, "NAdam": {}}
"""Optimizers whose metric is read as that of Adam."""

TORCH = {
    "Adam": {},
    "AMSGrad": {"kind": "Adam", "amsgrad": True},
    "RAdam": {"lr": 0.3},
    "Adamax": {},
    "RMSprop": {"centered": True},
    "Adagrad": {"lr": 0.6},
    "fused": {"kind": "Adam", "fused": True},
}


@ONLY["torch"]
@pytest.mark.parametrize("name", [*TORCH, *(pytest.param(name, marks=pytest.mark.repetition) for name in SAME_READER)])
def test_torch_optimizers_end_at_the_constrained_optimum_of_whole_gradients(name):
    model, optimizer = held(make=of_kind(**{"kind": name} | (TORCH | SAME_READER)[name]), how=FULL)
    assert gap_of(trained(model, optimizer)) < 0.02
    ib.check(model)


@ONLY["torch"]
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_groups_with_rates_of_their_own_are_part_of_the_metric(kind):
    rate = {"SGD": 6.0, "Adam": 0.15}[kind]

    def in_groups(model):
        kernel, bias = (variable.value for variable in model.trainable_variables)
        groups = [{"params": [kernel], "lr": rate}, {"params": [bias], "lr": rate / 20}]
        return getattr(torch.optim, kind)(groups)

    model, optimizer = held(JOINT, in_groups, how=FULL)
    assert gap_of(trained(model, optimizer), joint=True) < 0.02
    ib.check(model)


@ONLY["torch"]
def test_a_group_at_a_rate_of_0_hardly_moves():
    def in_groups(model):
        kernel, bias = (variable.value for variable in model.trainable_variables)
        return torch.optim.SGD([{"params": [kernel], "lr": 2.0}, {"params": [bias], "lr": 0.0}])

    model, optimizer = held(JOINT, in_groups, how=FULL)
    before = numbers(model.layers[0].bias)
    grown(model, optimizer)
    ib.check(model)
    assert np.abs(numbers(model.layers[0].bias) - before).max() < 1e-3


@ONLY["torch"]
@pytest.mark.parametrize("changed", [False, True])
def test_a_class_with_a_step_of_its_own_is_euclidean_and_one_without_is_not(changed):
    class Renamed(torch.optim.Adam):
        pass

    class Changed(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    model, optimizer = held(make=lambda model: (Changed if changed else Renamed)(model.parameters(), lr=0.1), how=FULL)
    gap = gap_of(trained(model, optimizer))
    assert gap > 0.1 if changed else gap < 0.02
    ib.check(model)


@ONLY["torch"]
def test_lbfgs_with_its_closure_is_held():
    model, optimizer = held(make=of_kind("LBFGS", lr=0.5), how=FULL)
    x, y = map(torch.as_tensor, problem())

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        ib.check(model)
    assert on_bound(length(model), BOUND)


@ONLY["torch"]
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_weight_without_a_gradient_and_one_that_the_optimizer_does_not_have_are_held(kind):
    model, every = held(JOINT, of_kind(kind, lr=5.0))
    grown(model, every, leave_out=["bias"])
    ib.check(model)
    some = getattr(torch.optim, kind)([model.layers[0].kernel.value], lr=5.0)
    ib.project_after(model, some)
    every.register_step_pre_hook(lambda *_: pytest.fail("the other one steps"))
    grown(model, some)
    assert on_bound(joint_length(model), BOUND)


@ONLY["torch"]
def test_frozen_weights_stay_and_the_others_keep_the_unit_inside():
    model = network()
    model.layers[0].bias.assign([0.5])
    ib.constrain(model, JOINT)
    model.layers[0].bias.trainable = False
    optimizer = adam(model, 5.0)
    ib.project_after(model, optimizer)
    before = numbers(model.layers[0].bias)
    grown(model, optimizer)
    assert np.array_equal(numbers(model.layers[0].bias), before)
    assert on_bound(joint_length(model), BOUND)


@ONLY["torch"]
def test_freezing_behind_the_back_of_keras_keeps_a_weight_and_is_an_error_within_a_joint():
    model, optimizer = held(rate=5.0)
    kernel = model.layers[0].kernel
    kernel.value.requires_grad_(False)
    kernel.assign(numbers(kernel) + 1)  # from outside
    before = numbers(kernel)
    optimizer.step()
    assert np.array_equal(numbers(kernel), before)
    ib.constrain(model, JOINT)
    with pytest.raises(ib.RuleError, match=r"frozen by `requires_grad`.*dense/kernel.*layer.trainable = False"):
        optimizer.step()


@ONLY["torch"]
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_leaves_the_weights(fused):
    """Of a fused optimizer the hook is called all the same, before any step was counted."""
    model, optimizer = held(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x, y = map(torch.as_tensor, problem())

    def stepped(factor):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    if not fused:
        model.layers[0].kernel.assign(numbers(model.layers[0].kernel) + 1)  # outside: a projection would show
    before = values_of(model)
    stepped(float("inf"))
    assert same_bits(values_of(model), before)
    stepped(1.0)
    assert on_bound(length(model), BOUND) or fused


@ONLY["torch"]
def test_the_plan_is_looked_up_at_each_step_until_the_handle_is_removed():
    model = network()
    ib.constrain(model, KERNELS)
    optimizer = adam(model, 5.0)
    handle = ib.project_after(model, optimizer)
    grown(model, optimizer)
    assert on_bound(length(model), BOUND)
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.1)})
    grown(model, optimizer)
    assert on_bound(length(model), 0.1)
    ib.release(model)
    grown(model, optimizer)
    assert length(model) > 1
    ib.constrain(model, KERNELS)
    handle.remove()
    grown(model, optimizer)
    assert length(model) > 1
    step = optimizer.step
    ib.project_after(model, optimizer)
    assert optimizer.step == step, "wrapped once, or a call in each epoch would nest a thousand wrappers"
    grown(model, optimizer)
    assert on_bound(length(model), BOUND)


@ONLY["torch"]
def test_sets_given_to_layers_are_projected_at_once_and_after_steps_also_when_loaded(tmp_path):
    given = keras.layers.Dense(1, kernel_constraint=ib.MaxNorm(BOUND), kernel_initializer="ones")
    made = keras.Sequential([keras.Input((30,)), given])
    made.save(tmp_path / "model.keras")
    for model in (made, keras.models.load_model(tmp_path / "model.keras")):
        optimizer = adam(model, 5.0)
        ib.project_after(model, optimizer)
        assert on_bound(length(model), BOUND)
        grown(model, optimizer)
        assert on_bound(length(model), BOUND)
        ib.check(model)


@ONLY["torch"]
def test_steps_are_counted_for_plans_that_hold_at_times():
    model, optimizer = held(how={"every": 3}, rate=5.0)
    at_bound = []
    for _ in range(6):
        grown(model, optimizer)
        at_bound.append(inside(length(model), BOUND))
    assert at_bound == [False, False, True] * 2
    looser = keras.optimizers.schedules.PolynomialDecay(0.1, 4, BOUND)
    ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0).scaled(looser)})
    assert on_bound(length(model), BOUND)
    ib.check(model)
    ib.constrain(model, KERNELS, every="epoch")
    with pytest.raises(ib.RuleError, match=r"every='epoch' can't be used.*every=100"):
        grown(model, optimizer)
    with pytest.raises(ib.RuleError, match="counts no epochs"):
        ib.project_after(model, adam(model))


@ONLY["torch"]
def test_many_small_layers_and_an_empty_step_are_held():
    """Alike weights are projected as one stack."""
    model = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8) for _ in range(5))])
    ib.constrain(model, {"**/kernel": ib.MaxNorm(BOUND), "**/bias": ib.NonNeg()})
    optimizer = adam(model, 1.0)
    ib.project_after(model, optimizer)
    optimizer.step()  # no gradient anywhere
    for _ in range(2):
        grown(model, optimizer)
    ib.check(model)
    assert all(on_bound(norms((layer.kernel, (0,))), BOUND) for layer in model.layers)


LARGE = {
    "norm": ib.MaxNorm(BOUND),
    "joint": ib.Joint(ib.NonNeg() & ib.MaxNorm(BOUND)),
    "shell": ib.MinMaxNorm(BOUND / 2, BOUND),
    "face": ib.L1Ball(BOUND),
    "total": ib.Simplex(BOUND),
    "rows": ib.Hyperplane(np.arange(1.0, 9.0), 1.0) & ib.MaxNorm(BOUND),
    "marked": ib.Joint(ib.MaxNorm(BOUND).where(np.arange(9) < 5)),
    "inputs": ib.MaxNorm(BOUND).on(inputs=[0, 3]),
    "order": ib.Monotone(),
    "sparse": ib.Sparse(3),
}


def trained_alike(owner, how):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8) for _ in range(3))])
    rule = {keras.layers.Dense: owner} if isinstance(owner, ib.Joint) else {"**/kernel": owner}
    ib.constrain(model, rule, **how)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    model.fit(x, 9 * x, batch_size=4, verbose=0)
    assert ib.audit(model).ok
    return model


@ONLY["torch"]
@pytest.mark.parametrize("how", [{}, {"gradient": "full", "metric": "optimizer"}], ids=["reduced", "in the metric"])
@pytest.mark.parametrize("owner", LARGE.values(), ids=LARGE)
def test_alike_layers_end_where_they_do_one_by_one(owner, how, monkeypatch):
    """Small weights are stacked, large ones lie side by side."""
    from inbounds._train import optimizer_hooks, step_projections

    def trained():
        model = trained_alike(owner, how)
        projections = optimizer_hooks.taken_plan(model.optimizer).projections
        return model.get_weights(), max(len(one.entries) for one in projections)

    ends = {"stacked": trained()}
    monkeypatch.setattr(step_projections, "MAX_STACKED_SIZE", 0)
    ends["side by side"] = trained()
    monkeypatch.setattr(optimizer_hooks, "grouped", list)
    alone, longest = trained()
    assert longest == 1
    assert [longest for _, longest in ends.values()] == [3, 3]
    for weights, _ in ends.values():
        for one, other in zip(weights, alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


COMPILED = {
    "face": pytest.param(LARGE["face"]),
    "marked": pytest.param(LARGE["marked"], marks=pytest.mark.repetition),  # on PyTorch, the test above stacks it too
}


@ONLY["tensorflow"]
@pytest.mark.parametrize("owner", COMPILED.values(), ids=COMPILED)
def test_stacks_and_programs_of_xla_end_where_operations_do_one_by_one(owner, monkeypatch):
    from inbounds._arrays import ops
    from inbounds._train import optimizer_hooks, programs

    model = trained_alike(owner, {})
    assert max(len(one.entries) for one in optimizer_hooks.taken_plan(model.optimizer).projections) == 3
    stacked = model.get_weights()
    monkeypatch.setattr(optimizer_hooks, "grouped", list)
    plain = trained_alike(owner, {}).get_weights()
    ops.program.cache_clear()
    monkeypatch.setattr(programs, "SMALLEST", 0)
    compiled = trained_alike(owner, {}).get_weights()
    assert ops.program.cache_info().hits  # equal layers share their programs
    for one, two, other in zip(stacked, compiled, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(two, other, rtol=1e-5, atol=1e-6)


@ONLY["torch"]
def test_alike_layers_may_have_a_mask_with_a_row_for_each_unit():
    mask = np.random.default_rng(0).uniform(size=(4, 6)) < 0.5
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(5), keras.layers.Dense(4)])
    rules = {layer: ib.Joint(ib.MaxNorm(BOUND).where(mask)) for layer in model.layers[::2]}
    ib.constrain(model, rules)
    optimizer = adam(model, 1.0)
    ib.project_after(model, optimizer)
    grown(model, optimizer)
    assert sum(row.active > 0 for row in ib.check(model).rows) == 2


@ONLY["torch"]
def test_what_is_no_loop_of_torch_is_refused_before_a_weight_is_touched():
    model = network()
    with pytest.raises(ib.RuleError, match=r"Nothing is constrained.*inbounds.constrain"):
        ib.project_after(model, adam(model))
    with pytest.raises(ib.RuleError, match=r"`model` is not a keras\.Model or a layer"):
        ib.project_after(torch.nn.Linear(2, 2), adam(model))
    ib.constrain(model, KERNELS)
    model.layers[0].kernel.assign(numbers(model.layers[0].kernel) + 1)
    before = values_of(model)
    with pytest.raises(ib.RuleError, match=r"steps no weight of the plan.*1 parameters.*dense/kernel"):
        ib.project_after(model, torch.optim.Adam([model.layers[0].bias.value]))
    with pytest.raises(ib.RuleError, match="of Keras, which is hooked without it"):
        ib.project_after(model, keras.optimizers.Adam())
    with pytest.raises(ib.RuleError, match=r"is not given an optimizer of torch.optim.*Received: optimizer='adam'"):
        ib.project_after(model, "adam")
    assert same_bits(values_of(model), before)


@pytest.mark.skipif(BACKEND == "torch", reason="of the backends on which torch.optim trains nothing")
def test_other_backends_are_told_what_to_use():
    model = network()
    ib.constrain(model, KERNELS)
    other = {"jax": r"stateless_project\(model, values\) in the step", "tensorflow": r"project\(model\) after the step"}
    with pytest.raises(ib.RuleError, match=rf"the backend is not PyTorch.*Instead: inbounds\.{other[BACKEND]}"):
        ib.project_after(model, object())


# optax.


def wants_optax(test):
    return ONLY["jax"](pytest.mark.skipif(not OPTAX, reason="optax is not installed")(test))


def of_ones_own():
    """An optimizer of one's own, which steps along the signs of its momentum."""

    def update(gradients, means, values=None):
        means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, gradients)
        return jax.tree.map(lambda m: -jax.numpy.sign(m), means), means

    return optax.GradientTransformation(lambda values: jax.tree.map(jax.numpy.zeros_like, values), update)


def made(name, wrap):
    """An optimizer with parts inside and outside the wrapper; a cosine ends at negligible steps."""
    falling = optax.cosine_decay_schedule(0.02, 400, alpha=1e-5)
    return {
        "one's own": lambda: wrap(optax.chain(of_ones_own(), optax.scale_by_schedule(falling))),
        "lion": lambda: optax.chain(optax.clip_by_global_norm(1.0), wrap(optax.lion(falling))),
        "adam, accumulated": lambda: optax.MultiSteps(wrap(optax.adam(falling)), 2),
        "adam, where finite": lambda: optax.apply_if_finite(wrap(optax.adam(falling)), 3),
    }[name]()


@wants_optax
@pytest.mark.parametrize("name", ["one's own", "lion", "adam, accumulated", "adam, where finite"])
def test_optimizers_of_optax_end_at_the_constrained_optimum(name):
    x, y = problem()
    model = network()
    ib.constrain(model, KERNELS)
    optimizer = made(name, partial(ib.optax_wrap, model))

    @jax.jit
    def trained(values):
        def loss(values):
            scores, _ = model.stateless_call(values, [], x)
            return optax.sigmoid_binary_cross_entropy(scores, y).mean()

        def step(_, carried):
            values, state = carried
            updates, state = optimizer.update(jax.grad(loss)(values), state, values)
            return optax.apply_updates(values, updates), state

        steps = 800 if "accumulated" in name else 400
        return jax.lax.fori_loop(0, steps, step, (values, optimizer.init(values)))[0]

    for variable, value in zip(model.trainable_variables, trained(tensors(model)), strict=True):
        variable.assign(value)
    ib.check(model)
    assert gap_of(model) < 0.02


@wants_optax
@pytest.mark.parametrize(("dtype", "rate"), [("float32", 0.3), ("bfloat16", 0.1)])
def test_updates_lead_inside_in_every_step(dtype, rate):
    """Entries lose most of their size at once, which a rounded sum doesn't follow to the end."""
    sets = [ib.MaxNorm(1.0), ib.UnitNorm(), ib.Simplex(), ib.Box(0.001, 1.0)]
    model = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(6, dtype=dtype) for _ in sets)])
    ib.constrain(model, {layer: {"kernel": one} for layer, one in zip(model.layers, sets, strict=True)})
    optimizer = ib.optax_wrap(model, optax.adam(rate))
    values = tuple(tensors(model))
    state, rng = optimizer.init(values), np.random.default_rng(0)
    update = jax.jit(optimizer.update)
    for _ in range(60):
        pull = tuple(jax.numpy.asarray(rng.standard_normal(v.shape), v.dtype) for v in values)
        updates, state = update(pull, state, values)
        values = optax.apply_updates(values, updates)
        for variable, value in zip(model.trainable_variables, values, strict=True):
            variable.assign(value)
        ib.check(model)
    assert all(row.active > 0 for row in ib.audit(model).rows if row.set)


@wants_optax
@pytest.mark.parametrize("traced", [False, True])
def test_what_is_inside_and_steps_in_between_have_the_updates_of_the_optimizer(traced):
    model = network()
    ib.constrain(model, KERNELS, every=3)
    optimizer = ib.optax_wrap(model, optax.sgd(0.125))
    values, held = tensors(model), []
    state = optimizer.init(values)
    update = jax.jit(optimizer.update) if traced else optimizer.update
    for _ in range(6):
        updates, state = update([-keras.ops.ones_like(v) for v in values], state, values)
        values = optax.apply_updates(values, updates)
        held.append(inside(norms((values[0], (0,))), BOUND))
    assert held == [False, False, True] * 2
    assert np.all(numbers(updates[1]) == 0.125)
    assert int(state.count) == 6


@wants_optax
def test_sets_that_change_follow_the_steps_that_are_counted():
    model = network()
    ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0).scaled(keras.optimizers.schedules.InverseTimeDecay(1.0, 1, 1.0))})
    optimizer = ib.optax_wrap(model, optax.sgd(5.0))
    values = tensors(model)
    state = optimizer.init(values)
    for count in (1, 2):
        updates, state = optimizer.update([-keras.ops.ones_like(v) for v in values], state, values)
        values = optax.apply_updates(values, updates)
        np.testing.assert_allclose(norms((values[0], (0,))), 1.0 / (1 + count), rtol=1e-5)


@wants_optax
def test_what_is_no_loop_of_optax_is_refused():
    model = network()
    with pytest.raises(ib.RuleError, match=r"Nothing is constrained.*inbounds.constrain"):
        ib.optax_wrap(model, optax.adam(0.1))
    ib.constrain(model, KERNELS)
    with pytest.raises(ib.RuleError, match=r"not given an optimizer of optax.*optimizer='adam'.*optax\.adam"):
        ib.optax_wrap(model, "adam")
    values = tensors(model)
    optimizer = ib.optax_wrap(model, optax.adam(0.1))
    state = optimizer.init(values)
    with pytest.raises(ib.RuleError, match=r"`trainable_variables` is not a list.*dict for 2 variables"):
        optimizer.init({"kernel": values[0]})
    with pytest.raises(ib.RuleError, match=r"needs the values.*params=None.*update\(gradients, state, values\)"):
        optimizer.update(values, state)
    with pytest.raises(ib.RuleError, match=r"`trainable_variables` is not a list.*dict for 2 variables"):
        optimizer.update(values, state, {"kernel": values[0]})
    searching = ib.optax_wrap(model, optax.lbfgs())
    with pytest.raises(ib.RuleError, match=r"compares gradients with losses along a line.*linesearch=None"):
        searching.update(values, searching.init(values), values, value=1.0, grad=values, value_fn=len)
    ib.constrain(model, KERNELS, every="epoch")
    with pytest.raises(ib.RuleError, match=r"with optax, which counts no epochs.*every=100"):
        ib.optax_wrap(model, optax.adam(0.1))


@ONLY["jax"]
def test_without_optax_it_is_said(monkeypatch):
    model = network()
    ib.constrain(model, KERNELS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ib.RuleError, match=r"isn't installed.*pip install optax"):
        ib.optax_wrap(model, object())


@pytest.mark.skipif(BACKEND == "jax", reason="of the backends that optax doesn't train on")
def test_other_backends_are_told_what_to_use_in_place_of_optax():
    model = network()
    ib.constrain(model, KERNELS)
    other = {"torch": r"project_after\(model, optimizer\)", "tensorflow": r"project\(model\) after the step"}
    with pytest.raises(ib.RuleError, match=rf"the backend is not JAX.*Instead: inbounds\.{other[BACKEND]}"):
        ib.optax_wrap(model, object())


# Functional loops.


def compiled(step):
    """The step as users of the backend compile it."""
    if BACKEND == "jax":
        return jax.jit(step)
    if BACKEND == "tensorflow":
        return tf.function(step)
    return step


def tensors(model):
    """The values of the trainable variables, copied."""
    return [keras.ops.copy(variable.value) for variable in model.trainable_variables]


def gradients(values, x, y):
    """The gradients of the logistic loss, by their formula."""
    kernel, bias = values
    pull = (keras.ops.sigmoid(x @ kernel + bias) - y) / x.shape[0]
    return [keras.ops.transpose(x) @ pull, keras.ops.sum(pull, axis=0)]


@pytest.mark.parametrize("rules", [KERNELS, JOINT], ids=["kernel", "joint"])
def test_a_hand_written_sgd_ends_at_the_constrained_optimum_and_leaves_the_variables(rules):
    model = network()
    ib.constrain(model, rules)
    before = values_of(model)
    x, y = map(keras.ops.convert_to_tensor, problem())

    @compiled
    def step(kernel, bias):
        values = [kernel, bias]
        moved = [v - 2.0 * g for v, g in zip(values, gradients(values, x, y), strict=True)]
        return ib.stateless_project(model, moved)

    values = tensors(model)
    for _ in range(100):
        values = step(*values)
    assert gap(*map(numbers, values), joint=rules is JOINT) < 0.02
    assert same_bits(values_of(model), before)
    assert all(isinstance(v.value, type(w.value)) for v, w in zip(model.variables, network().variables, strict=True))


def test_a_hand_written_adam_that_gives_its_metric_ends_there():
    model = network()
    ib.constrain(model, KERNELS)
    x, y = map(keras.ops.convert_to_tensor, problem())

    @compiled
    def step(values, means, squares, count, rate):
        pull = gradients(values, x, y)
        means = [0.9 * m + 0.1 * g for m, g in zip(means, pull, strict=True)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, pull, strict=True)]
        metric = [keras.ops.sqrt(s / (1 - 0.999**count)) + 1e-8 for s in squares]
        moved = [v - rate * m / (1 - 0.9**count) / d for v, m, d in zip(values, means, metric, strict=True)]
        return ib.stateless_project(model, moved, [metric[0], None]), means, squares

    values = tensors(model)
    squares = means = [keras.ops.zeros_like(v) for v in values]
    for i in range(100):
        rate = 0.1 * (1e-3 + 0.999 * (1 + np.cos(np.pi * i / 100)) / 2)
        count, rate = (keras.ops.convert_to_tensor(n, "float32") for n in (i + 1, rate))
        values, means, squares = step(values, means, squares, count, rate)
    assert gap(*map(numbers, values)) < 0.05


def test_a_matrix_set_in_a_metric_is_projected_on_to_the_end():
    model = network()
    rng = np.random.default_rng(0)
    ib.constrain(model, {"**/kernel": ib.SpectralNorm(BOUND)})
    values = [rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables]
    metric = [rng.uniform(0.01, 1.0, v.shape).astype("float32") for v in values]
    found, _ = ib.stateless_project(model, values, metric)
    nearest = ib.MaxNorm(BOUND).project(values[0].T.astype("float64"), metric[0].T.astype("float64")).T
    np.testing.assert_allclose(numbers(found), nearest, atol=1e-4)


def test_frozen_members_of_a_joint_are_read_from_the_model():
    model = network()
    model.layers[0].bias.assign([0.5])
    ib.constrain(model, JOINT)
    model.layers[0].bias.trainable = False
    (kernel,) = compiled(lambda value: ib.stateless_project(model, [value]))(keras.ops.ones((30, 1)))
    assert on_bound(norms((kernel, (0,)), (model.layers[0].bias, ())), BOUND)
    (weighed,) = ib.stateless_project(model, [keras.ops.ones((30, 1))], [keras.ops.ones((30, 1))])
    np.testing.assert_allclose(numbers(weighed), numbers(kernel), rtol=1e-5)


def test_what_has_no_set_or_is_inside_comes_back():
    model = network()
    ib.constrain(model, KERNELS)
    values = tensors(model)
    found = ib.stateless_project(model, tuple(values))
    assert isinstance(found, list)
    assert found[1] is values[1]
    assert same_bits([numbers(v) for v in found], [numbers(v) for v in values])


def test_a_joint_is_euclidean_where_one_of_its_weights_has_no_metric_or_the_plan_says_so():
    model = network()
    ib.constrain(model, JOINT)
    values, metric = [keras.ops.ones((30, 1)), keras.ops.ones((1,))], keras.ops.arange(1.0, 31.0)[:, None]
    plain = ib.stateless_project(model, values)
    half = ib.stateless_project(model, values, [metric, None])
    full = ib.stateless_project(model, values, [metric, keras.ops.ones((1,))])
    assert same_bits([numbers(v) for v in half], [numbers(v) for v in plain])
    assert not np.allclose(numbers(full[0]), numbers(plain[0]))
    ib.constrain(model, JOINT, metric="euclidean")
    asked = ib.stateless_project(model, values, [metric, keras.ops.ones((1,))])
    assert same_bits([numbers(v) for v in asked], [numbers(v) for v in plain])


def test_sets_given_to_layers_hold_in_functional_loops():
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(1, kernel_constraint=ib.MaxNorm(BOUND))])
    kernel, _ = ib.stateless_project(model, [keras.ops.ones((30, 1)), keras.ops.ones((1,))])
    assert on_bound(norms((kernel, (0,))), BOUND)


def test_half_precision_is_computed_in_float32_and_comes_back_in_its_dtype():
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(4, dtype="bfloat16", name="dense")])
    ib.constrain(model, KERNELS)
    kernel, _ = ib.stateless_project(
        model, [keras.ops.ones((30, 4), "bfloat16"), keras.ops.ones((4,), "bfloat16")], [keras.ops.ones((30, 4)), None]
    )
    assert keras.backend.standardize_dtype(kernel.dtype) == "bfloat16"
    np.testing.assert_allclose(norms((keras.ops.cast(kernel, "float32"), (0,))), BOUND, rtol=0.01)


def test_a_set_that_changes_is_projected_on_with_the_number_of_steps():
    model = network()
    ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0).scaled(keras.optimizers.schedules.InverseTimeDecay(1.0, 1, 1.0))})
    values = [keras.ops.ones((30, 1)), keras.ops.ones((1,))]
    with pytest.raises(ib.RuleError, match=r"changes with the steps.*step=None.*step=count"):
        ib.stateless_project(model, values)
    for step in (0, 3):
        count = keras.ops.convert_to_tensor(step, "int32")
        kernel, _ = compiled(lambda count: ib.stateless_project(model, values, step=count))(count)
        np.testing.assert_allclose(norms((kernel, (0,))), 1.0 / (1 + step), rtol=1e-5)


ONE, THIRTY = np.ones((1,), "float32"), np.ones((30, 1), "float32")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([THIRTY], r"`trainable_variables` is not a list with one value for each.*1 values for 2 variables"),
        (THIRTY, r"`trainable_variables` is not a list.*ndarray for 2 variables"),
        ({"kernel": THIRTY, "bias": ONE}, "dict for 2 variables"),
        ([ONE, THIRTY], r"another shape or dtype than its variable.*shape=\(1,\).*dense/kernel of shape \(30, 1\)"),
        ([THIRTY.astype("int32"), ONE], r"another shape or dtype.*dtype=int32.*dense/kernel"),
        ([THIRTY.astype("float16"), ONE], r"another shape or dtype.*dtype=float16.*dtype float32"),
    ],
    ids=["too few", "no list", "a dict", "other order", "integers", "another dtype"],
)
def test_values_that_are_not_like_the_variables_are_refused(values, told):
    model = network()
    ib.constrain(model, KERNELS)
    with pytest.raises(ib.RuleError, match=told):
        ib.stateless_project(model, values)


def test_metrics_and_models_that_do_not_fit_are_refused():
    model = network()
    with pytest.raises(ib.RuleError, match="Nothing is constrained"):
        ib.stateless_project(model, [THIRTY, ONE])
    ib.constrain(model, KERNELS)
    with pytest.raises(ib.RuleError, match=r"`metric` is not a list.*1 values"):
        ib.stateless_project(model, [THIRTY, ONE], [THIRTY])
    with pytest.raises(ib.RuleError, match=r"A value in `metric` has another shape.*shape=\(1,\)") as caught:
        ib.stateless_project(model, [THIRTY, ONE], [ONE, None])
    (metric,) = run(str(caught.value).split("Instead: ")[1], model=model)
    assert len(ib.stateless_project(model, [THIRTY, ONE], metric)) == 2


# Raw variables of TensorFlow.


@ONLY["tensorflow"]
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("rules", [KERNELS, JOINT], ids=["kernel", "joint"])
def test_project_holds_a_gradient_tape_loop(traced, rules):
    model = network()
    ib.constrain(model, rules)
    x, y = problem()

    def step():
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, model(x)))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(2.0 * gradient)
        ib.project(model)

    run = tf.function(step) if traced else step
    for _ in range(100 if traced else 3):
        run()
        assert inside(norms((model.layers[0].kernel, (0,))), BOUND)
    ib.check(model)
    if traced:
        assert gap_of(model, joint=rules is JOINT) < 0.02


# The page.


def pages():
    """The snippets of docs/loops.md by the backend in their titles."""
    found = re.findall(r'^```python title="(\w+)"\n(.*?)^```', PAGE, flags=re.MULTILINE | re.DOTALL)
    return {title.lower().replace("pytorch", "torch"): text for title, text in found}


def test_the_page_has_a_snippet_for_each_backend():
    assert list(pages()) == ["torch", "jax", "tensorflow"]
    assert PAGE.count("```python title") == 3


@pytest.mark.skipif(BACKEND == "jax" and not OPTAX, reason="the page's loop is optax's; not installed")
def test_the_pages_snippet_for_this_backend_runs():
    names = {"__name__": "loops"}
    exec(compile(pages()[BACKEND], "loops.md", "exec"), names)
    assert names["report"].ok
    assert inside(norms((names["model"].layers[0].kernel, (0,))), 1.0)
