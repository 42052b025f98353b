"""`Monitor`: a Keras callback that audits on a schedule and finds weights that don't move."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import to_numpy
from inbounds._errors import RuleError, WeightNotMovedWarning, explain
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve
from inbounds._model.table import quantity
from inbounds._model.weights import Weight, layers_of
from inbounds._report.audit import audit, nothing_constrained_error
from inbounds._report.report import Report
from inbounds._sets.arguments import interval
from inbounds._train.attached_sets import current_constraint
from inbounds._train.optimizers import optimizers_stepping, steppers_of
from inbounds._train.taken_plans import gradient_norms_of, measure_gradients
from inbounds._types import Every


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Adds `violation` and `active` to the logs of training, and warns of weights that don't move.

    The progress bar, History, CSV files and trackers then show them. `violation` is the largest
    over the model, in the units of the weights; `active` is the share of units on their boundary.
    List the Monitor before callbacks that should see them.

    Some sets swallow steps, unless latent weights keep them (see `constrain`): on a grid, a step
    below half a grid step is projected back to where it began. If the steps of an epoch have not
    moved a weight under such a set, there is a warning, once per weight in each fit. Frozen
    weights, epochs without a step and a learning rate of 0 cause none.

    Args:
        every: "epoch", or a number of training batches after which the model is audited too.
        stop_on_violation: ends the training when a set is violated or unenforced.
        stationarity: adds `stationarity` to the logs: the norm of the last reduced gradient over
            that of the full one, over all trained weights. It is 0 at the constrained optimum,
            where the gradient points straight out of the sets; from a batch it is an estimate. The
            training steps measure it from then on, with one more variable in each optimizer, which
            isn't saved.

    Attributes:
        report: the last audit; None before the first.
        unmoved: the paths of the weights that the steps of the last epoch have not moved.

    Raises:
        SetError: `every` is neither a positive number nor "epoch".
        ConstraintViolation: when training begins, nothing is constrained.
        RuleError: when training begins, `stationarity` is asked for on several devices.

    Warns:
        WeightNotMovedWarning: the steps of an epoch have not moved a weight.

    Cost: one audit (a pass over the weights in float64) when training begins and after each epoch
    or each `every` batches. Weights whose set can swallow steps are copied to the host's memory
    once an epoch, 8 bytes an entry.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> history = model.fit(x, y, verbose=0, callbacks=[Monitor()])
        >>> sorted(history.history)
        ['active', 'loss', 'violation']
    """

    def __init__(self, every: Every = "epoch", stop_on_violation: bool = False, stationarity: bool = False) -> None:
        super().__init__()
        self.every = interval("Monitor", every, "batches", "Monitor(every=100)")
        self.stop_on_violation = stop_on_violation
        self.stationarity = stationarity
        self.report: Report | None = None
        self.unmoved: tuple[str, ...] = ()
        self._batches = 0
        self._checked = False
        self._last_stationarity = float("nan")
        self._warned: set[str] = set()
        self._previous: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._warned = set()
        self._previous = {}
        self._checked = False
        if self.stationarity:
            _measure_gradients(self.model)
        if self._is_built():  # TensorFlow builds a subclassed model in its first batch
            self._check_constrained()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the values before the first epoch, which the begin of the fit has projected."""
        if not self._previous and self._is_built():
            self._previous = {id(weight.variable): now for _, weight, now in self._values_that_may_stall()}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._checked:
            self._check_constrained()
        self._batches += 1
        if isinstance(self.every, int):
            if self._batches % self.every == 0:
                self._audit()
            self._log(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._audit()
        self._log(logs)
        self._find_unmoved(epoch)

    def _is_built(self) -> bool:
        return all(layer.built for layer in layers_of(self.model))

    def _check_constrained(self) -> None:
        """Raises an error if nothing is constrained."""
        self._checked = True
        report = audit(self.model)
        if not report.constrained:
            raise nothing_constrained_error(self.model, report)

    def _audit(self) -> None:
        self.report = audit(self.model)
        self._last_stationarity = _stationarity(self.model) if self.stationarity else self._last_stationarity
        if self.stop_on_violation and any(row.status in ("violated", "unenforced") for row in self.report.rows):
            self.model.stop_training = True

    def _log(self, logs: dict[str, Any] | None) -> None:
        if self.report is not None and logs is not None:
            logs["violation"] = self.report.violation
            logs["active"] = self.report.active
            if self.stationarity:
                logs["stationarity"] = self._last_stationarity

    def _find_unmoved(self, epoch: int) -> None:
        """Warns of weights that the steps of the epoch have not moved."""
        current = self._values_that_may_stall()
        unmoved = []
        for entry, weight, (steps, new) in current:
            old_steps, old = self._previous.get(id(weight.variable), (steps, new))
            if steps > old_steps and _learning_rate(self.model, weight) != 0 and _is_unmoved(entry, old, new):
                unmoved.append(weight.path)
                if weight.path not in self._warned:
                    self._warned.add(weight.path)
                    _warn_unmoved(entry, weight, f"epoch {epoch + 1}, {quantity(steps - old_steps, 'step')}")
        self.unmoved = tuple(unmoved)
        self._previous = {id(weight.variable): now for _, weight, now in current}

    def _values_that_may_stall(self) -> list[tuple[Entry, Weight, tuple[int, np.ndarray[Any, Any]]]]:
        """The trained weights whose sets can swallow steps, each with its step count and values."""
        entries = resolve(self.model, None, current_constraint, strict=False).entries
        return [
            (entry, weight, (_step_count(self.model, weight), to_numpy(weight.variable)))
            for entry in entries
            if entry.lost_steps
            for weight in entry.weights
            if weight.variable.trainable and not weight.quantized
        ]


def _measure_gradients(model: Any) -> None:
    """Makes the steps of a model measure their gradients, and has them compiled again if needed."""
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if keras.distribution.distribution() is not None or replicas > 1:
        raise RuleError(
            "The stationarity is not measured on several devices",
            "stationarity=True",
            where=f"{type(model).__name__} {model.name!r}",
            instead="inbounds.Monitor()",
        )
    not_measuring = [optimizer for optimizer in steppers_of(model) if gradient_norms_of(optimizer) is None]
    for optimizer in not_measuring:
        measure_gradients(optimizer)
    if not_measuring and model.train_function is not None:
        model.make_train_function(force=True)


def _stationarity(model: Any) -> float:
    """The norm of the last reduced gradient over that of the full one; NaN before a step."""
    squares = [gradient_norms_of(optimizer) for optimizer in steppers_of(model)]
    reduced, full = np.sum([np.full(2, np.nan) if pair is None else to_numpy(pair) for pair in squares], axis=0)
    return float(np.sqrt(reduced / full)) if full > 0 else float("nan")


def _is_unmoved(entry: Entry, old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> bool:
    """Whether no entry has moved by more than the set's tolerance, within which steps leave it."""
    moved = np.abs(new - old).max(initial=0.0)
    return bool(moved <= entry.applied.measure(entry.variables, entry.axes).slack.max(initial=0.0))


def _step_count(model: Any, weight: Weight) -> int:
    """The number of steps that the optimizers of a weight have taken."""
    return sum(
        int(optimizer.iterations) for optimizer in optimizers_stepping(model, [weight.variable]) if optimizer.built
    )


def _learning_rate(model: Any, weight: Weight) -> float:
    """The largest current learning rate of a weight's optimizers."""
    rates = (optimizer.learning_rate for optimizer in optimizers_stepping(model, [weight.variable]))
    return max((float(keras.ops.convert_to_numpy(rate)) for rate in rates), default=0.0)


def _warn_unmoved(entry: Entry, weight: Weight, when: str) -> None:
    warnings.warn(
        explain(
            f"No step has moved {weight.path}: {entry.lost_steps}; or its gradient is 0",
            repr(entry.set),
            where=when,
            instead="constrain(model, rules, latent=True), a larger learning rate, or a set that follows smaller "
            "steps: of a grid, a finer one",
        ),
        WeightNotMovedWarning,
        stacklevel=2,
    )
