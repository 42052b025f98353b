"""Monitor: the audit in the logs of training."""

import contextlib
import csv
import warnings

import keras
import numpy as np
import pytest

import inbounds as ib

pytestmark = pytest.mark.by_turns


class Logs(keras.callbacks.Callback):
    """Keeps what callbacks are told."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


class Push(keras.callbacks.Callback):
    """Puts one kernel column outside by a known distance after the third batch of an epoch."""

    def __init__(self, epoch, size):
        super().__init__()
        self.epoch, self.size, self.now = epoch, size, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, 2):
            value = np.zeros((64, 10), "float32")
            value[0, 0] = self.size
            self.model.layers[0].kernel.assign(value)


class Spoil(keras.callbacks.Callback):
    """Puts a NaN into the kernel before the second batch of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (1, 1):
            kernel = self.model.layers[0].kernel
            kernel.assign(kernel * np.where(np.arange(10) == 3, np.nan, 1.0).astype("float32"))


def fit(digits, *callbacks, epochs=2, steps=3, verbose=0):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax", name="out")])
    ib.constrain(model, {"out/kernel": ib.MaxNorm(0.5)})
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    n = 32 * steps
    return model.fit(
        digits[0][:n], digits[1][:n], epochs=epochs, batch_size=32, verbose=verbose, callbacks=list(callbacks)
    )


def test_history_has_violation_and_active_of_every_epoch_as_the_audit_says(digits):
    monitor = ib.Monitor()
    history = fit(digits, monitor)
    assert len(history.history["violation"]) == len(history.history["active"]) == 2
    report = ib.audit(history.model)
    assert history.history["violation"][-1] == report.violation == monitor.report.violation
    assert history.history["active"][-1] == report.active > 0


@pytest.mark.parametrize("owner", [ib.MaxNorm(0.5), ib.NonNeg(), ib.Simplex()], ids=lambda owner: type(owner).__name__)
def test_the_stationarity_falls_to_0_where_the_sets_leave_nothing_of_the_gradient(owner):
    x, y = np.eye(4, dtype="float32"), np.array([[1.0, -1.0], [2.0, 0.5], [-1.0, 2.0], [0.3, 1.0]], "float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    ib.constrain(model, {"**/kernel": owner})
    model.compile(keras.optimizers.SGD(0.8), "mse")
    model.fit(x, y, epochs=2, verbose=0)  # without it at first
    history = model.fit(x, y, epochs=150, verbose=0, callbacks=[ib.Monitor(stationarity=True)]).history
    assert 0.05 < history["stationarity"][0] < 1
    assert history["stationarity"][-1] < 1e-2
    (found,) = [row.values for row in ib.pressure(model, x, y)]
    assert np.abs(found).max() > 0.1, "the gradient itself is not 0"


def test_the_stationarity_is_of_all_optimizers_and_of_batches_that_are_looked_at():
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")])
    by_map = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01))
    by_map[".*b/kernel"] = keras.optimizers.SGD(0.01)
    model.compile(keras.optimizers.MultiOptimizer(by_map), "mse")
    ib.constrain(model, {"a/kernel": ib.MaxNorm(0.1)})
    logs = Logs()
    x, y = np.random.default_rng(0).random((2, 32, 4))
    model.fit(x, y[:, :2], batch_size=8, epochs=1, verbose=0, callbacks=[ib.Monitor(2, stationarity=True), logs])
    found = [batch.get("stationarity") for batch in logs.batches]
    assert found[0] is None
    assert all(0 < one <= 1 for one in found[1:]), found


def test_the_progress_bar_shows_them(digits, capsys):
    fit(digits, ib.Monitor(), epochs=1, verbose=2)
    shown = capsys.readouterr().out
    assert "violation: " in shown
    assert "active: " in shown


def test_a_csv_logger_writes_them_though_it_is_listed_first(digits, tmp_path):
    history = fit(digits, keras.callbacks.CSVLogger(tmp_path / "log.csv"), ib.Monitor())
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["violation"]) for line in lines] == history.history["violation"]
    assert [float(line["active"]) for line in lines] == history.history["active"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras' TensorBoard writes by TensorFlow")
def test_the_reader_of_tensorboard_finds_them_and_histograms_of_weights_inside(digits, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util.tensor_util import make_ndarray

    history = fit(digits, keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, write_graph=False), ib.Monitor())
    events = reader.EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    for name in ("violation", "active"):
        read = [make_ndarray(event.tensor_proto) for event in events.Tensors(f"epoch_{name}")]
        np.testing.assert_allclose(read, history.history[name], rtol=1e-6)
    for event in events.Tensors("sequential/out/kernel/histogram"):
        left, right, count = make_ndarray(event.tensor_proto).T
        assert count.sum() == 640
        assert -0.5 <= left.min() < right.max() <= 0.5  # the bound of each norm


def test_by_epoch_batches_are_not_audited(digits):
    logs = Logs()
    fit(digits, ib.Monitor(), logs)
    assert not any("violation" in told for told in logs.batches)
    assert all("violation" in told for told in logs.epochs)


def test_every_n_batches_are_audited_counted_over_epochs(digits, monkeypatch):
    seen = []
    look = ib.Monitor._audit

    def counted(self):
        seen.append(self._batches)
        look(self)

    monkeypatch.setattr(ib.Monitor, "_audit", counted)
    logs = Logs()
    fit(digits, logs, ib.Monitor(every=2))
    assert seen == [2, 3, 4, 6, 6], "batches 2, 4 and 6, and the ends of both epochs"
    assert ["violation" in told for told in logs.batches] == [False, True, True, True, True, True]


def test_a_violation_is_logged_with_its_size(digits):
    history = fit(digits, Push(1, 2.0), ib.Monitor())
    assert history.history["violation"] == [0.0, 1.5], "what is rounding is 0"


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, 4)])
def test_training_stops_on_a_violation_where_asked(stop, epochs, digits):
    history = fit(digits, Push(1, 2.0), ib.Monitor(stop_on_violation=stop), epochs=4)
    assert len(history.epoch) == epochs


