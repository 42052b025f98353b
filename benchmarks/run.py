"""Measures what a set costs on every installed backend; writes the tables of docs/performance.md.

    python benchmarks/run.py          # writes docs/performance.md, benchmarks/performance.json
    python benchmarks/run.py --check  # fails where a step takes over 10 % more than those files say
    python benchmarks/run.py --page   # writes the page from the stored figures

The first two measure for half an hour, and nothing else should run meanwhile. The bytes that XLA's
step moves don't depend on the machine, so that any more of them fail the check. Other arguments are
those of `step_time.py`.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STORED, PAGE = ROOT / "benchmarks" / "performance.json", ROOT / "docs" / "performance.md"
BACKENDS = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}
VERSIONED = {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow-cpu"}
PEERS = "scipy", "optax", "jaxopt", "geotorch"
WORKLOADS = {
    "mlp": "784-512x4-10",
    "many": "41 Dense(32)",
    "conv": "3 Conv2D(32) on 28 x 28",
    "matrices": "784-512x4-10, sets of matrices",
}
PROJECTIONS = "projections alone"
ALONE = ["Box", "NonNeg", "MaxNorm", "UnitNorm", "Joint", "Simplex", "L1Ball", "Sparse", "Monotone", "SpectralNorm"]
ALONE += ["Orthogonal"]
COLD, WARM = "outside", "after a step"

SUMMARY = {
    "Keras' own `MaxNorm`, `NonNeg`": ("mlp", "Keras' MaxNorm and NonNeg", None),
    "the same in a callback": ("mlp", "Keras' MaxNorm and NonNeg in a callback", None),
    "`MaxNorm`, `NonNeg`": ("mlp", "MaxNorm and NonNeg", "larger batches"),
    "the same, 41 layers of 32 units": ("many", "MaxNorm and NonNeg", "larger layers"),
    "the same, 3 convolutions": ("conv", "MaxNorm and NonNeg", None),
    "`Joint(MaxNorm)`": ("mlp", "Joint(MaxNorm)", "larger batches"),
    "`L1Ball`": ("mlp", "L1Ball", "`every=10`"),
    "`L1Ball`, `every=10`": ("mlp", "L1Ball, every=10", None),
    "`Simplex`": ("mlp", "Simplex", "`every=10`"),
    "an SVD in a constraint of Keras": ("matrices", "an SVD in a constraint of Keras", None),
    "`SpectralNorm`": ("matrices", "SpectralNorm", "`every=10`"),
    "`SpectralNorm`, `every=10`": ("matrices", "SpectralNorm, every=10", '`every=100` or `every="epoch"`'),
}
"""The first table of the page: the workload and the variant of a row, and what to do about it."""


def measured(backend: str, script: str, arguments: list[str]) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", *arguments]
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    print(f"+ KERAS_BACKEND={backend} {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> str:
    names = ["keras", *(VERSIONED[backend] for backend in BACKENDS if importlib.util.find_spec(backend))]
    names += [name for name in PEERS if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    today = datetime.date.today().isoformat()
    return f"{today}, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}."


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |\n" for row in (["", *columns], *rows)]
    return lines[0] + f"|---{'|---' * len(columns)}|\n" + "".join(lines[1:])


def summary(found: dict[str, dict]) -> str:
    """What a step takes by default, plainly in brackets, and what to do where that is too much."""
    rows = []
    for title, (workload, variant, advice) in SUMMARY.items():
        cells = []
        for ends in found.values():
            default, plain = (ends.get(workload, {}).get(name) for name in (variant, f"{variant}, plain"))
            cell = figure(default["ratio"]) if default else "-"
            cells.append(cell + (f" ({figure(plain['ratio'])})" if plain else ""))
        if any(cell != "-" for cell in cells):
            rows.append([title, *cells, advice or ""])
    return table([*(BACKENDS[name] for name in found), "where that is too much"], rows)


def spread(end: dict | None) -> str:
    """A ratio, and in brackets its quartiles and what compiling takes."""
    if end is None:
        return "-"
    low, high = end["quartiles"]
    compiling = f"; {end['compiling']:.1f}" if "compiling" in end else ""
    return f"{figure(end['ratio'])} ({figure(low)} to {figure(high)}{compiling})"


def figure(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def steps(found: dict[str, dict]) -> str:
    """A table for each workload: its variants by the backends, the bytes on JAX, the violation."""
    text = ""
    for workload, title in WORKLOADS.items():
        ends = {backend: workloads[workload] for backend, workloads in found.items() if workload in workloads}
        if not ends:
            continue
        free = ", ".join(f"{one['free']['ms']:.1f} ms on {BACKENDS[backend]}" for backend, one in ends.items())
        rows = []
        for variant in next(iter(ends.values())):
            each = [one[variant] for one in ends.values()]
            moved = [f"{end['bytes']:+.1f}" for end in each if "bytes" in end]
            outside = [end["outside"] for end in each if "outside" in end]
            last = ["".join(moved) or "-", f"{max(outside):.2g}" if outside else "-"]
            if variant != "free":
                rows.append([variant, *map(spread, each), *last])
        columns = [*(BACKENDS[name] for name in ends), "bytes on JAX", "outside"]
        text += f"\n**{title}**, a free step: {free}.\n\n{table(columns, rows)}"
    return text + over_svd(found)


def over_svd(found: dict[str, dict]) -> str:
    """The share of what an SVD adds to a step that SpectralNorm adds."""
    shares = []
    for backend, workloads in found.items():
        ends = {name: end["ratio"] - 1 for name, end in workloads.get("matrices", {}).items()}
        if {"SpectralNorm", "SpectralNorm, plain", "an SVD in a constraint of Keras"} <= set(ends):
            svd = ends["an SVD in a constraint of Keras"]
            plain, default = ends["SpectralNorm, plain"] / svd, ends["SpectralNorm"] / svd
            shares.append(f"{plain:.2f} plainly and {default:.2f} by default on {BACKENDS[backend]}")
    if not shares:
        return ""
    return f"\nOf what that SVD adds to a step, `SpectralNorm` adds {', '.join(shares)}.\n"


def alone(found: dict[str, dict]) -> str:
    """A table of projections for each backend, beside others who do the same."""
    text, seen = "", ""
    for backend, workloads in found.items():
        ends, rows = workloads.get(PROJECTIONS, {}), []
        for name in ALONE:
            places = [ends[f"{name}, {place}"] for place in (COLD, WARM) if f"{name}, {place}" in ends]
            if places:
                others = ", ".join(f"{other} {figure(end['ratio'])}" for other, end in places[0]["others"].items())
                rows.append([f"`{name}`", *map(spread, places), others or "-"])
                seen += others
        if rows:
            text += f"\n**Projections alone**, on {BACKENDS[backend]}.\n\n"
            text += table(["cold", WARM, "others, cold"], rows)
    missing = ", ".join(name for name in PEERS if name not in seen)
    return text + (f"\nNot measured, since they can't be imported here: {missing}.\n" if text and missing else "")


def beside(found: dict[str, dict[str, str]]) -> str:
    """A table of what inbounds costs beside steps, on one backend."""
    text = ""
    for backend, figures in found.items():
        text += f"\n**Beside steps**, on {BACKENDS[backend]}.\n\n{table([''], [list(row) for row in figures.items()])}"
    return text


def write_page(stored: dict) -> None:
    """Fills what lies between the marks of the page."""
    details = f"{stored['machine']}\n{steps(stored['steps'])}{alone(stored['steps'])}{beside(stored['beside'])}"
    page = PAGE.read_text()
    for name, text in {"summary": summary(stored["steps"]), "tables": details}.items():
        begin = f"<!-- {name}, measured by benchmarks/run.py -->\n"
        before, after = page.split(begin)
        page = f"{before}{begin}\n{text}\n<!-- end -->{after.split('<!-- end -->', 1)[1]}"
    PAGE.write_text(page)


def slower(found: dict[str, dict], stored: dict[str, dict]) -> list[str]:
    """Where ours takes over 10 % more than what is stored, moves more bytes, or ends outside."""
    worse = []
    for backend, workloads in found.items():
        for workload, variants in workloads.items():
            for variant, end in variants.items():
                old = stored.get(backend, {}).get(workload, {}).get(variant)
                where = f"{BACKENDS[backend]}, {WORKLOADS.get(workload, workload)}, {variant}"
                if old is None:
                    print(f"not compared, since it isn't stored: {where}")
                    continue
                if "Keras" in variant:
                    continue
                if end["ratio"] > 1.1 * old["ratio"]:
                    worse.append(f"{where}: {end['ratio']:.2f} times as long, {old['ratio']:.2f} before")
                if end.get("bytes", 0) > old.get("bytes", float("inf")):
                    worse.append(f"{where}: {end['bytes']:+.1f} times the weights' bytes, {old['bytes']:+.1f} before")
                if end.get("outside", 0) > old.get("outside", float("inf")):
                    worse.append(f"{where}: outside by {end['outside']:.2g}, {old['outside']:.2g} before")
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and write nothing")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--backend", action="append", choices=list(BACKENDS), help="those installed where left out")
    parser.add_argument("--rounds", type=int, default=5)
    options, arguments = parser.parse_known_args()
    if options.backend and not options.check:
        parser.error("--backend goes with --check: the page has every backend, of one run")
    if options.page:
        write_page(json.loads(STORED.read_text()))
        return 0
    rounds = ["--rounds", str(options.rounds)]
    backends = options.backend or [name for name in BACKENDS if importlib.util.find_spec(name)]
    chosen = ["--budget", "5", "--sets", *ALONE, "--places", COLD, WARM]
    once = "torch" if "torch" in backends else backends[0]
    figures = {} if options.check else {once: measured(once, "beside.py", [])}
    found = {}
    for backend in backends:
        projections = {} if backend == "tensorflow" else measured(backend, "projections.py", rounds + chosen)
        found[backend] = measured(backend, "step_time.py", rounds + arguments) | {PROJECTIONS: projections}
    if options.check:
        worse = slower(found, json.loads(STORED.read_text())["steps"])
        print("\n".join(worse) or "Nothing is slower than in benchmarks/performance.json.")
        return 1 if worse else 0
    stored = {"machine": machine(), "steps": found, "beside": figures}
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
    write_page(stored)
    return 0


if __name__ == "__main__":
    sys.exit(main())
