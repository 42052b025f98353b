"""What optimizers save: their own variables as without inbounds, and latent weights beside them.

Latent weights have names of their own in the file, so that one with them and one without load into
any optimizer. The norms of gradients aren't saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from inbounds._train.assignments import assign
from inbounds._train.optimizers import with_inner
from inbounds._train.taken_plans import taken_plan

_LATENT = "latent"
"""What the names of latent weights in a file begin with; Keras' own are numbers."""


def saving_own_variables(save: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Wraps an optimizer's `save_own_variables`: saves its latent weights, and skips the other added variables."""

    def wrapped(self: Any, store: Any) -> None:
        with _added_variables_hidden(self):
            save(self, store)
        for index, latent in taken_plan(self).latents.items():
            store[f"{_LATENT}{index}"] = keras.ops.convert_to_numpy(latent)

    return wrapped


def loading_own_variables(load: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Wraps an optimizer's `load_own_variables` likewise. Latent weights that the file lacks start anew."""

    def wrapped(self: Any, store: Any) -> None:
        stored = {key: store[key] for key in list(store.keys())}  # a store is no mapping
        with _added_variables_hidden(self):
            load(self, {key: value for key, value in stored.items() if not key.startswith(_LATENT)})
        for index, latent in taken_plan(self).latents.items():
            value = stored.get(f"{_LATENT}{index}")
            fits = value is not None and tuple(value.shape) == tuple(latent.shape)
            assign([(latent, value if fits else np.full(latent.shape, np.nan))])

    return wrapped


@contextmanager
def _added_variables_hidden(optimizer: Any) -> Iterator[None]:
    """A context in which an optimizer, and those inside it, list none of the added variables."""
    lists = [(vars(one), one._variables) for one in with_inner(optimizer)]
    for (attributes, own), one in zip(lists, with_inner(optimizer), strict=True):
        taken = taken_plan(one)
        ours = [taken.gradient_norms, *taken.latents.values()]
        attributes["_variables"] = [variable for variable in own if not any(variable is one for one in ours)]
    try:
        yield
    finally:
        for attributes, own in lists:
            attributes["_variables"] = own
