"""What bounds cost: the pressure is by how much the optimal loss falls when a bound is loosened."""

from __future__ import annotations

import warnings

import cvxpy as cp
import keras
import numpy as np
import pytest

import inbounds as ib
from models.measure import same_bits, values_of

BACKEND = keras.backend.backend()
SAMPLES, SIZE, UNITS = 24, 4, 3
RNG = np.random.default_rng(2)
X = (RNG.standard_normal((SAMPLES, SIZE)) * [0.6, 1.0, 1.3, 0.8]).astype("float32").astype("float64")
SCALE = np.array([0.05, 1.0, 1.6])  # the first unit's best weights are inside of most sets
Y = (X @ RNG.standard_normal((SIZE, UNITS)) * SCALE + 0.05 * RNG.standard_normal((SAMPLES, UNITS))).astype("float32")
NORMAL = np.array([1.0, -2.0, 0.5, 1.0])
ON_BALL = np.linalg.lstsq(X, Y, rcond=None)[0]
ON_BALL *= 0.7 / np.linalg.norm(ON_BALL, axis=0)
HALF = keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5)
SOME = np.array([True, True, False, True])


def ball(norm, of=lambda w: w):
    return lambda w, b: [cp.norm(of(w), norm) <= b]


def widened(program):
    """All that is nearer than a distance to a set, in which b is that distance."""

    def widening(w, b):
        inside = cp.Variable(w.shape)
        return [*program(inside), cp.norm(w - inside, "fro") <= b]

    return widening


UNIT_BY_UNIT = {
    "MaxNorm": (ib.MaxNorm(0.7), ball(2), 0.7),
    "centre": (ib.MaxNorm(0.7, center=0.1), ball(2, lambda w: w - 0.1), 0.7),
    "where": (ib.MaxNorm(0.7).where(SOME[:, None]), ball(2, lambda w: w[SOME]), 0.7),
    "on": (ib.L1Ball(0.7).on(inputs=[0, 1, 3]), ball(1, lambda w: w[SOME]), 0.7),
    "scaled": (ib.MaxNorm(1.4).scaled(HALF), ball(2), 0.7),
    "L1Ball": (ib.L1Ball(0.8), ball(1), 0.8),
    "Simplex": (ib.Simplex(1.5), lambda w, b: [w >= 0, cp.sum(w) == b], 1.5),
    "SumTo": (ib.SumTo(0.6), lambda w, b: [cp.sum(w) == b], 0.6),
    "Halfspace": (ib.Halfspace(NORMAL, -0.4), lambda w, b: [NORMAL @ w <= b], -0.4),
    "Hyperplane": (ib.Hyperplane(NORMAL, 0.3), lambda w, b: [NORMAL @ w == b], 0.3),
    "NonNeg": (ib.NonNeg(), lambda w, b: [w >= -b], 0.0),
    "Box": (ib.Box(-0.4, 0.3), lambda w, b: [w >= -0.4 - b, w <= 0.3 + b], 0.0),
    "Joint": (ib.Joint(ib.MaxNorm(0.7)), ball(2), 0.7),
    "Joint of L1Ball": (ib.Joint(ib.L1Ball(0.8)), ball(1), 0.8),
}
WIDENED = {
    "Monotone": (ib.Monotone(), widened(lambda w: [cp.diff(w) >= 0])),
    "NonNeg & MaxNorm": (ib.NonNeg() & ib.MaxNorm(0.6), widened(lambda w: [w >= 0, cp.norm(w, 2) <= 0.6])),
}
WHOLE = {
    "FrobeniusNorm": (ib.FrobeniusNorm(1.2), lambda w, b: [cp.norm(w, "fro") <= b], 1.2),
    "SpectralNorm": (ib.SpectralNorm(1.1), lambda w, b: [cp.sigma_max(w) <= b], 1.1),
    "NuclearNorm": (ib.NuclearNorm(1.6), lambda w, b: [cp.normNuc(w) <= b], 1.6),
}


