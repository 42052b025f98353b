"""What inbounds keeps on a Keras optimizer: one attribute, which holds a `TakenPlan`.

And a variable knows the optimizer that has taken it up last, by a weak reference in an attribute.

Latent weights are variables of the optimizer like its slots, with the weight's dtype and layout,
and are saved, see `optimizer_hooks`. For a Monitor there are variables with what steps measure,
which aren't saved, and are listed on JAX, where a step returns only what is listed.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from inbounds._arrays.ops import Array, dtype_of
from inbounds._errors import RuleError
from inbounds._model.plan import Entry
from inbounds._train.attached_sets import AttachedSet
from inbounds._train.optimizers import in_stateless_scope, steppers_of, with_inner
from inbounds._train.step_projections import StepProjection
from inbounds._train.weight_access import has_lost_value

_ATTRIBUTE = "_inbounds"  # of an optimizer: its `TakenPlan`; of a variable: the `_Reference` to its optimizer


@dataclass(eq=False)
class TakenPlan:
    """A plan as an optimizer has taken it up."""

    # How the steps treat each set, and what that was decided from.
    projections: list[StepProjection] = field(default_factory=list)
    signature: Any = None
    # Frozen weights with their values, which a compiled step of JAX holds.
    frozen_values: list[tuple[Any, Any]] = field(default_factory=list)
    # The latent weights, by the index of their variable in the optimizer.
    latents: dict[int, Any] = field(default_factory=dict)
    # Those of a file whose sets are not there yet: `constrain` after loading takes them.
    loaded_latents: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    # What steps measure, by a name of `MEASURES`: a variable once the optimizer is built.
    measures: dict[str, Any] = field(default_factory=dict)
    # Averages that were projected in the model's place, with their own values.
    averages: list[tuple[Any, Any]] = field(default_factory=list)
    # The constraints taken off the variables during a step, so that Keras calls none, and the
    # threads within a step: a strategy of TensorFlow runs it in one for each replica.
    hidden: list[tuple[Any, AttachedSet]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    # A weak reference to the model whose fits have run it, and not a loop of the user's own.
    fits_of: Any = None

    @property
    def entries(self) -> list[Entry]:
        return [entry for projection in self.projections for entry in projection.entries]

    def value_of(self, variable: Any) -> Array:
        """The value of a variable within a step.

        Of a frozen one that a fit on JAX has emptied, it is that from before.
        """
        if keras.backend.backend() == "torch":
            return variable.value
        frozen = next((value for frozen, value in self.frozen_values if frozen is variable), None)
        value = variable.value if frozen is None or not has_lost_value(variable) else frozen
        return keras.ops.convert_to_tensor(value, dtype=dtype_of(variable))


def taken_plan(optimizer: Any) -> TakenPlan:
    """What an optimizer has taken up; at first an empty plan."""
    if _ATTRIBUTE not in vars(optimizer):
        vars(optimizer)[_ATTRIBUTE] = TakenPlan()  # TensorFlow tracks what setattr sets
    return vars(optimizer)[_ATTRIBUTE]  # type: ignore[no-any-return]  # an attribute that Keras doesn't know


def optimizers_stepping(model: Any, variables: Sequence[Any]) -> list[Any]:
    """The optimizers of a model that step some of the variables.

    If there are none, those that aren't built yet: of the compiled optimizer if any, else all. If
    the model holds none, those that have stepped the variables last.
    """
    steppers, ids = steppers_of(model), set(map(id, variables))
    stepping = [optimizer for optimizer in steppers if ids & set(map(id, optimizer._trainable_variables))]
    unbuilt = [optimizer for optimizer in steppers if not optimizer.built]
    compiled = set(map(id, with_inner(*filter(None, [getattr(model, "optimizer", None)]))))
    of_compiled = [optimizer for optimizer in unbuilt if id(optimizer) in compiled]
    last = [one for one in _last_steppers(variables) if isinstance(one, keras.optimizers.Optimizer)]
    return stepping or of_compiled or unbuilt or last


class _Reference(weakref.ref[Any]):
    """A weak reference to an optimizer, copied and pickled as None: a copied variable has none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def remember_optimizer(optimizer: Any, variables: Iterable[Any]) -> None:
    """Notes the optimizer, or the hook on one of `torch.optim`, that steps some variables."""
    for variable in variables:
        if isinstance(variable, keras.Variable):  # a loop may give values that no layer is known to own
            vars(variable)[_ATTRIBUTE] = _Reference(optimizer)


