"""The dependency graph of a model: which channels are coupled, who makes them, who reads them.

A *space* is a number of units (filters of a CONV layer, neurons of an FC layer) that are coupled:
they can only grow together. An axis of a value is a list of segments, one behind the other: a
space, each of whose units takes a number of places in a row. A CONV layer's output has one segment
with one place per unit; flattened, a unit takes as many places as the feature map has positions; a
concatenation has the segments of all its parts.

Every value of a graph of ``torch.fx`` gets its axes. Adding two values makes one space of two.
Where a number of units is written down, where a layer looks at all units at once, or where an
operation is not known to leave each unit to itself, their space is pinned, and the reason is kept
until somebody asks for more of them.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter
from torch.utils._pytree import tree_leaves

from convfc.errors import Refusal, UnsupportedModel
from convfc.frameworks.torch.certify.pairs import has_own_weights
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.graph import (
    as_traced,
    asks_batch,
    graph_follows_mode,
    place,
    shape_of,
    words,
)
from convfc.frameworks.torch.morphism.target import empty_example, graph_of
from convfc.frameworks.torch.read import obstacle
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.vocabulary import (
    POINTWISE,
    QUESTIONS,
    Call,
    by_operation,
    operation_of,
)

ELSEWHERE = "widen a layer whose units do not get there"
UNKNOWN = f"put an operation there that works on each channel by itself, or {ELSEWHERE}"
_DYNAMIC = "let it follow the sizes: x.flatten(1), or x.view(x.size(0), -1)"
_BACK = "take the model back first, with convfc.to_conv"
_PLAIN = "make its weight a plain parameter first, or put a layer of torch.nn there"
_FIXED = "put a CONV or FC layer of its own between the two"
_RESHAPES = ("flatten", "reshape", "unflatten")
# What a forward computes sizes with.
_NUMBERS = frozenset(
    [
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.neg, operator.getitem, int, max, min),
    ]
)
_TORCH = str(Path(torch.__file__).parent)
_CONSTANT = "_tensor_constant"  # what torch.fx calls a tensor that a forward makes


# Spaces


class Segment(NamedTuple):
    """A space within an axis; each unit takes ``repeat`` places in a row."""

    space: int
    repeat: int = 1


Axis: TypeAlias = tuple[Segment, ...]
"""The segments of one axis; an axis that holds no units is None."""
Axes: TypeAlias = tuple[Axis | None, ...]
"""All axes of a value."""


class Spaces:
    """All spaces of a network: a forest in which those that grow together have one root."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._blocks: list[int] = []
        self._pins: list[list[Refusal]] = []

    def new(self, size: int, pin: Refusal | None = None) -> Axis:
        """Return an axis that is a new space."""
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        self._blocks.append(1)
        self._pins.append([] if pin is None else [pin])
        return (Segment(self._parents[-1]),)

    def root(self, space: int) -> int:
        """Return the space that stands for all that grow together with this one."""
        while self._parents[space] != space:
            self._parents[space] = self._parents[self._parents[space]]
            space = self._parents[space]
        return space

    def size(self, space: int) -> int:
        """Return how many units a space has."""
        return self._sizes[self.root(space)]

    def blocks(self, space: int) -> int:
        """Return into how many blocks, which grow alike, layers with groups divide a space."""
        return self._blocks[self.root(space)]

    def pins(self, space: int) -> Sequence[Refusal]:
        """Return why a space cannot grow; nothing if it can."""
        return self._pins[self.root(space)]

    def places(self, axis: Axis) -> int:
        """Return how long an axis is."""
        return sum(self.size(segment.space) * segment.repeat for segment in axis)

    def pin(self, axis: Axis | None, pin: Refusal) -> None:
        """Note that the spaces of an axis cannot grow."""
        for segment in axis or ():
            self._pins[self.root(segment.space)].append(pin)

    def divide(self, axis: Axis, groups: int, pin: Refusal) -> None:
        """Note that a layer gives each group an equal part of an axis."""
        segment = axis[0]
        blocks = math.lcm(self.blocks(segment.space), groups)
        if len(axis) > 1 or self.size(segment.space) % blocks:
            self.pin(axis, pin)
        else:
            self._blocks[self.root(segment.space)] = blocks

    def unify(self, one: Axis, other: Axis, pin: Refusal) -> None:
        """Note that two axes hold the same units; pin both if they are not made alike."""
        shapes = [[(self.size(s.space), s.repeat) for s in axis] for axis in (one, other)]
        if shapes[0] != shapes[1]:
            self.pin(one, pin)
            self.pin(other, pin)
            return
        for mine, theirs in zip(one, other, strict=True):
            first, second = self.root(mine.space), self.root(theirs.space)
            if first == second:
                continue
            self._parents[second] = first
            self._pins[first] += self._pins[second]
            self.divide(
                (Segment(first),),
                self._blocks[second],
                pin._replace(reason="groups divide its units in two ways"),
            )

    def grown(self, axis: Axis, space: int, units: Tensor) -> Tensor:
        """Return which old place each place of an axis holds, after one space has grown.

        ``units`` says for each unit of the grown space which old one it copies.
        """
        places = torch.arange(self.places(axis), device=units.device)
        parts = places.split([self.size(s.space) * s.repeat for s in axis])
        return torch.cat(
            [
                part.unflatten(0, (-1, s.repeat))[units].flatten() if self.holds(s, space) else part
                for s, part in zip(axis, parts, strict=True)
            ]
        )

    def along(self, axis: Axis, space: int, values: Tensor, other: float) -> Tensor:
        """Return one number per place of an axis whose space has grown: a unit's, or another."""
        return torch.cat(
            [
                values.repeat_interleave(s.repeat)
                if self.holds(s, space)
                else values.new_full((self.size(s.space) * s.repeat,), other)
                for s in axis
            ]
        )

    def holds(self, segment: Segment, space: int) -> bool:
        """Say whether a segment is of a space, or of one that grows together with it."""
        return self.root(segment.space) == self.root(space)


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int]) -> tuple[Axes, list[Axis]]:
    """Follow a reshape: flattening keeps the units, each with more places.

    Returns the axes after, and those before whose units cannot be followed.
    """
    result: list[Axis | None] = []
    lost: list[Axis] = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, second = i, j
        before, after = old[i], new[j]
        while before != after:
            if before < after:
                i += 1
                before *= old[i]
            else:
                j += 1
                after *= new[j]
        i, j = i + 1, j + 1
        held = [(k, axis) for k in range(first, i) if (axis := axes[k]) is not None]
        wide = [k for k in range(second, j) if new[k] != 1] or [second]
        followed: Axis | None = None
        if len(held) == 1 and len(wide) == 1:
            k, axis = held[0]
            inner = math.prod(old[k + 1 : i])
            followed = tuple(Segment(s.space, s.repeat * inner) for s in axis)
            followed *= math.prod(old[first:k])
        else:
            lost += [axis for _, axis in held]
        result += [followed if k == wide[0] else None for k in range(second, j)]
    lost += [axis for axis in axes[i:] if axis is not None]
    return (*result, *[None] * (len(new) - j)), lost


