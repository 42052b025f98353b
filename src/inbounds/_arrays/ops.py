"""The operations of sets, for NumPy arrays and the tensors of Keras' backend alike.

NumPy arrays stay in NumPy, which has float64 where the backend has none (JAX without x64). Tensors
go through `keras.ops`. Most operations have the same name in both; this module has those that
differ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from typing import Any, ParamSpec, TypeVar

import keras
import ml_dtypes  # noqa: F401  # from which NumPy has "bfloat16"; Keras installs it
import numpy as np

Array = Any  # a NumPy array or a tensor of Keras' backend

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
"""The explicit bits of the significand, in which a unit in the last place is measured."""

HUGE = 2.0**120  # the largest scale: near the largest float32, and its inverse is still a normal number
MODERATE = 1e9  # squares of numbers between its inverse and this neither overflow nor vanish
BLOCK = 32  # how many numbers `blocked_sum` leaves to the backend to add in any order

SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest normal number of each working dtype. XLA takes smaller numbers for 0."""

SMALLEST_EXPONENT = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}
"""The exponent of the smallest normal number, below which the ulp stays the same."""


_OF_TORCH = (
    "abs",
    "clip",
    "copysign",
    "floor",
    "full_like",
    "isfinite",
    "matmul",
    "reshape",
    "sqrt",
    "stack",
    "sum",
    "where",
)
"""The operations taken from PyTorch. Keras takes half a millisecond to stack, and computes
`floor` and `matmul` of float64 in float32."""


class _Torch:
    """`keras.ops`, with the operations of a projection replaced by PyTorch's own.

    In eager PyTorch a call of `keras.ops` takes 5 microseconds, one of PyTorch 1. For small weights
    that is more than the arithmetic. PyTorch takes the names of NumPy's arguments.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch if name in _OF_TORCH else keras.ops, name)

    @cached_property
    def torch(self) -> Any:
        import torch

        return torch

    def any(self, x: Array) -> Array:
        return whole(self.torch.any(x))

    def all(self, x: Array, **axis: Any) -> Array:
        return self.torch.all(x, **axis) if axis else whole(self.torch.all(x))

    def max(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        return self.torch.amax(x, axis, keepdims)

    def maximum(self, a: Array, b: Array) -> Array:
        return self.torch.maximum(a, b) if hasattr(b, "shape") else self.torch.clamp(a, min=b)

    def minimum(self, a: Array, b: Array) -> Array:
        return self.torch.minimum(a, b) if hasattr(b, "shape") else self.torch.clamp(a, max=b)

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        return self.torch.take_along_dim(x, indices.long(), axis)


_TORCH = _Torch()


def namespace(x: Array) -> Any:
    """The module with the operations for `x`: numpy, `keras.ops` or its replacement for PyTorch."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    return _TORCH if keras.backend.backend() == "torch" else keras.ops


def is_eager_torch(x: Array) -> bool:
    """Whether `x` is a PyTorch tensor, for which each operation is a pass over memory."""
    return namespace(x) is _TORCH


def dtype_of(x: Array) -> str:
    """The dtype that an array, tensor or variable really has, by Keras' name.

    A variable created as float64 is float32 where JAX has no float64, although Keras reports
    float64.
    """
    name = _DTYPE_NAMES.get(x.dtype)
    if name is None:
        name = _DTYPE_NAMES[x.dtype] = str(keras.backend.standardize_dtype(x.dtype))
    if name == "float64" and isinstance(x, keras.Variable) and not has_float64():
        return "float32"
    return name


_DTYPE_NAMES: dict[Any, str] = {}
"""Keras' names of the dtypes seen so far. `torch.compile` warns of a `functools.cache` here."""


