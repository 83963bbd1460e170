"""What each operation does to a value: the table of operations, open for registration.

An operation has its name in a `trace`. Its function gets the call and, by ATen's names, the
arguments, with a `Tracked` for each tensor that depends on the model's input, the first of them
``x``; it returns the value, which has to have the shape of PyTorch's result.

CONV layers, ``nn.Linear`` and BatchNorm are built from their parameters. What only moves numbers is
run on numbered elements, and every other affine operation on the vectors of a basis, so that
PyTorch itself says what it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.simplification.trace import LAYER, Call, Ref, refuse
from convfc.frameworks.torch.simplification.values import (
    Affine,
    Opaque,
    Relu,
    Value,
    affine,
    diagonal,
    identity,
    linear,
    numbers,
    relu,
    total,
)
from convfc.layer import ConvLayer
from convfc.operators.estimate import MatrixEstimate, pattern_estimate
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.pattern import matrix_pattern

_BLOCK = 2**26  # bytes of basis vectors, or of their images, that are in memory at a time
_NORM_ROUNDINGS = 8  # eps, the root, its inverse, two products, a difference, a sum, one to store
_EACH = "it does not treat each example of a batch by itself"
_PRODUCT = "a product of two values of the network is not affine"
_QUOTIENT = "a division by a value of the network, or a rounded one"


@dataclass(frozen=True, eq=False)
class Tracked:
    """A value of the network, and the shape that one example's tensor has."""

    value: Value
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Condition:
    """Where a value is positive, or where it is not."""

    difference: Tracked
    positive: bool


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a trace: what an operation may ask besides its arguments."""

    call: Call
    given: Tensor  # the first tensor of the network among them, of two examples, on the meta device
    result: Any  # on the meta device, too
    max_pool: str
    memory: float | None

    @property
    def place(self) -> str:
        """The module in whose forward the call stands."""
        return self.call.place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example's result, or of the first one."""
        first = self.result if isinstance(self.result, Tensor) else self.result[0]
        return tuple(first.shape[1:])

    def again(self, given: Sequence[Tensor]) -> Any:
        """Call it on other tensors in the places of the network's, in float64."""
        instead = iter(given)

        def argument(one: Any) -> Any:
            if isinstance(one, Ref):
                return next(instead)
            floating = isinstance(one, Tensor) and one.is_floating_point()
            return one.detach().cpu().double() if floating else one

        args, kwargs = tree_map(argument, (self.call.args, self.call.kwargs))
        return self.call.function(*args, **kwargs)

    def like_result(self, x: Tracked) -> Tracked:
        """Return a value broadcast to the shape of the result."""
        if x.shape == self.shape:
            return x
        shape = (2, *self.shape)
        return moved(lambda t: torch.broadcast_to(t[0], shape), [x], self.place)  # type: ignore[no-any-return]

    def constant(self, operand: Any) -> npt.NDArray[Any]:
        """Return constants, one for each element of an example's result."""
        like: Tensor = self.result
        shape, dtype = like.shape, like.dtype
        spread = torch.broadcast_to(torch.as_tensor(operand, dtype=dtype).detach().cpu(), shape)
        if not torch.equal(spread[0], spread[1]):
            raise refuse("constants that differ from example to example", self.place)
        return numbers(spread[0]).ravel()


Operation = Callable[..., Any]


class _Operations(dict[str, Operation]):
    """The functions, by the names of their operations."""

    def register(self, *names: str) -> Callable[[Operation], Operation]:
        """Register a function for the operations of these names."""

        def enter(operation: Operation) -> Operation:
            self.update(dict.fromkeys(names, operation))
            return operation

        return enter


OPERATIONS = _Operations()


def _axes(*names: str) -> list[str]:
    """Return names with every dimension in the place of a ``*``."""
    return [name.replace("*", n) for name in names for n in "123"]


# Layers -------------------------------------------------------------------------------------------


