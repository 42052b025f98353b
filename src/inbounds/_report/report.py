"""`Report` and `Row`: frozen data that prints as text, JSON or HTML. Imports no Keras."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from inbounds._errors import InboundsError, explain
from inbounds._model.table import common_prefix, merged_notes, table

Status = Literal["holds", "violated", "unenforced", "misaligned", "free"]

STATUSES: tuple[Status, ...] = ("violated", "unenforced", "misaligned", "holds", "free")
"""The statuses in the order in which a verdict counts them."""


@dataclass(frozen=True)
class Row:
    """One set on one weight, or on several that form joint units; or a weight without a set.

    Attributes:
        paths: the paths of the weights.
        set: the set, as code; empty for a free weight.
        units: the number of units.
        violated: the number of units outside by more than `tolerance`.
        violation: the largest violation, in the units of the weight; infinity for NaN or
            infinities.
        worst_unit: the index of the unit with the largest violation, in the weight's axes that
            count units; None if none is outside.
        active: the share of units on their boundary; NaN if the set has no boundary.
        tolerance: the largest violation that counts as inside.
        status: "holds"; "violated"; "unenforced": declared, but nothing applies it; "misaligned": a
            constraint of Keras holds along its axis, that axis is not the layer's fan-in, and units
            along the fan-in are outside; "free": no set.
        note: further remarks.
    """

    paths: tuple[str, ...]
    set: str
    units: int
    violated: int
    violation: float
    worst_unit: tuple[int, ...] | None
    active: float
    tolerance: float
    status: Status
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The result of an audit: print it, or read `ok` and `rows`."""

    model: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether something is constrained, and every set holds and is enforced."""
        return bool(self.constrained) and all(row.status == "holds" for row in self.constrained)

    @property
    def constrained(self) -> tuple[Row, ...]:
        """The rows with a set."""
        return tuple(row for row in self.rows if row.status != "free")

    @property
    def violation(self) -> float:
        """The largest violation over the model."""
        return max((row.violation for row in self.rows), default=0.0)

    @property
    def active(self) -> float:
        """The share of units on their boundary over the model, among sets that have one."""
        rows = [row for row in self.constrained if not math.isnan(row.active)]
        units = sum(row.units for row in rows)
        return sum(row.active * row.units for row in rows) / units if units else 0.0

    def __str__(self) -> str:
        columns = ("weight", "set", "units", "violated", "violation", "worst", "active", "tolerance", "status")
        prefix = common_prefix(path for row in self.rows for path in row.paths)
        named = [(row, [path.removeprefix(prefix) for path in row.paths]) for row in self.rows]
        rows = [("\n".join(paths), *_cells(row)[1:-1]) for row, paths in named if row.status != "free"]
        notes = [(" + ".join(paths), f"free, {row.note}" if row.status == "free" else row.note) for row, paths in named]
        under = f", under {prefix}" if prefix not in ("", f"{self.model}/") else ""
        return table(f"Audit of {self.model}{under}: {self._verdict()}", columns, rows, merged_notes(notes))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data. Infinities and NaN, which JSON lacks, become None."""
        rows = [{name: _json_value(value) for name, value in asdict(row).items()} for row in self.rows]
        return {
            "model": self.model,
            "ok": self.ok,
            "violation": _json_value(self.violation),
            "active": _json_value(self.active),
            "rows": rows,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_html(self, path: str | Path) -> Path:
        """Writes the report as one self-contained HTML page.

        Raises:
            InboundsError: Jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError as error:
            raise InboundsError(
                explain(
                    "Can't write the HTML report: Jinja2 is not installed",
                    f"to_html({str(path)!r})",
                    instead="pip install 'inbounds[html]'",
                )
            ) from error
        template = resources.files("inbounds._report").joinpath("report.html").read_text(encoding="utf-8")
        page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
        target = Path(path)
        target.write_text(
            page.render(report=self, verdict=self._verdict(), rows=[(row, _cells(row)) for row in self.rows]),
            encoding="utf-8",
        )
        return target

    def _verdict(self) -> str:
        counts = Counter(row.status for row in self.rows)
        parts = [] if self.constrained else ["nothing is constrained"]
        return ", ".join(parts + [f"{counts[status]} {status}" for status in STATUSES if counts[status]])


def _cells(row: Row) -> tuple[Any, ...]:
    paths = "\n".join(row.paths)
    if row.status == "free":
        return (paths, *[""] * 7, row.status, row.note)
    active = "-" if math.isnan(row.active) else f"{row.active:.0%}"
    worst = "-" if row.worst_unit is None else ", ".join(map(str, row.worst_unit)) or "0"
    return (paths, row.set, row.units, row.violated, row.violation, worst, active, row.tolerance, row.status, row.note)


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
