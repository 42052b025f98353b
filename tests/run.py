"""Runs lint, types, and the tests on every backend, each in a process of its own.

python tests/run.py [--all] [--backend NAME]... [pytest arguments]

A usual run leaves out what only repeats a proof (tests/repetition.py); with --all it leaves out nothing. With --backend
it runs the tests on that backend, or those, and nothing else. All other arguments go to pytest.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BACKENDS = ("torch", "tensorflow", "jax")  # the first runs what no backend has a part in, and has nothing to compile
CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}
TESTS = ["pytest", "-n", "2", "--dist", "loadgroup"]

SETTINGS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start in every process is not news
    "OMP_WAIT_POLICY": "PASSIVE",  # PyTorch's threads wait without spinning: two processes share two cores
    "PYTHONDONTWRITEBYTECODE": "",  # what one process has compiled, the others needn't
}

# Small models are called a few times: compiling them is nearly all there is to do. With --all XLA optimizes, as it does
# for users.
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


def run(command: list[str], **environment: str) -> str:
    """Runs a command and says how it ended, and after how long."""
    label = " ".join([f"{name}={value}" for name, value in environment.items() if name == "KERAS_BACKEND"] + command)
    print(f"\n+ {label}", flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=os.environ | environment).returncode
    return f"{'passed' if code == 0 else 'FAILED'} in {time.monotonic() - start:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    given, arguments = parser.parse_known_args()
    ended = {} if given.backend else {name: run(check) for name, check in CHECKS.items()}
    once: list[str] = []
    for backend in given.backend or BACKENDS:
        settings = SETTINGS | OF_BACKEND[backend] | ({} if "--all" in arguments else FAST)
        ended[backend] = run([*TESTS, *once, *arguments], KERAS_BACKEND=backend, **settings)
        once = ["--once-done"]
    print("\n" + ", ".join(f"{name}: {how}" for name, how in ended.items()))
    return 0 if all(how.startswith("passed") for how in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
