"""The metric of a training step, read from the optimizer's state: the one place that knows what each optimizer keeps.

An optimizer that steps entry by entry moves a weight by `-m / d`. In the norm `sum d (y - x)^2` the nearest point of a
convex set makes the constrained optimum a fixed point of step and projection, see docs/optimizers.md. A reader gives
`d` up to a factor per optimizer: what a factor does to all of a unit's entries does nothing to the nearest point.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._arrays import Array, dense, dtype_of, working_dtype
from inbounds._errors import RuleError, explain, shown
from inbounds._optimizers import WRAPPERS
from inbounds._set import Set

Reader = Callable[[Any, Any, Any], Any]
"""From an optimizer, a variable and its gradient in this step to a tensor like it; None: all entries alike."""

Rate = Callable[[Any, Any, Array, Any, Array], Array]
"""From an optimizer, a variable, its value before the step, its gradient and costs to the scalar step size with which
this variable was stepped."""

EUCLIDEAN = "Euclidean"

Covers = Callable[[Any, Any], bool]
"""From an optimizer, built, and a variable to whether it steps the variable entry by entry, each at its own rate."""

Lead = Callable[[Any, Any], tuple[Any, Array]]
"""From an optimizer and a variable to the variable that it steps instead, and the share of that in the weights."""


@dataclass(frozen=True)
class Metric:
    """How the steps of one kind of optimizer measure.

    Attributes:
        reader: what reads it; None: all entries step alike.
        words: what it is.
        rate: what the steps of a variable are multiplied by besides, where that differs between variables.
        covers: which variables it is for; None: all.
        force: of the other variables, which are stepped by a positive definite matrix times it: reads it.
        others: what the plan says of them.
        lead: what is stepped, where the weights are an average that follows it; None: the weights.
        steady: whether it hardly changes from one step to the next, as a mean over many does.
    """

    reader: Reader | None
    words: str = ""
    rate: Rate | None = None
    covers: Covers | None = None
    force: Reader | None = None
    others: str = ""
    lead: Lead | None = None
    steady: bool = True


@dataclass(frozen=True)
class Step:
    """What the projection after a step knows of it; for each variable of an entry.

    Attributes:
        costs: what moves of its entries cost, which a projection may compute in; None: all the same.
        before: the values before the step; None: not needed.
        instead: what to project in place of units that the step has left outside, for Muon a step along the momentum;
            None: the units, or these parts of them, as they are.
        warm: the variable that carries what this projection starts from, and the next one will; None: nothing.
        anew: with it, what reads the costs once more; see `go_on` of sets.
        steady: whether the costs are about those of the step before.
    """

    costs: Sequence[Array] | None = None
    before: Sequence[Array] | None = None
    instead: Sequence[Array | None] | None = None
    warm: Any = None
    anew: Callable[[], Sequence[Array] | None] | None = None
    steady: bool = True


UNKNOWN = Step()
"""No step, as when weights are put inside by themselves."""

REGISTERED: list[type] = []
"""The classes of `register_metric`, one after the other: where there are more, a compiled step is out of date."""


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
        RuleError: it is not a class of optimizers with an `update_step`, `reader` takes no three arguments, or `words`
            are no string; in the first step, where what `reader` returns is no tensor of real numbers shaped like the
            variable.

    Example:
        >>> class Signed(keras.optimizers.SGD):
        ...     def update_step(self, gradient, variable, learning_rate):
        ...         self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))
        >>> register_metric(Signed, lambda optimizer, variable, gradient: keras.ops.abs(gradient) + 1e-12)
    """
    kind = inspect.isclass(optimizer) and issubclass(optimizer, keras.optimizers.Optimizer)
    steps = kind and optimizer is not keras.optimizers.Optimizer and optimizer not in WRAPPERS
    if not steps or not _takes_three(reader) or not isinstance(words, str):
        raise RuleError(
            explain(
                "register_metric is not given a class of optimizers with an `update_step`, "
                "a callable(optimizer, variable, gradient) and words",
                f"optimizer={shown(optimizer)}, reader={shown(reader)}, words={shown(words)}",
                instead="register_metric(MyAdam, lambda opt, v, g: ...)",
            )
        )

    def read(optimizer: Any, variable: Any, gradient: Any) -> Any:
        cost = reader(optimizer, variable, gradient)
        if cost is None:
            return None
        shape, dtype = getattr(cost, "shape", None), getattr(cost, "dtype", None)
        real = dtype is not None and not any(kind in str(dtype) for kind in ("bool", "complex", "str"))
        if shape is None or tuple(shape) != tuple(variable.shape) or not real:
            raise RuleError(
                explain(
                    "The reader of a metric did not return a tensor of real numbers shaped like the variable",
                    f"{type(cost).__name__} with shape={shape if shape is None else tuple(shape)}, dtype={dtype}",
                    where=f"{optimizer.__class__.__name__}, {variable.path} of shape {tuple(variable.shape)}",
                    instead="keras.ops.broadcast_to(cost, variable.shape), or None where all entries cost the same",
                )
            )
        return keras.ops.copy(cost)  # it may be what the optimizer keeps

    _METRICS[optimizer] = Metric(read, words, steady=False)
    REGISTERED.append(optimizer)


