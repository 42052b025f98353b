"""`stateless_project` and `stateless_reduce`: pure functions of values, for functional loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras

from inbounds._arrays.ops import (
    MANTISSA_BITS,
    Array,
    as_written,
    dtype_of,
    no_gradient,
    without_gradient,
    working_dtype,
)
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._train.attached_sets import entries_in_force
from inbounds._train.step_projections import StepState, decide
from inbounds._types import Model, Step


@as_written
def stateless_project(
    model: Model,
    trainable_variables: Sequence[Any],
    metric: Sequence[Any] | None = None,
    *,
    step: Step | None = None,
) -> list[Array]:
    """The projected values of a model's trainable variables, as a pure function.

    It is for functional loops such as those of optax, works under `jax.jit` and `tf.function`, and
    doesn't change the model's variables. Frozen weights of a Joint are read from the model and
    become constants of a trace. Gradients don't flow through the results; `Set.project` is
    differentiable.

    Args:
        model: a built Keras model or layer with a plan, or with sets given to its layers.
        trainable_variables: the values, a list or tuple in the order of
            `model.trainable_variables`.
        metric: a list with the diagonal of the optimizer's metric for each value (the positive
            numbers that its step was divided by, entry by entry), or None for a value. For optax's
            Adam it is `sqrt(nu_hat) + eps`. A set is projected on in the Euclidean metric if the
            diagonal of one of its weights is None, or if the plan's metric is "euclidean". After
            `stateless_reduce` no metric is needed. Sets of matrices should get none: their
            projection in a metric takes up to 2,000 steps.
        step: the number of steps taken, a number or a tensor, for sets that change with them.

    Returns:
        The values in a list; those without a set unchanged. `constrain(every=...)` is ignored: each
        call projects.

    Raises:
        RuleError: the model has no plan, the values or metrics don't match the model's variables,
            `step` is missing, or a set keeps latent weights, for which a function has no place; see
            docs/loops.md.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = stateless_project(model, [10 * v for v in model.trainable_variables])
    """
    _check_no_latents(entries_in_force(model))
    return project_values(model, trainable_variables, metric, step)


def project_values(model: Any, trainable_variables: Any, metric: Any = None, step: Any = None) -> list[Array]:
    """`stateless_project` for a caller who keeps latent weights."""
    entries, variables = entries_in_force(model), model.trainable_variables
    values = _checked(variables, trainable_variables, "trainable_variables")
    diagonals = _checked(variables, [None] * len(variables) if metric is None else metric, "metric", optional=True)
    result = dict(zip(values, trainable_variables, strict=True))
    with no_gradient():
        for projection in map(decide, entries):
            count = _given_count(projection.entry, step, "stateless_project(model, values, step=count)")
            state = StepState(count, partial(_given_metric, projection.entry.variables, diagonals))
            projected = projection.projected_values(partial(given_value, values), state)
            result |= {id(variable): without_gradient(value) for variable, value in projected}
    return list(result.values())


def _check_no_latents(entries: Sequence[Entry]) -> None:
    for projection in map(decide, entries):
        if projection.latent:
            raise RuleError(
                "A function of values keeps no latent weights, without which small steps are lost",
                f"latent={projection.entry.training.latent!r}",
                where=repr(projection.entry),
                instead="constrain(model, rules, latent=False), and step the values as they are before "
                "`stateless_project` (docs/loops.md), or lose those steps",
            )


@as_written
def stateless_reduce(
    model: Model, trainable_variables: Sequence[Any], gradients: Sequence[Any], *, step: Step | None = None
) -> list[Array]:
    """The gradients, reduced by a model's sets, for the optimizer of a functional loop.

    A pure function. Called before the optimizer, with `stateless_project` after it, it makes any
    optimizer converge to the constrained optimum without a metric: `(P(x) - P(x - e g)) / e`, see
    docs/optimizers.md.

    Args:
        model: as for `stateless_project`.
        trainable_variables: the values at which the gradients were taken.
        gradients: a list or tuple of gradients like the values; None for a variable that isn't
            stepped.
        step: the number of steps including the coming one, for sets that change with them.

    Returns:
        The gradients in a list. They stay bit for bit the same for units that stay inside when they
        follow them, for sets of single entries, for sets that are neither convex nor smooth, and
        for plans with `gradient="full"`.

    Raises:
        RuleError: the model has no plan, the values or gradients don't match its variables, or
            `step` is missing.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = [v.value for v in model.trainable_variables]
        >>> gradients = stateless_reduce(model, values, [keras.ops.ones_like(value) for value in values])
    """
    entries, variables = entries_in_force(model), model.trainable_variables
    values = _checked(variables, trainable_variables, "trainable_variables")
    tensors = _checked(variables, gradients, "gradients", optional=True)
    result = dict(zip(tensors, gradients, strict=True))
    with no_gradient():
        for projection in map(decide, entries):
            if not projection.full_gradient_reason:
                count = _given_count(projection.entry, step, "stateless_reduce(model, values, gradients, step=count)")
                result |= projection.reduced_gradients(tensors, partial(given_value, values), count)
    return list(result.values())


def given_value(values: Mapping[int, Any], variable: Any) -> Array:
    """The value given for a variable, or else the model's."""
    return keras.ops.convert_to_tensor(values.get(id(variable), variable))


def _given_count(entry: Entry, step: Any, instead: str) -> Any:
    """The number of steps, which a set that changes with them needs."""
    if entry.set.changes and step is None:
        raise RuleError(
            "The set changes with the steps of training, and `step` doesn't say how many there were",
            "step=None",
            where=repr(entry),
            instead=instead,
        )
    return 0 if step is None else step


def _given_metric(variables: Sequence[Any], diagonals: Mapping[int, Any]) -> list[Array] | None:
    """The metric of some variables from the diagonals that the caller gave; None: Euclidean."""
    if any(diagonals.get(id(variable), ()) is None for variable in variables):
        return None
    return [
        diagonals[id(v)] if id(v) in diagonals else keras.ops.ones(v.shape, working_dtype(dtype_of(v)))
        for v in variables
    ]


def _checked(variables: Sequence[Any], given: Any, name: str, *, optional: bool = False) -> dict[int, Any]:
    """The given values as tensors by the ids of their variables, whose number, shapes and dtypes they must have."""
    values = "[variable.value for variable in model.trainable_variables]"
    instead = f"{'[None] * len(model.trainable_variables)' if optional else values} to begin with"
    if not isinstance(given, (list, tuple)) or len(given) != len(variables):
        received = f"{len(given)} values" if isinstance(given, (list, tuple)) else type(given).__name__
        raise RuleError(
            f"`{name}` is not a list with one value for each of model.trainable_variables, in their order",
            f"{received} for {len(variables)} variables",
            instead=instead,
        )
    tensors: dict[int, Any] = {}
    for variable, value in zip(variables, given, strict=True):
        if value is None and optional:
            tensors[id(variable)] = None
            continue
        tensor = keras.ops.convert_to_tensor(value)
        shape, dtype = tuple(tensor.shape), dtype_of(tensor)
        right_dtype = dtype == dtype_of(variable) if name == "trainable_variables" else dtype in MANTISSA_BITS
        if shape != tuple(variable.shape) or not right_dtype:
            raise RuleError(
                f"A value in `{name}` has another shape or dtype than its variable, in the order of"
                " model.trainable_variables",
                f"shape={shape}, dtype={dtype}",
                where=f"{variable.path} of shape {tuple(variable.shape)} and dtype {dtype_of(variable)}",
                instead=instead,
            )
        tensors[id(variable)] = tensor
    return tensors
