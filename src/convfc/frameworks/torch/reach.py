"""What a converted model would not do: convolutions outside Python, questions for a class."""

from __future__ import annotations

import dis
import functools
import re
from collections.abc import Collection, Mapping
from types import CodeType, FunctionType, UnionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import conv
from torch.nn.modules.conv import _ConvNd

from convfc.errors import Refusal
from convfc.frameworks.torch.references import codes_in, is_foreign, what_calls_reach, wrapped_in

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


def asked_for_class(
    model: nn.Module, layers: Mapping[str, nn.Module], *, exactly: bool = False
) -> dict[str, Refusal]:
    """Return the layers that a part of the model asks for their class, and why that matters.

    ``if isinstance(layer, nn.Conv2d)`` in the forward of a part, or in what its forward names,
    takes another way when the layer becomes one of another class; ``type(layer) is nn.Conv2d``, of
    a subclass, too. ``exactly`` returns the layers of the second question only.
    """
    left: dict[str, Refusal] = {}
    for place, part in model.named_modules(remove_duplicate=False):
        kind: Any = type(part)
        asked, typed = _classes_asked_for(kind)
        inside = f"{place}." if place else ""
        for name, layer in layers.items() if asked or typed else ():
            if not name.startswith(inside) or name == place:
                continue
            if type(layer) in typed or (not exactly and asked & {*type(layer).__mro__}):
                instead = "with isinstance" if exactly else "for an attribute"
                left[name] = Refusal(
                    f"the forward of {type(part).__name__} asks for the class of its CONV layers",
                    f"let it ask {instead} instead, or leave the layer out with where=",
                )
    return left


@functools.cache
def _classes_asked_for(cls: Any) -> tuple[frozenset[type], frozenset[type]]:
    """Return the classes that calls of such a part name where they ask for one, or for a type."""
    if is_foreign(cls.__module__) or issubclass(cls, _ConvNd):
        return frozenset(), frozenset()
    todo: list[Any] = [value for _, value in what_calls_reach(cls)]
    functions: dict[FunctionType, None] = {}
    while todo:
        for function in wrapped_in(todo.pop()):
            scope = function.__globals__
            if function in functions or is_foreign(scope.get("__name__")):
                continue
            functions[function] = None
            named = [scope.get(n) for code in codes_in(function.__code__) for n in code.co_names]
            own = [one for one in named if isinstance(one, FunctionType)]
            todo += [one for one in own if one.__globals__ is scope]
    asked: list[type] = []
    typed: list[type] = []
    for function in functions:
        for code in codes_in(function.__code__):
            classes = _classes(code.co_names, function.__globals__)
            if classes:
                asked += classes if _asks(code) else ()
                typed += _classes(_compared_with_types(code), function.__globals__)
    return frozenset(asked), frozenset(typed)


def _asks(code: CodeType) -> bool:
    """Say whether a piece of code asks for a class, by a function or in a ``case``."""
    asks = not {"isinstance", "issubclass"}.isdisjoint(code.co_names)
    return asks or any(step.opname == "MATCH_CLASS" for step in dis.get_instructions(code))


def _compared_with_types(code: CodeType) -> list[str]:
    """Return the names between ``type(layer)``, or ``layer.__class__``, and a comparison of it."""
    found: list[str] = []
    names: list[str] | None = None
    calls = 0  # still to come, of `type` itself
    for step in dis.get_instructions(code):
        if step.argval in ("type", "__class__") and step.opname.startswith("LOAD"):
            names, calls = [], int(step.argval == "type")
        elif step.opname.startswith("CALL"):
            names, calls = (names if calls else None), calls - 1
        elif step.opname in ("IS_OP", "COMPARE_OP", "CONTAINS_OP"):
            found += names or ()
            names = None
        elif step.opname.startswith(("STORE", "POP", "RETURN", "RAISE")):
            names = None
        elif names is not None and isinstance(step.argval, str):
            names.append(step.argval)
    return found


def _classes(names: Collection[str], scope: Mapping[str, object]) -> list[type]:
    """Return the classes among some names, global or of PyTorch, that not every module is of."""
    found = [thing for name in names for thing in (scope.get(name), getattr(conv, name, None))]
    several = [one for thing in found for one in _members(thing)]
    return [one for one in several if isinstance(one, type) and one not in nn.Module.__mro__]


def _members(thing: object) -> tuple[object, ...]:
    """Return the classes that ``isinstance`` would look at, if the thing is given to it."""
    if isinstance(thing, UnionType):
        return thing.__args__
    return thing if isinstance(thing, tuple) else (thing,)
