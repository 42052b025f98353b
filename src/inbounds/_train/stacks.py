"""PyTorch runs operation by operation: small weights that are alike are projected as one stack of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from inbounds._arrays.ops import dtype_of
from inbounds._arrays.units import Units
from inbounds._model.plan import Entry
from inbounds._train.bound import projected
from inbounds._train.metrics import Step

SMALL = 1 << 15
"""Weights with fewer entries than this go into stacks: the calls cost more than the copies."""


def stacks_of(optimizer: Any, entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries, those that are small and alike together; remembered until they change."""
    signature = [(entry, *(weight.variable.trainable for weight in entry.weights)) for entry in entries]
    stacks: list[list[Entry]]
    known, stacks = vars(optimizer).get("_inbounds_stacks", (None, []))
    if known != signature:
        alike: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            alike[_likeness(entry)].append(entry)
        stacks = list(alike.values())
        vars(optimizer)["_inbounds_stacks"] = (signature, stacks)
    return stacks


def _likeness(entry: Entry) -> Any:
    """What entries of one stack share; its own id for an entry that is large, or whose set takes one weight."""
    if sum(math.prod(weight.shape) for weight in entry.weights) >= SMALL or not entry.applied.stackable:
        return id(entry)
    weights = tuple((w.shape, dtype_of(w.variable), bool(w.variable.trainable)) for w in entry.weights)
    return entry.applied, entry.set.metric, entry.set.gradient, entry.axes, weights


def project_stack(stack: Sequence[Entry], steps: Sequence[Step], at: Any) -> None:
    """Entries that are alike, as one with one more axis that counts units."""
    if len(stack) == 1:
        for variable, value in projected(stack[0], concrete=True, step=steps[0], at=at):
            variable.assign(value)
        return
    import torch

    first = stack[0]
    columns = list(zip(*(entry.variables for entry in stack), strict=True))
    free = [bool(variables[0].trainable) for variables in columns]
    if not any(free):
        return
    parts = [torch.stack([variable.value for variable in variables]) for variables in columns]
    axes = [tuple(axis + 1 for axis in span) for span in first.axes]
    metric = None
    if any(step.costs is not None for step in steps):
        even = [torch.ones_like(part[0], dtype=torch.float32) for part in parts]
        metric = [torch.stack(costs) for costs in zip(*(step.costs or even for step in steps), strict=True)]
    applied = first.applied.at(at)
    units = Units.of(parts, axes, free, concrete=True, metric=metric, training=True).comparable(applied.couples)
    result = applied.nearest(units)
    for variables, part, moves in zip(columns, result.parts, free, strict=True):
        if moves:
            torch._foreach_copy_([variable.value for variable in variables], list(part.unbind(0)))
