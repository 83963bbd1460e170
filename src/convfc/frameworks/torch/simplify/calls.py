"""What PyTorch's modules, functions and methods do to a value: tables, and reading of arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.frameworks.torch.graph import place, words
from convfc.frameworks.torch.simplify.ir import Value, affine
from convfc.frameworks.torch.vocabulary import BY_MODE, QUESTIONS

__all__ = [
    "ABS",
    "ADAPTIVE_MAX_POOLS",
    "AFFINE",
    "ATTRIBUTES",
    "BY_MODE",
    "CASTS",
    "CHANNELWISE",
    "CLAMPS",
    "MAX_POOLS",
    "MOVES",
    "NEAREST",
    "NORM_FORWARDS",
    "QUESTIONS",
    "SCALES",
    "SOFTMAXES",
    "SUMS",
    "UPSAMPLES",
    "argument",
    "as_module",
    "is_nearest",
    "is_random",
    "limits",
    "place",
    "total",
    "words",
]

_AXES = ("1d", "2d", "3d")


def _spread(names: Sequence[str]) -> list[str]:
    """Return names with every dimension in the place of a ``*``."""
    return [name.replace("*", axes) for name in names for axes in _AXES[: 3 if "*" in name else 1]]


def _modules(*names: str) -> set[Any]:
    """Return classes of torch.nn by their names, those of every dimension for a ``*``."""
    found = [
        name.replace("*", axes) for name in names for axes in (_AXES if "*" in name else ("",))
    ]
    return {getattr(nn, name) for name in found if hasattr(nn, name)}


def _functions(*names: str) -> set[Any]:
    """Return functions of torch and torch.nn.functional by their names, like `_modules`."""
    found = [
        name.replace("*", axes) for name in names for axes in (_AXES if "*" in name else ("",))
    ]
    homes = (torch, functional)
    return {getattr(home, name) for name in found for home in homes if hasattr(home, name)}


DROPOUT_FUNCTIONS = _functions(
    "dropout", "dropout*", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"
)
NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
MAX_POOLS = _modules("MaxPool*")
ADAPTIVE_MAX_POOLS = _modules("AdaptiveMaxPool*")
UPSAMPLES = (nn.Upsample, nn.UpsamplingNearest2d)
NEAREST = ("nearest", "nearest-exact")
SOFTMAXES = (nn.Softmax, nn.LogSoftmax)
CHANNELWISE = frozenset(
    _modules("AvgPool*", "AdaptiveAvgPool*") | _functions("avg_pool*", "adaptive_avg_pool*")
)
"""Affine, and the same for every channel."""
AFFINE = frozenset(
    _modules("Fold")
    | _functions("linear", "conv*", "conv_transpose*", "batch_norm", "matmul", "sum", "mean")
    | _functions("cumsum", "fold")
    | {operator.matmul, "matmul", "sum", "mean", "cumsum"}
)
"""Affine in the one value that they are given."""
MOVES = frozenset(
    _modules("Identity", "Dropout", "Dropout*", "AlphaDropout", "FeatureAlphaDropout", "Flatten")
    | _modules("Unflatten", "ZeroPad*", "ConstantPad*", "ReflectionPad*", "ReplicationPad*")
    | _modules("CircularPad*", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "Unfold")
    | DROPOUT_FUNCTIONS
    | _functions("flatten", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "movedim")
    | _functions("moveaxis", "swapaxes", "flip", "roll", "rot90", "cat", "concat", "concatenate")
    | _functions("stack", "hstack", "vstack", "chunk", "split", "tensor_split", "unbind", "narrow")
    | _functions("select", "index_select", "pad", "pixel_shuffle", "pixel_unshuffle", "unfold")
    | _functions("channel_shuffle", "broadcast_to", "tile", "clone", "repeat_interleave")
    | {operator.getitem, "flatten", "reshape", "view", "squeeze", "unsqueeze", "permute"}
    | {"transpose", "movedim", "moveaxis", "swapaxes", "flip", "roll", "chunk", "split", "unbind"}
    | {"narrow", "select", "index_select", "expand", "expand_as", "view_as", "reshape_as"}
    | {"repeat", "tile", "unflatten", "contiguous", "clone", "detach", "squeeze_", "unsqueeze_"}
)
"""They put numbers elsewhere, and constants beside them."""
CASTS = frozenset(["to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"])
CLAMPS = frozenset([torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_", "clamp_min"])
ABS = frozenset([torch.abs, operator.abs, "abs", "abs_", abs])
ATTRIBUTES = frozenset(["shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"])
SCALES: Mapping[Any, str] = {
    **dict.fromkeys([torch.mul, torch.multiply, operator.mul, operator.imul], "mul"),
    **dict.fromkeys(["mul", "mul_", "multiply"], "mul"),
    **dict.fromkeys([torch.div, torch.true_divide, operator.truediv, operator.itruediv], "div"),
    **dict.fromkeys(["div", "div_", "true_divide"], "div"),
    **dict.fromkeys([torch.neg, torch.negative, operator.neg, "neg", "neg_"], "neg"),
}

_Operands = tuple[tuple[Any, float], tuple[Any, float]]


def _operands(node: fx.Node, sign: float) -> _Operands:
    """Return both operands of a sum and their factors; ``alpha`` is the second one's."""
    alpha: Any = node.kwargs.get("alpha", 1)
    first, second = argument(node, 0, "input"), argument(node, 1, "other")
    return (first, 1.0), (second, sign * alpha)


