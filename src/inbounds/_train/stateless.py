"""Functions of values, for functional loops.

`optax_wrap` does for optax what `stateless_reduce` and `stateless_project` do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras

from inbounds._arrays.ops import MANTISSA_BITS, Array, as_written, dtype_of, without_gradient
from inbounds._errors import RuleError
from inbounds._train.attach import check_backend, check_interval
from inbounds._train.attached_sets import entries_in_force
from inbounds._train.decisions import decide, in_given_metric
from inbounds._train.step_projections import Pairs, StepProjection, reduced_gradients
from inbounds._types import Model, OptaxOptimizer, Step


@as_written
def stateless_project(
    model: Model,
    trainable_variables: Sequence[Any],
    metric: Sequence[Any] | None = None,
    *,
    step: Step | None = None,
) -> list[Array]:
    """The projected values of a model's trainable variables, as a pure function.

    It is for functional loops such as those of optax, works under `jax.jit` and `tf.function`, and
    doesn't change the model's variables. Frozen weights of a Joint are read from the model and
    become constants of a trace. Gradients don't flow through the results; `Set.project` is
    differentiable.

    Args:
        model: a built Keras model or layer with a plan, or with sets given to its layers.
        trainable_variables: the values, a list or tuple in the order of
            `model.trainable_variables`.
        metric: a list with the diagonal of the optimizer's metric for each value (the positive
            numbers that its step was divided by, entry by entry), or None for a value. For optax's
            Adam it is `sqrt(nu_hat) + eps`. A set is projected on in the Euclidean metric if the
            diagonal of one of its weights is None, or if the plan's metric is "euclidean". After
            `stateless_reduce` no metric is needed. Sets of matrices should get none: their
            projection in a metric takes up to 2,000 steps.
        step: the number of steps taken, a number or a tensor, for sets that change with them.

    Returns:
        The values in a list; those without a set unchanged. `constrain(every=...)` is ignored: each
        call projects.

    Raises:
        RuleError: the model has no plan, the values or metrics don't match the model's variables,
            `step` is missing, or a set keeps latent weights, for which a function has no place; see
            docs/loops.md.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = stateless_project(model, [10 * v for v in model.trainable_variables])
    """
    projections = _projections(model)
    for entry in (one.entry for one in projections if one.latent):
        wrong = "A function of values keeps no latent weights, without which small steps are lost"
        before = "step the values as they are before `stateless_project` (docs/loops.md), or lose those steps"
        instead = f"constrain(model, rules, latent=False), and {before}"
        raise RuleError(wrong, f"latent={entry.training.latent!r}", where=repr(entry), instead=instead)
    variables = model.trainable_variables
    values = _checked(variables, trainable_variables, "trainable_variables")
    stepped = None if metric is None else _checked(variables, metric, "metric", optional=True)
    count = _step_count(projections, step, "stateless_project(model, values, step=count)")
    projections = list(map(in_given_metric, projections))
    given = dict(zip(values, trainable_variables, strict=True))
    read = partial(_given_value, given)
    return _with((one.projected_values(read, count, stepped) for one in projections), given)


@as_written
def stateless_reduce(
    model: Model, trainable_variables: Sequence[Any], gradients: Sequence[Any], *, step: Step | None = None
) -> list[Array]:
    """The gradients, reduced by a model's sets, for the optimizer of a functional loop.

    A pure function. Called before the optimizer, with `stateless_project` after it, it makes any
    optimizer converge to the constrained optimum without a metric: `(P(x) - P(x - e g)) / e`, see
    docs/optimizers.md.

    Args:
        model: as for `stateless_project`.
        trainable_variables: the values at which the gradients were taken.
        gradients: a list or tuple of gradients like the values; None for a variable that isn't
            stepped.
        step: the number of steps including the coming one, for sets that change with them.

    Returns:
        The gradients in a list. They stay bit for bit the same for units that stay inside when they
        follow them, for sets of single entries, for sets that are neither convex nor smooth, and
        for plans with `gradient="full"`.

    Raises:
        RuleError: the model has no plan, the values or gradients don't match its variables, or
            `step` is missing.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(2.0)})
        >>> values = [v.value for v in model.trainable_variables]
        >>> gradients = [keras.ops.ones_like(value) for value in values]
        >>> reduced = stateless_reduce(model, values, gradients)
    """
    return _reduced(_projections(model), model, trainable_variables, gradients, step)


def _projections(model: Any) -> list[StepProjection]:
    return list(map(decide, entries_in_force(model)))


def _reduced(projections: Sequence[StepProjection], model: Any, at: Any, gradients: Any, step: Any) -> list[Array]:
    """`stateless_reduce` by decisions that are known."""
    values = _checked(model.trainable_variables, at, "trainable_variables")
    tensors = _checked(model.trainable_variables, gradients, "gradients", optional=True)
    reducing = [one for one in projections if not one.full_gradient_reason]
    count = _step_count(reducing, step, "stateless_reduce(model, values, gradients, step=count)")
    reduced = reduced_gradients(reducing, tensors, partial(_given_value, values), count)
    pairs = zip(tensors.items(), gradients, strict=True)
    return [given if reduced[key] is tensor else reduced[key] for (key, tensor), given in pairs]


def _with(pairs: Iterable[Pairs], values: Mapping[int, Any]) -> list[Array]:
    """The values by the ids of their variables, with those that pairs hold for some of them."""
    new = {id(variable): without_gradient(value) for some in pairs for variable, value in some}
    return list((dict(values) | new).values())


def _given_value(values: Mapping[int, Any], variable: Any) -> Array:
    """The value given for a variable, or else the model's."""
    return keras.ops.convert_to_tensor(values.get(id(variable), variable))


