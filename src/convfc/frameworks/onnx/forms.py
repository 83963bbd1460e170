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
from convfc.frameworks.onnx.read import OPERANDS, RECORD, constant, operands, read
from convfc.places import Shared

Array: TypeAlias = npt.NDArray[Any]


def to_patch(node: ir.Node, sizes: Sizes, shared: Shared) -> ir.Node:
    """Put an FC layer into the place of a CONV node; return its last node."""
    layer, given = read(node, sizes), operands(node)
    shapes = {"weight": layer.weight_shape, "bias": (layer.geometry.out_channels,)}
    described: dict[str, dict[str, Any]] = {
        name: {
            "name": value.name,
            "shape": shapes.get(name),
            "constant": name in shapes and constant(value) is not None,
            "node": None if (made_by := value.producer()) is None else made_by.name,
        }
        for name, value in given.items()
    }
    record: dict[str, Any] = {
        "op_type": node.op_type,
        "attributes": [
            json_format.MessageToDict(ir.to_proto(attribute))
            for attribute in node.attributes.values()
        ],
        "operands": described,
        "inputs": len(node.inputs),
        "metadata": dict(node.metadata_props),
    }

    def matrix(
        b: Builder,
        value: ir.Value,
        shape: tuple[int, ...],
        exchanged: bool,
    ) -> ir.Value:
        found = _matrix(b, value, shape, shared, exchanged=exchanged)
        if constant(value) is not None:
            given.update((name, found) for name, own in given.items() if own is value)
        return found

    b = Builder(node, node.version or 1, sizes)
    last = b.insert(product(b, layer, matrix))
    record["nodes"] = len(b.nodes)
    paths = {value: path for path, value in _sources(last)[1].items()}
    for name, value in given.items():
        described[name]["path"] = paths[value]
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
    node: str | None = None,
) -> ir.Value:
    """Return a constant of another shape beside a constant: an initializer, or a node."""
    graph, producer = value.graph, value.producer()
    assert graph is not None  # noqa: S101 (a constant stands in one)
    if name is None:
        sizes = "x".join(map(str, shape))
        name = f"{value.name}.{sizes}{'.exchanged' * exchanged}"
        while producer is None and name in graph.initializers:
            name += "_"
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
    if producer is None:
        new = ir.Value(
            name=name, shape=made.shape, type=ir.TensorType(made.dtype), const_value=made
        )
        graph.initializers[name] = new
        return new
    beside = ir.Node(
        "", "Constant", [], [ir.AttrTensor("value", made)], outputs=[ir.Value(name=name)], name=node
    )
    producer.append(beside)
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
    others: dict[str, ir.Value]
    """Scales and zero points, by name."""


def parts_of(node: ir.Node) -> Parts | None:
    """Return what a layer is made of; None of an FC layer whose nodes a tool has changed."""
    if RECORD in node.metadata_props:
        return _found(node)
    return _parts(operands(node), [node], node)


def _parts(given: dict[str, ir.Value], nodes: list[ir.Node], conv: ir.Node) -> Parts:
    others = dict(given)
    x, weight, bias = others.pop("x"), others.pop("weight"), others.pop("bias", None)
    return Parts(x, weight, bias, nodes, conv, others)


def back_obstacle(last: ir.Node) -> Refusal | None:
    """Return why an FC layer cannot be a CONV node again, if it cannot."""
    if _found(last) is None:
        return Refusal(
            "its nodes are not those that to_fc made: a tool has changed them",
            "convert back before tools optimise the model, or quantise the CNN: that converts, too",
        )
    return None


def to_native(last: ir.Node, shared: Shared) -> ir.Node:
    """Put the CONV node into the place of its FC layer; return it."""
    parts = _found(last)
    assert parts is not None, "see back_obstacle"  # noqa: S101
    record = json.loads(last.metadata_props[RECORD])
    given = {"x": parts.x, "weight": parts.weight, "bias": parts.bias, **parts.others}
    for name, operand in record["operands"].items():
        if operand["constant"]:
            value = given[name]
            assert value is not None  # noqa: S101 (see _found)
            given[name] = shared(
                [value], operand["name"], partial(_home, value, operand, _exchanged(record, name))
            )
    inputs = [given.get(name) for name in OPERANDS[record["op_type"]]][: record["inputs"]]
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
    return name == "weight" and record["op_type"] != "Conv"


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
    return _reshaped(value, tensor, shape, name=name, node=operand["node"])


def _found(last: ir.Node) -> Parts | None:
    """Return what an FC layer is made of, going back from its last node; None if it is another."""
    record = json.loads(last.metadata_props[RECORD])
    nodes, sources = _sources(last)
    if len(nodes) != record["nodes"] or any(n.op_type != n.metadata_props[PART] for n in nodes):
        return None
    found: dict[str, ir.Value] = {}
    given: dict[str, ir.Value] = {}
    for name, operand in record["operands"].items():
        value = sources.get(tuple(operand["path"]))
        tensor = None if value is None else constant(value)
        shape = operand["shape"]
        if value is None or operand["constant"] and (
            tensor is None or tensor.size != math.prod(shape)
        ):
            return None
        found[name] = value
        given[name] = ir.Value(name=name, shape=ir.Shape(shape) if shape else value.shape)
    if set(found.values()) != set(sources.values()):
        return None
    inputs = [given.get(name) for name in OPERANDS[record["op_type"]]]
    conv = ir.Node("", record["op_type"], inputs, _attributes(record))
    order = [node for node in last.graph or () if node in nodes]
    return _parts(found, order, conv)


def _sources(last: ir.Node) -> tuple[set[ir.Node], dict[tuple[int, ...], ir.Value]]:
    """Return the nodes of an FC layer, and what they are given: by the inputs to go there."""
    nodes: set[ir.Node] = set()
    found: dict[tuple[int, ...], ir.Value] = {}
    pending: list[tuple[ir.Node, tuple[int, ...]]] = [(last, ())]
    while pending:
        node, path = pending.pop()
        if node in nodes:
            continue
        nodes.add(node)
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
