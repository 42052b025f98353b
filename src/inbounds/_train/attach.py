"""`constrain`, `release` and `project`: attach sets to a model, remove them, project weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from inbounds._arrays.ops import Array, as_written, is_concrete, is_sharded, to_numpy
from inbounds._arrays.units import Units
from inbounds._errors import LayoutWarning, PlanNotSavedWarning, RuleError, explain, shown
from inbounds._model.plan import Entry, Plan
from inbounds._model.rules import guess_warning, resolve
from inbounds._model.weights import Weight, weights_of
from inbounds._sets.composite import asks_for_center, with_center
from inbounds._sets.set import Set
from inbounds._sets.value import Training
from inbounds._train.assignments import assign
from inbounds._train.attached_sets import (
    AttachedSet,
    attach_set,
    attached_entries,
    entries_in_force,
    given_constraint,
)
from inbounds._train.decisions import decide
from inbounds._train.optimizer_hooks import take_up
from inbounds._train.optimizers import optimizers_of
from inbounds._train.step_projections import projection_of
from inbounds._train.taken_plans import optimizers_stepping, steps_taken, without_latents
from inbounds._train.unsaved_sets import unsaved_sets
from inbounds._train.weight_access import exclusive_access
from inbounds._types import Every, Gradient, Latent, Metric, Model, Rules


def constrain(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    *,
    gradient: Gradient = "reduced",
    metric: Metric = "auto",
    every: Every = 1,
    latent: Latent = "auto",
) -> Plan:
    """Keeps weights of a model inside sets, from now on.

    The weights are projected at once, after every step of every Keras optimizer, and after `fit`,
    also with moving averages. The model may be compiled or not, trained or not. Constraining again
    replaces the plan. Where an argument has its default, what `in_training` said of a set holds.

    Args:
        model: a built `keras.Model` or layer.
        rules: a mapping from selectors to sets, or a list of such pairs, in which a `Tied` stands
            by itself. A selector is a glob on the end of a weight's path (`"conv*/kernel"`; `*`
            matches within a part, `**` over parts), a callable(layer, variable) -> bool, a layer, a
            class of layers, or a `keras.Variable`, which needs the list, since Python can't hash it
            as a key. For weights the value is a set, or a callable from tensor to tensor; for
            layers it is a `Joint`, or a mapping from weights' names to sets. A weight obeys the
            last rule that matches it. None: the constraints given to layers as arguments.
        gradient: the gradient that the optimizer sees. "reduced": without the part that points out
            of the set, so that any optimizer converges to the constrained optimum, see
            docs/optimizers.md; "full": unchanged. The plan says for which sets the two are the
            same, and why. Saved with the sets, like `metric` and `every`.
        metric: the norm in which the projection after a step is nearest. "optimizer": the
            optimizer's own, where it and the set have one; then the constrained optimum is a fixed
            point even with full gradients. "euclidean". "auto": the optimizer's where gradients are
            full, or the set is made of a 1-norm, whose faces the steps drag along otherwise. The
            plan shows the metric of each weight.
        every: the number of steps between projections, or "epoch". Above 1, weights may be outside
            between projections, also in files saved then; they are inside at the end of each epoch,
            before an evaluation within `fit`, and after `fit`.
        latent: whether the optimizer steps latent weights, whose nearest point the layer uses, so
            that steps which the projection would undo add up; see docs/optimizers.md. "auto": for
            sets with a `Grid` in them, and those with `in_training(latent=True)`.

    Returns:
        The plan; `print(plan)` shows every weight, its set, its units and axes, or why it has none.

    Raises:
        RuleError: the model isn't built, a rule matches nothing, a set can't apply, a plan of
            another model holds a weight, another thread fits the model, or latent weights would
            have to be added within a fit on JAX. No weight has been changed.
        SetError: `every` is neither a positive number nor "epoch".

    Warns:
        PlanNotSavedWarning: a `.keras` file can't hold the whole plan; names the weights.
        LayoutWarning: the layout of a layer is unknown, so the units of its weight were guessed.

    Example:
        >>> rules = {"**/kernel": MaxNorm(2.0), keras.layers.Conv2D: Joint(MaxNorm(1.0))}
        >>> plan = constrain(model, rules)
    """
    plan = _constrain(model, rules, {"metric": metric, "every": every, "gradient": gradient, "latent": latent})
    if text := guess_warning(plan.entries):
        warnings.warn(text, LayoutWarning, stacklevel=2)
    for weight_paths, why in unsaved_sets(model, plan):
        wrong = "A .keras file does not carry the whole plan"
        instead = "call constrain again with the same rules after loading"
        warnings.warn(explain(wrong, weight_paths, where=why, instead=instead), PlanNotSavedWarning, stacklevel=2)
    return plan


@exclusive_access()
def _constrain(model: Any, rules: Any, options: dict[str, Any]) -> Plan:
    """Does the work of `constrain`, which itself warns: warnings name the line of its caller."""
    training = Training.checked("constrain", options, RuleError)
    plan = resolve(model, rules, given_constraint)
    entries = tuple(map(_with_current_center, plan.entries))
    if training.given:
        entries = tuple(replace(one, set=one.set.in_training(**training.given)) for one in entries)
    plan = replace(plan, entries=entries, **vars(training), treatment=partial(_treatment, model))
    if not plan.entries:
        wrong = "Nothing is constrained: there are no rules, and no layer was given a set of inbounds"
        instead = "inbounds.constrain(model, {'**/kernel': MaxNorm(2.0)})"
        raise RuleError(wrong, f"rules={shown(rules)}", where=f"{type(model).__name__} {model.name!r}", instead=instead)
    _check_no_other_plan(model)
    _check_latents_can_be_added(model, plan)
    values = _projected_entries(model, plan.entries, in_numpy=True)
    planned = {id(variable) for entry in plan.entries for variable in entry.variables}
    _restore_given_constraints(weight for weight in weights_of(model) if id(weight.variable) not in planned)
    assign(values)
    for entry in plan.entries:
        attach_set(entry, model)
        for weight in entry.weights:
            _set_layer_argument(weight, entry.set)
    _rehook(model)
    return plan


def _with_current_center(entry: Entry) -> Entry:
    """The entry with the current weights in place of the centre "current"."""
    if not asks_for_center(entry.set):
        return entry
    values = [to_numpy(variable) for variable in entry.variables]
    current = values[0] if len(values) == 1 else Units.of(values, entry.axes).rows()
    return replace(entry, set=with_center(entry.set, current))


def _check_latents_can_be_added(model: Any, plan: Plan) -> None:
    """Checks that no latent weights have to be added within a fit on JAX.

    Such a fit holds the optimizer's variables.
    """
    if not getattr(model, "_jax_state", None):
        return
    for entry in plan.entries:
        built = [optimizer for optimizer in optimizers_stepping(model, entry.variables) if optimizer.built]
        if any(without_latents(optimizer, [decide(entry, built)]) for optimizer in built):
            wrong = "Latent weights can't be added within a fit on JAX, which holds the optimizer's variables"
            instead = "constrain before the fit, or constrain(model, rules, latent=False)"
            raise RuleError(wrong, f"latent={entry.training.latent!r}", where=repr(entry), instead=instead)


def _check_no_other_plan(model: Any) -> None:
    """Checks that no plan of another model holds a weight of this one: it would be broken."""
    for weight in weights_of(model):
        constraint = weight.variable.constraint
        if isinstance(constraint, AttachedSet) and constraint.model not in (None, model):
            other, wrong = f"{constraint.model.name!r}", "A weight is in the plan of another model"
            received = f"{weight.path}, which the plan of {other} holds"
            where = f"{constraint!r}, and now a plan of {model.name!r}"
            release = f"inbounds.release(other), where other is the model {other}"
            instead = f"{release}, or one plan for the model that has all"
            raise RuleError(wrong, received, where=where, instead=instead)


def _projected_entries(model: Any, entries: Sequence[Entry], *, in_numpy: bool = False) -> list[tuple[Any, Any]]:
    """The variables of some entries, frozen ones too, with their projected values.

    In NumPy nothing is compiled.
    """

    def read(variable: Any) -> Array:
        as_it_is = not in_numpy or is_sharded(variable.value)
        return (keras.ops.convert_to_tensor if as_it_is else keras.ops.convert_to_numpy)(variable)

    return [
        pair
        for entry in entries
        for pair in projection_of(entry, include_frozen=True).projected_values(read, steps_taken(model, entry))
    ]


def _treatment(model: Any, entry: Entry) -> tuple[str, str, str]:
    """`Plan.treatment` of a model. On TensorFlow the gradient of an Embedding is sparse."""
    embedding = any(isinstance(weight.layer, keras.layers.Embedding) for weight in entry.weights)
    sparse_gradient = embedding and keras.backend.backend() == "tensorflow"
    one = decide(entry, optimizers_stepping(model, entry.variables), sparse_gradient=sparse_gradient)
    return one.metric_words, one.full_gradient_reason, one.latent_words


def check_backend(wanted: str, wrong: str, others: Mapping[str, str]) -> None:
    """Checks that the backend is the wanted one; `others` has what to call on the other ones."""
    if (backend := keras.backend.backend()) != wanted:
        raise RuleError(wrong, f"backend={backend!r}", instead=f"inbounds.{others[backend]}")


def check_interval(entries: Sequence[Entry], loop: str, instead: str) -> None:
    """Checks that no entry is projected at the end of epochs, which the loop doesn't know."""
    for entry in entries:
        if entry.training.every == "epoch":
            wrong = f"every='epoch' can't be used with {loop}, which counts no epochs"
            instead = f"constrain(model, rules, every=100), or inbounds.{instead} at the end of each epoch"
            raise RuleError(wrong, "every='epoch'", where=repr(entry), instead=instead)


