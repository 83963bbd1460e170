"""What a CONV node computes, in convfc's own terms; and the parts of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from convfc.errors import GeometryError, Refusal
from convfc.frameworks.onnx.build import PART, Sizes
from convfc.geometry import ConvGeometry

RECORD = "convfc"
"""Metadata of the last node of a layer that convfc has made: the node that it was, as JSON."""
_QUANTISED = "x_scale x_zero_point weight w_scale w_zero_point y_scale y_zero_point bias"
OPERANDS = {
    "Conv": ("x", "weight", "bias"),
    "ConvTranspose": ("x", "weight", "bias"),
    "ConvInteger": ("x", "weight", "x_zero_point", "w_zero_point"),
    "QLinearConv": ("x", *_QUANTISED.split()),
}
"""What each CONV operator is given, in its order."""
CONV = tuple(OPERANDS)
PER_FILTER = ("w_scale", "w_zero_point")  # may be one number, or one for each filter
_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Whose operators with Conv in their names are CONV layers."""
_SIZES = "give the model's inputs their sizes (onnx.tools.update_model_dims)"


@dataclass(frozen=True, eq=False)
class ConvNode:
    """A CONV node, read.

    ``padding`` of the geometry is that of the node; where `same` says so it depends on the size of
    the input, which only a run knows, and is 0 here.
    """

    geometry: ConvGeometry
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    weight_shape: tuple[int, ...]  # (f, c / g, *kernel); transposed, (c, f / g, *kernel)
    same: Literal["upper", "lower"] | None = None
    others: Mapping[str, ir.Value] = field(default_factory=dict)  # scales and zero points
    op_type: str = "Conv"

    @property
    def is_quantised(self) -> bool:
        """Whether it computes with integers."""
        return self.op_type in ("ConvInteger", "QLinearConv")

    def for_size(self, size: Sequence[int]) -> ConvGeometry:
        """Return the geometry with the padding that it has on an input of this size."""
        g = self.geometry
        if self.same is None:
            return g
        rest: dict[str, Any] = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}
        channels = g.in_channels, g.out_channels
        return ConvGeometry.same(*channels, g.kernel_size, input_size=size, odd=self.same, **rest)


Form: TypeAlias = Literal["native", "patch", "unrolled", "2-D"]


def form_of(part: Any) -> Form | None:
    """Return the form in which a node is a CONV layer; None if it is none."""
    if not isinstance(part, ir.Node):
        return None
    if RECORD in part.metadata_props:
        form: Form = json.loads(part.metadata_props[RECORD])["form"]
        return form
    return "native" if "Conv" in part.op_type and part.domain in _DOMAINS else None


def children(part: Any) -> dict[str, Any]:
    """Return the parts of a model, a function, a graph or a node, by name.

    A node goes by its name, or its first output's if it has none; if it is not the only one of
    that name, with a number.
    """
    found: dict[str, Any] = {}
    if isinstance(part, ir.Model):
        found |= children(part.graph)
        found |= {"::".join(filter(None, key)): one for key, one in part.functions.items()}
    elif isinstance(part, (ir.Graph, ir.Function)):
        for node in part:
            if PART in node.metadata_props and RECORD not in node.metadata_props:
                continue
            name = first = node.name or node.outputs[0].name or node.op_type
            number = 1
            while name in found:
                number += 1
                name = f"{first}#{number}"
            found[name] = node
    elif isinstance(part, ir.Node):
        for attribute in part.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                found[attribute.name] = attribute.as_graph()
            elif attribute.type is ir.AttributeType.GRAPHS:
                graphs = enumerate(attribute.as_graphs())
                found |= {f"{attribute.name}{number}": graph for number, graph in graphs}
    return found


def constant(value: ir.Value) -> Any | None:
    """Return the tensor that a value always is; None if a user or the model may give another."""
    if value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def obstacle(node: ir.Node, sizes: Sizes) -> Refusal | None:
    """Return why a CONV node cannot become an FC layer, if it cannot."""
    return unreadable(node, sizes) or _lacks(read(node, sizes), node.version or 1, sizes)


def unreadable(node: ir.Node, sizes: Sizes) -> Refusal | None:
    """Return why what a CONV node computes is not known, if it is not."""
    if node.op_type not in CONV or node.domain not in ("", "ai.onnx"):
        which = ".".join(filter(None, (node.domain, node.op_type)))
        return Refusal(
            f"{which} is no CONV operator that convfc converts",
            f"convert the model before a runtime optimised it: {', '.join(CONV)} are",
        )
    referring = refers(node)
    if referring is not None:
        return referring
    try:
        layer = _read(node, sizes)
    except GeometryError as error:
        return Refusal(f"{node.op_type}: {error}", "onnx.checker says whether the file is valid")
    return layer if isinstance(layer, Refusal) else None


def refers(node: ir.Node) -> Refusal | None:
    """Return why an attribute has no value, if it is one of the function that a node stands in."""
    names = [name for name, one in node.attributes.items() if one.is_ref()]
    if not names:
        return None
    what = f"{node.op_type}: each call of its function says its {', '.join(names)}"
    return Refusal(what, "onnx.inliner puts the function's nodes where it is called")


def is_1d(node: Any, sizes: Sizes) -> bool:
    """Say whether a node is a CONV node of the user's whose input has one axis beside channels."""
    known = isinstance(node, ir.Node) and node.op_type in ("Conv", "ConvTranspose")
    if not (known and node.domain in ("", "ai.onnx")):
        return False
    kernel = _integers(node, "kernel_shape")
    if kernel is not None:
        return len(kernel) == 1
    shapes = [sizes.shape(value) for value in node.inputs[:2] if value is not None]
    return any(shape is not None and len(shape) == 3 for shape in shapes)


