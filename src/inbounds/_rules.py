"""Rules and a model make a Plan. Every mistake of a user ends here, before a weight is touched."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from inbounds._arrays import MANTISSA_BITS, dtype_of
from inbounds._errors import LayoutError, RuleError, SetError, explain
from inbounds._layout import layout_of
from inbounds._plan import Entry, Plan
from inbounds._set import Set
from inbounds._sets.combine import Custom, Joint
from inbounds._units import Axes, Units
from inbounds._weights import Weight, layers_of, weights_of
from inbounds.constraints import get

METRICS = ("euclidean",)


@dataclass(frozen=True)
class _Claim:
    """That a rule wants a set on a weight. The last claim holds."""

    set: Any
    source: str


Given = Callable[[Any], Any]
"""The constraint that a variable was given by its layer, before any rule."""


def resolve(model: Any, rules: Any, given: Given, metric: str = "euclidean", *, strict: bool = True) -> Plan:
    """The plan that rules make on a model, on top of the constraints given to its layers.

    Args:
        model: a built Keras model or layer.
        rules: a mapping from selectors to sets, or None for the layers' own constraints only.
        given: the constraint that a variable was given by its layer.
        metric: see `constrain`.
        strict: whether a weight that can't be kept in its set is an error; an audit reports it instead.

    Raises:
        RuleError: the model or a rule is wrong; the text says which and what to do instead.
    """
    if metric not in METRICS:
        raise RuleError(
            explain(
                "`metric` is " + " or ".join(map(repr, METRICS)) + " in this version",
                f"metric={metric!r}",
                instead="metric='euclidean'",
            )
        )
    layers = _built_layers(model)
    weights = weights_of(layers)
    if not weights:
        raise RuleError(
            explain(
                "A model to constrain has weights",
                f"model={_named(model)} with none",
                instead="build it first, or add layers with weights",
            )
        )
    plan = _plan(layers, weights, rules, given, metric)
    if strict:
        _check_kept(plan)
    return plan


def resolve_given(layers: Sequence[Any], given: Given) -> Plan:
    """The plan of the sets that were given to some layers as arguments; the rest of the model isn't known."""
    plan = _plan(layers, weights_of(layers), None, given, "euclidean")
    _check_kept(plan)
    return plan


def _plan(layers: Sequence[Any], weights: Sequence[Weight], rules: Any, given: Given, metric: str) -> Plan:
    claims = {id(weight.variable): claim for weight in weights if (claim := _given_claim(weight, given)) is not None}
    for selector, value in _items(rules):
        matched = _claims(selector, value, layers, weights)
        claims.update(matched)
    entries: list[Entry] = []
    joined: set[tuple[int, str]] = set()
    for weight in weights:
        claim = claims.get(id(weight.variable))
        if claim is None or not isinstance(claim.set, Set):
            continue
        if isinstance(claim.set, Joint):
            if (key := (id(weight.layer), repr(claim.set))) not in joined:
                joined.add(key)
                entries.append(_joint_entry(weight, claim, weights, claims))
        else:
            entries.append(_entry(weight, claim))
    free = tuple(
        (weight, _why_free(weight, claims.get(id(weight.variable)))) for weight in weights if not _held(weight, claims)
    )
    return Plan(tuple(entries), free, metric)


# Selectors.


def _items(rules: Any) -> Iterable[tuple[Any, Any]]:
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


def _claims(selector: Any, value: Any, layers: Sequence[Any], weights: Sequence[Weight]) -> dict[int, _Claim]:
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
    return {id(weight.variable): _Claim(chosen_set, source) for weight in chosen_weights}


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


def _layer_claims(source: str, value: Any, chosen: Sequence[Any]) -> dict[int, _Claim]:
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
        claims: dict[int, _Claim] = {}
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
            claims.update({id(weight.variable): _Claim(chosen_set, f"{source}: {name}") for weight in matching})
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
            claims[id(weight.variable)] = _Claim(chosen_set, source)
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


# Claims from the layers' own arguments.


def _given_claim(weight: Weight, given: Given) -> _Claim | None:
    constraint = given(weight.variable)
    if constraint is None:
        return None
    source = f"{type(weight.layer).__name__}({weight.argument or weight.name + '.constraint'}=...)"
    if isinstance(constraint, Set) or type(constraint).__module__.startswith("keras."):
        return _Claim(constraint, source)
    return _Claim(Custom(constraint), source)


