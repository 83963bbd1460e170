"""Whole networks with random weights: made from ordinary ones, and ordinary ones drawn from them.

The methods are written for FC layers; the patch form has one for every CONV layer. A draw has plain
FC layers again, of which `convfc.to_conv` makes a CONV network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from convfc.convert import to_fc
from convfc.errors import ArgumentError, NothingToConvert, Refusal, UnsupportedLayer
from convfc.frameworks.torch.forms.children import as_parameter, plain_linear
from convfc.frameworks.torch.forms.factors import linear_obstacle
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.places import copy_of
from convfc.frameworks.torch.references import check_references, exchange
from convfc.frameworks.torch.running import check_module, random_numbers
from convfc.methods.uncertainty.layers import (
    ConcreteDropoutLinear,
    DropoutLinear,
    GaussianLinear,
    RandomLinear,
)
from convfc.places import Where, selector
from convfc.sizes import one_of

Method: TypeAlias = Literal["dropout", "concrete", "gaussian"]

_LAYERS: Mapping[str, Callable[..., RandomLinear]] = {
    "dropout": DropoutLinear,
    "concrete": ConcreteDropoutLinear,
    "gaussian": GaussianLinear,
}


@torch.inference_mode(mode=False)  # what is made here is to be trained
def to_bayesian(model: nn.Module, method: Method, *, where: Where = None, **options: Any) -> Any:
    """Return a copy of a network whose CONV and FC layers have random weights.

    Every CONV layer becomes its patch form (`convfc.to_fc`), and every FC layer, on patches or on
    features, a `RandomLinear`. In training mode they draw at every call (a layer that the network
    calls twice draws twice); in evaluation mode the network computes what the given one does. Add
    `kl` to the loss. `predict` samples.

    Parameters
    ----------
    model : nn.Module
        Of CONV layers, or in patch form already.
    method : {"dropout", "concrete", "gaussian"}
        Monte Carlo dropout (Gal 2016), Concrete Dropout (Gal, Hron & Kendall 2017), or Bayes by
        Backprop (Blundell et al. 2015).
    where : function, str or list of str, optional
        Which layers, as for `convfc.to_fc`. By default all; but where kernels are dropped, all but
        the last of ``model.modules()``, whose kernels are the network's outputs.
    **options
        Of `DropoutLinear`, `ConcreteDropoutLinear` or `GaussianLinear`: ``rate``, ``drop``,
        ``per``, ``length_scale``, ``temperature``; ``prior``, ``initial_std``, ``per``.

    Returns
    -------
    nn.Module
        The given model is not changed. A checkpoint of it loads, strictly, into what is returned:
        its weights become the means, and what it does not know, deviations and rates, stays.

    Raises
    ------
    ArgumentError
        If the method or an option does not exist, or a number is out of range.
    UnsupportedLayer
        If a layer cannot be converted (see `convfc.to_fc`), or is not a plain `nn.Linear` with a
        weight of its own.
    NothingToConvert
        If no layer is chosen.

    Examples
    --------
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 10))
    >>> bayes = to_bayesian(cnn, "dropout", rate=0.2)
    >>> bayes[0].fc
    DropoutLinear(
      rate=0.2, drop='kernels', per='patch'
      (linear): Linear(in_features=16, out_features=8, bias=True)
    )
    >>> type(bayes[3]) is nn.Linear  # its outputs are the network's
    True
    >>> bayes = to_bayesian(cnn, "gaussian", per="call")
    >>> [type(part).__name__ for part in (bayes[0].fc, bayes[3])]
    ['GaussianLinear', 'GaussianLinear']
    >>> bayes.load_state_dict(cnn.state_dict())
    <All keys matched successfully>
    """
    one_of("method", method, Method)
    check_module(model)
    make = _LAYERS[method]
    known = {name: one.default for name, one in signature(make).parameters.items()}
    del known["linear"]
    if wrong := sorted(options.keys() - known):
        raise ArgumentError(
            f"{method} has no option {', '.join(wrong)}",
            where="to_bayesian",
            expected=f"some of {', '.join(known)}",
        )
    try:
        fc_model = to_fc(model, groups="separate")
    except NothingToConvert:  # it has FC layers only
        fc_model = copy_of(model, (), {})
    layers = _layers(fc_model)
    if where is None and (known | options).get("drop") == "kernels":
        layers = dict(list(layers.items())[:-1])
    chosen = selector(where)
    layers = {name: layer for name, layer in layers.items() if chosen(name, layer)}
    if not layers:
        raise NothingToConvert(
            "no layer is chosen that could have a random weight",
            where="model" if where is None else "where",
            expected="a CONV layer or an nn.Linear" + " before the last one" * (where is None),
            remedy="name the layers with where=",
        )
    new: dict[int, nn.Module] = {}
    owners = _owners(fc_model)
    for name, layer in layers.items():
        for child in layer.children_fc if isinstance(layer, PatchConv) else [layer]:
            _check_plain(name, child, owners)
            new[id(child)] = make(child, **options).train(child.training)
    originals = dict(model.named_modules())
    named = {id(part): name for name, part in fc_model.named_modules()}
    same = {id(originals[named[key]]) for key in new if named[key] in originals}
    check_references(model, same, copied=True)
    return exchange(fc_model, new)


def kl(model: nn.Module) -> Tensor:
    """Return the divergence of a network's random weights from their priors: a sum, in nats.

    The loss of variational inference is the mean negative log-likelihood per data point plus
    ``kl(model) / N``, with N data points (images, not patches) in the whole training set. Layers of
    bayesian-torch are not counted; their own divergence is a mean over the weights, not a sum.

    Returns
    -------
    Tensor
        A scalar with gradients.

    Raises
    ------
    NothingToConvert
        If the network has no random layer.

    Examples
    --------
    >>> bayes = to_bayesian(nn.Sequential(nn.Linear(4, 3)), "gaussian")
    >>> kl(bayes).shape, bool(kl(bayes) > 0)
    (torch.Size([]), True)
    """
    parts = [part.kl() for part in random_layers(model).values()]
    return torch.stack([part.to(parts[0]) for part in parts]).sum()


@torch.inference_mode(mode=False)  # what is made here is to be trained
def sample(model: nn.Module, seed: int = 0) -> Any:
    """Draw one network: a plain FC form, which `convfc.to_conv` takes back to CONV layers.

    Every random layer gives one draw of its weight, for all patches and all images, whatever its
    ``per`` is. The model is not changed.

    Raises
    ------
    NothingToConvert
        If the network has no random layer.

    Examples
    --------
    >>> import convfc
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 10))
    >>> drawn = sample(to_bayesian(cnn, "gaussian"), seed=1)
    >>> type(drawn[0].fc) is nn.Linear, type(convfc.to_conv(drawn)[0]) is nn.Conv2d
    (True, True)
    """
    check_module(model)
    with random_numbers(model.parameters(), seed):
        return _plain(model, lambda layer: layer.draw())


@torch.inference_mode(mode=False)  # what is made here is to be trained
def mean_network(model: nn.Module) -> Any:
    """Return the network of the mean weights: a plain FC form, for `convfc.to_conv`.

    It computes what the network with random weights computes in evaluation mode. Errors are those
    of `sample`.

    Examples
    --------
    >>> mlp = nn.Sequential(nn.Linear(4, 3))
    >>> back = mean_network(to_bayesian(mlp, "dropout", drop="taps"))
    >>> type(back[0]) is nn.Linear, torch.equal(back[0].weight, mlp[0].weight)
    (True, True)
    """
    return _plain(model, lambda layer: layer.mean())


def learned_rates(model: nn.Module) -> dict[str, float]:
    """Return the dropout rate of every layer under dropout, by its place.

    Examples
    --------
    >>> mlp = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> rates = learned_rates(to_bayesian(mlp, "concrete", rate=0.25))
    >>> {name: round(rate, 6) for name, rate in rates.items()}
    {'0': 0.25, '2': 0.25}
    """
    return {
        name: layer.rate.item()
        for name, layer in random_layers(model).items()
        if isinstance(layer, DropoutLinear)
    }


def random_layers(model: nn.Module) -> dict[str, RandomLinear]:
    """Return the random layers of a network by place, each once."""
    check_module(model)
    found = {name: part for name, part in model.named_modules() if isinstance(part, RandomLinear)}
    if not found:
        raise NothingToConvert(
            "the network has no random layer of convfc",
            where=type(model).__name__,
            remedy="make one: convfc.methods.uncertainty.to_bayesian(model, 'dropout')",
        )
    return found


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the CONV layers in patch form and the FC layers outside them, each once, by place."""
    patch = [part for part in model.modules() if isinstance(part, PatchConv)]
    inside = {id(part) for layer in patch for part in layer.fc.modules()}
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, PatchConv) or (isinstance(part, nn.Linear) and id(part) not in inside)
    }


