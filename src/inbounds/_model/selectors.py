"""Selectors: which weights a rule selects, and the set that it assigns to each of them.

A selector is a glob on the end of a weight's path, a variable, a callable(layer, variable), a
layer, its name, or a class of layers. A rule that selects nothing is an error; its text lists
similar names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._errors import RuleError, SetError, printable, shown, similar, similar_or_first
from inbounds._model.layout import layout_of
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.composite import contains
from inbounds._sets.custom import Custom
from inbounds._sets.joint import Joint
from inbounds._sets.set import Set, of_keras
from inbounds.constraints import without_arguments


@dataclass(frozen=True)
class Assignment:
    """The set that a rule, or an argument of the layer, assigns to a weight. The last one holds.

    Attributes:
        set: the set, or a constraint of Keras.
        source: the rule or the layer's argument, as text.
        is_rule: whether a rule assigned it.
    """

    set: Any
    source: str
    is_rule: bool = True


def rule_pairs(rules: Any) -> Iterable[tuple[Any, Any]]:
    """Rules as pairs of a selector and a value, from a mapping or a list of pairs.

    A Keras variable can't be the key of a mapping, so it needs a list.
    """
    if rules is None:
        return ()
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        empty = isinstance(rules, (Mapping, list)) and not rules
        raise RuleError(
            "There are no rules" if empty else "Rules are not a mapping from selectors to sets, or a list of pairs",
            f"rules={shown(rules)}",
            instead="{'**/kernel': MaxNorm(2.0)}",
        )
    return pairs


def assignments_of(
    selector: Any, value: Any, layers: Sequence[Any], weights: Sequence[Weight]
) -> dict[int, Assignment]:
    """The assignments that one rule makes, by the ids of variables."""
    value = of_keras(value)
    if isinstance(selector, type):
        if not (chosen := [layer for layer in layers if isinstance(layer, selector)]):
            near = similar_or_first(selector.__name__, sorted({type(layer).__name__ for layer in layers}))
            shipped = [name for name in similar(selector.__name__, near) if hasattr(keras.layers, name)]
            raise _no_match_error(
                f"No layer of the model is a {selector.__name__}",
                f"{{{selector.__name__}: {shown(value)}}}",
                near,
                f"{{keras.layers.{shipped[0]}: {_as_code(value)}}}" if shipped else "the class of one of these",
            )
        return _layer_assignments(selector.__name__, value, chosen)
    if isinstance(selector, keras.Layer):
        if not any(layer is selector for layer in layers):
            near = similar_or_first(selector.name, [layer.name for layer in layers])
            raise _no_match_error(
                f"The layer {selector.name!r} is not in the model",
                f"{{{selector.name}: {shown(value)}}}",
                near,
                f"{{{near[0]!r}: {_as_code(value)}}}" if similar(selector.name, near) else "one of these",
            )
        return _layer_assignments(f"layer {selector.name}", value, [selector])
    if isinstance(selector, str) and isinstance(value, (Mapping, Joint)):
        return _layer_assignments(f"layer {selector}", value, _layers_selected(selector, value, layers, weights))
    source, selects = _weight_predicate(selector)
    chosen_weights = [weight for weight in weights if selects(weight)]
    if not chosen_weights and isinstance(selector, str):
        raise _no_weight_error(selector, value, layers, weights)
    if not chosen_weights:
        raise _no_match_error(
            f"No weight matches {source}",
            f"{source}: {shown(value)}",
            [weight.path for weight in weights[:5]],
            "a glob such as '**/kernel', or a variable of this model",
        )
    chosen_set = value if isinstance(value, Mapping) else _as_set(value, source)
    if isinstance(chosen_set, (Mapping, Joint)):
        kind = "A Joint is for layers" if isinstance(chosen_set, Joint) else "A mapping of names is for a layer"
        raise RuleError(
            f"{kind}, and this rule selects weights",
            f"{source}: {shown(value)}",
            where=_first_five([weight.path for weight in chosen_weights]),
            instead=f"{{{chosen_weights[0].layer.name!r}: {_as_code(value)}}}",
        )
    return {id(weight.variable): Assignment(chosen_set, source) for weight in chosen_weights}


def selected_weights(selector: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Weight]:
    """The weights that a selector selects without a value; of a layer, all its weights.

    Raises:
        RuleError: it selects none.
    """
    found: list[Weight] = []
    chosen: list[Any] = []
    if isinstance(selector, type):
        chosen = [layer for layer in layers if isinstance(layer, selector)]
    elif isinstance(selector, keras.Layer):
        chosen = [layer for layer in layers if layer is selector]
    else:
        _, selects = _weight_predicate(selector)
        found = [weight for weight in weights if selects(weight)]
        chosen = _layers_matching(selector, layers, globs=True) if isinstance(selector, str) else []
    owners = {id(layer) for outer in chosen for layer in layers_of(outer)}
    found = found or [weight for weight in weights if id(weight.layer) in owners]
    if not found:
        names = (getattr(selector, name, None) for name in ("__name__", "name"))
        name = selector if isinstance(selector, str) else next(filter(None, names), shown(selector))
        near = _similar_paths(name if "/" in name else f"{name}/kernel", [weight.path for weight in weights])
        raise _no_match_error(f"No weight matches {name!r}", shown(selector), near, repr(near[0]))
    return found


def _weight_predicate(selector: Any) -> tuple[str, Callable[[Weight], bool]]:
    """The text of a selector of weights, and whether it selects a weight."""
    if isinstance(selector, str):
        pattern = _glob_regex(selector)
        return printable(selector), lambda weight: pattern.search(str(weight.variable.path)) is not None
    if isinstance(selector, keras.Variable):
        return printable(str(selector.path)), lambda weight: weight.variable is selector
    if callable(selector):
        name = getattr(selector, "__qualname__", None) or shown(selector)
        return printable(name), lambda weight: bool(selector(weight.layer, weight.variable))
    raise RuleError(
        "A selector is not a glob on a weight's path, a variable, a layer, its name or class, or a callable",
        f"selector={shown(selector)}",
        instead="{'**/kernel': MaxNorm(2.0)}",
    )


def _glob_regex(text: str) -> re.Pattern[str]:
    """A glob as a regex on the end of a path: `*` and `?` within a part, `**` over parts."""
    if not text.strip("/"):
        raise RuleError("A glob is empty", f"selector={text!r}", instead="{'**/kernel': MaxNorm(2.0)}")
    regex = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/")):
        regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
    return re.compile(f"(?:^|/){regex}$")


def _layers_matching(name: str, layers: Sequence[Any], *, globs: bool) -> list[Any]:
    """The layers with this name or class name, or with a path whose end this glob matches."""
    pattern = _glob_regex(name)

    def matches(layer: Any) -> bool:
        classes = [cls.__name__ for cls in type(layer).__mro__ if issubclass(cls, keras.Layer)]
        matched = globs and any(map(pattern.search, (str(getattr(layer, "path", None) or ""), layer.name)))
        return matched or layer.name == name or name in classes

    return [layer for layer in layers if matches(layer)]


def _layers_selected(selector: str, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Any]:
    """The layers that a string selects: by a name, or where the value is a mapping by a glob too.

    Raises:
        RuleError: it selects none.
    """
    if found := _layers_matching(selector, layers, globs=isinstance(value, Mapping)):
        return found
    kind = "A Joint" if isinstance(value, Joint) else "A mapping of names"
    selects = _weight_predicate(selector)[1]
    selected = [layer.name for layer in _layers_matching(selector, layers, globs=True)]
    selected = selected or [weight.layer.name for weight in weights if selects(weight)]
    wrong = f"{kind} is for a layer, and {selector!r} selects {'weights' if selected else 'nothing'}"
    names = sorted({layer.name for layer in layers})
    near = list(dict.fromkeys(selected)) or similar_or_first(selector.split("/")[0], names)
    raise _no_match_error(
        wrong,
        f"{{{selector!r}: {shown(value)}}}",
        [f"the layer {name}" for name in near],
        f"{{{near[0]!r}: {_as_code(value)}}}",
    )


def _no_weight_error(selector: str, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> RuleError:
    """The error for a string that matches no weight; it may name a layer or resemble a path."""
    received = f"{{{selector!r}: {shown(value)}}}"
    matching = _layers_matching(selector, layers, globs=True)
    owned = {weight.name: weight for layer in matching for weight in weights_of(layers_of(layer))}
    if owned:
        name = _example_weight(list(owned.values()))
        return RuleError(
            f"{selector!r} is a layer, and a plain set doesn't say which of its weights it is for",
            received,
            where=f"the weights {', '.join(owned)} of {type(owned[name].layer).__name__}",
            instead=f"{{{selector!r}: {{{name!r}: {_as_code(value)}}}}}",
        )
    near = _similar_paths(selector, [weight.path for weight in weights])
    return _no_match_error(f"No weight matches {selector!r}", received, near, f"{{{near[0]!r}: {_as_code(value)}}}")


def _layer_assignments(source: str, value: Any, chosen: Sequence[Any]) -> dict[int, Assignment]:
    """The assignments of a rule for layers: of a Joint, or of a mapping from names to sets."""
    source = printable(source)
    owned = weights_of({id(layer): layer for outer in chosen for layer in layers_of(outer)}.values())
    if isinstance(value, Mapping):
        return _mapping_assignments(source, value, chosen[0], owned)
    names = sorted({weight.name for weight in owned})
    example = _example_weight(owned) if owned else ""
    chosen_set = _as_set(value, source, f"{{{example!r}: MaxNorm(2.0)}}" if example else "layers that have weights")
    if not isinstance(chosen_set, Joint):
        code = _as_code(value)
        joint = example == "kernel" and chosen_set.axis is None and not contains(chosen_set, (Custom, Joint))
        also = f", or Joint({code}) for kernel and bias as one vector" if joint else ""
        raise RuleError(
            "A plain set for a layer doesn't say which of its weights it is for",
            f"{source}: {shown(value)}",
            where=f"the weights {', '.join(names) or 'none'}",
            instead=f"{{{example!r}: {code}}}{also}" if example else "layers that have weights",
        )
    assignments = {}
    for weight in owned:
        roles = layout_of(weight.layer).roles
        if weight.name in {roles.get(name, name) for name in chosen_set.weights}:
            assignments[id(weight.variable)] = Assignment(chosen_set, source)
    if not assignments:
        raise _no_match_error(
            f"No layer that the rule selects has any of the weights {', '.join(chosen_set.weights)}",
            f"{source}: {shown(value)}",
            similar_or_first(chosen_set.weights[0], names),
            f"{{{example!r}: {chosen_set.inner!r}}}" if example else "layers that have weights",
        )
    return assignments


def _mapping_assignments(
    source: str, value: Mapping[Any, Any], layer: Any, owned: Sequence[Weight]
) -> dict[int, Assignment]:
    """The assignments of a mapping from names to sets on the weights that the chosen layers own."""
    names = sorted({weight.name for weight in owned})
    if not value:
        raise RuleError(
            "A mapping for a layer is empty",
            f"{source}: {{}}",
            where=f"the weights {', '.join(names) or 'none'}",
            instead=f"{{{_example_weight(owned)!r}: MaxNorm(2.0)}}" if owned else "layers that have weights",
        )
    assignments: dict[int, Assignment] = {}
    for name, given in value.items():
        matching = [weight for weight in owned if weight.name == name]
        if not matching:
            near = similar_or_first(str(name), names)
            raise _no_match_error(
                f"No layer that the rule selects has a weight {name!r}",
                f"{source}: {{{name!r}: {shown(given)}}}",
                near,
                f"{{{near[0]!r}: {_as_code(given)}}}" if near else "layers that have weights",
            )
        chosen_set = _as_set(given, f"{source}: {name}")
        if isinstance(chosen_set, Joint):
            raise RuleError(
                "A Joint is for a whole layer, and this is the rule of one of its weights",
                f"{source}: {{{name!r}: {shown(given)}}}",
                instead=f"{{{layer.name!r}: {shown(given)}}}",
            )
        assignments |= {id(weight.variable): Assignment(chosen_set, f"{source}: {name}") for weight in matching}
    return assignments


def _example_weight(weights: Sequence[Weight]) -> str:
    """The weight that the example in an error names: the kernel, else the first trainable one."""
    names = [weight.name for weight in weights if weight.created_trainable] or [weight.name for weight in weights]
    return "kernel" if "kernel" in names else names[0]


def _as_code(value: Any) -> str:
    """A rule's value as code: a function as its name, anything else as the set it stands for."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {_as_code(given)}' for name, given in value.items())}}}"
    try:
        meant = _as_set(value, "")
    except RuleError:
        return shown(value)
    if isinstance(meant, Custom) and hasattr(value, "__name__"):
        return str(value.__name__) if value.__name__.isidentifier() else "fn"
    return shown(meant)


