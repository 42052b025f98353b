"""On PyTorch, small weights with equal sets are stacked and projected together.

PyTorch runs each operation by itself, so one call on a stack replaces many small ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from inbounds._arrays.ops import dtype_of
from inbounds._arrays.units import Units
from inbounds._model.plan import Entry
from inbounds._train.attached_sets import projected_values
from inbounds._train.metrics import StepMetric

MAX_STACKED_SIZE = 1 << 15
"""Only entries with fewer numbers are stacked: above it the copies cost more than the calls."""


def stacks_of(optimizer: Any, entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries merged_notes into stacks. The grouping is stored in the optimizer until it changes."""
    signature = [(entry, *(weight.variable.trainable for weight in entry.weights)) for entry in entries]
    stacks: list[list[Entry]]
    old_signature, stacks = vars(optimizer).get("_inbounds_stacks", (None, []))
    if old_signature != signature:
        by_key: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_key[_stack_key(entry)].append(entry)
        stacks = list(by_key.values())
        vars(optimizer)["_inbounds_stacks"] = (signature, stacks)
    return stacks


def _stack_key(entry: Entry) -> Any:
    """The key that the entries of one stack share; unique for an entry that can't be stacked."""
    if sum(math.prod(weight.shape) for weight in entry.weights) >= MAX_STACKED_SIZE or not entry.applied.stackable:
        return id(entry)
    weights = tuple((w.shape, dtype_of(w.variable), bool(w.variable.trainable)) for w in entry.weights)
    return entry.applied, entry.set.metric, entry.set.gradient, entry.axes, weights


def project_stack(stack: Sequence[Entry], metrics: Sequence[StepMetric], step_count: Any) -> None:
    """Projects the entries of one stack as one entry with one more axis that counts units."""
    if len(stack) == 1:
        for variable, value in projected_values(stack[0], concrete=True, metric=metrics[0], step_count=step_count):
            variable.assign(value)
        return
    import torch

    first = stack[0]
    stacked = list(zip(*(entry.variables for entry in stack), strict=True))  # weight by weight
    free = [bool(variables[0].trainable) for variables in stacked]
    if not any(free):
        return
    parts = [torch.stack([variable.value for variable in variables]) for variables in stacked]
    axes = [tuple(axis + 1 for axis in span) for span in first.axes]
    diagonals = None
    if any(metric.diagonals is not None for metric in metrics):
        ones = [torch.ones_like(part[0], dtype=torch.float32) for part in parts]
        per_weight = zip(*(metric.diagonals or ones for metric in metrics), strict=True)
        diagonals = [torch.stack(tensors) for tensors in per_weight]
    applied = first.applied.at(step_count)
    units = Units.of(parts, axes, free, concrete=True, metric=diagonals, training=True).comparable(
        applied.couples_units
    )
    result = applied.nearest(units)
    for variables, part, is_free in zip(stacked, result.parts, free, strict=True):
        if is_free:
            torch._foreach_copy_([variable.value for variable in variables], list(part.unbind(0)))
