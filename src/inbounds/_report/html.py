"""A report as one page of HTML. `report.html` is its template; the numbers are those of the report's JSON."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template
from typing import Any

from inbounds._model.table import index_text, quantity

Json = dict[str, Any]

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


def html_page(report: Json) -> str:
    """The page of a report, which is given as `Report.to_dict` makes it."""
    template = resources.files("inbounds._report").joinpath("report.html").read_text(encoding="utf-8")
    (script,) = re.findall("<script>(.*?)</script>", template, flags=re.DOTALL)
    constrained = [row for row in report["rows"] if row["status"] != "free"]
    bad = [row for row in constrained if row["status"] != "holds"]
    if not constrained:
        verdict = "Nothing is constrained."
    elif bad:
        verdict = f"{len(bad)} of {quantity(len(constrained), 'set')} {'does' if len(bad) == 1 else 'do'} not hold."
    else:
        verdict = "The set holds." if len(constrained) == 1 else f"All {len(constrained)} sets hold."
    counts = Counter(row["status"] for row in report["rows"])
    statuses = [status for status in MEANINGS if counts[status]]
    return Template(template).substitute(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        model=escape(report["model"]),
        origin=escape(_origin(report)),
        outcome="holds" if report["ok"] else "fails",
        verdict=verdict,
        facts=_facts(report, constrained),
        failures=_failures(bad),
        options="".join(f'<option value="{status}">{status} ({counts[status]})' for status in statuses),
        count=quantity(len(report["rows"]), "row"),
        rows="\n".join(map(_row, report["rows"])),
        free=_free(report["rows"]),
        evidence=_evidence(report),
        meanings=_pairs((status, escape(MEANINGS[status])) for status in statuses),
    )


def _origin(report: Json) -> str:
    made = report["provenance"] or {}
    date = made.get("date", "").replace("T", " ").replace("+00:00", " UTC")
    return "".join(f" · {text}" for text in (made.get("file"), date) if text)


def _facts(report: Json, constrained: list[Json]) -> str:
    units = sum(row["units"] for row in constrained)
    outside = sum(row["violated"] for row in constrained)
    facts = {
        "sets": f"{len(constrained):,}",
        "units": f"{units:,}",
        "units outside": f"{outside:,}",
        "largest violation": _number(report["violation"]),
        "units on the boundary": f"{report['active']:.0%}",
        "weights without a set": f"{sum(row['status'] == 'free' for row in report['rows']):,}",
    }
    return _pairs(facts.items())


def _failures(bad: list[Json]) -> str:
    if not bad:
        return ""
    order = list(MEANINGS)
    worst = sorted(bad, key=lambda row: (order.index(row["status"]), -_size(row["violation"])))
    more = f"<p>The table has {len(bad) - MOST_FAILURES:,} more.</p>" if len(bad) > MOST_FAILURES else ""
    return f"<section><h2>What does not hold</h2>{''.join(map(_failure, worst[:MOST_FAILURES]))}{more}</section>"


def _failure(row: Json) -> str:
    said = MEANINGS[row["status"]]
    if row["violated"]:
        by = _number(row["violation"])
        worst = f"unit {_worst(row)} " + ("has NaN or infinite entries" if by == "∞" else f"by {by}")
        within = f"; up to {_number(row['tolerance'])} counts as rounding"
        said = f"{row['violated']:,} of {quantity(row['units'], 'unit')} outside, {worst}{within}."
    note = f'<p class="muted">{escape(row["note"])}</p>' if row["note"] else ""
    plot = ""
    if row["excess"]:
        plot = f"<figure>{_plot(row)}<figcaption>{_caption(row)}</figcaption></figure>"
    return (
        f"<article><div><h3>{_paths(row)}</h3>{_set(row)}"
        f'<p><strong class="fails">{row["status"]}</strong> {escape(said)}</p>{note}</div>{plot}</article>'
    )


def _row(row: Json) -> str:
    free = row["status"] == "free"
    numbers = ["&ndash;"] * 6
    if not free:
        share = "&ndash;" if row["active"] is None else f"{row['active']:.0%}"
        sizes = [_number(row[name]) for name in ("violation", "tolerance")]
        numbers = [f"{row['units']:,}", f"{row['violated']:,}", _worst(row), *sizes, share]
    note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
    kind = "" if row["status"] in ("holds", "free") else ' class="fails"'
    kind_of_row = ' class="free"' if free else ""
    return (
        f'<tr{kind_of_row}><th scope="row">{_paths(row)}</th><td>{_set(row)}{note}</td><td>{_plot(row)}</td>'
        + "".join(f"<td>{number}</td>" for number in numbers)
        + f"<td{kind}>{row['status']}</td></tr>"
    )


def _paths(row: Json) -> str:
    return "<br>".join(map(escape, row["paths"]))


def _set(row: Json) -> str:
    definition = f"<span>{escape(row['definition'])}</span>" if row["definition"] else ""
    return f"{definition}<code>{escape(row['set'])}</code>" if row["set"] else ""


def _worst(row: Json) -> str:
    return "&ndash;" if row["worst_unit"] is None else index_text(row["worst_unit"])


def _number(value: float | None) -> str:
    return "∞" if value is None else re.sub(r"e([-+])0?", r"e\1", f"{value:.3g}").replace("e+", "e")


def _size(violation: float | None) -> float:
    return float("inf") if violation is None else violation


# Plots: a bar for each number of a row, from below up to the bound, a line, or over it.


def _plot(row: Json) -> str:
    if not row["excess"]:
        return ""
    known = [value for value in row["excess"] if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (HEIGHT - TOP - BOTTOM) / (max(high - low, FLAT * row["tolerance"]) or 1.0)
    bound = TOP + scale * high
    step = min(WIDEST, WIDTH / len(row["excess"]))
    bars: dict[str, list[str]] = {"inside": [], "outside": [], "unknown": []}
    for i, value in enumerate(row["excess"]):
        kind = "unknown" if value is None else "outside" if value > row["tolerance"] else "inside"
        height = 0.0 if value is None else bound - scale * value
        bars[kind].append(f"M{(i + 0.5) * step:.4g} {HEIGHT}V{height:.3g}")
    paths = "".join(
        f'<path class="{kind}" stroke-width="{0.7 * step:.2g}" d="{"".join(of)}"/>' for kind, of in bars.items() if of
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_caption(row))}">{paths}'
        f'<path class="bound" d="M0 {bound:.3g}H{WIDTH}"/></svg>'
    )


def _caption(row: Json) -> str:
    known = [value for value in row["excess"] if value is not None]
    unknown = len(row["excess"]) - len(known)
    alone = len(row["excess"]) == row["units"]
    each = "One bar per unit" if alone else "Each bar is a unit, or the worst of several neighbours"
    along = " along the layer's fan-in" if row["status"] == "misaligned" else ""
    said = [f"the lowest {_number(-min(known))} inside"] if min(known, default=0) < -row["tolerance"] else []
    said += [f"the highest {_number(max(known))} outside"] if max(known, default=0) > row["tolerance"] else []
    said += [f"{unknown} NaN or infinite"] if unknown else []
    return f"{each}{along}: {', '.join(said) or 'all on the bound'}."


# What is free, and what the audit was made with and of.


def _free(rows: list[Json]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "free":
            reasons.setdefault(row["note"], []).extend(row["paths"])
    if not reasons:
        return f"<p>{'Every weight has a set.' if rows else 'The model has no weights.'}</p>"
    return _pairs(
        (f"{quantity(len(paths), 'weight')}: {escape(why)}", f"<code>{escape(', '.join(paths))}</code>")
        for why, paths in reasons.items()
    )


def _evidence(report: Json) -> str:
    made = report["provenance"] or {}
    known = {
        "model": report["model"],
        "file": made.get("file") or "the model was in memory, not read from a file",
        "SHA-256": made.get("sha256", ""),
        **{name: made.get(name, "") for name in ("date", "inbounds", "keras", "backend", "python")},
    }
    pairs = [(name, escape(value)) for name, value in known.items() if value]
    rules = [(f"<code>{escape(rule)}</code>", f"<code>{escape(sets)}</code>") for rule, sets in report["rules"].items()]
    return _pairs(pairs) + (f"<h3>Rules</h3>{_pairs(rules)}" if rules else "")


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in pairs)}</dl>"
