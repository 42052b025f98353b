"""Layouts: which axes of a layer's weights make a unit.

A unit spans the axes that the layer sums over to compute one output feature; a bias or a scale has
none. For a weight that no layout names, the units are guessed, every axis but the last, with a
warning, unless the layer wraps a model of another framework, whose axes may have another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from inbounds._arrays.views import Axes, WeightLayout
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
            `on` and `per`. A weight that is left out has no single such axis.
        heads: weight name -> the axis of the heads of an attention, for `per`.
        gates: how many gates each weight has side by side along its last axis, for `per`.
        window: how many axes the window of a convolution has, the first ones of each weight that
            has more, for `per`.
    """

    spans: Mapping[str, Sequence[int]]
    joint_spans: Mapping[str, Sequence[int]] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    gates: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        for spans in (self.spans, self.joint_spans):
            for name, axes in spans.items():
                if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, int) for axis in axes):
                    wrong = "The axes that one unit spans are not a tuple of integers"
                    instead = f"{{{name!r}: (0,)}}, or () for a weight without fan-in"
                    raise LayoutError(wrong, f"{name!r}: {axes!r}", instead=instead)

    def span(self, name: str, shape: tuple[int, ...], *, joint: bool = False) -> Axes | None:
        """The axes that one unit of a weight spans, from 0; None if the layout lacks the weight."""
        axes = self.joint_spans.get(name, self.spans.get(name)) if joint else self.spans.get(name)
        if axes is None:
            return None
        rank = len(shape)
        if not all(-rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
            wrong = f"A layout names an axis that the weight hasn't, or one twice: it has {-rank} to {rank - 1}"
            instead = "register_layout with the axes that one unit of this weight spans"
            raise LayoutError(wrong, f"{name!r}: {tuple(axes)}", where=f"a weight of shape {shape}", instead=instead)
        return tuple(axis % rank for axis in axes)

    def of_weight(self, name: str, shape: tuple[int, ...], *, joint: bool = False) -> WeightLayout:
        """What the axes of a weight are."""
        fan_in = self.span(name, shape, joint=joint)
        fan_in = () if fan_in is None and len(shape) < 2 else fan_in
        window = self.window if len(shape) > self.window else 0
        return WeightLayout(shape, fan_in, self.inputs.get(name), self.heads.get(name), self.gates, window)


LayoutFunction = Callable[[Any], "Layout | Mapping[str, Sequence[int]]"]

_REGISTRY: dict[type, LayoutFunction | Layout] = {}


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
    if not isinstance(layout, (Layout, Mapping)) and not callable(layout):
        wrong = "`layout` is neither a mapping of weight names to axes nor a function of the layer"
        raise LayoutError(wrong, f"layout={shown(layout)}", instead="{'kernel': (0,), 'bias': ()}")
    _REGISTRY[layer_class] = Layout(dict(layout)) if isinstance(layout, Mapping) else layout


def layout_of(layer: Any) -> Layout:
    """The layout registered for the layer's class or its nearest base class; empty without one."""
    cls = next((cls for cls in type(layer).__mro__ if cls in _REGISTRY), None)
    registered = Layout({}) if cls is None else _REGISTRY[cls]
    found = registered if isinstance(registered, Layout) else registered(layer)
    if not isinstance(found, (Layout, Mapping)):
        wrong = "A function that is registered as a layout did not return a mapping of weight names to axes"
        instead = "{'kernel': (0,), 'bias': ()}"
        raise LayoutError(wrong, shown(found), where=f"{cls.__name__}, for the layer {layer.name!r}", instead=instead)
    return found if isinstance(found, Layout) else Layout(dict(found))


def wraps_foreign_model(layer: Any) -> bool:
    """Whether a layer wraps a model of another framework, whose axes may have another order."""
    names = ("TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
    return isinstance(layer, tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)))


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


