"""What PyTorch's modules, functions and methods do to the units of a value: tables."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from convfc.frameworks.torch.vocabulary import (
    CONCATENATIONS,
    POINTWISE,
    POINTWISE_FUNCTIONS,
    REDUCTIONS,
    SOFTMAXES,
)

__all__ = [
    "CONCATENATIONS",
    "ELEMENTWISE",
    "ELEMENTWISE_FUNCTIONS",
    "EXPANSIONS",
    "FLATTENS",
    "NORMS",
    "NORM_FUNCTIONS",
    "NUMBERS",
    "REDUCED",
    "RESHAPES",
    "RESIZES",
    "SOFTMAXES",
    "TRAILING",
    "TRAILING_FUNCTIONS",
    "arguments",
    "is_stochastic_depth",
]

_POOLS = "AvgPool MaxPool LPPool AdaptiveAvgPool AdaptiveMaxPool"
_PADS = "ZeroPad ConstantPad ReflectionPad ReplicationPad CircularPad"
_POOL_FUNCTIONS = "avg_pool max_pool lp_pool adaptive_avg_pool adaptive_max_pool"

TRAILING: dict[Any, int] = {
    getattr(nn, f"{name}{axes}d"): axes
    for name in f"{_POOLS} {_PADS}".split()
    for axes in (1, 2, 3)
    if hasattr(nn, f"{name}{axes}d")
}
"""Modules that work on so many trailing axes, the same for all units."""

TRAILING_FUNCTIONS: dict[Any, int] = {
    getattr(home, f"{name}{axes}d"): axes
    for name in _POOL_FUNCTIONS.split()
    for axes in (1, 2, 3)
    for home in (torch, functional)
    if hasattr(home, f"{name}{axes}d")
}
RESIZES = (
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *(functional.interpolate, functional.upsample),
)
"""They work on all axes behind the second."""

ELEMENTWISE = POINTWISE | {nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout}
ELEMENTWISE_FUNCTIONS = POINTWISE_FUNCTIONS | {
    *(functional.dropout1d, functional.dropout2d, functional.dropout3d),
    *(functional.feature_alpha_dropout, functional.relu_, functional.hardtanh_, functional.elu_),
    *(functional.leaky_relu_, torch.relu_, torch.maximum, torch.minimum, torch.pow, operator.pow),
    *(torch.sqrt, torch.square, torch.clone, torch.erf, torch.sin, torch.cos, "pow", "sqrt"),
    *("square", "maximum", "minimum", "rsqrt", torch.rsqrt, "type_as", "cpu", "cuda"),
}
FLATTENS = (nn.Flatten, torch.flatten, "flatten")
RESHAPES = (*FLATTENS, nn.Unflatten, torch.unflatten, torch.reshape, "unflatten", "reshape", "view")
EXPANSIONS = ("expand", "expand_as")
REDUCED = frozenset([*REDUCTIONS, torch.sum, torch.amin, "sum", "amin"])
"""One value of all along an axis; copies of a unit would count more than once."""

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RMSNorm)
NORM_FUNCTIONS = (
    *(functional.group_norm, functional.layer_norm, functional.local_response_norm),
    *(functional.rms_norm, functional.normalize),
)
"""They normalise over several units."""

NUMBERS = frozenset(
    [
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.neg, operator.getitem, int, max, min),
    ]
)
"""What a forward computes sizes with."""


def is_stochastic_depth(thing: Any) -> bool:
    """Say whether a module or function is torchvision's, which drops whole residual branches.

    Examples
    --------
    >>> is_stochastic_depth(nn.Dropout())
    False
    """
    what = type(thing) if isinstance(thing, nn.Module) else thing
    home = str(getattr(what, "__module__", ""))
    name = getattr(what, "__name__", "")
    return home.startswith("torchvision.ops") and name in ("StochasticDepth", "stochastic_depth")


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return all arguments of a call behind the first, and those with names.

    Examples
    --------
    >>> graph = fx.Graph()
    >>> arguments(graph.call_method("view", (graph.placeholder("x"), 2, -1)))
    (2, -1)
    """
    return (*node.args[1:], *node.kwargs.values())