# The graph


@dataclass(eq=False)
class Layer:
    """A module whose parameters belong to units: all calls of it.

    ``inputs`` are the units that it sums over, or has one parameter each for, None if these are
    none; ``outputs`` those that it makes, or its inputs. It is ``"dense"``: sums over the units of
    each group; ``"depthwise"``: filters each unit by itself; or ``"channels"``: has one number per
    unit.
    """

    name: str
    module: nn.Module
    inputs: Axis | None
    outputs: Axis
    kind: str


@dataclass
class DependencyGraph:
    """The spaces, and the layers by ``id``."""

    spaces: Spaces
    layers: dict[int, Layer] = field(default_factory=dict)


def dependencies(model: nn.Module, example: Any) -> DependencyGraph:
    """Trace a model, and follow the units through its graph.

    A forward is refused that `torch.fx` cannot trace, with the line that stands in the way, or that
    calls something else in training, where its layers would be read as well.
    """
    graph = graph_of(model, example)
    if isinstance(graph, Refusal):
        raise UnsupportedModel(
            graph.reason,
            where=_line(model),
            expected="a forward that torch.fx can trace",
            remedy="write this line without asking what is in a tensor, or widen the part of the "
            "model that can be traced by itself",
        )
    if any(str(node.target).startswith(_CONSTANT) for node in graph.nodes):
        raise UnsupportedModel(
            "its forward makes tensors of its own, which torch.fx takes for another one every time",
            where=type(model).__name__,
            remedy="make them in __init__, with register_buffer",
        )
    if not graph_follows_mode(graph):
        raise UnsupportedModel(
            "its forward does something else in training, which would read the units as well",
            where=type(model).__name__,
            expected="the same operations in training and in evaluation",
            remedy="switch the other outputs off (aux_logits=False), or widen before adding them",
        )
    return _Reader(as_traced(model)).read(graph)


