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
from convfc.frameworks.onnx.build import PART, Builder, Made, Sizes
from convfc.frameworks.onnx.linear import Product, is_product, read_product, scales
from convfc.frameworks.onnx.matrices import WholeLayer
from convfc.frameworks.onnx.products import product
from convfc.frameworks.onnx.read import OPERANDS, RECORD, Form, constant, form_of, operands
from convfc.places import place_in_words, warn

Array: TypeAlias = npt.NDArray[Any]

_REMEDY = (
    "to_conv(..., project=True) takes the closest convolution; what convfc.to_fc makes goes back "
    "with any numbers"
)
_HELD = {"weight": "matrix", "bias": "vector"}


def to_patch(node: ir.Node, sizes: Sizes, made: Made) -> ir.Node:
    """Put an FC layer into the place of a CONV node; return its last node."""
    layer, given = read.read(node, sizes), operands(node)
    shapes = {"weight": layer.weight_shape, "bias": (layer.geometry.out_channels,)}
    record = recorded(node, "patch", given, shapes)

    def matrix(
        b: Builder,
        value: ir.Value,
        shape: tuple[int, ...],
        exchanged: bool,
    ) -> ir.Value:
        found = reshaped(b, value, shape, exchanged=exchanged)
        if constant(value) is not None:
            given.update((name, found) for name, own in given.items() if own is value)
        return found

    b = Builder(node, node.version or 1, sizes, made)
    last = put(b, product(b, layer, matrix), record, given)
    forget(layer.weight, layer.bias)
    return last