def _why_free(weight: Weight, claim: _Claim | None) -> str:
    if claim is not None:
        return f"kept by Keras: {type(claim.set).__name__} of keras.constraints"
    return "no rule" if weight.born_trainable else "not trained by an optimizer"


def _held(weight: Weight, claims: Mapping[int, _Claim]) -> bool:
    claim = claims.get(id(weight.variable))
    return claim is not None and isinstance(claim.set, Set)


# Entries.


def _entry(weight: Weight, claim: _Claim) -> Entry:
    _check_dtype(weight, claim)
    note = ""
    try:
        fan_in = layout_of(weight.layer).span(weight.name, weight.shape)
        unknown = fan_in is None
        if unknown and len(weight.shape) < 2:
            fan_in = ()
        axes = claim.set.span(weight.shape, fan_in)
        if claim.set.axis is not None and not unknown and set(axes) != set(claim.set.layer_span(weight.shape, fan_in)):
            note = f"the axis is not the layer's fan-in, {fan_in}"
        elif (
            unknown
            and claim.set.axis is None
            and not claim.set.entrywise
            and not claim.set.whole
            and len(weight.shape) > 1
        ):
            note = _unknown(weight)
        entry = Entry(claim.set, (weight,), (axes,), claim.source, _with_frozen(note, [weight]))
        _check_fit(entry)
    except (SetError, LayoutError) as error:
        raise RuleError(f"{error} Rule: {claim.source!r} on {weight.path} of shape {weight.shape}.") from error
    return entry


def _unknown(weight: Weight) -> str:
    return f"units of {type(weight.layer).__name__} not known: every axis but the last; register_layout says otherwise"


def _joint_entry(weight: Weight, claim: _Claim, weights: Sequence[Weight], claims: Mapping[int, _Claim]) -> Entry:
    """The weights of one layer that a Joint claims, as one vector per unit."""
    joint: Joint = claim.set
    layer = weight.layer
    layout = layout_of(layer)
    own = {w.name: w for w in weights if w.layer is layer}
    members, missing = [], []
    for name in joint.weights:
        member = own.get(layout.roles.get(name, name))
        theirs = claims.get(id(member.variable)) if member else None
        if member is None:
            missing.append(f"no {name}")
        elif theirs is not None and theirs.set == joint:
            members.append(member)
        elif theirs is not None:
            missing.append(f"{name} obeys {theirs.set!r}")
        else:
            raise RuleError(
                explain(
                    "A Joint holds for all the weights that it names, so all of them are given it",
                    f"none for {member.path}",
                    where=f"{joint!r} on {weight.path}",
                    instead=f"give the same Joint to {name} too, or use it in a rule: "
                    f"constrain(model, {{{type(layer).__name__}: {joint!r}}})",
                )
            )
    strangers = [
        w for w in own.values() if w not in members and (c := claims.get(id(w.variable))) is not None and c.set == joint
    ]
    if strangers:
        raise RuleError(
            explain(
                "A Joint is given to the weights that it names",
                f"{joint!r} on {strangers[0].path}",
                where=f"{type(layer).__name__} with the weights {', '.join(own)}",
                instead=f"Joint({joint.inner!r}, weights=...) with the names of the weights",
            )
        )
    for member in members:
        _check_dtype(member, claim)
    note = ", ".join(missing) + (": the set holds for the rest" if missing else "")
    guessed = [m for m in members if m.name not in layout.spans and len(m.shape) > 1 and not joint.whole]
    if guessed:
        note = "; ".join(text for text in (note, _unknown(guessed[0])) if text)
    try:
        axes = _joint_axes(joint, members, layout)
        entry = Entry(joint, tuple(members), axes, claim.source, _with_frozen(note, members))
        _check_fit(entry)
    except (SetError, LayoutError) as error:
        raise RuleError(f"{error} Rule: {claim.source!r} on {' + '.join(m.path for m in members)}.") from error
    return entry


