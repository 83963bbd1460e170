"""What starts as the identity: activations that learn how strong they are, and layers behind one.

Between two layers that were one there must be no activation at first; but without any, the two are
never more than one. So Wei et al. (2016, arXiv 1603.01670: the P-activations) put one there that
starts as the identity and may become another function in training: ``(1 - a) x + a phi(x)`` with a
learned, from a = 0. With phi = ReLU that is PReLU (He et al. 2015, arXiv 1502.01852) with slope
1 - a. Net2DeeperNet (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) adds a whole layer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.errors import ArgumentError, ShapeError, UnsupportedLayer
from convfc.frameworks.torch.forms.children import plain_linear
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.graph import as_traced
from convfc.frameworks.torch.morphism.magnitude import Caller, Sums, magnitude
from convfc.frameworks.torch.morphism.target import (
    Morph,
    Target,
    chained,
    find_layer,
    find_part,
    graph_of,
    in_words,
    kernel_of,
    look_up,
    read_size,
    replaced,
)
from convfc.frameworks.torch.vocabulary import CONVS, NORMS, Call, is_pointwise
from convfc.sizes import Sizes, flag, integer

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

    None and ReLU give PReLU with slope 1; what starts as the identity already is taken as it is.
    Its parameters get dtype, device, mode and ``requires_grad`` of a layer.

    Examples
    --------
    >>> identity_start(nn.ReLU(), nn.Linear(2, 2)).weight
    Parameter containing:
    tensor([1.], requires_grad=True)
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
    model, name, example
        The model, which stays as it is; the place of a layer or of an activation, empty for the
        model itself; an input: a tuple holds several arguments, a dict keyword arguments.
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
    part = look_up(model, name)
    if form_of(part) == "native" or isinstance(part, nn.Linear):
        return _inserted(find_layer(model, name, example), activation, seed)
    target = find_part(model, name, example)
    if activation is not None:
        raise ArgumentError(
            "an activation is made parametric, not exchanged for another",
            where=target.where,
            expected="activation=None",
            got=type(activation).__name__,
            remedy="leave out activation=, or name the layer in front",
        )
    return _parametric(target, seed)


def _inserted(target: Target, activation: nn.Module | None, seed: int) -> Morph:
    new = identity_start(activation, target.part)  # refuses before anything is copied

    def make(layer: nn.Module) -> nn.Module:
        return chained(layer, layer, identity_start(activation, layer))

    return replaced(target, make, what=f"{_what(new)} behind it", form="activation", seed=seed)


def _parametric(target: Target, seed: int) -> Morph:
    phi = target.part
    kinds: tuple[type[nn.Module], ...] = (nn.ReLU, *_SLOPES)
    if type(phi) not in kinds:
        raise UnsupportedLayer(
            f"{type(phi).__name__} is neither a layer with weights nor an activation that can "
            "learn its strength",
            where=target.where,
            expected=f"a Conv, ConvTranspose or Linear, or {', '.join(k.__name__ for k in kinds)}",
            remedy="name such a part",
        )
    kind: Any = {"dtype": target.inputs[0].dtype, "device": target.inputs[0].device}
    relu = type(phi) is nn.ReLU

    def make(old: nn.Module) -> nn.Module:
        if relu:
            return chained(old, nn.PReLU(init=0.0, **kind))
        return chained(old, IdentityStart(copy.deepcopy(old), 1.0, **kind))

    return replaced(
        target,
        make,
        what="PReLU with slope 0 for ReLU" if relu else f"{_what(phi)} made parametric",
        again=False,
        form="activation",
        why_no_integers="it has no weights",
        seed=seed,
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


# Layers


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
    model, name, example
        The model, which stays as it is; the place of a CONV or FC layer, empty for the model
        itself; an input: a tuple holds several arguments, a dict keyword arguments. With
        ``batch_norm`` the statistics are those of this example.
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
    target = find_layer(model, name, example)
    kernel = _odd_kernel(target, kernel_size)
    channels = len(kernel_of(target.part).filters)
    _check_groups(target, groups, channels)
    flag("batch_norm", batch_norm)
    last, phi = _what_follows(target)
    if activation is not None:
        phi = None
    if phi is None:
        identity_start(activation, target.part)  # refuses before anything is copied
    if last is not target.part:
        place = next(n for n, part in target.model.named_modules() if part is last)
        behind = find_part(target.model, place, example)
    else:
        behind = target
    statistics = _statistics(behind, phi, kernel) if batch_norm else None

    def make(old: nn.Module) -> nn.Module:
        # Of a normalisation, too, the weight says dtype and device.
        start = identity_start(activation, old) if phi is None else copy.deepcopy(phi)
        new = [start, _identity(old, channels, kernel, groups)]
        if statistics is not None:
            new.append(_norm(old, statistics, kernel))
        return nn.Sequential(old, *(part.train(old.training) for part in new))

    what = f"an identity layer {f'of kernel {in_words(kernel)} ' if kernel else ''}behind it"
    what += ", after a copy of its activation" if phi is not None else ""
    what += ", with BatchNorm" if batch_norm else ""
    morph = replaced(behind, make, what=what, form="deeper", spread_output=phi, seed=seed)
    return replace(morph, what=f"{target.where}: {what}")


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


def _statistics(
    target: Target, activation: nn.Module | None, kernel: Sizes
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel that the new layer returns on the example."""
    values = []
    for y in target.outputs:
        if y.dim() != len(kernel) + 2:
            raise ShapeError(
                "BatchNorm needs a batch of outputs with the channels on axis 1",
                where=target.where,
                expected=f"{len(kernel) + 2} axes",
                got=tuple(y.shape),
                remedy="give a batch as example, or leave batch_norm out",
            )
        active = y if activation is None else activation(y)
        values.append(active.double().transpose(0, 1).flatten(1))
    variance, mean = torch.var_mean(torch.cat(values, dim=1), dim=1, correction=0)
    return mean, variance


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


