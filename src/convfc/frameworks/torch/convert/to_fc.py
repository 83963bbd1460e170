"""CONV layers of PyTorch become FC layers: what stands in the way, and what is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.patch import PatchConv, patch_of
from convfc.frameworks.torch.forms.weight import steps_of, to_weight_form
from convfc.frameworks.torch.places import holders, places
from convfc.frameworks.torch.reach import asked_for_class
from convfc.frameworks.torch.read import layout_of, obstacle, own_class
from convfc.frameworks.torch.references import blocked_references
from convfc.places import Shared, tied
from convfc.room import FCForm, Wanted


def obstacles(
    model: nn.Module, layers: Mapping[str, nn.Module], form: FCForm, *, inplace: bool
) -> dict[str, Refusal]:
    """Return the CONV layers that cannot get a form, by place, with the reason."""
    left: dict[str, Refusal] = {}
    for name, layer in layers.items():
        blocked = obstacle(layer, patch=form == "patch")
        if blocked is not None:
            left[name] = blocked._replace(reason=f"{type(layer).__name__}: {blocked.reason}")
    ready = {name: layer for name, layer in layers.items() if name not in left}
    left |= asked_for_class(model, ready, exactly=form != "unrolled")
    # Layers that get the weight form in place stay the objects that they are.
    moving = {
        id(layer)
        for name, layer in layers.items()
        if name not in left and not (inplace and form == "weight")
    }
    left |= blocked_references(model, moving, copied=not inplace)
    converted = {id(layer) for name, layer in layers.items() if name not in left}
    for name, other in _held_elsewhere(model, converted).items():
        left[name] = tied("its weight", other)
    return left


def make_fc(
    model: nn.Module, layers: Mapping[str, nn.Module], wanted: Wanted
) -> dict[int, nn.Module]:
    """Return what takes the place of a model's layers, by ``id``; those in weight form stay."""
    asked = {id(layers[name]) for name in asked_for_class(model, layers)}
    shared = Shared()
    new: dict[int, nn.Module] = {}
    for layer in {id(layer): layer for layer in layers.values()}.values():
        # Layers that share a parameter, in one layout, go on sharing it.
        source, key = layer._parameters.get("weight", layer), tuple(layout_of(layer).values())
        if wanted.form == "weight":
            first = shared([source], key, partial(to_weight_form, layer))
            if first is not layer:
                to_weight_form(layer, steps_of(first).original)
        else:
            native: Any = own_class(layer)
            cls = patch_of(native) if id(layer) in asked else PatchConv
            converted = cls(layer, separate=wanted.separate, product=wanted.product)
            new[id(layer)] = converted
            first = shared([source], key, partial(_itself, converted))
            if first is not converted:
                converted.share_weight(first)
    return new


def _itself(layer: PatchConv) -> PatchConv:
    return layer


def _held_elsewhere(model: nn.Module, converted: Collection[int]) -> dict[str, str]:
    """Return the converted layers, by name, whose weight a module that stays holds as well."""
    staying = holders(model, but=converted)
    weights = {
        name: id(module._parameters.get("weight"))
        for name, module in places(model).items()
        if id(module) in converted
    }
    return {name: staying[key] for name, key in weights.items() if key in staying}