def _as_set(value: Any, source: str, instead: str = "MaxNorm(2.0)") -> Set:
    """A rule's value as a set.

    Args:
        value: a set, a constraint of Keras, a callable, or a class or name without arguments.
        source: the rule, for the error's text.
        instead: what the error says to type instead.

    Raises:
        RuleError: the value is none of these, or a class or name that needs arguments.
    """
    try:
        value = of_keras(without_arguments(value) if isinstance(value, (str, type)) else value)
    except SetError as error:
        raise RuleError(f"{error} Rule: {source!r}.") from error
    if isinstance(value, Set):
        return value
    if callable(value):
        return Custom(value)
    raise RuleError(
        "A rule's value is not a set or a callable from tensor to tensor", f"{source}: {shown(value)}", instead=instead
    )


# Errors and the names they suggest.


def _no_match_error(wrong: str, received: str, near: Sequence[str], instead: str) -> RuleError:
    return RuleError(wrong, received, where=f"a model with {_first_five(near) or 'none'}", instead=instead)


def _first_five(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _similar_paths(wanted: str, paths: Sequence[str]) -> list[str]:
    """The ends of paths, with as many parts as the wanted one, most similar to it."""
    parts = wanted.strip("/").count("/") + 1
    ends = list(dict.fromkeys("/".join(path.split("/")[-parts:]) for path in paths))
    return similar_or_first(wanted.replace("*", ""), ends, cutoff=0.4)
