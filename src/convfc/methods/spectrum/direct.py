"""All singular values by LAPACK: of the filter matrix where that is enough, else of the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from convfc.arrays import as_numpy
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.methods.spectrum.blas import one_blas_thread
from convfc.methods.spectrum.structure import Copies
from convfc.methods.spectrum.values import Values
from convfc.operators.matrix import conv_matrix

__all__ = ["dense_values", "groups_of", "kernel_values", "lapack_error", "reshaped_norm", "taps_of"]

Filters = npt.NDArray[Any]
"""float64 or complex128."""


def taps_of(filters: Filters, geometry: ConvGeometry) -> Filters:
    """Return one matrix per tap: filters ``(f, *kernel, c / groups)`` as (taps, groups, p, q).

    From the q channels of a group that the windows read to the p that they write; transposed, the
    windows are on the output, and it is the other way round.

    Examples
    --------
    >>> taps_of(np.ones((4, 3, 3, 1)), ConvGeometry(2, 4, (3, 3), groups=2)).shape
    (9, 2, 2, 1)
    """
    groups, f, c = geometry.groups, geometry.out_channels, geometry.in_channels
    apart = filters.reshape(groups, f // groups, -1, c // groups)
    taps = np.moveaxis(apart, 2, 0)
    return taps.swapaxes(2, 3) if geometry.transposed else taps


def reshaped_norm(filters: Filters) -> float:
    """Return the norm of the filter matrix K."""
    with one_blas_thread():
        return float(np.linalg.norm(filters.reshape(len(filters), -1), 2))


def kernel_values(filters: Filters, geometry: ConvGeometry, copies: Copies, count: int) -> Values:
    """Return the values of an operator that is copies of K, and zeros up to ``count``.

    The zeros belong to elements of the input that no window reads.

    Examples
    --------
    >>> pool = ConvGeometry(1, 1, (2,), stride=2)
    >>> kernel_values(np.array([[[3.0], [4.0]]]), pool, Copies(2, transposed=False), 2)
    array([5., 5.])
    """
    groups, f = geometry.groups, geometry.out_channels
    by_group = filters.reshape(groups, f // groups, -1, geometry.in_channels // groups)
    if copies.transposed:
        matrices = by_group.reshape(groups, -1, by_group.shape[-1])
    else:
        matrices = by_group.reshape(groups, f // groups, -1)
    with one_blas_thread():
        found = np.linalg.svd(matrices, compute_uv=False).ravel()
    values = np.zeros(count)
    values[: found.size * copies.number] = np.repeat(found, copies.number)
    return values


def dense_values(layer: ConvLayer, input_size: tuple[int, ...]) -> Values:
    """Return all values of the operator, group by group, from its dense matrix, in no order."""
    found = []
    for group in groups_of(layer):
        matrix = conv_matrix(group, input_size, layout="dense")
        # With more rows than columns LAPACK begins with QR: the same values, and less work.
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        found.append(linalg.svdvals(tall, overwrite_a=True, check_finite=False))
    values: Values = np.concatenate(found)
    return values


def lapack_error(rows: int, columns: int) -> float:
    """Return LAPACK's backward error relative to the norm: ``p(m, n) eps``.

    Users' guide, section 4.9, with max(m, n) for its modestly growing p, as NumPy's ``matrix_rank``
    takes it.
    """
    return max(rows, columns) * float(np.finfo(np.float64).eps)


def groups_of(layer: ConvLayer) -> Iterator[ConvLayer]:
    """Yield a layer of one group for each group: the operator is block-diagonal in them."""
    geometry, filters = layer.geometry, as_numpy(layer.filters, "filters")
    groups = geometry.groups
    one = replace(
        geometry,
        in_channels=geometry.in_channels // groups,
        out_channels=geometry.out_channels // groups,
        groups=1,
    )
    for part in np.split(filters, groups):
        yield ConvLayer(one, part)
