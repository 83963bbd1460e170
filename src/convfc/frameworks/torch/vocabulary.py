"""PyTorch's operations: one entry each, with its kind and all its spellings.

A ReLU is written as ``nn.ReLU()(x)``, ``F.relu(x)``, ``torch.relu(x)``, ``x.relu()``, or in place.
Here all of these are one `Operation`. What a tool does with operations, it registers under their
names or their kinds, in a function made with `by_operation`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import get_signature_for_torch_op, normalize_function
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
BY_MODE = (_BatchNorm, _DropoutNd, nn.RReLU)
"""Modules that compute something else in training."""
QUESTIONS = frozenset(
    ["size", "dim", "ndimension", "numel", "stride", "is_contiguous", "get_device"]
)
"""Methods that answer without looking at the numbers."""
POINTWISE = ("activation", "function", "arithmetic", "dropout of elements", "copying", "casting")
"""Kinds that do the same to every element alone, whatever the shape."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: types of modules, functions, and names of methods that all compute it."""

    name: str
    kind: str
    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...]
    axes: int  # on how many last axes a pooling or a padding works; 0 if that is not fixed


OPERATIONS: dict[str, Operation] = {}
_BY_SPELLING: dict[Any, Operation] = {}


def _entry(kind: str, names: str, *others: Any, axes: int = 0) -> None:
    """Enter an operation: what has one of its names in PyTorch, in place too, and others."""
    every = names.split()
    ending = ("", "_") if kind in POINTWISE else ("",)
    spelled = [f"{name}{end}" for name in every for end in ending]
    found = [getattr(home, name, None) for name in spelled for home in (functional, torch)]
    functions = dict.fromkeys(one for one in (*found, *others) if callable(one))
    modules = tuple(one for one in others if isinstance(one, type))
    for one in (*modules, torch.adaptive_max_pool1d):  # the latter returns two tensors
        functions.pop(one, None)
    methods = tuple(name for name in spelled if callable(getattr(Tensor, name, None)))
    entry = OPERATIONS[every[0]] = Operation(
        every[0], kind, modules, tuple(functions), methods, axes
    )
    _BY_SPELLING.update(dict.fromkeys([*modules, *functions, *methods], entry))


_module: type[nn.Module]
for _module in (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Mish),
    *(nn.LogSigmoid, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus),
    *(nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
):
    _entry("activation", _module.__name__.lower(), _module)
_entry("activation", "leaky_relu", nn.LeakyReLU)
_entry("activation per channel", "prelu", nn.PReLU)
for _name in ["exp", "log", "sqrt", "rsqrt", "square", "erf", "sin", "cos", "maximum", "minimum"]:
    _entry("function", _name)
_entry("function", "abs", operator.abs)
_entry("function", "clamp clip")
_entry("function", "pow", operator.pow, operator.ipow)
_entry("arithmetic", "add", operator.add, operator.iadd)
_entry("arithmetic", "sub subtract", operator.sub, operator.isub)
_entry("arithmetic", "mul multiply", operator.mul, operator.imul)
_entry("arithmetic", "div divide true_divide", operator.truediv, operator.itruediv)
_entry("arithmetic", "neg negative", operator.neg)
_entry("copying", "clone", nn.Identity)
_entry("copying", "detach")
_entry("copying", "contiguous")
for _name in ["to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"]:
    _entry("casting", _name)
