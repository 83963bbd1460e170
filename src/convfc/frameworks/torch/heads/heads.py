"""Fully connected heads as CONV layers: a network for one image size runs on every larger one.

An `nn.Linear` on a flattened feature map ``(n, c, *size)`` computes, for each of its outputs, the
inner product of the whole map with one row of its weight. That is a CONV layer whose kernel is as
large as the map, and the `nn.Linear` layers behind it are 1x1 CONV layers (Stanford CS231n,
*Convolutional Networks*, "Converting FC layers to CONV layers"; Ma & Lu 2017 go the other way). On
a larger image the converted network gives a map of scores: in one pass what the first network gives
on every crop of a sliding window.

That holds at every position for networks without padding only: in one with padding (or pooling in
``ceil_mode``), a crop has zeros at its border where the whole image has a neighbourhood. What takes
in a whole map anywhere else than before the head (squeeze and excitation) takes in the larger one.

Adaptive pooling before the head gets windows of the size that they have on the example, one
position apart where it pools the whole map, else side by side. A model in which only modules change
keeps its class; where forward itself flattens or pools, the result is a `torch.fx.GraphModule` with
the same parts and names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn

from convfc.errors import Refusal
from convfc.frameworks.torch.factors import linear_obstacle
from convfc.frameworks.torch.graph import shape_of, trace
from convfc.frameworks.torch.heads.calls import (
    asks_batch,
    axis_of,
    reduced_axes,
    reordered_axes,
    source_of,
)
from convfc.frameworks.torch.heads.edits import (
    Edit,
    Filters,
    Keep,
    Norm,
    OverChannels,
    Pool,
    Value,
    apply,
    forward_obstacle,
)
from convfc.frameworks.torch.parts import is_hooked
from convfc.frameworks.torch.vocabulary import (
    ADAPTIVE,
    CONCATENATIONS,
    POINTWISE,
    POINTWISE_FUNCTIONS,
    REDUCTIONS,
    RESHAPES,
    SOFTMAXES,
)

__all__ = ["Heads", "find_heads"]

NO_MAP = Refusal(
    "on the example it is not called on a flattened feature map (n, c, *size), nor behind one",
    "select the layers of the head with where=",
)
LEAVE_OUT = "leave the layers of this head out with where="


@dataclass(eq=False)
class Head:
    """Calls that belong together: what is behind one flattened map, or several that join."""

    edits: dict[fx.Node, Edit] = field(default_factory=dict)
    linears: dict[nn.Module, str] = field(default_factory=dict)
    obstacle: Refusal | None = None


class Heads(NamedTuple):
    """What `find_heads` found: the layers by name, and the changes that convert them."""

    converted: list[str]
    refused: dict[str, Refusal]
    graph: fx.Graph | None
    edits: dict[fx.Node, Edit]

    def convert(self, model: nn.Module) -> nn.Module:
        """Return the model (which is changed) with its heads as CONV layers."""
        return model if self.graph is None else apply(model, self.graph, self.edits)


def find_heads(
    model: nn.Module,
    example: tuple[Any, ...],
    selected: Mapping[nn.Module, str],
    *,
    inplace: bool = False,
) -> Heads:
    """Find the `nn.Linear` layers that are CONV layers over a feature map.

    Parameters
    ----------
    model : nn.Module
        It is run once, and not changed.
    example : tuple
        The arguments of one call, in batches: the sizes that the model is made for.
    selected : mapping of nn.Module to str
        The `nn.Linear` layers to convert, and their names.
    inplace : bool
        Whether the given object has to remain the model.

    Returns
    -------
    Heads
        With a reason for every selected layer that cannot be converted. Layers behind the same
        flattened map are converted together or not at all.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    >>> heads = find_heads(model, (torch.ones(1, 3, 8, 8),), {model[2]: "2"})
    >>> heads.convert(model)(torch.ones(1, 3, 16, 16)).shape
    torch.Size([1, 10, 9, 9])
    """
    own = {name: linear_obstacle(module) for module, name in selected.items()}
    graph = trace(model, example)
    if isinstance(graph, Refusal):
        return Heads([], {name: own[name] or graph for name in own}, None, {})
    heads = _Walk(model, graph, selected).heads_found()
    edits = {node: edit for head in heads if not head.obstacle for node, edit in head.edits.items()}
    whole = forward_obstacle(model, graph, edits, inplace=inplace)
    if whole is not None:
        edits = {}
    reasons = {name: head.obstacle or whole for head in heads for name in head.linears.values()}
    reasons = {name: own[name] or reasons.get(name, NO_MAP) for name in own}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    return Heads([name for name in own if name not in refused], refused, graph, edits)


class _Walk:
    """One pass over a graph, from its inputs on, following flattened maps."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, selected: Mapping[nn.Module, str]
    ) -> None:
        self.model, self.graph, self.selected = model, graph, selected
        self.values: dict[fx.Node, Value] = {}
        self.heads: dict[fx.Node, Head] = {}
        for node in graph.nodes:
            inside = [source for source in node.all_input_nodes if source in self.values]
            if not inside:
                self._begin(node)
            elif node.op != "output" and not asks_batch(node):
                self._continue(node, inside)
            if node not in self.heads:
                self._note_behind(node)

    def heads_found(self) -> list[Head]:
        """Return the heads with selected layers, after a look at what they share with others."""
        heads = [
            head
            for head in dict.fromkeys(self.heads.values())
            if self.selected.keys() & head.linears.keys()
        ]
        settled = False
        while not settled:  # a head that stays as it is may hold another one back
            edits = {
                node: edit
                for head in heads
                if not head.obstacle
                for node, edit in head.edits.items()
            }
            settled = True
            for head in heads:
                if not head.obstacle:
                    head.obstacle = self._shared(head, edits)
                    settled = settled and not head.obstacle
        return heads

    def _begin(self, node: fx.Node) -> None:
        """Start a head where a feature map loses its spatial axes."""
        kind, source = self._kind(node), source_of(node)
        before, after = shape_of(source), shape_of(node)
        if source is None or before is None or after is None or not 3 <= len(before) <= 5:
            return
        if after[0] != before[0] or len(after) >= len(before):
            return
        head = Head(obstacle=self._hooks(node))
        if kind in RESHAPES:
            edit: Edit | Refusal | None = Keep()
            source, order = self._unpermuted(node, source, head)
            _, channels, *size = shape_of(source) or before
            value = Value(channels, tuple(size), order)
        else:
            edit = self._pool(node) if kind in REDUCTIONS else None
            value = Value.single(before[1], len(before) - 2)
        if isinstance(edit, Edit):
            head.edits[node] = edit
            self._fix_pools(source, head)
            single = Value.single(value.channels, len(value.size))
            self.values[node] = single if value.is_single else value
            self.heads[node] = head

    def _unpermuted(
        self, node: fx.Node, source: fx.Node, head: Head
    ) -> tuple[fx.Node, tuple[int, ...]]:
        """Return the map itself where a flattening is of a permuted one, and the axes' order."""
        order = tuple(range(len(shape_of(source) or ())))
        while True:
            axes = reordered_axes(source, len(order))
            earlier = source_of(source)
            if axes is None or axes[0] != 0 or earlier is None:
                return source, tuple(axis - 1 for axis in order[1:])
            if not all(user is node or asks_batch(user) for user in source.users):
                head.obstacle = Refusal(f"{self._name(source)} is used elsewhere too", LEAVE_OUT)
            head.edits[source] = Keep()
            order = tuple(axes[axis] for axis in order)
            node, source = source, earlier

    def _note_behind(self, node: fx.Node) -> None:
        """Count what is behind the end of a head, where an obstacle stands, as part of it."""
        heads = [self.heads[source] for source in node.all_input_nodes if source in self.heads]
        blocked = [head for head in heads if head.obstacle]
        if blocked and node.op != "output":
            self.heads[node] = blocked[0]
            module = self._module(node)
            if isinstance(module, nn.Linear):
                blocked[0].linears.setdefault(module, self._name(node))

    def _fix_pools(self, node: fx.Node, head: Head) -> None:
        """Give the adaptive poolings before a head fixed windows, as far as one way leads there."""
        while True:
            edit = self._pool(node)
            if isinstance(edit, Refusal):
                head.obstacle = edit
            elif edit is not None:
                head.edits[node] = edit
            sources = [source for source in node.all_input_nodes if shape_of(source) is not None]
            if len(sources) != 1:
                return
            (node,) = sources

    def _pool(  # noqa: PLR0911 (a reason each)
        self, node: fx.Node
    ) -> Edit | Refusal | None:
        """Return what an adaptive pooling becomes; None of anything else."""
        kind, before = self._kind(node), shape_of(source_of(node))
        if kind not in ADAPTIVE or before is None:
            return None
        size, after = before[2:], shape_of(node)
        if kind in REDUCTIONS:
            spatial = set(range(2, len(before)))
            if reduced_axes(node, len(before)) != spatial or node.kwargs.get("dtype"):
                return None
            pooled: tuple[int, ...] = (1,) * len(size)
        elif after is None:
            return Refusal(f"{self._name(node)} returns indices too", LEAVE_OUT)
        else:
            pooled = after[2:]
        hooks = self._hooks(node)
        if hooks is not None:
            return hooks
        if any(n % m for n, m in zip(size, pooled, strict=True)):
            return Refusal(
                f"{self._name(node)} pools a map of {size} into {pooled}, with windows of unequal "
                "sizes",
                f"give an example whose map there is a multiple of {pooled}, or {LEAVE_OUT}",
            )
        kernel = tuple(n // m for n, m in zip(size, pooled, strict=True))
        if math.prod(kernel) == 1 and kind not in REDUCTIONS:
            return Keep()
        # A pooling of the whole map slides by one position, as the layer behind it does.
        stride = tuple(1 if m == 1 else k for k, m in zip(kernel, pooled, strict=True))
        return Pool(ADAPTIVE[kind], kernel, stride)

    def _continue(self, node: fx.Node, inside: list[fx.Node]) -> None:
        """Follow one call on values of a head."""
        first, *others = dict.fromkeys(self.heads[source] for source in inside)
        for other in others:  # the heads join
            first.edits |= other.edits
            first.linears |= other.linears
            first.obstacle = first.obstacle or other.obstacle
            self.heads |= {n: first for n, head in self.heads.items() if head is other}
        step = self._step(node, inside, first)
        if isinstance(step, Refusal):
            first.obstacle = first.obstacle or step
            return
        value, edit = step
        self.values[node], self.heads[node] = value, first
        if edit is not None:
            first.edits[node] = edit

    def _step(  # noqa: PLR0911 (one per kind of call)
        self, node: fx.Node, inside: list[fx.Node], head: Head
    ) -> tuple[Value, Edit | None] | Refusal:
        """Return what a call gives when its inputs are maps, and the change that it needs."""
        kind, module = self._kind(node), self._module(node)
        values = [self.values[source] for source in inside]
        value, after = values[0], shape_of(node)
        if isinstance(module, nn.Linear):
            head.linears[module] = self._name(node)
        hooks = None if kind in POINTWISE else self._hooks(node)
        if hooks is not None:
            return hooks
        if kind in RESHAPES and (after or ())[:1] == (shape_of(inside[0]) or ())[:1]:
            return value, Keep()
        features = all(len(shape_of(source) or ()) == 2 for source in inside)
        if features and isinstance(module, nn.Linear):
            if module not in self.selected:
                return Refusal(
                    f"where= leaves out {self._name(node)}, which is in the same head",
                    "select both or neither",
                )
            blocked = linear_obstacle(module)
            if blocked is not None:
                reason = f"{self._name(node)} is in the same head, and {blocked.reason}"
                return Refusal(reason, blocked.remedy)
            return Value.single(module.out_features, len(value.size)), Filters(value)
        if features and self._is_pointwise(node, values):
            return value, None
        single = features and all(v.is_single and len(v.size) == len(value.size) for v in values)
        if single and kind is nn.PReLU:
            return value, None
        if single and kind is nn.BatchNorm1d:
            return value, Norm(len(value.size))
        axis = axis_of(node, module)
        if single and kind in SOFTMAXES and axis in (1, -1):
            return value, None if axis == 1 else OverChannels()
        if single and kind in CONCATENATIONS and axis in (1, -1):
            parts: Any = node.args[0]
            if all(part in self.values for part in parts):
                channels = sum(self.values[part].channels for part in parts)
                return Value.single(
                    channels, len(value.size)
                ), None if axis == 1 else OverChannels()
        return Refusal(
            f"{self._name(node)} in the same head does not do the same at every position of a map",
            LEAVE_OUT,
        )

    def _is_pointwise(self, node: fx.Node, values: list[Value]) -> bool:
        """Say whether a call does the same to every element, of one value or of equal ones."""
        kind, module = self._kind(node), self._module(node)
        if kind is nn.PReLU:
            return bool(module.num_parameters == 1)  # type: ignore[union-attr]
        if kind not in POINTWISE and kind not in POINTWISE_FUNCTIONS:
            return False
        outside = [shape_of(n) for n in node.all_input_nodes if n not in self.values]
        return len(set(values)) == 1 and all(shape in (None, ()) for shape in outside)

    def _shared(self, head: Head, edits: Mapping[fx.Node, Edit]) -> Refusal | None:
        """Return what keeps a head from being converted because something else uses its layers."""
        calls: dict[nn.Module, set[Edit | None]] = {}
        for node in self.graph.nodes:
            module = self._module(node)
            if module is not None:
                calls.setdefault(module, set()).add(edits.get(node))
            elif node.op == "get_attr":
                owner, _, _ = str(node.target).rpartition(".")
                if self.model.get_submodule(owner) in head.linears:
                    return Refusal(f"forward uses {node.target} without a call", LEAVE_OUT)
        for module, name in head.linears.items():
            same = calls[module]
            if len(same) > 1:
                return Refusal(f"{name} is called on something else too", LEAVE_OUT)
            for place, other in self.model.named_modules():
                shares = any(part is module.weight for part in other._parameters.values())
                if shares and calls.get(other) != same:
                    return Refusal(
                        f"the weight of {name} is that of {place} too, which stays as it is",
                        LEAVE_OUT,
                    )
        return None

    def _hooks(self, node: fx.Node) -> Refusal | None:
        """Return that hooks stand on the module of a call: they would get other shapes."""
        module = self._module(node)
        if module is None or not is_hooked(module):
            return None
        return Refusal(f"hooks stand on {self._name(node)}", "remove the hooks (handle.remove())")

    def _kind(self, node: fx.Node) -> Any:
        """Return what is called: the type of a module, a function, the name of a method."""
        module = self._module(node)
        if module is not None:
            return None if "forward" in vars(module) else type(module)
        return node.target if node.op in ("call_function", "call_method") else None

    def _module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _name(self, node: fx.Node) -> str:
        """Return what to call a node in a message."""
        module = self._module(node)
        if module is None:
            return f"the call of {getattr(node.target, '__name__', node.target)}"
        if isinstance(module, nn.Linear):
            return self.selected.get(module, str(node.target))
        return f"{node.target} ({type(module).__name__})"
