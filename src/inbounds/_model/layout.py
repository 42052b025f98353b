"""Layouts: which axes of a layer's weights make a unit.

A layout gives, for each weight of a layer by its name, the axes that one unit spans: those that
the layer sums over to compute one output feature. A weight without such axes (a bias, a scale) has
the layout (). Layers that Keras doesn't ship register their layout.

For a weight that no layout names, the units are guessed, every axis but the last, with a warning.
For a layer that wraps a model of another framework, nothing is guessed: its axes may have another
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from inbounds._arrays.units import Axes
from inbounds._errors import LayoutError, shown


@dataclass(frozen=True)
class Layout:
    """The layout of one layer.

    Attributes:
        spans: weight name -> the axes that one unit spans, () where the weight has no fan-in.
        joint_spans: weight name -> the axes in a Joint, where they differ: the two rows of a GRU's
            bias belong to one unit.
        roles: the name that a Joint uses -> the weight's name. In a separable convolution,
            "kernel" is the pointwise kernel, whose filters have the bias.
        apart: weight name -> why its units aren't those of the layer's other weights. No Joint
            takes such a weight with others.
        inputs: weight name -> the axis of the layer's inputs (features, channels, tokens), for
            `on`. A weight that is left out has no single such axis.
    """

    spans: Mapping[str, Sequence[int]]
    joint_spans: Mapping[str, Sequence[int]] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spans in (self.spans, self.joint_spans):
            for name, axes in spans.items():
                if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, int) for axis in axes):
                    raise LayoutError(
                        "The axes that one unit spans are not a tuple of integers",
                        f"{name!r}: {axes!r}",
                        instead=f"{{{name!r}: (0,)}}, or () for a weight without fan-in",
                    )

    def span(self, name: str, shape: tuple[int, ...], *, joint: bool = False) -> Axes | None:
        """The axes that one unit of a weight spans, from 0; None where the layout lacks the weight.

        Raises:
            LayoutError: a weight of this shape has no such axes.
        """
        axes = self.joint_spans.get(name, self.spans.get(name)) if joint else self.spans.get(name)
        if axes is None:
            return None
        rank = len(shape)
        if not all(-rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
            raise LayoutError(
                f"A layout names an axis that the weight hasn't, or one twice: it has {-rank} to {rank - 1}",
                f"{name!r}: {tuple(axes)}",
                where=f"a weight of shape {shape}",
                instead="register_layout with the axes that one unit of this weight spans",
            )
        return tuple(axis % rank for axis in axes)


LayoutFunction = Callable[[Any], "Layout | Mapping[str, Sequence[int]]"]

_REGISTRY: dict[type, LayoutFunction] = {}


def register_layout(layer_class: type[Any], layout: LayoutFunction | Layout | Mapping[str, Sequence[int]]) -> None:
    """Registers the layout of a layer class and its subclasses.

    Args:
        layer_class: a class of layers. The last registration holds, also for Keras' own classes.
        layout: weight name -> the axes that one unit spans, () for a weight without fan-in; a
            `Layout`; or a function of the built layer that returns one of these, where the axes
            depend on the layer's arguments. For a weight it doesn't name, the units are guessed,
            every axis but the last, with a warning and a note in the plan.

    Raises:
        LayoutError: `layer_class` is not a class of layers, or `layout` is none of these. An axis
            that the weight lacks is an error of `constrain`.

    >>> class Mix(keras.layers.Layer):  # y = kernel @ x: one unit a row
    ...     ...
    >>> register_layout(Mix, {"kernel": (1,), "bias": ()})
    """
    if not isinstance(layer_class, type) or not issubclass(layer_class, keras.Layer):
        raise LayoutError("`layer_class` is not a class of keras.Layer", f"layer_class={shown(layer_class)}")
    if isinstance(layout, (Layout, Mapping)):
        always = layout if isinstance(layout, Layout) else Layout(dict(layout))
        _REGISTRY[layer_class] = lambda layer: always
    elif callable(layout):
        _REGISTRY[layer_class] = layout
    else:
        raise LayoutError(
            "`layout` is neither a mapping of weight names to axes nor a function of the layer",
            f"layout={shown(layout)}",
            instead="{'kernel': (0,), 'bias': ()}",
        )


def layout_of(layer: Any) -> Layout:
    """The layout registered for the layer's class or its nearest base class; empty without one."""
    for cls in type(layer).__mro__:
        if cls in _REGISTRY:
            found = _REGISTRY[cls](layer)
            if not isinstance(found, (Layout, Mapping)):
                raise LayoutError(
                    "A function that is registered as a layout did not return a mapping of weight names to axes",
                    shown(found),
                    where=f"{cls.__name__}, for the layer {layer.name!r}",
                    instead="{'kernel': (0,), 'bias': ()}",
                )
            return found if isinstance(found, Layout) else Layout(dict(found))
    return Layout({})


