"""Wraps methods of Keras' classes, so that inbounds hears of weights, optimizers and fits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def wrap_method(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Makes calls of a class's method go to `around(method, self, ...)`; does nothing the second time."""
    original = getattr(owner, name)
    if getattr(original, "watched_by_inbounds", False):
        return

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return around(original, self, *arguments, **named)

    method.watched_by_inbounds = True  # type: ignore[attr-defined]  # a mark on a function
    setattr(owner, name, method)
