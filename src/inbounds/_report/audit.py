"""Audit: a model becomes a Report. Reads only.

It computes in float64 from the weights as they are, with its own layout of rows, and asks the variables what would keep
them: neither the projections nor the plan that a training step uses are believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, to_numpy
from inbounds._errors import ConstraintViolation, SetError, explain, printable, shown
from inbounds._model.layout import layout_of
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve, why_unenforceable
from inbounds._model.selectors import selected_weights
from inbounds._model.table import quantity
from inbounds._model.weights import Weight, layers_of, weights_of
from inbounds._report.report import Report, Row, Status
from inbounds._sets.custom import Custom
from inbounds._sets.joint import Joint
from inbounds._sets.set import Set, of_keras
from inbounds._train.bound import current_constraint
from inbounds._train.optimizers import steps_taken
from inbounds._train.threads import visits
from inbounds._types import Model, Rules, Selector


@visits("inbounds.Monitor() among the callbacks of that fit, an audit in a callback, or once the fit has ended")
def audit(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    accept: Selector | Sequence[Selector] | None = None,
) -> Report:
    """Whether the weights of a model are inside their sets, and whether something would keep them there.

    Args:
        model: a built Keras model or layer. Nothing of it is changed.
        rules: what to audit, as for `constrain`. None: all that the model declares: its plan, the sets given to layers,
            Keras' own constraints and plain callables.
        accept: a selector of weights, as in rules, or a list of selectors: where a constraint of Keras has an axis that
            is not the layer's fan-in, that axis is meant so.

    Returns:
        The report: a row for every set, and one for every weight without. A set is "unenforced" where it was declared
        and nothing would apply it, a constraint of Keras is "misaligned" where it holds along its axis, which is not
        the layer's fan-in, and units are outside along the fan-in; this is only asked when `rules` is None. Of a kernel
        that is quantized to integers or has a LoRA adapter, what the layer computes with is measured, and the note says
        so.

    Raises:
        RuleError: the model isn't built, a rule is wrong, `accept` selects no weight, or another thread fits the model.

    Cost: one pass over the weights in float64, which are copied one set at a time.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> report = audit(model)
        >>> report.ok
        True
    """
    plan = resolve(model, rules, _nothing if rules is not None else current_constraint, strict=False)
    layers = layers_of(model)
    weights = weights_of(layers)
    selectors = [] if accept is None else accept if isinstance(accept, (list, tuple)) else [accept]
    accepted = {id(weight.variable) for selector in selectors for weight in selected_weights(selector, layers, weights)}
    rows = [_row(entry, asked=rules is not None, step=steps_taken(model, entry)) for entry in plan.entries]
    for weight, why in plan.free:
        rows.append(_free_row(weight, why, weights, asked=rules is not None, accepted=id(weight.variable) in accepted))
    order = {id(weight.variable): i for i, weight in enumerate(weights)}
    places = [order[id(entry.weights[0].variable)] for entry in plan.entries] + [
        order[id(weight.variable)] for weight, _ in plan.free
    ]
    ordered = sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])
    return Report(printable(str(model.name)), tuple(row for _, row in ordered))


def check(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    accept: Selector | Sequence[Selector] | None = None,
) -> Report:
    """The audit of a model, as an error when it is not ok.

    Args:
        model: see `audit`.
        rules: see `audit`.
        accept: see `audit`.

    Returns:
        The report, which is ok.

    Raises:
        ConstraintViolation: nothing is constrained, or a set is violated, unenforced or misaligned; `error.report` has
            the audit.
    """
    report = audit(model, rules, accept)
    if not report.constrained:
        raise nothing_constrained(model, report)
    bad = [row for row in report.constrained if row.status != "holds"]
    if bad:
        worst = max(bad, key=lambda row: (row.violated > 0, row.violation))
        where = " + ".join(worst.paths)
        by = f", {worst.violated} of {quantity(worst.units, 'unit')} by up to {worst.violation:.3g}" * (
            worst.violated > 0
        )
        text = f"{worst.set} on {where} is {worst.status}{by}"
        others = f"; it is the worst of {len(bad)} that don't hold" if len(bad) > 1 else ""
        notes = f" {worst.note}." if worst.note else ""
        raise ConstraintViolation(f"{text}{others}.{notes}{_remedy(model, worst, rules)}\n{report}", report)
    return report


def nothing_constrained(model: Any, report: Report) -> ConstraintViolation:
    """The error that says so, with a line to type that constrains the model."""
    born = [weight for weight in weights_of(layers_of(model)) if weight.created_trainable]
    line = f"inbounds.constrain(model, {{'**/{born[0].name}': inbounds.MaxNorm(2.0)}})" if born else ""
    return ConstraintViolation(
        explain(
            "Nothing is constrained: no weight of the model has a set",
            f"model {report.model!r} with {quantity(len(report.rows), 'weight')}",
            instead=line,
        ),
        report,
    )


def _remedy(model: Any, row: Row, rules: Any) -> str:
    """The line that puts units inside; empty where the row's note has one, or there is none: NaN stay."""
    if row.status == "misaligned" or not math.isfinite(row.violation):
        return ""
    if rules is not None:
        return " Instead: inbounds.constrain(model, rules)."
    weights = weights_of(layers_of(model))
    weight = next(weight for weight in weights if weight.path in row.paths)
    constraint = current_constraint(weight.variable)
    if row.status == "violated" and constraint is not None and not _of_keras(constraint):
        return " Instead: inbounds.project(model)."
    declared = _declared(weight)
    meant = declared if isinstance(declared, Set) else _as_set(declared)
    if isinstance(meant, (Custom, Joint)) or why_unenforceable(weight) or weight.quantized:
        return ""
    return f" Instead: {_rule_for(_selector(weight, weights), meant)}."


