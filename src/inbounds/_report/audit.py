"""`audit` turns a model into a Report. It only reads.

It computes in float64 from the current weights, with its own layout of rows, and looks for what
enforces a set on the variables, without the projections or the plan of a training step.
"""

from __future__ import annotations

import importlib
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import keras
import numpy as np

from inbounds._arrays.laid import Laid
from inbounds._arrays.ops import MANTISSA_BITS, in_numpy, to_numpy
from inbounds._arrays.views import View
from inbounds._errors import ConstraintViolation, SetError, explain, printable, shown
from inbounds._model.layout import layout_of
from inbounds._model.plan import Entry
from inbounds._model.rules import resolve, why_unenforceable
from inbounds._model.selectors import selected_weights
from inbounds._model.table import quantity
from inbounds._model.weights import Weight, layers_of, own_weights, weights_of
from inbounds._report.report import Provenance, Report, Row, Status
from inbounds._sets.composite import asks_for_center, contains, parts_of
from inbounds._sets.custom import Custom
from inbounds._sets.joint import JointSet
from inbounds._sets.matrices import MatrixSet
from inbounds._sets.notation import mathematics
from inbounds._sets.set import Set, of_keras, with_argument
from inbounds._train.attached_sets import current_constraint
from inbounds._train.taken_plans import steps_taken
from inbounds._train.weight_access import exclusive_access
from inbounds._types import Model, Rules, Selector
from inbounds._version import __version__

MOST_BARS = 64  # the numbers that a row keeps of its units, for a plot
MOST_SORTED = 4096  # of more entries, a sample is sorted for a plot
LARGEST_MATRIX = 512  # the longest shorter side of a matrix whose singular values are found for a plot


@exclusive_access(
    instead="inbounds.Monitor() among the callbacks of that fit, an audit in a callback, or once the fit has ended"
)
def audit(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    accept: Selector | Sequence[Selector] | None = None,
) -> Report:
    """Audits whether weights are inside their sets, and whether the sets are enforced.

    Args:
        model: a built Keras model or layer. It is not changed.
        rules: the rules to audit, as for `constrain`. None: all that the model declares: its plan,
            the sets given to layers, Keras' own constraints and plain callables.
        accept: a selector of weights, as in rules, or a list of selectors. It accepts the axis of
            their Keras constraints, where that axis is not the layer's fan-in.

    Returns:
        The report: a row for every set, and one for every weight without. A set is "unenforced" if
        it was declared but nothing applies it. A constraint of Keras is "misaligned" if it holds
        along its axis, that axis is not the layer's fan-in, and units along the fan-in are outside;
        this is only checked if `rules` is None. For a kernel that is quantized to integers or has a
        LoRA adapter, the values that the layer computes with are measured, and the note says so.

    Raises:
        RuleError: the model isn't built, a rule is wrong, `accept` selects no weight, or another
            thread fits the model.

    Cost: one pass over the weights in float64, copied one set at a time, a large one in blocks.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> report = audit(model)
        >>> report.ok
        True
    """
    from_rules = rules is not None
    plan = resolve(model, rules, (lambda variable: None) if from_rules else current_constraint, strict=False)
    layers = layers_of(model)
    weights = own_weights(layers)
    selectors = [] if accept is None else accept if isinstance(accept, (list, tuple)) else [accept]
    accepted = {id(weight.variable) for selector in selectors for weight in selected_weights(selector, layers, weights)}
    row_of = {}
    for entry in plan.entries:
        reason = "" if from_rules else _unenforced_reason(entry)
        row_of[id(entry.weights[0].variable)] = _set_row(entry, repr(entry.set), reason, steps_taken(model, entry))
    for weight, reason in plan.free:
        key, declared = id(weight.variable), None if from_rules else _declared_constraint(weight)
        row_of[key] = (
            Row((weight.path,), "", note=reason)
            if declared is None
            else _declared_row(weight, declared, reason, weights, accepted=key in accepted)
        )
    in_order = [row_of[id(weight.variable)] for weight in weights if id(weight.variable) in row_of]
    return Report(printable(str(model.name)), tuple(in_order), _provenance())


def check(
    model: Model,
    rules: Rules = None,  # type: ignore[assignment]  # None is one of them
    accept: Selector | Sequence[Selector] | None = None,
) -> Report:
    """Audits a model, and raises an error if the report is not ok.

    Args:
        model: see `audit`.
        rules: see `audit`.
        accept: see `audit`.

    Returns:
        The report, which is ok.

    Raises:
        ConstraintViolation: nothing is constrained, or a set is violated, unenforced or misaligned;
            `error.report` holds the audit.
    """
    report = audit(model, rules, accept)
    if not report.constrained:
        raise nothing_constrained_error(model, report)
    bad = [row for row in report.constrained if row.status != "holds"]
    if not bad:
        return report
    worst = max(bad, key=lambda row: (row.violated > 0, row.violation))
    by = f", {worst.violated} of {quantity(worst.units, 'unit')} by up to {worst.violation:.3g}"
    text = f"{worst.set} on {' + '.join(worst.paths)} is {worst.status}{by if worst.violated else ''}"
    others = f"; it is the worst of {len(bad)} that don't hold" if len(bad) > 1 else ""
    notes = f" {worst.note}." if worst.note else ""
    raise ConstraintViolation(f"{text}{others}.{notes}{_suggestion(model, worst, rules)}\n{report}", report)


