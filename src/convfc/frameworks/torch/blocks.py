"""The product of patches with an FC weight, block by block: M is never held.

With the filters of a CONV layer as an FC weight, three products with blocks of M are all that it
takes to use the layer and to train it::

    y  = M K     rows of M are gathered from x
    dx = dy Kᵀ   whose rows are scattered to what they were read from
    dK = Mᵀ dy

A transposed layer is the adjoint of another layer, so the first two change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convfc.frameworks.torch.windows import (
    Axis,
    Scratch,
    gather,
    padded,
    patch_matrix,
    patches_by_plan,
    plan,
    scatter,
)
from convfc.geometry import ConvGeometry
from convfc.stretch import Block, row_blocks

__all__ = [
    "Axis",
    "conv_by_blocks",
    "conv_by_module",
    "patch_blocks",
    "patch_matrix",
    "patches_by_plan",
    "plan",
]

BLOCK_BYTES = 2**23
"""Bytes of M in one block: written and read once, it should stay in the last cache; the fewer
blocks, the less the start of every product costs."""


def conv_by_blocks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Compute a CONV layer as the product of patches with an FC weight; M is never held.

    Neither is it for the backward pass, which builds its blocks again. Gradients of gradients are
    there too; they go through the whole of M.

    Parameters
    ----------
    x : Tensor, shape (N, C, *S)
        With any strides; channels-last memory is the fastest.
    weight : Tensor, shape (f, k)
        Its columns are taps in the order ``(*kernel, c)``; rows ``g * f / groups`` and on belong
        to group g.
    bias : Tensor, shape (f,), or None
    geometry : ConvGeometry
    memory_format : torch.memory_format
        Of the result.

    Returns
    -------
    Tensor, shape (N, f, *O)

    Raises
    ------
    GeometryError
        If the geometry does not fit the size of ``x``.

    Examples
    --------
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv_by_blocks(x, torch.ones(1, 4), None, ConvGeometry(1, 1, (2, 2)))
    tensor([[[[ 8., 12.],
              [20., 24.]]]])
    """
    inputs = (x, weight, bias)
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        y = _by_whole_matrix(x, weight, bias, geometry)
    else:
        y = _Product.apply(*_zero_padded(x, geometry), weight, bias, memory_format)
    return y.contiguous(memory_format=memory_format)


