"""A model's forward, traced by ``torch.fx``, as spaces of units: who makes them, who reads them.

Every value of the graph gets its axes (see `channels`). What an operation does to units is looked
up in tables; where it is not known to leave each unit to itself, the units are pinned, and the
reason is kept until somebody asks for more of them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import Parameter
from torch.utils._pytree import tree_leaves

from convfc.errors import Refusal
from convfc.frameworks.torch.certify.pairs import has_own_weights
from convfc.frameworks.torch.forms import form_of
from convfc.frameworks.torch.graph import shape_of
from convfc.frameworks.torch.morphism import operations
from convfc.frameworks.torch.morphism.channels import Axes, Axis, Segment, Spaces
from convfc.frameworks.torch.morphism.moves import ELSEWHERE, Follower
from convfc.frameworks.torch.read import obstacle
from convfc.frameworks.torch.simplify import calls
from convfc.frameworks.torch.vocabulary import Call

__all__ = ["Layer", "Reading", "read"]

_SHARES = "it divides by a sum over them"
_BACK = "take the model back first, with convfc.to_conv"
_PLAIN = "make its weight a plain parameter first, or put a layer of torch.nn there"
_FIXED = "put a CONV or FC layer of its own between the two"


@dataclass(eq=False)
class Layer:
    """A module whose parameters belong to units: all calls of it.

    Parameters
    ----------
    name : str
    module : nn.Module
    inputs : tuple of Segment or None
        The units that it sums over, or has one parameter each for; None if these are none.
    outputs : tuple of Segment
        The units that it makes; for what has one parameter per unit, its input's.
    kind : str
        ``"dense"``: sums over the units of each group; ``"depthwise"``: filters each unit by
        itself; ``"channels"``: has one number per unit.
    """

    name: str
    module: nn.Module
    inputs: Axis | None
    outputs: Axis
    kind: str


@dataclass
class Reading:
    """What `read` found: the spaces, the layers by ``id``, parameters in nobody's layer by name."""

    spaces: Spaces
    layers: dict[int, Layer] = field(default_factory=dict)
    held: dict[str, Axes] = field(default_factory=dict)


def read(model: nn.Module, graph: fx.Graph) -> Reading:
    """Follow the units through a graph.

    Parameters
    ----------
    model : nn.Module
    graph : fx.Graph
        Of `convfc.frameworks.torch.graph.trace`.

    Examples
    --------
    >>> import torch
    >>> from convfc.frameworks.torch.graph import trace
    >>> model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 4))
    >>> reading = read(model, trace(model, (torch.ones(1, 1, 5),)))
    >>> [(layer.name, layer.inputs, layer.outputs) for layer in reading.layers.values()]
    [('0', None, (Segment(space=0, repeat=1),)),
     ('2', (Segment(space=0, repeat=3),), (Segment(space=1, repeat=1),))]
    """
    return _Reader(model).reading(graph)


