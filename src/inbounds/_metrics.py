"""The metric of a training step, read from the optimizer's state: the one place that knows what each optimizer keeps.

An optimizer that steps entry by entry moves a weight by `-m / d`. In the norm `sum d (y - x)^2` the nearest point of a
convex set makes the constrained optimum a fixed point of step and projection, see docs/optimizers.md. A reader gives
`d` up to a factor per optimizer: what a factor does to all of a unit's entries does nothing to the nearest point.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from inbounds._arrays import Array, dense, dtype_of, namespace, working_dtype
from inbounds._errors import RuleError, explain
from inbounds._set import Set
from inbounds._units import Units

Reader = Callable[[Any, Any, Any], Any]
"""From an optimizer, a variable and its gradient in this step to a tensor like it; None: all entries alike."""

Rate = Callable[[Any, Any, Array, Any, Array], Array]
"""From an optimizer, a variable, its value before the step, its gradient and costs to one number."""

FLOOR = 1e-3
"""Entries cost no less than this share of the root mean square of their unit's costs. What costs less has hardly had a
gradient, and would take a unit's whole correction; docs/optimizers.md has what other shares do."""


@dataclass(frozen=True)
class Metric:
    """How the steps of one kind of optimizer measure.

    Attributes:
        reader: what reads it.
        words: what it is, or why it is the Euclidean one.
        step: the method of the class that it was written for: a class that steps otherwise is another kind.
        rate: what the steps of a variable are multiplied by besides, where that differs between variables.
    """

    reader: Reader
    words: str
    step: Any
    rate: Rate | None = None


_METRICS: dict[type, Metric] = {}

EUCLIDEAN = "Euclidean"


def register_metric(optimizer: Any, reader: Reader, words: str = "registered") -> None:
    """Teaches inbounds the metric in which an optimizer of one's own steps.

    Args:
        optimizer: a subclass of `keras.optimizers.Optimizer`; its own subclasses count too, unless they define another
            `update_step`.
        reader: a callable(optimizer, variable, gradient), called within the training step right after the update, with
            the optimizer's state as it is then. It returns a tensor shaped like the variable, above 0: what the step
            was divided by, entry by entry; or None where all entries are divided by the same.
        words: what the plan says of it.

    Raises:
        RuleError: it is not a class of optimizers, or `reader` is not callable.

    Example:
        >>> class Signed(keras.optimizers.SGD):
        ...     def update_step(self, gradient, variable, learning_rate):
        ...         self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))
        >>> register_metric(Signed, lambda optimizer, variable, gradient: keras.ops.abs(gradient) + 1e-12)
    """
    if not (inspect.isclass(optimizer) and issubclass(optimizer, keras.optimizers.Optimizer)) or not callable(reader):
        raise RuleError(
            explain(
                "register_metric takes a class of optimizers and a callable(optimizer, variable, gradient)",
                f"optimizer={optimizer!r}, reader={reader!r}",
                instead="register_metric(MyAdam, lambda opt, v, g: ...)",
            )
        )
    kind: Any = optimizer
    _METRICS[kind] = Metric(reader, words, kind.update_step)


def metric_of(optimizer: Any) -> Metric | None:
    """The metric of an optimizer; None: of an unknown kind."""
    for kind in type(optimizer).__mro__:
        known = _METRICS.get(kind)
        if known is not None and getattr(type(optimizer), "update_step", None) is known.step:
            return known
    return None


def words_of(optimizer: Any, owner: Set) -> str:
    """What the metric of a set is in the steps of an optimizer, or why it is the Euclidean one."""
    if owner.metric == "euclidean":
        return f"{EUCLIDEAN}, as asked for"
    if owner.same_in_every_metric:
        return "the same in all: each entry by itself"
    if not heeds(owner):
        return f"{EUCLIDEAN}: the set is not convex"
    if optimizer is None:
        return "the optimizer's, once the model is compiled"
    found = metric_of(optimizer)
    name = type(optimizer).__name__
    if found is None:
        return f"{EUCLIDEAN}: {name} is unknown, see register_metric"
    return f"{name}: {found.words}"


def heeds(owner: Set) -> bool:
    """Whether the nearest point of a set depends on the metric."""
    return owner.metric != "euclidean" and not owner.same_in_every_metric and (owner.weighs or owner.convex)


