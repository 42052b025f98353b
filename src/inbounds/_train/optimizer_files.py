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

_LATENT = "latent"  # what the names of latent weights in a file begin with; Keras' own are numbers


def save_own_variables(save: Callable[[Any, Any], None], optimizer: Any, store: Any) -> None:
    """Saves an optimizer's variables and its latent weights, but none of the other variables added to it."""
    with _added_variables_hidden(optimizer):
        save(optimizer, store)
    for index, latent in taken_plan(optimizer).latents.items():
        store[f"{_LATENT}{index}"] = keras.ops.convert_to_numpy(latent)


def load_own_variables(load: Callable[[Any, Any], None], optimizer: Any, store: Any) -> None:
    """Loads an optimizer's variables and its latent weights, which start anew where the file lacks them."""
    stored = {key: store[key] for key in list(store.keys())}  # a store is no mapping
    with _added_variables_hidden(optimizer):
        load(optimizer, {key: value for key, value in stored.items() if not key.startswith(_LATENT)})
    for index, latent in taken_plan(optimizer).latents.items():
        value = stored.get(f"{_LATENT}{index}")
        fits = value is not None and tuple(value.shape) == tuple(latent.shape)
        assign([(latent, value if fits else np.full(latent.shape, np.nan))])


@contextmanager
def _added_variables_hidden(optimizer: Any) -> Iterator[None]:
    """A context in which an optimizer, and those inside it, list none of the added variables."""
    optimizers = with_inner(optimizer)
    lists = [one._variables for one in optimizers]
    for one in optimizers:
        taken = taken_plan(one)
        ours = [taken.gradient_norms, *taken.latents.values()]
        vars(one)["_variables"] = [v for v in one._variables if not any(v is our for our in ours)]
    try:
        yield
    finally:
        for one, variables in zip(optimizers, lists, strict=True):
            vars(one)["_variables"] = variables
