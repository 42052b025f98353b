"""Rules and a model make a Plan. Every mistake of a user ends here, before a weight is touched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, dtype_of, is_sharded
from inbounds._arrays.units import Axes, Units
from inbounds._errors import LayoutError, RuleError, SetError, explain, shown
from inbounds._model.claims import Claim, claims_of, items_of
from inbounds._model.layout import is_foreign, layout_of
from inbounds._model.plan import Entry, Plan
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.arguments import metric_name
from inbounds._sets.composite import with_axis
from inbounds._sets.custom import Custom
from inbounds._sets.joint import Joint
from inbounds._sets.set import Set
from inbounds._types import Metric

Given = Callable[[Any], Any]
"""The constraint that a variable was given by its layer, before any rule."""


def resolve(model: Any, rules: Any, given: Given, metric: Metric = Set.metric, *, strict: bool = True) -> Plan:
    """The plan that rules make on a model, on top of the constraints given to its layers.

    Args:
        model: a built Keras model or layer.
        rules: a mapping from selectors to sets, or None for the layers' own constraints only.
        given: the constraint that a variable was given by its layer.
        metric: see `constrain`.
        strict: whether a weight that can't be kept in its set is an error; an audit reports it instead, also of what
            was quantized since it was given a set.

    Raises:
        RuleError: the model or a rule is wrong; the text says which and what to do instead.
    """
    metric_name("constrain", metric, RuleError)
    layers = _built_layers(model)
    weights = weights_of(layers)
    if not weights:
        raise RuleError(
            explain(
                "The model has no weights",
                f"model={_named(model)}",
                instead="model.build(input_shape), or layers with weights",
            )
        )
    _check_in_use(model, weights)
    plan = _plan(layers, weights, rules, given if strict else _or_declared(weights, given), metric)
    if strict:
        _check_kept(plan)
    return plan


def _or_declared(weights: Sequence[Weight], given: Given) -> Given:
    """What a variable was given; of one that came with quantization, what the layer was given for the one before."""
    quantized = {id(weight.variable): weight for weight in weights if weight.quantized}

    def found(variable: Any) -> Any:
        own = given(variable)
        return quantized[id(variable)].declared if own is None and id(variable) in quantized else own

    return found


def resolve_given(layers: Sequence[Any], given: Given) -> Plan:
    """The plan of the sets that were given to some layers as arguments; the rest of the model isn't known.

    A Joint over a kernel that was quantized is left out, so that the model can be loaded; `Joint.__call__` is an error
    where its bias is trained.
    """
    weights = weights_of(layers)
    without = {id(weight.layer) for weight in weights if weight.quantized}
    weights = [w for w in weights if id(w.layer) not in without or not isinstance(given(w.variable), Joint)]
    plan = _plan(layers, weights, None, given, "optimizer")
    _check_kept(plan)
    return plan


def _plan(layers: Sequence[Any], weights: Sequence[Weight], rules: Any, given: Given, metric: Metric) -> Plan:
    claims = {id(weight.variable): claim for weight in weights if (claim := _given_claim(weight, given)) is not None}
    for selector, value in items_of(rules):
        claims.update(claims_of(selector, value, layers, weights))
    filled = {id(weight.variable) for weight in weights if 0 not in weight.shape}
    claims = {key: claim for key, claim in claims.items() if key in filled}
    entries: list[Entry] = []
    joined: set[tuple[int, Set]] = set()
    for weight in weights:
        claim = claims.get(id(weight.variable))
        if claim is None or not isinstance(claim.set, Set):
            continue
        if isinstance(claim.set, Joint):
            if (key := (id(weight.layer), claim.set)) not in joined:
                joined.add(key)
                entries.append(_joint_entry(weight, claim, weights, claims))
        else:
            entries.append(_entry(weight, claim))
    free = tuple(
        (weight, _why_free(weight, claims.get(id(weight.variable)))) for weight in weights if not _held(weight, claims)
    )
    return Plan(tuple(_each_its_own(entries)), free, metric)


def _each_its_own(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries; those of a Joint that several layers have say that it is no unit, nor a budget, that they share."""
    layers = Counter(entry.set for entry in entries if isinstance(entry.set, Joint))
    for entry in entries:
        several = layers[entry.set] if isinstance(entry.set, Joint) else 1
        own = f"{several} layers have this Joint, and each has units of its own" if several > 1 else ""
        yield replace(entry, note=_notes(entry.note, own))


