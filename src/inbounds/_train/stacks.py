"""On PyTorch, weights of one shape with equal sets are reduced and projected together.

PyTorch runs each operation by itself, so one call for many weights replaces many calls. Small
weights are copied into a stack; of large ones only the numbers for each unit are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from inbounds._arrays.ops import Array, dtype_of
from inbounds._train.assignments import assign, assign_at_once
from inbounds._train.step_projections import Read, StepProjection

MAX_STACKED_SIZE = 1 << 15  # only entries with fewer numbers are copied: above it the copies cost more than the calls


def stacks_of(projections: Iterable[StepProjection]) -> list[list[StepProjection]]:
    """The projections in stacks, each of which is projected in one call and in the same steps."""
    stacks: dict[Any, list[StepProjection]] = {}
    for projection in projections:
        stacks.setdefault(_stack_key(projection), []).append(projection)
    return list(stacks.values())


def _stack_key(projection: StepProjection) -> Any:
    """The key that the entries of one stack share; unique for an entry that can't be stacked."""
    entry = projection.entry
    if keras.backend.backend() != "torch" or projection.latent or not entry.applied.stackable:
        return id(entry)
    weights = tuple((weight.shape, dtype_of(weight.variable)) for weight in entry.weights)
    how = entry.training, projection.full_gradient_reason
    return entry.applied, how, entry.axes, weights, projection.free


def _is_small(projection: StepProjection) -> bool:
    return projection.size < MAX_STACKED_SIZE


def reduce_stack(
    stack: Sequence[StepProjection], gradients: Mapping[int, Any], read: Read, count: Any
) -> dict[int, Any]:
    """`StepProjection.reduced_gradients` of the entries of one stack."""
    own = [[gradients.get(id(variable)) for variable in one.entry.variables] for one in stack]
    if len(stack) == 1 or any(gradient is None for of_entry in own for gradient in of_entry):
        return {key: new for one in stack for key, new in one.reduced_gradients(gradients, read, count).items()}
    values = [list(map(read, one.entry.variables)) for one in stack]
    reduced = _as_one(stack).reduce(_joined(stack, values), _joined(stack, own), count)
    return {
        id(variable): gradient
        for one, of_entry in zip(stack, _parted(stack, reduced), strict=True)
        for variable, gradient in zip(one.entry.variables, of_entry, strict=True)
    }


def project_stack(stack: Sequence[StepProjection], count: Any, stepped: Mapping[int, Any] | None) -> None:
    """Projects the entries of one stack. The arguments are those of `StepProjection.state_after`."""
    first = stack[0]
    if len(stack) == 1 or not any(first.free):
        assign(first.projected_values(keras.ops.convert_to_tensor, *first.state_after(count, stepped)))
        return
    import torch

    values = [[variable.value for variable in one.entry.variables] for one in stack]
    metrics, diagonals = [one.state_after(count, stepped)[1] for one in stack], None
    if any(metric is not None for metric in metrics):
        ones = [torch.ones_like(part, dtype=torch.float32) for part in values[0]]
        diagonals = _joined(stack, [metric or ones for metric in metrics])
    projected = _as_one(stack).project(_joined(stack, values), count, diagonals, True)
    assign_at_once(
        (variable, value)
        for one, of_entry in zip(stack, _parted(stack, projected), strict=True)
        for variable, value, free in zip(one.entry.variables, of_entry, first.free, strict=True)
        if free
    )


def _as_one(stack: Sequence[StepProjection]) -> StepProjection:
    """One projection for all entries of a stack."""
    first, count = stack[0], len(stack)
    if _is_small(first):  # with one more axis that counts units
        return replace(first, axes=tuple(tuple(axis + 1 for axis in span) for span in first.axes))
    return replace(first, axes=first.axes * count, free=first.free * count, beside=count)


def _joined(stack: Sequence[StepProjection], arrays: Sequence[Sequence[Array]]) -> list[Array]:
    """The arrays that `_as_one` takes, from those of each entry."""
    if _is_small(stack[0]):
        import torch

        return [torch.stack(of_weight) for of_weight in zip(*arrays, strict=True)]
    return [array for of_entry in arrays for array in of_entry]


def _parted(stack: Sequence[StepProjection], arrays: Sequence[Array]) -> list[Sequence[Array]]:
    """The arrays of each entry, from those that `_as_one` gives."""
    if _is_small(stack[0]):
        return list(zip(*(array.unbind(0) for array in arrays), strict=True))
    count = len(arrays) // len(stack)
    return [arrays[start : start + count] for start in range(0, len(arrays), count)]
