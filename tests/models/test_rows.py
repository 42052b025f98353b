"""Sparse gradients of an Embedding: training as with dense ones, and which rows are projected."""

import keras
import numpy as np
import pytest

import inbounds as ib

BACKEND = keras.backend.backend()
ROWS, WIDTH, BATCH = 12, 4, 8
LEAVING = {
    "SGD": lambda **how: keras.optimizers.SGD(2.0, **how),
    "Adagrad": lambda **how: keras.optimizers.Adagrad(0.5, **how),
    "RMSprop": lambda **how: keras.optimizers.RMSprop(0.2, **how),
}
"""Optimizers that leave the rows that a batch doesn't use where they are."""
MOVING = {
    "SGD with momentum": lambda: keras.optimizers.SGD(0.5, momentum=0.9),
    "RMSprop with momentum": lambda: keras.optimizers.RMSprop(0.05, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.2),
    "Adadelta": lambda: keras.optimizers.Adadelta(30.0),
    "Lion": lambda: keras.optimizers.Lion(0.1),
    "Ftrl": lambda: keras.optimizers.Ftrl(1.0),
}
SETS = {
    "a norm": lambda: ib.MaxNorm(0.8),
    "not convex": lambda: ib.UnitNorm(),
    "a sum": lambda: ib.Simplex(),
    "an order": lambda: ib.Monotone() & ib.MaxNorm(1.0),
}

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason=f"gradients on {BACKEND} name no rows")


def table(**given):
    """A model from three of twelve words to one number."""
    layer = keras.layers.Embedding(ROWS, WIDTH, name="table", **given)
    layers = [keras.layers.Flatten(), keras.layers.Dense(1, name="out")]
    return keras.Sequential([keras.Input((3,), dtype="int32"), layer, *layers])


def as_kernel():
    """The same model with words as unit vectors, whose gradients are dense."""
    layer = keras.layers.Dense(WIDTH, use_bias=False, name="table")
    layers = [keras.layers.Flatten(), keras.layers.Dense(1, name="out")]
    return keras.Sequential([keras.Input((3, ROWS)), layer, *layers])


def words(count, rows=ROWS):
    rng = np.random.default_rng(0)
    return rng.integers(0, rows, (count, 3)), rng.normal(0, 2, (count, 1)).astype("float32")


def embeddings(model):
    return keras.ops.convert_to_numpy(model.get_layer("table").weights[0])


def ready(optimizer, owner=None, model=None):
    model = model or table()
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.weights])
    model.compile(optimizer, "mse", jit_compile=False)  # XLA takes seconds for each
    if owner is not None:
        ib.constrain(model, {"table/*": owner})
    return model


def leaves_other_rows(model):
    """Whether two steps leave a row outside that their batch doesn't use."""
    x, y = words(BATCH, rows=ROWS - 1)
    outside = embeddings(model)
    outside[-1] = 5.0
    model.get_layer("table").set_weights([outside])
    for _ in range(2):  # of which one may only add to the gradient
        model.train_on_batch(x, y)
    return bool(np.all(embeddings(model)[-1] == 5.0))


ALIKE = pytest.mark.repeats("name") if BACKEND != "tensorflow" else pytest.mark.repeats()
"""Elsewhere all gradients are dense."""


LONG = ("RMSprop with momentum", "Adadelta", "Ftrl")
"""Each takes TensorFlow seconds to trace, for models with sparse gradients and with dense ones."""