def _convolutions(rank: int) -> dict[str, LayoutFunction | Layout]:
    """The layouts of convolutions in `rank` dimensions; a kernel's first axes are the window."""
    window = tuple(range(rank))
    conv = Layout({"kernel": (*window, rank), "bias": ()}, inputs={"kernel": rank}, window=rank)
    in_groups = replace(conv, inputs={})  # in each group, an index is that of another channel
    why = "its filters feed the pointwise kernel, which has the bias"
    return {
        f"Conv{rank}D": lambda layer: conv if layer.groups == 1 else in_groups,
        f"Conv{rank}DTranspose": replace(
            conv, spans={"kernel": (*window, rank + 1), "bias": ()}, inputs={"kernel": rank + 1}
        ),
        f"DepthwiseConv{rank}D": replace(conv, spans={"kernel": window, "bias": ()}),
        f"SeparableConv{rank}D": Layout(
            {"depthwise_kernel": window, "pointwise_kernel": (*window, rank), "bias": ()},
            roles={"kernel": "pointwise_kernel"},
            apart={"depthwise_kernel": why},
            inputs={"depthwise_kernel": rank},
            window=rank,
        ),
    }


def _conv_recurrent(layer: Any) -> Layout:
    fan_in = tuple(range(len(layer.kernel.shape) - 1))
    spans = {"kernel": fan_in, "recurrent_kernel": fan_in, "bias": ()}
    return Layout(spans, inputs={"kernel": fan_in[-1]}, gates=4, window=len(fan_in) - 1)


# The gates share the last axis, so that a unit is a column of one gate.
_RECURRENT = Layout({"kernel": (0,), "recurrent_kernel": (0,), "bias": ()}, inputs={"kernel": 0})


def _gru(layer: Any) -> Layout:
    """With `reset_after`, the bias has two rows: the input bias and the recurrent bias."""
    two_rows = layer.bias is not None and len(layer.bias.shape) == 2
    return replace(_RECURRENT, joint_spans={"bias": (0,)} if two_rows else {}, gates=3)


def _einsum(layer: Any) -> Layout:
    """The layout of an einsum: a unit spans the letters of the kernel that the output lacks.

    Where those of the output are two, or else the ones that it lacks, the first counts heads: so
    Keras' attention lays out its kernels (features, heads, dim) and (heads, dim, features).
    """
    operands, output = layer.equation.replace(" ", "").replace("...", "").split("->")
    kernel = operands.split(",")[1]
    summed = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    units = "".join(letter for letter in kernel if letter in output)
    biases = "".join(letter for letter in output if letter in (layer.bias_axes or units))
    two = len(units) == 2
    heads = {"kernel": kernel.index(units[0])} if two else {"kernel": summed[0]} if len(summed) == 2 else {}
    why = (
        f"in {layer.equation!r} the kernel's units have the axes {units!r} and the bias {biases!r}, "
        "so that units share entries of the bias, have several, or lie in another order"
    )
    return Layout(
        {"kernel": summed, "bias": ()},
        apart={} if biases == units else {"bias": why},
        inputs={"kernel": summed[0]} if len(summed) == 1 else {},
        heads=heads | ({"bias": 0} if two and biases == units else {}),
    )


def _register_keras() -> None:
    """Registers the layouts of Keras' layers that own weights, where this version has them."""
    by_name: dict[str, LayoutFunction | Layout | Mapping[str, Axes]] = {
        "Dense": Layout({"kernel": (0,), "bias": ()}, inputs={"kernel": 0}),
        "EinsumDense": _einsum,
        "Embedding": Layout({"embeddings": (1,)}, inputs={"embeddings": 0}),
        "ReversibleEmbedding": Layout({"embeddings": (1,), "reverse_embeddings": (0,)}, inputs={"embeddings": 0}),
        "SimpleRNNCell": _RECURRENT,
        "LSTMCell": replace(_RECURRENT, gates=4),
        "GRUCell": _gru,
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
        "TorchModuleWrapper": _torch_module,
    }
    by_name |= _convolutions(1) | _convolutions(2) | _convolutions(3)
    for name, layout in by_name.items():
        if (layer_class := getattr(keras.layers, name, None)) is not None:
            register_layout(layer_class, layout)
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # owns ConvLSTM1D-3D's weights; has no public name

    register_layout(ConvLSTMCell, _conv_recurrent)


_register_keras()
