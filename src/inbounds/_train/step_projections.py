"""What a step of training does with a set.

It reduces gradients before the update, and projects weights after it.

The steps of Keras' optimizers, those of `torch.optim`, and functions of values are adapters of this
module. Each reads gradients and values in its own way, calls `reduced_gradients`, `starts` and
`values_when_due`, and assigns what they return. `decisions` makes the projections.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import (
    Array,
    branch,
    cast,
    dtype_of,
    epsilon,
    is_sharded,
    is_sparse,
    namespace,
    quiet,
    unrecorded,
    working_dtype,
)
from inbounds._arrays.units import Units
from inbounds._arrays.views import Axes, Block
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._sets.composite import parts_of
from inbounds._sets.set import Set
from inbounds._train import programs
from inbounds._train.assignments import overwrite
from inbounds._train.metrics import OptimizerMetric
from inbounds._train.optimizers import in_stateless_scope, in_tensorflow_strategy

MAX_STACKED_SIZE = 1 << 15  # only entries with fewer numbers are copied: above it the copies cost more than the calls

Read = Callable[[Any], Array]
"""Returns a variable's value as a tensor or a NumPy array: projections compute in its kind."""

Pairs = list[tuple[Any, Any]]
"""Variables, each with a value to assign to it."""

Stepped = Mapping[int, Any] | None
"""What a metric's reader takes, by the ids of a step's variables: for Keras the gradients. None
outside of steps."""


