"""`project_after`: projects after each step of an optimizer of `torch.optim`.

The readers here read the metrics of PyTorch's optimizers, as `metrics` does for Keras'.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from inbounds._arrays.ops import cast, dtype_of, no_gradient, working_dtype
from inbounds._errors import RuleError, explain
from inbounds._model.plan import Entry, reduced_entries
from inbounds._model.weights import variables_of
from inbounds._train.attach import check_interval, project
from inbounds._train.attached_sets import AttachedSet, attach_set, attached_entries, entries_in_force, reduced_gradients
from inbounds._train.metrics import NO_METRIC, StepMetric
from inbounds._train.optimizer_hooks import project_after_error, project_entries
from inbounds._train.weight_access import WeightAccess, run_with_access
from inbounds._types import Model, TorchOptimizer

MIN_RATE_RATIO = 1e-6
"""The metric treats smaller learning rates as this share of the largest one."""


def project_after(model: Model, optimizer: TorchOptimizer) -> Any:
    """Projects a model's weights after every step of an optimizer of `torch.optim`, on PyTorch.

    Nothing else has to be called. The plan is looked up at each step, so that `constrain` and
    `release` take effect. Steps are counted from this call on, for `constrain(every=...)` and for
    sets that change with the steps.

    Each step sees the reduced gradients, whatever the optimizer, unless the plan's gradient is
    "full"; afterwards `parameter.grad` holds the full gradient again. LBFGS is refused where
    gradients are reduced.

    The projection's metric, see `constrain`, is known for Adam, AdamW, NAdam, RAdam, Adamax,
    RMSprop and Adagrad, and Euclidean for SGD; it is divided by the learning rates where those of a
    unit's parameter groups differ. After other optimizers (Muon, classes with a `step` of their
    own) the projection is Euclidean. So it is for a unit with a weight that the optimizer doesn't
    step, or that had no gradient in the step.

    Args:
        model: a built Keras model or layer with a plan, or with sets given to its layers.
        optimizer: a `torch.optim.Optimizer` that steps at least one weight of the plan.

    Returns:
        PyTorch's handle; its `remove()` ends the projections.

    Raises:
        RuleError: the backend is not PyTorch, `optimizer` is not one of `torch.optim`, the model
            has no plan, or the optimizer steps none of its weights; no weight has been changed. In
            a step: a weight of a Joint is frozen by `requires_grad` only, or `every` is "epoch".
            With reduced gradients: the optimizer is LBFGS.

    Example:
        >>> import torch  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(model.parameters())  # doctest: +SKIP
        >>> handle = project_after(model, optimizer)  # doctest: +SKIP
    """
    _check_torch(optimizer)
    entries = entries_in_force(model)
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    weights = [weight for entry in entries for weight in entry.weights]
    if not any(id(weight.variable.value) in own for weight in weights):
        raise RuleError(
            explain(
                "The optimizer steps no weight of the plan",
                f"{type(optimizer).__name__} with {len(own)} parameters, none of them in the plan",
                where=", ".join(weight.path for weight in weights),
                instead="torch.optim.Adam(model.parameters()), made after the model was built",
            )
        )
    check_interval(entries, "torch.optim", "project(model)")
    _refuse_lbfgs(optimizer, entries)
    project(model)  # sets given to layers are not enforced yet
    for entry in entries:
        if not all(isinstance(weight.variable.constraint, AttachedSet) for weight in entry.weights):
            attach_set(entry)
    hook = _StepHook(variables_of(model))
    handle = optimizer.register_step_post_hook(hook)
    _wrap_step(optimizer, weakref.ref(hook))
    return handle


def _wrap_step(optimizer: Any, hook_reference: weakref.ref[_StepHook]) -> None:
    """Wraps an optimizer's step so that its weights are projected where it raises.

    PyTorch has no hook for that. The step stays a bound method, which PyTorch's schedulers wrap.
    """
    step = optimizer.step

    @functools.wraps(step)
    def step_with_access(self: Any, *arguments: Any, **named: Any) -> Any:
        hook = hook_reference()
        if hook is None:
            return step(*arguments, **named)
        return run_with_access(
            WeightAccess("step", f"a step of {type(self).__name__}", lambda: hook.variables),
            lambda: hook.run_step(self, step, *arguments, **named),
            lambda error: project_after_error(attached_entries(hook.variables), lambda: hook.steps, error),
        )

    optimizer.step = types.MethodType(step_with_access, optimizer)


class _StepHook:
    """The hook on the steps of one optimizer.

    Attributes:
        variables: the variables of the model.
        steps: the number of steps taken.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = variables
        self.steps = 0

    def run_step(self, optimizer: Any, step: Callable[..., Any], closure: Any = None, **named: Any) -> Any:
        """Runs a step that sees reduced gradients, then restores the gradients."""
        _refuse_lbfgs(optimizer, attached_entries(self.variables))
        original: dict[int, tuple[Any, Any]] = {}
        maximized = {key for key, (_, group) in _groups(optimizer).items() if group.get("maximize")}

        def as_descent(variable: Any, gradient: Any) -> Any:
            """The gradient, negated where the optimizer maximizes."""
            return -gradient if gradient is not None and id(variable.value) in maximized else gradient

        def reduce() -> None:
            gradients = {id(v): as_descent(v, v.value.grad) for v in self.variables}
            with no_gradient():
                for entry in reduced_entries(attached_entries(self.variables)):
                    reduced = reduced_gradients(entry, gradients, lambda v: v.value.detach(), self.steps + 1)
                    for variable in (v for v in entry.variables if id(v) in reduced):
                        parameter = variable.value
                        original.setdefault(id(parameter), (parameter, parameter.grad))
                        parameter.grad = as_descent(variable, reduced[id(variable)])

        def closure_with_reduced_gradients() -> Any:
            restore()
            loss = closure()
            reduce()
            return loss

        def restore() -> None:
            for parameter, gradient in original.values():
                parameter.grad = gradient
            original.clear()

        try:
            if closure is not None:
                return step(closure_with_reduced_gradients, **named)
            reduce()
            return step(**named)
        finally:
            restore()

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1
        groups = _groups(optimizer)
        entries = [entry for entry in attached_entries(self.variables) if _is_trained(entry)]
        check_interval(entries, "torch.optim", "project(model)")
        due = [entry for entry in entries if self.steps % int(entry.set.every) == 0]
        with no_gradient():
            project_entries(optimizer, due, self.steps, lambda entry: _step_metric(optimizer, entry, groups))


