"""`pressure`: the Lagrange multiplier of each unit's bound. It only reads.

Let g be the gradient of the loss and g_C the reduced gradient. Then n = g_C - g points straight out
of the set: it is the part that the set removes from the descent direction -g. At the constrained
optimum g_C is 0, and n gives the Lagrange multipliers.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import MANTISSA_BITS, cast, dense, dtype_of, quiet, to_numpy
from inbounds._arrays.units import Units
from inbounds._errors import RuleError, printable, shown
from inbounds._model.plan import Entry
from inbounds._model.table import Table, Tabular, common_prefix, index_text, quantity
from inbounds._train.attached_sets import entries_in_force
from inbounds._train.taken_plans import steps_taken
from inbounds._train.weight_access import exclusive_access
from inbounds._types import Data, Integer, Model

BatchFunction = Callable[[Sequence[Any], Any], Any]
"""A function of the variables' values and a batch: the loss, or its gradient."""


@dataclass(frozen=True, eq=False)
class PressureRow:
    """The pressure of one set, for each of its units.

    Attributes:
        paths: the paths of the weights.
        set: the set, as code.
        values: one number for each unit, in the order of the weight's axes that count units; NaN
            where there is none.
        unit: the index of the unit with the largest pressure, in those axes; None if all are 0 or
            NaN.
        note: why there are no numbers.
    """

    paths: tuple[str, ...]
    set: str
    values: np.ndarray[Any, Any]
    unit: tuple[int, ...] | None
    note: str = ""

    @property
    def largest(self) -> float:
        """The pressure of largest absolute value, with its sign."""
        return float(self.values[np.argmax(np.abs(self.values))])

    @property
    def costing(self) -> float:
        """The share of units whose pressure is not 0."""
        return float(np.mean(self.values != 0)) if np.isfinite(self.values).all() else float("nan")


@dataclass(frozen=True, eq=False)
class Pressure(Tabular):
    """The pressure of a model's bounds, a row for each set: print it, or iterate over it."""

    model: str
    rows: tuple[PressureRow, ...]

    def __iter__(self) -> Iterator[PressureRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Pressure on {quantity(len(self), 'set')} of {self.model}; print it to see them>"

    def _table(self) -> Table:
        prefix = common_prefix(path for row in self for path in row.paths)
        return Table.of_weights(
            f"Pressure on {self.model}: the fall of the loss for each unit by which a bound is loosened",
            ("weight", "set", "units", "largest", "unit", "costing"),
            [(row.paths, (row.set, row.values.size, *_cells(row))) for row in self],
            [(row.paths, row.note) for row in self],
            prefix,
        )


def _cells(row: PressureRow) -> tuple[Any, ...]:
    return ("-",) * 3 if row.note else (row.largest, index_text(row.unit), f"{row.costing:.0%}")


@exclusive_access()
def pressure(
    model: Model, x: Data, y: Data | None = None, sample_weight: Data | None = None, batch_size: Integer = 256
) -> Pressure:
    """Measures what each bound costs: how much the loss falls if it is loosened, unit by unit.

    At the constrained optimum this is exactly the Lagrange multiplier of the bound, and 0 for a
    unit inside. Elsewhere it is the part of the current gradient that the bound removes; on a part
    of the data it is an estimate. The bound that is loosened depends on the set:

    - one number, the norm, radius or total: MaxNorm, FrobeniusNorm, MinMaxNorm (whichever bound is
      met), UnitNorm, L1Ball, Simplex, SpectralNorm, NuclearNorm; the sum or the offset: SumTo,
      Halfspace, Hyperplane;
    - NonNeg, NonPos, Box, Fixed, and sets made of them: all bounds of the unit at once;
    - all other sets: the set grows by a distance on all sides;
    - `Joint`, `where` and `on`: as for the set inside; `scaled`: the bound at the current step.

    For an equation (UnitNorm, Simplex, SumTo, Hyperplane) the number is raised, and a negative
    pressure says that lowering it would lower the loss. Otherwise a pressure is never below 0.

    Args:
        model: a compiled model with a plan, or with sets given to its layers. It is not changed.
        x: the inputs, as for `model.evaluate`: an array, or a list or dictionary of arrays.
        y: the targets, likewise.
        sample_weight: the weights of the samples, likewise.
        batch_size: the number of samples in a batch.

    Returns:
        The pressure: a row for every set with `paths`, `set` and `values`, one number for each
        unit: the fall of the loss per amount by which the unit's bound is loosened. The values are
        NaN, and the row's `note` says why, for sets that are neither convex nor smooth (Sparse,
        Grid, LowRank, a Custom that isn't said to be a projection) and where a weight is frozen.

    Raises:
        RuleError: the model isn't built or compiled, or has neither plan nor sets; the data aren't
            arrays with the same number of samples; `batch_size` is not a positive number; or
            another thread fits the model.

    The loss is that of `model.evaluate` with this batch size, including the losses of regularizers;
    no layer is in training mode. A unit within a thousandth of its size of a bound counts in part.

    Cost: one forward and one backward pass over the data, and two projections, in NumPy and
    float64.

    Source: Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.6, on multipliers as
    sensitivities.

    Example:
        >>> plan = constrain(model, {"**/kernel": MaxNorm(0.5)})
        >>> rows = list(pressure(model, x, y))
        >>> rows[1].values.shape
        (3,)
    """
    entries = entries_in_force(model)
    if not getattr(model, "compiled", False):
        wrong = "The model isn't compiled, and has no loss to differentiate"
        raise RuleError(wrong, f"{type(model).__name__} {model.name!r}", instead="model.compile(optimizer, loss) first")
    variables = model.trainable_variables
    means = _mean_gradients(model, variables, (x, y, sample_weight), batch_size)
    gradients = dict(zip(map(id, variables), means, strict=True))
    return Pressure(printable(str(model.name)), tuple(_pressure_row(model, entry, gradients) for entry in entries))


def _pressure_row(model: Any, entry: Entry, gradients: Mapping[int, Any]) -> PressureRow:
    frozen = [weight.name for weight in entry.weights if id(weight.variable) not in gradients]
    note = "" if entry.set.has_reduced_gradient else "no pressure, the set is neither convex nor smooth"
    note = f"no pressure, {' and '.join(frozen)} is frozen" if frozen else note
    if note:
        return PressureRow(entry.paths, repr(entry.set), np.full(entry.units, np.nan), None, note)
    applied = entry.applied.at(steps_taken(model, entry))
    coarsest = min((weight.dtype for weight in entry.weights), key=MANTISSA_BITS.__getitem__)
    units = replace(Units.of(list(map(to_numpy, entry.variables)), entry.axes), dtype=coarsest)
    gradient = units.with_parts([gradients[id(variable)] for variable in entry.variables])
    with quiet(units.parts[0]):
        removed = applied.reduced(units, gradient).map(lambda reduced, full: reduced - full, gradient)
        values = applied.multiplier(units, removed)
    largest = int(np.argmax(np.nan_to_num(np.abs(values))))
    has_pressure = np.isfinite(values[largest]) and values[largest] != 0
    unit = entry.index_of(largest, values.size) if has_pressure else None
    return PressureRow(entry.paths, repr(entry.set), values, unit)


def _mean_gradients(model: Any, variables: Sequence[Any], data: Any, batch_size: Any) -> list[np.ndarray[Any, Any]]:
    """The gradient of the loss by each variable, averaged over the samples, in float64."""
    training = {"training": False} if "training" in inspect.signature(model.compute_loss).parameters else {}

    def loss(values: Sequence[Any], batch: Any) -> Any:
        x, y, weight = batch
        mapping = list(zip(variables, values, strict=True))
        # The scope discards assignments. Keras must not create variables within a trace.
        with keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False):
            return model.compute_loss(x=x, y=y, y_pred=model(x, training=False), sample_weight=weight, **training)

    gradient = _gradient_of(loss, compiled=not model.run_eagerly)
    values = [variable.value for variable in variables]
    sums, samples = [np.zeros(variable.shape) for variable in variables], 0
    try:
        for batch, size in _batches(data, batch_size):
            for total, part in zip(sums, gradient(values, batch), strict=True):
                total += size * to_numpy(dense(part))
            samples += size
    finally:
        with keras.StatelessScope():  # its end creates the variables that the call above did not
            pass
    return [total / samples for total in sums]


