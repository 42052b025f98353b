"""Runs a script of this folder in processes of its own, where devices can be made, and reads the JSON it ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def told_by(script, *arguments):
    """What a script prints last."""
    return told_by_each(script, [arguments])[0]


def told_by_each(script, arguments):
    """What the same script prints last in processes side by side, each with its own arguments."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), *given],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for given in arguments
    ]
    try:
        ended = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in ended]
