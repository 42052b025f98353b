"""Rules in a TOML file become the mapping that `constrain` takes.

    metric = "euclidean"                     # of training, as the arguments of `constrain`; may be left out
    every = 10
    gradient = "reduced"

    [rules]                                  # weights: a glob on the end of a path
    "conv*/kernel" = "MaxNorm(1.5)"
    "**/gamma" = "Box(0.5, 2.0)"

    [layers]                                 # layers: a class, or a layer's name
    Dense = "Joint(MaxNorm(2.0))"
    head = {kernel = "NonNeg", bias = "Box(-1, 1)"}

A set is written as the Python code that it prints as, `&`, `where` and `on` too; a name alone is a set that takes no
arguments. Nothing is evaluated: the code is parsed, and only sets, numbers, strings, None, lists and tuples are made of
it.

A weight obeys the last rule that matches it, in the order of the file: the two tables in the order in which they first
appear, and the rules of a table as they are written in it. So `[layers]` below `[rules]` wins over it.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from inbounds import constraints
from inbounds._errors import FileError, SetError, explain, shown
from inbounds._model.weights import layers_of
from inbounds._sets.arguments import gradient_name, interval, metric_name
from inbounds._sets.custom import Custom
from inbounds._sets.set import Set
from inbounds._types import Gradient, Interval, Metric
from inbounds.constraints import call_of, without_arguments

TABLES = ("rules", "layers")
SETTINGS = ("metric", "every", "gradient")

CALLS = {"where": "MaxNorm(1.0).where([True, True, False])", "on": "MaxNorm(1.0).on(inputs=[0, 3])"}
"""Calls of what makes a set of a set, as errors show them."""

EXAMPLE = 'a table [rules] with "**/kernel" = "MaxNorm(2.0)", or [layers] with Dense = "Joint(MaxNorm(2.0))"'


@dataclass(frozen=True)
class RulesFile:
    """What a rules file says: the arguments of `constrain`.

    Attributes:
        rules: the mapping from selectors to sets.
        metric: the norm in which "nearest" is meant in training.
        every: the number of steps after which weights are projected, or "epoch".
        gradient: what the optimizer sees, "full" or "reduced".
    """

    rules: dict[Any, Any]
    metric: Metric
    every: Interval
    gradient: Gradient


def _sets() -> dict[str, type[Set]]:
    """Every name that an expression may use: the sets and the twins that Keras has."""
    public = {name: getattr(constraints, name) for name in constraints.__all__} | constraints.SETS
    return {name: cls for name, cls in public.items() if isinstance(cls, type) and issubclass(cls, Set)}


def read_rules(path: Path, model: Any) -> RulesFile:
    """What a file says, for one model, whose layers the names in the file are looked up in.

    Raises:
        FileError: the file can't be read, isn't TOML, or holds something else than rules; the text says where.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FileError(explain(f"Can't read the rules file: {reason}", f"{str(path)!r}", instead=EXAMPLE)) from error
    except tomllib.TOMLDecodeError as error:
        raise FileError(
            explain(
                f"The rules file is not TOML: {error}",
                f"{str(path)!r}",
                instead="globs and sets in quotes, as in " + EXAMPLE,
            )
        ) from error
    rules: dict[Any, Any] = {}
    for entry, content in document.items():
        if entry in SETTINGS:
            continue
        if entry not in TABLES:
            raise FileError(
                explain(
                    f"A rules file has no entry {entry!r}, only [rules], [layers], metric, every and gradient",
                    f"{entry} = {shown(content)}",
                    where=str(path),
                    instead=_near(entry, (*TABLES, *SETTINGS)),
                )
            )
        if not isinstance(content, dict):
            raise FileError(
                explain(f"[{entry}] is not a table", f"{entry} = {shown(content)}", where=str(path), instead=EXAMPLE)
            )
        for key, value in content.items():
            where = f"{path}, [{entry}], {key}"
            if entry == "rules":
                rules[key] = _read_set(value, where)
            else:
                made = _layer_rule(value, where)
                rules.update(dict.fromkeys(_layers_named(key, model, where), made))
    if not rules:
        raise FileError(explain("A rules file has no rules", shown(document), where=str(path), instead=EXAMPLE))
    try:
        metric = metric_name("a rules file", document.get("metric", Set.metric))
        every = interval("a rules file", document.get("every", Set.every), "steps", "every = 10")
        gradient = gradient_name("a rules file", document.get("gradient", Set.gradient))
    except SetError as error:
        raise FileError(f"{error} In: {path}.") from error
    return RulesFile(rules, metric, every, gradient)


