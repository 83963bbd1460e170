"""to_fc for PyTorch: every CONV layer of a model becomes the FC layer that it equals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from convfc.errors import ArgumentError, NothingToConvert, Refusal
from convfc.frameworks.torch.forms.form import Form, form_of
from convfc.frameworks.torch.forms.grouped import MOST_SEPARATE
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.forms.weight import from_weight_form, steps_of, to_weight_form
from convfc.frameworks.torch.functional import functional_convolutions
from convfc.frameworks.torch.places import (
    Shared,
    Where,
    copy_of,
    holders,
    place_in_words,
    places,
    refuse_or_list,
    selector,
    some_of,
    tied,
)
from convfc.frameworks.torch.read import obstacle
from convfc.frameworks.torch.references import blocked_references, exchange
from convfc.frameworks.torch.running import call_arguments, check_has_numbers
from convfc.frameworks.torch.simplify import simplify as simplified
from convfc.frameworks.torch.unrolled.back import FromUnrolled, unrolled_obstacle
from convfc.frameworks.torch.unrolled.form import (
    Plan,
    ToUnrolled,
    check_memory,
    plan_layers,
    refusals,
)
from convfc.sizes import one_of

MaxPool: TypeAlias = Literal["keep", "relu"]
Branches: TypeAlias = Literal["add", "carry"]
Groups: TypeAlias = Literal["auto", "separate", "batched"]

_CHOICES = {
    "form": (
        Form,
        "'patch' puts an nn.Linear in the layer's place, 'weight' keeps the layer and makes its "
        "parameter 2-D, 'unrolled' makes one nn.Linear of the layer's whole matrix",
    ),
    "groups": (
        Groups,
        "'separate' gives every group an nn.Linear, 'batched' holds all groups in one weight, "
        f"'auto' takes the first up to {MOST_SEPARATE} groups",
    ),
    "max_pool": (MaxPool, "'keep' leaves max-pooling as it is, 'relu' writes it with ReLU"),
    "branches": (Branches, "'add' joins branches by additions, 'carry' carries them through"),
}
_UNROLLED: dict[str, Any] = {"example": None, "simplify": False, "sparse": False, "memory": None}
_SIMPLIFY: dict[str, Any] = {"max_pool": "keep", "branches": "add"}
_WHOLE: dict[str, Any] = {"inplace": False, "where": None, "strict": True}


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise for an option that has no such value, or is not one of this form, by its name."""
    form: str = options["form"]
    for name, (choices, remedy) in _CHOICES.items():
        one_of(
            name,
            options[name],
            get_args(choices),
            what=f"there is no such {name}",
            remedy=remedy,
        )
    if options["groups"] == "separate" and form != "patch":
        raise ArgumentError(
            f"the {form} form holds all groups of a layer in one matrix",
            where="groups",
            expected="'auto' or 'batched', or form='patch'",
            got=f"'separate', form={form!r}",
            remedy="leave it out",
        )
    what, defaults, expected = "a conversion layer by layer", _WHOLE, "simplify=False"
    if form != "unrolled":
        what, defaults, expected = "the unrolled form", _UNROLLED | _SIMPLIFY, "form='unrolled'"
    elif options["example"] is None:
        raise ArgumentError(
            "the matrix of a layer is for one input size",
            where="example",
            expected="an input of the model, of the size that it is to be unrolled for",
            got=None,
            remedy="to_fc(model, form='unrolled', example=x); a tuple holds several arguments",
        )
    elif not options["simplify"]:
        what, defaults, expected = "a simplified network", _SIMPLIFY, "simplify=True"
    example = " and example=x" if form != "unrolled" else ""
    for name, default in defaults.items():
        value = options[name]
        if value is not default and not (isinstance(value, str) and value == default):
            raise ArgumentError(
                f"only {what} has this option",
                where=name,
                expected=expected,
                got=f"form={form!r}, simplify={options['simplify']}",
                remedy=f"give {expected}{example}, or leave {name} out",
            )