def nothing_constrained_error(model: Any, report: Report) -> ConstraintViolation:
    """The error for a model without any set, with a line of code that constrains it."""
    trained = [weight for weight in weights_of(model) if weight.created_trainable]
    line = f"inbounds.constrain(model, {{'**/{trained[0].name}': inbounds.MaxNorm(2.0)}})" if trained else ""
    wrong = "Nothing is constrained: no weight of the model has a set"
    received = f"model {report.model!r} with {quantity(len(report.rows), 'weight')}"
    return ConstraintViolation(explain(wrong, received, instead=line), report)


def _suggestion(model: Any, row: Row, rules: Any) -> str:
    """The line of code that brings units inside; empty if the row's note has one, or for NaN."""
    if row.status == "misaligned" or not math.isfinite(row.violation):
        return ""
    if rules is not None:
        return " Instead: inbounds.constrain(model, rules)."
    weights = weights_of(model)
    weight = next(weight for weight in weights if weight.path in row.paths)
    constraint = current_constraint(weight.variable)
    if row.status == "violated" and constraint is not None and not _is_keras_constraint(constraint):
        return " Instead: inbounds.project(model)."
    intended = _as_set(_declared_constraint(weight))
    if isinstance(intended, (Custom, JointSet)) or why_unenforceable(weight) or weight.quantized:
        return ""
    return f" Instead: {_constrain_call(_unique_selector(weight, weights), intended)}."


def _constrain_call(selector: str, constraint: Set) -> str:
    """The line of code that gives a weight a set along the layer's fan-in."""
    plain = with_argument(constraint, "axis", None) if "axis" in constraint.argument_names() else constraint
    code = re.sub(r"(?<![\w.])(?=[A-Z]\w*\()", "inbounds.", repr(plain))
    return f"inbounds.constrain(model, {{{selector!r}: {code}}})"


def _unique_selector(weight: Weight, weights: Sequence[Weight]) -> str:
    """The shortest end of a weight's path, of two parts or more, that selects this weight only."""
    parts = weight.path.split("/")
    ends = ["/".join(parts[-count:]) for count in range(2, len(parts))]
    alone = (end for end in ends if sum(f"/{other.path}".endswith(f"/{end}") for other in weights) == 1)
    return next(alone, weight.path)


def _provenance() -> Provenance:
    backend = keras.backend.backend()
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        inbounds=__version__,
        keras=keras.__version__,
        backend=f"{backend} {importlib.import_module(backend).__version__}",
        python=platform.python_version(),
    )


def _set_row(entry: Entry, code: str, reason: str, step: int = 0) -> Row:
    """The row of a set; `reason` is why nothing enforces it, empty if it is enforced."""
    if asks_for_center(entry.set):
        note = 'the centre "current" becomes the weights as they are when the model is constrained'
        return _unmeasured_row(entry.paths, code, note, entry.set, entry.source)
    values = [in_numpy(one.effective_value()) for one in entry.weights]
    measured = entry.applied.at(step).measure(values, entry.axes)
    violation, outside = np.maximum(measured.excess, 0.0), measured.outside
    worst = entry.index_of(int(np.argmax(np.where(outside, violation, 0))), violation.size)
    status: Status = "violated" if outside.any() else "unenforced" if reason else "holds"
    used = [f"{one.name} is {one.effective_description}" for one in entry.weights if not one.is_stored]
    notes = [entry.note, entry.lost_steps, f"at step {step}" * entry.set.changes, *used, reason]
    return Row(
        paths=entry.paths,
        set=code,
        units=int(violation.size),
        violated=int(outside.sum()),
        violation=float(violation.max(initial=0.0)),
        worst_unit=worst if outside.any() else None,
        active=math.nan if contains(entry.set, (Custom,)) else float(np.mean(measured.active)),
        tolerance=float(measured.slack.max(initial=0.0)),
        status=status,
        note="; ".join(filter(None, notes)),
        definition=mathematics(entry.set),
        source=entry.source,
        excess=_bars(measured.excess),
        entries=_sorted_entries(values),
        singular_values=_singular_values(entry, values),
    )