def estimate(call: Call, x: Tensor) -> MatrixEstimate | None:
    """Return how large the matrix of a called layer will be; None for any other call."""
    if call.name == LAYER:
        module: Any = call.module
        size = tuple(x.shape[-len(module.kernel_size) :])
        pattern = matrix_pattern(read_layer(module, size).geometry, size, "channels_first")
        return pattern_estimate(pattern, _wide(module.weight))
    if call.name == "linear" and isinstance(call.module, nn.Linear):
        weight, rows = call.module.weight, math.prod(x.shape[1:-1])
        dense = weight.layout is torch.strided
        nonzeros = rows * int(torch.count_nonzero(weight) if dense else weight._nnz())
        shape = (rows * weight.shape[0], rows * weight.shape[1])
        # An index takes 4 bytes; zeros, such as those of an unrolled layer, none.
        return MatrixEstimate(shape, nonzeros, (_wide(weight).itemsize + 4) * nonzeros)
    return None


def _wide(weight: Tensor) -> np.dtype[Any]:
    return np.dtype(np.complex128 if weight.is_complex() else np.float64)


@OPERATIONS.register(LAYER)
def _(step: Step, x: Tracked) -> Value:
    module: Any = step.call.module
    if len(step.shape) != 1 + len(module.kernel_size):
        remedy = "give the example in a batch, (n, c, *size)"
        raise refuse("a convolution of an example without a batch axis", step.place, remedy)
    size = x.shape[1:]
    layer = read_layer(module, size)
    bias = None if layer.bias is None else numbers(layer.bias)
    layer = ConvLayer(layer.geometry, numbers(layer.filters), bias)
    matrix = conv_matrix(layer, size, order="channels_first", memory=step.memory)
    offset = conv_offset(layer, size, order="channels_first").astype(matrix.dtype)
    return affine({x.value: matrix}, offset, of_layer=True)


@OPERATIONS.register("linear")
def _linear(step: Step, x: Any, weight: Any, bias: Any = None) -> Value | Tracked:
    """Multiply the last axis."""
    if not isinstance(x, Tracked) or isinstance(weight, Tracked) or isinstance(bias, Tracked):
        raise refuse(_PRODUCT, step.place)
    matrix, rows = sparse.csr_array(numbers(weight)), math.prod(x.shape[:-1])
    offset = np.zeros(matrix.shape[0]) if bias is None else numbers(bias)
    whole = matrix if rows == 1 else sparse.kron(identity(rows), matrix, format="csr")
    module = step.call.module
    own = isinstance(module, nn.Linear) and weight is module.weight
    return affine({x.value: whole}, np.tile(offset, rows), of_layer=own)


@OPERATIONS.register("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def _(
    step: Step,
    x: Tracked,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    **more: Any,
) -> list[Any]:
    """Scale and shift: ``(x - m) * weight / sqrt(v + eps) + bias``, of mean m and variance v."""
    own = step.call.module if isinstance(step.call.module, _BatchNorm) else None
    if training or running_mean is None:
        what = "a BatchNorm without running statistics looks at the batch"
        raise refuse(what if own is not None else _EACH, step.place)
    mean, variance = numbers(running_mean), numbers(running_var)
    scale = 1 / np.sqrt(variance + more.get("eps", more.get("epsilon")))
    scale = scale if weight is None else scale * numbers(weight)
    shift = np.zeros_like(mean) if bias is None else numbers(bias)
    each = math.prod(x.shape[1:])
    value = affine(
        {x.value: diagonal(np.repeat(scale, each))},
        np.repeat(shift - mean * scale, each),
        of_layer=own is not None,
        offset_bound=np.repeat(np.abs(shift) + np.abs(mean * scale), each),
        roundings=_NORM_ROUNDINGS,
    )
    return [value, *[None] * (len(step.result) - 1)]


# Sums and products --------------------------------------------------------------------------------


def _sum(step: Step, operands: Sequence[tuple[Any, float]]) -> Value:
    """Return the sum of values and constants, each times a number."""
    values: list[Value] = []
    constant = np.zeros(math.prod(step.shape))
    for operand, factor in operands:
        if isinstance(operand, Tracked):
            value = step.like_result(operand).value
            values.append(value if factor == 1 else scaled(value, factor))
        else:
            constant = constant + factor * step.constant(operand)
    return shifted(total(values), constant) if constant.any() else total(values)


