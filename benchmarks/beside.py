"""What inbounds costs beside steps: imports, the command line, a model of 1,000 layers, and memory.

Each figure is the median of runs that take turns with those they are compared with. Memory is the
peak that a call adds to the process, over the size of the weight it works on; it is read from
Linux' /proc. One backend a process, or by `benchmarks/run.py`:
    KERAS_BACKEND=torch python benchmarks/beside.py
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import inbounds as ib

LAYERS, ENTRIES = 1000, (10_000, 2_500)


def seconds(run):
    gc.collect()  # what other runs have left, such as a loaded model, whose parts refer to each other
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(rounds, **runs):
    """The median time of each run, in seconds."""
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in taken) for name in runs}


def python(*arguments):
    """What a new process of Python prints; it may read what another one has compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment)


IMPORT = "import time, keras; start = time.perf_counter(); import inbounds; print(time.perf_counter() - start)"


def starts(rounds):
    """The time of the import, after that of Keras, and of the command line."""
    python("-c", IMPORT)  # which compiles it
    imports = [float(python("-c", IMPORT).stdout) for _ in range(rounds)]
    command = "-m", "inbounds_launcher"
    taken = in_turns(rounds, version=lambda: python(*command, "--version"), help=lambda: python(*command, "--help"))
    return {
        "`import inbounds` after `import keras`": f"{1000 * statistics.median(imports):.0f} ms",
        "`inbounds --version`": f"{taken['version']:.2f} s",
        "`inbounds --help`": f"{taken['help']:.2f} s",
    }


def wide():
    """Layers side by side: Keras has a limit to how many lie one behind the other."""
    x = keras.Input((8,))
    return keras.Model(x, [keras.layers.Dense(8)(x) for _ in range(LAYERS)])


def large_model(rounds):
    """The time of what is done once to a model of many layers."""
    free, ours, rules = wide(), wide(), {keras.layers.Dense: ib.Joint(ib.MaxNorm(1.0))}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"free": Path(folder) / "free.keras", "ours": Path(folder) / "ours.keras"}
        once = in_turns(rounds, constrain=lambda: ib.constrain(ours, rules), audit=lambda: ib.audit(ours))
        save = in_turns(rounds, free=lambda: free.save(paths["free"]), ours=lambda: ours.save(paths["ours"]))
        load = in_turns(
            rounds, **{name: lambda path=path: keras.saving.load_model(path) for name, path in paths.items()}
        )
    return {
        f"`constrain`, {LAYERS} layers": f"{once['constrain']:.2f} s",
        f"`audit`, {LAYERS} layers": f"{once['audit']:.2f} s",
        f"`save`, {LAYERS} layers, over the free model's": f"{save['ours'] / save['free']:.2f}",
        f"`load_model`, {LAYERS} layers, over the free model's": f"{load['ours'] / load['free']:.2f}",
    }


def peak(run, size):
    """The peak of memory that a call adds, in multiples of `size` bytes; None without /proc."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None

    def known(key):
        return 1024 * int(status.read_text().split(f"{key}:")[1].split()[0])

    clear.write_text("5")
    before = known("VmRSS")
    run()
    return (known("VmHWM") - before) / size


def memory():
    """The peak of what `constrain`, a step and `audit` add to one large weight."""
    found, size = {}, 4 * int(np.prod(ENTRIES))
    x, y = np.ones((1, ENTRIES[0]), "float32"), np.ones((1, ENTRIES[1]), "float32")
    for owner in (None, ib.MaxNorm(1.0), ib.L1Ball(1.0), ib.Simplex()):
        model = keras.Sequential([keras.Input(ENTRIES[:1]), keras.layers.Dense(ENTRIES[1], use_bias=False)])
        model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError())
        if owner is not None:
            found["constrain", owner] = peak(lambda model=model, owner=owner: ib.constrain(model, {"**": owner}), size)
        model.train_on_batch(x, y)
        found["step", owner] = peak(lambda model=model: model.train_on_batch(x, y), size)
        if owner is not None:
            found["audit", owner] = peak(lambda model=model: ib.audit(model), size)
    free = found.pop(("step", None))
    titles = {"constrain": "`constrain`", "step": "a step beyond the free one's", "audit": "`audit`"}
    return {
        f"peak memory of {titles[name]}, {owner!r}, over the weight": (
            "not known" if most is None else f"{most - (free if name == 'step' else 0):.1f}"
        )
        for (name, owner), most in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of lines")
    options = parser.parse_args()
    found = starts(options.rounds) | large_model(options.rounds) | memory()
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
