"""Where the matrix of a CONV layer has entries, and which filter weights each of them holds.

On one axis an output position reads an ascending list of input elements; a row of the matrix holds
the product of these lists over the axes, times the channels of its group. An element is read by a
*set* of taps: by one, or by several in a padding that repeats elements; then the entry holds their
sum. So the matrix is two linear maps in a row, from filters to the sums of the sets, ``v = B w``
with a matrix B of zeros and ones per axis, and from these to the entries, each a copy of one sum.
Neighbouring positions mostly read through the same sets, so the entries fall into a few boxes
(`Block`), each one strided part of the stored entries: all work visits boxes, not positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from convfc.arrays import check_shape
from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, IndexMap, index_map
from convfc.layer import Order
from convfc.sizes import one_of

_LARGEST_INT32 = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False)
class Run:
    """Output positions of one axis that read through the same sets, stored at even distances.

    ``start`` entries of the axis are stored before its first position, ``step`` more before the
    next one. Each position reads n distinct input elements, ascending: ``reads``, of shape
    ``(positions, n)``, through the sets numbered ``sets``, of shape ``(n,)``.
    """

    start: int
    step: int
    reads: npt.NDArray[np.int64]
    sets: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisPattern:
    """The entries on one axis: pairs (output position, input element), by position."""

    axis: AxisMap

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of distinct input elements that each position reads, shape ``(positions,)``."""
        counts: npt.NDArray[np.int64] = np.count_nonzero(self._sorted[2], axis=1)
        return counts

    @cached_property
    def total(self) -> int:
        """Number of entries on this axis."""
        return int(self.counts.sum())

    @property
    def runs(self) -> tuple[Run, ...]:
        """The positions in runs; those that read nothing are in none."""
        return self._found[0]

    @property
    def contains(self) -> npt.NDArray[np.int64]:
        """Which taps each set has: B, of zeros and ones, shape ``(sets, taps)``."""
        return self._found[1]

    @cached_property
    def members(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The same as two lists, set by set: numbers of sets, and their taps."""
        sets, taps = np.nonzero(self.contains)
        return sets, taps

    @property
    def repeats(self) -> bool:
        """Whether a set has several taps."""
        return len(self.members[0]) > len(self.contains)

    @cached_property
    def gram(self) -> npt.NDArray[np.int64]:
        """Entries that hold both of two taps, ``(taps, taps)``: diagonal unless it `repeats`."""
        entries = np.zeros(len(self.contains), np.int64)
        for run in self.runs:
            entries[run.sets] += len(run.reads)
        gram: npt.NDArray[np.int64] = self.contains.T @ (entries[:, None] * self.contains)
        return gram

    @cached_property
    def _found(self) -> tuple[tuple[Run, ...], npt.NDArray[np.int64]]:
        order, elements, first = self._sorted
        read = elements >= 0
        _, kinds = np.unique(np.where(read, 2 * order + first, -1), axis=0, return_inverse=True)
        kinds = kinds.ravel()  # NumPy 2.0 returns a column
        positions = np.argsort(kinds, kind="stable")
        starts = np.cumsum(self.counts) - self.counts
        # A run ends where the taps change, and where the step to the next position does.
        other = np.diff(kinds[positions], prepend=-1) != 0
        uneven = np.diff(starts[positions], n=2, prepend=[0, 0]) != 0
        uneven[1:] &= ~other[:-1]
        runs = []
        numbers: dict[tuple[int, ...], int] = {}
        for members in np.split(positions, np.flatnonzero(other | uneven)[1:]):
            one, begins = members[0], np.flatnonzero(first[members[0]])
            if not len(begins):  # only padding is read
                continue
            parts = (tuple(part.tolist()) for part in np.split(order[one], begins)[1:])
            sets = np.array([numbers.setdefault(part, len(numbers)) for part in parts])
            begin, second = starts[[members[0], members[1 % len(members)]]]
            runs.append(Run(int(begin), int(second - begin), elements[members][:, begins], sets))
        contains = np.zeros((len(numbers), self.axis.taps), np.int64)
        for taps, number in numbers.items():
            contains[number, taps] = 1
        return tuple(sorted(runs, key=lambda run: run.start)), contains

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Taps by the element they read, these elements (-1 first), and where a new one begins."""
        order = np.argsort(self.axis.table, axis=1, kind="stable")
        elements = np.take_along_axis(self.axis.table, order, axis=1)
        first = elements >= 0
        first[:, 1:] &= elements[:, 1:] != elements[:, :-1]
        return order, elements, first


@dataclass(frozen=True, eq=False)
class Block:
    """A box of output positions that read through the same sets, in all filters.

    Its entries are a strided part of the stored entries, from ``offset`` on, with axes
    ``(f, *positions, *row)``; ``shape`` and ``strides`` are in entries. A row is
    ``(c / groups, *n)`` if channels come first, else ``(*n, c / groups)``, where n is what the
    runs, one per spatial axis, read. What they hold is ``sums[at]``, of shape ``(f, *row)``.
    """

    runs: tuple[Run, ...]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    at: tuple[Any, ...]

    def view(self, entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return this part of contiguous entries, shape ``(f, *positions, *row)``, as a view."""
        size = entries.itemsize
        strides = [size * stride for stride in self.strides]
        return np.ndarray(self.shape, entries.dtype, entries, size * self.offset, strides)


@dataclass(frozen=True, eq=False)
class MatrixPattern:
    """The entries of the matrix of a CONV layer, as compressed sparse rows store them.

    Columns ascend within a row and none comes twice. The pattern is the geometry's: an entry whose
    weight happens to be 0 is stored. Rows are ``(f, *output)`` or ``(*output, f)``, columns
    ``(c, *spatial)`` or ``(*spatial, c)``, as the order says.
    """

    where: IndexMap
    order: Order
    axes: tuple[AxisPattern, ...]

    @property
    def geometry(self) -> ConvGeometry:
        """The geometry whose pattern this is."""
        return self.where.geometry

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix: ``(f * L, c * product of the input size)``."""
        columns = self.geometry.in_channels * math.prod(self.where.input_size)
        return (self.geometry.out_channels * self.where.shape[0], columns)

    @property
    def nonzeros(self) -> int:
        """Number of stored entries."""
        return self.geometry.out_channels * self._per_filter

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """int32 where it holds every index and count, as SciPy chooses it; else int64."""
        wide = max(self.nonzeros, *self.shape) > _LARGEST_INT32
        return np.dtype(np.int64 if wide else np.int32)

    @property
    def repeats(self) -> bool:
        """Whether an entry may hold a sum of weights, because the padding repeats elements."""
        return any(axis.repeats for axis in self.axes)

    @property
    def tap_axis(self) -> int:
        """First axis of the taps in filters ordered as a row is: 2, or 1 if channels come last."""
        return 2 if self.order == "channels_first" else 1

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Shape of the sums: ``(f, c / groups, *sets)``, or ``(f, *sets, c / groups)``."""
        first, *_, last = self.geometry.filters_shape
        sets = tuple(len(axis.contains) for axis in self.axes)
        return (first, last, *sets) if self.tap_axis == 2 else (first, *sets, last)

    def indptr(self) -> npt.NDArray[Any]:
        """Return where each row begins among the stored entries, shape ``(rows + 1,)``."""
        f, positions = self.geometry.out_channels, self.where.shape[0]
        ends = np.zeros(self.shape[0] + 1, self.index_dtype)
        counts = np.ones((), self.index_dtype)
        for axis in self.axes:
            counts = np.multiply.outer(counts, axis.counts.astype(self.index_dtype))
        counts = counts.ravel() * (self.geometry.in_channels // self.geometry.groups)
        if self.order == "channels_first":
            rows = np.cumsum(counts, dtype=self.index_dtype)
            filters = np.arange(f, dtype=self.index_dtype)[:, None] * self._per_filter
            np.add(filters, rows, out=ends[1:].reshape(f, positions))
        else:
            rows = ends[1:].reshape(positions, f)
            rows[...] = counts[:, None]
            np.cumsum(ends, dtype=self.index_dtype, out=ends)
        return ends

    def indices(self) -> npt.NDArray[Any]:
        """Return the column of each stored entry, shape ``(nonzeros,)``."""
        geometry, size, dtype = self.geometry, self.where.input_size, self.index_dtype
        groups, first, ndim = geometry.groups, self.order == "channels_first", len(size)
        spatial_step = 1 if first else geometry.in_channels
        steps = [spatial_step * math.prod(size[axis + 1 :]) for axis in range(ndim)]
        channels = np.arange(geometry.in_channels, dtype=dtype) * (math.prod(size) if first else 1)
        ones = (1,) * ndim
        channels = channels.reshape(groups, *ones, *((-1, *ones) if first else (*ones, -1)))
        found = np.empty(self.nonzeros, dtype)
        for block in self.blocks():
            elements = np.zeros((), dtype)
            for axis, run in enumerate(block.runs):
                shape = [1] * (2 * ndim)
                shape[axis], shape[ndim + axis] = run.reads.shape
                elements = elements + (run.reads.astype(dtype) * steps[axis]).reshape(shape)
            elements = np.expand_dims(elements, ndim if first else -1)
            view = block.view(found)
            view = view.reshape(groups, -1, *view.shape[1:])
            if view.shape[1] == 1:
                np.add(elements, channels, out=view[:, 0])
            else:  # all filters of a group have the same rows
                view[...] = np.add(elements, channels, order="C")[:, None]
        return found

    def values(self, filters: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the stored entries, shape ``(nonzeros,)``: each a weight, or a sum of weights."""
        return self.spread(self.sums(filters))

    def sums(self, filters: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what each set holds, in `sums_shape`: a weight, or the sum of its weights."""
        check_shape("filters", filters, self.geometry.filters_shape, "(f, *kernel, c/groups)")
        sums = np.moveaxis(filters, -1, 1) if self.tap_axis == 2 else filters
        for a, axis in enumerate(self.axes, start=self.tap_axis):
            sets, taps = axis.members
            sums = np.take(sums, taps, axis=a)
            if axis.repeats:
                begins = np.flatnonzero(np.diff(sets, prepend=-1))
                sums = np.add.reduceat(sums, begins, axis=a, dtype=filters.dtype)
        return sums

    def spread(self, sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the stored entries that hold these sums."""
        found = np.empty(self.nonzeros, sums.dtype)
        for block in self.blocks():
            block.view(found)[...] = np.expand_dims(sums[block.at], self.positions)
        return found

    def fold(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each weight, the sum of all entries that hold it: the adjoint of `values`."""
        folded = self.totals(values)
        for a, axis in enumerate(self.axes, start=self.tap_axis):
            by_set = np.moveaxis(folded, a, 0)
            by_tap = np.zeros((axis.axis.taps, *by_set.shape[1:]), folded.dtype)
            for number, tap in zip(*axis.members, strict=True):
                by_tap[tap] += by_set[number]
            folded = np.moveaxis(by_tap, 0, a)
        return np.moveaxis(folded, 1, -1) if self.tap_axis == 2 else folded

    def totals(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each set, the sum of all entries that hold it: the adjoint of `spread`."""
        check_shape("values", values, (self.nonzeros,), "give one value per stored entry")
        values = np.ascontiguousarray(values)
        totals = np.zeros(self.sums_shape, np.sum(values[:0]).dtype)
        for block in self.blocks():  # a set stands there once
            totals[block.at] += block.view(values).sum(axis=self.positions)
        return totals

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes of positions in a block."""
        return tuple(range(1, 1 + len(self.axes)))

    def blocks(self) -> Iterator[Block]:
        """Yield every stored entry once, in boxes."""
        geometry = self.geometry
        per_group = geometry.in_channels // geometry.groups
        first = self.order == "channels_first"
        totals = [axis.total for axis in self.axes]
        for runs in itertools.product(*(axis.runs for axis in self.axes)):
            sizes = [run.reads.shape[1] for run in runs]
            # Entries of one filter and channel from one position of an axis to the next, over step.
            apart = [math.prod(sizes[:a]) * math.prod(totals[a + 1 :]) for a in range(len(runs))]
            row = (per_group, *sizes) if first else (*sizes, per_group)
            entries = per_group * (1 if first else geometry.out_channels)
            yield Block(
                runs,
                entries * sum(run.start * n for run, n in zip(runs, apart, strict=True)),
                (geometry.out_channels, *(len(run.reads) for run in runs), *row),
                (
                    self._per_filter if first else math.prod(row),
                    *(entries * run.step * n for run, n in zip(runs, apart, strict=True)),
                    *(math.prod(row[axis + 1 :]) for axis in range(len(row))),
                ),
                (*(slice(None),) * self.tap_axis, *np.ix_(*(run.sets for run in runs))),
            )

    @cached_property
    def _per_filter(self) -> int:
        per_group = self.geometry.in_channels // self.geometry.groups
        return per_group * math.prod(axis.total for axis in self.axes)


def matrix_pattern(
    geometry: ConvGeometry, input_size: Sequence[int], order: Order
) -> MatrixPattern:
    """Return where the matrix of a geometry has entries; nothing of the matrix's size is built."""
    one_of("order", order, Order)
    return _pattern(index_map(geometry, input_size), order)


@lru_cache(maxsize=64)
def _pattern(where: IndexMap, order: Order) -> MatrixPattern:
    return MatrixPattern(where, order, tuple(AxisPattern(axis) for axis in where.axes))
