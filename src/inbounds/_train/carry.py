"""What of a plan a `.keras` file carries.

Keras saves a layer's constraints with the layer's arguments, so the sets of a plan are put there. What has no such
argument (the scale of an RMSNormalization), or lies in a layer that is made anew by a user's code, is lost in a file:
that is found out here, by making each layer again from its own config, and said by `constrain`.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import keras

from inbounds._model.plan import Plan
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.composite import parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.set import Set
from inbounds._train.bound import given_constraint


def not_carried(model: Any, plan: Plan) -> list[tuple[str, str]]:
    """The weights of a plan that a file would lose, as a text, each with the reason."""
    lost: list[tuple[str, str]] = []
    top = _saved_layers(model)
    planned = {id(weight.variable): (weight, entry.set) for entry in plan.entries for weight in entry.weights}
    seen: set[int] = set()
    for layer in top:
        inside = {id(w.variable) for w in weights_of(layers_of(layer))} & planned.keys()
        seen |= inside
        if inside and (why := _lost_in(layer, [planned[key] for key in inside])):
            lost.append(why)
    outside = [
        weight.path
        for key, (weight, constraint) in planned.items()
        if key not in seen and not _is_given(weight, constraint)  # what code gives its layers, it gives them again
    ]
    if outside:
        lost.append((", ".join(outside), f"layers that {type(model).__name__} makes in its own code"))
    return lost


def _is_given(weight: Weight, constraint: Set) -> bool:
    given = given_constraint(weight.variable)
    return constraint == (given if isinstance(given, Set) or not callable(given) else Custom(given))


def _saved_layers(model: Any) -> list[Any]:
    """The layers whose configs are in the model's file: those of Sequential and functional models, also nested."""
    from keras.src.models.functional import Functional  # no public name tells a functional model from a subclassed one

    if not isinstance(model, (keras.Sequential, Functional)):
        return [] if isinstance(model, keras.Model) else [model]
    if type(model).get_config not in (keras.Sequential.get_config, Functional.get_config):
        return []
    return [
        saved
        for layer in model.layers
        for saved in (_saved_layers(layer) if isinstance(layer, keras.Model) else [layer])
    ]


def _lost_in(layer: Any, planned: list[tuple[Any, Set]]) -> tuple[str, str] | None:
    """What the layer made anew from its config lacks; None when it has it all."""
    paths = ", ".join(weight.path for weight, _ in planned)
    state = random.getstate()  # initializers without a seed draw one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Keras says of a lambda when saving is said here as an error is
            again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
            if not again.built:
                again.build_from_config(layer.get_build_config())
    except Exception as error:  # a layer of the user's may fail in any way, and that is the finding
        return paths, f"{type(layer).__name__} can't be made from its config: {str(error).split('. ')[0]}"
    finally:
        random.setstate(state)
    old, new = weights_of(layers_of(layer)), weights_of(layers_of(again))
    if len(old) != len(new):
        return paths, f"{type(layer).__name__} made from its config has other weights"
    wanted = {id(weight.variable): constraint for weight, constraint in planned}
    for constraint in wanted.values():
        for kind in {type(part.fn) for part in parts_of(constraint) if isinstance(part, Custom)}:
            if (
                issubclass(kind, keras.constraints.Constraint)
                and keras.saving.get_registered_name(kind) == kind.__name__
            ):
                return paths, f"{kind.__name__} isn't registered with keras.saving.register_keras_serializable"
    without = [
        o.path
        for o, n in zip(old, new, strict=True)
        if id(o.variable) in wanted and n.variable.constraint != wanted[id(o.variable)]
    ]
    if without:
        return ", ".join(without), f"{type(layer).__name__} saves no constraint for it, or one for several weights"
    return None
