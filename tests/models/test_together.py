"""Together: weights of several layers as one unit with one budget; Tied: weights that are equal."""

import keras
import numpy as np
import pytest
from measure import numbers, slack

import inbounds as ib

pytestmark = pytest.mark.by_turns

FEATURES, CLASSES = 6, 3
X, Y = np.random.default_rng(0).normal(size=(2, 48, FEATURES)), np.arange(48) % CLASSES
X[0, np.arange(48), Y] += 1  # the classes differ, in the first input by more


def branches(**arguments):
    """Two kernels whose outputs are added up, so that the loss is convex in both together."""
    inputs = [keras.Input((FEATURES,)) for _ in range(2)]
    added = keras.layers.Add()(
        [keras.layers.Dense(CLASSES, use_bias=False, name=n, **arguments)(x) for n, x in zip("ab", inputs, strict=True)]
    )
    return keras.Model(inputs, keras.layers.Softmax()(added))


def train(model, optimizer, steps=3):
    model.compile(optimizer, "sparse_categorical_crossentropy")
    batches = [np.tile(x, (steps, 1)) for x in X], np.tile(Y, steps)
    model.fit(*batches, batch_size=48, shuffle=False, verbose=0)
    return model


def entries(model):
    """All entries of both kernels, and the gradient of the loss there by its formula."""
    kernels = [numbers(model.get_layer(name).kernel) for name in "ab"]
    logits = sum(x @ kernel for x, kernel in zip(X, kernels, strict=True))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(CLASSES)[Y]
    gradients = [x.T @ shares / len(Y) for x in X]
    return (np.concatenate([part.ravel() for part in parts]) for parts in (kernels, gradients))


def norm(model):
    return np.sqrt(sum(np.sum(numbers(variable) ** 2) for variable in model.weights))


@pytest.mark.parametrize("inner", [ib.FrobeniusNorm(0.8), ib.L1Ball(1.5)], ids=repr)
def test_training_ends_where_no_weight_of_either_layer_can_help_the_other(inner):
    model = branches()
    plan = ib.constrain(model, {"*/kernel": ib.Together(inner)})
    assert [(entry.units, entry.paths) for entry in plan] == [(1, ("a/kernel", "b/kernel"))]
    rate = keras.optimizers.schedules.CosineDecay(0.2, 120)
    train(model, keras.optimizers.Adam(rate), steps=120)
    (row,) = ib.check(model).rows
    assert (row.paths, row.units, row.active) == (("a/kernel", "b/kernel"), 1, 1.0)
    w, gradient = entries(model)
    if isinstance(inner, ib.L1Ball):
        price = np.abs(gradient).max()
        live = np.abs(w) > 1e-3
        assert 0 < live.sum() < w.size
        np.testing.assert_allclose((-np.sign(w) * gradient)[live], price, rtol=1e-2)
    else:
        along = -gradient @ w / 0.8**2
        np.testing.assert_allclose(-gradient, along * w, rtol=0, atol=1e-3 * along)