def _joint_axes(joint: Joint, members: Sequence[Weight], layout: Any) -> tuple[Axes, ...]:
    """For each member the axes of a unit, so that what is left counts the same units in the same order."""
    if joint.whole:
        return tuple(tuple(range(len(member.shape))) for member in members)
    axes = []
    for member in members:
        if len(members) > 1 and member.name in layout.apart:
            raise LayoutError(
                explain(
                    "Weights form joint units where each unit has its own entries in all of them",
                    f"{member.path}; {layout.apart[member.name]}",
                    instead="constrain the weights separately",
                )
            )
        span = layout.span(member.name, member.shape, joint=True)
        axes.append(span if span is not None else tuple(range(len(member.shape) - 1)))
    counts = [
        math.prod(n for axis, n in enumerate(member.shape) if axis not in span)
        for member, span in zip(members, axes, strict=True)
    ]
    if len(set(counts)) > 1:
        shapes = ", ".join(
            f"{member.name} of shape {member.shape} has {count}" for member, count in zip(members, counts, strict=True)
        )
        raise LayoutError(
            explain(
                "Weights form joint units where they have the same number of units",
                shapes,
                where=type(members[0].layer).__name__,
                instead="register_layout for this layer, or constrain the weights separately",
            )
        )
    return tuple(axes)


def _check_dtype(weight: Weight, claim: _Claim) -> None:
    if dtype_of(weight.variable) not in MANTISSA_BITS:
        raise RuleError(
            explain(
                "A set applies to floating point weights",
                f"dtype={dtype_of(weight.variable)} for {claim.source}: {claim.set!r}",
                where=f"{weight.path} of shape {weight.shape}",
                instead="constrain the model before it is quantized",
            )
        )


def obstacle(weight: Weight) -> str:
    """Why a set on this weight could never be kept; empty where it can."""
    if not weight.born_trainable or getattr(weight.variable, "overwrite_with_gradient", False):
        return "the layer writes it itself, no optimizer trains it"
    if getattr(weight.layer, "lora_enabled", False) and weight.name in ("kernel", "embeddings"):
        return "with LoRA the layer uses kernel + A @ B, which a set on the kernel doesn't hold"
    return ""


def _check_kept(plan: Plan) -> None:
    for entry in plan.entries:
        for weight in entry.weights:
            if why := obstacle(weight):
                raise RuleError(
                    explain(
                        f"A set can be kept where an optimizer trains the weight; of this one, {why}",
                        f"{entry.source}: {entry.set!r}",
                        where=f"{weight.path} of shape {weight.shape} in {type(weight.layer).__name__}",
                        instead="select the layer's trainable weights, or merge the adapter first",
                    )
                )


def _check_fit(entry: Entry) -> None:
    """That the arrays in a set fit the weights, told without reading them."""
    stand_ins = [np.broadcast_to(np.float32(0), weight.shape) for weight in entry.weights]
    entry.set.check_fit(Units.of(stand_ins, entry.axes))


def _with_frozen(note: str, members: Sequence[Weight]) -> str:
    frozen = [member.name for member in members if not member.variable.trainable]
    said = f"{' and '.join(frozen)} frozen: projected when constrained, not trained" if frozen else ""
    return "; ".join(text for text in (note, said) if text)


# Models.


def check_model(model: Any) -> None:
    """That a model is one.

    Raises:
        RuleError: it is something else.
    """
    if not isinstance(model, keras.Layer):
        raise RuleError(explain("A model is a keras.Model or a layer", f"model={model!r}"))


def _built_layers(model: Any) -> list[Any]:
    check_model(model)
    if not model.built:
        raise RuleError(
            explain(
                "A model is built before it is constrained, since an unbuilt one has no weights",
                f"model={_named(model)}, not built",
                instead="model.build(input_shape), or call it once on a batch",
            )
        )
    layers = layers_of(model)
    unbuilt = [layer for layer in layers if not layer.built and _takes_constraint(layer)]
    if unbuilt:
        raise RuleError(
            explain(
                "A model is built before it is constrained, every layer of it",
                f"layer {unbuilt[0].name} ({type(unbuilt[0]).__name__}), not built",
                where=_named(model),
                instead="call the model once on a batch; a layer that it never calls has no weights: take it out",
            )
        )
    return layers


def _takes_constraint(layer: Any) -> bool:
    return any(name.endswith("_constraint") for name in vars(layer))


def _named(model: Any) -> str:
    return f"{type(model).__name__} {model.name!r}"


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
