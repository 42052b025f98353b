"""Runs lint, types, and the tests on every backend, each in a process of its own. Arguments go to pytest.

python tests/run.py [pytest arguments]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BACKENDS = ("jax", "torch", "tensorflow")
CHECKS = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
)

SETTINGS = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start in every process is not news
    "OMP_WAIT_POLICY": "PASSIVE",  # PyTorch's threads wait without spinning: two processes share two cores
}

SHARED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # what one process has compiled, the other needn't
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def run(command: list[str], **environment: str) -> bool:
    label = " ".join([f"{name}={value}" for name, value in environment.items() if name == "KERAS_BACKEND"] + command)
    print(f"\n+ {label}", flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=os.environ | environment).returncode == 0


def main() -> int:
    checked = [run(check) for check in CHECKS]  # all of them, so that one run tells all
    if not all(checked):
        return 1
    with tempfile.TemporaryDirectory() as cache:
        settings = {**SETTINGS, **SHARED, "JAX_COMPILATION_CACHE_DIR": cache}
        passed = {
            backend: run(["pytest", "-n", "2", *sys.argv[1:]], KERAS_BACKEND=backend, **settings)
            for backend in BACKENDS
        }
    print("\n" + ", ".join(f"{backend}: {'passed' if ok else 'FAILED'}" for backend, ok in passed.items()))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
