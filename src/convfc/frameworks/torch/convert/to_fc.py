"""to_fc and unroll for PyTorch: the CONV layers of a model become the FC layers that they equal."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from convfc.errors import ArgumentError, Refusal
from convfc.frameworks.torch.convert.to_conv import to_conv
from convfc.frameworks.torch.forms.form import Form, form_of
from convfc.frameworks.torch.forms.grouped import MOST_SEPARATE
from convfc.frameworks.torch.forms.patch import PatchConv, Product, patch_of
from convfc.frameworks.torch.forms.weight import steps_of, to_weight_form
from convfc.frameworks.torch.places import (
    Shared,
    Where,
    copy_of,
    holders,
    nothing_to_convert,
    places,
    refuse_or_list,
    selector,
    tied,
)
from convfc.frameworks.torch.reach import asked_for_class, out_of_reach
from convfc.frameworks.torch.read import layout_of, obstacle, own_class
from convfc.frameworks.torch.references import blocked_references, exchange
from convfc.frameworks.torch.unrolled.form import (
    SizedGeometry,
    ToUnrolled,
    check_memory,
    differing_ties,
    sized_geometries,
)
from convfc.sizes import one_of

LayerForm: TypeAlias = Literal["patch", "weight"]
"""The forms that take inputs of every size."""
Groups: TypeAlias = Literal["auto", "separate", "batched"]
Chosen: TypeAlias = Callable[[str, nn.Module], bool]
_NO_FC = "cannot be turned into an FC layer"


@torch.inference_mode(mode=False)  # what is made here is to be trained
def to_fc(
    model: nn.Module,
    *,
    form: LayerForm = "patch",
    where: Where = None,
    strict: bool = True,
    inplace: bool = False,
    groups: Groups = "auto",
    product: Product = "auto",
) -> nn.Module:
    """Return the model with its CONV layers as FC layers; see `convfc.to_fc`."""
    one_of(
        "form",
        form,
        LayerForm,
        what="there is no such form",
        remedy="'patch' puts an nn.Linear in the layer's place, 'weight' keeps the layer and makes "
        "its parameter 2-D; one nn.Linear of the layer's whole matrix is made by convfc.unroll",
    )
    one_of(
        "groups",
        groups,
        Groups,
        what="there is no such way to hold groups",
        remedy="'separate' gives every group an nn.Linear, 'batched' holds all groups in one "
        f"weight, 'auto' takes the first up to {MOST_SEPARATE} groups",
    )
    if groups == "separate" and form != "patch":
        raise ArgumentError(
            f"the {form} form holds all groups of a layer in one matrix",
            where="groups",
            expected="'auto' or 'batched', or form='patch'",
            got=f"'separate', form={form!r}",
            remedy="leave it out",
        )
    one_of(
        "product",
        product,
        Product,
        what="there is no such product",
        remedy="'auto' leaves it to PyTorch's convolution while nothing has touched the FC layer, "
        "'matrix' always computes M K",
    )
    if product == "matrix" and form != "patch":
        raise ArgumentError(
            f"the {form} form runs PyTorch's convolution and has no M",
            where="product",
            expected="'auto', or form='patch'",
            got=f"'matrix', form={form!r}",
            remedy="leave it out",
        )
    separate = None if groups == "auto" else groups == "separate"
    model, chosen, inplace = _taken_back(model, form, where, strict=strict, inplace=inplace)
    found, left = _found(model, form, where, chosen, inplace=inplace)
    refuse_or_list(left, _NO_FC, strict=strict)
    ready = {name: layer for name, layer in found.items() if name not in left}
    if inplace and form == "patch" and any(layer is model for layer in ready.values()):
        raise ArgumentError(
            "the model is itself the CONV layer, which cannot become another object",
            where="inplace",
            remedy="use the model that is returned, without inplace=True",
        )
    if not inplace:
        copies: dict[int, nn.Module] = {}
        model = copy_of(model, {id(layer) for layer in ready.values()}, copies)
        ready = {name: copies[id(layer)] for name, layer in ready.items()}
    asked = {id(ready[name]) for name in asked_for_class(model, ready)}
    shared = Shared()
    new: dict[int, nn.Module] = {}
    for layer in {id(layer): layer for layer in ready.values()}.values():
        # Layers that share a parameter, in one layout, go on sharing it.
        source, key = layer._parameters.get("weight", layer), tuple(layout_of(layer).values())
        if form == "weight":
            first = shared([source], key, partial(to_weight_form, layer))
            if first is not layer:
                to_weight_form(layer, steps_of(first).original)
        else:
            native: Any = own_class(layer)
            cls = patch_of(native) if id(layer) in asked else PatchConv
            new[id(layer)] = converted = cls(layer, separate=separate, product=product)
            first = shared([source], key, partial(_itself, converted))
            if first is not converted:
                converted.share_weight(first)
    return exchange(model, new)


@torch.inference_mode(mode=False)
def unroll(
    model: nn.Module,
    example: Any,
    *,
    where: Where = None,
    strict: bool = True,
    memory: float | None = None,
) -> nn.Module:
    """Return the model with each CONV layer as one `nn.Linear`; see `convfc.unroll`."""
    model, chosen, ours = _taken_back(model, "unrolled", where, strict=strict, inplace=False)
    found, left = _found(model, "unrolled", where, chosen, inplace=ours)
    sized: dict[int, SizedGeometry] = {}
    idle: dict[str, Refusal] = {}
    if not (left and strict):
        ready = {name: layer for name, layer in found.items() if name not in left}
        sized, more, idle = sized_geometries(model, ready, example)
        ready = {name: layer for name, layer in ready.items() if id(layer) in sized}
        left |= more | differing_ties(model, ready, sized)
        if not (
            ready and strict
        ):  # what the model does not call is a reason if nothing else is left
            left, idle = left | idle, {}
    refuse_or_list(left, _NO_FC, strict=strict)
    refuse_or_list(idle, "", strict=False)
    ready = {name: layer for name, layer in found.items() if name not in left | idle}
    check_memory(ready, sized, memory)
    if not ours:
        copies: dict[int, nn.Module] = {}
        model = copy_of(model, {id(layer) for layer in ready.values()}, copies)
        sized = {id(copies[key]): size for key, size in sized.items() if key in copies}
        ready = {name: copies[id(layer)] for name, layer in ready.items()}
    unrolled = ToUnrolled()
    new = {id(layer): unrolled(layer, sized[id(layer)]) for layer in ready.values()}
    return exchange(model, new)


def _taken_back(
    model: nn.Module, form: Form, where: Where, *, strict: bool, inplace: bool
) -> tuple[nn.Module, Chosen, bool]:
    """Return the model with chosen layers of other forms as CONV layers.

    Returned are also what is chosen in it, and whether it may be changed.
    """
    chosen = selector(where)
    names = {name for name, part in places(model).items() if chosen(name, part)}
    others = {
        name
        for name, part in places(model).items()
        if name in names and form_of(part) not in (None, "native", form)
    }
    if not others:
        return model, chosen, inplace
    back = to_conv(model, where=lambda name, _: name in others, strict=strict, inplace=inplace)
    # A factored layer goes back as a sequence of two.
    inside = tuple(f"{name}." if name else "" for name in others)
    return back, lambda name, _: name in names or name.startswith(inside), True


def _found(
    model: nn.Module, form: Form, where: Where, chosen: Chosen, *, inplace: bool
) -> tuple[dict[str, nn.Module], dict[str, Refusal]]:
    """Return the CONV layers to be converted, by name, and those that cannot be, with the reason.

    Raises
    ------
    NothingToConvert
        If there is neither.
    """
    layers = {name: part for name, part in places(model).items() if form_of(part) is not None}
    found = {
        name: part
        for name, part in layers.items()
        if form_of(part) == "native" and chosen(name, part)
    }
    left: dict[str, Refusal] = {}
    for name, layer in found.items():
        blocked = obstacle(layer, patch=form == "patch")
        if blocked is not None:
            left[name] = blocked._replace(reason=f"{type(layer).__name__}: {blocked.reason}")
    for _, part in out_of_reach(model):
        if chosen(part.where, model.get_submodule(part.where)):
            left.setdefault(part.where, part)
    if not found and not left:
        already = any(chosen(name, part) for name, part in layers.items())
        raise nothing_to_convert(
            "CONV layer" + (f" that is not in {form} form already" if already else ""),
            where,
            layers,
        )
    ready = {name: layer for name, layer in found.items() if name not in left}
    left |= asked_for_class(model, ready, exactly=form != "unrolled")
    # Layers that get the weight form in place stay the objects that they are.
    moving = {
        id(layer)
        for name, layer in found.items()
        if name not in left and not (inplace and form == "weight")
    }
    left |= blocked_references(model, moving, copied=not inplace)
    converted = {id(layer) for name, layer in found.items() if name not in left}
    for name, other in _held_elsewhere(model, converted).items():
        left[name] = tied("its weight", other)
    return found, left


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
