"""The metrics of Keras' optimizers, read from their state.

An optimizer that steps entry by entry moves a weight by `-m / d`, where `d` is the diagonal of its
metric, see docs/optimizers.md. A reader may return `d` up to a factor common to a unit's entries,
which leaves the nearest point unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._arrays.ops import Array, dense, dtype_of, working_dtype
from inbounds._errors import RuleError, shown
from inbounds._train.optimizers import WRAPPERS

Reader = Callable[[Any, Any, Any], Any]
"""Maps an optimizer, a variable and its gradient to the diagonal of the metric.

The diagonal has the shape of the variable; None stands for a constant one.
"""


@dataclass(frozen=True)
class OptimizerMetric:
    """The metric of one class of optimizers."""

    reader: Any  # reads the diagonal; None: it is constant
    description: str = ""  # what the diagonal is, in words
    averages_gradients: bool = True  # whether the optimizer steps along an average (momentum)
    needs_full_gradient: str = ""  # why it sees full gradients where weights are projected in it; empty if it doesn't

    def diagonals(self, optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any]) -> list[Array] | None:
        """The diagonals for an entry's variables right after a step; None: Euclidean."""
        diagonals: list[Array] = []
        for variable, gradient in zip(variables, gradients, strict=True):
            dtype = working_dtype(dtype_of(variable))
            if gradient is None and not variable.trainable:
                diagonals.append(keras.ops.ones(variable.shape, dtype))
                continue
            diagonal = None if gradient is None else self.reader(optimizer, variable, dense(gradient))
            if diagonal is None:
                return None
            diagonals.append(keras.ops.cast(diagonal, dtype))
        return diagonals


def register_metric(optimizer: type[Any], reader: Reader, words: str = "registered") -> None:
    """Registers the metric in which a custom optimizer steps.

    Args:
        optimizer: a subclass of `keras.optimizers.Optimizer`. The metric also holds for its own
            subclasses, unless they define another `update_step`.
        reader: a callable(optimizer, variable, gradient), called within the training step right
            after the update, with the optimizer's state as it is then. It returns the diagonal of
            the metric, a positive tensor shaped like the variable that the step was divided by,
            entry by entry; or None where all entries are divided by the same number.
        words: the metric's description in the plan.

    Raises:
        RuleError: `optimizer` is not a class of optimizers with an `update_step`, `reader` doesn't
            take three arguments, or `words` is not a string. In the first step: the result of
            `reader` is not a tensor of real numbers shaped like the variable.

    Example:
        >>> class Signed(keras.optimizers.SGD):
        ...     def update_step(self, gradient, variable, learning_rate):
        ...         self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))
        >>> register_metric(Signed, lambda optimizer, v, gradient: keras.ops.abs(gradient) + 1e-12)
    """
    is_optimizer = inspect.isclass(optimizer) and issubclass(optimizer, keras.optimizers.Optimizer)
    steps = is_optimizer and optimizer is not keras.optimizers.Optimizer and optimizer not in WRAPPERS
    if not steps or not _takes_three_arguments(reader) or not isinstance(words, str):
        raise RuleError(
            "register_metric is not given a class of optimizers with an `update_step`, "
            "a callable(optimizer, variable, gradient) and words",
            f"optimizer={shown(optimizer)}, reader={shown(reader)}, words={shown(words)}",
            instead="register_metric(MyAdam, lambda optimizer, v, gradient: keras.ops.abs(gradient) + 1e-12)",
        )

    def read(optimizer: Any, variable: Any, gradient: Any) -> Any:
        diagonal = reader(optimizer, variable, gradient)
        if diagonal is None:
            return None
        shape, dtype = getattr(diagonal, "shape", None), getattr(diagonal, "dtype", None)
        real = dtype is not None and not any(kind in str(dtype) for kind in ("bool", "complex", "str"))
        if shape is None or tuple(shape) != tuple(variable.shape) or not real:
            raise RuleError(
                "The reader of a metric did not return a tensor of real numbers shaped like the variable",
                f"{type(diagonal).__name__} with shape={shape if shape is None else tuple(shape)}, dtype={dtype}",
                where=f"{optimizer.__class__.__name__}, {variable.path} of shape {tuple(variable.shape)}",
                instead="keras.ops.broadcast_to(cost, variable.shape), or None where all entries cost the same",
            )
        return keras.ops.copy(diagonal)  # it may be the optimizer's own tensor

    METRICS[optimizer] = OptimizerMetric(read, words)


def _takes_three_arguments(reader: Any) -> bool:
    try:
        inspect.signature(reader).bind(None, None, None)
    except TypeError:  # it takes others, or is not callable
        return False
    except ValueError:  # it has no signature
        pass
    return True


def optimizer_metric(optimizer: Any) -> OptimizerMetric | None:
    """The metric of an optimizer of Keras or PyTorch; None if it is unknown."""
    own: Any = type(optimizer)
    for kind in own.__mro__:
        if kind in METRICS and (kind is own or _step_of(own) is _step_of(kind)):  # not overridden
            return METRICS[kind]
    return None


def _step_of(kind: Any) -> Any:
    """The method with which a class of optimizers steps. PyTorch wraps that of its classes."""
    return inspect.unwrap(kind.update_step if hasattr(kind, "update_step") else kind.step)


# Readers for the optimizers of Keras.


def _slot(optimizer: Any, name: str, variable: Any) -> Any:
    """The current value of an optimizer's slot variable."""
    return keras.ops.convert_to_tensor(getattr(optimizer, name)[optimizer._get_variable_index(variable)])