def _line(model: nn.Module) -> str:
    """Return the last line of the user's own code that `torch.fx` had come to."""
    try:
        fx.Tracer().trace(as_traced(deep_copy(model)))
    except Exception as error:  # whatever a user's forward raises: only its place is wanted
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith((_TORCH, __file__))
        ]
        if own:
            return f"{own[-1].filename}, line {own[-1].lineno}, {own[-1].line}"
    return "model"


class _Reader:
    """One pass over a graph, on which every tensor gets its axes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.axes: dict[fx.Node, Axes] = {}
        self.spaces = Spaces()
        self.found = DependencyGraph(self.spaces)

    def read(self, graph: fx.Graph) -> DependencyGraph:
        """Follow every node."""
        for node in graph.nodes:
            shape = shape_of(node)
            if node.op == "output":
                self._end(node)
            elif shape is None:
                self._no_tensor(node)
            else:
                axes = self._node(node, shape)
                if axes is not None and not self._fits(axes, shape):
                    axes = self.unknown(Call.of(node, self.model))
                self.axes[node] = (None,) * len(shape) if axes is None else axes
        return self.found

    def _fits(self, axes: Axes, shape: tuple[int, ...]) -> bool:
        """Say whether a value's axes are as long as they really are on the example."""
        return len(axes) == len(shape) and all(
            axis is None or self.spaces.places(axis) == size
            for axis, size in zip(axes, shape, strict=True)
        )

    def _node(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Return the axes of a value; None if it holds no units, which it may have lost."""
        if node.op in ("placeholder", "get_attr"):
            return None
        call = Call.of(node, self.model)
        if call.module is not None:
            return self._module(call, call.module, shape)
        given = [one for one in node.all_input_nodes if one in self.axes]
        return follow(call, self, given, shape) if given else None

    def _end(self, node: fx.Node) -> None:
        for leaf in tree_leaves(node.args):
            self.pin_all(
                leaf,
                Refusal(
                    "the model returns them, so that their number is a part of what it computes",
                    "widen a layer before it, or add a layer behind it",
                    "the output of the model",
                ),
            )

    # Layers

    def _module(self, call: Call, module: nn.Module, shape: tuple[int, ...]) -> Axes | None:
        """Follow a module."""
        x = call.node.args[0] if call.node.args else None
        if not isinstance(x, fx.Node) or x not in self.axes:
            return self.unknown(call)
        if form_of(module) in ("native", "patch", "weight") or isinstance(module, nn.Linear):
            return self._weights(call.node, module, self.axes[x])
        if (isinstance(module, _BatchNorm) and module.running_mean is not None) or (
            isinstance(module, nn.PReLU) and module.weight.numel() > 1
        ):
            return self._per_channel(call, module, self.axes[x])
        return follow(call, self, [x], shape)

    def _weights(self, node: fx.Node, module: nn.Module, axes: Axes) -> Axes | None:
        """Return what a CONV or FC layer makes, and note who it reads from."""
        weight = module._parameters.get("weight")
        if form_of(module) in ("patch", "weight"):
            return self.lost(node, "it is an FC form of a CONV layer", _BACK)
        if not has_own_weights(module) or type(weight) is not Parameter:
            why = obstacle(module) if form_of(module) == "native" else None
            return self.lost(node, *(why or ("it is no plain layer", _PLAIN)))
        if 0 in (shape_of(node) or ()):
            raise empty_example()
        spatial = max(weight.dim() - 2, 0)
        at = len(axes) - 1 - spatial
        for axis in axes[at + 1 :]:
            self.spaces.pin(axis, self.pin(node, "it sums over neighbouring ones", ELSEWHERE))
        if id(module) in self.found.layers:
            made = self._again(node, self.found.layers[id(module)], axes[at])
        else:
            layer = self._layer(node, module, axes[at])
            self.found.layers[id(module)] = layer
            made = layer.outputs
        return (*axes[:at], made, *[None] * spatial)

    def _layer(self, node: fx.Node, module: nn.Module, read: Axis | None) -> Layer:
        """Return a layer at its first call."""
        name = str(node.target)
        if isinstance(module, nn.Linear):
            return Layer(name, module, read, self.spaces.new(module.out_features), "dense")
        conv: Any = module
        groups, filters = conv.groups, conv.out_channels
        if groups == conv.in_channels > 1 and read is not None:
            made = tuple(Segment(s.space, s.repeat * (filters // groups)) for s in read)
            return Layer(name, module, read, made, "depthwise")
        made = self.spaces.new(filters)
        if groups > 1:
            why = f"its {groups} groups do not divide them into whole units"
            for axis in (read, made):
                if axis is not None:
                    self.spaces.divide(axis, groups, self.pin(node, why, ELSEWHERE))
        return Layer(name, module, read, made, "dense")

    def _again(self, node: fx.Node, layer: Layer, read: Axis | None) -> Axis:
        """Note another call of a layer: it has to read the same kind of units."""
        why = "the layer is called several times, on units that are not alike"
        self.unify(layer.inputs, read, self.pin(node, why, "give each call a layer of its own"))
        return layer.outputs

    def _per_channel(self, call: Call, module: nn.Module, axes: Axes) -> Axes | None:
        """Follow what has one parameter, or running statistic, per channel."""
        if len(axes) < 2:
            return self.unknown(call)
        axis = axes[1]
        if id(module) in self.found.layers:
            self._again(call.node, self.found.layers[id(module)], axis)
        elif axis is not None:
            name = str(call.node.target)
            self.found.layers[id(module)] = Layer(name, module, axis, axis, "channels")
        others = {k for k in range(len(axes)) if k != 1}
        self.along(call.node, axes, others, "it looks at several of them")
        return axes

    def unify(self, one: Axis | None, other: Axis | None, pin: Refusal) -> None:
        """Note that two axes hold the same units, if both hold units."""
        if one is not None and other is not None:
            self.spaces.unify(one, other, pin)
        elif one is not None or other is not None:
            self.spaces.pin(one or other, pin)

    def along(self, node: fx.Node, axes: Axes, where: set[int], why: str) -> Axes:
        """Pin the units on the axes along which something works, and keep the others."""
        for k in where:
            self.spaces.pin(axes[k], self.pin(node, why, UNKNOWN))
        return tuple(None if k in where else axis for k, axis in enumerate(axes))

    def trailing(self, node: fx.Node, axes: Axes, count: int) -> Axes:
        """Follow what works on so many last axes, in each unit by itself."""
        why = "it works along the axis that they are on"
        return self.along(node, axes, set(range(len(axes) - count, len(axes))), why)

    def written(self, node: fx.Node, axes: Axes, sizes: Sequence[Any]) -> Axes:
        """Pin the units whose number is given as a number."""
        for axis, size in zip(axes, tree_leaves(sizes), strict=False):
            if axis is not None and isinstance(size, int) and size > 0:
                why = f"their number, {size}, is written down there"
                self.spaces.pin(axis, self.pin(node, why, _DYNAMIC))
        return axes

    # What is not followed

    def _no_tensor(self, node: fx.Node) -> None:
        """Look at what is no tensor: sizes that a forward asks for, tuples of tensors."""
        sources = [one for one in node.all_input_nodes if one in self.axes]
        if not sources or asks_batch(node):
            return
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            self._sizes(node, self.axes[sources[0]])
        elif node.target is not getattr and node.target not in QUESTIONS:
            self.unknown(Call.of(node, self.model))

    def _sizes(self, node: fx.Node, axes: Axes) -> None:
        """Pin units whose number a forward computes with, unless it reshapes only."""
        asked = (*node.args[1:], *node.kwargs.values(), None)[0] if node.target == "size" else None
        for axis, users in self._asked(node, asked, axes):
            if axis is not None and not all(map(_only_reshapes, users)):
                why = "the forward computes with their number"
                self.spaces.pin(axis, self.pin(node, why, ELSEWHERE))

    def _asked(
        self, node: fx.Node, dim: Any, axes: Axes
    ) -> list[tuple[Axis | None, list[fx.Node]]]:
        """Return each axis whose size is asked for, with who uses the size."""
        if isinstance(dim, int):
            return [(axes[dim], list(node.users))]
        found: list[tuple[Axis | None, list[fx.Node]]] = []
        for user in node.users:
            index = user.args[1] if user.target is operator.getitem else slice(None)
            picked = axes[index] if isinstance(index, slice) else (axes[index],)  # type: ignore[index]
            users = [user] if user.target is not operator.getitem else list(user.users)
            found += [(axis, users) for axis in picked]
        return found

    def unknown(self, call: Call) -> Axes | None:
        """Pin all units that something is given which is not known to leave each to itself."""
        if call.kind == "normalisation":
            return self.lost(call.node, "it normalises over several of them", UNKNOWN)
        return self.lost(call.node, "it is not known to leave each of them to itself", UNKNOWN)

    def lost(self, node: fx.Node, why: str, remedy: str) -> Axes | None:
        """Pin all units that something is given."""
        for source in node.all_input_nodes:
            self.pin_all(source, self.pin(node, why, remedy))
        return None

    def pin_all(self, value: Any, pin: Refusal) -> None:
        """Pin all units of a value."""
        for axis in self.axes.get(value, ()) if isinstance(value, fx.Node) else ():
            self.spaces.pin(axis, pin)

    def pin(self, node: fx.Node, why: str, remedy: str) -> Refusal:
        """Return a reason with its place: which module or call."""
        what = words(node)
        if node.op == "call_module":
            what = type(self.model.get_submodule(str(node.target))).__name__
        return Refusal(why, remedy, f"{what} at {place(node)}")


def _only_reshapes(node: fx.Node) -> bool:
    """Say whether a size goes nowhere but into the shape of a value."""
    if node.op in ("call_function", "call_method"):
        operation = operation_of(node.target)
        if operation and (operation.name in _RESHAPES or operation.kind == "expansion"):
            return True
    numbers = node.target in _NUMBERS and shape_of(node) is None
    return numbers and all(map(_only_reshapes, node.users))


# What each operation does to the units of the values that it is given


@by_operation
def follow(
    call: Call, reader: _Reader, given: list[fx.Node], shape: tuple[int, ...]
) -> Axes | None:
    """Return the axes of what a call returns; None if the units that it is given are lost."""
    what = call.node.target if call.module is None else type(call.module)
    home, name = str(getattr(what, "__module__", "")), getattr(what, "__name__", "")
    if home.startswith("torchvision.ops") and name in ("StochasticDepth", "stochastic_depth"):
        return reader.axes[given[0]]  # whole residual branches are dropped
    return reader.unknown(call)


@follow.register(*POINTWISE, "dropout of channels", "expand_as")
def _elementwise(
    call: Call, reader: _Reader, given: list[fx.Node], shape: tuple[int, ...]
) -> Axes | None:
    """Unite the units of values that are added, multiplied or the like, axis by axis."""
    result: list[Axis | None] = []
    why = "they are combined with values whose number cannot change, or that are made otherwise"
    pin = reader.pin(call.node, why, _FIXED)
    for behind in range(len(shape), 0, -1):
        found: list[Axis | None] = []
        for one in given:
            sizes = shape_of(one)
            if sizes is None or len(sizes) < behind:
                continue
            axis = reader.axes[one][-behind]
            if sizes[-behind] == shape[-behind] > 1 or (axis and shape[-behind] == 1):
                found.append(axis)
            else:
                alone = "a single one stands for many there"
                reader.spaces.pin(axis, reader.pin(call.node, alone, ELSEWHERE))
        for axis in found[1:]:
            reader.unify(found[0], axis, pin)
        result.append(found[0] if found else None)
    return tuple(result)


@follow.register("concatenation")
def _concatenation(
    call: Call, reader: _Reader, given: list[fx.Node], shape: tuple[int, ...]
) -> Axes | None:
    """Follow a concatenation: the segments of all parts, one behind the other."""
    node = call.node
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim = node.kwargs.get("axis", call["dim"])
    if not isinstance(dim, int) or not all(one in reader.axes for one in parts):
        return reader.unknown(call)
    dim %= len(shape)
    fixed = reader.pin(node, "they are beside values whose number cannot change", _FIXED)
    units = any(reader.axes[one][dim] is not None for one in parts)
    joined: list[Segment] = []
    result: list[Axis | None] = list(reader.axes[parts[0]])
    for one in parts:
        axes, sizes = reader.axes[one], shape_of(one) or ()
        axis = axes[dim]
        joined += reader.spaces.new(sizes[dim], fixed) if axis is None else axis
        for k, other in enumerate(axes):
            if k != dim:
                reader.unify(result[k], other, fixed)
    result[dim] = tuple(joined) if units else None
    return tuple(result)


_OfOne: TypeAlias = Callable[[Call, "_Reader", Axes, tuple[int, ...]], Axes | None]


def _of_one(*names: str) -> Callable[[_OfOne], _OfOne]:
    """Register what operations of one value do, given the axes of this value."""

    def enter(rule: _OfOne) -> _OfOne:
        def whole(
            call: Call, reader: _Reader, given: list[fx.Node], shape: tuple[int, ...]
        ) -> Axes | None:
            if len(given) > 1:
                return reader.unknown(call)
            return rule(call, reader, reader.axes[given[0]], shape)

        follow.register(*names)(whole)
        return rule

    return enter


@_of_one("activation per channel")
def _prelu(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    return axes  # one slope for all: a slope per channel is a layer


@_of_one("pooling", "adaptive pooling", "padding", "resizing")
def _spatial(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Follow what works on so many trailing axes, the same for all units."""
    if call.operation is None:
        return reader.unknown(call)
    count = call.operation.axes or len(shape) - 2
    if call.name == "pad":
        count = len(call["pad"]) // 2
    return reader.trailing(call.node, axes, count)


@_of_one("layer_norm")
def _layer_norm(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    if call.module is None:
        return reader.unknown(call)
    return reader.trailing(call.node, axes, len(call["normalized_shape"]))


@_of_one(*_RESHAPES)
def _reshape(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Follow a reshape; a size that is written down is one that cannot change."""
    node = call.node
    after, lost = reshaped(axes, shape_of(node.args[0]) or (), shape)
    for axis in lost:
        reader.spaces.pin(axis, reader.pin(node, "it divides them over several axes", UNKNOWN))
    sizes = () if call.name == "flatten" else (*node.args[1:], *node.kwargs.values())
    return reader.written(node, after, sizes)


@_of_one("expand")
def _expand(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Follow an expansion to sizes that are given."""
    result: Axes = (*[None] * (len(shape) - len(axes)), *axes)
    return reader.written(call.node, result, call.node.args[1:])


@_of_one("reduction")
def _reduction(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Follow a mean, a sum or a maximum along axes."""
    gone = call.axes(len(axes)) or set(range(len(axes)))
    why = "it takes one value of all of them, in which a copy would count twice"
    left = reader.along(call.node, axes, gone, why)
    if len(shape) == len(axes):
        return left
    return tuple(axis for k, axis in enumerate(axes) if k not in gone)


@_of_one("distribution")
def _distribution(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Follow a softmax along an axis; PyTorch chooses one if none is given."""
    where = call.axes(len(axes)) or set(range(len(axes)))
    return reader.along(call.node, axes, where, "it divides by a sum over them")


@_of_one("permutation")
def _permutation(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    order = call.order(len(axes))
    return reader.unknown(call) if order is None else tuple(axes[axis] for axis in order)


@_of_one("squeeze")
def _squeeze(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    sizes = shape_of(call.node.args[0]) or ()
    gone = {k for k in call.axes(len(axes)) or range(len(axes)) if sizes[k] == 1}
    for k in gone:
        why = "it takes the axis away that they are on"
        reader.spaces.pin(axes[k], reader.pin(call.node, why, ELSEWHERE))
    return tuple(axis for k, axis in enumerate(axes) if k not in gone)


@_of_one("unsqueeze")
def _unsqueeze(call: Call, reader: _Reader, axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    (at,) = call.axes(len(axes) + 1)
    return (*axes[:at], None, *axes[at:])
