"""`Report` and `Row`: frozen data that prints as text, JSON or HTML, and is drawn.

This module imports no Keras.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from inbounds._errors import printable
from inbounds._model.table import Table, Tabular, common_prefix, index_text, quantity
from inbounds._report.html import MEANINGS, html_page

Status = Literal["holds", "violated", "unenforced", "misaligned", "free"]

COLUMNS = ("weight", "set", "units", "violated", "violation", "worst", "active", "tolerance", "status")
"""The columns of the table of a report, see `cells`."""


@dataclass(frozen=True)
class Row:
    """One set on one weight, or on several that form joint units; or a weight without a set.

    Attributes:
        paths: the paths of the weights.
        set: the set, as code; empty for a free weight.
        units: the number of units.
        violated: the number of units outside by more than `tolerance`.
        violation: the largest violation, rounding included, in the units of the weight; infinity
            for NaN or infinities.
        worst_unit: the index of the unit with the largest violation, in the weight's axes that
            count units; None if none is outside.
        active: the share of units on their boundary; NaN if the set has no boundary.
        tolerance: the largest violation that counts as inside.
        status: "holds"; "violated"; "unenforced": declared, but nothing applies it; "misaligned": a
            constraint of Keras holds along its axis, that axis is not the layer's fan-in, and units
            along the fan-in are outside; "free": no set.
        note: further remarks.
        definition: the set in mathematics, from its docstring; empty for a free weight.
        source: the rule, or the layer's argument, that assigns the set; empty for a free weight.
        excess: how far units are outside, above 0, or inside, below 0, for a plot: one number for
            each unit, or of more than 64 units the largest of each of up to 64 runs of neighbours,
            which are equally long but for the last. Infinity where an entry is NaN or infinite.
            Units in which a mask marks no entry are left out. Of a misaligned row, units along the
            layer's fan-in.
        entries: for a plot, up to 64 of the entries, from the smallest to the largest, evenly
            spaced; NaN is last. Of more than 4,096 entries, a sample.
        singular_values: for a plot, of a set of matrices the up to 64 largest ones of each matrix.
            Empty for other sets, and where the matrix's shorter side is longer than 512.
    """

    paths: tuple[str, ...]
    set: str
    units: int = 0
    violated: int = 0
    violation: float = 0.0
    worst_unit: tuple[int, ...] | None = None
    active: float = math.nan
    tolerance: float = 0.0
    status: Status = "free"
    note: str = ""
    definition: str = ""
    source: str = ""
    excess: tuple[float, ...] = ()
    entries: tuple[float, ...] = ()
    singular_values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """When and with which versions an audit was made, and of which file."""

    date: str  # in UTC, ISO 8601
    inbounds: str
    keras: str
    backend: str  # its name and version
    python: str
    file: str = ""  # its name; empty if the model was not read from one
    sha256: str = ""  # of the file, in hexadecimal


@dataclass(frozen=True)
class Report(Tabular):
    """The result of an audit: print it, or read `ok` and `rows`. In a notebook it shows itself.

    Attributes:
        model: the name of the model.
        rows: a row for every set, and one for every weight without.
        provenance: versions, date and file. Reports with the same rows are equal without it.
    """

    model: str
    rows: tuple[Row, ...]
    provenance: Provenance | None = field(default=None, compare=False)

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
        """The largest violation over the model; 0 where all of it is rounding."""
        return max((row.violation for row in self.rows if row.violated), default=0.0)

    @property
    def active(self) -> float:
        """The share of units on their boundary over the model, among sets that have one."""
        rows = [row for row in self.constrained if not math.isnan(row.active)]
        units = sum(row.units for row in rows)
        return sum(row.active * row.units for row in rows) / units if units else 0.0

    @property
    def rules(self) -> dict[str, str]:
        """From each rule, or argument of layers, to the sets that it assigns, as code."""
        sets: dict[str, dict[str, None]] = {}
        for row in self.constrained:
            sets.setdefault(row.source, {})[row.set] = None
        return {source: ", ".join(assigned) for source, assigned in sets.items()}

    def of_file(self, path: str | Path) -> Report:
        """The same report with the name and SHA-256 of the file that the model was loaded from."""
        if self.provenance is None:
            return self
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return replace(self, provenance=replace(self.provenance, file=printable(Path(path).name), sha256=digest))

    def _table(self) -> Table:
        prefix = common_prefix(path for row in self.rows for path in row.paths)
        under = f", under {prefix}" if prefix not in ("", f"{self.model}/") else ""
        free = Counter(row.note for row in self.rows if row.status == "free")
        why = ", ".join(f"{count} {reason}" for reason, count in free.items())
        return Table.of_weights(
            f"Audit of {self.model}{under}: {self._verdict()}",
            COLUMNS,
            [(row.paths, cells(row)) for row in self.constrained],
            [(row.paths, row.note) for row in self.constrained],
            prefix,
            [f"{quantity(free.total(), 'weight')} without a set: {why}"] if free else [],
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data (docs/reports.md).

        Infinities and NaN, which JSON lacks, become None.
        """
        data: dict[str, Any] = _json_value(
            {
                "model": self.model,
                "ok": self.ok,
                "violation": self.violation,
                "active": self.active,
                "provenance": self.provenance and asdict(self.provenance),
                "rules": self.rules,
                "rows": [asdict(row) for row in self.rows],
            }
        )
        return data

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_html(self, path: str | Path) -> Path:
        """Writes the report as one page of HTML, which needs no other file and no network.

        A file at this path is replaced.

        Raises:
            OSError: the file can't be written.
        """
        target = Path(path)
        target.write_text(html_page(self), encoding="utf-8")
        return target

    def plot(self, pressure: Iterable[Any] = ()) -> Any:
        """Draws each set's units against the bound, and its singular values or sorted entries.

        A bar is a unit, or the worst of neighbours. It rises from the bound, a line, where the unit
        is outside, and hangs from it where it is inside; NaN and infinities are striped. Of more
        than 12 sets the first 12 are drawn, those that don't hold before the others.

        Args:
            pressure: what `inbounds.pressure` gives for this model: a third plot then shows for
                each unit what its bound costs.

        Returns:
            A figure of matplotlib: a notebook shows it, and `figure.savefig(path)` writes it.

        Raises:
            InboundsError: matplotlib isn't installed.
        """
        from inbounds._report.plots import report_figure

        rows = sorted(self.constrained, key=lambda row: row.status == "holds")
        return report_figure(self.model, rows, {row.paths: row.values for row in pressure})

    def _verdict(self) -> str:
        counts: Counter[str] = Counter(row.status for row in self.rows)
        parts = [] if self.constrained else ["nothing is constrained"]
        return ", ".join(parts + [f"{counts[status]} {status}" for status in MEANINGS if counts[status]])


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row in a table, after its weights."""
    active = "-" if math.isnan(row.active) else f"{row.active:.0%}"
    sizes = f"{row.violation if row.violated else 0.0:.3g}", index_text(row.worst_unit), active, f"{row.tolerance:.3g}"
    return (row.set, str(row.units), str(row.violated), *sizes, row.status)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
