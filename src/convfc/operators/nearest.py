"""The way back from a matrix: the convolution that it is, or the closest one.

What a matrix holds first is read as filters (`Sets`); it is theirs if the matrix made of them again
is the same. Any other is projected onto the matrices of the geometry: least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import pinvh
from scipy.sparse.csgraph import connected_components

from convfc.arrays import as_numpy, check_shape
from convfc.errors import NotAConvolution
from convfc.geometry import ConvGeometry
from convfc.layer import Order
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

Numbers = npt.NDArray[Any]

_CHUNK = 2**20
"""Entries that are looked at together."""


class Wrong(NamedTuple):
    """An entry that is not the convolution's."""

    row: int
    column: int
    expected: Any
    got: Any


class Entries(NamedTuple):
    """What a matrix holds in a pattern, shape (nonzeros,), perhaps in its own memory, and outside.

    ``stray`` is the first entry outside that is not 0, row by row, ``outside`` the norm of all.
    """

    values: Any
    stray: Wrong | None
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
    values = np.zeros(pattern.nonzeros, matrix.dtype)
    stray, squares, rows = None, 0.0, pattern.shape[0]
    entries = matrix.size if isinstance(matrix, np.ndarray) else max(matrix.nnz, len(values))
    step = max(1, _CHUNK * rows // max(entries, 1))
    for start in range(0, rows, step):
        part = matrix[start : start + step]
        # SciPy has no float16, which float32 holds.
        part = sparse.coo_array(part.astype(np.float32) if part.dtype == np.float16 else part)
        counts = np.diff(ends[start : start + step + 1])
        first, held = int(ends[start]), part.data
        inside = np.repeat(np.arange(len(counts)), counts), columns[first : first + counts.sum()]
        wanted, keys = (
            row.astype(int) * pattern.shape[1] + at for row, at in (inside, part.coords)
        )
        _, to, of = np.intersect1d(wanted, keys, assume_unique=True, return_indices=True)
        values[first + to] = held[of]
        outside = np.setdiff1d(np.flatnonzero(held), of, assume_unique=True)
        if len(outside):
            row, column = (int(where[outside[0]]) for where in part.coords)
            stray = stray or Wrong(start + row, column, 0.0, held[outside[0]].item())
            squares += float(np.sum(np.abs(held[outside].astype(_wide(held))) ** 2))
    return Entries(values, stray, math.sqrt(squares))


def _wide(values: Numbers) -> np.dtype[Any]:
    return np.result_type(values.dtype, np.float64)


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


class Sets:
    """What the sets of taps hold, in the shape of `MatrixPattern.sums`, and the filters of it."""

    def __init__(self, pattern: MatrixPattern) -> None:
        self.pattern = pattern
        self._inverses = [_left_inverse(axis.contains) for axis in pattern.axes]
        self._exact = all(inverse.dtype.kind == "i" for inverse, _ in self._inverses)

    def first(self, values: Numbers, *, last: bool = False) -> Numbers:
        """Return what the first, or the last, entry of each set holds."""
        numbers = np.zeros(self.pattern.sums_shape, values.dtype)
        end = (slice(None), *(-1 if last else 0 for _ in self.pattern.axes))
        blocks = list(self.pattern.blocks())
        for block in blocks if last else reversed(blocks):  # the last one written stays
            numbers[block.at] = block.view(values)[end]
        return numbers

    def common(self, values: Numbers) -> Numbers:
        """Return what most entries of each set hold, if the first or the last of them does."""
        first = self.first(values)
        equal = values == self.pattern.spread(first)
        rare = self.pattern.totals(equal) < self.pattern.totals(~equal)
        return np.where(rare, self.first(values, last=True), first)

    def filters(self, numbers: Numbers) -> Numbers:
        """Return filters of these sums, of least norm; of integers perhaps wider or floating."""
        if numbers.dtype.kind in "bu" and self.pattern.repeats:
            numbers = numbers.astype(np.int64)
        found = self._along(numbers, [inverse for inverse, _ in self._inverses])
        inexact = np.issubdtype(numbers.dtype, np.inexact)
        return found.astype(numbers.dtype if inexact else found.dtype, copy=False)

    def differing(self, values: Numbers, numbers: Numbers, made: Numbers) -> Numbers:
        """Say which entries are not those made of the filters that have these sums; NaN is NaN."""
        wrong: npt.NDArray[np.bool_] = values != made
        if wrong.any() and np.issubdtype(made.dtype, np.inexact):
            wrong &= ~(np.isnan(values) & np.isnan(made))
            allowed = self._allowed(numbers)
            if allowed is not None:
                wrong &= ~(np.abs(values - made) <= self.pattern.spread(allowed))
        return wrong

    def _allowed(self, numbers: Numbers) -> Numbers | None:
        """Return how far entries may be off through rounding, in the shape of sums; None: equal.

        What one tap alone holds is to be equal. Finding the weights of a sum and adding them again
        takes as many terms as the matrices have rows and columns; a pseudo-inverse is itself
        computed, to within its condition squared.
        """
        pattern, contains = self.pattern, [axis.contains for axis in self.pattern.axes]
        if not pattern.repeats:
            return None
        terms = sum(sum(one.shape) for one in contains)
        terms += math.prod(int(one.sum(axis=1).max()) for one in contains)
        if not self._exact:
            norms = (np.linalg.norm(m, 2) for one in contains for m in (one, np.linalg.pinv(one)))
            terms *= math.ceil(math.prod(norms) ** 2)
        moduli = self._along(np.abs(numbers), [moduli for _, moduli in self._inverses])
        name = numbers.dtype.name if numbers.dtype.name in UNIT_ROUNDOFF else "float64"
        bound = rounding_bound(pattern.sums(moduli.astype(np.float64)), terms, name)
        if bound is not None:
            bound[pattern.sums(np.ones(pattern.geometry.filters_shape)) == 1] = 0
        return bound

    def _along(self, numbers: Numbers, matrices: Sequence[Numbers]) -> Numbers:
        """Return filters: the sums, multiplied on each axis by a matrix of taps and sets."""
        pattern = self.pattern
        for a, (axis, matrix) in enumerate(
            zip(pattern.axes, matrices, strict=True), start=pattern.tap_axis
        ):
            by_set = np.moveaxis(numbers, a, 0)
            if axis.repeats:
                found = np.tensordot(matrix, by_set, axes=1)
            else:  # one number for one: not a bit of it changes, whatever it is
                sets, taps = axis.members
                found = np.zeros((axis.axis.taps, *by_set.shape[1:]), numbers.dtype)
                found[taps] = by_set[sets]
            numbers = np.moveaxis(found, 0, a)
        return np.ascontiguousarray(
            np.moveaxis(numbers, 1, -1) if pattern.tap_axis == 2 else numbers
        )


def _left_inverse(contains: Numbers) -> tuple[Numbers, Numbers]:
    """Return Q with Q B w = w, and the moduli that its rounding errors are relative to.

    Taps that stand alone in a set are taken from it, further ones by subtracting what is known:
    whole numbers. Where only sums are determined, Q is the pseudo-inverse, for each part of sets
    that share taps: the weights of least norm. Its errors are relative to a part's largest entry.
    """
    known: dict[int, Numbers] = {}
    by_size = np.argsort(contains.sum(axis=1), kind="stable")
    before = -1
    while before < len(known):
        before = len(known)
        for number in by_size:
            taps: list[int] = np.flatnonzero(contains[number]).tolist()
            unknown = [tap for tap in taps if tap not in known]
            if len(unknown) == 1:
                row = (np.arange(len(contains)) == number).astype(np.int64)
                known[unknown[0]] = row - sum(known[tap] for tap in taps if tap in known)
    whole = len(known) == np.count_nonzero(contains.any(axis=0))
    inverse, moduli = (np.zeros(contains.shape[::-1], int if whole else float) for _ in range(2))
    if not whole:
        parts, part_of = connected_components(contains.T @ contains, directed=False)
        for part in range(parts):
            taps_, sets = part_of == part, contains[:, part_of == part].any(axis=1)
            if sets.any():
                block = np.linalg.pinv(contains[np.ix_(sets, taps_)])
                inverse[np.ix_(taps_, sets)] = block
                moduli[np.ix_(taps_, sets)] = np.abs(block).max()
    for tap, row in known.items():
        inverse[tap], moduli[tap] = row, np.abs(row)
    return inverse, moduli


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
        filters are the very numbers that it holds, and the distance is 0.0. A tap that is never
        read has weight 0. The dtype is the matrix's; of integers it is wider where weights are
        differences (int64) or no integers.

        Where padding repeats elements on a small input, an entry may be a sum of weights, from
        which they are found (integers exactly). Where only sums are determined, the weights are
        those of least norm with these sums. The distance is then that of these sums' rounding.

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
    The projection makes each weight the mean of the entries that hold it, in float64; where padding
    repeats elements, the normal equations take its place, one small system per axis. A sparse
    matrix that is stored as `conv_matrix` stores it is read where it is; reading it takes the
    memory of its column indices, or of its entries, beside.

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
    entries, sets = read_entries(matrix, pattern), Sets(pattern)
    numbers = sets.first(entries.values)
    filters = sets.filters(numbers)
    made = pattern.values(filters)
    if entries.stray is not None or sets.differing(entries.values, numbers, made).any():
        if not project:
            raise _refusal(entries, sets)
        return _projection(entries, sets)
    if not pattern.repeats:
        return NearestConv(filters, 0.0)
    rounding = np.asarray(entries.values - made)
    return NearestConv(filters, float(np.linalg.norm(rounding.astype(_wide(rounding)))))


def filters_in(
    matrix: Any, pattern: MatrixPattern, known: Numbers, *, project: bool = False
) -> NearestConv:
    """Return the filters of a matrix that was made of the known ones; see `nearest_conv`.

    Where the matrix says nothing of a weight, or only sums of weights, they are the known ones as
    long as it is as it was made.
    """
    entries = read_entries(matrix, pattern)
    values = pattern.values(known)
    if entries.stray is None and np.array_equal(entries.values, values, equal_nan=True):
        return NearestConv(known, 0.0)
    geometry, size = pattern.geometry, pattern.where.input_size
    found = nearest_conv(matrix, geometry, size, order=pattern.order, project=project)
    read = pattern.fold(np.ones(pattern.nonzeros)) > 0
    return found._replace(filters=np.where(read, found.filters, known))


def bias_in(
    vector: Numbers, pattern: MatrixPattern, *, project: bool = False
) -> tuple[Numbers, float]:
    """Return one bias per filter of the vector of a matrix, and how far away it is.

    Raises
    ------
    NotAConvolution
        If a filter's bias differs from position to position; ``project`` takes the mean.
    """
    filters, first = pattern.geometry.out_channels, pattern.order == "channels_first"
    table = vector.reshape(filters, -1) if first else vector.reshape(-1, filters).T
    bias = table[:, 0]
    wrong = (table != bias[:, None]) & ~(np.isnan(table) & np.isnan(bias[:, None]))
    if not wrong.any():
        return bias, 0.0
    if project:
        mean = table.astype(_wide(table)).mean(1)
        return mean.astype(bias.dtype), float(np.linalg.norm(table - mean[:, None]))
    filter_, position = divmod(int(wrong.argmax()), table.shape[1])
    index = filter_ * table.shape[1] + position if first else position * filters + filter_
    raise differing_bias(index, bias[filter_].item(), vector[index].item())


def differing_bias(index: int, expected: Any, got: Any) -> NotAConvolution:
    """Return the error of a vector that is not the bias of a convolution."""
    return NotAConvolution(
        "the bias of a filter differs from position to position",
        where=f"bias[{index}]",
        expected=f"{expected}, as at the first position of the filter",
        got=got,
        remedy="project=True takes the mean",
    )


def _projection(entries: Entries, sets: Sets) -> NearestConv:
    """Return the closest convolution: the normal equations, with one Gram matrix per axis.

    Solved for the distance from the first entries, so that equal entries keep their value.
    """
    values, pattern = entries.values, sets.pattern
    start = sets.filters(sets.first(values)).astype(_wide(values))
    apart = pattern.values(start)
    step = pattern.fold(np.subtract(values, apart, out=apart))
    for a, axis in enumerate(pattern.axes, start=1):
        if axis.repeats:
            step = np.moveaxis(np.tensordot(pinvh(axis.gram), step, axes=(1, a)), 0, a)
        else:  # diagonal: means, each of its own entries alone
            entries_of = np.maximum(np.diagonal(axis.gram), 1)
            step = step / np.expand_dims(entries_of, [b for b in range(step.ndim) if b != a])
    filters = start + step
    if np.issubdtype(values.dtype, np.inexact):
        filters = filters.astype(values.dtype)
    apart = pattern.values(filters.astype(start.dtype))
    inside = float(np.linalg.norm(np.subtract(values, apart, out=apart)))
    return NearestConv(filters, math.hypot(inside, entries.outside))


def wrong_entry(
    entries: Entries, wrong: npt.NDArray[np.bool_], expected: Any, pattern: MatrixPattern
) -> Wrong | None:
    """Return the first entry, row by row, that is stray or among the wrong ones of the pattern."""
    found = [] if entries.stray is None else [entries.stray]
    if wrong.any():
        entry = int(wrong.argmax())
        row = int(pattern.indptr().searchsorted(entry, side="right")) - 1
        column = int(pattern.indices()[entry])
        found.append(Wrong(row, column, expected[entry].item(), entries.values[entry].item()))
    return min(found, key=lambda one: (one.row, one.column), default=None)


def _refusal(entries: Entries, sets: Sets) -> NotAConvolution:
    """Return the error that names the first entry that breaks the pattern."""
    pattern, values = sets.pattern, entries.values
    # What breaks the pattern beside the first entries may, within rounding, fit the common ones.
    for numbers in (sets.common(values), sets.first(values)):
        made = pattern.values(sets.filters(numbers))
        wrong = wrong_entry(entries, sets.differing(values, numbers, made), made, pattern)
        if wrong is not None:
            break
    assert wrong is not None, "asked of matrices that break it"  # noqa: S101
    # With the digits that the matrix has.
    short: Any = values.dtype.type if np.issubdtype(values.dtype, np.inexact) else str
    expected = f"{short(wrong.expected)}, as its tap has elsewhere"
    return NotAConvolution(
        f"{_place(pattern, wrong.row, wrong.column)} is not that of a convolution",
        where=f"matrix[{wrong.row}, {wrong.column}]",
        expected="0, since no tap reads there" if wrong is entries.stray else expected,
        got=str(short(wrong.got)),
        remedy="check geometry, input size and order; project=True gives the closest convolution",
    )


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