def _rule_for(selector: str, constraint: Set) -> str:
    """The line that gives a weight a set along the layer's fan-in."""
    arguments = {name: getattr(constraint, name) for name in constraint.argument_names() if name != "axis"}
    return f"inbounds.constrain(model, {{{selector!r}: inbounds.{type(constraint)(**arguments)!r}}})"


def _selector(weight: Weight, weights: Sequence[Weight]) -> str:
    """The shortest end of its path, of two parts or more, that selects this weight only."""
    parts = weight.path.split("/")
    ends = ["/".join(parts[-count:]) for count in range(2, len(parts))]
    alone = (end for end in ends if sum(f"/{other.path}".endswith(f"/{end}") for other in weights) == 1)
    return next(alone, weight.path)


def _nothing(variable: Any) -> None:
    return None


def _row(entry: Entry, *, asked: bool, label: str = "", step: int = 0) -> Row:
    if entry.set.centers:
        note = 'the centre "current" becomes the weights as they are when the model is constrained'
        return Row(entry.paths, repr(entry.set), 0, 0, 0.0, None, math.nan, 0.0, "unenforced", note)
    found = entry.applied.at(step).measure(list(map(_as_used, entry.weights)), entry.axes)
    violation, outside = np.maximum(found.excess, 0.0), found.outside
    counting = tuple(n for axis, n in enumerate(entry.weights[0].shape) if axis not in entry.axes[0])
    counting = counting if math.prod(counting) == violation.size else violation.shape
    worst = np.unravel_index(int(np.argmax(np.where(outside, violation, 0))), counting) if outside.any() else None
    unkept = "" if asked else _unkept(entry)
    status: Status = "violated" if outside.any() else "unenforced" if unkept else "holds"
    return Row(
        paths=entry.paths,
        set=label or repr(entry.set),
        units=int(violation.size),
        violated=int(outside.sum()),
        violation=float(violation.max(initial=0.0)),
        worst_unit=None if worst is None else tuple(int(i) for i in worst),
        active=float(np.mean(found.active)) if entry.set.has_boundary else math.nan,
        tolerance=float(found.slack.max(initial=0.0)),
        status=status,
        note="; ".join(
            text for text in (entry.note, f"at step {step}" * entry.set.changes, *_made_of(entry), unkept) if text
        ),
    )


def _as_used(weight: Weight) -> Any:
    """The numbers that the layer computes with: those of the variable, or made of it."""
    return weight.variable if (effective := weight.effective) is None else effective.value()


def _made_of(entry: Entry) -> list[str]:
    pairs = ((weight.name, weight.effective) for weight in entry.weights)
    return [f"{name} is {effective.description}" for name, effective in pairs if effective]


