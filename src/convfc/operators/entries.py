"""The entries of any matrix, dense or sparse, in the pattern of the matrix of a convolution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.arrays import as_numpy, check_shape
from convfc.operators.pattern import MatrixPattern

__all__ = ["Entries", "Stray", "read_entries"]

_CHUNK = 2**21
"""Entries that are looked at together where a matrix is not stored in the pattern already."""


class Stray(NamedTuple):
    """An entry that is not 0 where the pattern has none."""

    row: int
    column: int
    value: Any


class Entries(NamedTuple):
    """What a matrix holds in a pattern, and outside of it.

    Attributes
    ----------
    values : NumPy array, shape (nonzeros of the pattern,)
        In the order in which the pattern stores them; 0 where the matrix stores none. It may share
        the memory of the matrix.
    stray : Stray or None
        The first entry outside the pattern, row by row.
    outside : float
        Frobenius norm of all of them.
    """

    values: npt.NDArray[Any]
    stray: Stray | None
    outside: float


def read_entries(matrix: Any, pattern: MatrixPattern) -> Entries:
    """Read a dense or sparse matrix of any library.

    Parameters
    ----------
    matrix : array or sparse array
        Of NumPy, PyTorch or JAX, or sparse, of SciPy or PyTorch.
    pattern : MatrixPattern

    Raises
    ------
    ShapeError, DtypeError
        If the matrix has another shape, or holds no numbers.

    Examples
    --------
    >>> from convfc.geometry import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> pattern = matrix_pattern(ConvGeometry(1, 1, (2,)), (3,), "channels_last")
    >>> entries = read_entries([[3, 5, 0], [7, 3, 0]], pattern)
    >>> entries.values, entries.stray, entries.outside
    (array([3, 5, 3, 0]), Stray(row=1, column=0, value=7), 7.0)
    """
    matrix = _readable(matrix)
    remedy = "check geometry and input size; (f * L, c * product of the input size)"
    check_shape("matrix", matrix, pattern.shape, remedy)
    ends, columns = pattern.indptr(), pattern.indices()
    if (
        sparse.issparse(matrix)
        and np.array_equal(matrix.indptr, ends)
        and np.array_equal(matrix.indices, columns)
    ):
        return Entries(np.ascontiguousarray(matrix.data), None, 0.0)
    dtype = matrix.dtype
    values = np.zeros(pattern.nonzeros, dtype)
    stray, squares = None, 0.0
    for start, stop, rows, found, held in _chunks(matrix, pattern):
        first, last = int(ends[start]), int(ends[stop])
        counts = np.diff(ends[start : stop + 1])
        wanted = _keys(np.repeat(np.arange(stop - start), counts), columns[first:last], pattern)
        keys = _keys(rows, found, pattern)
        at = np.searchsorted(wanted, keys)
        inside = np.zeros(len(keys), bool)
        within = at < len(wanted)
        inside[within] = wanted[at[within]] == keys[within]
        values[first + at[inside]] = held[inside]
        outside = np.flatnonzero(~inside & (held != 0))
        if len(outside):
            one = outside[0]
            stray = stray or Stray(start + int(rows[one]), int(found[one]), held[one].item())
            squares += float(np.sum(np.abs(held[outside].astype(_wide(dtype))) ** 2))
    return Entries(values, stray, math.sqrt(squares))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.result_type(dtype, np.float64)


def _readable(matrix: Any) -> Any:
    """Return a NumPy array, or SciPy's compressed rows; the matrix that is given stays as it is."""
    if not sparse.issparse(matrix):
        layout = str(getattr(matrix, "layout", ""))  # of a PyTorch tensor
        if "sparse" not in layout:
            return as_numpy(matrix, "matrix")
        tensor = matrix.detach().to_sparse_csr()
        parts = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
        values, columns, ends = (as_numpy(part, "matrix") for part in parts)
        matrix = sparse.csr_array((values, columns, ends), shape=tuple(tensor.shape))
    if matrix.ndim != 2:
        return matrix  # of a wrong rank
    rows = sparse.csr_array(matrix)
    as_numpy(rows.data, "matrix")
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def _keys(rows: Any, columns: Any, pattern: MatrixPattern) -> npt.NDArray[np.int64]:
    """Return numbers that ascend as the entries do, row by row."""
    keys: npt.NDArray[np.int64] = rows.astype(np.int64) * pattern.shape[1] + columns
    return keys


def _chunks(matrix: Any, pattern: MatrixPattern) -> Iterator[tuple[int, int, Any, Any, Any]]:
    """Yield bounds of some rows, and rows (from the first of them), columns and values in them."""
    rows = pattern.shape[0]
    dense = isinstance(matrix, np.ndarray)
    entries = matrix.size if dense else max(matrix.nnz, pattern.nonzeros)
    step = max(1, _CHUNK * rows // max(entries, 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if dense:
            part = matrix[start:stop]
            where, columns = np.nonzero(part)
            yield start, stop, where, columns, part[where, columns]
        else:
            first, last = matrix.indptr[start], matrix.indptr[stop]
            counts = np.diff(matrix.indptr[start : stop + 1])
            where = np.repeat(np.arange(stop - start), counts)
            yield start, stop, where, matrix.indices[first:last], matrix.data[first:last]