def _takes_three(reader: Any) -> bool:
    if not callable(reader):
        return False
    try:
        inspect.signature(reader).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # of a callable that tells nothing
        return True
    return True


def metric_of(optimizer: Any) -> Metric | None:
    """The metric of an optimizer; None: of an unknown kind."""
    own: Any = type(optimizer)
    for kind in own.__mro__:
        if kind in _METRICS and own.update_step is kind.update_step:  # else it steps in a way of its own
            return _METRICS[kind]
    return None


def words_of(optimizers: Sequence[Any], owner: Set, variables: Sequence[Any]) -> str:
    """What the metric of a set is in training, or why it is the Euclidean one.

    Args:
        optimizers: those that step the variables; none, where the model isn't compiled.
        owner: the set.
        variables: that make its units together.
    """
    if owner.metric == "euclidean":
        return f"{EUCLIDEAN}, as asked for"
    if not _heeds(owner):
        return f"{EUCLIDEAN}: the set is not convex"
    found = metric_of(optimizers[0]) if len(optimizers) == 1 else None
    if found is not None and optimizers[0].built and not _covers_all(found, optimizers[0], variables):
        return f"{type(optimizers[0]).__name__}: {found.others}"
    if owner.same_in_every_metric:
        return "the same in all: each entry by itself"
    if not any(variable.trainable for variable in variables):
        return "none: frozen, no step moves it"
    if not optimizers:
        return "the optimizer's, once the model is compiled"
    if len(optimizers) > 1 and not any(optimizer.built for optimizer in optimizers):
        return "that of the one that steps it, known once the optimizers are built"
    if len(optimizers) > 1:
        return f"{EUCLIDEAN}: {len(optimizers)} optimizers step weights of one unit"
    name = type(optimizers[0]).__name__
    if found is None:
        return f"{EUCLIDEAN}: {name} is unknown, see register_metric"
    if found.reader is None:
        return f"{EUCLIDEAN}: {name} steps all entries alike"
    return f"{name}: {found.words}"


def looks_back(optimizer: Any, owner: Set, variables: Sequence[Any]) -> bool:
    """Whether the projection after a step needs the values before it."""
    metric = metric_of(optimizer)
    if not _heeds(owner) or metric is None or metric.reader is None:
        return False
    if not _covers_all(metric, optimizer, variables):
        return True
    if owner.same_in_every_metric:
        return False
    return not owner.weighs or (metric.rate is not None and len(variables) > 1)


