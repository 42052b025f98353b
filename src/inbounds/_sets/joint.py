"""Sets of vectors that several weights form.

Joint: those of a layer, one vector per unit; Together: those of a layer or several as a single
unit; Tied: equal to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np

from inbounds._arrays.ops import Array
from inbounds._arrays.views import WeightLayout
from inbounds._errors import SetError, shown
from inbounds._sets.arguments import boolean, names, refused
from inbounds._sets.composite import Wrapped, contains
from inbounds._sets.custom import Custom
from inbounds._sets.equal import Equal
from inbounds._sets.set import Set, registered, with_argument
from inbounds._types import Bool, Constraint, Numbers

KERNEL_AND_BIAS = ("kernel", "bias")


class JointSet(Wrapped):
    """A set of vectors that several weights form: the inner set, of units with several parts."""

    passes_on = ("Where", "On", "Per")
    example: ClassVar[str]  # code that makes one

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
    def scales(self) -> bool:  # type: ignore[override]  # of the inner set, not of the class
        return self.inner.scales

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

    def __call__(self, w: Numbers) -> Array:
        """Always an error: one weight is not the whole unit.

        Keras' optimizers don't call it, see `constrain`.
        """
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


class AcrossLayers(JointSet):
    """A set of one vector that weights of one layer or several form."""

    whole: ClassVar[bool] = True


@registered
class Together(AcrossLayers):
    """{(w, ..., v) : all of them together in a set}: weights of one layer or several as one unit.

    A budget that the weights of a model share: `Together(FrobeniusNorm(3.0))` for the norm of all
    of them, `Together(L1Ball(50.0))` for a sum of sizes, `Together(Sparse(1000))` for a number of
    entries that are not 0. A rule gives it to all weights that its selector takes, of a layer to
    those that are trained:

        constrain(model, {"**/kernel": Together(FrobeniusNorm(3.0))})

    All weights of a model that have an equal Together are one unit, also where several rules or
    arguments of layers give it. A weight that is frozen stays, and the others keep the unit inside.

    Args:
        inner: a set of vectors. Its arrays have one entry for each entry of the unit, weight after
            weight in the order of the model, and in each weight in the order of memory.
        name: keeps apart two equal budgets of one model.

    Raises:
        SetError: `inner` is not a set, holds a Joint, a Custom or a set of matrices, or has an
            axis; `name` is not a string.

    One optimizer steps the weights where the result is to be the constrained optimum. With several,
    all weights are projected after the step of each of them, and the gradient is not reduced. After
    `load_model`, a loop of your own knows the weights that its optimizer steps, so call
    `constrain(model)` before it where others are frozen or have another optimizer. A centre is
    saved with each layer.

    Cost: that of the inner set over all the weights; nothing is copied for norms and sums.

    Source: Srebro, Rennie and Jaakkola, "Maximum-margin matrix factorization", 2005, for one bound
    on the norms of several factors; it is the inner set of the weights as one vector.

    >>> Together(MaxNorm(1)).project([[3.0, 4.0]])  # a row is all the weights
    array([[0.6, 0.8]])
    """

    example = "Together(FrobeniusNorm(3.0))"

    def __init__(self, inner: Set, name: str | None = None) -> None:
        super().__init__(inner)
        if inner.matrix:
            wrong = "Together is given a set of matrices, and its weights form a vector"
            raise SetError(wrong, f"inner={shown(inner)}", instead=self.example)
        if name is not None and not isinstance(name, str):
            raise refused("Together", "name", name, "is not a string", "name='encoder'")
        self.name = name

    def __repr__(self) -> str:
        return f"Together({self.inner!r}{'' if self.name is None else f', name={self.name!r}'})"


@registered
class Tied(AcrossLayers):
    """{(w, ..., v) : v = w, or v = w^T}: weights of one layer or several, equal entry by entry.

    `Together(Equal(labels))`, with the labels that the shapes of the weights give: an encoder and a
    decoder that is the encoder transposed, an embedding and the classifier over its tokens. Each
    weight becomes their mean, in a metric the weighted one. A list of rules takes it as it is,
    since it names its weights; a mapping, and a rules file, give it to the weights that a selector
    takes:

        tied = Tied("encoder/kernel", "decoder/kernel", transpose=True)
        constrain(model, [tied])
        constrain(model, {"*coder/kernel": tied})

    Args:
        weights: globs on the ends of the weights' paths, see `constrain`; two at least, each of
            which takes one weight.
        transpose: whether all but the first have the axes of the first in reverse.

    Raises:
        SetError: `weights` are not two or more different strings, or `transpose` is not a boolean;
            once the weights are known, their shapes don't fit each other. Of `where`, `on` and `&`:
            give `Together(Equal(labels) & ...)` for tied weights in a set.

    As for `Together`, one optimizer should step all of them. Those that are frozen can't be
    followed by the others, so that all are trained or none.

    Cost: that of `Equal`.

    Source: Inan, Khosravi and Socher, "Tying word vectors and word classifiers", 2017; the mean is
    the projection on a subspace.

    >>> Tied("encoder/kernel", "decoder/kernel").project([[1.0, 3.0]])  # an entry of each weight
    array([[2., 2.]])
    """

    example = 'Tied("encoder/kernel", "decoder/kernel")'

    def __init__(self, *weights: str, transpose: Bool = False) -> None:
        self.weights = names("Tied", "weights", weights, "strings", self.example)
        self.transpose = boolean("Tied", "transpose", transpose, "transpose=True")
        super().__init__(Equal([0] * len(weights)))

    def laid_out(self, layouts: Sequence[WeightLayout]) -> Set:
        """With labels by the shapes; all entries are apart where not all weights are known."""
        shapes = [layout.shape for layout in layouts]
        if len(shapes) < len(self.weights):
            return Together(Equal(np.arange(sum(map(math.prod, shapes)))))
        first, others = shapes[0], set(shapes[1:])
        if others != {first[::-1] if self.transpose else first}:
            fits = others == {first if self.transpose else first[::-1]}
            raise SetError(
                f"The weights of Tied don't have the same shape{', transposed' * self.transpose}",
                f"weights={self.weights}",
                where=f"weights of shape {' and '.join(map(str, shapes))}",
                instead=repr(Tied(*self.weights, transpose=not self.transpose))
                if fits
                else "weights that have as many entries along each axis",
            )
        place = np.arange(math.prod(first)).reshape(first)
        other = place.T if self.transpose else place
        return Together(Equal(np.concatenate([place.ravel(), *[other.ravel()] * (len(shapes) - 1)])))

    def rebuilt(self, members: Sequence[Set]) -> NoReturn:
        wrong = "A Tied takes no `where`, `on` or `&`: its labels follow from the shapes of its weights"
        instead = "Together(Equal([0, 1, 0, 1]) & NonNeg()), with a label for each entry of all weights"
        raise SetError(wrong, repr(self), instead=instead)

    def __and__(self, other: Any) -> NoReturn:
        self.rebuilt(())

    def __repr__(self) -> str:
        return f"Tied({', '.join(map(repr, self.weights))}{', transpose=True' * self.transpose})"