def has_float64() -> bool:
    """Whether tensors can be float64; in JAX only where it is enabled."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return bool(jax.config.jax_enable_x64)


def working_dtype(dtype: str) -> str:
    """The dtype to compute in: float64 for float64, float32 for all others."""
    return "float64" if dtype == "float64" else "float32"


def cast(x: Array, dtype: str) -> Array:
    """`x` in another dtype; `x` itself where it already has it."""
    if dtype_of(x) == dtype:
        return x
    return x.astype(dtype) if namespace(x) is np else keras.ops.cast(x, dtype)


def is_sharded(x: Array) -> bool:
    """Whether `x` is a DTensor of PyTorch.

    Of a DTensor, Python reads only the part that its process holds, see `whole`.
    """
    tensors = sys.modules.get("torch.distributed.tensor")  # not imported: there are no DTensors
    return tensors is not None and isinstance(x, tensors.DTensor)


def whole(x: Array) -> Array:
    """`x` with the parts of all processes; `x` itself where it isn't distributed."""
    return x.full_tensor() if is_sharded(x) else x


def _beside(like: Array, value: Array) -> Array:
    """A tensor that can be combined with `like`: replicated where `like` is a DTensor."""
    if not is_sharded(like) or is_sharded(value):
        return value
    tensors = sys.modules["torch.distributed.tensor"]
    copies = [tensors.Replicate()] * like.device_mesh.ndim
    return tensors.DTensor.from_local(value, like.device_mesh, copies, run_check=False)


def constant(like: Array, value: Any) -> Array:
    """`value` as an array of the same library and dtype as `like`."""
    if namespace(like) is np:
        return np.asarray(value, dtype=like.dtype)
    if is_eager_torch(like):
        value = np.array(value) if isinstance(value, np.ndarray) else value  # PyTorch warns of read-only arrays
        return _beside(like, _TORCH.torch.as_tensor(value, dtype=like.dtype, device=like.device))
    return keras.ops.convert_to_tensor(value, dtype=dtype_of(like))


def is_sparse(x: Any) -> bool:
    """Whether `x` is a TensorFlow gradient with only the used rows of an Embedding."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(x, tf.IndexedSlices)


def dense(x: Array) -> Array:
    """A gradient as a dense tensor, where TensorFlow gives only the used rows of an Embedding."""
    if keras.backend.backend() != "tensorflow":
        return x
    import tensorflow as tf

    return tf.convert_to_tensor(x)


def is_concrete(x: Array) -> bool:
    """Whether Python can read the values of `x`: it is neither traced nor vectorized."""
    backend = keras.backend.backend()
    if namespace(x) is np:
        return True
    if backend == "jax":
        import jax

        return not isinstance(x, jax.core.Tracer)
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.executing_eagerly())
    torch = _TORCH.torch
    kinds = (torch.Tensor, torch.nn.Parameter)  # the fake tensors of traces are another class
    plain = type(x) in kinds or is_sharded(x)
    vectorized = torch._C._functorch.is_functorch_wrapped_tensor  # private; there is no public way to ask
    return plain and not torch.compiler.is_compiling() and not vectorized(x)


def as_written(fn: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`fn`, excluded from AutoGraph.

    In a user's `tf.function`, AutoGraph would rewrite all that `fn` calls, with warnings.
    """
    if keras.backend.backend() != "tensorflow":
        return fn
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(fn)  # type: ignore[no-any-return]  # tensorflow has no types


State = tuple[Array, ...]


