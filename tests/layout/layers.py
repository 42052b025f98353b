"""Every Keras layer that owns weights, with the axes of one unit, written down apart from inbounds.

The axes are measured facts of Keras: those over which the layer sums for one output feature. A
bias, a scale or an attention's scalar has none, ().
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

Axes = tuple[int, ...]
Layer = Any

GATES = ("kernel", "recurrent_kernel", "bias")
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype("float32")


@dataclass(frozen=True)
class Case:
    """One layer in one configuration.

    Attributes:
        name: what a test prints.
        make: makes the layer, without constraints.
        inputs: what it is called on.
        spans: the end of a weight's path -> the axes that one unit spans.
        features: the axes of the output that count its features.
        gates: how many units feed each output feature.
        joint: the names of the weights that each have one group of entries a unit; () for none.
        shared: the weights without fan-in whose entries belong to several output features.
        keywords: what else it is called with.
        prepare: sets weights (layer, end of a path) so that the output tells one weight's units.
        probe: (layer, end of a path) -> an output and the axes that count its features, where the
            layer's own output mixes the features that the weight makes.
    """

    name: str
    make: Callable[[], Layer]
    inputs: tuple[Any, ...]
    spans: Mapping[str, Axes]
    features: Axes = (-1,)
    gates: int = 1
    joint: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Layer, str], None] = lambda layer, weight: None
    probe: Callable[[Layer, str], tuple[Any, Axes]] | None = None

    def build(self) -> Layer:
        """The layer, built, its trainable weights random and the same each time."""
        layer = self.make()
        self.call(layer)
        random = np.random.default_rng(1)
        for variable in layer.trainable_variables:
            variable.assign(random.uniform(0.2, 1.0, variable.shape) * random.choice([-1, 1], variable.shape))
        return layer

    def call(self, layer: Layer) -> Any:
        return layer(*self.inputs, **self.keywords)

    def output(self, layer: Layer, weight: str) -> np.ndarray:
        """What that weight makes, as an array (features, the rest)."""
        output, axes = self.probe(layer, weight) if self.probe else (self.call(layer), self.features)
        array = read(output)
        counting = [axis % array.ndim for axis in axes]
        rest = [axis for axis in range(array.ndim) if axis not in counting]
        return array.transpose(*counting, *rest).reshape(int(np.prod([array.shape[a] for a in counting])), -1)


def find(layer: Layer, end: str) -> Any:
    """The weight whose path ends so."""
    (variable,) = [v for v in layer.weights if f"/{v.path}".endswith(f"/{end}")]
    return variable


def read(weight: Any) -> np.ndarray:
    """A copy of a weight or an output."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight)))


# What some cases are made of.


def einsum(equation: str, shape: tuple, inputs: tuple, features: Axes, kernel: Axes, bias_axes: str | None, **more):
    spans = {"kernel": kernel} | ({"bias": ()} if bias_axes else {})
    return Case(
        f"EinsumDense {equation} bias {bias_axes}",
        lambda: layers.EinsumDense(equation, shape, bias_axes=bias_axes),
        (normal(*inputs),),
        spans,
        features,
        **more,
    )


def conv(name: str, make: Callable[[], Layer], inputs: tuple, kernel: Axes, features: Axes = (-1,)) -> Case:
    return Case(name, make, (normal(*inputs),), {"kernel": kernel, "bias": ()}, features, joint=("kernel", "bias"))


def separable(name: str, make: Callable[[], Layer], inputs: tuple, window: Axes, features: Axes = (-1,)) -> Case:
    """As many filters as the first stage has outputs: an identity can hand these through."""

    def hand_through(layer: Layer, weight: str) -> None:
        if weight == "depthwise_kernel":
            shape = layer.pointwise_kernel.shape
            layer.pointwise_kernel.assign(np.eye(shape[-1]).reshape(shape))

    return Case(
        name,
        make,
        (normal(*inputs),),
        {"depthwise_kernel": window, "pointwise_kernel": (*window, len(window)), "bias": ()},
        features,
        joint=("kernel", "bias"),
        prepare=hand_through,
    )


