"""What starts as the identity: activations that learn how strong they are, and layers behind one.

Between two layers that were one there must be no activation at first; but without any, the two are
never more than one. So Wei et al. (2016, arXiv 1603.01670: the P-activations) put one there that
starts as the identity and may become another function in training: ``(1 - a) x + a phi(x)`` with a
learned, from a = 0. With phi = ReLU that is PReLU (He et al. 2015, arXiv 1502.01852) with slope
1 - a. Net2DeeperNet (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) adds a whole layer.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.errors import ArgumentError
from convfc.frameworks.torch.forms.children import as_parameter, plain_linear
from convfc.frameworks.torch.graph import as_traced
from convfc.frameworks.torch.morphism.certify import Morph
from convfc.frameworks.torch.morphism.magnitude import Caller, Sums, magnitude
from convfc.frameworks.torch.morphism.target import (
    Target,
    chained,
    find_layer,
    find_part,
    graph_of,
    in_words,
    kernel_of,
    read_size,
    replaced,
)
from convfc.frameworks.torch.vocabulary import CONVS, Call, is_pointwise
from convfc.sizes import Sizes

# Activations


class IdentityStart(nn.Module):
    """The parametric activation ``(1 - a) x + a phi(x)``, with one learned number a.

    Parameters
    ----------
    phi : nn.Module
        An activation; its output has the shape of its input.
    a : float
        Where it starts: at 0 as the identity, at 1 as phi, in both cases exactly.
    dtype, device
        Of a.

    Examples
    --------
    >>> x = torch.tensor([-1.0, 2.0])
    >>> start = IdentityStart(nn.Sigmoid())
    >>> torch.equal(start(x), x), torch.equal(IdentityStart(nn.Sigmoid(), 1.0)(x), x.sigmoid())
    (True, True)
    >>> start(x).sum().backward()
    >>> bool(start.a.grad != 0)
    True
    """

    def __init__(
        self,
        phi: nn.Module,
        a: float = 0.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.phi = phi
        self.a = nn.Parameter(torch.tensor(a, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(1 - a) x + a phi(x)``."""
        # lerp is exact at both ends, which a sum of two products is not.
        return torch.lerp(x, self.phi(x), self.a)


@magnitude.register
def _(module: IdentityStart, sums: Sums, call: Caller = nn.Module.__call__) -> Sums | None:
    return sums if _is_identity(module) else None  # morphs put it there as the identity


def identity_start(activation: nn.Module | None, like: nn.Module) -> nn.Module:
    """Return an activation that starts as the identity, its numbers like a layer's."""
    weight: Tensor = like.weight  # type: ignore[assignment]
    kind: Any = {"dtype": weight.dtype, "device": weight.device}
    made: nn.Module
    if activation is None or type(activation) is nn.ReLU:
        made = nn.PReLU(init=1.0, **kind)
    elif _is_identity(activation):
        made = copy.deepcopy(activation).to(**kind)
    elif is_pointwise(activation):
        made = IdentityStart(copy.deepcopy(activation).to(**kind), **kind)
    else:
        raise ArgumentError(
            f"{type(activation).__name__} is not the identity at its start, nor an activation of "
            "torch.nn that does the same to every element",
            where="activation",
            remedy="give nn.ReLU(), nn.GELU(), nn.PReLU(init=1.0), or an IdentityStart",
        )
    return made.train(like.training).requires_grad_(weight.requires_grad)


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_activation(
    model: nn.Module, name: str, *, example: Any, activation: nn.Module | None = None, seed: int = 0
) -> Morph:
    """Put an activation that starts as the identity on a layer's output (a P-activation).

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`.
    activation : nn.Module, optional
        What it can become; ReLU by default, so that it is PReLU with slope 1.

    Raises
    ------
    ArgumentError
        If the activation is not a function of single elements.

    Examples
    --------
    >>> model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.randn(1, 1, 8, 8)
    >>> morph = morph_activation(model, "0", example=x, activation=nn.SiLU())
    >>> morph.model[0], morph.certificate.holds
    (Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): IdentityStart(
        (phi): SiLU()
      )
    ), True)
    """
    target = find_layer(model, name, example)
    new = identity_start(activation, target.part)  # refuses before anything is copied

    def make(layer: nn.Module) -> nn.Module:
        return chained(layer, layer, identity_start(activation, layer))

    return replaced(target, make, what=f"{_what(new)} behind it", form="activation", seed=seed)


def _is_identity(activation: nn.Module) -> bool:
    """Say whether a module starts as the identity."""
    if isinstance(activation, IdentityStart):
        return float(activation.a.detach()) == 0
    if type(activation) is nn.PReLU:
        return bool((activation.weight == 1).all())
    return type(activation) is nn.Identity


def _what(activation: nn.Module) -> str:
    """Return an activation in words."""
    if isinstance(activation, IdentityStart):
        return f"{type(activation.phi).__name__} from the identity"
    return "PReLU with slope 1" if type(activation) is nn.PReLU else type(activation).__name__


# Layers