# Claims from the layers' own arguments.


def _given_claim(weight: Weight, given: Given) -> Claim | None:
    constraint = given(weight.variable)
    if constraint is None:
        return None
    source = f"{type(weight.layer).__name__}({weight.argument or weight.name + '.constraint'}=...)"
    if isinstance(constraint, Set) or type(constraint).__module__.startswith("keras."):
        return Claim(constraint, source, is_rule=False)
    return Claim(Custom(constraint), source, is_rule=False)


def _why_free(weight: Weight, claim: Claim | None) -> str:
    if 0 in weight.shape:
        return "it has no entries"
    if claim is not None:
        return f"kept by Keras: {type(claim.set).__name__} of keras.constraints"
    if weight.quantized:
        return "quantized, so that no step moves it"
    return "no rule" if weight.born_trainable else "not trained by an optimizer"


def _held(weight: Weight, claims: Mapping[int, Claim]) -> bool:
    claim = claims.get(id(weight.variable))
    return claim is not None and isinstance(claim.set, Set)


# Entries.


def _entry(weight: Weight, claim: Claim) -> Entry:
    _check_dtype(weight, weight.dtype, claim.source, claim.set)
    note, guessed = "", False
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
            and (claim.set.matrix or not claim.set.whole)
            and len(weight.shape) > 1
        ):
            note, guessed = _guess(weight, claim.set), True
        inputs = (layout_of(weight.layer).inputs.get(weight.name),)
        entry = Entry(claim.set, (weight,), (axes,), claim.source, _noted(note, claim.set, [weight]), inputs, guessed)
        _check_fit(entry)
    except (SetError, LayoutError) as error:
        raise RuleError(f"{error} Rule: {claim.source!r} on {weight.path} of shape {weight.shape}.") from error
    return entry


def _guess(weight: Weight, given: Set) -> str:
    """What a plan says of units that are a guess.

    Raises:
        LayoutError: the layer's weights are of another framework, where there is nothing to guess by.
    """
    kind = type(weight.layer).__name__
    if not is_foreign(weight.layer):
        return f"units of {kind} not known: every axis but the last; register_layout says otherwise"
    instead = f"inbounds.register_layout({kind}, lambda layer: {{{weight.name!r}: (0,)}}) with the axes of one unit"
    if "axis" in given.argument_names():
        instead = f"{with_axis(given, 0)!r}, with the axes that one unit spans as `axis`"
    raise LayoutError(
        explain(
            "The units of a weight of another framework are not known, and the set has no `axis`",
            f"{given!r}",
            where=f"{weight.path} of shape {weight.shape} in the {kind} {weight.layer.name!r}",
            instead=instead,
        )
    )


def guesses(entries: Sequence[Entry]) -> str:
    """The text of a warning that units were guessed; empty where none were."""
    weights = [weight for entry in entries if entry.guessed for weight in entry.weights if len(weight.shape) > 1]
    if not weights:
        return ""
    first = weights[0]
    kind = type(first.layer).__name__
    return explain(
        "The units of weights are not known and were guessed: every axis but the last",
        ", ".join(f"{weight.path} of shape {weight.shape}" for weight in weights),
        where=" and ".join(dict.fromkeys(type(weight.layer).__name__ for weight in weights)),
        instead=f"inbounds.register_layout({kind}, {{{first.name!r}: {tuple(range(len(first.shape) - 1))}}}) "
        "with the axes that one unit spans, or `axis` in the set",
    )


