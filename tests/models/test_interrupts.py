"""However training ends, the weights are inside; and what other threads may do meanwhile."""

import threading

import keras
import numpy as np
import pytest
from measure import inside, norms, same_bits, values_of

import inbounds as ib

BACKEND = keras.backend.backend()
ONLY = {
    backend: pytest.mark.skipif(backend != BACKEND, reason=f"of {backend}")
    for backend in ("jax", "torch", "tensorflow")
}
BOUND = 0.4
KERNELS = {"**/kernel": ib.MaxNorm(BOUND)}
FAR = 10.0
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("float32"), RNG.normal(size=(64, 8)).astype("float32")


def model_of(optimizer=None, rules=KERNELS, eager=BACKEND != "jax", **how):
    model = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8, use_bias=False, name=name) for name in "abc")])
    ib.constrain(model, rules, **how)
    model.compile(optimizer or keras.optimizers.SGD(FAR), "mse", run_eagerly=eager)
    return model


def lengths(model):
    return np.concatenate([norms((layer.kernel, (0,))) for layer in model.layers])


def is_inside(model):
    return inside(lengths(model), BOUND)


def gradients(model):
    return [keras.ops.convert_to_tensor(RNG.normal(size=v.shape).astype("float32")) for v in model.trainable_variables]


class Stop(BaseException):
    """Raised where a test says; like KeyboardInterrupt it isn't caught by `except Exception`."""


def stop(*arguments, **named):
    raise Stop


# The moments of a step.


def ball(w):
    return w / keras.ops.maximum(keras.ops.norm(w, axis=0) / BOUND, 1.0)


def sphere(w):
    return w / keras.ops.norm(w, axis=0)


def interruptible(projection, **how):
    """A model, a function that interrupts a later step, and whether the weights were inside then.

    The moments are "a" and "b", the projections of these layers, and "update", when a weight has
    moved.
    """
    armed, seen = set(), []

    def stop_at(moment):
        if moment in armed and not is_inside(model):
            armed.clear()
            seen.append(is_inside(model))
            raise Stop

    class Update(keras.optimizers.SGD):
        def update_step(self, *arguments):
            super().update_step(*arguments)
            stop_at("update")

    def stopping(moment):
        return lambda w: (stop_at(moment), projection(w))[1]

    model = model_of(Update(FAR, **how), {f"{name}/kernel": stopping(name) for name in "abc"})
    return model, armed.add, seen


def by_apply(model):
    model.optimizer.apply(gradients(model), model.trainable_variables)


def by_train_on_batch(model):
    model.train_on_batch(X, Y)


def by_fit(model):
    model.fit(X, Y, verbose=0)


@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")  # functions aren't saved
@pytest.mark.parametrize("loop", [by_apply, by_train_on_batch, by_fit])
@pytest.mark.parametrize("moment", ["a", "b", "update"])
def test_a_step_that_is_interrupted_ends_inside_and_the_next_one_holds(moment, loop):
    if BACKEND == "jax" and loop is not by_apply:
        pytest.skip("a step that JAX compiles is not interrupted in its midst")
    model, interrupt, seen = interruptible(ball)
    constraints = [layer.kernel.constraint for layer in model.layers]
    interrupt(moment)
    with pytest.raises(Stop) as raised:
        loop(model)
    assert seen == [False], "it was outside when it was interrupted"
    assert not getattr(raised.value, "__notes__", None)
    assert is_inside(model)
    assert [row.status for row in ib.audit(model).rows if row.set] == ["holds"] * 3
    assert all(layer.kernel.constraint is one for layer, one in zip(model.layers, constraints, strict=True))
    loop(model)
    assert is_inside(model)


@pytest.mark.filterwarnings("ignore::inbounds.PlanNotSavedWarning")
def test_an_average_that_is_half_in_the_weights_place_is_put_inside():
    model, interrupt, seen = interruptible(sphere, use_ema=True, ema_momentum=0.5)
    by_apply(model)
    by_apply(model)
    interrupt("b")
    with pytest.raises(Stop):
        model.optimizer.finalize_variable_values(model.trainable_variables)
    assert seen
    assert ib.audit(model).ok


@ONLY["torch"]
def test_a_step_of_torch_that_is_interrupted_ends_inside_also_under_a_scheduler():
    import torch

    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=FAR)
    early = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    handle = ib.project_after(model, optimizer)
    late = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    loss = lambda: torch.nn.functional.mse_loss(model(torch.as_tensor(X)), torch.as_tensor(Y))  # noqa: E731
    outside = []

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        early.step()
        late.step()

    last = optimizer.register_step_post_hook(lambda *arguments: outside.append(not is_inside(model)) or stop())
    optimizer._optimizer_step_post_hooks.move_to_end(last.id, last=False)
    with pytest.raises(Stop):
        step()
    assert outside == [True]
    assert is_inside(model)
    last.remove()
    step()
    assert is_inside(model)
    handle.remove()
    step()
    assert not is_inside(model), "the handle ends it"


