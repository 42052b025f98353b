"""Resolving rules on a model: the plan, or an error before any weight is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, dtype_of, is_sharded
from inbounds._arrays.units import Units
from inbounds._errors import LayoutError, RuleError, SetError, explain, raised_as, shown
from inbounds._model.layout import layout_of, wraps_foreign_model
from inbounds._model.plan import Entry, Plan
from inbounds._model.selectors import Assignment, assignments_of, path_matches, rule_pairs
from inbounds._model.weights import Weight, layers_of, own_weights
from inbounds._sets.composite import parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.joint import AcrossLayers, Joint, JointSet, Tied
from inbounds._sets.per import Per
from inbounds._sets.set import Set, with_argument

ConstraintOf = Callable[[Any], Any]  # from a variable to the constraint that its layer was given for it, or None


def resolve(model: Any, rules: Any, constraint_of: ConstraintOf, *, strict: bool = True) -> Plan:
    """The plan of a model's rules and of the constraints given to its layers, which rules override.

    It is strict where a weight that can't be kept in its set is an error. An audit isn't: it
    reports such weights, including those quantized after they were constrained.
    """
    layers = _built_layers(model)
    weights = own_weights(layers)
    if not weights:
        wrong = "The model has no weights"
        instead = "model.build(input_shape), or layers with weights"
        raise RuleError(wrong, f"model={type(model).__name__} {model.name!r}", instead=instead)
    _check_torch_parameters(model, weights)
    return _plan(layers, weights, rules, constraint_of, strict=strict)


def resolve_given(layers: Sequence[Any], constraint_of: ConstraintOf) -> Plan:
    """The plan of the sets given to some layers as arguments, where the model isn't known.

    A Joint on a layer with a quantized weight is left out, so that a saved model still loads.
    `Joint.__call__` raises if the layer's bias is trained.
    """
    weights = own_weights(layers)
    quantized = {id(weight.layer) for weight in weights if weight.quantized}
    weights = [
        w for w in weights if id(w.layer) not in quantized or not isinstance(constraint_of(w.variable), JointSet)
    ]
    return _plan(layers, weights, None, constraint_of, partial=True)


def _plan(
    layers: Sequence[Any],
    weights: Sequence[Weight],
    rules: Any,
    constraint_of: ConstraintOf,
    *,
    strict: bool = True,
    partial: bool = False,
) -> Plan:
    """The plan of some weights; `partial` where there may be others, `strict` as for `resolve`."""
    assignments: dict[int, Assignment] = {}
    for weight in weights:
        constraint = constraint_of(weight.variable)
        if constraint is None and weight.quantized and not strict:  # the quantized variable lacks its constraint
            constraint = weight.declared_constraint
        if constraint is not None:
            known = isinstance(constraint, Set) or type(constraint).__module__.startswith("keras.")
            constraint = constraint if known else Custom(constraint)
            assignments[id(weight.variable)] = Assignment(constraint, weight.argument_code, is_rule=False)
    for selector, value in rule_pairs(rules):
        assignments |= assignments_of(selector, value, layers, weights)
    empty = {id(weight.variable) for weight in weights if 0 in weight.shape}
    assignments = {key: assignment for key, assignment in assignments.items() if key not in empty}
    entries: list[Entry] = []
    free: list[tuple[Weight, str]] = []
    of_layer: dict[int, list[Weight]] = {}
    joint: dict[tuple[int, Set], list[Weight]] = {}  # those given one Joint or the like, in one layer or in several
    for weight in weights:
        of_layer.setdefault(id(weight.layer), []).append(weight)
        if isinstance(given := _set_of(weight, assignments), JointSet):
            joint.setdefault((0 if isinstance(given, AcrossLayers) else id(weight.layer), given), []).append(weight)
    units = Counter(given for _, given in joint)
    of_first = {id(members[0]): members for members in joint.values()}
    for weight in weights:
        assignment = assignments.get(id(weight.variable))
        if assignment is None or not isinstance(given := assignment.set, Set):
            free.append((weight, _why_free(weight, assignment)))
        elif not isinstance(given, JointSet):
            entries.append(_entry(assignment, [weight]))
        elif members := of_first.get(id(weight)):
            shared = f"{units[given]} layers have this Joint, and each has units of its own" * (units[given] > 1)
            members, lacking = _members(members, of_layer[id(weight.layer)], assignments, partial)
            entries.append(_entry(assignment, members, lacking, shared))
    if strict:
        _check_enforceable(entries)
    return Plan(tuple(entries), tuple(free))


def _set_of(weight: Weight, assignments: Mapping[int, Assignment]) -> Any:
    assignment = assignments.get(id(weight.variable))
    return None if assignment is None else assignment.set


def _why_free(weight: Weight, assignment: Assignment | None) -> str:
    if 0 in weight.shape:
        return "it has no entries"
    if assignment is not None:
        return f"kept by Keras: {type(assignment.set).__name__} of keras.constraints"
    if weight.quantized:
        return "quantized, so that no step moves it"
    return "no rule" if weight.created_trainable else "not trained by an optimizer"


# Entries.


def _entry(assignment: Assignment, members: Sequence[Weight], lacking: str = "", shared: str = "") -> Entry:
    """The entry of a set on a weight, or of a Joint or the like on several, if it can hold."""
    given, first = assignment.set, members[0]
    is_joint = isinstance(given, JointSet)
    for member in members:
        _check_dtype(member, member.dtype, assignment.source, given)
    needs_axes = _needs_axes(given, joint=is_joint)
    one_layer = all(member.layer is first.layer for member in members)
    frozen = " and ".join(weight.name if one_layer else weight.path for weight in _frozen(members))
    with raised_as(RuleError, f"Rule: {assignment.source!r} on {' + '.join(map(str, members))}"):
        layout = layout_of(first.layer)
        guessed = [m for m in members if needs_axes and m.name not in layout.spans and len(m.shape) > 1]
        layouts = tuple(layout_of(one.layer).of_weight(one.name, one.shape, joint=is_joint) for one in members)
        for member in members if is_joint and _by_units(given) and len(members) > 1 else ():
            if member.name in layout.apart:
                wrong = "These weights form no joint units: a unit has no entries of its own in one of them"
                instead = "constrain the weights separately"
                raise LayoutError(wrong, f"{member.path}; {layout.apart[member.name]}", instead=instead)
        entry = Entry(given, tuple(members), assignment.source, "", layouts, bool(guessed))
        notes = [
            lacking,
            _guess_note(guessed[0], given) if guessed else "",
            "" if entry.other_span is None else f"the axis is not the layer's fan-in, {layouts[0].fan_in}",
            f"{frozen} frozen: projected when constrained, not trained" if frozen else "",
            shared,
        ]
        _check_shapes(entry)
    note = "; ".join(filter(None, notes))
    return replace(entry, note=note) if note else entry  # which knows its axes


def _needs_axes(given: Set, *, joint: bool) -> bool:
    """Whether the units of a set are those of the layer."""
    others = [part for part in parts_of(given) if isinstance(part, Per)]
    if others:
        return any(_needs_axes(part.spanning, joint=joint) for part in others if part.kind == "units")
    return given.axis is None and (given.matrix or not given.whole) and (joint or not given.entrywise)


def _guess_note(weight: Weight, given: Set) -> str:
    """The note of an entry whose units are a guess; an error if axes may be in another order."""
    kind = type(weight.layer).__name__
    if not wraps_foreign_model(weight.layer):
        return f"units of {kind} not known: every axis but the last; register_layout says otherwise"
    instead = f"inbounds.register_layout({kind}, lambda layer: {{{weight.name!r}: (0,)}}) with the axes of one unit"
    if "axis" in given.argument_names():
        instead = f"{with_argument(given, 'axis', 0)!r}, with the axes that one unit spans as `axis`"
    wrong = "The units of a weight of another framework are not known, and the set has no `axis`"
    raise LayoutError(wrong, f"{given!r}", where=f"{weight} in the {kind} {weight.layer.name!r}", instead=instead)


def guess_warning(entries: Sequence[Entry]) -> str:
    """The text of the warning that units were guessed; empty where none were."""
    weights = [weight for entry in entries if entry.guessed for weight in entry.weights if len(weight.shape) > 1]
    if not weights:
        return ""
    first = weights[0]
    kind = type(first.layer).__name__
    return explain(
        "The units of weights are not known and were guessed: every axis but the last",
        ", ".join(map(str, weights)),
        where=" and ".join(dict.fromkeys(type(weight.layer).__name__ for weight in weights)),
        instead=f"inbounds.register_layout({kind}, {{{first.name!r}: {tuple(range(len(first.shape) - 1))}}}) "
        "with the axes that one unit spans, or `axis` in the set",
    )


def _members(
    members: list[Weight], of_layer: Sequence[Weight], assignments: Mapping[int, Assignment], partial: bool
) -> tuple[list[Weight], str]:
    """The weights of one Joint or the like in the unit's order, and a note on those it lacks."""
    given = _set_of(members[0], assignments)
    if isinstance(given, Joint):
        return _joint_members(members, of_layer, assignments)
    if not isinstance(given, Tied):
        return members, ""
    named = [[w for w in members if path_matches(name, w.path)] for name in given.weights]
    numbers = list(map(len, named))
    if max(numbers) > 1 or sum(numbers) < len(members) or not (partial or all(numbers)):
        pairs = zip(given.weights, named, strict=True)
        taken = (f"{name}: {', '.join(map(str, found)) or 'none'}" for name, found in pairs)
        wrong = "Each name of a Tied is to take one weight, and the Tied no others"
        instead = f"[{given!r}] in the rules, and no later rule for these weights"
        raise RuleError(wrong, "; ".join(taken), where=f"{given!r} on {', '.join(map(str, members))}", instead=instead)
    return [weight for found in named for weight in found], ""


