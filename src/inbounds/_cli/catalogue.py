"""What users see of each set: a card with its definition, its cost, its source and its picture.

All of it is read from the classes: definition, cost and source are paragraphs of the docstring.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from inbounds import constraints
from inbounds._cli.pictures import DRAWINGS, Drawing, why_not
from inbounds._errors import SetError, explain
from inbounds._model.rules_file import signature
from inbounds._model.table import WIDTH

NOT_BY_ITS_CLASS = {"Custom": "not known", "MinMaxNorm": "where min_value is 0"}
"""Whether a set is convex, where its arguments decide."""

TWINS = {
    name: cls.__name__
    for name in constraints.__all__
    if name not in constraints.SETS and (cls := getattr(constraints, name)) in constraints.SETS.values()
}
"""The names that some sets have in snake case, as in Keras."""


@dataclass(frozen=True)
class Card:
    """What there is to say of a set.

    Attributes:
        cls: its class.
        code: what makes one: the class with its arguments and their defaults, or the operator.
    """

    cls: Any
    code: str

    @property
    def name(self) -> str:
        """The name of the class."""
        return str(self.cls.__name__)

    @property
    def definition(self) -> str:
        """The first line of the docstring: the set-builder line."""
        return self._paragraphs[0].rstrip(".")

    @property
    def cost(self) -> str:
        """What a projection costs; empty where the docstring doesn't say."""
        return self._paragraph("Cost: ")

    @property
    def source(self) -> str:
        """Where it comes from; empty where the docstring doesn't say."""
        return self._paragraph("Source: ")

    @property
    def convex(self) -> str:
        """Whether it is convex, in words."""
        if self.name in NOT_BY_ITS_CLASS:
            return NOT_BY_ITS_CLASS[self.name]
        return {True: "yes", False: "no"}.get(self.cls.convex, "as the sets in it")

    @property
    def drawing(self) -> Drawing | None:
        """Its picture; None where two dimensions don't show it."""
        return DRAWINGS.get(self.name)

    @property
    def text(self) -> str:
        """The card for a terminal."""
        facts = {"convex": self.convex, "cost": self.cost, "source": self.source}
        if self.drawing is None:
            facts["picture"] = f"none: {why_not(self.cls)}"
        else:
            facts["picture"] = f"of {self.drawing.set}; points a, b... and the nearest ones in the set, A, B..."
        lines = [self.code, *_filled(self.definition, "  ")]
        for name, fact in facts.items():
            lines += _filled(fact, f"  {name:8}")
        if self.drawing is not None:
            lines.append(textwrap.indent(self.drawing.text, " " * 10))
        return "\n".join(lines)

    @property
    def markdown(self) -> str:
        """The card for a page beside the folder of pictures."""
        parts = [f"### {self.name}", f"    {_plain(self.definition)}", f"`{self.code}`; convex: {self.convex}."]
        if self.drawing is not None:
            parts.append(f"![{self.drawing.caption}](pictures/{self.name}.svg)")
        parts.append(f"*Cost:* {self.cost}")
        parts.append(f"*Source:* {self.source}")
        return "\n\n".join(parts)

    @property
    def _paragraphs(self) -> list[str]:
        return [" ".join(part.split()) for part in inspect.cleandoc(self.cls.__doc__).split("\n\n")]

    def _paragraph(self, start: str) -> str:
        return next((part.removeprefix(start) for part in self._paragraphs if part.startswith(start)), "")


def cards() -> dict[str, Card]:
    """A card for every set, by the name of its class: those with a name by it, then those that operators make."""
    named = [Card(constraints.SETS[name], signature(constraints.SETS[name])) for name in sorted(constraints.SETS)]
    made = [Card(cls, code) for code, cls in constraints.MADE.items()]
    return {card.name: card for card in [*named, *made]}


def card_of(name: str) -> Card:
    """The card of a set by its name, its name in Keras, or the operator that makes it.

    Raises:
        SetError: there is no such set.
    """
    found = cards()
    by_name = found | {card.code: card for card in found.values()} | {twin: found[of] for twin, of in TWINS.items()}
    if name not in by_name:
        folded = {known.lower(): known for known in [*found, *TWINS]}
        near = [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=3)]
        raise SetError(
            explain(
                f"No set has the name {name!r}",
                repr(name),
                instead=" or ".join(near or sorted(found)),
            )
        )
    return by_name[name]


def _plain(text: str) -> str:
    return text.replace("`", "")


def _filled(text: str, label: str) -> list[str]:
    indent = " " * len(label)
    return textwrap.wrap(_plain(text), WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)