def _plus(node: fx.Node, _: Any) -> _Operands:
    return _operands(node, 1.0)


def _minus(node: fx.Node, _: Any) -> _Operands:
    return _operands(node, -1.0)


SUMS: Mapping[Any, Callable[[fx.Node, Any], _Operands]] = {
    **dict.fromkeys([torch.add, operator.add, operator.iadd, "add", "add_"], _plus),
    **dict.fromkeys([torch.sub, torch.subtract, operator.sub, operator.isub], _minus),
    **dict.fromkeys(["sub", "sub_"], _minus),
}


def total(values: Sequence[Value]) -> Value:
    """Return the sum of values of one size.

    Examples
    --------
    >>> from convfc.frameworks.torch.graph import place, words
    from convfc.frameworks.torch.simplify.ir import Input
    >>> x = Input(2)
    >>> total([x, x]).terms[x].toarray()
    array([[2., 0.],
           [0., 2.]])
    """
    eye = sparse.eye_array(values[0].size, format="csr")
    terms: dict[Value, Any] = {}
    for value in values:
        terms[value] = terms[value] + eye if value in terms else eye
    return affine(terms, np.zeros(values[0].size))


def argument(node: fx.Node, index: int, name: str) -> Any:
    """Return an argument of a call, given by its place or by its name.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> node = graph.call_function(torch.add, (graph.placeholder("x"),), {"other": 2})
    >>> argument(node, 1, "other")
    2
    """
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def limits(node: fx.Node) -> tuple[float | None, float | None]:
    """Return the least and the largest number that a clamp lets pass."""
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    return low, high


def is_random(node: fx.Node) -> bool:
    """Say whether a call is a dropout that is on whatever the model's mode."""
    if node.target not in DROPOUT_FUNCTIONS:
        return False
    on = argument(node, 2, "training")
    return True if on is None else bool(on)


def is_nearest(node: fx.Node) -> bool:
    """Say whether a call is an interpolation that repeats elements."""
    if node.target not in (functional.interpolate, functional.upsample):
        return False
    return (argument(node, 3, "mode") or "nearest") in NEAREST


_POOL_FUNCTIONS = {
    **{getattr(functional, f"max_pool{axes}"): getattr(nn, f"MaxPool{axes}") for axes in _AXES},
    **{getattr(torch, f"max_pool{axes}"): getattr(nn, f"MaxPool{axes}") for axes in _AXES},
}
_ADAPTIVE_FUNCTIONS = {
    getattr(functional, f"adaptive_max_pool{axes}"): getattr(nn, f"AdaptiveMaxPool{axes}")
    for axes in _AXES
}
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_SOFTMAX_FUNCTIONS = {
    **dict.fromkeys([functional.softmax, torch.softmax, "softmax"], nn.Softmax),
    **dict.fromkeys([functional.log_softmax, torch.log_softmax, "log_softmax"], nn.LogSoftmax),
}


def as_module(node: fx.Node, functions: Mapping[Any, Callable[..., nn.Module]]) -> nn.Module | None:
    """Return the module that does the same as a call of a function or method; None if none does.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> as_module(graph.call_method("relu", (graph.placeholder("x"),)), {"relu": nn.ReLU})
    ReLU()
    """
    kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
    args = node.args[1:] if node.args else ()
    if any(isinstance(one, fx.Node) for one in (*args, *kwargs.values())):
        return None
    if node.target in _POOL_FUNCTIONS:
        kwargs = {**dict(zip(_POOL_ARGUMENTS, args, strict=False)), **kwargs}
        if not kwargs.get("stride"):
            kwargs["stride"] = None
        return _POOL_FUNCTIONS[node.target](**kwargs)  # type: ignore[no-any-return]
    if node.target in _ADAPTIVE_FUNCTIONS:
        return _ADAPTIVE_FUNCTIONS[node.target](*args, **kwargs)  # type: ignore[no-any-return]
    if node.target in _SOFTMAX_FUNCTIONS:
        return _SOFTMAX_FUNCTIONS[node.target](dim=argument(node, 1, "dim"))
    if node.target in functions:
        return functions[node.target](*args, **kwargs)
    return None