def iterate(
    step: Callable[[State], tuple[State, Array]],
    state: State,
    limit: int,
    unrolled: int = 0,
    unfinished: Array | None = None,
) -> State:
    """Repeats `step` while it says that some unit is unfinished, at most `limit` times.

    A step must leave finished units as they are, up to rounding: where PyTorch exports or
    vectorizes and no value can be read, `unrolled` steps are taken, or `limit`. `torch.compile`
    leaves the loop to Python. Nothing is differentiated; other tensors that the step reads must be
    `without_gradient`. Without `unfinished`, the first step tells which units are.
    """
    if is_eager_torch(state[0]) and _TORCH.torch.compiler.is_compiling():
        left_to_python = _TORCH.torch.compiler.disable(iterate)
        return left_to_python(step, state, limit, unrolled, unfinished)  # type: ignore[no-any-return]  # torch has Any
    state = tuple(without_gradient(x) for x in state)
    taken = 0
    if unfinished is None and (is_concrete(state[0]) or is_eager_torch(state[0])):
        state, unfinished = step(state)  # shows whether all that the step reads is concrete
        taken = 1
    if unfinished is not None and (is_concrete(unfinished) or is_eager_torch(unfinished)):
        concrete = is_concrete(unfinished)
        for _ in range((limit if concrete else unrolled or limit) - taken):
            if concrete and not bool(namespace(unfinished).any(unfinished)):
                break
            state, unfinished = step(state)
    else:

        def body(go: Array, *state: Array) -> tuple[Array, ...]:
            state, unfinished = step(state)
            return (keras.ops.any(unfinished), *state)

        go = booleans(state[0], True) if unfinished is None else keras.ops.any(unfinished)
        state = keras.ops.while_loop(lambda go, *_: go, body, (go, *state), maximum_iterations=limit - taken)[1:]
    return tuple(without_gradient(x) for x in state)


def at_once(fn: Callable[..., Array], *arrays: Array | None, static: Any) -> Array:
    """`fn(*arrays, static)`, on JAX as one program.

    JAX would take seconds to compile each operation by itself.
    """
    jitted = namespace(arrays[0]) is not np and keras.backend.backend() == "jax"
    return program(fn, static)(*arrays) if jitted else fn(*arrays, static)


@lru_cache(maxsize=256)
def program(fn: Callable[..., Any], static: Any) -> Any:
    """`fn(*arrays, static)` as a program of the arrays, compiled by XLA on JAX or TensorFlow."""

    def run(*arrays: Any) -> Any:
        return fn(*arrays, static)

    run.__name__ = fn.__name__
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(run)
    import tensorflow as tf

    return tf.function(run, jit_compile=True, autograph=False)