def test_training_goes_on_while_all_holds(digits):
    assert len(fit(digits, ib.Monitor(every=1, stop_on_violation=True), epochs=3).epoch) == 3


def test_per_weight_it_keeps_numbers_of_each_set_and_draws_them(digits):
    monitor = ib.Monitor(every=2, per_weight=True)
    with pytest.raises(ib.InboundsError, match=r"^There is nothing to draw: .* Instead: model\.fit"):
        monitor.plot()
    model = fit(digits, Push(1, 2.0), monitor).model
    (kernel,) = monitor.weights.values()
    assert monitor.history | {"moved": kernel["moved"]} == kernel
    assert kernel["batch"] == [2, 3, 4, 6, 6], "an epoch's end is audited too"
    assert kernel["violation"] == [0.0] * 4 + [1.5]
    assert kernel["active"][-1] == ib.audit(model).active
    assert list(monitor.weights) == [model.layers[0].kernel.path]
    for axes, name in zip(monitor.plot().axes, ("violation", "active", "moved"), strict=True):
        assert axes.lines[0].get_xydata().tolist() == np.transpose([kernel["batch"], kernel[name]]).tolist()


@pytest.mark.by_turns
def test_it_counts_the_batches_of_which_keras_runs_several_at_once(digits):
    """PyTorch refuses `steps_per_execution`, so Keras' calls are made by hand."""
    monitor = ib.Monitor(every=10)
    monitor.set_model(fit(digits, steps=1).model)
    for last in (3, 7, 11, 15, 3, 7):
        monitor.on_train_batch_end(last)
    assert monitor.history["batch"] == [12, 20]


@pytest.mark.by_turns
def test_per_weight_it_keeps_apart_sets_on_weights_of_one_path():
    def block():
        inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="h")], name="inner")
        return keras.Sequential([keras.Input((2,)), inner])

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Add()([block()(inputs), block()(inputs)]))
    model.compile("sgd", "mse")
    ib.constrain(model, {"**/kernel": ib.MaxNorm(0.4)})
    monitor = ib.Monitor(per_weight=True)
    model.fit(np.ones((4, 2)), np.ones((4, 2)), verbose=0, callbacks=[monitor])
    assert list(monitor.weights) == ["inner/h/kernel", "inner/h/kernel (2)"]
    assert all(len(kept["moved"]) == 1 for kept in monitor.weights.values())


def test_per_weight_it_keeps_how_far_the_projection_of_a_step_moves_the_weights(digits):
    """So far the weights are from those of a free model, after a step from the same ones."""
    monitor, kernels = ib.Monitor(per_weight=True), []
    for rules in ({}, {"out/kernel": ib.MaxNorm(0.4)}):
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax", name="out")])
        model.layers[0].kernel.assign(np.full((64, 10), 0.05, "float32"))
        model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
        if rules:
            ib.constrain(model, rules, gradient="full", metric="euclidean")
        model.fit(*digits, batch_size=256, verbose=0, callbacks=[monitor] if rules else [])
        kernels.append(keras.ops.convert_to_numpy(model.layers[0].kernel))
    (kept,) = monitor.weights.values()
    assert kept["moved"][-1] == pytest.approx(np.linalg.norm(kernels[1] - kernels[0]), rel=1e-5)
    assert kept["moved"][-1] > 0.01


@pytest.mark.parametrize("per_weight", [False, True])
def test_weights_that_are_not_finite_are_reported_with_the_batch_in_which_they_were_found(per_weight, digits):
    monitor = ib.Monitor(per_weight=per_weight)
    paths = {f"sequential/out/{name}": 5 if per_weight else 6 for name in ("kernel", "bias")}
    with pytest.warns(ib.NotFiniteWarning) as caught:
        fit(digits, Spoil(), monitor)
    assert monitor.not_finite == paths
    assert monitor.history["violation"] == [0.0, np.inf]
    (text,) = (str(one.message) for one in caught if one.category is ib.NotFiniteWarning)
    assert text.startswith("Weights are not finite: sequential/out/kernel, sequential/out/bias. Received: ")
    found, finite = (5, 4) if per_weight else (6, 3)
    assert f"epoch 2, after batch {found} of this Monitor; all were finite after batch {finite}." in text
    monitor.plot()


