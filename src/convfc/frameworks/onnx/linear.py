"""What a product with a constant matrix computes, MatMul or Gemm: the FC layers of a user's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from convfc.errors import Refusal
from convfc.frameworks.onnx.build import PART, Sizes
from convfc.frameworks.onnx.read import constant, refers

PRODUCTS = ("MatMul", "Gemm")
_OTHERS = ("FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "QGemm")
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")
_SHAPES = "onnx.shape_inference, or sizes of the model's inputs, may make it known"


@dataclass(frozen=True, eq=False)
class Product:
    """``alpha`` times a matrix times x, plus ``beta`` times c, read as an FC layer.

    ``at`` is the axis of x that is summed over, and ``to`` that of the output's features: without
    ``keeps``, the output has no such axis. ``turned`` is a weight of shape (features, inputs).
    """

    x: ir.Value
    weight: ir.Value
    c: ir.Value | None
    inputs: int
    features: int
    turned: bool
    at: int
    to: int
    rank: int
    keeps: bool = True
    alpha: float = 1.0
    beta: float = 1.0


def is_product(node: Any) -> bool:
    """Say whether a node is a product of what the model is given and of constants."""
    known = isinstance(node, ir.Node) and PART not in node.metadata_props
    known = known and (node.op_type in (*PRODUCTS, *_OTHERS))
    if not known:
        return False
    factors = [one for one in node.inputs[:2] if one is not None]
    return sum(map(is_fixed, factors)) == 1 and len(factors) == 2


def is_fixed(value: ir.Value) -> bool:
    """Say whether a value is a constant, has one as its default, or is worked out of such."""
    pending: list[ir.Value | None] = [value]
    seen: set[ir.Value] = set()
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        node = one.producer()
        if node is None and one.const_value is None:
            return False
        if node is not None:
            if any(map(_is_graph, node.attributes.values())) or node.op_type.startswith("Random"):
                return False
            pending += node.inputs
    return True


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def read_product(node: ir.Node, sizes: Sizes) -> Product | Refusal:
    """Read a product, or say why it cannot be a CONV layer."""
    if node.op_type not in PRODUCTS or node.domain not in ("", "ai.onnx"):
        which = ".".join(filter(None, (node.domain, node.op_type)))
        return Refusal(
            f"{which} is no product that convfc converts",
            "convert the model before it was optimised or quantised: MatMul and Gemm are",
        )
    first, second = node.inputs[:2]
    assert first is not None  # noqa: S101 (see is_product)
    assert second is not None  # noqa: S101
    right = is_fixed(second)
    x, weight = (first, second) if right else (second, first)
    tensor, maker = constant(weight), weight.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        return Refusal(
            f"{node.op_type}: its matrix is dequantised when the model runs (DequantizeLinear)",
            "convert the model before it is quantised, and quantise the Conv that it becomes",
        )
    if tensor is None:
        return Refusal(
            f"{node.op_type}: its matrix is worked out of constants, or a default that an input "
            "may replace",
            "fold the constants, and let the model's inputs be inputs only (onnxsim)",
        )
    if tensor.dtype.name not in _FLOATS:
        return Refusal(f"{node.op_type}: Conv takes no {tensor.dtype.name}", "cast the model")
    if (node.version or 1) < 7:
        return Refusal(f"{node.op_type}: of opset {node.version}", "onnx.version_converter: 7")
    return refers(node) or (_gemm if node.op_type == "Gemm" else _matmul)(
        node, x, weight, tuple(map(int, tensor.shape)), right, sizes
    )


def _gemm(
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    shape: tuple[int, ...],
    right: bool,
    sizes: Sizes,
) -> Product | Refusal:
    a, b = (bool(_number(node, name, 0)) for name in ("transA", "transB"))
    turned = b if right else not a
    at = int(not a if right else b)
    features, inputs = shape if turned else shape[::-1]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = scales(node)
    return Product(
        *(x, weight, c, inputs, features, turned, at, int(right), 2), alpha=alpha, beta=beta
    )


def _matmul(
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    shape: tuple[int, ...],
    right: bool,
    sizes: Sizes,
) -> Product | Refusal:
    known = sizes.shape(x)
    if known is None:
        return Refusal("MatMul: how many axes its input has is not known", _SHAPES)
    rank = len(known)
    if math.prod(shape[:-2]) != 1 or len(shape) > max(rank, 2):
        return Refusal(
            f"MatMul: its constant of the shape {shape} is a batch of matrices",
            "a CONV layer has one weight for all of a batch",
        )
    keeps, shape = len(shape) > 1, shape[-2:]
    if not keeps:
        shape = (*shape, 1) if right else (1, *shape)
    inputs, features = shape if right else shape[::-1]
    at = rank - 1 if right or rank == 1 else rank - 2
    return Product(x, weight, None, inputs, features, not right, at, at, rank, keeps)


def _number(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def scales(node: ir.Node) -> tuple[float, float]:
    """Return what a product is multiplied by, and what is added to it."""
    return _number(node, "alpha", 1.0), _number(node, "beta", 1.0)


def is_row(product: Product, shape: Iterable[int]) -> bool:
    """Say whether a C of this shape is one number per feature, as a CONV layer's bias is."""
    wanted = (1, product.features) if product.to == 1 else (product.features, 1)
    shape = tuple(shape)
    return shape == wanted or (product.to == 1 and shape == wanted[1:])
