"""Patch form: a CONV node as the nodes of its FC layer, and back.

The nodes are standard ones, so that every tool reads the file. The last of them has the CONV node's
name and output, and, as metadata, what the CONV node was; the others are marked as belonging to an
FC layer. Going back starts at the last node and takes whatever is found there as the weights, so
that a model that was trained, pruned or rounded in between comes back with its new weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf import json_format  # type: ignore[import-untyped]

from convfc.errors import NotAConvolution, Refusal
from convfc.frameworks.onnx import read
from convfc.frameworks.onnx.build import PART, Builder, Sizes
from convfc.frameworks.onnx.linear import Product, is_product, read_product, scales
from convfc.frameworks.onnx.matrices import WholeLayer
from convfc.frameworks.onnx.products import product
from convfc.frameworks.onnx.read import RECORD, Form, constant, form_of
from convfc.places import Shared, place_in_words, warn

Array: TypeAlias = npt.NDArray[Any]

_REMEDY = (
    "to_conv(..., project=True) takes the closest convolution; what convfc.to_fc makes goes back "
    "with any numbers"
)
_HELD = {"weight": "matrix", "bias": "vector"}
_PRODUCTS = {
    "patch": ("MatMul", {"weight": 0, "x": 1}),
    "unrolled": ("Gemm", {"x": 0, "weight": 1, "bias": 2}),
    "native": ("Conv", {"x": 0, "weight": 1, "bias": 2}),
}
"""By form, the node that multiplies, and which of its inputs is what."""


def to_patch(node: ir.Node, sizes: Sizes, shared: Shared) -> ir.Node:
    """Put an FC layer into the place of a CONV node; return its last node."""
    layer = read.read(node, sizes)
    shapes = {"weight": layer.weight_shape, "bias": (layer.geometry.out_channels,)}
    record = recorded(node, "patch", {"weight": layer.weight, "bias": layer.bias}, shapes)

    def matrix(
        b: Builder,
        value: ir.Value,
        shape: tuple[int, ...],
        exchanged: bool,
    ) -> ir.Value:
        return _matrix(b, value, shape, shared, exchanged=exchanged)

    b = Builder(node, node.version or 1, sizes)
    return put(b, product(b, layer, matrix), record, layer.weight, layer.bias)


def recorded(
    node: ir.Node,
    form: Form,
    operands: Mapping[str, ir.Value | None],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Return what a node is, in the words of JSON."""
    names = {value: name for name, value in operands.items()}
    return {
        "form": form,
        "op_type": node.op_type,
        "attributes": [
            json_format.MessageToDict(ir.to_proto(attribute))
            for attribute in node.attributes.values()
        ],
        "inputs": [None if value is None else names.get(value, "x") for value in node.inputs],
        "operands": {
            name: {
                "name": value.name,
                "shape": tuple(shapes[name]),
                "constant": constant(value) is not None,
                "node": None if (made_by := value.producer()) is None else made_by.name,
            }
            for name, value in operands.items()
            if value is not None
        },
        "metadata": dict(node.metadata_props),
    }


def put(b: Builder, y: ir.Value, record: dict[str, Any], *operands: ir.Value | None) -> ir.Node:
    """Put nodes into the place of the node that the record describes; return the last of them."""
    last = b.insert(y)
    record["nodes"] = len(b.nodes)
    last.metadata_props[RECORD] = json.dumps(record)
    for value in operands:
        _forget(value)
    return last


def _matrix(
    b: Builder, value: ir.Value, shape: tuple[int, ...], shared: Shared, *, exchanged: bool
) -> ir.Value:
    """Return a weight in another shape: another constant, or worked out where it is not one."""
    tensor = constant(value)
    if tensor is None:
        found = b.reshape(value, shape)
        last = len(shape) - 1
        order = [*range(last - 1), last, last - 1]
        return b("Transpose", found, perm=order) if exchanged else found
    return shared(
        [value], (shape, exchanged), lambda: _reshaped(value, tensor, shape, exchanged=exchanged)
    )