def _last_steppers(variables: Iterable[Any]) -> list[Any]:
    """The living ones that were noted for some variables last, each once."""
    references = filter(None, (vars(variable).get(_ATTRIBUTE) for variable in variables))
    found = (reference() for reference in references)
    return list({id(optimizer): optimizer for optimizer in found if optimizer is not None}.values())


def steps_taken(model: Any, entry: Entry) -> int:
    """The step count of an entry's optimizer, if its set changes with the steps; else 0."""
    if not entry.set.changes:
        return 0
    own = [optimizer for optimizer in optimizers_stepping(model, entry.variables) if optimizer.built]
    if not own:  # the compiled one isn't used, or is new in the place of one that fits have run
        fits = ((one, taken_plan(one).fits_of) for one in _last_steppers(entry.variables))
        own = [optimizer for optimizer, of in fits if of is None or of() is not model]
    return int(own[0].iterations) if own else 0


def add_latents(optimizer: Any, projections: Iterable[StepProjection]) -> None:
    """Adds the latent weights that projections ask for to a built optimizer.

    They are those of a file, or NaN until the optimizer's first step.
    """
    latents, loaded = taken_plan(optimizer).latents, taken_plan(optimizer).loaded_latents
    for index, variable in without_latents(optimizer, projections):
        if in_stateless_scope():
            wrong = "Latent weights can't be added to an optimizer within a function of its variables' values"
            where = f"{type(optimizer).__name__}, which was built before the set was there"
            instead = "constrain(model, rules) before optimizer.build(variables), or latent=False"
            raise RuleError(wrong, f"latent=True or 'auto' for {variable.path}", where=where, instead=instead)
        value = loaded.pop(index, None)
        fits = value is not None and value.shape == tuple(variable.shape)
        start = keras.initializers.Constant(value if fits else math.nan)
        latents[index] = optimizer.add_variable_from_reference(variable, "latent", start)


def without_latents(optimizer: Any, projections: Iterable[StepProjection]) -> list[tuple[int, Any]]:
    """The variables that lack the latent weights asked for, with their indices in the optimizer."""
    wanted = [variable for one in projections if one.latent for variable in one.movable_variables]
    indexed = ((optimizer._get_variable_index(variable), variable) for variable in wanted)
    return [(index, variable) for index, variable in indexed if index not in taken_plan(optimizer).latents]


def latent_of(optimizer: Any, variable: Any) -> Any:
    """The variable with the latent weights of a variable; None if it has none."""
    return taken_plan(optimizer).latents.get(optimizer._get_variable_index(variable))


MEASURES: dict[str, Callable[[Any], int]] = {
    "gradients": lambda optimizer: 2,  # the squared norms of the reduced gradient and of the full one
    "moves": lambda optimizer: len(optimizer._trainable_variables),  # squared, of each one by its projection
}
"""What the steps of an optimizer can measure, and how many numbers that is."""


def measure(optimizer: Any, name: str) -> None:
    """Makes the steps of an optimizer measure something from now on, or once it is built."""
    taken_plan(optimizer).measures.setdefault(name, None)
    if optimizer.built:
        add_measures(optimizer)


def add_measures(optimizer: Any) -> None:
    """Adds the variables to a built optimizer that what it measures needs and that it hasn't."""
    taken = taken_plan(optimizer)
    for name in [name for name, variable in taken.measures.items() if variable is None]:
        nan = np.full(MEASURES[name](optimizer), np.nan, "float32")
        with keras.name_scope(optimizer.name):
            taken.measures[name] = keras.Variable(nan, trainable=False, name=f"squares_of_{name}")
        if keras.backend.backend() == "jax":
            optimizer._variables.append(taken.measures[name])
        taken.signature = taken.signature if taken.projections else None  # so that the next step is hooked
