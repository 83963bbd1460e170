"""A model run once, on a tensor that records what is done to it: calls of ATen's operators.

Their names and arguments are the same however a call was written (``F.relu(x)``, ``x.relu_()``,
``nn.ReLU()(x)``), and a forward may do anything but ask what is in a tensor. A CONV layer, in any
form, is one call, and so are the functions of `WHOLE`, which ATen would take apart into calls that
mix the examples of a batch, or that say less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from convfc.comparing import first_words
from convfc.errors import ConvfcError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.running import call_model, check_compiler, unchanged

LAYER = "a CONV layer"
_FIRST = {"self": "x", "input": "x"}  # what a function's first argument is called
WHOLE = frozenset(
    ["linear", "matmul", "einsum", "pad", "softsign", "tanhshrink"]
    + [f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)]
    + ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"]
    + ["feature_alpha_dropout"]
)
"""Functions of PyTorch, and methods of a tensor, that are one call each."""
CONSTANTS = frozenset(
    [f"{kind}_like" for kind in ("zeros", "ones", "full", "empty")]
    + [f"new_{kind}" for kind in ("zeros", "ones", "full", "empty")]
)
"""Operators that ask a tensor for no more than its size and its kind."""


def refuse(
    what: str, where: str, remedy: str = "take the parts before and after it by themselves"
) -> UnsupportedLayer:
    """Return the error for something that cannot be followed."""
    return UnsupportedLayer(f"{what}; it cannot be followed", where=where, remedy=remedy)


@dataclass(frozen=True)
class Ref:
    """In a call's arguments and results: one of the trace's tensors."""

    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """What was called, with a `Ref` in the place of each tensor that depends on the input."""

    name: str  # ATen's, without a final underscore; or one of `WHOLE`; or `LAYER`
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    place: str  # the name of the module in whose forward it stands
    module: nn.Module  # that module
    versions: tuple[int, ...]  # of the constant tensors among the arguments

    def arguments(self, change: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return its arguments after ``change``: of ATen's operators all of them, by name."""
        args, kwargs = tree_map(change, (self.args, self.kwargs))
        schema = getattr(self.function, "_schema", None)
        if schema is not None:
            named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
            named |= dict(zip((a.name for a in schema.arguments), args, strict=False))
            args, kwargs = (), named | kwargs
        return args, {_FIRST.get(name, name): value for name, value in kwargs.items()}

    def check_constants(self) -> None:
        """Refuse constants that were changed after the call."""
        leaves = [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        if tuple(map(_version, leaves)) != self.versions:
            raise refuse(f"a constant of {self.words} is changed afterwards", self.place)

    @property
    def words(self) -> str:
        """What was called, for messages: PyTorch's own module, or a function."""
        return type(self.module).__name__ if self._is_module() else f"{self.name}()"

    @property
    def label(self) -> str:
        """Where a result is, for certificates: the name of PyTorch's own module, or a function."""
        return self.place if self._is_module() else self.words

    def _is_module(self) -> bool:
        return self.name == LAYER or type(self.module).__module__.startswith("torch.nn.modules")


@dataclass(eq=False)
class Trace:
    """The calls of one run, its tensors (their numbers only if asked for), and its output."""

    calls: list[Call] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    output: Any = None

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """Names and places of the calls, by which another network is recognised."""
        return tuple((call.name, call.place) for call in self.calls)


def trace(model: nn.Module, x: Tensor, *, numbers: bool = False) -> Trace:
    """Run a model in evaluation mode on a tensor, and return the calls; it is left as it was."""
    check_compiler()  # a mode of PyTorch's imports it
    recorder = _Recorder(numbers)
    with unchanged(model), torch.inference_mode(mode=False):
        try:
            with recorder.watching(model):
                output = model(recorder.tensor(x.detach().clone()))
        except Exception as error:
            if recorder.refused is None and not isinstance(error, ConvfcError):
                call_model(model, (x.detach().clone(),), {}, "example")  # whether it runs at all
                raise UnsupportedModel(
                    f"its forward cannot be followed: {first_words(error)}",
                    where=recorder.failed or recorder.stack[-1][0],
                    expected="a forward that calls PyTorch's functions on tensors",
                    remedy="take the parts of the model by themselves",
                ) from error
            if recorder.refused is None:
                raise
    # PyTorch takes some errors for an operand that is not known, and a model may catch them.
    if recorder.refused is not None:
        raise recorder.refused
    recorder.found.output = tree_map(recorder.ref, output)
    return recorder.found


def trace_of_two(model: nn.Module, x: Tensor, where: str, *, numbers: bool = False) -> Trace:
    """Trace a model on two examples of a batch: what mixes them, or counts them, cannot hide.

    They are the first one twice, or with numbers the first two.
    """
    rows = [0, 1] if numbers and len(x) > 1 else [0, 0]
    try:
        return trace(model, x.detach()[rows], numbers=numbers)
    except ShapeError as error:
        with unchanged(model):  # it says so itself if it does not run on x either
            call_model(model, (x.detach().clone(),), {}, where)
        raise ShapeError(  # a CONV layer takes one example, too
            "the model runs on it, but not on two of its rows",
            where=where,
            expected="a batch (n, ...)",
            got=tuple(x.shape),
            remedy=f"{where}[None] makes a batch of one example",
        ) from error


class _Noting(Tensor):
    """A tensor that tells its recorder what is done to it; its numbers are in ``plain`` alone."""

    recorder: _Recorder
    plain: Tensor
    number: int
    lost: str

    @staticmethod
    def __new__(cls, real: Tensor) -> _Noting:
        made: _Noting = Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=real.device,
        )
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_").replace("rmatmul", "matmul")
        with torch._C.DisableTorchFunctionSubclass():
            if name in WHOLE:
                return _recorder_of((args, kwargs)).call(name, func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind, _, name = func.overloadpacket._qualified_op_name.partition("::")
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        name = name if kind == "aten" else f"{kind}::{name}"
        return _recorder_of((args, kwargs)).call(name, func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"a tensor {tuple(self.shape)} that is traced"


class _Beside(TorchDispatchMode):
    """Sees what a forward does with constants, of which the trace has only the results."""

    def __init__(self, recorder: _Recorder, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        # The tensors of the model's own, registered or not.
        own = [*model.parameters(), *model.buffers()]
        own += [t for part in model.modules() for t in vars(part).values()]
        self.own = {_memory(t) for t in own if isinstance(t, Tensor)} - {0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse random numbers, and what would make the next run another one."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not self.recorder.calling and not any(isinstance(t, _Noting) for t in given):
            name, place = func.overloadpacket.__name__, self.recorder.stack[-1][0]
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise self.recorder.refuse(f"{name}() draws random numbers", place)
            written = (t for t, a in zip(args, func._schema.arguments, strict=False) if a.is_write)
            if any(isinstance(t, Tensor) and _memory(t) in self.own for t in written):
                raise self.recorder.refuse(f"{name}() changes a tensor of the model's own", place)
        return func(*args, **(kwargs or {}))


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata if t.layout is torch.strided else 0


def _recorder_of(arguments: Any) -> _Recorder:
    return next(leaf.recorder for leaf in tree_leaves(arguments) if isinstance(leaf, _Noting))


class _Recorder:
    """Records the calls of one run."""

    def __init__(self, numbers: bool) -> None:
        self.found, self.numbers = Trace(), numbers
        self.stack: list[tuple[str, nn.Module]] = []
        self.failed = ""
        self.refused: ConvfcError | None = None
        self.calling = False
        self.alive: list[weakref.ref[_Noting]] = []

    def tensor(self, real: Tensor) -> _Noting:
        """Return the tensor that stands for one of the network."""
        made = _Noting(real)
        made.recorder, made.plain, made.lost = self, real, ""
        made.number = self._number(real)
        self.alive.append(weakref.ref(made))
        return made

    def refuse(self, what: str, place: str, *remedy: str) -> ConvfcError:
        """Return the error of something that cannot be followed, and keep it: see `trace`."""
        self.refused = self.refused or refuse(what, place, *remedy)
        return self.refused

    def _number(self, real: Tensor) -> int:
        kept = real.clone() if self.numbers else torch.empty_like(real, device="meta")
        self.found.tensors.append(kept)
        return len(self.found.tensors) - 1

    def ref(self, value: Any) -> Any:
        """Return an argument or a result as a call has it."""
        if not isinstance(value, _Noting):
            return value
        if value.lost:
            raise self.refuse(
                "an in-place operation changes a tensor of which a view is used elsewhere",
                value.lost,
                "call it without inplace=True",
            )
        return Ref(value.number)

    def call(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function on the real tensors, and record it."""
        place, module = self.stack[-1]
        noted = tree_map(self.ref, (args, kwargs))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        versions = tuple(_version(t) for t in given if not isinstance(t, _Noting))
        real_args, real_kwargs = tree_map(
            lambda value: value.plain if isinstance(value, _Noting) else value, (args, kwargs)
        )
        self.calling = True
        try:
            real = function(*real_args, **real_kwargs)
        finally:
            self.calling = False
        if name in CONSTANTS:
            return real
        schema = getattr(function, "_schema", None)
        written: list[Any] = [
            kwargs.get(argument.name, args[i] if i < len(args) else None)
            for i, argument in enumerate(schema.arguments if schema else ())
            if argument.is_write
        ]
        if not all(isinstance(t, _Noting) for t in written):
            raise self.refuse(f"{name}() writes what it computes into a constant", place)
        owners = {id(t.plain): t for t in written}

        def stand_in(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            return owners[id(t)] if id(t) in owners else self.tensor(t)

        made = tree_map(stand_in, real)
        for t in written:
            self._overwrite(t, place)
        if not any(isinstance(leaf, _Noting) for leaf in tree_leaves(made)):
            what = "the forward" if name == "_local_scalar_dense" else f"{name}()"
            raise self.refuse(f"{what} asks what is in a tensor", place)
        result = tree_map(self.ref, made)
        self.found.calls.append(
            Call(name, function, noted[0], noted[1], result, place, module, versions)
        )
        return made

    def _overwrite(self, written: _Noting, place: str) -> None:
        """Give a tensor that was changed in place, and those that are the same, a new number."""
        number, real = self._number(written.plain), written.plain
        self.alive = [ref for ref in self.alive if ref() is not None]
        for other in (ref() for ref in self.alive):
            if other is None or _memory(other.plain) != _memory(real):
                continue
            if _layout(other.plain) == _layout(real):
                other.number = number
            else:
                other.lost = place

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow in which module's forward a call stands; a CONV layer's forward is one call."""
        self.stack = [("the model itself", model)]
        inside: set[nn.Module] = set()
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if module in inside:
                    continue
                for handle in self._hooks(name or "the model itself", module):
                    stack.callback(handle.remove)
                if form_of(module) in ("native", "patch", "weight"):
                    inside |= set(module.modules())
                    stack.enter_context(self._as_one_call(module))
            stack.enter_context(_Beside(self, model))
            yield

    def _hooks(self, name: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self.stack.append((name, module))

        def leave(_: Any, __: Any, result: Any) -> None:
            # Without a result, it has failed.
            self.failed = self.failed or (name if result is None else "")
            self.stack.pop()

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    @contextmanager
    def _as_one_call(self, module: nn.Module) -> Iterator[None]:
        own, forward = vars(module).get("forward"), module.forward

        def whole(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and not kwargs and isinstance(args[0], _Noting):
                return self.call(LAYER, forward, args, kwargs)
            return forward(*args, **kwargs)

        vars(module)["forward"] = whole
        try:
            yield
        finally:
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.storage_offset()
