"""Fully connected heads as CONV layers: a network for one image size runs on every larger one.

An `nn.Linear` on a flattened feature map ``(n, c, *size)`` is a CONV layer whose kernel is as large
as the map, and the `nn.Linear` layers after it are 1x1 CONV layers (Stanford CS231n, *Convolutional
Networks*, "Converting FC layers to CONV layers"). Adaptive pooling before the head gets windows of
the size that they have on the example, one position apart where it pools the whole map, else side
by side. Where forward itself flattens or pools, the result is a `torch.fx.GraphModule`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from convfc.errors import Refusal, UnsupportedLayer
from convfc.frameworks.torch.forms.children import is_hooked, move_attributes
from convfc.frameworks.torch.forms.factors import linear_obstacle
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.graph import (
    asks_batch,
    dropouts_by_mode,
    graph_follows_mode,
    shape_of,
    trace,
)
from convfc.frameworks.torch.places import copy_of, places
from convfc.frameworks.torch.references import blocked_references, exchange
from convfc.frameworks.torch.running import positional_arguments
from convfc.frameworks.torch.vocabulary import (
    CONVS,
    NORMS,
    OPERATIONS,
    POINTWISE,
    Call,
    by_operation,
)
from convfc.mlp.simplified import record_of
from convfc.places import Where, nothing_to_convert, refuse_or_list, refused, selector


@torch.inference_mode(mode=False)  # what is made here is to be trained
def to_fully_convolutional(
    model: nn.Module,
    example: Any,
    *,
    where: Where = None,
    strict: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Return the model with its head as CONV layers; see `convfc.to_fully_convolutional`."""
    everything = places(model)
    forms = {name: form_of(part) for name, part in everything.items()}
    fixed = next((name for name, form in forms.items() if form == "unrolled"), None)
    if fixed is not None or record_of(model) is not None:
        raise UnsupportedLayer(
            "unrolled layers take inputs of one size only",
            where=fixed or "model",
            remedy="take the model back first, with convfc.to_conv",
        )
    chosen = selector(where)
    inside = tuple(f"{name}." if name else "" for name, form in forms.items() if form == "patch")
    linears = {
        name: part
        for name, part in everything.items()
        if isinstance(part, nn.Linear) and not (inside and name.startswith(inside))
    }
    selected = {name: part for name, part in linears.items() if chosen(name, part)}
    if not selected:
        raise nothing_to_convert("nn.Linear layer", where, linears)
    arguments = positional_arguments(model, example)
    names: dict[nn.Module, str] = {}
    for name, layer in selected.items():
        names.setdefault(layer, name)
    graph, edits, refused = _edits_and_refusals(model, arguments, names, inplace=inplace)
    refuse_or_list(refused, "cannot become a CONV layer", strict=strict)
    model = model if inplace else copy_of(model, (), {})
    return model if graph is None else _edited(model, graph, edits)


NO_MAP = Refusal(
    "on the example it is not called on a flattened feature map (n, c, *size), nor after one",
    "select the layers of the head with where=",
)
LEAVE_OUT = "leave the layers of this head out with where="


class Value(NamedTuple):
    """A tensor ``(n, channels * prod(size))``, which becomes a map ``(n, channels, *size)``."""

    channels: int
    size: tuple[int, ...]
    order: tuple[int, ...]  # of the map's axes, where 0 is the channels, when they are flattened

    @property
    def is_single(self) -> bool:
        """Whether the map has one position, so that a feature is a channel."""
        return math.prod(self.size) == 1

    @classmethod
    def single(cls, channels: int, ndim: int) -> Value:
        """Return a map of one position."""
        return cls(channels, (1,) * ndim, tuple(range(ndim + 1)))


# Changes of single calls. Equal changes of one module make one new module.


@dataclass(frozen=True)
class Keep:
    """The call becomes the identity: a flattening, or a pooling of windows of one element."""


@dataclass(frozen=True)
class Filters:
    """An `nn.Linear` on a whole map becomes the CONV layer whose kernel is as large."""

    value: Value


@dataclass(frozen=True)
class Norm:
    """An `nn.BatchNorm1d` of features becomes the one of channels, for maps of so many axes."""

    ndim: int


