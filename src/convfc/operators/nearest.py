"""The way back from a matrix: the convolution that it is, or the closest one.

The matrices of one geometry are a linear space whose coordinates are the filters. A matrix in it is
read; onto it any other matrix is projected: least squares, in the Frobenius norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convfc.errors import NotAConvolution
from convfc.geometry import ConvGeometry
from convfc.operators.entries import Entries, read_entries
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.operators.sets import Sets
from convfc.registry import Order

__all__ = ["NearestConv", "nearest_conv"]


class NearestConv(NamedTuple):
    """The filters of a convolution, and how far its matrix is from the given one.

    Attributes
    ----------
    filters : NumPy array, shape (f, *kernel, c / groups)
    distance : float
        Frobenius norm of the difference of the two matrices.
    """

    filters: npt.NDArray[Any]
    distance: float


def nearest_conv(
    matrix: Any,
    geometry: ConvGeometry,
    input_size: Sequence[int],
    *,
    order: Order = "channels_last",
    project: bool = False,
) -> NearestConv:
    """Return the filters whose matrix this is: `conv_matrix` read backwards.

    Parameters
    ----------
    matrix : array or sparse array, shape (f * L, c * product of the input size)
        Dense, of NumPy, PyTorch or JAX, or sparse, of SciPy or PyTorch. It stays as it is.
    geometry : ConvGeometry
    input_size : sequence of int
        Spatial size of the input.
    order : {"channels_first", "channels_last"}
        Order of the axes of input and output before they are flattened; ``"channels_first"`` for
        matrices of PyTorch's layers.
    project : bool
        Whether to take the closest convolution, in the Frobenius norm, if the matrix is none.

    Returns
    -------
    NearestConv
        Filters ``(f, *kernel, c / groups)``, and the distance. Of the matrix of a convolution the
        filters are the very numbers that it holds, and the distance is 0.0. The dtype is the
        matrix's; of integers it is wider where weights are differences (int64) or no integers.

        A tap that is never read has weight 0. Where padding repeats elements on a small input, an
        entry may be a sum of weights, from which they are found (integers exactly). Where only
        sums are determined, the weights are those of least norm with these sums. The distance is
        then that of these sums' rounding.

    Raises
    ------
    NotAConvolution
        If the matrix is that of no convolution, unless ``project``. It names the first entry that
        breaks the pattern, row by row: one that no tap reads and that is not 0, or one that differs
        from what most entries of the same tap hold.
    ShapeError, DtypeError
        If the matrix has another shape, or holds no numbers.
    GeometryError
        If the geometry does not fit the input size.

    Notes
    -----
    The projection makes each weight the mean of the entries that hold it, unless padding repeats
    elements; then small systems of equations, one per axis, take its place. Means are taken in
    float64. A sparse matrix that is stored as `conv_matrix` stores it is read where it is; reading
    it takes the memory of one array of column indices beside.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> matrix = np.array([[3.0, 5.0, 0.0], [0.0, 3.0, 5.0]])
    >>> filters, distance = nearest_conv(matrix, geometry, (3,))
    >>> filters.ravel(), distance
    (array([3., 5.]), 0.0)

    >>> matrix[1, 1] = 4
    >>> nearest_conv(matrix, geometry, (3,))
    Traceback (most recent call last):
    ...
    convfc.errors.NotAConvolution: matrix[1, 1]: output position (1,), filter 0 <- input position
    (1,), channel 0 is not that of a convolution; expected 3.0, as its tap has elsewhere; got 4.0...

    >>> filters, distance = nearest_conv(matrix, geometry, (3,), project=True)
    >>> filters.ravel(), round(distance**2, 3)
    (array([3.5, 5. ]), 0.5)
    """
    pattern = matrix_pattern(geometry, input_size, order)
    entries = read_entries(matrix, pattern)
    values, sets = entries.values, Sets(pattern)
    numbers = sets.first(values)
    weights = sets.weights(numbers)
    expected, allowed = sets.sums(weights), sets.allowed(numbers)
    if entries.stray is None and next(sets.wrong(values, expected, allowed), None) is None:
        filters = sets.to_filters(weights.astype(_dtype(values.dtype, weights.dtype)))
        if not sets.repeats:
            return NearestConv(filters, 0.0)
        rounding = np.asarray(values - pattern.values(filters))
        wide = np.result_type(rounding.dtype, np.float64)
        return NearestConv(filters, float(np.linalg.norm(rounding.astype(wide, copy=False))))
    if not project:
        raise _refusal(entries, sets)
    weights = sets.least_squares(values)
    filters = sets.to_filters(weights.astype(_dtype(values.dtype, weights.dtype)))
    inside = sets.distance(values, sets.sums(sets.of_filters(filters)))
    return NearestConv(filters, math.hypot(inside, entries.outside))


def _dtype(matrix: np.dtype[Any], weights: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the filters: the matrix's, unless its integers may not hold them."""
    return matrix if np.issubdtype(matrix, np.inexact) else weights


def _refusal(entries: Entries, sets: Sets) -> NotAConvolution:
    """Return the error that names the first entry that breaks the pattern."""
    pattern, values = sets.pattern, entries.values
    broken = []
    if entries.stray is not None:
        broken.append((*entries.stray, "0, since no tap reads there"))
    # What breaks the pattern beside the first entries may, within rounding, fit the common ones.
    for numbers in (sets.common(values), sets.first(values)):
        expected, allowed = sets.sums(sets.weights(numbers)), sets.allowed(numbers)
        entry, value = min(sets.wrong(values, expected, allowed), default=(None, None))
        if entry is not None:
            row = int(np.searchsorted(pattern.indptr(), entry, side="right")) - 1
            column = int(pattern.indices()[entry])
            got = values[entry].item()
            broken.append((row, column, got, f"{_short(value, values)}, as its tap has elsewhere"))
        if broken:
            break
    row, column, got, rule = min(broken, key=lambda one: one[:2])
    return NotAConvolution(
        f"{_place(pattern, row, column)} is not that of a convolution",
        where=f"matrix[{row}, {column}]",
        expected=rule,
        got=_short(got, values),
        remedy="check geometry, input size and order; project=True gives the closest convolution",
    )


def _short(value: Any, values: npt.NDArray[Any]) -> str:
    """Return a number with the digits that the matrix has."""
    whole = not np.issubdtype(values.dtype, np.inexact)
    return str(value if whole else values.dtype.type(value))


def _place(pattern: MatrixPattern, row: int, column: int) -> str:
    """Return what an entry of the matrix connects."""
    where, geometry = pattern.where, pattern.geometry
    first = pattern.order == "channels_first"

    def of(index: int, channels: int, spatial: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        shape = (channels, *spatial) if first else (*spatial, channels)
        channel, *position = np.roll(np.unravel_index(index, shape), 0 if first else 1).tolist()
        return tuple(position), channel

    output, f = of(row, geometry.out_channels, where.output_size)
    read, channel = of(column, geometry.in_channels, where.input_size)
    return f"output position {output}, filter {f} <- input position {read}, channel {channel}"
