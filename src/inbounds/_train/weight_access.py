"""Locks on weights: no thread changes a plan or audits a model while another thread trains it.

A fit holds its weights from its first step to its last; on JAX their values even leave the
variables. So an exclusive access from another thread raises an error during a fit. It waits for a
single step, and steps and fits that begin later wait for it. A thread never waits for itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import keras

from inbounds._arrays.ops import Arguments, Result, is_concrete, recording_again
from inbounds._errors import RuleError
from inbounds._model.rules import check_model
from inbounds._model.weights import variables_of


@dataclass(eq=False)
class WeightAccess:
    """One thread's access to some weights: a fit, a step, or exclusive.

    An exclusive access changes a plan or reads the weights.
    """

    kind: Literal["fit", "step", "exclusive"]
    what: str  # the name of the call, for errors
    variables: Callable[[], Iterable[Any]]
    instead: str = ""  # for an exclusive access, what to do where another thread fits the weights
    sync: Callable[[], Any] = lambda: None  # for a fit, writes the values trained so far to the variables
    thread: threading.Thread = field(default_factory=threading.current_thread)


_accesses: list[WeightAccess] = []
"""The accesses under way, in the order in which they began, including those that wait."""

_accesses_changed = threading.Condition()


def run_with_access(
    access: WeightAccess, function: Callable[[], Result], after_error: Callable[[], Any] = lambda: None
) -> Result:
    """The result of a function that accesses weights; if it raises, `after_error` puts them inside.

    A KeyboardInterrupt may come between any two operations, also within `_end`, which is then
    called again.
    """
    resume_recording = recording_again()
    try:
        _begin(access)
        result = function()
        _end(access)
    except BaseException as error:
        try:
            resume_recording()
            after_error()
        except Exception as failure:
            error.add_note(f"inbounds could not put the weights inside: {failure}")
        finally:
            _end(access)
        raise
    return result


def _begin(access: WeightAccess) -> None:
    """Begins an access once no other one conflicts.

    An exclusive one fails if another thread fits the weights.
    """
    with _accesses_changed:
        if access.kind == "exclusive":
            for fit in _conflicts(access, "fit"):
                wrong = f"`{access.what}` can't be called while another thread fits the model"
                received = f"{access.what} in thread {access.thread.name!r}, {fit.what} in thread {fit.thread.name!r}"
                raise RuleError(wrong, received, instead=access.instead)
            _accesses.append(access)
            _accesses_changed.wait_for(lambda: not _conflicts(access, "step", "exclusive"))
        else:
            if not any(other.thread is access.thread for other in _accesses):
                _accesses_changed.wait_for(lambda: not _conflicts(access, "exclusive"))
            _accesses.append(access)


def _end(access: WeightAccess) -> None:
    """Ends an access, if it is under way."""
    with _accesses_changed:
        if access in _accesses:
            _accesses.remove(access)
            _accesses_changed.notify_all()


def _conflicts(access: WeightAccess, *kinds: str) -> list[WeightAccess]:
    """The accesses of given kinds by other threads that began earlier and share a weight."""
    before = _accesses[: _accesses.index(access)] if access in _accesses else _accesses
    others = [other for other in before if other.thread is not access.thread and other.kind in kinds]
    if not others:
        return []
    variables = set(map(id, access.variables()))
    return [other for other in others if not variables.isdisjoint(map(id, other.variables()))]


def exclusive_access(
    instead: str = "call it in a callback of that fit, such as on_epoch_end, or once the fit has ended",
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Gives a function of a model exclusive access to the model's weights, which must have values.

    `instead` says what to do where another thread fits the model, which is an error.
    """

    def decorated(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def wrapped(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            model = arguments[0] if arguments else named.get("model")
            check_model(model)
            access = WeightAccess("exclusive", function.__name__.strip("_"), lambda: variables_of(model), instead)

            def call() -> Result:
                check_weights_exist(model)
                return function(*arguments, **named)

            return run_with_access(access, call)

        return wrapped

    return decorated


def check_weights_exist(model: Any) -> None:
    """Checks that weights have values, which an interrupt of a compiled step on JAX loses."""
    if keras.backend.backend() != "jax" or not any(map(has_lost_value, variables_of(model))):
        return
    for access in list(_accesses):
        if access.thread is threading.current_thread():
            access.sync()
    if any(map(has_lost_value, variables_of(model))):
        wrong = "The weights of the model are gone: on JAX, Keras loses a model whose compiled step is interrupted"
        instead = "keras.models.load_model(path) where ModelCheckpoint saved, or fit again with BackupAndRestore"
        raise RuleError(wrong, f"model={model.name!r}", instead=instead)


def has_lost_value(variable: Any) -> bool:
    """Whether a variable has no value on JAX: a fit emptied it, or a step took its array."""
    try:
        value = variable.value
    except TypeError:  # Keras calls the initializer, which a built variable no longer has
        return True
    return is_concrete(value) and bool(value.is_deleted())
