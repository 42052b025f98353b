"""On TensorFlow, large weights are reduced and projected by programs that XLA compiles.

Keras has XLA compile whole steps on JAX, and of TensorFlow on GPUs. On CPUs TensorFlow runs each
operation by itself, in a pass over memory of its own. A program takes a third of their time, and is
traced once for all weights of one shape with equal sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import Array, dense, namespace, program
from inbounds._arrays.units import Units
from inbounds._sets.composite import contains
from inbounds._sets.intersection import AllOf
from inbounds._sets.set import Set
from inbounds._train.optimizers import in_tensorflow_strategy
from inbounds._types import Step

SMALLEST = 1 << 15  # units with fewer numbers aren't worth the start of a program


def nearest(applied: Set, units: Units) -> Units:
    """The units at their nearest points in a set, in their metric."""
    return applied.nearest(units.comparable(applied.couples_units))


def reduced(applied: Set, units: Units, gradient: Units) -> Units:
    """What a set leaves of a gradient at some units."""
    return applied.reduced(units, gradient)


def run(function: Callable[..., Units], applied: Set, count: Step, *units: Units) -> Units:
    """One of these functions of a set after so many steps, by a program where that is worth it."""
    first = units[0]
    if not _is_compiled(applied, first):
        return function(applied.at(count), *units)
    static = function, applied, first.axes, first.movable, first.dtype, first.training
    parts = [tuple(map(dense, one.parts)) for one in units]
    return first.with_parts(program(_parts, static)(parts, first.metric))


def _is_compiled(applied: Set, units: Units) -> bool:
    """Whether the set is the same at all steps and takes few sums and maps, on one device.

    XLA takes ten seconds to compile the search for several multipliers, of intersections.
    """
    if keras.backend.backend() != "tensorflow" or namespace(units.parts[0]) is np:
        return False
    if not applied.has_normal_form or contains(applied, (AllOf,)) or applied.changes:
        return False
    shapes = [tuple(part.shape) for part in units.parts]
    known = not any(None in shape for shape in shapes)  # TensorFlow doesn't know how many rows a batch names
    return known and sum(map(math.prod, shapes)) >= SMALLEST and not in_tensorflow_strategy()


def _parts(parts: list[tuple[Array, ...]], metric: tuple[Array, ...] | None, static: Any) -> tuple[Array, ...]:
    """The parts of what a function of a set makes of units with these parts."""
    function, applied, axes, movable, dtype, training = static
    unmasked = (None,) * len(axes)
    units = [Units(tuple(one), axes, movable, dtype, masks=unmasked, metric=metric, training=training) for one in parts]
    result: Units = function(applied, *units)
    return result.parts
