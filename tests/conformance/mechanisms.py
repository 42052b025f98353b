"""The mechanisms of inbounds: how each is switched off, and cells that fail without it."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import keras
import pytest

import inbounds as ib
from conformance.matrix import Cell
from inbounds import Joint
from inbounds._model import layout
from inbounds._sets.scaled import Scaled
from inbounds._train import attach, decisions, fit_hooks, optimizer_hooks
from inbounds._train.step_projections import StepProjection

ALL = ("jax", "torch", "tensorflow")


@dataclass(frozen=True)
class Mechanism:
    """One mechanism.

    Attributes:
        off: switches it off.
        witnesses: cells that fail then, and pass otherwise.
        backends: those that need it.
        why: the others don't.
    """

    off: Callable[[pytest.MonkeyPatch], None]
    witnesses: list[Cell]
    backends: tuple[str, ...] = ALL
    why: str = ""


def cell(situation: str, set_name: str = "MaxNorm", optimizer: str = "Adam", layer: str = "Dense") -> Cell:
    return Cell(situation, set_name, optimizer, layer)


def nothing(*arguments, **named):
    return None


def unhooked(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Leaves a method of Keras' optimizers as it is."""
    return lambda patch: patch.delitem(optimizer_hooks.HOOKS, name)


def project_all(optimizer, count):
    optimizer_hooks.project_now(optimizer, optimizer_hooks.taken_plan(optimizer).projections, count)


def replaced(owner: object, **named: object) -> Callable[[pytest.MonkeyPatch], None]:
    def off(patch):
        for name, value in named.items():
            patch.setattr(owner, name, value)

    return off


def after_the_average(patch):
    """Projects where Keras constrains: after the average was taken, of weights not yet inside."""

    def apply_gradients(optimizer, grads, variables):
        type(optimizer)._backend_apply_gradients(optimizer, grads, variables)
        project_all(optimizer, optimizer.iterations + 1)

    patch.delitem(optimizer_hooks.HOOKS, "_backend_update_step")
    patch.setitem(optimizer_hooks.HOOKS, "_backend_apply_gradients", apply_gradients)


def each_micro_step(patch):
    """Projects after each call of `apply`, as Keras constrains."""
    hidden = optimizer_hooks.hidden_constraints

    @contextmanager
    def hidden_and_then(optimizer):
        with hidden(optimizer):
            yield
        project_all(optimizer, optimizer.iterations)

    patch.setattr(optimizer_hooks, "hidden_constraints", hidden_and_then)


def swaps_as_keras_does(patch):
    method = keras.callbacks.SwapEMAWeights._swap_variables
    (original,) = [c.cell_contents for c in method.__closure__ if c.cell_contents.__name__ == "_swap_variables"]
    patch.setattr(keras.callbacks.SwapEMAWeights, "_swap_variables", original)


def transposed_like_the_others(patch):
    axes = {"kernel": (0, 1, 2), "bias": ()}
    patch.setitem(layout._REGISTRY, keras.layers.Conv2DTranspose, lambda layer: layout.Layout(axes))


def part_by_part(patch):
    def project(self, units):
        moved = []
        for place, part in enumerate(units.parts):
            alone = replace(
                units,
                parts=(part,),
                axes=(units.axes[place],),
                movable=(units.movable[place],),
                masks=units.masks[place : place + 1],
                metric=None,
            )
            moved += self.inner.nearest(alone).parts
        return units.with_parts(moved)

    patch.setattr(Joint, "_project", project)


def always_due(patch):
    def project(self, read, count, stepped, frequency=1):
        return self.projected_values(read, count, stepped)

    patch.setattr(StepProjection, "values_when_due", project)


def never_compiled_anew(patch):
    """Neither when a plan takes effect, nor when a fit begins and finds that one has."""
    patch.setattr(attach, "_rehook", nothing)
    patch.setattr(fit_hooks, "update_compiled_constants", lambda optimizer: False)


def as_at_first(patch):
    at = Scaled.at
    patch.setattr(Scaled, "at", lambda self, step: at(self, 0))