def _joint_entry(weight: Weight, claim: Claim, weights: Sequence[Weight], claims: Mapping[int, Claim]) -> Entry:
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
        elif theirs is not None and isinstance(theirs.set, Joint) and not (theirs.is_rule or claim.is_rule):
            raise RuleError(
                explain(
                    "Two different Joints are given to one layer, and one names a weight that has the other",
                    f"{theirs.set!r} on {member.path}",
                    where=f"{joint!r} on {weight.path}",
                    instead="the same Joint for all the weights that it names, such as Joint(a & b)",
                )
            )
        elif theirs is not None:
            missing.append(f"{name} obeys {theirs.set!r}")
        elif member.quantized:
            raise RuleError(
                explain(
                    "A Joint names a weight that is quantized, which no step can move",
                    member.path,
                    where=f"{joint!r} on {weight.path}",
                    instead="inbounds.release(model), or constrain the model before it is quantized",
                )
            )
        else:
            raise RuleError(
                explain(
                    "A Joint names a weight that was not given it",
                    f"none for {member.path}",
                    where=f"{joint!r} on {weight.path}",
                    instead=f"constrain(model, {{{layer.name!r}: {joint!r}}}), or the same Joint for {name} too",
                )
            )
    strangers = [
        w for w in own.values() if w not in members and (c := claims.get(id(w.variable))) is not None and c.set == joint
    ]
    if strangers:
        raise RuleError(
            explain(
                "A Joint was given to a weight that it doesn't name",
                f"{joint!r} on {strangers[0].path}",
                where=f"{type(layer).__name__} with the weights {', '.join(own)}",
                instead=f"Joint({joint.inner!r}, weights={tuple(own)!r}), or those of them that make a unit"
                if len(own) > 1
                else repr(joint.inner),
            )
        )
    for member in members:
        _check_dtype(member, member.dtype, claim.source, joint)
    note = ", ".join(missing) + (": the set holds for the rest" if missing else "")
    guessed = [
        m for m in members if m.name not in layout.spans and len(m.shape) > 1 and not (joint.whole and not joint.matrix)
    ]
    try:
        if guessed:
            note = _notes(note, _guess(guessed[0], joint))
        axes = _joint_axes(joint, members, layout)
        inputs = tuple(layout.inputs.get(member.name) for member in members)
        entry = Entry(joint, tuple(members), axes, claim.source, _noted(note, joint, members), inputs, bool(guessed))
        _check_fit(entry)
    except (SetError, LayoutError) as error:
        raise RuleError(f"{error} Rule: {claim.source!r} on {' + '.join(m.path for m in members)}.") from error
    return entry


def _joint_axes(joint: Joint, members: Sequence[Weight], layout: Any) -> tuple[Axes, ...]:
    """For each member the axes of a unit, so that what is left counts the same units in the same order."""
    if joint.whole and not joint.matrix:
        return tuple(tuple(range(len(member.shape))) for member in members)
    axes = []
    for member in members:
        if len(members) > 1 and member.name in layout.apart:
            raise LayoutError(
                explain(
                    "These weights form no joint units: a unit has no entries of its own in one of them",
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
                "These weights form no joint units: they have different numbers of units",
                shapes,
                where=type(members[0].layer).__name__,
                instead="register_layout for this layer, or constrain the weights separately",
            )
        )
    return tuple(axes)


def _check_dtype(weight: Weight, dtype: str, source: str, owner: Set) -> None:
    if dtype not in MANTISSA_BITS:
        raise RuleError(
            explain(
                f"The weight is not of floating point numbers, but {dtype}",
                f"dtype={dtype} for {source}: {owner!r}",
                where=f"{weight.path} of shape {weight.shape}",
                instead="constrain the model before it is quantized",
            )
        )


def obstacle(weight: Weight) -> str:
    """Why a set on this weight could never be kept; empty where it can."""
    if _untrained(weight):
        return "the layer writes it itself, no optimizer trains it"
    if getattr(weight.layer, "lora_enabled", False) and weight.name in ("kernel", "embeddings"):
        return "with LoRA the layer uses kernel + A @ B, which a set on the kernel doesn't hold"
    return ""


def _untrained(weight: Weight) -> bool:
    return not weight.born_trainable or getattr(weight.variable, "overwrite_with_gradient", False)