def _reshaped(
    value: ir.Value,
    tensor: Any,
    shape: tuple[int, ...],
    *,
    exchanged: bool = False,
    name: str | None = None,
    node: str | None = None,
) -> ir.Value:
    """Return a constant of another shape beside a constant: an initializer, or a node."""
    if name is None:
        sizes = "x".join(map(str, shape))
        name = f"{value.name}.{sizes}{'.exchanged' * exchanged}"
    if isinstance(tensor, ir.ExternalTensor) and not exchanged:  # it stays where it is
        made: Any = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=tensor.base_dir,
        )
    else:
        numbers = tensor.numpy().reshape(shape)
        if exchanged:
            numbers = np.ascontiguousarray(np.swapaxes(numbers, -1, -2))
        made = ir.Tensor(numbers, dtype=tensor.dtype, name=name)
    return beside(value, made, name, node)


def beside(
    value: ir.Value, made: ir.TensorProtocol, name: str, node: str | None = None
) -> ir.Value:
    """Return a new constant where another one is: an initializer, or a node."""
    graph, producer = value.graph, value.producer()
    assert graph is not None  # noqa: S101 (a constant stands in one)
    taken = {one.name for other in graph if producer for one in other.outputs}
    taken |= graph.initializers.keys() if isinstance(graph, ir.Graph) else set()
    while name in taken:
        name += "_"
    made.name = name
    if producer is None:
        assert isinstance(graph, ir.Graph)  # noqa: S101 (it has initializers)
        new = ir.Value(
            name=name, shape=made.shape, type=ir.TensorType(made.dtype), const_value=made
        )
        graph.initializers[name] = new
        return new
    new = ir.Value(name=name)
    producer.append(
        ir.Node("", "Constant", [], [ir.AttrTensor("value", made)], outputs=[new], name=node)
    )
    return new


def _forget(value: ir.Value | None) -> None:
    """Remove a constant that nothing needs any more."""
    if value is None or value.uses() or value.is_graph_output() or constant(value) is None:
        return
    node, graph = value.producer(), value.graph
    assert graph is not None  # noqa: S101 (a constant stands in one)
    if node is None:
        del graph.initializers[value.name or ""]
    else:
        graph.remove(node, safe=True)


class Parts(NamedTuple):
    """What a CONV layer in either form consists of in its graph."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    nodes: list[ir.Node]
    conv: ir.Node
    """The CONV node that it is or was, apart from the graph: its inputs have shapes alone."""
    axis: int = 1
    """The axis of x that holds the channels."""
    scales: tuple[float, float] = (1.0, 1.0)
    """What weight and bias are multiplied by; see Gemm."""

    is_product: bool = False

    def as_image(self, x: Array) -> Array:
        """Return an input of the layer in the shape that it has for the CONV node."""
        if not self.is_product:
            return x
        rest = x.size // max(1, x.shape[self.axis])
        batch = len(x) if self.axis else 1
        return x.reshape(batch, x.shape[self.axis], 1, rest // max(1, batch))


def parts_of(node: ir.Node) -> Parts | None:
    """Return what a layer is made of; None of one whose nodes a tool has changed, and of others."""
    if RECORD in node.metadata_props:
        return _found(node)
    if is_product(node):
        return _product_parts(node)
    if form_of(node) is None:
        return None
    x, weight, *rest = node.inputs
    assert x is not None  # noqa: S101 (a valid node has both)
    assert weight is not None  # noqa: S101
    return Parts(x, weight, rest[0] if rest else None, [node], node)


def _product_parts(node: ir.Node) -> Parts | None:
    """Return what a user's FC layer is made of, and the CONV node that it equals."""
    found = read_product(node, Sizes())
    if isinstance(found, Refusal):
        return None
    conv = pointwise(found)
    return Parts(found.x, found.weight, found.c, [node], conv, found.at, scales(node), True)


def pointwise(product: Product) -> ir.Node:
    """Return the CONV node that a product equals: its inputs have shapes alone."""
    shape = ir.Shape([product.features, product.inputs, 1, 1])
    return ir.Node("", "Conv", [ir.Value(name="x"), ir.Value(name="weight", shape=shape)])


def obstacle(node: ir.Node, sizes: Sizes) -> Refusal | None:
    """Return why a CONV layer cannot become an FC layer, if it cannot."""
    return back_obstacle(node) if RECORD in node.metadata_props else read.obstacle(node, sizes)


