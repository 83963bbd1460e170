"""How large the sums in a chain of layers are, and how many roundings a result has gone through.

A layer's computed output is within ``gamma_n * B`` of the exact one, where B is the layer on
absolute values (see `convfc.rounding`). The bound composes: of a value with ``|g - h| <= gamma_n
B`` and ``|h| <= B``, a layer of m terms makes one within ``gamma_(n+m) * (|W| B + |b|)``, since
``gamma_m + gamma_n + gamma_m * gamma_n <= gamma_(n+m)`` (Higham 2002, Lemma 3.3). A function with
``|phi(s) - phi(t)| <= |s - t|`` and ``phi(0) = 0`` that rounds nothing, such as ReLU, leaves n and
B as they are. So B is the chain on absolute values, and n the sum over its layers, each of which
counts two more: its weights may have been rounded when they were made, and its result when stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _CircularPadNd, _ReflectionPadNd, _ReplicationPadNd

from convfc.frameworks.torch.certify.pairs import cast, has_own_weights
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.tensors import wide

Caller: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Calls a layer's forward on an input."""

# (x - mean) / sqrt(var + eps) * weight + bias, in whichever order, and what its parts are made of.
_NORM_TERMS = 8
_MADE_AND_STORED = 2


class Sums(NamedTuple):
    """B of each element of a value, in float64, and n: how many roundings it has gone through."""

    values: Tensor
    terms: int = 0


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer.forward(x)
    return y


@singledispatch
def magnitude(module: nn.Module, sums: Sums, call: Caller = _forward) -> Sums | None:
    """Return B and n of what a module in evaluation mode makes of these, if theory knows."""
    return None


@magnitude.register
def _(module: nn.Sequential, sums: Sums, call: Caller = _forward) -> Sums | None:
    for part in module:
        made = magnitude(part, sums, call)
        if made is None:
            return None
        sums = made
    return sums


@magnitude.register
def _(module: _ConvNd | nn.Linear, sums: Sums, call: Caller = _forward) -> Sums | None:
    if not has_own_weights(module):
        return None
    moduli = wide(sums.values)
    layer = cast(deep_copy(module), lambda t: wide(t.detach()).abs())
    with torch.no_grad():
        values = call(layer, moduli)
        counts = call(cast(layer, torch.ones_like), torch.ones_like(moduli))
    return Sums(values, sums.terms + int(counts.max() if counts.numel() else 0) + _MADE_AND_STORED)


@magnitude.register
def _(module: _BatchNorm, sums: Sums, call: Caller = _forward) -> Sums | None:
    if module.running_mean is None or module.running_var is None:
        return None
    shape = (1, -1, *[1] * (sums.values.dim() - 2))
    scale = (wide(module.running_var) + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * wide(module.weight.detach()).abs()
    values = (wide(sums.values) + wide(module.running_mean).abs().view(shape)) * scale.view(shape)
    if module.bias is not None:
        values = values + wide(module.bias.detach()).abs().view(shape)
    return Sums(values, sums.terms + _NORM_TERMS)


@magnitude.register
def _(module: nn.PReLU, sums: Sums, call: Caller = _forward) -> Sums | None:
    values = wide(sums.values)
    slopes = wide(module.weight.detach()).abs().clamp(min=1)
    if slopes.numel() > 1:
        slopes = slopes.view(-1, *[1] * (values.dim() - 2))
    return Sums(values * slopes, sums.terms + 1)


@magnitude.register(nn.Identity | nn.ReLU | nn.ReLU6 | _DropoutNd)
def _(module: nn.Module, sums: Sums, call: Caller = _forward) -> Sums | None:
    return sums


@magnitude.register
def _(module: nn.Hardtanh, sums: Sums, call: Caller = _forward) -> Sums | None:
    return sums if module.min_val <= 0 <= module.max_val else None


@magnitude.register(nn.Flatten | nn.Unflatten | nn.ZeroPad1d | nn.ZeroPad2d | nn.ZeroPad3d)
@magnitude.register(_CircularPadNd | _ReflectionPadNd | _ReplicationPadNd)
def _(module: nn.Module, sums: Sums, call: Caller = _forward) -> Sums | None:
    return Sums(_forward(module, wide(sums.values)), sums.terms)
