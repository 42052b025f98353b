"""Trial: one model with one set under one optimizer, what it goes through, and what was seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import inbounds as ib
from conformance.layers import CLASSES, Kind
from conformance.sets import Held

BATCH = 4
BATCHES = 6
"""Enough steps for one to lead outside."""

SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance of 1 from the next number."""


@dataclass(frozen=True)
class Moment:
    """What the held weights were at one moment.

    Attributes:
        name: "step", "evaluation", "epoch", "end"... what had just happened.
        step: how many steps the optimizer had taken.
        rows: for each group of weights, one unit a row.
        spacing: of the weights' dtype.
    """

    name: str
    step: int
    rows: list[np.ndarray]
    spacing: float


@dataclass
class Trial:
    """Makes, constrains, compiles and fits models, and looks at their held weights meanwhile.

    Attributes:
        held: the set.
        kind: the layer.
        make_optimizer: the optimizer.
        reaches: whether some step is to end on the boundary; an average of weights may not.
        folder: for files.
        moments: what was seen since the model was last looked at as a start.
        start: what the held weights were then.
        moves: whether some weight is to move.
        fits: how many there have been; the next has other classes, so that weights leave an end of
            the set.
        loose: the names of the moments at which weights may be outside.
    """

    held: Held
    kind: Kind
    make_optimizer: Callable[..., keras.optimizers.Optimizer]
    reaches: bool
    folder: Path
    moments: list[Moment] = field(default_factory=list)
    start: Moment | None = None
    moves: bool = True
    fits: int = 0
    loose: set[str] = field(default_factory=set)

    # What is done.

    def model(self, **how: Any) -> keras.Model:
        return self.kind.model(**how)

    def with_arguments(self) -> keras.Model:
        """A model whose layer was given the set as arguments."""
        names = self.kind.joint_arguments if self.held.joint else self.kind.arguments
        return self.model(given=dict.fromkeys(names, self.held.make()))

    def constrain(self, model: keras.Model, other: ib.Set | None = None, **how: Any) -> ib.Plan:
        """Puts the set, or another for the same units, in force."""
        chosen = self.held.make() if other is None else other
        if self.held.joint:
            return ib.constrain(model, {layer_of(model): chosen if other is None else ib.Joint(other)}, **how)
        return ib.constrain(model, dict.fromkeys(self.kind.weights, chosen), **how)

    def compile(self, model: keras.Model, optimizer: Any = None, **how: Any) -> keras.Model:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(self.make_optimizer() if optimizer is None else optimizer, loss, **how)
        return model

    def ready(self, *, optimizer: Any = None, **how: Any) -> keras.Model:
        """A model that is compiled and constrained, and looked at as it starts."""
        model = self.compile(self.model(), optimizer, **how)
        self.constrain(model)
        self.begin(model)
        return model

    def fit(
        self,
        model: keras.Model,
        *,
        epochs: int = 1,
        batches: int = BATCHES,
        callbacks: Sequence[Any] = (),
        evaluated: bool = False,
        **how: Any,
    ) -> keras.Model:
        """A fit that looks at the weights after each step and epoch and before each evaluation."""
        x, y = self.kind.data(BATCH * batches)
        y = (y + self.fits) % CLASSES
        self.fits += 1
        if evaluated:
            how["validation_data"] = (x[:BATCH], y[:BATCH])
        watch = Watch(self)
        model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, watch], **how)
        return model

    def put_outside(self, model: keras.Model) -> list[np.ndarray]:
        """Values for `set_weights` in which the held weights are outside."""
        random, held = np.random.default_rng(5), {id(v) for group in self.variables(model) for v, _ in group}
        return [
            random.normal(0, 3, value.shape).astype(value.dtype) if id(variable) in held else value
            for variable, value in zip(model.weights, model.get_weights(), strict=True)
        ]

    # What is seen.

    def begin(self, model: keras.Model) -> keras.Model:
        """From here on the weights have to move, and to be inside."""
        self.moments.clear()
        self.start = self.seen(model, "start")
        self.moments.append(self.start)
        return model

    def look(self, model: keras.Model, name: str, instead: Mapping[int, Any] | None = None) -> None:
        self.moments.append(self.seen(model, name, instead))

    def seen(self, model: keras.Model, name: str, instead: Mapping[int, Any] | None = None) -> Moment:
        """The held weights as they are, or what stands by their ids in their place."""
        groups = [[((instead or {}).get(id(v), v), axes) for v, axes in group] for group in self.variables(model)]
        rows = [np.concatenate([laid(variable, axes) for variable, axes in group], axis=1) for group in groups]
        return Moment(name, steps_of(model), rows, SPACING[layer_of(model).variable_dtype])

    def variables(self, model: keras.Model) -> list[list[tuple[Any, tuple[int, ...]]]]:
        """The held weights by groups, each with the axes of its units."""
        return [
            [(ending(model, end), axes) for end, axes in group.items()] for group in self.kind.groups(self.held.joint)
        ]

    def inside(self, moment: Moment) -> bool:
        """Within rounding; an average adds that of each of its terms."""
        spacing = moment.spacing * (4 if moment.name == "average" else 1)
        return all(self.held.looks(rows, moment.step, spacing)[0].all() for rows in moment.rows)

    def named(self, *names: str) -> list[Moment]:
        return [moment for moment in self.moments if moment.name in names]

    # What has to be.

    def check(self, model: keras.Model) -> None:
        """Asserts that the weights were inside whenever they had to be, by two accounts.

        At least one step must have led outside.
        """
        for _ in range(12):
            if model.compiled and self.moves and self.reaches and not any(self.driven(m).any() for m in self.moments):
                self.fit(model)  # on, with the same classes, until a step leads outside
                self.fits -= 1
        self.look(model, "end")
        assert self.start is not None
        outside = [(moment.name, moment.step) for moment in self.moments if not self.inside(moment)]
        wrong = [(name, step) for name, step in outside if name not in self.loose]
        assert not wrong, f"outside after {wrong}"
        report = ib.audit(model)
        assert report.ok, f"the audit says otherwise:\n{report}"
        later = self.moments[1:]
        assert not self.moves or any(self.moved(moment).any() for moment in later), "no weight moved"
        if self.moves and self.reaches:
            assert any(self.driven(moment).any() for moment in later), "no step led outside"

    def moved(self, moment: Moment) -> np.ndarray:
        """For each unit whether it is another one than at the start."""
        return np.concatenate(
            [np.any(now != then, axis=1) for now, then in zip(moment.rows, self.start.rows, strict=True)]
        )

    def driven(self, moment: Moment) -> np.ndarray:
        """Whether each unit moved, and is outside or on the boundary, where none ends by chance."""
        looks = [self.held.looks(rows, moment.step, moment.spacing) for rows in moment.rows]
        return self.moved(moment) & np.concatenate([touched | ~inside for inside, touched in looks])