def _bias_corrected_root(optimizer: Any, variable: Any, gradient: Any) -> Any:
    moment = _slot(optimizer, "_velocities", variable)
    step = keras.ops.cast(optimizer.iterations + 1, moment.dtype)
    return keras.ops.sqrt(moment / (1 - keras.ops.power(optimizer.beta_2, step))) + optimizer.epsilon


def _adam(optimizer: Any, variable: Any, gradient: Any) -> Any:
    root = keras.ops.sqrt(_slot(optimizer, "_velocity_hats" if optimizer.amsgrad else "_velocities", variable))
    root += optimizer.epsilon  # in place on PyTorch
    return root


def _rmsprop(optimizer: Any, variable: Any, gradient: Any) -> Any:
    moment = _slot(optimizer, "_velocities", variable)
    if optimizer.centered:
        moment = keras.ops.maximum(moment - keras.ops.square(_slot(optimizer, "_average_gradients", variable)), 0)
    return keras.ops.sqrt(moment + optimizer.epsilon)


def _adadelta(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The accumulated steps are needed as before this step, so its contribution is taken out."""
    squares = _slot(optimizer, "_accumulated_grads", variable) + optimizer.epsilon
    steps = _slot(optimizer, "_accumulated_delta_vars", variable) + optimizer.rho * optimizer.epsilon
    share = keras.ops.square(keras.ops.cast(gradient, squares.dtype)) / squares
    return keras.ops.sqrt(squares * (optimizer.rho + (1 - optimizer.rho) * share) / steps)


def _lamb(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The root of the second moment over the trust ratio.

    The trust ratio differs between the weights of a Joint.
    """
    diagonal, momentum = _bias_corrected_root(optimizer, variable, gradient), _slot(optimizer, "_momentums", variable)
    step = keras.ops.cast(optimizer.iterations + 1, momentum.dtype)
    step_size = _norm(momentum / (1 - keras.ops.power(optimizer.beta_1, step)) / diagonal)
    size = _norm(variable)
    nonzero = (size > 0) & (step_size > 0)
    return diagonal * keras.ops.where(nonzero, step_size / keras.ops.where(nonzero, size, 1.0), 1.0)


def _adafactor(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The root of the factored second moment, times the step's clipping, over the weight's RMS."""
    diagonal = keras.ops.sqrt(_slot(optimizer, "_v", variable))
    size, step_size = (_norm(x) / math.prod(variable.shape) ** 0.5 for x in (variable, gradient / diagonal))
    clipped = keras.ops.maximum(step_size / optimizer.clip_threshold, 1.0)
    return diagonal * clipped / keras.ops.maximum(size, optimizer.epsilon_2)


def _norm(x: Any) -> Any:
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(x)))


def _ftrl(optimizer: Any, variable: Any, gradient: Any) -> Any:
    rate = keras.ops.cast(optimizer.learning_rate, dtype_of(variable))
    moment = keras.ops.power(_slot(optimizer, "_accumulators", variable), -optimizer.learning_rate_power)
    return moment / rate + 2 * (optimizer.l2_regularization_strength + optimizer.beta / (2 * rate))


def _lion(optimizer: Any, variable: Any, gradient: Any) -> Any:
    """The size of the interpolated momentum whose sign Lion took before updating the momentum."""
    momentum, b1, b2 = _slot(optimizer, "_momentums", variable), optimizer.beta_1, optimizer.beta_2
    before = (momentum - (1 - b2) * keras.ops.cast(gradient, momentum.dtype)) / b2
    return keras.ops.abs(b1 * before + (1 - b1) * keras.ops.cast(gradient, momentum.dtype))


_SECOND_MOMENT = "root of the second moment"
METRICS: dict[type, OptimizerMetric] = {
    keras.optimizers.SGD: OptimizerMetric(None),
    keras.optimizers.Adam: OptimizerMetric(_adam, _SECOND_MOMENT),
    keras.optimizers.Nadam: OptimizerMetric(_bias_corrected_root, _SECOND_MOMENT),
    keras.optimizers.Lamb: OptimizerMetric(_lamb, _SECOND_MOMENT),
    keras.optimizers.Adamax: OptimizerMetric(lambda o, v, g: _slot(o, "_u", v) + o.epsilon, "largest gradient"),
    keras.optimizers.RMSprop: OptimizerMetric(_rmsprop, _SECOND_MOMENT, averages_gradients=False),
    keras.optimizers.Adagrad: OptimizerMetric(
        lambda o, v, g: keras.ops.sqrt(_slot(o, "_accumulators", v) + o.epsilon),
        "root of the sum of squared gradients",
        averages_gradients=False,
    ),
    keras.optimizers.Adadelta: OptimizerMetric(
        _adadelta, "root of squared gradients over squared steps", averages_gradients=False
    ),
    keras.optimizers.Adafactor: OptimizerMetric(
        _adafactor,
        "root of the factored second moment",
        averages_gradients=False,
        needs_full_gradient="divides 0 by 0 where a row and a column of a gradient are 0",
    ),
    keras.optimizers.Ftrl: OptimizerMetric(
        _ftrl,
        "accumulated squared gradients to its learning_rate_power",
        averages_gradients=False,
        needs_full_gradient="goes where the sums of whole gradients lead",
    ),
    keras.optimizers.Lion: OptimizerMetric(_lion, "size of what the sign is taken of"),
}

STEP_ANOTHER_SEQUENCE = (keras.optimizers.ScheduleFreeAdamW,)
"""Optimizers that step a sequence other than the weights: only reduced gradients keep it inside."""
