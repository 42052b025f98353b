"""Tables: a title, rows, and notes below, as text no wider than a terminal, and for notebooks."""

from __future__ import annotations

import html
import io
import re
import shutil
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from inbounds._errors import printable

WIDTH = 120

NARROWEST = 12  # the width to which columns of text may fold

_NO_BREAK = "\u00a0"

_NUMBER = re.compile(r"|-|[-+]?[\d.]+(e[-+]?\d+)?%?|inf|nan")


@dataclass(frozen=True)
class Table:
    """A title, rows of cells and notes: `print` it, or show it in a notebook.

    As text it is as wide as the terminal (or COLUMNS says), 120 columns at most and where there is
    none. Columns of numbers are right-aligned, texts fold. Where they would fold to less than
    NARROWEST, each row is a heading, its first cell, with its other cells named below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    @classmethod
    def of_weights(
        cls,
        title: str,
        columns: Sequence[str],
        rows: Iterable[tuple[Sequence[str], Sequence[Any]]],
        notes: Iterable[tuple[Sequence[str], str]],
        prefix: str,
        more_notes: Sequence[str] = (),
    ) -> Table:
        """A table whose rows and notes begin with paths of weights, shown without `prefix`."""

        def named(paths: Sequence[str], between: str) -> str:
            return between.join(path.removeprefix(prefix) for path in paths)

        cells = [(named(paths, "\n"), *rest) for paths, rest in rows]
        merged = merged_notes((named(paths, " + "), note) for paths, note in notes)
        return cls(title, columns, cells, [*merged, *more_notes])

    def __str__(self) -> str:
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        cells = [[_cell(value) for value in row] for row in self.rows]
        numeric = [all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(self.columns))]
        widths = [
            max(_width(text) if number else min(_width(text), NARROWEST) for text in column)
            for number, column in zip(numeric, zip(self.columns, *cells, strict=True), strict=True)
        ]
        fits = sum(widths) + 2 * len(widths) <= width
        lines = self._grid(cells, numeric, width) if fits else self._records(cells, width)
        below = [
            textwrap.fill(printable(note), width, initial_indent="- ", subsequent_indent="  ") for note in self.notes
        ]
        blocks = ["\n".join(textwrap.wrap(printable(self.title), width)), "\n".join(lines), "\n".join(below)]
        return "\n\n".join(block for block in blocks if block)

    def _grid(self, cells: Sequence[Sequence[str]], numeric: Sequence[bool], width: int) -> Sequence[str]:
        made = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for column, number in zip(self.columns, numeric, strict=True):
            made.add_column(column, justify="right" if number and cells else "left", overflow="fold")
        for row in cells:
            made.add_row(*map(Text, row))
        console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
        console.print(made)
        return [line.rstrip() for line in console.file.getvalue().splitlines()] if cells else []

    def _records(self, cells: Sequence[Sequence[str]], width: int) -> Sequence[str]:
        lines = []
        for heading, *row in cells:
            named = zip(self.columns[1:], row, strict=True)
            pairs = "  ".join(f"{name}: {text}".replace(" ", _NO_BREAK) for name, text in named if text)
            filled = textwrap.fill(pairs, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            names = [part for line in heading.split("\n") for part in textwrap.wrap(line, width)]
            lines += [*names, filled.replace(_NO_BREAK, " "), ""]
        return lines[:-1]

    def _repr_html_(self) -> str:
        """The table for a notebook; its style stays in it."""

        def line(tag: str, cells: Sequence[Any]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(_cell(cell))}</{tag}>' for cell in cells)}</tr>"

        style = ".inbounds :is(td, th) { text-align: left; vertical-align: top; white-space: pre-line }"
        body = "".join(line("td", row) for row in self.rows)
        below = "".join(f"<li>{html.escape(printable(note))}</li>" for note in self.notes)
        return (
            f'<div class="inbounds" style="overflow-x: auto"><style>{style}</style>'
            f"<p>{html.escape(printable(self.title))}</p>"
            f"<table><thead>{line('th', self.columns)}</thead><tbody>{body}</tbody></table><ul>{below}</ul></div>"
        )


class Tabular(ABC):
    """What prints as a table, and shows itself as one in a notebook."""

    @abstractmethod
    def _table(self) -> Table: ...

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def quantity(number: int, noun: str) -> str:
    """A number and a noun, in the plural unless the number is 1: "1 set", "2 sets"."""
    return f"{number} {noun}" + "s" * (number != 1)


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value), lines=True)


def index_text(index: Sequence[int] | None) -> str:
    """The index of a unit; "-" without one."""
    return "-" if index is None else ", ".join(map(str, index)) or "0"


def common_prefix(paths: Iterable[str]) -> str:
    """The first parts that all paths share, such as `"sequential/"`, but no path's last two."""
    levels = zip(*(path.split("/")[:-2] for path in paths), strict=False)
    return "".join(f"{parts[0]}/" for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))


def merged_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Pairs of a subject and its note as one line for each distinct note: "a, b: note"."""
    subjects: dict[str, list[str]] = {}
    for subject, note in notes:
        if note:
            subjects.setdefault(note, []).append(subject)
    return [f"{', '.join(names)}: {note}" for note, names in subjects.items()]