def branch(true: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """The result of one of two functions that return arrays alike, in a compiled step too.

    Where PyTorch can't read the test, `no()` is taken, which must be right in both cases.
    """
    if is_concrete(true):
        return yes() if bool(whole(true)) else no()
    return no() if is_eager_torch(true) else keras.ops.cond(true, yes, no)


def solve(matrices: Array, right: Array) -> Array:
    """The solutions of linear systems, of shapes (count, size, size) and (count, size, columns)."""
    return (np.linalg.solve if namespace(matrices) is np else keras.ops.solve)(matrices, right)


def repeat(step: Callable[[State], State], state: State, times: int) -> State:
    """Repeats `step` a fixed number of times, with its derivative; compiled once if possible."""
    if is_concrete(state[0]) or is_eager_torch(state[0]):
        for _ in range(times):
            state = step(state)
        return state
    return keras.ops.scan(lambda state, _: (step(state), None), state, length=times)[0]  # type: ignore[no-any-return]  # keras has no types


def without_gradient(x: Array) -> Array:
    """`x` as a constant for differentiation."""
    return x if namespace(x) is np else keras.ops.stop_gradient(x)


def unrecorded(fn: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`fn`, of whose operations PyTorch records none for gradients."""
    if keras.backend.backend() != "torch":
        return fn
    import torch

    return torch.no_grad()(fn)  # type: ignore[no-any-return]  # torch has Any


def recording_again() -> Callable[[], Any]:
    """A function that sets PyTorch's recording of gradients back to what it is now.

    An interrupt can leave the recording off forever.
    """
    if keras.backend.backend() != "torch":
        return lambda: None
    import torch

    recorded = torch.is_grad_enabled()
    return lambda: torch.set_grad_enabled(recorded)


def quiet(x: Array) -> AbstractContextManager[Any]:
    """A context without NumPy's warnings of values that sets compare and select rightly."""
    in_numpy = namespace(x) is np or is_eager_torch(x)  # see `Units.read`
    return np.errstate(over="ignore", invalid="ignore", divide="ignore") if in_numpy else nullcontext()


def clip_finite(x: Array, low: Array, high: Array) -> Array:
    """`x` clipped to [low, high] where it is finite; NaN and infinities stay."""
    xp = namespace(x)
    if is_eager_torch(x):  # a mask costs thirty clips; what is subtracted is 0, NaN or infinite
        largest = xp.torch.finfo(x.dtype).max
        if hasattr(low, "shape") or hasattr(high, "shape"):
            low, high = constant(x, low), constant(x, high)
        nothing = xp.torch.clamp(x, -largest, largest).sub_(x)
        return xp.torch.clamp(x, low, high).sub_(nothing)  # in place: new memory costs as much as a pass
    x = xp.where((x < low) & (x > -np.inf), low, x)
    return xp.where((x > high) & (x < np.inf), high, x)


def add_product(x: Array, a: Array, b: Array) -> Array:
    """`x + a * b`, on PyTorch in one pass."""
    return _TORCH.torch.addcmul(x, a, b) if is_eager_torch(x) else x + a * b


def less_product(x: Array, a: Array | float, b: Array) -> Array:
    """`x - a * b`, on PyTorch in one pass."""
    if isinstance(a, float) or not is_eager_torch(x):
        return x - times(a, b)
    return _TORCH.torch.addcmul(x, a, b, value=-1)


def signed(size: Array, x: Array) -> Array:
    """A size that is 0 where `x` is, with the sign of `x`; in its memory, see `into`."""
    if is_eager_torch(x) or namespace(x) is np:
        return into(size, "copysign", size, x)
    return namespace(x).sign(x) * size


def times(factor: Array | float, x: Array) -> Array:
    """The product; `x` itself where the factor is the number 1."""
    return x if isinstance(factor, float) and factor == 1 else factor * x


def into(memory: Array, operation: str, *operands: Any) -> Array:
    """An operation of `namespace(memory)`, on PyTorch in memory that the caller needs no more.

    The memory has the shape and dtype of the result, and may be that of an operand. New memory is
    mapped page by page, which takes PyTorch longer than the operation.
    """
    xp = namespace(memory)
    if is_eager_torch(memory) and is_concrete(memory) and not (is_sharded(memory) or xp.torch.is_grad_enabled()):
        return getattr(xp.torch, operation)(*operands, out=memory)
    return getattr(xp, operation)(*operands)


def positive_part(x: Array) -> Array:
    """The larger of `x` and 0; in its memory, see `into`."""
    return into(x, "clip", x, 0, math.inf) if is_eager_torch(x) else namespace(x).maximum(x, 0)


def above(x: Array, bound: Array | float, memory: Array | None = None) -> Array:
    """1 where `x` is above a bound that broadcasts to it, else 0, in its dtype; see `into`.

    Arithmetic on it takes the place of a selection: PyTorch runs a mask 40 times as long as a
    product, and XLA writes one out before it sums. It also writes out what two sums share, as the
    bound in `x - bound`, and its `sign` guesses at branches.
    """
    xp = namespace(x)
    if is_eager_torch(x) and is_concrete(x) and not is_sharded(x):
        bound = bound.detach() if hasattr(bound, "detach") else bound
        return xp.torch.gt(x.detach(), bound, out=xp.torch.empty_like(x) if memory is None else memory)
    beyond = without_gradient(xp.maximum(x + (-bound), 0))
    return xp.sign(beyond) if xp is np else xp.minimum(beyond * (1 / SMALLEST_NORMAL[dtype_of(x)]), 1)


def select(chosen: Array, a: Array, b: Array) -> Array:
    """`a` where `chosen`, else `b`, bit for bit, for masks that are smaller than the arrays."""
    xp = namespace(b)
    if is_eager_torch(b) and is_concrete(b) and not (is_sharded(b) or xp.torch.is_grad_enabled()):
        bits = {4: xp.torch.int32, 8: xp.torch.int64}[b.itemsize]
        other = b.view(bits)
        mixed = xp.torch.bitwise_xor(a.view(bits), other)
        mixed &= -chosen.to(bits)
        mixed ^= other
        return mixed.view(b.dtype)
    return xp.where(chosen, a, b)


def blocked_sum(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum over some axes, with an error within that of `Judgement` on every backend.

    JAX and PyTorch sum this way already. NumPy and TensorFlow add a kernel's rows one after the
    other, with an error that grows with their number. For them, blocks of rows are added, then
    blocks of the blocks' sums, and so on.
    """
    xp = namespace(x)
    if xp is not np and keras.backend.backend() != "tensorflow":
        return xp.sum(x, axis=axes)
    if (size := math.prod(x.shape[axis] for axis in axes)) <= BLOCK:
        return xp.sum(x, axis=axes)
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        x = xp.transpose(x, (*axes, *(axis for axis in range(len(x.shape)) if axis not in axes)))
        axes = tuple(range(len(axes)))
    axis, shape = axes[0], [-1 if n is None else n for n in x.shape]
    before, after = shape[:axis], shape[axes[-1] + 1 :]
    blocks, rest = divmod(size, BLOCK)
    x = xp.reshape(x, (*before, size, *after))
    whole, left = xp.split(x, [size - rest], axis=axis) if rest else (x, None)
    sums = xp.sum(xp.reshape(whole, (*before, blocks, BLOCK, *after)), axis=axis + 1)
    if rest:
        sums = xp.concatenate([sums, xp.sum(left, axis=axis, keepdims=True)], axis=axis)
    return blocked_sum(sums, (axis,))


def booleans(like: Array, value: Any) -> Array:
    """A mask as an array of the library of `like`."""
    if namespace(like) is np:
        return np.asarray(value, dtype="bool")
    mask = keras.ops.convert_to_tensor(np.array(value, dtype="bool"), dtype="bool")
    return _beside(like, mask.to(like.device) if is_eager_torch(like) else mask)


def how_many(conditions: Array) -> Array:
    """How many conditions hold along the last axis, which stays."""
    return namespace(conditions).sum(cast(conditions, "int32"), axis=-1, keepdims=True)


def in_numpy(x: Array) -> np.ndarray[Any, Any]:
    """An array as it is, or a copy of a tensor or variable in NumPy, in its dtype."""
    value = whole(x.value) if isinstance(x, keras.Variable) else x
    return value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)


def shared_with_numpy(x: Array) -> Array:
    """A tensor of eager PyTorch on a CPU as a NumPy array over its memory; all else as it is."""
    near = is_eager_torch(x) and type(x) is _TORCH.torch.Tensor and is_concrete(x) and x.is_cpu
    return x.numpy() if near else x


def from_numpy(like: Array, x: Array) -> Array:
    """An array of NumPy as a tensor where `like` is one of eager PyTorch; all else as it is."""
    in_numpy = isinstance(x, (np.ndarray, np.generic)) and is_eager_torch(like)
    return _TORCH.torch.as_tensor(x, device=like.device) if in_numpy else x


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """A copy of an array, tensor or variable in NumPy float64."""
    return np.array(in_numpy(x), dtype="float64")


def ulp(value: float, dtype: str) -> float:
    """The unit in the last place of `value` in a dtype; 0 for infinity and for 0."""
    if value == 0 or not math.isfinite(value):
        return 0.0
    _, exponent = math.frexp(value)
    return math.ldexp(1.0, max(exponent - 1, SMALLEST_EXPONENT[dtype]) - MANTISSA_BITS[dtype])


def ulps(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """`ulp` of an array of float64 numbers."""
    finite = np.where(np.isfinite(values), values, 0.0)
    _, exponent = np.frexp(finite)
    spacing = np.ldexp(1.0, np.maximum(exponent - 1, SMALLEST_EXPONENT[dtype]) - MANTISSA_BITS[dtype])
    return np.where(finite == 0, 0.0, spacing)


def epsilon(dtype: str) -> float:
    """The distance from 1 to the next larger number: the largest relative size of an ulp."""
    return float(2.0 ** -MANTISSA_BITS[dtype])
