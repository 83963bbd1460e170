"""Changes of single calls in a model's forward, and making them in the model."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from convfc.errors import Refusal
from convfc.frameworks.torch.graph import dropouts_by_mode, graph_follows_mode
from convfc.frameworks.torch.held import exchange, held_fast
from convfc.frameworks.torch.parts import carry_over, is_hooked
from convfc.frameworks.torch.vocabulary import CONVS, NORMS, POOLS

__all__ = [
    "Edit",
    "Filters",
    "Keep",
    "Norm",
    "OverChannels",
    "Pool",
    "Value",
    "apply",
    "forward_obstacle",
]


class Value(NamedTuple):
    """A tensor ``(n, channels * prod(size))``, which becomes a map ``(n, channels, *size)``.

    ``order`` holds the map's axes (0 is the channels) in the order in which they are flattened.

    Examples
    --------
    >>> Value(8, (4, 4), (0, 1, 2)).is_single, Value.single(8, 2).is_single
    (False, True)
    """

    channels: int
    size: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def is_single(self) -> bool:
        """Whether the map has one position, so that a feature is a channel."""
        return math.prod(self.size) == 1

    @classmethod
    def single(cls, channels: int, ndim: int) -> Value:
        """Return a map of one position."""
        return cls(channels, (1,) * ndim, tuple(range(ndim + 1)))


class Edit(ABC):
    """A change of one call in a graph; equal edits of one module make one new module."""

    @abstractmethod
    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return what stands in the old module's place; ``memo`` is shared by all edits."""

    @abstractmethod
    def function(self, node: fx.Node) -> None:
        """Change a call of a function or a method, in its graph."""


@dataclass(frozen=True)
class Keep(Edit):
    """The call hands on what it gets: a flattening, or a pooling of windows of one element.

    Examples
    --------
    >>> Keep().module(nn.Flatten(), {})
    Identity()
    """

    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return an identity, which keeps the place and the names of the other parts."""
        return nn.Identity().train(old.training)

    def function(self, node: fx.Node) -> None:
        """Take the call out."""
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)


@dataclass(frozen=True)
class Filters(Edit):
    """An `nn.Linear` on a whole map ``(channels, *size)`` becomes the CONV layer of that kernel.

    Examples
    --------
    >>> Filters(Value(3, (5, 5), (0, 1, 2))).module(nn.Linear(75, 10), {})
    Conv2d(3, 10, kernel_size=(5, 5), stride=(1, 1))
    """

    value: Value

    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return the CONV layer: the same numbers, and the same bias."""
        weight: nn.Parameter = old.weight  # type: ignore[assignment]
        channels, size, _ = self.value
        cls: Any = CONVS[len(size)]
        conv: nn.Module = cls(channels, len(weight), size, bias=False, device="meta")
        carry_over(old, conv)
        del conv.in_features, conv.out_features
        key = (id(weight), self)
        if key not in memo:  # a weight that two layers share stays shared
            filters = nn.Parameter(self._fold(weight), requires_grad=weight.requires_grad)
            filters.grad = None if weight.grad is None else self._fold(weight.grad)
            memo[key] = filters
        conv.weight, conv.bias = memo[key], old.bias
        return conv

    def _fold(self, matrix: Tensor) -> Tensor:
        """Return an FC weight as filters; the same memory where it can be: heads are large."""
        channels, size, order = self.value
        sizes = (channels, *size)
        flattened = matrix.detach().reshape(len(matrix), *(sizes[axis] for axis in order))
        places = (1 + order.index(axis) for axis in range(len(sizes)))
        return flattened.permute(0, *places).contiguous()

    def function(self, node: fx.Node) -> None:
        """Never asked for: `find_heads` takes nn.Linear modules only."""
        raise NotImplementedError


@dataclass(frozen=True)
class Norm(Edit):
    """An `nn.BatchNorm1d` of features becomes the one of channels; same parameters and buffers.

    Examples
    --------
    >>> Norm(2).module(nn.BatchNorm1d(4), {})
    BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    ndim: int

    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return the layer for maps of that many axes."""
        key = (id(old), self)
        if key not in memo:
            memo[key] = NORMS[self.ndim](1, affine=False, track_running_stats=False)
            vars(memo[key]).update(vars(old))
        new: nn.Module = memo[key]
        return new

    def function(self, node: fx.Node) -> None:
        """Never asked for: functional batch norm is no part of a head."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pool(Edit):
    """An adaptive pooling becomes one whose windows have the size that they had on the example.

    Examples
    --------
    >>> Pool("avg", (7, 7), (1, 1)).module(nn.AdaptiveAvgPool2d(1), {})
    AvgPool2d(kernel_size=(7, 7), stride=(1, 1), padding=0)
    """

    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]

    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return the pooling."""
        cls, _ = POOLS[self.kind, len(self.kernel)]
        return cls(self.kernel, self.stride).train(old.training)

    def function(self, node: fx.Node) -> None:
        """Call the pooling as a function."""
        _, pool = POOLS[self.kind, len(self.kernel)]
        with node.graph.inserting_before(node):
            call = node.graph.call_function(
                pool, (node.all_input_nodes[0], self.kernel, self.stride)
            )
        node.replace_all_uses_with(call)
        node.graph.erase_node(node)


