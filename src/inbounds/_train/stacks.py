"""On PyTorch, small weights with equal sets are stacked and projected together.

PyTorch runs each operation by itself, so one call on a stack replaces many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from inbounds._arrays.ops import dtype_of
from inbounds._train.assignments import assign, assign_stack
from inbounds._train.step_projections import StepProjection, StepState

MAX_STACKED_SIZE = 1 << 15
"""Only entries with fewer numbers are stacked: above it the copies cost more than the calls."""


def stacks_of(projections: Iterable[StepProjection]) -> list[list[StepProjection]]:
    """The projections in stacks, each of which is projected in one call and in the same steps."""
    stacks: dict[Any, list[StepProjection]] = {}
    for projection in projections:
        stacks.setdefault(_stack_key(projection), []).append(projection)
    return list(stacks.values())


def _stack_key(projection: StepProjection) -> Any:
    """The key that the entries of one stack share; unique for an entry that can't be stacked."""
    entry = projection.entry
    small = sum(math.prod(weight.shape) for weight in entry.weights) < MAX_STACKED_SIZE
    if keras.backend.backend() != "torch" or not small or not entry.applied.stackable:
        return id(entry)
    weights = tuple((weight.shape, dtype_of(weight.variable)) for weight in entry.weights)
    return entry.applied, entry.set.metric, entry.set.gradient, entry.set.every, entry.axes, weights, projection.free


def project_stack(stack: Sequence[StepProjection], count: Any, stepped: Mapping[int, Any] | None) -> None:
    """Projects the entries of one stack as one entry with one more axis that counts units.

    The arguments are those of `StepProjection.state_after`.
    """
    first, states = stack[0], [projection.state_after(count, stepped) for projection in stack]
    if len(stack) == 1 or not any(first.free):
        assign(first.projected_values(state=states[0]))
        return
    import torch

    stacked = list(zip(*(projection.entry.variables for projection in stack), strict=True))  # weight by weight
    values = [torch.stack([variable.value for variable in variables]) for variables in stacked]
    metrics, diagonals = [state.read_metric() for state in states], None
    if any(metric is not None for metric in metrics):
        ones = [torch.ones_like(part[0], dtype=torch.float32) for part in values]
        diagonals = [torch.stack(tensors) for tensors in zip(*(metric or ones for metric in metrics), strict=True)]
    axes = tuple(tuple(axis + 1 for axis in span) for span in first.axes)
    state = StepState(count, lambda: diagonals, concrete=True)
    projected, _ = replace(first, axes=axes).project(values, state)
    for variables, part, is_free in zip(stacked, projected, first.free, strict=True):
        if is_free:
            assign_stack(variables, part)
