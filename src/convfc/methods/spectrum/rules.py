"""How far each operation of a network stretches: the table of bounds, open for registration.

An operation has its name in a `trace`. Its function gets the call and, by ATen's names, the
arguments, with a `Value` for each tensor that depends on the model's input; it returns a `Result`
for each of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from convfc.errors import UnsupportedLayer
from convfc.extras import needing

with needing():
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.read import own_class, weight_to_filters
from convfc.frameworks.torch.simplification.operations import (
    AVERAGES,
    MOVES,
    Step,
    dimensions,
    numbers,
)
from convfc.frameworks.torch.simplification.trace import LAYER, Call, Ref
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.methods.spectrum.bounds import (
    SUMS,
    NormBounds,
    matrix_bounds,
    norm_bounds,
    product,
    root,
    schur,
)
from convfc.mlp.maps import EACH
from convfc.mlp.pieces import adaptive_windows, pool_windows
from convfc.mlp.values import Operations
from convfc.rounding import UNIT_ROUNDOFF, gamma

_U = UNIT_ROUNDOFF["float64"]
_SCALE_ROUNDINGS = 8  # of a BatchNorm: eps, the root, its inverse, a product, and what is spare


@dataclass(frozen=True, eq=False)
class Layer:
    """A CONV or FC layer whose output nobody but a BatchNorm sees."""

    weight: ConvLayer | npt.NDArray[Any]
    size: tuple[int, ...]
    call: Call

    def bounds(self, scale: npt.NDArray[Any] | None = None) -> NormBounds:
        """Return the norm, after a multiplication of each filter if there is one."""
        one = self.weight
        filters = numbers_of(one)
        if scale is not None:
            filters = filters * scale.reshape(-1, *[1] * (filters.ndim - 1))
        if not isinstance(one, ConvLayer):
            return matrix_bounds(filters)
        layer = ConvLayer(one.geometry, torch.tensor(filters))  # for PyTorch to convolve
        found = norm_bounds(layer, self.size)
        return replace(found, how=f"at {'×'.join(map(str, self.size))}: {found.how}")


def numbers_of(weight: ConvLayer | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the filters of a CONV layer, or the matrix of an FC layer."""
    found: npt.NDArray[Any] = weight.filters if isinstance(weight, ConvLayer) else weight
    return found


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the network: how far it is from that of another input, by their distance."""

    number: int
    shape: tuple[int, ...]  # of two examples
    estimate: float
    bound: float
    layer: Layer | None = None  # then the numbers are those of the layer's input, ``source``
    source: int = -1


@dataclass(frozen=True, eq=False)
class Result:
    """One result of a call: its inputs, each with what it is multiplied by, and how they are one.

    With ``squares`` it is the root of the sum of squares, else the sum.
    """

    terms: tuple[tuple[Value, NormBounds], ...]
    how: str = ""
    squares: bool = False
    layer: Layer | None = None


def one_input(value: Value, factor: float | NormBounds = 1.0, how: str = "") -> Result:
    """Return the result of a call with one input."""
    if not isinstance(factor, NormBounds):
        factor = NormBounds(factor, factor, how)
    return Result(((value, factor),), factor.how)


def refs_of(tree: Any) -> list[Ref]:
    """Return the tensors that depend on the model's input, in arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Ref)]


def kind_of(call: Call) -> str:
    """Return the class of PyTorch's module that a call is, whatever its form, or its function."""
    module = call.module
    native: type = vars(module).get("native") or own_class(module)
    whole = call.name == LAYER or native.__module__.startswith("torch.nn.modules")
    return native.__name__ if whole else call.words


def unknown(call: Call, why: str = "") -> UnsupportedLayer:
    """Return the error for a part without a bound."""
    return UnsupportedLayer(
        f"no bound is known for a {kind_of(call)}" + (f": {why}" if why else ""),
        where=call.place,
        expected="CONV and FC layers, BatchNorm, pooling, sums, concatenations, and activations "
        "such as ReLU",
        remedy="take the bounds of the parts before and after it",
    )


# What each operation does -------------------------------------------------------------------------

BOUNDS = Operations()
"""By the names of operations in a trace: a `Result` for each result."""

_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_PRODUCT = "a product of two values of the network stretches without bound"


def is_norm(call: Call | None) -> bool:
    """Say whether a call is a BatchNorm."""
    return call is not None and call.name in _NORMS


def _spread(step: Step, value: Value) -> float:
    """Return how far broadcasting to the shape of the result stretches."""
    return root(Fraction(step.result.numel(), math.prod(value.shape)))


