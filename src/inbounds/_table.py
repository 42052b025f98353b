"""Tables as text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int = 140) -> str:
    """A table as plain text; numbers to the right."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) or row[i] in ("-", "") for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(f"{value:.3g}" if isinstance(value, float) else str(value)) for value in row))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(made)
    return str(console.file.getvalue()).rstrip()