@dataclass(frozen=True)
class OverChannels(Edit):
    """An operation along the last axis of features runs along the channels.

    Examples
    --------
    >>> OverChannels().module(nn.Softmax(dim=-1), {})
    Softmax(dim=1)
    """

    def module(self, old: nn.Module, memo: dict[Any, Any]) -> nn.Module:
        """Return the same operation along axis 1."""
        new = copy.copy(old)
        new.dim = 1  # type: ignore[assignment]
        return new

    def function(self, node: fx.Node) -> None:
        """Change the axis."""
        if len(node.args) > 1:
            node.args = (node.args[0], 1, *node.args[2:])
        else:
            node.kwargs = {**node.kwargs, "dim": 1}


def forward_obstacle(
    model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit], *, inplace: bool
) -> Refusal | None:
    """Return why the edits cannot be made where forward itself has to change; None if they can.

    Parameters
    ----------
    model : nn.Module
    graph : fx.Graph
        Of `trace`.
    edits : mapping of fx.Node to Edit
    inplace : bool
        Whether the given object has to remain the model.

    Examples
    --------
    >>> import torch
    >>> from convfc.frameworks.torch.heads.tracing import trace
    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return x.flatten(1)
    >>> model = Net()
    >>> graph = trace(model, (torch.ones(2, 3, 4),))
    >>> edits = {node: Keep() for node in graph.find_nodes(op="call_method", target="flatten")}
    >>> forward_obstacle(model, graph, edits, inplace=True).reason
    'the forward of the model (Net) has to change, and in place it cannot'
    """
    everywhere, one_by_one = _places(model, graph, edits)
    held = held_fast(model, set(map(id, everywhere)), copied=not inplace)
    for name, blocked in held.items():
        return blocked._replace(reason=f"{name}, which has to change with it: {blocked.reason}")
    if not one_by_one:
        return None
    what = f"the forward of the model ({type(model).__name__}) has to change"
    instead = "let it call nn.Flatten and nn.AdaptiveAvgPool modules, and it can stay as it is"
    if inplace:
        return Refusal(
            f"{what}, and in place it cannot",
            f"take the model that is returned without inplace=True, or {instead}",
        )
    if not graph_follows_mode(graph):
        return Refusal(f"{what}, and it takes another way in training", instead)
    calls = [f"{node.target}." for node in graph.nodes if node.op == "call_module"]
    for name, module in model.named_modules():
        if is_hooked(module) and not f"{name}.".startswith(tuple(calls)):
            return Refusal(
                f"{what}, and hooks on {name or 'it'} would not be called any more",
                f"remove the hooks, or {instead}",
            )
    return None


def apply(model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit]) -> nn.Module:
    """Return the model with edited calls.

    Where only calls of modules change, the model keeps its class, and the modules are replaced in
    it. Where forward itself has to change, the result is a `torch.fx.GraphModule` with the parts,
    parameters and names of the model.

    Parameters
    ----------
    model : nn.Module
        It is changed.
    graph : fx.Graph
        Of `trace`; it is changed.
    edits : mapping of fx.Node to Edit

    Examples
    --------
    >>> import torch
    >>> from convfc.frameworks.torch.heads.tracing import trace
    >>> model = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())
    >>> graph = trace(model, (torch.ones(2, 3, 4),))
    >>> _, pool, flatten, _ = graph.nodes
    >>> edited = apply(model, graph, {pool: Pool("avg", (4,), (1,)), flatten: Keep()})
    >>> edited(torch.ones(2, 3, 6)).shape
    torch.Size([2, 3, 3])
    """
    everywhere, one_by_one = _places(model, graph, edits)
    memo: dict[Any, Any] = {}
    for node, edit in one_by_one.items():
        if node.op == "call_module":
            new = edit.module(model.get_submodule(str(node.target)), memo)
            node.target = _add(model, node.name, new)
        else:
            edit.function(node)
    model = exchange(
        model, {id(module): edit.module(module, memo) for module, edit in everywhere.items()}
    )
    return _graph_module(model, graph) if one_by_one else model


def _places(
    model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit]
) -> tuple[dict[nn.Module, Edit], dict[fx.Node, Edit]]:
    """Return which modules change wherever they are called, and which calls change otherwise."""
    wanted: dict[nn.Module, set[Edit | None]] = {}
    callee = {
        node: model.get_submodule(str(node.target))
        for node in graph.nodes
        if node.op == "call_module"
    }
    for node, module in callee.items():
        wanted.setdefault(module, set()).add(edits.get(node))
    everywhere = {
        module: edit
        for module, chosen in wanted.items()
        for edit in chosen
        if len(chosen) == 1 and edit is not None
    }
    rest = {node: edit for node, edit in edits.items() if callee.get(node) not in everywhere}
    return everywhere, rest


def _graph_module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return the model that runs the graph, with all parts of the old one under their names."""
    for node, dropout in dropouts_by_mode(graph).items():
        name = _add(model, node.name, dropout.train(model.training))
        with graph.inserting_before(node):
            call = graph.call_module(name, tuple(node.all_input_nodes))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.lint()
    result = fx.GraphModule(model, graph, type(model).__name__)
    # It copies what its forward names, one by one; the model's own parts keep containers as well.
    for kept in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(result, kept, vars(model)[kept])
    return result


def _add(model: nn.Module, wanted: str, part: nn.Module) -> str:
    """Give the model one more part, under a name that it does not have yet; return the name."""
    name = next(name for number in count() if not hasattr(model, name := f"{wanted}{'_' * number}"))
    model.add_module(name, part)
    return name