def _factor(step: Step, constant: Any) -> tuple[float, float]:
    """Return the smallest and the largest size of constants, as given and as the network rounds."""
    given = torch.as_tensor(constant).detach().cpu()
    both = [given.double(), given.to(step.given.dtype).double()]
    sizes = torch.stack(both).abs()
    if not sizes.numel() or not bool(sizes.isfinite().all()):
        raise unknown(step.call, "it multiplies by no finite number")
    return sizes.min().item(), sizes.max().item()


@BOUNDS.register(LAYER)
def _(step: Step, x: Value) -> Result:
    module: Any = step.call.module
    if len(x.shape) != 2 + len(module.kernel_size):
        raise unknown(step.call, "an example without a batch axis")
    size = tuple(x.shape[2:])
    read = read_layer(module, size)
    layer = Layer(ConvLayer(read.geometry, numbers(read.filters)), size, step.call)
    return Result(((x, NormBounds(1.0, 1.0)),), layer=layer)


@BOUNDS.register("convolution")
def _(step: Step, x: Any, weight: Any, bias: Any, **rest: Any) -> Result:
    if not isinstance(x, Value) or isinstance(weight, Value):
        raise unknown(step.call, _PRODUCT)
    transposed, groups, padding = rest["transposed"], rest["groups"], rest["padding"]
    filters = numbers(weight_to_filters(weight, transposed=transposed, groups=groups))
    f, *kernel, per_group = filters.shape
    geometry = ConvGeometry(
        per_group * groups,
        f,
        tuple(kernel),
        stride=tuple(rest["stride"]),
        padding=tuple((low, low) for low in padding),
        dilation=tuple(rest["dilation"]),
        groups=groups,
        transposed=transposed,
        output_padding=tuple(rest["output_padding"]) if transposed else 0,
    )
    layer = Layer(ConvLayer(geometry, filters), tuple(x.shape[2:]), step.call)
    return Result(((x, NormBounds(1.0, 1.0)),), layer=layer)


@BOUNDS.register("linear")
def _(step: Step, x: Any, weight: Any, bias: Any = None) -> Result:
    if not isinstance(x, Value) or isinstance(weight, Value) or isinstance(bias, Value):
        raise unknown(step.call, _PRODUCT)
    layer = Layer(numbers(weight), (), step.call)
    plain = Result(((x, NormBounds(1.0, 1.0)),), layer=layer)
    return plain if len(x.shape) == 2 else one_input(x, layer.bounds())


@BOUNDS.register("matmul", "mm", "addmm")
def _(step: Step, *operands: Any, **named: Any) -> Result:
    """Multiply by a constant matrix."""
    tensors = [one for one in (*operands, *named.values()) if isinstance(one, Value | Tensor)]
    first, second = tensors[-2:]
    alone = sum(isinstance(one, Value) for one in tensors) == 1
    if not alone or named.get("alpha", 1) != 1 or isinstance(second, Value):
        raise unknown(step.call, _PRODUCT if not alone else "")
    if not isinstance(first, Value) or second.dim() != 2:
        raise unknown(step.call, "it multiplies by no matrix")
    return one_input(first, matrix_bounds(numbers(second)))


@BOUNDS.register(*_NORMS)
def _(
    step: Step,
    x: Value,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    **more: Any,
) -> Result:
    if training or running_var is None:
        raise unknown(step.call, "without running statistics it divides by those of the batch")
    scale = 1 / np.sqrt(numbers(running_var) + more.get("eps", more.get("epsilon")))
    scale = np.abs(scale if weight is None else scale * numbers(weight))
    share = gamma(_SCALE_ROUNDINGS, _U)
    if x.layer is None:
        largest = float(scale.max())
        found = NormBounds(largest, largest, "the largest scale of a channel")
    else:
        # The product of filter and scale is rounded: by u of each tap's matrix, whose Frobenius
        # norm is at most the root of its rank, which is less than its columns, times the norm.
        found = x.layer.bounds(scale)
        share += gamma(numbers_of(x.layer.weight)[0].size, _U)
    return one_input(x, found.widened(share))


@BOUNDS.register("add", "sub", "rsub")
def _(step: Step, x: Any, other: Any, alpha: float = 1) -> Result:
    factors = {"add": (1, alpha), "sub": (1, alpha), "rsub": (alpha, 1)}[step.call.name]
    terms = [
        (one, product(abs(float(factor)), _spread(step, one)))
        for one, factor in zip((x, other), factors, strict=True)
        if isinstance(one, Value)
    ]
    how = "the sum of its inputs" if len(terms) == 2 else ""
    return Result(tuple((one, NormBounds(size, size)) for one, size in terms), how)


