"""Keeps the weights of Keras 3 models inside the sets you choose, and shows that they are there."""

from inbounds import _backend as _backend  # imports Keras, on a backend that is installed: before all that imports it

# isort: split
from inbounds import constraints, testing
from inbounds._errors import (
    ConstraintViolation,
    FileError,
    InboundsError,
    LayoutError,
    LayoutWarning,
    NotFiniteWarning,
    PlanNotSavedWarning,
    RuleError,
    SetError,
    WeightNotMovedWarning,
)
from inbounds._model.layout import Layout, register_layout
from inbounds._model.plan import Entry, Plan
from inbounds._model.weights import hook_layers
from inbounds._report.audit import audit, check
from inbounds._report.monitor import Monitor
from inbounds._report.plots import plot_set
from inbounds._report.pressure import Pressure, PressureRow, pressure
from inbounds._report.report import Report, Row
from inbounds._sets import public as _public
from inbounds._sets.custom import SupportSet
from inbounds._sets.public import *  # noqa: F403  # all that its `__all__` lists
from inbounds._sets.set import Set
from inbounds._train.attach import constrain, project, release
from inbounds._train.fit_hooks import hook_fits
from inbounds._train.metrics import register_metric
from inbounds._train.optimizer_hooks import hook_optimizers
from inbounds._train.stateless import optax_wrap, stateless_project, stateless_reduce
from inbounds._train.torch_optim import project_after
from inbounds._version import __version__ as __version__

__all__ = [
    "ConstraintViolation",
    "Entry",
    "FileError",
    "InboundsError",
    "Layout",
    "LayoutError",
    "LayoutWarning",
    "Monitor",
    "NotFiniteWarning",
    "Plan",
    "PlanNotSavedWarning",
    "Pressure",
    "PressureRow",
    "Report",
    "Row",
    "RuleError",
    "Set",
    "SetError",
    "SupportSet",
    "WeightNotMovedWarning",
    "audit",
    "check",
    "constrain",
    "constraints",
    "optax_wrap",
    "plot_set",
    "pressure",
    "project",
    "project_after",
    "register_layout",
    "register_metric",
    "release",
    "stateless_project",
    "stateless_reduce",
    "testing",
]
__all__ += _public.__all__

hook_layers()
hook_optimizers()
hook_fits()
