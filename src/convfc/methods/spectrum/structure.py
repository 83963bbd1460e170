"""What the index map says of an operator: windows that do not overlap, or a periodic one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, Indices, index_map

__all__ = [
    "Copies",
    "PeriodicAxis",
    "circular_geometry",
    "operator_shape",
    "periodic_axes",
    "separate_windows",
    "transposed_circular_axes",
]


@dataclass(frozen=True, eq=False)
class PeriodicAxis:
    """A periodic operator on one axis, between ``coarse`` elements and ``coarse * step`` others.

    Attributes
    ----------
    coarse, step : int
        The ``coarse`` elements are those of the output; of a transposed layer those of the input.
    offsets : array of int, shape (taps,)
        Coarse element o meets through tap t the other element ``offsets[t] + o * step``, modulo
        their number.
    """

    coarse: int
    step: int
    offsets: Indices

    @property
    def fine(self) -> int:
        """Number of the other elements."""
        return self.coarse * self.step


class Copies(NamedTuple):
    """An operator that is copies of one matrix: of K, or of K turned round (``transposed``)."""

    number: int
    transposed: bool


def operator_shape(
    geometry: ConvGeometry, input_size: Sequence[int], *, circular: bool
) -> tuple[int, int]:
    """Return the shape of the operator with its own boundary, or with a circular one.

    Examples
    --------
    >>> operator_shape(ConvGeometry(3, 64, (7, 7), stride=2), (224, 224), circular=True)
    (802816, 150528)
    """
    if not circular:
        output_size = geometry.output_size(input_size)
    elif geometry.transposed:
        output_size = tuple(n * s for n, s in zip(input_size, geometry.stride, strict=True))
    else:
        output_size = circular_geometry(geometry, input_size).output_size(input_size)
    rows = geometry.out_channels * math.prod(output_size)
    return (rows, geometry.in_channels * math.prod(input_size))


def circular_geometry(geometry: ConvGeometry, input_size: Sequence[int]) -> ConvGeometry:
    """Return the same kernel on a circle: ceil(input / stride) windows on each axis.

    Examples
    --------
    >>> circular_geometry(ConvGeometry(1, 1, (4,), stride=2), (6,)).padding
    ((1, 1),)
    """
    return ConvGeometry.same(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        input_size=input_size,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
        flip=geometry.flip,
        padding_mode="circular",
    )


def periodic_axes(
    geometry: ConvGeometry, input_size: Sequence[int]
) -> tuple[PeriodicAxis, ...] | None:
    """Return the operator's axes if it is periodic by its own padding, else None.

    It is where every output position reads what the first one reads, moved along the circle, and
    the last position is one step before the first.

    Examples
    --------
    >>> ring = ConvGeometry(1, 1, (3,), padding=1, padding_mode="circular")
    >>> periodic_axes(ring, (5,))[0].offsets
    array([4, 0, 1])
    >>> periodic_axes(ConvGeometry(1, 1, (3,), padding=1), (5,)) is None
    True
    """
    axes = [_periodic(axis) for axis in index_map(geometry, input_size).axes]
    known = tuple(axis for axis in axes if axis is not None)
    return known if len(known) == len(axes) else None


def transposed_circular_axes(
    geometry: ConvGeometry, input_size: Sequence[int]
) -> tuple[PeriodicAxis, ...]:
    """Return the axes of a transposed layer whose output is rolled up to input * stride elements.

    Before anything is cut off, input 0 meets output o through tap t where the table says so; on the
    circle every input does the same.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (3,), stride=2, transposed=True)
    >>> axis, = transposed_circular_axes(geometry, (2,))
    >>> axis.fine, axis.offsets
    (4, array([0, 1, 2]))
    """
    ndim = geometry.spatial_ndim
    whole = replace(geometry, padding=((0, 0),) * ndim, output_padding=(0,) * ndim)
    axes = index_map(whole, input_size).axes
    return tuple(
        PeriodicAxis(axis.size, step, np.argmax(axis.table == 0, axis=0) % (axis.size * step))
        for axis, step in zip(axes, geometry.stride, strict=True)
    )


def separate_windows(geometry: ConvGeometry, input_size: Sequence[int]) -> Copies | None:
    """Return how many copies of K the operator is, if no two windows overlap; else None.

    Nor may they read padding. A transposed layer has windows on its output: there no output may
    belong to two inputs, nor any be cut off.

    Examples
    --------
    >>> separate_windows(ConvGeometry(3, 8, (2, 2), stride=2), (6, 4))
    Copies(number=6, transposed=False)
    """
    where = index_map(geometry, input_size)
    if all(_reads_once(axis.table) for axis in where.axes):
        return Copies(math.prod(where.output_size), transposed=False)
    if all(_written_once(axis) for axis in where.axes):
        return Copies(math.prod(where.input_size), transposed=True)
    return None


def _periodic(axis: AxisMap) -> PeriodicAxis | None:
    """Compare the table with what the first output position reads, moved along the circle."""
    if axis.step * axis.positions != axis.size:
        return None
    moved = axis.table[0] + np.arange(axis.positions)[:, None] * axis.step
    if np.any(axis.table < 0) or np.any(axis.table != moved % axis.size):
        return None
    return PeriodicAxis(axis.positions, axis.step, axis.table[0])


def _reads_once(table: Indices) -> bool:
    """Say whether no entry reads padding, and no two the same element."""
    return bool(np.all(table >= 0)) and len(np.unique(table)) == table.size


def _written_once(axis: AxisMap) -> bool:
    """Say whether each output has one entry at most, and each input one for every tap."""
    inputs = np.sort(axis.table, axis=0)[-axis.size :]
    everything = inputs.shape[0] == axis.size and np.all(inputs == np.arange(axis.size)[:, None])
    entries = np.count_nonzero(axis.table >= 0, axis=1)
    return bool(everything and entries.max() <= 1 and entries.sum() == axis.size * axis.taps)
