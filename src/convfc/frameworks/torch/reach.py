"""What a converted model would not do: convolutions outside Python, questions for a class."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from convfc.errors import Refusal
from convfc.frameworks.torch.references import codes_in, is_foreign, what_calls_reach

_OPERATOR = re.compile(
    r"\b\w+(::|\.)(conv\dd(_\w+)?|conv_transpose\dd|conv_tbc|\w*convolution\w*)\b"
)
"""A convolution as TorchScript's graphs spell it."""

_QUANTISED_REMEDY = "convert the float model, and quantise the FC model afterwards"
_SCRIPT_REMEDY = "convert the Python model, before torch.jit.script, trace or freeze"


def out_of_reach(model: nn.Module) -> list[tuple[str, Refusal]]:
    """Find the convolutions that run outside Python: in TorchScript, or in quantised layers.

    Each comes with its kind, one per module, in the model's order.
    """
    found: list[tuple[str, Refusal]] = []
    scripted: list[str] = []
    for place, module in model.named_modules():
        if any(not part or place.startswith(f"{part}.") for part in scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(place)
            if _script_convolves(module):
                what = "it is TorchScript with convolutions inside"
                found.append(("TorchScript", Refusal(what, _SCRIPT_REMEDY, place)))
        elif _is_quantised(module):
            what = f"it is a quantised layer ({type(module).__module__})"
            found.append(("quantised", Refusal(what, _QUANTISED_REMEDY, place)))
    return found


def _script_convolves(module: torch.jit.ScriptModule) -> bool:
    """Ask the graph of every method: frozen and traced modules have nothing else."""
    methods = map(module._c._get_method, module._c._method_names())
    return any(_OPERATOR.search(str(method.inlined_graph)) for method in methods)


def _is_quantised(module: nn.Module) -> bool:
    """Say whether it is a quantised CONV layer; a fused float one only holds an ordinary layer."""
    return not isinstance(module, nn.Sequential) and any(
        cls.__module__.startswith("torch.ao.nn.") and "Conv" in cls.__name__
        for cls in type(module).__mro__
    )


def asked_for_class(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Refusal]:
    """Return the layers that a part of the model asks for their class, which would be another.

    ``if isinstance(layer, nn.Conv2d)`` in the forward of a part, or in a method that its forward
    names, takes another way when the layer is converted.
    """
    left: dict[str, Refusal] = {}
    for place, part in model.named_modules(remove_duplicate=False):
        kind: Any = type(part)
        asked = _classes_asked_for(kind)
        inside = f"{place}." if place else ""
        for name, layer in layers.items() if asked else ():
            if name.startswith(inside) and name != place and isinstance(layer, asked):
                left[name] = Refusal(
                    f"the forward of {type(part).__name__} asks for the class of its CONV layers",
                    "let it ask for an attribute instead, or leave the layer out with where=",
                )
    return left


@functools.cache
def _classes_asked_for(cls: Any) -> tuple[type[nn.Module], ...]:
    """Return the classes of CONV layers that calls of such a part name beside `isinstance`."""
    found: list[type[nn.Module]] = []
    if is_foreign(cls.__module__) or issubclass(cls, _ConvNd):
        return ()
    for _, function in what_calls_reach(cls):
        if not isinstance(function, FunctionType):
            continue
        for code in codes_in(function.__code__):
            if "isinstance" in code.co_names:
                found += _conv_classes(code.co_names, function.__globals__)
    return tuple(found)


def _conv_classes(names: Collection[str], scope: Mapping[str, object]) -> list[type[nn.Module]]:
    """Return the classes of CONV layers among some names, global or of `torch.nn`."""
    things = [thing for name in names for thing in (scope.get(name), getattr(nn, name, None))]
    return [thing for thing in things if isinstance(thing, type) and issubclass(thing, _ConvNd)]
