"""Convolutions that no CONV layer of a model computes: functional, scripted and quantised ones.

They are found without running the model: the byte code of a module's forward, and of the functions
that it refers to, is read name by name, and each name is looked up where Python would look it up.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.form import form_of

_CONVOLVES = re.compile(r"conv\dd|conv_transpose\dd|conv_tbc|\w*convolution\w*")

CONVOLUTIONS: dict[Any, str] = {
    getattr(torch, name): name for name in dir(torch) if _CONVOLVES.fullmatch(name)
}
"""Every function of torch that convolves; `torch.nn.functional` has the same objects."""

_OPERATOR = re.compile(rf"\b\w+(::|\.)({_CONVOLVES.pattern}|conv\dd_\w+)\b")
"""A convolution as TorchScript's graphs and `torch.ops` spell it."""

FUNCTION_REMEDY = "call an nn.Conv module instead, whose weight is its parameter"
"""What to do about a functional convolution."""

_QUANTISED_REMEDY = "convert the float model, and quantise the FC model afterwards"
_SCRIPT_REMEDY = "convert the Python model, before torch.jit.script, trace or freeze"
_SEARCHED = 32
"""Entries up to which a tuple, list or dict of functions is looked through."""

_FOREIGN = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
_TRANSPARENT = {"PUSH_NULL", "SWAP", "POP_TOP", "EXTENDED_ARG", "NOP", "CACHE", "NOT_TAKEN"}
"""Instructions inside a chain of loads that change nothing about it."""

_STORES = {
    *("STORE_FAST", "STORE_DEREF", "STORE_NAME"),
    *("STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"),
}
_UNKNOWN = object()


class _Name(str):
    """The beginning of a name that is looked up in torch while the model runs."""

    __slots__ = ()


