"""A report as one page of HTML, of which `report.html` is the template."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from string import Template
from typing import Any

from inbounds._model.table import index_text, quantity

MEANINGS = {
    "violated": "Units are outside of the set by more than the tolerance.",
    "unenforced": "The set is declared, but nothing would keep the weight inside.",
    "misaligned": "The constraint of Keras holds along its axis, which is not the layer's fan-in. Along that, units "
    "are outside.",
    "holds": "All units are inside, and something keeps them there.",
    "free": "No set is declared for the weight.",
}
"""The statuses in the order in which a verdict counts them, and what they mean."""

MOST_FAILURES = 20  # how many sets that don't hold are shown above the table, which has all
WIDTH, HEIGHT = 128, 32  # the size of a plot
TOP, BOTTOM = 4, 6  # the space over the highest bar, and the height of the lowest
WIDEST = 8  # the largest distance between two bars
FLAT = 32  # the number of tolerances that a plot spans at least, so that rounding looks flat


def html_page(report: Any) -> str:
    """The page of a report."""
    template = resources.files("inbounds._report").joinpath("report.html").read_text(encoding="utf-8")
    (script,) = re.findall("<script>(.*?)</script>", template, flags=re.DOTALL)
    bad = [row for row in report.constrained if row.status != "holds"]
    sets = len(report.constrained)
    verdict = "The set holds." if sets == 1 else f"All {sets} sets hold." if sets else "Nothing is constrained."
    if bad:
        verdict = f"{len(bad)} of {quantity(sets, 'set')} {'does' if len(bad) == 1 else 'do'} not hold."
    counts = Counter(row.status for row in report.rows)
    statuses = [status for status in MEANINGS if counts[status]]
    made = asdict(report.provenance) if report.provenance else {}
    date = made.get("date", "").replace("T", " ").replace("+00:00", " UTC")
    facts = {
        "sets": f"{sets:,}",
        "units": f"{sum(row.units for row in report.constrained):,}",
        "units outside": f"{sum(row.violated for row in report.constrained):,}",
        "largest violation": _number(report.violation),
        "units on the boundary": f"{report.active:.0%}",
        "weights without a set": f"{counts['free']:,}",
    }
    return Template(template).substitute(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        model=escape(report.model),
        origin="".join(f" · {escape(text)}" for text in (made.get("file"), date) if text),
        outcome="holds" if report.ok else "fails",
        verdict=verdict,
        facts=_pairs(facts.items()),
        failures=_failures(bad),
        options="".join(f'<option value="{status}">{status} ({counts[status]})' for status in statuses),
        count=quantity(len(report.rows), "row"),
        rows="\n".join(map(_row, report.rows)),
        free=_free(report.rows),
        evidence=_evidence(report, made),
        meanings=_pairs((status, escape(MEANINGS[status])) for status in statuses),
    )


def _failures(bad: list[Any]) -> str:
    order = list(MEANINGS)
    worst = sorted(bad, key=lambda row: (order.index(row.status), -row.violation))
    more = f"<p>The table has {len(bad) - MOST_FAILURES:,} more.</p>" if len(bad) > MOST_FAILURES else ""
    shown = "".join(map(_failure, worst[:MOST_FAILURES]))
    return f"<section><h2>What does not hold</h2>{shown}{more}</section>" if bad else ""


def _failure(row: Any) -> str:
    said = MEANINGS[row.status]
    if row.violated:
        by = "has NaN or infinite entries" if not math.isfinite(row.violation) else f"by {_number(row.violation)}"
        within = f"; up to {_number(row.tolerance)} counts as rounding"
        said = f"{row.violated:,} of {quantity(row.units, 'unit')} outside, unit {_worst(row)} {by}{within}."
    note = f'<p class="muted">{escape(row.note)}</p>' if row.note else ""
    plot = f"<figure>{_plot(row)}<figcaption>{_caption(row)}</figcaption></figure>" if row.excess else ""
    return (
        f"<article><div><h3>{_paths(row)}</h3>{_set(row)}"
        f'<p><strong class="fails">{row.status}</strong> {escape(said)}</p>{note}</div>{plot}</article>'
    )


def _row(row: Any) -> str:
    free = row.status == "free"
    share = "&ndash;" if math.isnan(row.active) else f"{row.active:.0%}"
    sizes = map(_number, (row.violation, row.tolerance))
    numbers = ["&ndash;"] * 6 if free else [f"{row.units:,}", f"{row.violated:,}", _worst(row), *sizes, share]
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    kind = "" if row.status in ("holds", "free") else ' class="fails"'
    kind_of_row = ' class="free"' * free
    return (
        f'<tr{kind_of_row}><th scope="row">{_paths(row)}</th><td>{_set(row)}{note}</td><td>{_plot(row)}</td>'
        f"{''.join(f'<td>{number}</td>' for number in numbers)}<td{kind}>{row.status}</td></tr>"
    )


def _paths(row: Any) -> str:
    return "<br>".join(escape(path).replace("/", "/<wbr>") for path in row.paths)  # lines break there


def _set(row: Any) -> str:
    definition = f"<span>{escape(row.definition)}</span>" if row.definition else ""
    return f"{definition}<code>{escape(row.set)}</code>" if row.set else ""


def _worst(row: Any) -> str:
    return "&ndash;" if row.worst_unit is None else index_text(row.worst_unit)


def _number(value: float) -> str:
    return re.sub(r"e([-+])0?", r"e\1", f"{value:.3g}").replace("e+", "e") if math.isfinite(value) else "∞"


# Plots: a bar for each number of a row, from below up to the bound, a line, or over it.


def _plot(row: Any) -> str:
    if not row.excess:
        return ""
    known = [0.0, *filter(math.isfinite, row.excess)]
    scale = (HEIGHT - TOP - BOTTOM) / (max(max(known) - min(known), FLAT * row.tolerance) or 1.0)
    bound = TOP + scale * max(known)
    step = min(WIDEST, WIDTH / len(row.excess))
    bars: dict[str, list[str]] = {"inside": [], "outside": [], "unknown": []}
    for i, value in enumerate(row.excess):
        kind = "outside" if value > row.tolerance else "inside"
        kind, height = (kind, bound - scale * value) if math.isfinite(value) else ("unknown", 0.0)
        bars[kind].append(f"M{(i + 0.5) * step:.4g} {HEIGHT}V{height:.3g}")
    paths = "".join(
        f'<path class="{kind}" stroke-width="{0.7 * step:.2g}" d="{"".join(of)}"/>' for kind, of in bars.items() if of
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_caption(row))}">{paths}'
        f'<path class="bound" d="M0 {bound:.3g}H{WIDTH}"/></svg>'
    )


def _caption(row: Any) -> str:
    known = list(filter(math.isfinite, row.excess))
    alone = len(row.excess) == row.units
    each = "One bar per unit" if alone else "Each bar is a unit, or the worst of several neighbours"
    along = " along the layer's fan-in" if row.status == "misaligned" else ""
    said = [f"the lowest {_number(-min(known))} inside"] if min(known, default=0) < -row.tolerance else []
    said += [f"the highest {_number(max(known))} outside"] if max(known, default=0) > row.tolerance else []
    said += [f"{len(row.excess) - len(known)} NaN or infinite"] if len(known) < len(row.excess) else []
    return f"{each}{along}: {', '.join(said) or 'all on the bound'}."


# What is free, and what the audit was made with and of.


def _free(rows: Sequence[Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "free":
            reasons.setdefault(row.note, []).extend(row.paths)
    if not reasons:
        return f"<p>{'Every weight has a set.' if rows else 'The model has no weights.'}</p>"
    return _pairs(
        (f"{quantity(len(paths), 'weight')}: {escape(why)}", f"<code>{escape(', '.join(paths))}</code>")
        for why, paths in reasons.items()
    )


def _evidence(report: Any, made: Mapping[str, str]) -> str:
    file = made.get("file") or "the model was in memory, not read from a file"
    names = {"sha256": "SHA-256", **{name: name for name in ("date", "inbounds", "keras", "backend", "python")}}
    known = {"model": report.model, "file": file, **{text: made.get(name) for name, text in names.items()}}
    rules = [(f"<code>{escape(rule)}</code>", f"<code>{escape(sets)}</code>") for rule, sets in report.rules.items()]
    pairs = _pairs((name, escape(value)) for name, value in known.items() if value)
    return pairs + (f"<h3>Rules</h3>{_pairs(rules)}" if rules else "")


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in pairs)}</dl>"