@ALIKE
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.repetition] * (n in LONG)) for n in (*LEAVING, *MOVING)]
)
def test_training_is_that_of_dense_gradients(name):
    """Where a batch uses a word once.

    Where it uses one several times, Keras on TensorFlow adds up the squares in place of the
    gradients.
    """
    make = (LEAVING | MOVING)[name]
    rng = np.random.default_rng(0)
    x, y = np.stack([rng.permutation(ROWS)[:9].reshape(3, 3) for _ in range(8)]).reshape(24, 3), words(24)[1]
    sparse = ready(make())
    ib.constrain(sparse, {"table/embeddings": ib.MaxNorm(0.8)}, gradient="full")  # rows by themselves aren't reduced
    dense = ready(make(), model=as_kernel())
    ib.constrain(dense, [(dense.get_layer("table").kernel, ib.MaxNorm(0.8, axis=1))], gradient="full")
    for model, inputs in ((sparse, x), (dense, np.eye(ROWS, dtype="float32")[x])):
        model.fit(inputs, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    assert np.any(np.abs(np.linalg.norm(embeddings(sparse), axis=1) - 0.8) < 1e-6), "nothing was projected"
    assert np.max(np.abs(embeddings(sparse) - embeddings(dense))) < 1e-4


@on_tensorflow
@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # a lambda isn't saved
@pytest.mark.parametrize("owner", list(SETS))
def test_projecting_the_rows_of_the_batch_ends_where_projecting_all_does(owner):
    """Under every optimizer that leaves the other rows, the test above shows it."""
    x, y = words(5 * BATCH)
    ends = []
    for given in (SETS[owner](), SETS[owner]().scaled(lambda step: 1.0)):  # which may be another set for other rows
        model = ready(LEAVING["SGD"](), given)
        model.jit_compile = owner == "an order"
        model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
        assert ib.audit(model).ok
        ends.append(embeddings(model).copy())
        assert leaves_other_rows(model) is (len(ends) == 1)
    assert np.max(np.abs(ends[0] - ends[1])) < 1e-5


@on_tensorflow
@pytest.mark.repeats("name")
@pytest.mark.parametrize("name", list(LEAVING))
def test_a_row_that_no_batch_uses_is_not_looked_at(name):
    model = ready(LEAVING[name](), ib.MaxNorm(0.8))
    assert leaves_other_rows(model)
    assert np.linalg.norm(embeddings(model)[:-1], axis=1).max() <= 0.8 * (1 + 1e-6)
    assert not ib.audit(model).ok
    model.fit(*words(BATCH), verbose=0)
    assert ib.audit(model).ok


ALL_ROWS = {
    "momentum": (MOVING["SGD with momentum"], lambda: ib.MaxNorm(0.8)),
    "weight decay": (lambda: LEAVING["SGD"](weight_decay=0.01), ib.UnitNorm),
    "a bound that follows the steps": (
        LEAVING["SGD"],
        lambda: ib.MaxNorm(0.8).scaled(keras.optimizers.schedules.PolynomialDecay(2.0, 6, 1.0)),
    ),
    "a centre of each row": (
        LEAVING["SGD"],
        lambda: ib.MaxNorm(0.8, center=np.linspace(-0.5, 0.5, ROWS * WIDTH).reshape(ROWS, WIDTH)),
    ),
    "a callable": (LEAVING["SGD"], lambda: ib.Custom(lambda w: keras.ops.clip(w, -0.5, 0.5))),
    "a part of the way": (LEAVING["SGD"], lambda: ib.MinMaxNorm(0.1, 0.8, rate=0.5)),
    "a matrix": (LEAVING["SGD"], lambda: ib.SpectralNorm(1.0)),
    "gradients that are added up": (lambda: LEAVING["SGD"](gradient_accumulation_steps=2), lambda: ib.MaxNorm(0.8)),
}


@on_tensorflow
@pytest.mark.parametrize("why", list(ALL_ROWS))
@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # a lambda isn't saved
def test_all_rows_are_projected_where_those_of_the_batch_are_not_enough(why):
    optimizer, owner = (make() for make in ALL_ROWS[why])
    model = ready(optimizer, owner)
    x, y = words(4 * BATCH, rows=ROWS - 3)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    assert ib.audit(model).ok is (why != "a part of the way")  # which ends on the way
    assert not leaves_other_rows(model)


@on_tensorflow
def test_all_rows_are_projected_of_what_nobody_has_put_inside():
    """A set in a layer's argument, in a loop that no `fit` begins."""
    import tensorflow as tf

    model = table(embeddings_constraint=ib.UnitNorm())
    optimizer = keras.optimizers.SGD(0.1)
    x, y = words(BATCH, rows=ROWS - 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]), model.trainable_variables)
    assert np.allclose(np.linalg.norm(embeddings(model), axis=1), 1, atol=1e-6)
