"""The matrix of a whole CONV layer for one input size: made of its weight, and read, bit for bit.

Padding in ONNX is zeros, so that every entry in the pattern holds one number of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.geometry import ConvGeometry
from convfc.operators.nearest import bias_in, nearest_conv
from convfc.operators.pattern import matrix_pattern

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class WholeLayer:
    """What a layer computes on inputs of one size."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Numbers of one output, and of one input."""
        return matrix_pattern(self.geometry, self.input_size, "channels_first").shape

    def matrix(self, weight: Array) -> Array:
        """Return the matrix A: A @ x.ravel() is the layer's output on x, without its bias."""
        matrix = np.zeros(self.shape, weight.dtype)
        places, numbers = self._entries()
        matrix.reshape(-1)[places] = filters_of(weight, self.geometry).reshape(-1)[numbers]
        return matrix

    def offset(self, bias: Array) -> Array:
        """Return what the bias adds to an output."""
        return np.repeat(bias, self.shape[0] // self.geometry.out_channels)

    def unread(self, weight: Array) -> Array:
        """Return the numbers of a weight that are not in the matrix: they meet padding only."""
        filters = filters_of(weight, self.geometry)
        numbers: Array = np.delete(filters.reshape(-1), self._entries()[1])
        return numbers

    def weight(self, matrix: Array, unread: Array, *, project: bool = False) -> tuple[Array, float]:
        """Return the weight that a matrix holds, or the closest, and how far away that is.

        Raises
        ------
        NotAConvolution
            If the matrix is that of no convolution, unless ``project``.
        """
        places, numbers = self._entries()
        held = matrix.reshape(-1)[places]
        shape = self.geometry.filters_shape
        flat = np.zeros(int(np.prod(shape)), matrix.dtype)
        is_unread = np.ones(flat.shape, bool)
        is_unread[numbers] = False
        flat[numbers[::-1]] = held[::-1]  # the first entry stays
        other = (flat[numbers] != held) & ~(np.isnan(flat[numbers]) & np.isnan(held))
        away = 0.0
        if other.any() or np.count_nonzero(held) != np.count_nonzero(matrix):
            found = nearest_conv(
                matrix, self.geometry, self.input_size, order="channels_first", project=project
            )
            flat, away = found.filters.astype(matrix.dtype).reshape(-1), found.distance
        flat[is_unread] = unread.astype(matrix.dtype)
        return _weight_of(flat.reshape(shape), self.geometry), away

    def bias(self, vector: Array, *, project: bool = False) -> tuple[Array, float]:
        """Return the bias that a vector holds; as `weight`."""
        pattern = matrix_pattern(self.geometry, self.input_size, "channels_first")
        return bias_in(vector.reshape(-1), pattern, project=project)

    def _entries(self) -> tuple[Array, Array]:
        """Return where in the raveled matrix entries are, and which numbers of the filters."""
        pattern = matrix_pattern(self.geometry, self.input_size, "channels_first")
        shape = self.geometry.filters_shape
        numbers = pattern.values(np.arange(np.prod(shape)).reshape(shape))
        starts = np.arange(pattern.shape[0], dtype=np.int64) * pattern.shape[1]
        places = np.repeat(starts, np.diff(pattern.indptr()))
        places += pattern.indices()
        return places, numbers


def filters_of(weight: Array, geometry: ConvGeometry) -> Array:
    """Return a CONV node's weight as convfc's filters ``(f, *kernel, c / groups)``."""
    return np.moveaxis(_exchanged(weight, geometry), 1, -1)


def _weight_of(filters: Array, geometry: ConvGeometry) -> Array:
    return np.ascontiguousarray(_exchanged(np.moveaxis(filters, -1, 1), geometry))


def _exchanged(weight: Array, geometry: ConvGeometry) -> Array:
    """Exchange filters and channels inside every group, if transposed; twice is as it was."""
    if not geometry.transposed:
        return weight
    by_group = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    by_group = np.swapaxes(by_group, 1, 2)
    return by_group.reshape(-1, *by_group.shape[2:])
