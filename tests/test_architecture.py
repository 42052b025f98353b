"""Imports go one way, from numbers to the command line.

What only reads weights imports nothing that moves them.
"""

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest

import inbounds
from inbounds._sets.set import CLASSES, Set

pytestmark = pytest.mark.once

PACKAGE = Path(inbounds.__file__).parent
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}

# Each imports itself and those before it. `__init__` has the public names, which the command line
# uses.
ORDER = (
    "_version",
    "_backend",
    "_errors",
    "_types",
    "_arrays",
    "_sets",
    "constraints",
    "testing",
    "_model",
    "_train",
    "_report",
)
ORDER += ("__init__", "_cli", "__main__")
PACKAGES = [name for name in ORDER if (PACKAGE / name).is_dir()]

# Mathematics: numbers and the public names of Keras, never a model.
MATHEMATICS = ("_errors", "_types", "_arrays", "_sets", "constraints", "testing")
OF_MODELS = {f"keras.{name}" for name in ("layers", "Layer", "Model", "models", "optimizers")}

ASSIGNS = {"assign", "assign_add", "assign_sub", "scatter_update", "copy_", "_foreach_copy_"}
READS = {"current_constraint", "entries_in_force"}  # of modules that can assign too

MEASURING = {"_excess", "edges", "measure", "_measured", "singular_values", "violation"}
PROJECTING = {"_project", "project", "__call__", "_move_norm", "Units", "clip_finite"}


def of(*parts):
    """The modules of some packages."""
    return sorted(name for name in MODULES if name.split(".")[0] in parts)


@cache
def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports(name):
    """What a module imports, also in functions: pairs of a module and a name in it ("": all)."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def own(name):
    """What a module imports of inbounds, likewise."""

    def of_a_module(module, member):
        if f"{module}.{member}".removeprefix("inbounds.") in MODULES:
            module, member = f"{module}.{member}", ""
        within = module.removeprefix("inbounds").removeprefix(".")
        return (within if within in MODULES else f"{within}.__init__".removeprefix(".")), member

    return {of_a_module(*pair) for pair in imports(name) if pair[0].split(".")[0] == "inbounds"}


def importers(*names):
    """The modules that import some of these."""
    return {name for name in MODULES if {module for module, _ in own(name)} & set(names)}


def outside(name):
    """The modules besides those of inbounds that a module imports."""
    return {module for module, _ in imports(name) if module.split(".")[0] != "inbounds"}


def attributes(node):
    return {found.attr for found in ast.walk(node) if isinstance(found, ast.Attribute)}


def names(node):
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def assigning():
    """The modules that assign to variables."""
    return {name for name in MODULES if attributes(tree(name)) & ASSIGNS}


@pytest.mark.parametrize("part", ORDER)
def test_a_package_imports_itself_and_those_before_it(part):
    for name in of(part):
        for module, _ in own(name):
            assert module in MODULES, f"{name} imports {module}"
            assert module.split(".")[0] in ORDER[: ORDER.index(part) + 1], f"{name} imports {module}"


def test_every_module_has_its_place_in_the_order():
    assert of(*ORDER) == sorted(MODULES)
    assert {name.split(".")[0] for name in MODULES} == set(ORDER)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_none_of_its_modules(package):
    (docstring,) = tree(f"{package}.__init__").body
    assert ast.get_docstring(tree(f"{package}.__init__")), docstring


def test_nothing_imports_in_a_circle():
    seen, done = [], set()

    def visit(name):
        assert name not in seen, " -> ".join([*seen[seen.index(name) :], name])
        if name not in done:
            seen.append(name)
            for module, _ in own(name):
                visit(module)
            seen.pop()
            done.add(name)

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("name", of(*MATHEMATICS))
def test_mathematics_knows_only_the_public_names_of_keras_and_no_layer(name):
    assert not any(module.startswith("keras.src") or module in OF_MODELS for module in outside(name))
    assert not {f"{module}.{member}" for module, member in imports(name)} & OF_MODELS
    found = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)]
    assert not {f"{node.value.id}.{node.attr}" for node in found if isinstance(node.value, ast.Name)} & OF_MODELS


def test_one_module_assigns_to_variables_for_one_package():
    assert assigning() == {"_train.assignments"}
    assert importers("_train.assignments") <= set(of("_train"))
    assert importers("_train.optimizer_hooks") == {"__init__", "_train.attach", "_train.fit_hooks"}


@pytest.mark.parametrize("name", [*of("_report"), "_cli.catalogue", "_cli.pictures"])
def test_readers_import_nothing_that_moves_weights(name):
    writers = assigning() | importers("_train.assignments")
    assert {member for module, member in own(name) if module in writers} <= READS


@pytest.mark.parametrize("name", ["_report.html", "_report.report", "_model.table"])
def test_the_report_knows_no_keras(name):
    assert not {module.split(".")[0] for module in outside(name)} & {"keras", "numpy"}


def test_private_modules_of_keras_are_imported_in_three_places_only():
    private = {name: sorted(m for m in outside(name) if m.startswith("keras.src")) for name in MODULES}
    assert {name: found for name, found in private.items() if found} == {
        "_train.unsaved_sets": ["keras.src.models.functional"],
        "_model.layout": ["keras.src.layers.rnn.conv_lstm"],
        "_train.optimizers": ["keras.src.backend.common"],
    }


def test_a_backend_is_imported_only_where_it_is_running():
    """Imports of torch, JAX or TensorFlow are in functions that asked for the backend first."""
    for name in MODULES:
        for node in tree(name).body:
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] in ("torch", "jax", "tensorflow") for module in found), name


def test_what_an_audit_measures_with_calls_no_projection():
    """`_excess`, `edges` and `measure` share only a callable's own function with `_project`."""
    functions = [
        node
        for name in of("_arrays", "_sets")
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef) and node.name in MEASURING
    ]
    assert {node.name for node in functions} == MEASURING
    for node in functions:
        assert not (attributes(node) | names(node)) & PROJECTING, node.name


def test_the_audit_calls_no_projection():
    assert not attributes(tree("_report.audit")) & {"_project", "project", *ASSIGNS}
    assert "projected_values" not in names(tree("_report.audit"))


def test_a_class_of_sets_is_abstract_or_final():
    """Sets that are saved have no subclass; what has one, or an abstract method, is never saved."""

    def below(cls):
        own = [sub for sub in cls.__subclasses__() if sub.__module__.startswith("inbounds.")]
        yield cls, bool(own) or inspect.isabstract(cls)
        for sub in own:
            yield from below(sub)

    for cls, abstract in below(Set):
        assert abstract != (CLASSES.get(cls.__name__) is cls), cls