def _check_groups(target: Target, groups: int, channels: int) -> None:
    count = integer("groups", groups, least=1)
    conv = form_of(target.part) == "native"
    if channels % count or (count > 1 and not conv):
        raise ArgumentError(
            "the channels cannot be shared out among so many groups",
            where="groups",
            expected=f"a divisor of {channels}" if conv else "1 for an FC layer",
            got=count,
            remedy=f"give {math.gcd(count, channels)}" if conv else "leave it out",
        )


# What a model does next with the output of a layer: normalise it, and put an activation on it


def _what_follows(target: Target) -> tuple[nn.Module, nn.Module | None]:
    """Return the last module before an activation, and that activation if it is idempotent.

    The last is the layer itself, or the normalisation behind it. A normalisation counts if every
    call of the layer goes there, and nowhere else; an activation if every call of what is before it
    goes there, and nowhere else, so that nobody else sees what is put between. If `torch.fx` cannot
    trace the model, what follows in an `nn.Sequential` is known still.
    """
    by_name = isinstance(target.example, dict)
    graph = None if by_name else graph_of(target.model, target.example)
    if not isinstance(graph, fx.Graph):
        return target.part, _next_in_sequential(target)
    model = as_traced(target.model)
    calls = {node: Call.of(node, model) for node in graph.nodes}
    last = target.part
    while True:
        nexts = [_only_user(node) for node, call in calls.items() if call.module is last]
        found = [calls[node] for node in nexts if node is not None]
        if not found or len(found) < len(nexts):
            return last, None
        first = found[0].module
        alone = all(call.module is first for call in found)
        if alone and isinstance(first, _BatchNorm) and first.weight is not None:
            last = first
            continue
        activations = [_idempotent(call) for call in found]
        return last, activations[0] if len(set(map(repr, activations))) == 1 else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _next_in_sequential(target: Target) -> nn.Module | None:
    """Return the idempotent activation that follows in the one `nn.Sequential` with the layer."""
    holding = [
        (parent, key)
        for parent in target.model.modules()
        for key, part in parent._modules.items()
        if part is target.part
    ]
    if len(holding) != 1 or type(holding[0][0]) is not nn.Sequential:
        return None
    parent, key = holding[0]
    behind = list(parent._modules.values())[list(parent._modules).index(key) + 1 :]
    return _idempotent(behind[0]) if behind else None


def _idempotent(what: Call | nn.Module | None) -> nn.Module | None:
    """Return a fresh activation like this, not in place, if ``phi(phi(x)) == phi(x)``; or None."""
    if isinstance(what, Call):
        known = what.name in ("relu", "relu6", "hardtanh")
        what = what.module or (what.as_module() if known else None)
    for kind in (nn.ReLU, nn.ReLU6):
        if type(what) is kind:
            return kind()
    return nn.Hardtanh(what.min_val, what.max_val) if type(what) is nn.Hardtanh else None
