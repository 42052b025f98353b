"""Monitor: the audit on a schedule, as a Keras callback, and the weights that training doesn't move."""

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
from inbounds._report.audit import audit, nothing_constrained
from inbounds._report.report import Report
from inbounds._sets.arguments import interval
from inbounds._train.bound import current_constraint, entries_of
from inbounds._train.optimizers import WRAPPERS, optimizers_of, stepping
from inbounds._train.warm_starts import lengths_of, measure_gradients
from inbounds._types import Every


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Puts `violation` and `active` of the model into the logs of training, and says which weights stand still.

    So the progress bar, History, CSV and trackers show them.
    `violation` is the largest over the model, in the units of the weights; `active` is the share of units on their
    boundary. List the Monitor before callbacks that should see them.

    A weight stands still under a set that can swallow steps (a step below half a grid step leads back to where it
    began) where the rate is too small: after an epoch whose steps have not moved one, there is a warning, once in each
    fit. Frozen weights, epochs without a step and a learning rate of 0 are no reason for it.

    Args:
        every: "epoch", or a number of training batches after which the model is audited too.
        stop_on_violation: ends the training when a set is violated or unenforced.
        stationarity: puts `stationarity` into the logs too: the length of what the sets leave of the last gradient over
            that of all of it, over all weights that are trained. It is 0 at the constrained optimum, where the gradient
            points straight out of the sets; of a batch it is an estimate. The steps of the
            model measure it from then on, for which its optimizers keep one variable more, that isn't saved.

    Attributes:
        report: the last audit; None before the first.
        unmoved: the paths of the weights that the steps of the last epoch have not moved.

    Raises:
        SetError: `every` is something else.
        ConstraintViolation: when training begins, nothing is constrained.
        RuleError: when training begins, `stationarity` is asked for on several devices.

    Warns:
        WeightNotMovedWarning: the steps of an epoch have not moved a weight.

    Cost: one audit (a pass over the weights in float64) when training begins and at each epoch or each `every` batches.
    Of weights whose set can swallow steps, the values of an epoch ago are kept in the host's memory, 8 bytes an entry.

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
        self._asked = False
        self._left = float("nan")
        self._warned: set[str] = set()
        self._seen: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._warned = set()
        self._seen = {}
        self._asked = False
        if self.stationarity:
            _measure(self.model)
        if self._is_built():  # TensorFlow builds a subclassed model with its first batch
            self._ask()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Before the first, the weights have been put inside."""
        if not self._seen and self._is_built():
            self._seen = {id(weight.variable): now for _, weight, now in self._swallowed()}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._asked:
            self._ask()
        self._batches += 1
        if isinstance(self.every, int):
            if self._batches % self.every == 0:
                self._look()
            self._tell(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._look()
        self._tell(logs)
        self._compare(epoch)

    def _is_built(self) -> bool:
        return all(layer.built for layer in layers_of(self.model))

    def _ask(self) -> None:
        """That something is constrained."""
        self._asked = True
        report = audit(self.model)
        if not report.constrained:
            raise nothing_constrained(self.model, report)

    def _look(self) -> None:
        self.report = audit(self.model)
        self._left = _stationarity(self.model) if self.stationarity else self._left
        if self.stop_on_violation and any(row.status in ("violated", "unenforced") for row in self.report.rows):
            self.model.stop_training = True

    def _tell(self, logs: dict[str, Any] | None) -> None:
        if self.report is not None and logs is not None:
            logs["violation"] = self.report.violation
            logs["active"] = self.report.active
            if self.stationarity:
                logs["stationarity"] = self._left

    def _compare(self, epoch: int) -> None:
        """Warns of the weights that have the same values as an epoch ago, though steps were taken."""
        found = self._swallowed()
        unmoved = []
        for entry, weight, (steps, value) in found:
            before, was = self._seen.get(id(weight.variable), (steps, value))
            if steps > before and _rate(self.model, weight) != 0 and _same(entry, was, value):
                unmoved.append(weight.path)
                if weight.path not in self._warned:
                    self._warned.add(weight.path)
                    _warn(entry, weight, f"epoch {epoch + 1}, {quantity(steps - before, 'step')}")
        self.unmoved = tuple(unmoved)
        self._seen = {id(weight.variable): now for _, weight, now in found}

    def _swallowed(self) -> list[tuple[Entry, Weight, tuple[int, np.ndarray[Any, Any]]]]:
        """The trained weights whose sets can swallow steps, each with its steps so far and its values."""
        entries = resolve(self.model, None, current_constraint, strict=False).entries
        return [
            (entry, weight, (_steps(self.model, weight), to_numpy(weight.variable)))
            for entry in entries
            if entry.set.swallows
            for weight in entry.weights
            if weight.variable.trainable and not weight.quantized
        ]


def _measure(model: Any) -> None:
    """Has the steps of a model measure their gradients, and be compiled anew where they didn't."""
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if keras.distribution.distribution() is not None or replicas > 1:
        raise RuleError(
            explain(
                "The stationarity is not measured on several devices",
                "stationarity=True",
                where=f"{type(model).__name__} {model.name!r}",
                instead="inbounds.Monitor()",
            )
        )
    new = [one for one in optimizers_of(model) if not isinstance(one, WRAPPERS) and lengths_of(one) is None]
    for optimizer in new:
        measure_gradients(optimizer, entries_of(optimizer._trainable_variables) if optimizer.built else ())
    if new and model.train_function is not None:
        model.make_train_function(force=True)


def _stationarity(model: Any) -> float:
    """What the sets leave of the last gradient, as a share of its length; NaN before the first step."""
    kept = [lengths_of(one) for one in optimizers_of(model) if not isinstance(one, WRAPPERS)]
    left, whole = np.sum([np.full(2, np.nan) if one is None else to_numpy(one) for one in kept], axis=0)
    return float(np.sqrt(left / whole)) if whole > 0 else float("nan")


def _same(entry: Entry, was: np.ndarray[Any, Any], value: np.ndarray[Any, Any]) -> bool:
    """Whether no entry has moved by more than what counts as inside the set, which steps leave as it is."""
    moved = np.abs(value - was).max(initial=0.0)
    return bool(moved <= entry.applied.measure(entry.variables, entry.axes).slack.max(initial=0.0))


def _steps(model: Any, weight: Weight) -> int:
    """How many steps the optimizers of a weight have taken."""
    return sum(int(optimizer.iterations) for optimizer in stepping(model, [weight.variable]) if optimizer.built)


def _rate(model: Any, weight: Weight) -> float:
    """The largest learning rate that the optimizers of a weight have now."""
    rates = (optimizer.learning_rate for optimizer in stepping(model, [weight.variable]))
    return max((float(keras.ops.convert_to_numpy(rate)) for rate in rates), default=0.0)


def _warn(entry: Entry, weight: Weight, when: str) -> None:
    warnings.warn(
        explain(
            f"No step has moved {weight.path}: {entry.set.swallows}; or its gradient is 0",
            repr(entry.set),
            where=when,
            instead="a larger learning rate, or a set that follows smaller steps: of a grid, a finer one",
        ),
        WeightNotMovedWarning,
        stacklevel=2,
    )
