"""Selectors: which weights a rule selects, and the set that it assigns to each of them.

A selector is a glob on the end of a weight's path, a variable, a callable(layer, variable), a
layer, its name, or a class of layers. A rule that selects nothing is an error with similar names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from inbounds._errors import RuleError, printable, raised_as, shown, similar, similar_or_first
from inbounds._model.layout import layout_of
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.composite import contains
from inbounds._sets.custom import Custom
from inbounds._sets.joint import AcrossLayers, Joint, JointSet, Tied
from inbounds._sets.set import Set, of_keras
from inbounds.constraints import without_arguments


@dataclass(frozen=True)
class Assignment:
    """The set that a rule, or an argument of the layer, assigns to a weight. The last one holds."""

    set: Any  # or a constraint of Keras
    source: str  # the rule or the layer's argument, as text
    is_rule: bool = True


def rule_pairs(rules: Any) -> Iterable[tuple[Any, Any]]:
    """Rules as pairs of a selector and a value, from a mapping or a list.

    A Tied in a list is its own selector.
    """
    if rules is None:
        return ()
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if isinstance(pairs, list):
        pairs = [(rule, rule) if isinstance(rule, Tied) else rule for rule in pairs]
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        empty = isinstance(rules, (Mapping, list)) and not rules
        wrong = "There are no rules" if empty else "Rules are not a mapping from selectors to sets, or a list of pairs"
        raise RuleError(wrong, f"rules={shown(rules)}", instead="{'**/kernel': MaxNorm(2.0)}")
    return pairs


def assignments_of(
    selector: Any, value: Any, layers: Sequence[Any], weights: Sequence[Weight]
) -> dict[int, Assignment]:
    """The assignments that one rule makes, by the ids of variables."""
    value = of_keras(value)
    source, chosen, chosen_weights = _selected(selector, layers, weights)
    if isinstance(value, AcrossLayers):
        chosen_weights = chosen_weights or [w for w in weights_of(*chosen) if w.created_trainable]
        if not chosen_weights:
            raise _no_match_of_rule(selector, source, value, weights, chosen_weights)
    elif isinstance(selector, (type, keras.Layer)) or isinstance(value, (Mapping, Joint)) or not chosen_weights:
        by_name = isinstance(selector, str) and isinstance(value, Joint)
        named = [layer for layer in chosen if not by_name or selector in _names(layer)]
        if not named:
            raise _no_match_of_rule(selector, source, value, weights, chosen_weights or weights_of(*chosen))
        return _layer_assignments(source if isinstance(selector, type) else f"layer {source}", value, named)
    chosen_set = _as_set(value, source)
    return {id(weight.variable): Assignment(chosen_set, source) for weight in chosen_weights}


def selected_weights(selector: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Weight]:
    """The weights, at least one, that a selector without a value selects; all those of a layer."""
    source, chosen, selected = _selected(selector, layers, weights)
    owners = set(map(id, layers_of(*chosen)))
    found = selected or [weight for weight in weights if id(weight.layer) in owners]
    if not found:
        near = _similar_paths(source if "/" in source else f"{source}/kernel", weights)
        raise _no_match_error(f"No weight matches {source!r}", shown(selector), near, repr(near[0]))
    return found


def _selected(selector: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> tuple[str, list[Any], list[Weight]]:
    """The text of a selector, and the layers and the weights that it selects.

    A string selects weights by the end of their path, and layers by that or their name or class.
    """
    if isinstance(selector, type):
        return selector.__name__, [layer for layer in layers if isinstance(layer, selector)], []
    if isinstance(selector, keras.Layer):
        return printable(selector.name), [layer for layer in layers if layer is selector], []
    if isinstance(selector, str):
        ends = partial(path_matches, selector)
        paths = {id(one): (one.name, str(getattr(one, "path", None) or "")) for one in layers}
        chosen = [one for one in layers if selector in _names(one) or any(map(ends, paths[id(one)]))]
        return printable(selector), chosen, [weight for weight in weights if ends(str(weight.variable.path))]
    if isinstance(selector, Tied):
        return "Tied", [], [w for w in weights if any(path_matches(name, w.path) for name in selector.weights)]
    if isinstance(selector, keras.Variable):
        return printable(str(selector.path)), [], [weight for weight in weights if weight.variable is selector]
    if callable(selector):
        name = getattr(selector, "__qualname__", None) or shown(selector)
        return printable(name), [], [weight for weight in weights if selector(weight.layer, weight.variable)]
    wrong = "A selector is not a glob on a weight's path, a variable, a layer, its name or class, or a callable"
    raise RuleError(wrong, f"selector={shown(selector)}", instead="{'**/kernel': MaxNorm(2.0)}")


def path_matches(glob: str, path: str) -> bool:
    """Whether a path ends as a glob says: `*` and `?` match within a part, `**` over parts."""
    if not glob.strip("/"):
        raise RuleError("A glob is empty", f"selector={glob!r}", instead="{'**/kernel': MaxNorm(2.0)}")
    regex = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?)", glob.strip("/")):
        regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
    return re.search(f"(?:^|/){regex}$", path) is not None


def _names(layer: Any) -> set[str]:
    """The name of a layer, and those of its classes."""
    return {layer.name, *(cls.__name__ for cls in type(layer).__mro__ if issubclass(cls, keras.Layer))}


def _layer_assignments(source: str, value: Any, chosen: Sequence[Any]) -> dict[int, Assignment]:
    """The assignments of a rule for layers: of a Joint, or of a mapping from names to sets."""
    owned = weights_of(*chosen)
    names = sorted({weight.name for weight in owned})
    if isinstance(value, Mapping) and value:
        return _mapping_assignments(source, value, chosen, owned)
    instead = _rules_of_one_weight(chosen, owned, "MaxNorm(2.0)")
    chosen_set = value if isinstance(value, Mapping) else _as_set(value, source, instead)
    if not isinstance(chosen_set, Joint):
        wrong = "A mapping for a layer is empty"
        if isinstance(chosen_set, Set):
            wrong, code = "A plain set for a layer doesn't say which of its weights it is for", _as_code(value)
            instead = _rules_of_one_weight(chosen, owned, code)
            if "kernel" in names and chosen_set.axis is None and not contains(chosen_set, (Custom, JointSet)):
                instead += f", or {_rules_of(chosen, owned, f'Joint({code})')} for kernel and bias as one vector"
        where = f"the weights {', '.join(names) or 'none'}"
        raise RuleError(wrong, f"{source}: {shown(value)}", where=where, instead=instead)
    assignments = {}
    for weight in owned:
        roles = layout_of(weight.layer).roles
        if weight.name in {roles.get(name, name) for name in chosen_set.weights}:
            assignments[id(weight.variable)] = Assignment(chosen_set, source)
    if not assignments:
        wrong = f"No layer that the rule selects has any of the weights {', '.join(chosen_set.weights)}"
        received = f"{source}: {shown(value)}"
        instead = _rules_of_one_weight(chosen, owned, repr(chosen_set.inner))
        raise _no_match_error(wrong, received, similar_or_first(chosen_set.weights[0], names), instead)
    return assignments


def _mapping_assignments(
    source: str, value: Mapping[Any, Any], chosen: Sequence[Any], owned: Sequence[Weight]
) -> dict[int, Assignment]:
    """The assignments of a mapping from names to sets on the weights that the chosen layers own."""
    assignments: dict[int, Assignment] = {}
    for name, given in value.items():
        received = f"{source}: {{{name!r}: {shown(given)}}}"
        matching = [weight for weight in owned if weight.name == name]
        if not matching:
            near = similar_or_first(str(name), sorted({weight.name for weight in owned}))
            wrong = f"No layer that the rule selects has a weight {name!r}"
            meant = {near[0] if one == name else one: inner for one, inner in value.items()} if near else {}
            instead = _rules_of(chosen, owned, _as_code(meant)) if near else "layers that have weights"
            raise _no_match_error(wrong, received, near, instead)
        chosen_set = _as_set(given, f"{source}: {name}")
        if isinstance(chosen_set, Joint):
            wrong = "A Joint is for a whole layer, and this is the rule of one of its weights"
            raise RuleError(wrong, received, instead=_rules_of(chosen, owned, shown(given)))
        assignments |= {id(weight.variable): Assignment(chosen_set, f"{source}: {name}") for weight in matching}
    return assignments


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
    """The set that a rule's value stands for.

    The value is a set, a constraint of Keras, a callable, or a class or name that takes no
    arguments.
    """
    with raised_as(RuleError, f"Rule: {source!r}"):
        value = of_keras(without_arguments(value) if isinstance(value, (str, type)) else value)
    if isinstance(value, Set):
        return value
    if callable(value):
        return Custom(value)
    wrong = "A rule's value is not a set or a callable from tensor to tensor"
    raise RuleError(wrong, f"{source}: {shown(value)}", instead=instead)


# Errors of selectors that select nothing.


def _no_match_of_rule(
    selector: Any, source: str, value: Any, weights: Sequence[Weight], selected: Sequence[Weight]
) -> RuleError:
    """The error of a rule that selects none of what its value is for: layers, or weights.

    `selected` are the weights that it selects instead.
    """
    by_class, code, received = isinstance(selector, type), _as_code(value), _received(selector, source, value)
    wanted = value.weights if isinstance(value, Joint) else value if isinstance(value, Mapping) else ()

    def owners(some: Sequence[Weight]) -> list[Any]:
        return list(dict.fromkeys(one.layer for one in [one for one in some if one.name in wanted] or some))

    names = sorted({type(layer).__name__ if by_class else layer.name for layer in owners(weights)})
    near = similar(source.split("/")[0], names)
    if by_class:
        wrong = f"No layer of the model is a {source}"
    elif isinstance(selector, keras.Layer):
        wrong = f"The layer {source!r} is not in the model"
    elif wanted:
        kind = "A Joint" if isinstance(value, Joint) else "A mapping of names"
        wrong = f"{kind} is for a layer, and {source!r} selects {'weights' if selected else 'nothing'}"
    else:
        wrong = f"No weight matches {source!r}"
        if not isinstance(selector, str):
            instead = "a glob such as '**/kernel', or a variable of this model"
            return _no_match_error(wrong, received, [weight.path for weight in weights], instead)
        if "/" in source or not near:
            near = _similar_paths(selector, weights)
            return _no_match_error(wrong, received, near, f"{{{near[0]!r}: {code}}}")
    near = near or names[:5]
    chosen = owners(selected) or [one for one in owners(weights) if near[0] in (type(one).__name__, one.name)]
    if not by_class:
        near = [f"the layer {name}" for name in ([layer.name for layer in chosen] if selected else near)]
    instead = _rules_of(chosen, weights, code) if wanted else _rules_of_one_weight(chosen, weights_of(*chosen), code)
    return _no_match_error(wrong, received, near, instead)


def _rules_of(chosen: Sequence[Any], weights: Sequence[Weight], code: str) -> str:
    """Rules that give some layers a value, as code.

    Several layers that are all of their class in the model are named by the class, others by name.
    """
    classes, others = list(map(type, chosen)), [one.layer for one in weights if one.layer not in chosen]

    def named(layer: Any) -> str:
        cls = type(layer)
        alone = classes.count(cls) == 1 or any(isinstance(one, cls) for one in others)
        return repr(layer.name) if alone or not hasattr(keras.layers, cls.__name__) else f"keras.layers.{cls.__name__}"

    return f"{{{', '.join(f'{selector}: {code}' for selector in dict.fromkeys(map(named, chosen)))}}}"


def _rules_of_one_weight(chosen: Sequence[Any], owned: Sequence[Weight], code: str) -> str:
    """Rules that give one weight of each layer a set: the kernel, else the first trainable one."""
    names = [weight.name for weight in owned if weight.created_trainable] or [weight.name for weight in owned]
    example = "kernel" if "kernel" in names else names[0] if names else ""
    return _rules_of(chosen, owned, f"{{{example!r}: {code}}}") if names else "layers that have weights"


def _received(selector: Any, source: str, value: Any) -> str:
    """A rule, as code where its selector can be written as code."""
    if isinstance(selector, str):
        return f"{{{selector!r}: {shown(value)}}}"
    rule = f"{source}: {shown(value)}"
    return f"{{{rule}}}" if isinstance(selector, (type, keras.Layer)) else rule


def _no_match_error(wrong: str, received: str, near: Sequence[str], instead: str) -> RuleError:
    more = f" and {len(near) - 5} more" if len(near) > 5 else ""
    return RuleError(wrong, received, where=f"a model with {', '.join(near[:5]) or 'none'}{more}", instead=instead)


def _similar_paths(wanted: str, weights: Sequence[Weight]) -> list[str]:
    """The ends of the weights' paths, with as many parts as the wanted one, most similar to it."""
    parts = wanted.strip("/").count("/") + 1
    ends = list(dict.fromkeys("/".join(weight.path.split("/")[-parts:]) for weight in weights))
    return similar_or_first(wanted.replace("*", ""), ends, cutoff=0.4)
