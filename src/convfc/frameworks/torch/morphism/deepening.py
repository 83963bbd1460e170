"""Net2DeeperNet: a layer more that starts as the identity."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError, ShapeError
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.morphism.activation import identity_start
from convfc.frameworks.torch.morphism.following import Following, following
from convfc.frameworks.torch.morphism.morph import Morph
from convfc.frameworks.torch.morphism.site import Site, find_layer, find_part, morphed
from convfc.frameworks.torch.morphism.taps import kernel_sizes, read
from convfc.frameworks.torch.parts import plain_linear
from convfc.frameworks.torch.vocabulary import CONVS, NORMS
from convfc.sizes import Sizes, flag, integer

__all__ = ["deepen"]


@torch.inference_mode(mode=False)  # what is made here is to be trained
def deepen(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    kernel_size: Any = None,
    groups: int = 1,
    activation: nn.Module | None = None,
    batch_norm: bool = False,
    seed: int = 0,
) -> Morph:
    """Put a layer that is the identity behind a layer (Net2DeeperNet).

    Chen, Goodfellow & Shlens (2015, arXiv 1511.05641): behind the layer's activation phi a layer
    with the identity as its weight, and phi again, which changes nothing if
    ``phi(phi(x)) = phi(x)``. Where the activation is another, or none, or not known to be alone
    behind the layer, the layer gets an activation that starts as the identity instead, as in
    `morph_activation`.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    name : str
        Place of a CONV or FC layer; empty for the model itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments. With ``batch_norm`` the
        statistics are those of this example.
    kernel_size : int or tuple of int, optional
        Odd, of the new CONV layer: the identity has a 1 in the middle (`torch.nn.init.dirac_`). 3
        by default. Behind an FC layer comes an FC layer.
    groups : int
        Of the new CONV layer; the number of channels for a depthwise one.
    activation : nn.Module, optional
        What the activation can become that starts as the identity; None takes the one that follows,
        if it is ReLU, ReLU6 or Hardtanh, else PReLU.
    batch_norm : bool
        Whether a BatchNorm follows the new layer. In evaluation mode it is the identity: its scale
        is ``sqrt(var + eps)``, its shift the mean. In training it uses the statistics of the batch,
        so that batches other than the example come out changed.
    seed : int
        Of the integers that the layers are compared on.

    Returns
    -------
    Morph

    Raises
    ------
    NothingToConvert
        If no part has this name.
    UnsupportedLayer
        If the part is no layer that can be morphed, or the activation none.
    ArgumentError
        If the kernel is even, or the groups do not divide the channels.
    ShapeError
        If BatchNorm does not take what the layer returns on the example.

    Notes
    -----
    What is put in stands between the layer (or the BatchNorm behind it) and the activation that the
    model has: a copy of that activation, then the new layer. So it does not matter how the model
    writes its activation.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> morph = deepen(model, "0", example=torch.randn(2, 1, 8, 8))
    >>> morph.model
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Sequential(
        (0): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, ..., track_running_stats=True)
        (1): ReLU()
        (2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      )
      (2): ReLU()
    )
    >>> morph.certificate.holds
    True
    """
    site = find_layer(model, name, example)
    kernel = _kernel(site, kernel_size)
    _check_groups(site, groups)
    flag("batch_norm", batch_norm)
    channels = len(read(site.part).filters)
    found = following(site) if activation is None else Following(following(site).last, None)
    last = _site_of(site, found.last)
    phi = found.activation
    if phi is None:
        identity_start(activation, site.part)  # refuses before anything is copied
    statistics = _statistics(last, phi, kernel) if batch_norm else None

    def make(old: nn.Module) -> nn.Module:
        # Of a normalisation, too, the weight says dtype and device.
        start = identity_start(activation, old) if phi is None else copy.deepcopy(phi)
        new = [start, _identity(old, channels, kernel, groups)]
        if statistics is not None:
            new.append(_norm(old, statistics, kernel))
        return nn.Sequential(old, *(part.train(old.training) for part in new))

    said = "×".join(map(str, kernel))
    what = (
        f"an identity layer of kernel {said} behind it" if kernel else "an identity layer behind it"
    )
    what += ", after a copy of its activation" if phi is not None else ""
    what += ", with BatchNorm" if batch_norm else ""
    return replace(
        morphed(last, make, what=what, form="deeper", spread_output=phi, seed=seed),
        what=f"{site.where}: {what}",
    )


def _identity(like: nn.Module, channels: int, kernel: Sizes, groups: int) -> nn.Module:
    """Return a CONV or FC layer that returns its input, with a bias of zeros."""
    old: Tensor = like.weight  # type: ignore[assignment]
    kind: Any = {"dtype": old.dtype, "device": old.device}
    zeros = nn.Parameter(torch.zeros(channels, **kind), requires_grad=old.requires_grad)
    if not kernel:
        eye = nn.Parameter(torch.eye(channels, **kind), requires_grad=old.requires_grad)
        return plain_linear(eye, zeros)
    cls: Any = CONVS[len(kernel)]
    padding = tuple(k // 2 for k in kernel)
    sizes: Any = {"padding": padding, "groups": groups, "bias": False, "device": "meta"}
    conv: Any = cls(channels, channels, kernel, **sizes)
    weight = nn.init.dirac_(torch.empty(conv.weight.shape, **kind), groups)
    conv.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    conv.bias = zeros
    layer: nn.Module = conv
    return layer


def _norm(like: nn.Module, statistics: tuple[Tensor, Tensor], kernel: Sizes) -> nn.Module:
    """Return a BatchNorm that starts as the identity, given mean and variance in float64."""
    old: Tensor = like.weight  # type: ignore[assignment]
    mean, variance = statistics
    cls: Any = NORMS[len(kernel) or 1]
    norm: Any = cls(len(mean), dtype=old.dtype, device=old.device)
    variance = variance.to(old.dtype).double()  # what it will divide by
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
    layer: nn.Module = norm.requires_grad_(old.requires_grad)
    return layer


def _statistics(site: Site, activation: nn.Module | None, kernel: Sizes) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel that the new layer returns on the example."""
    values = []
    for y in site.outputs:
        if y.dim() != len(kernel) + 2:
            raise ShapeError(
                "BatchNorm needs a batch of outputs with the channels on axis 1",
                where=site.where,
                expected=f"{len(kernel) + 2} axes",
                got=tuple(y.shape),
                remedy="give a batch as example, or leave batch_norm out",
            )
        active = y if activation is None else activation(y)
        values.append(active.double().transpose(0, 1).flatten(1))
    variance, mean = torch.var_mean(torch.cat(values, dim=1), dim=1, correction=0)
    return mean, variance