FOREIGN_WRAPPERS = ("TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
"""Layers of Keras that wrap a model of another framework."""


def wraps_foreign_model(layer: Any) -> bool:
    """Whether a layer wraps a model of another framework, whose axes may have another order."""
    names = [name for name in FOREIGN_WRAPPERS if hasattr(keras.layers, name)]
    return isinstance(layer, tuple(getattr(keras.layers, name) for name in names))


def _torch_module(layer: Any) -> Layout:
    """The layout of wrapped Linear and ConvNd modules, whose first axis is the output features."""
    from torch import nn

    names = {id(variable.value): variable.name for variable in layer.weights}
    spans: dict[str, Axes] = {}
    roles: dict[str, str] = {}
    modules = [m for m in layer.module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    for module in modules:
        for role, parameter in (("kernel", module.weight), ("bias", module.bias)):
            if (name := names.get(id(parameter))) is not None:
                spans[name] = tuple(range(1, parameter.ndim))
                roles[role] = name
    return Layout(spans, roles=roles if len(modules) == 1 else {})


def _all_but_last(shape: tuple[int, ...]) -> Axes:
    return tuple(range(len(shape) - 1))


def _conv(layer: Any) -> Layout:
    rank = len(layer._kernel.shape)
    inputs = {"kernel": rank - 2} if layer.groups == 1 else {}  # in each group, the index is of another channel
    return Layout({"kernel": _all_but_last(layer._kernel.shape), "bias": ()}, inputs=inputs)


def _conv_transpose(layer: Any) -> Layout:
    rank = len(layer.kernel.shape)  # (*window, filters, channels)
    return Layout({"kernel": (*range(rank - 2), rank - 1), "bias": ()}, inputs={"kernel": rank - 1})


def _depthwise(layer: Any) -> Layout:
    rank = len(layer.kernel.shape)  # (*window, channels, multiplier)
    return Layout({"kernel": tuple(range(rank - 2)), "bias": ()}, inputs={"kernel": rank - 2})


def _separable(layer: Any) -> Layout:
    spans = {
        "depthwise_kernel": tuple(range(len(layer.depthwise_kernel.shape) - 2)),
        "pointwise_kernel": _all_but_last(layer.pointwise_kernel.shape),
        "bias": (),
    }
    why = "its filters feed the pointwise kernel, which has the bias"
    return Layout(
        spans,
        roles={"kernel": "pointwise_kernel"},
        apart={"depthwise_kernel": why},
        inputs={"depthwise_kernel": len(layer.depthwise_kernel.shape) - 2},
    )


def _recurrent(layer: Any) -> Layout:
    """The layout of a recurrent cell.

    The gates share the last axis, so that a unit is a column of one gate.
    """
    spans = {"kernel": (0,), "recurrent_kernel": (0,), "bias": ()}
    gru = layer.bias is not None and len(layer.bias.shape) == 2  # the input and the recurrent bias
    return Layout(spans, joint_spans={"bias": (0,)} if gru else {}, inputs={"kernel": 0})


def _conv_recurrent(layer: Any) -> Layout:
    return Layout(
        {
            "kernel": _all_but_last(layer.kernel.shape),
            "recurrent_kernel": _all_but_last(layer.recurrent_kernel.shape),
            "bias": (),
        },
        inputs={"kernel": len(layer.kernel.shape) - 2},
    )


def _einsum(layer: Any) -> Layout:
    """The layout of an einsum: a unit spans the letters of the kernel that the output lacks."""
    operands, output = layer.equation.replace(" ", "").replace("...", "").split("->")
    kernel = operands.split(",")[1]
    spans = {"kernel": tuple(axis for axis, letter in enumerate(kernel) if letter not in output), "bias": ()}
    summed = spans["kernel"]
    inputs = {"kernel": summed[0]} if len(summed) == 1 else {}
    units = "".join(letter for letter in kernel if letter in output)
    biases = "".join(letter for letter in output if letter in (layer.bias_axes or units))
    if biases == units:
        return Layout(spans, inputs=inputs)
    why = (
        f"in {layer.equation!r} the kernel's units have the axes {units!r} and the bias {biases!r}, "
        "so that units share entries of the bias, have several, or lie in another order"
    )
    return Layout(spans, apart={"bias": why}, inputs=inputs)


def _register_keras() -> None:
    """Registers the layouts of Keras' layers that own weights, where this version has them."""
    by_name: dict[str, LayoutFunction | Layout | Mapping[str, Axes]] = {
        "Dense": Layout({"kernel": (0,), "bias": ()}, inputs={"kernel": 0}),
        "EinsumDense": _einsum,
        "Embedding": Layout({"embeddings": (1,)}, inputs={"embeddings": 0}),
        "ReversibleEmbedding": Layout({"embeddings": (1,), "reverse_embeddings": (0,)}, inputs={"embeddings": 0}),
        "SimpleRNNCell": _recurrent,
        "LSTMCell": _recurrent,
        "GRUCell": _recurrent,
        "BatchNormalization": {"gamma": (), "beta": (), "moving_mean": (), "moving_variance": ()},
        "LayerNormalization": {"gamma": (), "beta": ()},
        "GroupNormalization": {"gamma": (), "beta": ()},
        "RMSNormalization": {"scale": ()},
        "PReLU": {"alpha": ()},
        "Attention": {"scale": (), "concat_score_weight": ()},
        "AdditiveAttention": {"scale": ()},
        "STFTSpectrogram": {"real_kernel": (0, 1), "imag_kernel": (0, 1)},
        "Normalization": {"mean": (), "variance": ()},
        "SpectralNormalization": {"vector_u": ()},
    }
    by_name["TorchModuleWrapper"] = _torch_module
    for rank in (1, 2, 3):
        by_name[f"Conv{rank}D"] = _conv
        by_name[f"Conv{rank}DTranspose"] = _conv_transpose
        by_name[f"DepthwiseConv{rank}D"] = _depthwise
        by_name[f"SeparableConv{rank}D"] = _separable
    for name, layout in by_name.items():
        if (layer_class := getattr(keras.layers, name, None)) is not None:
            register_layout(layer_class, layout)
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # owns ConvLSTM1D-3D's weights; has no public name

    register_layout(ConvLSTMCell, _conv_recurrent)


_register_keras()
