"""Runs lint, types, a strict build of the docs (with mkdocs), and the tests on every backend.

python tests/run.py [--all] [--backend NAME]... [pytest arguments]

Each backend runs in its own process. What stands on private parts of Keras also runs on the oldest
Keras that pyproject.toml takes; all else runs on the newest. A usual run leaves out what only
repeats a proof (tests/repetition.py). With --all it leaves out nothing, and takes one folder after
the other, since processes keep what they have compiled, with TensorFlow up to 10 GB each. With
--backend it runs the tests on that backend, or those, and nothing else. All other arguments go to
pytest.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent
BACKENDS = ("torch", "tensorflow", "jax")  # the first runs what no backend has a part in, and has nothing to compile
CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
    "docs": ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(ROOT / ".pytest_cache" / "site")],
}
ON_OLDEST_KERAS = ["tests/test_keras_ground.py", "tests/models/test_fit.py"]
"""The private parts of Keras that inbounds hooks, and fits from beginning to end."""

NO_TESTS = 5  # pytest's exit code where -k or a mark leaves a part without tests
TESTS = ["pytest", "-n", "2", "--dist", "loadgroup", "--durations", "15"]

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


def check(name: str) -> str:
    """Runs a check and says how it ended; builds the docs only where their extra is installed."""
    if name == "docs" and importlib.util.find_spec("mkdocs") is None:
        return "not built, mkdocs is missing: pip install '.[docs]'"
    return run(CHECKS[name], **SETTINGS)


def on_oldest_keras(log: TextIO) -> str:
    """Runs some tests on the oldest Keras that is supported, which is put before the installed one.

    They run beside the checks, which take one core each, and compile first what others import.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (oldest,) = re.findall(r"keras>=([\d.]+)", " ".join(project["dependencies"]))
    folder = ROOT / ".pytest_cache" / f"keras-{oldest}"
    if not folder.exists():
        pip = ["pip", "install", "--quiet", "--no-deps", "--target", str(folder), f"keras=={oldest}"]
        if "FAILED" in run(pip, log):
            return f"no tests, keras {oldest} can't be installed here"
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return run(["pytest", *ON_OLDEST_KERAS], log, KERAS_BACKEND=BACKENDS[0], PYTHONPATH=paths, **SETTINGS)


def run(command: list[str], log: TextIO = sys.stdout, **environment: str) -> str:
    """Runs a command and says how it ended, and after how long."""
    label = " ".join([f"{name}={value}" for name, value in environment.items() if name == "KERAS_BACKEND"] + command)
    print(f"\n+ {label}", file=log, flush=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
    )
    how = {0: "passed", NO_TESTS: "no tests"}.get(done.returncode, "FAILED")
    return f"{how} in {time.monotonic() - start:.0f} s"


def parts(arguments: list[str]) -> dict[str, list[str]]:
    """What pytest is called with for each part of the tests, by the part's name."""
    if "--all" not in arguments or any(Path(ROOT, argument.split("::")[0]).exists() for argument in arguments):
        return {"": arguments}
    folders = sorted({file.parent for file in Path(__file__).parent.glob("*/test_*.py")})
    others = {" others": [*arguments, *(f"--ignore={folder}" for folder in folders)]}
    return others | {f" {folder.name}": [*arguments, str(folder)] for folder in folders}


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    given, arguments = parser.parse_known_args()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, ThreadPoolExecutor() as beside:
        oldest = None if given.backend else beside.submit(on_oldest_keras, log)
        ended = {} if given.backend else {name: check(name) for name in CHECKS}
        ended |= on_backends(given.backend or BACKENDS, arguments)
        if oldest is not None:
            ended["oldest Keras"] = oldest.result()
            log.seek(0)
            print(log.read())
    print("\n" + ", ".join(f"{name}: {how}" for name, how in ended.items()))
    hows = {how.split(" in ")[0] for how in ended.values()}
    return 0 if "passed" in hows and "FAILED" not in hows else 1


def on_backends(backends: Iterable[str], arguments: list[str]) -> dict[str, str]:
    """Runs the tests on one backend after the other, and says how each run ended."""
    ended, once = {}, []
    for backend in backends:
        settings = SETTINGS | OF_BACKEND[backend] | ({} if "--all" in arguments else FAST)
        for name, part in parts(arguments).items():
            ended[backend + name] = run([*TESTS, *once, *part], KERAS_BACKEND=backend, **settings)
        once = ["--once-done"]
    return ended


if __name__ == "__main__":
    sys.exit(main())
