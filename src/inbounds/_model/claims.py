"""What a rule says: which weights it selects, and the set that it claims for each of them.

A selector is a glob on the end of a weight's path, a variable, a callable(layer, variable), a layer, its name, or a
class of layers. A rule that selects nothing is an error that names what comes near.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._errors import RuleError, SetError, explain, printable, shown
from inbounds._model.layout import layout_of
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.composite import contains
from inbounds._sets.custom import Custom
from inbounds._sets.joint import Joint
from inbounds._sets.set import Set, of_keras
from inbounds.constraints import without_arguments


@dataclass(frozen=True)
class Claim:
    """That a rule, or else an argument of the layer, wants a set on a weight. The last claim holds."""

    set: Any
    source: str
    is_rule: bool = True


def items_of(rules: Any) -> Iterable[tuple[Any, Any]]:
    """Rules as pairs of a selector and what it is given; a variable can't be a key, so pairs are taken too."""
    if rules is None:
        return ()
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        empty = isinstance(rules, (Mapping, list)) and not rules
        raise RuleError(
            explain(
                "There are no rules" if empty else "Rules are not a mapping from selectors to sets, or a list of pairs",
                f"rules={shown(rules)}",
                instead="{'**/kernel': MaxNorm(2.0)}",
            )
        )
    return pairs


