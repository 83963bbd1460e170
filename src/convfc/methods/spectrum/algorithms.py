"""The algorithms for the singular values of a layer's operator, and what the index map says of it.

Where no two windows overlap the operator is copies of K. A periodic operator falls apart by the
Fourier transform, at stride 1 into one ``f × c`` matrix for each frequency (Sedghi, Gupta and Long,
2019, "The singular values of convolutional layers", theorem 6). With stride s the s frequencies per
axis that alias on the output belong together, to one ``f × (c s)`` matrix (Senderovich et al.,
2022, "Towards practical control of singular values of convolutional layers", theorem 1).

A small operator is a matrix, for LAPACK. Of a large one ARPACK finds the ends of the spectrum of
the Gram operator A*A, or A A* if that is smaller. It squares the singular values; therefore the
vectors alone are taken from it, and the values from A itself, in float64, with their residuals.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh, splu

from convfc.arrays import as_numpy
from convfc.errors import NotConverged
from convfc.geometry import ConvGeometry
from convfc.indexmap import AxisMap, Indices, index_map
from convfc.layer import ConvLayer
from convfc.operators.matrix import conv_matrix
from convfc.rounding import UNIT_ROUNDOFF, gamma

Values: TypeAlias = npt.NDArray[np.float64]
Which: TypeAlias = Literal["largest", "smallest"]


class PeriodicAxis(NamedTuple):
    """A periodic operator on one axis: coarse element o meets ``offsets[t] + o * step`` by tap t.

    The coarse ones are the output's; of a transposed layer the input's.
    """

    coarse: int
    step: int
    offsets: Indices

    @property
    def fine(self) -> int:
        """Number of the other elements."""
        return self.coarse * self.step


def operator_shape(
    geometry: ConvGeometry, input_size: Sequence[int], *, circular: bool
) -> tuple[int, int]:
    """Return the shape of the operator with its own boundary, or with a circular one."""
    if not circular:
        output_size = geometry.output_size(input_size)
    elif geometry.transposed:
        output_size = tuple(n * s for n, s in zip(input_size, geometry.stride, strict=True))
    else:
        output_size = circular_geometry(geometry, input_size).output_size(input_size)
    rows = geometry.out_channels * math.prod(output_size)
    return (rows, geometry.in_channels * math.prod(input_size))


def circular_geometry(geometry: ConvGeometry, input_size: Sequence[int]) -> ConvGeometry:
    """Return the same kernel on a circle: ceil(input / stride) windows on each axis."""
    given = {field.name: getattr(geometry, field.name) for field in fields(geometry)}
    given |= {"padding": 0, "padding_mode": "circular"}
    return ConvGeometry.same(**given, input_size=input_size)


def periodic_axes(
    geometry: ConvGeometry, input_size: Sequence[int]
) -> tuple[PeriodicAxis, ...] | None:
    """Return the operator's axes if it is periodic by its own padding, else None.

    Then each position reads what the first one reads, moved, and the last is one step before it.
    """
    found = []
    for axis in index_map(geometry, input_size).axes:
        moved = axis.table[0] + np.arange(axis.positions)[:, None] * axis.step
        around = axis.step * axis.positions == axis.size
        if not around or np.any(axis.table != moved % axis.size):  # padding reads -1
            return None
        found.append(PeriodicAxis(axis.positions, axis.step, axis.table[0]))
    return tuple(found)


def transposed_circular_axes(
    geometry: ConvGeometry, input_size: Sequence[int]
) -> tuple[PeriodicAxis, ...]:
    """Return the axes of a transposed layer whose output is rolled up to input * stride elements.

    Every input meets outputs as input 0 does before anything is cut off.
    """
    ndim = geometry.spatial_ndim
    whole = replace(geometry, padding=((0, 0),) * ndim, output_padding=(0,) * ndim)
    axes = index_map(whole, input_size).axes
    return tuple(
        PeriodicAxis(axis.size, step, np.argmax(axis.table == 0, axis=0) % (axis.size * step))
        for axis, step in zip(axes, geometry.stride, strict=True)
    )


Filters = npt.NDArray[Any]
"""float64 or complex128."""


def taps_of(filters: Filters, geometry: ConvGeometry) -> Filters:
    """Return filters as one matrix per tap and group, (taps, groups, p, q): from q channels to p.

    Transposed, the windows are on the output, and it is the other way round.
    """
    groups, f, c = geometry.groups, geometry.out_channels, geometry.in_channels
    apart = filters.reshape(groups, f // groups, -1, c // groups)
    taps = np.moveaxis(apart, 2, 0)
    return taps.swapaxes(2, 3) if geometry.transposed else taps


def reshaped_norm(filters: Filters) -> float:
    """Return the norm of the filter matrix K."""
    with one_blas_thread():
        return float(np.linalg.norm(filters.reshape(len(filters), -1), 2))


def kernel_values(
    filters: Filters, geometry: ConvGeometry, input_size: Sequence[int], count: int
) -> Values | None:
    """Return the values of an operator that is copies of K, and zeros up to ``count``, else None.

    It is where no two windows overlap, and none reads padding (of a transposed layer: on its output
    none is cut off). The zeros belong to elements of the input that no window reads.
    """
    where, groups, f = index_map(geometry, input_size), geometry.groups, geometry.out_channels
    tables = [axis.table for axis in where.axes]
    if all(np.all(table >= 0) and len(np.unique(table)) == table.size for table in tables):
        copies, rows = math.prod(where.output_size), f // groups
    elif all(_written_once(axis) for axis in where.axes):
        copies, rows = math.prod(where.input_size), f // groups * math.prod(geometry.kernel_size)
    else:
        return None
    with one_blas_thread():
        found = np.linalg.svd(filters.reshape(groups, rows, -1), compute_uv=False).ravel()
    values = np.zeros(count)
    values[: found.size * copies] = np.repeat(found, copies)
    return values


def _written_once(axis: AxisMap) -> bool:
    """Say whether each output has one entry at most, and each input one for every tap."""
    inputs = np.sort(axis.table, axis=0)[-axis.size :]
    everything = inputs.shape[0] == axis.size and np.all(inputs == np.arange(axis.size)[:, None])
    entries = np.count_nonzero(axis.table >= 0, axis=1)
    return bool(everything and entries.max() <= 1 and entries.sum() == axis.size * axis.taps)


def dense_values(layer: ConvLayer, input_size: tuple[int, ...]) -> Values:
    """Return all values of the operator, from the dense matrix of each group, in no order."""
    geometry, groups = layer.geometry, layer.geometry.groups
    one = replace(
        geometry,
        in_channels=geometry.in_channels // groups,
        out_channels=geometry.out_channels // groups,
        groups=1,
    )
    found = []
    for filters in np.split(as_numpy(layer.filters, "filters"), groups):
        matrix = conv_matrix(filters, input_size, one, layout="dense")
        # With more rows than columns LAPACK begins with QR: the same values, and less work.
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        found.append(linalg.svdvals(tall, overwrite_a=True, check_finite=False))
    values: Values = np.concatenate(found)
    return values


def lapack_error(rows: int, columns: int) -> float:
    """Return LAPACK's backward error relative to the norm: ``max(m, n) eps`` (its guide, 4.9)."""
    return max(rows, columns) * float(np.finfo(np.float64).eps)


