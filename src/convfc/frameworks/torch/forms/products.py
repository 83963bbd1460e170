"""The three products of a CONV layer, block by block: M is never held.

With the filters as an FC weight they are all that it takes to use a layer and to train it::

    y  = M K     rows of M are gathered from x
    dx = dy Kᵀ   whose rows are scattered to what they were read from
    dK = Mᵀ dy

A transposed layer is the adjoint of another layer, so the first two change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from convfc.frameworks.torch.forms.windows import (
    Scratch,
    accumulating,
    add_back,
    at,
    gather,
    plan,
    scatter,
    seen_by_tap,
)
from convfc.geometry import ConvGeometry
from convfc.stretch import Block, row_blocks

BLOCK_BYTES = 2**22
"""Bytes of M in one block: written and read once, it should stay in the last cache; the fewer
blocks, the less the start of every product costs."""

LONG = 16
"""Channels of a depthwise layer from which on a product of all of them pays, one tap at a time."""


def adjoint(geometry: ConvGeometry) -> ConvGeometry:
    """Return the layer that a transposed one is the adjoint of."""
    return replace(
        geometry,
        in_channels=geometry.out_channels,
        out_channels=geometry.in_channels,
        output_padding=(0,) * geometry.spatial_ndim,
        transposed=False,
    )


class Layer:
    """The three products of a CONV layer that pads with zeros, or of the adjoint of such a one.

    Filters are ``(groups, f / groups, k)``; the taps in them are in the order of memory.
    """

    def __init__(self, geometry: ConvGeometry, input_size: Sequence[int]) -> None:
        self.geometry, size = geometry, tuple(input_size)
        if geometry.transposed:
            size, self.geometry = geometry.output_size(size), adjoint(geometry)
        self.transposed = geometry.transposed
        self.axes = plan(self.geometry, size)
        self.size = size
        self.groups = geometry.groups
        channels = geometry.in_channels, geometry.out_channels
        self.depthwise = channels == (self.groups,) * 2 and self.groups >= LONG

    def _tap_by_tap(self, rows: Tensor, others: Tensor) -> bool:
        """Whether to add up a depthwise layer tap by tap, without any of M.

        Each product is then of what all channels see and of one weight per channel. Sums of 16-bit
        numbers would be rounded at every tap; two dtypes are refused by the other products.
        """
        return self.depthwise and accumulating(rows.dtype) == rows.dtype == others.dtype

    @property
    def positions(self) -> tuple[int, ...]:
        """Output positions per axis."""
        return tuple(axis.positions for axis in self.axes)

    def filters(self, weight: Tensor) -> Tensor:
        """Bring an FC weight (f, k) into the order of memory."""
        groups, geometry = self.groups, self.geometry
        f, c = geometry.out_channels // groups, geometry.in_channels // groups
        if self.transposed:
            weight = weight.reshape(groups, c, f, -1).permute(0, 2, 3, 1)
        else:
            weight = weight.reshape(groups, f, c, -1).transpose(2, 3)
        weight = weight.flip(2) if geometry.flip else weight
        return weight.reshape(groups, f, -1)

    def weight(self, filters: Tensor) -> Tensor:
        """Bring filters in the order of memory back to an FC weight: `filters` read backwards."""
        groups, geometry = self.groups, self.geometry
        f, c = geometry.out_channels // groups, geometry.in_channels // groups
        filters = filters.reshape(groups, f, -1, c)
        filters = filters.flip(2) if geometry.flip else filters
        filters = filters.permute(0, 3, 1, 2) if self.transposed else filters.transpose(2, 3)
        return filters.flatten(0, 1).flatten(1)

    def blocks(self, samples: int, itemsize: int) -> list[list[tuple[int, int]]]:
        """Cut the positions into blocks, of which neither M nor the product takes much memory."""
        columns = max(self.groups * self.geometry.taps, self.geometry.out_channels)
        return list(row_blocks((samples, *self.positions), self.limit(columns * itemsize)))

    @staticmethod
    def limit(size: int) -> int:
        """Return how many of this size a block may have."""
        return max(1, BLOCK_BYTES // size)

    def _in_one(self, x: Tensor, memory_format: torch.memory_format) -> bool:
        """Whether one product gives the result as it is to lie in memory, without much of M."""
        if self.groups > 1 or not len(x):
            return False
        if all(axis.extent == axis.step == 1 and axis.positions == axis.size for axis in self.axes):
            return x.movedim(1, -1).is_contiguous()  # M is x itself
        matrix = len(x) * math.prod(self.positions) * self.geometry.taps * x.itemsize
        return memory_format != torch.contiguous_format and matrix <= BLOCK_BYTES

    def gathered(
        self, x: Tensor, filters: Tensor, bias: Tensor | None, memory_format: torch.memory_format
    ) -> Tensor:
        """Return M K + bias, rows gathered from x: shape (N, f, *positions)."""
        shape = (len(x), self.geometry.out_channels, *self.positions)
        x = x.resolve_conj().resolve_neg()
        in_one = self._in_one(x, memory_format)
        x = x.movedim(1, -1)
        scratch = Scratch(x)
        if in_one:
            whole = [(0, n) for n in (shape[0], *self.positions)]
            rows = product(gather(x, self.axes, 1, whole, scratch), filters, bias)[0]
            return rows.view(shape[0], *self.positions, shape[1]).movedim(-1, 1)
        by_tap = _by_tap(filters) if self._tap_by_tap(x, filters) else None
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        written = y.movedim(1, -1).unflatten(-1, (self.groups, -1))
        for block in self.blocks(len(x), x.itemsize) if y.numel() else []:
            place = written[at(block)]
            if by_tap is not None:
                self._add_up(x, by_tap, bias, block, scratch, place.squeeze(-1))
                continue
            matrix = gather(x, self.axes, self.groups, block, scratch)
            rows = product(matrix, filters, bias).unflatten(1, place.shape[: len(block)])
            place.copy_(rows.movedim(0, -2))
        return y

    def _add_up(
        self,
        x: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        block: Block,
        scratch: Scratch,
        place: Tensor,
    ) -> None:
        """Write a block of a depthwise layer's output, tap by tap: weights are (k, groups)."""
        # With its channels apart in memory, every sum would take its time.
        y = place if place.stride(-1) == 1 else scratch.take("rows", place.shape)
        for tap, part in enumerate(seen_by_tap(x, self.axes, block, scratch)):
            if tap:
                y.addcmul_(part, weights[tap])
            elif bias is None:
                torch.mul(part, weights[tap], out=y)
            else:
                torch.addcmul(bias, part, weights[tap], out=y)
        if y is not place:
            place.copy_(y)

    def scattered(
        self, dy: Tensor, filters: Tensor, bias: Tensor | None, memory_format: torch.memory_format
    ) -> Tensor:
        """Return dy Kᵀ + bias, its rows scattered to what they were read from: (N, c, *size)."""
        if self._gathers_back(len(dy)):
            turned = filters.unflatten(2, (-1, self.geometry.in_channels // self.groups))
            turned = turned.flip(2).transpose(1, 3).flatten(2)
            return self._turned().gathered(dy, turned, bias, memory_format)
        wide = accumulating(dy.dtype)
        shape = (len(dy), self.geometry.in_channels, *self.size)
        total = torch.empty(shape, dtype=wide, device=dy.device, memory_format=memory_format)
        total = total.zero_().movedim(1, -1)
        dy = dy.movedim(1, -1)
        transposed = filters.to(wide).transpose(1, 2)
        scratch = Scratch(total)
        by_tap = _by_tap(filters) if self._tap_by_tap(dy, filters) else None
        for block in self.blocks(len(dy), total.itemsize) if total.numel() else []:
            part = dy[at(block)]
            if by_tap is not None:
                rows = part.contiguous()
                add_back(rows, by_tap, total, self.axes, block, scratch)
                continue
            rows = _by_group(part, self.groups)
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
        padding = tuple(
            (axis.extent - 1 - len(axis.before), axis.extent - 1 - len(axis.after))
            for axis in self.axes
        )
        geometry = replace(
            self.geometry,
            in_channels=self.geometry.out_channels,
            out_channels=self.geometry.in_channels,
            padding=padding,
        )
        return Layer(geometry, self.positions)

    def product_of(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return dyᵀ conj(M), which is Kᵀ's gradient: shape (groups, f / groups, k)."""
        x = x.resolve_conj().resolve_neg()
        wide = accumulating(x.dtype)
        geometry, groups = self.geometry, self.groups
        total = x.new_zeros((groups, geometry.out_channels // groups, geometry.taps), dtype=wide)
        x, dy = x.movedim(1, -1), dy.movedim(1, -1)
        scratch = Scratch(x)
        for block in self.blocks(len(x), total.itemsize) if x.numel() else []:
            if self._tap_by_tap(x, dy):
                rows = dy[at(block)].contiguous()
                seen = seen_by_tap(x, self.axes, block, scratch)
                both = scratch.take("rows", rows.shape)
                for tap, part in enumerate(seen):
                    torch.mul(rows, part.conj(), out=both)
                    total[:, 0, tap].add_(both.flatten(0, -2).sum(0))
                continue
            matrix = gather(x, self.axes, groups, block, scratch).to(wide).transpose(1, 2).conj()
            rows = _by_group(dy[at(block)], groups).to(wide)
            some = self.limit(geometry.taps * groups * total.itemsize)
            for part, filters in zip(total.split(some, 1), rows.split(some, 2), strict=True):
                part.add_(product(filters.transpose(1, 2), matrix))
        return total.to(dy.dtype)


def _by_tap(filters: Tensor) -> Tensor:
    """Return the filters (groups, 1, k) of a depthwise layer as (k, groups)."""
    return filters[:, 0].t().contiguous()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``a bᵀ + bias`` per group: (groups, m, k), (groups, n, k) to (groups, m, n)."""
    if len(a) > 1:
        y = torch.bmm(b, a.transpose(1, 2)).transpose(1, 2)
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
        and bool(torch.backends.mkldnn.enabled)
        and all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)
    )


def _by_group(block: Tensor, groups: int) -> Tensor:
    """(n, *positions, f) to (groups, rows, f / groups), which with groups is held transposed."""
    if groups == 1:
        return block.reshape(1, -1, block.shape[-1])
    return block.movedim(-1, 0).reshape(groups, block.shape[-1] // groups, -1).transpose(1, 2)
