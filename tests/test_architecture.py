"""Imports follow the arrows: sets and layout to rules to plan to attach, and to audit and its readers, none back."""

import ast
from pathlib import Path

import pytest

import inbounds

pytestmark = pytest.mark.once

PACKAGE = Path(inbounds.__file__).parent

FAMILIES = ("entries", "grid", "matrices", "norms", "order", "sparsity", "spectral", "sums")
FAMILY = {"_arguments", "_arrays", "_errors", "_judgement", "_laid", "_set", "_units"}

# The inner ring is mathematics: it sees numbers and the public names of Keras, never a model.
INNER = {
    "_errors": set(),
    "_arguments": {"_errors"},
    "_arrays": {"_errors"},
    "_decompositions": {"_arrays"},
    "_judgement": {"_arrays"},
    "_units": {"_arrays", "_errors", "_judgement"},
    "_laid": {"_arrays", "_errors"},
    "_proximal": {"_arrays", "_units"},
    "_reduced": {"_arrays", "_units"},
    "_set": {"_arguments", "_arrays", "_errors", "_laid", "_proximal", "_reduced", "_units"},
    "_sets.__init__": set(),
    "_sets.entries": FAMILY,
    "_sets.norms": FAMILY | {"_reduced"},
    "_sets.sums": FAMILY | {"_reduced", "_sets.entries"},
    "_sets.grid": FAMILY,
    "_sets.order": FAMILY,
    "_sets.sparsity": FAMILY,
    "_sets.matrices": FAMILY,
    "_sets.spectral": FAMILY | {"_decompositions", "_sets.matrices"},
    "_sets.combine": FAMILY,
    "_sets.scaled": FAMILY | {"_sets.combine"},
    "_sets.ways": FAMILY | {f"_sets.{name}" for name in ("combine", *FAMILIES)},
    "_sets.algebra": FAMILY | {"_sets.combine", "_sets.matrices", "_sets.ways"},
    "constraints": {"_errors", "_set"} | {f"_sets.{name}" for name in ("algebra", "combine", "scaled", *FAMILIES)},
}
OF_THE_STEP = {"_rows", "_stacks"}
WRITERS = {"_step", "_attach", "_fit", "_torch_optim", *OF_THE_STEP}
MEASURED = ("_decompositions", "_laid", "_set", *(name for name in INNER if name.startswith("_sets.")))
MEASURING = {"_excess", "edges", "measure", "_measured", "singular_values", "violation"}
READERS = {"_audit", "_report", "_monitor", "_table", "_pictures", "_catalogue"}


def modules():
    """Every module of the package by its name within it."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(name):
    """What a module imports, in whole, as dotted names; imports inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {node.module} if node.module != "inbounds" else {f"inbounds.{alias.name}" for alias in node.names}
    return found


def own(name):
    """The modules of inbounds that a module imports."""
    return {module.removeprefix("inbounds.") for module in imports(name) if module.startswith("inbounds.")}


def outside(name):
    """The packages besides inbounds that a module imports."""
    return {module for module in imports(name) if not module.startswith("inbounds")}


@pytest.mark.parametrize("name", list(INNER))
def test_the_inner_ring_imports_only_what_is_further_in(name):
    assert own(name) <= INNER[name]


def test_every_set_family_is_in_the_inner_ring():
    assert {name for name in modules() if name.startswith("_sets.")} == {n for n in INNER if n.startswith("_sets.")}


@pytest.mark.parametrize("name", list(INNER))
def test_the_inner_ring_knows_only_the_public_names_of_keras_and_no_layer(name):
    assert not any(module.startswith("keras.src") for module in outside(name))
    source = modules()[name].read_text(encoding="utf-8")
    attributes = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not attributes & {"keras.layers", "keras.Layer", "keras.Model", "keras.models", "keras.optimizers"}


def test_nothing_imports_in_a_circle():
    graph = {name: own(name) for name in modules()}
    seen, done = [], set()

    def visit(name):
        assert name not in seen, " -> ".join([*seen[seen.index(name) :], name])
        if name not in done and name in graph:
            seen.append(name)
            for other in graph[name]:
                visit(other)
            seen.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_only_writers_and_the_package_import_the_step():
    assert {name for name in modules() if "_step" in own(name)} == {"__init__", *WRITERS - {"_step"} - OF_THE_STEP}
    assert {name for name in modules() if OF_THE_STEP & own(name)} == {"_step"}


@pytest.mark.parametrize("name", sorted(READERS))
def test_readers_import_no_writer(name):
    assert not own(name) & WRITERS


def test_the_report_knows_no_keras():
    for name in ("_report", "_table"):
        assert not any(module.split(".")[0] in ("keras", "numpy") for module in outside(name))


def test_private_modules_of_keras_are_imported_in_three_places_only():
    private = {name: sorted(m for m in outside(name) if m.startswith("keras.src")) for name in modules()}
    assert {name: found for name, found in private.items() if found} == {
        "_carry": ["keras.src.models.functional"],
        "_layout": ["keras.src.layers.rnn.conv_lstm"],
        "_step": ["keras.src.backend.common.stateless_scope"],
    }


def test_a_backend_is_imported_only_where_it_is_running():
    """Each import of torch, JAX or TensorFlow is inside a function that asked for the backend first."""
    for name, path in modules().items():
        top = ast.parse(path.read_text(encoding="utf-8")).body
        for node in top:
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] in ("torch", "jax", "tensorflow") for module in found), name


@pytest.mark.parametrize("name", MEASURED)
def test_what_an_audit_measures_with_calls_no_projection(name):
    """`_excess`, `edges` and `measure` share no code with `_project`, but for a callable's own function."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in MEASURING:
            called = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            called |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            assert not called & {"_project", "project", "__call__", "_move_norm", "Units", "clip_finite"}, node.name


def test_the_audit_calls_no_projection():
    tree = ast.parse(modules()["_audit"].read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"_project", "project", "assign"}
    assert "projected" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