MECHANISMS = {
    "projection when constrained": Mechanism(
        replaced(attach, _projected_entries=lambda *a, **k: []), [cell("released")]
    ),
    "projection after the update": Mechanism(
        unhooked("_backend_update_step"),
        [cell("constrain, compile, fit"), cell("train_on_batch")],
    ),
    "projection before the average": Mechanism(after_the_average, [cell("average"), cell("average", "L1Ball")]),
    "projection of an average in the weights' place": Mechanism(
        unhooked("_backend_apply_gradients"),
        [
            cell("average that overwrites", "UnitNorm"),
            cell("average that overwrites", "MaxNorm, scaled"),
            cell("average that overwrites", "Joint(L1Ball)", "the rest before kernels"),
        ],
    ),
    "projection at the end of fit": Mechanism(
        unhooked("finalize_variable_values"),
        [cell("average", "UnitNorm")],
    ),
    "begin of a fit": Mechanism(
        replaced(fit_hooks, _begin_fit=nothing),
        [cell("set outside, then fit"), cell("cloned")],
    ),
    "before an evaluation": Mechanism(
        replaced(fit_hooks.ProjectionCallback, on_test_begin=nothing),
        [cell("every epoch"), cell("every third step")],
    ),
    "end of an epoch": Mechanism(
        replaced(fit_hooks.ProjectionCallback, on_epoch_end=nothing), [cell("every epoch"), cell("every third step")]
    ),
    "swapped averages": Mechanism(
        swaps_as_keras_does,
        [
            cell("average swapped in for evaluation", "UnitNorm"),
            cell("average swapped in at an epoch's end", "UnitNorm"),
        ],
    ),
    "metric of the optimizer": Mechanism(
        replaced(decisions, optimizer_metric=lambda optimizer: None),
        [cell("at the optimum")],
    ),
    "once for each real step": Mechanism(each_micro_step, [cell("accumulation in a loop")]),
    "what another optimizer steps, given back": Mechanism(
        replaced(optimizer_hooks, _other_optimizers_variables=lambda optimizer: []),
        [cell("accumulation in a loop", "Joint(L1Ball)", "kernels before the rest")],
        ("jax",),
        "Keras computes an update in real steps only",
    ),
    "constraints hidden from Keras": Mechanism(
        replaced(optimizer_hooks, hidden_constraints=nullcontext), [cell("accumulation in a loop")]
    ),
    "hooks when an optimizer is built": Mechanism(
        replaced(optimizer_hooks, take_up=nothing),
        [cell("average", "UnitNorm"), cell("at the optimum")],
    ),
    "a step that is compiled anew": Mechanism(
        never_compiled_anew,
        [cell("every third step")],
        ("jax", "tensorflow"),
        "an optimizer looks for sets in each step",
    ),
    "axes of a transposed convolution": Mechanism(
        transposed_like_the_others, [cell("constrain, compile, fit", layer="Conv2DTranspose")]
    ),
    "a Joint as one vector": Mechanism(part_by_part, [cell("constrain, compile, fit", "Joint(MaxNorm)")]),
    "sets in the arguments of layers": Mechanism(
        replaced(attach, _set_layer_argument=nothing), [cell("saved and loaded")]
    ),
    "values of frozen weights": Mechanism(
        replaced(optimizer_hooks, _frozen_values=lambda entries: []),
        [cell("one weight frozen", "Joint(MaxNorm)")],
        ("jax",),
        "a step reads variables as they are",
    ),
    "frozen weights looked at anew": Mechanism(
        replaced(fit_hooks, update_compiled_constants=lambda optimizer: False),
        [cell("one weight frozen", "Joint(MaxNorm)")],
        ("jax",),
        "a step reads variables as they are",
    ),
    "one in so many steps": Mechanism(always_due, [cell("every third step")]),
    "a bound that follows the steps": Mechanism(as_at_first, [cell("constrain, compile, fit", "MaxNorm, scaled")]),
}

assert ib.constrain is attach.constrain  # the mechanisms of what is tested
