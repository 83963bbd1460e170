"""Nodes in front of a node: standard operators, spelled as the model's opset has them.

Sizes may be unknown: a shape is written as numbers where they are known, with 0 (as the input has
it) and -1 (what is left) where that is enough, and is computed by the model where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.extras import needing
from convfc.places import Shared

with needing():
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass


PART = "convfc.part"
"""Metadata of every node that belongs to an FC layer: they go when the CONV node comes back."""
END = np.iinfo(np.int64).max
"""Where a slice to the end of an axis stops."""


class Size(NamedTuple):
    """A size that only a run knows: that of an axis of a value, floor(n / over) * times."""

    of: ir.Value
    axis: int
    times: int = 1
    over: int = 1


Dims: TypeAlias = Sequence[int | Size]


class Made(Shared):
    """What is made for a model, once for all that share it, and by names that are not taken.

    Without a model, no name is taken but those of the graph where it is put.
    """

    def __init__(self, model: ir.Model | None = None) -> None:
        super().__init__()
        self._whole = model is not None
        self._all: dict[str, ir.Value] = {}
        self._in: dict[ir.Graph | ir.Function, dict[str, ir.Value]] = {}
        parts: list[ir.Graph | ir.Function] = []
        if model is not None:
            parts += [*model.graphs(), *model.functions.values()]
        for part in parts:
            self._all |= ir.convenience.create_value_mapping(part)

    def name(self, wanted: str, graph: ir.Graph | ir.Function) -> str:
        """Return a name for a new value: the one that is wanted, with a number if it is taken."""
        values, name, number = self.values(graph), wanted, 1
        while name in values:
            number += 1
            name = f"{wanted}{number}"
        return name

    def values(self, graph: ir.Graph | ir.Function) -> dict[str, ir.Value]:
        """Return all values by name, to which a new one has to be added."""
        if self._whole:
            return self._all
        if graph not in self._in:
            self._in[graph] = ir.convenience.create_value_mapping(graph)
        return self._in[graph]


class Builder:
    """Puts nodes in front of a node of a graph or a function; their names derive from its."""

    def __init__(self, before: ir.Node, opset: int, known: Sizes, made: Made) -> None:
        assert before.graph is not None  # noqa: S101 (it stands in a model)
        self.before, self.opset, self.known, self.made = before, opset, known, made
        self.graph = before.graph
        self.nodes: list[ir.Node] = []
        self._name = before.outputs[0].name
        self._integers: dict[tuple[int, ...], ir.Value] = {}

    def __call__(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of one output; inputs at the end that are None are left out."""
        while inputs[-1:] == (None,):
            inputs = inputs[:-1]
        name = self.made.name(f"{self._name}.fc{len(self.nodes)}", self.graph)
        made = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node("", kind, inputs, made, name=name, outputs=[ir.Value(name=name)])
        node.metadata_props[PART] = kind
        self.nodes.append(node)
        self.made.values(self.graph)[name] = node.outputs[0]
        return node.outputs[0]

    def constant(self, numbers: npt.NDArray[Any]) -> ir.Value:
        """Add a constant, as a node: functions, and bodies of loops, have no initializers."""
        if self.opset >= 9 or numbers.dtype.kind == "f":
            return self("Constant", value=ir.Tensor(numbers))
        small = self("Constant", value=ir.Tensor(numbers.astype(np.float32)))
        return self("Cast", small, to=ir.DataType.from_numpy(numbers.dtype).value)

    def integers(self, *values: int) -> ir.Value:
        """Return a list of integers, as one constant for all who need it."""
        if values not in self._integers:
            self._integers[values] = self.constant(np.array(values, np.int64))
        return self._integers[values]

    def size(self, value: ir.Value, axis: int) -> int | Size:
        """Return the size of an axis, as a number if it is known."""
        size = self.known(value, axis)
        return Size(value, axis) if size is None else size

    def unsqueeze(self, x: ir.Value, axis: int, kind: str = "Unsqueeze") -> ir.Value:
        """Insert an axis of one element."""
        if self.opset < 13:
            return self(kind, x, axes=[axis])
        return self(kind, x, self.integers(axis))

    def squeeze(self, x: ir.Value, axis: int) -> ir.Value:
        """Leave out an axis of one element."""
        return self.unsqueeze(x, axis, "Squeeze")

    def pad(
        self, x: ir.Value, rank: int, pads: dict[int, tuple[int, int]], filled: Any = None
    ) -> ir.Value:
        """Pad axes with zeros, or with a scalar value."""
        if not any(map(any, pads.values())):
            return x
        low, high = ([pads.get(axis, (0, 0))[end] for axis in range(rank)] for end in (0, 1))
        if self.opset < 11:
            return self("Pad", x, pads=[*low, *high])
        return self("Pad", x, self.integers(*low, *high), filled)

    def slice(
        self,
        x: ir.Value,
        axes: Mapping[int, tuple[int, int, int]],
        counts: Mapping[int, int | Size] | None = None,
    ) -> ir.Value:
        """Take ``(start, stop, step)`` of axes; a stop below 1 counts from the end.

        How many that are has to be known in an opset whose slices have no steps.
        """
        axes = {a: (at, stop or END, step) for a, (at, stop, step) in axes.items()}
        axes = {axis: span for axis, span in axes.items() if span != (0, END, 1)}
        if not axes:
            return x
        starts, stops, steps = zip(*axes.values(), strict=True)
        if self.opset >= 10:
            return self("Slice", x, *(self.integers(*n) for n in (starts, stops, axes, steps)))
        if set(steps) == {1}:
            return self("Slice", x, starts=list(starts), ends=list(stops), axes=list(axes))
        for axis, (start, _, step) in axes.items():
            count = (counts or {}).get(axis)
            assert isinstance(count, int), "see read.obstacle"  # noqa: S101
            picked = range(start, start + count * step, step)
            x = self("Gather", x, self.integers(*picked), axis=axis)
        return x

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """Put values one after the other."""
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=axis)

    def total(self, parts: Sequence[ir.Value]) -> ir.Value:
        """Add values of one shape."""
        x, *others = parts
        for other in others:
            x = self("Add", x, other)
        return x

    def reshape(self, x: ir.Value, dims: Dims) -> ir.Value:
        """Give a value another shape; of `Size`, one may be left to be worked out."""
        shape = [0 if d == Size(x, axis) else d for axis, d in enumerate(dims)]
        open_ = [axis for axis, d in enumerate(shape) if isinstance(d, Size)]
        if len(open_) == 1 and -1 not in shape:
            shape[open_[0]], open_ = -1, []
        if not open_:
            return self("Reshape", x, self.integers(*(d for d in shape if isinstance(d, int))))
        return self("Reshape", x, self.sizes(shape))

    def sizes(self, dims: Dims) -> ir.Value:
        """Return sizes as a list of integers that the model works out."""
        parts = []
        for d in dims:
            if not isinstance(d, Size):
                parts.append(self.integers(d))
                continue
            part = self("Gather", self("Shape", d.of), self.integers(d.axis), axis=0)
            for kind, number in (("Div", d.over), ("Mul", d.times)):
                part = part if number == 1 else self(kind, part, self.integers(number))
            parts.append(part)
        return self.concat(parts, 0)

    def insert(self, last: ir.Value) -> ir.Node:
        """Put all nodes into the graph, the last of them in the node's place; return it."""
        node = last.producer()
        assert node is self.nodes[-1]  # noqa: S101
        old = self.before
        ir.convenience.replace_nodes_and_values(
            self.graph, old, [old], self.nodes, list(old.outputs[:1]), [last]
        )
        self.known.take_over(old.outputs[0], last)
        node.name, node.doc_string = old.name, old.doc_string
        return node