def starts_from_before(owner: Set) -> bool:
    """Whether the projection on a set in a metric starts from the weights before the step."""
    return heeds(owner) and not owner.weighs


def rates_differ(optimizer: Any) -> bool:
    """Whether an optimizer steps variables at different rates, which matters where several make units together."""
    metric = metric_of(optimizer)
    return metric is not None and metric.rate is not None


def costs_of(
    optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any], before: Sequence[Array] | None = None
) -> list[Array] | None:
    """What moves of some variables cost in the step that an optimizer has just taken; None: all the same.

    Args:
        optimizer: after its update.
        variables: that make units together.
        gradients: for each, its gradient in the step; None for one that wasn't stepped, as one that is frozen.
        before: for each, its value before the step; needed where rates differ.
    """
    metric = metric_of(optimizer)
    if metric is None:
        return None
    costs = []
    for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
        if gradient is None:
            ones = keras.ops.ones(variable.shape, working_dtype(dtype_of(variable)))
            costs.append(ones if not variable.trainable else None)
            continue
        gradient = dense(gradient)
        cost = metric.reader(optimizer, variable, gradient)
        if cost is not None and metric.rate is not None and before is not None:
            cost = cost / metric.rate(optimizer, variable, before[i], gradient, cost)
        costs.append(cost)
    if any(cost is None for cost in costs):
        return None
    return [
        keras.ops.cast(cost, working_dtype(dtype_of(variable))) for cost, variable in zip(costs, variables, strict=True)
    ]


def floored(units: Units) -> Units:
    """Units with a metric that is finite and above 0, with no entry far cheaper than the others of its unit."""
    if units.metric is None:
        return units
    xp = namespace(units.parts[0])
    costs = units.with_parts(units.metric)
    free = costs.only(free=True)
    if free is None:
        return units.costing(None)
    most = free.max(lambda d: d)
    usable = xp.isfinite(most) & (most > 0)
    unit = xp.where(usable, most, xp.ones_like(most))
    share = free.map(lambda d, unit: d / unit, unit)
    least = FLOOR * xp.sqrt(share.sum(lambda d: d * d) / free.length)
    share = share.map(lambda d, least, good: xp.where(good, xp.maximum(d, least), xp.ones_like(d)), least, usable)
    return units.costing_as(costs.with_free(share))


# What each optimizer of Keras keeps.


def _kept(optimizer: Any, name: str, variable: Any) -> Any:
    """What an optimizer keeps of a variable under a name, as it is in this step."""
    kept = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
    return None if kept is None else keras.ops.convert_to_tensor(kept)


def _root_of(name: str) -> Reader:
    """The root of a second moment, and the optimizer's epsilon beside it."""

    def read(optimizer: Any, variable: Any, gradient: Any) -> Any:
        moment = _kept(optimizer, name, variable)
        return None if moment is None else keras.ops.sqrt(moment) + optimizer.epsilon

    return read


def _corrected_root(optimizer: Any, variable: Any, gradient: Any) -> Any:
    moment = _kept(optimizer, "_velocities", variable)
    step = keras.ops.cast(optimizer.iterations + 1, moment.dtype)
    return keras.ops.sqrt(moment / (1 - keras.ops.power(optimizer.beta_2, step))) + optimizer.epsilon


def _adam(optimizer: Any, variable: Any, gradient: Any) -> Any:
    return _root_of("_velocity_hats" if optimizer.amsgrad else "_velocities")(optimizer, variable, gradient)


def _rmsprop(optimizer: Any, variable: Any, gradient: Any) -> Any:
    moment = _kept(optimizer, "_velocities", variable)
    if optimizer.centered:
        moment = keras.ops.maximum(moment - keras.ops.square(_kept(optimizer, "_average_gradients", variable)), 0)
    return keras.ops.sqrt(moment + optimizer.epsilon)


def _adagrad(optimizer: Any, variable: Any, gradient: Any) -> Any:
    return keras.ops.sqrt(_kept(optimizer, "_accumulators", variable) + optimizer.epsilon)


def _adamax(optimizer: Any, variable: Any, gradient: Any) -> Any:
    return _kept(optimizer, "_u", variable) + optimizer.epsilon


