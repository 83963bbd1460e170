"""Where the matrix of a CONV layer has entries, and which filter weight each of them holds.

Everything follows from the index map, one axis at a time. On one axis an output position reads an
ascending list of input elements; a row of the matrix holds the product of these lists over the
axes, times the channels of its group. Two taps of one window may read the same element (in a
padding that repeats elements); then the entry holds their sum. Neighbouring positions mostly read
through the same taps, so the entries fall into a few boxes (`Block`), each of which is one strided
part of the stored entries: filling, folding back and indexing visit boxes, not positions.
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
from convfc.registry import Order, check_order

_LARGEST_INT32 = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False)
class Run:
    """Output positions of one axis that read through the same taps, stored at even distances.

    Attributes
    ----------
    start, step : int
        Of its first position, how many entries of the axis are stored before it; and how many more
        from one position of the run to the next.
    reads : array of int, shape (positions, n)
        The n distinct input elements that each position reads, ascending.
    taps : array of int, shape (at least n,)
        The taps that read them, element by element.
    first : array of int, shape (n,)
        Where in ``taps`` those of each element begin.
    """

    start: int
    step: int
    reads: npt.NDArray[np.int64]
    taps: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    @property
    def repeats(self) -> bool:
        """Whether two taps read the same element."""
        return len(self.taps) > len(self.first)

    @property
    def elements(self) -> npt.NDArray[np.int64]:
        """Which of the n elements each tap reads, shape of ``taps``."""
        return np.repeat(np.arange(len(self.first)), np.diff(self.first, append=len(self.taps)))


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

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The positions in runs; those that read nothing are in none."""
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
        for members in np.split(positions, np.flatnonzero(other | uneven)[1:]):
            one, begins = members[0], np.flatnonzero(first[members[0]])
            if not len(begins):  # only padding is read
                continue
            begin, second = starts[[members[0], members[1 % len(members)]]]
            runs.append(
                Run(
                    start=int(begin),
                    step=int(second - begin),
                    reads=elements[members][:, begins],
                    taps=order[one][read[one]],
                    first=begins - begins[0],
                )
            )
        return tuple(sorted(runs, key=lambda run: run.start))

    @cached_property
    def gram(self) -> npt.NDArray[np.int64]:
        """Number of entries that hold both of two taps, shape ``(taps, taps)``.

        Diagonal unless the padding repeats elements.
        """
        table = self.axis.table
        rows = [
            np.count_nonzero((table == table[:, [tap]]) & (table >= 0), axis=0)
            for tap in range(self.axis.taps)
        ]
        return np.stack(rows)

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
    """A box of output positions that read through the same taps, in all filters.

    Its entries are a strided part of the stored entries, with axes ``(f, *positions, *row)``; a row
    is ``(c / groups, *n)`` if channels come first, else ``(*n, c / groups)``, where n is what the
    runs read.

    Attributes
    ----------
    runs : tuple of Run
        One per spatial axis.
    offset : int
        Where it begins among the stored entries.
    shape, strides : tuple of int
        In entries.
    """

    runs: tuple[Run, ...]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return this part of contiguous entries, shape ``(f, *positions, *row)``, as a view."""
        size = entries.itemsize
        strides = [size * stride for stride in self.strides]
        return np.ndarray(self.shape, entries.dtype, entries, size * self.offset, strides)


@dataclass(frozen=True, eq=False)
class MatrixPattern:
    """The entries of the matrix of a CONV layer, as compressed sparse rows store them.

    Columns ascend within a row and none comes twice. The pattern is the geometry's: an entry whose
    weight happens to be 0 is stored.

    Attributes
    ----------
    where : IndexMap
    order : {"channels_first", "channels_last"}
        Of rows, (f, *output) or (*output, f), and of columns, (c, *spatial) or (*spatial, c).
    axes : tuple of AxisPattern
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
        geometry = self.geometry
        return (
            geometry.out_channels * self.where.shape[0],
            geometry.in_channels * math.prod(self.where.input_size),
        )

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
        return any(run.repeats for axis in self.axes for run in axis.runs)

    @property
    def tap_axis(self) -> int:
        """First axis of the taps in filters ordered as a row is: 2, or 1 if channels come last."""
        return 2 if self.order == "channels_first" else 1

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
        groups, per_group = geometry.groups, geometry.in_channels // geometry.groups
        first, ndim, ones = self.order == "channels_first", len(size), (1,) * len(size)
        spatial_step = 1 if first else geometry.in_channels
        steps = [spatial_step * math.prod(size[axis + 1 :]) for axis in range(ndim)]
        channels = np.arange(geometry.in_channels, dtype=dtype) * (math.prod(size) if first else 1)
        row = (per_group, *ones) if first else (*ones, per_group)
        channels = channels.reshape(groups, *ones, *row)
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
        check_shape("filters", filters, self.geometry.filters_shape, "(f, *kernel, c/groups)")
        tap_axis = self.tap_axis
        if tap_axis == 2:
            filters = np.ascontiguousarray(np.moveaxis(filters, -1, 1))
        found = np.empty(self.nonzeros, filters.dtype)
        ndim = len(self.axes)
        for block in self.blocks():
            weights = filters
            for axis, run in enumerate(block.runs, start=tap_axis):
                weights = np.take(weights, run.taps, axis=axis)
                if run.repeats:
                    weights = np.add.reduceat(weights, run.first, axis=axis, dtype=filters.dtype)
            block.view(found)[...] = np.expand_dims(weights, [1 + a for a in range(ndim)])
        return found

    def fold(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each weight, the sum of all entries that hold it: the adjoint of `values`."""
        check_shape("values", values, (self.nonzeros,), "give one value per stored entry")
        values = np.ascontiguousarray(values)
        tap_axis, ndim = self.tap_axis, len(self.axes)
        shape = list(self.geometry.filters_shape)
        if tap_axis == 2:
            shape.insert(1, shape.pop())
        folded = np.zeros(shape, np.sum(values[:0]).dtype)
        for block in self.blocks():
            sums = block.view(values).sum(axis=tuple(range(1, ndim + 1)))
            taps: list[Any] = [np.arange(n) for n in shape]
            for axis, run in enumerate(block.runs, start=tap_axis):
                sums = np.take(sums, run.elements, axis=axis)
                taps[axis] = run.taps
            folded[np.ix_(*taps)] += sums  # a tap stands once in a run
        return np.moveaxis(folded, 1, -1) if tap_axis == 2 else folded

    def blocks(self) -> Iterator[Block]:
        """Yield every stored entry once, in boxes."""
        geometry = self.geometry
        per_group = geometry.in_channels // geometry.groups
        first = self.order == "channels_first"
        totals = [axis.total for axis in self.axes]
        for runs in itertools.product(*(axis.runs for axis in self.axes)):
            sizes = [run.reads.shape[1] for run in runs]
            # Entries of one filter and channel from one position of an axis to the next, over step.
            apart = [
                math.prod(sizes[:axis]) * math.prod(totals[axis + 1 :]) for axis in range(len(runs))
            ]
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
            )

    @cached_property
    def _per_filter(self) -> int:
        per_group = self.geometry.in_channels // self.geometry.groups
        return per_group * math.prod(axis.total for axis in self.axes)


def matrix_pattern(
    geometry: ConvGeometry, input_size: Sequence[int], order: Order
) -> MatrixPattern:
    """Return where the matrix of a geometry has entries, for one input size and order of axes.

    Nothing of the matrix's size is built.
    """
    return _pattern(index_map(geometry, input_size), check_order(order))


@lru_cache(maxsize=64)
def _pattern(where: IndexMap, order: Order) -> MatrixPattern:
    return MatrixPattern(where, order, tuple(AxisPattern(axis) for axis in where.axes))
