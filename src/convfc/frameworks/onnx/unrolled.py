"""Unrolled form: a CONV node as Flatten, Gemm, Reshape; the Gemm's matrix is the whole layer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from convfc.errors import GeometryError, Refusal
from convfc.frameworks.onnx import read
from convfc.frameworks.onnx.build import Builder, Made, Sizes
from convfc.frameworks.onnx.certify import as_inputs, watched
from convfc.frameworks.onnx.forms import beside, forget, obstacle, parts_of, put, recorded
from convfc.frameworks.onnx.matrices import WholeLayer
from convfc.frameworks.onnx.read import RECORD, constant, operands
from convfc.operators.estimate import SizedGeometry

Refusals = dict[str, Refusal]


def sizes(
    model: ir.Model, layers: Mapping[str, ir.Node], example: Any
) -> tuple[dict[int, SizedGeometry], Refusals, Refusals]:
    """Return what each layer is called on, by ``id``, and why others are refused."""
    inputs = as_inputs(model, example, "example")
    found, _ = watched(model, layers.values(), inputs, "example")
    known = Sizes(model)
    sized: dict[int, SizedGeometry] = {}
    refused: Refusals = {}
    for name, node in layers.items():
        x = node.inputs[0]
        given = None if x is None or node.graph is not model.graph else found.get(x.name or "")
        shown = known if x is None or given is None else known.with_shape(x, given.shape)
        one = _sized(node, shown)
        if isinstance(one, Refusal):
            refused[name] = one
        else:
            sized[id(node)] = one
    return sized, refused, {}


def _unknown(layer: read.ConvNode, size: list[int]) -> str:
    """Say why there is no matrix of a layer; nothing if there is."""
    if layer.is_quantised:
        return "Gemm takes no integers of 8 bits"
    for which, value in (("weight", layer.weight), ("bias", layer.bias)):
        if value is not None and constant(value) is None:
            return f"its {which} is no constant, or a default that an input may replace"
    if len(size) != layer.geometry.spatial_ndim:
        return "it stands in a function or an inner graph, and the size of its input is not known"
    return ""


def _sized(node: ir.Node, known: Sizes) -> SizedGeometry | Refusal:
    """Return what a layer computes, where the size of its input is known."""
    refusal = obstacle(node, known)
    if refusal is not None:
        return refusal
    if RECORD in node.metadata_props:  # a product that is a CONV node: it becomes a product again
        parts = parts_of(node)
        assert parts is not None, "see obstacle"  # noqa: S101
        return SizedGeometry(read.read(parts.conv, known).geometry, (1, 1))
    layer = read.read(node, known)
    shape = known.shape(layer.x)
    size = [] if shape is None else [n for n in shape[2:] if n is not None]
    why = _unknown(layer, size)
    if why:
        return Refusal(f"{node.op_type}: {why}", "use convfc.to_fc, which takes it")
    try:
        geometry = layer.for_size(size)
        geometry.output_size(size)
    except GeometryError as error:
        what, _, remedy = str(error).partition(". Remedy: ")
        return Refusal(f"{node.op_type}: {what}", remedy, cause=error)
    return SizedGeometry(geometry, tuple(size))


def to_unrolled(node: ir.Node, sized: SizedGeometry, made: Made) -> ir.Node:
    """Put an unrolled layer into the place of a CONV node; return its last node."""
    whole = WholeLayer(*sized)
    given = operands(node)
    tensors = {name: constant(given[name]) for name in ("weight", "bias") if name in given}
    shapes: dict[str, Any] = {
        name: one.shape.numpy() for name, one in tensors.items() if one is not None
    }
    record = recorded(node, "unrolled", given, shapes)
    record["input_size"] = sized.input_size
    old = list(given.values())
    for name, tensor in tensors.items():
        assert tensor is not None  # noqa: S101 (see sizes)
        record["operands"][name]["held"] = whole.shape[: 1 if name == "bias" else 2]
        make = whole.matrix if name == "weight" else whole.offset
        held = partial(_held, given[name], tensor, make, made)
        given[name] = made([given[name]], sized, held)
    numbers = tensors["weight"].numpy()  # type: ignore[union-attr]
    record["unread"] = whole.unread(numbers).astype(np.float64).tolist()
    opset = node.version or 1
    b = Builder(node, opset, Sizes(), made)
    flat = b("Flatten", given["x"], axis=1)
    bias = [given["bias"]] if "bias" in given else []
    if not bias and opset < 11:  # Gemm needs one there
        bias = [b.constant(np.zeros(whole.shape[0], numbers.dtype))]
    y = b("Gemm", flat, given["weight"], *bias, transB=1)
    g = sized.geometry
    last = put(
        b, b.reshape(y, (-1, g.out_channels, *g.output_size(sized.input_size))), record, given
    )
    forget(*old)
    return last


def _held(
    value: ir.Value, tensor: ir.TensorProtocol, make: Callable[[Any], Any], made: Made
) -> ir.Value:
    found = ir.Tensor(make(tensor.numpy()), dtype=tensor.dtype)
    return beside(value, found, f"{value.name}.{'x'.join(map(str, found.shape))}", made)