@dataclass(frozen=True)
class Pool:
    """An adaptive pooling becomes one whose windows have the size that they had on the example."""

    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OverChannels:
    """An operation along the last axis of features runs along the channels."""


Edit: TypeAlias = Keep | Filters | Norm | Pool | OverChannels


@dataclass(eq=False)
class Head:
    """Calls that are converted together: all after one flattened map, or several that join."""

    edits: dict[fx.Node, Edit] = field(default_factory=dict)
    linears: dict[nn.Module, str] = field(default_factory=dict)
    obstacle: Refusal | None = None


def _edits_and_refusals(
    model: nn.Module,
    example: tuple[Any, ...],
    selected: Mapping[nn.Module, str],
    *,
    inplace: bool,
) -> tuple[fx.Graph | None, dict[fx.Node, Edit], dict[str, Refusal]]:
    """Return the graph of the model, its changes, and why other selected layers stay, by name."""
    own = {name: linear_obstacle(module) for module, name in selected.items()}
    graph = trace(model, example)
    if isinstance(graph, Refusal):
        return None, {}, {name: own[name] or graph for name in own}
    heads = _Walk(model, graph, selected).heads_found()
    edits = _edits_of(heads)
    whole = _forward_obstacle(model, graph, edits, inplace=inplace)
    if whole is not None:
        edits = {}
    reasons = {name: head.obstacle or whole for head in heads for name in head.linears.values()}
    reasons = {name: own[name] or reasons.get(name, NO_MAP) for name in own}
    return graph, edits, refused(reasons)


def _edits_of(heads: list[Head]) -> dict[fx.Node, Edit]:
    """Return the changes of all heads that can be converted."""
    return {n: edit for head in heads if not head.obstacle for n, edit in head.edits.items()}