def _joint_members(
    given: Sequence[Weight], of_layer: Sequence[Weight], assignments: Mapping[int, Assignment]
) -> tuple[list[Weight], str]:
    """A layer's weights that a Joint makes one vector per unit, and a note on those it lacks."""
    joint, layer, assignment = _set_of(given[0], assignments), given[0].layer, assignments[id(given[0].variable)]
    roles = layout_of(layer).roles
    own = {w.name: w for w in of_layer}
    members, missing = [], []
    where = f"{joint!r} on {given[0].path}"
    for name in joint.weights:
        member = own.get(roles.get(name, name))
        theirs = assignments.get(id(member.variable)) if member else None
        if member is None:
            missing.append(f"no {name}")
        elif theirs is not None and theirs.set == joint:
            members.append(member)
        elif theirs is not None and isinstance(theirs.set, Joint) and not (theirs.is_rule or assignment.is_rule):
            wrong = "Two different Joints are given to one layer, and one names a weight that has the other"
            instead = "the same Joint for all the weights that it names, such as Joint(a & b)"
            raise RuleError(wrong, f"{theirs.set!r} on {member.path}", where=where, instead=instead)
        elif theirs is not None:
            missing.append(f"{name} obeys {theirs.set!r}")
        elif member.quantized:
            wrong = "A Joint names a weight that is quantized, which no step can move"
            instead = "inbounds.release(model), or constrain the model before it is quantized"
            raise RuleError(wrong, member.path, where=where, instead=instead)
        else:
            wrong = "A Joint names a weight that was not given it"
            instead = f"constrain(model, {{{layer.name!r}: {joint!r}}}), or the same Joint for {name} too"
            raise RuleError(wrong, f"none for {member.path}", where=where, instead=instead)
    if unnamed := [w for w in own.values() if w in given and w not in members]:
        wrong, where = "A Joint was given to a weight that it doesn't name", f"the weights {', '.join(own)}"
        instead = f"Joint({joint.inner!r}, weights={tuple(own)!r}), or those of them that make a unit"
        instead, where = instead if len(own) > 1 else repr(joint.inner), f"{type(layer).__name__} with {where}"
        raise RuleError(wrong, f"{joint!r} on {unnamed[0].path}", where=where, instead=instead)
    return members, ", ".join(missing) + (": the set holds for the rest" if missing else "")


