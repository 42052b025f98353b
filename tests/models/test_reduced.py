"""The reduced gradient: what a set leaves of the gradient for an optimizer to see."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds._arrays.units import Units
from sets.case import Case
from sets.solver import solver
from sets.table import SETS
from sets.tables.matrices import marginals
from sets.tables.norms import norms
from sets.tables.sums import l1_ball
from sets.tensors import BACKEND, array, exact, of_numpy, same_bits

REDUCING = {name: case for name, case in SETS.items() if case.set.has_reduced_gradient and not case.set.separable}
CONVEX = {name: case for name, case in REDUCING.items() if case.convex}
every_set = pytest.mark.parametrize("case", REDUCING.values(), ids=REDUCING)


def reduced(owner: ib.Set, rows, gradient):
    x, g = (Units.of([given], [(1,)]) for given in (rows, gradient))
    return exact(owner.reduced(x, g).parts[0])


def on_the_boundary(case: Case):
    """Rows, and gradients that point out of the set and along it."""
    (shape,) = case.shapes((3, 4))  # of which law 3 has compiled the solver's problem
    rng = np.random.default_rng(0)
    given = rng.standard_normal(shape) * 3
    x = case.set.project(given)
    away = given - x
    return x, rng.standard_normal(shape) / 2 - away / max(np.abs(away).max(), 1e-30)


# Sets as a user writes them.


@keras.saving.register_keras_serializable("tests")
def in_ball(w, axis=0):
    """The nearest kernel whose columns have a norm of at most 1."""
    return w / keras.ops.maximum(keras.ops.norm(w, axis=axis, keepdims=True), 1.0)


@keras.saving.register_keras_serializable("tests")
class Ball(ib.Set):
    """{w : |w| <= 1}."""

    def _project(self, units):
        length = units.sum(lambda x: x * x) ** 0.5
        return units.map(lambda x, n: x / self.namespace(x).maximum(n, 1), length)

    def _excess(self, rows, unit_shape):
        return self.namespace(rows).sum(rows * rows, axis=1) ** 0.5 - 1

    def _tolerance(self, dtype, size=1):
        return ib.MaxNorm(1.0).tolerance(dtype)


class Octahedron(ib.SupportSet):
    """{w : |w|_1 <= 1}, by its vertices."""

    def farthest(self, directions):
        xp = self.namespace(directions)
        first = xp.argmax(xp.abs(directions), axis=1)[:, None] == xp.arange(directions.shape[1])
        return xp.where(first, xp.sign(directions), xp.zeros_like(directions))


# Of one set.


LARGE = {
    **{name: case for name, case in CONVEX.items() if not name.endswith(("-small", "-tiny"))},
    "DoublyStochastic": replace(marginals(1.0), set=ib.DoublyStochastic()),
    "Together": replace(norms(ib.MaxNorm(1.0), 0, 1), set=ib.Together(ib.MaxNorm(1.0))),
    "SupportSet": l1_ball(Octahedron(), 1.0),
    "Custom": replace(norms(ib.MaxNorm(1.0), 0, 1), set=ib.Custom(lambda rows: in_ball(rows, 1), projection=True)),
    "a user's": norms(Ball(), 0, 1),
}
"""A solver is exact in absolute numbers."""


@of_numpy
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_it_is_what_a_solver_projects_on_the_tangent_cone(case: Case):
    """That is minus the way from x to the nearest point of x - e g, over e, as e goes to 0."""
    x, g = on_the_boundary(case)
    e = 1e-4 * (np.abs(x).max() or 1)  # so short that a curved bound is straight
    expected = (x - solver(case.program, x.shape)(x - e * g)[0]) / e
    found = reduced(case.set, x, g)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.abs(found - g).max() > 0.05


@pytest.mark.by_turns("case")
@every_set
def test_it_is_0_where_no_member_is_better(case: Case):
    """At the nearest point to any other, the distance's gradient points straight out of the set."""
    (shape,) = case.shapes((3, 5))
    y = np.random.default_rng(1).standard_normal(shape) * 3
    x = case.set.project(y)
    left = reduced(case.set, array(x, "float32", BACKEND), array(x - y, "float32", BACKEND))
    rounding = 1e-5 if case.set.has_normal_form else 2e-3  # what a difference of projections loses
    assert np.abs(left).max() <= rounding * np.abs(x - y).max()


