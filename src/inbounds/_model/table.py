"""Tables as text: a title, the rows, and notes below them, no wider than a terminal."""

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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Iterable[str] = ()) -> str:
    """A table as plain text. Columns of numbers are right-aligned; each note is a paragraph."""
    cells = [[_cell(value) for value in row] for row in rows]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    console.print(made)
    lines = ["", *(line.rstrip() for line in console.file.getvalue().splitlines())] if rows else []
    below = [textwrap.fill(printable(note), WIDTH, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return "\n".join([*textwrap.wrap(printable(title), WIDTH), *lines, *([""] if below else []), *below])


def quantity(number: int, noun: str) -> str:
    """A number and a noun, in the plural unless the number is 1: "1 set", "2 sets"."""
    return f"{number} {noun}" + "s" * (number != 1)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value), lines=True)


def common_prefix(paths: Iterable[str]) -> str:
    """The first parts that all paths share, such as `"sequential/"`, but no path's last two."""
    parts = [path.split("/") for path in paths]
    shared = 0
    while parts and all(len(p) > shared + 2 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return "".join(f"{part}/" for part in parts[0][:shared]) if shared else ""


def merged_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Pairs of a subject and its note as one line for each distinct note: "a, b: note"."""
    subjects: dict[str, list[str]] = {}
    for subject, note in notes:
        if note:
            subjects.setdefault(note, []).append(subject)
    return [f"{', '.join(names)}: {note}" for note, names in subjects.items()]
