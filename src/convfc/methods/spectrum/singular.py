"""Singular values of a CONV layer: how they are obtained, how far they may be off, what follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from convfc.arrays import as_numpy
from convfc.errors import ArgumentError, DtypeError, MemoryBudgetError, NotConverged
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.layer import ConvLayer
from convfc.methods.spectrum.algorithms import (
    Filters,
    Values,
    Which,
    circular_geometry,
    dense_values,
    fourier_error,
    fourier_values,
    kernel_values,
    lapack_error,
    largest_values,
    operator_shape,
    periodic_axes,
    reshaped_norm,
    smallest_by_inverse,
    smallest_values,
    taps_of,
    transposed_circular_axes,
)
from convfc.operators.matrix import conv_matrix
from convfc.operators.matrixfree import conv_operator
from convfc.registry import read_layer
from convfc.sizes import integer, one_of

Method: TypeAlias = Literal["zero", "kernel", "fourier", "dense", "lanczos", "inverse"]

METHODS: dict[str, str] = {
    "zero": "all filters are 0, or read nothing but padding; exact",
    "kernel": "no two windows overlap, so the layer is copies of K; LAPACK's SVD of K",
    "fourier": "the operator is periodic; LAPACK's SVD of one small matrix per frequency",
    "dense": "LAPACK's SVD of the whole matrix",
    "lanczos": "Lanczos iterations (ARPACK) with the layer and its adjoint; no matrix",
    "inverse": "inverse iterations (ARPACK) with a sparse factorisation of the Gram matrix",
}
"""How values were obtained, in a word and in a sentence."""


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Singular values of a CONV layer; `singular_values` makes it.

    Parameters
    ----------
    values : NumPy array of float64
        In descending order, each as often as it occurs.
    method : {"zero", "kernel", "fourier", "dense", "lanczos", "inverse"}
        How they were obtained; printed, it is a sentence.
    residual : float
        How far any of them may be from a true singular value, divided by the largest one. Of the
        iterations it is measured: the largest ``‖A* u − σ v‖ / σ_max`` with ``A v = σ u`` and unit
        vectors; some singular value is within it (Parlett, *The Symmetric Eigenvalue Problem*,
        theorem 4.5.1, for the matrix [[0, A], [A*, 0]]). Of all others it is the backward error
        that theory allows; by Weyl's inequality no value is off by more.
    shape : (int, int)
        Of the operator A: elements of one output and of one input.
    reshaped_norm : float
        The norm of the filter matrix K, the kernel reshaped to two axes. It is what
        ``torch.nn.utils.spectral_norm`` divides by (which reshapes grouped transposed layers in
        another way), and not the layer's norm: with zeros around the input, that can be up to
        ``sqrt(kernel size)`` times as large.
    which : {"largest", "smallest"}
        Which end the values are from, if they are not all.
    note : str
        What else there is to know.

    Examples
    --------
    >>> found = SingularValues(np.array([2.0, 1.0, 0.5]), "dense", 1e-15, (3, 4), 1.25)
    >>> print(found)
    3 of 3 singular values of a 3 × 4 operator, from 2 to 0.5
    dense: LAPACK's SVD of the whole matrix
    relative error at most 1.0e-15, by theory
    norm of the reshaped kernel 1.25: the layer's is 1.6 times as large
    >>> float(np.sum(found)), len(found)
    (3.5, 3)
    >>> found.rank(), found.condition_number, round(found.effective_rank, 2)
    (3, 4.0, 2.6)
    """

    values: Values
    method: Method
    residual: float
    shape: tuple[int, int]
    reshaped_norm: float
    which: Which = "largest"
    note: str = ""

    def __float__(self) -> float:
        """Return the one value that was asked for with ``k=1``."""
        return float(self.values.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        """Return the values, for functions of NumPy."""
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def measured(self) -> bool:
        """Whether the residual was measured; else it is a bound of theory."""
        return self.method in ("lanczos", "inverse")

    @property
    def count(self) -> int:
        """How many singular values the operator has, counted as often as they occur."""
        return min(self.shape)

    @property
    def complete(self) -> bool:
        """Whether these are all of them."""
        return len(self.values) == self.count

    @property
    def zero(self) -> float:
        """How small, relative to the largest, a value may be and still not be 0.

        ``max(shape) eps``, as for NumPy's ``matrix_rank``, or the residual where that is larger.
        """
        return max(max(self.shape) * float(np.finfo(np.float64).eps), self.residual)

    def rank(self) -> int:
        """Return how many values are above what rounding may leave of a 0, if all are known."""
        self._check_complete("the rank")
        return int(np.count_nonzero(self.values > self.zero * self.values[0]))

    @property
    def effective_rank(self) -> float:
        """The effective rank of Roy and Vetterli (2007), "The effective rank", definition 1.

        ``exp(−Σ p log p)`` with ``p = σ / Σ σ``: so many equal values would have the same entropy.
        """
        self._check_complete("the effective rank")
        share = self.values[self.values > 0]
        if not share.size:
            return 0.0
        share = share / share.sum()
        return math.exp(-float(share @ np.log(share)))

    @property
    def condition_number(self) -> float:
        """The largest value to the smallest; infinite where the smallest cannot be told from 0."""
        self._check_complete("the condition number")
        return condition(float(self.values[0]), self)

    def _check_complete(self, what: str) -> None:
        if not self.complete:
            raise NotConverged(
                f"{what} takes all singular values",
                where="values",
                expected=f"all {self.count}",
                got=f"the {len(self.values)} {self.which}",
                remedy="ask for all with k=None",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and strings, as `json` writes them."""
        return {
            **vars(self),
            "values": self.values.tolist(),
            "shape": list(self.shape),
            "residual_is": "measured" if self.measured else "theory",
            "count": self.count,
            "complete": self.complete,
        }

    def __str__(self) -> str:
        rows, columns = self.shape
        how_many = f"{len(self.values)} of {self.count}"
        if not self.complete:
            how_many = f"the {len(self.values)} {self.which} of {self.count}"
        known = "measured" if self.measured else "by theory"
        lines = [
            f"{how_many} singular values of a {rows} × {columns} operator, "
            f"from {self.values[0]:.6g} to {self.values[-1]:.6g}",
            f"{self.method}: {METHODS[self.method]}",
            f"relative error at most {self.residual:.1e}, {known}",
        ]
        if self.complete or self.which == "largest":
            times = float(self.values[0]) / self.reshaped_norm if self.reshaped_norm else 1.0
            lines.append(
                f"norm of the reshaped kernel {self.reshaped_norm:.6g}: "
                f"the layer's is {times:.4g} times as large"
            )
        return "\n".join([*lines, *[self.note] * bool(self.note)])


Boundary: TypeAlias = Literal["circular"]
"""What takes the place of the layer's own padding."""

MEMORY = 2**29
"""Bytes that a dense matrix, or a factorisation, may take: some minutes of work at most."""

TOLERANCE = 1e-5
"""Residual, relative to the largest value, at which iterations end."""

DENSE_LIMIT = 768
"""Where only some values are wanted: up to this smaller side LAPACK finds all of them instead."""


def _find(
    layer: Any,
    input_size: Sequence[int],
    k: int | None,
    boundary: Boundary | None,
    geometry: ConvGeometry | None,
    which: Which = "largest",
    tolerance: float = TOLERANCE,
    memory: float = MEMORY,
    threads: int | None = None,
) -> SingularValues:
    """Return all values if there is a direct way to them, else the k that are wanted."""
    reading = read_layer(layer, geometry, input_size=input_size)
    own = reading.layer.geometry
    size = index_map(own, input_size).input_size
    circular = boundary == "circular"
    shape = operator_shape(own, size, circular=circular)
    _check(k, shape, boundary, which, tolerance)
    given = as_numpy(reading.layer.filters, "filters")
    filters = given.astype(np.result_type(given.dtype, np.float64))
    if not np.isfinite(filters).all():
        raise DtypeError(
            "the filters hold NaN or infinity, and have no singular values",
            where="filters",
            remedy="look for where training diverged",
        )
    facts: dict[str, Any] = {"shape": shape, "reshaped_norm": reshaped_norm(filters)}
    rolled = circular and own.transposed
    moved = circular_geometry(own, size) if circular and not rolled else own
    unread = not rolled and any(np.all(axis.table < 0) for axis in index_map(moved, size).axes)
    if unread or not filters.any():
        return SingularValues(np.zeros(min(shape)), "zero", 0.0, **facts)
    exact = _structured(filters, moved, size, min(shape), rolled=rolled, threads=threads)
    if exact is None and circular:
        facts["note"] = (
            f"stride {own.stride} does not divide the input {size}: the operator is circular, but "
            "not periodic"
        )
    on_circle = ConvLayer(moved, filters)
    fits = which == "smallest" and _factors_bytes(moved, size, shape, filters.itemsize) <= memory
    # Of small values those of a dense matrix are slow, but sure; Lanczos iterations may not end.
    few = k is not None and (which == "largest" or fits)
    exact = exact or _dense(on_circle, size, shape, memory, DENSE_LIMIT if few else None)
    if exact is not None:
        method, values, error = exact
        values = np.sort(values)[::-1]
        return SingularValues(values, method, error / float(values[0]), **facts)
    _check_memory(k, shape, own.groups, filters.itemsize, memory)
    assert k is not None, "else it is refused"  # noqa: S101
    operator = conv_operator(on_circle, size) if circular else conv_operator(layer, size, geometry)
    if which == "largest":
        found, norm = largest_values(operator, k, tolerance), None
    else:
        norm = float(largest_values(operator, 1, max(tolerance, 1e-3)).values[0])
        if fits:
            found = smallest_by_inverse(conv_matrix(on_circle, size), k, norm)
        else:
            found = smallest_values(operator, k, norm, tolerance)
    method = "inverse" if fits else "lanczos"
    residual = found.residual / (norm or float(found.values[0]))
    return SingularValues(found.values, method, residual, **facts, which=which)


_Exact: TypeAlias = tuple[Method, Values, float]
"""The method, all values in any order, and the error that theory allows."""


def _structured(
    filters: Filters,
    geometry: ConvGeometry,
    size: tuple[int, ...],
    count: int,
    *,
    rolled: bool,
    threads: int | None,
) -> _Exact | None:
    """Return all values if the index map has a structure that gives them; else None."""
    values = None if rolled else kernel_values(filters, geometry, size, count)
    if values is not None:
        error = lapack_error(filters.shape[0], filters[0].size) * float(values.max())
        return "kernel", values, error
    axes = transposed_circular_axes(geometry, size) if rolled else periodic_axes(geometry, size)
    if axes is None:
        return None
    taps = taps_of(filters, geometry)
    return "fourier", fourier_values(taps, axes, threads=threads), fourier_error(taps, axes)


def _dense(
    layer: ConvLayer, size: tuple[int, ...], shape: tuple[int, int], memory: float, most: int | None
) -> _Exact | None:
    """Return all values by LAPACK; None if the matrix or its smaller side is too large for that."""
    rows, columns = (n // layer.geometry.groups for n in shape)
    too_many = most is not None and min(rows, columns) > most
    if too_many or rows * columns * layer.filters.itemsize > memory:
        return None
    values = dense_values(layer, size)
    return "dense", values, lapack_error(rows, columns) * float(values.max())


def _factors_bytes(
    geometry: ConvGeometry, size: Sequence[int], shape: tuple[int, int], itemsize: int
) -> float:
    """Return what the factors of the Gram matrix may take: two bands, in the best order of axes.

    Two elements of an axis are coupled if one window reads both.
    """
    side = min(shape) // geometry.groups
    sizes = size if shape[1] <= shape[0] else geometry.output_size(size)
    reaches = zip(sizes, geometry.effective_kernel_size, strict=True)
    band = min(side // n * min(reach, n) for n, reach in reaches)
    wraps = 2 if geometry.padding_mode == "circular" else 1
    return 2.0 * min(shape) * min(band * wraps, side) * itemsize


def _check(k: object, shape: tuple[int, int], boundary: object, which: object, end: float) -> None:
    """Raise an `ArgumentError` for a name that there is not, and numbers that nothing fits."""
    one_of("boundary", boundary, (None, *get_args(Boundary)))
    one_of("which", which, Which)
    if not 0 <= end < 1:
        raise ArgumentError("no tolerance", where="tolerance", expected="from 0 to 1", got=end)
    if k is not None and integer("k", k, least=1) > min(shape):
        raise ArgumentError(
            "the layer has fewer singular values",
            where="k",
            expected=f"{min(shape)} at most, the smaller side of {shape[0]} × {shape[1]}",
            got=k,
            remedy="leave k out for all of them",
        )


def _check_memory(
    k: int | None, shape: tuple[int, int], groups: int, itemsize: int, memory: float
) -> None:
    """Raise MemoryBudgetError for all values, and where iterations would keep too many vectors."""
    side = min(shape)
    most = min(int(memory / (3 * itemsize * side)), side // 3)
    remedy = "fewer of them, boundary='circular' for all of the periodic one, or more memory=..."
    if k is None:
        rows, columns = (n // groups for n in shape)
        raise MemoryBudgetError(
            f"all {side} singular values take the dense matrix, {rows} × {columns}"
            + f" for each of {groups} groups" * (groups > 1),
            where="k",
            expected=f"at most {memory:.3g} bytes",
            got=f"{rows * columns * itemsize:.3g} bytes",
            remedy=remedy,
        )
    if k > most:
        raise MemoryBudgetError(
            "iterations are for a few singular values: they keep some vectors for each",
            where="k",
            expected=f"{most} at most",
            got=k,
            remedy=remedy,
        )


def singular_values(
    layer: Any,
    input_size: Sequence[int],
    k: int | None = None,
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    *,
    which: Which = "largest",
    tolerance: float = TOLERANCE,
    memory: float = MEMORY,
    threads: int | None = None,
) -> SingularValues:
    """Return the singular values of a CONV layer as the linear map that it is.

    They are those of `conv_matrix`, not those of the kernel reshaped to a matrix.

    Parameters
    ----------
    layer, input_size, geometry
        As for `convfc.conv_matrix`. The bias plays no part.
    k : int, optional
        How many; by default all of them.
    boundary : {"circular"}, optional
        The same kernel, stride, dilation and groups on a circle, with ceil(input / stride) windows
        on each axis, instead of the layer's own padding. (Transposed: input * stride outputs.)
    which : {"largest", "smallest"}
        Which k of them.
    tolerance : float
        Of iterations: the residual ``‖A* u − σ v‖ / σ_max`` at which they end. The error of a value
        that stands apart is about its square.
    memory : float
        Bytes that a dense matrix, or a sparse factorisation, may take.
    threads : int, optional
        For the Fourier transform: see `fourier_values`.

    Returns
    -------
    SingularValues
        With `method` and `residual`.

    Raises
    ------
    MemoryBudgetError
        If all values are wanted of an operator that is not periodic, and too large for LAPACK.
    NotConverged
        If an iteration does not reach the tolerance.
    ArgumentError
        If there are fewer than k values, or there is no such boundary.
    GeometryError, UnsupportedModel, UnsupportedLayer
        If this is not a layer that convfc knows, or it does not fit the input size.

    Notes
    -----
    In this order: where windows do not overlap, LAPACK's SVD of K; a periodic operator, by its own
    padding or by ``boundary``, by the Fourier transform (Sedghi, Gupta and Long, 2019), for any
    stride that divides the input size; a small one by LAPACK's SVD of the matrix, in float64, group
    by group; the k largest by Lanczos iterations without a matrix, in the layer's own dtype; the k
    smallest by inverse iterations if a sparse factorisation fits, else by Lanczos iterations, which
    may not converge, and then say so.

    Examples
    --------
    The difference of neighbours stretches alternating signals most, almost by 2:

    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> found = singular_values(np.array([[[1.0], [-1.0]]]), (4,), geometry=geometry)
    >>> found.values.round(4)
    array([1.8478, 1.4142, 0.7654])
    >>> found.method, found.complete
    ('dense', True)

    A layer of PyTorch at its size in the network, and how wrong its reshaped kernel is:

    >>> import torch
    >>> layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 1 / 9)
    >>> found = singular_values(layer, (32, 32), k=1)
    >>> f"{found.values[0]:.3f}", f"{found.reshaped_norm:.3f}"
    ('4.869', '1.633')
    """
    found = _find(layer, input_size, k, boundary, geometry, which, tolerance, memory, threads)
    if k is None or len(found.values) == k:
        return found
    values = found.values[:k] if which == "largest" else found.values[-k:]
    return replace(found, values=values, which=which)


def condition_number(
    layer: Any,
    input_size: Sequence[int],
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    **options: Any,
) -> float:
    """Return the largest singular value of a CONV layer to its smallest; infinite if that is 0.

    What counts as 0 is `SingularValues.zero`. Parameters are those of `singular_values`.

    Notes
    -----
    From all values where there is a direct way to them, else from the largest and the smallest,
    each found by iterations. Those for the smallest may not converge, and then say so.

    Raises
    ------
    NotConverged
        See `singular_values`.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (2,))
    >>> round(condition_number(np.array([[[1.0], [-0.5]]]), (8,), "circular", geometry), 12)
    3.0
    """
    arguments = (layer, input_size, 1, boundary, geometry)
    smallest = _find(*arguments, "smallest", **options)
    if smallest.complete:
        return smallest.condition_number
    return condition(float(_find(*arguments, **options).values[0]), smallest)


def condition(largest: float, smallest: SingularValues) -> float:
    """Return the largest value to the smallest; infinite where that cannot be told from 0."""
    least = float(smallest.values[-1])
    return math.inf if least <= smallest.zero * largest else largest / least


def effective_rank(
    layer: Any,
    input_size: Sequence[int],
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    **options: Any,
) -> float:
    """Return the effective rank of Roy and Vetterli (2007): see `SingularValues.effective_rank`.

    Parameters are those of `singular_values`; all values are needed.

    Examples
    --------
    A 1 × 1 layer that keeps one channel of two:

    >>> keep = np.array([[[1.0, 0.0]], [[0.0, 0.0]]])
    >>> round(effective_rank(keep, (8,), geometry=ConvGeometry(2, 2, (1,))), 12)
    8.0
    """
    return singular_values(layer, input_size, None, boundary, geometry, **options).effective_rank