@pytest.mark.by_turns
@pytest.mark.parametrize("case", CONVEX.values(), ids=CONVEX)
def test_a_gradient_that_leads_to_a_member_is_seen_bit_for_bit(case: Case):
    (shape,) = case.shapes((3, 5))
    rng = np.random.default_rng(2)
    here, there = (case.set.project(rng.standard_normal(shape)) for _ in range(2))
    x, g = (array(rows, "float32", BACKEND) for rows in (here, here - there))
    assert same_bits(case.set.reduced(*(Units.of([rows], [(1,)]) for rows in (x, g))).parts[0], g)


@pytest.mark.by_turns
@every_set
@pytest.mark.repeats("bad")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays(case: Case, bad: float):
    x, g = on_the_boundary(case)
    g[0, 0] = bad
    left = reduced(case.set, array(x, "float32", BACKEND), array(g, "float32", BACKEND))
    assert np.array_equal(left[0, 0], bad, equal_nan=True)
    assert np.isfinite(left[1:]).all()


@pytest.mark.by_turns
@every_set
def test_zeros_are_finite(case: Case):
    x, g = on_the_boundary(case)
    for rows, gradient in ((0 * x, g), (x, 0 * g), (0 * x, 0 * g)):
        left = reduced(case.set, array(rows, "float32", BACKEND), array(gradient, "float32", BACKEND))
        assert np.isfinite(left).all()
        assert gradient.any() or not left.any()


# In training.

SIZE, UNITS = 6, 3
SCALES = np.geomspace(0.5, 1.5, SIZE)
TARGET = np.random.default_rng(3).standard_normal((SIZE, UNITS))


TRAINED = {
    "MaxNorm": ib.MaxNorm(1.0),
    "Simplex": ib.Simplex(),
    "SpectralNorm": ib.SpectralNorm(1.0),
    "cone and ball": ib.NonNeg() & ib.MaxNorm(1.0),
    "centre": ib.MaxNorm(1.0, center=0.1),
    "where": ib.L1Ball(1.0).where(np.arange(SIZE)[:, None] % 3 > 0),
    "sphere": ib.UnitNorm(),
    "custom": ib.Custom(in_ball, projection=True),
    "a user's": Ball(),
}


def optimum(owner: ib.Set):
    """The minimizer of |SCALES * (w - TARGET)|^2, nearest to the target in that metric."""
    owner = ib.MaxNorm(1.0) if isinstance(owner, (ib.UnitNorm, ib.Custom, Ball)) else owner  # all end on the ball
    if not owner.matrix:
        columns = [Units.of([TARGET], [(0,)], metric=[np.tile(SCALES[:, None] ** 2, UNITS)])]
        return owner.nearest(columns[0]).parts[0]
    return owner.project(TARGET.T, np.tile(SCALES**2, (UNITS, 1))).T


def linear(**how):
    return keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(UNITS, use_bias=False, **how)])


def fitted(model, optimizer, steps=100):
    model.compile(optimizer, loss=lambda y, z: keras.ops.sum(keras.ops.square(y - z)))
    x = np.tile(np.diag(SCALES).astype("float32"), (steps, 1))
    model.fit(x, x @ TARGET, batch_size=SIZE, shuffle=False, verbose=0)
    assert ib.audit(model).ok
    return np.asarray(keras.ops.convert_to_numpy(model.layers[0].kernel), "float64")


def decaying(kind, rate=0.1, steps=100, **how):
    return kind(keras.optimizers.schedules.CosineDecay(rate, steps), **how)


def loss_at(kernel):
    return np.sum(np.square(SCALES[:, None] * (kernel - TARGET)))


ADAM = keras.optimizers.Adam


def gap_under(name, kind, gradient):
    """How far a training ends above the least loss."""
    owner, model = TRAINED[name], linear()
    model.set_weights([TARGET / 3])  # backends draw other numbers, from some of which the way is long
    ib.constrain(model, {"**/kernel": owner}, gradient=gradient, metric="euclidean")
    return loss_at(fitted(model, decaying(kind))) - loss_at(optimum(owner))


