"""A larger kernel for the same function: zeros around the old taps, and as much more padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.morphism.morph import Morph
from convfc.frameworks.torch.morphism.site import (
    chained,
    check_share,
    find_layer,
    generator_of,
    morphed,
)
from convfc.frameworks.torch.morphism.taps import (
    Taps,
    build,
    check_room,
    grown,
    kernel_sizes,
    offsets,
    read,
)
from convfc.sizes import Sizes

__all__ = ["morph_kernel"]

_CHANGES = (
    "kernel_size",
    "padding",
    "padding_mode",
    "output_padding",
    "_reversed_padding_repeated_twice",
)


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_kernel(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    kernel_size: Any,
    noise: float = 0.0,
    seed: int = 0,
) -> Morph:
    """Give a CONV layer a larger kernel (kernel size morphing of Wei et al. 2016).

    The new taps are zero and train like the others. The old kernel stands in the middle of the new
    one. Where that is between two taps, and the padding of the two sides would differ, a layer of
    padding (of the layer's padding mode) is put in front; behind a transposed layer, one that
    crops.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    name : str
        Place of a CONV layer; empty for the model itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
    kernel_size : int or tuple of int
        At least the old one on every axis, even or odd.
    noise : float
        Standard deviation of the new taps, relative to that of the old ones. The function then
        changes, and the certificate says so.
    seed : int
        Of the noise.

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
        If the kernel is smaller.
    GeometryError
        If the input is too small for the padding that a padding mode would have to make.

    Examples
    --------
    >>> model, x = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), torch.randn(1, 1, 8, 8)
    >>> morph = morph_kernel(model, "0", example=x, kernel_size=7)
    >>> morph.model
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(7, 7), stride=(1, 1), padding=(3, 3))
    )
    >>> morph.certificate.holds, morph.certificate.layers[0].exact.identical
    (True, True)
    """
    site = find_layer(model, name, example)
    if form_of(site.part) != "native":
        raise UnsupportedLayer(
            "an FC layer has no kernel",
            where=site.where,
            remedy="name a CONV layer; what a Linear can be given is width or depth",
        )
    taps = read(site.part)
    kernel = kernel_sizes(kernel_size, taps, "kernel_size")
    if any(new < old for new, old in zip(kernel, taps.kernel, strict=True)):
        raise ArgumentError(
            "a kernel cannot become smaller without losing taps",
            where="kernel_size",
            expected=f"at least {taps.kernel}",
            got=kernel,
            remedy="give a larger kernel",
        )
    amount = check_share("noise", noise, most=1.0)
    at = offsets(taps, kernel)
    check_room(grown(taps, kernel, at), site.inputs, site.where)

    def make(layer: nn.Module) -> nn.Module:
        old = read(layer)
        new = grown(old, kernel, at)
        return _remade(layer, _noisy(old, new, at, amount, seed) if amount else new)

    said = "×".join(map(str, kernel))
    return morphed(
        site, make, what=f"a kernel of {said}", noise=amount, form="larger kernel", seed=seed
    )


def _noisy(old: Taps, new: Taps, at: Sizes, noise: float, seed: int) -> Taps:
    """Fill the taps around the old kernel with small random numbers."""
    drawn = torch.randn(new.filters.shape, generator=generator_of(seed), dtype=torch.float64)
    ones = replace(old, filters=torch.ones_like(old.filters))
    around = grown(ones, new.kernel, at).filters == 0
    scale = noise * old.filters.std(correction=0)
    return replace(new, filters=torch.where(around, scale * drawn, new.filters))


def _remade(layer: nn.Module, taps: Taps) -> nn.Module:
    """Give a layer its new numbers; it stays the same object, with pads around it if need be."""
    parts = build(taps, layer)
    (fresh,) = (part for part in parts if form_of(part) == "native")
    for attribute in _CHANGES:
        setattr(layer, attribute, getattr(fresh, attribute))
    layer.weight = fresh.weight
    return chained(layer, *(layer if part is fresh else part for part in parts))