class _Reader(Follower):
    """One pass over a graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found = Reading(self.spaces)

    def reading(self, graph: fx.Graph) -> Reading:
        """Follow every node."""
        for node in graph.nodes:
            shape = shape_of(node)
            if node.op == "output":
                self._end(node)
            elif shape is None:
                self.no_tensor(node)
            else:
                axes = self._node(node, shape)
                if axes is not None and not self._fits(axes, shape):
                    axes = self.unknown(node)
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
        if node.op == "placeholder":
            return None
        if node.op == "get_attr":
            return self._held(node, shape)
        if node.op == "call_module":
            return self._module(node, self.model.get_submodule(str(node.target)), shape)
        return self._call(node, shape)

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

    def _held(self, node: fx.Node, shape: tuple[int, ...]) -> Axes:
        """Give a parameter of a module's own, such as a scale per channel, units of its own."""
        name = str(node.target)
        if name not in self.found.held:
            self.found.held[name] = tuple(
                self.spaces.new(size) if size > 1 else None for size in shape
            )
        return self.found.held[name]

    # Modules

    def _module(  # noqa: PLR0911 (one for each kind)
        self, node: fx.Node, module: nn.Module, shape: tuple[int, ...]
    ) -> Axes | None:
        """Follow a module."""
        cls = type(module)
        x = node.args[0] if node.args else None
        if not isinstance(x, fx.Node) or x not in self.axes:
            return self.unknown(node)
        axes = self.axes[x]
        if form_of(module) in ("native", "patch", "weight") or isinstance(module, nn.Linear):
            return self._weights(node, module, axes)
        if isinstance(module, (_BatchNorm, _InstanceNorm)) or (
            isinstance(module, nn.PReLU) and module.weight.numel() > 1
        ):
            return self._per_channel(node, module, axes)
        if (
            cls is nn.PReLU
            or cls in operations.ELEMENTWISE
            or operations.is_stochastic_depth(module)
        ):
            return axes
        trailing = {
            nn.LayerNorm: len(getattr(module, "normalized_shape", ())),
            **operations.TRAILING,
        }
        if cls in trailing:
            return self.trailing(node, axes, trailing[cls])
        if cls in operations.RESIZES:
            return self.trailing(node, axes, len(shape) - 2)
        if cls in operations.RESHAPES:
            return self.reshape(node, x, shape, ())
        if cls in operations.SOFTMAXES and isinstance(module.dim, int):
            return self.along(node, axes, {module.dim % len(axes)}, _SHARES)
        return self.unknown(node)

    def _weights(self, node: fx.Node, module: nn.Module, axes: Axes) -> Axes | None:
        """Return what a CONV or FC layer makes, and note who it reads from."""
        weight = module._parameters.get("weight")
        if form_of(module) in ("patch", "weight"):
            return self.lost(node, "it is an FC form of a CONV layer", _BACK)
        if not has_own_weights(module) or type(weight) is not Parameter:
            why = obstacle(module) if form_of(module) == "native" else None
            return self.lost(node, *(why or ("it is no plain layer", _PLAIN)))
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
        self._unify(layer.inputs, read, self.pin(node, why, "give each call a layer of its own"))
        return layer.outputs

    def _per_channel(self, node: fx.Node, module: nn.Module, axes: Axes) -> Axes | None:
        """Follow what has one parameter, or running statistic, per channel."""
        if len(axes) < 2 or (
            isinstance(module, _InstanceNorm) and len(axes) == module._get_no_batch_dim()
        ):
            return self.unknown(node)
        axis = axes[1]
        if id(module) in self.found.layers:
            self._again(node, self.found.layers[id(module)], axis)
        elif axis is not None:
            self.found.layers[id(module)] = Layer(str(node.target), module, axis, axis, "channels")
        others = {k for k in range(len(axes)) if k != 1}
        self.along(node, axes, others, "it looks at several of them")
        return axes

    # Functions and methods

    def _call(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Follow a function or a method."""
        given = [one for one in node.all_input_nodes if one in self.axes]
        if not given:
            return None
        kind = node.target
        if kind in operations.CONCATENATIONS:
            return self._concatenation(node, shape)
        if kind in operations.ELEMENTWISE or kind == "expand_as":
            return self._elementwise(node, given, shape)
        if operations.is_stochastic_depth(kind):
            return self.axes[given[0]]
        return self._of_one(node, given[0], shape) if len(given) == 1 else self.unknown(node)

    def _of_one(  # noqa: PLR0911 (one for each kind)
        self, node: fx.Node, x: fx.Node, shape: tuple[int, ...]
    ) -> Axes | None:
        """Follow a function of one value."""
        kind, axes = node.target, self.axes[x]
        if kind in operations.TRAILING:
            return self.trailing(node, axes, operations.TRAILING[kind])
        if kind in operations.RESIZES:
            return self.trailing(node, axes, len(shape) - 2)
        if kind is nn.functional.pad:
            return self.trailing(node, axes, len(calls.argument(node, 1, "pad")) // 2)
        if kind in operations.RESHAPES:
            flat = kind in operations.FLATTENS
            return self.reshape(node, x, shape, () if flat else operations.arguments(node))
        if kind in operations.REDUCED:
            return self.reduction(node, axes, shape)
        if kind in operations.SOFTMAXES:
            dim = calls.argument(node, 1, "dim")
            where = {dim % len(axes)} if isinstance(dim, int) else set(range(len(axes)))
            return self.along(node, axes, where, _SHARES)
        order = Call.of(node, self.model).order(len(axes))
        if order is not None:
            return tuple(axes[axis] for axis in order)
        if kind == "expand":
            return self.expand(node, axes, shape)
        return self.indexed(node, axes) if kind is operator.getitem else self.squeezed(node, axes)

    def _elementwise(self, node: fx.Node, given: list[fx.Node], shape: tuple[int, ...]) -> Axes:
        """Unite the units of values that are added, multiplied or the like, axis by axis."""
        result: list[Axis | None] = []
        why = "they are combined with values whose number cannot change, or that are made otherwise"
        pin = self.pin(node, why, _FIXED)
        for behind in range(len(shape), 0, -1):
            found: list[Axis | None] = []
            for one in given:
                sizes = shape_of(one)
                if sizes is None or len(sizes) < behind:
                    continue
                axis = self.axes[one][-behind]
                if sizes[-behind] == shape[-behind] > 1 or (axis and shape[-behind] == 1):
                    found.append(axis)
                else:
                    alone = "a single one stands for many there"
                    self.spaces.pin(axis, self.pin(node, alone, ELSEWHERE))
            for axis in found[1:]:
                self._unify(found[0], axis, pin)
            result.append(found[0] if found else None)
        return tuple(result)

    def _unify(self, one: Axis | None, other: Axis | None, pin: Refusal) -> None:
        if one is not None and other is not None:
            self.spaces.unify(one, other, pin)
        elif one is not None or other is not None:
            self.spaces.pin(one or other, pin)

    def _concatenation(self, node: fx.Node, shape: tuple[int, ...]) -> Axes | None:
        """Follow a concatenation: the segments of all parts, one behind the other."""
        parts = calls.argument(node, 0, "tensors")
        dim = node.kwargs.get("axis", calls.argument(node, 1, "dim") or 0)
        if not isinstance(dim, int) or not all(one in self.axes for one in parts):
            return self.unknown(node)
        dim %= len(shape)
        fixed = self.pin(node, "they are beside values whose number cannot change", _FIXED)
        units = any(self.axes[one][dim] is not None for one in parts)
        joined: list[Segment] = []
        result: list[Axis | None] = list(self.axes[parts[0]])
        for one in parts:
            axes, sizes = self.axes[one], shape_of(one) or ()
            axis = axes[dim]
            joined += self.spaces.new(sizes[dim], fixed) if axis is None else axis
            for k, other in enumerate(axes):
                if k != dim:
                    self._unify(result[k], other, fixed)
        result[dim] = tuple(joined) if units else None
        return tuple(result)
