"""Files of a killed run, files that Keras writes itself, exports: what can be read is inside."""

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from measure import inside, norms, numbers, on_bound, same_bits, slack, values_of

import inbounds as ib
import repetition

BACKEND = keras.backend.backend()
BOUND = 0.4
RULES = {"hidden": ib.Joint(ib.MaxNorm(BOUND)), "out": ib.UnitNorm()}
KILLS = int(os.environ.get("INBOUNDS_KILLS", "4" if repetition.everything else "2"))


def free():
    """A model without a plan, whose weights are outside: its biases, and most of its units."""
    layers = [
        keras.layers.Dense(12, activation="relu", bias_initializer="ones", name="hidden"),
        keras.layers.Dense(10, activation="softmax", name="out"),
    ]
    return keras.Sequential([keras.Input((64,)), *layers])


def rules(model):
    return [(model.get_layer("hidden"), RULES["hidden"]), ("out/kernel", RULES["out"])]


def planned(optimizer=None):
    model = free()
    ib.constrain(model, rules(model))
    model.compile(optimizer or keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    return model


def fit(model, digits, **arguments):
    return model.fit(digits[0][:128], digits[1][:128], batch_size=32, verbose=0, **arguments)


def lengths(model):
    """The norms of the units of both sets, with nothing of inbounds."""
    hidden, out = model.get_layer("hidden"), model.get_layer("out")
    return norms((hidden.kernel, (0,)), (hidden.bias, ())), norms((out.kernel, (0,)))


def assert_held(model):
    joint, unit = lengths(model)
    assert inside(joint, BOUND)
    assert np.all(np.abs(unit - 1.0) <= slack(1.0))
    assert ib.audit(model, rules(model)).ok


# A run that is killed.

SERVER = """
import importlib.util, json, os, sys
import keras, numpy as np
import inbounds as ib
from sklearn.datasets import load_digits

sys.path.insert(0, sys.argv[1])
import test_files

if importlib.util.find_spec("tensorflow"):  # which Keras imports late, in each run
    import tensorflow

data = load_digits()
digits = (data.data[:256] / 16).astype("float32"), data.target[:256].astype("int32")


class Tell(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if not self.told:
            print("stepped", flush=True)
        self.told = True

    told = False


def run(folder, epochs, seed):
    keras.utils.set_random_seed(seed)
    model = test_files.planned()
    callbacks = [
        keras.callbacks.BackupAndRestore(folder + "/backup", 1, double_checkpoint=True, delete_checkpoint=False),
        keras.callbacks.ModelCheckpoint(folder + "/last.keras", save_freq=1),
        Tell(),
    ]
    model.fit(*digits, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)
    model.save(folder + "/final.keras")


print("ready", flush=True)
for line in sys.stdin:  # nothing has run on the backend yet, so that a fork is safe
    child = os.fork()
    if child == 0:
        try:
            run(*json.loads(line))
        except BaseException as error:
            print(f"failed {type(error).__name__}: {error}".replace("\\n", " "), flush=True)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Runs:
    """Training runs in processes that a server forks, which has imported everything."""

    def __init__(self, cache):
        paths = [str(Path(ib.__file__).parents[1]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                "JAX_COMPILATION_CACHE_DIR": str(cache),  # else each run compiles for seconds
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            | os.environ
            | {"KERAS_BACKEND": BACKEND, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.lines = queue.Queue()
        self.process = None
        self.reader = threading.Thread(target=lambda: [self.lines.put(line.strip()) for line in self.server.stdout])
        self.reader.start()
        assert self.told() == "ready"

    def told(self):
        """The next line that the server or a run prints."""
        return self.lines.get(timeout=60)

    def start(self, folder, epochs, seed):
        print(json.dumps([str(folder), epochs, seed]), file=self.server.stdin, flush=True)
        self.process = int(self.told())
        return self.told()

    def kill(self):
        os.kill(self.process, signal.SIGKILL)
        self.ended()

    def ended(self):
        assert self.told() == "ended"
        self.process = None

    def stop(self):
        if self.process is not None:
            os.kill(self.process, signal.SIGKILL)
        self.server.stdin.close()
        self.server.wait(30)
        self.reader.join(30)
        self.server.stdout.close()


@pytest.fixture
def runs(tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("a process with a backend in it can be forked on Linux")
    made = Runs(tmp_path_factory.mktemp("cache"))
    yield made
    made.stop()


def found_in(folder):
    """What loads of the files that a killed run left: models, by the files' names."""
    found = {}
    for path in (folder / "last.keras", *folder.glob("backup/latest.weights.h5*")):
        try:
            if path.suffix == ".keras":
                model = keras.models.load_model(path)
            else:
                model = free()
                whole = folder / "copy.weights.h5"
                whole.write_bytes(path.read_bytes())
                model.load_weights(whole)
        except Exception:  # a file that was being written doesn't load, in whatever way, and says nothing wrong
            continue
        found[path.name] = model
    return found


@pytest.mark.by_turns
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # of a weights file, in a model without
def test_no_file_of_a_killed_run_that_loads_is_outside_and_the_resumed_run_ends_inside(runs, tmp_path):
    chance = random.Random(20)
    backup = tmp_path / "backup"
    seen, refused, loaded, weights = [], [], 0, []
    while len(seen) < KILLS:
        said = runs.start(tmp_path, 10_000, len(seen) + len(refused))
        if said != "stepped":  # Keras can't read its own backup, as when its metadata were being written
            runs.ended()
            shutil.rmtree(backup, ignore_errors=True)
            refused.append(said)
            assert len(refused) <= KILLS, refused
            continue
        time.sleep(chance.uniform(0.0, 0.4))
        runs.kill()
        models = found_in(tmp_path)
        for model in models.values():
            assert_held(model)
        weights += [values_of(model)[0].tobytes() for model in models.values()]
        loaded += len(models)
        seen.append(", ".join(sorted(models)))
    assert loaded >= KILLS, seen
    assert len(set(weights)) > KILLS // 2, "the files are of different moments"
    try:
        reached = json.loads((backup / "training_metadata.json").read_text())["epoch"]
    except (OSError, ValueError):
        reached = 0
        shutil.rmtree(backup, ignore_errors=True)
    assert runs.start(tmp_path, reached + 3, KILLS) == "stepped", "the run resumes"
    runs.ended()
    final = keras.models.load_model(tmp_path / "final.keras")
    assert_held(final)
    assert on_bound(lengths(final)[0], BOUND)
    if "INBOUNDS_KILLS" in os.environ:
        print(*seen, *refused, sep="\n")


# Files of weights from elsewhere.


def outside(path, digits):
    """A file of weights that have been trained without a plan, all of whose sets they leave."""
    model = free()
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    fit(model, digits)
    model.save(path) if path.suffix == ".keras" else model.save_weights(path)
    return values_of(model)


@pytest.mark.by_turns
@pytest.mark.parametrize("name", ["free.weights.h5", "free.keras"])
def test_weights_from_outside_are_found_violated_and_projected_at_once(name, digits, tmp_path):
    there = outside(tmp_path / name, digits)
    model = planned(keras.optimizers.SGD(1.0))
    model.load_weights(tmp_path / name)
    assert same_bits(values_of(model), there), "loading changes nothing"
    report = ib.audit(model)
    assert [row.status for row in report.rows] == ["violated", "violated", "free"]
    joint, unit = lengths(model)
    assert abs(report.rows[0].violation - (joint.max() - BOUND)) < 1e-12
    assert abs(report.rows[1].violation - np.abs(unit - 1.0).max()) < 1e-12
    ib.project(model)
    assert_held(model)
    ib.project(model)
    assert_held(model)


@pytest.mark.by_turns
def test_training_on_from_weights_from_outside_ends_inside_frozen_ones_but_for_a_projection(digits, tmp_path):
    outside(tmp_path / "free.weights.h5", digits)
    model = planned(keras.optimizers.SGD(1.0))
    model.get_layer("out").kernel.trainable = False
    model.load_weights(tmp_path / "free.weights.h5")
    ib.project(model)
    assert_held(model)
    still = numbers(model.get_layer("out").kernel)
    fit(model, digits)
    assert_held(model)
    np.testing.assert_array_equal(numbers(model.get_layer("out").kernel), still)


# Files that callbacks write.


AVERAGES = {
    "accumulation and average": {"gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.9},
    "average that overwrites": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
}


@pytest.mark.by_turns
@pytest.mark.parametrize("way", list(AVERAGES))
def test_the_best_of_many_checkpoints_is_inside(way, digits, tmp_path):
    model, told = planned(keras.optimizers.Adam(0.05, **AVERAGES[way])), []
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "loss", save_best_only=True)

    class Listens(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            told.append((tmp_path / "best.keras").read_bytes())

    fit(model, digits, epochs=3, callbacks=[best, Listens()])  # of 4 batches: two end within an accumulation of 3
    assert_held(model)
    files = list(dict.fromkeys(told))
    assert len(files) > 1, "there is more than one best"
    for content in (files[0], files[-1]):
        (tmp_path / "then.keras").write_bytes(content)
        assert_held(keras.models.load_model(tmp_path / "then.keras"))


# Exports.

READER = """
import json, sys

sys.modules["inbounds"] = sys.modules["keras"] = None  # whatever imports them fails
import numpy as np

def read(form, path, inputs):
    if form == "torch":
        import torch

        program = torch.export.load(path)
        outputs = [program.module()(torch.tensor(row[None])).detach().numpy()[0] for row in inputs]
        return outputs, [weight.detach().numpy() for weight in program.state_dict.values()]
    import tensorflow as tf

    if form == "tf_saved_model":
        served = tf.saved_model.load(path)
        return served.serve(inputs).numpy(), [variable.numpy() for variable in served.variables]
    lite = tf.lite.Interpreter(path)
    lite.allocate_tensors()
    weights = []
    for detail in lite.get_tensor_details():
        if len(detail["shape"]) == 2 and detail["shape"][0] > 1:
            weights.append(lite.get_tensor(detail["index"]).T)  # a kernel is kept with one unit a row
    outputs = []
    for row in inputs:
        lite.set_tensor(lite.get_input_details()[0]["index"], row[None])
        lite.invoke()
        outputs.append(lite.get_tensor(lite.get_output_details()[0]["index"])[0].copy())
    return outputs, weights

found, inputs = {}, np.load(sys.argv[1])
for form, path in zip(sys.argv[2::2], sys.argv[3::2]):
    outputs, weights = read(form, path, inputs)
    kernels = {len(weight): weight.tolist() for weight in weights if weight.ndim == 2}
    found[form] = {"outputs": np.array(outputs).tolist(), "hidden": kernels[64], "out": kernels[12]}
assert sys.modules["inbounds"] is None
print(json.dumps(found))
"""

FORMATS = {  # and ONNX, for which Keras needs a package more
    "jax": {"tf_saved_model": "served"},
    "tensorflow": {"tf_saved_model": "served", "litert": "model.tflite"},
    "torch": {"torch": "model.pt2"},
}


@(pytest.mark.repetition if BACKEND != "tensorflow" else pytest.mark.repeats())  # which has most of the formats
@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")  # Keras' call of JAX
def test_exports_have_the_weights_that_are_inside_and_need_nothing_of_inbounds(digits, tmp_path):
    if BACKEND == "jax":
        pytest.importorskip("tensorflow", reason="TensorFlow writes it")
    model = planned()
    fit(model, digits)
    assert_held(model)
    inputs = digits[0][:4]
    np.save(tmp_path / "inputs.npy", inputs)
    command = [sys.executable, "-W", "ignore", "-c", READER, str(tmp_path / "inputs.npy")]
    for form, name in FORMATS[BACKEND].items():
        model.export(tmp_path / name, format=form, verbose=False)
        command += [form, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]).values():
        for name in ("hidden", "out"):
            np.testing.assert_array_equal(np.float32(found[name]), numbers(model.get_layer(name).kernel))
        np.testing.assert_allclose(found["outputs"], numbers(model(inputs)), rtol=0, atol=1e-6)
