"""The place in a model where a morph works: found, checked, and given its new part.

All morphs but widening change one layer and leave everything else as it is. What they have in
common is here: the layer is looked up by name, refused if its forward or its weight is not
PyTorch's own, seen at work on the example, and replaced in a copy of the model, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convfc.errors import (
    ArgumentError,
    DtypeError,
    NothingToConvert,
    Refusal,
    ShapeError,
    UnsupportedLayer,
)
from convfc.frameworks.torch.factors import linear_obstacle
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.held import exchange
from convfc.frameworks.torch.morphism.morph import Change, Morph, finish
from convfc.frameworks.torch.parts import HOOKS, is_hooked
from convfc.frameworks.torch.places import copy_of, holders, places, tied
from convfc.frameworks.torch.read import obstacle, own_class, own_forward
from convfc.frameworks.torch.running import deep_copy, unchanged
from convfc.frameworks.torch.tensors import dtype_name
from convfc.frameworks.torch.watch import watched_run

__all__ = ["Site", "chained", "find_layer", "find_part", "generator_of", "morphed"]

_BACK = "take the model back first, with convfc.to_conv"


@dataclass(frozen=True, eq=False)
class Site:
    """One part of a model, and what it was called on when the model ran on the example.

    Parameters
    ----------
    model : nn.Module
    name : str
        The part's place; empty for the model itself.
    part : nn.Module
    example : object
    inputs, outputs : tuple of Tensor
        One per call.
    """

    model: nn.Module
    name: str
    part: nn.Module
    example: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def where(self) -> str:
        """The place in words."""
        return self.name or "the model itself"


def find_layer(model: nn.Module, name: str, example: Any) -> Site:
    """Find a CONV or FC layer that can be morphed, and see it at work.

    Parameters
    ----------
    model : nn.Module
    name : str
        Place of the layer; empty for a model that is the layer itself.
    example : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.

    Raises
    ------
    NothingToConvert
        If no part has this name.
    UnsupportedLayer
        If the part is no CONV or FC layer, or one whose forward or weight is not PyTorch's own, or
        if the model does not call it with one tensor.
    DtypeError
        If its weight is complex.
    ShapeError
        If the model does not run on the example.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU())
    >>> find_layer(model, "0", torch.ones(1, 1, 5)).inputs[0].shape
    torch.Size([1, 1, 5])
    >>> find_layer(model, "conv1", torch.ones(1, 1, 5))
    Traceback (most recent call last):
    ...
    convfc.errors.NothingToConvert: conv1: the model has no such part; expected one of 0. ...
    """
    part = _lookup(model, name)
    blocked = _layer_obstacle(model, name, part)
    if blocked is not None:
        raise blocked._replace(
            reason=f"{own_class(part).__name__}: {blocked.reason}", where=name or "the model itself"
        ).error(UnsupportedLayer, "it cannot be morphed")
    weight: Tensor = part.weight  # type: ignore[assignment]
    if not weight.is_floating_point():
        raise DtypeError(
            "morphs are for real weights",
            where=name or "the model itself",
            expected="a real floating-point dtype",
            got=dtype_name(weight.dtype),
            remedy="write the layer as two real ones",
        )
    return _seen(model, name, part, example)


def find_part(model: nn.Module, name: str, example: Any) -> Site:
    """Find any part of a model and see it at work; see `find_layer`.

    Raises
    ------
    NothingToConvert
        If no part has this name.
    UnsupportedLayer
        If the model does not call it with one tensor.
    ShapeError
        If the model does not run on the example.

    Examples
    --------
    >>> find_part(nn.Sequential(nn.ReLU()), "0", torch.ones(2)).part
    ReLU()
    """
    return _seen(model, name, _lookup(model, name), example)


def morphed(
    site: Site,
    make: Callable[[nn.Module], nn.Module],
    *,
    what: str,
    noise: float = 0.0,
    seed: int = 0,
    again: bool = True,
    **change: Any,
) -> Morph:
    """Return the model with the new part in the place of the old, and the certificate.

    Parameters
    ----------
    site : Site
    make : callable
        Makes the new part of a copy of the old one, which it may change and use.
    what : str
        What was done, without the place.
    noise, seed
        As for `finish`.
    again : bool
        Whether the new part can be made again of an old one in another dtype.
    **change
        More about the change, as for `Change`.

    Examples
    --------
    >>> site = find_part(nn.Sequential(nn.ReLU()), "0", torch.ones(2))
    >>> morphed(site, lambda relu: nn.Sequential(relu, nn.ReLU()), what="applied twice").what
    '0: applied twice'
    """
    twins: dict[int, Any] = {}
    copied = copy_of(site.model, {id(site.part)}, twins)
    twin = twins[id(site.part)]
    new = make(twin)
    new.training = site.part.training
    model = exchange(copied, {id(twin): new})

    def rebuild(layer: nn.Module) -> nn.Module:
        return make(deep_copy(layer))

    one = Change(site.name, site.part, new, rebuild=rebuild if again else None, **change)
    what = f"{site.where}: {what}"
    return finish(site.model, model, site.example, [one], what=what, noise=noise, seed=seed)


def chained(old: nn.Module, *parts: nn.Module) -> nn.Module:
    """Return a new part as one module, which takes over mode and hooks of the old.

    Examples
    --------
    >>> chained(nn.ReLU(), nn.Tanh())
    Tanh()
    >>> len(chained(nn.ReLU(), nn.Tanh(), nn.Tanh()))
    2
    """
    whole = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    for part in (whole, *parts):
        part.train(old.training)
    if whole is not old and is_hooked(old):
        fresh = vars(nn.Module())
        for name in HOOKS:
            vars(whole)[name] = vars(old)[name]
            vars(old)[name] = fresh[name]
    return whole


def generator_of(seed: int) -> torch.Generator:
    """Return a random number generator of its own, so that the global ones stay as they are.

    Examples
    --------
    >>> first, again = (torch.randn(2, generator=generator_of(3)) for _ in range(2))
    >>> torch.equal(first, again)
    True
    """
    return torch.Generator().manual_seed(seed)


def _lookup(model: nn.Module, name: str) -> nn.Module:
    found = places(model)
    if name not in found:
        layers = [
            n
            for n, part in found.items()
            if form_of(part) == "native" or isinstance(part, nn.Linear)
        ]
        raise NothingToConvert(
            "the model has no such part",
            where=name,
            expected=f"one of {', '.join(layers)}" if layers else "a model with layers",
            remedy="convfc.inspect(model) lists the CONV layers with their names",
        )
    return found[name]


def _layer_obstacle(model: nn.Module, name: str, part: nn.Module) -> Refusal | None:
    """Return why a part is no layer that can be replaced; None if it is one."""
    parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
    above = [model, *map(model.get_submodule, parents)] if name else []
    if any(form_of(one) in ("patch", "weight") for one in (part, *above)):
        return Refusal("it is an FC form of a CONV layer", _BACK)
    if any(form_of(one) == "unrolled" for one in (part, *above)):
        return Refusal("it is an unrolled CONV layer", _BACK)
    if form_of(part) == "native":
        blocked = obstacle(part)
        if blocked is not None and own_forward(part) == blocked:
            blocked = blocked._replace(remedy="put the layer of torch.nn that it equals in place")
    elif isinstance(part, nn.Linear):
        blocked = _linear_obstacle(part)
    else:
        return Refusal(
            "it is no CONV or FC layer", "name a layer of torch.nn: a Conv, ConvTranspose or Linear"
        )
    if blocked is None:
        held = holders(model, but={id(part)})
        shared = [held[id(p)] for p in part.parameters(recurse=False) if id(p) in held]
        if shared:
            reason, *_ = tied("its weight or bias", shared[0])
            return Refusal(reason, "untie them: give the layer a copy of the parameter")
    return blocked


def _linear_obstacle(part: nn.Linear) -> Refusal | None:
    """Return why an `nn.Linear` is not what its parameters say; its hooks are no obstacle here."""
    state = vars(part)
    kept = {name: state[name] for name in HOOKS}
    try:
        state.update({name: vars(nn.Module())[name] for name in HOOKS})
        return linear_obstacle(part)
    finally:
        state.update(kept)


def _seen(model: nn.Module, name: str, part: nn.Module, example: Any) -> Site:
    """Run the model on the example, and note what the part receives and returns."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    others: list[str] = []

    def note(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = (*args, *kwargs.values())
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            inputs.append(given[0].detach().clone())
            outputs.append(output.detach().clone())
        else:
            others.append(f"{len(given)} arguments")

    with unchanged(model):
        # In front of the hooks of the user, which may change the output.
        handle = part.register_forward_hook(note, with_kwargs=True, prepend=True)
        try:
            watched_run(model, example, "example")
        finally:
            handle.remove()
    if others or not inputs:
        raise UnsupportedLayer(
            "its call has more than one tensor" if others else "the model does not call it",
            where=name or "the model itself",
            expected="calls with one tensor",
            got=others[0] if others else "none",
            remedy="let the model call the layer as layer(x)",
        )
    if any(not x.numel() for x in inputs):
        raise ShapeError("the example is empty", where="example", remedy="give at least one input")
    return Site(model, name, part, example, tuple(inputs), tuple(outputs))


def check_share(name: str, value: object, *, least: float = 0.0, most: float) -> float:
    """Return a real number within bounds.

    Raises
    ------
    ArgumentError
        If it is none.

    Examples
    --------
    >>> check_share("energy", 0.9, most=1.0)
    0.9
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ArgumentError(
            "a number out of its range",
            where=name,
            expected=f"a number from {least:g} to {most:g}",
            got=repr(value),
            remedy="give a number in this range",
        )
    return float(value)
