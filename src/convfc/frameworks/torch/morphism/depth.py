"""Depth morphing: one CONV or FC layer becomes two whose composition is the one.

The first layer takes the padding, so that whatever the padding mode the second reads what the old
layer's taps would have read; the second has none. A stride s belongs to the second: from
``z[q] = sum A[t1] x[q + d t1]`` it makes ``y[p] = sum B[t2] z[s p + d t2]``, which reads
``x[s p + d (t1 + t2)]``. A transposed layer writes instead of reading: there the first layer has
the stride, and the second crops. Dilation and groups are both layers'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError
from convfc.frameworks.torch.morphism.activation import identity_start
from convfc.frameworks.torch.morphism.morph import Morph
from convfc.frameworks.torch.morphism.products import Factors, factorised
from convfc.frameworks.torch.morphism.site import chained, find_layer, generator_of, morphed
from convfc.frameworks.torch.morphism.taps import (
    Taps,
    build,
    check_room,
    grown,
    kernel_sizes,
    offsets,
    read,
)
from convfc.sizes import Sizes, integer

__all__ = ["middle_channels", "morph_depth", "split", "starting"]

Activation = nn.Module | str | None


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_depth(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    kernel_sizes: tuple[Any, Any] | None = None,
    channels: int | None = None,
    activation: nn.Module | str | None = "prelu",
    allow_residual: bool = False,
    seed: int = 0,
) -> Morph:
    """Make two layers of one, both trainable everywhere (Wei et al. 2016, arXiv 1603.01670).

    Neither is the identity: one of the two is random, with orthogonal filters, the other is the
    solution of the linear equation that is left, in float64 (their Algorithm 1). Where the channels
    do not suffice for the kernels, smaller ones inside them are solved for and the taps around
    start at zero (Algorithm 2). Taps that start at zero have gradients, and train.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    name : str
        Place of a CONV or FC layer; empty for the model itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
    kernel_sizes : tuple of two, optional
        Of the first and of the second layer, each one number or one per axis. K1 + K2 - 1 may be
        larger than the layer's kernel: that gets zeros around, and the padding grows with it. By
        default the layer's own, then 1.
    channels : int, optional
        Between the two; as many as there are filters by default. A multiple of the groups.
    activation : nn.Module, "prelu" or None
        Between the two, starting as the identity: PReLU with slope 1 by default, or what
        `morph_activation` makes of the one given. None for none.
    allow_residual : bool
        Whether to take the closest pair if the channels are too few for an exact one; the
        certificate then says no.
    seed : int
        Of the random factor.

    Returns
    -------
    Morph

    Raises
    ------
    NothingToConvert
        If no part has this name.
    UnsupportedLayer
        If the part is no layer that can be morphed.
    ArgumentError
        If the kernels are too small, or the channels too few; it says how many are needed.

    Notes
    -----
    A state dict gets the keys ``name.0.weight`` and so on. The first layer gets a bias of zeros if
    the layer has one; the second gets the layer's.

    Examples
    --------
    >>> conv, x = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 9, 9)
    >>> morph = morph_depth(conv, "", example=x)
    >>> morph.model
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (1): PReLU(num_parameters=1)
      (2): Conv2d(8, 8, kernel_size=(1, 1), stride=(2, 2))
    )
    >>> morph.certificate.holds
    True
    >>> morph_depth(conv, "", example=x, kernel_sizes=(3, 3), channels=24).model[0]
    Conv2d(3, 24, kernel_size=(3, 3), stride=(1, 1), padding=(2, 2))
    """
    site = find_layer(model, name, example)
    taps = read(site.part)
    kernels = _kernels(taps, kernel_sizes)
    count = middle_channels(channels, taps, site.where)
    between = None if activation is None else starting(activation, site.part)

    def factors(layer: nn.Module) -> tuple[Taps, Taps, Factors]:
        return split(
            layer, read(layer), kernels, count, seed=seed, where=site.where, residual=allow_residual
        )

    def make(layer: nn.Module) -> nn.Module:
        first, second, _ = factors(layer)
        middle = [] if between is None else [starting(activation, layer)]
        return chained(layer, *build(first, layer), *middle, *build(second, layer))

    first, _, found = factors(site.part)
    check_room(first, site.inputs, site.where)
    what = f"two layers with the kernels {_said(kernels[0])} and {_said(kernels[1])} and {count} "
    what += "channels between them"
    if found.active != kernels:
        what += f", of which {_said(found.active[0])} and {_said(found.active[1])} are not zero"
    if found.residual:
        what += f"; {found.residual:.3g} of the kernel's norm is missing"
    why = "its factors are real numbers"
    return morphed(site, make, what=what, form="two layers", why_no_integers=why, seed=seed)


def split(
    layer: nn.Module,
    taps: Taps,
    kernels: tuple[Sizes, Sizes],
    channels: int,
    *,
    seed: int,
    where: str,
    residual: bool = False,
) -> tuple[Taps, Taps, Factors]:
    """Return what the two layers compute that one layer becomes.

    Parameters
    ----------
    layer : nn.Module
        Whose dtype and dialect of padding count.
    taps : Taps
        What it computes, or a part of that.
    kernels : tuple
        Of the two layers; K1 + K2 - 1 covers the layer's kernel.
    channels : int
        Between the two.
    seed : int
    where : str
        For messages.
    residual : bool
        Whether the closest two are taken if there are no exact ones.

    Examples
    --------
    >>> conv = nn.Conv1d(1, 2, 3, padding=1)
    >>> first, second, _ = split(conv, read(conv), ((3,), (3,)), 4, seed=0, where="conv")
    >>> first.pads, second.pads, second.filters.shape
    (((2, 2),), ((0, 0),), torch.Size([2, 3, 4]))
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    whole = tuple(a + b - 1 for a, b in zip(*kernels, strict=True))
    at = offsets(taps, whole)
    found = factorised(
        taps.by_group,
        kernels,
        at,
        channels // taps.groups,
        generator=generator_of(seed),
        dtype=weight.dtype,
        where=where,
        allow_residual=residual,
    )
    none = ((0, 0),) * len(whole)
    ones = (1,) * len(whole)
    larger = grown(taps, whole, at)
    bias = None if taps.bias is None else torch.zeros(channels, dtype=torch.float64)
    first = replace(taps, filters=found.first, bias=bias)
    second = replace(taps, filters=found.second)
    if taps.transposed:
        written, cropped = _cropping(larger)
        return (
            replace(first, pads=written),
            replace(second, pads=cropped, stride=ones),
            found,
        )
    first = replace(first, pads=larger.pads, stride=ones)
    return first, replace(second, pads=none, mode="zeros"), found


