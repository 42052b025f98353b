"""Plans in force: `constrain`, `release` and `project`. With the step hook the only writer of weights."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from inbounds._arrays import to_numpy
from inbounds._bound import Bound, bind, current_constraint, given_constraint, projected
from inbounds._carry import not_carried
from inbounds._errors import PlanNotSavedWarning, RuleError, explain
from inbounds._metrics import words_of
from inbounds._plan import Entry, Plan
from inbounds._rules import check_model, resolve
from inbounds._set import Set
from inbounds._step import WRAPPERS, let_go, no_gradient, optimizers_of, take_up
from inbounds._units import Units
from inbounds._weights import Weight, layers_of, weights_of


def constrain(model: Any, rules: Any = None, *, metric: str = "optimizer") -> Plan:
    """Keeps weights of a model inside sets, from now on.

    The weights are inside at once, after every step of every Keras optimizer, and after `fit`, also with moving
    averages. A model may be compiled or not, trained or not; constraining again replaces the plan.

    Args:
        model: a built `keras.Model` or layer.
        rules: a mapping from selectors to sets, or a list of such pairs. A selector is a glob on the end of a weight's
            path (`"conv*/kernel"`; `*` within a part, `**` over parts), a callable(layer, variable) -> bool, a layer, a
            class of layers, or a `keras.Variable`, which takes a list, since Python can't hash it as a key. For weights
            the value is a set (or a callable from tensor to tensor); for layers it is a `Joint`, or a mapping from
            weights' names to sets. A weight obeys the last rule that matches it. None: the constraints given to layers
            as arguments.
        metric: the norm in which "nearest" is meant in training: "optimizer", the one in which the optimizer steps, or
            "euclidean". The first makes the constrained optimum a fixed point, see docs/optimizers.md; the plan shows
            what it is for each weight. It is saved with the sets.

    Returns:
        The plan; `print(plan)` shows every weight, its set, its units and axes, or why it has none.

    Raises:
        RuleError: the model isn't built, a rule matches nothing, or a set can't apply; no weight has been touched.

    Warns:
        PlanNotSavedWarning: a `.keras` file can't carry all of the plan; says which weights.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0), keras.layers.Conv2D: Joint(MaxNorm(1.0))})
    """
    plan = _in_metric(model, _centred(resolve(model, rules, given_constraint, metric)), metric)
    if not plan.entries:
        raise RuleError(
            explain(
                "A plan holds at least one set",
                "a model whose layers were given no set of inbounds, and no rules",
                instead="constrain(model, {'**/kernel': MaxNorm(2.0)})",
            )
        )
    with no_gradient():
        values = [
            pair
            for entry in plan.entries
            for pair in projected(entry, frozen_too=True, read=keras.ops.convert_to_numpy)  # once: nothing to compile
        ]
    _clear(model)
    for variable, value in values:
        variable.assign(value)
    for entry in plan.entries:
        bind(entry)
        for weight in entry.weights:
            _set_argument(weight, entry.set)
    _renew(model)
    for weight_paths, why in not_carried(model, plan):
        warnings.warn(
            explain(
                "A .keras file does not carry the whole plan",
                weight_paths,
                where=why,
                instead="call constrain again with the same rules after loading",
            ),
            PlanNotSavedWarning,
            stacklevel=2,
        )
    return plan


def _centred(plan: Plan) -> Plan:
    """The plan, with the current weights in the place of the centre "current"."""

    def about(entry: Entry) -> Entry:
        if not entry.set.centers:
            return entry
        values = [to_numpy(weight.variable) for weight in entry.weights]
        current = values[0] if len(values) == 1 else Units.of(values, entry.axes).rows()
        return replace(entry, set=entry.set.about(current))

    return replace(plan, entries=tuple(map(about, plan.entries)))


def _in_metric(model: Any, plan: Plan, metric: str) -> Plan:
    entries = (replace(entry, set=entry.set.in_metric(metric)) for entry in plan.entries)
    return replace(plan, entries=tuple(entries), metrics=partial(_measured_by, model))


def _measured_by(model: Any, entry: Entry) -> str:
    """What the metric of an entry is in the steps of the optimizers that the model has now."""
    variables = [weight.variable for weight in entry.weights]
    ids = set(map(id, variables))
    steps = [optimizer for optimizer in optimizers_of(model) if not isinstance(optimizer, WRAPPERS)]
    own = [optimizer for optimizer in steps if ids & set(map(id, optimizer._trainable_variables))]
    return words_of(own or [optimizer for optimizer in steps if not optimizer.built], entry.set, variables)


def release(model: Any) -> None:
    """Takes the plan of a model away; its weights stay as they are and are free from now on.

    Sets of inbounds that were given to layers as arguments go too. A constraint of Keras' own, or a callable, that a
    rule had replaced is back in its place.

    Raises:
        RuleError: it is not a model.
    """
    check_model(model)
    _clear(model)
    for weight in weights_of(layers_of(model)):
        if isinstance(weight.variable.constraint, Set):
            weight.variable.constraint = None
            _set_argument(weight, None)
    _renew(model)


def project(model: Any) -> None:
    """Projects the weights of a model now: for loops that train without a Keras optimizer.

    The model may have a plan, or sets that were given to its layers. Frozen weights are projected too.

    Raises:
        RuleError: the model has neither.
    """
    plan = resolve(model, None, current_constraint)
    if not plan.entries:
        raise RuleError(
            explain(
                "A model to project has a plan or sets",
                "a model without",
                instead="inbounds.constrain(model, rules) first",
            )
        )
    with no_gradient():
        for variable, value in [pair for entry in plan.entries for pair in projected(entry, frozen_too=True)]:
            variable.assign(value)


def _clear(model: Any) -> None:
    """Every variable and layer as it was before a plan held."""
    for weight in weights_of(layers_of(model)):
        if isinstance(weight.variable.constraint, Bound):
            given = given_constraint(weight.variable)
            weight.variable.constraint = given
            _set_argument(weight, given)


def _renew(model: Any) -> None:
    """Has the step compiled anew, also within a fit, and the optimizers that are built take the plan up."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    for optimizer in optimizers_of(model):
        let_go(optimizer)
        if optimizer.built:
            take_up(optimizer, optimizer._trainable_variables)


def _set_argument(weight: Weight, constraint: Any) -> None:
    """Gives the layer's argument, which is saved with the layer, the constraint that holds for its weight."""
    name = weight.argument
    if name is not None and not isinstance(getattr(type(weight.layer), name, None), property):
        setattr(weight.layer, name, constraint)
