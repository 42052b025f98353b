"""Monitor: the audit in the logs of training."""

import csv

import keras
import numpy as np
import pytest

import inbounds as ib


class Logs(keras.callbacks.Callback):
    """Keeps what callbacks after the Monitor are told."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


class Push(keras.callbacks.Callback):
    """Puts one kernel column outside by a known distance at the end of an epoch."""

    def __init__(self, epoch, size):
        super().__init__()
        self.epoch, self.size = epoch, size

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            value = np.zeros((64, 10), "float32")
            value[0, 0] = self.size
            self.model.layers[0].kernel.assign(value)


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


def test_the_progress_bar_shows_them(digits, capsys):
    fit(digits, ib.Monitor(), epochs=1, verbose=2)
    shown = capsys.readouterr().out
    assert "violation: " in shown
    assert "active: " in shown


def test_a_csv_logger_listed_after_it_writes_them(digits, tmp_path):
    history = fit(digits, ib.Monitor(), keras.callbacks.CSVLogger(tmp_path / "log.csv"))
    with open(tmp_path / "log.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["violation"]) for line in lines] == history.history["violation"]
    assert [float(line["active"]) for line in lines] == history.history["active"]


def test_by_epoch_batches_are_not_audited(digits):
    logs = Logs()
    fit(digits, ib.Monitor(), logs)
    assert not any("violation" in told for told in logs.batches)
    assert all("violation" in told for told in logs.epochs)


def test_every_n_batches_are_audited_counted_over_epochs(digits, monkeypatch):
    seen = []
    look = ib.Monitor._look

    def counted(self):
        seen.append(self._batches)
        look(self)

    monkeypatch.setattr(ib.Monitor, "_look", counted)
    logs = Logs()
    fit(digits, ib.Monitor(every=2), logs)
    assert seen == [2, 3, 4, 6, 6], "batches 2, 4 and 6, and the ends of both epochs"
    assert ["violation" in told for told in logs.batches] == [False, True, True, True, True, True]


def test_a_violation_is_logged_with_its_size(digits):
    history = fit(digits, Push(1, 2.0), ib.Monitor())
    assert history.history["violation"][0] < 1e-6
    assert history.history["violation"][1] == 1.5


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, 4)])
def test_training_stops_on_a_violation_where_asked(stop, epochs, digits):
    history = fit(digits, Push(1, 2.0), ib.Monitor(stop_on_violation=stop), epochs=4)
    assert len(history.epoch) == epochs


def test_training_goes_on_while_all_holds(digits):
    assert len(fit(digits, ib.Monitor(every=1, stop_on_violation=True), epochs=3).epoch) == 3


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
