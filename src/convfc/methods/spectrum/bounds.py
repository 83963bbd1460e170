"""Norms from below and from above: what theory guarantees, and not what an iteration has reached.

The largest value that an iteration finds is a lower bound of the norm: a residual says that *some*
singular value is near, not that none is above. From above the norm of a CONV layer is bounded by
that of a layer of which it is a part. Embed the input in a circle that is larger by the padding,
convolve there, and keep some of the outputs: with zeros for padding that is the layer. Neither
step stretches anything, and on the circle all singular values are known, frequency by frequency
(Sedghi, Gupta and Long, 2019, theorem 6; with strides, Senderovich et al., 2022, theorem 1).

Sums and products of bounds are rounded upwards, and only if they are not exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from convfc.arrays import as_numpy
from convfc.geometry import ConvGeometry
from convfc.indexmap import Indices, index_map
from convfc.layer import ConvLayer
from convfc.methods.spectrum.algorithms import (
    PeriodicAxis,
    fourier_error,
    fourier_values,
    lapack_error,
    taps_of,
)
from convfc.methods.spectrum.singular import METHODS, singular_values
from convfc.operators.matrixfree import conv_operator
from convfc.registry import read_layer
from convfc.rounding import UNIT_ROUNDOFF, gamma

_U = UNIT_ROUNDOFF["float64"]
_TOLERANCE = 1e-3
"""Of iterations: the value is off by about its square."""

SUMS = "the largest sums of a row and of a column"
_SVD_LIMIT = 1024
"""Up to this smaller side the SVD of a matrix; else the largest eigenvalue of its Gram matrix."""


@dataclass(frozen=True)
class NormBounds:
    """Two numbers that the norm of a linear map lies between; `norm_bounds` makes it.

    Attributes
    ----------
    lower : float
        The norm as it is computed: to rounding where there is a direct way, else by iterations,
        which approach it from below.
    upper : float
        What no stretch exceeds, with the rounding of its own computation.
    how : str
        How ``upper`` is known.
    """

    lower: float
    upper: float
    how: str = ""

    def widened(self, share: float) -> NormBounds:
        """Return the bounds of a map whose numbers are off by this share of the norm."""
        return NormBounds(self.lower, product(self.upper, 1 + share), self.how)


def norm_bounds(
    layer: Any, input_size: Sequence[int], geometry: ConvGeometry | None = None
) -> NormBounds:
    """Return the norm of a CONV layer from below and from above, each proven.

    Parameters
    ----------
    layer, input_size, geometry
        As for `singular_values`. The bias plays no part.

    Returns
    -------
    NormBounds

    Raises
    ------
    GeometryError, UnsupportedModel, UnsupportedLayer, DtypeError, NotConverged
        As `singular_values` does.

    Notes
    -----
    Where `singular_values` has a direct way (windows that do not overlap, a periodic operator, a
    small matrix), the two differ by rounding. Else the lower one is that of iterations, and the
    upper one the norm on a larger circle; for padding that repeats elements of the input, the norm
    without padding times that of the padding, which is the root of how often an element is there.
    Wherever it is smaller, the upper one is ``sqrt(‖A‖₁ ‖A‖∞)`` (Schur's test), which is exact for
    many layers of integers.

    Examples
    --------
    The sum of neighbours, with a zero on both sides, stretches by almost 2:

    >>> geometry = ConvGeometry(1, 1, (2,), padding=1)
    >>> norm_bounds(np.ones((1, 2, 1)), (3000,), geometry)
    NormBounds(lower=1.99..., upper=2.0, how='the largest sums of a row and of a column')

    A layer of PyTorch at a size that is too large for its matrix:

    >>> import torch
    >>> found = norm_bounds(torch.nn.Conv2d(3, 8, 3, padding=1), (64, 64))
    >>> found.lower < found.upper < 1.05 * found.lower, found.how
    (True, 'the norm on a circle of 65×65')
    """
    found = singular_values(layer, input_size, 1, geometry=geometry, tolerance=_TOLERANCE)
    value = float(found)
    layer = read_layer(layer, geometry, input_size=input_size).layer
    given = as_numpy(layer.filters, "filters")
    layer = ConvLayer(layer.geometry, given.astype(np.result_type(given.dtype, np.float64)))
    if found.measured:
        known = [_on_a_circle(layer, tuple(input_size))]
    else:
        words = METHODS[found.method].removesuffix("; exact").split("; ")[-1]
        known = [(product(value, 1 + found.residual), words)]
    known.append((_by_sums(layer, input_size), SUMS))
    return _least(value, known)


def _on_a_circle(layer: ConvLayer, input_size: tuple[int, ...]) -> tuple[float, str]:
    """Return the norm on a circle of which the layer is a part, and what circle that is."""
    geometry = layer.geometry
    axes, most = [], 1
    for number, axis in enumerate(index_map(geometry, input_size).axes):
        taps = np.arange(axis.taps)
        if geometry.transposed:  # the adjoint is a convolution of the output
            step, low = geometry.stride[number], geometry.padding[number][0]
            reads = np.arange(axis.size)[:, None] * step + taps * geometry.dilation[number] - low
            inside = axis.positions
        else:
            step = axis.step
            reads = axis.first + np.arange(axis.positions)[:, None] * step + taps * axis.tap_step
            inside = len(axis.source)
            if geometry.padding_mode == "zeros":
                reads, inside = reads - np.argmax(axis.source == 0), axis.size
            else:
                most *= int(np.bincount(axis.source[np.unique(reads)]).max())
        axes.append(_smallest_circle(reads, inside, step))
    taps_ = taps_of(np.asarray(layer.filters), geometry)
    norm = total([float(fourier_values(taps_, axes).max()), fourier_error(taps_, axes)])
    how = f"the norm on a circle of {'×'.join(str(axis.fine) for axis in axes)}"
    if most == 1:
        return norm, how
    return product(norm, root(Fraction(most))), f"{how}, times {most}^½ of the padding"


def _smallest_circle(reads: Indices, inside: int, step: int) -> PeriodicAxis:
    """Return the smallest circle on which no window meets the input where it reads padding.

    ``reads`` (positions, taps) are coordinates, those of the input from 0 to ``inside``.
    """
    outside = reads[(reads < 0) | (reads >= inside)]
    coarse = max(len(reads), -(-inside // step))
    while np.any(outside % (coarse * step) < inside):
        coarse += 1
    return PeriodicAxis(coarse, step, reads[0] % (coarse * step))


def _by_sums(layer: ConvLayer, input_size: Sequence[int]) -> float:
    """Return the upper bound of the norm by the sums of rows and of columns."""
    filters = np.asarray(layer.filters)
    operator = conv_operator(ConvLayer(layer.geometry, np.abs(filters)), input_size)
    rows, columns = (float(np.max(a @ np.ones(a.shape[1]))) for a in (operator, operator.T))
    return schur(rows, columns, _share(filters, operator.shape))


def matrix_bounds(matrix: npt.NDArray[Any]) -> NormBounds:
    """Return the norm of a matrix from below and from above, as `norm_bounds` of a CONV layer."""
    if not matrix.any():
        return NormBounds(0.0, 0.0, "all weights are 0")
    if min(matrix.shape) <= _SVD_LIMIT:
        norm = float(linalg.svdvals(matrix)[0])
        known = [(product(norm, 1 + lapack_error(*matrix.shape)), "LAPACK's SVD of the matrix")]
    else:
        wide = matrix.shape[0] <= matrix.shape[1]
        gram = matrix @ matrix.conj().T if wide else matrix.conj().T @ matrix
        n = len(gram)
        (square,) = linalg.eigvalsh(gram, subset_by_index=(n - 1, n - 1))
        norm = math.sqrt(square)
        # The product is off by gamma_n |A||A*|, whose norm is at most that of Frobenius squared.
        off = float(np.linalg.norm(matrix)) ** 2 * 2 * gamma(2 * max(matrix.shape), _U)
        off += float(square) * lapack_error(n, n)
        known = [(root(Fraction(float(square)) + Fraction(off)), "LAPACK, of its Gram matrix")]
    sizes = np.abs(matrix)
    columns, rows = (float(sizes.sum(axis=axis).max()) for axis in (0, 1))
    known.append((schur(rows, columns, _share(matrix, matrix.shape)), SUMS))
    return _least(norm, known)


def _least(norm: float, known: Iterable[tuple[float, str]]) -> NormBounds:
    """Return a computed norm with the least of the upper bounds that are known."""
    upper, how = min(known)
    return NormBounds(min(norm, upper), upper, how)


def schur(rows: float, columns: float, share: float = 0.0) -> float:
    """Return ``sqrt(‖A‖₁ ‖A‖∞)`` of the largest sums, which are off by this share (Schur, 1911)."""
    return product(root(Fraction(rows) * Fraction(columns)), 1 + share)


def _share(weights: npt.NDArray[Any], shape: tuple[int, int]) -> float:
    """Return how far the sums of a matrix of these weights may be off."""
    return 0.0 if _integers(weights) else gamma(2 * max(shape), _U)


def _integers(numbers: npt.NDArray[Any]) -> bool:
    """Say whether sums of the numbers' sizes are exact."""
    if np.iscomplexobj(numbers):
        return False
    return bool(np.array_equal(numbers, np.rint(numbers)) and np.abs(numbers).sum() < 2**53)


# Arithmetic that rounds upwards -------------------------------------------------------------------


def upwards(exact: Fraction) -> float:
    """Return the smallest float that is not below a number."""
    try:
        near = float(exact)
    except OverflowError:
        return math.inf
    return near if Fraction(near) >= exact else math.nextafter(near, math.inf)


def product(*factors: float) -> float:
    """Return a product of bounds, rounded upwards."""
    if not all(map(math.isfinite, factors)):
        return 0.0 if 0.0 in factors else math.inf
    return upwards(math.prod(map(Fraction, factors), start=Fraction(1)))


def total(terms: Iterable[float]) -> float:
    """Return a sum of bounds, rounded upwards."""
    terms = list(terms)
    return upwards(sum(map(Fraction, terms), Fraction())) if np.isfinite(terms).all() else math.inf


def side_by_side(terms: Iterable[float]) -> float:
    """Return the root of the sum of squares of bounds, rounded upwards."""
    terms = list(terms)
    finite = bool(np.isfinite(terms).all())
    return root(sum((Fraction(one) ** 2 for one in terms), Fraction())) if finite else math.inf


def root(square: Fraction) -> float:
    """Return a square root, rounded upwards."""
    near = upwards(square)
    if math.isinf(near):
        return near
    # It is off by half a unit in the last place, and the square was rounded, too.
    found = math.nextafter(math.nextafter(math.sqrt(near), 0.0), 0.0)
    while Fraction(found) ** 2 < square:
        found = math.nextafter(found, math.inf)
    return found
