"""The ways to the singular values of a CONV layer, and which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from convfc.arrays import as_numpy
from convfc.errors import ArgumentError, DtypeError, MemoryBudgetError
from convfc.geometry import ConvGeometry
from convfc.indexmap import index_map
from convfc.layer import ConvLayer
from convfc.methods.spectrum.direct import (
    Filters,
    dense_values,
    kernel_values,
    lapack_error,
    reshaped_norm,
    taps_of,
)
from convfc.methods.spectrum.fourier import fourier_error, fourier_values
from convfc.methods.spectrum.iterative import (
    largest_values,
    smallest_by_inverse,
    smallest_values,
)
from convfc.methods.spectrum.structure import (
    circular_geometry,
    operator_shape,
    periodic_axes,
    separate_windows,
    transposed_circular_axes,
)
from convfc.methods.spectrum.values import Method, SingularValues, Values, Which
from convfc.operators.matrix import conv_matrix
from convfc.operators.matrixfree import conv_operator
from convfc.registry import read_layer
from convfc.sizes import integer, one_of

__all__ = ["DENSE_LIMIT", "MEMORY", "TOLERANCE", "Boundary", "find"]

Boundary: TypeAlias = Literal["circular"]
"""What takes the place of the layer's own padding."""

MEMORY = 2**29
"""Bytes that a dense matrix, or a factorisation, may take: some minutes of work at most."""

TOLERANCE = 1e-5
"""Residual, relative to the largest value, at which iterations end."""

DENSE_LIMIT = 768
"""Where only some values are wanted: up to this smaller side LAPACK finds all of them instead."""


def find(
    layer: Any,
    input_size: Sequence[int],
    k: int | None,
    boundary: Boundary | None,
    geometry: ConvGeometry | None,
    which: Which,
    tolerance: float,
    memory: float,
    threads: int | None,
) -> SingularValues:
    """Return all values if there is a direct way to them, else the k that are wanted.

    Parameters are those of `singular_values`.

    Examples
    --------
    One value is wanted, and three are as easy to find:

    >>> filters = np.array([[[1.0], [-1.0]]])
    >>> len(find(filters, (4,), 1, None, ConvGeometry(1, 1, (2,)), "largest", 0, 1e6, 1).values)
    3
    """
    _check(boundary, which, tolerance)
    reading = read_layer(layer, geometry, input_size=input_size)
    own = reading.layer.geometry
    size = index_map(own, input_size).input_size
    circular = boundary == "circular"
    filters = _filters(reading.layer)
    shape = operator_shape(own, size, circular=circular)
    _check_count(k, shape)
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
    fits = which == "smallest" and _factors_bytes(moved, size, shape, filters.itemsize) <= memory
    # Of small values those of a dense matrix are slow, but sure; Lanczos iterations may not end.
    few = k is not None and (which == "largest" or fits)
    exact = exact or _dense(filters, moved, size, shape, memory, DENSE_LIMIT if few else None)
    if exact is not None:
        method, values, error = exact
        values = np.sort(values)[::-1]
        return SingularValues(values, method, error / float(values[0]), **facts)
    if k is None:
        raise _too_large(shape, own.groups, filters.itemsize, memory)
    _check_few(k, shape, filters.itemsize, memory)
    on_circle = ConvLayer(moved, filters)
    operator = conv_operator(on_circle, size) if circular else conv_operator(layer, size, geometry)
    if which == "largest":
        found = largest_values(operator, k, tolerance)
        norm = float(found.values[0])
        return SingularValues(found.values, "lanczos", found.residual / norm, **facts)
    facts["which"] = which
    norm = float(largest_values(operator, 1, max(tolerance, 1e-3)).values[0])
    if fits:
        found = smallest_by_inverse(conv_matrix(on_circle, size), k, norm)
        return SingularValues(found.values, "inverse", found.residual / norm, **facts)
    found = smallest_values(operator, k, norm, tolerance)
    return SingularValues(found.values, "lanczos", found.residual / norm, **facts)


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
    copies = None if rolled else separate_windows(geometry, size)
    if copies is not None:
        values = kernel_values(filters, geometry, copies, count)
        error = lapack_error(filters.shape[0], filters[0].size) * float(values.max())
        return "kernel", values, error
    axes = transposed_circular_axes(geometry, size) if rolled else periodic_axes(geometry, size)
    if axes is None:
        return None
    taps = taps_of(filters, geometry)
    return "fourier", fourier_values(taps, axes, threads=threads), fourier_error(taps, axes)