def _gradient_of(loss: BatchFunction, *, compiled: bool) -> Any:
    """The gradient of the loss by the values; `compiled` matters on JAX only."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(jax.grad(loss)) if compiled else jax.grad(loss)

    def gradient(values: Sequence[Any], batch: Any) -> Any:
        if backend == "torch":
            import torch

            with torch.enable_grad():
                return torch.autograd.grad(loss(values, batch), values, allow_unused=True, materialize_grads=True)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = loss(values, batch)
        return tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return gradient


def _batches(data: Any, batch_size: Any) -> Iterator[tuple[Any, int]]:
    """Batches of inputs, targets and sample weights as tensors, each with its number of samples."""
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in keras.tree.flatten(data) if leaf is not None]
    counts = {shape[:1] for shape in shapes}
    whole = isinstance(batch_size, numbers.Integral) and int(batch_size) >= 1
    if data[0] is None or len(counts) != 1 or not all(counts) or 0 in min(counts) or not whole:
        wrong = "The data aren't arrays with the same number of samples, one or more, or `batch_size` isn't 1 or more"
        received = f"shapes={', '.join(dict.fromkeys(map(str, shapes)))}, batch_size={shown(batch_size)}"
        instead = "inbounds.pressure(model, x, y), with arrays as for model.evaluate"
        raise RuleError(wrong, received, where="`x`, `y` and `sample_weight` of pressure", instead=instead)

    def batch_of(array: Any, start: int) -> Any:
        if array is None:
            return None
        tensor = keras.ops.convert_to_tensor(array[start : start + batch_size])
        return cast(tensor, keras.config.floatx()) if dtype_of(tensor) in MANTISSA_BITS else tensor

    (samples,) = min(counts)
    for start in range(0, samples, batch_size):
        batch = keras.tree.map_structure(lambda array, start=start: batch_of(array, start), data)
        yield batch, min(batch_size, samples - start)
