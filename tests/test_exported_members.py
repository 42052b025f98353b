"""The public names: complete, each with one path and a docstring."""

import importlib
import inspect
import pkgutil

import keras
import pytest

import inbounds as ib
from inbounds import constraints

pytestmark = pytest.mark.once

MODULES = [ib, constraints]


def test_public_names_are_listed_once():
    for module in MODULES:
        assert len(module.__all__) == len(set(module.__all__))


def test_all_lists_exactly_what_the_package_offers():
    """Private modules and what a namespace has by accident don't count."""
    public = {name for name in vars(ib) if not name.startswith("_")}
    assert public - {"hook_fits", "hook_layers", "hook_optimizers"} == set(ib.__all__)


def test_every_public_name_is_there():
    for module in MODULES:
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_all_modules_but_two_are_private():
    names = {name for _, name, _ in pkgutil.iter_modules(ib.__path__)}
    assert {name for name in names if not name.startswith("_")} == {"constraints", "testing"}


def test_the_mirror_has_every_name_of_keras_constraints():
    assert set(constraints.__all__) >= {name for name in vars(keras.constraints) if not name.startswith("_")}


def test_each_set_is_one_object_in_both_namespaces():
    shared = set(ib.__all__) & set(constraints.__all__)
    assert shared >= set(constraints.SETS)
    for name in shared:
        assert getattr(ib, name) is getattr(constraints, name)


def test_every_set_is_public():
    found = set()
    for _, name, _ in pkgutil.walk_packages(ib.__path__, "inbounds."):
        if name.startswith("inbounds._sets"):
            members = vars(importlib.import_module(name)).values()
            found |= {c for c in members if inspect.isclass(c) and issubclass(c, ib.Set) and not inspect.isabstract(c)}
    saved = {c for c in found if keras.saving.get_registered_object(f"inbounds>{c.__name__}") is c}
    assert saved == {*constraints.SETS.values(), *constraints.MADE.values()}


def test_each_object_has_one_public_name_besides_the_snake_case_twins_of_keras():
    by_object = {}
    for name in ib.__all__:
        by_object.setdefault(id(getattr(ib, name)), []).append(name)
    twins = sorted(sorted(names) for names in by_object.values() if len(names) > 1)
    assert twins == [
        ["MaxNorm", "max_norm"],
        ["MinMaxNorm", "min_max_norm"],
        ["NonNeg", "non_neg"],
        ["UnitNorm", "unit_norm"],
    ]


@pytest.mark.parametrize("name", ib.__all__)
def test_every_public_name_is_documented(name):
    member = getattr(ib, name)
    own = vars(member).get("__doc__") if inspect.isclass(member) else member.__doc__
    assert own, name
    assert own.strip().splitlines()[0].endswith((".", ":")), "the first line is a sentence"


@pytest.mark.parametrize("name", [name for name in ib.__all__ if inspect.isfunction(getattr(ib, name))])
def test_every_argument_of_a_public_function_is_documented(name):
    function = getattr(ib, name)
    for argument in inspect.signature(function).parameters:
        assert argument in function.__doc__, f"{name}({argument})"


def test_the_version_is_one_that_packaging_reads():
    major, minor, patch = ib.__version__.split(".")
    assert all(part.isdigit() for part in (major, minor, patch))