class Sizes:
    """The sizes of a model's values, as far as shape inference knows them; None where it does not.

    Of a value that a `Builder` has made, nothing is known.
    """

    def __init__(self, model: ir.Model | None = None) -> None:
        self._found: dict[ir.Value, ir.Value] = {}  # the same one in a model that says more
        if model is None:  # whose values have their shapes
            return
        inferred = ShapeInferencePass(strict_mode=False)(model.clone()).model
        for graph, its in zip(model.graphs(), inferred.graphs(), strict=True):
            values = ir.convenience.create_value_mapping(its)
            for name, value in ir.convenience.create_value_mapping(graph).items():
                self._found[value] = values[name]
        for _ in model.functions:  # one may call another
            self._into_functions(model)

    def _into_functions(self, model: ir.Model) -> None:
        """Give the inputs of functions the shapes that they have in all calls."""
        parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        nodes = [node for part in parts for node in ir.traversal.RecursiveGraphIterator(part)]
        for key, function in model.functions.items():
            calls = [node for node in nodes if node.op_identifier() == key]
            for number, value in enumerate(function.inputs):
                given = [one for call in calls for one in call.inputs[number : number + 1] if one]
                if len({self.shape(one) for one in given}) == 1:
                    self._found[value] = self._found.get(given[0], given[0])

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let a new value have the shape of the one whose place it takes."""
        if old in self._found:
            self._found[new] = self._found[old]

    def note(self) -> None:
        """Let the values have the shapes that are known of them."""
        for value, known in self._found.items():
            if known.shape is not None and known.type is not None:
                value.shape, value.type = known.shape, known.type

    def with_shape(self, value: ir.Value, shape: Sequence[int]) -> Sizes:
        """Return the same with the shape that a run has shown of a value."""
        made = Sizes()
        made._found = {**self._found, value: ir.Value(name=value.name, shape=ir.Shape(shape))}
        return made

    def __call__(self, value: ir.Value, axis: int) -> int | None:
        """Return the size of an axis."""
        shape = self.shape(value)
        return shape[axis] if shape is not None and axis < len(shape) else None

    def shape(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Return the shape of a value; None if not even its axes are known."""
        shape: ir.ShapeProtocol | None = self._found.get(value, value).shape
        tensor = ir.convenience.get_const_tensor(value) if shape is None else None
        shape = shape if tensor is None else tensor.shape  # in a function nothing is inferred
        if shape is None:
            return None
        return tuple(n if isinstance(n, int) else None for n in shape)
