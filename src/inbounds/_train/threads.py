"""Which threads use the weights of which models: a plan changes, and an audit reads, while no other thread trains.

A fit holds the weights of its model from its first step to its last, on JAX even outside of the variables. So a call
from another thread that changes or reads them is an error while a fit runs; it waits for a single step, which is over
soon, and a step or a fit that is about to begin waits for it. A thread is never in its own way.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

import keras

from inbounds._arrays.ops import is_concrete, recording_again
from inbounds._errors import RuleError, explain
from inbounds._model.rules import check_model
from inbounds._model.weights import variables_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(eq=False)
class Use:
    """What one thread does with some weights.

    Attributes:
        kind: "fit", one of its "step"s or of a loop's, or a "visit": a call that changes a plan, or reads the weights.
        what: the call.
        variables: gives the weights.
        instead: of a visit, what to do where another thread fits the weights.
        sync: of a fit, has the variables hold what was trained so far.
        thread: that it is done in.
    """

    kind: Literal["fit", "step", "visit"]
    what: str
    variables: Callable[[], Iterable[Any]]
    instead: str = ""
    sync: Callable[[], Any] = lambda: None
    thread: threading.Thread = field(default_factory=threading.current_thread)


_uses: list[Use] = []
"""Those under way, in the order in which they began; a visit that waits for a step is among them."""

_changed = threading.Condition()


def begin(use: Use) -> None:
    """Begins a use, once it is in nobody's way; `end` is to be called also where this raises.

    Raises:
        RuleError: it is a visit, and another thread fits the weights.
    """
    with _changed:
        if use.kind == "visit":
            for fit in _in_the_way(use, "fit"):
                raise RuleError(
                    explain(
                        f"`{use.what}` can't be called while another thread fits the model",
                        f"{use.what} in thread {use.thread.name!r}, {fit.what} in thread {fit.thread.name!r}",
                        instead=use.instead,
                    )
                )
            _uses.append(use)
            _changed.wait_for(lambda: not _in_the_way(use, "step", "visit"))
        else:
            if not any(other.thread is use.thread for other in _uses):
                _changed.wait_for(lambda: not _in_the_way(use, "visit"))
            _uses.append(use)


def end(use: Use) -> None:
    """Ends a use; does nothing where it has ended, or never began."""
    with _changed:
        if use in _uses:
            _uses.remove(use)
            _changed.notify_all()


def used(use: Use, function: Callable[[], Result], mend: Callable[[BaseException], Any] = lambda error: None) -> Result:
    """The result of a function that uses weights.

    Python raises a KeyboardInterrupt between any two operations: one that comes in the midst of an `end` is followed by
    another `end`.

    Args:
        use: of the weights.
        function: that uses them.
        mend: what is to be done where it raises, before other threads may use the weights.
    """
    record_again = recording_again()
    try:
        begin(use)
        result = function()
        end(use)
    except BaseException as error:
        try:
            record_again()
            mend(error)
        finally:
            end(use)
        raise
    return result


def _in_the_way(use: Use, *kinds: str) -> list[Use]:
    """The uses of other threads, of some kinds, that began before it and have a weight in common with it."""
    before = _uses[: _uses.index(use)] if use in _uses else _uses
    others = [other for other in before if other.thread is not use.thread and other.kind in kinds]
    if not others:
        return []
    own = set(map(id, use.variables()))
    return [other for other in others if not own.isdisjoint(map(id, other.variables()))]


def visits(instead: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function of a model a visit: no other thread trains the weights meanwhile.

    Args:
        instead: what to do where another thread fits the model.

    It raises a RuleError where another thread fits the model, what it is given is no model, or Keras has lost the
    weights.
    """

    def decorated(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def visit(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            model = arguments[0] if arguments else named.get("model")
            check_model(model)
            use = Use("visit", function.__name__.strip("_"), lambda: variables_of(model), instead)

            def visited() -> Result:
                check_there(model)
                return function(*arguments, **named)

            return used(use, visited)

        return visit

    return decorated


def check_there(model: Any) -> None:
    """That the weights of a model are there.

    On JAX, a compiled step takes the arrays of the variables; where it is interrupted they are gone.

    Raises:
        RuleError: they aren't.
    """
    if keras.backend.backend() != "jax" or not any(map(is_lost, variables_of(model))):
        return
    for use in list(_uses):
        if use.thread is threading.current_thread():
            use.sync()
    if any(map(is_lost, variables_of(model))):
        raise RuleError(
            explain(
                "The weights of the model are gone: on JAX, Keras loses a model whose compiled step is interrupted",
                f"model={model.name!r}",
                instead="keras.models.load_model(path) where ModelCheckpoint saved, or fit again with BackupAndRestore",
            )
        )


def is_lost(variable: Any) -> bool:
    """Whether, on JAX, a variable has no value: a fit took it out, or a step took its array."""
    try:
        value = variable.value
    except TypeError:  # Keras calls the initializer, which a variable that is built has no more
        return True
    return is_concrete(value) and bool(value.is_deleted())
