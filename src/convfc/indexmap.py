"""The index map, Eq. (8) of Ma & Lu (2017): the one definition of a convolution in this package.

Entry (p, q) of the patch matrix M reads one element of the input, or a zero of the padding. Eq. (8)
names the element for one stride and no padding; this module does for every geometry. The map is
separable: each spatial axis has its own small table (`AxisMap`), which gives the coordinate on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.errors import OutOfRangeError
from convfc.geometry import ConvGeometry, checked
from convfc.sizes import input_sizes

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Eq. (8) on one spatial axis, in two steps: window to padded axis, padded axis to input.

    Attributes
    ----------
    source : array of int, shape (padded size,)
        Input index that each element of the padded axis holds; -1 is a zero of the padding.
    first, step, tap_step : int
        Output position o reads through tap t the padded element
        ``first + o * step + t * tap_step``.
    positions, taps, size : int
        Number of output positions, of taps, and of input elements.
    """

    source: Indices
    first: int
    step: int
    tap_step: int
    positions: int
    taps: int
    size: int

    @cached_property
    def margins(self) -> tuple[Indices, Indices] | None:
        """The parts of `source` around the input; None where the input is not in it as a whole."""
        low = int(np.argmax(self.source == 0))
        inside = np.array_equal(self.source[low : low + self.size], np.arange(self.size))
        return (self.source[:low], self.source[low + self.size :]) if inside else None

    @cached_property
    def table(self) -> Indices:
        """Input index that (position, tap) reads, shape ``(positions, taps)``; -1 reads zero."""
        positions = np.arange(self.positions)[:, None]
        taps = np.arange(self.taps)
        return _frozen(self.source[self.first + positions * self.step + taps * self.tap_step])

    @cached_property
    def readers(self) -> Indices:
        """Every ``position * taps + tap`` that reads an input index: the table read backwards.

        Shape ``(size, most readers of one element, at least 1)``, each row ascending and filled
        up with -1.
        """
        flat = self.table.ravel()
        # Entries sorted by the element they read, without those that read zero; an entry's rank
        # among those of the same element is its place in the row.
        order = np.argsort(flat, kind="stable")[np.count_nonzero(flat < 0) :]
        counts = np.bincount(flat[order], minlength=self.size)
        rank = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
        readers = np.full((self.size, max(1, int(counts.max()))), -1)
        readers[flat[order], rank] = order
        return _frozen(readers)


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Which input element each entry (p, q) of the patch matrix reads, and the way back.

    Rows p are output positions in row-major order; columns q are, group by group, the taps of the
    window in row-major order with the channels of the group innermost, as Algorithm 1 flattens.

    Attributes
    ----------
    geometry : ConvGeometry
    input_size, output_size : tuple of int
        Spatial sizes.
    axes : tuple of AxisMap
        One per spatial axis.

    Examples
    --------
    >>> where = index_map(ConvGeometry(1, 128, (4, 4), stride=2), (28, 28))
    >>> where.shape, where.output_size
    ((169, 16), (13, 13))
    """

    geometry: ConvGeometry
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    axes: tuple[AxisMap, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(L, groups * k)`` of the patch matrix of one input."""
        return (math.prod(self.output_size), self.geometry.groups * self.geometry.taps)

    def element(self, p: int, q: int) -> tuple[int, ...] | None:
        """Return the input element (i, j, ..., d) that entry (p, q) reads; None for a zero.

        Raises
        ------
        OutOfRangeError
            If M has no entry (p, q).

        Examples
        --------
        With 4 x 4 windows and stride 2 on 28 x 28, row 14 is output position (1, 1), whose window
        starts at (2, 2); column 5 is tap (1, 1).

        >>> where = index_map(ConvGeometry(1, 128, (4, 4), stride=2), (28, 28))
        >>> where.element(14, 5)
        (3, 3, 0)
        """
        self._check("(p, q)", (p, q), self.shape)
        shape = self.entry_shape
        entry = [int(i) for i in np.unravel_index(p * self.shape[1] + q, shape)]
        ndim = self.geometry.spatial_ndim
        position, group, tap, channel = entry[:ndim], entry[ndim], entry[ndim + 1 : -1], entry[-1]
        read = [int(a.table[o, t]) for a, o, t in zip(self.axes, position, tap, strict=True)]
        return None if min(read) < 0 else (*read, group * shape[-1] + channel)

    def readers(self, element: Sequence[int]) -> list[tuple[int, int]]:
        """Return every entry (p, q) of M that reads the input element (i, j, ..., d), ascending.

        Raises
        ------
        OutOfRangeError
            If the input has no such element.

        Examples
        --------
        >>> where = index_map(ConvGeometry(1, 1, (2,)), (4,))
        >>> where.readers((1, 0))
        [(0, 1), (1, 0)]
        """
        self._check("element", element, (*self.input_size, self.geometry.in_channels))
        *spatial, d = element
        group, channel = divmod(d, self.geometry.in_channels // self.geometry.groups)
        per_axis = [
            [divmod(int(r), axis.taps) for r in axis.readers[i] if r >= 0]
            for axis, i in zip(self.axes, spatial, strict=True)
        ]
        entries = []
        for combination in itertools.product(*per_axis):
            position, tap = zip(*combination, strict=True)
            entry = np.ravel_multi_index((*position, group, *tap, channel), self.entry_shape)
            entries.append(divmod(int(entry), self.shape[1]))
        return sorted(entries)

    def flat(self) -> Indices:
        """Return the whole map: the raveled index into ``(*spatial, c)`` per entry, or -1.

        Returns
        -------
        array of int, shape (L, groups * k)
            Eight bytes per entry of one input's patch matrix.

        Examples
        --------
        >>> index_map(ConvGeometry(1, 1, (2, 2)), (3, 3)).flat()
        array([[0, 1, 3, 4],
               [1, 2, 4, 5],
               [3, 4, 6, 7],
               [4, 5, 7, 8]])
        """
        geometry, ndim = self.geometry, self.geometry.spatial_ndim
        index, padding = np.zeros((), dtype=np.int64), np.zeros((), dtype=bool)
        for a, axis in enumerate(self.axes):
            table = np.expand_dims(axis.table, [i for i in range(2 * ndim) if i % ndim != a])
            index = index * axis.size + table
            padding = padding | (table < 0)
        channels = np.arange(geometry.in_channels).reshape(geometry.groups, *(1,) * ndim, -1)
        index = np.expand_dims(index, (ndim, -1)) * geometry.in_channels + channels
        return np.where(np.expand_dims(padding, (ndim, -1)), -1, index).reshape(self.shape)

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape ``(*output, groups, *kernel, c / groups)`` of M, all axes of it apart."""
        geometry = self.geometry
        per_group = geometry.in_channels // geometry.groups
        return (*self.output_size, geometry.groups, *geometry.kernel_size, per_group)

    def _check(self, name: str, index: Sequence[int], shape: Sequence[int]) -> None:
        if len(index) != len(shape) or not all(
            isinstance(i, (int, np.integer)) and 0 <= i < n
            for i, n in zip(index, shape, strict=True)
        ):
            raise OutOfRangeError(
                "the index is out of range",
                where=name,
                expected="0 <= index < " + str(tuple(shape)),
                got=tuple(index),
                remedy="indices start at 0; see IndexMap.shape, input_size and in_channels",
            )


def index_map(geometry: ConvGeometry, input_size: Sequence[int]) -> IndexMap:
    """Build the index map of a geometry on an input size: Eq. (8), for every geometry.

    Parameters
    ----------
    geometry : ConvGeometry
    input_size : sequence of int
        Spatial size of the input, one per axis, before padding.

    Raises
    ------
    GeometryError
        If the geometry does not fit the input size.

    Examples
    --------
    Zero padding reads no element; circular padding reads from the other end.

    >>> index_map(ConvGeometry(1, 1, (3,), padding=1), (5,)).element(0, 0) is None
    True
    >>> circular = ConvGeometry(1, 1, (3,), padding=1, padding_mode="circular")
    >>> index_map(circular, (5,)).element(0, 0)
    (4, 0)
    """
    ndim = checked(geometry).spatial_ndim
    return _index_map(geometry, input_sizes(input_size, ndim))


@lru_cache(maxsize=256)
def _index_map(geometry: ConvGeometry, input_size: tuple[int, ...]) -> IndexMap:
    output_size = geometry.output_size(input_size)
    axes = tuple(
        _axis_map(geometry, axis, size, out)
        for axis, (size, out) in enumerate(zip(input_size, output_size, strict=True))
    )
    return IndexMap(geometry, input_size, output_size, axes)


def _axis_map(geometry: ConvGeometry, axis: int, size: int, positions: int) -> AxisMap:
    taps, dilation = geometry.kernel_size[axis], geometry.dilation[axis]
    low, high = geometry.padding[axis]
    reach = dilation * (taps - 1)
    if geometry.transposed:
        # Output o gets x[i] through tap t where i * stride + t * dilation = o + low: a window that
        # moves by one over the input with stride - 1 zeros between its elements, read backwards.
        step = 1
        spread = np.arange(positions + reach) - (reach - low)
        element, rest = np.divmod(spread, geometry.stride[axis])
        source = np.where((rest == 0) & (element >= 0) & (element < size), element, -1)
        backwards = not geometry.flip
    else:
        step = geometry.stride[axis]
        source = _padded_source(geometry.padding_mode, np.arange(-low, size + high), size)
        backwards = geometry.flip
    first, tap_step = (reach, -dilation) if backwards else (0, dilation)
    return AxisMap(_frozen(source), first, step, tap_step, positions, taps, size)


def _padded_source(mode: str, index: Indices, size: int) -> Indices:
    """Return the input index that each element of the padded axis holds; it starts at -low."""
    match mode:
        case "reflect":  # about the edge element, which is not repeated
            index = np.abs(index)
            return np.where(index < size, index, 2 * (size - 1) - index)
        case "replicate":
            return np.clip(index, 0, size - 1)
        case "circular":
            return np.mod(index, size)
        case _:
            return np.where((index >= 0) & (index < size), index, -1)


def _frozen(array: npt.NDArray[Any]) -> Indices:
    """Return the array as read-only int64: maps are cached and shared."""
    frozen: Indices = array.astype(np.int64)
    frozen.setflags(write=False)
    return frozen