def parse_set(text: str) -> Set:
    """The set that an expression such as `"Joint(MaxNorm(1.0))"` or `"NonNeg"` means. Nothing is evaluated.

    Raises:
        SetError: it is not the code of a set, or the set's arguments are wrong.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        return _set(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SetError):
            raise
        raise _not_a_set(text) from error


def _layer_rule(value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        return _read_set(value, where)
    return {name: _read_set(given, f"{where}, {name}") for name, given in value.items()}


def _read_set(value: Any, where: str) -> Set:
    if not isinstance(value, str):
        raise FileError(
            explain(
                "A rule is not the code of a set in quotes",
                shown(value),
                where=where,
                instead='"MaxNorm(max_value=1.5)"',
            )
        )
    try:
        return parse_set(value)
    except SetError as error:
        raise FileError(f"{error} In: {where}.") from error


def _layers_named(name: str, model: Any, where: str) -> list[Any]:
    """The selectors that a name in [layers] stands for: a class of the model's layers, or its layers of that name."""
    layers = layers_of(model)
    classes = {cls for layer in layers for cls in type(layer).__mro__ if issubclass(cls, keras.Layer)}
    same_class = [cls for cls in classes if cls.__name__ == name]
    same_name = [layer for layer in layers if layer.name == name]
    if len(same_class) + bool(same_name) > 1:
        meanings = sorted(f"the class {cls.__module__}.{cls.__qualname__}" for cls in same_class)
        meanings += [f"the layer {layer.name}" for layer in same_name[:1]]
        raise FileError(
            explain(
                f"{name!r} in [layers] has more than one meaning",
                " and ".join(meanings),
                where=where,
                instead="[rules] with globs on the weights' paths",
            )
        )
    if not same_class and not same_name:
        known = [*(layer.name for layer in layers), *(type(layer).__name__ for layer in layers)]
        raise FileError(
            explain(
                f"{name!r} in [layers] is neither a layer of the model nor the class of one",
                repr(name),
                where=where,
                instead=_near(name, sorted(set(known))),
            )
        )
    return [*same_class, *same_name]


# Expressions.


def _set(node: ast.expr) -> Set:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _set(left) & _set(right)
        case ast.Call(func=ast.Attribute(value=inner, attr="where" | "on" as name), args=args, keywords=keywords):
            part: Set = _called(getattr(_set(inner), name), node, args, keywords, instead=CALLS[name])
            return part
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            pass
        case ast.Name(id=name):
            _set_named(name)
            named: Set = without_arguments(name)
            return named
        case _:
            raise _not_a_set(ast.unparse(node))
    cls = _set_named(name)
    made: Set = _called(cls, node, args, keywords, signature(cls), call_of(cls))
    return made


def _called(
    fn: Any, node: ast.expr, args: list[ast.expr], keywords: list[ast.keyword], where: str = "", instead: str = ""
) -> Any:
    names = [keyword.arg for keyword in keywords]
    if None in names or len(set(names)) < len(names):
        raise _not_a_set(ast.unparse(node))
    values = [_value(arg) for arg in args]
    named = {str(keyword.arg): _value(keyword.value) for keyword in keywords}
    try:
        return fn(*values, **named)
    except TypeError as error:
        raise SetError(
            explain(
                f"{fn.__name__} doesn't take these arguments: {error}",
                ast.unparse(node),
                where=where,
                instead=instead,
            )
        ) from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _value(operand)
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [_value(entry) for entry in entries]
        case ast.Name(id="inf" | "nan" as name):
            return math.inf if name == "inf" else math.nan
        case ast.Call(
            func=ast.Name(id="float"), args=[ast.Constant(value="inf" | "-inf" | "nan" as text)], keywords=[]
        ):
            return float(text)  # as sets print an infinite bound
        case ast.Name() | ast.Call() | ast.BinOp(op=ast.BitAnd()):
            return _set(node)
    raise SetError(
        explain("An argument is not a number, a string, None, a list, or a set", ast.unparse(node), instead="NonNeg()")
    )


def _set_named(name: str) -> type[Set]:
    sets = _sets()
    if sets.get(name) is Custom:
        raise SetError(
            explain(
                "A rules file can't hold Custom, which wraps a function",
                name,
                instead="inbounds.constrain(model, rules) in Python",
            )
        )
    if name not in sets:
        raise SetError(explain(f"No set has the name {name!r}", repr(name), instead=_near(name, sorted(sets))))
    return sets[name]


def signature(cls: type[Set]) -> str:
    """A set with its arguments and their defaults, as code."""
    bare = inspect.Parameter.empty
    parameters = [p.replace(annotation=bare) for p in inspect.signature(cls).parameters.values()]
    return f"{cls.__name__}{inspect.Signature(parameters)}"


def _not_a_set(text: str) -> SetError:
    return SetError(
        explain(
            "This is not the code of a set",
            shown(text),
            instead="MaxNorm(max_value=1.5), NonNeg, or Joint(MaxNorm(1.0))",
        )
    )


def _near(wanted: str, names: Iterable[str]) -> str:
    names = list(names)
    folded = {name.lower().replace("_", ""): name for name in names}
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    close = close or [folded[key] for key in difflib.get_close_matches(wanted.lower().replace("_", ""), folded, n=3)]
    return " or ".join(close or names[:8])