def back_obstacle(last: ir.Node, *, project: bool = False) -> Refusal | None:
    """Return why a layer that convfc has made cannot be what it was, if it cannot."""
    parts = _found(last)
    if parts is None:
        return Refusal(
            "its nodes are not those that convfc made: a tool has changed them",
            "convert back before other tools optimise the model",
        )
    if form_of(last) == "unrolled" and not project:
        try:
            for name in ("weight", "bias"):
                tensor = constant(getattr(parts, name)) if getattr(parts, name) else None
                if tensor is not None:
                    _read_back(json.loads(last.metadata_props[RECORD]), name, tensor.numpy())
        except NotAConvolution as error:
            what = str(error).partition(". Remedy:")[0]
            return Refusal(f"its matrix is not a convolution's: {what}", _REMEDY, cause=error)
    return None


def to_native(last: ir.Node, shared: Shared, name: str = "", *, project: bool = False) -> ir.Node:
    """Put the node that a layer was into its place; return it."""
    parts = _found(last)
    assert parts is not None, "see back_obstacle"  # noqa: S101
    record = json.loads(last.metadata_props[RECORD])
    inputs: list[ir.Value | None] = []
    for which in record["inputs"]:
        value = None if which is None else getattr(parts, which)
        if which in record["operands"] and record["operands"][which]["constant"]:
            key = record["operands"][which]["name"]
            make = partial(_home, value, record, which, place=name, project=project)
            value = shared([value], key, make)
        inputs.append(value)
    graph = last.graph
    assert graph is not None  # noqa: S101 (it stands in a model)
    node = ir.Node(
        "",
        record["op_type"],
        inputs,
        _attributes(record),
        name=last.name,
        outputs=[ir.Value()],
        metadata_props=record["metadata"],
        doc_string=last.doc_string,
    )
    ir.convenience.replace_nodes_and_values(
        graph, last, [last], [node], list(last.outputs), list(node.outputs)
    )
    graph.remove([one for one in parts.nodes if one is not last], safe=True)
    _forget(parts.weight)
    _forget(parts.bias)
    return node


def in_conv_layout(node: ir.Node, name: str, numbers: Array) -> Array:
    """Return numbers of a layer's weight or bias, as its graph has them, in the CONV layout."""
    if RECORD not in node.metadata_props:
        return numbers
    record = json.loads(node.metadata_props[RECORD])
    if not record["operands"][name]["constant"]:
        return numbers
    return _read_back(record, name, numbers, project=True)[0]


def _read_back(
    record: dict[str, Any], name: str, numbers: Array, *, project: bool = False
) -> tuple[Array, float]:
    """Return an operand in the shape that it had, and how far it is from being one."""
    away = 0.0
    if record["form"] == "unrolled":
        whole = whole_layer(record)
        if name == "weight":
            unread = np.array(record["unread"])
            numbers, away = whole.weight(numbers, unread, project=project)
        else:
            numbers, away = whole.bias(numbers, project=project)
    elif _exchanged(record, name):
        numbers = np.swapaxes(numbers, -1, -2)
        if record["form"] == "native":  # (features, inputs, 1, 1)
            numbers = numbers.reshape(numbers.shape[:2]).T
    return np.ascontiguousarray(numbers).reshape(record["operands"][name]["shape"]), away


def whole_layer(record: dict[str, Any]) -> WholeLayer:
    """Return what an unrolled layer's CONV node computes, on inputs of its size."""
    size = tuple(record["input_size"])
    layer = read.read(_conv_of(record, (None, None, *size)), Sizes())
    return WholeLayer(layer.for_size(size), size)


def _conv_of(record: dict[str, Any], shape: Sequence[int | None] | ir.Shape | None) -> ir.Node:
    """Return the CONV node of a record, apart from any graph."""
    given = [ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))]
    given += [ir.Value(name=n, shape=ir.Shape(o["shape"])) for n, o in record["operands"].items()]
    return ir.Node("", record["op_type"], given, _attributes(record))


