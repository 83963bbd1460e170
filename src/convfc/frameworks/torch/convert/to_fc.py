"""CONV layers of PyTorch become FC layers: what stands in the way, and what is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from torch import nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.forms.weight import steps_of, to_weight_form
from convfc.frameworks.torch.places import holders, places
from convfc.frameworks.torch.reach import asked_for_class
from convfc.frameworks.torch.read import layout_of, obstacle
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
    if form != "weight":
        ready = {name: layer for name, layer in layers.items() if name not in left}
        left |= asked_for_class(model, ready)
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


def make_fc(layers: Sequence[nn.Module], wanted: Wanted) -> dict[int, nn.Module]:
    """Return what takes the place of layers, by ``id``; those in weight form stay."""
    shared = Shared()
    new: dict[int, nn.Module] = {}
    for layer in layers:
        # Layers that share a parameter, in one layout, go on sharing it.
        source, key = layer._parameters.get("weight", layer), tuple(layout_of(layer).values())
        if wanted.form == "weight":
            first = shared([source], key, partial(to_weight_form, layer))
            if first is not layer:
                to_weight_form(layer, steps_of(first).original)
        else:
            converted = PatchConv(layer, separate=wanted.separate, product=wanted.product)
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
