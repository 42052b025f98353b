"""What a `fit` does to weights outside of its steps: it begins, evaluates, swaps averages in, and ends, also early.

Every list of callbacks is given one more callback, at its front, which looks after the model that is fitted; what the
step sees is in `step`. Keras' own callback that swaps averages in is followed. `fit` and `train_on_batch` are wrapped,
so that they end with all weights inside where they raise, and other threads are told of them. These hooks are on
classes of Keras, as the one on optimizers is, and `tests/test_keras_ground.py` names what breaks when Keras changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import keras

from inbounds._model.plan import Entry
from inbounds._model.rules import resolve_given
from inbounds._model.weights import layers_of, variables_of, weights_of
from inbounds._sets.set import Set
from inbounds._train.bound import Bound, current_constraint, entries_of
from inbounds._train.optimizers import optimizers_of, steps_taken
from inbounds._train.step import inside_or_noted, look_again, put_inside
from inbounds._train.threads import Use, check_there, is_lost, used


def watch_fits() -> None:
    """Has fits begin, evaluate and end with weights inside. Done once, on import."""
    _wrap(keras.callbacks.CallbackList, "set_model", _with_a_keeper)
    _wrap(keras.callbacks.SwapEMAWeights, "_swap_variables", _swapped_inside)
    _wrap(keras.Model, "fit", functools.partial(_trained, "fit"))
    _wrap(keras.Model, "train_on_batch", functools.partial(_trained, "step"))


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, "watched_by_inbounds", False):
        return

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return around(original, self, *arguments, **named)

    method.watched_by_inbounds = True  # type: ignore[attr-defined]
    setattr(owner, name, method)


_BEGUN = "_inbounds_begun"
"""Of a model that JAX fits, its variables with what they were before the first step of the epoch.

Keras empties the variables before that step, and forgets what they were where it is never taken: it is compiled first.
"""


def _trained(kind: Literal["fit", "step"], train: Callable[..., Any], model: Any, *arguments: Any, **named: Any) -> Any:
    """A `fit` or a `train_on_batch`; where it raises, all weights that can be are inside."""
    use = Use(kind, train.__name__, lambda: variables_of(model), sync=getattr(model, "jax_state_sync", lambda: None))
    return used(
        use,
        lambda: train(model, *arguments, **named),
        lambda error: inside_or_noted(error, lambda: _end_inside(model)),
    )


def _end_inside(model: Any) -> None:
    for variable, value in _forget(model):
        if is_lost(variable) and not value.is_deleted():
            variable.assign(value)
    check_there(model)
    for optimizer in optimizers_of(model):
        vars(optimizer).pop("_inbounds_averages", None)
    for entry in _declared(model):
        put_inside(entry, steps_taken(model, entry))


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
        if keras.backend.backend() == "jax":
            _remember(self.model)

    def on_test_begin(self, logs: Any = None) -> None:
        if self._fits:
            self._catch_up()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._catch_up()

    def on_train_end(self, logs: Any = None) -> None:
        self._fits = False
        _forget(self.model)

    def _catch_up(self) -> None:
        for entry in entries_of(variables_of(self.model)):
            if entry.set.every != 1:
                put_inside(entry, steps_taken(self.model, entry))


def _with_a_keeper(set_model: Callable[..., None], callbacks: Any, model: Any) -> None:
    if not any(isinstance(callback, Keeper) for callback in callbacks.callbacks):
        callbacks.callbacks.insert(0, Keeper())
        own = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        given = [callback for callback in callbacks.callbacks[1:] if not isinstance(callback, own)]
        callbacks._configure_async_dispatch(given)  # it took one that is in no list for safe in another thread
    set_model(callbacks, model)


def _remember(model: Any) -> None:
    variables = [*model.variables, *model.metrics_variables, *getattr(model.optimizer, "variables", ())]
    vars(model)[_BEGUN] = [(variable, variable.value) for variable in variables]


def _forget(model: Any) -> list[tuple[Any, Any]]:
    remembered: list[tuple[Any, Any]] = vars(model).pop(_BEGUN, [])
    return remembered


def _begin(model: Any) -> None:
    declared = _declared(model)
    if declared:
        check_there(model)
    for entry in declared:
        put_inside(entry, steps_taken(model, entry))
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
        moved = [
            pair
            for entry in entries_of(optimizer._trainable_variables)
            for pair in put_inside(entry, steps_taken(model, entry))
        ]
        own = {
            id(variable): average for variable, average in zip(optimizer._trainable_variables, averages, strict=True)
        }
        if not callback._ema_weights_in_model:  # they are now
            vars(optimizer)["_inbounds_averages"] = [(own[id(v)], before) for v, before in moved if id(v) in own]
