"""How large the sums in a chain of layers are, and how many roundings a result has gone through.

A layer's computed output is within ``gamma_n * B`` of the exact one, where B is the layer on
absolute values (see `convfc.rounding`). The bound composes: of a value with ``|g - h| <= gamma_n
B`` and ``|h| <= B``, a layer of m terms makes one within ``gamma_(n+m) * (|W| B + |b|)``, since
``gamma_m + gamma_n + gamma_m * gamma_n <= gamma_(n+m)`` (Higham 2002, Lemma 3.3). A function with
``|phi(s) - phi(t)| <= |s - t|`` and ``phi(0) = 0`` that rounds nothing, such as ReLU, leaves n and
B as they are. So B is the chain on absolute values, and n the sum over its layers, each of which
counts two more: its weights may have been rounded when they were made, and its result when stored.

A normalisation by the mean and variance of its own input, of N numbers, is no such function: its
bound is known where the input itself is. With M and Q the means of |x| and of x**2, the mean is
computed within ``gamma_N * M``, and the variance, however it is summed up, within ``2 * gamma_2N *
Q`` (Chan, Golub & LeVeque 1983: the textbook's two sums are the worst). If ``4 * gamma_n * Q`` is
less than v, variance and eps together, then ``1 / sqrt(v)`` moves by at most ``2 * gamma_n * Q /
v`` of itself, and the result, with n = 2N and a few more, is within gamma_n of
``B = 2 |w| (|x| + M + |x - mean| Q / v) / sqrt(v) + |b|``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.padding import _CircularPadNd, _ReflectionPadNd, _ReplicationPadNd

from convfc.comparing import wide
from convfc.frameworks.torch.certify.pairs import cast, has_own_weights
from convfc.frameworks.torch.running import deep_copy

Caller: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Calls a layer's forward on an input."""

# (x - mean) / sqrt(var + eps) * weight + bias, in whichever order, and what its parts are made of.
_NORM_TERMS = 8
_MADE_AND_STORED = 2
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""Modules that divide by a square root."""


class Sums(NamedTuple):
    """B of each element of a value, in float64, and n: how many roundings it has gone through."""

    values: Tensor
    terms: int = 0
    given: Tensor | None = None  # the value itself, where nothing has been rounded yet


def sums_of(x: Tensor) -> Sums:
    """Return B and n of an input."""
    return Sums(wide(x).abs(), 0, wide(x))


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
def _(module: nn.GroupNorm, sums: Sums, call: Caller = _forward) -> Sums | None:
    if sums.given is None:
        return None
    grouped = sums.given.unflatten(1, (module.num_groups, -1)).flatten(2)
    return _normalised(module, sums.given, grouped)


@magnitude.register
def _(module: nn.LayerNorm, sums: Sums, call: Caller = _forward) -> Sums | None:
    x = sums.given
    return None if x is None else _normalised(module, x, x.flatten(-len(module.normalized_shape)))


@magnitude.register
def _(module: _InstanceNorm, sums: Sums, call: Caller = _forward) -> Sums | None:
    if module.running_mean is not None:
        return _by_statistics(module, sums)
    x = sums.given
    return None if x is None else _normalised(module, x, x.flatten(2))


def _normalised(module: Any, x: Tensor, grouped: Tensor) -> Sums:
    """Return B and n of a normalisation over the last axis of ``grouped``, which is x."""
    moduli, square = grouped.abs(), grouped.square().mean(-1, keepdim=True)
    v = grouped.var(-1, correction=0, keepdim=True) + module.eps
    away = (grouped - grouped.mean(-1, keepdim=True)).abs()
    values = 2 * v.rsqrt() * (moduli + moduli.mean(-1, keepdim=True) + away * square / v)
    values = values.reshape(x.shape)
    # Of a LayerNorm they are as its last axes, of all others one per channel.
    behind = 0 if isinstance(module, nn.LayerNorm) else x.dim() - 2
    weight, bias = (
        None if p is None else wide(p.detach()).abs().reshape(*p.shape, *[1] * behind)
        for p in (module.weight, module.bias)
    )
    values = values if weight is None else values * weight
    values = values if bias is None else values + bias
    return Sums(values, 2 * grouped.shape[-1] + 2 * _NORM_TERMS)


@magnitude.register
def _(module: _BatchNorm, sums: Sums, call: Caller = _forward) -> Sums | None:
    return None if module.running_mean is None else _by_statistics(module, sums)


def _by_statistics(module: Any, sums: Sums) -> Sums:
    """Return B and n of a normalisation by statistics that are known beforehand."""
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
    return Sums(sums.values, sums.terms)


@magnitude.register
def _(module: nn.Hardtanh, sums: Sums, call: Caller = _forward) -> Sums | None:
    return Sums(sums.values, sums.terms) if module.min_val <= 0 <= module.max_val else None


@magnitude.register(nn.Flatten | nn.Unflatten | nn.ZeroPad1d | nn.ZeroPad2d | nn.ZeroPad3d)
@magnitude.register(_CircularPadNd | _ReflectionPadNd | _ReplicationPadNd)
def _(module: nn.Module, sums: Sums, call: Caller = _forward) -> Sums | None:
    return Sums(_forward(module, wide(sums.values)), sums.terms)