def _step_count(projections: Iterable[StepProjection], step: Any, instead: str) -> Any:
    """The number of steps, which sets that change with them need."""
    changing = [one.entry for one in projections if one.entry.set.changes]
    if changing and step is None:
        wrong = "The set changes with the steps of training, and `step` doesn't say how many there were"
        raise RuleError(wrong, "step=None", where=repr(changing[0]), instead=instead)
    return 0 if step is None else step


def _checked(variables: Sequence[Any], given: Any, name: str, *, optional: bool = False) -> dict[int, Any]:
    """The given values as tensors, by the ids of their variables.

    Raises an error where their number, shapes or dtypes don't fit the variables.
    """
    values = "[variable.value for variable in model.trainable_variables]"
    instead = f"{'[None] * len(model.trainable_variables)' if optional else values} to begin with"
    if not isinstance(given, (list, tuple)) or len(given) != len(variables):
        received = f"{len(given)} values" if isinstance(given, (list, tuple)) else type(given).__name__
        wrong = f"`{name}` is not a list with one value for each of model.trainable_variables, in their order"
        raise RuleError(wrong, f"{received} for {len(variables)} variables", instead=instead)
    tensors: dict[int, Any] = {}
    for variable, value in zip(variables, given, strict=True):
        if value is None and optional:
            tensors[id(variable)] = None
            continue
        tensor = keras.ops.convert_to_tensor(value)
        shape, dtype = tuple(tensor.shape), dtype_of(tensor)
        right_dtype = dtype == dtype_of(variable) if name == "trainable_variables" else dtype in MANTISSA_BITS
        if shape != tuple(variable.shape) or not right_dtype:
            order = "in the order of model.trainable_variables"
            wrong = f"A value in `{name}` has another shape or dtype than its variable, {order}"
            where = f"{variable.path} of shape {tuple(variable.shape)} and dtype {dtype_of(variable)}"
            raise RuleError(wrong, f"shape={shape}, dtype={dtype}", where=where, instead=instead)
        tensors[id(variable)] = tensor
    return tensors