def recorded(
    node: ir.Node,
    form: Form,
    given: Mapping[str, ir.Value],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Return what a node is, in the words of JSON; operands with a shape are changed."""
    return {
        "form": form,
        "op_type": node.op_type,
        "attributes": [
            json_format.MessageToDict(ir.to_proto(attribute))
            for attribute in node.attributes.values()
        ],
        "operands": {
            name: {
                "name": value.name,
                "shape": shapes.get(name),
                "constant": name in shapes and constant(value) is not None,
                "node": _names_of_node(value),
            }
            for name, value in given.items()
        },
        "inputs": OPERANDS.get(node.op_type, ())[: len(node.inputs)],
        "metadata": dict(node.metadata_props),
    }


def put(b: Builder, y: ir.Value, record: dict[str, Any], given: Mapping[str, ir.Value]) -> ir.Node:
    """Put nodes, which are given these operands, into the place of a node; return the last."""
    last = b.insert(y)
    record["nodes"] = len(b.nodes)
    paths = {value: path for path, value in _sources(last)[1].items()}
    for name, value in given.items():
        record["operands"][name]["path"] = paths[value]
    last.metadata_props[RECORD] = json.dumps(record)
    return last


def _names_of_node(value: ir.Value) -> tuple[str | None, str | None] | None:
    """Return the names of a Constant node and of the tensor in it; None of any other value."""
    node, tensor = value.producer(), constant(value)
    return None if node is None or tensor is None else (node.name, tensor.name)


def reshaped(
    b: Builder, value: ir.Value, shape: tuple[int, ...], *, exchanged: bool = False
) -> ir.Value:
    """Return a weight in another shape: another constant, or worked out where it is not one."""
    tensor = constant(value)
    if tensor is None:
        found = b.reshape(value, shape)
        last = len(shape) - 1
        order = [*range(last - 1), last, last - 1]
        return b("Transpose", found, perm=order) if exchanged else found
    name = f"{value.name}.{'x'.join(map(str, shape))}{'.exchanged' * exchanged}"
    make = partial(_reshaped, value, tensor, shape, name, b.made, exchanged=exchanged)
    return b.made([value], (shape, exchanged), make)


def _reshaped(
    value: ir.Value,
    tensor: Any,
    shape: tuple[int, ...],
    name: str,
    among: Made,
    *,
    exchanged: bool = False,
    node: Sequence[str | None] | None = None,
) -> ir.Value:
    """Return a constant of another shape beside a constant: an initializer, or a node."""
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
    return beside(value, made, name, among, node)


def beside(
    value: ir.Value,
    made: ir.TensorProtocol,
    name: str,
    among: Made,
    node: Sequence[str | None] | None = None,
) -> ir.Value:
    """Return a new constant where another one is: an initializer, or a node.

    A node, and the tensor in it, may have names of their own.
    """
    graph, producer = value.graph, value.producer()
    assert graph is not None  # noqa: S101 (a constant stands in one)
    made.name = name = among.name(name, graph)
    if producer is None:
        assert isinstance(graph, ir.Graph)  # noqa: S101 (it has initializers)
        new = ir.Value(
            name=name,
            shape=ir.Shape(made.shape.numpy()),
            type=ir.TensorType(made.dtype),
            const_value=made,
        )
        graph.initializers[name] = new
    else:
        new = ir.Value(name=name)
        of_node, made.name = (name, name) if node is None else node
        held = ir.AttrTensor("value", made)
        producer.append(ir.Node("", "Constant", [], [held], outputs=[new], name=of_node))
    among.values(graph)[name] = new
    return new


def forget(*values: ir.Value | None) -> None:
    """Remove constants that nothing needs any more."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output() or constant(value) is None:
            continue
        node, graph = value.producer(), value.graph
        assert graph is not None  # noqa: S101 (a constant stands in one)
        if node is not None:
            graph.remove(node, safe=True)
        elif graph.initializers.get(value.name or "") is value:
            del graph.initializers[value.name or ""]


class Parts(NamedTuple):
    """What a CONV layer in either form consists of in its graph."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    nodes: list[ir.Node]
    conv: ir.Node
    """The CONV node that it is or was, apart from the graph: its inputs have shapes alone."""
    others: dict[str, ir.Value]
    """Scales and zero points, by name."""
    axis: int = 1
    """The axis of x that holds the channels."""
    scales: tuple[float, float] = (1.0, 1.0)
    """What weight and bias are multiplied by; see Gemm."""
    is_product: bool = False
    """Whether it is, or was, a product of the user's."""

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
    if form_of(node) is None or node.op_type not in OPERANDS:
        return None
    return _parts(operands(node), [node], node)


def _parts(given: dict[str, ir.Value], nodes: list[ir.Node], conv: ir.Node) -> Parts:
    others = dict(given)
    x, weight, bias = others.pop("x"), others.pop("weight"), others.pop("bias", None)
    return Parts(x, weight, bias, nodes, conv, others)


def _product_parts(node: ir.Node) -> Parts | None:
    """Return what a user's FC layer is made of, and the CONV node that it equals."""
    found = read_product(node, Sizes())
    if isinstance(found, Refusal):
        return None
    conv = pointwise(found)
    return Parts(found.x, found.weight, found.c, [node], conv, {}, found.at, scales(node), True)


def pointwise(product: Product) -> ir.Node:
    """Return the CONV node that a product equals: its inputs have shapes alone."""
    shape = ir.Shape([product.features, product.inputs, 1, 1])
    return ir.Node("", "Conv", [ir.Value(name="x"), ir.Value(name="weight", shape=shape)])


def damage(node: ir.Node) -> Refusal | None:
    """Return why what convfc has written down at a node cannot be read, if it cannot."""
    if RECORD in node.metadata_props:
        try:
            form_of(node)
            parts_of(node)
        except Exception as error:  # what stands there may be anything
            name = node.name or "(without a name)"
            what = f"the record of how node {name} was made is damaged"
            return Refusal(what, "convert the original model once more", cause=error)
    return None


def obstacle(node: ir.Node, sizes: Sizes) -> Refusal | None:
    """Return why a CONV layer cannot become an FC layer, if it cannot."""
    return back_obstacle(node) if RECORD in node.metadata_props else read.obstacle(node, sizes)


def back_obstacle(last: ir.Node, *, project: bool = False) -> Refusal | None:
    """Return why a layer that convfc has made cannot be what it was, if it cannot."""
    parts = _found(last)
    if parts is None:
        return Refusal(
            "its nodes are not those that convfc made: a tool has changed them",
            "convert back before other tools work on it; quantise the CNN, which can be converted",
        )
    if form_of(last) == "unrolled" and not project:
        record = json.loads(last.metadata_props[RECORD])
        try:
            for name in ("weight", "bias"):
                value = getattr(parts, name)
                if value is not None:
                    _read_back(record, name, _numbers(value))
        except NotAConvolution as error:
            what = str(error).partition(". Remedy:")[0]
            return Refusal(f"its matrix is not a convolution's: {what}", _REMEDY, cause=error)
    return None


def _numbers(value: ir.Value) -> Array:
    """Return the numbers of a constant."""
    found: Array = ir.convenience.get_const_tensor(value).numpy()  # type: ignore[union-attr]
    return found


def to_native(last: ir.Node, made: Made, place: str = "", *, project: bool = False) -> ir.Node:
    """Put the node that a layer was into its place; return it."""
    parts = _found(last)
    assert parts is not None, "see back_obstacle"  # noqa: S101
    record = json.loads(last.metadata_props[RECORD])
    given = {"x": parts.x, "weight": parts.weight, "bias": parts.bias, **parts.others}
    for name, operand in record["operands"].items():
        if operand["constant"]:
            value = given[name]
            assert value is not None  # noqa: S101 (see _found)
            make = partial(_home, value, record, name, made, place=place, project=project)
            given[name] = made([value], operand["name"], make)
    inputs = [given.get(name) for name in record["inputs"]]
    graph = last.graph
    assert graph is not None  # noqa: S101 (it stands in a model)
    node = ir.Node(
        "",
        record["op_type"],
        inputs,
        _attributes(record),
        version=last.version,
        name=last.name,
        outputs=[ir.Value()],
        metadata_props=record["metadata"],
        doc_string=last.doc_string,
    )
    ir.convenience.replace_nodes_and_values(
        graph, last, [last], [node], list(last.outputs), list(node.outputs)
    )
    graph.remove([one for one in parts.nodes if one is not last], safe=True)
    forget(parts.weight, parts.bias)
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
    layer = read.read(_conv_of(record, {"x": (None, None, *size)}), Sizes())
    return WholeLayer(layer.for_size(size), size)


def _conv_of(record: dict[str, Any], shapes: Mapping[str, Any]) -> ir.Node:
    """Return the node of a record, apart from any graph, with operands of these shapes."""
    given = {}
    for name, operand in record["operands"].items():
        shape = operand["shape"] or shapes.get(name)
        given[name] = ir.Value(name=name, shape=None if shape is None else ir.Shape(shape))
    inputs = [given.get(name) for name in record["inputs"]]
    return ir.Node("", record["op_type"], inputs, _attributes(record))


def _exchanged(record: dict[str, Any], name: str) -> bool:
    return name == "weight" and record.get("exchanged", record["op_type"] != "Conv")


def _attributes(record: dict[str, Any]) -> list[ir.Attr]:
    protos = (json_format.ParseDict(one, onnx.AttributeProto()) for one in record["attributes"])
    return [ir.from_proto(proto) for proto in protos]


def _home(
    value: ir.Value, record: dict[str, Any], which: str, made: Made, *, place: str, project: bool
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
    there = made.values(graph).get(name)
    held = None if there is None or there.graph is not graph else constant(there)
    if there is not None and held is not None:
        same = tuple(held.shape.numpy()) == shape and held.dtype == tensor.dtype
        if same and held.tobytes() == tensor.tobytes():
            return there
    return _reshaped(value, tensor, shape, name, made, node=operand["node"])


def _found(last: ir.Node) -> Parts | None:
    """Return what an FC layer is made of, going back from its last node; None if it is another."""
    record = json.loads(last.metadata_props[RECORD])
    nodes, sources = _sources(last)
    if len(nodes) != record["nodes"] or any(n.op_type != n.metadata_props[PART] for n in nodes):
        return None
    found: dict[str, ir.Value] = {}
    shapes: dict[str, Any] = {}
    for name, operand in record["operands"].items():
        value = sources.get(tuple(operand["path"]))
        tensor = None if value is None else constant(value)
        shape = operand.get("held", operand["shape"])
        if value is None or (
            operand["constant"] and (tensor is None or tensor.size != math.prod(shape))
        ):
            return None
        found[name] = value
        shapes[name] = value.shape
    if set(found.values()) != set(sources.values()):
        return None
    if record["form"] == "unrolled":
        shapes["x"] = (None, None, *record["input_size"])
    conv = _conv_of(record, shapes)
    parts = _parts(found, nodes, conv)
    if record["form"] != "native":
        return parts
    (node,) = (node for node in nodes if node.op_type == "Conv")
    return parts._replace(conv=node, axis=record["axis"], scales=scales(conv), is_product=True)


def _sources(last: ir.Node) -> tuple[list[ir.Node], dict[tuple[int, ...], ir.Value]]:
    """Return the nodes of an FC layer, each after those it needs, and what they are given.

    That is found by the inputs to go there.
    """
    nodes: list[ir.Node] = []
    seen: set[ir.Node] = set()
    found: dict[tuple[int, ...], ir.Value] = {}
    pending: list[tuple[ir.Node, tuple[int, ...] | None]] = [(last, ())]
    while pending:
        node, path = pending.pop()
        if path is None:  # all that it needs is there
            nodes.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        pending.append((node, None))
        for position, value in enumerate(node.inputs):
            if value is None:
                continue
            source = value.producer()
            if source is None or PART not in source.metadata_props or _is_other(source, last):
                found[(*path, position)] = value
            else:
                pending.append((source, (*path, position)))
    return nodes, found


def _is_other(node: ir.Node, last: ir.Node) -> bool:
    """Say whether a node is the last one of another FC layer."""
    return node is not last and RECORD in node.metadata_props