def _dense(
    filters: Filters,
    geometry: ConvGeometry,
    size: tuple[int, ...],
    shape: tuple[int, int],
    memory: float,
    most: int | None,
) -> _Exact | None:
    """Return all values by LAPACK; None if the matrix or its smaller side is too large for that."""
    rows, columns = (n // geometry.groups for n in shape)
    too_many = most is not None and min(rows, columns) > most
    if too_many or rows * columns * filters.itemsize > memory:
        return None
    values = dense_values(ConvLayer(geometry, filters), size)
    return "dense", values, lapack_error(rows, columns) * float(values.max())


def _too_large(
    shape: tuple[int, int], groups: int, itemsize: int, memory: float
) -> MemoryBudgetError:
    rows, columns = (n // groups for n in shape)
    return MemoryBudgetError(
        f"all {min(shape)} singular values take the dense matrix, {rows} × {columns}"
        + (f" for each of {groups} groups" if groups > 1 else ""),
        where="k",
        expected=f"at most {memory:.3g} bytes",
        got=f"{rows * columns * itemsize:.3g} bytes",
        remedy="k=... for some of them, boundary='circular' for all of the periodic operator, or "
        "more memory=...",
    )


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


def _filters(layer: ConvLayer) -> Filters:
    """Return the filters in float64 or complex128."""
    given = as_numpy(layer.filters, "filters")
    filters = given.astype(np.result_type(given.dtype, np.float64))
    if not np.isfinite(filters).all():
        raise DtypeError(
            "the filters hold NaN or infinity, and have no singular values",
            where="filters",
            expected="finite numbers",
            remedy="look for where training diverged",
        )
    return filters


def _check(boundary: object, which: object, tolerance: float) -> None:
    """Raise an `ArgumentError` for a name that there is not, and a tolerance that ends nothing."""
    one_of(
        "boundary",
        boundary,
        (None, *get_args(Boundary)),
        what="there is no such boundary",
        remedy="the padding of the layer itself is boundary=None",
    )
    one_of(
        "which",
        which,
        get_args(Which),
        what="there is no such which",
        remedy="leave it out for the largest",
    )
    if not 0 <= tolerance < 1:
        raise ArgumentError(
            "this is no tolerance",
            where="tolerance",
            expected="a number from 0 to 1",
            got=tolerance,
            remedy=f"leave it out for {TOLERANCE}",
        )


def _check_count(k: int | None, shape: tuple[int, int]) -> None:
    if k is not None and integer("k", k, least=1) > min(shape):
        raise ArgumentError(
            "the layer has fewer singular values",
            where="k",
            expected=f"{min(shape)} at most, the smaller side of {shape[0]} × {shape[1]}",
            got=k,
            remedy="leave k out for all of them",
        )


def _check_few(k: int, shape: tuple[int, int], itemsize: int, memory: float) -> None:
    """Raise MemoryBudgetError where iterations would keep too many vectors."""
    side = min(shape)
    most = min(int(memory / (3 * itemsize * side)), side // 3)
    if k > most:
        raise MemoryBudgetError(
            "iterations are for a few singular values: they keep some vectors for each",
            where="k",
            expected=f"{most} at most",
            got=k,
            remedy="fewer, boundary='circular' for all of the periodic one, or more memory=...",
        )
