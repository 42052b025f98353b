"""Every exception and warning of inbounds.

InboundsError
├── SetError (also a ValueError)      a set was given a bad argument, or rows it can't apply to
├── LayoutError (also a ValueError)   the units of a weight can't be told
├── RuleError (also a ValueError)     a rule, a selector or a model that no plan can be made of
├── FileError (also a ValueError)     a model file or a rules file that can't be read
└── ConstraintViolation               raised by `check` when a weight is outside its set; holds the report

PlanNotSavedWarning (a UserWarning)   part of a plan that a `.keras` file can't carry
"""

from __future__ import annotations

from typing import Any


class InboundsError(Exception):
    """Base of every error that inbounds raises."""


class SetError(InboundsError, ValueError):
    """A set was given a bad argument, or rows it can't apply to."""


class LayoutError(InboundsError, ValueError):
    """The units of a weight can't be told."""


class RuleError(InboundsError, ValueError):
    """A rule, a selector or a model that no plan can be made of."""


class FileError(InboundsError, ValueError):
    """A model file or a rules file that can't be read."""


class ConstraintViolation(InboundsError):  # noqa: N818  # the contract's name
    """A weight is outside its set.

    Attributes:
        report: the `Report` that found it.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class PlanNotSavedWarning(UserWarning):
    """Part of a plan that a `.keras` file can't carry, said when constraining."""


def explain(rule: str, received: str, *, where: str = "", instead: str = "") -> str:
    """The text of an error: the rule, what was received, where, and what to do instead."""
    parts = [rule.rstrip(".") + ".", f"Received: {received}."]
    if where:
        parts.append(f"Where: {where}.")
    if instead:
        parts.append(f"Instead: {instead.rstrip('.')}.")
    return " ".join(parts)