@pytest.mark.by_turns  # that each backend's steps see it, the next tests show
@pytest.mark.repeats("name")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, ADAM) for name in TRAINED),
        ("MaxNorm", lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1, use_ema=True, ema_momentum=0.5)),
        ("a user's", keras.optimizers.Lion),
        ("MaxNorm", lambda rate: keras.optimizers.Muon(rate, weight_decay=None)),
        ("Simplex", keras.optimizers.ScheduleFreeAdamW),
    ],
)
def test_any_optimizer_ends_at_the_constrained_optimum(name, kind):
    assert -1e-4 < gap_under(name, kind, "reduced") < 5e-3


@pytest.mark.by_turns
def test_with_whole_gradients_adam_ends_elsewhere():
    assert gap_under("MaxNorm", ADAM, "full") > 5e-2


@pytest.mark.by_turns
@pytest.mark.parametrize("owner", [ib.NonNeg(), ib.Simplex()], ids=["entries", "a face"])
def test_what_schedule_free_steps_stays_near_so_that_weights_come_back_at_once(owner):
    model = linear()
    ib.constrain(model, {"**/kernel": owner})
    kernel, optimizer = model.layers[0].kernel, keras.optimizers.ScheduleFreeAdamW(0.05)
    kernel.assign(owner.project(np.eye(UNITS, SIZE, dtype="float32")).T)
    pull = np.ones((SIZE, UNITS), "float32") * np.arange(1, SIZE + 1, dtype="float32")[:, None]
    for direction in (*[1] * 50, *[-1] * 20):
        optimizer.apply([keras.ops.convert_to_tensor(direction * pull)], [kernel])
        if direction > 0:
            outwards = exact(keras.ops.convert_to_tensor(kernel))
    assert np.abs(exact(keras.ops.convert_to_tensor(kernel)) - outwards).max() > 0.01
    assert ib.audit(model).ok


@pytest.mark.by_turns
@pytest.mark.parametrize("centre", [1.0, 10.0])
@pytest.mark.parametrize("kind", [ib.L1Ball, ib.MaxNorm])
def test_about_a_centre_nothing_is_left_where_no_member_is_better(kind, centre):
    """Also where the centre is large beside the bound, which is then rounded as the entries are."""
    rng = np.random.default_rng(0)
    middle = centre * rng.standard_normal(64)
    owner = kind(0.1, center=middle)
    y = middle + rng.standard_normal((5, 64))
    x = owner.project(y.astype("float32"))
    left = reduced(owner, array(x, "float32", BACKEND), array(x - y, "float32", BACKEND))
    assert np.abs(left).max() <= 0.03 * centre * np.abs(x - y).max()


def test_kernel_and_bias_are_one_vector():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(UNITS)])
    ib.constrain(model, {keras.layers.Dense: ib.Joint(ib.MaxNorm(1.0))})
    fitted(model, decaying(ADAM))
    kernel, bias = (np.asarray(value, "float64") for value in model.get_weights())
    residual = SCALES[:, None] * kernel + bias - SCALES[:, None] * TARGET
    slope, point = np.vstack([SCALES[:, None] * residual, residual.sum(axis=0)]), np.vstack([kernel, bias])
    along = np.sum(slope * point, axis=0)  # at the optimum the gradient is along the vector, which has the norm 1
    assert np.abs(slope - along * point).max() < 0.02 * np.abs(slope).max()


@pytest.mark.by_turns
@pytest.mark.repeats("policy")
@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_half_precision_sees_it_too(policy):
    model = linear(dtype=policy)
    ib.constrain(model, {"**/kernel": ib.Simplex()}, metric="euclidean")
    kernel = fitted(model, decaying(ADAM, 0.05, 80, beta_2=0.9), 80)  # 0.999 is 1 in bfloat16
    assert loss_at(kernel) - loss_at(optimum(ib.Simplex())) < 0.05, "with whole gradients it is 1.7"


def test_it_comes_after_accumulation_and_in_a_loss_scale():
    for optimizer in (
        ADAM(0.03, gradient_accumulation_steps=2),
        keras.optimizers.LossScaleOptimizer(ADAM(0.03), initial_scale=8.0),
    ):
        model = linear()
        ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)})
        assert loss_at(fitted(model, optimizer, 150)) - loss_at(optimum(ib.MaxNorm(1.0))) < 0.02


