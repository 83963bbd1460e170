"""The naive oracle: every definition of a convolution written out as loops, one number at a time.

Nothing here is fast and nothing is shared with ``src/convfc``: sizes are found by counting, padding
by asking each coordinate where it reads, a transposed convolution by scattering every element. The
layout is the canonical one: x ``(b, *spatial, c)``, filters ``(f, *kernel, c/groups)``, output
``(b, *out, f)``.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convfc import ConvGeometry

Index = tuple[int, ...]


def positions(size: Index) -> Iterator[Index]:
    """Every index of an array of this size, the last axis fastest (row-major)."""
    return product(*(range(n) for n in size))


def source(j: int, n: int, mode: str) -> int | None:
    """Where coordinate ``j``, maybe outside ``0 ... n-1``, reads; None is a zero of the padding."""
    if 0 <= j < n:
        return j
    if mode == "zeros":
        return None
    if mode == "replicate":  # the border element again and again
        return 0 if j < 0 else n - 1
    if mode == "circular":  # the axis is a ring
        while j < 0:
            j += n
        while j >= n:
            j -= n
        return j
    if mode == "reflect":  # a mirror on the border element, which is not repeated
        mirrored = -j if j < 0 else (n - 1) - (j - (n - 1))
        assert 0 <= mirrored < n, "reflected more than once: no framework defines that"
        return mirrored
    raise AssertionError(f"no padding mode {mode}")


def output_size(geometry: ConvGeometry, input_size: Index) -> Index:
    """Count, on each axis, the places where the kernel fits (transposed: that it touches)."""
    sizes = []
    for a, n in enumerate(input_size):
        (low, high), s, d = geometry.padding[a], geometry.stride[a], geometry.dilation[a]
        reach = (geometry.kernel_size[a] - 1) * d  # from the first tap to the last
        count = 0
        if geometry.transposed:
            touched = (n - 1) * s + reach + 1
            count = len(range(low, touched + geometry.output_padding[a] - high))
        else:
            while count * s + reach <= low + n + high - 1:
                count += 1
        sizes.append(count)
    return tuple(sizes)


def tap_offsets(geometry: ConvGeometry, tap: Index) -> Index:
    """How far from the kernel's first place a filter's tap acts, per axis, before cropping."""
    if geometry.flip:
        tap = tuple(k - 1 - t for t, k in zip(tap, geometry.kernel_size, strict=True))
    return tuple(t * d for t, d in zip(tap, geometry.dilation, strict=True))


def read_position(
    geometry: ConvGeometry, input_size: Index, out: Index, tap: Index
) -> Index | None:
    """The input position that one tap of one output position reads, or None for a zero."""
    position = []
    for a, offset in enumerate(tap_offsets(geometry, tap)):
        n, s, (low, _) = input_size[a], geometry.stride[a], geometry.padding[a]
        if geometry.transposed:
            hits = [i for i in range(n) if i * s + offset - low == out[a]]
            j = hits[0] if hits else None
        else:
            j = source(out[a] * s + offset - low, n, geometry.padding_mode)
        if j is None:
            return None
        position.append(j)
    return tuple(position)


def readings(geometry: ConvGeometry, input_size: Index) -> list[list[Index | None]]:
    """Eq. (8) as a table: ``readings[p][q]`` is the element ``(*position, channel)`` of M(p, q)."""
    channels = geometry.in_channels // geometry.groups
    table = []
    for out in positions(output_size(geometry, input_size)):
        row: list[Index | None] = []
        for group in range(geometry.groups):
            for tap in positions(geometry.kernel_size):
                position = read_position(geometry, input_size, out, tap)
                for c in range(channels):
                    element = None if position is None else (*position, group * channels + c)
                    row.append(element)
        table.append(row)
    return table


def im2col(x: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """The patch matrix ``(b, L, groups*k)``, entry by entry."""
    table = readings(geometry, x.shape[1:-1])
    columns = prod(geometry.kernel_size) * geometry.in_channels
    M = np.zeros((x.shape[0], len(table), columns), dtype=x.dtype)
    for b in range(x.shape[0]):
        for p, row in enumerate(table):
            for q, element in enumerate(row):
                if element is not None:
                    M[b, p, q] = x[(b, *element)]
    return M


def conv(
    x: np.ndarray,
    filters: np.ndarray,
    geometry: ConvGeometry,
    bias: np.ndarray | None = None,
    *,
    dtype: np.dtype | type = np.int64,
) -> np.ndarray:
    """The layer's output, computed in ``dtype``: gathered per output element, or scattered."""
    x, filters = x.astype(dtype), filters.astype(dtype)
    input_size = x.shape[1:-1]
    out_size = output_size(geometry, input_size)
    y = np.zeros((x.shape[0], *out_size, geometry.out_channels), dtype=dtype)
    channels = geometry.in_channels // geometry.groups
    per_group = geometry.out_channels // geometry.groups
    for f in range(geometry.out_channels):
        group = f // per_group
        mine = slice(group * channels, (group + 1) * channels)
        for tap in positions(geometry.kernel_size):
            weights = filters[(f, *tap)]
            if geometry.transposed:
                _scatter(y, x, weights, geometry, f, mine, tap)
                continue
            for out in positions(out_size):
                position = read_position(geometry, input_size, out, tap)
                if position is not None:
                    read = x[(slice(None), *position, mine)]
                    y[(slice(None), *out, f)] += (read * weights).sum(axis=-1)
    return y if bias is None else y + bias.astype(dtype)


def _scatter(
    y: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    geometry: ConvGeometry,
    f: int,
    mine: slice,
    tap: Index,
) -> None:
    """Add what every input element sends through one tap; what lands outside is cropped."""
    offsets = tap_offsets(geometry, tap)
    for i in positions(x.shape[1:-1]):
        out = tuple(
            i[a] * geometry.stride[a] + offsets[a] - geometry.padding[a][0] for a in range(len(i))
        )
        if all(0 <= o < n for o, n in zip(out, y.shape[1:-1], strict=True)):
            sent = x[(slice(None), *i, mine)] * weights
            y[(slice(None), *out, f)] += sent.sum(axis=-1)
