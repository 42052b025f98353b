"""Together: weights of one layer or several as a single unit."""

from __future__ import annotations

from inbounds._errors import SetError, shown
from inbounds._sets.composite import contains
from inbounds._sets.joint import JointSet
from inbounds._sets.matrices import MatrixSet
from inbounds._sets.set import Set, registered


@registered
class Together(JointSet):
    """{(w, ..., v) : all of them together in a set}: weights of one layer or several as a single unit.

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
    all weights are projected after the step of each of them, and the plan says that the gradient is
    not reduced. After `load_model`, `fit` and `constrain` know all weights of the model; a loop of
    your own knows those that its optimizer steps, so call `constrain(model)` before it where some
    are frozen or have another optimizer. A centre is saved with each of the layers.

    Cost: that of the inner set over all the weights; nothing is copied for norms and sums.

    Source: Srebro, Rennie and Jaakkola, "Maximum-margin matrix factorization", 2005, for one bound
    on the norms of several factors; it is the inner set of the weights as one vector.

    >>> Together(MaxNorm(1)).project([[3.0, 4.0]])  # a row is all the weights
    array([[0.6, 0.8]])
    """

    example = "Together(FrobeniusNorm(3.0))"

    def __init__(self, inner: Set, name: str | None = None) -> None:
        super().__init__(inner)
        if contains(inner, (MatrixSet,)):
            raise SetError(
                "Together is given a set of matrices, and its weights form a vector",
                f"inner={shown(inner)}",
                instead=self.example,
            )
        if name is not None and not isinstance(name, str):
            raise SetError("`name` of Together is not a string", f"name={shown(name)}", instead="name='encoder'")
        self.name = name

    def __repr__(self) -> str:
        return f"Together({self.inner!r}{'' if self.name is None else f', name={self.name!r}'})"
