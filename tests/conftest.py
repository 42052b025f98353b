"""What every test starts from: a clean Keras state, a fixed seed, KERAS_BACKEND's backend."""

import gc
import os

os.environ["COLUMNS"] = "120"  # tables are as wide as the terminal
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # channels first, on processors where it isn't the default

import pytest

import repetition

pytest_plugins = ["conformance.report"]


def pytest_addoption(parser):
    group = parser.getgroup("how much is run")
    group.addoption("--all", action="store_true", help="also what is repetition: see tests/repetition.py")
    group.addoption("--once-done", action="store_true", help="not what is marked `once`: another backend's run has it")


def pytest_configure(config):
    repetition.everything = config.getoption("--all")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    import keras  # here, so that the process that only hands out tests starts without

    backend = keras.backend.backend()
    if os.environ.get("KERAS_BACKEND", backend) != backend:
        raise RuntimeError(f"KERAS_BACKEND={os.environ['KERAS_BACKEND']}, but Keras runs on {backend}")
    for item, group in zip(items, groups_of(items), strict=True):
        if item.get_closest_marker("xdist_group") is None and group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
    yield  # pytest-xdist looks at groups, -k and -m select
    out = set()
    if config.getoption("--once-done"):
        out |= {item for item in items if is_once(item)}
    if not config.getoption("--all"):
        turns = [item for item in items if not is_once(item)]  # which has none: only the first backend runs it
        out |= {item for item in turns if repetition.is_of_another_backend(item, backend)}
        out |= set(repetition.left_out(item for item in items if item not in out))
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]
    gc.freeze()  # of what is imported by now nothing is freed: looking for it again and again takes a tenth of the time
    gc.set_threshold(20_000, 10, 10)


def is_once(item):
    """Whether no backend has a part in a test: it is marked so, or computes with NumPy's arrays."""
    return item.get_closest_marker("once") is not None or parameters_of(item).get("library") == "numpy"


def parameters_of(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def groups_of(items):
    """For each test the name of its group: one process runs a group, and compiles for all of it."""
    numbers = {}
    for item in items:
        told = next(((name, value) for name, value in parameters_of(item).items() if name in ("case", "owner")), None)
        layer = parameters_of(item).get("name") if "layout" in item.path.parts else None
        if told is not None:
            name, value = told
            yield f"{name} {numbers.setdefault(id(value), len(numbers))}"
        else:
            yield layer


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names start anew, and nothing random depends on the test before."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
