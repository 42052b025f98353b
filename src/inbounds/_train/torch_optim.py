"""`project_after`: the projection after each step of an optimizer of `torch.optim`.

The metric is read from the state of PyTorch's optimizers in one table here, as `metrics` reads it from Keras'.
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
from inbounds._train.attach import check_steps, project
from inbounds._train.bound import Bound, bind, entries_of, in_force, reduced_gradients
from inbounds._train.metrics import UNKNOWN, Step
from inbounds._train.step import mend, project_entries
from inbounds._train.threads import Use, used
from inbounds._types import Model, TorchOptimizer

SLOWEST = 1e-6
"""Parameters that an optimizer steps at a rate of 0 cost as if it were this share of the largest."""


def project_after(model: Model, optimizer: TorchOptimizer) -> Any:
    """Projects the plan of a model after every step of an optimizer of `torch.optim`; on the PyTorch backend.

    Nothing else is to be called. What holds is looked up at each step, so that `constrain` and `release` are followed.
    Steps are counted from this call on, for `constrain(every=...)` and for sets that change with the steps.

    Each step sees the reduced gradients, whatever the optimizer is, unless the plan's is "full"; what `parameter.grad`
    holds after it is the gradient itself. LBFGS is refused where gradients are reduced.

    Where the projection follows the optimizer's metric, see `constrain`, it is known for Adam, AdamW, NAdam, RAdam,
    Adamax, RMSprop and Adagrad, and that of SGD is the Euclidean one; where the groups of a unit's parameters have
    rates that differ, over those. After all others (Muon, classes of one's own with a `step` of their own) the
    projection is the Euclidean one; so is that of a unit some of whose weights the optimizer doesn't step, or that had
    no gradient in the step.

    Args:
        model: a built Keras model or layer, constrained, or with sets given to its layers.
        optimizer: a `torch.optim.Optimizer` that steps at least one weight of the plan.

    Returns:
        PyTorch's handle; its `remove()` ends it.

    Raises:
        RuleError: the backend is another one, an argument is something else, the model has no plan, or the optimizer
            steps none of its weights; no weight has been touched. In a step: a weight of a Joint is frozen by
            `requires_grad` only, or `every` is "epoch". With reduced gradients the optimizer is LBFGS.

    Example:
        >>> import torch  # doctest: +SKIP
        >>> optimizer = torch.optim.Adam(model.parameters())  # doctest: +SKIP
        >>> handle = project_after(model, optimizer)  # doctest: +SKIP
    """
    _check_torch(optimizer)
    entries = in_force(model)
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
    check_steps(entries, "torch.optim", "project(model)")
    _check_reduces(optimizer, entries)
    project(model)  # sets that were given to layers haven't been yet
    for entry in entries:
        if not all(isinstance(weight.variable.constraint, Bound) for weight in entry.weights):
            bind(entry)
    after = _AfterStep(variables_of(model))
    handle = optimizer.register_step_post_hook(after)
    _guard(optimizer, weakref.ref(after))
    return handle


def _guard(optimizer: Any, after: weakref.ref[_AfterStep]) -> None:
    """Has a step that raises, between the update and the projection too, end with the weights inside.

    PyTorch has no hook for it. The step stays a bound method, which its schedulers wrap in turn.
    """
    step = optimizer.step

    @functools.wraps(step)
    def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
        hook = after()
        if hook is None:
            return step(*arguments, **named)
        return used(
            Use("step", f"a step of {type(self).__name__}", lambda: hook.variables),
            lambda: hook.stepped(self, step, *arguments, **named),
            lambda error: mend(entries_of(hook.variables), lambda: hook.steps, error),
        )

    optimizer.step = types.MethodType(guarded, optimizer)


class _AfterStep:
    """What happens after each step of one optimizer.

    Attributes:
        variables: of the model.
        steps: how many have been taken.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self.variables = variables
        self.steps = 0

    def stepped(self, optimizer: Any, step: Callable[..., Any], closure: Any = None, **named: Any) -> Any:
        """A step that sees what sets leave of the gradients; afterwards the gradients are what they were."""
        _check_reduces(optimizer, entries_of(self.variables))
        given: dict[int, tuple[Any, Any]] = {}
        upwards = {key for key, (_, group) in _groups(optimizer).items() if group.get("maximize")}

        def descending(variable: Any, gradient: Any) -> Any:
            """The other way round where the optimizer goes up; so is what is left of it."""
            return -gradient if gradient is not None and id(variable.value) in upwards else gradient

        def reduce() -> None:
            gradients = {id(v): descending(v, v.value.grad) for v in self.variables}
            with no_gradient():
                for entry in reduced_entries(entries_of(self.variables)):
                    seen = reduced_gradients(entry, gradients, lambda v: v.value.detach(), self.steps + 1)
                    for variable in (v for v in entry.variables if id(v) in seen):
                        parameter = variable.value
                        given.setdefault(id(parameter), (parameter, parameter.grad))
                        parameter.grad = descending(variable, seen[id(variable)])

        def reclosed() -> Any:
            restore()
            loss = closure()
            reduce()
            return loss

        def restore() -> None:
            for parameter, gradient in given.values():
                parameter.grad = gradient
            given.clear()

        try:
            if closure is not None:
                return step(reclosed, **named)
            reduce()
            return step(**named)
        finally:
            restore()

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1
        groups = _groups(optimizer)
        entries = [entry for entry in entries_of(self.variables) if _moves(entry)]
        check_steps(entries, "torch.optim", "project(model)")
        due = [entry for entry in entries if self.steps % int(entry.set.every) == 0]
        with no_gradient():
            project_entries(optimizer, due, self.steps, lambda entry: _step(optimizer, entry, groups))


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


def _check_reduces(optimizer: Any, entries: Sequence[Entry]) -> None:
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


def _moves(entry: Entry) -> bool:
    """Whether something of an entry may move; PyTorch's `requires_grad` can be taken away behind Keras' back."""
    trained = [weight for weight in entry.weights if weight.variable.trainable]
    held = [weight for weight in trained if not weight.variable.value.requires_grad]
    if held and len(held) < len(trained):
        raise RuleError(
            explain(
                "A weight of a Joint is frozen by `requires_grad`, so that the others don't know it",
                f"requires_grad=False, trainable=True for {held[0].path}",
                where=repr(entry),
                instead="variable.trainable = False, or layer.trainable = False",
            )
        )
    return len(held) < len(trained)


# What each optimizer of PyTorch keeps.

Reader = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""From the state of a parameter and the options of its group to what its step was divided by; None: all alike."""

Groups = Mapping[int, tuple[Any, Mapping[str, Any]]]
"""By parameters' ids, the parameters that an optimizer steps, with the options of their groups."""


def _corrected(moment: Any, state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """The root of a second moment, corrected for its start from 0."""
    steps = keras.ops.maximum(state["step"], 1)  # 0 where scaled gradients overflowed in the first step
    return (moment / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"]


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return _corrected(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"], state, group)


def _nadam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    return _corrected(state["exp_avg_sq"], state, group)


def _radam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """In the first steps, while the second moment is of too few gradients, RAdam steps all entries alike."""
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
"""By their names in `torch.optim`."""

_UNAVERAGED = (_rmsprop, _adagrad)
"""Of optimizers that step along each gradient as it comes, and no average."""


def _reader_of(optimizer: Any) -> Reader | None:
    """What reads the metric of an optimizer; None: it is of an unknown kind."""
    import torch

    own = type(optimizer)
    for name, reader in _READERS.items():
        kind = getattr(torch.optim, name)
        if isinstance(optimizer, kind) and inspect.unwrap(own.step) is inspect.unwrap(kind.step):
            return reader
    return None


def _groups(optimizer: Any) -> Groups:
    return {id(parameter): (parameter, group) for group in optimizer.param_groups for parameter in group["params"]}


def _measured(optimizer: Any, entry: Entry, groups: Groups) -> bool:
    """Whether the projection of an entry follows the optimizer's metric."""
    stepped = [groups.get(id(weight.variable.value)) for weight in entry.weights if weight.variable.trainable]
    if not stepped or any(found is None or found[0].grad is None for found in stepped):
        return False
    reader = _reader_of(optimizer)
    if reader is None or not entry.set.follows(averages=reader not in _UNAVERAGED):
        return False
    return reader is not _sgd or _rates_differ(stepped)


def _rates_differ(stepped: Sequence[Any]) -> bool:
    return len({float(group["lr"]) for _, group in stepped}) > 1


def _step(optimizer: Any, entry: Entry, groups: Groups) -> Step:
    """What is known of the step that an optimizer has just taken."""
    reader = _reader_of(optimizer)
    if reader is None or not _measured(optimizer, entry, groups):
        return UNKNOWN
    costs = []
    stepped = [groups[id(w.variable.value)] for w in entry.weights if w.variable.trainable]
    rates_differ = _rates_differ(stepped)
    least = SLOWEST * max(float(group["lr"]) for _, group in stepped)
    for variable in (weight.variable for weight in entry.weights):
        cost = keras.ops.ones(variable.shape, working_dtype(dtype_of(variable)))
        if variable.trainable:
            parameter, group = groups[id(variable.value)]
            read = reader(optimizer.state.get(parameter, {}), group)
            cost = cost if read is None else cast(read, dtype_of(cost))
            cost = cost / max(float(group["lr"]), least) if rates_differ else cost
        costs.append(cost)
    return Step(costs)