@ONLY["torch"]
def test_gradients_are_recorded_again_where_an_interrupt_left_them_off():
    import torch

    model = model_of()
    with pytest.raises(Stop):
        model.fit(X, Y, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=left_off)])
    assert torch.is_grad_enabled()


def left_off(batch, logs):
    import torch

    torch.set_grad_enabled(False)
    raise Stop


# The moments of a fit.


def loader(batches):
    for _ in range(batches):
        yield X[:16], Y[:16]
    raise Stop


def callback(event):
    return {"callbacks": [keras.callbacks.LambdaCallback(**{event: stop})]}


FITS = {
    "a loader, at once": lambda: {"x": loader(0), "shuffle": False},
    "a loader, in the midst": lambda: {"x": loader(3), "shuffle": False},
    "before a step": lambda: {"x": X, "y": Y, **callback("on_train_batch_begin")},
    "after a step": lambda: {"x": X, "y": Y, **callback("on_train_batch_end")},
    "an epoch's begin": lambda: {"x": X, "y": Y, **callback("on_epoch_begin")},
    "an epoch's end": lambda: {"x": X, "y": Y, **callback("on_epoch_end")},
}


class Push(keras.callbacks.Callback):
    """Puts the weights outside at every moment that callbacks have."""

    def push(self, *arguments, **named):
        self.model.layers[0].kernel.assign(np.full((8, 8), 5.0, "float32"))

    on_epoch_begin = on_train_batch_end = on_epoch_end = push


@pytest.fixture(scope="module")
def fitted():
    """One model for all fits: only the first is compiled."""
    model = model_of(eager=False)
    model.fit(X, Y, verbose=0)
    return model


@pytest.mark.parametrize("way", FITS)
def test_a_fit_that_raises_ends_inside_and_the_next_goes_on(way, fitted):
    how = FITS[way]()
    tensorflows = BACKEND == "tensorflow" and "loader" in way  # which says it in an error of its own
    with pytest.raises((Stop, Exception) if tensorflows else Stop) as raised:
        fitted.fit(**{"verbose": 0, **how, "callbacks": [Push(), *how.get("callbacks", [])]})
    assert not getattr(raised.value, "__notes__", None)
    assert is_inside(fitted)
    fitted.fit(X, Y, verbose=0)
    assert ib.check(fitted).ok


@pytest.mark.parametrize("every", [100, "epoch"])
def test_sets_that_are_projected_on_now_and_then_are_so_when_a_fit_raises(every):
    model, seen = model_of(every=every, eager=False), []

    def look(batch, logs):
        seen.append(inside(lengths(look.callback.model), BOUND))
        raise Stop

    look.callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    with pytest.raises(Stop):
        model.fit(X, Y, verbose=0, callbacks=[look.callback])
    assert seen == [False]
    assert is_inside(model)


def test_averages_that_are_swapped_in_are_inside_when_an_evaluation_raises():
    model = model_of(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9), {"**/kernel": ib.UnitNorm()})
    callbacks = [keras.callbacks.SwapEMAWeights(), keras.callbacks.LambdaCallback(on_test_batch_end=stop)]
    with pytest.raises(Stop):
        model.fit(X, Y, verbose=0, validation_data=(X, Y), callbacks=callbacks)
    assert ib.audit(model).ok


def test_an_error_in_a_loss_is_raised_as_it_was():
    model, error = model_of(eager=False), ValueError("of the loss")

    def loss(y, p):
        raise error

    model.compile("sgd", loss)
    model.set_weights([5 * value for value in model.get_weights()])
    with pytest.raises(ValueError, match="of the loss") as raised:
        model.fit(X, Y, verbose=0)
    assert raised.value is error
    assert is_inside(model)


def test_a_fit_of_a_subclass_of_its_own_is_held_by_its_steps():
    class Own(keras.Sequential):
        def fit(self, steps):
            for _ in range(steps):
                by_apply(self)
            raise Stop

    model = Own([keras.Input((8,)), keras.layers.Dense(8)])
    ib.constrain(model, KERNELS)
    model.compile(keras.optimizers.SGD(FAR), "mse")
    with pytest.raises(Stop):
        model.fit(2)
    assert is_inside(model)


# JAX.


