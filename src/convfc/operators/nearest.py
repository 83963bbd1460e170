"""The way back from a matrix: the convolution that it is, or the closest one.

The matrices of one geometry are a linear space whose coordinates are the filters. A matrix in it is
read; onto it any other matrix is projected: least squares, in the Frobenius norm.

On one spatial axis an entry of the matrix belongs to a *set* of taps: to one tap, or to several
that read the same element, in a padding that repeats elements. Entries of the same filter, channel
and sets hold the same number, the sum of the weights of these taps: ``v = B w``, with a matrix B of
zeros and ones per axis. So what is asked of all entries is asked of a few numbers, axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from convfc.arrays import as_numpy, check_shape, take_or_zero
from convfc.errors import NotAConvolution
from convfc.geometry import ConvGeometry
from convfc.operators.pattern import AxisPattern, Block, MatrixPattern, Run, matrix_pattern
from convfc.registry import Order
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

Numbers = npt.NDArray[Any]

_CHUNK = 2**20
"""Entries that are looked at together."""


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
    """Read a dense or sparse matrix of any library."""
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


class AxisSets:
    """The sets of taps on one axis.

    Attributes
    ----------
    of_run : dict of Run to array of int
        Per run of positions, the set of each element that is read.
    contains : array of 0 and 1, shape (sets, taps)
        B.
    counts : array of int, shape (sets,)
        Number of entries, on this axis, of each set.
    repeats : bool
        Whether a set has several taps.
    """

    def __init__(self, pattern: AxisPattern) -> None:
        found: dict[tuple[int, ...], int] = {}
        self.of_run: dict[Run, Numbers] = {}
        for run in pattern.runs:
            parts = (tuple(map(int, part)) for part in np.split(run.taps, run.first[1:]))
            self.of_run[run] = np.array([found.setdefault(part, len(found)) for part in parts])
        self.contains = np.zeros((len(found), pattern.axis.taps), dtype=np.int64)
        self.counts = np.zeros(len(found), dtype=np.int64)
        for taps, number in found.items():
            self.contains[number, taps] = 1
        for run, numbers in self.of_run.items():
            self.counts[numbers] += len(run.reads)
        self.repeats = any(len(taps) > 1 for taps in found)
        self.inverse, self.moduli, self.exact = _left_inverse(self.contains)
        weights = np.sqrt(self.counts)
        self.mean = self.inverse
        if self.repeats:
            self.mean = np.linalg.pinv(weights[:, None] * self.contains) * weights


def _left_inverse(contains: Numbers) -> tuple[Numbers, Numbers, bool]:
    """Return Q with Q B w = w, the moduli of its entries, and whether these are whole numbers.

    Taps that stand alone in a set are simply taken from it, further ones by subtracting what is
    known. Where only sums are determined, Q is the pseudo-inverse: the weights of least norm.
    """
    known: dict[int, Numbers] = {}
    by_size = sorted(range(len(contains)), key=lambda number: int(contains[number].sum()))
    while True:
        before = len(known)
        for number in by_size:
            taps: list[int] = np.flatnonzero(contains[number]).tolist()
            unknown = [tap for tap in taps if tap not in known]
            if len(unknown) == 1:
                row = np.zeros(len(contains), dtype=np.int64)
                row[number] = 1
                for tap in taps:
                    row -= known.get(tap, 0)
                known[unknown[0]] = row
        if len(known) == before:
            break
    inverse = np.zeros(contains.shape[::-1], np.int64)
    moduli = np.zeros(inverse.shape, np.int64)
    exact = len(known) == np.count_nonzero(contains.any(axis=0))
    if not exact:
        inverse, moduli = _pseudo_inverse(contains)
    for tap, row in known.items():
        inverse[tap], moduli[tap] = row, np.abs(row)
    return inverse, moduli, exact


def _pseudo_inverse(contains: Numbers) -> tuple[Numbers, Numbers]:
    """Return the pseudo-inverse, and the moduli that its rounding errors are relative to.

    Sets that share no taps, not even through others, have nothing to do with each other: to these
    it is 0, without rounding. Inside of each part its errors are relative to the largest entry.
    """
    inverse, moduli = (np.zeros(contains.shape[::-1]) for _ in range(2))
    parts, part_of = connected_components(contains.T @ contains, directed=False)
    for part in range(parts):
        taps = np.flatnonzero(part_of == part)
        sets = np.flatnonzero(contains[:, taps].any(axis=1))
        if len(sets):
            block = np.linalg.pinv(contains[np.ix_(sets, taps)])
            inverse[np.ix_(taps, sets)] = block
            moduli[np.ix_(taps, sets)] = np.abs(block).max()
    return inverse, moduli


class Sets:
    """The sets of taps of a whole pattern, and the numbers that they hold.

    These numbers are arrays in the order of a row of the matrix: ``(f, c / groups, *sets)`` if
    channels come first, else ``(f, *sets, c / groups)``; weights likewise, with taps for sets.

    Attributes
    ----------
    repeats : bool
        Whether some entry is a sum of several weights.
    exact : bool
        Whether weights follow from entries by adding and subtracting alone.
    """

    def __init__(self, pattern: MatrixPattern) -> None:
        self.pattern = pattern
        self.axes = [AxisSets(axis) for axis in pattern.axes]
        self.repeats = any(axis.repeats for axis in self.axes)
        self.exact = all(axis.exact for axis in self.axes)
        self._first = pattern.order == "channels_first"
        geometry = pattern.geometry
        self._channels = geometry.in_channels // geometry.groups
        self._shape = self._row([len(axis.contains) for axis in self.axes], self._channels)
        self._shape = (geometry.out_channels, *self._shape)

    def first(self, values: Numbers) -> Numbers:
        """Return what the first entry of each set holds."""
        return self._pick(values, 0)

    def common(self, values: Numbers) -> Numbers:
        """Return what most entries of each set hold, if the first or the last of them does."""
        first, last = self._pick(values, 0), self._pick(values, -1)
        equal = np.zeros(self._shape, np.int64)
        for part, where in self._parts(values):
            same = part == self._spread(first[where])
            equal[where] += np.count_nonzero(same, axis=self._positions)
        return np.where(2 * equal >= self._counts(), first, last)

    def mean(self, values: Numbers) -> Numbers:
        """Return the mean of each set, in float64; exact where all entries are equal."""
        wide = np.result_type(values.dtype, np.float64)
        first = self.first(values).astype(wide)
        more = np.zeros(self._shape, wide)
        for part, where in self._parts(values):
            apart = part.astype(wide) - self._spread(first[where])
            more[where] += apart.sum(axis=self._positions)
        return first + more / self._counts()

    def weights(self, numbers: Numbers) -> Numbers:
        """Return the weights that have these sums, those of least norm where there is a choice."""
        if numbers.dtype.kind in "bu" and self.repeats:
            numbers = numbers.astype(np.int64)  # weights are differences, too
        return self._along(numbers, lambda axis: axis.inverse)

    def least_squares(self, values: Numbers) -> Numbers:
        """Return the weights whose matrix is closest to these entries."""
        return self._along(self.mean(values), lambda axis: axis.mean)

    def sums(self, weights: Numbers) -> Numbers:
        """Return what each set holds: the sum of its weights."""
        return self._along(weights, lambda axis: axis.contains)

    def allowed(self, numbers: Numbers) -> Numbers | None:
        """Return how far an entry may be from `sums` of `weights`, through rounding; None: equal.

        What one tap alone holds is to be equal. A sum of n weights is computed with an error of
        gamma_n; finding the weights and adding them again takes as many terms as the matrices have
        rows and columns; a pseudo-inverse is itself computed, to within its condition squared.
        """
        if not self.repeats or (self.exact and not np.issubdtype(numbers.dtype, np.inexact)):
            return None
        name = numbers.dtype.name if numbers.dtype.name in UNIT_ROUNDOFF else "float64"
        terms = sum(sum(axis.contains.shape) for axis in self.axes)
        terms += math.prod(int(axis.contains.sum(axis=1).max()) for axis in self.axes)
        if not self.exact:
            terms *= math.prod(math.ceil(_condition(axis.contains) ** 2) for axis in self.axes)
        moduli = self._along(np.abs(numbers), lambda axis: axis.moduli)
        bound = rounding_bound(self.sums(moduli.astype(np.float64)), terms, name)
        if bound is None:
            return None
        alone = [axis.contains.sum(axis=1) == 1 for axis in self.axes]
        bound[(slice(None), *self._row(np.ix_(*alone), slice(None)))] = 0
        return bound

    def wrong(
        self, values: Numbers, expected: Numbers, allowed: Numbers | None
    ) -> Iterator[tuple[int, Any]]:
        """Yield entries that are not as expected, not all: the first one of each filter and box.

        Each as its number among the stored entries, and the value that was expected.
        """
        for block, filters, part in self._blocks(values):
            where = self._where(block, filters)
            should = np.broadcast_to(self._spread(expected[where]), part.shape)
            bad = part != should
            if not bad.any():
                continue
            if np.issubdtype(part.dtype, np.inexact):
                bad &= ~(np.isnan(part) & np.isnan(should))
            if allowed is not None:
                bad &= ~(np.abs(part - should) <= self._spread(allowed[where]))
            for number in np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim)))):
                at = np.unravel_index(bad[number].argmax(), bad.shape[1:])
                entry = block.offset + (filters.start + number) * block.strides[0]
                entry += sum(i * step for i, step in zip(at, block.strides[1:], strict=True))
                yield int(entry), should[(number, *at)].item()

    def distance(self, values: Numbers, expected: Numbers) -> float:
        """Return the Frobenius norm of the difference of the entries and what is expected."""
        wide = np.result_type(values.dtype, np.float64)
        squares = 0.0
        for part, where in self._parts(values):
            apart = part.astype(wide) - self._spread(expected[where])
            squares += float(np.sum(np.abs(apart) ** 2))
        return math.sqrt(squares)

    def to_filters(self, weights: Numbers) -> Numbers:
        """Return weights as filters ``(f, *kernel, c / groups)``."""
        return np.ascontiguousarray(np.moveaxis(weights, 1, -1) if self._first else weights)

    def of_filters(self, filters: Numbers) -> Numbers:
        """Return filters ``(f, *kernel, c / groups)`` as weights."""
        return np.moveaxis(filters, -1, 1) if self._first else filters

    @property
    def _positions(self) -> tuple[int, ...]:
        return tuple(range(1, 1 + len(self.axes)))

    def _row(self, of_axes: Any, channels: Any) -> tuple[Any, ...]:
        return (channels, *of_axes) if self._first else (*of_axes, channels)

    def _spread(self, numbers: Numbers) -> Numbers:
        """Give numbers of sets an axis for each axis of positions."""
        return np.expand_dims(numbers, self._positions)

    def _counts(self) -> Numbers:
        """Return how many entries of one filter and channel each set has."""
        counts = np.ones((), np.int64)
        for axis in self.axes:
            counts = np.multiply.outer(counts, axis.counts)
        return np.expand_dims(counts, 0 if self._first else -1)

    def _where(self, block: Block, filters: slice) -> tuple[Numbers, ...]:
        """Return the index of a box's sets in the numbers of some filters."""
        sets = [axis.of_run[run] for axis, run in zip(self.axes, block.runs, strict=True)]
        row = self._row(sets, np.arange(self._channels))
        return np.ix_(np.arange(filters.start, filters.stop), *row)

    def _blocks(self, values: Numbers) -> Iterator[tuple[Block, slice, Numbers]]:
        """Yield all entries in boxes of not too many filters."""
        for block in self.pattern.blocks():
            view = block.view(values)
            step = max(1, _CHUNK // math.prod(view.shape[1:]))
            for start in range(0, len(view), step):
                filters = slice(start, min(start + step, len(view)))
                yield block, filters, view[filters]

    def _parts(self, values: Numbers) -> Iterator[tuple[Numbers, tuple[Numbers, ...]]]:
        for block, filters, part in self._blocks(values):
            yield part, self._where(block, filters)

    def _pick(self, values: Numbers, position: int) -> Numbers:
        """Return what the first (0) or the last (-1) entry of each set holds."""
        numbers = np.zeros(self._shape, values.dtype)
        blocks = list(self.pattern.blocks())
        every = slice(0, self._shape[0])
        for block in blocks if position else reversed(blocks):  # the last one written stays
            one: Any = (slice(None), *(position for _ in self.axes))
            numbers[self._where(block, every)] = block.view(values)[one]
        return numbers

    def _along(self, numbers: Numbers, matrix: Callable[[AxisSets], Numbers]) -> Numbers:
        """Multiply by a matrix of each axis."""
        for a, axis in enumerate(self.axes, start=2 if self._first else 1):
            factor = matrix(axis)
            if not factor.size:  # nothing is read
                shape = (*numbers.shape[:a], len(factor), *numbers.shape[a + 1 :])
                numbers = np.zeros(shape, numbers.dtype)
            elif axis.repeats:
                numbers = np.moveaxis(np.tensordot(factor, numbers, axes=(1, a)), 0, a)
            else:  # one number for one: not a bit of it changes, whatever it is
                index = np.where(factor.any(axis=1), factor.argmax(axis=1), -1)
                numbers = take_or_zero(np, numbers, index, a)
        return numbers


def _condition(contains: Numbers) -> float:
    """Return the ratio of the largest singular value to the smallest that is not 0."""
    if not contains.size:
        return 1.0
    singular = np.linalg.svd(contains.astype(float), compute_uv=False)
    least = singular[0] * max(contains.shape) * np.finfo(float).eps
    return float(singular[0] / singular[singular > least][-1])


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
