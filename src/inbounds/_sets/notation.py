"""Sets in mathematics: the definition in a set's docstring, with its arguments put in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from inbounds._sets.intersection import Intersection
from inbounds._sets.joint import Joint, Together
from inbounds._sets.masks import On, Where
from inbounds._sets.per import Per
from inbounds._sets.scaled import Scaled
from inbounds._sets.set import Set

FEW = 4  # arrays of at most so many entries are written out
_SYMBOLS = (
    (r"\|(\w)\|", "‖\\1‖"),
    (r"\bsum of w\b", "Σ wᵢ"),
    (r"\bsigma\b|\bsigma(?=_)", "σ"),
    (r"\^T", "ᵀ"),
    (r"<=", "≤"),
    (r">=", "≥"),
    (r"\.\.\.", "…"),
    (r" \. ", " · "),
)

_INDICES = str.maketrans("0123456789in", "₀₁₂₃₄₅₆₇₈₉ᵢₙ")


def mathematics(given: Set) -> str:
    """A set in set-builder notation, such as `{w : ‖w‖₂ ≤ 2}`; empty if its class defines none."""
    if isinstance(given, Joint):
        return f"({', '.join(given.weights)}) ∈ {mathematics(given.inner)}"
    if isinstance(given, Together):
        return f"all weights together ∈ {mathematics(given.inner)}"
    if isinstance(given, Intersection):
        return " ∩ ".join(map(mathematics, given.sets))
    if isinstance(given, Where):
        return f"{{w : w[mask] ∈ {mathematics(given.set)}}}"
    if isinstance(given, On):
        return f"{{w : w[inputs {_listed(given.inputs)}] ∈ {mathematics(given.set)}}}"
    if isinstance(given, Per):
        return f"{{W : each of its {given.kind} ∈ {mathematics(given.set)}}}"
    if isinstance(given, Scaled):
        return f"s · {mathematics(given.set)}, s by the steps of training"
    text = _definition(type(given))
    if getattr(given, "increasing", True) is False:  # the one argument that turns a definition round
        text = text.replace("≤", "≥")
    for name in given.argument_names():
        value = _text(getattr(given, name))
        if value:  # "rank W ≤ rank" names a function and then the argument, "k groups of the entries" only things
            text = value.join(re.split(rf"\b{name}\b(?! W| of the)", text))
    return text if given.center is None or not text else f"{text} + {_text(given.center) or 'center'}"


@cache
def _definition(cls: type[Set]) -> str:
    """The definition in the docstring of a class, in symbols; empty if there is none."""
    found = re.match(r"\{.+?\}", cls.__doc__ or "")
    text = found[0] if found else ""
    for pattern, symbol in _SYMBOLS:
        text = re.sub(pattern, symbol, text)
    return re.sub(r"_(\d+|i+|n)\b", lambda index: index[1].translate(_INDICES), text)


def _text(value: Any) -> str:
    """An argument in a formula; empty for what is too long, or has no place in one."""
    if callable(value):
        name = getattr(value, "__name__", "")
        return name if name.isidentifier() else ""
    if isinstance(value, (bool, str)) or value is None or np.size(value) > FEW:
        return ""
    return f"({_listed(value)})" if np.ndim(value) else f"{value:.6g}".replace("-", "−").replace("inf", "∞")


def _listed(values: Sequence[Any]) -> str:
    shown = [_text(value) for value in values[:FEW]]
    return ", ".join(shown + ["…"] * (len(values) > FEW))
