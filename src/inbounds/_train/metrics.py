"""The metric of a training step, read from the optimizer's state: the one place that knows what each optimizer keeps.

An optimizer that steps entry by entry moves a weight by `-m / d`. In the norm `sum d (y - x)^2` the nearest point of a
convex set makes the constrained optimum a fixed point of step and projection, see docs/optimizers.md. A reader gives
`d` up to a factor: what a factor does to all of a unit's entries does nothing to the nearest point.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._arrays.ops import Array, dense, dtype_of, is_sparse, working_dtype
from inbounds._errors import RuleError, explain, shown
from inbounds._sets.set import Set
from inbounds._train.optimizers import WRAPPERS

Reader = Callable[[Any, Any, Any], Any]
"""From an optimizer, a variable and its gradient in this step to a tensor like it; None: all entries alike."""

EUCLIDEAN = "Euclidean"


@dataclass(frozen=True)
class Metric:
    """How the steps of one kind of optimizer measure.

    Attributes:
        reader: what reads it; None: all entries step alike.
        words: what it is.
        steady: whether it hardly changes from one step to the next, as a mean over many does.
        averages: whether the steps follow an average of gradients, as momentum is, and not each as it comes.
    """

    reader: Reader | None
    words: str = ""
    steady: bool = True
    averages: bool = True


@dataclass(frozen=True)
class Step:
    """What the projection after a step knows of it; for each variable of an entry.

    Attributes:
        costs: what moves of its entries cost, which a projection may compute in; None: all the same.
        warm: the variable that carries what this projection starts from, and the next one will; None: nothing.
        anew: with it, what reads the costs once more; see `go_on` of sets.
        steady: whether the costs are about those of the step before.
    """

    costs: Sequence[Array] | None = None
    warm: Any = None
    anew: Callable[[], Sequence[Array] | None] | None = None
    steady: bool = True


UNKNOWN = Step()
"""No step, as when weights are put inside by themselves."""

REGISTERED: list[type] = []
"""The classes of `register_metric`, one after the other: where there are more, a compiled step is out of date."""


def register_metric(optimizer: type[Any], reader: Reader, words: str = "registered") -> None:
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
                instead="register_metric(MyAdam, lambda optimizer, v, gradient: keras.ops.abs(gradient) + 1e-12)",
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


def words_of(optimizers: Sequence[Any], owner: Set, variables: Sequence[Any], *, rows_only: bool = False) -> str:
    """What the metric of a set is in training, or why it is the Euclidean one.

    Args:
        optimizers: those that step the variables; none, where the model isn't compiled.
        owner: the set.
        variables: that make its units together.
        rows_only: whether their gradients name rows, and aren't reduced.
    """
    if owner.metric == "euclidean":
        return f"{EUCLIDEAN}, as asked for"
    if owner.same_in_every_metric:
        return "the same in all: each entry by itself"
    if not owner.reduces and not owner.weighs:
        return f"{EUCLIDEAN}: the set is not convex"
    if not owner.weighs:
        return f"{EUCLIDEAN}: in another the set has no formula"
    if not any(variable.trainable for variable in variables):
        return "none: frozen, no step moves it"
    if not optimizers:
        return "known once the model is compiled"
    if len(optimizers) > 1 and not any(optimizer.built for optimizer in optimizers):
        return "that of the one that steps it, known once the optimizers are built"
    if len(optimizers) > 1:
        return f"{EUCLIDEAN}: {len(optimizers)} optimizers step weights of one unit"
    name, found = type(optimizers[0]).__name__, metric_of(optimizers[0])
    if not owner.follows((found is None or found.averages) and not rows_only):
        return f"{EUCLIDEAN}: {name} sees the reduced gradient"
    if found is None:
        return f"{EUCLIDEAN}: that of {name} is not known, see register_metric"
    if found.reader is None:
        return f"{EUCLIDEAN}: {name} steps all entries alike"
    return f"{name}: {found.words}"


def whole_of(optimizers: Sequence[Any], owner: Set) -> str:
    """Why optimizers see all of a gradient, in words; empty: they see what the set leaves of it.

    Args:
        optimizers: those that step the variables of a unit; none, where the model isn't compiled.
        owner: the set.
    """
    if owner.gradient == "full":
        return "as asked for"
    if len(optimizers) > 1 and any(optimizer.built for optimizer in optimizers):
        return f"{len(optimizers)} optimizers step weights of one unit"
    if owner.follows(averages=False):
        for kind, why in _SEES_WHOLE.items():
            if any(isinstance(optimizer, kind) for optimizer in optimizers):
                return f"{kind.__name__} {why}"
    if owner.reduces and any(isinstance(optimizer, _STEPS_ELSEWHERE) for optimizer in optimizers):
        return ""
    return owner.leaves_all


def step_of(optimizer: Any, owner: Set, variables: Sequence[Any], gradients: Sequence[Any]) -> Step:
    """What the projection on a set knows of the step that an optimizer has just taken.

    Args:
        optimizer: after its update.
        owner: the set.
        variables: that make its units together.
        gradients: for each, its gradient in the step; None for one that wasn't stepped, as one that is frozen.
    """
    metric = metric_of(optimizer)
    rows_only = any(is_sparse(gradient) for gradient in gradients)  # of which none is reduced
    if metric is None or metric.reader is None or not owner.follows(metric.averages and not rows_only):
        return UNKNOWN
    costs: list[Array] = []
    for variable, gradient in zip(variables, gradients, strict=True):
        dtype = working_dtype(dtype_of(variable))
        if gradient is None and variable.trainable:  # the optimizer left it out
            return UNKNOWN
        cost = None if gradient is None else metric.reader(optimizer, variable, dense(gradient))
        if gradient is not None and cost is None:
            return UNKNOWN
        costs.append(keras.ops.ones(variable.shape, dtype) if cost is None else keras.ops.cast(cost, dtype))
    return Step(costs, steady=metric.steady)


# What each optimizer of Keras keeps.


def _kept(optimizer: Any, name: str, variable: Any) -> Any:
    """What an optimizer keeps of a variable, under a name, as it is in this step."""
    return keras.ops.convert_to_tensor(getattr(optimizer, name)[optimizer._get_variable_index(variable)])


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


def _lamb(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """Over the trust ratio, which differs between the weights of a Joint."""
    cost, momentum = _corrected_root(optimizer, variable, gradient), _kept(optimizer, "_momentums", variable)
    step = keras.ops.cast(optimizer.iterations + 1, momentum.dtype)
    stepped = _length(momentum / (1 - keras.ops.power(optimizer.beta_1, step)) / cost)
    size = _length(variable)
    usual = (size > 0) & (stepped > 0)
    return cost * keras.ops.where(usual, stepped / keras.ops.where(usual, size, 1.0), 1.0)


def _adafactor(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """Over the root mean square of the variable, and what clipping leaves of the step: they differ likewise."""
    cost = keras.ops.sqrt(_kept(optimizer, "_v", variable))
    size, stepped = (_length(x) / math.prod(variable.shape) ** 0.5 for x in (variable, gradient / cost))
    clipped = keras.ops.maximum(stepped / optimizer.clip_threshold, 1.0)
    return cost * clipped / keras.ops.maximum(size, optimizer.epsilon_2)


def _length(x: Any) -> Any:
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(x)))


def _ftrl(optimizer: Any, variable: Any, gradient: Any) -> Any:
    rate = keras.ops.cast(optimizer.learning_rate, dtype_of(variable))
    moment = keras.ops.power(_kept(optimizer, "_accumulators", variable), -optimizer.learning_rate_power)
    return moment / rate + 2 * (optimizer.l2_regularization_strength + optimizer.beta / (2 * rate))


def _lion(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The size of what Lion takes the sign of, from the momentum, which has moved on since."""
    momentum, b1, b2 = _kept(optimizer, "_momentums", variable), optimizer.beta_1, optimizer.beta_2
    before = (momentum - (1 - b2) * keras.ops.cast(gradient, momentum.dtype)) / b2
    return keras.ops.abs(b1 * before + (1 - b1) * keras.ops.cast(gradient, momentum.dtype))


