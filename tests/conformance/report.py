"""A plugin of pytest: how many cells are run, by which seed, and the table of what was covered."""

from collections import Counter, defaultdict
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance matrix")
    group.addoption(
        "--cells",
        metavar="N",
        help="which cells of the matrix are run: a number of them, `values` for each value of each axis, `pairs` for"
        " each pair of values of two axes, or `all`",
    )
    group.addoption("--cells-seed", type=int, default=0, metavar="S", help="which cells: the seed of the sample")
    group.addoption(
        "--cells-off",
        type=int,
        default=0,
        metavar="N",
        help="how many sampled cells are run, besides its witnesses, with each mechanism switched off",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    told = [dict(report.user_properties) for report in reports if getattr(report, "when", "call") == "call"]
    asked = terminalreporter.config.getoption("--cells")  # without, this process needn't load Keras
    tables = [coverage(told) if asked else ("", []), mutations(told)]
    for title, lines in tables:
        if lines:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))


def coverage(told: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Situations by sets: how many cells passed, and how many were refused as declared (r)."""
    ran = [properties for properties in told if "cell" in properties]
    if not ran:
        return "", []
    from conformance.matrix import AXES, BACKEND, SETS, size

    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for properties in ran:
        situation, set_name, *_ = properties["cell"].split(" | ")
        counts[situation, set_name][properties["outcome"]] += 1
    totals = Counter(properties["outcome"] for properties in ran)
    width = max(len(held.short) for held in SETS.values())
    lines = [" " * 38 + " ".join(f"{held.short:>{width}}" for held in SETS.values())]
    for situation in AXES["situation"]:
        row = [_shown(counts[situation, name]) for name in SETS]
        lines.append(f"{situation:38}" + " ".join(f"{text:>{width}}" for text in row))
    covered = ", ".join(
        f"{len({p['cell'].split(' | ')[place] for p in ran})} of {len(values)} {axis}s"
        for place, (axis, values) in enumerate(AXES.items())
    )
    cells, left = size()
    lines.append(
        f"{len(ran)} of {cells:,} cells of {BACKEND}: {totals['passed']} passed, {totals['refused']} refused as"
        f" declared (r), {totals['failed']} failed (F); {covered}; {left:,} combinations are left out, see LEFT_OUT"
    )
    return "Conformance matrix: situations by sets", lines


def _shown(count: Counter[str]) -> str:
    marks = {"passed": "", "refused": "r", "failed": "F"}
    return " ".join(f"{count[name]}{mark}" for name, mark in marks.items() if count[name]) or "."


def mutations(told: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Mechanisms by the cells that fail without them."""
    lines = []
    for properties in told:
        if "mechanism" in properties:
            lines.append(f"{properties['mechanism']} ({properties['failing']} of {properties['tried']} fail without)")
            lines += [f"    {line}" for line in properties["failures"]]
    return "Mechanisms, and what fails without each", lines
