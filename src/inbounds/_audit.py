"""Audit: a model becomes a Report. Reads only.

It computes in float64 from the weights as they are, with its own layout of rows, and asks the variables what would keep
them: neither the projections nor the plan that a training step uses are believed.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from inbounds._arrays import MANTISSA_BITS
from inbounds._bound import current_constraint
from inbounds._errors import ConstraintViolation, SetError
from inbounds._layout import layout_of
from inbounds._optimizers import steps_taken
from inbounds._plan import Entry
from inbounds._report import Report, Row, Status
from inbounds._rules import obstacle, resolve
from inbounds._set import Set
from inbounds._sets.combine import Custom
from inbounds._sets.entries import NonNeg
from inbounds._sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from inbounds._threads import visits
from inbounds._weights import Weight, layers_of, weights_of


@visits("inbounds.Monitor() among the callbacks of that fit, an audit in a callback, or once the fit has ended")
def audit(model: Any, rules: Any = None) -> Report:
    """Whether the weights of a model are inside their sets, and whether something would keep them there.

    Args:
        model: a built Keras model or layer. Nothing of it is changed.
        rules: what to audit, as for `constrain`. None: all that the model declares: its plan, the sets given to layers,
            Keras' own constraints and plain callables.

    Returns:
        The report: a row for every set, and one for every weight without. A set is "unenforced" where it was declared
        and nothing would apply it; this is only asked when `rules` is None. Of a kernel that is quantized to integers
        or has a LoRA adapter, what the layer computes with is measured, and the note says so.

    Raises:
        RuleError: the model isn't built, a rule is wrong, or another thread fits the model.

    Cost: one pass over the weights in float64, which are copied one set at a time.

    Example:
        >>> report = audit(model)
        >>> report.ok
        True
    """
    plan = resolve(model, rules, _nothing if rules is not None else current_constraint, strict=False)
    rows = [_row(entry, asked=rules is not None, step=steps_taken(model, entry)) for entry in plan.entries]
    for weight, why in plan.free:
        rows.append(_free_row(weight, why, asked=rules is not None))
    order = {id(weight.variable): i for i, weight in enumerate(weights_of(layers_of(model)))}
    places = [order[id(entry.weights[0].variable)] for entry in plan.entries] + [
        order[id(weight.variable)] for weight, _ in plan.free
    ]
    return Report(
        str(model.name), tuple(row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0]))
    )


def check(model: Any, rules: Any = None) -> Report:
    """The audit of a model, as an error when it is not ok.

    Args:
        model: see `audit`.
        rules: see `audit`.

    Returns:
        The report, which is ok.

    Raises:
        ConstraintViolation: a set is violated or unenforced; `error.report` has the audit.
    """
    report = audit(model, rules)
    if not report.ok:
        bad = [row for row in report.rows if row.status in ("violated", "unenforced")]
        worst = max(bad, key=lambda row: row.violation)
        raise ConstraintViolation(
            f"{len(bad)} of {len(report.rows)} rows are not in order; "
            f"the worst is {worst.set} on {' + '.join(worst.paths)}: {worst.status}, "
            f"{worst.violated} of {worst.units} units, by up to {worst.violation:.3g}. {worst.note}\n{report}",
            report,
        )
    return report


def _nothing(variable: Any) -> None:
    return None


def _row(entry: Entry, *, asked: bool, shown: str = "", step: int = 0) -> Row:
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
        set=shown or repr(entry.set),
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
    return weight.variable if (used := weight.used) is None else used.value()


def _made_of(entry: Entry) -> list[str]:
    return [f"{weight.name} is {used.words}" for weight in entry.weights if (used := weight.used) is not None]


def _unkept(entry: Entry) -> str:
    """Why nothing would keep a declared set; empty where something does, or where no step moves the weights."""
    if any(weight.quantized for weight in entry.weights):
        moving = [weight.name for weight in entry.weights if weight.variable.trainable]
        moving += ["the adapter" for weight in entry.weights if (used := weight.used) is not None and used.adapted]
        return f"nothing keeps the units inside while {' and '.join(moving)} trains" if moving else ""
    reasons = [f"{weight.name}: {why}" for weight in entry.weights if (why := obstacle(weight))]
    if all(weight.variable.constraint is None for weight in entry.weights):
        reasons.append(
            "declared, but Keras applies only what a variable has: the argument was set after the layer was built"
        )
    return "; ".join(reasons)


def _free_row(weight: Weight, why: str, *, asked: bool) -> Row:
    """A weight without a set of inbounds: it may have a constraint of Keras, or one that never reached the variable."""
    declared = None if asked else weight.variable.constraint or weight.declared
    if declared is None or weight.dtype not in MANTISSA_BITS:
        note = why if declared is None else f"{why}; {weight.argument} is declared, but the weight is {weight.dtype}"
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
    return _row(
        Entry(constraint, (weight,), (axes,), why, _axis_note(constraint, weight, fan_in)),
        asked=False,
        shown=_shown(declared),
    )


def _axis_note(constraint: Set, weight: Weight, fan_in: Any) -> str:
    """That an axis is not the layer's fan-in, and what the units of the layer look like."""
    if constraint.axis is None or fan_in is None or isinstance(constraint, Custom):
        return ""
    span = constraint.layer_span(weight.shape, fan_in)
    if set(span) == set(constraint.span(weight.shape)):
        return ""
    violation = np.maximum(constraint.measure([_as_used(weight)], [span]).excess, 0.0)
    outside = f"of its {violation.size} units {int(np.sum(violation > 0))} are outside, by up to {violation.max():.3g}"
    return f"axis {constraint.axis} is not the layer's fan-in {span}: {outside}"


def _as_set(constraint: Any) -> Set:
    """A constraint of Keras as the set that it means; any other callable as its fixed points."""
    try:
        if type(constraint) is keras.constraints.MaxNorm:
            return MaxNorm(constraint.max_value, axis=constraint.axis)
        if type(constraint) is keras.constraints.UnitNorm:
            return UnitNorm(axis=constraint.axis)
        if type(constraint) is keras.constraints.MinMaxNorm:
            return MinMaxNorm(constraint.min_value, constraint.max_value, constraint.rate, axis=constraint.axis)
        if type(constraint) is keras.constraints.NonNeg:
            return NonNeg()
    except SetError:
        pass
    return Custom(constraint)


def _shown(constraint: Any) -> str:
    """A constraint as it is shown: Keras' own with its arguments, since it prints as an address."""
    if isinstance(constraint, Set):
        return repr(constraint)
    if isinstance(constraint, keras.constraints.Constraint):
        arguments = ", ".join(f"{name}={value!r}" for name, value in constraint.get_config().items())
        return f"keras {type(constraint).__name__}({arguments})"
    return getattr(constraint, "__qualname__", None) or repr(constraint)