def _unkept(entry: Entry) -> str:
    """Why nothing would keep a declared set; empty where something does, or where no step moves the weights."""
    if any(weight.quantized for weight in entry.weights):
        moving = [weight.name for weight in entry.weights if weight.variable.trainable]
        moving += ["the adapter" for weight in entry.weights if weight.effective and weight.effective.adapted]
        return f"nothing keeps the units inside while {' and '.join(moving)} trains" if moving else ""
    reasons = [f"{weight.name}: {why}" for weight in entry.weights if (why := why_unenforceable(weight))]
    if all(weight.variable.constraint is None for weight in entry.weights):
        reasons.append(
            "declared, but Keras applies only what a variable has: the argument was set after the layer was built"
        )
    return "; ".join(reasons)


def _free_row(weight: Weight, why: str, weights: Sequence[Weight], *, asked: bool, accepted: bool) -> Row:
    """A weight without a set of inbounds: it may have a constraint of Keras, or one that never reached the variable."""
    declared = None if asked else _declared(weight)
    if declared is None or weight.dtype not in MANTISSA_BITS:
        note = (
            why
            if declared is None
            else f"{why}; {weight.constraint_argument} is declared, but the weight is {weight.dtype}"
        )
        status: Status = "free" if declared is None else "unenforced"
        return Row(
            (weight.path,), "" if declared is None else _shown(declared), 0, 0, 0.0, None, math.nan, 0.0, status, note
        )
    constraint = declared if isinstance(declared, Set) else _as_set(declared)
    fan_in = layout_of(weight.layer).span(weight.name, weight.shape)
    try:
        axes = constraint.span(weight.shape, fan_in)
    except SetError as error:
        return Row((weight.path,), _shown(declared), 0, 0, 0.0, None, math.nan, 0.0, "unenforced", str(error))
    outside, note = _along_fan_in(constraint, weight, fan_in, weights)
    row = _row(Entry(constraint, (weight,), (axes,), why, note), asked=False, label=_shown(declared))
    meant = accepted or isinstance(declared, Set)
    return replace(row, status="misaligned") if row.status == "holds" and outside and not meant else row


def _declared(weight: Weight) -> Any:
    constraint = weight.variable.constraint
    return weight.declared_constraint if constraint is None else constraint


def _along_fan_in(constraint: Set, weight: Weight, fan_in: Any, weights: Sequence[Weight]) -> tuple[int, str]:
    """Where an axis is not the layer's fan-in: how many units of the layer are outside, and what is to be said."""
    if constraint.axis is None or fan_in is None or isinstance(constraint, Custom):
        return 0, ""
    span = constraint.layer_span(weight.shape, fan_in)
    if set(span) == set(constraint.span(weight.shape)):
        return 0, ""
    value = to_numpy(_as_used(weight))
    found = constraint.measure([_as_used(weight)], [span])
    outside = int(np.sum(found.outside))
    note = (
        f"axis {constraint.axis} is not the layer's fan-in {span}: of its {quantity(found.excess.size, 'unit')} "
        f"{outside} are outside"
    )
    if not outside:
        return 0, note
    norms = np.sqrt(np.sum(value * value, axis=span)).ravel()
    selector = _selector(weight, weights)
    return outside, (
        f"{note}, by up to {found.excess.max():.3g}, with a norm of {norms[np.argmax(found.excess)]:.3g}; instead: "
        f"{_rule_for(selector, constraint)}, or where the axis is meant so: inbounds.audit(model, accept={selector!r})"
    )


def _as_set(constraint: Any) -> Set:
    """A constraint of Keras as the set that it means; any other callable as its fixed points."""
    try:
        found = of_keras(constraint)
    except SetError:
        found = constraint
    return found if isinstance(found, Set) else Custom(constraint)


def _of_keras(constraint: Any) -> bool:
    """Whether it is one of Keras' own, which inbounds leaves to Keras."""
    return not isinstance(constraint, Set) and type(constraint).__module__.startswith("keras.")


def _shown(constraint: Any) -> str:
    """A constraint as it is shown: Keras' own with its arguments, since it prints as an address."""
    if isinstance(constraint, Set):
        return repr(constraint)
    if isinstance(constraint, keras.constraints.Constraint):
        arguments = ", ".join(f"{name}={shown(value)}" for name, value in constraint.get_config().items())
        return f"{'keras ' * _of_keras(constraint)}{type(constraint).__name__}({arguments})"
    return getattr(constraint, "__qualname__", None) or printable(shown(constraint))