def _exchanged(record: dict[str, Any], name: str) -> bool:
    return name == "weight" and record.get("exchanged", record["op_type"] == "ConvTranspose")


def _attributes(record: dict[str, Any]) -> list[ir.Attr]:
    protos = (json_format.ParseDict(one, onnx.AttributeProto()) for one in record["attributes"])
    return [ir.from_proto(proto) for proto in protos]


def _home(
    value: ir.Value, record: dict[str, Any], which: str, *, place: str, project: bool
) -> ir.Value:
    """Return the constant that a matrix is, in the shape that it had and by its name."""
    operand = record["operands"][which]
    name, shape = operand["name"], tuple(operand["shape"])
    tensor, graph = constant(value), value.graph
    assert tensor is not None  # noqa: S101 (see _found)
    assert graph is not None  # noqa: S101
    if value.name == name and tuple(tensor.shape) == shape:
        return value
    if record["form"] == "unrolled" or _exchanged(record, which):
        numbers, away = _read_back(record, which, tensor.numpy(), project=project)
        if away:
            what = "the closest convolution is" if which == "weight" else "the mean of its bias is"
            warn(f"{place_in_words(place)}: {what} {away:.3g} away from its {_HELD[which]}")
        tensor = ir.Tensor(numbers, dtype=tensor.dtype)
    there = graph.initializers.get(name) if isinstance(graph, ir.Graph) else None
    if there is not None and there.const_value is not None:
        same = tuple(there.const_value.shape) == shape
        if same and there.const_value.tobytes() == tensor.tobytes():
            return there
        name = f"{value.name}.conv"
    return _reshaped(value, tensor, shape, name=name, node=operand["node"])


def _found(last: ir.Node) -> Parts | None:
    """Return what an FC layer is made of, going back from its last node; None if it is another."""
    record = json.loads(last.metadata_props[RECORD])
    nodes: dict[ir.Node, None] = {}
    _sources(last.outputs[0], last, nodes)
    kind, places = _PRODUCTS[record["form"]]
    products = [node for node in nodes if node.op_type == kind]
    changed = [node for node in nodes if node.op_type != node.metadata_props[PART]]
    if len(products) != 1 or changed or len(nodes) != record["nodes"]:
        return None
    inputs = products[0].inputs
    sides = {name: inputs[at] for name, at in places.items() if at < len(inputs)}
    if "bias" in record["operands"]:
        sides["bias"] = sides.get("bias") or last.inputs[-1]
    elif _sources(sides.pop("bias", None), last, {}):  # other than the zeros of an old opset
        return None
    found: dict[str, ir.Value] = {}
    for name, value in sides.items():
        sources = _sources(value, last, {})
        if len(sources) != 1:
            return None
        found[name] = sources[0]
        operand = record["operands"].get(name, {"constant": False})
        tensor = constant(sources[0]) if operand["constant"] else None
        size = math.prod(operand.get("held", operand["shape"])) if operand["constant"] else 0
        if operand["constant"] and (tensor is None or tensor.size != size):
            return None
    shape: Any = found["x"].shape
    if record["form"] == "unrolled":
        shape = (None, None, *record["input_size"])
    conv = products[0] if record["form"] == "native" else _conv_of(record, shape)
    order = [node for node in last.graph or () if node in nodes]
    is_product = record["form"] == "native"
    more = record.get("axis", 1), scales(_conv_of(record, None)), is_product
    return Parts(found["x"], found["weight"], found.get("bias"), order, conv, *more)


def _sources(value: ir.Value | None, last: ir.Node, nodes: dict[ir.Node, None]) -> list[ir.Value]:
    """Return what the nodes of an FC layer that lead to a value are given; these are noted."""
    found: dict[ir.Value, None] = {}
    pending = [value]
    while pending:
        one = pending.pop()
        if one is None:
            continue
        node = one.producer()
        if node is None or PART not in node.metadata_props or _is_other(node, last):
            found[one] = None
        elif node not in nodes:
            nodes[node] = None
            pending += node.inputs
    return list(found)


def _is_other(node: ir.Node, last: ir.Node) -> bool:
    """Say whether a node is the last one of another FC layer."""
    return node is not last and RECORD in node.metadata_props
