"""Activations: written with ReLU where they are piecewise linear, else left as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from convfc.frameworks.torch.simplify.ir import Opaque, Value, affine, linear, relu
from convfc.frameworks.torch.simplify.maps import Tracked, numbers, shifted

__all__ = ["FUNCTIONS", "KEPT", "PIECEWISE_LINEAR", "between", "kept", "leaky"]

KEPT = frozenset(
    [
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.LogSigmoid, nn.Mish, nn.SELU, nn.SiLU),
        *(nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Hardshrink),
        *(nn.Softshrink, nn.Threshold),
    ]
)
"""Modules that do the same to every element alone: they stay between the FC layers."""

_NAMES = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardshrink": nn.Hardshrink,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softshrink": nn.Softshrink,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "threshold": nn.Threshold,
}
FUNCTIONS: dict[Any, type[nn.Module]] = {
    **{getattr(functional, name): cls for name, cls in _NAMES.items()},
    **{torch.relu: nn.ReLU, torch.relu_: nn.ReLU, functional.relu_: nn.ReLU},
    **{torch.sigmoid: nn.Sigmoid, torch.tanh: nn.Tanh, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh},
    **{"relu": nn.ReLU, "relu_": nn.ReLU, "sigmoid_": nn.Sigmoid, "tanh_": nn.Tanh},
}
"""Functions and methods, and the modules that take the same arguments."""


def leaky(x: Value, slope: float | npt.NDArray[Any]) -> Value:
    """Return x where it is positive, slope * x elsewhere: relu(x) - slope * relu(-x).

    One of the two is zero, so nothing is rounded but the product.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify.ir import Input
    >>> leaky(Input(3), 0.1).size
    3
    """
    eye = sparse.eye_array(x.size, format="csr")
    halves = relu(linear(x, sparse.vstack([eye, -eye], format="csr")))
    slopes = sparse.diags_array(np.broadcast_to(-np.asarray(slope, float), x.size))
    return linear(halves, sparse.hstack([eye, slopes], format="csr"), roundings=1)


def between(x: Value, low: float | None, high: float | None) -> Value:
    """Return x held between two numbers: low + relu(x - low) - relu(x - high).

    From ``high`` to twice that, x - (x - high) is exact (Sterbenz); farther out it is rounded once.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify.ir import Input
    >>> between(Input(3), 0.0, 6.0).nonnegative
    True
    """
    n, eye = x.size, sparse.eye_array(x.size, format="csr")
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


def _prelu(module: Any, x: Tracked) -> Value:
    slope = numbers(module.weight)
    if len(slope) > 1:
        slope = np.repeat(slope, x.value.size // len(slope))
    return leaky(x.value, slope)


def _hardsigmoid(module: Any, x: Tracked) -> Value:
    inside = between(shifted(x.value, np.full(x.value.size, 3.0)), 0.0, 6.0)
    sixth = sparse.diags_array(np.full(x.value.size, 1 / 6), format="csr")
    return linear(inside, sixth, roundings=2)


PIECEWISE_LINEAR: dict[type[nn.Module], Callable[[Any, Tracked], Value]] = {
    nn.ReLU: lambda module, x: relu(x.value),
    nn.ReLU6: lambda module, x: between(x.value, 0.0, 6.0),
    nn.Hardtanh: lambda module, x: between(x.value, module.min_val, module.max_val),
    nn.LeakyReLU: lambda module, x: leaky(x.value, module.negative_slope),
    nn.PReLU: _prelu,
    nn.Hardsigmoid: _hardsigmoid,
}
"""Modules that are exactly sums of ReLUs."""


def kept(module: nn.Module, x: Tracked, name: str) -> Value:
    """Return what a module makes of a value that stays a module, on the flat vector."""
    return Opaque(x.value.size, x.value, (copy.deepcopy(module),), name)