def middle_channels(channels: int | None, taps: Taps, where: str) -> int:
    """Return how many channels stand between two layers: as many as filters, or as asked for.

    Raises
    ------
    ArgumentError
        If they are no multiple of the groups.

    Examples
    --------
    >>> middle_channels(None, read(nn.Conv1d(2, 6, 3)), "conv")
    6
    """
    if channels is None:
        return len(taps.filters)
    count = integer("channels", channels, least=1)
    if count % taps.groups:
        raise ArgumentError(
            "the channels between the two layers cannot be shared out among the groups",
            where=where,
            expected=f"a multiple of {taps.groups}",
            got=count,
            remedy=f"give {-(-count // taps.groups) * taps.groups}",
        )
    return count


def _cropping(taps: Taps) -> tuple[Any, Any]:
    """Share out what a transposed layer crops: the first layer gets the output padding.

    It adds rows of zeros behind, if the first layer's bias is zero and the activation leaves zero
    as it is; the second layer writes zeros from them, as the old layer did.
    """
    written, cropped = [], []
    for axis, (low, high) in enumerate(taps.pads):
        extra = low - high
        said = low >= 0 and 0 <= extra < max(taps.stride[axis], taps.dilation[axis])
        written.append((0, -extra if said else 0))
        cropped.append((low, low if said else high))
    return tuple(written), tuple(cropped)


def _kernels(taps: Taps, given: tuple[Any, Any] | None) -> tuple[Sizes, Sizes]:
    """Return the kernel sizes of the two layers."""
    if given is None:
        return taps.kernel, (1,) * len(taps.kernel)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ArgumentError(
            "two layers have two kernels",
            where="kernel_sizes",
            expected="a pair, such as (3, 1) or ((3, 3), (1, 1))",
            got=repr(given),
            remedy="give the first layer's, then the second's",
        )
    first, second = (
        kernel_sizes(one, taps, f"kernel_sizes[{number}]") for number, one in enumerate(given)
    )
    for k, a, b in zip(taps.kernel, first, second, strict=True):
        if a + b - 1 < k:
            raise ArgumentError(
                "the composition of two so small kernels does not cover the layer's",
                where="kernel_sizes",
                expected=f"K1 + K2 - 1 of {k} or more",
                got=a + b - 1,
                remedy="take larger kernels",
            )
    return first, second


def starting(activation: Activation, layer: nn.Module) -> nn.Module:
    """Return the activation between the two layers."""
    if isinstance(activation, str):
        if activation != "prelu":
            raise ArgumentError(
                "there is no such activation",
                where="activation",
                expected="'prelu', None or a module",
                got=repr(activation),
                remedy="give the activation as a module, such as nn.SiLU()",
            )
        activation = None
    return identity_start(activation, layer)


def _said(kernel: Sizes) -> str:
    return "×".join(map(str, kernel)) or "1"