@torch.inference_mode(mode=False)  # what is made here is to be trained
def to_fc(
    model: nn.Module,
    *,
    form: Form = "patch",
    inplace: bool = False,
    where: Where = None,
    strict: bool = True,
    groups: Groups = "auto",
    example: Any = None,
    simplify: bool = False,
    max_pool: MaxPool = "keep",
    branches: Branches = "add",
    sparse: bool = False,
    memory: float | None = None,
) -> nn.Module:
    """Return the model with its CONV layers as FC layers; see `convfc.to_fc`."""
    _check_options({name: value for name, value in locals().items() if name != "model"})
    if simplify:
        check_has_numbers(model, "model")
        given = example if isinstance(example, tuple) else (example,)
        arguments, _ = call_arguments(model, given)
        return simplified(
            model, arguments, max_pool=max_pool, branches=branches, sparse=sparse, memory=memory
        )
    chosen = selector(where)
    wanted = {"native", "weight", "patch" if form == "unrolled" else "unrolled"}
    found = {
        name: module
        for name, module in places(model).items()
        if form_of(module) in wanted and chosen(name, module)
    }
    if where is not None and not found:
        raise NothingToConvert(
            "where= selects no CONV layer",
            where="where",
            expected="at least one of " + (some_of(_conv_places(model)) or "no CONV layers"),
            got=where if isinstance(where, str) else None,
            remedy="convfc.inspect(model) lists the CONV layers with their names",
        )
    left: dict[str, Refusal] = {}
    for name, module in found.items():
        blocked = _obstacle(module)
        if blocked is not None:
            left[name] = blocked._replace(reason=f"{type(module).__name__}: {blocked.reason}")
    for _, finding in functional_convolutions(model):
        if chosen(finding.where, model.get_submodule(finding.where)):
            left.setdefault(finding.where, finding)
    moving = {
        id(module)
        for name, module in found.items()
        if name not in left and not (inplace and form == "weight" and form_of(module) != "unrolled")
    }
    left |= blocked_references(model, moving, copied=not inplace)
    converted = {id(module) for name, module in found.items() if name not in left}
    for name, other in _held_elsewhere(model, converted).items():
        left[name] = tied("its weight", other)
    plans: dict[int, Plan] = {}
    idle: dict[str, Refusal] = {}
    if form == "unrolled" and not (left and strict):
        ready = {name: module for name, module in found.items() if name not in left}
        plans, more, idle = plan_layers(model, ready, example, sparse=sparse)
        ready = {name: module for name, module in ready.items() if id(module) in plans}
        left |= more | refusals(ready, plans, lambda parts: holders(model, but=parts))
        left, idle = (left, idle) if ready and strict else (left | idle, {})
    refuse_or_list(left, "cannot be turned into an FC layer", strict=strict)
    refuse_or_list(idle, "", strict=False)
    ready = {name: module for name, module in found.items() if name not in left | idle}
    if form == "unrolled":
        check_memory(ready, plans, sparse=sparse, memory=memory)
    convertible = list(ready.values())
    replaced = form != "weight" or any(form_of(layer) == "unrolled" for layer in convertible)
    if inplace and replaced and any(module is model for module in convertible):
        raise ArgumentError(
            "the model is itself the CONV layer, which cannot become another object",
            where="inplace",
            remedy="use the model that is returned, without inplace=True",
        )
    if not inplace:
        convertible_ids = {id(module) for module in convertible}
        copies: dict[int, nn.Module] = {}
        model = copy_of(model, convertible_ids, copies)
        plans = {id(copies[key]): plan for key, plan in plans.items() if key in copies}
        convertible = [copies[id(module)] for module in convertible]
    if form == "unrolled":
        unroll = ToUnrolled(sparse=sparse)
        new = {id(layer): unroll(layer, plans[id(layer)]) for layer in convertible}
        return exchange(model, new)
    separate = None if groups == "auto" else groups == "separate"
    return _convert(model, convertible, form, separate=separate)


def _convert(
    model: nn.Module, convertible: list[nn.Module], form: Form, *, separate: bool | None
) -> nn.Module:
    """Convert these layers of the model itself; layers that share a parameter go on sharing it."""
    new: dict[int, nn.Module] = {}
    shared, from_unrolled = Shared(), FromUnrolled()
    for found in {id(module): module for module in convertible}.values():
        module = from_unrolled(found) if form_of(found) == "unrolled" else found
        source: object = module._parameters.get("weight")
        if form_of(module) == "weight":
            steps = steps_of(module)
            source = steps.original if len(steps) == 1 else module
            from_weight_form(module)
        key = (module.weight.shape, module.transposed, module.groups)
        if form == "weight":
            first = shared([source], key, partial(to_weight_form, module))
            if first is not module:
                to_weight_form(module, steps_of(first).original)
            converted = module
        else:
            converted = PatchConv(module, separate=separate)
            first = shared([source], key, partial(_itself, converted))
            if first is not converted:
                converted.share_weight(first)
        if converted is not found:
            new[id(found)] = converted
    return exchange(model, new)


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


def _obstacle(module: nn.Module) -> Refusal | None:
    """Return why a CONV layer in whatever form cannot become one in another."""
    form = form_of(module)
    if form == "unrolled":
        return unrolled_obstacle(module)
    if isinstance(module, PatchConv):
        if module.is_plain() and module.holds_conv_weight():
            return None
        return Refusal(
            "a tool has changed its FC part", "take the model back first, with convfc.to_conv"
        )
    return None if form == "weight" else obstacle(module)


def _conv_places(model: nn.Module) -> list[str]:
    return [
        place_in_words(name)
        for name, module in places(model).items()
        if form_of(module) in ("native", "weight")
    ]
