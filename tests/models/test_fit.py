"""What a fit does outside its steps: it begins, evaluates, checkpoints, and swaps averages in."""

import gc

import keras
import numpy as np
import pytest
from measure import inside, norms, on_bound, same_bits, values_of

import inbounds as ib
from instead import run

BACKEND = keras.backend.backend()
BOUND = 0.4
KERNELS = {"**/kernel": ib.MaxNorm(BOUND)}


def model_of(optimizer, rules=KERNELS, **how):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(12, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="out"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    ib.constrain(model, rules, **how)
    return model


def lengths(model):
    return np.concatenate([norms((layer.kernel, (0,))) for layer in model.layers])


class Seen(keras.callbacks.Callback):
    """The norms of the kernels' columns at each moment of a fit when others look at them."""

    def __init__(self):
        super().__init__()
        self.steps, self.evaluations, self.epochs = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(lengths(self.model))

    def on_test_begin(self, logs=None):
        self.evaluations.append(lengths(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(lengths(self.model))


def fit(model, digits, callbacks=(), steps=4, epochs=1):
    x, y = digits
    seen = Seen()
    model.fit(
        x[: 32 * steps],
        y[: 32 * steps],
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(x[:8], y[:8]),
        callbacks=[*callbacks, seen],
    )
    return seen


# Its begin.


def test_weights_that_were_put_outside_are_inside_when_a_fit_begins_also_frozen_ones(digits):
    model = model_of(keras.optimizers.SGD(0.0))
    model.get_layer("hidden").trainable = False
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    model.set_weights([5 * value for value in model.get_weights()])
    assert not ib.audit(model).ok
    assert min(lengths(model)) > BOUND
    seen = fit(model, digits, steps=1)
    assert on_bound(seen.steps[0], BOUND)
    assert ib.audit(model).ok


def test_weights_that_a_callback_loads_at_the_begin_are_inside_before_the_first_step(digits):
    model = model_of(keras.optimizers.SGD(0.0))
    outside = [5 * value for value in model.get_weights()]
    load = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: model.set_weights(outside))
    first = []
    look = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: first.append(lengths(model)))
    fit(model, digits, [load, look], steps=1)
    assert on_bound(first[0], BOUND)


def test_a_frozen_weight_that_was_changed_is_seen_by_the_next_fit_or_step():
    out = keras.layers.Dense(2, name="out")
    model = keras.Sequential([keras.Input((3,)), out])
    out.bias.trainable = False
    model.compile(keras.optimizers.SGD(9.0), "mse")
    ib.constrain(model, {"out": ib.Joint(ib.MaxNorm(BOUND))})
    x, y = np.ones((4, 3), "float32"), np.full((4, 2), 9.0, "float32")
    steps = (
        lambda: model.fit(x, y, verbose=0),
        lambda: model.fit(x, y, verbose=0),
        lambda: model.train_on_batch(x, y),
        lambda: model.optimizer.apply([-keras.ops.ones((3, 2))], [out.kernel]),
    )
    for value, step in zip((0.0, 0.3, 0.1, 0.2), steps, strict=True):
        out.bias.assign(np.full(2, value, "float32"))
        step()
        assert on_bound(norms((out.kernel, (0,)), (out.bias, ())), BOUND)
        assert np.array_equal(keras.ops.convert_to_numpy(out.bias), np.full(2, value, "float32"))
    out.bias.assign(np.full(2, 9.0, "float32"))
    keras.optimizers.SGD(9.0).build([out.kernel])  # as a fit does after `compile`, before it puts weights inside
    assert ib.audit(model).ok, "a plan moves frozen weights that leave the others no room"


def test_a_fit_of_a_model_without_sets_begins_with_what_it_is_given(digits):
    model = model_of(keras.optimizers.SGD(0.0))
    ib.release(model)
    model.set_weights([5 * value for value in model.get_weights()])
    before = values_of(model)[:4]
    fit(model, digits)
    assert same_bits(values_of(model)[:4], before)


# Averages.


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of the trainer of TensorFlow")
def test_a_step_is_traced_once():
    losses = []

    def loss(true, predicted):
        losses.append(predicted)
        return keras.losses.mean_squared_error(true, predicted)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss=loss)
    ib.constrain(model, {"**": ib.MaxNorm(0.1)})
    losses.clear()
    model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=4, verbose=0)
    assert len(losses) == 1


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras swaps by adding and subtracting there, which costs bits")
def test_looking_at_an_average_changes_no_training(digits):
    ends = []
    for callbacks in ([], [keras.callbacks.SwapEMAWeights()]):
        keras.utils.set_random_seed(0)
        model = model_of(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9), {"**/kernel": ib.UnitNorm()})
        fit(model, digits, callbacks, epochs=2)
        ends.append(values_of(model))
    assert same_bits(*ends)