@BOUNDS.register("maximum", "fmax", "minimum", "fmin")
def _(step: Step, x: Any, other: Any) -> Result:
    terms = [(one, _spread(step, one)) for one in (x, other) if isinstance(one, Value)]
    how = "the root of the sum of squares" if len(terms) == 2 else ""
    made = tuple((one, NormBounds(size, size)) for one, size in terms)
    return Result(made, how, squares=True)


@BOUNDS.register("mul")
def _(step: Step, x: Any, other: Any) -> Result:
    if isinstance(x, Value) and isinstance(other, Value):
        raise unknown(step.call, _PRODUCT)
    value, constant = (x, other) if isinstance(x, Value) else (other, x)
    _, largest = _factor(step, constant)
    return one_input(value, product(largest, _spread(step, value)), "the largest factor")


@BOUNDS.register("div")
def _(step: Step, x: Any, other: Any = None, rounding_mode: str | None = None) -> Result:
    if not isinstance(x, Value) or isinstance(other, Value) or rounding_mode is not None:
        raise unknown(step.call, "it divides by a value of the network, or rounds")
    smallest, _ = _factor(step, other)
    if not smallest:
        raise unknown(step.call, "it divides by 0")
    up = math.nextafter(1 / smallest, math.inf) if math.frexp(smallest)[0] != 0.5 else 1 / smallest
    return one_input(x, product(up, _spread(step, x)), "the smallest divisor")


@BOUNDS.register(*MOVES, "sum", "cumsum")
def _(step: Step, /, *operands: Any, **named: Any) -> list[Result]:
    return _one_sign(step, (operands, named), exact=True)


@BOUNDS.register(*AVERAGES, "mean")
def _(step: Step, /, *operands: Any, **named: Any) -> list[Result]:
    return _one_sign(step, (operands, named), exact=False)


def _one_sign(step: Step, operands: Any, *, exact: bool) -> list[Result]:
    """Return ``sqrt(‖A‖₁ ‖A‖∞)`` of a linear map whose numbers have one sign (Schur's test).

    Its largest sums of a row and of a column are those of A and of its adjoint on ones. Exact are
    sums of ones. (Averages are negative with a negative ``divisor_override``.)
    """
    inputs = [one for one in tree_leaves(operands) if isinstance(one, Value)]
    with torch.enable_grad():
        zeros = [torch.zeros(one.shape, dtype=torch.float64).requires_grad_() for one in inputs]
        origin = tree_leaves(step.again(zeros))
    ahead = tree_leaves(step.again([_first_ones(one) for one in zeros]))
    made = []
    for result, image in zip(origin, ahead, strict=True):
        if len(result) != 2:
            raise unknown(step.call, EACH)
        rows = image - result.detach()
        columns = torch.autograd.grad(
            result, zeros, _first_ones(result), retain_graph=True, materialize_grads=True
        )
        if any(bool(one[1].any()) for one in (rows, *columns)):
            raise unknown(step.call, EACH)
        sums = (rows.abs().max().item(), max(one.abs().max().item() for one in columns))
        terms = sum(one.numel() for one in (result, *zeros))
        norm = schur(*sums, 0.0 if exact else gamma(terms, _U))
        how = "the root of the sum of squares" if len(inputs) > 1 else ""
        if norm != 1:
            how = SUMS
        one = NormBounds(norm, norm)
        made.append(Result(tuple((value, one) for value in inputs), how, squares=True))
    return made


def _first_ones(like: Tensor) -> Tensor:
    ones = torch.zeros_like(like)
    ones[0] = 1
    return ones


