"""What a rule says: which weights it selects, and the set that it claims for each of them.

A selector is a glob on the end of a weight's path, a variable, a callable(layer, variable), a layer, or a class of
layers. A rule that selects nothing is an error that names what comes near.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._errors import RuleError, SetError, explain
from inbounds._layout import layout_of
from inbounds._set import Set
from inbounds._sets.combine import Custom, Joint
from inbounds._weights import Weight, layers_of, weights_of
from inbounds.constraints import get


@dataclass(frozen=True)
class Claim:
    """That a rule wants a set on a weight. The last claim holds."""

    set: Any
    source: str


def items_of(rules: Any) -> Iterable[tuple[Any, Any]]:
    """Rules as pairs of a selector and what it is given; a variable can't be a key, so pairs are taken too."""
    if rules is None:
        return ()
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        raise RuleError(
            explain(
                "Rules are a mapping from selectors to sets, or a list of such pairs, with one rule or more",
                f"rules={rules!r}",
                instead="{'dense*/kernel': MaxNorm(2.0), keras.layers.Conv2D: Joint(MaxNorm(1.0))}",
            )
        )
    return pairs


def claims_of(selector: Any, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> dict[int, Claim]:
    """What one rule claims, by the ids of variables."""
    if isinstance(selector, type):
        chosen = [layer for layer in layers if isinstance(layer, selector)]
        if not chosen:
            names = sorted({type(layer).__name__ for layer in layers})
            raise _no_match(
                f"{selector.__name__}: {value!r}",
                "no layer of this class is in the model",
                _near(selector.__name__, names),
            )
        return _layer_claims(selector.__name__, value, chosen)
    if isinstance(selector, keras.Layer):
        if not any(layer is selector for layer in layers):
            names = [layer.name for layer in layers]
            raise _no_match(
                f"{selector.name}: {value!r}", "this layer is not in the model", _near(selector.name, names)
            )
        return _layer_claims(f"layer {selector.name}", value, [selector])
    source, test = _weight_selector(selector)
    chosen_weights = [weight for weight in weights if test(weight)]
    if not chosen_weights:
        paths = [weight.path for weight in weights]
        raise _no_match(f"{source}: {value!r}", "no weight of the model matches", _near_paths(source, paths))
    if isinstance(value, Mapping):
        raise RuleError(
            explain(
                "A rule for weights takes one set; a mapping of names is for a layer",
                f"{source}: {value!r}",
                instead="{layer: {'kernel': ..., 'bias': ...}}",
            )
        )
    chosen_set = _as_set(value, source)
    if isinstance(chosen_set, Joint):
        raise RuleError(
            explain(
                "A Joint holds for several weights of a layer, so its rule selects layers",
                f"{source}: {value!r}",
                instead="{keras.layers.Dense: Joint(MaxNorm(1.0))}, or the layer itself",
            )
        )
    return {id(weight.variable): Claim(chosen_set, source) for weight in chosen_weights}


def selected(selector: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Weight]:
    """The weights that a selector means by itself; of layers, all those inside them.

    Raises:
        RuleError: it means none; the text names what comes near.
    """
    if isinstance(selector, (type, keras.Layer)):
        is_meant = isinstance if isinstance(selector, type) else operator.is_
        inside = [layer for chosen in layers if is_meant(chosen, selector) for layer in layers_of(chosen)]
        owners = set(map(id, inside))
        source = selector.__name__ if isinstance(selector, type) else f"layer {selector.name}"
        chosen_weights = [weight for weight in weights if id(weight.layer) in owners]
        near = _near(
            source.removeprefix("layer "),
            sorted({layer.name for layer in layers} | {type(layer).__name__ for layer in layers}),
        )
    else:
        source, test = _weight_selector(selector)
        chosen_weights = [weight for weight in weights if test(weight)]
        near = _near_paths(source, [weight.path for weight in weights])
    if not chosen_weights:
        raise RuleError(explain(f"No weight of the model matches {source!r}", repr(selector), instead=near))
    return chosen_weights


def _weight_selector(selector: Any) -> tuple[str, Callable[[Weight], bool]]:
    if isinstance(selector, str):
        pattern = _glob(selector)
        return selector, lambda weight: pattern.search(weight.path) is not None
    if isinstance(selector, keras.Variable):
        return str(selector.path), lambda weight: weight.variable is selector
    if callable(selector):
        name = getattr(selector, "__qualname__", repr(selector))
        return name, lambda weight: bool(selector(weight.layer, weight.variable))
    raise RuleError(
        explain(
            "A selector is a glob on a weight's path, a variable, a layer, a class of layers, "
            "or a callable(layer, variable)",
            f"selector={selector!r}",
            instead="'dense*/kernel' or keras.layers.Dense",
        )
    )


def _glob(text: str) -> re.Pattern[str]:
    """A glob on the end of a path: `*` and `?` within a part, `**` over parts."""
    if not text.strip("/"):
        raise RuleError(explain("A glob has at least one part", f"selector={text!r}", instead="'**/kernel'"))
    regex = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/")):
        regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
    return re.compile(f"(?:^|/){regex}$")


def _layer_claims(source: str, value: Any, chosen: Sequence[Any]) -> dict[int, Claim]:
    """What a rule for layers claims: a Joint for all of its weights, or a mapping from names to sets."""
    inside = list({id(layer): layer for layer_ in chosen for layer in layers_of(layer_)}.values())
    owned = weights_of(inside)
    if isinstance(value, Mapping) and not value:
        raise RuleError(
            explain(
                "A mapping for a layer has a set for one of its weights or more",
                f"{source}: {value!r}",
                instead="{'kernel': MaxNorm(2.0)}",
            )
        )
    if isinstance(value, Mapping):
        claims: dict[int, Claim] = {}
        for name, given in value.items():
            matching = [weight for weight in owned if weight.name == name]
            if not matching:
                raise _no_match(
                    f"{source}: {name}: {given!r}",
                    f"no layer that the rule selects has a weight {name!r}",
                    _near(str(name), sorted({w.name for w in owned})),
                )
            chosen_set = _as_set(given, f"{source}: {name}")
            if isinstance(chosen_set, Joint):
                raise RuleError(
                    explain(
                        "A Joint is the rule of a whole layer, not of one of its weights",
                        f"{source}: {{{name!r}: {given!r}}}",
                        instead=f"{{{source}: {given!r}}}",
                    )
                )
            claims.update({id(weight.variable): Claim(chosen_set, f"{source}: {name}") for weight in matching})
        return claims
    chosen_set = _as_set(value, source)
    if not isinstance(chosen_set, Joint):
        raise RuleError(
            explain(
                "A rule for a layer takes a Joint, or a mapping from its weights' names to sets; "
                "a plain set doesn't say which weight it is for",
                f"{source}: {value!r}",
                where=f"weights {', '.join(sorted({weight.name for weight in owned})) or 'none'}",
                instead=f"Joint({value!r}), or {{'kernel': {value!r}}}",
            )
        )
    claims = {}
    for weight in owned:
        roles = layout_of(weight.layer).roles
        if weight.name in {roles.get(name, name) for name in chosen_set.weights}:
            claims[id(weight.variable)] = Claim(chosen_set, source)
    if not claims:
        raise _no_match(
            f"{source}: {value!r}",
            f"no layer that the rule selects has any of the weights {chosen_set.weights}",
            _near(chosen_set.weights[0], sorted({w.name for w in owned})),
        )
    return claims


def _as_set(value: Any, source: str) -> Set:
    try:
        value = get(value) if isinstance(value, (str, type)) else value
    except SetError as error:
        raise RuleError(f"{error} Rule: {source!r}.") from error
    if isinstance(value, Set):
        return value
    if callable(value):
        return Custom(value)
    raise RuleError(
        explain(
            "A rule's value is a set, the name of one, or a callable from tensor to tensor",
            f"{source}: {value!r}",
            instead=f"{{{source!r}: MaxNorm(2.0)}}",
        )
    )


# Near misses.


def _no_match(rule: str, what: str, near: str) -> RuleError:
    return RuleError(explain(f"A rule selects something in the model, and {what}", rule, instead=near))


def _near(wanted: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5) or list(names)[:5]
    return "did you mean " + " or ".join(close) if close else "the model has none"


def _near_paths(wanted: str, paths: Sequence[str]) -> str:
    """The paths whose ends, with as many parts, come nearest."""
    parts = wanted.strip("/").count("/") + 1
    ends = {"/".join(path.split("/")[-parts:]): path for path in paths}
    close = difflib.get_close_matches(wanted.replace("*", ""), list(ends), n=3, cutoff=0.4) or list(ends)[:5]
    return "did you mean " + " or ".join(ends[end] for end in close)
