"""Finds the weights whose sets a `.keras` file would lose.

Keras saves a layer's constraints with its arguments. A set is lost if its weight has no such
argument (the scale of an RMSNormalization), or if a user's code makes the layer again. To find out,
a layer is made again from its own config; but not a layer of Keras that holds our sets in its
arguments, since writing a config imports TensorFlow where that is installed.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import keras

from inbounds._model.plan import Plan
from inbounds._model.weights import Weight, weights_of
from inbounds._sets.composite import parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.set import Set
from inbounds._train.attached_sets import given_constraint


def unsaved_sets(model: Any, plan: Plan) -> list[tuple[str, str]]:
    """The paths of weights whose sets a file would lose, each group with the reason."""
    lost: list[tuple[str, str]] = []
    planned = {id(weight.variable): (weight, entry.set) for entry in plan.entries for weight in entry.weights}
    seen: set[int] = set()
    for layer in _saved_layers(model):
        inside = {id(w.variable) for w in weights_of(layer)} & planned.keys()
        seen |= inside
        here = [planned[key] for key in inside]
        if inside and not _saves_arguments(layer, here) and (reason := _lost_in_config(layer, here)):
            lost.append(reason)
    outside = [
        weight.path
        for key, (weight, constraint) in planned.items()
        if key not in seen and not _given_by_layer(weight, constraint)  # user code gives it again
    ]
    if outside:
        lost.append((", ".join(outside), f"layers that {type(model).__name__} makes in its own code"))
    return lost


def _given_by_layer(weight: Weight, constraint: Set) -> bool:
    """Whether the layer's own argument already gives the weight this set."""
    given = given_constraint(weight.variable)
    return _same(constraint, given if isinstance(given, Set) or not callable(given) else Custom(given))


def _same(constraint: Set, other: Any) -> bool:
    """Whether another constraint is this set, trained in the same way."""
    return isinstance(other, Set) and constraint == other and constraint.training == other.training


def _saved_layers(model: Any) -> list[Any]:
    """The layers whose configs a model's file holds: those of Sequential and functional models.

    Of a subclass of these that takes other arguments, Keras writes the arguments, not the layers.
    """
    from keras.src.models.functional import Functional, functional_like_constructor  # no public equivalent

    if not isinstance(model, (keras.Sequential, Functional)):
        return [] if isinstance(model, keras.Model) else [model]
    if type(model).get_config not in (keras.Sequential.get_config, Functional.get_config):
        return []
    if isinstance(model, Functional) and not functional_like_constructor(type(model)):
        return []
    parts = (_saved_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers)
    return [layer for part in parts for layer in part]


def _saves_arguments(layer: Any, planned: list[tuple[Weight, Set]]) -> bool:
    """Whether the arguments of a layer hold its planned sets, so that its config saves them.

    The layer must be one of Keras, as its config makes it, and the sets those of inbounds.
    """
    held = [weight.layer is layer and weight.declared_constraint == constraint for weight, constraint in planned]
    kinds = {type(part) for _, constraint in planned for part in parts_of(constraint)}
    ours = all(kind.__module__.startswith("inbounds.") and kind is not Custom for kind in kinds)
    changing = any(constraint.changes for _, constraint in planned)
    made_over = getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False)  # has other weights
    plain = type(layer).__module__.startswith("keras.") and not made_over
    return all(held) and ours and not changing and plain


def _lost_in_config(layer: Any, planned: list[tuple[Weight, Set]]) -> tuple[str, str] | None:
    """The paths of planned weights whose sets a layer's config loses, and why; None: none."""
    paths = ", ".join(weight.path for weight, _ in planned)
    state = random.getstate()  # initializers without a seed draw from it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lambda, which is reported below
            remade = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
            if not remade.built:
                remade.build_from_config(layer.get_build_config())
    except Exception as error:  # a custom layer may raise anything
        return paths, f"{type(layer).__name__} can't be made from its config: {str(error).split('. ')[0]}"
    finally:
        random.setstate(state)
    old, new = weights_of(layer), weights_of(remade)
    if len(old) != len(new):
        return paths, f"{type(layer).__name__} made from its config has other weights"
    wanted = {id(weight.variable): constraint for weight, constraint in planned}
    functions = {type(part.fn) for one in wanted.values() for part in parts_of(one) if isinstance(part, Custom)}
    for kind in (one for one in functions if issubclass(one, keras.constraints.Constraint)):
        if keras.saving.get_registered_name(kind) == kind.__name__:
            return paths, f"{kind.__name__} isn't registered with keras.saving.register_keras_serializable"
    unsaved = [
        weight.path
        for weight, again in zip(old, new, strict=True)
        if id(weight.variable) in wanted and not _same(wanted[id(weight.variable)], again.variable.constraint)
    ]
    if unsaved:
        return ", ".join(unsaved), f"{type(layer).__name__} saves no constraint for it, or one for several weights"
    return None