class Watch(keras.callbacks.Callback):
    """Looks at the held weights through a fit."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial

    def on_train_batch_end(self, batch, logs=None):
        self.trial.look(self.model, "step")

    def on_test_begin(self, logs=None):
        self.trial.look(self.model, "evaluation")

    def on_epoch_end(self, epoch, logs=None):
        self.trial.look(self.model, "epoch")


def layer_of(model: keras.Model) -> Any:
    """The layer that is held, also inside of models in the model."""
    (layer,) = {id(layer): layer for layer in model._flatten_layers() if layer.name == "held"}.values()
    return layer


def ending(model: keras.Model, end: str) -> Any:
    """The weight whose path ends so."""
    (variable,) = [variable for variable in model.weights if f"/{variable.path}".endswith(f"/{end}")]
    return variable


def laid(variable: Any, axes: tuple[int, ...]) -> np.ndarray:
    """A weight in float64, one unit a row."""
    value = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")), "float64")
    counting = [axis for axis in range(value.ndim) if axis not in axes]
    units = int(np.prod([value.shape[axis] for axis in counting]))
    return np.array(value.transpose(*counting, *axes).reshape(units, -1))


def steps_of(model: keras.Model) -> int:
    """How many steps the model's optimizer has taken, or the first of several."""
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        optimizer = optimizer.optimizers[0] if optimizer.built else None
    return int(optimizer.iterations) if optimizer is not None and optimizer.built else 0