def step_of(
    optimizer: Any,
    owner: Set,
    variables: Sequence[Any],
    gradients: Sequence[Any],
    before: Sequence[Array] | None = None,
) -> Step:
    """What the projection on a set knows of the step that an optimizer has just taken.

    Args:
        optimizer: after its update.
        owner: the set.
        variables: that make its units together.
        gradients: for each, its gradient in the step; None for one that wasn't stepped, as one that is frozen.
        before: for each, its value before the step, where it `looks_back`.
    """
    metric = metric_of(optimizer)
    if not _heeds(owner) or metric is None or metric.reader is None:
        return UNKNOWN
    if owner.same_in_every_metric and _covers_all(metric, optimizer, variables):
        return UNKNOWN
    costs: list[Array] = []
    instead: list[Array | None] = []
    for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
        dtype = working_dtype(dtype_of(variable))
        moved = None
        if gradient is None:
            if variable.trainable:  # the optimizer left it out
                return UNKNOWN
            cost = keras.ops.ones(variable.shape, dtype)
        elif _covered(metric, optimizer, variable):
            cost = metric.reader(optimizer, variable, dense(gradient))
            if cost is None:
                return UNKNOWN
            if metric.rate is not None and before is not None:
                cost = cost / metric.rate(optimizer, variable, before[i], dense(gradient), cost)
        else:
            assert metric.force is not None
            assert before is not None
            cost, moved = _along(metric.force(optimizer, variable, dense(gradient)), before[i], variable)
        costs.append(keras.ops.cast(cost, dtype))
        instead.append(moved)
    if _covers_all(metric, optimizer, variables):
        return Step(costs, before, steady=metric.steady)
    return Step(costs, before, instead) if len(variables) > 1 else Step(instead=instead)  # all entries cost the same


def _along(force: Array, before: Array, variable: Any) -> tuple[Array, Array]:
    """What all entries of a variable cost if it goes as far as its step, but along a force, and where that leads."""
    dtype = working_dtype(dtype_of(variable))
    force, before, after = (keras.ops.cast(x, dtype) for x in (force, before, variable))
    pull, way = _length(force), _length(after - before)
    some = (pull > 0) & (way > 0)
    cost = keras.ops.where(some, pull / keras.ops.where(some, way, 1.0), 1.0)
    return cost * keras.ops.ones_like(after), before - force / cost


def lead_of(optimizer: Any) -> Lead | None:
    """What tells which variables an optimizer steps in place of the model's; None: it steps those."""
    metric = metric_of(optimizer)
    return None if metric is None else metric.lead


def _heeds(owner: Set) -> bool:
    """Whether projections on a set follow the optimizer."""
    return owner.metric != "euclidean" and (owner.weighs or owner.convex)