def _adadelta(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """With the steps as they were before this one, which the optimizer has added since."""
    squares = _kept(optimizer, "_accumulated_grads", variable) + optimizer.epsilon
    steps = _kept(optimizer, "_accumulated_delta_vars", variable) + optimizer.rho * optimizer.epsilon
    share = keras.ops.square(keras.ops.cast(gradient, squares.dtype)) / squares
    return keras.ops.sqrt(squares * (optimizer.rho + (1 - optimizer.rho) * share) / steps)


def _adafactor(optimizer: Any, variable: Any, gradient: Any) -> Any:
    moment = _kept(optimizer, "_v", variable)
    return None if moment is None else keras.ops.sqrt(moment)


def _ftrl(optimizer: Any, variable: Any, gradient: Any) -> Any:
    rate = keras.ops.cast(optimizer.learning_rate, dtype_of(variable))
    moment = keras.ops.power(_kept(optimizer, "_accumulators", variable), -optimizer.learning_rate_power)
    return moment / rate + 2 * (optimizer.l2_regularization_strength + optimizer.beta / (2 * rate))


def _lion(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The size of what Lion takes the sign of, from the momentum, which has moved on since."""
    momentum, b1, b2 = _kept(optimizer, "_momentums", variable), optimizer.beta_1, optimizer.beta_2
    before = (momentum - (1 - b2) * keras.ops.cast(gradient, momentum.dtype)) / b2
    return keras.ops.abs(b1 * before + (1 - b1) * keras.ops.cast(gradient, momentum.dtype))


def _length(x: Any) -> Any:
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(x)))


def _lamb_rate(optimizer: Any, variable: Any, before: Array, gradient: Any, cost: Array) -> Array:
    """The trust ratio."""
    momentum = _kept(optimizer, "_momentums", variable)
    step = keras.ops.cast(optimizer.iterations + 1, momentum.dtype)
    stepped = _length(momentum / (1 - keras.ops.power(optimizer.beta_1, step)) / cost)
    size = _length(before)
    usual = (size > 0) & (stepped > 0)
    return keras.ops.where(usual, size / keras.ops.where(usual, stepped, 1.0), 1.0)


def _adafactor_rate(optimizer: Any, variable: Any, before: Array, gradient: Any, cost: Array) -> Array:
    """The root mean square of the variable, and what clipping leaves of the step."""
    size, stepped = (_length(x) / math.prod(variable.shape) ** 0.5 for x in (before, gradient / cost))
    return keras.ops.maximum(size, optimizer.epsilon_2) / keras.ops.maximum(stepped / optimizer.clip_threshold, 1.0)


def _alike(optimizer: Any, variable: Any, gradient: Any) -> None:
    return None


for _kind, _reader, _words in (
    (keras.optimizers.SGD, _alike, "Euclidean, all entries step alike"),
    (keras.optimizers.Adam, _adam, "root of the second moment"),
    (keras.optimizers.AdamW, _adam, "root of the second moment"),
    (keras.optimizers.Nadam, _corrected_root, "root of the second moment"),
    (keras.optimizers.Lamb, _corrected_root, "root of the second moment"),
    (keras.optimizers.ScheduleFreeAdamW, _corrected_root, "root of the second moment"),
    (keras.optimizers.Adamax, _adamax, "largest gradient"),
    (keras.optimizers.RMSprop, _rmsprop, "root of the second moment"),
    (keras.optimizers.Adagrad, _adagrad, "root of the sum of squared gradients"),
    (keras.optimizers.Adadelta, _adadelta, "root of squared gradients over squared steps"),
    (keras.optimizers.Adafactor, _adafactor, "root of the factored second moment"),
    (keras.optimizers.Ftrl, _ftrl, "accumulated squared gradients to its learning_rate_power"),
    (keras.optimizers.Lion, _lion, "size of what the sign is taken of"),
    (
        keras.optimizers.Muon,
        _root_of("adam_velocities"),
        "root of the second moment; Euclidean for kernels",
    ),
):
    register_metric(_kind, _reader, _words)
for _kind, _rate in ((keras.optimizers.Lamb, _lamb_rate), (keras.optimizers.Adafactor, _adafactor_rate)):
    _METRICS[_kind] = replace(_METRICS[_kind], rate=_rate)