@OPERATIONS.register("add", "sub", "rsub")
def _(step: Step, x: Any, other: Any, alpha: float = 1) -> Value:
    if step.call.name == "rsub":
        return _sum(step, [(other, 1), (x, -alpha)])
    return _sum(step, [(x, 1), (other, alpha if step.call.name == "add" else -alpha)])


@OPERATIONS.register("neg")
def _(step: Step, x: Tracked) -> Value:
    return scaled(x.value, -1)


@OPERATIONS.register("mul")
def _(step: Step, x: Any, other: Any) -> Value:
    if isinstance(x, Tracked) and isinstance(other, Tracked):
        raise refuse(_PRODUCT, step.place)
    value, factor = (x, other) if isinstance(x, Tracked) else (other, x)
    return scaled(step.like_result(value).value, step.constant(factor))


@OPERATIONS.register("div", "reciprocal")
def _(step: Step, x: Any, other: Any = None, rounding_mode: str | None = None) -> Value:
    if other is None or isinstance(other, Tracked) or rounding_mode is not None:
        raise refuse(_QUOTIENT, step.place)
    return scaled(step.like_result(x).value, 1 / step.constant(other))


@OPERATIONS.register("sum", "mean")
def _(step: Step, x: Tracked, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tracked:
    """Add each element to the element of the result that it is summed into."""
    given = [dim] if isinstance(dim, int) else dim or [0]  # without axes it is over all of them
    axes = {axis % (1 + len(x.shape)) for axis in given}
    if 0 in axes:
        raise refuse(_EACH, step.place)
    kept = [1 if axis in axes else n for axis, n in enumerate(x.shape, start=1)]
    rows = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), x.shape).ravel()
    n = x.value.size
    share = math.prod(kept) / n if step.call.name == "mean" else 1.0
    matrix = sparse.csr_array((np.full(n, share), (rows, np.arange(n))))
    return Tracked(linear(x.value, matrix, roundings=2), step.shape)