@exclusive_access()
def release(model: Model) -> None:
    """Removes the plan of a model; its weights keep their values and are free from now on.

    Sets of inbounds that were given to layers as arguments are removed too. A constraint of Keras
    or a callable that a rule had replaced is restored. A `Together` that holds weights of other
    models too is removed from all its weights.

    Raises:
        RuleError: the argument is not a model, or another thread fits it.
    """
    weights = weights_of(model)
    entries = attached_entries(weight.variable for weight in weights)
    _restore_given_constraints([*weights, *(weight for entry in entries for weight in entry.weights)])
    for weight in weights:
        if isinstance(weight.variable.constraint, Set) or (
            weight.quantized and isinstance(weight.declared_constraint, Set)
        ):
            weight.variable.constraint = None
            _set_layer_argument(weight, None)
    _rehook(model)


@as_written
@exclusive_access()
def project(model: Model) -> None:
    """Projects the weights of a model now: for loops that train without a Keras optimizer.

    The model may have a plan, or sets given to its layers. Frozen weights are projected too.

    Raises:
        RuleError: the model has neither, `jax.jit` traces the call, or another thread fits the
            model.
    """
    values = _projected_entries(model, entries_in_force(model))
    if any(is_concrete(variable.value) and not is_concrete(value) for variable, value in values):
        wrong = "`project` can't assign to the variables of a model in a function that jax.jit traces"
        instead = "inbounds.stateless_project(model, values), which returns what it projects"
        raise RuleError(wrong, f"model={model.name!r} in a traced function", instead=instead)
    assign(values)


def _restore_given_constraints(weights: Iterable[Weight]) -> None:
    """Gives variables and their layers the constraints that they had before the plan."""
    for weight in weights:
        if isinstance(weight.variable.constraint, AttachedSet):
            constraint = given_constraint(weight.variable)
            weight.variable.constraint = constraint
            _set_layer_argument(weight, constraint)


def _rehook(model: Any) -> None:
    """Has a model's built optimizers take up its plan, and discards its compiled training step."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
    for optimizer in optimizers_of(model):
        if optimizer.built:
            take_up(optimizer)


def _set_layer_argument(weight: Weight, constraint: Any) -> None:
    """Sets the constraint argument of a weight's layer, which Keras saves with the layer."""
    name = weight.constraint_argument
    if name is not None and not isinstance(getattr(type(weight.layer), name, None), property):
        setattr(weight.layer, name, constraint)
