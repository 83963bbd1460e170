"""The patch matrix M with ``keras.ops``: moved, as the index map says, in graphs as in eager calls.

One axis at a time, by its own small table: a gather by the whole map would put an index as large as
one image's M into every compiled graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ShapeError
from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, index_map


def patches(x: Any, geometry: ConvGeometry) -> Any:
    """Return the patch matrix M, ``(b, L, groups * k)``, of an input ``(b, *spatial, c)``.

    The batch may be unknown, as it is in TensorFlow's graphs.
    """
    where = index_map(geometry, tuple(x.shape[1:-1]))
    ndim, ops = geometry.spatial_ndim, keras.ops
    padding = [(0, int((axis.table < 0).any())) for axis in where.axes]
    if np.any(padding):  # a zero after the last element, which the padding reads
        x = ops.pad(x, ((0, 0), *padding, (0, 0)))
    for a, axis in enumerate(where.axes):
        x = _windows(x, axis, 1 + 2 * a)
    pairs = [n for axis in where.axes for n in (axis.positions, axis.taps)]
    x = ops.reshape(x, (-1, *pairs, geometry.groups, where.entry_shape[-1]))
    # (b, position, tap, position, tap, ..., g, c) -> (b, *positions, g, *taps, c)
    spatial, group = range(1, 1 + 2 * ndim), 1 + 2 * ndim
    x = ops.transpose(x, (0, *spatial[::2], group, *spatial[1::2], group + 1))
    return ops.reshape(x, (-1, *where.shape))


def _windows(x: Any, axis: AxisMap, place: int) -> Any:
    """Return an input with one spatial axis as two: positions, and taps of the window there."""
    if axis.taps == 1 and np.array_equal(axis.table[:, 0], np.arange(axis.size)):
        return keras.ops.expand_dims(x, place + 1)
    table = np.where(axis.table < 0, axis.size, axis.table).astype("int32")
    if keras.config.backend() == "torch":  # Keras's take adds what no export to ONNX gets right
        import torch

        index = torch.as_tensor(table.reshape(-1), device=x.device)
        return torch.index_select(x, place, index).unflatten(place, table.shape)
    return keras.ops.take(x, table, axis=place)


def known_size(shape: tuple[int | None, ...], where: str) -> tuple[int, ...]:
    """Return the spatial size of an input ``(b, *spatial, c)``, or raise where a graph has none."""
    size = tuple(n for n in shape[1:-1] if n is not None)
    if len(size) < len(shape) - 2:
        raise ShapeError(
            "M cannot be built in a graph that does not know the size of the input",
            where=where,
            expected="known spatial axes",
            got=tuple(shape),
            remedy="give keras.Input its full size, or compile with run_eagerly=True",
        )
    return size