def functional_convolutions(model: nn.Module) -> list[tuple[str, Refusal]]:
    """Find the convolutions of a model that none of PyTorch's CONV layers computes.

    These are functions of torch in the forward of a module, or in what it refers to (methods,
    helpers, lambdas, nested functions, `torch.autograd.Function`); TorchScript; and quantised
    layers. Each comes with its kind ("function", "TorchScript" or "quantised"), one per module, in
    the model's order. Subclasses of CONV layers are left to `obstacle`; what has a computed name,
    as in ``getattr(F, name)``, only `inspect` with an input can see.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    places = {id(module): place for place, module in modules.items()}
    found: dict[str, tuple[str, Refusal]] = {}
    calls: dict[str, list[str]] = {}
    scripted: list[str] = []
    for place, module in modules.items():
        if any(not part or place.startswith(f"{part}.") for part in scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(place)
            if _script_convolves(module):
                what = "it is TorchScript with convolutions inside"
                found[place] = "TorchScript", Refusal(what, _SCRIPT_REMEDY, place)
        elif _is_quantised(module):
            what = f"it is a quantised layer ({type(module).__module__})"
            found[place] = "quantised", Refusal(what, _QUANTISED_REMEDY, place)
        elif form_of(module) not in ("native", "weight"):
            for owner, hits in _Search(module).hits.items():
                known = calls.setdefault(places.get(owner, place), [])
                known.extend(hit for hit in hits if hit not in known)
    for place, hits in calls.items():
        what = f"its forward reaches {' and '.join(hits)}"
        found[place] = "function", Refusal(what, FUNCTION_REMEDY, place)
    return [found[place] for place in modules if place in found]


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


class _Search:
    """What a call of one module convolves by itself: ``hits`` by the id of the module that does.

    Every function that its forward may lead to is read once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.hits: dict[int, list[str]] = {}
        self._read: dict[tuple[int, int], object] = {}
        for name in ("forward", "__call__"):
            own = vars(module).get(name)
            static = inspect.getattr_static(type(module), name)
            self._follow(static if own is None else own, module, None)

    def _follow(self, thing: Any, bound: Any, reader: CodeType | None, deep: bool = False) -> None:
        """Note a convolution, or go on to what may lead to one.

        ``bound`` is the object whose method the thing would be, ``reader`` the code that names it,
        ``deep`` says that it was found in a container.
        """
        if name := _convolution(thing):
            self._hit(name, bound, reader)
        elif isinstance(thing, FunctionType):
            self._function(thing, bound)
        elif isinstance(thing, MethodType):
            self._follow(thing.__func__, thing.__self__, reader)
        elif wrapped := _wrapped(thing):
            for part in wrapped:
                self._follow(part, bound, reader, deep=True)
        elif isinstance(thing, (type, nn.Module, torch.Tensor, ModuleType)) or deep:
            pass  # a part of the model is searched by itself
        elif isinstance(thing, (tuple, list, dict)):
            values = list(thing.values() if isinstance(thing, dict) else thing)
            for value in values if len(values) <= _SEARCHED else ():
                self._follow(value, bound, reader, deep=True)
        else:
            call = inspect.getattr_static(type(thing), "__call__", None)
            if isinstance(call, FunctionType):
                self._function(call, thing)

    def _hit(self, name: str, bound: Any, reader: CodeType | None) -> None:
        """Note it for the module whose method it is in; of helpers, for the one that called."""
        own = isinstance(bound, nn.Module) and form_of(bound) not in ("native", "weight")
        owner = bound if own else self.module
        hit = f"{name} as a function"
        if reader is not None:
            file = PurePath(reader.co_filename).name
            hit += f" ({reader.co_qualname}, {file}:{reader.co_firstlineno})"
        hits = self.hits.setdefault(id(owner), [])
        if hit not in hits:
            hits.append(hit)

    def _function(self, function: FunctionType, bound: Any) -> None:
        """Read a function's code; of a library's functions, only what they have been wrapped on."""
        key = (id(function), id(bound))
        if key in self._read:
            return
        self._read[key] = (function, bound)  # kept, so that an id stays theirs
        closed = closed_over(function)
        home = function.__globals__.get("__name__")
        if is_foreign(home) or is_foreign(function.__module__):
            wrapped = getattr(function, "__wrapped__", None)
            for thing in (wrapped, *closed.values()):
                if isinstance(thing, (FunctionType, MethodType)):
                    self._follow(thing, bound, None)
            return
        code = function.__code__
        if code.co_argcount and code.co_varnames[0] == "self":
            closed["self"] = bound
        self._code(code, function, bound, closed)

    def _code(
        self, code: CodeType, function: FunctionType, bound: Any, names: dict[str, Any]
    ) -> None:
        """Follow every name in a piece of code; ``names`` are its known local ones."""
        for thing, holder in _named_things(code, function, bound, names):
            self._follow(thing, holder, code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                hidden = constant.co_varnames[: constant.co_argcount]
                inner = {name: thing for name, thing in names.items() if name not in hidden}
                self._code(constant, function, bound, inner)


def _convolution(thing: Any) -> str | None:
    """Return the name of a function that convolves; None of anything else."""
    if isinstance(thing, BuiltinFunctionType):
        return CONVOLUTIONS.get(thing)
    if isinstance(thing, _Name):
        return str(thing)
    if isinstance(thing, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        name = str(thing)
        return name if _OPERATOR.search(name) else None
    if isinstance(thing, torch.jit.ScriptFunction):
        return f"{thing.name} (TorchScript)" if _OPERATOR.search(str(thing.inlined_graph)) else None
    if isinstance(thing, FunctionType) and thing.__name__ == "_conv_forward":
        return "_conv_forward" if is_foreign(thing.__module__) else None
    return None


def of_descriptor(thing: Any) -> Any:
    """Return the function that a method, property or the like is made of, or the thing itself."""
    match thing:
        case staticmethod() | classmethod():
            return thing.__func__
        case property():
            return thing.fget
        case functools.cached_property():
            return thing.func
    return thing


def _wrapped(thing: Any) -> tuple[Any, ...]:
    """Return the functions that a descriptor, a partial or an autograd function is made of."""
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, type) and issubclass(thing, torch.autograd.Function):
        return (inspect.getattr_static(thing, "forward"),)
    function = of_descriptor(thing)
    return () if function is thing else (function,)


def is_foreign(module: str | None) -> bool:
    """Say whether functions of a module are not read: they are no user's model."""
    return module is not None and module.partition(".")[0] in _FOREIGN


def closed_over(function: FunctionType) -> dict[str, Any]:
    """Return the variables that a function has closed over, as far as they have a value."""
    names: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            names[name] = cell.cell_contents
    return names


def _named_things(  # noqa: PLR0912 (a branch per kind of instruction)
    code: CodeType, function: FunctionType, bound: Any, names: dict[str, Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield each object that code names, and the object whose method it would be.

    A name is a chain of loads: ``torch.nn.functional.conv2d`` is a global and three attributes.
    """
    thing: Any = _UNKNOWN
    package: Any = _UNKNOWN
    of_super = False
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _TRANSPARENT]
    for number, instruction in enumerate(instructions):
        op, value = instruction.opname, instruction.argval
        before, thing, holder = thing, _UNKNOWN, bound
        if op in _STORES:
            stored, *others = value if isinstance(value, tuple) else (value,)
            names[stored] = before
            if op == "STORE_FAST_LOAD_FAST":
                thing = names.get(others[0], _UNKNOWN)
            names.update(dict.fromkeys(others, _UNKNOWN) if op == "STORE_FAST_STORE_FAST" else {})
        elif op.startswith("LOAD_FAST") or op in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            name = value[-1] if isinstance(value, tuple) else value
            thing = names.get(name, _UNKNOWN)
        elif op in ("LOAD_GLOBAL", "LOAD_NAME"):
            thing = function.__globals__.get(value, getattr(builtins, value, _UNKNOWN))
            of_super = of_super or thing is super
        elif op == "LOAD_CONST":
            if isinstance(value, str) and value.startswith("conv") and _has_conv(before):
                thing = _Name(value)  # getattr(F, f"conv{n}d")
        elif op == "IMPORT_NAME":
            level, listed = (instructions[number - back].argval for back in (2, 1))
            thing = package = _imported(value, level, listed, function)
        elif op == "IMPORT_FROM":
            thing = _attribute(package if before is _UNKNOWN else before, value)
        elif op in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            if op == "LOAD_SUPER_ATTR" or (of_super and before is _UNKNOWN):
                thing, of_super = _super_attribute(function, bound, value), False
            else:
                thing = _attribute(before, value)
                holder = bound if isinstance(before, (ModuleType, type)) else before
        if thing is not _UNKNOWN:
            yield thing, holder


def _has_conv(thing: Any) -> bool:
    return thing is torch or thing is torch.nn.functional


def _attribute(holder: Any, name: str) -> Any:
    """Look an attribute up without running anything of the user's: no descriptor, no property."""
    if holder is _UNKNOWN:
        return _UNKNOWN
    if isinstance(holder, (torch._ops._Ops, torch._ops._OpNamespace, torch._ops.OpOverloadPacket)):
        return getattr(holder, name, _UNKNOWN)  # made on demand
    if isinstance(holder, nn.Module) and name in holder._modules:
        return holder._modules[name]
    return inspect.getattr_static(holder, name, _UNKNOWN)


def _super_attribute(function: FunctionType, bound: Any, name: str) -> Any:
    """Return what ``super().name`` is in a method of the object's class."""
    order = list(type(bound).__mro__)
    for number, cls in enumerate(order):
        if any(inspect.unwrap(f) is function for f in vars(cls).values() if callable(f)):
            later = (vars(base)[name] for base in order[number + 1 :] if name in vars(base))
            return next(later, _UNKNOWN)
    return _UNKNOWN


def _imported(name: str, level: int, listed: object, function: FunctionType) -> Any:
    """Return the module that an import statement inside a function binds, if it is loaded."""
    if level:
        package = function.__globals__.get("__package__") or ""
        name = ".".join([*package.split(".")[: len(package.split(".")) - level + 1], *name.split()])
    elif listed is None:  # import a.b binds a
        name = name.partition(".")[0]
    return sys.modules.get(name, _UNKNOWN)
