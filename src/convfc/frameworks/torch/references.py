"""What refers to a module besides the model's registry, and modules exchanged in all of it.

``self.pyramid = [self.conv1, self.conv2]``, ``self.last = partial(run, self.conv)`` or ``lambda x:
self.conv(x)``: forward calls what such an attribute refers to, whatever is registered. So when a
module is exchanged, everything that a model's attributes lead to is searched for the old one.
Lists, dicts, tuples, partials, bound methods and plain objects are given the new one. A function's
closure cannot be given it, and a copy of the model shares the function with the model.
"""

from __future__ import annotations

import dis
import functools
import sys
import weakref
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook

from convfc.errors import Refusal, UnsupportedLayer

_CHANGES: tuple[type, ...] = (
    *(list, dict, set, deque, functools.partial, UserDict, UserList, SimpleNamespace),
    *(nn.Module, _WrappedHook),
)
"""What is given other contents, and stays the object that it is."""

_MADE_AGAIN = (tuple, frozenset, MethodType, weakref.ref)
"""What is made again with other contents, where something refers to it."""

_WEAK = (weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_SHARED = (FunctionType, type, weakref.ref, *_WEAK)
"""What `copy.deepcopy` leaves as it is: a copy of a model has the one of the model."""

_PLAIN = {type(None), bool, int, float, str}
_BUILT_IN = {list, dict, tuple, set, frozenset, deque, functools.partial, MethodType}
_IGNORED = {
    *("_parameters", "_buffers", "_non_persistent_buffers_set"),
    "_compiled_call_impl",  # the module itself, compiled; no copy and no other form has it
}
_COMPILED = {"forward", "_forward", "__call__", "dynamo_ctx"}
"""What a module of `torch.compile` makes of the module inside it."""


_FOREIGN = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}


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


class _Step(NamedTuple):
    """One object on the path from the model to a module.

    ``key`` says where the object before refers to it; ``gives`` is the nearest object, itself
    included, whose contents can be exchanged, or None; ``shared`` the first object on the path that
    a copy of the model shares with the model, or None.
    """

    holder: Any
    key: Any
    before: _Step | None
    gives: Any
    shared: Any


def blocked_references(
    model: nn.Module, parts: Collection[int], *, copied: bool
) -> dict[str, Refusal]:
    """Return why modules, given by id, cannot be exchanged, or not in a copy, by every name."""
    found: dict[str, Refusal] = {}
    names: dict[int, list[str]] = {}
    if not parts:
        return found
    for name, part in model.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    for step, part in _references([model], parts):
        if step.gives is None or (copied and step.shared is not None):
            own = names.get(id(part), [])
            obstacle = _obstacle(model, step, own)
            for name in own:
                found.setdefault(name, obstacle)
    return found


def check_references(model: nn.Module, parts: Collection[int], *, copied: bool) -> None:
    """Raise an `UnsupportedLayer` for the first of `blocked_references`."""
    for name, blocked in blocked_references(model, parts, copied=copied).items():
        raise blocked._replace(where=name or "the model itself").error(
            UnsupportedLayer, "it cannot be exchanged"
        )