# Now and then.


def test_a_matrix_is_projected_on_now_and_then_too(digits):
    model = model_of(keras.optimizers.Adam(0.1), {"hidden/kernel": ib.SpectralNorm(BOUND)}, every=3)
    fit(model, digits, steps=3)
    assert ib.audit(model).ok


@pytest.mark.by_turns
def test_how_often_is_in_the_plan_and_in_the_file(digits, tmp_path):
    model = model_of(keras.optimizers.SGD(1.0), every=3)
    for every, told in [(3, "each 3 steps"), ("epoch", "at the end of each epoch")]:
        assert told in " ".join(str(ib.constrain(model, KERNELS, every=every)).split())
    ib.constrain(model, KERNELS, every=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    loaded.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    seen = fit(loaded, digits)
    assert [inside(step, BOUND) for step in seen.steps] == [False, False, True, False]
    assert on_bound(lengths(loaded), BOUND)


# A callback that turns sets on and off.


class Toggle(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch % 2:
            ib.release(self.model)
        else:
            ib.constrain(self.model, KERNELS)


def test_a_callback_turns_a_plan_on_and_off(digits):
    seen = fit(model_of(keras.optimizers.SGD(1.0)), digits, [Toggle()], epochs=3, steps=2)
    assert [inside(step, BOUND) for step in seen.steps] == [True, True, False, False, True, True]


# Bounds that follow a schedule.


TIGHTER = keras.optimizers.schedules.PolynomialDecay(4.0, 6, 1.0)
LOOSER = keras.optimizers.schedules.PolynomialDecay(0.1, 6, 0.4)


@pytest.mark.by_turns  # scaled sets are in cells of the conformance matrix on each backend
@pytest.mark.parametrize("schedule", [TIGHTER, LOOSER], ids=["tighter", "looser"])
def test_a_bound_follows_a_schedule_step_by_step(schedule, digits):
    model = model_of(keras.optimizers.Adam(0.05), {"**/kernel": ib.MaxNorm(BOUND).scaled(schedule)})
    seen = fit(model, digits, epochs=2)
    bounds = [BOUND * float(schedule(step)) for step in range(1, 9)]
    assert all(inside(step, bound) for step, bound in zip(seen.steps, bounds, strict=True))
    assert all(on_bound(step, bound) for step, bound in zip(seen.steps[4:], bounds[4:], strict=True))
    assert ib.audit(model).ok
    model.set_weights([1.01 * value for value in model.get_weights()])
    assert not ib.audit(model).ok
    ib.project(model)
    assert on_bound(lengths(model), bounds[-1])


def test_an_audit_counts_the_steps_of_an_optimizer_that_the_model_does_not_hold():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    rules = {"**/kernel": ib.MaxNorm(1.0).scaled(LOOSER)}
    ib.constrain(model, rules)
    optimizer = keras.optimizers.SGD(9.0)
    for count in (1, 2):
        optimizer.apply([keras.ops.ones((2, 2))], model.trainable_variables)
        assert on_bound(lengths(model), float(LOOSER(count)))
        assert ib.check(model).rows[0].active == 1.0
        assert ib.check(model.layers[0]).ok, "of a layer too"
        model.compile("sgd", "mse")  # for its loss: its optimizer isn't used
        ib.release(model)
        ib.constrain(model, rules)
    model.fit(np.ones((2, 2)), np.ones((2, 2)), verbose=0)
    model.compile("sgd", "mse")  # counts anew, whether or not the one before is still in memory
    ib.project(model)
    assert inside(lengths(model), float(LOOSER(0)))


@pytest.mark.by_turns
def test_a_bound_goes_on_where_a_saved_run_ended(digits, tmp_path):
    model = model_of(keras.optimizers.SGD(3.0), {"**/kernel": ib.MaxNorm(BOUND).scaled(TIGHTER)})
    fit(model, digits, steps=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert ib.audit(loaded).ok
    seen = fit(loaded, digits, steps=2)
    assert on_bound(seen.steps[0], BOUND * float(TIGHTER(3)))


@pytest.mark.by_turns  # `iterations` is Keras'
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(3.0, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(3.0)),
    ],
    ids=["accumulation", "loss scale"],
)
def test_a_schedule_counts_the_steps_of_any_optimizer(optimizer, digits):
    model = model_of(optimizer(), {keras.layers.Dense: ib.Joint(ib.L1Ball(BOUND).scaled(TIGHTER))})
    fit(model, digits, epochs=2)
    report = ib.check(model)
    assert all(row.active > 0 for row in report.rows)


@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # of lambdas
def test_schedules_of_one_name_are_two():
    """On PyTorch small weights with equal sets are projected as one."""
    model = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8, name=name) for name in "ab")])
    model.compile(keras.optimizers.SGD(20.0), "mse")
    rules = {f"{name}/kernel": ib.MaxNorm(0.1).scaled(lambda s, by=by: by) for name, by in (("a", 1.0), ("b", 5.0))}
    ib.constrain(model, rules)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(32, 8)), 100 * rng.normal(size=(32, 8)), verbose=0)
    for name, bound in (("a", 0.1), ("b", 0.5)):
        assert on_bound(norms((model.get_layer(name).kernel, (0,))), bound)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "owner",
    [
        lambda: ib.MaxNorm(BOUND).scaled(TIGHTER) & ib.NonNeg(),
        lambda: ib.MaxNorm(BOUND).scaled(TIGHTER).on(inputs=range(10)),
        lambda: ib.FrobeniusNorm(BOUND).scaled(TIGHTER),
        lambda: ib.SpectralNorm(BOUND).scaled(TIGHTER),
        lambda: ib.Joint(ib.MaxNorm(BOUND).scaled(TIGHTER).on(inputs=range(10))),
    ],
    ids=["intersection", "inputs", "whole", "matrix", "Joint"],
)
def test_what_is_made_of_scaled_sets_is_trained_and_audited(owner, digits):
    rule = owner()
    selector = keras.layers.Dense if isinstance(rule, ib.Joint) else "**/kernel"
    model = model_of(keras.optimizers.SGD(3.0), {selector: rule})
    fit(model, digits, epochs=2)
    ib.check(model)
    model.set_weights([1.01 * value for value in model.get_weights()])
    assert not ib.audit(model).ok, "not at the bound"


