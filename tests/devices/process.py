"""Runs a script of this folder in a process of its own, which can make devices; reads its JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def told_by(script, *arguments):
    """What a script prints last."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