_BATCH = 2**25
"""Bytes of the matrices that one thread holds at a time."""


def fourier_values(
    taps: Filters, axes: Sequence[PeriodicAxis], *, threads: int | None = None
) -> Values:
    """Return all singular values of a periodic operator, in no order; `taps_of` makes the taps.

    Without a number of threads there are as many as cores, if threadpoolctl is there to keep BLAS
    from doing the same. Of the conjugate matrices of real filters one of each pair is decomposed.
    """
    count, groups, p, q = taps.shape
    real = not np.iscomplexobj(taps)
    numbers, times = frequencies([axis.coarse for axis in axes], paired=real)
    aliases = math.prod(axis.step for axis in axes)
    flat = taps.reshape(count, groups * p * q).astype(np.complex128)
    flat /= math.sqrt(aliases)

    def of_batch(batch: Indices) -> Values:
        waves = _waves(batch, axes)
        blocks = (waves.reshape(-1, count) @ flat).reshape(len(batch), aliases, groups, p, q)
        together = np.moveaxis(blocks, 1, 3).reshape(len(batch), groups, p, aliases * q)
        found = np.linalg.svd(together, compute_uv=False)
        return np.asarray(found, np.float64).reshape(len(batch), -1)

    per_frequency = 16 * groups * p * q * aliases * 2
    size = max(1, min(_BATCH // per_frequency, math.ceil(len(numbers) / 16)))
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    with _pool(threads, len(batches)) as pool:
        found = np.concatenate(list((pool.map if pool else map)(of_batch, batches)))
    return np.repeat(found, times, axis=0).ravel()


def frequencies(sizes: Sequence[int], *, paired: bool) -> tuple[Indices, Indices]:
    """Return the frequencies to decompose, raveled, and how often each counts; of pairs one."""
    everything = np.arange(math.prod(sizes))
    if not paired:
        return everything, np.ones_like(everything)
    opposite = [-k % n for k, n in zip(np.unravel_index(everything, sizes), sizes, strict=True)]
    partner = np.ravel_multi_index(opposite, sizes)
    first = everything <= partner
    return everything[first], np.where(everything == partner, 1, 2)[first]


def fourier_error(taps: Filters, axes: Sequence[PeriodicAxis]) -> float:
    """Return how far any of `fourier_values` may be off.

    The sum over n taps is off by ``√2 γ_(2n + 24 axes)`` times the sum of their norms: two products
    of real and imaginary parts per tap (Higham, chapter 3), and for every axis a root of unity,
    whose angle, up to 2π, has three roundings. LAPACK's SVD adds twice `lapack_error`, for complex
    numbers.
    """
    u = UNIT_ROUNDOFF["float64"]
    moduli: float = np.linalg.norm(taps.reshape(len(taps), -1), axis=1).sum().item()
    sums = math.sqrt(2) * gamma(2 * len(taps) + 24 * len(axes), u) * moduli
    _, _, p, q = taps.shape
    # No frequency's matrix has a norm above the sum of the taps' norms.
    sides = p, q * math.prod(axis.step for axis in axes)
    return float(sums + 2 * lapack_error(*sides) * moduli)


def _waves(batch: Indices, axes: Sequence[PeriodicAxis]) -> Filters:
    """Return exp(2πi k·offset / fine), shape ``(len(batch), aliases, taps)``.

    The angles are reduced as integers: each is as exact as for the first turn of the circle.
    """
    waves = np.ones((len(batch), 1, 1), np.complex128)
    numbers = np.unravel_index(batch, [axis.coarse for axis in axes])
    for number, axis in zip(numbers, axes, strict=True):
        roots = np.exp(2j * np.pi * np.arange(axis.fine) / axis.fine)
        aliased = number[:, None] + np.arange(axis.step) * axis.coarse
        wave = roots[aliased[:, :, None] * axis.offsets % axis.fine]
        waves = waves[:, :, None, :, None] * wave[:, None, :, None, :]
        waves = waves.reshape(len(batch), -1, waves.shape[-2] * waves.shape[-1])
    return waves


@contextlib.contextmanager
def _pool(threads: int | None, batches: int) -> Iterator[ThreadPoolExecutor | None]:
    """Give a pool of threads while BLAS has one each; None where one thread does it all."""
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    wanted = min(threads or len(mine), batches)
    with one_blas_thread() as held:
        if wanted == 1 or not held:  # BLAS has its own, and two kinds of them are slower than one
            yield None
            return
        pool = ThreadPoolExecutor(wanted)
        try:
            yield pool
        finally:  # after Ctrl-C, too: what has not begun does not begin
            pool.shutdown(cancel_futures=True)


_SEED = 20171204
"""Of the first vector: the same call gives the same numbers."""

_ITERATIONS = 300
"""Restarts of ARPACK, each of about as many products as it keeps vectors."""

_SINGLE = 1e-5
"""Down to this residual float32 is good for a layer that has it."""

_REMEDY = (
    "a larger tolerance, all values by boundary='circular', or more memory, so that the matrix can "
    "be factorised"
)

Vectors = npt.NDArray[Any]


class Found(NamedTuple):
    """Values in descending order, and the largest ``‖A* u − σ v‖``, not yet divided."""

    values: Values
    residual: float


def largest_values(operator: LinearOperator, k: int, tolerance: float) -> Found:
    """Return the k largest singular values; the tolerance is relative to the largest."""
    return _values(operator, _ends(_gram(operator, tolerance), k, tolerance, "largest"))


def smallest_values(operator: LinearOperator, k: int, norm: float, tolerance: float) -> Found:
    """Return the k smallest singular values, from products alone: slow where they lie close."""
    gram = _gram(operator, 0.0)
    # Turned round, the wanted end is the largest in size: ARPACK measures its residuals with that.
    limit = (1.01 * norm) ** 2
    turned = LinearOperator(
        gram.shape, matvec=lambda v: limit * v - gram.matvec(v), dtype=gram.dtype
    )
    found = _values(operator, _ends(turned, k, tolerance**2, "smallest"))
    if found.residual > tolerance * norm:
        raise NotConverged(
            f"the {k} smallest singular values are not found: the residual stays above the "
            f"tolerance (the smallest value is {found.values[-1]:.3g} at most)",
            where="tolerance",
            expected=tolerance,
            got=f"{found.residual / norm:.1e}",
            remedy=_REMEDY,
        )
    return found


def smallest_by_inverse(matrix: sparse.csr_array, k: int, norm: float) -> Found:
    """Return the k smallest singular values, by inverse iterations with a sparse factorisation.

    The Gram matrix is shifted by as much as its own rounding: it has factors whatever the rank.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.conj().T if wide else matrix.conj().T @ matrix
    n = gram.shape[0]
    shift = n * float(np.finfo(np.float64).eps) * norm**2
    factors = splu(
        sparse.csc_array(gram + shift * sparse.eye_array(n)),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    inverse = LinearOperator(gram.shape, matvec=factors.solve, dtype=gram.dtype)
    return _values(sparse.linalg.aslinearoperator(matrix), _ends(inverse, k, 0.0, "smallest"))


def _gram(operator: LinearOperator, tolerance: float) -> LinearOperator:
    """Return A*A or A A*, whichever is smaller, in the operator's dtype if that is good enough."""
    single = operator.dtype in (np.float32, np.complex64) and tolerance >= _SINGLE
    dtype = operator.dtype if single else np.result_type(operator.dtype, np.float64)
    products: tuple[Callable[[Vectors], Vectors], ...] = (operator.matvec, operator.rmatvec)
    first, second = products if operator.shape[1] <= operator.shape[0] else products[::-1]
    n = min(operator.shape)
    return LinearOperator((n, n), matvec=lambda v: second(first(v.astype(dtype))), dtype=dtype)


def _ends(gram: LinearOperator, k: int, tolerance: float, which: Which) -> Vectors:
    """Return the vectors of the k largest eigenvalues."""
    n = gram.shape[0]
    start = np.random.default_rng(_SEED).standard_normal(n).astype(gram.dtype)
    kept = min(n, max(2 * k + 1, 20))
    try:
        _, vectors = eigsh(
            gram, k, which="LA", tol=tolerance, v0=start, ncv=kept, maxiter=_ITERATIONS
        )
    except ArpackNoConvergence as error:
        raise NotConverged(
            f"only {len(error.eigenvalues)} of the {k} {which} singular values were found in "
            f"{_ITERATIONS} restarts of ARPACK",
            where="tolerance",
            got=tolerance,
            remedy=_REMEDY,
        ) from error
    except ArpackError as error:
        raise NotConverged(f"ARPACK gave up: {error}", where="k", got=k, remedy=_REMEDY) from error
    found: Vectors = vectors
    return found


def _values(operator: LinearOperator, vectors: Vectors) -> Found:
    """Return values and residuals in the space of some vectors (Rayleigh and Ritz), in float64."""
    adjoint = operator.shape[0] < operator.shape[1]
    there = operator.rmatmat if adjoint else operator.matmat
    back = operator.matmat if adjoint else operator.rmatmat
    basis, _ = np.linalg.qr(vectors.astype(np.result_type(vectors.dtype, np.float64)))
    left, values, right = np.linalg.svd(there(basis), full_matrices=False)
    ritz = basis @ right.conj().T
    residuals = np.linalg.norm(back(left) - ritz * values, axis=0)
    return Found(values, float(residuals.max()))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Hold BLAS to one thread, and say whether that is so: it takes the package threadpoolctl."""
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        yield False
        return
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield True