def optimum(program, y, x=X):
    """From b to the weights with the least loss, its mean over all outputs, and that loss."""
    w, b = cp.Variable((x.shape[1], *y.shape[1:])), cp.Parameter()
    q, r = np.linalg.qr(x)
    lost = np.sum(y.astype("float64") ** 2) - np.sum((q.T @ y) ** 2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(r @ w - q.T @ y)), program(w, b))

    def solve(bound):
        b.value = bound
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CVXPY's: cones end a little above a gap of 1e-12
            problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        weights = np.where(np.abs(w.value) < 1e-6, 0, w.value)  # from inside, Clarabel comes near a face only
        return weights, (problem.value + lost) / Y.size

    return solve


def falls(program, bound, h, y, x=X):
    """The best weights, and the fall of the least loss for each unit that the bound is loosened."""
    solve = optimum(program, y, x)
    least = [solve(bound + step)[1] for step in (h, -h)]
    return solve(bound)[0], (least[1] - least[0]) / (2 * h)


def model_with(owner, weights, dtype="float32"):
    bias = isinstance(owner, ib.Joint)
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(UNITS, use_bias=bias, dtype=dtype)])
    model.layers[0].set_weights([weights[:SIZE], weights[SIZE]] if bias else [weights])
    ib.constrain(model, {keras.layers.Dense: owner} if bias else {"**/kernel": owner})
    model.compile("sgd", "mse")
    return model


def pressure_of(owner, weights, **how):
    (row,) = ib.pressure(model_with(owner, weights, **how), X.astype("float32"), Y, batch_size=SAMPLES)
    return row.values


# What it is: the fall of the optimal loss. That each backend computes the gradient is shown by
# the tests of the loss below.


@pytest.mark.by_turns
@pytest.mark.parametrize("name", UNIT_BY_UNIT)
def test_it_is_the_fall_of_the_optimal_loss_of_each_unit(name):
    owner, program, bound = UNIT_BY_UNIT[name]
    x = np.hstack([X, np.ones((SAMPLES, 1))]) if isinstance(owner, ib.Joint) else X
    found = [falls(program, bound, 1e-3, Y[:, i], x) for i in range(UNITS)]
    values = pressure_of(owner, np.stack([w for w, _ in found], axis=1))
    np.testing.assert_allclose(values, [fall for _, fall in found], rtol=2e-4, atol=1e-5)
    assert np.abs(values).max() > 0.02
    if isinstance(owner, (ib.SumTo, ib.Simplex, ib.Hyperplane)):
        assert values.min() < 0, "smaller is better"
    elif name not in ("Halfspace", "NonNeg"):
        assert values[0] == 0, "it is inside"


@pytest.mark.by_turns
@pytest.mark.parametrize("name", WIDENED)
def test_of_other_sets_it_is_the_fall_when_they_are_widened(name):
    owner, program = WIDENED[name]
    solves = [optimum(program, Y[:, i]) for i in range(UNITS)]
    (best, least), (_, less) = (zip(*(solve(b) for solve in solves), strict=True) for b in (0.0, 1e-5))
    expected = (np.array(least) - less) / 1e-5
    np.testing.assert_allclose(pressure_of(owner, np.stack(best, axis=1)), expected, rtol=2e-4, atol=1e-4)


@pytest.mark.by_turns
@pytest.mark.parametrize("name", WHOLE)
def test_of_a_whole_matrix_it_is_one_number(name):
    owner, program, bound = WHOLE[name]
    weights, fall = falls(program, bound, 1e-3, Y)
    np.testing.assert_allclose(pressure_of(owner, weights), [fall], rtol=2e-4)