def _covered(metric: Metric, optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer doesn't step a variable by a matrix."""
    if metric.covers is None or not any(own is variable for own in optimizer._trainable_variables):
        return True
    return not variable.trainable or metric.covers(optimizer, variable)


def _covers_all(metric: Metric, optimizer: Any, variables: Sequence[Any]) -> bool:
    return all(_covered(metric, optimizer, variable) for variable in variables)


# What each optimizer of Keras keeps.


def _keeper(optimizer: Any, name: str, variable: Any) -> Any:
    """The variable in which an optimizer keeps something of another, under a name; None: nothing."""
    return getattr(optimizer, name)[optimizer._get_variable_index(variable)]


def _kept(optimizer: Any, name: str, variable: Any) -> Any:
    """What it holds in this step."""
    return keras.ops.convert_to_tensor(_keeper(optimizer, name, variable))


def _root_of(name: str) -> Reader:
    """The root of a second moment, and the optimizer's epsilon beside it."""

    def read(optimizer: Any, variable: Any, gradient: Any) -> Any:
        root = keras.ops.sqrt(_kept(optimizer, name, variable))
        root += optimizer.epsilon  # in place on PyTorch
        return root

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
    return keras.ops.sqrt(_kept(optimizer, "_v", variable))


def _ftrl(optimizer: Any, variable: Any, gradient: Any) -> Any:
    rate = keras.ops.cast(optimizer.learning_rate, dtype_of(variable))
    moment = keras.ops.power(_kept(optimizer, "_accumulators", variable), -optimizer.learning_rate_power)
    return moment / rate + 2 * (optimizer.l2_regularization_strength + optimizer.beta / (2 * rate))


def _lion(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The size of what Lion takes the sign of, from the momentum, which has moved on since."""
    momentum, b1, b2 = _kept(optimizer, "_momentums", variable), optimizer.beta_1, optimizer.beta_2
    before = (momentum - (1 - b2) * keras.ops.cast(gradient, momentum.dtype)) / b2
    return keras.ops.abs(b1 * before + (1 - b1) * keras.ops.cast(gradient, momentum.dtype))


def _muon_force(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """What Muon makes orthogonal, as a mean of gradients rather than a sum, so that it compares with Adam's."""
    share, step = optimizer.momentum, keras.ops.cast(optimizer.iterations + 1, dtype_of(variable))
    total = _kept(optimizer, "momentums", variable)
    if optimizer.nesterov:
        total, step = gradient + share * total, step + 1
    return total * (1 - share) / (1 - keras.ops.power(share, step))


def _muon_rate(optimizer: Any, variable: Any, before: Array, gradient: Any, cost: Array) -> Array:
    """The rate of what is left to Adam."""
    step = keras.ops.cast(optimizer.iterations + 1, dtype_of(cost))
    rate = keras.ops.cast(optimizer.learning_rate, dtype_of(cost)) * optimizer.adam_lr_ratio
    return rate * keras.ops.sqrt(1 - keras.ops.power(optimizer.adam_beta_2, step))


def _schedule_free_lead(optimizer: Any, variable: Any) -> tuple[Any, Array]:
    """What is stepped, and its share in the weights, which falls from 1 to 1 - beta_1 as its average takes over.

    On PyTorch and TensorFlow, Keras 3.15 reads what is stepped after the step in place of before, where it looks for
    the average in the weights: there the weights are the average, as with a beta_1 of 1.
    """
    beta = optimizer.beta_1 if keras.backend.backend() == "jax" else 1.0
    step = keras.ops.cast(optimizer.iterations + 1, dtype_of(variable))
    return _keeper(optimizer, "_momentums", variable), 1 - beta + beta / step


def _left_to_adam(optimizer: Any, variable: Any) -> bool:
    """Whether Muon steps a variable as Adam does."""
    return _keeper(optimizer, "adam_velocities", variable) is not None


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


o = keras.optimizers
_SECOND_MOMENT = "root of the second moment"
_METRICS: dict[type, Metric] = {
    o.SGD: Metric(None),
    o.Adam: Metric(_adam, _SECOND_MOMENT),
    o.Nadam: Metric(_corrected_root, _SECOND_MOMENT),
    o.Lamb: Metric(_corrected_root, _SECOND_MOMENT, rate=_lamb_rate),
    o.ScheduleFreeAdamW: Metric(_corrected_root, _SECOND_MOMENT, lead=_schedule_free_lead),
    o.Adamax: Metric(_adamax, "largest gradient"),
    o.RMSprop: Metric(_rmsprop, _SECOND_MOMENT),
    o.Adagrad: Metric(_adagrad, "root of the sum of squared gradients"),
    o.Adadelta: Metric(_adadelta, "root of squared gradients over squared steps"),
    o.Adafactor: Metric(_adafactor, "root of the factored second moment", rate=_adafactor_rate),
    o.Ftrl: Metric(_ftrl, "accumulated squared gradients to its learning_rate_power"),
    o.Lion: Metric(_lion, "size of what the sign is taken of", steady=False),
    o.Muon: Metric(
        _root_of("adam_velocities"),
        _SECOND_MOMENT,
        rate=_muon_rate,
        covers=_left_to_adam,
        force=_muon_force,
        others="units that its step leaves outside go as far along the momentum instead",
    ),
}