def _by_whole_matrix(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """Compute the layer with ordinary operations only, which can be differentiated again."""
    groups = geometry.groups
    output_size = geometry.output_size(x.shape[2:])
    by_group = patch_matrix(x, geometry).unflatten(2, (groups, geometry.taps)).transpose(1, 2)
    y = by_group @ weight.unflatten(0, (groups, -1)).transpose(1, 2)
    y = y.transpose(1, 2).flatten(2)
    y = y if bias is None else y + bias
    return y.transpose(1, 2).unflatten(2, output_size)


def _zero_padded(x: Tensor, geometry: ConvGeometry) -> tuple[Tensor, ConvGeometry]:
    """Reduce the layer to one that pads with zeros, or to the adjoint of such a one."""
    axes = plan(geometry, tuple(x.shape[2:]))
    if geometry.transposed:
        size = _adjoint(geometry).output_size(geometry.output_size(x.shape[2:]))
        simple = size == tuple(x.shape[2:])
    else:
        simple = all(axis.zeros for axis in axes)
    if simple:
        return x, geometry
    return padded(x, axes), replace(
        geometry,
        stride=[axis.step for axis in axes],
        padding=0,
        output_padding=0,
        padding_mode="zeros",
        transposed=False,
        flip=axes[0].tap_step < 0,
    )


def _adjoint(geometry: ConvGeometry) -> ConvGeometry:
    """Return the layer that a transposed one is the adjoint of."""
    return replace(
        geometry,
        in_channels=geometry.out_channels,
        out_channels=geometry.in_channels,
        output_padding=0,
        transposed=False,
    )


class _Product(torch.autograd.Function):
    """The layer; keeps x and the weight for the backward pass, and nothing of M."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        geometry: ConvGeometry,
        weight: Tensor,
        bias: Tensor | None,
        memory_format: torch.memory_format,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.geometry = geometry
        layer = Layer(geometry, x.shape[2:])
        run = layer.scattered if geometry.transposed else layer.gathered
        return run(x, layer.filters(weight), bias, memory_format)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        geometry = ctx.geometry
        for_x, _, for_weight, for_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # Aliases: a gradient must not flow on into what the inputs were computed from.
            inputs = [None if t is None else t.view_as(t) for t in (x, weight, bias)]
            wanted = [
                t for t, needed in zip(inputs, (for_x, for_weight, for_bias), strict=True) if needed
            ]
            y = _by_whole_matrix(*inputs, geometry)
            grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad)
        layer = Layer(geometry, x.shape[2:])
        dx = dweight = dbias = None
        if for_x:
            back = layer.gathered if geometry.transposed else layer.scattered
            dx = back(dy, layer.filters(weight).conj(), None, torch.contiguous_format)
        if for_weight:
            read, written = (dy, x) if geometry.transposed else (x, dy)
            dweight = layer.weight(layer.product_of(read, written))
        if for_bias:
            dbias = dy.sum([0, *range(2, dy.ndim)])
        return dx, None, dweight, dbias, None


def patch_blocks(
    x: Tensor, geometry: ConvGeometry, *, size: int = BLOCK_BYTES
) -> Iterator[tuple[Block, Tensor]]:
    """Walk M in blocks of rows, without recording gradients.

    Parameters
    ----------
    x : Tensor, shape (N, C, *S)
    geometry : ConvGeometry
    size : int
        Bytes that a block may take, if it holds more than one row.

    Yields
    ------
    block : sequence of (start, stop)
        Samples, and positions on each output axis.
    patches : Tensor, shape (n, l, groups * k)
        Those rows of M, in memory of their own or of ``x``.

    Examples
    --------
    >>> x = torch.zeros(2, 1, 4, 4)
    >>> for block, patches in patch_blocks(x, ConvGeometry(1, 1, (3, 3)), size=72):
    ...     print(block, tuple(patches.shape))
    [(0, 1), (0, 1), (0, 2)] (1, 2, 9)
    [(0, 1), (1, 2), (0, 2)] (1, 2, 9)
    [(1, 2), (0, 1), (0, 2)] (1, 2, 9)
    [(1, 2), (1, 2), (0, 2)] (1, 2, 9)
    """
    axes = plan(geometry, tuple(x.shape[2:]))
    whole = padded(x, axes)
    rows = max(1, size // (geometry.groups * geometry.taps * x.itemsize))
    for block in row_blocks((len(x), *(axis.positions for axis in axes)), rows):
        yield block, _patches(whole, axes, geometry.groups, block)


def _patches(whole: Tensor, axes: Sequence[Axis], groups: int, block: Block) -> Tensor:
    """Build rows of M with ordinary operations, from an input with its padding."""
    part = whole[slice(*block[0])]
    cut = []
    for dim, (axis, (first, last)) in enumerate(zip(axes, block[1:], strict=True), start=2):
        length = (last - first - 1) * axis.step + axis.extent
        part = part.narrow(dim, first * axis.step, length)
        cut.append(axis._replace(before=(), after=(), inside=True, positions=last - first))
    return patches_by_plan(part, cut, groups)


def conv_by_module(
    x: Tensor,
    fc_call: Callable[[Tensor], Tensor],
    geometry: ConvGeometry,
    out_channels: int,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Apply any FC layer to every patch, block by block.

    While gradients are recorded each block is built again in the backward pass
    (`torch.utils.checkpoint`), so that M is not kept.

    Parameters
    ----------
    x : Tensor, shape (N, C, *S)
    fc_call : callable
        Takes rows of M, ``(n, l, groups * k)``, and returns ``(n, l, out_channels)``.
    geometry : ConvGeometry
    out_channels : int
    memory_format : torch.memory_format
        Of the result.

    Returns
    -------
    Tensor, shape (N, out_channels, *O)

    Raises
    ------
    GeometryError
        If the geometry does not fit the size of ``x``.

    Examples
    --------
    >>> box = torch.nn.Linear(4, 1, bias=False)
    >>> _ = torch.nn.init.ones_(box.weight)
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv_by_module(x, box, ConvGeometry(1, 1, (2, 2)), 1).detach()
    tensor([[[[ 8., 12.],
              [20., 24.]]]])
    """
    axes, groups = plan(geometry, tuple(x.shape[2:])), geometry.groups
    output_size = tuple(axis.positions for axis in axes)
    whole = padded(x, axes)
    columns = groups * geometry.taps
    # As long as M is no larger than what it is read from, it may be held.
    size = max(BLOCK_BYTES, whole.nbytes)
    blocks = list(row_blocks((len(x), *output_size), max(1, size // (columns * x.itemsize))))

    def rows(whole: Tensor, block: Block) -> Tensor:
        return fc_call(_patches(whole, axes, groups, block))

    if len(blocks) == 1:
        y = rows(whole, blocks[0]).unflatten(1, output_size).movedim(-1, 1)
        return y.contiguous(memory_format=memory_format)
    if torch.is_grad_enabled():
        parts = [checkpoint(rows, whole, block, use_reentrant=False) for block in blocks]
        y = torch.cat([part.flatten(0, 1) for part in parts])
        y = y.unflatten(0, (len(x), *output_size)).movedim(-1, 1)
        return y.contiguous(memory_format=memory_format)
    written = None
    for block in blocks:
        part = rows(whole, block)
        if written is None:
            shape = (len(x), out_channels, *output_size)
            y = torch.empty(
                shape, dtype=part.dtype, device=part.device, memory_format=memory_format
            )
            written = y.movedim(1, -1)
        place = written[tuple(slice(*bounds) for bounds in block)]
        place.copy_(part.reshape(place.shape))
    return y


class Layer:
    """The three products of a CONV layer that pads with zeros, or of the adjoint of such a one.

    Filters are ``(groups, f / groups, k)``; the taps in them are in the order of memory.
    """

    def __init__(self, geometry: ConvGeometry, input_size: Sequence[int]) -> None:
        self.geometry, size = geometry, tuple(input_size)
        if geometry.transposed:
            size, self.geometry = geometry.output_size(size), _adjoint(geometry)
        self.transposed = geometry.transposed
        self.axes = plan(self.geometry, size)
        self.size = size
        self.groups = geometry.groups

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(axis.positions for axis in self.axes)

    def filters(self, weight: Tensor) -> Tensor:
        """Bring an FC weight (f, k) into the order of memory."""
        groups, geometry = self.groups, self.geometry
        if not self.transposed and not geometry.flip:
            return weight.unflatten(0, (groups, -1))
        f, c = geometry.out_channels // groups, geometry.in_channels // groups
        if self.transposed:
            weight = weight.reshape(groups, c, -1, f).transpose(1, 3)
        else:
            weight = weight.reshape(groups, f, -1, c)
        weight = weight.flip(2) if geometry.flip else weight
        return weight.reshape(groups, f, -1)

    def weight(self, filters: Tensor) -> Tensor:
        """Bring filters in the order of memory back to an FC weight: `filters` read backwards."""
        groups, geometry = self.groups, self.geometry
        f, c = geometry.out_channels // groups, geometry.in_channels // groups
        if not self.transposed and not geometry.flip:
            return filters.flatten(0, 1)
        filters = filters.reshape(groups, f, -1, c)
        filters = filters.flip(2) if geometry.flip else filters
        filters = filters.transpose(1, 3) if self.transposed else filters
        return filters.flatten(0, 1).flatten(1)

    def blocks(self, samples: int, itemsize: int) -> list[list[tuple[int, int]]]:
        """Cut M into blocks."""
        rows = max(1, BLOCK_BYTES // (self.groups * self.geometry.taps * itemsize))
        return list(row_blocks((samples, *self.positions), rows))

    def gathered(
        self, x: Tensor, filters: Tensor, bias: Tensor | None, memory_format: torch.memory_format
    ) -> Tensor:
        """Return M K + bias, rows gathered from x: shape (N, f, *positions)."""
        shape = (len(x), self.geometry.out_channels, *self.positions)
        x = x.resolve_conj().resolve_neg().movedim(1, -1)
        blocks = self.blocks(len(x), x.itemsize)
        scratch = Scratch(x)
        if len(blocks) == 1 and len(x):
            y = _rows(product(gather(x, self.axes, self.groups, blocks[0], scratch), filters, bias))
            return y.unflatten(0, (shape[0], *shape[2:])).movedim(-1, 1)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        written = y.movedim(1, -1)
        for block in blocks if y.numel() else []:
            matrix = gather(x, self.axes, self.groups, block, scratch)
            place = written[tuple(slice(*bounds) for bounds in block)]
            place.copy_(_rows(product(matrix, filters, bias)).view(place.shape))
        return y

    def scattered(
        self, dy: Tensor, filters: Tensor, bias: Tensor | None, memory_format: torch.memory_format
    ) -> Tensor:
        """Return dy Kᵀ + bias, its rows scattered to what they were read from: (N, c, *size)."""
        if self._gathers_back(len(dy)):
            turned = filters.unflatten(2, (-1, self.geometry.in_channels // self.groups))
            turned = turned.flip(2).transpose(1, 3).flatten(2)
            return self._turned().gathered(dy, turned, bias, memory_format)
        wide = _accumulating(dy.dtype)
        total = dy.new_zeros((len(dy), *self.size, self.geometry.in_channels), dtype=wide)
        dy = dy.movedim(1, -1)
        transposed = filters.to(wide).transpose(1, 2)
        scratch = Scratch(total)
        for block in self.blocks(len(dy), total.itemsize) if total.numel() else []:
            rows = _by_group(dy[tuple(slice(*bounds) for bounds in block)], self.groups)
            matrix = product(rows.to(wide), transposed)
            scatter(matrix, total, self.axes, self.groups, block, scratch)
        total = total if bias is None else total.add_(bias)
        return total.to(dy.dtype).movedim(-1, 1)

    def _gathers_back(self, samples: int) -> bool:
        """Whether to gather rows from dy rather than to scatter them.

        With stride 1 the adjoint is a CONV layer as well, with the window turned round. To turn
        the filters takes longer than to scatter when there are fewer rows than filters.
        """
        return (
            all(axis.step == 1 and len(axis.before) < axis.extent for axis in self.axes)
            and all(len(axis.after) < axis.extent for axis in self.axes)
            and samples * math.prod(self.positions) >= self.geometry.out_channels
        )

    def _turned(self) -> Layer:
        """Return the layer that is the adjoint of this one, of stride 1."""
        padding = [
            (axis.extent - 1 - len(axis.before), axis.extent - 1 - len(axis.after))
            for axis in self.axes
        ]
        geometry = replace(
            self.geometry,
            in_channels=self.geometry.out_channels,
            out_channels=self.geometry.in_channels,
            padding=padding,
        )
        return Layer(geometry, self.positions)

    def product_of(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return dyᵀ M, which is Kᵀ's gradient: shape (groups, f / groups, k)."""
        wide = _accumulating(x.dtype)
        geometry, groups = self.geometry, self.groups
        total = x.new_zeros((groups, geometry.out_channels // groups, geometry.taps), dtype=wide)
        x, dy = x.movedim(1, -1), dy.movedim(1, -1)
        scratch = Scratch(x)
        for block in self.blocks(len(x), total.itemsize) if x.numel() else []:
            matrix = gather(x, self.axes, groups, block, scratch).to(wide).transpose(1, 2).conj()
            rows = _by_group(dy[tuple(slice(*bounds) for bounds in block)], groups).to(wide)
            total.add_(product(rows.transpose(1, 2), matrix))
        return total.to(dy.dtype)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``a bᵀ + bias`` of every group: (groups, m, k) and (groups, n, k) to (groups, m, n)."""
    if len(a) > 1:
        y = torch.bmm(a, b.transpose(1, 2))
        return y if bias is None else y.add_(bias.view(len(b), 1, -1))
    if _takes_onednn(a, b, bias):
        y = torch.ops.mkldnn._linear_pointwise(a[0].contiguous(), b[0], bias, "none", [], "")
    else:
        y = F.linear(a[0], b[0], bias)
    return y[None]


def _takes_onednn(*tensors: Tensor | None) -> bool:
    """Say whether oneDNN's product is there: of float32, faster than the one behind F.linear."""
    return (
        hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.mkldnn.enabled
        and all(
            t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors
        )
    )


def _accumulating(dtype: torch.dtype) -> torch.dtype:
    """Sums over blocks or taps of 16-bit numbers are kept in 32 bits, and rounded once."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _rows(product: Tensor) -> Tensor:
    """(groups, rows, n) to (rows, groups * n)."""
    return product.transpose(0, 1).flatten(1)


def _by_group(block: Tensor, groups: int) -> Tensor:
    """(n, *positions, f) to (groups, rows, f / groups)."""
    return block.reshape(-1, groups, block.shape[-1] // groups).transpose(0, 1)