def _lacks(layer: ConvNode, opset: int, sizes: Sizes) -> Refusal | None:
    """Return what the operators of an opset cannot do, or cannot do without more sizes."""
    g, op = layer.geometry, layer.op_type
    size = [sizes(layer.x, axis) for axis in range(2, 2 + g.spatial_ndim)]
    why = f"{op}: with sizes that are not known, its {{}} takes opset {{}}"
    newer = "onnx.version_converter gives the model a newer one"
    if opset < 7 and (layer.bias is not None or g.transposed):
        return Refusal(f"{op}: its sums take opset 7", newer)
    if layer.same and opset < 11:
        return Refusal(why.format("auto_pad", 11), _SIZES)
    if opset < 10 and None in size and not g.transposed and set(g.stride) != {1}:
        return Refusal(why.format("stride", 10), _SIZES)
    if opset < 11 and layer.is_quantised and any(map(any, g.padding)):
        return Refusal(f"{op}: its padding is of integers, which takes opset 11", newer)
    of_filters = [sizes.shape(layer.others[one]) for one in PER_FILTER if one in layer.others]
    if g.groups > 1 and None in of_filters:
        return Refusal(f"{op}: whether each filter has a scale of its own is not known", _SIZES)
    return None


def read(node: ir.Node, sizes: Sizes) -> ConvNode:
    """Read a CONV node for which there is no obstacle."""
    found = _read(node, sizes)
    assert isinstance(found, ConvNode), found  # noqa: S101
    return found


def _read(node: ir.Node, sizes: Sizes) -> ConvNode | Refusal:
    transposed = node.op_type == "ConvTranspose"
    given = operands(node)
    x, weight = given.pop("x", None), given.pop("weight", None)
    if x is None or weight is None:
        return Refusal(f"{node.op_type}: it has no weight", "onnx.checker says what is wrong")
    tensor = ir.convenience.get_const_tensor(weight)
    shape = sizes.shape(weight) if tensor is None else tensor.shape.numpy()
    kernel = _integers(node, "kernel_shape")
    if shape is not None and len(shape) > 2 and kernel is not None:
        shape = (*shape[:2], *kernel)
    if shape is None or len(shape) < 3 or not all(isinstance(n, int) for n in shape):
        return Refusal(f"{node.op_type}: the shape of its weight is not known", _SIZES)
    weight_shape = tuple(int(n) for n in shape if n is not None)
    first, second, *kernel_size = weight_shape
    groups = int(_attribute(node, "group", 1))
    ndim = len(kernel_size)
    rest: dict[str, Any] = {
        "stride": _integers(node, "strides") or 1,
        "dilation": _integers(node, "dilations") or 1,
        "groups": groups,
        "transposed": transposed,
    }
    channels = (first, second * groups) if transposed else (second * groups, first)
    size = tuple(sizes(x, axis + 2) for axis in range(ndim))
    layer: Callable[..., ConvNode] = partial(
        ConvNode,
        x=x,
        weight=weight,
        bias=given.pop("bias", None),
        weight_shape=weight_shape,
        op_type=node.op_type,
        others=given,
    )
    auto, pads = _attribute(node, "auto_pad", "NOTSET"), _integers(node, "pads")
    extra: Any = _integers(node, "output_padding") or 0
    wanted = _integers(node, "output_shape")
    odd: Literal["upper", "lower"] = "lower" if auto == "SAME_LOWER" else "upper"
    if auto.startswith("SAME") and wanted is None:
        plain = ConvGeometry(*channels, kernel_size, **rest)
        if transposed or set(plain.stride) == {1} or None not in size:
            known = tuple(n or 1 for n in size)
            geometry = ConvGeometry.same(*channels, kernel_size, input_size=known, odd=odd, **rest)
            return layer(geometry)
        return layer(plain, same=odd)
    padding: Any = 0
    if wanted is not None:
        if None in size:
            why = "its output_shape is given, but not the size of its input"
            return Refusal(f"{node.op_type}: {why}", _SIZES)
        padding, extra = _for_output(wanted[-ndim:], size, kernel_size, rest, extra, odd=auto)
    elif auto != "VALID" and pads:
        padding = list(zip(pads[:ndim], pads[ndim:], strict=True))
    geometry = ConvGeometry(*channels, kernel_size, padding=padding, output_padding=extra, **rest)
    return layer(geometry)


def operands(node: ir.Node) -> dict[str, ir.Value]:
    """Return what a CONV node is given, by name."""
    given = zip(OPERANDS[node.op_type], node.inputs, strict=False)
    return {name: value for name, value in given if value is not None}


def _for_output(
    wanted: Sequence[int],
    size: Sequence[int | None],
    kernel_size: Sequence[int],
    rest: Mapping[str, Any],
    extra: Any,
    *,
    odd: str,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the padding that makes a transposed output so large, and its output padding."""
    plain = ConvGeometry(rest["groups"], rest["groups"], kernel_size, output_padding=extra, **rest)
    pads, more = [], []
    for out, full, own in zip(
        wanted, plain.output_size([n or 1 for n in size]), plain.output_padding, strict=True
    ):
        total = max(full - out, 0)
        less = total // 2
        pads.append((less, total - less) if odd == "SAME_UPPER" else (total - less, less))
        more.append(own + max(out - full, 0))
    return pads, more


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    found = _attribute(node, name, None)
    return None if found is None else tuple(int(n) for n in found)


def nodes_of(part: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield all nodes of a graph or a function, also those of inner graphs."""
    yield from ir.traversal.RecursiveGraphIterator(part)
