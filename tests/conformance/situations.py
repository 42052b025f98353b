"""The axis of situations: each trains a model in one way, and looks at its weights meanwhile."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import inbounds as ib
from conformance.trial import BATCH, BATCHES, Trial, layer_of

BACKEND = keras.backend.backend()


# The order of things.


def plain(trial: Trial) -> keras.Model:
    model = trial.model()
    trial.constrain(model)
    trial.compile(model)
    return trial.fit(trial.begin(model))


def compiled_first(trial):
    return trial.fit(trial.ready())


def fitted_first(trial):
    model = trial.compile(trial.model())
    trial.fit(model)
    trial.constrain(model)
    return trial.fit(trial.begin(model))


def as_arguments(trial):
    """The layer was given the set, and nobody called `constrain`."""
    model = trial.compile(trial.with_arguments())
    trial.begin(model)
    trial.loose.add("start")
    return trial.fit(model, callbacks=[FirstBatch(trial)])


def recompiled(trial):
    model = trial.ready(optimizer=keras.optimizers.SGD(1.0))
    trial.fit(model)
    trial.compile(model)
    return trial.fit(trial.begin(model))


def constrained_again(trial):
    model = trial.compile(trial.model())
    trial.constrain(model, ib.Box(-1, 1))
    trial.fit(model)
    trial.constrain(model)
    return trial.fit(trial.begin(model))


def released(trial):
    """Nothing holds between two plans."""
    model = trial.ready()
    trial.fit(model)
    ib.release(model)
    model.set_weights(trial.put_outside(model))
    trial.begin(model)
    trial.fit(model)
    assert not any(map(trial.inside, trial.moments)), "something still held the weights"
    assert all(row.status == "free" for row in ib.audit(model).rows)
    trial.constrain(model)
    return trial.fit(trial.begin(model))


# Averages.


def averaged(trial):
    optimizer = trial.make_optimizer(use_ema=True, ema_momentum=0.5)
    model = trial.ready(optimizer=optimizer)
    by_turns = isinstance(optimizer, keras.optimizers.MultiOptimizer) and trial.held.joint
    of_one_set = trial.held.convex and not trial.held.changes and not by_turns
    return trial.fit(model, callbacks=[Averages(trial)] if of_one_set else [])


class Averages(keras.callbacks.Callback):
    """Looks at the averages before any is in a weight's place and could be mended there."""

    def __init__(self, trial):
        super().__init__()
        self.trial = trial

    def on_epoch_end(self, epoch, logs=None):
        self.trial.look(self.model, "average", averages_of(self.model.optimizer))


def averages_of(optimizer: Any) -> dict[int, Any]:
    """By variables' ids, the averages that an optimizer keeps of them."""
    inside = [*getattr(optimizer, "optimizers", []), getattr(optimizer, "inner_optimizer", None)]
    found = {}
    for each in (optimizer, *filter(None, inside)):
        averages = getattr(each, "_model_variables_moving_average", None) or []
        found.update({id(v): average for v, average in zip(each._trainable_variables, averages, strict=False)})
    return found


def overwritten(trial):
    optimizer = trial.make_optimizer(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    return trial.fit(trial.ready(optimizer=optimizer))


def swapped(on_epoch: bool) -> Callable[[Trial], keras.Model]:
    """The average is in the model's place while it is evaluated, or also while it is saved."""

    def situation(trial):
        file = str(trial.folder / "model.weights.h5")
        model = trial.ready(optimizer=trial.make_optimizer(use_ema=True, ema_momentum=0.9))
        callbacks = [
            keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch),
            keras.callbacks.ModelCheckpoint(file, save_weights_only=True),
        ]
        trial.fit(model, callbacks=callbacks, evaluated=True)
        assert trial.named("evaluation")
        read_back(trial, model, file)
        return model

    return situation


def read_back(trial: Trial, model: keras.Model, file: str) -> None:
    """What was saved is looked at in a model of its own."""
    other = trial.model()
    other.load_weights(file)
    seen = trial.seen(other, "file")
    trial.moments.append(type(seen)("file", trial.moments[-1].step, seen.rows, seen.spacing))


# Steps of every kind.


def accumulated(trial):
    return trial.fit(trial.ready(optimizer=trial.make_optimizer(gradient_accumulation_steps=2)))