def _check_torch(optimizer: Any) -> None:
    backend = keras.backend.backend()
    if backend != "torch":
        other = "stateless_project(model, values) in the step" if backend == "jax" else "project(model) after the step"
        raise RuleError(
            explain(
                "project_after is for torch.optim, and the backend is not PyTorch",
                f"backend={backend!r}",
                instead=f"inbounds.{other}",
            )
        )
    import torch

    if isinstance(optimizer, keras.optimizers.Optimizer):
        raise RuleError(
            explain(
                "project_after is given an optimizer of Keras, which is hooked without it",
                f"optimizer={optimizer!r}",
                instead="inbounds.constrain(model, rules) alone",
            )
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RuleError(
            explain(
                "project_after is not given an optimizer of torch.optim",
                f"optimizer={optimizer!r}",
                instead="project_after(model, torch.optim.Adam(model.parameters()))",
            )
        )


def _refuse_lbfgs(optimizer: Any, entries: Sequence[Entry]) -> None:
    import torch

    reduced = reduced_entries(entries)
    if reduced and isinstance(optimizer, torch.optim.LBFGS):
        raise RuleError(
            explain(
                "LBFGS can't be given reduced gradients: it compares gradients with losses along a line",
                "gradient='reduced'",
                where=repr(reduced[0]),
                instead="constrain(model, rules, gradient='full'), or another optimizer",
            )
        )


def _is_trained(entry: Entry) -> bool:
    """Whether PyTorch trains an entry: `requires_grad` can be cleared without Keras."""
    trained = [weight for weight in entry.weights if weight.variable.trainable]
    frozen = [weight for weight in trained if not weight.variable.value.requires_grad]
    if frozen and len(frozen) < len(trained):
        raise RuleError(
            explain(
                "A weight of a Joint is frozen by `requires_grad`, so that the others don't know it",
                f"requires_grad=False, trainable=True for {frozen[0].path}",
                where=repr(entry),
                instead="variable.trainable = False, or layer.trainable = False",
            )
        )
    return len(frozen) < len(trained)


# Readers for the optimizers of PyTorch.

Reader = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Maps the state of a parameter and its group's options to the diagonal; None: a constant one."""

Groups = Mapping[int, tuple[Any, Mapping[str, Any]]]
"""By parameters' ids, the parameters that an optimizer steps and their groups' options."""


def _bias_corrected_root(moment: Any, state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """The root of a bias-corrected second moment."""
    steps = keras.ops.maximum(state["step"], 1)  # 0 if the first step overflowed
    return (moment / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"]


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return _bias_corrected_root(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"], state, group)


def _nadam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return _bias_corrected_root(state["exp_avg_sq"], state, group)


def _radam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """RAdam steps all entries alike while the second moment averages too few gradients."""
    beta, steps = group["betas"][1], float(state["step"])
    length = 2 / (1 - beta) - 1 - 2 * steps * beta**steps / (1 - beta**steps)
    return state["exp_avg_sq"].sqrt() + group["eps"] if length > 5 else None


def _adamax(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return state["exp_inf"]


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    moment = state["square_avg"]
    if group["centered"]:
        moment = (moment - state["grad_avg"].square()).clamp(min=0)
    return moment.sqrt() + group["eps"]


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return state["sum"].sqrt() + group["eps"]


def _sgd(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return None


_READERS: dict[str, Reader] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
    "NAdam": _nadam,
    "RAdam": _radam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
"""The readers by the names of the classes in `torch.optim`."""

_WITHOUT_MOMENTUM = (_rmsprop, _adagrad)
"""Readers of optimizers that step along each gradient, not along an average."""


def _metric_reader(optimizer: Any) -> Reader | None:
    """The reader of an optimizer's metric; None if it is unknown."""
    import torch

    own = type(optimizer)
    for name, reader in _READERS.items():
        kind = getattr(torch.optim, name)
        if isinstance(optimizer, kind) and inspect.unwrap(own.step) is inspect.unwrap(kind.step):
            return reader
    return None


def _groups(optimizer: Any) -> Groups:
    return {id(parameter): (parameter, group) for group in optimizer.param_groups for parameter in group["params"]}


def _step_metric(optimizer: Any, entry: Entry, groups: Groups) -> StepMetric:
    """The metric of the step that an optimizer has just taken."""
    trained = [variable for variable in entry.variables if variable.trainable]
    stepped = [groups[id(v.value)] for v in trained if id(v.value) in groups and v.value.grad is not None]
    reader = _metric_reader(optimizer)
    if not trained or len(stepped) < len(trained) or reader is None:
        return NO_METRIC
    rates = [float(group["lr"]) for _, group in stepped]
    rates_differ = len(set(rates)) > 1
    follows = entry.set.projects_in_metric(averages=reader not in _WITHOUT_MOMENTUM)
    if not follows or (reader is _sgd and not rates_differ):
        return NO_METRIC
    diagonals = []
    for variable in entry.variables:
        diagonal = keras.ops.ones(variable.shape, working_dtype(dtype_of(variable)))
        if variable.trainable:
            parameter, group = groups[id(variable.value)]
            read = reader(optimizer.state.get(parameter, {}), group)
            diagonal = diagonal if read is None else cast(read, dtype_of(diagonal))
            diagonal = diagonal / max(float(group["lr"]), MIN_RATE_RATIO * max(rates)) if rates_differ else diagonal
        diagonals.append(diagonal)
    return StepMetric(diagonals)
