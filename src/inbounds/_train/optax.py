"""`optax_wrap`: a gradient transformation of optax whose updates lead from inside the sets to inside."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from inbounds._arrays.ops import Array, branch
from inbounds._errors import RuleError, explain
from inbounds._train.attach import check_steps
from inbounds._train.bound import in_force
from inbounds._train.stateless import stateless_project, stateless_reduce
from inbounds._types import Model, OptaxOptimizer


class Wrapped(NamedTuple):
    """The state of `optax_wrap`: that of the optimizer inside, and how many steps it has taken."""

    inner: Any
    count: Any


def optax_wrap(model: Model, optimizer: OptaxOptimizer) -> Any:
    """An optimizer of optax whose updates lead from inside the sets of a model to inside; on the JAX backend.

    Nothing else of a loop changes, and any optimizer comes to rest at the constrained optimum: it sees what the sets
    leave of the gradients, as by `stateless_reduce`, and the point that its update leads to is projected, as by
    `stateless_project`. An entry that the projection leaves alone keeps its update bit for bit.

    The updates are for `optax.apply_updates`. What changes gradients (clipping, `optax.MultiSteps`,
    `optax.apply_if_finite`) may be outside of it; what changes updates belongs inside. What an optimizer keeps beside
    the values, as the averages of `optax.contrib.schedule_free`, isn't projected. Steps are counted, for
    `constrain(every=n)` and for sets that change with the steps. The plan is looked up at each update: a step that
    `jax.jit` has compiled keeps the plan that it saw.

    The sum of a value and an update is rounded. An entry that loses most of its size in one step can't always be led to
    the projected value: it ends up to one rounding of the old value short of it, on the side of the old value. From
    inside, balls, boxes and sums bear that within an audit's tolerance; of `Monotone`, whose order is exact, entries
    may end in the other order by that much, until the next step. So may units that `every` let go to a multiple of
    their bound end that much outside.

    Args:
        model: a built Keras model or layer, constrained, or with sets given to its layers.
        optimizer: an `optax.GradientTransformation`. One that searches along a line, as `optax.lbfgs` does, compares
            gradients with losses, and is refused in its first update, by its `value_fn`.

    Returns:
        An `optax.GradientTransformationExtraArgs` for lists or tuples in the order of `model.trainable_variables`; its
        `update` needs the values, and hands on other arguments.

    Raises:
        RuleError: the backend is another one, optax isn't installed, an argument is something else, the model has no
            plan, or `every` is "epoch". In an update: the values are missing or aren't like the model's variables, or
            the optimizer searches along a line.

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
        """Its arguments have optax's names, by which other transformations hand them on."""
        _check_update(params, extra)
        every, count = _interval(model), optax.safe_increment(state.count)
        like = tuple if isinstance(updates, tuple) else list
        seen = like(stateless_reduce(model, params, updates, step=count))
        given, kept = inner.update(seen, state.inner, params, **extra)
        given = [_rounded(u.astype(jnp.promote_types(u.dtype, x.dtype))) for x, u in zip(params, given, strict=True)]

        def inwards() -> list[Array]:
            moved = list(map(_added, params, given))
            ends = stateless_project(model, moved, step=count)
            return list(map(_leading, params, given, moved, ends))

        due = inwards() if every == 1 else branch(count % every == 0, inwards, lambda: given)
        return like(due), Wrapped(kept, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _leading(value: Array, update: Array, moved: Array, end: Array) -> Array:
    """The update that leads from a value to an end; where that was moved to anyway, the update that is there."""
    import jax.numpy as jnp

    led = _rounded((end - value).astype(update.dtype))
    ends = _added(value, led)
    beyond = jnp.where(led > 0, ends > end, ends < end)
    led = jnp.where(beyond, jnp.nextafter(led, jnp.zeros_like(led)), led)
    return jnp.where(moved == end, update, led)


def _added(value: Array, update: Array) -> Array:
    """What `optax.apply_updates` makes of a value."""
    return _rounded((value + update).astype(value.dtype))


def _rounded(x: Array) -> Array:
    """`x` as memory holds it: XLA may go on with more digits within a compiled step."""
    import jax

    kind = jax.numpy.finfo(x.dtype)
    return jax.lax.reduce_precision(x, int(kind.nexp), int(kind.nmant))


def _interval(model: Any) -> int:
    """The number of steps after which the plan of a model is projected: one for all its sets."""
    entries = in_force(model)
    check_steps(entries, "optax", "stateless_project")
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