def accumulated_in_a_loop(trial):
    """A step that only adds to the gradient is no step: nothing is projected either."""
    model = trial.model()
    trial.constrain(model)
    model.optimizer = optimizer = trial.make_optimizer(gradient_accumulation_steps=2)
    optimizer.build(model.trainable_variables)
    model.set_weights(trial.put_outside(model))
    trial.begin(model)
    trial.loose |= {"start", "added"}
    for name in ("added", "step", "step", "step"):
        optimizer.apply(pulls(model), model.trainable_variables)
        trial.look(model, name)
    assert not trial.moved(trial.named("added")[0]).any(), "projected though no step was taken"
    return model


def skipped(trial):
    """A gradient that isn't finite is skipped by loss scaling, and changes nothing."""
    optimizer = trial.make_optimizer()
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model = trial.ready(optimizer=optimizer)
    infinite = np.ones(BATCH * BATCHES, "float32")
    infinite[0] = np.inf
    trial.fit(model, sample_weight=infinite)
    first, *later = trial.named("step")
    assert not trial.moved(first).any(), "the skipped step moved weights"
    assert later
    return model


def compiled_with(**how: Any) -> Callable[[Trial], keras.Model]:
    return lambda trial: trial.fit(trial.ready(**how))


def clipped(trial):
    return trial.fit(trial.ready(optimizer=trial.make_optimizer(global_clipnorm=5.0, weight_decay=0.01)))


def on_batches(trial):
    model = trial.ready()
    x, y = trial.kind.data(4)
    for _ in range(3):
        model.train_on_batch(x, y)
        trial.look(model, "step")
    return model


def own_step(trial):
    calls = []

    class OwnStep(keras.Model):  # made anew: Keras changes the bases of a class that makes a functional model
        def train_step(self, *arguments):
            calls.append(len(calls))
            return super().train_step(*arguments)

    model = trial.compile(trial.model(base=OwnStep))
    trial.constrain(model)
    trial.begin(model)
    trial.fit(model)
    assert calls
    return model


def pulls(model: keras.Model, seed: int = 4) -> list[Any]:
    """Gradients that are the same each time."""
    random = np.random.default_rng(seed)
    return [
        keras.ops.cast(keras.ops.convert_to_tensor(random.normal(0, 1, tuple(v.shape)).astype("float32")), v.dtype)
        for v in model.trainable_variables
    ]


def loop(trial):
    """A loop of the user's own, in which only the optimizer is Keras'."""
    model = trial.model()
    model.optimizer = optimizer = trial.make_optimizer()
    trial.constrain(model)
    trial.begin(model)
    for step in range(3):
        optimizer.apply(pulls(model, step), model.trainable_variables)
        trial.look(model, "step")
    return model


