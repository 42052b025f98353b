"""Every exception and warning of inbounds.

A text says what went wrong, what was received, where, and the line to type instead, in this order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

FEW = 16  # arrays of at most so many entries are printed entry by entry, as code
LONG = 240  # values are cut off after so many characters


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text with control characters escaped, as `\x1b` or `\n`: no terminal or log acts on them.

    Names of layers, weights and files are the user's. All that is printed passes through here.

    Args:
        text: any text.
        lines: whether newlines stay, in text that has several lines.
    """

    def escaped(character: str) -> str:
        kept = character.isprintable() or (lines and character == "\n")
        return character if kept else character.encode("unicode_escape").decode("ascii")

    return text if text.isprintable() else "".join(map(escaped, text))


def shown(value: Any) -> str:
    """The repr of a value on one line, cut off where it is long.

    Of a large array it is the shape and the first entries.
    """
    if isinstance(value, np.ndarray) and value.size > FEW:
        first = ", ".join(map(repr, value.reshape(-1)[:3].tolist()))
        return f"<array of shape {value.shape}: {first}, ...>"
    text = re.sub(r"\n\s*", " ", repr(value))
    return text if len(text) <= LONG else f"{text[:LONG]} ..."


class InboundsError(Exception):
    """Base of every error that inbounds raises.

    `explain` makes its message of parts; a text alone is the whole message.
    """

    def __init__(self, wrong: str = "", received: str | None = None, *, where: str = "", instead: str = "") -> None:
        text = wrong if received is None else explain(wrong, received, where=where, instead=instead)
        super().__init__(printable(text))


class SetError(InboundsError, ValueError):
    """A set was given a bad argument, or rows it can't apply to."""


class LayoutError(InboundsError, ValueError):
    """The units of a weight can't be told."""


class RuleError(InboundsError, ValueError):
    """A rule, a selector or a model that no plan can be made of."""


class FileError(InboundsError, ValueError):
    """A file that can't be read or written."""


class ConstraintViolation(InboundsError):  # noqa: N818  # the contract's name
    """A weight is outside its set.

    Attributes:
        report: the `Report` that found it.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__()
        self.args = (printable(message, lines=True), report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])


class PlanNotSavedWarning(UserWarning):
    """Part of a plan that a `.keras` file can't carry, said when constraining."""


class LayoutWarning(UserWarning):
    """The units of a weight are not known and were guessed: every axis but the last."""


class WeightNotMovedWarning(UserWarning):
    """The steps of an epoch have not moved a constrained weight, said by `Monitor`."""


class NotFiniteWarning(UserWarning):
    """A weight has an entry that is NaN or infinite, said by `Monitor`."""


def explain(wrong: str, received: str, *, where: str = "", instead: str = "") -> str:
    """The text of an error: what went wrong, what was received, where, and what to type instead."""
    parts = [wrong.rstrip(".") + ".", f"Received: {received}."]
    if where:
        parts.append(f"Where: {where}.")
    if instead:
        parts.append(f"Instead: {instead.rstrip('.')}.")
    return printable(" ".join(parts))


@contextmanager
def raised_as(kind: type[InboundsError], place: str) -> Iterator[None]:
    """A context that raises errors of sets and layouts as another kind, with their place."""
    try:
        yield
    except (SetError, LayoutError) as error:
        raise kind(f"{error} {place}.") from error


def similar(wanted: str, names: Collection[str], cutoff: float = 0.5) -> list[str]:
    """The names most similar to the wanted one, three at most.

    If none is similar, case and underscores are disregarded.
    """
    by_letters = {_letters(name): name for name in names}
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=cutoff)
    return close or [by_letters[near] for near in difflib.get_close_matches(_letters(wanted), by_letters, n=3)]


def similar_or_first(wanted: str, names: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """The names most similar to the wanted one, else the first five."""
    return similar(wanted, names, cutoff) or list(names[:5])


def _letters(name: str) -> str:
    return name.lower().replace("_", "")
