"""`stateless_project`: the projection as a pure function of values, for functional loops such as those of optax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from inbounds._errors import RuleError, explain
from inbounds._model.plan import Entry, reduced_entries
from inbounds._train.bound import in_force, projected, reduced_gradients
from inbounds._train.metrics import UNKNOWN, Step
from inbounds._types import Model
from inbounds._types import Step as Count


def stateless_project(
    model: Model,
    trainable_variables: Sequence[Any],
    metric: Sequence[Any] | None = None,
    *,
    step: Count | None = None,
) -> list[Array]:
    """The values of a model's trainable variables, projected: a pure function, as `stateless_call` is.

    For functional loops, such as those of optax: it works under `jax.jit` and `tf.function`, and leaves the model's
    variables alone. Frozen weights of a Joint are read from the model; under `jax.jit` they become constants of the
    trace. To differentiation its results are constants: for a derivative there is `Set.project`.

    Args:
        model: a built Keras model or layer, constrained, or with sets given to its layers.
        trainable_variables: the values, a list or tuple in the order of `model.trainable_variables`.
        metric: for each value what the optimizer's step was divided by, entry by entry, above 0, or None; a list like
            the values. With optax's Adam `sqrt(nu_hat) + eps`. A set is projected on in the Euclidean metric where
            that of one of its weights is None, or where the plan's is "euclidean". With `stateless_reduce` before the
            optimizer none is needed, and on sets of matrices, whose projection in a metric takes up to 2,000 steps,
            none should be given.
        step: how many steps have been taken, a number or a tensor, for sets that change with them.

    Returns:
        The values in a list; those without a set as they were given. `constrain(every=...)` is left to the caller: it
        projects whenever it is called.

    Raises:
        RuleError: the model has no plan, the values or metrics aren't like the model's variables, or `step` is
            missing.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = stateless_project(model, [10 * v for v in model.trainable_variables])
    """
    values: list[Array] = as_written(_projected_values)(model, trainable_variables, metric, step)
    return values


def stateless_reduce(
    model: Model, trainable_variables: Sequence[Any], gradients: Sequence[Any], *, step: Count | None = None
) -> list[Array]:
    """What the sets of a model leave of gradients: a pure function, for the optimizer of a functional loop to see.

    Called before the optimizer, with `stateless_project` after it, it makes any optimizer end at the constrained
    optimum, and no metric has to be passed: `(P(x) - P(x - e g)) / e`, see docs/optimizers.md.

    Args:
        model: as for `stateless_project`.
        trainable_variables: the values at which the gradients were taken.
        gradients: a list or tuple like them; None for a variable that isn't stepped.
        step: how many steps there are with the coming one, for sets that change with them.

    Returns:
        The gradients in a list, those bit for bit of which all is left: units that stay inside when they follow it,
        sets of single entries, sets that are neither convex nor smooth, and all where the plan's is "full".

    Raises:
        RuleError: the model has no plan, the values or gradients aren't like its variables, or `step` is missing.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = [v.value for v in model.trainable_variables]
        >>> gradients = stateless_reduce(model, values, [keras.ops.ones_like(value) for value in values])
    """
    left: list[Array] = as_written(_reduced_values)(model, trainable_variables, gradients, step)
    return left


def _reduced_values(model: Any, trainable_variables: Any, gradients: Any, step: Any) -> list[Array]:
    entries = in_force(model)
    variables = model.trainable_variables
    values = _like(variables, trainable_variables, "trainable_variables")
    read = _reading(variables, values)
    seen = dict(zip(map(id, variables), _like(variables, gradients, "gradients", optional=True), strict=True))
    result = dict(zip(map(id, variables), gradients, strict=True))
    with no_gradient():
        for entry in reduced_entries(entries):
            _check_step(entry, step, "stateless_reduce(model, values, gradients, step=count)")
            result |= reduced_gradients(entry, seen, read, 0 if step is None else step)
    return list(result.values())


def _projected_values(model: Any, trainable_variables: Any, metric: Any, step: Any) -> list[Array]:
    entries = in_force(model)
    variables = model.trainable_variables
    values = _like(variables, trainable_variables, "trainable_variables")
    costs = [None] * len(variables) if metric is None else _like(variables, metric, "metric", optional=True)
    places = {id(variable): place for place, variable in enumerate(variables)}
    result = list(trainable_variables)

    read = _reading(variables, values)
    with no_gradient():
        for entry in entries:
            _check_step(entry, step, "stateless_project(model, values, step=count)")
            known = _given_step(entry, places, costs)
            for variable, value in projected(entry, read=read, step=known, at=0 if step is None else step):
                result[places[id(variable)]] = without_gradient(value)
    return result


def _reading(variables: Sequence[Any], values: Sequence[Any]) -> Callable[[Any], Array]:
    """What gives the value of a variable: the one given for it, or that of the model."""
    given = dict(zip(map(id, variables), values, strict=True))
    return lambda variable: keras.ops.convert_to_tensor(given.get(id(variable), variable))


def _check_step(entry: Entry, step: Any, instead: str) -> None:
    if entry.set.changes and step is None:
        raise RuleError(
            explain(
                "The set changes with the steps of training, and `step` doesn't say how many there were",
                "step=None",
                where=repr(entry),
                instead=instead,
            )
        )


def _given_step(entry: Entry, places: Mapping[int, int], costs: Sequence[Any]) -> Step:
    """What is known of the step of an entry from what the loop gave."""
    variables = entry.variables
    own = [places.get(id(variable)) for variable in variables]
    if entry.set.metric == "euclidean" or any(place is not None and costs[place] is None for place in own):
        return UNKNOWN
    return Step(
        [
            keras.ops.ones(variable.shape, working_dtype(dtype_of(variable))) if place is None else costs[place]
            for variable, place in zip(variables, own, strict=True)
        ]
    )


def _like(variables: Sequence[Any], given: Any, name: str, *, optional: bool = False) -> list[Any]:
    """What was given for each of some variables, as tensors like them.

    Raises:
        RuleError: their number, a shape or a dtype is another one.
    """
    values = "[variable.value for variable in model.trainable_variables]"
    instead = f"{'[None] * len(model.trainable_variables)' if optional else values} to begin with"
    if not isinstance(given, (list, tuple)) or len(given) != len(variables):
        received = f"{len(given)} values" if isinstance(given, (list, tuple)) else type(given).__name__
        raise RuleError(
            explain(
                f"`{name}` is not a list with one value for each of model.trainable_variables, in their order",
                f"{received} for {len(variables)} variables",
                instead=instead,
            )
        )
    tensors: list[Any] = []
    for variable, value in zip(variables, given, strict=True):
        if value is None and optional:
            tensors.append(None)
            continue
        tensor = keras.ops.convert_to_tensor(value)
        shape, dtype = tuple(tensor.shape), dtype_of(tensor)
        right = dtype == dtype_of(variable) if name == "trainable_variables" else dtype in MANTISSA_BITS
        if shape != tuple(variable.shape) or not right:
            raise RuleError(
                explain(
                    f"A value in `{name}` has another shape or dtype than its variable, in the order of"
                    " model.trainable_variables",
                    f"shape={shape}, dtype={dtype}",
                    where=f"{variable.path} of shape {tuple(variable.shape)} and dtype {dtype_of(variable)}",
                    instead=instead,
                )
            )
        tensors.append(tensor)
    return tensors
