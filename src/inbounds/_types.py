"""Types of the arguments of public functions.

Keras is untyped, so that its layers, tensors, variables and constraints are protocols here: any
object with these attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

Leaf = TypeVar("Leaf", covariant=True)


class Tensor(Protocol):
    """An array, a tensor of a backend or a variable: what NumPy reads as an array."""

    def __array__(self) -> Any: ...


class Nested(Protocol[Leaf]):
    """A list or tuple of values, or of such lists.

    A string is none: its `__contains__` takes strings only.
    """

    def __contains__(self, item: object, /) -> bool: ...

    def __getitem__(self, index: int, /) -> Leaf | Nested[Leaf]: ...

    def __len__(self) -> int: ...


class Model(Protocol):
    """A model or layer of Keras."""

    @property
    def built(self) -> Any: ...

    @property
    def name(self) -> Any: ...

    @property
    def trainable_variables(self) -> Any: ...


class Variable(Protocol):
    """A `keras.Variable`."""

    @property
    def path(self) -> Any: ...

    def assign(self, value: Any, /) -> Any: ...


class Constraint(Protocol):
    """A set, or a constraint of Keras' own."""

    def __call__(self, w: Any, /) -> Any: ...

    def get_config(self) -> Any: ...


class TorchOptimizer(Protocol):
    """A `torch.optim.Optimizer`."""

    @property
    def param_groups(self) -> Any: ...

    def register_step_post_hook(self, hook: Any, /) -> Any: ...


class OptaxOptimizer(Protocol):
    """An `optax.GradientTransformation`."""

    @property
    def init(self) -> Any: ...

    @property
    def update(self) -> Any: ...


Bool: TypeAlias = bool | np.bool_
"""True or False, of Python or NumPy."""

Integer: TypeAlias = int | np.integer[Any]
"""An integer of Python or NumPy."""

Number: TypeAlias = float | Fraction | np.floating[Any] | np.integer[Any] | np.ndarray[tuple[()], np.dtype[Any]]
"""A real number of Python or NumPy, also as an array without axes."""

Numbers: TypeAlias = Number | Tensor | Nested[Number | Tensor]
"""A number or an array of them: lists, arrays of NumPy, tensors."""

Rows: TypeAlias = Tensor | Nested[Number | Tensor]
"""An array of numbers: lists, arrays of NumPy, tensors, variables."""

Mask: TypeAlias = Bool | Tensor | Nested[Bool | Tensor]
"""An array of booleans."""

MaskName: TypeAlias = Literal["causal", "not causal", "banded", "not banded"]
"""A mask by the inputs and units of a layer."""

Inputs: TypeAlias = Integer | Sequence[Integer] | np.ndarray[Any, Any]
"""An index, or several."""

Axis: TypeAlias = Integer | Sequence[Integer] | None
"""An axis, a list of axes, or None."""

Center: TypeAlias = Numbers | Literal["current"] | None
"""Numbers, "current", or None."""

Kind: TypeAlias = Literal["units", "inputs", "weight", "heads", "gates", "window"]
"""A kind of units of a layer."""

Step: TypeAlias = Number | Tensor
"""How many steps have been taken: a number or a tensor."""

Metric: TypeAlias = Literal["auto", "optimizer", "euclidean"]
"""The norm in which "nearest" is meant in training."""

Gradient: TypeAlias = Literal["reduced", "full"]
"""What the optimizer sees of a gradient."""

Latent: TypeAlias = bool | Literal["auto"]
"""Whether the optimizer steps latent weights; "auto": where small steps would be lost without."""

Every: TypeAlias = Integer | Literal["epoch"]
"""A number of steps or batches, or "epoch"."""

Cadence: TypeAlias = int | Literal["epoch"]
"""`Every` once it is checked."""

Data: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""An array, or a list or dictionary of arrays, as for `model.evaluate`."""


class Tie(Protocol):
    """A `Tied`, which is a rule by itself."""

    @property
    def transpose(self) -> bool: ...


Selector: TypeAlias = str | type[Any] | Callable[[Any, Any], Any] | Variable
"""A glob or name, a layer or a class of layers, a callable(layer, variable), or a variable."""

OfWeight: TypeAlias = Callable[[Any], Any] | type[Any] | str
"""A set or another callable from tensor to tensor, or the class or name of a set that takes no
arguments."""

Rule: TypeAlias = OfWeight | Mapping[str, OfWeight]
"""What a selector is given: a set, or for a layer a mapping from the names of its weights to
sets."""

# A type variable, so that mypy infers the type of the argument before it compares it:
# dict[str, Rule] is no dict[Selector, Rule]. Of values of different classes mypy infers object or
# Collection, which are therefore accepted.
Rules = TypeVar(
    "Rules",
    bound=Mapping[Any, Rule]
    | Sequence[tuple[Selector, Rule] | Tie]
    | dict[Any, object]
    | dict[Any, Collection[Any]]
    | list[tuple[Any, object]]
    | list[tuple[Any, Collection[Any]]]
    | list[Collection[Any]]
    | None,
)
"""A mapping from selectors to sets, a list of such pairs and of `Tied`, or None."""