def recurrent(name: str, make: Callable[[], Layer], gates: int, states: int, **more) -> Case:
    """One step from a state that is not zero, so that the recurrent kernel matters."""
    return Case(
        name,
        make,
        (normal(4, 1, 2),),
        {"kernel": (0,), "recurrent_kernel": (0,), "bias": ()},
        gates=gates,
        joint=GATES,
        keywords={"initial_state": [normal(4, 2) for _ in range(states)]},
        **more,
    )


def conv_recurrent(name: str, make: Callable[[], Layer], inputs: tuple, state: tuple, features: Axes = (-1,)) -> Case:
    kernel = tuple(range(len(inputs) - 2))  # the window and the channels
    return Case(
        name,
        make,
        (normal(*inputs),),
        {"kernel": kernel, "recurrent_kernel": kernel, "bias": ()},
        features,
        gates=4,
        joint=GATES,
        keywords={"initial_state": [normal(*state), normal(*state)]},
    )


def unmixed(layer: Layer, weight: str) -> None:
    """Makes the recurrent kernel of a GRU's candidate state diagonal, so that it mixes no units.

    With `reset_after=False` the state is multiplied by the reset gate before this kernel mixes it.
    """
    recurrent = read(layer.cell.recurrent_kernel)
    units = len(recurrent)
    recurrent[:, 2 * units :] *= np.eye(units)
    layer.cell.recurrent_kernel.assign(recurrent)


def attention(name: str, make: Callable[[], Layer], inputs: np.ndarray, spans: Mapping[str, Axes]) -> Case:
    """The projections of an attention are EinsumDense layers; each is asked for its own output."""

    def projection(layer: Layer, weight: str) -> tuple[Any, Axes]:
        part = weight.split("/")[0]
        dense = getattr(layer, f"_{part.removeprefix('attention_')}_dense")
        if part != "attention_output":
            return dense(inputs), (-2, -1)
        heads = layer._query_dense(inputs)
        return dense(heads), tuple(range(len(inputs.shape) - 1, len(dense(heads).shape)))

    return Case(name, make, (inputs, inputs), spans, joint=("kernel", "bias"), probe=projection)


def heads(*names: str, output: Axes = (0, 1), bias: bool = True) -> dict[str, Axes]:
    spans = {f"{name}/kernel": (0,) for name in names} | {"attention_output/kernel": output}
    return spans | ({f"{name}/bias": () for name in (*names, "attention_output")} if bias else {})


def scores(name: str, make: Callable[[], Layer], *weights: str) -> Case:
    """An attention without projections: its weights make the scores of all features."""
    inputs = ([SEQUENCE, SEQUENCE],)
    return Case(name, make, inputs, dict.fromkeys(weights, ()), features=(1, 2), shared=weights)


def scaled(name: str, make: Callable[[], Layer], features: Axes = (-1,)) -> Case:
    """A normalization, whose scale and shift have an entry each for a feature."""
    return Case(name, make, (SEQUENCE,), dict.fromkeys(NORMS, ()), features, joint=NORMS)


def spectrogram(name: str, inputs: tuple, *kernels: str, **how: Any) -> Case:
    """Kernels of the shape (window, 1, bins), all of which make the same bins."""
    joint = kernels if len(kernels) > 1 else ()
    spans = dict.fromkeys(kernels, (0, 1))
    return Case(
        name,
        lambda: layers.STFTSpectrogram(frame_length=4, frame_step=2, **how),
        (normal(*inputs),),
        spans,
        joint=joint,
    )


TOKENS = np.arange(5)[None]
SEQUENCE = normal(1, 3, 4)
IMAGE = normal(1, 2, 2, 4)
NEGATIVE = -np.abs(normal(2, 3, 4)) - 0.1


def both_ways(layer: Layer, weight: str) -> tuple[Any, Axes]:
    """A token's vector is what comes out for it, or what scores it in reverse."""
    if weight == "reverse_embeddings":
        return layer(STATE, reverse=True), (-1,)
    return layer(TOKENS), (1,)


