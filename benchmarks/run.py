"""Measures what a step costs on every installed backend; writes the tables of docs/performance.md.

    python benchmarks/run.py          # writes docs/performance.md, benchmarks/performance.json
    python benchmarks/run.py --check  # fails where a step takes over 10 % more than those files say

Both measure, and nothing else should run meanwhile. The bytes that XLA's step moves don't depend on
the machine, so that any more of them fail the check.
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
BEGIN, END = "<!-- measured by benchmarks/run.py -->\n", "<!-- end -->\n"
BACKENDS = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}
WORKLOADS = {
    "mlp": "784-512x4-10",
    "many": "41 Dense(32)",
    "conv": "3 Conv2D(32) on 28 x 28",
    "matrices": "784-512x4-10, sets of matrices",
}
VERSIONED = {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow-cpu"}


def measured(backend: str, script: str, arguments: list[str]) -> dict[str, dict]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", *arguments]
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    print(f"+ KERAS_BACKEND={backend} {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> str:
    packages = ["keras", *(VERSIONED[backend] for backend in BACKENDS if importlib.util.find_spec(backend))]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    today = datetime.date.today().isoformat()
    return f"{today}, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}."


def tables(found: dict[str, dict]) -> str:
    """A table for each workload: its variants by the backends, and the bytes of JAX's step."""
    text = ""
    for workload, title in WORKLOADS.items():
        variants = next(iter(found.values())).get(workload, {})
        if not variants:
            continue
        free = ", ".join(f"{ends[workload]['free']['ms']:.1f} ms on {BACKENDS[name]}" for name, ends in found.items())
        text += f"\n**{title}**, a free step: {free}.\n\n"
        bytes_known = "jax" in found
        columns = [BACKENDS[name] for name in found] + ["bytes on JAX"] * bytes_known
        text += f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|\n"
        for variant in (name for name in variants if name != "free"):
            cells = []
            for ends in found.values():
                end = ends[workload][variant]
                low, high = end["quartiles"]
                cells.append(f"{end['ratio']:.2f} ({low:.2f} to {high:.2f}; {end['first']:.1f})")
            if bytes_known:
                cells.append(f"{found['jax'][workload][variant]['bytes']:+.1f}")
            text += f"| {variant} | {' | '.join(cells)} |\n"
    return text


def beside(backend: str, found: dict[str, str]) -> str:
    """A table of what inbounds costs beside steps, on one backend."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in found.items())
    return f"\n**Beside steps**, on {BACKENDS[backend]}.\n\n| | |\n|---|---|\n{rows}"


def slower(found: dict[str, dict], stored: dict[str, dict]) -> list[str]:
    """Where a step takes over 10 % more than what is stored, or reads or writes more."""
    worse = []
    for backend, workloads in found.items():
        for workload, variants in workloads.items():
            for variant, end in variants.items():
                old = stored.get(backend, {}).get(workload, {}).get(variant)
                where = f"{BACKENDS[backend]}, {WORKLOADS[workload]}, {variant}"
                if old is None:
                    print(f"not compared, since it isn't stored: {where}")
                    continue
                if end["ratio"] > 1.1 * old["ratio"]:
                    worse.append(f"{where}: {end['ratio']:.2f} times the free step, {old['ratio']:.2f} before")
                if end.get("bytes", 0) > old.get("bytes", float("inf")):
                    worse.append(f"{where}: {end['bytes']:+.1f} times the weights' bytes, {old['bytes']:+.1f} before")
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and write nothing")
    parser.add_argument("--backend", action="append", choices=list(BACKENDS), help="those installed where left out")
    options, arguments = parser.parse_known_args()
    if options.backend and not options.check:
        parser.error("--backend goes with --check: the page has every backend, of one run")
    backends = options.backend or [name for name in BACKENDS if importlib.util.find_spec(name)]
    found = {backend: measured(backend, "step_time.py", arguments) for backend in backends}
    if options.check:
        worse = slower(found, json.loads(STORED.read_text()))
        print("\n".join(worse) or "No step is slower than in benchmarks/performance.json.")
        return 1 if worse else 0
    STORED.write_text(json.dumps(found, indent=1) + "\n")
    backend = "torch" if "torch" in found else backends[0]
    text = tables(found) + beside(backend, measured(backend, "beside.py", []))
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + f"\n{machine()}\n" + text + "\n" + END + after)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