# An average in the weights' place.


def test_a_set_that_is_projected_now_and_then_is_so_where_averages_overwrite(digits):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    model = model_of(optimizer, {"**/kernel": ib.Sparse(2)}, every=4)
    counts = []

    class Counting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = keras.ops.convert_to_numpy(self.model.layers[0].kernel)
            counts.append(int(np.count_nonzero(kernel, axis=0).max()))

    fit(model, digits, [Counting()], steps=8)
    assert [count <= 2 for count in counts] == [False, False, False, True] * 2


# Two plans.


@pytest.mark.by_turns
def test_a_weight_in_the_plan_of_another_model_is_an_error_that_touches_nothing(digits):
    inner = keras.Sequential([keras.Input((64,)), keras.layers.Dense(12, name="deep")], name="inner")
    outer = keras.Sequential([keras.Input((64,)), inner, keras.layers.Dense(10, activation="softmax", name="out")])
    ib.constrain(inner, {"deep/kernel": ib.MaxNorm(0.1)})
    before = values_of(outer)
    with pytest.raises(ib.RuleError, match=r"deep/kernel.*Instead: .*, where other is.*'inner'") as caught:
        ib.constrain(outer, KERNELS)
    assert same_bits(values_of(outer), before)
    outer.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    outer.fit(digits[0][:32], digits[1][:32], verbose=0)
    assert on_bound(norms((inner.layers[0].kernel, (0,))), 0.1)
    run(str(caught.value).split("Instead: ")[1], other=inner)
    ib.constrain(outer, KERNELS)
    assert inside(norms((outer.get_layer("out").kernel, (0,))), BOUND)
    with pytest.raises(ib.RuleError, match="in the plan of another model"):
        ib.constrain(inner, KERNELS)


@pytest.mark.by_turns
def test_a_copy_of_a_model_takes_a_plan_of_its_own():
    model = model_of(keras.optimizers.SGD(1.0))
    copy = keras.models.clone_model(model)
    assert len(ib.constrain(copy, {"hidden/kernel": ib.MaxNorm(0.1)})) == 2  # and out's, which came with the layer
    assert not inside(lengths(model), 0.1)


@pytest.mark.by_turns
def test_layers_of_a_model_that_is_gone_are_free_for_another_plan():
    layers = [keras.layers.Dense(12, name="deep")]
    gone = keras.Sequential([keras.Input((64,)), *layers])
    ib.constrain(gone, KERNELS)
    del gone
    gc.collect()
    again = keras.Sequential([keras.Input((64,)), *layers])
    ib.constrain(again, {"deep/kernel": ib.MaxNorm(0.1)})
    assert on_bound(norms((layers[0].kernel, (0,))), 0.1)
