"""The axis of optimizers: all that Keras ships, at rates that leave small sets in a few steps.

A `beta_2` of 0.999 is 1 in bfloat16, where Keras corrects second moments in it: the weights would
never move.
"""

from collections.abc import Callable
from typing import Any

from keras import optimizers as o


def multi(kernels_first: bool, **how: Any) -> o.Optimizer:
    """Kernels and all others under optimizers of their own, in either order."""
    by_map = o.OptimizerMap(o.SGD(1.0, **how))
    kernels = ".*(kernel|embeddings|gamma)"
    by_map[kernels if kernels_first else f"(?!{kernels}$).*"] = o.Adam(0.3, beta_2=0.9, **how)
    return o.MultiOptimizer(by_map)


OPTIMIZERS: dict[str, Callable[..., o.Optimizer]] = {
    "SGD": lambda **how: o.SGD(1.0, **how),
    "momentum": lambda **how: o.SGD(0.5, momentum=0.9, nesterov=True, **how),
    "Adam": lambda **how: o.Adam(0.3, beta_2=0.9, **how),
    "amsgrad": lambda **how: o.Adam(0.3, beta_2=0.9, amsgrad=True, **how),
    "AdamW": lambda **how: o.AdamW(0.3, beta_2=0.9, **{"weight_decay": 0.1, **how}),
    "Adamax": lambda **how: o.Adamax(0.3, beta_2=0.9, **how),
    "Nadam": lambda **how: o.Nadam(0.3, beta_2=0.9, **how),
    "RMSprop": lambda **how: o.RMSprop(0.3, momentum=0.5, centered=True, **how),
    "Adagrad": lambda **how: o.Adagrad(0.9, **how),
    "Adadelta": lambda **how: o.Adadelta(300.0, **how),
    "Adafactor": lambda **how: o.Adafactor(6.0, relative_step=False, **how),
    "Lion": lambda **how: o.Lion(0.3, **how),
    "Lamb": lambda **how: o.Lamb(0.3, beta_2=0.9, **how),
    "Ftrl": lambda **how: o.Ftrl(6.0, **how),
    "Muon": lambda **how: o.Muon(0.5, adam_beta_2=0.9, adam_weight_decay=None, **{"weight_decay": None, **how}),
    "ScheduleFreeAdamW": lambda **how: o.ScheduleFreeAdamW(0.3, beta_2=0.9, **how),
    "kernels before the rest": lambda **how: multi(True, **how),
    "the rest before kernels": lambda **how: multi(False, **how),
    "Adam in a loss scale": lambda **how: o.LossScaleOptimizer(o.Adam(0.3, beta_2=0.9, **how), initial_scale=8.0),
}
