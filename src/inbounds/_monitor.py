"""Monitor: the audit on a schedule, as a Keras callback."""

from __future__ import annotations

from typing import Any

import keras

from inbounds._arguments import interval
from inbounds._audit import audit
from inbounds._report import Report


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Puts `violation` and `active` of the model into the logs of training.

    So the progress bar, History, CSV and trackers show them.
    `violation` is the largest over the model, in the units of the weights; `active` is the share of units on their
    boundary. List the Monitor before callbacks that should see them.

    Args:
        every: "epoch", or a number of training batches after which the model is audited too.
        stop_on_violation: ends the training when a set is violated or unenforced.

    Attributes:
        report: the last audit; None before the first.

    Raises:
        SetError: `every` is something else.

    Cost: one audit (a pass over the weights in float64) at each epoch or each `every` batches.

    Example:
        >>> history = model.fit(x, y, verbose=0, callbacks=[Monitor()])
        >>> sorted(history.history)
        ['active', 'loss', 'violation']
    """

    def __init__(self, every: str | int = "epoch", stop_on_violation: bool = False) -> None:
        super().__init__()
        self.every = interval("Monitor", every, "batches", "Monitor(every=100)")
        self.stop_on_violation = stop_on_violation
        self.report: Report | None = None
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches += 1
        if isinstance(self.every, int):
            if self._batches % self.every == 0:
                self._look()
            self._tell(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._look()
        self._tell(logs)

    def _look(self) -> None:
        self.report = audit(self.model)
        if self.stop_on_violation and not self.report.ok:
            self.model.stop_training = True

    def _tell(self, logs: dict[str, Any] | None) -> None:
        if self.report is not None and logs is not None:
            logs["violation"] = self.report.violation
            logs["active"] = self.report.active