@OPERATIONS.register("matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "convolution")
@OPERATIONS.register("cumsum", "col2im")
def _(step: Step, *operands: Any, **named: Any) -> Tracked:
    tracked = [one for one in tree_leaves((operands, named)) if isinstance(one, Tracked)]
    if len(tracked) > 1:
        raise refuse(_PRODUCT, step.place)
    return probed(step, tracked[0])


@OPERATIONS.register(*_axes("avg_pool*d", "_adaptive_avg_pool*d", "adaptive_avg_pool*d"))
@OPERATIONS.register("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
@OPERATIONS.register("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def _(step: Step, x: Tracked, *_: Any, **__: Any) -> Tracked:
    return probed(step, x, channelwise=True)


# What moves numbers -------------------------------------------------------------------------------


@OPERATIONS.register("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "permute")
@OPERATIONS.register("transpose", "t", "squeeze", "unsqueeze", "select", "slice", "split", "narrow")
@OPERATIONS.register("split_with_sizes", "chunk", "unbind", "cat", "stack", "flip", "roll", "rot90")
@OPERATIONS.register("constant_pad_nd", "pad", "pixel_shuffle", "pixel_unshuffle", "unfold")
@OPERATIONS.register("channel_shuffle", "native_channel_shuffle", "im2col", "index_select", "index")
@OPERATIONS.register("repeat", "clone", "detach", "alias", "lift_fresh", "diagonal", "unsafe_split")
@OPERATIONS.register(*_axes("reflection_pad*d", "replication_pad*d"))
@OPERATIONS.register(*_axes("upsample_nearest*d", "_upsample_nearest_exact*d"))
def _(step: Step, /, *operands: Any, **named: Any) -> Any:
    inputs = [one for one in tree_leaves((operands, named)) if isinstance(one, Tracked)]
    return moved(step.again, inputs, step.place)


@OPERATIONS.register("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
@OPERATIONS.register("feature_dropout", "feature_alpha_dropout")
def _(step: Step, x: Tracked, p: float = 0.5, training: Any = None, *_: Any, **more: Any) -> Value:
    training = more.get("train", True) if training is None else training
    if training:
        raise refuse("a dropout that is always on", step.place, "call it with self.training")
    return x.value


@OPERATIONS.register("_to_copy")
def _(step: Step, x: Tracked, **more: Any) -> Value:
    if step.result.dtype != step.given.dtype:
        raise refuse("to() changes the dtype inside the network", step.place)
    return x.value


# Activations --------------------------------------------------------------------------------------


@OPERATIONS.register("relu")
def _(step: Step, x: Tracked) -> Value:
    return relu(x.value)


@OPERATIONS.register("abs", "leaky_relu")
def _(step: Step, x: Tracked, negative_slope: float = -1.0) -> Value:
    return leaky(x.value, negative_slope)


@OPERATIONS.register("_prelu_kernel")
def _(step: Step, x: Tracked, weight: Tensor) -> Value:
    return leaky(x.value, step.constant(weight))


@OPERATIONS.register("hardtanh", "relu6")
def _(step: Step, x: Tracked, min_val: float = 0.0, max_val: float = 6.0) -> Value:
    return between(x.value, min_val, max_val)


@OPERATIONS.register("hardsigmoid")
def _(step: Step, x: Tracked) -> Value:
    inside = between(shifted(x.value, np.full(x.value.size, 3.0)), 0.0, 6.0)
    return linear(inside, diagonal(np.full(x.value.size, 1 / 6)), roundings=2)


@OPERATIONS.register("clamp", "clamp_min", "clamp_max")
def _(step: Step, x: Any, min: Any = None, max: Any = None) -> Value:
    if isinstance(x, Tracked) and all(isinstance(one, int | float | None) for one in (min, max)):
        return between(x.value, min, max)
    for limit, sign in ((min, 1), (max, -1)):
        x = x if limit is None else Tracked(_larger(step, x, limit, sign), step.shape)
    value: Value = x.value
    return value


@OPERATIONS.register("maximum", "fmax", "minimum", "fmin")
def _(step: Step, x: Any, other: Any) -> Value:
    return _larger(step, x, other, 1 if "max" in step.call.name else -1)


def _larger(step: Step, x: Any, other: Any, sign: int) -> Value:
    """Return the larger one, a + relu(b - a), or with sign -1 the smaller one, a - relu(a - b)."""
    rise = relu(_sum(step, [(other, sign), (x, -sign)]))
    return _sum(step, [(x, 1), (Tracked(rise, step.shape), sign)])


@OPERATIONS.register("gt", "ge", "lt", "le")
def _(step: Step, x: Any, other: Any) -> Condition:
    numeric = replace(step, result=step.result.to(step.given.dtype))
    difference = _sum(numeric, [(x, 1), (other, -1)])
    return Condition(Tracked(difference, step.shape), step.call.name in ("gt", "ge"))


@OPERATIONS.register("where")
def _(step: Step, condition: Any, x: Any, other: Any) -> Value:
    """Return a where d > 0, else b, as b + k relu(d): so it is if a - b = k d for each element."""
    if not isinstance(condition, Condition):
        raise refuse("where() asks what is in a tensor", step.place)
    first, second = (x, other) if condition.positive else (other, x)
    difference = step.like_result(condition.difference).value
    slopes = _ratio(_sum(step, [(first, 1), (second, -1)]), difference)
    if slopes is None:
        what = "where() chooses between values that do not meet where its condition changes"
        raise refuse(what, step.place)
    more = scaled(relu(difference), slopes)
    return _sum(step, [(second, 1), (Tracked(more, step.shape), 1)])


def _ratio(value: Value, other: Value) -> npt.NDArray[Any] | None:
    """Return the k with value = k * other for each element; None if there is none."""
    (own, offset), (terms, other_offset) = _elementwise(value), _elementwise(other)
    if not terms:
        return None
    columns = [
        np.stack([side.get(s, np.zeros(value.size)) for s in own | terms]) for side in (own, terms)
    ]
    mine, others = (np.vstack([c, o]) for c, o in zip(columns, (offset, other_offset), strict=True))
    at = np.argmax(others != 0, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.take_along_axis(mine, at[None], 0)[0] / np.take_along_axis(others, at[None], 0)[0]
    return k if np.array_equal(mine, k * others) else None


def _elementwise(value: Value) -> tuple[dict[Value, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return a value as a sum of others, each times a vector of constants, and an offset."""
    if isinstance(value, Affine) and not value.of_layer:
        diagonals = {s: m.diagonal() for s, m in value.terms.items() if m.shape[0] == m.shape[1]}
        if all(
            s in diagonals and m.nnz == (diagonals[s] != 0).sum() for s, m in value.terms.items()
        ):
            terms: dict[Value, npt.NDArray[Any]] = {}
            offset = value.offset
            for source, factor in diagonals.items():
                inner, more = _elementwise(source)
                offset = offset + factor * more
                for one, own in inner.items():
                    terms[one] = terms.get(one, 0) + factor * own
            return terms, offset
    return {value: np.ones(value.size)}, np.zeros(value.size)


def leaky(x: Value, slope: float | npt.NDArray[Any]) -> Value:
    """Return relu(x) - slope * relu(-x): one of the two is zero, so only the product is rounded."""
    eye = identity(x.size)
    halves = relu(linear(x, sparse.vstack([eye, -eye], format="csr")))
    slopes = diagonal(np.broadcast_to(-np.asarray(slope, float), x.size))
    return linear(halves, sparse.hstack([eye, slopes], format="csr"), roundings=1)


def between(x: Value, low: float | None, high: float | None) -> Value:
    """Return x clamped to two numbers: low + relu(x - low) - relu(x - high).

    From ``high`` to twice that, x - (x - high) is exact (Sterbenz); farther out it is rounded once.
    """
    n, eye = x.size, identity(x.size)
    if low is None:  # high - relu(high - x)
        if high is None:
            return x
        top = np.full(n, float(high))
        return affine({relu(affine({x: -eye}, top, roundings=1)): -eye}, top, roundings=1)
    limits = [low] if high is None else [low, high]
    away = -np.repeat(np.array(limits, float), n)
    above = relu(affine({x: sparse.vstack([eye] * len(limits), format="csr")}, away, roundings=1))
    back = sparse.hstack([eye, -eye][: len(limits)], format="csr")
    known = low >= 0 and (high is None or high >= low)
    return affine({above: back}, np.full(n, float(low)), nonnegative=known, roundings=1)


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> nn.Module:
    """Return the module of ATen's one operator for ELU, CELU and SELU."""
    if input_scale != 1.0:
        return nn.CELU(alpha)
    return nn.ELU(alpha) if scale == 1.0 else nn.SELU()


_KEPT: dict[str, Callable[..., nn.Module]] = {
    "elu": _elu,
    "gelu": nn.GELU,
    "hardshrink": nn.Hardshrink,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softshrink": nn.Softshrink,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "threshold": nn.Threshold,
}


@OPERATIONS.register(*_KEPT)
def _(step: Step, x: Tracked, *arguments: Any, **named: Any) -> Value:
    module = _KEPT[step.call.name](*arguments, **named).eval()
    return Opaque(x.value.size, x.value, (module,), step.place)


@OPERATIONS.register("log_sigmoid_forward")
def _(step: Step, x: Tracked) -> list[Any]:
    return [Opaque(x.value.size, x.value, (nn.LogSigmoid(),), step.place), None]


@OPERATIONS.register("_softmax", "_log_softmax")
def _(step: Step, x: Tracked, dim: int, half_to_float: bool) -> Value:
    if len(x.shape) != 1 or dim not in (1, -1):
        raise refuse(f"{step.call.words} is not known to be affine or an activation", step.place)
    kind = nn.Softmax if step.call.name == "_softmax" else nn.LogSoftmax
    return Opaque(x.value.size, x.value, (kind(dim=1),), step.place)


# Max-pooling --------------------------------------------------------------------------------------
#
# The maximum of two numbers is max(a, b) = a + relu(b - a). A window's maximum is taken axis by
# axis, and along an axis as a tree of pairs; what windows share is computed once. Positions in the
# padding, which are minus infinity in PyTorch, are left out.

Windows = list[tuple[int, ...]]


@OPERATIONS.register("max_pool1d", "max_pool2d", "max_pool3d")
def _(
    step: Step,
    x: Tracked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    kind = getattr(nn, f"MaxPool{step.call.name[-2]}d")
    module = kind(kernel_size, stride or None, padding, dilation, ceil_mode=ceil_mode)
    if step.max_pool == "keep":
        return _max_pool_kept(step, module, x)
    return _max_pool_relu(x, pool_windows(module, x.shape[1:], step.shape[1:]))


@OPERATIONS.register("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _(step: Step, x: Tracked, output_size: Any, return_indices: bool = False) -> Value:
    if step.max_pool == "keep":
        kind = getattr(nn, f"AdaptiveMaxPool{step.call.name[-2]}d")
        return _max_pool_kept(step, kind(output_size), x)
    return _max_pool_relu(x, adaptive_windows(x.shape[1:], step.shape[1:]))


def _max_pool_kept(step: Step, module: nn.Module, x: Tracked) -> Value:
    modules = (nn.Unflatten(1, x.shape), module, nn.Flatten())
    size, known = math.prod(step.shape), x.value.nonnegative
    return Opaque(size, x.value, modules, step.place, nonnegative=known)


def pool_windows(module: Any, size: Sequence[int], out: Sequence[int]) -> list[Windows]:
    """Return, for each axis and output position, the input positions of the window."""
    settings = module.kernel_size, module.stride, module.padding, module.dilation
    each = (np.broadcast_to(one, len(size)).tolist() for one in settings)
    return [
        [tuple(i for t in range(k) if 0 <= (i := o * s - p + t * d) < n) for o in range(m)]
        for n, m, k, s, p, d in zip(size, out, *each, strict=True)
    ]


def adaptive_windows(size: Sequence[int], out: Sequence[int]) -> list[Windows]:
    """Return those of an adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""
    return [
        [tuple(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
        for n, m in zip(size, out, strict=True)
    ]


def _max_pool_relu(x: Tracked, windows: Sequence[Windows]) -> Value:
    value, shape = x.value, x.shape
    for axis, positions in enumerate(windows, start=1):
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        value = _maxima(value, before, shape[axis], after, positions)
        shape = (*shape[:axis], len(positions), *shape[axis + 1 :])
    return value


def _maxima(value: Value, before: int, n: int, after: int, windows: Windows) -> Value:
    """Return the maxima over windows of the middle axis of a value (before, n, after)."""

    def along(rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int]) -> Any:
        one = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        both = sparse.kron(sparse.eye_array(before), sparse.kron(one, sparse.eye_array(after)))
        return sparse.csr_array(both)

    while max(map(len, windows)) > 1:
        paired = [tuple(w[i : i + 2] for i in range(0, len(w), 2)) for w in windows]
        new = sorted({pair for w in paired for pair in w})
        pairs = [i for i, pair in enumerate(new) if len(pair) == 2]
        m, count = len(new), len(pairs)
        firsts = along(range(m), [pair[0] for pair in new], (m, n))
        seconds = along(range(count), [new[i][1] for i in pairs], (count, n))
        base = along(range(count), [new[i][0] for i in pairs], (count, n))
        rise = Relu(before * count * after, linear(value, seconds - base), nonnegative=True)
        value = affine(
            {value: firsts, rise: along(pairs, range(count), (m, count))},
            np.zeros(before * m * after),
            nonnegative=value.nonnegative,
        )
        place = {pair: i for i, pair in enumerate(new)}
        n, windows = m, [tuple(place[pair] for pair in w) for w in paired]
    return linear(value, along(range(len(windows)), [w[0] for w in windows], (len(windows), n)))


# Matrices -----------------------------------------------------------------------------------------


def scaled(x: Value, factor: float | npt.NDArray[Any]) -> Value:
    """Return a value times a constant, or constants, one for each element."""
    return linear(x, diagonal(np.broadcast_to(1.0 * np.asarray(factor), x.size)), roundings=1)


def shifted(x: Value, offset: npt.NDArray[Any]) -> Value:
    """Return a value plus constants, one for each element."""
    return affine({x: identity(x.size)}, offset, roundings=1)


def moved(call: Callable[[list[Tensor]], Any], inputs: Sequence[Tracked], where: str) -> Any:
    """Return what a call that only moves numbers, or adds constants to them, makes of values."""
    total = sum(one.value.size for one in inputs)
    given, first = [], 1
    for one in inputs:
        index = torch.arange(first, first + one.value.size, dtype=torch.float64)
        given.append(torch.stack([index, index + total]).reshape(2, *one.shape))
        first += one.value.size
    constants: list[Tensor] = []
    tree_map(constants.append, call([torch.zeros_like(t) for t in given]))
    constant = iter(constants)

    def read(result: Tensor) -> Tracked:
        offset = next(constant)
        index = result - offset
        if index.shape[:1] != (2,):
            raise refuse(_EACH, where)
        row, other = index
        if not torch.equal(other, torch.where(row > 0, row + total, 0.0)):
            raise refuse(_EACH, where)
        shape, number = tuple(row.shape), row.flatten().numpy().astype(np.int64) - 1
        return Tracked(_selected(inputs, number, offset[0].flatten().numpy()), shape)

    return tree_map(read, call(given))


def _selected(
    inputs: Sequence[Tracked], number: npt.NDArray[Any], offset: npt.NDArray[Any]
) -> Value:
    """Return the value with these elements of the inputs, none where the number is -1."""
    terms: dict[Value, Any] = {}
    first = 0
    for one in inputs:
        n = one.value.size
        rows = np.flatnonzero((number >= first) & (number < first + n))
        if len(rows):
            entries = (np.ones(len(rows)), (rows, number[rows] - first))
            matrix = sparse.csr_array(entries, shape=(len(number), n))
            terms[one.value] = terms[one.value] + matrix if one.value in terms else matrix
        first += n
    return affine(terms, offset)


def probed(step: Step, x: Tracked, *, channelwise: bool = False) -> Tracked:
    """Return what an affine call makes of a value; or of one channel, if all are alike."""

    def call(given: Tensor) -> Tensor:
        result: Tensor = step.again([given])
        return result

    shape = (1, *x.shape[1:]) if channelwise else x.shape
    zero = call(torch.zeros(2, *shape, dtype=torch.float64))
    ramp = torch.arange(2 * math.prod(shape), dtype=torch.float64).reshape(2, *shape)
    if not zero.dim() or len(zero) != 2 or not torch.equal(call(ramp)[:1], call(ramp[[0, 0]])[:1]):
        raise refuse(_EACH, step.place)
    n, rows = math.prod(shape), zero[0].numel()
    width = max(1, _BLOCK // (8 * max(n, rows, 1)))
    blocks = []
    for first in range(0, n, width):
        basis = torch.zeros(min(width, n - first), n, dtype=torch.float64)
        basis.diagonal(first).fill_(1)
        image = call(basis.reshape(-1, *shape)) - zero[:1]
        blocks.append(sparse.csr_array(image.flatten(1).numpy()))
    matrix = sparse.csr_array(sparse.vstack(blocks).T)
    offset, out = zero[0].flatten().numpy(), tuple(zero.shape[1:])
    if channelwise:
        channels = x.shape[0]
        matrix = sparse.kron(sparse.eye_array(channels), matrix, format="csr")
        offset, out = np.tile(offset, channels), (channels, *out[1:])
    return Tracked(affine({x.value: matrix}, offset, roundings=2), out)
