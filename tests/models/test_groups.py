"""Equal, GroupL1Ball and GroupSparse on layers: which entries are groups, in training and files."""

import keras
import numpy as np
import pytest
from measure import numbers

import inbounds as ib

pytestmark = pytest.mark.by_turns

LAYERS = keras.layers


def built(layer, *shape):
    model = keras.Sequential([keras.Input(shape), layer])
    kernel = layer.weights[0]
    kernel.assign(np.random.default_rng(1).normal(size=kernel.shape).astype("float32"))
    return model, kernel


def squared_distances(window):
    places = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in window], indexing="ij")
    return sum(place**2 for place in places)


WINDOWS = {
    "Conv1D": (lambda: LAYERS.Conv1D(3, 4), (9, 2), (4,)),
    "Conv2D": (lambda: LAYERS.Conv2D(2, (3, 2)), (6, 6, 2), (3, 2)),
    "Conv2DTranspose": (lambda: LAYERS.Conv2DTranspose(2, 3), (4, 4, 3), (3, 3)),
    "Conv3D": (lambda: LAYERS.Conv3D(2, (3, 2, 3)), (4, 4, 4, 1), (3, 2, 3)),
    "DepthwiseConv2D": (lambda: LAYERS.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 2), (3, 3)),
    "Conv2D, groups": (lambda: LAYERS.Conv2D(4, 3, groups=2), (6, 6, 4), (3, 3)),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("groups", ["symmetric", "radial"])
def test_a_name_is_for_the_window_of_a_convolution_and_each_channel_by_itself(groups, name):
    make, shape, window = WINDOWS[name]
    model, kernel = built(make(), *shape)
    before, axes = numbers(kernel), tuple(range(len(window)))
    ib.constrain(model, {"*/*kernel": ib.Equal(groups)})
    if groups == "symmetric":
        expected = before
        for axis in axes:
            expected = (expected + np.flip(expected, axis)) / 2
    else:
        far, expected = squared_distances(window), np.empty_like(before)
        for distance in np.unique(far):
            expected[far == distance] = before[far == distance].mean(axis=0)
    np.testing.assert_allclose(numbers(kernel), expected, rtol=0, atol=1e-6)
    assert ib.check(model).rows[0].violated == 0
    kernel.assign(numbers(kernel) + 1e-3 * np.arange(kernel.shape[0]).reshape(-1, *[1] * (len(kernel.shape) - 1)))
    assert ib.audit(model).rows[0].status == "violated"
    by_itself = ib.Equal(groups, axis=axes)(before.astype("float32"))
    np.testing.assert_allclose(numbers(by_itself), expected, rtol=0, atol=1e-6)


def test_the_windows_of_a_convolution_are_units():
    model, kernel = built(LAYERS.Conv2D(4, 3, name="conv"), 6, 6, 2)
    before = numbers(kernel)
    for given in (ib.Symmetric(), ib.Symmetric() & ib.SumTo(0.0)):
        (entry,) = ib.constrain(model, {"conv/kernel": given.per("window")})
        assert entry.units == 8
        expected = (before + before.swapaxes(0, 1)) / 2
        expected -= expected.mean(axis=(0, 1)) * (given != ib.Symmetric())
        np.testing.assert_allclose(numbers(kernel), expected, rtol=0, atol=1e-6)
        assert ib.check(model).rows[0].units == 8
    for wrong, layer in ((ib.Orthogonal(), LAYERS.Conv2D(2, 3)), (ib.Symmetric(), LAYERS.Conv2D(2, (3, 2)))):
        other, _ = built(layer, 6, 6, 2)
        with pytest.raises(ib.RuleError, match="is no matrix, but for Symmetric a square one"):
            ib.constrain(other, {"*/kernel": wrong.per("window")})
    with pytest.raises(ib.RuleError, match="knows no window of this weight"):
        ib.constrain(model, {"conv/bias": ib.MaxNorm(1.0).per("window")})


