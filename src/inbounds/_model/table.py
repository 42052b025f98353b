"""Tables as text, no wider than a terminal: a title, the rows, and notes below them."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inbounds._errors import printable

WIDTH = 120

_NUMBER = re.compile(r"|-|[-+]?[\d.]+(e[-+]?\d+)?%?|inf|nan")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Iterable[str] = (), width: int = WIDTH
) -> str:
    """A table as plain text without control characters; columns of numbers to the right. Notes are paragraphs."""
    cells = [[_cell(value) for value in row] for row in rows]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(made)
    lines = ["", *(line.rstrip() for line in console.file.getvalue().splitlines())] if rows else []
    below = [textwrap.fill(printable(note), width, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return "\n".join([*textwrap.wrap(printable(title), width), *lines, *([""] if below else []), *below])


def counted(number: int, thing: str) -> str:
    """A number of things: "1 set", "2 sets"."""
    return f"{number} {thing}" + "s" * (number != 1)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value), lines=True)


def common_parts(paths: Iterable[str]) -> str:
    """The parts that all paths begin with, such as a model's name, `"sequential/"`; each keeps two of its own."""
    parts = [path.split("/") for path in paths]
    kept = 0
    while parts and all(len(p) > kept + 2 and p[kept] == parts[0][kept] for p in parts):
        kept += 1
    return "".join(f"{part}/" for part in parts[0][:kept]) if kept else ""


def grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Pairs of a subject and its note, as one text for each different note."""
    subjects: dict[str, list[str]] = {}
    for subject, note in notes:
        if note:
            subjects.setdefault(note, []).append(subject)
    return [f"{', '.join(names)}: {note}" for note, names in subjects.items()]
