"""Plans in force: `constrain`, `release` and `project`. With the step hook the only writer of weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from inbounds._arrays.ops import as_written, is_concrete, no_gradient, to_numpy
from inbounds._arrays.units import Units
from inbounds._errors import LayoutWarning, PlanNotSavedWarning, RuleError, explain, shown
from inbounds._model.plan import Entry, Plan
from inbounds._model.rules import guess_warning, resolve
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._sets.arguments import gradient_name, interval
from inbounds._sets.set import Set
from inbounds._train.bound import Bound, bind, given_constraint, in_force, projected, value_once
from inbounds._train.carry import not_carried
from inbounds._train.metrics import whole_of, words_of
from inbounds._train.optimizers import optimizers_of, stepping, steps_taken
from inbounds._train.step import let_go, take_up
from inbounds._train.threads import visits
from inbounds._types import Every, Gradient, Interval, Metric, Model, Rules

_IN_A_CALLBACK = "call it in a callback of that fit, such as on_epoch_end, or once the fit has ended"


def constrain(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    *,
    gradient: Gradient = "reduced",
    metric: Metric = "auto",
    every: Every = 1,
) -> Plan:
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
        gradient: what the optimizer sees. "reduced": not the part that points out of the set, so that any optimizer
            ends at the constrained optimum, see docs/optimizers.md; "full": all of it. The plan says which sets that
            makes no difference to, and why. It is saved with the sets, as all of these are.
        metric: the norm in which "nearest" is meant in training. "optimizer": the one in which the optimizer steps,
            where that and the set have one, which makes the constrained optimum a fixed point by itself; "euclidean";
            "auto": the optimizer's where gradients are full, or the set is made of a 1-norm, whose faces steps drag
            along otherwise. The plan shows what it is for each weight.
        every: the number of steps after which weights are projected, or "epoch". Above 1, weights may be outside in
            between, also in files that are saved then; at the end of each epoch, before an evaluation within `fit` and
            after `fit` they are inside.

    Returns:
        The plan; `print(plan)` shows every weight, its set, its units and axes, or why it has none.

    Raises:
        RuleError: the model isn't built, a rule matches nothing, a set can't apply, or a plan of another model holds a
            weight, or another thread fits the model; no weight has been touched.
        SetError: `every` is something else.

    Warns:
        PlanNotSavedWarning: a `.keras` file can't carry all of the plan; says which weights.
        LayoutWarning: the units of a weight were guessed, since its layer's layout is not known.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0), keras.layers.Conv2D: Joint(MaxNorm(1.0))})
    """
    plan = _constrain(model, rules, metric, every, gradient)
    if text := guess_warning(plan.entries):
        warnings.warn(text, LayoutWarning, stacklevel=2)
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


@visits(_IN_A_CALLBACK)
def _constrain(model: Any, rules: Any, metric: Metric, every: Every, gradient: Gradient) -> Plan:
    """What `constrain` does to a model, but for its warnings, which name the line that calls it."""
    every = interval("constrain", every, "steps", "constrain(model, rules, every=100)")
    gradient = gradient_name("constrain", gradient, RuleError)
    plan = _in_training(model, _centred(resolve(model, rules, given_constraint, metric)), metric, every, gradient)
    if not plan.entries:
        raise RuleError(
            explain(
                "Nothing is constrained: there are no rules, and no layer was given a set of inbounds",
                f"rules={shown(rules)}",
                where=f"{type(model).__name__} {model.name!r}",
                instead="inbounds.constrain(model, {'**/kernel': MaxNorm(2.0)})",
            )
        )
    _check_alone(model)
    values = _projected(model, plan.entries, read=value_once)
    _clear(model)
    for variable, value in values:
        variable.assign(value)
    for entry in plan.entries:
        bind(entry, model)
        for weight in entry.weights:
            _set_argument(weight, entry.set)
    _renew(model)
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


def _in_training(model: Any, plan: Plan, metric: Metric, every: Interval, gradient: Gradient) -> Plan:
    entries = (replace(entry, set=entry.set.in_training(metric, every, gradient)) for entry in plan.entries)
    measured, seen = partial(_measured_by, model), partial(_seen_by, model)
    return replace(plan, entries=tuple(entries), every=every, gradient=gradient, metrics=measured, whole=seen)


