"""`Monitor`: a callback that audits on a schedule and finds weights that stall or aren't finite."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, dtype_of, to_numpy
from inbounds._errors import InboundsError, NotFiniteWarning, RuleError, WeightNotMovedWarning, explain
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve
from inbounds._model.table import quantity
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._report.audit import audit, nothing_constrained_error
from inbounds._report.plots import history_figure
from inbounds._report.report import Report
from inbounds._sets.arguments import cadence
from inbounds._train.attached_sets import current_constraint
from inbounds._train.optimizers import steppers_of
from inbounds._train.taken_plans import measure, optimizers_stepping, taken_plan
from inbounds._types import Every

Numbers = dict[str, list[float]]  # from "batch", "violation", "active" and "moved" to a number for each audit


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Adds `violation` and `active` to training logs; warns of weights that stall or aren't finite.

    The progress bar, History, CSV files and trackers then show them. `violation` is the largest
    over the model, in the units of the weights, and 0 where all of it is rounding; `active` is the
    share of units on their boundary. Wherever it is listed, the Monitor is called before the other
    callbacks, so that all of them see its numbers. What they do to the weights the next audit sees.

    Some sets swallow steps, unless latent weights keep them (see `constrain`): on a grid, a step
    below half a grid step is projected back to where it began. If the steps of an epoch have not
    moved a weight under such a set, there is a warning, once per weight in each fit. Frozen
    weights, epochs without a step and a learning rate of 0 cause none.

    If a weight has an entry that is NaN or infinite, with a set or without, there is a warning,
    once in each fit. It names the weights, the batch in which they were found, and the last one
    in which all were finite: the one before with `per_weight`, else that of the audit before.

    Args:
        every: "epoch", or a number of training batches after which the model is audited too.
        stop_on_violation: ends the training when a set is violated or unenforced.
        stationarity: adds `stationarity` to the logs: the norm of the last reduced gradient over
            that of the full one, over all trained weights. It is 0 at the constrained optimum,
            where the gradient points straight out of the sets; from a batch it is an estimate. The
            training steps measure it from then on, with one more variable in each optimizer, which
            isn't saved.
        per_weight: keeps `weights`, and looks for NaN and infinities after each batch. The steps
            measure how far projections move the weights, likewise.

    Attributes:
        report: the last audit; None before the first.
        history: three lists with a number for each audit: "batch", how many batches this
            Monitor has seen, "violation" and "active".
        weights: with `per_weight`, such lists for each set, by the paths of its weights, joined by
            " + " (a second set on the same paths has " (2)" behind them), and one more, "moved":
            how far the projection of the last step moved the weights, in the Euclidean norm. It is
            NaN before a step of an optimizer of Keras, and on several devices.
        unmoved: the paths of the weights that the steps of the last epoch have not moved.
        not_finite: from the path of each weight that was found not to be finite to the batch.

    Raises:
        SetError: `every` is neither a positive number nor "epoch".
        ConstraintViolation: when training begins, nothing is constrained.
        RuleError: when training begins, `stationarity` is asked for on several devices.

    Warns:
        WeightNotMovedWarning: the steps of an epoch have not moved a weight.
        NotFiniteWarning: a weight has an entry that is NaN or infinite.

    Cost: one audit (a pass over the weights in float64) when training begins and after each epoch
    or each `every` batches. Weights whose set can swallow steps are copied to the host's memory
    once an epoch, 8 bytes an entry. With `per_weight`, a copy of the weights and two passes in each
    step.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> history = model.fit(x, y, verbose=0, callbacks=[Monitor()])
        >>> sorted(history.history)
        ['active', 'loss', 'violation']
    """

    _called_first = True
    """Whether `fit_hooks` puts the callback before those of the user."""

    def __init__(
        self,
        every: Every = "epoch",
        stop_on_violation: bool = False,
        stationarity: bool = False,
        per_weight: bool = False,
    ) -> None:
        super().__init__()
        self.every = cadence("Monitor", every, "batches", "Monitor(every=100)")
        self.stop_on_violation = stop_on_violation
        self.stationarity = stationarity
        self.per_weight = per_weight
        self.report: Report | None = None
        self.history: Numbers = {}
        self.weights: dict[str, Numbers] = {}
        self.unmoved: tuple[str, ...] = ()
        self._batches = 0
        self._last_batch = -1
        self._epoch = 0
        self._last_stationarity = float("nan")
        self._forget()

    def _forget(self) -> None:
        """Drops what is known of one fit only."""
        self.not_finite: dict[str, int] = {}
        self._last_finite: int | None = None
        self._checked = False
        self._warned: set[str] = set()
        self._previous: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}

    def plot(self) -> Any:
        """Draws `history`, and `weights` where they are kept.

        Returns:
            A figure of matplotlib: a notebook shows it, and `figure.savefig(path)` writes it.

        Raises:
            InboundsError: nothing has been audited yet, or matplotlib isn't installed.
        """
        if self.report is None:
            wrong = "There is nothing to draw: the Monitor has seen no training"
            raise InboundsError(wrong, "Monitor.plot()", instead="model.fit(x, y, callbacks=[monitor]) first")
        return history_figure(self.history, self.weights)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._forget()
        if self.stationarity:
            if _on_several_devices(self.model):
                wrong = "The stationarity is not measured on several devices"
                where = f"{type(self.model).__name__} {self.model.name!r}"
                raise RuleError(wrong, "stationarity=True", where=where, instead="inbounds.Monitor()")
            _measure(self.model, "gradients")
        if self.per_weight and not _on_several_devices(self.model):
            _measure(self.model, "moves")
        if self._is_built():  # TensorFlow builds a subclassed model in its first batch
            self._check_constrained()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the values before the first epoch, which the begin of the fit has projected."""
        self._epoch = epoch
        if not self._is_built():
            return
        self._find_not_finite()
        if not self._previous:
            self._previous = {id(weight.variable): now for _, weight, now in self._values_that_may_stall()}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._checked:
            self._check_constrained()
        # With `steps_per_execution`, Keras calls this once for several batches, with the last one.
        before, first = self._batches, self._last_batch + 1 if batch > self._last_batch else 0
        self._batches, self._last_batch = before + batch + 1 - first, batch
        if self.per_weight:
            self._find_not_finite()
        if isinstance(self.every, int):
            if self._batches // self.every > before // self.every:
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
        self._find_not_finite()
        self._last_stationarity = _stationarity(self.model) if self.stationarity else self._last_stationarity
        _append(self.history, batch=self._batches, violation=self.report.violation, active=self.report.active)
        moves = _moves(self.model) if self.per_weight else {}
        seen: Counter[str] = Counter()
        for row in self.report.constrained if self.per_weight else ():
            name = " + ".join(row.paths)
            seen[name] += 1
            kept = self.weights.setdefault(f"{name} ({seen[name]})" if seen[name] > 1 else name, {})
            violation = row.violation if row.violated else 0.0
            moved = math.sqrt(sum(moves[path].pop(0) for path in row.paths))
            _append(kept, batch=self._batches, violation=violation, active=row.active, moved=moved)
        if self.stop_on_violation and any(row.status in ("violated", "unenforced") for row in self.report.rows):
            self.model.stop_training = True

    def _log(self, logs: dict[str, Any] | None) -> None:
        if self.report is not None and logs is not None:
            logs["violation"] = self.report.violation
            logs["active"] = self.report.active
            if self.stationarity:
                logs["stationarity"] = self._last_stationarity

    def _find_not_finite(self) -> None:
        """Warns of weights with an entry that is NaN or infinite, once in each fit."""
        if self.not_finite:
            return
        found = [one for one in weights_of(self.model) if not _is_finite(one.variable)]
        if not found:
            self._last_finite = self._batches
            return
        paths, values = [weight.path for weight in found], to_numpy(found[0].variable)
        self.not_finite = dict.fromkeys(paths, self._batches)
        before = "" if self._last_finite is None else f"; all were finite after batch {self._last_finite}"
        entries = f"{int(np.sum(~np.isfinite(values)))} of {values.size} entries that are NaN or infinite"
        text = explain(
            f"Weights are not finite: {', '.join(paths[:3])}{f' and {len(paths) - 3} more' * (len(paths) > 3)}",
            f"{entries} in the first of them",
            where=f"epoch {self._epoch + 1}, after batch {self._batches} of this Monitor{before}",
            instead="a smaller learning rate, or clipnorm=1.0 in the optimizer; check the data for NaN",
        )
        warnings.warn(text, NotFiniteWarning, stacklevel=2)

    def _find_unmoved(self, epoch: int) -> None:
        """Warns of weights that the steps of the epoch have not moved."""
        current = self._values_that_may_stall()
        unmoved = []
        for entry, weight, (steps, new) in current:
            old_steps, old = self._previous.get(id(weight.variable), (steps, new))
            optimizers = optimizers_stepping(self.model, [weight.variable])
            rate = max((float(keras.ops.convert_to_numpy(one.learning_rate)) for one in optimizers), default=0.0)
            if steps == old_steps or rate == 0:
                continue
            slack = entry.applied.measure(entry.variables, entry.axes).slack  # within which steps leave it
            if np.abs(new - old).max(initial=0.0) > slack.max(initial=0.0):
                continue
            unmoved.append(weight.path)
            if weight.path not in self._warned:
                self._warned.add(weight.path)
                wrong = f"No step has moved {weight.path}: {entry.lost_steps}; or its gradient is 0"
                where = f"epoch {epoch + 1}, {quantity(steps - old_steps, 'step')}"
                finer = "a set that follows smaller steps: of a grid, a finer one"
                instead = f"constrain(model, rules, latent=True), a larger learning rate, or {finer}"
                text = explain(wrong, repr(entry.set), where=where, instead=instead)
                warnings.warn(text, WeightNotMovedWarning, stacklevel=2)
        self.unmoved = tuple(unmoved)
        self._previous = {id(weight.variable): now for _, weight, now in current}

    def _values_that_may_stall(self) -> list[tuple[Entry, Weight, tuple[int, np.ndarray[Any, Any]]]]:
        """The trained weights whose sets can swallow steps, each with its step count and values."""
        entries = resolve(self.model, None, current_constraint, strict=False).entries
        pairs = [(entry, weight) for entry in entries if entry.lost_steps for weight in entry.weights]
        trained = [(entry, weight) for entry, weight in pairs if weight.variable.trainable and not weight.quantized]

        def steps(weight: Weight) -> int:
            optimizers = optimizers_stepping(self.model, [weight.variable])
            return sum(int(one.iterations) for one in optimizers if one.built)

        return [(entry, weight, (steps(weight), to_numpy(weight.variable))) for entry, weight in trained]


def _append(kept: Numbers, **numbers: float) -> None:
    for name, number in numbers.items():
        kept.setdefault(name, []).append(number)


def _is_finite(variable: Any) -> bool:
    if dtype_of(variable) not in MANTISSA_BITS:
        return True
    return bool(keras.ops.convert_to_numpy(keras.ops.all(keras.ops.isfinite(variable))))


def _on_several_devices(model: Any) -> bool:
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    return keras.distribution.distribution() is not None or replicas > 1


def _measure(model: Any, name: str) -> None:
    """Makes a model's steps measure what has this name; they are compiled again if needed."""
    not_measuring = [optimizer for optimizer in steppers_of(model) if name not in taken_plan(optimizer).measures]
    for optimizer in not_measuring:
        measure(optimizer, name)
    if not_measuring and model.train_function is not None:
        model.make_train_function(force=True)


def _measured(model: Any, name: str) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """A model's optimizers that measure what has this name, with the numbers of the last step."""
    measures = [(one, taken_plan(one).measures.get(name)) for one in steppers_of(model)]
    return [(one, to_numpy(variable)) for one, variable in measures if variable is not None]


def _stationarity(model: Any) -> float:
    """The norm of the last reduced gradient over that of the full one; NaN before a step."""
    reduced, full = sum((squares for _, squares in _measured(model, "gradients")), np.zeros(2))
    return float(np.sqrt(reduced / full)) if full > 0 else math.nan


def _moves(model: Any) -> dict[str, list[float]]:
    """How far the last step's projection moved each weight, squared, by path; 0 for frozen ones.

    Weights of one path are in the order of the model.
    """
    moves: dict[int, float] = {}
    for optimizer, squares in _measured(model, "moves"):
        moves |= dict(zip(map(id, optimizer._trainable_variables), squares.tolist(), strict=True))
    by_path: dict[str, list[float]] = {}
    for weight in weights_of(model):
        unknown = math.nan if weight.variable.trainable else 0.0
        by_path.setdefault(weight.path, []).append(moves.get(id(weight.variable), unknown))
    return by_path
