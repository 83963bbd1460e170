"""How `convfc.im2col` moves the numbers: padding, strided views, and blocks of rows.

One implementation serves every library; NumPy has a faster one. Both read where the index map says,
and neither computes with the numbers that it moves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt

from convfc.arrays import Array, take_or_zero
from convfc.indexmap import IndexMap

Block: TypeAlias = Sequence[tuple[int, int]]
"""A (start, stop) over the batch and over each output axis: some rows of M."""

CACHED = 2**19
"""Bytes of M that stay in a core's cache while it is visited tap by tap."""

SHORT_RUN, FEW_TAPS = 8, 5
"""Bytes and taps up to which NumPy copies faster along positions than along taps."""


def pad(xp: Any, x: Array, where: IndexMap) -> Array:
    """Return the input with its padding, ``(b, *padded, c)``, as the windows read it."""
    for a, axis in enumerate(where.axes, start=1):
        if axis.margins is None:
            x = take_or_zero(xp, x, axis.source, a)
        else:  # only what is added needs a gather
            before, after = ([take_or_zero(xp, x, m, a)] if m.size else [] for m in axis.margins)
            x = xp.concat([*before, x, *after], axis=a) if before or after else x
    # Once here, not in every block: `_stretch_numpy` reads contiguous memory.
    return np.ascontiguousarray(x) if array_api_compat.is_numpy_array(x) else x


def stretch(xp: Any, padded: Array, where: IndexMap, block: Block) -> Array:
    """Return some rows of M, ``(rows, groups * k)``, from the input that `pad` has padded."""
    shape = (-1, where.shape[1])
    if array_api_compat.is_numpy_array(padded) and math.prod(where.geometry.kernel_size) > 1:
        return _stretch_numpy(padded, where, block).reshape(shape)
    groups = where.geometry.groups
    columns = []
    for tap in itertools.product(*(range(axis.taps) for axis in where.axes)):
        # What one tap reads over all positions is one strided view of the padded input.
        view = [slice(*block[0])]
        for axis, t, (start, stop) in zip(where.axes, tap, block[1:], strict=True):
            first = axis.first + t * axis.tap_step
            view.append(
                slice(first + start * axis.step, first + (stop - 1) * axis.step + 1, axis.step)
            )
        column = padded[tuple(view)]
        # A graph of TensorFlow's may not know the batch.
        by_group = (-1, *column.shape[1:-1], groups, column.shape[-1] // groups)
        columns.append(xp.reshape(column, by_group))
    return xp.reshape(xp.stack(columns, axis=-2) if len(columns) > 1 else columns[0], shape)


def row_blocks(shape: Sequence[int], rows: int) -> Iterator[list[tuple[int, int]]]:
    """Cut (batch, *positions) into blocks of at most ``rows`` rows of M, each contiguous in M.

    A block is whole on its last axes, cut on one axis, and single on the axes before it.
    """
    if not math.prod(shape):
        yield [(0, n) for n in shape]
        return
    cut = len(shape) - 1
    while cut > 0 and math.prod(shape[cut:]) <= rows:
        cut -= 1
    step = max(1, rows // math.prod(shape[cut + 1 :]))
    whole = [(0, n) for n in shape[cut + 1 :]]
    for single in itertools.product(*(range(n) for n in shape[:cut])):
        for start in range(0, shape[cut], step):
            stop = min(start + step, shape[cut])
            yield [*((i, i + 1) for i in single), (start, stop), *whole]


def stack_rows(xp: Any, blocks: Iterator[Array], shape: tuple[int, int]) -> Array:
    """Concatenate blocks of rows; in NumPy without holding the whole twice."""
    first = next(blocks)
    if tuple(first.shape) == shape:
        return first
    if not array_api_compat.is_numpy_array(first):
        return xp.concat([first, *blocks], axis=0)
    whole = np.empty(shape, first.dtype)
    start = 0
    for block in itertools.chain([first], blocks):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole


def _stretch_numpy(padded: npt.NDArray[Any], where: IndexMap, block: Block) -> npt.NDArray[Any]:
    """Copy whole runs of taps at once: NumPy moves one long item faster than many short ones.

    A run is contiguous in the padded input and in M: the channels of a group, and with them the
    taps of the last axes where their stride is the length of the run.
    """
    groups, ndim = where.geometry.groups, len(where.axes)
    per_group = padded.shape[-1] // groups
    batch, *spatial, _ = padded.strides
    channel = padded.itemsize  # not padded.strides[-1]: a single channel may have any, even 0
    lengths = [stop - start for start, stop in block]
    shape = [*lengths, groups, *(axis.taps for axis in where.axes)]
    strides = [
        batch,
        *(axis.step * s for axis, s in zip(where.axes, spatial, strict=True)),
        per_group * channel,
        *(axis.tap_step * s for axis, s in zip(where.axes, spatial, strict=True)),
    ]
    offset = block[0][0] * batch + sum(
        (axis.first + start * axis.step) * s
        for axis, (start, _), s in zip(where.axes, block[1:], spatial, strict=True)
    )
    rows = np.empty((*shape, per_group), dtype=padded.dtype)
    if not rows.size:
        return rows
    run = per_group * channel
    # An axis whose step is the run itself continues it: one item more, one axis less. The axes of
    # rows and of groups stay, so that blocks can be cut on them.
    while len(shape) > ndim + 2 and strides[-1] == run:
        run *= shape.pop()
        strides.pop()
    item = np.dtype((np.void, run))  # opaque bytes, which NumPy moves as one item
    source: npt.NDArray[Any] = np.ndarray(shape, item, padded, offset, strides)
    target: npt.NDArray[Any] = np.ndarray(shape, item, rows)
    if run > SHORT_RUN or shape[-1] > FEW_TAPS:
        target[...] = source
        return rows
    # Items of a few bytes: a loop over taps, each a long strided copy over positions, is faster,
    # as long as the part of M that it visits again for every tap stays in the cache.
    row_bytes = rows.nbytes // math.prod(lengths)
    for part in row_blocks(lengths, max(1, CACHED // row_bytes)):
        here = tuple(slice(*bounds) for bounds in part)
        to, read = target[here], source[here]
        for tap in np.ndindex(*shape[ndim + 2 :]):
            to[(..., *tap)] = read[(..., *tap)]
    return rows
