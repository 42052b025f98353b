"""The console command `inbounds`.

Keras takes its backend from the environment when it is first imported, and importing `inbounds` imports Keras. So the
backend is chosen here, in a module beside the package and not in it: KERAS_BACKEND if that is set, else the first of
JAX, PyTorch and TensorFlow that is installed. `python -m inbounds` is the same command on the backend that Keras is
configured for.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

BACKENDS = ("jax", "torch", "tensorflow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Chooses the backend and runs the command.

    Args:
        arguments: of the command line; None: those of the process.

    Returns:
        The exit status: that of the command, or 2 where there is no backend to run on.
    """
    # Keras imports TensorFlow wherever it is installed, and TensorFlow then prints to stderr from C++; the remark on
    # oneDNN, which changes rounding only, can't be silenced but by turning it off.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # PyTorch's threads wait for each other by spinning, which on busy cores makes small models several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted and wanted not in BACKENDS:
        return _fail(f"inbounds runs on {', '.join(BACKENDS)}. Received: KERAS_BACKEND={wanted!r}", "jax")
    backend = next((name for name in ([wanted] if wanted else BACKENDS) if importlib.util.find_spec(name)), None)
    if backend is None and wanted:
        return _fail(f"The backend that KERAS_BACKEND names is not installed. Received: {wanted!r}", wanted)
    if backend is None:
        return _fail(f"Keras needs a backend, and none of {', '.join(BACKENDS)} is installed", "jax")
    os.environ["KERAS_BACKEND"] = backend

    from inbounds._cli import main as run

    return run(arguments)


def _fail(message: str, extra: str) -> int:
    print(f'inbounds: error: {message}. Instead: pip install "inbounds[{extra}]".', file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