def on_sphere(y, radius):
    """The best weights of a norm, by the one multiplier at which it is met; and their loss."""
    h, c = X.T @ X, X.T @ y
    eigenvalues, vectors = np.linalg.eigh(h)
    low, high = -eigenvalues[0] + 1e-12, 1e4
    for _ in range(200):
        t = (low + high) / 2
        w = vectors @ ((vectors.T @ c) / (eigenvalues + t))
        low, high = (t, high) if np.linalg.norm(w) > radius else (low, t)
    return w, np.sum((X @ w - y) ** 2) / Y.size


@pytest.mark.by_turns
def test_of_norms_from_below_and_of_spheres():
    best, fall = [], []
    for i in range(UNITS):
        best.append(on_sphere(Y[:, i], 1.0)[0])
        fall.append((on_sphere(Y[:, i], 0.999)[1] - on_sphere(Y[:, i], 1.001)[1]) / 0.002)
    weights, fall = np.stack(best, axis=1), np.array(fall)
    assert fall[0] < -0.02
    assert fall[2] > 0.02
    np.testing.assert_allclose(pressure_of(ib.UnitNorm(), weights), fall, rtol=2e-4)
    np.testing.assert_allclose(pressure_of(ib.MinMaxNorm(1.0, 9.0), weights), np.maximum(-fall, 0), rtol=2e-4)
    np.testing.assert_allclose(pressure_of(ib.MinMaxNorm(0.1, 1.0), weights), np.maximum(fall, 0), rtol=2e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_it_to_its_grain(dtype):
    owner, program, bound = UNIT_BY_UNIT["MaxNorm"]
    weights = np.stack([optimum(program, Y[:, i])(bound)[0] for i in range(UNITS)], axis=1)
    halves = pressure_of(owner, weights, dtype=dtype)
    np.testing.assert_allclose(halves, pressure_of(owner, weights), rtol=0.1, atol=0.01)


# The loss, and what is left alone.


@keras.saving.register_keras_serializable("test_pressure")
class Noise(keras.layers.Layer):
    """Draws numbers in every call, and adds nothing of them."""

    def __init__(self, **how):
        super().__init__(**how)
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + 0 * keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


def deep():
    keras.utils.set_random_seed(1)
    inputs = {name: keras.Input((SIZE,), name=name) for name in "ab"}
    z = keras.layers.Dense(6, "tanh", kernel_regularizer="l2", activity_regularizer="l2")(inputs["a"])
    z = Noise()(keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(z)))
    z = keras.layers.Concatenate()([z, inputs["b"]])
    outputs = {name: keras.layers.Dense(units, name=name)(z) for name, units in (("one", 1), ("two", 2))}
    model = keras.Model(inputs, outputs)
    current = ib.Box(0.0, 0.0, center="current")  # the whole gradient is taken away
    ib.constrain(model, {"**/bias": current, "dense/kernel": current})
    model.compile("adam", {"one": "mse", "two": "mae"}, loss_weights={"one": 1.0, "two": 0.5}, metrics={"one": "mae"})
    x = {"a": X.astype("float32"), "b": X[:, ::-1].astype("float64")}
    return model, x, {"one": Y[:, :1], "two": Y[:, 1:].astype("float64")}


def test_the_loss_is_the_one_that_an_evaluation_gives():
    model, x, y = deep()
    weights = np.linspace(0.5, 2, SAMPLES)
    rows = {row.paths[0]: row for row in ib.pressure(model, x, y, weights, batch_size=7)}

    def slope(variable, index):
        given, values = np.array(keras.ops.convert_to_numpy(variable.value)), []
        for step in (1e-2, -1e-2):
            moved = given.copy()
            moved[index] += step
            variable.assign(moved)
            found = model.evaluate(x, y, sample_weight=weights, batch_size=SAMPLES, verbose=0, return_dict=True)
            values.append(found["loss"])
        variable.assign(given)
        return (values[0] - values[1]) / 2e-2

    for name, index in (("one/bias", (0,)), ("two/bias", (1,))):
        (variable,) = [v for v in model.trainable_variables if v.path.endswith(name)]
        np.testing.assert_allclose(rows[variable.path].values[index], abs(slope(variable, index)), rtol=1e-2)
    kernel = model.layers[1].kernel
    unit = sum(abs(slope(kernel, (i, 0))) for i in range(SIZE))
    np.testing.assert_allclose(rows[kernel.path].values[0], unit, rtol=1e-2)