o = keras.optimizers
_SECOND_MOMENT = "root of the second moment"
_METRICS: dict[type, Metric] = {
    o.SGD: Metric(None),
    o.Adam: Metric(_adam, _SECOND_MOMENT),
    o.Nadam: Metric(_corrected_root, _SECOND_MOMENT),
    o.Lamb: Metric(_lamb, _SECOND_MOMENT),
    o.Adamax: Metric(_adamax, "largest gradient"),
    o.RMSprop: Metric(_rmsprop, _SECOND_MOMENT, averages=False),
    o.Adagrad: Metric(_adagrad, "root of the sum of squared gradients", averages=False),
    o.Adadelta: Metric(_adadelta, "root of squared gradients over squared steps", averages=False),
    o.Adafactor: Metric(_adafactor, "root of the factored second moment", averages=False),
    o.Ftrl: Metric(_ftrl, "accumulated squared gradients to its learning_rate_power", averages=False),
    o.Lion: Metric(_lion, "size of what the sign is taken of", steady=False),
}

_SEES_WHOLE = {
    o.Ftrl: "goes where the sums of whole gradients lead",
    o.Adafactor: "divides 0 by 0 where a row and a column of a gradient are 0",
}
"""Optimizers that see whole gradients where they are projected in their metric, and why."""

_STEPS_ELSEWHERE = (o.ScheduleFreeAdamW,)
"""Optimizers that step a sequence, which the weights follow: nothing but the gradient keeps its entries inside."""
