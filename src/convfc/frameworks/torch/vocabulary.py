"""What heads of networks are made of: PyTorch's operations, by what they do to a tensor.

Each table holds types of modules, functions, and names of methods of tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = [
    "ADAPTIVE",
    "CONCATENATIONS",
    "CONVS",
    "NORMS",
    "POINTWISE",
    "POINTWISE_FUNCTIONS",
    "POOLS",
    "REDUCTIONS",
    "RESHAPES",
    "SOFTMAXES",
]

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS: dict[tuple[str, int], tuple[type[nn.Module], Callable[..., Any]]] = {
    ("avg", 1): (nn.AvgPool1d, functional.avg_pool1d),
    ("avg", 2): (nn.AvgPool2d, functional.avg_pool2d),
    ("avg", 3): (nn.AvgPool3d, functional.avg_pool3d),
    ("max", 1): (nn.MaxPool1d, functional.max_pool1d),
    ("max", 2): (nn.MaxPool2d, functional.max_pool2d),
    ("max", 3): (nn.MaxPool3d, functional.max_pool3d),
}
POINTWISE = frozenset(
    [
        *(nn.Identity, nn.Dropout, nn.AlphaDropout),
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
        *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU),
        *(nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
        nn.Threshold,
    ]
)
"""Modules that do the same to every element alone, whatever the shape of their input."""
ADAPTIVE: dict[Any, str] = {
    nn.AdaptiveAvgPool1d: "avg",
    nn.AdaptiveAvgPool2d: "avg",
    nn.AdaptiveAvgPool3d: "avg",
    nn.AdaptiveMaxPool1d: "max",
    nn.AdaptiveMaxPool2d: "max",
    nn.AdaptiveMaxPool3d: "max",
    functional.adaptive_avg_pool1d: "avg",
    functional.adaptive_avg_pool2d: "avg",
    functional.adaptive_avg_pool3d: "avg",
    functional.adaptive_max_pool1d: "max",
    functional.adaptive_max_pool2d: "max",
    functional.adaptive_max_pool3d: "max",
    torch.mean: "avg",
    torch.amax: "max",
    "mean": "avg",
    "amax": "max",
}
REDUCTIONS = (torch.mean, torch.amax, "mean", "amax")
RESHAPES = (
    nn.Flatten,
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    "flatten",
    "reshape",
    "squeeze",
    "view",
)
SOFTMAXES = (
    nn.Softmax,
    nn.LogSoftmax,
    functional.softmax,
    functional.log_softmax,
    torch.softmax,
    torch.log_softmax,
    "softmax",
    "log_softmax",
)
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_NAMES = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 "
    "rrelu selu silu sigmoid softplus softshrink softsign tanh tanhshrink threshold dropout "
    "alpha_dropout"
)
POINTWISE_FUNCTIONS = frozenset(
    [
        *(getattr(functional, name) for name in _NAMES.split()),
        *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.abs, torch.clamp),
        *(torch.add, torch.sub, torch.mul, torch.div, torch.neg),
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
        *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
        *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "log", "abs"),
        *("clamp", "clamp_", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "neg"),
        *("clone", "detach", "contiguous", "to", "type", "float", "double", "half", "bfloat16"),
    ]
)
BY_MODE = (_BatchNorm, _DropoutNd, nn.RReLU)
"""Modules that compute something else in training."""
QUESTIONS = frozenset(
    ["size", "dim", "ndimension", "numel", "stride", "is_contiguous", "get_device"]
)
"""Methods that answer without looking at the numbers."""