@BOUNDS.register("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
@BOUNDS.register("feature_dropout", "feature_alpha_dropout")
def _(step: Step, x: Value, p: float = 0.5, training: Any = None, *_: Any, **more: Any) -> Result:
    if more.get("train", True) if training is None else training:
        raise unknown(step.call, "it is always on; call it with self.training")
    return one_input(x)


@BOUNDS.register("_to_copy")
def _(step: Step, x: Value, **more: Any) -> Result:
    if not step.result.is_floating_point():
        raise unknown(step.call, "it rounds to integers")
    return one_input(x)


# Activations --------------------------------------------------------------------------------------

_SLOPES = {
    **dict.fromkeys(("relu", "neg", "abs", "hardtanh", "relu6", "tanh", "softsign"), 1.0),
    **dict.fromkeys(("tanhshrink", "softshrink", "sin", "cos", "atan"), 1.0),
    **dict.fromkeys(("detach", "clone", "alias", "lift_fresh"), 1.0),
    "sigmoid": 0.25,
    "hardsigmoid": 0.166667,  # PyTorch takes 1/6 in float32, whatever the dtype
    "hardswish": 1.500001,
    "silu": 1.0999,  # at x = 2.3994: 1.09984
    "gelu": 1.1290,  # at x = √2: 1.12890; with tanh 1.12892
    "mish": 1.0885,  # at x = 1.4867: 1.08850
    "erf": 1.1284,  # 2 / √π
}
"""The largest slope of a function of each element alone."""


@BOUNDS.register(*_SLOPES)
def _(step: Step, x: Value, *_: Any, **__: Any) -> Result:
    slope = _SLOPES[step.call.name]
    return one_input(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("amax", "amin")
def _(step: Step, x: Value, dim: Any = (), *_: Any, **__: Any) -> Result:
    for axis in dim or [0]:
        _check_axis(step, x, axis)
    return one_input(x)


@BOUNDS.register("log_sigmoid_forward")
def _(step: Step, x: Value) -> list[Result]:
    return [one_input(x)]


@BOUNDS.register("clamp", "clamp_min", "clamp_max")
def _(step: Step, x: Any, min: Any = None, max: Any = None) -> Result:
    if not isinstance(x, Value) or isinstance(min, Value) or isinstance(max, Value):
        raise unknown(step.call, "its limits are values of the network")
    return one_input(x, _spread(step, x))


@BOUNDS.register("leaky_relu")
def _(step: Step, x: Value, negative_slope: float = 0.01) -> Result:
    slope = max(1.0, _factor(step, negative_slope)[1])
    return one_input(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("_prelu_kernel")
def _(step: Step, x: Value, weight: Any) -> Result:
    slope = max(1.0, _factor(step, weight)[1])
    return one_input(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("elu")
def _(
    step: Step, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Result:
    slope = product(abs(scale), max(1.0, product(abs(alpha), abs(input_scale))))
    return one_input(x, slope, "the slope" if slope != 1 else "")


@BOUNDS.register("celu")
def _(step: Step, x: Value, alpha: float = 1.0) -> Result:
    if alpha < 0:
        raise unknown(step.call, "its alpha is negative")
    return one_input(x)


@BOUNDS.register("softplus")
def _(step: Step, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Result:
    if threshold < 20:  # it leaps there, by exp(-threshold) / beta
        raise unknown(step.call, "it leaps at its threshold")
    return one_input(x)


@BOUNDS.register("_softmax")
def _(step: Step, x: Value, dim: int, *_: Any, **__: Any) -> Result:
    """Return 1/2: the form of the Jacobian is a variance, which is at most (max - min)² / 4."""
    _check_axis(step, x, dim)
    return one_input(x, 0.5, "the slope")


@BOUNDS.register("_log_softmax")
def _(step: Step, x: Value, dim: int, *_: Any, **__: Any) -> Result:
    """Return √n: the Jacobian I - 1 pᵀ is convex in p, and has this norm at the corners."""
    _check_axis(step, x, dim)
    return one_input(x, root(Fraction(x.shape[dim])), "the root of the number of classes")


def _check_axis(step: Step, x: Value, dim: int) -> None:
    if dim % len(x.shape) == 0:
        raise unknown(step.call, EACH)


@BOUNDS.register(*dimensions("max_pool*d"))
def _(
    step: Step,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Result:
    ndim = int(step.call.name[-2])
    windows = pool_windows(
        x.shape[-ndim:],
        step.result.shape[-ndim:],
        kernel=kernel_size,
        stride=stride or kernel_size,
        low=padding,
        dilation=dilation,
    )
    return _in_windows(x, windows)


@BOUNDS.register(*dimensions("adaptive_max_pool*d"))
def _(step: Step, x: Value, output_size: Any, **_: Any) -> Result:
    ndim = int(step.call.name[-2])
    return _in_windows(x, adaptive_windows(x.shape[-ndim:], step.result.shape[-ndim:]))


def _in_windows(x: Value, windows: Sequence[Any]) -> Result:
    """Return the bound of maxima: an element counts as often as there are windows with it."""
    often = math.prod(
        int(np.bincount([i for window in axis for i in window], minlength=1).max())
        for axis in windows
    )
    how = "an element is in several windows" if often > 1 else ""
    return one_input(x, root(Fraction(often)), how)
