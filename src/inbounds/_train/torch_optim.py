"""`project_after`: projects after each step of a `torch.optim` optimizer, whose metric it reads."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from inbounds._arrays.ops import Array, cast, dtype_of, working_dtype
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._model.weights import variables_of, wrap_method
from inbounds._train.assignments import assign
from inbounds._train.attach import check_backend, check_interval, project
from inbounds._train.attached_sets import (
    AttachedSet,
    attach_set,
    attached_entries,
    entries_in_force,
    project_after_error,
)
from inbounds._train.decisions import decide, signature
from inbounds._train.metrics import METRICS, OptimizerMetric
from inbounds._train.step_projections import StepProjection, grouped, reduced_gradients
from inbounds._train.taken_plans import remember_optimizer
from inbounds._train.weight_access import WeightAccess, run_with_access
from inbounds._types import Model, TorchOptimizer

LATENT = "latent"  # under which name an optimizer's state holds latent weights, which `state_dict` saves
MIN_RATE_RATIO = 1e-6  # the metric treats smaller learning rates as this share of the largest one

_value_of = operator.attrgetter("value")


def project_after(model: Model, optimizer: TorchOptimizer) -> Any:
    """Projects a model's weights after every step of an optimizer of `torch.optim`, on PyTorch.

    Nothing else has to be called. The plan is looked up at each step, so that `constrain` and
    `release` take effect. Steps are counted from this call on, for `constrain(every=...)` and for
    sets that change with the steps. Of two calls for the same weights and optimizer the last holds.

    Each step sees the reduced gradients, whatever the optimizer, unless the plan's gradient is
    "full"; afterwards `parameter.grad` holds the full gradient again. LBFGS is refused where
    gradients are reduced.

    The projection's metric, see `constrain`, is known for Adam, AdamW, NAdam, RAdam, Adamax,
    RMSprop and Adagrad, and Euclidean for SGD; it is divided by the learning rates where those of a
    unit's parameter groups differ. After other optimizers (Muon, classes with a `step` of their
    own) the projection is Euclidean. So it is for a unit with a weight that the optimizer doesn't
    step, or that had no gradient in the step.

    Latent weights (see `constrain`) are in the optimizer's state, as "latent", from their first
    step on; `state_dict` has them. A closure sees the weights that the layers use.

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
    import torch

    entries = entries_in_force(model)
    own = _groups(optimizer)
    weights = [weight for entry in entries for weight in entry.weights]
    if not any(id(weight.variable.value) in own for weight in weights):
        wrong = "The optimizer steps no weight of the plan"
        received = f"{type(optimizer).__name__} with {len(own)} parameters, none of them in the plan"
        instead = "torch.optim.Adam(model.parameters()), made after the model was built"
        raise RuleError(wrong, received, where=", ".join(weight.path for weight in weights), instead=instead)
    check_interval(entries, "torch.optim", "project(model)")
    METRICS.update({getattr(torch.optim, name): metric for name, metric in _METRICS.items()})
    _refuse_lbfgs(optimizer, map(decide, entries))
    project(model)  # sets given to layers are not enforced yet
    for entry in entries:
        if not all(isinstance(weight.variable.constraint, AttachedSet) for weight in entry.weights):
            attach_set(entry)
    hook = _StepHook(variables_of(model))
    handle = optimizer.register_step_post_hook(hook)
    for earlier in _hooks(handle):
        if earlier is not hook:
            earlier.leave(hook.variables)
    remember_optimizer(hook, hook.variables)
    _wrap_step(optimizer, handle)
    return handle


def _hooks(handle: Any) -> list[_StepHook]:
    """The hooks of inbounds on the optimizer of a handle of PyTorch's that have variables left."""
    hooks = (handle.hooks_dict_ref() or {}).values()
    return [hook for hook in hooks if isinstance(hook, _StepHook) and hook.variables]


def _wrap_step(optimizer: Any, handle: Any) -> None:
    """Wraps the step of an optimizer, since PyTorch has no hook for a step that raises."""

    def step_with_access(step: Callable[..., Any], optimizer: Any, *arguments: Any, **named: Any) -> Any:
        for hook in _hooks(handle):
            step = functools.partial(hook.step_with_access, optimizer, step)
        return step(*arguments, **named)

    wrap_method(optimizer, "step", step_with_access)