def test_nothing_of_the_model_changes():
    model, x, y = deep()
    ib.pressure(model, x, y)  # Keras makes the metrics of losses in the first call
    model.fit(x, y, verbose=0)

    def state():
        return values_of(model) + [
            np.array(keras.ops.convert_to_numpy(variable.value))
            for variables in (model.non_trainable_variables, model.metrics_variables, model.optimizer.variables)
            for variable in variables
        ]

    before = state()
    gradients = [variable.value.grad for variable in model.trainable_variables] if BACKEND == "torch" else []
    copies = [gradient.clone() for gradient in gradients]
    found = [ib.pressure(model, x, y) for _ in range(2)]
    assert same_bits(*([row.values for row in rows] for rows in found))
    assert same_bits(before, state())
    for variable, gradient, copy in zip(model.trainable_variables, gradients, copies, strict=BACKEND == "torch"):
        assert variable.value.grad is gradient
        assert bool((gradient == copy).all())
    model.fit(x, y, verbose=0)
    assert ib.audit(model).ok


def test_a_model_with_a_loss_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(UNITS, use_bias=False)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x, y, y_pred, sample_weight):
            return 2 * keras.ops.mean(keras.ops.square(y - y_pred))

    model = Own()
    model(X)
    model.dense.set_weights([ON_BALL])
    with pytest.warns(ib.PlanNotSavedWarning):
        ib.constrain(model, {"**/kernel": ib.MaxNorm(0.7)})
    model.compile("sgd")
    (row,) = ib.pressure(model, X.astype("float32"), Y, batch_size=5)
    np.testing.assert_allclose(row.values, 2 * pressure_of(ib.MaxNorm(0.7), ON_BALL), rtol=1e-4)
    assert row.values.max() > 0.1


@pytest.mark.skipif(BACKEND != "torch", reason="the modules are PyTorch's")
def test_a_module_of_pytorch_computes_with_its_own_parameters():
    import torch

    module = torch.nn.Linear(SIZE, UNITS, bias=False)
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.TorchModuleWrapper(module)])
    model.trainable_variables[0].assign(ON_BALL.T)
    model.compile("sgd", "mse")
    with pytest.warns(ib.PlanNotSavedWarning):
        ib.constrain(model, [(model.trainable_variables[0], ib.MaxNorm(0.7, axis=1))])
    (row,) = ib.pressure(model, X, Y)
    np.testing.assert_allclose(row.values, pressure_of(ib.MaxNorm(0.7), ON_BALL), rtol=1e-5)
    assert row.values.max() > 0.1


def test_within_a_fit_a_callback_sees_what_was_trained_so_far():
    seen = []
    model = model_with(ib.NonNeg(), np.zeros((SIZE, UNITS)))
    ask = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(next(iter(asked()))))

    def asked():
        return ib.pressure(model, X.astype("float32"), Y)

    model.fit(X.astype("float32"), Y, epochs=2, callbacks=[ask], verbose=0)
    (last,) = asked()
    assert same_bits([seen[1].values], [last.values])
    assert not same_bits([seen[0].values], [last.values])


# What a reader sees.


