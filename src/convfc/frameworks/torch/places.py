"""The places of a model that hold modules, copies of models, and who holds a parameter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from convfc.frameworks.torch.references import check_references
from convfc.frameworks.torch.running import deep_copy
from convfc.places import place_in_words


def places(model: nn.Module) -> dict[str, nn.Module]:
    """Return every place of a model that holds a module: a shared one stands at several."""
    return dict(model.named_modules(remove_duplicate=False))


def copy_of(model: nn.Module, wanted: Collection[int], copies: dict[int, nn.Module]) -> nn.Module:
    """Return a deep copy of a model; ``copies`` receives the copies of the wanted modules by id."""
    check_references(model, wanted, copied=True)
    memo: dict[int, Any] = {}
    copied = deep_copy(model, memo, "convert it itself, with inplace=True")
    copies.update({key: memo[key] for key in wanted})
    return copied


def holders(model: nn.Module, *, but: Collection[int]) -> dict[int, str]:
    """Return who holds each parameter, by its ``id``, but for these modules, by theirs."""
    return {
        id(parameter): f"{place_in_words(name)} ({type(module).__name__})"
        for name, module in places(model).items()
        if id(module) not in but
        for parameter in module._parameters.values()
        if parameter is not None
    }