@pytest.mark.by_turns
def test_the_plan_says_what_is_seen_and_a_file_keeps_it(tmp_path):
    model = keras.Sequential([keras.Input((SIZE,)), *(keras.layers.Dense(SIZE, name=name) for name in "abc")])
    rules = {"a/kernel": ib.MaxNorm(1.0), "b/kernel": ib.NonNeg(), "c/kernel": ib.Sparse(2)}
    assert "3 sets, auto" in str(ib.constrain(model, dict.fromkeys(rules, ib.NonNeg())))
    plan = ib.constrain(model, rules)
    assert "3 sets, reduced gradient, auto" in str(plan)
    assert "gradient: all of it, each entry is projected by itself" in str(plan)
    assert "gradient: all of it, the set is neither convex nor smooth" in str(plan)
    assert "reduced" not in str(ib.constrain(model, rules, gradient="full"))
    ib.constrain(model, rules)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert {layer.kernel_constraint.training.gradient for layer in loaded.layers} == {"reduced"}


# In loops.


@pytest.mark.by_turns
def test_a_pure_function_reduces_gradients_and_says_what_is_wrong():
    model = linear()
    ib.constrain(model, {"**/kernel": ib.Simplex()})
    (value,) = [keras.ops.convert_to_tensor(variable) for variable in model.trainable_variables]
    target, squares = (keras.ops.convert_to_tensor(x, dtype="float32") for x in (TARGET, SCALES[:, None] ** 2))

    def step(value, moment, rate):
        (seen,) = ib.stateless_reduce(model, [value], [squares * (value - target)])
        moment = 0.9 * moment + 0.1 * seen * seen  # RMSprop, of which nobody knows
        moved = value - rate * seen / (keras.ops.sqrt(moment) + 1e-7)
        return ib.stateless_project(model, [moved])[0], moment

    if BACKEND == "jax":
        import jax

        step = jax.jit(step)
    moment = keras.ops.zeros_like(value)
    for i in range(200):
        value, moment = step(value, moment, 0.1 * 0.98**i)
    assert loss_at(exact(value)) - loss_at(optimum(ib.Simplex())) < 1e-3
    assert ib.stateless_reduce(model, [value], [None]) == [None]
    with pytest.raises(ib.RuleError, match="`gradients`"):
        ib.stateless_reduce(model, [value], [value[:1]])


@pytest.mark.skipif(BACKEND != "torch", reason="torch.optim is PyTorch's")
def test_torch_optimizers_see_it_and_leave_the_gradient_to_its_owner():
    import torch

    for closes in (False, True):
        model = linear()
        ib.constrain(model, {"**/kernel": ib.Simplex()})
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        ib.project_after(model, optimizer)
        rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        x = torch.diag(torch.tensor(SCALES, dtype=torch.float32))
        target = x @ torch.tensor(TARGET, dtype=torch.float32)

        def closure(model=model, optimizer=optimizer, x=x, target=target):
            optimizer.zero_grad()
            loss = ((model(x) - target) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(100):
            if closes:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            rate.step()
        kernel = model.layers[0].kernel.value
        assert loss_at(exact(kernel.detach())) - loss_at(optimum(ib.Simplex())) < 1e-3
        assert np.abs(exact(kernel.grad)).max() > 0.1, "the loss's own"
    with pytest.raises(ib.RuleError, match="LBFGS can't be given reduced gradients"):
        ib.project_after(model, torch.optim.LBFGS(model.parameters()))


@pytest.mark.skipif(BACKEND != "torch", reason="torch.optim is PyTorch's")
def test_a_torch_optimizer_that_goes_up_comes_inside_too():
    import torch

    model = linear()
    ib.constrain(model, {"**/kernel": ib.MaxNorm(1.0)})
    kernel = model.layers[0].kernel
    kernel.assign(np.eye(SIZE, UNITS, dtype="float32"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    ib.project_after(model, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        (-(kernel.value**2).sum() / 2).backward()
        optimizer.step()
    np.testing.assert_allclose(exact(kernel.value.detach())[0, 0], 0.9**5, rtol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="rows that were used are a gradient of TensorFlow only")
def test_an_embedding_whose_gradient_has_some_rows_only_sees_all_of_it():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten()])
    plan = ib.constrain(model, {"**/embeddings": ib.MaxNorm(0.1)})
    model.compile(ADAM(0.1), "mse")
    assert "gradient: all of it, it names rows of a batch only" in " ".join(str(plan).split())
    assert "Adam: root of the second moment" in str(plan)
    model.fit(np.array([[1, 2], [3, 1]]), np.ones((2, 8)), epochs=3, verbose=0)
    assert ib.audit(model).ok