def _kernel(site: Site, given: Any) -> Sizes:
    taps = read(site.part)
    if given is None:
        return (3,) * len(taps.kernel)
    kernel = kernel_sizes(given, taps, "kernel_size")
    if any(k % 2 == 0 for k in kernel):
        raise ArgumentError(
            "an even kernel has no middle",
            where="kernel_size",
            expected="odd numbers",
            got=kernel,
            remedy="take an odd one; morph_kernel then makes it even",
        )
    return kernel


def _check_groups(site: Site, groups: int) -> None:
    count, channels = integer("groups", groups, least=1), len(read(site.part).filters)
    conv = form_of(site.part) == "native"
    if channels % count or (count > 1 and not conv):
        raise ArgumentError(
            "the channels cannot be shared out among so many groups",
            where="groups",
            expected=f"a divisor of {channels}"
            if form_of(site.part) == "native"
            else "1 for an FC layer",
            got=count,
            remedy=f"give {math.gcd(count, channels)}"
            if form_of(site.part) == "native"
            else "leave it out",
        )


def _site_of(site: Site, last: nn.Module) -> Site:
    """Return the site of the module that the new layer comes behind."""
    if last is site.part:
        return site
    places = {id(part): name for name, part in reversed(list(site.model.named_modules()))}
    return find_part(site.model, places[id(last)], site.example)
