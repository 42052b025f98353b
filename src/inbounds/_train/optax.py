"""`optax_wrap`: a gradient transformation of optax whose updates stay inside a model's sets."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from inbounds._arrays.ops import Array, branch
from inbounds._errors import RuleError, explain
from inbounds._train.attach import check_interval
from inbounds._train.attached_sets import entries_in_force
from inbounds._train.stateless import stateless_project, stateless_reduce
from inbounds._types import Model, OptaxOptimizer


class Wrapped(NamedTuple):
    """The state of `optax_wrap`: the inner optimizer's state, and the number of steps taken."""

    inner: Any
    count: Any


def optax_wrap(model: Model, optimizer: OptaxOptimizer) -> Any:
    """Wraps an optimizer of optax so that its updates stay inside a model's sets, on JAX.

    The rest of the loop stays the same, and any optimizer converges to the constrained optimum. The
    optimizer sees reduced gradients, see `stateless_reduce`, and the values that its update leads
    to are projected, see `stateless_project`. An entry that the projection doesn't move keeps its
    update bit for bit.

    The updates are for `optax.apply_updates`. Transformations of gradients (clipping,
    `optax.MultiSteps`, `optax.apply_if_finite`) may wrap this one; transformations of updates
    belong inside it. Values in an optimizer's state, such as the averages of
    `optax.contrib.schedule_free`, aren't projected. Steps are counted, for `constrain(every=n)` and
    for sets that change with the steps. The plan is looked up at each update; a step compiled by
    `jax.jit` keeps the plan of its trace.

    The sum of a value and its update is rounded. An entry that loses most of its size in one step
    may end up to one rounding of its old value short of the projected value. Balls, boxes and sums
    allow for that within an audit's tolerance. Entries under `Monotone`, whose order is exact, may
    be out of order by that much until the next step; so may units be outside that `every` let grow
    to a multiple of their bound.

    Args:
        model: a built Keras model or layer with a plan, or with sets given to its layers.
        optimizer: an `optax.GradientTransformation`. One that searches along a line, as
            `optax.lbfgs` does, compares gradients with losses; it is refused in its first update,
            by its `value_fn`.

    Returns:
        An `optax.GradientTransformationExtraArgs` for lists or tuples in the order of
        `model.trainable_variables`. Its `update` needs the values, and passes other arguments on.

    Raises:
        RuleError: the backend is not JAX, optax isn't installed, `optimizer` is not one of optax,
            the model has no plan, or `every` is "epoch". In an update: the values are missing or
            don't match the model's variables, or the optimizer searches along a line.

    Example:
        >>> optimizer = optax_wrap(model, optax.adam(1e-3))  # doctest: +SKIP
        >>> state = optimizer.init([v.value for v in model.trainable_variables])  # doctest: +SKIP
    """
    _check_optax(optimizer)
    import jax.numpy as jnp
    import optax

    _interval(model)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Wrapped:
        return Wrapped(inner.init(params), jnp.zeros([], "int32"))

    def update(updates: Any, state: Wrapped, params: Any = None, **extra: Any) -> tuple[Any, Wrapped]:
        """Optax passes these arguments by name."""
        _check_update(params, extra)
        every, count = _interval(model), optax.safe_increment(state.count)
        like = tuple if isinstance(updates, tuple) else list
        gradients = like(stateless_reduce(model, params, updates, step=count))
        steps, inner_state = inner.update(gradients, state.inner, params, **extra)
        steps = [
            _round_to_dtype(u.astype(jnp.promote_types(u.dtype, x.dtype))) for x, u in zip(params, steps, strict=True)
        ]

        def projected_steps() -> list[Array]:
            moved = list(map(_apply_update, params, steps))
            projected = stateless_project(model, moved, step=count)
            return list(map(_update_towards, params, steps, moved, projected))

        result = projected_steps() if every == 1 else branch(count % every == 0, projected_steps, lambda: steps)
        return like(result), Wrapped(inner_state, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_towards(value: Array, update: Array, moved: Array, end: Array) -> Array:
    """The update from `value` to `end`; the given update where it already leads there."""
    import jax.numpy as jnp

    towards = _round_to_dtype((end - value).astype(update.dtype))
    result = _apply_update(value, towards)
    overshoots = jnp.where(towards > 0, result > end, result < end)
    towards = jnp.where(overshoots, jnp.nextafter(towards, jnp.zeros_like(towards)), towards)
    return jnp.where(moved == end, update, towards)


def _apply_update(value: Array, update: Array) -> Array:
    """The value after `optax.apply_updates`."""
    return _round_to_dtype((value + update).astype(value.dtype))


def _round_to_dtype(x: Array) -> Array:
    """`x` rounded to its dtype: within a compiled step XLA may keep more digits."""
    import jax

    kind = jax.numpy.finfo(x.dtype)
    return jax.lax.reduce_precision(x, int(kind.nexp), int(kind.nmant))


def _interval(model: Any) -> int:
    """The number of steps between projections, which all sets of a plan share."""
    entries = entries_in_force(model)
    check_interval(entries, "optax", "stateless_project")
    return int(entries[0].set.every)


def _check_optax(optimizer: Any) -> None:
    backend = keras.backend.backend()
    if backend != "jax":
        other = (
            "project_after(model, optimizer)"
            if backend == "torch"
            else "project(model) after the step, or a Keras optimizer"
        )
        raise RuleError(
            explain(
                "optax_wrap is for optax, and the backend is not JAX",
                f"backend={backend!r}",
                instead=f"inbounds.{other}",
            )
        )
    if importlib.util.find_spec("optax") is None:
        raise RuleError(
            explain("optax_wrap is for optax, which isn't installed", "no module 'optax'", instead="pip install optax")
        )
    import optax

    if not isinstance(optimizer, optax.GradientTransformation):
        raise RuleError(
            explain(
                "optax_wrap is not given an optimizer of optax",
                f"optimizer={optimizer!r}",
                instead="optax_wrap(model, optax.adam(1e-3))",
            )
        )


def _check_update(params: Any, extra: Mapping[str, Any]) -> None:
    if params is None:
        raise RuleError(
            explain(
                "An update of optax_wrap needs the values that it leads from",
                "params=None",
                instead="optimizer.update(gradients, state, values)",
            )
        )
    if "value_fn" in extra:
        raise RuleError(
            explain(
                "The optimizer can't be given reduced gradients: it compares gradients with losses along a line",
                "value_fn",
                instead="optax.lbfgs(1e-2, linesearch=None), or another optimizer",
            )
        )
