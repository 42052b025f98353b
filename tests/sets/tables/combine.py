"""Rows of the table: sets made of other things, Joint and Custom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras

import inbounds as ib
from sets.case import Case
from sets.tables.entries import HIGHS, LOWS, bounds
from sets.tables.norms import norms


def joint(case: Case) -> Case:
    """The same for the rows of several weights together."""
    return replace(case, set=ib.Joint(case.set))


@keras.saving.register_keras_serializable("tests")
def clip01(w: Any) -> Any:
    return keras.ops.clip(w, 0, 1)


SETS = {
    "Joint-Box-arrays": joint(bounds(ib.Box(LOWS, HIGHS), LOWS, HIGHS)),
    "Joint-MaxNorm": joint(norms(ib.MaxNorm(1), 0, 1)),
    "Together-UnitNorm": replace(norms(ib.UnitNorm(), 1, 1), set=ib.Together(ib.UnitNorm())),
    "Joint-FrobeniusNorm": joint(norms(ib.FrobeniusNorm(2), 0, 2, whole=True)),
    "Custom": replace(
        bounds(ib.Custom(clip01), 0, 1),
        program=None,
        unseen=4 * 2.0**-23 if keras.backend.backend() == "jax" else 0,  # its function is of Keras' operations
    ),
}