def claims_of(selector: Any, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> dict[int, Claim]:
    """What one rule claims, by the ids of variables."""
    value = of_keras(value)
    if isinstance(selector, type):
        if not (chosen := [layer for layer in layers if isinstance(layer, selector)]):
            near = _near(selector.__name__, sorted({type(layer).__name__ for layer in layers}))
            shipped = [name for name in _close(selector.__name__, near) if hasattr(keras.layers, name)]
            raise _no_match(
                f"No layer of the model is a {selector.__name__}",
                f"{{{selector.__name__}: {shown(value)}}}",
                near,
                f"{{keras.layers.{shipped[0]}: {_code(value)}}}" if shipped else "the class of one of these",
            )
        return _layer_claims(selector.__name__, value, chosen)
    if isinstance(selector, keras.Layer):
        if not any(layer is selector for layer in layers):
            near = _near(selector.name, [layer.name for layer in layers])
            raise _no_match(
                f"The layer {selector.name!r} is not in the model",
                f"{{{selector.name}: {shown(value)}}}",
                near,
                f"{{{near[0]!r}: {_code(value)}}}" if _close(selector.name, near) else "one of these",
            )
        return _layer_claims(f"layer {selector.name}", value, [selector])
    if isinstance(selector, str) and isinstance(value, (Mapping, Joint)):
        return _layer_claims(f"layer {selector}", value, _layers_by_name(selector, value, layers, weights))
    source, test = _weight_selector(selector)
    chosen_weights = [weight for weight in weights if test(weight)]
    if not chosen_weights and isinstance(selector, str):
        raise _no_weight(selector, value, layers, weights)
    if not chosen_weights:
        raise _no_match(
            f"No weight matches {source}",
            f"{source}: {shown(value)}",
            [weight.path for weight in weights[:5]],
            "a glob such as '**/kernel', or a variable of this model",
        )
    if isinstance(value, Mapping):
        raise RuleError(
            explain(
                "A mapping of names is for a layer, and this rule selects weights",
                f"{source}: {shown(value)}",
                where=_listed([weight.path for weight in chosen_weights]),
                instead=f"{{{chosen_weights[0].layer.name!r}: {_code(value)}}}",
            )
        )
    chosen_set = _as_set(value, source)
    if isinstance(chosen_set, Joint):
        raise RuleError(
            explain(
                "A Joint is for layers, and this rule selects weights",
                f"{source}: {shown(value)}",
                where=_listed([weight.path for weight in chosen_weights]),
                instead=f"{{{chosen_weights[0].layer.name!r}: {shown(value)}}}",
            )
        )
    return {id(weight.variable): Claim(chosen_set, source) for weight in chosen_weights}


def selected(selector: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Weight]:
    """The weights that a selector means by itself; of layers, all those inside them.

    Raises:
        RuleError: it means none; the text names what comes near.
    """
    found: list[Weight] = []
    inside: list[Any] = []
    if isinstance(selector, type):
        inside = [layer for layer in layers if isinstance(layer, selector)]
    elif isinstance(selector, keras.Layer):
        inside = [layer for layer in layers if layer is selector]
    else:
        _, test = _weight_selector(selector)
        found = [weight for weight in weights if test(weight)]
        inside = _layers_named(selector, layers, globs=True) if isinstance(selector, str) else []
    owners = {id(layer) for chosen in inside for layer in layers_of(chosen)}
    found = found or [weight for weight in weights if id(weight.layer) in owners]
    if not found:
        names = (getattr(selector, name, None) for name in ("__name__", "name"))
        name = selector if isinstance(selector, str) else next(filter(None, names), shown(selector))
        near = _near_paths(name if "/" in name else f"{name}/kernel", [weight.path for weight in weights])
        raise _no_match(f"No weight matches {name!r}", shown(selector), near, repr(near[0]))
    return found


def _weight_selector(selector: Any) -> tuple[str, Callable[[Weight], bool]]:
    if isinstance(selector, str):
        pattern = _glob(selector)
        return printable(selector), lambda weight: pattern.search(str(weight.variable.path)) is not None
    if isinstance(selector, keras.Variable):
        return printable(str(selector.path)), lambda weight: weight.variable is selector
    if callable(selector):
        name = getattr(selector, "__qualname__", None) or shown(selector)
        return printable(name), lambda weight: bool(selector(weight.layer, weight.variable))
    raise RuleError(
        explain(
            "A selector is not a glob on a weight's path, a variable, a layer, its name or class, or a callable",
            f"selector={shown(selector)}",
            instead="{'**/kernel': MaxNorm(2.0)}",
        )
    )


def _glob(text: str) -> re.Pattern[str]:
    """A glob on the end of a path: `*` and `?` within a part, `**` over parts."""
    if not text.strip("/"):
        raise RuleError(explain("A glob is empty", f"selector={text!r}", instead="{'**/kernel': MaxNorm(2.0)}"))
    regex = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/")):
        regex += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
    return re.compile(f"(?:^|/){regex}$")


def _layers_named(name: str, layers: Sequence[Any], *, globs: bool) -> list[Any]:
    """The layers of a name, or of a class of that name; those that a glob matches, by the ends of their paths."""
    pattern = _glob(name)

    def is_one(layer: Any) -> bool:
        classes = [cls.__name__ for cls in type(layer).__mro__ if issubclass(cls, keras.Layer)]
        matched = globs and any(map(pattern.search, (str(getattr(layer, "path", None) or ""), layer.name)))
        return matched or layer.name == name or name in classes

    return [layer for layer in layers if is_one(layer)]


def _layers_by_name(selector: str, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> list[Any]:
    """The layers that a text selects: for a mapping by a name or a glob, for a Joint by a name.

    Raises:
        RuleError: there is none.
    """
    if found := _layers_named(selector, layers, globs=isinstance(value, Mapping)):
        return found
    kind = "A Joint" if isinstance(value, Joint) else "A mapping of names"
    test = _weight_selector(selector)[1]
    selected = [layer.name for layer in _layers_named(selector, layers, globs=True)]
    selected = selected or [weight.layer.name for weight in weights if test(weight)]
    wrong = f"{kind} is for a layer, and {selector!r} selects {'weights' if selected else 'nothing'}"
    near = list(dict.fromkeys(selected)) or _near(selector.split("/")[0], sorted({layer.name for layer in layers}))
    raise _no_match(
        wrong,
        f"{{{selector!r}: {shown(value)}}}",
        [f"the layer {name}" for name in near],
        f"{{{near[0]!r}: {_code(value)}}}",
    )


def _no_weight(selector: str, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> RuleError:
    """The error of a text that matches no weight: it may be the name of a layer, or nearly a path."""
    received = f"{{{selector!r}: {shown(value)}}}"
    owned = {w.name: w for layer in _layers_named(selector, layers, globs=True) for w in weights_of(layers_of(layer))}
    if owned:
        name = _main(list(owned.values()))
        return RuleError(
            explain(
                f"{selector!r} is a layer, and a plain set doesn't say which of its weights it is for",
                received,
                where=f"the weights {', '.join(owned)} of {type(owned[name].layer).__name__}",
                instead=f"{{{selector!r}: {{{name!r}: {_code(value)}}}}}",
            )
        )
    near = _near_paths(selector, [weight.path for weight in weights])
    return _no_match(f"No weight matches {selector!r}", received, near, f"{{{near[0]!r}: {_code(value)}}}")


def _layer_claims(source: str, value: Any, chosen: Sequence[Any]) -> dict[int, Claim]:
    """What a rule for layers claims: a Joint for all of its weights, or a mapping from names to sets."""
    source = printable(source)
    inside = list({id(layer): layer for layer_ in chosen for layer in layers_of(layer_)}.values())
    owned = weights_of(inside)
    names = sorted({weight.name for weight in owned})
    main = _main(owned) if owned else ""
    if isinstance(value, Mapping) and not value:
        raise RuleError(
            explain(
                "A mapping for a layer is empty",
                f"{source}: {{}}",
                where=f"the weights {', '.join(names) or 'none'}",
                instead=f"{{{main!r}: MaxNorm(2.0)}}" if main else "layers that have weights",
            )
        )
    if isinstance(value, Mapping):
        claims: dict[int, Claim] = {}
        for name, given in value.items():
            matching = [weight for weight in owned if weight.name == name]
            if not matching:
                near = _near(str(name), names)
                raise _no_match(
                    f"No layer that the rule selects has a weight {name!r}",
                    f"{source}: {{{name!r}: {shown(given)}}}",
                    near,
                    f"{{{near[0]!r}: {_code(given)}}}" if near else "layers that have weights",
                )
            chosen_set = _as_set(given, f"{source}: {name}")
            if isinstance(chosen_set, Joint):
                raise RuleError(
                    explain(
                        "A Joint is for a whole layer, and this is the rule of one of its weights",
                        f"{source}: {{{name!r}: {shown(given)}}}",
                        instead=f"{{{chosen[0].name!r}: {shown(given)}}}",
                    )
                )
            claims.update({id(weight.variable): Claim(chosen_set, f"{source}: {name}") for weight in matching})
        return claims
    chosen_set = _as_set(value, source, f"{{{main!r}: MaxNorm(2.0)}}" if main else "layers that have weights")
    if not isinstance(chosen_set, Joint):
        code = _code(value)
        joint = main == "kernel" and chosen_set.axis is None and not contains(chosen_set, (Custom, Joint))
        also = f", or Joint({code}) for kernel and bias as one vector" if joint else ""
        raise RuleError(
            explain(
                "A plain set for a layer doesn't say which of its weights it is for",
                f"{source}: {shown(value)}",
                where=f"the weights {', '.join(names) or 'none'}",
                instead=f"{{{main!r}: {code}}}{also}" if main else "layers that have weights",
            )
        )
    claims = {}
    for weight in owned:
        roles = layout_of(weight.layer).roles
        if weight.name in {roles.get(name, name) for name in chosen_set.weights}:
            claims[id(weight.variable)] = Claim(chosen_set, source)
    if not claims:
        raise _no_match(
            f"No layer that the rule selects has any of the weights {', '.join(chosen_set.weights)}",
            f"{source}: {shown(value)}",
            _near(chosen_set.weights[0], names),
            f"{{{main!r}: {chosen_set.inner!r}}}" if main else "layers that have weights",
        )
    return claims


def _main(weights: Sequence[Weight]) -> str:
    """The name of the weight that an example is for: the kernel, else the first that is trained."""
    names = [weight.name for weight in weights if weight.born_trainable] or [weight.name for weight in weights]
    return "kernel" if "kernel" in names else names[0]


def _code(value: Any) -> str:
    """A rule's value as code: of a function its name, of a class, a name or a constraint of Keras the set it means."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {_code(given)}' for name, given in value.items())}}}"
    try:
        meant = _as_set(value, "")
    except RuleError:
        return shown(value)
    if isinstance(meant, Custom) and hasattr(value, "__name__"):
        return str(value.__name__) if value.__name__.isidentifier() else "fn"
    return shown(meant)


def _as_set(value: Any, source: str, instead: str = "MaxNorm(2.0)") -> Set:
    """A rule's value as a set; `instead` is a value to give in place of what is none.

    Raises:
        RuleError: it is something else, or a class or a name that leaves out arguments.
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
        explain(
            "A rule's value is not a set or a callable from tensor to tensor",
            f"{source}: {shown(value)}",
            instead=instead,
        )
    )


# Near misses.


def _no_match(wrong: str, received: str, near: Sequence[str], instead: str) -> RuleError:
    return RuleError(explain(wrong, received, where=f"a model with {_listed(near) or 'none'}", instead=instead))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _close(wanted: str, names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)


def _near(wanted: str, names: Sequence[str]) -> list[str]:
    """The names that come nearest, else the first ones."""
    return _close(wanted, names) or list(names)[:5]


def _near_paths(wanted: str, paths: Sequence[str]) -> list[str]:
    """The ends of paths, with as many parts, that come nearest."""
    parts = wanted.strip("/").count("/") + 1
    ends = list(dict.fromkeys("/".join(path.split("/")[-parts:]) for path in paths))
    return difflib.get_close_matches(wanted.replace("*", ""), ends, n=3, cutoff=0.4) or ends[:5]
