"""What a `fit` does to weights outside of its steps: it begins with what it is given, evaluates, and swaps averages in.

Every list of callbacks is given one more callback, at its front, which looks after the model that is fitted; what the
step sees is in `_step`. Keras' own callback that swaps averages in is followed. Both hooks are on classes of Keras, as
the one on optimizers is, and `tests/test_keras_ground.py` names what breaks when Keras changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from inbounds._arrays import no_gradient
from inbounds._bound import Bound, current_constraint, entries_of, projected
from inbounds._optimizers import optimizers_of, steps_taken
from inbounds._plan import Entry
from inbounds._rules import resolve_given
from inbounds._set import Set
from inbounds._step import look_again
from inbounds._weights import layers_of, weights_of


def watch_fits() -> None:
    """Gives every list of callbacks a `Keeper`, and has averages that are swapped in put inside. Once, on import."""
    _wrap(keras.callbacks.CallbackList, "set_model", _with_a_keeper)
    _wrap(keras.callbacks.SwapEMAWeights, "_swap_variables", _swapped_inside)


def _wrap(owner: Any, name: str, around: Callable[..., None]) -> None:
    original = getattr(owner, name)
    if getattr(original, "watched_by_inbounds", False):
        return

    def method(self: Any, *arguments: Any, **named: Any) -> None:
        around(original, self, *arguments, **named)

    method.watched_by_inbounds = True  # type: ignore[attr-defined]
    setattr(owner, name, method)


class Keeper(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Puts the weights of the model that is fitted inside at moments that no step sees; does nothing without sets.

    When a fit begins, all of them: they may have been set or loaded since, frozen ones too. At the end of an epoch,
    before other callbacks save or look at the model, and before an evaluation, those that aren't projected each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fits = False
        self._begins = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._fits = self._begins = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Other callbacks that load weights when the training begins have done so."""
        if self._begins:
            self._begins = False
            _begin(self.model)

    def on_test_begin(self, logs: Any = None) -> None:
        if self._fits:
            self._catch_up()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._catch_up()

    def on_train_end(self, logs: Any = None) -> None:
        self._fits = False

    def _catch_up(self) -> None:
        for entry in entries_of(_variables_of(self.model)):
            if entry.set.every != 1:
                _put_inside(self.model, entry)


def _with_a_keeper(set_model: Callable[..., None], callbacks: Any, model: Any) -> None:
    if not any(isinstance(callback, Keeper) for callback in callbacks.callbacks):
        callbacks.callbacks.insert(0, Keeper())
    set_model(callbacks, model)


def _variables_of(model: Any) -> list[Any]:
    return [weight.variable for weight in weights_of(layers_of(model))]


def _begin(model: Any) -> None:
    for entry in _declared(model):
        _put_inside(model, entry)
    changed = [look_again(optimizer) for optimizer in optimizers_of(model)]  # each of them looks
    if any(changed):
        model.make_train_function(force=True)


def _declared(model: Any) -> list[Entry]:
    """The sets of a model, those of its plan and those that its layers were given, which no optimizer may know yet."""
    layers = layers_of(model)
    kept = {
        id(weight.variable) for weight in weights_of(layers) if isinstance(weight.variable.constraint, (Bound, Set))
    }
    entries = resolve_given(layers, current_constraint).entries if kept else ()
    return [entry for entry in entries if kept.issuperset(id(weight.variable) for weight in entry.weights)]


def _put_inside(model: Any, entry: Entry) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Projects the weights of an entry where they are outside; what they were is returned.

    In NumPy, where there is nothing to compile. Frozen weights stay if the others can make up for them, or if no plan
    holds them.
    """
    variables = entry.variables
    at = steps_taken(model, entry)
    were = {id(variable): np.array(keras.ops.convert_to_numpy(variable)) for variable in variables}

    def values(frozen_too: bool) -> dict[int, np.ndarray[Any, Any]]:
        found = projected(entry, frozen_too=frozen_too, read=lambda variable: were[id(variable)], at=at)
        return were | {id(variable): np.asarray(value) for variable, value in found}

    inside = values(frozen_too=False)
    planned = any(isinstance(v.constraint, Bound) and v.constraint.model is not None for v in variables)
    if planned and not all(v.trainable for v in variables):
        found = entry.applied.at(at).measure([inside[id(variable)] for variable in variables], entry.axes)
        if found.outside.any():
            inside = values(frozen_too=True)
    moved = []
    with no_gradient():
        for variable in variables:
            if not np.array_equal(were[id(variable)], inside[id(variable)], equal_nan=True):
                moved.append((variable, were[id(variable)]))
                variable.assign(inside[id(variable)])
    return moved


def _swapped_inside(swap: Callable[..., None], callback: Any) -> None:
    """A swap of weights and their averages, after which the weights of the model are inside.

    The average of weights inside a convex set is inside but for rounding, that of others need not be. An average that
    is put inside while it is in the model's place goes back as it was, so that looking at it changes no training.
    """
    swap(callback)
    model = callback.model
    for optimizer in optimizers_of(model):
        averages = getattr(optimizer, "_model_variables_moving_average", None)
        if not averages:
            continue
        for average, value in vars(optimizer).pop("_inbounds_averages", ()):
            average.assign(value)
        moved = [pair for entry in entries_of(optimizer._trainable_variables) for pair in _put_inside(model, entry)]
        own = {
            id(variable): average for variable, average in zip(optimizer._trainable_variables, averages, strict=True)
        }
        if not callback._ema_weights_in_model:  # they are now
            vars(optimizer)["_inbounds_averages"] = [(own[id(v)], before) for v, before in moved if id(v) in own]
