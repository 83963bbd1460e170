"""The dependency graph of a model: which channels are coupled, who makes them, who reads them.

A *space* is a number of units (filters of a CONV layer, neurons of an FC layer) that can only grow
together. An axis of a value is a list of segments: a space, each of whose units takes a number of
places in a row. A CONV layer's output has one segment with one place per unit; flattened, a unit
takes as many places as the feature map has positions; a concatenation has the segments of all its
parts. Adding two values makes one space of two. Where a number of units is written down, or an
operation is not known to leave each unit to itself, their space is pinned, with the reason.

Mean and variance of some units stay as they are if each gets equally many copies. So what is
normalised over a group of channels can grow, but only evenly: every unit is copied equally often,
the copies stand beside it, which is in its group, and all spaces of the axis grow by one factor.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
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
from convfc.frameworks.torch.morphism.target import BACK, empty_example, graph_of
from convfc.frameworks.torch.read import obstacle
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.vocabulary import (
    POINTWISE,
    QUESTIONS,
    Call,
    by_operation,
    operation_of,
)
from convfc.sizes import Sizes

ELSEWHERE = "widen a layer whose units do not get there"
UNKNOWN = f"put an operation there that works on each channel by itself, or {ELSEWHERE}"
EVEN = "give an integer factor, such as factor=2, and copy: how='copy'"
_DYNAMIC = "let it follow the sizes: x.flatten(1), or x.view(x.size(0), -1)"
_PLAIN = "make its weight a plain parameter first, or put a layer of torch.nn there"
_NORM = "put an nn.GroupNorm there"
_FIXED = "put a CONV or FC layer of its own between the two"
_RETURNED = Refusal(
    "the model returns them, so that their number is a part of what it computes",
    "widen a layer before it, or add a layer behind it",
    "the output of the model",
)
_RESHAPES = ("flatten", "reshape", "unflatten")
_TORCH = str(Path(torch.__file__).parent)
_CONSTANT = "_tensor_constant"  # what torch.fx calls a tensor that a forward makes


# Spaces


@dataclass(eq=False)
class Space:
    """So many units that can only grow together, and what is known of all that grow with them."""

    size: int
    pins: list[Refusal] = field(default_factory=list)  # why they cannot grow
    blocks: int = 1  # which grow alike: layers with groups divide the units into them
    parent: Space | None = None  # a space of the same units, which speaks for this one
    even: list[Refusal] = field(default_factory=list)  # why all are copied equally often
    beside: list[Space] = field(default_factory=list)  # normalised with it: they grow alike

    @property
    def root(self) -> Space:
        """The space that speaks for all that grow together with this one."""
        space = self
        while space.parent is not None:
            space = space.parent
        return space

    @property
    def family(self) -> list[Space]:
        """The space that speaks for this one, and all that have to grow by the same factor."""
        found = [self.root]
        for space in found:  # which grows on the way
            found += dict.fromkeys(s.root for s in space.beside if s.root not in found)
        return found


class Segment(NamedTuple):
    """A space within an axis; each unit takes ``repeat`` places in a row."""

    space: Space
    repeat: int = 1

    @property
    def root(self) -> Space:
        """The space that speaks for its units."""
        return self.space.root

    @property
    def places(self) -> int:
        """How long it is."""
        return self.space.size * self.repeat


Axis: TypeAlias = tuple[Segment, ...]
"""The segments of one axis; none if it holds no units."""
Axes: TypeAlias = tuple[Axis, ...]
"""All axes of a value."""


def length(axis: Axis) -> int:
    """Return how long an axis is."""
    return sum(segment.places for segment in axis)


def pin(axis: Axis, why: Refusal) -> None:
    """Note that the units of an axis cannot grow."""
    for segment in axis:
        segment.root.pins.append(why)


def divide(axis: Axis, groups: int, why: Refusal) -> None:
    """Note that a layer gives each group an equal part of an axis; pin it if it cannot."""
    if not axis:
        return
    space = axis[0].root
    blocks = math.lcm(space.blocks, groups)
    if len(axis) > 1 or space.size % blocks:
        pin(axis, why)
    else:
        space.blocks = blocks


def normalise(axis: Axis, groups: int, why: Refusal, cut: Refusal) -> None:
    """Note that each of equal groups of an axis is normalised as one; pin it if they cut units."""
    size = length(axis) // groups
    spaces = [segment.root for segment in axis]
    start = 0
    for segment in axis:
        firsts = range(start, start + segment.places, segment.repeat)
        if any(first % size + segment.repeat > size for first in firsts):
            pin(axis, cut)
            return
        start += segment.places
    for space in spaces:
        space.blocks = space.size  # copies stand beside their unit, wherever a group ends
        space.even.append(why)
        space.beside += spaces


def unify(one: Axis, other: Axis, why: Refusal) -> None:
    """Note that two axes hold the same units; pin both if they are not made alike."""
    shapes = [[(s.space.size, s.repeat) for s in axis] for axis in (one, other)]
    if shapes[0] != shapes[1]:
        pin(one, why)
        pin(other, why)
        return
    for mine, theirs in zip(one, other, strict=True):
        first, second = mine.root, theirs.root
        if first is not second:
            second.parent = first
            first.pins += second.pins
            first.even += second.even
            first.beside += second.beside
            two_ways = why._replace(reason="groups divide its units in two ways")
            divide((mine,), second.blocks, two_ways)


def grown(axis: Axis, units: Mapping[Space, Tensor]) -> Tensor:
    """Return which old place each place of an axis holds; ``units``, which old unit each copies."""
    parts = torch.arange(length(axis)).split([s.places for s in axis])
    return torch.cat(
        [
            part.unflatten(0, (-1, s.repeat))[units[s.root]].flatten() if s.root in units else part
            for s, part in zip(axis, parts, strict=True)
        ]
    )


def per_place(axis: Axis, values: Mapping[Space, Tensor], other: float) -> Tensor:
    """Return one number per place of an axis whose spaces have grown: a unit's, or another."""
    like = next(iter(values.values()))
    return torch.cat(
        [
            values[s.root].repeat_interleave(s.repeat)
            if s.root in values
            else like.new_full((s.places,), other)
            for s in axis
        ]
    )