@dataclass(frozen=True, eq=False)
class StepProjection:
    """How steps treat the set of one entry, or of several that are alike.

    PyTorch and TensorFlow run each operation by itself, so that one for many weights replaces many.
    Small weights are copied into a stack; of large ones on PyTorch, side by side, only the numbers
    for each unit are. XLA on JAX compiles many operations on weights faster than some on stacks.
    """

    entries: tuple[Entry, ...]
    movable: tuple[bool, ...]  # for each weight of an entry, whether projections may move it
    optimizer: Any = None  # the one that steps the weights; None: none is known
    metric: OptimizerMetric | None = None  # the optimizer's, in which projections are nearest; None: Euclidean
    metric_words: str = ""  # the metric in words, or why it is the Euclidean one
    sparse_metric: OptimizerMetric | None = None  # that of a step with a sparse gradient, which isn't reduced
    full_gradient_reason: str = ""  # why the optimizer sees the full gradient, in words; empty if it doesn't
    latent: bool = False  # whether the optimizer steps latent weights, see `Training`
    latent_words: str = ""  # what the plan says of them; empty without them
    shared: bool = False  # whether the optimizer leaves some of the trained weights to another one
    by_rows: bool = False  # whether it is enough to project the rows that a sparse gradient names

    @cached_property
    def entry(self) -> Entry:
        """The entry, or the first of those that are alike."""
        return self.entries[0]

    @cached_property
    def variables(self) -> list[Any]:
        """The variables of the entries, one entry after the other."""
        return [variable for entry in self.entries for variable in entry.variables]

    @cached_property
    def movable_variables(self) -> list[Any]:
        """The variables that projections may move."""
        flags = self.movable * len(self.entries)
        return [variable for variable, movable in zip(self.variables, flags, strict=True) if movable]

    # Arrays: one for each variable.

    @unrecorded
    def reduce(self, values: Sequence[Array], gradients: Sequence[Any], count: Any) -> list[Any]:
        """The reduced gradients at these values, before a step; None for a weight not stepped."""
        joined = self._joined(gradients)
        units = self._units(values, [gradient is not None for gradient in joined])
        parts = [
            keras.ops.zeros_like(part) if gradient is None else cast(gradient, dtype_of(part))
            for part, gradient in zip(units.parts, joined, strict=True)
        ]
        reduced = self._run(programs.reduced, count, units, units.with_parts(parts))
        pairs = zip(gradients, self._parted(reduced.parts), strict=True)
        return [None if old is None else cast(part, dtype_of(old)) for old, part in pairs]

    @unrecorded
    def project(
        self,
        values: Sequence[Array],
        count: Any = 0,
        metric: Sequence[Array] | None = None,
        *,
        in_place: bool = False,
    ) -> Sequence[Array]:
        """The projected values in their dtypes, after so many steps.

        The metric holds the diagonal of each weight. The values given may be changed `in_place`.
        """
        if not any(self.movable):
            return values
        if metric is None and namespace(values[0]) is np:
            blocks = self.entry.applied.blocks(values, self.entry.axes * len(self.entries))
            if len(blocks) > 1:
                return self._by_blocks(values, blocks, count)
        units = self._units(values, self.movable if self._is_stack else self.movable * len(self.entries), metric)
        if (in_place or self._is_stack) and metric is None and self.entry.applied.scales:
            units = units.changeable()
        nearest = self._run(programs.nearest, count, units)
        trios = zip(values, self._parted(nearest.parts), self.movable * len(self.entries), strict=True)
        return [cast(part, dtype_of(value)) if movable else value for value, part, movable in trios]

    def _by_blocks(self, values: Sequence[Array], blocks: Sequence[tuple[Block, ...]], count: Any) -> list[Array]:
        """`project`, block by block."""
        results = [np.empty_like(value) for value in values]
        for block in blocks:
            parts = self.project([value[at] for value, at in zip(values, block, strict=True)], count)
            for result, part, at in zip(results, parts, block, strict=True):
                result[at] = part
        return results

    def _units(self, values: Sequence[Array], movable: Sequence[bool], metric: Sequence[Array] | None = None) -> Units:
        return Units.of(
            self._joined(values),
            self._axes,
            movable,
            concrete=self._is_concrete,
            metric=None if metric is None else self._joined(metric),
            training=metric is not None,
            beside=1 if self._is_stack else len(self.entries),
        )

    def _run(self, function: Callable[..., Units], count: Any, *units: Units) -> Units:
        """A function of the set; errors of PyTorch's DTensors become ones that say what to do."""
        try:
            with quiet(units[0].parts[0]):
                return programs.run(function, self.entry.applied, count, *units)
        except RuntimeError as error:
            if not any(is_sharded(variable.value) for variable in self.variables):
                raise
            wrong = "The set takes an operation that PyTorch lacks for DTensors"
            instead = "a set of entries, norms or sums (docs/devices.md), or weights that aren't sharded"
            raise RuleError(wrong, str(error).split("\n")[0], where=repr(self.entry), instead=instead) from error

    @cached_property
    def _is_concrete(self) -> bool:
        """Whether these are the eager steps of an optimizer on PyTorch."""
        return self.optimizer is not None and keras.backend.backend() == "torch"

    @cached_property
    def _is_stack(self) -> bool:
        return len(self.entries) > 1 and _is_small(self.entry)

    @cached_property
    def _axes(self) -> tuple[Axes, ...]:
        """The axes that a unit spans in each joined array; a stack's first axis counts entries."""
        axes = self.entry.axes
        return tuple(tuple(axis + 1 for axis in span) for span in axes) if self._is_stack else axes * len(self.entries)

    def _joined(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The arrays that units are made of: the variables' own, or one stack for each weight."""
        if not self._is_stack:
            return arrays
        each = len(self.movable)
        return [namespace(arrays[0]).stack(arrays[place::each]) for place in range(each)]

    def _parted(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The arrays of the variables, from joined ones."""
        if not self._is_stack:
            return arrays
        return [array for of_entry in zip(*map(keras.ops.unstack, arrays), strict=True) for array in of_entry]

    # What the adapters call. With latent weights, an adapter assigns `starts` before the
    # optimizer's step, and stores the weights after it, before they are projected.

    def reduced_gradients(self, gradients: Mapping[int, Any], read: Read, count: Any) -> dict[int, Any]:
        """The reduced gradients by the variables' ids; empty if none is known, or one is sparse."""
        own = [gradients.get(id(variable)) for variable in self.variables]
        missing, sparse = sum(gradient is None for gradient in own), any(map(is_sparse, own))
        if missing == len(own) or (sparse and len(self.entries) == 1):
            return {}
        if (missing or sparse) and len(self.entries) > 1:
            one_by_one = [projection.reduced_gradients(gradients, read, count) for projection in self._one_by_one]
            return reduce(operator.or_, one_by_one)
        reduced = self.reduce(list(map(read, self.variables)), own, count)
        return {id(v): gradient for v, gradient in zip(self.variables, reduced, strict=True) if gradient is not None}

    def starts(self, read: Read, read_latent: Read, count: Any) -> Pairs:
        """The movable variables with latent weights, and the values from which they are stepped.

        These are the latent weights. A unit, or an entry of a set that looks at each by itself,
        starts from its own values where those are no longer the nearest point of its latent
        weights: NaN, or someone has assigned others.
        """
        values = list(map(read, self.variables))
        stored = [read_latent(v) if movable else None for v, movable in zip(self.variables, self.movable, strict=True)]
        if all(latent is None for latent in stored):
            return []
        latents = [value if latent is None else latent for value, latent in zip(values, stored, strict=True)]

        def started() -> list[Array]:
            return self._continued(values, latents, self.project(latents, count))

        if self.entry.training.every == 1:
            starts = started()
        else:  # between projections the weights are the latent ones
            both = zip(values, latents, strict=True)
            same = reduce(operator.and_, [keras.ops.all(value == latent) for value, latent in both])
            starts = branch(same, lambda: values, started)
        trios = zip(self.variables, starts, stored, strict=True)
        return [(variable, start) for variable, start, latent in trios if latent is not None]

    @unrecorded
    def _continued(self, values: Sequence[Array], latents: Sequence[Array], nearest: Sequence[Array]) -> list[Array]:
        """The latent weights whose nearest point is the values, up to rounding; else the values."""
        applied, units = self.entry.applied, Units.of(values, self._axes)
        xp, wide = namespace(values[0]), working_dtype(units.dtype)
        latent, nearest_units = (units.with_parts([cast(part, wide) for part in parts]) for parts in (latents, nearest))
        tolerance = max(epsilon(wide) ** 0.5, 2 * epsilon(units.dtype))

        def chosen(x: Array, latent: Array, off: Array, size: Array) -> Array:
            return xp.where(off <= tolerance * size, latent, x)

        off = units.map(lambda x, y: xp.abs(x - y), nearest_units)
        view, apart = units.together(applied.couples_units), off.together(applied.couples_units)
        by = (apart, view.map(xp.abs)) if applied.separable else (apart.max(lambda x: x), view.largest())
        started = view.map(chosen, latent, *by)
        return [cast(part, dtype_of(value)) for part, value in zip(started.parts, values, strict=True)]

    def projected_values(self, read: Read, count: Any = 0, stepped: Stepped = None) -> Pairs:
        """The movable variables with their projected values, after so many steps.

        Right after a step, they are nearest in its metric. Eager steps on PyTorch move the weights
        here, which saves reading each variable again, and return none. Of a weight with a sparse
        gradient, only the rows that it names are projected, where that is enough.
        """
        own: list[Any] = [] if stepped is None else [stepped.get(id(variable)) for variable in self.variables]
        sparse = any(map(is_sparse, own))
        known = self._diagonals(stepped, sparse)
        if len(self.entries) > 1 and (sparse or 0 < len(known) < len(self.entries)):  # not each was stepped alike
            return [pair for one in self._one_by_one for pair in one.projected_values(read, count, stepped)]
        metric = [diagonal for diagonals in known for diagonal in diagonals] or None
        if sparse and self.by_rows and not in_tensorflow_strategy():  # each replica has rows of its own
            return self._projected_rows(own[0].indices, count, metric)
        values: Sequence[Array] = list(map(read, self.variables))
        ours = self._is_concrete and not (in_stateless_scope() or any(map(is_sharded, values)))
        nearest = self.project(values, count, metric, in_place=ours)
        if ours:
            overwrite(values, nearest)
            return []
        trios = zip(self.variables, nearest, self.movable * len(self.entries), strict=True)
        return [(variable, value) for variable, value, movable in trios if movable]

    def _diagonals(self, stepped: Stepped, sparse: bool) -> list[list[Array]]:
        """The metric after a step, of each entry that was stepped; empty: the Euclidean one."""
        metric = self.sparse_metric if sparse else self.metric
        if metric is None or stepped is None:
            return []
        own = [(entry.variables, [stepped.get(id(one)) for one in entry.variables]) for entry in self.entries]
        found = [metric.diagonals(self.optimizer, variables, given) for variables, given in own]
        return [diagonals for diagonals in found if diagonals is not None]

    def _projected_rows(self, rows: Any, count: Any, metric: Sequence[Array] | None) -> Pairs:
        """Some projected rows of the only variable, an Embedding's table on TensorFlow.

        The rest of the table is neither read nor written.
        """
        import tensorflow as tf

        (variable,) = self.variables
        metric = metric and [tf.gather(diagonal, rows) for diagonal in metric]
        (values,) = self.project([tf.gather(variable.value, rows)], count, metric)
        return [(variable, tf.IndexedSlices(values, rows))]

    def values_when_due(self, read: Read, count: Any, stepped: Stepped, frequency: int = 1) -> Pairs:
        """`projected_values` in steps that project the set and are multiples of `frequency`.

        JAX and TensorFlow compile branches, in which the other steps keep the values.
        """
        every = self.entry.training.every
        if every == "epoch":
            return []
        every = math.lcm(int(every), frequency)
        since = 0 if every == 1 else count % every  # so many steps ago it was projected
        if isinstance(since, int) or self._is_concrete:
            return [] if since else self.projected_values(read, count, stepped)

        def project() -> list[Any]:
            return [value for _, value in self.projected_values(read, count, stepped)]

        values = branch(since == 0, project, lambda: list(map(read, self.movable_variables)))
        return list(zip(self.movable_variables, values, strict=True))

    @cached_property
    def _one_by_one(self) -> list[StepProjection]:
        """The projections of the entries, for a step that doesn't treat them alike."""
        return [replace(self, entries=(entry,)) for entry in self.entries]


def projection_of(entry: Entry, *, include_frozen: bool = False) -> StepProjection:
    """The Euclidean projection of an entry outside of steps; with or without frozen weights."""
    return StepProjection((entry,), tuple(include_frozen or bool(v.trainable) for v in entry.variables))


def grouped(projections: Iterable[StepProjection]) -> list[StepProjection]:
    """The projections, on PyTorch and TensorFlow those of entries that are alike as one."""
    groups: dict[Any, list[StepProjection]] = {}
    for projection in projections:
        groups.setdefault(_group_key(projection), []).append(projection)
    return [replace(group[0], entries=tuple(one.entry for one in group)) for group in groups.values()]


def _group_key(projection: StepProjection) -> Any:
    """What the entries of one group have in common; unique for an entry that can't be in one."""
    entry = projection.entry
    small_on_tensorflow = keras.backend.backend() == "tensorflow" and _is_small(entry) and not in_tensorflow_strategy()
    worth_it = keras.backend.backend() == "torch" or small_on_tensorflow
    if not worth_it or projection.latent or not _is_stackable(entry.applied):
        return id(entry)
    weights = tuple((weight.shape, dtype_of(weight.variable)) for weight in entry.weights)
    how = entry.training, projection.metric, projection.full_gradient_reason, projection.shared
    return entry.applied, how, entry.axes, weights, projection.movable


def _is_stackable(applied: Set) -> bool:
    """Whether weights that are alike can be projected as one, with one more axis of units."""
    parts = list(parts_of(applied))
    arrays = ((one, name, value) for one in parts for name, value in vars(one).items() if isinstance(value, np.ndarray))
    table = any(value.ndim > (name not in one.of_each_unit) for one, name, value in arrays)  # of one layer's
    return not applied.couples_units and all(one.center is None for one in parts) and not table


def _is_small(entry: Entry) -> bool:
    """Whether copies of an entry's weights take less than the calls that they save."""
    return sum(math.prod(weight.shape) for weight in entry.weights) < MAX_STACKED_SIZE


def reduced_gradients(
    projections: Iterable[StepProjection], gradients: Mapping[int, Any], read: Read, count: Any
) -> dict[int, Any]:
    """All gradients by the ids of their variables, reduced for the sets that ask for it."""
    result = dict(gradients)
    for projection in projections:
        if not projection.full_gradient_reason:
            result |= projection.reduced_gradients(result, read, count)
    return result