class _Walk:
    """One pass over a graph, from its inputs on, following flattened maps."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, selected: Mapping[nn.Module, str]
    ) -> None:
        self.model, self.selected = model, selected
        self.calls = {node: Call.of(node, model) for node in graph.nodes}
        self.values: dict[fx.Node, Value] = {}
        self.heads: dict[fx.Node, Head] = {}
        for node, call in self.calls.items():
            inside = [source for source in node.all_input_nodes if source in self.values]
            if not inside:
                self._begin(call)
            elif node.op != "output" and not asks_batch(node):
                self._continue(call, inside)
            if node not in self.heads:
                self._note_after_end(call)

    def heads_found(self) -> list[Head]:
        """Return the heads with selected layers, after a look at what they share with others."""
        every = dict.fromkeys(self.heads.values())
        heads = [head for head in every if self.selected.keys() & head.linears.keys()]
        settled = False
        while not settled:  # a head that stays as it is may hold another one back
            edits = _edits_of(heads)
            settled = True
            for head in heads:
                if not head.obstacle:
                    head.obstacle = self._shared(head, edits)
                    settled = settled and not head.obstacle
        return heads

    def _begin(self, call: Call) -> None:
        """Start a head where a feature map loses its spatial axes."""
        node, source = call.node, call.source
        before, after = shape_of(source), shape_of(node)
        if source is None or before is None or after is None or not 3 <= len(before) <= 5:
            return
        if after[0] != before[0] or len(after) >= len(before):
            return
        head = Head(obstacle=self._hooks(call))
        if call.kind == "reshaping":
            edit: Edit | Refusal | None = Keep()
            source, order = self._unpermuted(node, source, head)
            _, channels, *size = shape_of(source) or before
            value = Value(channels, tuple(size), order)
        else:
            edit = self._pool(call) if call.kind == "reduction" else None
            value = Value.single(before[1], len(before) - 2)
        if edit is not None and not isinstance(edit, Refusal):
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
            call = self.calls[source]
            axes, earlier = call.order(len(order)), call.source
            if axes is None or axes[0] != 0 or earlier is None:
                return source, tuple(axis - 1 for axis in order[1:])
            if not all(user is node or asks_batch(user) for user in source.users):
                head.obstacle = Refusal(f"{self.name(call)} is used elsewhere too", LEAVE_OUT)
            head.edits[source] = Keep()
            order = tuple(axes[axis] for axis in order)
            node, source = source, earlier

    def _note_after_end(self, call: Call) -> None:
        """Count the layers after a call that stops a head as part of it."""
        heads = [self.heads[one] for one in call.node.all_input_nodes if one in self.heads]
        blocked = [head for head in heads if head.obstacle]
        if blocked and call.node.op != "output":
            self.heads[call.node] = blocked[0]
            if isinstance(call.module, nn.Linear):
                blocked[0].linears.setdefault(call.module, self.name(call))

    def _fix_pools(self, node: fx.Node, head: Head) -> None:
        """Give the adaptive poolings before a head fixed windows, as far as one way leads there."""
        while True:
            edit = self._pool(self.calls[node])
            if isinstance(edit, Refusal):
                head.obstacle = edit
            elif edit is not None:
                head.edits[node] = edit
            sources = [source for source in node.all_input_nodes if shape_of(source) is not None]
            if len(sources) != 1:
                return
            (node,) = sources

    def _pool(  # noqa: PLR0911 (a reason each)
        self, call: Call
    ) -> Edit | Refusal | None:
        """Return what an adaptive pooling becomes; None of anything else."""
        before, after = shape_of(call.source), shape_of(call.node)
        reduced = call.name in ("mean", "amax")
        if not (reduced or call.kind == "adaptive pooling") or before is None:
            return None
        size = before[2:]
        if reduced:
            if call.axes(len(before)) != set(range(2, len(before))) or call["dtype"]:
                return None
            pooled: tuple[int, ...] = (1,) * len(size)
        elif after is None:
            return Refusal(f"{self.name(call)} returns indices too", LEAVE_OUT)
        else:
            pooled = after[2:]
        if hooks := self._hooks(call):
            return hooks
        if any(n % m for n, m in zip(size, pooled, strict=True)):
            return Refusal(
                f"{self.name(call)} pools a map of {size} into {pooled}, with windows of unequal "
                "sizes",
                f"give an example whose map there is a multiple of {pooled}, or {LEAVE_OUT}",
            )
        kernel = tuple(n // m for n, m in zip(size, pooled, strict=True))
        if math.prod(kernel) == 1 and not reduced:
            return Keep()
        # A pooling of the whole map slides by one position, as the layer after it does.
        stride = tuple(1 if m == 1 else k for k, m in zip(kernel, pooled, strict=True))
        return Pool("max" if "max" in call.name else "avg", kernel, stride)

    def _continue(self, call: Call, inside: list[fx.Node]) -> None:
        """Follow one call on values of a head."""
        first, *others = dict.fromkeys(self.heads[source] for source in inside)
        for other in others:  # the heads join
            first.edits |= other.edits
            first.linears |= other.linears
            first.obstacle = first.obstacle or other.obstacle
            self.heads |= {n: first for n, head in self.heads.items() if head is other}
        if isinstance(call.module, nn.Linear):
            first.linears[call.module] = self.name(call)
        step = (None if call.kind in POINTWISE else self._hooks(call)) or _step(call, self, inside)
        if isinstance(step, Refusal):
            first.obstacle = first.obstacle or step
            return
        value, edit = step
        self.values[call.node], self.heads[call.node] = value, first
        if edit is not None:
            first.edits[call.node] = edit

    def are_features(self, nodes: list[fx.Node]) -> bool:
        """Say whether values have one axis beside the batch's."""
        return all(len(shape_of(node) or ()) == 2 for node in nodes)

    def are_channels(self, nodes: list[fx.Node]) -> bool:
        """Say whether values are features of maps with one position."""
        values = [self.values[node] for node in nodes]
        return self.are_features(nodes) and all(
            value.is_single and len(value.size) == len(values[0].size) for value in values
        )

    def _shared(self, head: Head, edits: Mapping[fx.Node, Edit]) -> Refusal | None:
        """Return what keeps a head from being converted because something else uses its layers."""
        calls: dict[nn.Module, set[Edit | None]] = {}
        for node, call in self.calls.items():
            if call.module is not None:
                calls.setdefault(call.module, set()).add(edits.get(node))
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
                    why = f"the weight of {name} is that of {place} too, which stays as it is"
                    return Refusal(why, LEAVE_OUT)
        return None

    def _hooks(self, call: Call) -> Refusal | None:
        """Return that hooks stand on the module of a call: they would get other shapes."""
        if call.module is None or not is_hooked(call.module):
            return None
        return Refusal(f"hooks stand on {self.name(call)}", "remove the hooks (handle.remove())")

    def name(self, call: Call) -> str:
        """Return what to call a call in a message."""
        target = call.node.target
        if call.module is None:
            return f"the call of {getattr(target, '__name__', target)}"
        if isinstance(call.module, nn.Linear):
            return self.selected.get(call.module, str(target))
        return f"{target} ({type(call.module).__name__})"