def _kept(weight: Weight, given: Set) -> str:
    """What to do instead where a set can't be kept on a weight."""
    if not _untrained(weight):
        return "merge the adapter first, or leave this layer out of the rule"
    if isinstance(given, Joint):
        return "a Joint of weights that are trained, or leave this layer out of the rule"
    trained = "variable.trainable"
    if weight.born_trainable:
        trained += " and not variable.overwrite_with_gradient"
    return f"{{(lambda layer, variable: {trained}): {given!r}}}, which selects the weights that are trained"


def _check_kept(plan: Plan) -> None:
    for entry in plan.entries:
        for weight in entry.weights:
            _check_dtype(weight, dtype_of(weight.variable), entry.source, entry.set)
            if why := obstacle(weight):
                raise RuleError(
                    explain(
                        f"A set can't be kept on this weight: {why}",
                        f"{entry.source}: {entry.set!r}",
                        where=f"{weight.path} of shape {weight.shape} in {type(weight.layer).__name__}",
                        instead=_kept(weight, entry.set),
                    )
                )


def _check_fit(entry: Entry) -> None:
    """That the arrays in a set fit the weights, told without reading them."""
    stand_ins = [np.broadcast_to(np.float32(0), weight.shape) for weight in entry.weights]
    units = Units.of(stand_ins, entry.axes)
    entry.applied.check_fit(units)
    entry.set.check_room(units)
    frozen = [weight for weight in entry.weights if not weight.variable.trainable and weight.used is None]
    if frozen and len(frozen) < len(entry.weights) and not entry.set.holds_frozen:
        raise SetError(
            explain(
                "One weight of a joint unit is frozen, and in this set the others can't make up for it",
                f"{' and '.join(weight.path for weight in frozen)} frozen",
                where=repr(entry.set),
                instead=f"layer.{frozen[0].name}.trainable = True, or a set for each weight",
            )
        )


def _noted(note: str, given: Set, members: Sequence[Weight]) -> str:
    """The note of an entry, with what its set swallows and which of its weights are frozen."""
    frozen = [member.name for member in members if not member.variable.trainable and member.used is None]
    said = f"{' and '.join(frozen)} frozen: projected when constrained, not trained" if frozen else ""
    return _notes(note, given.swallows, said)


def _notes(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


# Models.


def _check_in_use(model: Any, weights: Sequence[Weight]) -> None:
    """That PyTorch's parameters are the variables that the layers compute with.

    Raises:
        RuleError: one was replaced by a DTensor, as `fully_shard` does, and its layer computes with the old one.
    """
    if keras.backend.backend() != "torch":
        return
    used = {id(weight.variable.value) for weight in weights}
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) and id(parameter) not in used:
            raise RuleError(
                explain(
                    "A parameter of the model is not the value of its Keras variable",
                    f"{name} is a DTensor, which its layer doesn't compute with: it gets no gradient",
                    where="torch.distributed.fsdp.fully_shard, which Keras 3.15 doesn't follow",
                    instead="DistributedDataParallel, or variables whose values are DTensors (docs/devices.md)",
                )
            )


def check_model(model: Any) -> None:
    """That a model is one.

    Raises:
        RuleError: it is something else.
    """
    if not isinstance(model, keras.Layer):
        raise RuleError(explain("`model` is not a keras.Model or a layer", f"model={shown(model)}"))


def _built_layers(model: Any) -> list[Any]:
    check_model(model)
    if not model.built:
        raise RuleError(
            explain(
                "The model is not built, so that it has no weights yet",
                f"model={_named(model)}",
                instead="model.build(input_shape), or call it once on a batch",
            )
        )
    layers = layers_of(model)
    unbuilt = [layer for layer in layers if not layer.built and _takes_constraint(layer)]
    if unbuilt:
        raise RuleError(
            explain(
                "A layer of the model is not built, so that it has no weights yet",
                f"layer {unbuilt[0].name} ({type(unbuilt[0]).__name__})",
                where=_named(model),
                instead="call the model once on a batch; a layer that it never calls has no weights: take it out",
            )
        )
    return layers


def _takes_constraint(layer: Any) -> bool:
    return any(name.endswith("_constraint") for name in vars(layer))


def _named(model: Any) -> str:
    return f"{type(model).__name__} {model.name!r}"
