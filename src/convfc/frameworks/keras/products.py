"""The patch matrix M with ``keras.ops``: moved as for any other array, in graphs as in eager calls.

Not by a gather for each axis: that takes a third longer in a training step on JAX and, forwards,
on PyTorch, though it is faster forwards on JAX.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import ShapeError
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.stretch import pad, stretch


def _take(x: Any, index: Any, axis: int) -> Any:
    """Gather along an axis: on PyTorch by its own function, as no export gets Keras's right."""
    if keras.config.backend() != "torch":
        return keras.ops.take(x, index, axis=axis)
    import torch

    return torch.index_select(x, axis, torch.as_tensor(index, device=x.device))


_OPS = SimpleNamespace(
    asarray=lambda index, device: index,  # `take` puts it where it belongs
    concat=keras.ops.concatenate,
    reshape=keras.ops.reshape,
    stack=keras.ops.stack,
    take=_take,
    zeros_like=keras.ops.zeros_like,
)
"""What moving numbers asks of an array library."""


def patches(x: Any, geometry: ConvGeometry) -> Any:
    """Return the patch matrix M, ``(b, L, groups * k)``, of an input ``(b, *spatial, c)``.

    The batch may be unknown, as it is in TensorFlow's graphs.
    """
    where = index_map(geometry, tuple(x.shape[1:-1]))
    block = [(0, x.shape[0]), *((0, n) for n in where.output_size)]
    rows = stretch(_OPS, pad(_OPS, x, where), where, block)
    return keras.ops.reshape(rows, (-1, *where.shape))


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