STATE = normal(1, 2, 3)


def cell_states(layer: Layer, weight: str) -> tuple[Any, Axes]:
    """The new state of the cell that the weight is in."""
    _, first, second = layer(STEP, initial_state=STACKED)
    return (first if weight.startswith("first") else second)[0], (-1,)


STEP = normal(4, 1, 2)
STACKED = [[normal(4, 2), normal(4, 2)], [normal(4, 3), normal(4, 3)]]

NORMS = ("gamma", "beta")
LSTM_BOTH_WAYS = {
    f"{way}_lstm/lstm_cell/{name}": span
    for way in ("forward", "backward")
    for name, span in {"kernel": (0,), "recurrent_kernel": (0,), "bias": ()}.items()
}
GRU_BOTH_WAYS = {path.replace("lstm", "gru"): span for path, span in LSTM_BOTH_WAYS.items()}
DENSE = {"kernel": (0,), "bias": ()}
KERNEL_AND_BIAS = ("kernel", "bias")

# The table.

CASES = [
    Case("Dense", lambda: layers.Dense(3), (normal(2, 4),), DENSE, joint=KERNEL_AND_BIAS),
    Case("Dense on a sequence", lambda: layers.Dense(3), (SEQUENCE,), DENSE, joint=KERNEL_AND_BIAS),
    Case("Dense without bias", lambda: layers.Dense(3, use_bias=False), (normal(2, 4),), {"kernel": (0,)}),
    einsum("ab,bc->ac", (3,), (2, 4), (-1,), (0,), "c", joint=KERNEL_AND_BIAS),
    einsum("ab,bc->ac", (3,), (2, 4), (-1,), (0,), None),
    einsum("abc,cde->abde", (2, 3, 2), (1, 2, 4), (-2, -1), (0,), "de", joint=KERNEL_AND_BIAS),
    einsum("abc,cde->abde", (2, 3, 2), (1, 2, 4), (-2, -1), (0,), "e", shared=("bias",)),
    einsum("abc,cde->abde", (2, 3, 2), (1, 2, 4), (-2, -1), (0,), "d", shared=("bias",)),
    einsum("abc,cde->abde", (2, 3, 2), (1, 2, 4), (-2, -1), (0,), None),
    einsum("abc,cd->abd", (2, 3), (1, 2, 4), (-1,), (0,), "bd"),
    einsum("abc,ced->abde", (2, 3, 2), (1, 2, 4), (-2, -1), (0,), "de"),
    einsum("abc,bcd->ad", (3,), (1, 2, 4), (-1,), (0, 1), "d", joint=KERNEL_AND_BIAS),
    einsum("abc,dc->abd", (2, 3), (1, 2, 4), (-1,), (1,), "d", joint=KERNEL_AND_BIAS),
    einsum("abc,bcd->abd", (2, 3), (1, 2, 4), (-2, -1), (1,), "bd", joint=KERNEL_AND_BIAS),
    einsum("abc,bcd->abd", (2, 3), (1, 2, 4), (-2, -1), (1,), "d", shared=("bias",)),
    einsum("...ab,bc->...ac", (2, 3), (1, 2, 2, 4), (-1,), (0,), "c", joint=KERNEL_AND_BIAS),
    einsum("ab...,bc->ac...", (3, None), (2, 4, 2), (1,), (0,), "c", joint=KERNEL_AND_BIAS),
    Case("Embedding", lambda: layers.Embedding(5, 3), (TOKENS,), {"embeddings": (1,)}, features=(1,)),
    Case(
        "ReversibleEmbedding",
        lambda: layers.ReversibleEmbedding(5, 3),
        (TOKENS,),
        {"embeddings": (1,)},
        probe=lambda layer, weight: (layer(TOKENS), (1,)),
    ),
    Case(
        "ReversibleEmbedding in reverse",
        lambda: layers.ReversibleEmbedding(5, 3),
        (TOKENS,),
        {"embeddings": (1,)},
        probe=lambda layer, weight: (layer(STATE, reverse=True), (-1,)),
    ),
    Case(
        "ReversibleEmbedding untied",
        lambda: layers.ReversibleEmbedding(5, 3, tie_weights=False),
        (TOKENS,),
        {"embeddings": (1,), "reverse_embeddings": (0,)},
        joint=("embeddings", "reverse_embeddings"),
        probe=both_ways,
    ),
    # Convolutions: a kernel is (*window, channels / groups, filters), in either data format. No
    # output with channels first is as wide as it has channels: Keras on TensorFlow then adds the
    # bias along the width.
    conv("Conv1D", lambda: layers.Conv1D(3, 2), (1, 4, 2), (0, 1)),
    conv("Conv1D causal", lambda: layers.Conv1D(3, 2, padding="causal", dilation_rate=2), (1, 4, 2), (0, 1)),
    conv("Conv1D groups", lambda: layers.Conv1D(4, 2, groups=2), (1, 4, 4), (0, 1)),
    conv("Conv1D first", lambda: layers.Conv1D(3, 2, data_format="channels_first"), (1, 2, 5), (0, 1), (1,)),
    conv("Conv2D", lambda: layers.Conv2D(3, 2), (1, 3, 3, 2), (0, 1, 2)),
    conv("Conv2D strides", lambda: layers.Conv2D(3, (2, 1), strides=2, padding="same"), (1, 4, 4, 2), (0, 1, 2)),
    conv("Conv2D groups", lambda: layers.Conv2D(4, 2, groups=2), (1, 3, 3, 4), (0, 1, 2)),
    conv("Conv2D first", lambda: layers.Conv2D(3, 2, data_format="channels_first"), (1, 2, 3, 3), (0, 1, 2), (1,)),
    conv("Conv3D", lambda: layers.Conv3D(3, (2, 1, 2)), (1, 2, 2, 2, 2), (0, 1, 2, 3)),
    conv("Conv3D groups", lambda: layers.Conv3D(4, (2, 1, 1), groups=2), (1, 2, 2, 2, 4), (0, 1, 2, 3)),
    conv(
        "Conv3D first",
        lambda: layers.Conv3D(2, (2, 1, 1), data_format="channels_first"),
        (1, 2, 2, 2, 3),
        (0, 1, 2, 3),
        (1,),
    ),
    # Transposed ones: (*window, filters, channels).
    conv("Conv1DTranspose", lambda: layers.Conv1DTranspose(3, 2), (1, 3, 2), (0, 2)),
    conv("Conv2DTranspose", lambda: layers.Conv2DTranspose(3, 2), (1, 2, 2, 2), (0, 1, 3)),
    conv(
        "Conv2DTranspose first",
        lambda: layers.Conv2DTranspose(3, 2, strides=2, data_format="channels_first"),
        (1, 2, 2, 2),
        (0, 1, 3),
        (1,),
    ),
    conv("Conv3DTranspose", lambda: layers.Conv3DTranspose(3, (2, 1, 1)), (1, 2, 2, 2, 2), (0, 1, 2, 4)),
    # Depthwise: (*window, channels, multiplier), and a bias of channels * multiplier.
    conv("DepthwiseConv1D", lambda: layers.DepthwiseConv1D(2, depth_multiplier=2), (1, 4, 3), (0,)),
    conv(
        "DepthwiseConv1D first",
        lambda: layers.DepthwiseConv1D(2, depth_multiplier=2, data_format="channels_first"),
        (1, 3, 4),
        (0,),
        (1,),
    ),
    conv("DepthwiseConv2D", lambda: layers.DepthwiseConv2D(2, depth_multiplier=2), (1, 3, 3, 3), (0, 1)),
    conv("DepthwiseConv2D strides", lambda: layers.DepthwiseConv2D(2, strides=2), (1, 4, 4, 3), (0, 1)),
    conv(
        "DepthwiseConv2D first",
        lambda: layers.DepthwiseConv2D(2, depth_multiplier=2, data_format="channels_first"),
        (1, 3, 3, 3),
        (0, 1),
        (1,),
    ),
    separable("SeparableConv1D", lambda: layers.SeparableConv1D(4, 2, depth_multiplier=2), (1, 4, 2), (0,)),
    separable("SeparableConv2D", lambda: layers.SeparableConv2D(4, 2, depth_multiplier=2), (1, 3, 3, 2), (0, 1)),
    separable(
        "SeparableConv2D first",
        lambda: layers.SeparableConv2D(4, 2, depth_multiplier=2, data_format="channels_first"),
        (1, 2, 3, 3),
        (0, 1),
        (1,),
    ),
    # Recurrent: the gates lie side by side on the last axis; the weights are the cell's.
    recurrent("SimpleRNN", lambda: layers.SimpleRNN(2, unroll=True), gates=1, states=1),
    recurrent("LSTM", lambda: layers.LSTM(2, unroll=True), gates=4, states=2),
    recurrent("GRU", lambda: layers.GRU(2, unroll=True), gates=3, states=1),
    recurrent(
        "GRU reset before", lambda: layers.GRU(2, reset_after=False, unroll=True), gates=3, states=1, prepare=unmixed
    ),
    Case(
        "LSTM without bias",
        lambda: layers.LSTM(2, use_bias=False, unroll=True),
        (STEP,),
        {"kernel": (0,), "recurrent_kernel": (0,)},
        gates=4,
        joint=("kernel", "recurrent_kernel"),
        keywords={"initial_state": [normal(4, 2), normal(4, 2)]},
    ),
    conv_recurrent("ConvLSTM1D", lambda: layers.ConvLSTM1D(2, 2, unroll=True), (1, 1, 3, 2), (1, 2, 2)),
    conv_recurrent("ConvLSTM2D", lambda: layers.ConvLSTM2D(2, (2, 1), unroll=True), (1, 1, 2, 2, 2), (1, 1, 2, 2)),
    conv_recurrent(
        "ConvLSTM2D first",
        lambda: layers.ConvLSTM2D(2, (2, 1), data_format="channels_first", unroll=True),
        (1, 1, 2, 3, 2),
        (1, 2, 2, 2),
        (1,),
    ),
    conv_recurrent(
        "ConvLSTM3D", lambda: layers.ConvLSTM3D(2, (2, 1, 1), unroll=True), (1, 1, 3, 2, 2, 1), (1, 2, 2, 2, 2)
    ),
    Case(
        "RNN of cells",
        lambda: layers.RNN(
            [layers.LSTMCell(2, name="first"), layers.LSTMCell(3, name="second")], return_state=True, unroll=True
        ),
        (STEP,),
        {
            f"{cell}/{name}": span
            for cell in ("first", "second")
            for name, span in {"kernel": (0,), "recurrent_kernel": (0,), "bias": ()}.items()
        },
        gates=4,
        joint=GATES,
        keywords={"initial_state": STACKED},
        probe=cell_states,
    ),
    Case(
        "Bidirectional LSTM",
        lambda: layers.Bidirectional(layers.LSTM(2, unroll=True, name="lstm")),
        (STEP,),
        LSTM_BOTH_WAYS,
        gates=4,
        joint=GATES,
        keywords={"initial_state": [normal(4, 2) for _ in range(4)]},
    ),
    Case(
        "Bidirectional GRU",
        lambda: layers.Bidirectional(layers.GRU(2, unroll=True, name="gru")),
        (STEP,),
        GRU_BOTH_WAYS,
        gates=3,
        joint=GATES,
        keywords={"initial_state": [normal(4, 2) for _ in range(2)]},
    ),
    # Wrappers.
    Case(
        "TimeDistributed Dense",
        lambda: layers.TimeDistributed(layers.Dense(3)),
        (SEQUENCE,),
        DENSE,
        joint=KERNEL_AND_BIAS,
    ),
    conv(
        "TimeDistributed Conv1DTranspose",
        lambda: layers.TimeDistributed(layers.Conv1DTranspose(3, 2)),
        (1, 2, 3, 2),
        (0, 2),
    ),
    Case(
        "SpectralNormalization Dense",
        lambda: layers.SpectralNormalization(layers.Dense(3)),
        (normal(2, 4),),
        DENSE,
        joint=KERNEL_AND_BIAS,
    ),
    conv(
        "SpectralNormalization Conv2DTranspose",
        lambda: layers.SpectralNormalization(layers.Conv2DTranspose(3, 2)),
        (1, 2, 2, 2),
        (0, 1, 3),
    ),
    Case(
        "Sequential in Sequential",
        lambda: keras.Sequential(
            [keras.Sequential([layers.Reshape((2, 2))]), keras.Sequential([layers.EinsumDense("abc,dc->abd", (2, 3))])]
        ),
        (normal(1, 4),),
        {"kernel": (1,)},
    ),
    # Attention.
    attention("MultiHeadAttention", lambda: layers.MultiHeadAttention(2, 3), SEQUENCE, heads("query", "key", "value")),
    attention(
        "MultiHeadAttention gate",
        lambda: layers.MultiHeadAttention(2, 3, use_gate=True),
        SEQUENCE,
        heads("query", "key", "value", "gate"),
    ),
    attention(
        "MultiHeadAttention output shape",
        lambda: layers.MultiHeadAttention(2, 3, output_shape=(2, 3)),
        SEQUENCE,
        heads("query", "key", "value"),
    ),
    attention(
        "MultiHeadAttention on an image",
        lambda: layers.MultiHeadAttention(2, 3, attention_axes=(1, 2)),
        IMAGE,
        heads("query", "key", "value"),
    ),
    attention(
        "GroupQueryAttention", lambda: layers.GroupQueryAttention(3, 4, 2), SEQUENCE, heads("query", "key", "value")
    ),
    attention(
        "GroupQueryAttention gate",
        lambda: layers.GroupQueryAttention(3, 2, 1, use_gate=True),
        SEQUENCE,
        heads("query", "key", "value", "gate"),
    ),
    scores("Attention", lambda: layers.Attention(use_scale=True), "scale"),
    scores(
        "Attention concat",
        lambda: layers.Attention(use_scale=True, score_mode="concat"),
        "scale",
        "concat_score_weight",
    ),
    scores("AdditiveAttention", lambda: layers.AdditiveAttention(), "scale"),
    # Scales and shifts.
    scaled("BatchNormalization", lambda: layers.BatchNormalization()),
    scaled("BatchNormalization axis 1, renorm", lambda: layers.BatchNormalization(axis=1, renorm=True), (1,)),
    scaled("LayerNormalization", lambda: layers.LayerNormalization()),
    scaled("LayerNormalization two axes", lambda: layers.LayerNormalization(axis=(1, 2)), (1, 2)),
    scaled("GroupNormalization", lambda: layers.GroupNormalization(groups=2)),
    Case("LayerNormalization rms", lambda: layers.LayerNormalization(rms_scaling=True), (SEQUENCE,), {"gamma": ()}),
    Case("RMSNormalization", lambda: layers.RMSNormalization(), (SEQUENCE,), {"scale": ()}),
    Case("PReLU", lambda: layers.PReLU(), (NEGATIVE,), {"alpha": ()}, features=(1, 2)),
    Case(
        "PReLU shared axes",
        lambda: layers.PReLU(shared_axes=[1]),
        (NEGATIVE,),
        {"alpha": ()},
        features=(1, 2),
        shared=("alpha",),
    ),
    spectrogram("STFTSpectrogram", (1, 8, 1), "real_kernel", "imag_kernel", mode="psd"),
    spectrogram(
        "STFTSpectrogram of two channels first",
        (1, 2, 8),
        "real_kernel",
        "imag_kernel",
        mode="magnitude",
        expand_dims=True,
        data_format="channels_first",
    ),
    spectrogram("STFTSpectrogram real", (1, 8, 1), "real_kernel", mode="real"),
]

BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES)