def _by_units(given: Set) -> bool:
    """Whether a set is one of units of a layer, not of whole weights."""
    others = [part.kind for part in parts_of(given) if isinstance(part, Per)]
    return any(kind != "weight" for kind in others) if others else given.matrix or not given.whole


def _check_dtype(weight: Weight, dtype: str, source: str, owner: Set) -> None:
    if dtype not in MANTISSA_BITS:
        wrong = f"The weight is not of floating point numbers, but {dtype}"
        instead = "constrain the model before it is quantized"
        raise RuleError(wrong, f"dtype={dtype} for {source}: {owner!r}", where=str(weight), instead=instead)


def why_unenforceable(weight: Weight) -> str:
    """Why no set can be kept on this weight; empty where one can."""
    if _untrained(weight):
        return "the layer writes it itself, no optimizer trains it"
    if getattr(weight.layer, "lora_enabled", False) and weight.name in ("kernel", "embeddings"):
        return "with LoRA the layer uses kernel + A @ B, which a set on the kernel doesn't hold"
    return ""


def _untrained(weight: Weight) -> bool:
    return not weight.created_trainable or getattr(weight.variable, "overwrite_with_gradient", False)


def _check_enforceable(entries: Iterable[Entry]) -> None:
    for entry, weight in ((one, weight) for one in entries for weight in one.weights):
        _check_dtype(weight, dtype_of(weight.variable), entry.source, entry.set)
        if why := why_unenforceable(weight):
            trained = "variable.trainable" + " and not variable.overwrite_with_gradient" * weight.created_trainable
            rule = f"{{(lambda layer, variable: {trained}): {entry.set!r}}}"
            instead = f"{rule}, which selects the weights that are trained"
            if isinstance(entry.set, Joint):
                instead = "a Joint of weights that are trained, or leave this layer out of the rule"
            if not _untrained(weight):
                instead = "merge the adapter first, or leave this layer out of the rule"
            wrong = f"A set can't be kept on this weight: {why}"
            where = f"{weight} in {type(weight.layer).__name__}"
            raise RuleError(wrong, f"{entry.source}: {entry.set!r}", where=where, instead=instead)