@torch.inference_mode(mode=False)  # what is made here is to be trained
def deepen(
    model: nn.Module,
    name: str,
    *,
    example: Any,
    kernel_size: Any = None,
    activation: nn.Module | None = None,
    seed: int = 0,
) -> Morph:
    """Put a layer that is the identity behind a layer (Net2DeeperNet).

    Chen, Goodfellow & Shlens (2015, arXiv 1511.05641): between the layer (or the BatchNorm behind
    it) and its activation phi come a copy of phi and a layer with the identity as its weight. That
    changes nothing if ``phi(phi(x)) = phi(x)``, however the model writes phi. Where it is another,
    or none, or not known to be alone behind the layer, an activation that starts as the identity
    takes the place of the copy, as in `morph_activation`.

    Parameters
    ----------
    model, name, example, seed
        As for every morph: see `convfc.methods.morphism`.
    kernel_size : int or tuple of int, optional
        Odd, of the new CONV layer: the identity has a 1 in the middle. 3 by default. Behind an FC
        layer comes an FC layer.
    activation : nn.Module, optional
        What the activation can become that starts as the identity; None takes the one that follows,
        if it is ReLU, ReLU6 or Hardtanh, else PReLU.

    Raises
    ------
    ArgumentError
        If the kernel is even, or the activation none.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> morph = deepen(model, "0", example=torch.randn(2, 1, 8, 8))
    >>> morph.model
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Sequential(
        (0): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, ...)
        (1): ReLU()
        (2): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      )
      (2): ReLU()
    )
    >>> morph.certificate.holds
    True
    """
    target = find_layer(model, name, example)
    kernel = _odd_kernel(target, kernel_size)
    channels = len(kernel_of(target.part).filters)
    last, phi = _what_follows(target)
    if activation is not None:
        phi = None
    if phi is None:
        identity_start(activation, target.part)  # refuses before anything is copied
    behind = target
    if last is not target.part:
        place = next(n for n, part in target.model.named_modules() if part is last)
        behind = find_part(target.model, place, example)

    def make(old: nn.Module) -> nn.Module:
        # Of a normalisation, too, the weight says dtype and device.
        start = identity_start(activation, old) if phi is None else copy.deepcopy(phi)
        new = start, _identity(old, channels, kernel)
        return nn.Sequential(old, *(part.train(old.training) for part in new))

    what = f"an identity layer {f'of kernel {in_words(kernel)} ' if kernel else ''}behind it"
    what += ", after a copy of its activation" if phi is not None else ""
    after: Any = {} if phi is None else {"spread_output": phi}
    morph = replaced(behind, make, what=what, form="deeper", seed=seed, **after)
    return replace(morph, what=f"{target.where}: {what}")


def _identity(like: nn.Module, channels: int, kernel: Sizes) -> nn.Module:
    """Return a CONV or FC layer that returns its input, with a bias of zeros."""
    old: Tensor = like.weight  # type: ignore[assignment]
    kind: Any = {"dtype": old.dtype, "device": old.device}
    padding: Any = tuple(k // 2 for k in kernel)
    values = torch.zeros(channels, channels, *kernel, **kind)
    values[..., *padding] = torch.eye(channels, **kind)
    weight, bias = as_parameter(values, old), as_parameter(torch.zeros(channels, **kind), old)
    if not kernel:
        return plain_linear(weight, bias)
    cls: Any = CONVS[len(kernel)]
    conv: nn.Module = cls(channels, channels, kernel, padding=padding, bias=False, device="meta")
    conv.weight, conv.bias = weight, bias
    return conv


def _odd_kernel(target: Target, given: Any) -> Sizes:
    own = kernel_of(target.part)
    if given is None:
        return (3,) * len(own.size)
    size = read_size(given, own, "kernel_size")
    if any(k % 2 == 0 for k in size):
        raise ArgumentError(
            "an even kernel has no middle",
            where="kernel_size",
            expected="odd numbers",
            got=size,
            remedy="take an odd one; morph_kernel then makes it even",
        )
    return size


# What a model does next with the output of a layer: normalise it, and put an activation on it


def _what_follows(target: Target) -> tuple[nn.Module, nn.Module | None]:
    """Return the last module before an activation, and that activation if it is idempotent.

    The last is the layer itself, or the normalisation behind it. Either counts if every call of
    what is before it goes there, and nowhere else: then nobody else sees what is put between.
    """
    graph = graph_of(target.model, target.example)
    if not isinstance(graph, fx.Graph):
        return target.part, None
    model = as_traced(target.model)
    calls = {node: Call.of(node, model) for node in graph.nodes}
    last = target.part
    while True:
        readers = [list(node.users) for node, call in calls.items() if call.module is last]
        if not readers or any(len(users) != 1 for users in readers):
            return last, None
        found = [calls[user] for (user,) in readers]
        first = found[0].module
        alone = all(call.module is first for call in found)
        if not (alone and isinstance(first, _BatchNorm) and first.weight is not None):
            activations = [_idempotent(call) for call in found]
            return last, activations[0] if len(set(map(repr, activations))) == 1 else None
        last = first


def _idempotent(call: Call) -> nn.Module | None:
    """Return a fresh activation like this, not in place, if ``phi(phi(x)) == phi(x)``; or None."""
    known = call.name in ("relu", "relu6", "hardtanh")
    what = call.module or (call.as_module() if known else None)
    for kind in (nn.ReLU, nn.ReLU6):
        if type(what) is kind:
            return kind()
    return nn.Hardtanh(what.min_val, what.max_val) if type(what) is nn.Hardtanh else None
