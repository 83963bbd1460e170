"""Activations that start as the identity, and activations that learn how strong they are.

Between two layers that were one there must be no activation at first; but without any, the two are
never more than one. So Wei et al. (2016, arXiv 1603.01670: the P-activations) put one there that
starts as the identity and may become another function in training: ``(1 - a) x + a phi(x)`` with a
learned, from a = 0. With phi = ReLU that is PReLU (He et al. 2015, arXiv 1502.01852) with slope
1 - a.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.morphism.magnitude import Caller, Sums, magnitude
from convfc.frameworks.torch.morphism.morph import Morph
from convfc.frameworks.torch.morphism.site import Site, chained, find_layer, find_part, morphed
from convfc.frameworks.torch.vocabulary import is_pointwise

__all__ = ["IdentityStart", "identity_start", "morph_activation"]


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


# phi: its largest slope, rounded up, and |phi(0)|. Then |phi(s)| <= slope |s| + |phi(0)|.
_SLOPES: dict[type[nn.Module], tuple[float, float]] = {
    nn.GELU: (1.13, 0.0),
    nn.Hardsigmoid: (1 / 6, 0.5),
    nn.Hardswish: (1.5, 0.0),
    nn.Mish: (1.1, 0.0),
    nn.SELU: (1.76, 0.0),
    nn.SiLU: (1.1, 0.0),
    nn.Sigmoid: (0.25, 0.5),
    nn.Softsign: (1.0, 0.0),
    nn.Tanh: (1.0, 0.0),
}
# What a library's exp, tanh or erf, and the arithmetic around it, may be off, in roundings.
_FUNCTION_TERMS = 8


def _sums(module: nn.Module, sums: Sums, call: Caller = nn.Module.__call__) -> Sums | None:
    slope, at_zero = _SLOPES[type(module)]
    # At least what comes in: an error of the input is never larger than slope * gamma * B.
    return Sums(sums.values * max(slope, 1.0) + at_zero, sums.terms + _FUNCTION_TERMS)


for _kind in _SLOPES:
    magnitude.register(_kind, _sums)


@magnitude.register
def _(module: IdentityStart, sums: Sums, call: Caller = nn.Module.__call__) -> Sums | None:
    a = abs(float(module.a.detach()))
    if a == 0:
        return sums
    phi = magnitude(module.phi, sums, call)
    # x + a (phi - x), or phi - (phi - x) (1 - a)
    return None if phi is None else Sums((1 + a) * (sums.values + phi.values), phi.terms + 3)


def identity_start(activation: nn.Module | None, like: nn.Module) -> nn.Module:
    """Return an activation that starts as the identity and can become this one.

    Parameters
    ----------
    activation : nn.Module or None
        None and ReLU give PReLU with slope 1. What starts as the identity already is taken as it
        is: PReLU with slopes 1, an `IdentityStart` at 0, `nn.Identity`.
    like : nn.Module
        The layer whose dtype, device, mode and ``requires_grad`` its parameters get.

    Returns
    -------
    nn.Module

    Raises
    ------
    ArgumentError
        If it is no function of single elements, as far as convfc knows.

    Examples
    --------
    >>> identity_start(nn.ReLU(), nn.Linear(2, 2)).weight
    Parameter containing:
    tensor([1.], requires_grad=True)
    >>> type(identity_start(nn.GELU(), nn.Linear(2, 2))).__name__
    'IdentityStart'
    """
    weight: Tensor = like.weight  # type: ignore[assignment]
    kind: Any = {"dtype": weight.dtype, "device": weight.device}
    made: nn.Module
    if activation is None or type(activation) is nn.ReLU:
        made = nn.PReLU(init=1.0, **kind)
    elif _is_identity(activation):
        made = copy.deepcopy(activation).to(**kind)
    else:
        _check_activation(activation)
        made = IdentityStart(copy.deepcopy(activation).to(**kind), **kind)
    return made.train(like.training).requires_grad_(weight.requires_grad)


@torch.inference_mode(mode=False)  # what is made here is to be trained
def morph_activation(
    model: nn.Module, name: str, *, example: Any, activation: nn.Module | None = None, seed: int = 0
) -> Morph:
    """Put an activation behind a layer, or make an activation parametric (a P-activation).

    Behind a CONV or FC layer: an activation that starts as the identity. In the place of an
    activation: the same one with a learned strength. ReLU becomes PReLU with slope 0, another phi
    becomes ``(1 - a) x + a phi(x)`` with a = 1.

    Parameters
    ----------
    model : nn.Module
        It stays as it is.
    name : str
        Place of a layer or of an activation; empty for the model itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
    activation : nn.Module, optional
        Behind a layer: what it can become; ReLU by default, so that it is PReLU with slope 1.
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
        If the part is neither a layer that can be morphed nor an activation.
    ArgumentError
        If the activation is no function of single elements.

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
    >>> morph_activation(morph.model, "1", example=x).model[1]
    PReLU(num_parameters=1)
    """
    part = find_part(model, name, example).part
    if form_of(part) == "native" or isinstance(part, nn.Linear):
        site = find_layer(model, name, example)
        return _inserted(site, activation, seed)
    if activation is not None:
        raise ArgumentError(
            "an activation is made parametric, not exchanged for another",
            where=name or "the model itself",
            expected="activation=None",
            got=type(activation).__name__,
            remedy="leave out activation=, or name the layer in front",
        )
    return _parametric(find_part(model, name, example), seed)


def _inserted(site: Site, activation: nn.Module | None, seed: int) -> Morph:
    new = identity_start(activation, site.part)  # refuses before anything is copied

    def make(layer: nn.Module) -> nn.Module:
        hooked = identity_start(activation, layer)
        return chained(layer, layer, hooked)

    return morphed(site, make, what=f"{_what(new)} behind it", form="activation", seed=seed)


def _parametric(site: Site, seed: int) -> Morph:
    phi = site.part
    kinds: tuple[type[nn.Module], ...] = (nn.ReLU, *_SLOPES)
    if type(phi) not in kinds:
        raise UnsupportedLayer(
            f"{type(phi).__name__} is neither a layer with weights nor an activation that can "
            "learn its strength",
            where=site.where,
            expected=f"a Conv, ConvTranspose or Linear, or {', '.join(k.__name__ for k in kinds)}",
            remedy="name such a part",
        )
    x = site.inputs[0]
    kind: Any = {"dtype": x.dtype, "device": x.device}

    def make(old: nn.Module) -> nn.Module:
        new = (
            nn.PReLU(init=0.0, **kind)
            if type(old) is nn.ReLU
            else IdentityStart(copy.deepcopy(old), 1.0, **kind)
        )
        return chained(old, new)

    what = (
        "PReLU with slope 0 for ReLU" if type(phi) is nn.ReLU else f"{_what(phi)} made parametric"
    )
    why = "it has no weights"
    return morphed(
        site, make, what=what, again=False, form="activation", why_no_integers=why, seed=seed
    )


def _is_identity(activation: nn.Module) -> bool:
    """Say whether a module starts as the identity."""
    if isinstance(activation, IdentityStart):
        return float(activation.a.detach()) == 0
    if type(activation) is nn.PReLU:
        return bool((activation.weight == 1).all())
    return type(activation) is nn.Identity


def _check_activation(activation: nn.Module) -> None:
    if is_pointwise(activation):
        return
    raise ArgumentError(
        f"{type(activation).__name__} does not start as the identity and is no activation of "
        "torch.nn that does the same to every element",
        where="activation",
        remedy="give one such as nn.ReLU(), nn.GELU() or nn.PReLU(init=1.0), or an IdentityStart",
    )


def _what(activation: nn.Module) -> str:
    """Return an activation in words."""
    if isinstance(activation, IdentityStart):
        return f"{type(activation.phi).__name__} from the identity"
    return "PReLU with slope 1" if type(activation) is nn.PReLU else type(activation).__name__