def without_a_gradient(trial):
    """In each step one of the held layer's weights has no gradient, another one each time."""
    model = trial.model()
    model.optimizer = optimizer = trial.make_optimizer()
    trial.constrain(model)
    trial.begin(model)
    variables = model.trainable_variables
    own = {id(variable) for variable in layer_of(model).trainable_variables}
    places = [place for place, variable in enumerate(variables) if id(variable) in own]
    optimizer.build(variables)
    for step in range(3):
        gradients = pulls(model, step)
        gradients[places[(step + 1) % len(places)]] = None
        if step == 1 or len(places) > 1:
            gradients[places[step % len(places)]] = pulls(model, step)[places[step % len(places)]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gradients do not exist for variables")  # the case at hand
            optimizer.apply(gradients, variables)
        trial.look(model, "step")
    return model


# Weights that others change.


def frozen_then_unfrozen(trial):
    model = trial.model()
    trial.constrain(model)
    layer_of(model).trainable = False
    trial.compile(model)
    trial.begin(model)
    trial.fit(model)
    assert not any(trial.moved(moment).any() for moment in trial.moments), "a frozen weight moved"
    layer_of(model).trainable = True
    trial.compile(model)
    return trial.fit(trial.begin(model))


class FirstBatch(keras.callbacks.Callback):
    """Looks at the held weights before the first step."""

    def __init__(self, trial):
        super().__init__()
        self.trial = trial

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.trial.look(self.model, "first batch")


def one_frozen(trial):
    """The last weight of the held layer is frozen, and changed between two fits.

    The layer's other weights keep the units inside.
    """
    model = trial.model()
    frozen = layer_of(model).trainable_variables[-1]
    frozen.trainable = False
    trial.compile(model)
    trial.constrain(model)
    trial.begin(model)
    before = np.array(keras.ops.convert_to_numpy(frozen))
    trial.fit(model)
    assert np.array_equal(keras.ops.convert_to_numpy(frozen), before), "the frozen weight moved"
    if trial.held.joint:
        size = 0.15 / max(before.shape[0] if before.ndim > 1 else 1, 1)
        frozen.assign(np.full_like(before, size))
        trial.begin(model)
        trial.loose.add("start")
        trial.fit(model, callbacks=[FirstBatch(trial)])
        assert np.all(keras.ops.convert_to_numpy(frozen) == np.float32(size)), "the frozen weight moved"
    return model


def looked_at_before_the_first_step(trial: Trial, model: keras.Model) -> keras.Model:
    assert not ib.audit(model).ok, "these weights are meant to be outside"
    trial.begin(model)
    trial.loose.add("start")
    trial.fit(model, callbacks=[FirstBatch(trial)])
    assert trial.named("first batch")
    return model


def set_outside(trial):
    model = trial.ready()
    model.set_weights(trial.put_outside(model))
    return looked_at_before_the_first_step(trial, model)


def loaded_outside(trial):
    file = trial.folder / "outside.weights.h5"
    other = trial.model()
    other.set_weights(trial.put_outside(other))
    other.save_weights(file)
    model = trial.model()
    trial.constrain(model)
    model.load_weights(file)
    trial.compile(model)
    return looked_at_before_the_first_step(trial, model)


# Copies.


def carried(trial: Trial) -> keras.Model:
    """A model whose plan goes with its files and copies; a warning that it doesn't is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ib.PlanNotSavedWarning)
        return trial.ready()


def loaded(trial):
    model = carried(trial)
    trial.fit(model)
    model.save(trial.folder / "model.keras")
    again = keras.models.load_model(trial.folder / "model.keras")
    assert ib.audit(again).ok
    return trial.fit(trial.begin(again))


def cloned(trial):
    model = carried(trial)
    again = trial.compile(keras.models.clone_model(model))
    trial.begin(again)
    trial.loose.add("start")  # a clone has new weights
    return trial.fit(again, callbacks=[FirstBatch(trial)])


def deep_copied(trial):
    model = carried(trial)
    trial.fit(model)
    before = trial.seen(model, "original")
    again = copy.deepcopy(model)
    trial.begin(again)
    trial.fit(again)
    after = trial.seen(model, "original")
    assert all(map(np.array_equal, before.rows, after.rows)), "the original moved with its copy"
    return again


# Policies, and how a plan is told to hold.


def under_policy(policy: str) -> Callable[[Trial], keras.Model]:
    def situation(trial):
        keras.mixed_precision.set_global_policy(policy)  # each test begins and ends with float32
        return trial.fit(trial.ready())

    return situation


def now_and_then(every: int | str) -> Callable[[Trial], keras.Model]:
    def situation(trial):
        file = str(trial.folder / "model.weights.h5")
        model = trial.compile(trial.model())
        trial.fit(model)
        model.set_weights(trial.put_outside(model))  # they begin on the boundary, from where steps lead outside
        trial.constrain(model, every=every)
        trial.begin(model)
        trial.loose.add("step")
        checkpoint = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
        trial.fit(model, callbacks=[checkpoint], evaluated=True, batches=4)
        trial.fit(model, callbacks=[checkpoint], batches=4)  # the epoch's end by itself
        steps = trial.named("step")
        assert not all(map(trial.inside, steps)), "each step was projected"
        due = [moment for moment in steps if every != "epoch" and moment.step % every == 0]
        missed = [moment.step for moment in due if not trial.inside(moment)]
        assert not missed, f"outside after the steps {missed}, which were due"
        read_back(trial, model, file)
        return model

    return situation


def in_the_euclidean_metric(trial):
    model = trial.compile(trial.model())
    plan = trial.constrain(model, metric="euclidean")
    assert "euclidean metric" in str(plan)
    return trial.fit(trial.begin(model))


def at_the_optimum(trial):
    """Where the gradient is normal to the set, a full step and its projection lead back.

    The projection is in the step's metric. When the gradient turns, the weights leave the boundary
    again: nothing has accumulated behind it.
    """
    model = trial.model()
    variables, gradients, random = model.trainable_variables, {}, np.random.default_rng(2)
    for group in trial.variables(model):
        shapes = [(variable, axes, laid_shape(variable, axes)) for variable, axes in group]
        units, size = shapes[0][2][0], sum(shape[1] for *_, shape in shapes)
        rows = random.uniform(0.5, 1.0, (units, size)) * random.choice([-1, 1], (units, size))
        rows = trial.held.onto(rows)
        pull, place = trial.held.normal(rows), 0
        for variable, axes, (_, width) in shapes:
            part = slice(place, place + width)
            variable.assign(unlaid(rows[:, part], variable, axes))
            gradients[id(variable)] = unlaid(pull[:, part], variable, axes)
            place += width
    model.optimizer = optimizer = trial.make_optimizer()
    trial.constrain(model, gradient="full")
    trial.begin(model)
    trial.moves = False
    given = [gradients.get(id(v), np.ones(tuple(v.shape), "float32")) for v in variables]
    for direction in (*[1] * OUT, *[-1] * BACK):
        optimizer.apply([keras.ops.convert_to_tensor(direction * value) for value in given], variables)
        trial.look(model, "step")
    there, back = (far(trial.moments[place], trial.start) for place in (OUT, OUT + BACK))
    assert there < 2e-3, f"the constrained optimum is left by {there:.2g}"
    assert back > 1e-2 or not trial.held.solid, f"the boundary is left by {back:.2g} only"
    return model


OUT, BACK = 12, 9
"""Steps outwards, and back: enough to turn every momentum, but not what accumulated outside."""


def far(now: Any, then: Any) -> float:
    """The largest change of an entry, as a share of the largest entry."""
    moves = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(now.rows, then.rows, strict=True)]
    return float(max(moves))


def laid_shape(variable: Any, axes: tuple[int, ...]) -> tuple[int, int]:
    size = int(np.prod([variable.shape[axis] for axis in axes]))
    return int(np.prod(variable.shape)) // size, size


def unlaid(rows: np.ndarray, variable: Any, axes: tuple[int, ...]) -> np.ndarray:
    """Rows as the weight that they lay out."""
    shape = tuple(variable.shape)
    order = [axis for axis in range(len(shape)) if axis not in axes] + list(axes)
    return rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)).astype("float32")


SITUATIONS: dict[str, Callable[[Trial], keras.Model]] = {
    "constrain, compile, fit": plain,
    "compile, constrain, fit": compiled_first,
    "fit, constrain, fit": fitted_first,
    "given as arguments": as_arguments,
    "compiled again": recompiled,
    "constrained again": constrained_again,
    "released": released,
    "average": averaged,
    "average that overwrites": overwritten,
    "average swapped in for evaluation": swapped(False),
    "average swapped in at an epoch's end": swapped(True),
    "accumulation": accumulated,
    "accumulation in a loop": accumulated_in_a_loop,
    "a step that loss scaling skips": skipped,
    "two steps an execution": compiled_with(steps_per_execution=2),
    "eager": compiled_with(run_eagerly=True),
    "jit": compiled_with(jit_compile=True),
    "clipping and decay": clipped,
    "train_on_batch": on_batches,
    "a train_step of one's own": own_step,
    "a loop with apply": loop,
    "a weight without a gradient": without_a_gradient,
    "one weight frozen": one_frozen,
    "frozen, then unfrozen": frozen_then_unfrozen,
    "set outside, then fit": set_outside,
    "loaded outside, then fit": loaded_outside,
    "saved and loaded": loaded,
    "cloned": cloned,
    "deep-copied": deep_copied,
    "mixed_float16": under_policy("mixed_float16"),
    "bfloat16": under_policy("bfloat16"),
    "every third step": now_and_then(3),
    "every epoch": now_and_then("epoch"),
    "the Euclidean metric": in_the_euclidean_metric,
    "at the optimum": at_the_optimum,
}