def exchange(model: nn.Module, new: Mapping[int, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, given by id, wherever something refers to them.

    Returns the model, which is changed, or the new module if the model itself is exchanged. If
    something cannot be given the new one, an `UnsupportedLayer` is raised and nothing is changed.
    """
    # A new part has taken over attributes of the old one, which may be a part of it now.
    leave = [vars(part)["_modules"] for part in new.values()]
    found = _references([model, *new.values()], new, leave)
    for step, old in found:
        if step.gives is None:
            names = [name for name, part in model.named_modules() if part is old]
            blocked = _obstacle(model, step, names)
            where = next(filter(None, names), "the model itself")
            raise blocked._replace(where=where).error(UnsupportedLayer, "it cannot be exchanged")
    for holder in {id(step.gives): step.gives for step, _ in found}.values():
        _give(holder, new)
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    for part in list(model.modules()) if dynamo is not None else ():
        if isinstance(part, dynamo.OptimizedModule) and part._orig_mod in new.values():
            part.__setstate__(part.__getstate__())  # compile the new one
    return new.get(id(model), model)


def _references(
    roots: Iterable[Any], parts: Collection[int], leave: Iterable[Any] = ()
) -> list[tuple[_Step, nn.Module]]:
    """Return what refers to one of the modules, and to which; each object is searched once."""
    found: list[tuple[_Step, nn.Module]] = []
    kinds: dict[type, _Kind | None] = {}
    stack = [_Step(root, "", None, root, None) for root in roots]
    seen = {(id(thing), id(thing), False) for thing in leave}
    while stack:
        step = stack.pop()
        for key, value in _contents(step):
            cls = type(value)
            if cls not in kinds:
                kinds[cls] = _kind(cls)
            kind = kinds[cls]
            if kind is None:
                continue
            if id(value) in parts:
                found.append((step, value))
            gives = value if kind.changes else step.gives
            if not kind.changes and not (kind.made_again and _can_be_made_again(value)):
                gives = None
            shared = step.shared
            if kind.shared and shared is None and not isinstance(step.holder, _WrappedHook):
                shared = value
            mark = (id(value), id(gives), shared is not None)
            if mark not in seen:
                seen.add(mark)
                stack.append(_Step(value, key, step, gives, shared))
    return found


class _Kind(NamedTuple):
    """What can be done with the objects of a class; None for what refers to no modules."""

    changes: bool = False
    made_again: bool = False
    shared: bool = False


def _kind(cls: type) -> _Kind | None:
    if issubclass(cls, _CHANGES):
        return _Kind(changes=True)
    if issubclass(cls, (*_MADE_AGAIN, *_SHARED)):
        return _Kind(made_again=issubclass(cls, _MADE_AGAIN), shared=issubclass(cls, _SHARED))
    if issubclass(cls, (Tensor, ModuleType)) or is_foreign(cls.__module__):
        return None
    return _Kind(changes=True)  # an object of the user's


def _contents(step: _Step) -> Iterator[tuple[Any, Any]]:
    """Yield what an object refers to, and under which key."""
    holder = step.holder
    if isinstance(holder, dict):
        for key, value in dict.items(holder):
            yield key, value
            if step.shared is None:
                yield "a key", key
    elif isinstance(holder, (list, tuple, set, frozenset, deque)):
        yield from enumerate(holder)
    elif isinstance(holder, functools.partial):
        yield "func", holder.func
        yield from enumerate(holder.args)
        yield from holder.keywords.items()
    elif isinstance(holder, MethodType):
        yield "__self__", holder.__self__
        yield "__func__", holder.__func__
    elif isinstance(holder, FunctionType):
        yield from _closed_in(holder)
        return
    elif isinstance(holder, type):
        yield from what_calls_reach(holder)
        return
    elif isinstance(holder, weakref.ref):
        yield "", holder()
    elif isinstance(holder, _WEAK):
        yield from enumerate(list(holder))
    yield from _attributes(holder)
    if type(holder) not in _BUILT_IN:
        yield "", type(holder)


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object itself, but what tensors and compilers have there."""
    own = getattr(holder, "__dict__", {})
    ignored = _IGNORED | _COMPILED if "dynamo_ctx" in own else _IGNORED
    for name, value in list(own.items()):
        if (
            type(value) not in _PLAIN
            and name not in ignored
            and (type(value) is not OrderedDict or value)
        ):
            yield name, value
    cls: Any = type(holder)
    for name in _slots(cls):
        if hasattr(holder, name):
            yield name, getattr(holder, name)


@functools.lru_cache(maxsize=1024)
def _slots(cls: type) -> tuple[str, ...]:
    """Return the names of the attributes that objects of a class have outside their dict."""
    names: list[str] = []
    for base in cls.__mro__:
        slots = () if is_foreign(base.__module__) else vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in names if not name.startswith("__"))


def _closed_in(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function closes over, its defaults, and the globals that it uses."""
    closed = closed_over(function)
    # Of a library's function, such as a decorator's, only what it has been wrapped around.
    if is_foreign(function.__globals__.get("__name__")):
        closed["__wrapped__"] = vars(function).get("__wrapped__")
        for name, value in closed.items():
            if isinstance(value, (FunctionType, MethodType)):
                yield name, value
        return
    yield from closed.items()
    yield from enumerate(function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()
    scope, codes = function.__globals__, list(codes_in(function.__code__))
    likely = {name for code in codes for name in code.co_names if _is_searched(scope, name)}
    if likely:  # attributes have names, too
        loaded = {
            i.argval
            for code in codes
            for i in dis.get_instructions(code)
            if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        }
        yield from ((name, scope[name]) for name in likely & loaded)


def _is_searched(scope: Mapping[str, Any], name: str) -> bool:
    """Say whether a global is searched: of functions, those of the same file."""
    value = scope.get(name)
    if isinstance(value, FunctionType):
        return value.__globals__ is scope
    return isinstance(value, (*_CHANGES, tuple, MethodType))


def what_calls_reach(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what calls of a class's objects look up in it: forward, and whatever that names."""
    names, done = ["forward", "__call__"], set()
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        for base in cls.__mro__:
            if name not in vars(base) or is_foreign(base.__module__):
                continue
            value = of_descriptor(vars(base)[name])
            yield name, value
            for function in wrapped_in(value):
                names += [n for code in codes_in(function.__code__) for n in code.co_names]


def wrapped_in(function: Any) -> Iterator[FunctionType]:
    """Yield a function, and what decorators have wrapped in it; nothing of what is none."""
    while isinstance(function, FunctionType):
        yield function
        function = vars(function).get("__wrapped__")


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield a piece of code and the pieces inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def _can_be_made_again(value: Any) -> bool:
    """Say whether `_exchanged` can make the thing again around a part of another class."""
    if isinstance(value, MethodType):
        return not _is_own(value) or hasattr(nn.Module, value.__func__.__name__)
    return type(value) in _MADE_AGAIN or hasattr(value, "_make")


def _is_own(method: MethodType) -> bool:
    """Say whether a bound method is one of its object's class, and not bound by hand."""
    function = method.__func__
    return getattr(type(method.__self__), getattr(function, "__name__", ""), None) is function


def _exchanged(value: Any, new: Mapping[int, nn.Module]) -> Any:
    """Return what takes a value's place; the value itself if it refers to no old module."""
    if id(value) in new:
        return new[id(value)]
    if isinstance(value, (tuple, frozenset)):
        items = [_exchanged(item, new) for item in value]
        if all(item is old for item, old in zip(items, value, strict=True)):
            return value
        make = getattr(type(value), "_make", type(value))
        return make(items)
    if isinstance(value, MethodType) and id(value.__self__) in new:
        part = new[id(value.__self__)]
        function = value.__func__
        return getattr(part, function.__name__) if _is_own(value) else MethodType(function, part)
    if isinstance(value, weakref.ref) and id(value()) in new:
        return weakref.ref(new[id(value())], value.__callback__)
    return value


def _give(holder: Any, new: Mapping[int, nn.Module]) -> None:
    """Exchange what an object itself refers to."""
    if isinstance(holder, dict):
        items = {_exchanged(k, new): _exchanged(v, new) for k, v in dict.items(holder)}
        if any(mine is not old for mine, old in zip(items, holder, strict=True)):
            holder.clear()
        holder.update(items)
    elif isinstance(holder, (list, deque)):
        for index, value in enumerate(holder):
            holder[index] = _exchanged(value, new)
    elif isinstance(holder, set):
        members = [_exchanged(value, new) for value in holder]
        holder.clear()
        holder.update(members)
    elif isinstance(holder, functools.partial):
        keywords = {name: _exchanged(value, new) for name, value in holder.keywords.items()}
        func, args = _exchanged(holder.func, new), _exchanged(holder.args, new)
        holder.__setstate__((func, args, keywords, vars(holder)))  # type: ignore[attr-defined]
    for name, value in _attributes(holder):
        other = _exchanged(value, new)
        if other is value:
            continue
        if name in getattr(holder, "__dict__", {}):
            vars(holder)[name] = other  # past nn.Module.__setattr__, which would register it
        else:
            object.__setattr__(holder, name, other)


def _obstacle(model: nn.Module, last: _Step, names: list[str]) -> Refusal:
    """Return in words why a module cannot be exchanged."""
    steps: list[_Step] = []
    step: _Step | None = last
    while step is not None:
        steps.insert(0, step)
        step = step.before
    inside = last.shared
    if inside is None:
        inside = next((s.holder for s in steps if s.gives is None), last.holder)
    remedy = f"let the model call it by its registered name ({names[0] if names else 'none'})"
    if last.gives is not None:
        remedy += ", or change the model itself, with inplace=True"
    words, path = _words(inside), _path(model, steps, inside)
    inner = f" inside {words}," if path else ""
    reason = f"{path or words} refers to it as well,{inner} which would go on calling the old one"
    return Refusal(reason, remedy)


def _path(model: nn.Module, steps: list[_Step], inside: Any) -> str:
    """Return the path to what refers to a module, from the last registered module on it."""
    names = {id(part): name for name, part in model.named_modules()}
    path = ""
    for step in steps:
        if step.key != "_modules" and step.before is not None and step.key != "":
            before, key = step.before.holder, step.key
            item = isinstance(before, (list, tuple, set, frozenset, deque, dict))
            path += f"[{key!r}]" if item else f".{key}"
        if step.holder is inside:
            break
        path = names.get(id(step.holder), path)
    return path.lstrip(".")


def _words(holder: Any) -> str:
    match holder:
        case FunctionType():
            return f"the function {holder.__name__}"
        case type():
            return f"the class {holder.__name__}"
        case MethodType():
            return f"the method {getattr(holder.__func__, '__name__', '')}"
        case weakref.ref():
            return "a weak reference"
    return f"a {type(holder).__name__}"
