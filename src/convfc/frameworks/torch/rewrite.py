"""to_fc for PyTorch: every CONV layer of a model becomes the FC layer that it equals."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from convfc.errors import ArgumentError, NothingToConvert, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch.functional import functional_convolutions
from convfc.frameworks.torch.held import check_held, exchange, held_fast
from convfc.frameworks.torch.layers import PatchConv
from convfc.frameworks.torch.read import Obstacle, is_conv, obstacle
from convfc.frameworks.torch.unrolled.back import Roller, unrolled_obstacle
from convfc.frameworks.torch.unrolled.form import (
    Plan,
    Unroller,
    check_memory,
    plan_layers,
    refusals,
)
from convfc.frameworks.torch.unrolled.options import Branches, Form, MaxPool, Options
from convfc.frameworks.torch.unrolled.record import is_unrolled
from convfc.frameworks.torch.unrolled.sparse import deep_copy
from convfc.frameworks.torch.weights import (
    from_weight_form,
    is_weight_form,
    steps_of,
    to_weight_form,
)

__all__ = [
    "Form",
    "Where",
    "copy_of",
    "holders",
    "places",
    "refuse_or_list",
    "selector",
    "tied",
    "to_fc",
]

Where: TypeAlias = Callable[[str, nn.Module], bool] | str | Collection[str] | None
"""Which layers: a function of name and module, or names with ``*`` as in a shell; None is all."""


@torch.inference_mode(mode=False)  # what is made here is to be trained
def to_fc(
    model: nn.Module,
    *,
    form: Form = "patch",
    inplace: bool = False,
    where: Where = None,
    strict: bool = True,
    block_diagonal: bool = False,
    example: Any = None,
    simplify: bool = False,
    max_pool: MaxPool = "keep",
    branches: Branches = "add",
    sparse: bool = False,
    memory: float | None = None,
) -> nn.Module:
    """Return the model with its CONV layers as FC layers; see `convfc.to_fc`."""
    options = Options(
        form,
        inplace,
        where,
        strict,
        block_diagonal,
        example,
        simplify,
        max_pool,
        branches,
        sparse,
        memory,
    )
    options.check()
    if simplify:
        return options.simplified(model)
    chosen = selector(where)
    found = {
        name: module
        for name, module in places(model).items()
        if (is_conv(module) or _in_another_form(module, form)) and chosen(name, module)
    }
    if where is not None and not found:
        raise NothingToConvert(
            "where= selects no CONV layer",
            where="where",
            expected="at least one of " + (_some(_conv_places(model)) or "no CONV layers"),
            got=where if isinstance(where, str) else None,
            remedy="convfc.inspect(model) lists the CONV layers with their names",
        )
    left: dict[str, tuple[str, str]] = {}
    for name, module in found.items():
        blocked = _obstacle(module)
        if blocked is not None:
            left[name] = blocked._replace(reason=f"{type(module).__name__}: {blocked.reason}")
    for finding in functional_convolutions(model):
        if chosen(finding.place, model.get_submodule(finding.place)):
            left.setdefault(finding.place, (finding.what, finding.remedy))
    moving = {
        id(module)
        for name, module in found.items()
        if name not in left and not (inplace and form == "weight" and not is_unrolled(module))
    }
    left |= held_fast(model, moving, copied=not inplace)
    converted = {id(module) for name, module in found.items() if name not in left}
    for name, other in _held_elsewhere(model, converted).items():
        left[name] = tied("its weight", other)
    plans: dict[int, Plan] = {}
    idle: dict[str, tuple[str, str]] = {}
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
    replaced = form != "weight" or any(map(is_unrolled, convertible))
    if inplace and replaced and any(module is model for module in convertible):
        raise ArgumentError(
            "the model is itself the CONV layer, which cannot become another object",
            where="inplace",
            remedy="use the model that is returned, without inplace=True",
        )
    if not inplace:
        convertible_ids = {id(module) for module in convertible}
        twins: dict[int, nn.Module] = {}
        model = copy_of(model, convertible_ids, twins)
        plans = {id(twins[key]): plan for key, plan in plans.items() if key in twins}
        convertible = [twins[id(module)] for module in convertible]
    if form == "unrolled":
        unroll = Unroller(sparse=sparse)
        new = {id(layer): unroll(layer, plans[id(layer)]) for layer in convertible}
        return exchange(model, new)
    return _convert(model, convertible, form, block_diagonal=block_diagonal)


def _convert(
    model: nn.Module, convertible: list[nn.Module], form: Form, *, block_diagonal: bool
) -> nn.Module:
    """Convert these layers of the model itself; layers that share a parameter go on sharing it."""
    new: dict[int, nn.Module] = {}
    first: dict[tuple[Any, ...], nn.Module] = {}
    weights = []  # held, so that no id is used twice
    roll_up = Roller()
    for found in {id(module): module for module in convertible}.values():
        module = roll_up(found) if is_unrolled(found) else found
        if is_weight_form(module):
            from_weight_form(module)
        weight = module._parameters["weight"]
        weights.append(weight)
        key = (id(weight), module.transposed, module.groups)
        twin = first.get(key)
        if form == "weight":
            shared = None if twin is None else steps_of(twin).original
            converted = to_weight_form(module, shared)
        else:
            converted = PatchConv(module, block_diagonal=block_diagonal)
            if isinstance(twin, PatchConv):
                converted.share_weight(twin)
        if converted is not found:
            new[id(found)] = converted
        first.setdefault(key, converted)
    return exchange(model, new)


def places(model: nn.Module) -> dict[str, nn.Module]:
    """Return every place of a model that holds a module: a shared one stands at several.

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> list(places(nn.Sequential(layer, layer)))
    ['', '0', '1']
    """
    return dict(model.named_modules(remove_duplicate=False))


def selector(where: Where) -> Callable[[str, nn.Module], bool]:
    """Return ``where`` as a function of a name and a module.

    Examples
    --------
    >>> selector("layer4.*")("layer4.0.conv1", nn.ReLU())
    True
    """
    if where is None:
        return lambda name, module: True
    if callable(where):
        return where
    patterns = [where] if isinstance(where, str) else list(where)
    return lambda name, module: any(fnmatch.fnmatchcase(name, p) for p in patterns)


def refuse_or_list(left: Mapping[str, tuple[str, str]], why: str, *, strict: bool) -> None:
    """Raise for the places that cannot be converted or, if not strict, list them in a warning.

    Parameters
    ----------
    left : mapping
        From a place to the reason and the remedy.
    why : str
        The verb of the message.
    strict : bool

    Raises
    ------
    UnsupportedLayer
        If strict and there is such a place.
    """
    if not left:
        return
    if not strict:
        listed = "; ".join(f"{_place(name)} ({reason})" for name, (reason, _) in left.items())
        warnings.warn(f"left as they are: {listed}", UnsupportedLayerWarning, stacklevel=5)
        return
    name, (reason, remedy) = next(iter(left.items()))
    others = [_place(place) for place in left][1:]
    raise UnsupportedLayer(
        f"{reason}; it {why}" + (f" (nor can {_some(others)})" if others else ""),
        where=_place(name),
        remedy=f"{remedy}; or leave it as it is with strict=False",
    ) from getattr(left[name], "cause", None)


def copy_of(model: nn.Module, wanted: Collection[int], twins: dict[int, nn.Module]) -> nn.Module:
    """Return a deep copy of a model; ``twins`` receives the copies of the wanted modules by id.

    Raises
    ------
    UnsupportedLayer
        If the model cannot be copied, or if the copy would go on using a wanted module itself.
    """
    check_held(model, wanted, copied=True)
    memo: dict[int, Any] = {}
    try:
        copied = deep_copy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedLayer(
            f"the model cannot be copied ({error})",
            where=type(model).__name__,
            remedy="convert it itself, with inplace=True",
        ) from error
    twins.update({key: memo[key] for key in wanted})
    return copied


def holders(model: nn.Module, *, but: Collection[int]) -> dict[int, str]:
    """Return who holds each parameter, by its ``id``, but for these modules, by theirs.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> list(holders(model, but=()).values())
    ['0 (Linear)']
    """
    return {
        id(parameter): f"{_place(name)} ({type(module).__name__})"
        for name, module in places(model).items()
        if id(module) not in but
        for parameter in module._parameters.values()
        if parameter is not None
    }


def tied(who: str, holder: str) -> tuple[str, str]:
    """Return why a weight that something else holds cannot be converted, and the way out."""
    return (
        f"{who} is also a parameter of {holder}, which stays as it is",
        "convert both or neither (where=), or untie them",
    )


def _held_elsewhere(model: nn.Module, converted: Collection[int]) -> dict[str, str]:
    """Return the converted layers, by name, whose weight a module that stays holds as well."""
    staying = holders(model, but=converted)
    weights = {
        name: id(module._parameters.get("weight"))
        for name, module in places(model).items()
        if id(module) in converted
    }
    return {name: staying[key] for name, key in weights.items() if key in staying}


def _in_another_form(module: nn.Module, form: Form) -> bool:
    if isinstance(module, PatchConv):
        return form == "unrolled"
    if is_unrolled(module):
        return form != "unrolled"
    return is_weight_form(module) and form != "weight"


def _obstacle(module: nn.Module) -> Obstacle | None:
    """Return why a CONV layer in whatever form cannot become one in another."""
    if is_unrolled(module):
        return unrolled_obstacle(module)
    if isinstance(module, PatchConv):
        if module.is_plain() and module.holds_conv_weight():
            return None
        return Obstacle(
            "a tool has changed its FC part", "take the model back first, with convfc.to_conv"
        )
    return None if is_weight_form(module) else obstacle(module)


def _conv_places(model: nn.Module) -> list[str]:
    return [_place(name) for name, module in places(model).items() if is_conv(module)]


def _place(name: str) -> str:
    return name or "the model itself"


def _some(names: Collection[str], most: int = 10) -> str:
    """Return the first names of a list in words."""
    shown = ", ".join(list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
