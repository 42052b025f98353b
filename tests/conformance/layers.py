"""The axis of layers: small models, each with one held layer, and the axes of its units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

Axes = tuple[int, ...]
CLASSES = 3


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Attributes:
        make: makes the layer, named "held", from the constraints that it is given as arguments.
        shape: of one example.
        weights: the end of a weight's path -> the axes that one unit spans.
        arguments: for each weight the argument that takes its constraint.
        joints: which weights have the entries of one unit together, each with its axes.
        joint_arguments: those that take a Joint.
        tokens: how many there are; 0: the inputs are numbers.
        call: calls the layer on the inputs.
        own_class: whether the model is a class of its own in place of a functional one.
        carried: whether a file carries the sets of its layers.
    """

    make: Callable[..., Any]
    shape: tuple[int, ...]
    weights: Mapping[str, Axes]
    arguments: tuple[str, ...] = ("kernel_constraint",)
    joints: tuple[Mapping[str, Axes], ...] = ()
    joint_arguments: tuple[str, ...] = ("kernel_constraint", "bias_constraint")
    tokens: int = 0
    call: Callable[[Any, Any], Any] = lambda layer, x: layer(x)
    own_class: bool = False
    carried: bool = True

    def groups(self, joint: bool) -> list[Mapping[str, Axes]]:
        """The weights whose entries make units together, by the ends of their paths."""
        return list(self.joints) if joint else [{end: axes} for end, axes in self.weights.items()]

    def model(self, base: type = keras.Model, given: Mapping[str, Any] | None = None) -> keras.Model:
        """The layer and a head, built; the layer's weights are far out of any set.

        Args:
            base: the class of the model.
            given: the constraints that the layer is given as arguments.
        """
        held, out = (
            self.make(**(given or {})),
            layers.Dense(CLASSES, "softsign", name="out"),
        )  # which slows weights that grow
        inputs = keras.Input(self.shape, dtype="int32" if self.tokens else None)
        if self.own_class:
            model = type("OwnModel", (_OwnModel, base), {})(held, out)
            model(keras.ops.zeros((1, *self.shape)))
        else:
            model = base(inputs, out(layers.Flatten()(self.call(held, inputs))))
        random = np.random.default_rng(3)
        for variable in held.trainable_variables:
            variable.assign(random.normal(0, 1, tuple(variable.shape)).astype("float32"))
        return model

    def data(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and their classes, the same each time."""
        random = np.random.default_rng(7)
        shape = (count, *self.shape)
        x = random.integers(0, self.tokens, shape) if self.tokens else random.normal(0, 1, shape).astype("float32")
        return x, random.integers(0, CLASSES, count)


class _OwnModel:
    """A model that is no functional one."""

    def __init__(self, held, out):
        super().__init__()
        self.held, self.out = held, out

    def call(self, x):
        return self.out(self.held(x))


def nested(**given):
    return keras.Sequential([keras.Input((5,)), layers.Dense(4, name="held", **given)], name="inner")


def simple(make, shape, axes, bias="held/bias", weight="held/kernel", **more):
    """A layer with a kernel and a bias."""
    return Kind(make, shape, {weight: axes}, joints=({weight: axes, bias: ()},), **more)


def recurrent(make, shape, cells, bias_axes, **more):
    ends = [f"{cell}/{name}" for cell in cells for name in ("kernel", "recurrent_kernel")]
    return Kind(
        make,
        shape,
        dict.fromkeys(ends, (0,)),
        ("kernel_constraint", "recurrent_constraint") * len(cells),
        tuple({f"{cell}/kernel": (0,), f"{cell}/bias": bias_axes} for cell in cells),
        **more,
    )


ATTENTION = {"query": (0,), "key": (0,), "value": (0,), "attention_output": (0, 1)}

PLAIN = {"recurrent_initializer": "glorot_uniform"}
"""PyTorch makes no orthogonal matrices in bfloat16."""

LAYERS = {
    "Dense": simple(lambda **given: layers.Dense(4, name="held", **given), (5,), (0,)),
    "EinsumDense": simple(
        lambda **given: layers.EinsumDense("abc,cde->abde", (2, 2, 3), bias_axes="de", name="held", **given),
        (2, 4),
        (0,),
    ),
    "Embedding": Kind(
        lambda **given: layers.Embedding(6, 4, name="held", **given),
        (3,),
        {"held/embeddings": (1,)},
        ("embeddings_constraint",),
        joint_arguments=("embeddings_constraint",),
        tokens=6,
    ),
    "Conv1D": simple(lambda **given: layers.Conv1D(3, 2, name="held", **given), (5, 3), (0, 1)),
    "Conv2D": simple(lambda **given: layers.Conv2D(3, 2, name="held", **given), (4, 4, 2), (0, 1, 2)),
    "Conv3D": simple(lambda **given: layers.Conv3D(2, 2, name="held", **given), (3, 3, 3, 2), (0, 1, 2, 3)),
    "Conv2DTranspose": simple(lambda **given: layers.Conv2DTranspose(4, 2, name="held", **given), (3, 3, 2), (0, 1, 3)),
    "DepthwiseConv2D": simple(
        lambda **given: layers.DepthwiseConv2D(2, depth_multiplier=2, name="held", **given),
        (4, 4, 2),
        (0, 1),
        arguments=("depthwise_constraint",),
        joint_arguments=("depthwise_constraint", "bias_constraint"),
    ),
    "SeparableConv2D": Kind(
        lambda **given: layers.SeparableConv2D(4, 2, name="held", **given),
        (4, 4, 3),
        {"held/depthwise_kernel": (0, 1), "held/pointwise_kernel": (0, 1, 2)},
        ("depthwise_constraint", "pointwise_constraint"),
        ({"held/pointwise_kernel": (0, 1, 2), "held/bias": ()},),
        ("pointwise_constraint", "bias_constraint"),
    ),
    "LSTM": recurrent(lambda **given: layers.LSTM(3, name="held", **PLAIN, **given), (4, 3), ["held/lstm_cell"], ()),
    "GRU": recurrent(lambda **given: layers.GRU(3, name="held", **PLAIN, **given), (4, 3), ["held/gru_cell"], (0,)),
    "Bidirectional": recurrent(
        lambda **given: layers.Bidirectional(layers.LSTM(3, name="lstm", **PLAIN, **given), name="held"),
        (4, 3),
        ["forward_lstm/lstm_cell", "backward_lstm/lstm_cell"],
        (),
    ),
    "MultiHeadAttention": Kind(
        lambda **given: layers.MultiHeadAttention(2, 3, name="held", **given),
        (3, 4),
        {f"held/{part}/kernel": axes for part, axes in ATTENTION.items()},
        ("kernel_constraint",) * 4,
        tuple({f"held/{part}/kernel": axes, f"held/{part}/bias": ()} for part, axes in ATTENTION.items()),
        call=lambda layer, x: layer(x, x),
        carried=False,
    ),
    "BatchNormalization": Kind(
        lambda **given: layers.BatchNormalization(name="held", **given),
        (5,),
        {"held/gamma": (0,), "held/beta": (0,)},
        ("gamma_constraint", "beta_constraint"),
        joint_arguments=("gamma_constraint", "beta_constraint"),
    ),
    "a nested model": simple(nested, (5,), (0,)),
    "a shared layer": simple(
        lambda **given: layers.Dense(5, name="held", **given), (5,), (0,), call=lambda layer, x: layer(layer(x))
    ),
    "a model of a class of its own": simple(
        lambda **given: layers.Dense(4, name="held", **given), (5,), (0,), own_class=True, carried=False
    ),
}
