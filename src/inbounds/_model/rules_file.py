"""Rules files: the arguments of `constrain` in TOML, see docs/command-line.md.

The code of a set is parsed and not evaluated: it may hold only sets, numbers, strings, None, lists
and tuples. A table's place is where it first appears. So with `[layers]` below `[rules]`, the rules
in `[layers]` win.
"""

from __future__ import annotations

import ast
import math
import tomllib
from pathlib import Path
from typing import Any

import keras

from inbounds._errors import FileError, SetError, raised_as, shown, similar_or_first
from inbounds._model.weights import layers_of
from inbounds._sets.custom import Custom
from inbounds._sets.set import Set
from inbounds._sets.value import NAMES, Training
from inbounds.constraints import BY_NAME, call_of, named, signature, without_arguments

TABLES = ("rules", "layers")

EXAMPLE_CALLS = {
    "where": "MaxNorm(1.0).where([True, True, False])",
    "on": "MaxNorm(1.0).on(inputs=[0, 3])",
    "per": "MaxNorm(1.0).per('inputs')",
}
"""Calls of the methods that make a set of a set, as errors show them."""

EXAMPLE = 'a table [rules] with "**/kernel" = "MaxNorm(2.0)", or [layers] with Dense = "Joint(MaxNorm(2.0))"'


def read_rules(path: Path, model: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The rules of a file, with the layers of this model, and its settings, for `constrain`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FileError(f"Can't read the rules file: {reason}", f"{str(path)!r}", instead=EXAMPLE) from error
    except tomllib.TOMLDecodeError as error:
        wrong = f"The rules file is not TOML: {error}"
        raise FileError(wrong, f"{str(path)!r}", instead="globs and sets in quotes, as in " + EXAMPLE) from error
    rules: dict[Any, Any] = {}
    for entry, content in document.items():
        if entry in NAMES:
            continue
        if entry not in TABLES:
            wrong = f"A rules file has no entry {entry!r}, only [rules], [layers], metric, every, gradient and latent"
            instead = " or ".join(similar_or_first(entry, (*TABLES, *NAMES)))
            raise FileError(wrong, f"{entry} = {shown(content)}", where=str(path), instead=instead)
        if not isinstance(content, dict):
            wrong = f"[{entry}] is not a table"
            raise FileError(wrong, f"{entry} = {shown(content)}", where=str(path), instead=EXAMPLE)
        for key, value in content.items():
            where = f"{path}, [{entry}], {key}"
            selectors = [key] if entry == "rules" else _layer_selectors(key, model, where)
            if entry == "layers" and isinstance(value, dict):
                value = {name: _rule_set(inner, f"{where}, {name}") for name, inner in value.items()}
            else:
                value = _rule_set(value, where)
            rules |= dict.fromkeys(selectors, value)
    if not rules:
        raise FileError("A rules file has no rules", shown(document), where=str(path), instead=EXAMPLE)
    with raised_as(FileError, f"In: {path}"):
        return rules, vars(Training.checked("a rules file", {key: document[key] for key in NAMES if key in document}))


def parse_set(text: str) -> Set:
    """The set that an expression such as `"Joint(MaxNorm(1.0))"` or `"NonNeg"` stands for."""
    try:
        return _set_of(ast.parse(text.strip(), mode="eval").body)
    except SetError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_a_set_error(text) from error


def _rule_set(value: Any, where: str) -> Set:
    if not isinstance(value, str):
        wrong = "A rule is not the code of a set in quotes"
        raise FileError(wrong, shown(value), where=where, instead='"MaxNorm(max_value=1.5)"')
    with raised_as(FileError, f"In: {where}"):
        return parse_set(value)


def _layer_selectors(name: str, model: Any, where: str) -> list[Any]:
    """The selectors for a name in [layers]: a class of layers, or the layers of that name."""
    layers = layers_of(model)
    classes = {cls for layer in layers for cls in type(layer).__mro__ if issubclass(cls, keras.Layer)}
    same_class = [cls for cls in classes if cls.__name__ == name]
    same_name = [layer for layer in layers if layer.name == name]
    if len(same_class) + bool(same_name) > 1:
        meanings = sorted(f"the class {cls.__module__}.{cls.__qualname__}" for cls in same_class)
        meanings += [f"the layer {layer.name}" for layer in same_name[:1]]
        wrong = f"{name!r} in [layers] has more than one meaning"
        raise FileError(wrong, " and ".join(meanings), where=where, instead="[rules] with globs on the weights' paths")
    if not same_class and not same_name:
        known = [*(layer.name for layer in layers), *(type(layer).__name__ for layer in layers)]
        wrong = f"{name!r} in [layers] is neither a layer of the model nor the class of one"
        raise FileError(wrong, repr(name), where=where, instead=" or ".join(similar_or_first(name, sorted(set(known)))))
    return [*same_class, *same_name]


# Expressions: from a node of the parsed code to a set or an argument.


def _set_of(node: ast.expr) -> Set:
    found: Set
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            found = _set_of(left) & _set_of(right)
        case ast.Call(
            func=ast.Attribute(value=inner, attr="where" | "on" | "per" as name), args=args, keywords=keywords
        ):
            found = _called(getattr(_set_of(inner), name), node, args, keywords, EXAMPLE_CALLS[name])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            cls = _set_class(name)
            found = _called(cls, node, args, keywords, call_of(cls), signature(cls))
        case ast.Name(id=name):
            _set_class(name)  # raises where no set has this name
            found = without_arguments(name)
        case _:
            raise _not_a_set_error(ast.unparse(node))
    return found


def _called(
    fn: Any, node: ast.expr, args: list[ast.expr], keywords: list[ast.keyword], instead: str, where: str = ""
) -> Any:
    """`fn` called with the arguments of a node; `instead` and `where` are for its error."""
    names = [keyword.arg for keyword in keywords]
    if None in names or len(set(names)) < len(names):
        raise _not_a_set_error(ast.unparse(node))
    values = [_argument(arg) for arg in args]
    named = {str(keyword.arg): _argument(keyword.value) for keyword in keywords}
    try:
        return fn(*values, **named)
    except TypeError as error:
        wrong = f"{fn.__name__} doesn't take these arguments: {error}"
        raise SetError(wrong, ast.unparse(node), where=where, instead=instead) from error


def _argument(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _argument(operand)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [_argument(entry) for entry in entries]
        case ast.Name(id="inf" | "nan" as name):
            return math.inf if name == "inf" else math.nan
        case ast.Call(
            func=ast.Name(id="float"), args=[ast.Constant(value="inf" | "-inf" | "nan" as text)], keywords=[]
        ):
            return float(text)  # sets print an infinite bound so
        case ast.Name() | ast.Call() | ast.BinOp(op=ast.BitAnd()):
            return _set_of(node)
    wrong = "An argument is not a number, a string, None, a list, or a set"
    raise SetError(wrong, ast.unparse(node), instead="NonNeg()")


def _set_class(name: str) -> type[Set]:
    cls = named(name, BY_NAME, repr(name))
    if cls is Custom:
        wrong = "A rules file can't hold Custom, which wraps a function"
        raise SetError(wrong, name, instead="inbounds.constrain(model, rules) in Python")
    return cls


def _not_a_set_error(text: str) -> SetError:
    wrong = "This is not the code of a set"
    return SetError(wrong, shown(text), instead="MaxNorm(max_value=1.5), NonNeg, or Joint(MaxNorm(1.0))")
