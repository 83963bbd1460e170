"""What a model does next with the output of a layer: normalise it, and put an activation on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.frameworks.torch.graph import as_traced, trace
from convfc.frameworks.torch.morphism.site import Site
from convfc.frameworks.torch.running import deep_copy

__all__ = ["Following", "following", "idempotent_copy"]


class Following(NamedTuple):
    """The last module before an activation, and that activation if it is idempotent.

    ``last`` is the layer itself, or the normalisation behind it.
    """

    last: nn.Module
    activation: nn.Module | None


def following(site: Site) -> Following:
    """Look behind a layer, at all its calls.

    A normalisation counts if every call of the layer goes there, and nowhere else; an activation if
    every call of what is before it goes there, and nowhere else, so that nobody else sees what is
    put between.

    Parameters
    ----------
    site : Site
        If `torch.fx` cannot trace its model, what follows in an `nn.Sequential` is known still.

    Examples
    --------
    >>> from convfc.frameworks.torch.morphism.site import find_layer
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
    >>> following(find_layer(model, "0", torch.ones(4, 2)))
    Following(last=BatchNorm1d(3, ...), activation=ReLU())
    """
    example = site.example
    arguments = example if isinstance(example, tuple) else (example,)
    twins: dict[int, Any] = {}
    model = as_traced(deep_copy(site.model, twins))
    graph = None if isinstance(example, dict) else trace(model, arguments)
    if not isinstance(graph, fx.Graph):
        return _in_sequential(site)
    originals = {id(twins[id(part)]): part for part in site.model.modules()}
    parts = {
        node: originals.get(id(model.get_submodule(str(node.target))))
        for node in graph.nodes
        if node.op == "call_module"
    }
    last = site.part
    while True:
        nexts = [_only_user(node) for node, part in parts.items() if part is last]
        behind = {id(parts.get(node)): parts.get(node) for node in nexts if node is not None}
        if None in nexts or not nexts:
            return Following(last, None)
        (first, *others) = behind.values()
        if not others and isinstance(first, _BatchNorm) and first.weight is not None:
            last = first
            continue
        found = [_activation(node, parts.get(node)) for node in nexts if node is not None]
        same = {repr(one) for one in found}
        return Following(last, found[0] if len(same) == 1 else None)


def idempotent_copy(activation: nn.Module) -> nn.Module | None:
    """Return a fresh copy of an activation with ``phi(phi(x)) == phi(x)``, not in place; or None.

    Examples
    --------
    >>> idempotent_copy(nn.ReLU(inplace=True)), idempotent_copy(nn.Sigmoid())
    (ReLU(), None)
    """
    if type(activation) in (nn.ReLU, nn.ReLU6):
        return type(activation)()
    if type(activation) is nn.Hardtanh:
        return nn.Hardtanh(activation.min_val, activation.max_val)
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _activation(node: fx.Node, part: nn.Module | None) -> nn.Module | None:
    """Return the idempotent activation that a node calls, as a module of its own."""
    if part is not None:
        return idempotent_copy(part)
    if node.op == "call_method":
        return nn.ReLU() if node.target in ("relu", "relu_") else None
    make = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    return None if make is None else make(*node.args[1:], **node.kwargs)


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> nn.Module:
    return nn.Hardtanh(min_val, max_val)


_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    functional.relu: lambda inplace=False: nn.ReLU(),
    functional.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    functional.relu6: lambda inplace=False: nn.ReLU6(),
    functional.hardtanh: _hardtanh,
    functional.hardtanh_: _hardtanh,
}


def _in_sequential(site: Site) -> Following:
    """Look at what follows in the one `nn.Sequential` that holds the layer."""
    holding = [
        (parent, key)
        for parent in site.model.modules()
        for key, part in parent._modules.items()
        if part is site.part
    ]
    if len(holding) != 1 or type(holding[0][0]) is not nn.Sequential:
        return Following(site.part, None)
    parent, key = holding[0]
    behind = list(parent._modules.values())[list(parent._modules).index(key) + 1 :]
    first = behind[0] if behind else None
    return Following(site.part, None if first is None else idempotent_copy(first))
