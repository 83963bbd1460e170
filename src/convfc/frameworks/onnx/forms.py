"""Patch form: a CONV node as the nodes of its FC layer, and back.

The nodes are standard ones, so that every tool reads the file. The last of them has the CONV node's
name and output, and, as metadata, what the CONV node was; the others are marked as belonging to an
FC layer. Going back starts at the last node and takes whatever is found there as the weights, so
that a model that was trained, pruned or rounded in between comes back with its new weights.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf import json_format  # type: ignore[import-untyped]

from convfc.errors import Refusal
from convfc.frameworks.onnx.build import PART, Builder, Sizes
from convfc.frameworks.onnx.products import product
from convfc.frameworks.onnx.read import RECORD, constant, read
from convfc.places import Shared

Array: TypeAlias = npt.NDArray[Any]


def to_patch(node: ir.Node, sizes: Sizes, shared: Shared) -> ir.Node:
    """Put an FC layer into the place of a CONV node; return its last node."""
    layer = read(node, sizes)
    operands = {
        name: {
            "name": value.name,
            "shape": shape,
            "constant": constant(value) is not None,
        }
        for name, value, shape in (
            ("weight", layer.weight, layer.weight_shape),
            ("bias", layer.bias, (layer.geometry.out_channels,)),
        )
        if value is not None
    }
    record: dict[str, Any] = {
        "op_type": node.op_type,
        "attributes": [
            json_format.MessageToDict(ir.to_proto(attribute))
            for attribute in node.attributes.values()
        ],
        "operands": operands,
        "metadata": dict(node.metadata_props),
    }

    def matrix(
        b: Builder,
        value: ir.Value,
        shape: tuple[int, ...],
        exchanged: bool,
    ) -> ir.Value:
        return _matrix(b, value, shape, shared, exchanged=exchanged)

    b = Builder(node, node.version or 1, sizes)
    last = b.insert(product(b, layer, matrix))
    record["nodes"] = len(b.nodes)
    last.metadata_props[RECORD] = json.dumps(record)
    _forget(layer.weight)
    _forget(layer.bias)
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
) -> ir.Value:
    """Return a constant of another shape beside a constant: an initializer, or a node."""
    name = name or f"{value.name}.fc"
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
    node = value.producer()
    if node is None:
        graph = value.graph
        assert graph is not None  # noqa: S101 (an initializer)
        new = ir.Value(
            name=name, shape=made.shape, type=ir.TensorType(made.dtype), const_value=made
        )
        graph.initializers[name] = new
        return new
    beside = ir.Node(
        "", "Constant", [], [ir.AttrTensor("value", made)], outputs=[ir.Value(name=name)], name=name
    )
    node.append(beside)
    return beside.outputs[0]


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


def parts_of(node: ir.Node) -> Parts | None:
    """Return what a layer is made of; None of an FC layer whose nodes a tool has changed."""
    if RECORD in node.metadata_props:
        return _found(node)
    x, weight, *rest = node.inputs
    assert x is not None  # noqa: S101 (a valid node has both)
    assert weight is not None  # noqa: S101
    return Parts(x, weight, rest[0] if rest else None, [node], node)


def back_obstacle(last: ir.Node) -> Refusal | None:
    """Return why an FC layer cannot be a CONV node again, if it cannot."""
    if _found(last) is None:
        return Refusal(
            "its nodes are not those that to_fc made: a tool has changed them",
            "convert back before other tools optimise the model",
        )
    return None


def to_native(last: ir.Node, shared: Shared) -> ir.Node:
    """Put the CONV node into the place of its FC layer; return it."""
    parts = _found(last)
    assert parts is not None, "see back_obstacle"  # noqa: S101
    record = json.loads(last.metadata_props[RECORD])
    inputs: list[ir.Value | None] = [parts.x]
    for name, operand in record["operands"].items():
        value = getattr(parts, name)
        if operand["constant"]:
            value = shared(
                [value], operand["name"], partial(_home, value, operand, _exchanged(record, name))
            )
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
    operand = record["operands"][name]
    if not operand["constant"]:
        return numbers
    if _exchanged(record, name):
        numbers = np.swapaxes(numbers, -1, -2)
    return np.ascontiguousarray(numbers).reshape(operand["shape"])


def _exchanged(record: dict[str, Any], name: str) -> bool:
    return name == "weight" and record["op_type"] == "ConvTranspose"


def _attributes(record: dict[str, Any]) -> list[ir.Attr]:
    protos = (json_format.ParseDict(one, onnx.AttributeProto()) for one in record["attributes"])
    return [ir.from_proto(proto) for proto in protos]


def _home(value: ir.Value, operand: dict[str, Any], exchanged: bool) -> ir.Value:
    """Return the constant that a matrix is, in the CONV node's shape and by its name."""
    name, shape = operand["name"], tuple(operand["shape"])
    tensor, graph = constant(value), value.graph
    assert tensor is not None  # noqa: S101 (see _found)
    assert graph is not None  # noqa: S101
    if exchanged:
        numbers = np.ascontiguousarray(np.swapaxes(tensor.numpy(), -1, -2))
        tensor = ir.Tensor(numbers, dtype=tensor.dtype)
    there = graph.initializers.get(name) if isinstance(graph, ir.Graph) else None
    if there is not None and there.const_value is not None:
        same = tuple(there.const_value.shape) == shape
        if same and there.const_value.tobytes() == tensor.tobytes():
            return there
        name = f"{value.name}.conv"
    return _reshaped(value, tensor, shape, name=name)


def _found(last: ir.Node) -> Parts | None:
    """Return what an FC layer is made of, going back from its last node; None if it is another."""
    record = json.loads(last.metadata_props[RECORD])
    nodes: dict[ir.Node, None] = {}
    _sources(last.outputs[0], last, nodes)
    products = [node for node in nodes if node.op_type == "MatMul"]
    changed = [node for node in nodes if node.op_type != node.metadata_props[PART]]
    if len(products) != 1 or changed or len(nodes) != record["nodes"]:
        return None
    sides = {"weight": products[0].inputs[0], "x": products[0].inputs[1]}
    if "bias" in record["operands"]:
        sides["bias"] = last.inputs[1]
    found: dict[str, ir.Value] = {}
    for name, value in sides.items():
        sources = _sources(value, last, {})
        if len(sources) != 1:
            return None
        found[name] = sources[0]
        operand = record["operands"].get(name, {"constant": False})
        tensor = constant(sources[0]) if operand["constant"] else None
        if operand["constant"] and (tensor is None or tensor.size != math.prod(operand["shape"])):
            return None
    given = [ir.Value(name="x", shape=found["x"].shape)]
    given += [ir.Value(name=n, shape=ir.Shape(o["shape"])) for n, o in record["operands"].items()]
    conv = ir.Node("", record["op_type"], given, _attributes(record))
    order = [node for node in last.graph or () if node in nodes]
    return Parts(found["x"], found["weight"], found.get("bias"), order, conv)


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