class _StepHook:
    """The hook on one optimizer's steps, with their count and the variables of the model."""

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = variables
        self.iterations = 0
        self._signature: Any = None
        self._projections: list[StepProjection] = []

    def leave(self, variables: Iterable[Any]) -> None:
        """Leaves variables to another hook.

        With two, the second would take the projected weights for latent ones.
        """
        others = set(map(id, variables))
        self.variables = [variable for variable in self.variables if id(variable) not in others]

    def projections(self, optimizer: Any) -> list[StepProjection]:
        """How the steps treat each set, decided again where the plan has changed."""
        entries = list(filter(_is_trained, attached_entries(self.variables)))
        if self._signature != (new := signature(optimizer, entries)):
            check_interval(entries, "torch.optim", "project(model)")
            projections = grouped(decide(entry, [optimizer]) for entry in entries)
            _refuse_lbfgs(optimizer, projections)
            self._projections, self._signature = projections, new
        return self._projections

    def step_with_access(self, optimizer: Any, step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """`run_step`; where it raises, projects the weights."""
        return run_with_access(
            WeightAccess("step", f"a step of {type(optimizer).__name__}", lambda: self.variables),
            lambda: self.run_step(optimizer, step, *arguments, **named),
            lambda: project_after_error(attached_entries(self.variables), lambda: self.iterations),
        )

    def run_step(self, optimizer: Any, step: Callable[..., Any], closure: Any = None, **named: Any) -> Any:
        """Runs a step of the latent weights with reduced gradients, then restores the gradients.

        A closure sees the weights that the layers use.
        """
        projections = self.projections(optimizer)
        latent = [one for one in projections if one.latent]
        full: list[tuple[Any, Any]] = []  # parameters with their gradients, while they have reduced ones
        maximized = {key for key, (_, group) in _groups(optimizer).items() if group.get("maximize")}

        def as_descent(variable: Any, gradient: Any) -> Any:
            """The gradient, negated where the optimizer maximizes."""
            return -gradient if gradient is not None and id(variable.value) in maximized else gradient

        def reduce() -> None:
            full[:] = [(variable.value, variable.value.grad) for variable in self.variables]
            gradients = {id(variable): as_descent(variable, variable.value.grad) for variable in self.variables}
            reduced = reduced_gradients(projections, gradients, _value_of, self.iterations + 1)
            for variable in self.variables:
                variable.value.grad = as_descent(variable, reduced[id(variable)])

        def read_latent(variable: Any) -> Any:
            return optimizer.state[variable.value].get(LATENT) if variable.value in optimizer.state else None

        def start() -> None:
            for one in latent:
                assign(one.starts(_value_of, read_latent, self.iterations))

        def closure_with_reduced_gradients() -> Any:
            restore()
            stepped = [(v, v.value.detach().clone()) for one in latent for v in one.variables]
            for one in latent:
                assign(one.projected_values(_value_of, self.iterations))
            loss = closure()
            reduce()
            assign(stepped)
            return loss

        def restore() -> None:
            for parameter, gradient in full:
                parameter.grad = gradient
            full.clear()

        try:
            if closure is not None:
                start()
                return step(closure_with_reduced_gradients, **named)
            reduce()
            start()
            return step(**named)
        finally:
            restore()

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.iterations += 1
        groups = _groups(optimizer)
        stepped = {
            id(variable): groups[id(variable.value)]
            for variable in self.variables
            if id(variable.value) in groups and variable.value.grad is not None
        }
        projections = self.projections(optimizer)
        for variable in [v for one in projections if one.latent for v in one.movable_variables]:
            if id(variable) in stepped:
                optimizer.state[variable.value][LATENT] = variable.value.detach().clone()
        for projection in projections:
            assign(projection.values_when_due(_value_of, self.iterations, stepped))


def _check_torch(optimizer: Any) -> None:
    others = {"jax": "stateless_project(model, values) in the step", "tensorflow": "project(model) after the step"}
    check_backend("torch", "project_after is for torch.optim, and the backend is not PyTorch", others)
    import torch

    if isinstance(optimizer, keras.optimizers.Optimizer):
        wrong = "project_after is given an optimizer of Keras, which is hooked without it"
        raise RuleError(wrong, f"optimizer={optimizer!r}", instead="inbounds.constrain(model, rules) alone")
    if not isinstance(optimizer, torch.optim.Optimizer):
        wrong = "project_after is not given an optimizer of torch.optim"
        instead = "project_after(model, torch.optim.Adam(model.parameters()))"
        raise RuleError(wrong, f"optimizer={optimizer!r}", instead=instead)


def _refuse_lbfgs(optimizer: Any, projections: Iterable[StepProjection]) -> None:
    import torch

    reducing = [one for one in projections if not one.full_gradient_reason]
    if reducing and isinstance(optimizer, torch.optim.LBFGS):
        wrong = "LBFGS can't be given reduced gradients: it compares gradients with losses along a line"
        instead = "constrain(model, rules, gradient='full'), or another optimizer"
        raise RuleError(wrong, "gradient='reduced'", where=repr(reducing[0].entry), instead=instead)


def _is_trained(entry: Entry) -> bool:
    """Whether PyTorch trains an entry: `requires_grad` can be cleared without Keras."""
    trained = [weight for weight in entry.weights if weight.variable.trainable]
    frozen = [weight for weight in trained if not weight.variable.value.requires_grad]
    if frozen and len(frozen) < len(trained):
        wrong = "A weight of a Joint is frozen by `requires_grad`, so that the others don't know it"
        received = f"requires_grad=False, trainable=True for {frozen[0].path}"
        instead = "variable.trainable = False, or layer.trainable = False"
        raise RuleError(wrong, received, where=repr(entry), instead=instead)
    return len(frozen) < len(trained)


# Readers for the optimizers of PyTorch.

Reader = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Maps the state of a parameter and its group's options to the diagonal; None: a constant one."""


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """The root of the bias-corrected second moment."""
    moment = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    steps = keras.ops.maximum(state["step"], 1)  # 0 if the first step overflowed
    return (moment / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"]


def _radam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """RAdam steps all entries alike while the second moment averages too few gradients."""
    beta, steps = group["betas"][1], float(state["step"])
    length = 2 / (1 - beta) - 1 - 2 * steps * beta**steps / (1 - beta**steps)
    return state["exp_avg_sq"].sqrt() + group["eps"] if length > 5 else None


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    moment = state["square_avg"]
    if group["centered"]:
        moment = (moment - state["grad_avg"].square()).clamp(min=0)
    return moment.sqrt() + group["eps"]


@dataclass(frozen=True)
class _TorchMetric(OptimizerMetric):
    """The metric of a class of optimizers of PyTorch. Its reader is a `Reader` of this module."""

    def diagonals(self, optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any]) -> list[Array] | None:
        """The diagonals right after a step.

        `gradients` holds the parameter of each stepped variable and its group.
        """
        trained = {id(v): given for v, given in zip(variables, gradients, strict=True) if v.trainable}
        if any(given is None for given in trained.values()):
            return None
        read = {key: self.reader(optimizer.state.get(one, {}), group) for key, (one, group) in trained.items()}
        rates = {key: float(group["lr"]) for key, (_, group) in trained.items()}
        differ = len(set(rates.values())) > 1
        if not differ and all(diagonal is None for diagonal in read.values()):
            return None
        diagonals = []
        for variable in variables:
            dtype, found = working_dtype(dtype_of(variable)), read.get(id(variable))
            diagonal = keras.ops.ones(variable.shape, dtype) if found is None else cast(found, dtype)
            if differ and id(variable) in rates:
                diagonal = diagonal / max(rates[id(variable)], MIN_RATE_RATIO * max(rates.values()))
            diagonals.append(diagonal)
        return diagonals


_METRICS = {  # by the names of the classes in `torch.optim`
    "SGD": _TorchMetric(lambda state, group: None),
    "Adam": _TorchMetric(_adam),
    "AdamW": _TorchMetric(_adam),
    "NAdam": _TorchMetric(_adam),
    "RAdam": _TorchMetric(_radam),
    "Adamax": _TorchMetric(lambda state, group: state["exp_inf"]),
    "RMSprop": _TorchMetric(_rmsprop, averages_gradients=False),
    "Adagrad": _TorchMetric(lambda state, group: state["sum"].sqrt() + group["eps"], averages_gradients=False),
}


def _groups(optimizer: Any) -> Mapping[int, tuple[Any, Mapping[str, Any]]]:
    """By parameters' ids, the parameters that an optimizer steps and their groups' options."""
    return {id(parameter): (parameter, group) for group in optimizer.param_groups for parameter in group["params"]}
