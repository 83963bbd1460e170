"""For targets that only convolve images: FC layers as 1 x 1 CONV nodes, and 1-D nodes as 2-D ones.

An FC layer is a user's MatMul or Gemm with a constant matrix. What it is applied to side by side,
the tokens of a sequence, becomes the axes of an image: a Transpose before and one behind, and the
CONV node multiplies one large matrix. As batches of one pixel they would need no Transpose, and
onnxruntime would convolve each of them alone. What a CONV node of one axis reads is an image one
pixel high: its numbers stay where they are.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from convfc.errors import Refusal
from convfc.frameworks.onnx.build import Builder, Dims, Made, Sizes
from convfc.frameworks.onnx.forms import beside, forget, put, recorded, reshaped
from convfc.frameworks.onnx.linear import Product, is_row, read_product
from convfc.frameworks.onnx.read import constant, is_1d, operands, read, unreadable

_FIRST = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "pads": 0,
    "output_padding": 0,
    "output_shape": 1,
}
"""What attributes say of the axis that 1-D nodes lack: an image one pixel high."""


def to_image(node: ir.Node, sizes: Sizes, made: Made) -> ir.Node:
    """Put a CONV node of images, and what it needs, into the place of a node; return the last."""
    return (_to_2d if is_1d(node, sizes) else _to_pointwise)(node, sizes, made)


def image_obstacle(node: ir.Node, sizes: Sizes) -> Refusal | None:
    """Return why a product, or a 1-D CONV node, cannot be a CONV node of images, if it cannot."""
    if is_1d(node, sizes):
        return unreadable(node, sizes)
    found = read_product(node, sizes)
    return found if isinstance(found, Refusal) else None


def _to_2d(node: ir.Node, sizes: Sizes, made: Made) -> ir.Node:
    layer, given = read(node, sizes), operands(node)
    record = recorded(node, "2-D", given, {"weight": layer.weight_shape})
    record["exchanged"] = False
    b = Builder(node, node.version or 1, sizes, made)
    first, second, taps = layer.weight_shape
    weight = reshaped(b, layer.weight, (first, second, 1, taps))
    if constant(weight) is not None:
        given["weight"] = weight
    attributes = {
        name: [n for own in one.value[-2:] for n in (_FIRST[name], own)]
        if name in _FIRST
        else one.value
        for name, one in node.attributes.items()
    }
    image = b.unsqueeze(layer.x, 2)
    y = b(node.op_type, image, weight, layer.bias, **attributes)
    last = put(b, b.squeeze(y, 2), record, given)
    forget(layer.weight)
    return last


def _to_pointwise(node: ir.Node, sizes: Sizes, made: Made) -> ir.Node:
    product = read_product(node, sizes)
    assert isinstance(product, Product), product  # noqa: S101 (see image_obstacle)
    tensor = constant(product.weight)
    assert tensor is not None  # noqa: S101 (see read_product)
    b = Builder(node, node.version or 1, sizes, made)
    c, row = product.c, None if product.c is None else constant(product.c)
    scaled = product.alpha != 1 or product.beta != 1
    if row is not None and (scaled or not is_row(product, row.shape.numpy())):
        row = None
    make = partial(_filters, product, tensor, made)
    matrix = made([product.weight], ("conv", product.turned), make)
    given = {"x": product.x, "weight": product.weight} | ({} if c is None else {"bias": c})
    shapes = {"weight": tensor.shape.numpy()} | ({} if row is None else {"bias": row.shape.numpy()})
    record = recorded(node, "native", given, shapes)
    right = node.inputs[1] is product.weight
    record["inputs"] = [*(("x", "weight") if right else ("weight", "x")), "bias"][
        : len(node.inputs)
    ]
    record["exchanged"], record["axis"] = not product.turned, product.at
    x, back = _image(b, product)
    given["weight"] = matrix
    if c is not None and row is not None:
        given["bias"] = _bias(c, row, made)
    rest = [given["bias"]] if row is not None else []
    y = b("Conv", x, matrix, *rest, kernel_shape=[1, 1])
    y = _from_image(b, product, y, back)
    one = tensor.dtype.numpy()
    if product.alpha != 1:
        y = b("Mul", y, b.constant(np.array(product.alpha, one)))
    if c is not None and row is None:
        if product.beta != 1:
            c = b("Mul", c, b.constant(np.array(product.beta, one)))
        y = b("Add", y, c)
    last = put(b, y, record, given)
    forget(product.weight, product.c)
    return last


def _filters(product: Product, tensor: ir.TensorProtocol, made: Made) -> ir.Value:
    numbers = tensor.numpy()
    turned = numbers if product.turned else numbers.reshape(product.inputs, product.features).T
    numbers = np.ascontiguousarray(turned).reshape(product.features, product.inputs, 1, 1)
    name = f"{product.weight.name}.conv"
    return beside(product.weight, ir.Tensor(numbers, dtype=tensor.dtype), name, made)


def _bias(c: ir.Value, row: ir.TensorProtocol, made: Made) -> ir.Value:
    """Return a C of one number per feature as a bias."""
    if len(row.shape) == 1:
        return c
    flat = ir.Tensor(row.numpy().reshape(-1), dtype=row.dtype)
    return made([c], "bias", lambda: beside(c, flat, f"{c.name}.conv", made))


def _image(b: Builder, product: Product) -> tuple[ir.Value, Dims]:
    """Return x as images, and the sizes of its axes but for the one that is summed over."""
    x, rank, at = product.x, product.rank, product.at
    others = [axis for axis in range(rank) if axis != at]
    if rank == 1:
        return b.reshape(x, (1, product.inputs, 1, 1)), []
    if rank == 2:
        if at == 0:
            return b.unsqueeze(b.unsqueeze(x, 0), 2), []
        return b.reshape(x, (0, product.inputs, 1, 1)), []
    order = [others[0], at, *others[1:]]
    back = [b.size(x, axis) for axis in others]
    if order != sorted(order):
        x = b("Transpose", x, perm=order)
    if rank == 3:
        x = b.unsqueeze(x, 2)
    elif rank > 4:
        x = b.reshape(x, (0, product.inputs, 1, -1))
    return x, back


def _from_image(b: Builder, product: Product, y: ir.Value, back: Dims) -> ir.Value:
    """Return what the CONV node gives in the axes of the product's output."""
    rank, to = product.rank, product.to
    if rank == 1:
        return b.reshape(y, (product.features,) if product.keeps else ())
    if rank == 2:
        if product.at == 0:
            y = b.squeeze(b.squeeze(y, 2), 0)
        else:
            y = b.reshape(y, (0, product.features))
        at = product.at
        order = [0, 1] if at == to else [1, 0]
    else:
        if rank == 3:
            y = b.squeeze(y, 2)
        elif rank > 4:
            y = b.reshape(y, (back[0], product.features, *back[1:]))
        order = [axis + (axis > 0) for axis in range(rank - 1)]
        order.insert(to, 1)
    if order != sorted(order):
        y = b("Transpose", y, perm=order)
    return y if product.keeps else b.squeeze(y, to)
