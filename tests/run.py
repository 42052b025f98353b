"""Runs lint, types, a strict build of the docs (with mkdocs), and the tests on every backend.

python tests/run.py [--all] [--backend NAME]... [pytest arguments]

Each part, such as the tests on one backend, runs in its own process, two parts beside each other;
what a part prints appears when it has ended. What stands on private parts of Keras also runs on the
oldest Keras that pyproject.toml takes; all else runs on the newest. A usual run leaves out what
only repeats a proof (tests/repetition.py). With --all it leaves out nothing, and each folder is a
part of its own, since processes keep what they have compiled, with TensorFlow up to 10 GB each.
With --backend it runs the tests on that backend, or those, and nothing else; where they are one
part, two processes share its tests. All other arguments go to pytest.
"""

import argparse
import functools
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent
BACKENDS = ("torch", "tensorflow", "jax")  # the first runs what no backend has a part in, and has nothing to compile
AT_ONCE = 2
"""How many processes run beside each other."""

CHECKS = {
    "types": ["mypy"],
    "docs": ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(ROOT / ".pytest_cache" / "site")],
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
}
ON_OLDEST_KERAS = ["tests/test_keras_ground.py", "tests/models/test_fit.py"]
"""The private parts of Keras that inbounds hooks, and fits from beginning to end."""

NO_TESTS = 5  # pytest's exit code where -k or a mark leaves a part without tests
TESTS = ["pytest", "--durations", "15"]
SHARED = ["-n", str(AT_ONCE), "--dist", "loadgroup"]

SETTINGS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start in every process is not news
    "OMP_WAIT_POLICY": "PASSIVE",  # PyTorch's threads wait without spinning: two processes share two cores
    "NO_MKDOCS_2_WARNING": "1",  # which successor MkDocs has isn't news either
    "PYTHONDONTWRITEBYTECODE": "",  # what one process has compiled, the others needn't
}

# Small models are called a few times: compiling them is nearly all there is to do. With --all XLA
# optimizes, as it does for users.
OF_BACKEND = {
    "jax": {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),  # also for the next run
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    },
    "torch": {},
    "tensorflow": {},
}
FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}


Part = Callable[[TextIO], str]
"""Runs something, prints to a log, and says how it ended."""


def check(name: str, log: TextIO) -> str:
    """Runs a check; builds the docs only where their extra is installed."""
    if name == "docs" and importlib.util.find_spec("mkdocs") is None:
        return "not built, mkdocs is missing: pip install '.[docs]'"
    return run(CHECKS[name], log, **SETTINGS)


def on_oldest_keras(log: TextIO) -> str:
    """Runs some tests on the oldest Keras that is supported, put before the installed one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (oldest,) = re.findall(r"keras>=([\d.]+)", " ".join(project["dependencies"]))
    folder = ROOT / ".pytest_cache" / f"keras-{oldest}"
    if not folder.exists():
        pip = ["pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder), f"keras=={oldest}"]
        if "FAILED" in run(pip, log):
            return f"no tests, keras {oldest} can't be installed here"
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return run(["pytest", *ON_OLDEST_KERAS], log, KERAS_BACKEND=BACKENDS[0], PYTHONPATH=paths, **SETTINGS)


def run(command: list[str], log: TextIO, **environment: str) -> str:
    """Runs a command and says how it ended, and after how long."""
    label = " ".join([f"{name}={value}" for name, value in environment.items() if name == "KERAS_BACKEND"] + command)
    print(f"\n+ {label}", file=log, flush=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
    )
    how = {0: "passed", NO_TESTS: "no tests"}.get(done.returncode, "FAILED")
    return f"{how} in {time.monotonic() - start:.0f} s"


def on_backends(backends: Iterable[str], arguments: list[str]) -> dict[str, Part]:
    """The tests on each backend, in one part or in several.

    What no backend has a part in is run on the first.
    """
    folders = {"": arguments}
    if "--all" in arguments and not any(Path(ROOT, argument.split("::")[0]).exists() for argument in arguments):
        each = sorted({file.parent for file in Path(__file__).parent.glob("*/test_*.py")})
        folders = {" others": [*arguments, *(f"--ignore={folder}" for folder in each)]}
        folders |= {f" {folder.name}": [*arguments, str(folder)] for folder in each}
    parts, once, alone = {}, [], len(folders) * len(list(backends)) == 1
    for backend in backends:
        settings = SETTINGS | OF_BACKEND[backend] | ({} if "--all" in arguments else FAST) | {"KERAS_BACKEND": backend}
        for name, part in folders.items():
            command = [*TESTS, *(SHARED if alone else []), *once, *part]
            parts[backend + name] = functools.partial(run, command, **settings)
        once = ["--once-done"]
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    given, arguments = parser.parse_known_args()
    parts = on_backends(given.backend or BACKENDS, arguments)
    if not given.backend:  # the longest first, so that the last to end is short
        parts |= {"oldest Keras": on_oldest_keras} | {name: functools.partial(check, name) for name in CHECKS}
    printed = functools.partial(run_part, threading.Lock(), at_once=len(parts) == 1)
    with ThreadPoolExecutor(AT_ONCE) as processes:
        ended = dict(zip(parts, processes.map(printed, parts.values()), strict=True))
    print("\n" + ", ".join(f"{name}: {how}" for name, how in ended.items()))
    hows = {how.split(" in ")[0] for how in ended.values()}
    return 0 if "passed" in hows and "FAILED" not in hows else 1


def run_part(printing: threading.Lock, part: Part, at_once: bool) -> str:
    """Prints what a part prints, at once or, under a lock, when it has ended."""
    if at_once:
        return part(sys.stdout)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        how = part(log)
        log.seek(0)
        with printing:
            print(log.read(), flush=True)
    return how


if __name__ == "__main__":
    sys.exit(main())