def _bars(excess: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """The numbers of units, or of more than MOST_BARS the largest of each run of neighbours."""
    excess = excess[excess > -np.inf]
    starts = range(0, excess.size, max(1, -(-excess.size // MOST_BARS)))
    return tuple(np.maximum.reduceat(excess, starts).tolist()) if excess.size else ()


def _sorted_entries(arrays: Sequence[np.ndarray[Any, Any]]) -> tuple[float, ...]:
    """Up to MOST_BARS entries from the smallest to the largest, evenly spaced; NaN is last.

    Of more than MOST_SORTED entries, those of a sample.
    """
    if (count := sum(array.size for array in arrays)) > MOST_SORTED:
        rng = np.random.default_rng(0)
        arrays = [array.ravel()[rng.integers(0, array.size, MOST_SORTED * array.size // count)] for array in arrays]
    entries = np.concatenate([to_numpy(array).ravel() for array in arrays])
    places = np.linspace(0, entries.size - 1, min(entries.size, MOST_BARS)).astype(int)
    return tuple(np.sort(entries)[places].tolist())


def _singular_values(entry: Entry, values: Sequence[Any]) -> tuple[float, ...]:
    """The largest MOST_BARS singular values of each matrix of a set of matrices.

    Of other sets, and where they take long, none.
    """
    if not entry.applied.matrix or min(entry.views[0].count, sum(view.size for view in entry.views)) > LARGEST_MATRIX:
        return ()
    rows = Laid.of_weights(values, entry.axes).rows
    if not np.isfinite(rows).all():
        return ()
    stack = max((part.stack for part in parts_of(entry.applied) if isinstance(part, MatrixSet)), default=1)
    matrices = rows.reshape(stack, -1, rows.shape[1])
    return tuple(np.linalg.svd(matrices, compute_uv=False)[:, :MOST_BARS].ravel().tolist())


def _unmeasured_row(paths: tuple[str, ...], code: str, note: str, constraint: Set, source: str) -> Row:
    """The row of a set that nothing applies and no values can be measured for."""
    return Row(paths, code, status="unenforced", note=note, definition=mathematics(constraint), source=source)


def _unenforced_reason(entry: Entry) -> str:
    """Why nothing enforces a declared set; empty if it is enforced or no step moves the weights."""
    if any(weight.quantized for weight in entry.weights):
        moving = [weight.name for weight in entry.weights if weight.variable.trainable]
        moving += ["the adapter" for weight in entry.weights if weight.adapted]
        return f"nothing keeps the units inside while {' and '.join(moving)} trains" if moving else ""
    reasons = [f"{weight.name}: {reason}" for weight in entry.weights if (reason := why_unenforceable(weight))]
    late = "declared, but Keras applies only what a variable has: the argument was set after the layer was built"
    return "; ".join(reasons + [late] * all(weight.variable.constraint is None for weight in entry.weights))


def _declared_row(weight: Weight, declared: Any, reason: str, weights: Sequence[Weight], *, accepted: bool) -> Row:
    """The row of a weight with a Keras constraint, or with one that never reached its variable."""
    constraint, code, source = _as_set(declared), _constraint_text(declared), weight.argument_code
    if weight.dtype not in MANTISSA_BITS:
        note = f"{reason}; {weight.constraint_argument} is declared, but the weight is {weight.dtype}"
        return _unmeasured_row((weight.path,), code, note, constraint, source)
    layout = layout_of(weight.layer).of_weight(weight.name, weight.shape)
    entry = Entry(constraint, (weight,), source, layouts=(layout,))
    try:
        span = entry.other_span
    except SetError as error:
        return _unmeasured_row((weight.path,), code, str(error), constraint, source)
    if span is None or isinstance(constraint, Custom):
        return _set_row(entry, code, _unenforced_reason(entry))
    value = in_numpy(weight.effective_value())
    along = constraint.measure([value], [span])
    outside, units = int(np.sum(along.outside)), quantity(along.excess.size, "unit")
    note = f"axis {constraint.axis} is not the layer's fan-in {span}: of its {units} {outside} are outside"
    if outside:
        norm = np.linalg.norm(to_numpy(View(value.shape, tuple(sorted(span))).rows(value)[np.argmax(along.excess)]))
        selector = _unique_selector(weight, weights)
        note += (
            f", by up to {along.excess.max():.3g}, with a norm of {norm:.3g}; instead: "
            f"{_constrain_call(selector, constraint)}, "
            f"or where the axis is meant so: inbounds.audit(model, accept={selector!r})"
        )
    row = _set_row(replace(entry, note=note), code, _unenforced_reason(entry))
    if not outside or row.status != "holds" or accepted or isinstance(declared, Set):
        return row
    return replace(row, status="misaligned", excess=_bars(along.excess))


def _declared_constraint(weight: Weight) -> Any:
    constraint = weight.variable.constraint
    return weight.declared_constraint if constraint is None else constraint


def _as_set(constraint: Any) -> Set:
    """A constraint of Keras as the equal set; any other callable as the set of its fixed points."""
    try:
        found = of_keras(constraint)
    except SetError:
        return Custom(constraint)
    return found if isinstance(found, Set) else Custom(constraint)


def _is_keras_constraint(constraint: Any) -> bool:
    """Whether a constraint is one of Keras' own, which Keras enforces."""
    return not isinstance(constraint, Set) and type(constraint).__module__.startswith("keras.")


def _constraint_text(constraint: Any) -> str:
    """A constraint as text: Keras' own with its arguments, since its repr is an address."""
    if isinstance(constraint, Set):
        return repr(constraint)
    if isinstance(constraint, keras.constraints.Constraint):
        arguments = ", ".join(f"{name}={shown(value)}" for name, value in constraint.get_config().items())
        return f"{'keras ' * _is_keras_constraint(constraint)}{type(constraint).__name__}({arguments})"
    return getattr(constraint, "__qualname__", None) or printable(shown(constraint))
