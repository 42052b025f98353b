"""`optax_wrap`: a gradient transformation of optax whose updates stay inside a model's sets."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from inbounds._arrays.ops import Array, branch
from inbounds._errors import RuleError
from inbounds._train.attach import check_backend, check_interval
from inbounds._train.attached_sets import entries_in_force
from inbounds._train.stateless import given_value, project_values, stateless_reduce
from inbounds._train.step_projections import StepProjection, decide
from inbounds._types import Model, OptaxOptimizer


class Wrapped(NamedTuple):
    """The state of `optax_wrap`.

    Attributes:
        inner: the inner optimizer's state.
        count: the number of steps taken.
        latents: the latent weights of each value, None for a value without them.
    """

    inner: Any
    count: Any
    latents: Any


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

    Latent weights (see `constrain`) are in the state; the optimizer steps them, and the update leads
    to their nearest point.

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
            don't match the model's variables, the optimizer searches along a line, or the state was
            made before a set with latent weights.

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
        keeping = {id(v) for one in _latent_projections(model) for v in one.free_variables}
        variables = zip(params, model.trainable_variables, strict=True)
        latents = tuple(jnp.array(value, copy=True) if id(v) in keeping else None for value, v in variables)
        return Wrapped(inner.init(params), jnp.zeros([], "int32"), latents)

    def update(updates: Any, state: Wrapped, params: Any = None, **extra: Any) -> tuple[Any, Wrapped]:
        """Optax passes these arguments by name."""
        _check_update(params, extra)
        every, count = _interval(model), optax.safe_increment(state.count)
        like = tuple if isinstance(updates, tuple) else list
        gradients = like(stateless_reduce(model, params, updates, step=count))
        starts = _starts(model, params, state)
        steps, inner_state = inner.update(gradients, state.inner, like(starts), **extra)
        steps = [
            _round_to_dtype(u.astype(jnp.promote_types(u.dtype, x.dtype))) for x, u in zip(params, steps, strict=True)
        ]
        moved = list(map(_apply_update, starts, steps))

        def towards(ends: Sequence[Array]) -> list[Array]:
            return list(map(_update_towards, params, steps, ends))

        def projected_steps() -> list[Array]:
            return towards(project_values(model, moved, step=count))

        result = (
            projected_steps() if every == 1 else branch(count % every == 0, projected_steps, lambda: towards(moved))
        )
        latents = tuple(None if old is None else new for old, new in zip(state.latents, moved, strict=True))
        return like(result), Wrapped(inner_state, count, latents)

    return optax.GradientTransformationExtraArgs(init, update)


def _latent_projections(model: Any) -> list[StepProjection]:
    return [one for one in map(decide, entries_in_force(model)) if one.latent]


def _starts(model: Any, params: Sequence[Array], state: Wrapped) -> list[Array]:
    """The values from which the inner optimizer steps: latent weights in place of those that have them."""
    ids = list(map(id, model.trainable_variables))
    values, latents = dict(zip(ids, params, strict=True)), dict(zip(ids, state.latents, strict=True))
    starts = dict(values)
    for projection in _latent_projections(model):
        missing = [variable for variable in projection.free_variables if latents[id(variable)] is None]
        if missing:
            raise RuleError(
                "The state of optax_wrap has no latent weights: it is older than the set",
                f"latent={projection.entry.training.latent!r} for {missing[0].path}",
                where=repr(projection.entry),
                instead="state = optimizer.init(values) after constrain(model, rules), or latent=False",
            )
        started = projection.starts(partial(given_value, values), lambda v: latents[id(v)], state.count)
        starts |= {id(variable): start for variable, start in started}
    return list(starts.values())


def _update_towards(value: Array, update: Array, end: Array) -> Array:
    """The update from `value` to `end`; the given update where it already leads there."""
    import jax.numpy as jnp

    towards = _round_to_dtype((end - value).astype(update.dtype))
    result = _apply_update(value, towards)
    overshoots = jnp.where(towards > 0, result > end, result < end)
    towards = jnp.where(overshoots, jnp.nextafter(towards, jnp.zeros_like(towards)), towards)
    return jnp.where(_apply_update(value, update) == end, update, towards)


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
    return int(entries[0].training.every)


def _check_optax(optimizer: Any) -> None:
    others = {
        "torch": "project_after(model, optimizer)",
        "tensorflow": "project(model) after the step, or a Keras optimizer",
    }
    check_backend("jax", "optax_wrap is for optax, and the backend is not JAX", others)
    if importlib.util.find_spec("optax") is None:
        raise RuleError(
            "optax_wrap is for optax, which isn't installed", "no module 'optax'", instead="pip install optax"
        )
    import optax

    if not isinstance(optimizer, optax.GradientTransformation):
        raise RuleError(
            "optax_wrap is not given an optimizer of optax",
            f"optimizer={optimizer!r}",
            instead="optax_wrap(model, optax.adam(1e-3))",
        )


def _check_update(params: Any, extra: Mapping[str, Any]) -> None:
    if params is None:
        raise RuleError(
            "An update of optax_wrap needs the values that it leads from",
            "params=None",
            instead="optimizer.update(gradients, state, values)",
        )
    if "value_fn" in extra:
        raise RuleError(
            "The optimizer can't be given reduced gradients: it compares gradients with losses along a line",
            "value_fn",
            instead="optax.lbfgs(1e-2, linesearch=None), or another optimizer",
        )
