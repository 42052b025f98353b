"""Imports Keras, on a backend that is installed. The package imports this module before any other.

Keras takes its backend when it is first imported: from KERAS_BACKEND, else from keras.json, else
TensorFlow, and fails where that isn't installed. The choice here is Keras' own wherever Keras could
be imported with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("jax", "torch", "tensorflow")
"""What inbounds runs on, in the order in which one is taken where Keras' own choice isn't
installed."""


def import_keras() -> None:
    """Imports Keras. The environment is left as it was.

    Raises:
        ImportError: KERAS_BACKEND names no backend that inbounds runs on, or one that isn't
            installed; or none is.
    """
    if "keras" in sys.modules:  # its backend can't be changed any more
        return
    given = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = _chosen(given)
    try:
        importlib.import_module("keras")
    finally:
        if given is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = given


def _chosen(given: str | None) -> str:
    """What KERAS_BACKEND says, else keras.json, else the first that is installed."""
    if given and given not in BACKENDS:
        raise ImportError(
            f"KERAS_BACKEND={given!r} names no backend that inbounds runs on. Instead: KERAS_BACKEND={BACKENDS[0]}, "
            f"or {' or '.join(BACKENDS[1:])}."
        )
    if given and not _installed(given):
        raise ImportError(
            f"KERAS_BACKEND={given!r} names a backend that isn't installed. Instead: pip install 'inbounds[{given}]'."
        )
    wanted = given or _configured()
    found = [name for name in (wanted, *BACKENDS) if name in BACKENDS and _installed(name)]
    if not found:
        raise ImportError(
            f"Keras has no backend to run on: none of {', '.join(BACKENDS)} is installed. "
            f"Instead: pip install 'inbounds[{BACKENDS[0]}]'."
        )
    return found[0]


def _configured() -> str:
    """The backend that Keras takes without KERAS_BACKEND: that of keras.json, else TensorFlow."""
    base = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    folder = Path(os.environ.get("KERAS_HOME", base / ".keras"))
    try:
        config = json.loads((folder / "keras.json").expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras goes on without it, too
        config = {}
    return str(config.get("backend", "tensorflow")) if isinstance(config, dict) else "tensorflow"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # something on the import path refuses it
        return False


import_keras()