def test_it_is_saved_with_the_model_and_keeps_a_frozen_layer_in_the_unit(tmp_path):
    bound = ib.Together(ib.MaxNorm(0.5))
    model = branches()
    ib.constrain(model, {keras.layers.Dense: bound})
    train(model, keras.optimizers.SGD(1.0))
    model.get_layer("a").trainable = False
    model.compile(keras.optimizers.SGD(10.0), "sparse_categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("b").kernel_constraint == bound
    before = numbers(again.get_layer("a").kernel)
    again.fit(list(X), Y, batch_size=16, epochs=2, verbose=0)
    (row,) = ib.check(again).rows
    assert row.paths == ("a/kernel", "b/kernel")
    assert row.set == "Together(MaxNorm(max_value=0.5))"
    np.testing.assert_array_equal(numbers(again.get_layer("a").kernel), before)
    assert abs(norm(again) - 0.5) <= slack(0.5)


def test_equal_budgets_are_one_and_names_keep_them_apart():
    budget = ib.Together(ib.SumTo(1.0))
    assert len(ib.constrain(branches(), {"a/kernel": budget, "b/kernel": ib.Together(ib.SumTo(1.0))})) == 1
    named = {f"{name}/kernel": ib.Together(ib.SumTo(1.0), name=name) for name in "ab"}
    assert len(plan := ib.constrain(branches(), named)) == 2
    assert repr(plan.entries[0].set) == "Together(SumTo(total=1.0), name='a')"
    assert len(ib.constrain(branches(kernel_constraint=budget))) == 1
    model = branches()
    ib.constrain(model, {"*/kernel": budget})
    ib.release(model.get_layer("a"))
    assert {row.status for row in ib.audit(model).rows} == {"free"}


def test_the_plan_says_where_several_optimizers_step_the_unit():
    by_map = keras.optimizers.OptimizerMap(keras.optimizers.SGD(1.0))
    by_map["a/kernel"] = keras.optimizers.Adam(0.3)
    model = branches()
    plan = ib.constrain(model, {"*/kernel": ib.Together(ib.FrobeniusNorm(0.5))})
    train(model, keras.optimizers.MultiOptimizer(by_map))
    assert "2 optimizers step weights of one unit" in str(plan)
    assert ib.check(model).ok


TIE = ib.Tied("encoder/kernel", "decoder/kernel", transpose=True)


def coder(features=3, outputs=3):
    layers = [keras.layers.Dense(2, name="encoder"), keras.layers.Dense(outputs, name="decoder")]
    model = keras.Sequential([keras.Input((features,)), *layers])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def kernels(model):
    return [numbers(layer.kernel) for layer in model.layers]


@pytest.mark.parametrize("rules", [[TIE, ("*/bias", ib.NonNeg())], {"*coder/kernel": TIE}], ids=["list", "mapping"])
def test_tied_weights_start_at_their_mean_train_as_one_and_are_saved(rules, tmp_path):
    model = coder()
    start = kernels(model)
    plan = ib.constrain(model, rules)
    assert [path.split("/")[-2] for path in plan.entries[0].paths] == ["encoder", "decoder"]
    assert str(plan).count(repr(TIE)) == 1
    encoder = kernels(model)[0]
    np.testing.assert_allclose(encoder, (start[0] + start[1].T) / 2, rtol=0, atol=1e-6)
    x = np.random.default_rng(0).normal(size=(24, 3))
    model.fit(x, x, batch_size=8, verbose=0)
    assert np.array_equal(kernels(model)[0], kernels(model)[1].T)
    assert not np.allclose(kernels(model)[0], encoder)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.fit(x, x, batch_size=8, verbose=0)
    assert ib.check(again).rows[0].set == repr(TIE)
    assert np.array_equal(kernels(again)[0], kernels(again)[1].T)
    assert not np.array_equal(kernels(again)[0], kernels(model)[0])


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            [ib.Tied("encoder/kernel", "decoder/kernel")],
            r"same shape.*shape \(3, 2\) and \(2, 3\).*Instead: .*transpose=True",
        ),
        ([ib.Tied("encoder/kernel", "other/kernel")], "encoder/kernel of shape .*; other/kernel: none"),
        ([ib.Tied("encoder/kernel", "kernel")], "Each name of a Tied is to take one weight"),
        ({"*": ib.Tied("encoder/bias", "decoder/bias")}, "and the Tied no others"),
        ([ib.Tied("encoder/bias", "decoder/bias")], "don't have the same shape.*as many entries along each axis"),
        ([TIE, ("decoder/kernel", ib.NonNeg())], "decoder/kernel: none"),
        ([ib.Tied("a", "b")], "No weight matches"),
    ],
    ids=repr,
)
def test_weights_that_can_t_be_tied_are_errors(rules, said):
    with pytest.raises(ib.RuleError, match=said):
        ib.constrain(coder(), rules)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ib.Tied("a"), "`weights` of Tied are not two or more different strings"),
        (lambda: ib.Tied("a", "b", transpose=2), "`transpose` of Tied is neither True nor False"),
        (lambda: TIE & ib.NonNeg(), "A Tied takes no `where`, `on` or `&`"),
        (lambda: TIE.where([True, False]), "A Tied takes no `where`, `on` or `&`"),
        (lambda: ib.Together(ib.Equal("toeplitz")), "Together is given a set of matrices"),
        (lambda: ib.Together(ib.SpectralNorm(1.0)), "Together is given a set of matrices"),
        (lambda: ib.Together(ib.Joint(ib.MaxNorm(1.0))), "Together is not given a set of vectors"),
        (lambda: ib.Together(ib.MaxNorm(1.0, axis=0)), "A set in a Together has an `axis`"),
        (lambda: ib.Together(ib.MaxNorm(1.0), name=3), "`name` of Together is not a string"),
        (lambda: ib.Together(ib.NonNeg()) & ib.Together(ib.MaxNorm(1.0), name="a"), "A Together can't meet"),
        (lambda: ib.Together(ib.MaxNorm(1.0))(np.ones((2, 2))), "A Together can't be applied to one weight"),
    ],
)
def test_errors(make, said):
    with pytest.raises(ib.SetError, match=said):
        make()