@pytest.mark.by_turns
def test_the_table_shows_which_bounds_cost_and_says_why_some_have_no_number():
    model = keras.Sequential([keras.Input((SIZE,)), *(keras.layers.Dense(SIZE, name=name) for name in "abcd")])
    rules = {"a/kernel": ib.MaxNorm(0.1), "b/kernel": ib.Sparse(2), "c/kernel": ib.NonNeg(), "d/kernel": ib.MaxNorm(9)}
    ib.constrain(model, rules)
    model.layers[2].trainable = False
    model.compile("sgd", "mse")
    found = ib.pressure(model, X, Y[:, [0, 1, 2, 2]])
    assert repr(found) == f"<Pressure on 4 sets of {model.name}; print it to see them>"
    text = str(found)
    assert text.startswith(f"Pressure on {model.name}: the fall of the loss for each unit by which a bound is loosened")
    assert max(map(len, text.splitlines())) <= 120
    lines = {line.split()[0]: line.split() for line in text.splitlines() if "/kernel " in line}
    a, b, c, d = found
    assert (a.paths, a.set) == ((f"{model.name}/a/kernel",), "MaxNorm(max_value=0.1)")
    assert lines["a/kernel"][-4:] == ["4", f"{a.largest:.3g}", str(a.unit[0]), f"{a.costing:.0%}"]
    assert a.largest == a.values[a.unit] == a.values.max() > 0
    assert lines["b/kernel"][-3:] == lines["c/kernel"][-3:] == ["-", "-", "-"]
    assert np.isnan([*b.values, *c.values]).all()
    assert "- b/kernel: no pressure, the set is neither convex nor smooth" in text
    assert "- c/kernel: no pressure, kernel is frozen" in text
    assert d.unit is None
    assert lines["d/kernel"][-3:] == ["0", "-", "0%"]


@pytest.mark.by_turns
def test_a_unit_is_named_by_the_axes_that_count_units():
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)]
    )
    model.layers[0].set_weights([np.full((3, 3, 2, 2), 0.1)])
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.3)})
    model.compile("sgd", "mse")
    target = np.zeros((5, 2, 2, 4))
    target[..., 3] = 9.0  # of the second channel's second filter
    (row,) = ib.pressure(model, np.ones((5, 4, 4, 2)), target)
    assert row.unit == (1, 1)
    assert row.values.shape == (4,)
    assert row.values.argmax() == 3


# What is wrong, before anything is done.


@pytest.mark.by_turns
def test_errors():
    bare = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(UNITS)])
    bare.compile("sgd", "mse")
    with pytest.raises(ib.RuleError, match=r"^Nothing is constrained: .*\. Instead: inbounds\.constrain"):
        ib.pressure(bare, X, Y)
    model = model_with(ib.MaxNorm(0.7), np.ones((SIZE, UNITS)))
    wrong = [
        ({"x": X, "y": Y[:9]}, r"\(24, 4\), \(9, 3\)"),
        ({"x": X, "y": Y, "sample_weight": np.ones(25)}, r"\(24, 4\), \(24, 3\), \(25,\)"),
        ({"x": X[:0], "y": Y[:0]}, r"\(0, 4\), \(0, 3\)"),
        ({"x": X, "y": 1.0}, r"\(24, 4\), \(\)"),
        ({"x": iter([X])}, r"\(\)"),
        ({"x": X, "y": Y, "batch_size": 0}, r".*, batch_size=0"),
        ({"x": X, "y": Y, "batch_size": -1}, r".*, batch_size=-1"),
        ({"x": X, "y": Y, "batch_size": "7"}, r".*, batch_size='7'"),
        ({"x": None, "y": Y}, r"\(24, 3\), batch_size"),
        ({"x": X.tolist()}, r"\(\), batch_size"),
    ]
    for data, shapes in wrong:
        with pytest.raises(ib.RuleError, match=rf"^The data aren't arrays with the same number .*shapes={shapes}"):
            ib.pressure(model, **data)
    with pytest.raises(Exception, match=r"(?i)incompatible|shape") as caught:
        ib.pressure(model, X[:, :2], Y)
    assert not isinstance(caught.value, ib.InboundsError), "Keras' own"
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(UNITS)])
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.7)})
    with pytest.raises(ib.RuleError, match=r"^The model isn't compiled, .*\. Instead: model\.compile"):
        ib.pressure(model, X, Y)
