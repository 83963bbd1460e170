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
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from convfc.comparing import wide
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.simplification.trace import LAYER, Call, Ref
from convfc.layer import ConvLayer
from convfc.mlp.maps import DIFFERENT, EACH, moved, probed
from convfc.mlp.pieces import (
    adaptive_windows,
    between,
    leaky,
    maxima,
    pool_windows,
    scaled,
    shifted,
)
from convfc.mlp.values import (
    Affine,
    Opaque,
    Operations,
    Tracked,
    Value,
    Vector,
    affine,
    diagonal,
    identity,
    linear,
    refuse,
    relu,
    total,
)
from convfc.operators.estimate import MatrixEstimate, pattern_estimate
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.pattern import matrix_pattern

_NORM_ROUNDINGS = 8  # eps, the root, its inverse, two products, a difference, a sum, one to store
_PRODUCT = "a product of two values of the network is not affine"
_QUOTIENT = "a division by a value of the network, or a rounded one"


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
        return moved(lambda t: [np.broadcast_to(t[0], shape)], [x], self.place)[0]

    def constant(self, operand: Any) -> npt.NDArray[Any]:
        """Return constants, one for each element of an example's result."""
        like: Tensor = self.result
        shape, dtype = like.shape, like.dtype
        spread = torch.broadcast_to(torch.as_tensor(operand, dtype=dtype).detach().cpu(), shape)
        if not torch.equal(spread[0], spread[1]):
            raise refuse(DIFFERENT, self.place)
        return numbers(spread[0]).ravel()


def numbers(t: Tensor) -> Vector:
    """Return a tensor as float64 or complex128."""
    t = t.detach().cpu()
    t = t if t.layout is torch.strided else t.to_dense()
    array: Vector = wide(t).resolve_conj().numpy()
    return array


OPERATIONS = Operations()
"""By the names of operations."""


def dimensions(*names: str) -> list[str]:
    """Return names with every dimension in the place of a ``*``."""
    return [name.replace("*", n) for name in names for n in "123"]


MOVES = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "permute", "transpose", "t"),
    *("squeeze", "unsqueeze", "select", "slice", "split", "narrow", "split_with_sizes", "chunk"),
    *("unbind", "cat", "stack", "flip", "roll", "rot90", "constant_pad_nd", "pad", "pixel_shuffle"),
    *("pixel_unshuffle", "unfold", "channel_shuffle", "native_channel_shuffle", "im2col"),
    *("index_select", "index", "repeat", "clone", "detach", "alias", "lift_fresh", "diagonal"),
    *("unsafe_split", *dimensions("reflection_pad*d", "replication_pad*d")),
    *dimensions("upsample_nearest*d", "_upsample_nearest_exact*d"),
)
"""Operations that only move numbers, or repeat them."""
AVERAGES = (
    *dimensions("avg_pool*d", "_adaptive_avg_pool*d", "adaptive_avg_pool*d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    "_upsample_bilinear2d_aa",
)
"""Operations that multiply by numbers of which none is negative."""


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
        raise refuse(what if own is not None else EACH, step.place)
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
        raise refuse(EACH, step.place)
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
    return _probed(step, tracked[0])


@OPERATIONS.register(*AVERAGES, "upsample_bicubic2d", "_upsample_bicubic2d_aa")
def _(step: Step, x: Tracked, *_: Any, **__: Any) -> Tracked:
    return _probed(step, x, channels=0)


def _probed(step: Step, x: Tracked, *, channels: int | None = None) -> Tracked:
    def call(given: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = step.again([torch.from_numpy(given)]).numpy()
        return result

    return probed(call, x, step.place, channels=channels)


# What moves numbers -------------------------------------------------------------------------------


@OPERATIONS.register(*MOVES)
def _(step: Step, /, *operands: Any, **named: Any) -> Any:
    inputs = [one for one in tree_leaves((operands, named)) if isinstance(one, Tracked)]
    structure: Any = None

    def call(given: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        nonlocal structure
        leaves, structure = tree_flatten(step.again([torch.from_numpy(x) for x in given]))
        return [leaf.numpy() for leaf in leaves]

    made = moved(call, inputs, step.place)
    return tree_unflatten(made, structure)


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
    windows = pool_windows(
        x.shape[1:],
        step.shape[1:],
        kernel=module.kernel_size,
        stride=module.stride,
        low=module.padding,
        dilation=module.dilation,
    )
    return maxima(x, windows, 1)


@OPERATIONS.register("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _(step: Step, x: Tracked, output_size: Any, return_indices: bool = False) -> Value:
    if step.max_pool == "keep":
        kind = getattr(nn, f"AdaptiveMaxPool{step.call.name[-2]}d")
        return _max_pool_kept(step, kind(output_size), x)
    return maxima(x, adaptive_windows(x.shape[1:], step.shape[1:]), 1)


def _max_pool_kept(step: Step, module: nn.Module, x: Tracked) -> Value:
    modules = (nn.Unflatten(1, x.shape), module, nn.Flatten())
    size, known = math.prod(step.shape), x.value.nonnegative
    return Opaque(size, x.value, modules, step.place, nonnegative=known)