def reshaped(axes: Axes, old: Sequence[int], new: Sequence[int]) -> tuple[Axes, list[Axis]]:
    """Return the axes after a reshape, and those before whose units cannot be followed."""
    result: list[Axis] = []
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
        held = [(k, axes[k]) for k in range(first, i) if axes[k]]
        wide = [k for k in range(second, j) if new[k] != 1] or [second]
        followed: Axis = ()
        if len(held) == 1 and len(wide) == 1:
            k, axis = held[0]
            inner = math.prod(old[k + 1 : i])
            followed = tuple(Segment(s.space, s.repeat * inner) for s in axis)
            followed *= math.prod(old[first:k])
        else:
            lost += [axis for _, axis in held]
        result += [followed if k == wide[0] else () for k in range(second, j)]
    lost += axes[i:]
    return (*result, *[()] * (len(new) - j)), lost


# The graph


@dataclass(eq=False)
class Layer:
    """A module whose parameters belong to units: all calls of it.

    ``inputs`` are the units that it sums over, or has one parameter each for, if any; ``outputs``
    those that it makes, or its inputs. It is ``"dense"``: sums over the units of each group;
    ``"depthwise"``: filters each unit by itself; or ``"channels"``: has one number per unit.
    ``alike`` makes, of a module that calls a function, one of `torch.nn` that does the same.
    """

    name: str
    module: nn.Module
    inputs: Axis
    outputs: Axis
    kind: str
    alike: Callable[[nn.Module], nn.Module] | None = None