def _check_alone(model: Any) -> None:
    """That no plan of another model holds a weight of this one: of two plans, one would be broken in silence."""
    for weight in weights_of(layers_of(model)):
        constraint = weight.variable.constraint
        if isinstance(constraint, Bound) and constraint.model not in (None, model):
            raise RuleError(
                explain(
                    "A weight is in the plan of another model",
                    f"{weight.path}, which the plan of {constraint.model.name!r} holds",
                    where=f"{constraint!r}, and now a plan of {model.name!r}",
                    instead=f"inbounds.release(other), where other is the model {constraint.model.name!r}, "
                    "or one plan for the model that has all",
                )
            )


def _projected(model: Any, entries: Sequence[Entry], **how: Any) -> list[tuple[Any, Any]]:
    """The variables of some entries with their nearest values, also the frozen ones, as the optimizers count steps."""
    with no_gradient():
        return [
            pair for entry in entries for pair in projected(entry, frozen_too=True, at=steps_taken(model, entry), **how)
        ]


def _measured_by(model: Any, entry: Entry) -> str:
    """What the metric of an entry is in the steps of the optimizers that the model has now."""
    variables = entry.variables
    return words_of(stepping(model, variables), entry.set, variables, rows_only=bool(_rows_only(entry)))


def _seen_by(model: Any, entry: Entry) -> str:
    """Why those optimizers see all of the gradient of an entry."""
    return whole_of(stepping(model, entry.variables), entry.set) or _rows_only(entry)


def _rows_only(entry: Entry) -> str:
    """Why no gradient of an entry is reduced on TensorFlow, where that of an Embedding names rows."""
    named = any(isinstance(weight.layer, keras.layers.Embedding) for weight in entry.weights)
    return "it names rows of a batch only" if named and keras.backend.backend() == "tensorflow" else ""


def check_steps(entries: Sequence[Entry], loop: str, instead: str) -> None:
    """That a loop which counts steps can follow when entries are projected.

    Raises:
        RuleError: one is projected at the end of each epoch.
    """
    for entry in entries:
        if entry.set.every == "epoch":
            raise RuleError(
                explain(
                    f"every='epoch' can't be used with {loop}, which counts no epochs",
                    "every='epoch'",
                    where=repr(entry),
                    instead=f"constrain(model, rules, every=100), or inbounds.{instead} at the end of each epoch",
                )
            )


@visits(_IN_A_CALLBACK)
def release(model: Model) -> None:
    """Takes the plan of a model away; its weights stay as they are and are free from now on.

    Sets of inbounds that were given to layers as arguments go too. A constraint of Keras' own, or a callable, that a
    rule had replaced is back in its place.

    Raises:
        RuleError: it is not a model, or another thread fits it.
    """
    _clear(model)
    for weight in weights_of(layers_of(model)):
        if isinstance(weight.variable.constraint, Set) or (
            weight.quantized and isinstance(weight.declared_constraint, Set)
        ):
            weight.variable.constraint = None
            _set_argument(weight, None)
    _renew(model)


def project(model: Model) -> None:
    """Projects the weights of a model now: for loops that train without a Keras optimizer.

    The model may have a plan, or sets that were given to its layers. Frozen weights are projected too.

    Raises:
        RuleError: the model has neither, `jax.jit` traces the call, or another thread fits the model.
    """
    as_written(_project)(model)


@visits(_IN_A_CALLBACK)
def _project(model: Any) -> None:
    values = _projected(model, in_force(model))
    if any(is_concrete(variable.value) and not is_concrete(value) for variable, value in values):
        raise RuleError(
            explain(
                "`project` can't assign to the variables of a model in a function that jax.jit traces",
                f"model={model.name!r} in a traced function",
                instead="inbounds.stateless_project(model, values), which returns what it projects",
            )
        )
    for variable, value in values:
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
            take_up(optimizer, optimizer._trainable_variables, begins=not getattr(model, "_jax_state", None))


def _set_argument(weight: Weight, constraint: Any) -> None:
    """Gives the layer's argument, which is saved with the layer, the constraint that holds for its weight."""
    name = weight.constraint_argument
    if name is not None and not isinstance(getattr(type(weight.layer), name, None), property):
        setattr(weight.layer, name, constraint)