def test_equal_entries_train_and_are_saved(tmp_path):
    model, kernel = built(LAYERS.Conv1D(2, 3, name="conv"), 8, 2)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    ib.constrain(model, {"conv/kernel": ib.Equal([[0, 1], [2, 3], [0, 1]])})
    before, chance = numbers(kernel), np.random.default_rng(0)
    model.fit(chance.normal(size=(16, 8, 2)), chance.normal(size=(16, 6, 2)), epochs=2, verbose=0)
    assert np.all(numbers(kernel) != before)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, again):
        row = ib.check(one).rows[0]
        assert row.set == "Equal(groups=[[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])"
        kept = numbers(one.get_layer("conv").kernel)
        assert np.array_equal(kept[0], kept[2])


def test_group_sparsity_trains_to_the_optimum_of_a_few_inputs(tmp_path):
    chance = np.random.default_rng(0)
    x = chance.normal(size=(64, 6))
    y = x[:, :2] @ chance.normal(size=(2, 3)) + 0.3 * chance.normal(size=(64, 3))
    model, kernel = built(LAYERS.Dense(3, use_bias=False, name="out"), 6)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 100)), "mse")
    ib.constrain(model, {"out/kernel": ib.GroupL1Ball(1.0)})
    model.fit(np.tile(x, (100, 1)), np.tile(y, (100, 1)), batch_size=64, shuffle=False, verbose=0)  # full batches
    norms = np.linalg.norm(numbers(kernel), axis=1)
    pulls = np.linalg.norm(x.T @ (x @ numbers(kernel) - y), axis=1)
    taken = norms > 1e-4
    assert 0 < taken.sum() < 6
    np.testing.assert_allclose(pulls[taken], pulls.max(), rtol=1e-2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    (row,) = ib.check(again).rows
    assert (row.set, row.units) == ("GroupL1Ball(radius=1.0, groups='inputs')", 1)
    assert abs(norms.sum() - 1) < 1e-3


CHANNEL_NORMS = {"inputs": (0, 1, 3), "units": (0, 1, 2)}


@pytest.mark.parametrize("groups", CHANNEL_NORMS)
def test_the_inputs_of_a_convolution_are_its_channels_and_its_units_the_filters(groups):
    model, kernel = built(LAYERS.Conv2D(4, 2, name="conv"), 5, 5, 5)
    before, within = numbers(kernel), CHANNEL_NORMS[groups]
    norms = np.sqrt(np.sum(before**2, axis=within, keepdims=True))
    ib.constrain(model, {"conv/kernel": ib.GroupL1Ball(12.0, groups)})
    taken = (norms.sum() - 12) / norms.size  # of each norm, since none ends at 0
    assert norms.min() > taken > 0
    np.testing.assert_allclose(numbers(kernel), before * (norms - taken) / norms, rtol=1e-5)
    few = ib.GroupSparse(2, groups)
    kept = np.where(norms >= np.sort(norms.ravel())[-2], before, 0)
    for given in (few, few & ib.FrobeniusNorm(1e3)):
        kernel.assign(before)
        ib.constrain(model, {"conv": {"kernel": given}})
        assert np.array_equal(numbers(kernel), kept)
        assert ib.check(model).rows[0].units == 1
    assert np.array_equal(numbers(few(before.astype("float32"))), kept)


HEADS = {"name": ib.GroupSparse(1, "heads"), "labels": ib.GroupSparse(1, np.arange(3)[None, :, None], axis=(0, 1, 2))}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_heads_are_a_name_or_labels_and_latent_weights_keep_those_that_are_out(heads):
    model, kernel = built(LAYERS.EinsumDense("abc,cde->abde", (None, 3, 2), name="heads"), 5, 4)
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    (entry,) = ib.constrain(model, {"heads/kernel": heads}, latent=True)
    assert entry.units == 1
    chance = np.random.default_rng(0)
    model.fit(chance.normal(size=(8, 5, 4)), chance.normal(size=(8, 5, 3, 2)), verbose=0)
    kernel = numbers(kernel)
    assert np.count_nonzero(np.linalg.norm(kernel, axis=(0, 2))) == 1
    latent = next(numbers(v) for v in model.optimizer.variables if "latent" in v.path)
    assert np.count_nonzero(np.linalg.norm(latent.reshape(kernel.shape), axis=(0, 2))) > 1


def test_gates_lie_beside_each_other_in_a_kernel():
    model, kernel = built(LAYERS.LSTM(3, name="lstm"), 5, 2)
    norms = np.linalg.norm(numbers(kernel).reshape(2, 4, 3), axis=(0, 2))
    gates, bound = ib.GroupL1Ball(6.0, "gates"), ib.MaxNorm(1.0)
    taken = (norms.sum() - 6) / 4
    assert norms.min() > taken > 0
    expected = numbers(kernel).reshape(2, 4, 3) * ((norms - taken) / norms)[:, None]
    ib.constrain(model, {"lstm_cell/kernel": gates, "recurrent_kernel": ib.GroupSparse(1, "gates") & bound})
    np.testing.assert_allclose(numbers(kernel), expected.reshape(2, 12), rtol=1e-5)
    kept = np.linalg.norm(numbers(model.layers[0].cell.recurrent_kernel).reshape(3, 4, 3), axis=(0, 2))
    assert np.count_nonzero(kept) == 1
    assert ib.check(model).rows[0].units == 1
    with pytest.raises(ib.SetError, match="`groups` of GroupL1Ball are the gates of a layer, which no axis"):
        gates.project(np.ones((2, 2)))


MATRICES = {"toeplitz": lambda i, j, n: i - j, "circulant": lambda i, j, n: (i - j) % n}


@pytest.mark.parametrize("groups", MATRICES)
def test_a_name_is_for_the_matrix_of_a_kernel_or_two_axes(groups):
    model, kernel = built(LAYERS.Dense(4, name="out"), 4)
    before, labels = numbers(kernel), MATRICES[groups](*np.indices((4, 4)), 4)
    expected = np.empty_like(before)
    for label in np.unique(labels):
        expected[labels == label] = before[labels == label].mean()
    ib.constrain(model, {"out/kernel": ib.Equal(groups)})
    np.testing.assert_allclose(numbers(kernel), expected, rtol=0, atol=1e-6)
    assert ib.check(model).rows[0].units == 1
    stack = np.stack([before, 2 * before]).astype("float32")
    found = numbers(ib.Equal(groups, axis=(1, 2))(stack))
    np.testing.assert_allclose(found, np.stack([expected, 2 * expected]), rtol=0, atol=1e-6)
    kernel.assign(before)
    assert ib.audit(model).rows[0].status == "violated"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kernel": ib.Equal([0, 1])}, "`groups` don't fit the units"),
        ({"kernel": ib.GroupL1Ball(1.0, [0, 1])}, "`groups` don't fit the units"),
        ({"bias": ib.GroupL1Ball(1.0)}, "are the inputs of a layer, which no axis of the weight counts"),
        ({"kernel": ib.GroupSparse(1, "heads")}, "are the heads of a layer, which no axis of the weight counts"),
        ({"kernel": ib.GroupSparse(7)}, "`k` of GroupSparse is above the number of groups"),
        ({"kernel": ib.Equal("circulant")}, "is for a square matrix"),
        ({"bias": ib.Equal("toeplitz")}, "this weight has no units with a fan-in"),
    ],
)
def test_groups_that_the_weight_lacks_are_errors(rule, said):
    model, _ = built(LAYERS.Dense(3, name="out"), 6)
    with pytest.raises(ib.RuleError, match=said):
        ib.constrain(model, {"out": rule})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: ib.Equal("round"),
            "`groups` of Equal is not an array of labels, or one of symmetric, radial, toeplitz",
        ),
        (lambda: ib.Equal(1), "`groups` of Equal is not an array of labels"),
        (lambda: ib.GroupL1Ball(0), "`radius` of GroupL1Ball is not above 0"),
        (lambda: ib.GroupL1Ball(1, "rows"), "`groups` of GroupL1Ball is not one of inputs, units, heads, gates"),
        (lambda: ib.GroupSparse(1, axis=0), "`groups` of GroupSparse is not one of .*, without an axis"),
        (lambda: ib.GroupSparse(0), "`k` of GroupSparse is not a positive integer"),
    ],
)
def test_arguments(make, said):
    with pytest.raises(ib.SetError, match=said):
        make()