def _check_shapes(entry: Entry) -> None:
    """Raises a SetError where the set's arrays don't fit the shapes of the weights."""
    zeros = [np.broadcast_to(np.float32(0), weight.shape) for weight in entry.weights]
    units = Units.of(zeros, entry.axes)
    entry.applied.check_fit(units)
    entry.applied.check_room(units)
    frozen = _frozen(entry.weights)
    if frozen and len(frozen) < len(entry.weights) and not entry.set.allows_frozen:
        wrong = "One weight of a joint unit is frozen, and in this set the others can't make up for it"
        where = repr(entry.set)
        instead = f"layer.{frozen[0].name}.trainable = True, or a set for each weight"
        raise SetError(wrong, f"{' and '.join(weight.path for weight in frozen)} frozen", where=where, instead=instead)


def _frozen(weights: Iterable[Weight]) -> list[Weight]:
    """The weights that aren't trained; not those that are quantized or have an adapter."""
    return [weight for weight in weights if not weight.variable.trainable and weight.is_stored]


# Models.


def _check_torch_parameters(model: Any, weights: Sequence[Weight]) -> None:
    """Checks that PyTorch's parameters are the values of the variables.

    `fully_shard` replaces the parameters by DTensors.
    """
    values = {id(weight.variable.value) for weight in weights}
    for name, parameter in model.named_parameters() if keras.backend.backend() == "torch" else ():
        if is_sharded(parameter) and id(parameter) not in values:
            raise RuleError(
                "A parameter of the model is not the value of its Keras variable",
                f"{name} is a DTensor, which its layer doesn't compute with: it gets no gradient",
                where="torch.distributed.fsdp.fully_shard, which Keras 3.15 doesn't follow",
                instead="DistributedDataParallel, or variables whose values are DTensors (docs/devices.md)",
            )


def check_model(model: Any) -> None:
    """Raises a RuleError where the model is neither a Keras model nor a layer."""
    if not isinstance(model, keras.Layer):
        raise RuleError("`model` is not a keras.Model or a layer", f"model={shown(model)}")


def _built_layers(model: Any) -> list[Any]:
    check_model(model)
    name = f"{type(model).__name__} {model.name!r}"
    if not model.built:
        wrong = "The model is not built, so that it has no weights yet"
        raise RuleError(wrong, f"model={name}", instead="model.build(input_shape), or call it once on a batch")
    layers = layers_of(model)
    unbuilt = [one for one in layers if not one.built and any(name.endswith("_constraint") for name in vars(one))]
    if unbuilt:
        wrong = "A layer of the model is not built, so that it has no weights yet"
        instead = "call the model once on a batch; a layer that it never calls has no weights: take it out"
        raise RuleError(wrong, f"layer {unbuilt[0].name} ({type(unbuilt[0]).__name__})", where=name, instead=instead)
    return layers