def _owners(model: nn.Module) -> dict[int, list[tuple[int, str]]]:
    """Return the modules that hold each parameter, by ids: computed once for all FC children."""
    found: dict[int, list[tuple[int, str]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holder = (id(module), f"{_place(name)} ({type(module).__name__})")
            found.setdefault(id(parameter), []).append(holder)
    return found


def _check_plain(name: str, linear: nn.Module, owners: Mapping[int, list[tuple[int, str]]]) -> None:
    """Refuse what is not a plain FC layer with a weight of its own."""
    blocked = linear_obstacle(linear) if isinstance(linear, nn.Linear) else None
    if not isinstance(linear, nn.Linear) or blocked is not None:
        blocked = blocked or Refusal(
            "its FC part is not an nn.Linear", "take the model back first, with convfc.to_conv"
        )
        raise UnsupportedLayer(
            f"its weight cannot be made random: {blocked.reason}",
            where=_place(name),
            got=type(linear).__name__,
            remedy=blocked.remedy,
        )
    shared = [who for p in linear.parameters() for key, who in owners[id(p)] if key != id(linear)]
    if shared:
        raise UnsupportedLayer(
            f"its weight is also a parameter of {shared[0]}: two layers would draw two weights "
            "where the network has one",
            where=_place(name),
            remedy="untie them, or choose other layers with where=",
        )


def _plain(model: nn.Module, read: Callable[[Any], tuple[Tensor, Tensor | None]]) -> nn.Module:
    """Return a copy of a network with plain layers in place of its random ones."""
    layers = random_layers(model)
    copies: dict[int, nn.Module] = {}
    copied = copy_of(model, {id(layer) for layer in layers.values()}, copies)
    new: dict[int, nn.Module] = {}
    with torch.no_grad():
        for layer in layers.values():
            (weight, bias), trains = read(layer), next(layer.parameters())
            bias = None if bias is None else as_parameter(bias, trains)
            linear = plain_linear(as_parameter(weight, trains), bias)
            new[id(copies[id(layer)])] = linear.train(layer.training)
    return exchange(copied, new)


def _place(name: str) -> str:
    return name or "the model itself"
