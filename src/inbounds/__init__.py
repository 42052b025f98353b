"""inbounds keeps the weights of Keras 3 models inside the sets you choose, and shows that they are there."""

from inbounds import _backend as _backend  # imports Keras, on a backend that is installed: before all that imports it

# isort: split
from inbounds import constraints
from inbounds._attach import constrain, project, release
from inbounds._audit import audit, check
from inbounds._errors import (
    ConstraintViolation,
    FileError,
    InboundsError,
    LayoutError,
    LayoutWarning,
    PlanNotSavedWarning,
    RuleError,
    SetError,
    WeightNotMovedWarning,
)
from inbounds._fit import watch_fits
from inbounds._layout import Layout, register_layout
from inbounds._metrics import register_metric
from inbounds._monitor import Monitor
from inbounds._optax import optax_wrap
from inbounds._plan import Entry, Plan
from inbounds._pressure import Pressure, PressureRow, pressure
from inbounds._report import Report, Row
from inbounds._set import Set
from inbounds._stateless import stateless_project, stateless_reduce
from inbounds._step import watch_optimizers
from inbounds._torch_optim import project_after
from inbounds.constraints import (
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
    max_norm,
    min_max_norm,
    non_neg,
    unit_norm,
)

__version__ = "0.1.0"

__all__ = [
    "Box",
    "ConstraintViolation",
    "Custom",
    "DoublyStochastic",
    "Entry",
    "FileError",
    "Fixed",
    "FrobeniusNorm",
    "Grid",
    "Halfspace",
    "Hyperplane",
    "InboundsError",
    "Joint",
    "L1Ball",
    "Layout",
    "LayoutError",
    "LayoutWarning",
    "LowRank",
    "MaxNorm",
    "MinMaxNorm",
    "Monitor",
    "Monotone",
    "NonNeg",
    "NonPos",
    "NuclearNorm",
    "Orthogonal",
    "Plan",
    "PlanNotSavedWarning",
    "PositiveSemidefinite",
    "Pressure",
    "PressureRow",
    "Report",
    "Row",
    "RuleError",
    "Set",
    "SetError",
    "Simplex",
    "SkewSymmetric",
    "Sparse",
    "SpectralNorm",
    "SumTo",
    "Symmetric",
    "UnitNorm",
    "WeightNotMovedWarning",
    "ZeroDiagonal",
    "audit",
    "check",
    "constrain",
    "constraints",
    "max_norm",
    "min_max_norm",
    "non_neg",
    "optax_wrap",
    "pressure",
    "project",
    "project_after",
    "register_layout",
    "register_metric",
    "release",
    "stateless_project",
    "stateless_reduce",
    "unit_norm",
]

watch_optimizers()
watch_fits()
