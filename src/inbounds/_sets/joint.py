"""Sets of vectors that several weights form; Joint: those of a layer, one vector per unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from inbounds._arrays.ops import Array
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import names
from inbounds._sets.composite import Wrapped, contains
from inbounds._sets.custom import Custom
from inbounds._sets.set import Set, registered, with_argument
from inbounds._types import Constraint, Inputs, Integer, Kind, Mask, MaskName, Numbers

KERNEL_AND_BIAS = ("kernel", "bias")


class JointSet(Wrapped):
    """A set of vectors that several weights form: it is the inner one, of units that have several parts."""

    example: ClassVar[str]  # code that makes one
    across_layers: ClassVar[bool] = False
    """Whether all weights of a model that are given it form one unit; else those of each layer form theirs."""

    def __init__(self, inner: Set) -> None:
        name = type(self).__name__
        if not isinstance(inner, Set) or contains(inner, (JointSet, Custom)):
            wrong = f"{name} is not given a set of vectors, but a class, a callable, a Custom or a Joint"
            raise SetError(wrong, f"inner={shown(inner)}", instead=self.example)
        if inner.axis is not None:
            wrong = f"A set in a {name} has an `axis`, and the units of a {name} come from the layer"
            instead = "leave `axis` out: the layer knows its units"
            if "axis" in inner.argument_names():
                instead = f"{name}({with_argument(inner, 'axis', None)!r})"
            raise SetError(wrong, f"inner={shown(inner)}", instead=instead)
        self.members = (inner,)

    @property
    def inner(self) -> Set:
        """The set in it."""
        return self.set

    def __and__(self, other: Constraint) -> Set:
        """The intersection with another one of the same weights."""
        name = type(self).__name__
        if not isinstance(other, type(self)) or other.rebuilt([self.inner]) != self:
            wrong = f"A {name} can't meet what is no {name} of the same weights"
            raise SetError(wrong, shown(other), where=f"{self!r} & ...", instead=f"{name}(a & b)")
        return self.rebuilt([self.inner & other.inner])

    def where(self, mask: Mask | MaskName, width: Integer | None = None) -> Set:
        """The set for those entries of each vector only that a mask marks."""
        return self.rebuilt([self.inner.where(mask, width)])

    def on(self, inputs: Inputs) -> Set:
        """The set for those weights only that come from some inputs of a layer; a bias comes from none."""
        return self.rebuilt([self.inner.on(inputs)])

    def per(self, kind: Kind) -> Set:
        """The set of vectors that the entries of each head, gate or other kind of unit form in all the weights."""
        return self.rebuilt([self.inner.per(kind)])

    def __call__(self, w: Numbers) -> Array:
        """Always an error: one weight is not the whole unit. Keras' optimizers don't come here, see `constrain`."""
        wrong = f"A {type(self).__name__} can't be applied to one weight: it holds for several at once"
        loops = "inbounds.project(model) in loops without a Keras optimizer"
        instead = f"inbounds.constrain(model) once the model is built; {loops}"
        raise SetError(wrong, f"w={getattr(w, 'path', type(w).__name__)}", where=repr(self), instead=instead)


@registered
class Joint(JointSet):
    """{(w, b) : w and b together in a set}: several weights of a layer, one vector per unit.

    A kernel's column (or filter) and its bias entry are one vector, and the set holds for that
    vector. Give the same Joint to both arguments of a layer, or use it in a rule for layers:

        j = Joint(MaxNorm(1.0))
        keras.layers.Dense(64, kernel_constraint=j, bias_constraint=j)

    Where the layer has no bias, or another rule holds for it, the kernel carries the set alone. A
    weight that is frozen stays, and the others keep the vector inside.

    Args:
        inner: a set of vectors.
        weights: the names of the weights in the layer that form a unit.

    Raises:
        SetError: `inner` is not a set, is itself a Joint or a Custom, or has an axis; `weights` are
            not different names.

    Cost: that of the inner set over both weights; nothing is copied or transposed.

    Source: an open wish of Keras' users since 2021, issue 14954, for the norm of kernel and bias
    together.

    >>> Joint(MaxNorm(1)).project([[3.0, 4.0]])  # rows are the joint vectors
    array([[0.6, 0.8]])
    """

    example = "Joint(MaxNorm(1.0))"

    def __init__(self, inner: Set, weights: Sequence[str] = KERNEL_AND_BIAS) -> None:
        super().__init__(inner)
        self.weights = names("Joint", "weights", weights, "names", "Joint(MaxNorm(1.0), weights=('kernel', 'bias'))")

    def __repr__(self) -> str:
        names = "" if self.weights == KERNEL_AND_BIAS else f", weights={self.weights!r}"
        return f"Joint({self.inner!r}{names})"
