"""The public mirror of `keras.constraints`: code written for Keras needs only its import line changed."""

from __future__ import annotations

import difflib
from typing import Any

import keras
from keras.constraints import Constraint, deserialize, serialize

from inbounds._errors import SetError, explain
from inbounds._sets.algebra import Intersection, On, Where
from inbounds._sets.combine import Custom, Joint
from inbounds._sets.entries import Box, Fixed, NonNeg, NonPos
from inbounds._sets.grid import Grid
from inbounds._sets.matrices import DoublyStochastic, SkewSymmetric, Symmetric, ZeroDiagonal
from inbounds._sets.norms import FrobeniusNorm, MaxNorm, MinMaxNorm, UnitNorm
from inbounds._sets.order import Monotone
from inbounds._sets.scaled import Scaled
from inbounds._sets.sparsity import Sparse
from inbounds._sets.spectral import LowRank, NuclearNorm, Orthogonal, PositiveSemidefinite, SpectralNorm
from inbounds._sets.sums import Halfspace, Hyperplane, L1Ball, Simplex, SumTo

__all__ = [
    "Box",
    "Constraint",
    "Custom",
    "DoublyStochastic",
    "Fixed",
    "FrobeniusNorm",
    "Grid",
    "Halfspace",
    "Hyperplane",
    "Joint",
    "L1Ball",
    "LowRank",
    "MaxNorm",
    "MinMaxNorm",
    "Monotone",
    "NonNeg",
    "NonPos",
    "NuclearNorm",
    "Orthogonal",
    "PositiveSemidefinite",
    "Simplex",
    "SkewSymmetric",
    "Sparse",
    "SpectralNorm",
    "SumTo",
    "Symmetric",
    "UnitNorm",
    "ZeroDiagonal",
    "deserialize",
    "get",
    "max_norm",
    "min_max_norm",
    "non_neg",
    "serialize",
    "unit_norm",
]

max_norm = MaxNorm
min_max_norm = MinMaxNorm
non_neg = NonNeg
unit_norm = UnitNorm

SETS = {
    cls.__name__: cls
    for cls in (
        Box,
        Custom,
        DoublyStochastic,
        Fixed,
        FrobeniusNorm,
        Grid,
        Halfspace,
        Hyperplane,
        Joint,
        L1Ball,
        LowRank,
        MaxNorm,
        MinMaxNorm,
        Monotone,
        NonNeg,
        NonPos,
        NuclearNorm,
        Orthogonal,
        PositiveSemidefinite,
        Simplex,
        SkewSymmetric,
        Sparse,
        SpectralNorm,
        SumTo,
        Symmetric,
        UnitNorm,
        ZeroDiagonal,
    )
}
"""Every set by its name."""

MADE = {"a & b": Intersection, "a.where(mask)": Where, "a.on(inputs=...)": On, "a.scaled(schedule)": Scaled}
"""What operators on sets make, by the code that makes it."""

_BY_NAME = {**SETS, "max_norm": MaxNorm, "min_max_norm": MinMaxNorm, "non_neg": NonNeg, "unit_norm": UnitNorm}


def get(identifier: Any) -> Any:
    """The constraint that is meant: by name, by config, as a class, or as it is.

    Args:
        identifier: None, the name of a set (`"MaxNorm"` or, as in Keras, `"max_norm"`), a config, a class or a
            callable.

    Raises:
        SetError: no set has that name, or the set needs arguments.
    """
    if isinstance(identifier, str):
        if identifier not in _BY_NAME:
            near = difflib.get_close_matches(identifier, _BY_NAME, n=3) or sorted(SETS)
            raise SetError(
                explain(
                    "A set is named as it is in inbounds.constraints",
                    f"identifier={identifier!r}",
                    instead=" or ".join(near),
                )
            )
        identifier = _BY_NAME[identifier]
    if isinstance(identifier, type) and issubclass(identifier, Constraint):
        try:
            return identifier()
        except TypeError as error:
            raise SetError(
                explain(
                    f"{identifier.__name__} needs arguments ({error})",
                    f"identifier={identifier!r}",
                    instead=f"inbounds.{identifier.__name__}(...)",
                )
            ) from error
    return keras.constraints.get(identifier)