def test_monitoring_changes_no_step(digits):
    keras.utils.set_random_seed(7)
    alone = fit(digits).model
    keras.utils.set_random_seed(7)
    watched = fit(digits, ib.Monitor(every=1)).model
    for a, b in zip(alone.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "batch", None, []])
def test_a_bad_schedule_is_an_error_that_says_what_to_type(every):
    with pytest.raises(ib.SetError) as caught:
        ib.Monitor(every=every)
    assert f"Received: every={every!r}." in str(caught.value)
    assert "Instead: Monitor(every=100)." in str(caught.value)


def test_training_in_which_nothing_is_constrained_does_not_begin(digits):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="out")])
    model.compile("sgd", "mse")
    with pytest.raises(ib.ConstraintViolation, match=r"^Nothing is constrained"):
        model.fit(digits[0][:32], np.zeros((32, 10)), verbose=0, callbacks=[ib.Monitor()])
    assert int(model.optimizer.iterations) == 0


def test_a_subclassed_model_may_be_built_by_its_first_batch(digits):
    class Net(keras.Model):
        def __init__(self, constraint):
            super().__init__()
            self.out = keras.layers.Dense(10, kernel_constraint=constraint)

        def call(self, x):
            return self.out(x)

    for constraint in (ib.MaxNorm(1.0), None):
        model, monitor = Net(constraint), ib.Monitor(every=1)
        model.compile("sgd", "mse")
        error = pytest.raises(ib.ConstraintViolation) if constraint is None else contextlib.nullcontext()
        with error:
            model.fit(digits[0][:32], np.zeros((32, 10)), verbose=0, callbacks=[monitor])
        assert (monitor.report is None) is (constraint is None)


def test_a_violation_stops_the_training_where_asked_and_an_axis_of_keras_does_not(digits):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, kernel_constraint=keras.constraints.MaxNorm(0.5))]
    )
    model.compile("sgd", "mse")
    monitor = ib.Monitor(stop_on_violation=True)
    x = digits[0][:32].reshape(-1, 8, 8, 1)
    history = model.fit(x, np.full((32, 6, 6, 2), 9.0), epochs=2, verbose=0, callbacks=[monitor])
    assert len(history.epoch) == 2
    assert [row.status for row in monitor.report.rows] == ["misaligned", "free"]


def on_a_grid(digits, rate, epochs=2, freeze=(), rules=None, latent=False, **arguments):
    """A fit of two layers on a grid, and the paths that the Monitor warned of."""
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(10, name="out")], name="net"
    )
    for name in freeze:
        model.get_layer(name).trainable = False
    ib.constrain(model, rules or {"**/kernel": ib.Grid(0.25), "out/bias": ib.MaxNorm(1.0)}, latent=latent)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, **arguments), loss)
    monitor = ib.Monitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(digits[0][:64], digits[1][:64], epochs=epochs, batch_size=32, verbose=0, callbacks=[monitor])
    said = [str(warning.message) for warning in caught if warning.category is ib.WeightNotMovedWarning]
    return said, monitor.unmoved


def test_a_weight_that_no_step_moves_is_reported_once_with_its_set_and_what_to_do(digits):
    said, unmoved = on_a_grid(digits, 1e-4)
    assert unmoved == ("net/hidden/kernel", "net/out/kernel")
    assert len(said) == 2
    assert said[0].startswith("No step has moved net/hidden/kernel: a step of less than half a grid step is lost")
    for part in (
        "Received: Grid(step=0.25).",
        "Where: epoch 1, 2 steps.",
        "latent=True",
        "a larger learning rate",
        "a finer",
    ):
        assert part in said[0]


@pytest.mark.parametrize(
    ("case", "arguments", "expected"),
    [
        ("steps that are large enough", {"rate": 50.0}, ()),
        ("a frozen layer", {"rate": 1e-4, "freeze": ["hidden"]}, ("net/out/kernel",)),
        ("latent weights, which the steps move", {"rate": 1e-4, "latent": True}, ()),
        ("a rate of 0", {"rate": 0.0}, ()),
        ("no real step yet", {"rate": 1e-4, "gradient_accumulation_steps": 8}, ()),
        ("sets that follow every step", {"rate": 1e-4, "rules": {"**/kernel": ib.MaxNorm(1.0)}}, ()),
        (
            "part of an intersection",
            {"rate": 1e-4, "rules": {"out/kernel": ib.Grid(0.25) & ib.Box(-1, 1)}},
            ("net/out/kernel",),
        ),
    ],
)
def test_only_what_steps_should_have_moved_is_reported(case, arguments, expected, digits):
    said, unmoved = on_a_grid(digits, epochs=1, **arguments)
    assert unmoved == expected, case
    assert len(said) == len(expected)
