"""The matrix of a CONV layer: y = A x + b for the flattened input x and output y.

A CONV layer is a special FC layer (Section 3 of Ma & Lu, 2017); this is that FC layer's matrix. It
is sparse, and with zero padding and stride 1 doubly block Toeplitz.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.arrays import Array, as_numpy
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.registry import Order, read_layer

__all__ = ["conv_matrix", "conv_offset"]


def conv_matrix(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    layout: Literal["csr", "dense"] = "csr",
    order: Order | None = None,
) -> Any:
    """Return the matrix A of a CONV layer: A @ x.ravel() + b == layer(x).ravel() for one input x.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> conv_matrix(np.array([3, 5]).reshape(1, 2, 1), (4,), geometry, layout="dense")
    array([[3, 5, 0, 0],
           [0, 3, 5, 0],
           [0, 0, 3, 5]])
    """
    reading = read_layer(layer, geometry, input_size=input_size, order=order)
    geometry = reading.layer.geometry
    where = index_map(geometry, input_size)
    filters = as_numpy(reading.layer.filters, "filters")
    f, c, g, n = (
        geometry.out_channels,
        geometry.in_channels,
        geometry.groups,
        math.prod(where.input_size),
    )
    flat = where.flat().reshape(where.shape[0], g, geometry.taps)
    rows, columns, values = [], [], []
    for one in range(f):
        source = flat[:, one // (f // g)]
        p, t = np.nonzero(source >= 0)
        i, d = np.divmod(source[p, t], c)
        first = reading.order == "channels_first"
        rows.append(one * where.shape[0] + p if first else p * f + one)
        columns.append(d * n + i if first else source[p, t])
        values.append(filters[one].ravel()[t])
    shape = (where.shape[0] * f, n * c)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sparse.csr_array(sparse.coo_array(entries, shape=shape))
    return matrix.toarray() if layout == "dense" else matrix


def conv_offset(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    bias: Array | None = None,
    order: Order | None = None,
) -> npt.NDArray[Any]:
    """Return the bias of a CONV layer as a vector b that the matrix is given: y = A x + b.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 2, (2,))
    >>> conv_offset(np.ones((2, 2, 1)), (4,), geometry, bias=np.array([3.0, 5.0]))
    array([3., 5., 3., 5., 3., 5.])
    """
    reading = read_layer(layer, geometry, input_size=input_size, bias=bias, order=order)
    geometry = reading.layer.geometry
    positions = math.prod(geometry.output_size(input_size))
    if reading.layer.bias is None:
        return np.zeros(positions * geometry.out_channels, as_numpy(reading.layer.filters).dtype)
    b = as_numpy(reading.layer.bias, "bias")
    return np.repeat(b, positions) if reading.order == "channels_first" else np.tile(b, positions)
