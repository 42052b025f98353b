"""Hooks on Keras' fits: projections when a fit begins, evaluates, swaps averages, ends or raises.

Every list of callbacks gets one more callback at its front, and behind it those that are
`_called_first`. `fit`, `train_on_batch` and `SwapEMAWeights` are wrapped.
`tests/test_keras_ground.py` pins what the hooks rely on. Projections within steps are in
`optimizer_hooks`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import keras

from inbounds._model.plan import Entry
from inbounds._model.rules import resolve_given
from inbounds._model.weights import layers_of, variables_of, wrap_method
from inbounds._sets.set import Set
from inbounds._train.assignments import assign
from inbounds._train.attached_sets import (
    AttachedSet,
    attach_set,
    attached_entries,
    current_constraint,
    project_in_numpy,
)
from inbounds._train.optimizer_hooks import update_compiled_constants
from inbounds._train.optimizers import in_tensorflow_strategy, optimizers_of
from inbounds._train.taken_plans import steps_taken, taken_plan
from inbounds._train.weight_access import WeightAccess, check_weights_exist, has_lost_value, run_with_access


def hook_fits() -> None:
    """Wraps the methods of Keras that run fits. Runs once, on import."""
    wrap_method(keras.callbacks.CallbackList, "set_model", _add_projection_callback)
    wrap_method(keras.callbacks.SwapEMAWeights, "_swap_variables", _project_after_swap)
    wrap_method(keras.Model, "fit", partial(_train_with_access, "fit"))
    wrap_method(keras.Model, "train_on_batch", partial(_train_with_access, "step"))


_EPOCH_START = "_inbounds_epoch_start"
"""Attribute of a model that JAX fits, with the variables' values. Keras loses them if an interrupt
stops the compiling."""


def _train_with_access(
    kind: Literal["fit", "step"], train: Callable[..., Any], model: Any, *arguments: Any, **named: Any
) -> Any:
    """Runs `fit` or `train_on_batch`; where it raises, projects the weights."""
    sync = getattr(model, "jax_state_sync", lambda: None)
    access = WeightAccess(kind, train.__name__, lambda: variables_of(model), sync=sync)

    def run() -> Any:
        if kind == "step":
            _compile_again_if_changed(model)
        return train(model, *arguments, **named)

    return run_with_access(access, run, lambda: _project_interrupted(model))


def _project_interrupted(model: Any) -> None:
    """Restores the values that an interrupted fit has lost, and projects the weights."""
    start = vars(model).pop(_EPOCH_START, [])
    assign((variable, value) for variable, value in start if has_lost_value(variable) and not value.is_deleted())
    check_weights_exist(model)
    for optimizer in optimizers_of(model):
        taken_plan(optimizer).averages = []
    _project(model, _declared_entries(model))


def _project(model: Any, entries: Iterable[Entry]) -> list[tuple[Any, Any]]:
    """Projects entries; returns the variables that moved, each with its previous value."""
    return [pair for entry in entries for pair in project_in_numpy(entry, steps_taken(model, entry))]


class ProjectionCallback(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Projects weights at moments of a fit that no step sees.

    When a fit begins, it projects all weights, which may have been loaded. Before an evaluation,
    and at the end of an epoch before other callbacks see it, it projects the weights that aren't
    projected in each step.
    """

    _called_first = True
    _fitting = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._fitting = False  # the fit before may have raised

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins the fit here: other callbacks may load weights in `on_train_begin`."""
        if not self._fitting:
            self._fitting = True
            _begin_fit(self.model)
        _compile_again_if_changed(self.model)
        if keras.backend.backend() == "jax":
            model: Any = self.model
            variables = [*model.variables, *model.metrics_variables, *getattr(model.optimizer, "variables", ())]
            vars(model)[_EPOCH_START] = [(variable, variable.value) for variable in variables]

    def on_test_begin(self, logs: Any = None) -> None:
        if self._fitting:
            self._project_delayed()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._project_delayed()

    def on_train_end(self, logs: Any = None) -> None:
        self._fitting = False
        model: Any = self.model
        vars(model).pop(_EPOCH_START, None)

    def _project_delayed(self) -> None:
        """Projects the weights that aren't projected in each step."""
        entries = attached_entries(variables_of(self.model))
        _project(self.model, [entry for entry in entries if entry.training.every != 1])


def _add_projection_callback(set_model: Callable[..., None], callbacks: Any, model: Any) -> None:
    if not any(isinstance(callback, ProjectionCallback) for callback in callbacks.callbacks):
        callbacks.callbacks.insert(0, ProjectionCallback())
        default = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        given = [callback for callback in callbacks.callbacks[1:] if not isinstance(callback, default)]
        callbacks._configure_async_dispatch(given)  # Keras ignores a callback that is in no list
        callbacks.callbacks.sort(key=lambda callback: not getattr(callback, "_called_first", False))
    set_model(callbacks, model)


def _begin_fit(model: Any) -> None:
    declared = _declared_entries(model)
    if declared:
        check_weights_exist(model)
    for entry in declared:
        attached = {id(v) for one in attached_entries(entry.variables) for v in one.variables}
        if 0 < len(attached) < len(entry.variables):  # an optimizer knew its own weights only
            attach_set(entry)
    _project(model, declared)
    if declared and keras.backend.backend() == "tensorflow":
        _build_optimizer(model)


def _compile_again_if_changed(model: Any) -> None:
    """Discards a compiled step whose decisions or frozen weights have changed since."""
    for optimizer in optimizers_of(model):
        taken_plan(optimizer).fits_of = weakref.ref(model)
    # A list, not a generator: every optimizer has to store its constants.
    changed = [update_compiled_constants(optimizer) for optimizer in optimizers_of(model)]
    if any(changed):
        model.make_train_function(force=True)


def _build_optimizer(model: Any) -> None:
    """Builds a model's optimizer before TensorFlow traces a step, as Keras does on other backends.

    A step that creates variables is traced twice, with all sets in it.
    """
    optimizer, keras_step = model.optimizer, type(model).train_step is keras.Model.train_step
    if optimizer is None or optimizer.built or not model.built or not keras_step or in_tensorflow_strategy():
        return
    optimizer.build(model.trainable_variables)


def _declared_entries(model: Any) -> list[Entry]:
    """The sets of a model's plan and of its layers' arguments, including those not attached yet."""
    constrained = {id(v) for v in variables_of(model) if isinstance(v.constraint, (AttachedSet, Set))}
    entries = resolve_given(layers_of(model), current_constraint).entries if constrained else ()
    return [entry for entry in entries if constrained.issuperset(map(id, entry.variables))]


def _project_after_swap(swap: Callable[..., None], callback: Any) -> None:
    """Swaps weights and their averages, and projects the weights.

    An average projected in the model's place is restored when it is swapped back, so that an
    evaluation doesn't change the training.
    """
    swap(callback)
    model = callback.model
    for optimizer in optimizers_of(model):
        averages = getattr(optimizer, "_model_variables_moving_average", None)
        if not averages:
            continue
        taken = taken_plan(optimizer)
        assign(taken.averages)
        moved = _project(model, attached_entries(optimizer._trainable_variables))
        own = dict(zip(map(id, optimizer._trainable_variables), averages, strict=True))
        swapped_in = not callback._ema_weights_in_model  # Keras sets it after the swap
        taken.averages = [(own[id(v)], value) for v, value in moved if swapped_in and id(v) in own]