def dependencies(model: nn.Module, example: Any) -> dict[int, Layer]:
    """Trace a model, follow the units through its graph, and return its layers by ``id``."""
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
        self.layers: dict[int, Layer] = {}

    def read(self, graph: fx.Graph) -> dict[int, Layer]:
        """Follow every node."""
        for node in graph.nodes:
            shape = shape_of(node)
            if node.op == "output":
                for source in node.all_input_nodes:
                    for axis in self.axes.get(source, ()):
                        pin(axis, _RETURNED)
            elif shape is None:
                self._no_tensor(node)
            else:
                axes = self._node(node, shape)
                sizes = [length(axis) if axis else n for axis, n in zip(axes, shape, strict=False)]
                fits = len(axes) == len(shape) and sizes == [*shape]  # as on the example
                self.axes[node] = axes if fits else self.unknown(Call.of(node, self.model))
        return self.layers

    def _node(self, node: fx.Node, shape: Sizes) -> Axes:
        """Return the axes of a value."""
        call = Call.of(node, self.model)
        if call.module is not None:
            return self._module(call, call.module, shape)
        given = [one for one in node.all_input_nodes if one in self.axes]
        return follow(call, self, given, shape) if given else ((),) * len(shape)

    # Layers

    def _module(self, call: Call, module: nn.Module, shape: Sizes) -> Axes:
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
        if isinstance(module, _InstanceNorm) and len(shape) > module._get_no_batch_dim():
            return self._per_channel(call, module, self.axes[x])
        return follow(call, self, [x], shape)

    def _weights(self, node: fx.Node, module: nn.Module, axes: Axes) -> Axes:
        """Return what a CONV or FC layer makes, and note who it reads from."""
        weight = module._parameters.get("weight")
        if form_of(module) in ("patch", "weight"):
            return self.lost(node, "it is an FC form of a CONV layer", BACK)
        if not has_own_weights(module) or type(weight) is not Parameter:
            why = obstacle(module) if form_of(module) == "native" else None
            return self.lost(node, *(why or ("it is not a plain layer", _PLAIN)))
        if 0 in (shape_of(node) or ()):
            raise empty_example()
        spatial = max(weight.dim() - 2, 0)
        at = len(axes) - 1 - spatial
        self.pin_axes(node, axes[at + 1 :], "it sums over neighbouring ones", ELSEWHERE)
        if id(module) not in self.layers:
            self.layers[id(module)] = self._layer(node, module, axes[at])
        made = self._called(node, module, axes[at])
        return (*axes[:at], made, *[()] * spatial)

    def _called(self, node: fx.Node, module: nn.Module, read: Axis) -> Axis:
        """Note a call of a layer: every one has to read the same kind of units as the first."""
        layer = self.layers[id(module)]
        why = "the layer is called several times, on units that are not alike"
        unify(layer.inputs, read, self.reason(node, why, "give each call a layer of its own"))
        return layer.outputs

    def _layer(self, node: fx.Node, module: Any, read: Axis) -> Layer:
        """Return a layer of weights at its first call."""
        name = str(node.target)
        if isinstance(module, nn.Linear):
            return Layer(name, module, read, (Segment(Space(module.out_features)),), "dense")
        groups, filters = module.groups, module.out_channels
        if groups == module.in_channels > 1 and read:
            made = tuple(Segment(s.space, s.repeat * (filters // groups)) for s in read)
            return Layer(name, module, read, made, "depthwise")
        made = (Segment(Space(filters)),)
        why = f"its {groups} groups do not divide them into whole units"
        for axis in (read, made) if groups > 1 else ():
            divide(axis, groups, self.reason(node, why, ELSEWHERE))
        return Layer(name, module, read, made, "dense")

    def _per_channel(self, call: Call, module: nn.Module, axes: Axes) -> Axes:
        """Follow what has one parameter, or running statistic, per channel."""
        if len(axes) < 2:
            return self.unknown(call)
        self.channels(call.node, module, axes[1])
        others = {k for k in range(len(axes)) if k != 1}
        self.along(call.node, axes, others, "it looks at several of them")
        return axes

    # What a rule notes

    def channels(self, node: fx.Node, module: nn.Module, axis: Axis, **more: Any) -> None:
        """Note a call of a module that has something per channel."""
        layer = Layer(place(node), module, axis, axis, "channels", **more)
        self.layers.setdefault(id(module), layer)
        self._called(node, module, axis)
        if not more and module._parameters.keys() - {"weight", "bias"}:  # pruned, for instance
            self.pin_axes(node, [axis], "it is not a plain layer", _PLAIN)

    def normalised(self, call: Call, axes: Axes, at: int, groups: int) -> Axes:
        """Follow what normalises groups of the units on one axis, if copies are equally many."""
        why = "it normalises over several of them, so that each has to be copied equally often"
        cut = f"its {groups} groups do not divide them into whole units"
        reasons = self.reason(call.node, why, EVEN), self.reason(call.node, cut, ELSEWHERE)
        normalise(axes[at], groups, *reasons)
        return axes

    def along(self, node: fx.Node, axes: Axes, where: set[int], why: str) -> Axes:
        """Pin the units on the axes along which something works, and keep the others."""
        self.pin_axes(node, [axes[k] for k in where], why, UNKNOWN)
        return tuple(() if k in where else axis for k, axis in enumerate(axes))

    def written(self, node: fx.Node, axes: Axes, sizes: Sequence[Any]) -> Axes:
        """Pin the units whose number is given as a number."""
        for axis, size in zip(axes, tree_leaves(sizes), strict=False):
            if isinstance(size, int) and size > 0:
                self.pin_axes(
                    node, [axis], f"their number, {size}, is written down there", _DYNAMIC
                )
        return axes

    def unknown(self, call: Call) -> Axes:
        """Pin all units that something is given which is not known to leave each to itself."""
        why = "it is not known to leave each of them to itself"
        if call.kind == "normalisation":
            why = "it normalises over several of them"
        return self.lost(call.node, why, UNKNOWN)

    def lost(self, node: fx.Node, why: str, remedy: str) -> Axes:
        """Pin all units that something is given; what it returns holds none."""
        for source in node.all_input_nodes:
            self.pin_axes(node, self.axes.get(source, ()), why, remedy)
        return ((),) * len(shape_of(node) or ())

    def pin_axes(self, node: fx.Node, axes: Iterable[Axis], why: str, remedy: str) -> None:
        """Pin all units of some axes because of a call."""
        for axis in axes:
            pin(axis, self.reason(node, why, remedy))

    def reason(self, node: fx.Node, why: str, remedy: str) -> Refusal:
        """Return a reason with its place: which module or call."""
        what = words(node)
        if node.op == "call_module":
            what = type(self.model.get_submodule(str(node.target))).__name__
        return Refusal(why, remedy, f"{what} at {place(node)}")

    # What is not a tensor: sizes that a forward asks for, tuples of tensors

    def _no_tensor(self, node: fx.Node) -> None:
        sources = [one for one in node.all_input_nodes if one in self.axes]
        if not sources or asks_batch(node):
            return
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            for axis, users in self._asked(node, self.axes[sources[0]]):
                if not all(map(_only_reshapes, users)):
                    self.pin_axes(node, [axis], "the forward computes with their number", ELSEWHERE)
        elif node.target is not getattr and node.target not in QUESTIONS:
            self.unknown(Call.of(node, self.model))

    def _asked(self, node: fx.Node, axes: Axes) -> Iterator[tuple[Axis, Iterable[fx.Node]]]:
        """Yield each axis whose size is asked for, with who uses the size."""
        dim = (*node.args[1:], *node.kwargs.values(), None)[0] if node.target == "size" else None
        if isinstance(dim, int):
            yield axes[dim], node.users
            return
        for user in node.users:
            picks = user.target is operator.getitem
            index: Any = user.args[1] if picks else slice(None)
            for axis in axes[index] if isinstance(index, slice) else (axes[index],):
                yield axis, user.users if picks else [user]


def _only_reshapes(node: fx.Node) -> bool:
    """Say whether a size, or a number made of it, goes nowhere but into the shape of a value."""
    if node.op not in ("call_function", "call_method"):
        return False
    operation = operation_of(node.target)
    if operation and (operation.name in _RESHAPES or operation.kind == "expansion"):
        return True
    return shape_of(node) is None and all(map(_only_reshapes, node.users))


# What each operation does to the units of the values that it is given


@by_operation
def follow(call: Call, reader: _Reader, given: list[fx.Node], shape: Sizes) -> Axes:
    """Return the axes of what a call returns, and pin the units that are lost in it."""
    what = call.node.target if call.module is None else type(call.module)
    home, name = str(getattr(what, "__module__", "")), getattr(what, "__name__", "")
    if home.startswith("torchvision.ops") and name in ("StochasticDepth", "stochastic_depth"):
        return reader.axes[given[0]]  # whole residual branches are dropped
    return reader.unknown(call)


@follow.register(*POINTWISE, "dropout of channels", "expand_as")
def _elementwise(call: Call, reader: _Reader, given: list[fx.Node], shape: Sizes) -> Axes:
    """Unite the units of values that are added, multiplied or the like, axis by axis."""
    result: list[Axis] = []
    why = "they are combined with values whose number cannot change, or that are made otherwise"
    apart = reader.reason(call.node, why, _FIXED)
    for behind in range(len(shape), 0, -1):
        found: list[Axis] = []
        for one in given:
            sizes = shape_of(one)
            if sizes is None or len(sizes) < behind:
                continue
            axis = reader.axes[one][-behind]
            if sizes[-behind] == shape[-behind] > 1 or (axis and shape[-behind] == 1):
                found.append(axis)
            else:
                reader.pin_axes(call.node, [axis], "a single one stands for many there", ELSEWHERE)
        for axis in found[1:]:
            unify(found[0], axis, apart)
        result.append(found[0] if found else ())
    return tuple(result)


@follow.register("concatenation")
def _concatenation(call: Call, reader: _Reader, given: list[fx.Node], shape: Sizes) -> Axes:
    """Follow a concatenation: the segments of all parts, one behind the other."""
    node = call.node
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim = node.kwargs.get("axis", call["dim"])
    if not isinstance(dim, int) or not all(one in reader.axes for one in parts):
        return reader.unknown(call)
    dim %= len(shape)
    fixed = reader.reason(node, "they are beside values whose number cannot change", _FIXED)
    units = any(reader.axes[one][dim] for one in parts)
    joined: list[Segment] = []
    result: list[Axis] = list(reader.axes[parts[0]])
    for one in parts:
        axes, sizes = reader.axes[one], shape_of(one) or ()
        axis = axes[dim]
        joined += axis or [Segment(Space(sizes[dim], [fixed]))]
        for k, other in enumerate(axes):
            if k != dim:
                unify(result[k], other, fixed)
    result[dim] = tuple(joined) if units else ()
    return tuple(result)


_OfOne: TypeAlias = Callable[[Call, _Reader, Axes, Sizes], Axes]


def _of_one(*names: str) -> Callable[[_OfOne], _OfOne]:
    """Register what operations of one value do, given the axes of this value."""

    def enter(rule: _OfOne) -> _OfOne:
        @follow.register(*names)
        def _(call: Call, reader: _Reader, given: list[fx.Node], shape: Sizes) -> Axes:
            one, *others = given
            return reader.unknown(call) if others else rule(call, reader, reader.axes[one], shape)

        return rule

    return enter


@_of_one("activation per channel")
def _prelu(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    return axes  # one slope for all: a slope per channel is a layer


@_of_one("pooling", "adaptive pooling", "padding", "resizing")
def _trailing(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    """Follow what works on so many last axes, in each unit by itself."""
    count = (call.operation and call.operation.axes) or len(shape) - 2
    if call.name == "pad":
        count = len(call["pad"]) // 2
    last = set(range(len(axes) - count, len(axes)))
    return reader.along(call.node, axes, last, "it works along the axis that they are on")


@_of_one(*_RESHAPES)
def _reshape(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    """Follow a reshape; a size that is written down is one that cannot change."""
    node = call.node
    after, lost = reshaped(axes, shape_of(node.args[0]) or (), shape)
    reader.pin_axes(node, lost, "it divides them over several axes", UNKNOWN)
    sizes = () if call.name == "flatten" else (*node.args[1:], *node.kwargs.values())
    return reader.written(node, after, sizes)


@_of_one("reduction", "distribution")
def _reduction(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    """Follow a mean or a softmax along axes; all, or PyTorch's choice of one, if none is given."""
    gone = call.axes(len(axes)) or set(range(len(axes)))
    why = "it divides by a sum over them"
    if call.kind == "reduction":
        why = "it takes one value of all of them, in which a copy would count twice"
    left = reader.along(call.node, axes, gone, why)
    if len(shape) == len(axes):
        return left
    return tuple(axis for k, axis in enumerate(axes) if k not in gone)


@follow.register("group_norm")
def _group_norm(call: Call, reader: _Reader, given: list[fx.Node], shape: Sizes) -> Axes:
    """Follow a normalisation over groups of channels, and over all that stands behind them."""
    x, groups = given[0], call["num_groups"]
    axes, module = reader.axes[x], call.module
    more: dict[str, Any] = {}
    if len(given) > 1:
        module = _owner(call, reader.model)
        if module is None:
            why = "its weight and bias are not those of a module that does this alone"
            return reader.lost(call.node, why, _NORM)
        more["alike"] = partial(_as_group_norm, call)
    if not isinstance(groups, int):
        return reader.unknown(call)
    if module is not None:
        reader.channels(call.node, module, axes[1], **more)
    reader.along(call.node, axes, set(range(2, len(axes))), "it normalises over several of them")
    return reader.normalised(call, axes, 1, groups)


def _owner(call: Call, model: nn.Module) -> nn.Module | None:
    """Return the module whose forward is a call with its own weight and bias, and no more."""
    node, name = call.node, place(call.node)
    own = [one for one in node.all_input_nodes if one.op == "get_attr"]
    names = [str(one.target).rpartition(".") for one in own]
    inside = [one for one in node.graph.nodes if one.op != "get_attr" and place(one) == name]
    if [one for one in inside if one.target is not node.target] or {n for n, *_ in names} != {name}:
        return None
    module = model.get_submodule(name)
    held = [key for key, value in module._parameters.items() if value is not None]
    alone = not module._modules and sorted(held) == sorted(key for *_, key in names)
    return module if alone and len(own) == len(node.all_input_nodes) - 1 else None


def _as_group_norm(call: Call, module: nn.Module) -> nn.Module:
    """Return a function's call as a layer, with the weight and bias that a module has now."""
    given = {name: call[name] for name in ("weight", "bias")}
    held = {
        name: None if node is None else getattr(module, str(node.target).rpartition(".")[2])
        for name, node in given.items()
    }
    count = next(len(one) for one in held.values() if one is not None)
    norm = nn.GroupNorm(call["num_groups"], count, eps=call["eps"], device="meta")
    for name, one in held.items():
        setattr(norm, name, one)
    return norm


@_of_one("layer_norm")
def _layer_norm(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    """Follow a normalisation of the last axis, by a module that can be made wider."""
    if call.module is None or len(call["normalized_shape"]) > 1:
        return reader.unknown(call)
    reader.channels(call.node, call.module, axes[-1])
    return reader.normalised(call, axes, -1, 1)


@_of_one("permutation")
def _permutation(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    order = call.order(len(axes))
    return reader.unknown(call) if order is None else tuple(axes[axis] for axis in order)


@_of_one("getitem")
def _getitem(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    """Follow an index that takes everything and adds axes: x[:, :, None, None]."""
    index = call.node.args[1]
    parts = [*index] if isinstance(index, tuple) else [index]
    if any(one is not None and one != slice(None) for one in parts):
        return reader.unknown(call)
    rest = iter(axes)
    return (*[() if one is None else next(rest) for one in parts], *rest)


@_of_one("squeeze")
def _squeeze(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    sizes = shape_of(call.node.args[0]) or ()
    gone = {k for k in call.axes(len(axes)) or range(len(axes)) if sizes[k] == 1}
    why = "it takes the axis away that they are on"
    reader.pin_axes(call.node, [axes[k] for k in gone], why, ELSEWHERE)
    return tuple(axis for k, axis in enumerate(axes) if k not in gone)


@_of_one("unsqueeze")
def _unsqueeze(call: Call, reader: _Reader, axes: Axes, shape: Sizes) -> Axes:
    (at,) = call.axes(len(axes) + 1)
    return (*axes[:at], (), *axes[at:])
