"""The console command `inbounds`: the environment that its libraries read when they are imported, then the command.

It is a module beside the package and not in it, since importing `inbounds` imports Keras with its backend.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line; None: those of the process.

    Returns:
        The exit status: that of the command, or 2 where it can't be imported: there is no backend to run on.
    """
    # Keras imports TensorFlow wherever it is installed, and TensorFlow then prints to stderr from C++; the remark on
    # oneDNN, which changes rounding only, can't be silenced but by turning it off.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # PyTorch's threads wait for each other by spinning, which on busy cores makes small models several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from inbounds._cli.cli import main as run
    except ImportError as error:
        print(f"inbounds: error: {error}", file=sys.stderr)
        return 2
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