@ONLY["jax"]
def test_a_model_that_jax_loses_says_so_and_a_backup_brings_it_back(tmp_path):
    model = model_of(eager=False)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    model.fit(X, Y, verbose=0, callbacks=[backup])
    saved = lengths(model)
    compiled = model.train_function

    def lost(state, iterator):
        compiled(state, iterator)  # it has taken the arrays, and what it returns is lost
        raise Stop

    model.train_function = lost
    with pytest.raises(Stop) as raised:
        model.fit(X, Y, verbose=0)
    assert "JAX" in raised.value.__notes__[0]
    for function in (ib.audit, ib.check, ib.project, ib.release, ib.constrain):
        with pytest.raises(ib.RuleError, match=r"weights of the model are gone.*interrupted.*BackupAndRestore"):
            function(model)
    model.train_function = None
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[backup])
    assert np.array_equal(lengths(model), saved)
    model.fit(X, Y, verbose=0)
    assert is_inside(model)


@ONLY["jax"]
def test_an_interrupt_of_the_compilation_loses_nothing():
    model = model_of(keras.optimizers.Adam(0.1), eager=False)
    before = values_of(model)
    model.make_train_function()
    model.train_function = stop
    with pytest.raises(Stop):
        model.fit(X, Y, verbose=0)
    assert same_bits(values_of(model), before)
    model.train_function = None
    model.fit(X, Y, verbose=0)
    assert is_inside(model)


# Threads.


CALLS = {
    "audit": (ib.audit, "Monitor"),
    "check": (ib.check, "Monitor"),
    "constrain": (lambda model: ib.constrain(model, {"**/kernel": ib.MaxNorm(0.1)}), "on_epoch_end"),
    "release": (ib.release, "on_epoch_end"),
    "project": (ib.project, "on_epoch_end"),
}


class InAnother(keras.callbacks.Callback):
    """Makes calls in another thread at the end of a batch, and keeps what they raise."""

    def __init__(self, *calls):
        super().__init__()
        self.calls, self.raised = calls, []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        for call in self.calls:
            thread = threading.Thread(target=self.keep, args=(call, model))
            thread.start()
            thread.join(20)

    def keep(self, call, model):
        try:
            call(model)
        except Exception as error:
            self.raised.append(error)


def test_calls_from_another_thread_are_errors_while_a_fit_runs_and_leave_all_as_it_was(fitted):
    calls = InAnother(*(call for call, _ in CALLS.values()))
    plan = [layer.kernel.constraint for layer in fitted.layers]
    fitted.fit(X, Y, verbose=0, callbacks=[calls])
    assert len(calls.raised) == 2 * len(CALLS)
    for (name, (_, instead)), error in zip(CALLS.items(), calls.raised, strict=False):
        called = "audit" if name == "check" else name
        assert isinstance(error, ib.RuleError)
        assert f"`{called}` can't be called while another thread fits the model" in str(error)
        assert instead in str(error).split("Instead: ")[1]
    assert all(layer.kernel.constraint is one for layer, one in zip(fitted.layers, plan, strict=True))
    assert is_inside(fitted)
    fitted.fit(X, Y, verbose=0)
    assert ib.check(fitted).ok


def test_a_layer_of_a_model_that_another_thread_fits_is_part_of_it_and_other_models_are_not(fitted):
    other = model_of()
    calls = InAnother(lambda model: ib.audit(model.layers[0]), lambda model: ib.constrain(other, KERNELS))
    fitted.fit(X[:32], Y[:32], verbose=0, callbacks=[calls])
    assert [type(error) for error in calls.raised] == [ib.RuleError]


def test_a_fit_that_died_in_a_thread_blocks_nothing(fitted):
    def die():
        with pytest.raises(Stop):
            fitted.fit(loader(1), verbose=0, shuffle=False)

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    assert ib.audit(fitted).ok
    ib.constrain(fitted, KERNELS)


def test_a_call_waits_for_a_step_of_another_threads_loop_and_the_next_step_for_the_call():
    model, order, within, go_on = model_of(), [], threading.Event(), threading.Event()
    by_apply(model)
    original = type(model.optimizer)._backend_update_step

    def slow(optimizer, *arguments):
        within.set()
        go_on.wait(20)
        original(optimizer, *arguments)
        order.append("step")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.optimizer), "_backend_update_step", slow)
        looking = threading.Thread(target=lambda: order.append(ib.audit(model).ok))
        stepping = threading.Thread(target=by_apply, args=(model,))
        stepping.start()
        within.wait(20)
        looking.start()
        looking.join(0.2)
        assert looking.is_alive(), "it waits"
        go_on.set()
        stepping.join(20)
        looking.join(20)
    assert order == ["step", True]


def test_a_monitor_that_is_given_by_itself_looks_in_the_thread_that_fits(fitted):
    """Keras calls callbacks that aren't in a list from another thread, on JAX and PyTorch."""
    monitor = ib.Monitor(every=1)
    fitted.fit(X, Y, verbose=0, callbacks=monitor)
    assert monitor.report.ok
