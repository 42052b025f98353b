"""The catalogue of sets: a card for each with its definition, cost, source and picture.

Definition, cost and source are paragraphs of the class's docstring.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from inbounds import constraints
from inbounds._cli.pictures import DRAWINGS, no_drawing_reason, text_picture
from inbounds._model.table import WIDTH
from inbounds._report.plots import Drawing

CONVEXITY_BY_ARGUMENTS = {"Custom": "not known", "MinMaxNorm": "where min_value is 0"}
"""The convexity of sets for which it depends on their arguments."""

SNAKE_CASE_NAMES = {name: cls.__name__ for name, cls in constraints.BY_NAME.items() if name != cls.__name__}
"""The sets that also have a name in snake case, as in Keras."""


@dataclass(frozen=True)
class Card:
    """The description of one set.

    Attributes:
        cls: the class of the set.
        code: the code that makes one: the class with its arguments and defaults, or the operator.
    """

    cls: Any
    code: str

    @property
    def name(self) -> str:
        """The name of the class."""
        return str(self.cls.__name__)

    @property
    def definition(self) -> str:
        """The first line of the docstring: the set in set-builder notation."""
        return self._paragraphs[0].rstrip(".").replace("`", "")

    @property
    def cost(self) -> str:
        """The cost of a projection; empty if the docstring doesn't state it."""
        return self._paragraph("Cost: ")

    @property
    def source(self) -> str:
        """The source; empty if the docstring doesn't state it."""
        return self._paragraph("Source: ")

    @property
    def convex(self) -> str:
        """Whether the set is convex, in words."""
        if self.name in CONVEXITY_BY_ARGUMENTS:
            return CONVEXITY_BY_ARGUMENTS[self.name]
        return {True: "yes", False: "no"}.get(self.cls.convex, "as the sets in it")

    @property
    def drawing(self) -> Drawing | None:
        """The picture of the set; None if two dimensions don't show it."""
        return DRAWINGS.get(self.name)

    @property
    def text(self) -> str:
        """The card for a terminal."""
        picture, drawn = f"none: {no_drawing_reason(self.cls)}", []
        if self.drawing is not None:
            picture = f"of {self.drawing.set}; points a, b... and the nearest ones in the set, A, B..."
            drawn = [textwrap.indent(text_picture(self.drawing), " " * 10)]
        facts = {"convex": self.convex, "cost": self.cost, "source": self.source, "picture": picture}
        lines = [_wrapped(fact, f"  {name:8}") for name, fact in facts.items()]
        return "\n".join([self.code, _wrapped(self.definition, "  "), *lines, *drawn])

    @property
    def _paragraphs(self) -> list[str]:
        return [" ".join(part.split()) for part in inspect.cleandoc(self.cls.__doc__).split("\n\n")]

    def _paragraph(self, start: str) -> str:
        return next((part.removeprefix(start) for part in self._paragraphs if part.startswith(start)), "")


def cards() -> dict[str, Card]:
    """The cards of all sets by class name: named classes first, then those that operators make."""
    code = {constraints.signature(cls): cls for _, cls in sorted(constraints.SETS.items())} | constraints.MADE
    return {cls.__name__: Card(cls, text) for text, cls in code.items()}


def card_of(name: str) -> Card:
    """The card of a set by its name, its snake-case name, or the operator that makes it."""
    found = cards()
    of_code, twins = (
        {card.code: card for card in found.values()},
        {twin: found[of] for twin, of in SNAKE_CASE_NAMES.items()},
    )
    return constraints.named(name, found | of_code | twins, repr(name))


def _wrapped(text: str, label: str) -> str:
    text, indent = text.replace("`", ""), " " * len(label)
    return textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)