Step: TypeAlias = tuple[Value, Edit | None] | Refusal


@by_operation
def _step(call: Call, walk: _Walk, inside: list[fx.Node]) -> Step:
    """Return what a call gives when its inputs are maps, and the change that it needs."""
    value = walk.values[inside[0]]
    if isinstance(call.module, nn.Linear) and walk.are_features(inside):
        return _linear(call, walk, value)
    norm = type(call.module) is nn.BatchNorm1d and "forward" not in vars(call.module)
    if norm and walk.are_channels(inside):
        return value, Norm(len(value.size))
    return Refusal(
        f"{walk.name(call)} in the same head does not do the same at every position of a map",
        LEAVE_OUT,
    )


def _linear(call: Call, walk: _Walk, value: Value) -> Step:
    module: Any = call.module
    if module not in walk.selected:
        return Refusal(
            f"where= leaves out {walk.name(call)}, which is in the same head",
            "select both or neither",
        )
    if blocked := linear_obstacle(module):
        reason = f"{walk.name(call)} is in the same head, and {blocked.reason}"
        return Refusal(reason, blocked.remedy)
    return Value.single(module.out_features, len(value.size)), Filters(value)


@_step.register("reshaping")
def _(call: Call, walk: _Walk, inside: list[fx.Node]) -> Step:
    before, after = shape_of(inside[0]), shape_of(call.node)
    if (after or ())[:1] != (before or ())[:1]:
        return _step.default(call, walk, inside)
    return walk.values[inside[0]], Keep()


@_step.register(*POINTWISE)
def _(call: Call, walk: _Walk, inside: list[fx.Node]) -> Step:
    """Of one value, or of equal ones and single numbers."""
    outside = [shape_of(n) for n in call.node.all_input_nodes if n not in walk.values]
    values = {walk.values[node] for node in inside}
    numbers = all(shape in (None, ()) for shape in outside)
    if not walk.are_features(inside) or len(values) > 1 or not numbers:
        return _step.default(call, walk, inside)
    return walk.values[inside[0]], None


@_step.register("prelu")
def _(call: Call, walk: _Walk, inside: list[fx.Node]) -> Step:
    of_one = call["num_parameters"] == 1 and walk.are_features(inside)
    if call.module is None or not (of_one or walk.are_channels(inside)):
        return _step.default(call, walk, inside)
    return walk.values[inside[0]], None


@_step.register("distribution", "concatenation")
def _(call: Call, walk: _Walk, inside: list[fx.Node]) -> Step:
    """Along the features, which become the channels."""
    axis = call["dim"]
    parts: Any = inside if call.kind == "distribution" else call["tensors"] or [None]
    known = all(part in walk.values for part in parts)
    if not walk.are_channels(inside) or axis not in (1, -1) or not known:
        return _step.default(call, walk, inside)
    channels = sum(walk.values[part].channels for part in parts)
    value = Value.single(channels, len(walk.values[inside[0]].size))
    return value, None if axis == 1 else OverChannels()


# Making the changes -------------------------------------------------------------------------------


def _forward_obstacle(
    model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit], *, inplace: bool
) -> Refusal | None:
    """Return why the edits cannot be made where forward itself has to change; None if they can."""
    everywhere, one_by_one = _places(model, graph, edits)
    for name, why in blocked_references(model, {*map(id, everywhere)}, copied=not inplace).items():
        return why._replace(reason=f"{name}, which has to change with it: {why.reason}")
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