_entry("dropout of elements", "dropout", nn.Dropout)
_entry("dropout of elements", "alpha_dropout", nn.AlphaDropout)
for _module in (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
    _entry("dropout of channels", _module.__name__.lower(), _module)
_entry("dropout of channels", "feature_alpha_dropout", nn.FeatureAlphaDropout)
_entry("distribution", "softmax", nn.Softmax)
_entry("distribution", "log_softmax", nn.LogSoftmax)
_entry("concatenation", "cat concat concatenate")
for _name in ["mean", "sum", "amax", "amin"]:
    _entry("reduction", _name)
_entry("reshaping", "flatten", nn.Flatten)
_entry("reshaping", "reshape view")
_entry("reshaping", "squeeze")
_entry("unflattening", "unflatten", nn.Unflatten)
_entry("unflattening", "unsqueeze")
_entry("expansion", "expand")
_entry("expansion", "expand_as")
_entry("permutation", "permute")
_entry("permutation", "transpose")
_entry("indexing", "getitem", operator.getitem)
_entry("resizing", "interpolate upsample", nn.Upsample)
_entry("resizing", "upsample_nearest", nn.UpsamplingNearest2d)
_entry("resizing", "upsample_bilinear", nn.UpsamplingBilinear2d)
_entry("normalisation", "group_norm", nn.GroupNorm)
_entry("normalisation", "layer_norm", nn.LayerNorm)
_entry("normalisation", "local_response_norm", nn.LocalResponseNorm)
_entry("normalisation", "cross_map_lrn", nn.CrossMapLRN2d)
_entry("normalisation", "rms_norm", nn.RMSNorm)
_entry("normalisation", "normalize")
_entry("padding", "pad")
for _n in (1, 2, 3):
    for _name in ("Avg", "Max", "LP"):
        _entry("pooling", f"{_name}_pool{_n}d".lower(), getattr(nn, f"{_name}Pool{_n}d"), axes=_n)
    for _name in ("Avg", "Max"):
        _function = f"adaptive_{_name.lower()}_pool{_n}d"
        _entry("adaptive pooling", _function, getattr(nn, f"Adaptive{_name}Pool{_n}d"), axes=_n)
    for _name in ("Zero", "Constant", "Reflection", "Replication", "Circular"):
        _entry("padding", f"{_name}_pad{_n}d".lower(), getattr(nn, f"{_name}Pad{_n}d"), axes=_n)


def operation_of(what: Any) -> Operation | None:
    """Return the operation of a module, its type, a function or the name of a method, if known."""
    if isinstance(what, nn.Module):
        return None if "forward" in vars(what) else _BY_SPELLING.get(type(what))
    return _BY_SPELLING.get(what)


def is_pointwise(what: Any) -> bool:
    """Say whether a module, a function or a method does the same to every element alone."""
    operation = operation_of(what)
    return operation is not None and operation.kind in POINTWISE


@dataclass(frozen=True, eq=False)
class Call:
    """A node of a graph as an operation and its arguments by name, however it is spelled."""

    node: fx.Node
    module: nn.Module | None
    operation: Operation | None

    @classmethod
    def of(cls, node: fx.Node, model: nn.Module) -> Call:
        """Read a node of a model's graph."""
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            return cls(node, module, operation_of(module))
        called = node.op in ("call_function", "call_method")
        return cls(node, None, operation_of(node.target) if called else None)

    @property
    def name(self) -> str:
        """The operation's name; empty without one."""
        return "" if self.operation is None else self.operation.name

    @property
    def kind(self) -> str:
        """The operation's kind; empty without one."""
        return "" if self.operation is None else self.operation.kind

    @property
    def source(self) -> fx.Node | None:
        """The first argument, if it is a value of the graph."""
        first = self.node.args[0] if self.node.args else self.node.kwargs.get("input")
        return first if isinstance(first, fx.Node) else None

    def __getitem__(self, name: str) -> Any:
        """Return an argument, or an attribute of the module; None if there is none."""
        if self.module is not None:
            return getattr(self.module, name, None)
        return self.arguments.get(name)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What a function, or a method that is one, is given: by name, with the defaults."""
        if self.operation is None or self.module is not None:
            return {}
        node = self.node
        function: Any = node.target
        if node.op == "call_method" or function in vars(operator).values():
            function = next(iter(self.operation.functions), None)
        if not callable(function):
            return dict(node.kwargs)
        # x.view(2, 3) is the same as x.view((2, 3)).
        for args in (node.args, (*node.args[:1], node.args[1:])):
            with suppress(RuntimeError):  # overloads which fx cannot tell apart
                found = normalize_function(
                    function, args, node.kwargs, normalize_to_only_use_kwargs=True
                )
                if found is not None:
                    return found.kwargs
            for signature in get_signature_for_torch_op(function) or ():
                with suppress(TypeError):  # they give the same names to their arguments
                    bound = signature.bind(*args, **node.kwargs)
                    bound.apply_defaults()
                    return dict(bound.arguments)
        return dict(node.kwargs)

    def as_module(self) -> nn.Module | None:
        """Return a new module that does the same as a function or method; None if there is none."""
        if self.operation is None or not self.operation.modules:
            return None
        module: Any = self.operation.modules[0]
        wanted = inspect.signature(module).parameters
        given = {name: one for name, one in self.arguments.items() if name in wanted}
        made: nn.Module = module(**given)
        return made

    def axes(self, ndim: int) -> set[int]:
        """Return the axes that ``dim`` names, of a tensor with so many axes."""
        dims = self["dim"]
        dims = dims if isinstance(dims, (tuple, list)) else (dims,)
        return {dim % ndim for dim in dims if isinstance(dim, int)}

    def order(self, ndim: int) -> tuple[int, ...] | None:
        """Return, for each axis of a permuted tensor, the axis that it was; None of other calls."""
        axes = list(range(ndim))
        if self.name == "permute":
            axes = [axes[dim] for dim in self["dims"]]
        elif self.name == "transpose":
            one, other = self["dim0"], self["dim1"]
            axes[one], axes[other] = axes[other], axes[one]
        elif self.name != "contiguous":
            return None
        return tuple(axes)


Result = TypeVar("Result")


class by_operation(Generic[Result]):  # noqa: N801 (a decorator)
    """A function whose first argument, a call or a module, chooses by name, or by kind."""

    def __init__(self, default: Callable[..., Result]) -> None:
        self.default = default
        self.rules: dict[str, Callable[..., Result]] = {}

    def register(self, *names: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
        """Say what is done with the operations of these names or kinds."""
        known = OPERATIONS.keys() | {operation.kind for operation in OPERATIONS.values()}
        if unknown := set(names) - known:
            raise KeyError(f"there is no operation or kind {', '.join(sorted(unknown))}")

        def enter(rule: Callable[..., Result]) -> Callable[..., Result]:
            self.rules.update(dict.fromkeys(names, rule))
            return rule

        return enter

    def __call__(self, what: Any, *args: Any, **kwargs: Any) -> Result:
        """Do what is registered for the operation."""
        operation = what.operation if isinstance(what, Call) else operation_of(what)
        rule = None
        if operation is not None:
            rule = self.rules.get(operation.name, self.rules.get(operation.kind))
        return (rule or self.default)(what, *args, **kwargs)
