"""The product M K as nodes: Algorithm 1 by slices, one axis after the other, and one MatMul.

K is on the left, ``(f, k)`` times ``(k, L)``, so that nothing is transposed: in ONNX's order of
axes K is the CONV weight with its last axes as one, number by number, and a weight that is in a
file beside the model stays where it is. Products of integers are M K: scales and zero points of
filters can only be those of columns, and onnxruntime packs a constant on the right but not on the
left, where such a product takes 1.4 to 50 times as long, whatever is transposed. Windows that lie
side by side need no slices: two axes are made of each, and exchanged. A transposed layer multiplies
before it moves: its K gives what every input pixel adds to the output, and pads and sums put it
there, so that the zeros between its positions are never multiplied.

A 3 x 3 kernel takes six slices: three of one axis, three of the other. ``benchmarks/bench_onnx.py``
measures this beside other ways: a slice for each tap (nine) takes about the same time and a sixth
less memory, but more nodes; one Gather with the index table takes the least memory; a sum over
taps, which never holds M, is faster for depthwise layers and groups, but four times slower for few
channels and large kernels, and needs K in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from convfc.frameworks.onnx.build import Builder, Dims, Size
from convfc.frameworks.onnx.read import PER_FILTER, ConvNode
from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, index_map

Matrix = Callable[[Builder, ir.Value, tuple[int, ...], bool], ir.Value]
"""Gives a weight as a matrix of a shape, its last two axes exchanged or not."""


def product(b: Builder, layer: ConvNode, matrix: Matrix) -> ir.Value:
    """Add the nodes of an FC layer; return its output."""
    g = layer.geometry
    y = (_transposed if g.transposed else _convolved)(b, layer, matrix)
    if layer.bias is None or layer.is_quantised:
        return y
    ones = (1,) * g.spatial_ndim
    return b("Add", y, matrix(b, layer.bias, (g.out_channels, *ones), False))


def _convolved(b: Builder, layer: ConvNode, matrix: Matrix) -> ir.Value:
    g, x = layer.geometry, layer.x
    rank = 2 + g.spatial_ndim
    # Any size that fits: first, step and distance of taps are the same for all.
    axes = index_map(g, tuple(max(n, 1) for n in g.effective_kernel_size)).axes
    out = _output_dims(b, layer)
    if _is_tiled(layer):
        x, out = _tiles(b, g, x)
    else:
        filled = layer.others.get("x_zero_point")
        x = (
            b("Pad", x, _same_pads(b, layer), filled)
            if layer.same
            else b.pad(x, rank, dict(enumerate(g.padding, 2)), filled)
        )
        alone = {a: _span(one, 0) for a, one in enumerate(axes, 2) if one.taps == 1}
        x = b.slice(x, alone, dict(enumerate(out or (), 2)))
        for axis, one in reversed(list(enumerate(axes))):
            if one.taps > 1:
                x, rank = b.unsqueeze(x, 2), rank + 1
                at = rank - g.spatial_ndim + axis
                count = {at: out[axis]} if out else None
                x = b.concat([b.slice(x, {at: _span(one, t)}, count) for t in range(one.taps)], 2)
        out = out or [Size(x, axis) for axis in range(rank - g.spatial_ndim, rank)]
    m = b.reshape(x, (0, *_grouped(g.groups, g.taps), _count(out)))
    return b.reshape(_multiplied(b, layer, matrix, m), (0, g.out_channels, *out))


def _multiplied(b: Builder, layer: ConvNode, matrix: Matrix, m: ir.Value) -> ir.Value:
    """Return K times M."""
    g = layer.geometry
    shape = _grouped(g.groups, g.out_channels // g.groups, g.taps)
    if not layer.is_quantised:
        return b("MatMul", matrix(b, layer.weight, shape, False), m)
    order = (0, 2, 1) if g.groups == 1 else (0, 1, 3, 2)
    m, k = b("Transpose", m, perm=order), matrix(b, layer.weight, shape, True)
    return b("Transpose", _of_integers(b, layer, matrix, m, k), perm=order)


def _of_integers(b: Builder, layer: ConvNode, matrix: Matrix, m: ir.Value, k: ir.Value) -> ir.Value:
    """Return M K: scales and zero points may be those of columns, and filters are K's columns.

    QLinearMatMul has no bias; without it, the same steps in the same order round the same.
    """
    g, given = layer.geometry, dict(layer.others)
    columns = (g.groups, 1, g.out_channels // g.groups) if g.groups > 1 else (g.out_channels,)
    for name in PER_FILTER:
        if g.groups > 1 and name in given and b.known.shape(given[name]) == (g.out_channels,):
            given[name] = b.reshape(given[name], columns)
    x_zero_point, w_zero_point = given.get("x_zero_point"), given.get("w_zero_point")
    if layer.op_type == "ConvInteger":
        return b("MatMulInteger", m, k, x_zero_point, w_zero_point)
    x_scale, w_scale, y_scale = (given[f"{name}_scale"] for name in "xwy")
    y_zero_point = given["y_zero_point"]
    if layer.bias is None:
        x, w = (x_scale, x_zero_point), (w_scale, w_zero_point)
        return b("QLinearMatMul", m, *x, k, *w, y_scale, y_zero_point)
    total = b("MatMulInteger", m, k, x_zero_point, w_zero_point)
    total = b("Add", total, matrix(b, layer.bias, columns, False))
    ratio = b("Div", b("Mul", x_scale, w_scale), y_scale)
    scaled = b("Mul", b("Cast", total, to=ir.DataType.FLOAT.value), ratio)
    return b("QuantizeLinear", scaled, b.constant(np.ones((), np.float32)), y_zero_point)


def _is_tiled(layer: ConvNode) -> bool:
    """Say whether windows of several elements lie side by side: then nothing is read twice."""
    g = layer.geometry
    if set(g.kernel_size) == {1}:
        return False
    apart = all(d == 1 or k == 1 for d, k in zip(g.dilation, g.kernel_size, strict=True))
    return g.kernel_size == g.stride and apart and not (layer.same or any(map(any, g.padding)))


def _tiles(b: Builder, g: ConvGeometry, x: ir.Value) -> tuple[ir.Value, Dims]:
    """Return M's numbers, ``(b, c, *kernel, *output)``, of windows that lie side by side."""
    n = g.spatial_ndim
    out: list[int | Size] = []
    whole: list[int | Size] = []
    for axis, k in enumerate(g.kernel_size, 2):
        size = b.known(x, axis)
        out.append(Size(x, axis, 1, k) if size is None else size // k)
        whole.append(Size(x, axis, k, k) if size is None else size // k * k)
    if any(isinstance(d, Size) for d in whole):
        none, axes = b.integers(*[0] * n), b.integers(*range(2, 2 + n))
        x = b("Slice", x, none, b.sizes(whole), axes)
    else:
        x = b.slice(
            x,
            {
                axis: (0, d, 1)
                for axis, d in enumerate(whole, 2)
                if isinstance(d, int) and d != b.known(x, axis)
            },
        )
    apart = [d for pair in zip(out, g.kernel_size, strict=True) for d in pair]
    y = b.reshape(x, (0, g.in_channels, *apart))
    return b("Transpose", y, perm=[0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]), out


def _grouped(groups: int, *shape: int) -> tuple[int, ...]:
    """Return the shape of a matrix; of several groups, of one for each."""
    return shape if groups == 1 else (groups, *shape)


def _count(dims: Dims) -> int:
    """Return how many positions there are; -1, to be worked out, if a size is not known."""
    known = [d for d in dims if isinstance(d, int)]  # written out, an empty batch is no riddle
    return math.prod(known) if len(known) == len(dims) else -1


def _span(axis: AxisMap, tap: int) -> tuple[int, int, int]:
    """Return what one tap reads of a padded axis, as a slice that counts from its end."""
    at = axis.first + tap * axis.tap_step
    return at, at - (axis.taps - 1) * abs(axis.tap_step), axis.step


def _output_dims(b: Builder, layer: ConvNode) -> Dims | None:
    """Return the spatial size of the output, if all of it is known."""
    g = layer.geometry
    size = [b.known(layer.x, axis) for axis in range(2, 2 + g.spatial_ndim)]
    known = [n for n in size if n is not None]
    return g.output_size(known) if len(known) == len(size) and not layer.same else None


def _same_pads(b: Builder, layer: ConvNode) -> ir.Value:
    """Return the padding that keeps ceil(size / stride) positions, worked out by the model."""
    g = layer.geometry
    shape = b("Shape", layer.x)
    size = b.slice(shape, {0: (2, 0, 1)})
    stride, extent = b.integers(*g.stride), b.integers(*g.effective_kernel_size)
    less = b("Div", b("Sub", size, b.integers(1)), stride)  # positions but one
    total = b("Sub", b("Add", b("Mul", less, stride), extent), size)
    positive = b("Cast", b("Greater", total, b.integers(0)), to=ir.DataType.INT64.value)
    total = b("Mul", total, positive)
    low = b("Div", total, b.integers(2))
    high = b("Sub", total, low)
    first, last = (low, high) if layer.same == "upper" else (high, low)
    none = b.integers(0, 0)
    return b.concat([none, first, none, last], 0)


def _transposed(b: Builder, layer: ConvNode, matrix: Matrix) -> ir.Value:
    """K times the input, and what it gives put where it belongs: the adjoint of Algorithm 1.

    An axis of k taps, stride s, becomes ceil(k / s) axes of s: interleaved with the positions they
    are outputs, and what is left of the taps says by how many positions each is moved.
    """
    g, x = layer.geometry, layer.x
    n = g.spatial_ndim
    filters = g.out_channels // g.groups
    numbers = math.prod(g.kernel_size)
    shape = _grouped(g.groups, g.in_channels // g.groups, filters * numbers)
    k = matrix(b, layer.weight, shape, True)
    size = [b.size(x, axis) for axis in range(2, 2 + n)]
    m = b.reshape(x, (0, *_grouped(g.groups, g.in_channels // g.groups), _count(size)))
    dims: list[int | Size] = [0, g.out_channels, *g.kernel_size, *size]
    y = b.reshape(b("MatMul", k, m), dims)
    moves, blocks = [], []
    for axis, (taps, stride, dilation) in enumerate(
        zip(g.kernel_size, g.stride, g.dilation, strict=True)
    ):
        if stride > 1 and dilation > 1 and taps > 1:
            y = _spread(b, y, 2 + axis, dilation, dims)
        extent = dims[2 + axis]
        assert isinstance(extent, int), "taps are known"  # noqa: S101
        count = -(-extent // stride)
        y = b.pad(y, len(dims), {2 + axis: (0, count * stride - extent)})
        dims[2 + axis] = count * stride
        blocks.append(count)
        moves.append(dilation if stride == 1 else stride)
    if any(s > 1 for s in g.stride):
        pairs = [d for pair in zip(blocks, g.stride, strict=True) for d in pair]
        y = b.reshape(y, (0, g.out_channels, *pairs, *size))
        order = [0, 1, *range(2, 2 + 2 * n, 2)]
        order += [a for axis in range(n) for a in (2 + 2 * n + axis, 3 + 2 * axis)]
        y = b("Transpose", y, perm=order)
        wide = [
            Size(d.of, d.axis, s) if isinstance(d, Size) else d * s
            for d, s in zip(size, g.stride, strict=True)
        ]
        y = b.reshape(y, (0, g.out_channels, *blocks, *wide))
    rank = 2 + 2 * n
    for axis in range(n):
        count, move = blocks[axis], moves[axis]
        at = rank - n + axis  # where the positions of this axis are, its taps being the third axis
        parts = []
        for block in range(count):
            part = b.slice(y, {2: (block, block + 1, 1)}) if count > 1 else y
            parts.append(b.pad(part, rank, {at: (block * move, (count - 1 - block) * move)}))
        y, rank = b.squeeze(b.total(parts), 2), rank - 1
    return _cut(b, g, blocks, moves, y)


def _spread(b: Builder, y: ir.Value, axis: int, apart: int, dims: list[int | Size]) -> ir.Value:
    """Put zeros between the elements of an axis, and behind the last; the sizes are changed."""
    y = b.reshape(y, [*dims[: axis + 1], 1, *dims[axis + 1 :]])
    y = b.pad(y, len(dims) + 1, {axis + 1: (0, apart - 1)})
    count = dims[axis]
    assert isinstance(count, int), "taps are known"  # noqa: S101
    dims[axis] = count * apart
    return b.reshape(y, dims)


def _cut(b: Builder, g: ConvGeometry, blocks: list[int], moves: list[int], y: ir.Value) -> ir.Value:
    """Leave out what padding cuts away, and add output padding."""
    spans, more = {}, {}
    for axis, (low, high) in enumerate(g.padding):
        made = g.stride[axis] + (blocks[axis] - 1) * moves[axis]  # by the last position
        left = made + high - g.effective_kernel_size[axis] - g.output_padding[axis]
        spans[2 + axis] = (low, min(-left, 0), 1)
        more[2 + axis] = (0, max(-left, 0))
    return b.pad(b.slice(y, spans), 2 + g.spatial_ndim, more)
