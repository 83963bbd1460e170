"""Sets of taps: the few numbers that the matrix of a convolution is made of, and their algebra.

On one spatial axis an entry of the matrix belongs to a *set* of taps: to one tap, or to several
that read the same element, in a padding that repeats elements. Entries of the same filter, channel
and sets hold the same number, the sum of the weights of these taps: ``v = B w``, with a matrix B of
zeros and ones per axis. So what is asked of all entries is asked of a few numbers, axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components

from convfc.arrays import take_or_zero
from convfc.operators.pattern import AxisPattern, Block, MatrixPattern, Run
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

__all__ = ["AxisSets", "Sets"]

Numbers = npt.NDArray[Any]

_CHUNK = 2**20
"""Entries that are looked at together."""


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

    Examples
    --------
    Of three taps in replicate padding, two read the first element of two, and two the last:

    >>> from convfc.geometry import ConvGeometry
    >>> from convfc.operators.pattern import matrix_pattern
    >>> geometry = ConvGeometry(1, 1, (3,), padding=1, padding_mode="replicate")
    >>> axis = AxisSets(matrix_pattern(geometry, (2,), "channels_last").axes[0])
    >>> axis.contains
    array([[1, 1, 0],
           [0, 0, 1],
           [1, 0, 0],
           [0, 1, 1]])

    The weight of the middle tap is the first entry less that of the first tap:

    >>> axis.inverse
    array([[ 0,  0,  1,  0],
           [ 1,  0, -1,  0],
           [ 0,  1,  0,  0]])
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