def _edited(model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit]) -> nn.Module:
    """Return the model with edited calls; it and the graph are changed."""
    everywhere, one_by_one = _places(model, graph, edits)
    memo: dict[Any, Any] = {}
    for node, edit in one_by_one.items():
        if node.op == "call_module":
            new = _new_module(model.get_submodule(str(node.target)), edit, memo)
            node.target = _add(model, node.name, new)
        else:
            _edit_function(node, edit)
    new_modules = {id(old): _new_module(old, edit, memo) for old, edit in everywhere.items()}
    model = exchange(model, new_modules)
    return _graph_module(model, graph) if one_by_one else model


def _new_module(old: nn.Module, edit: Edit, memo: dict[Any, Any]) -> nn.Module:
    """Return what stands in an old module's place; ``memo`` is shared by all edits."""
    match edit:
        case Filters(value):
            return _conv_layer(old, value, memo)
        case Norm(ndim):  # the same parameters and buffers
            key = (id(old), edit)
            if key not in memo:
                memo[key] = NORMS[ndim](1, affine=False, track_running_stats=False)
                vars(memo[key]).update(vars(old))
            return memo[key]  # type: ignore[no-any-return]
        case Pool(kind, kernel, stride):
            pool: Any = OPERATIONS[f"{kind}_pool{len(kernel)}d"].modules[0]
            return pool(kernel, stride).train(old.training)  # type: ignore[no-any-return]
        case OverChannels():
            new: Any = copy.copy(old)
            new.dim = 1
            return new  # type: ignore[no-any-return]
        case Keep():  # an identity keeps the place, and the names of the other parts
            return nn.Identity().train(old.training)


def _conv_layer(old: Any, value: Value, memo: dict[Any, Any]) -> nn.Module:
    """Return the CONV layer of an `nn.Linear` on a map: the same numbers, and the same bias."""
    channels, size, order = value
    weight = old.weight

    def fold(matrix: Tensor) -> Tensor:
        """Return an FC weight as filters; the same memory where it can be: heads are large."""
        sizes = (channels, *size)
        flattened = matrix.detach().reshape(len(matrix), *(sizes[axis] for axis in order))
        places = (1 + order.index(axis) for axis in range(len(sizes)))
        return flattened.permute(0, *places).contiguous()

    cls: Any = CONVS[len(size)]
    conv: Any = cls(channels, len(weight), size, bias=False, device="meta")
    move_attributes(old, conv)
    del conv.in_features, conv.out_features
    key = (id(weight), value)
    if key not in memo:  # a weight that two layers share stays shared
        memo[key] = nn.Parameter(fold(weight), requires_grad=weight.requires_grad)
        memo[key].grad = None if weight.grad is None else fold(weight.grad)
    conv.weight, conv.bias = memo[key], old.bias
    return conv  # type: ignore[no-any-return]


def _edit_function(node: fx.Node, edit: Edit) -> None:
    """Change a call of a function or a method, in its graph."""
    if isinstance(edit, OverChannels):
        if len(node.args) > 1:
            node.args = (node.args[0], 1, *node.args[2:])
        else:
            node.kwargs = {**node.kwargs, "dim": 1}
        return
    instead = node.all_input_nodes[0]
    if isinstance(edit, Pool):
        function = OPERATIONS[f"{edit.kind}_pool{len(edit.kernel)}d"].functions[0]
        with node.graph.inserting_before(node):
            instead = node.graph.call_function(function, (instead, edit.kernel, edit.stride))
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)


def _places(
    model: nn.Module, graph: fx.Graph, edits: Mapping[fx.Node, Edit]
) -> tuple[dict[nn.Module, Edit], dict[fx.Node, Edit]]:
    """Return which modules change wherever they are called, and which calls change otherwise."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    callee = {node: model.get_submodule(str(node.target)) for node in calls}
    wanted: dict[nn.Module, set[Edit | None]] = {}
    for node, module in callee.items():
        wanted.setdefault(module, set()).add(edits.get(node))
    alone = {module: next(iter(chosen)) for module, chosen in wanted.items() if len(chosen) == 1}
    everywhere = {module: edit for module, edit in alone.items() if edit is not None}
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
