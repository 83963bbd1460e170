"""The periodic operator of a geometry as loops, and what two ways to its values may differ by."""

from __future__ import annotations

import math

import numpy as np

from convfc import ConvGeometry

EPS = float(np.finfo(np.float64).eps)


def periodic_matrix(
    filters: np.ndarray, geometry: ConvGeometry, size: tuple[int, ...]
) -> np.ndarray:
    """The layer on a circle, from the definition; shares nothing with the package.

    Channels last. Coarse position o meets fine position o * stride + t * dilation through tap t.
    """
    g = geometry
    if g.transposed:
        fine = tuple(n * s for n, s in zip(size, g.stride, strict=True))
        coarse, out = size, fine
    else:
        fine = size
        coarse = out = tuple(-(-n // s) for n, s in zip(size, g.stride, strict=True))
    c, f = g.in_channels // g.groups, g.out_channels // g.groups
    shape = (math.prod(out), g.out_channels, math.prod(size), g.in_channels)
    matrix = np.zeros(shape, filters.dtype)
    for o in np.ndindex(*coarse):
        for t in np.ndindex(*g.kernel_size):
            there = [
                (a * s + b * d) % n
                for a, b, s, d, n in zip(o, t, g.stride, g.dilation, fine, strict=True)
            ]
            row, column = (there, o) if g.transposed else (o, there)
            row, column = np.ravel_multi_index(row, out), np.ravel_multi_index(column, size)
            tap = tuple(k - 1 - b for k, b in zip(g.kernel_size, t, strict=True)) if g.flip else t
            for one in range(g.groups):
                rows, columns = slice(one * f, one * f + f), slice(one * c, one * c + c)
                matrix[row, rows, column, columns] += filters[(rows, *tap)]
    return matrix.reshape(shape[0] * shape[1], -1)


def lapack(matrix: np.ndarray) -> np.ndarray:
    """The judge: all singular values by LAPACK's dense SVD."""
    return np.linalg.svd(matrix, compute_uv=False)


def apart(values: np.ndarray, others: np.ndarray) -> float:
    """How far two lists of values are apart, relative to the largest."""
    assert values.shape == others.shape
    return float(np.abs(values - others).max() / (others.max() or 1.0))


def lapack_bound(matrix: np.ndarray) -> float:
    """The judge's own error: Weyl's inequality, with LAPACK's backward error p(m, n) eps."""
    return max(matrix.shape) * EPS