class Wrapped(NamedTuple):
    """The state of `optax_wrap`."""

    inner: Any  # the inner optimizer's state
    count: Any  # the number of steps taken
    latents: Any  # the latent weights of each value, None for a value without them


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

    Latent weights (see `constrain`) are in the state; the optimizer steps them, and the update
    leads to their nearest point.

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

    _optax_projections(model)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Wrapped:
        _checked(model.trainable_variables, params, "trainable_variables")
        keeping = {id(v) for one in _projections(model) if one.latent for v in one.movable_variables}
        variables = zip(params, model.trainable_variables, strict=True)
        latents = tuple(jnp.array(value, copy=True) if id(v) in keeping else None for value, v in variables)
        return Wrapped(inner.init(params), jnp.zeros([], "int32"), latents)

    def update(updates: Any, state: Wrapped, params: Any = None, **extra: Any) -> tuple[Any, Wrapped]:
        """Optax passes these arguments by name."""
        _check_update(params, extra)
        projections, count = _optax_projections(model), optax.safe_increment(state.count)
        like = tuple if isinstance(updates, tuple) else list
        gradients = like(_reduced(projections, model, params, updates, count))
        starts = _starts([one for one in projections if one.latent], model, params, state)
        steps, inner_state = inner.update(gradients, state.inner, like(starts.values()), **extra)
        steps = [
            _round_to_dtype(u.astype(jnp.promote_types(u.dtype, x.dtype))) for x, u in zip(params, steps, strict=True)
        ]
        pairs = zip(starts.items(), steps, strict=True)
        moved = {key: _apply_update(start, step) for (key, start), step in pairs}
        read = partial(_given_value, moved)
        ends = _with((one.values_when_due(read, count, None) for one in projections), moved)
        latents = tuple(None if old is None else new for old, new in zip(state.latents, moved.values(), strict=True))
        return like(map(_update_towards, params, steps, ends)), Wrapped(inner_state, count, latents)

    return optax.GradientTransformationExtraArgs(init, update)


def _optax_projections(model: Any) -> list[StepProjection]:
    projections = _projections(model)
    check_interval([one.entry for one in projections], "optax", "stateless_project")
    return projections


def _starts(latent: Sequence[StepProjection], model: Any, params: Sequence[Array], state: Wrapped) -> dict[int, Array]:
    """The values from which the inner optimizer steps: the latent weights, where there are any."""
    ids = list(map(id, model.trainable_variables))
    values, latents = dict(zip(ids, params, strict=True)), dict(zip(ids, state.latents, strict=True))
    starts = dict(values)
    for projection in latent:
        missing = [variable for variable in projection.movable_variables if latents[id(variable)] is None]
        if missing:
            wrong = "The state of optax_wrap has no latent weights: it is older than the set"
            received = f"latent={projection.entry.training.latent!r} for {missing[0].path}"
            instead = "state = optimizer.init(values) after constrain(model, rules), or latent=False"
            raise RuleError(wrong, received, where=repr(projection.entry), instead=instead)
        started = projection.starts(partial(_given_value, values), lambda v: latents[id(v)], state.count)
        starts |= {id(variable): start for variable, start in started}
    return starts


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


def _check_optax(optimizer: Any) -> None:
    others = {
        "torch": "project_after(model, optimizer)",
        "tensorflow": "project(model) after the step, or a Keras optimizer",
    }
    check_backend("jax", "optax_wrap is for optax, and the backend is not JAX", others)
    if importlib.util.find_spec("optax") is None:
        wrong = "optax_wrap is for optax, which isn't installed"
        raise RuleError(wrong, "no module 'optax'", instead="pip install optax")
    import optax

    if not isinstance(optimizer, optax.GradientTransformation):
        wrong = "optax_wrap is not given an optimizer of optax"
        raise RuleError(wrong, f"optimizer={optimizer!r}", instead="optax_wrap(model, optax.adam(1e-3))")


def _check_update(params: Any, extra: Mapping[str, Any]) -> None:
    if params is None:
        wrong = "An update of optax_wrap needs the values that it leads from"
        raise RuleError(wrong, "params=None", instead="optimizer.update(gradients, state, values)")
    if "value_fn" in extra:
        wrong = "The optimizer can't be given reduced gradients: it compares gradients with losses along a line"
        raise RuleError(wrong, "value_fn", instead="optax.lbfgs(1e-2, linesearch=None), or another optimizer")
