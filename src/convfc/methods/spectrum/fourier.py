"""All singular values of a periodic operator: one small matrix per frequency.

Sedghi, Gupta and Long (2019), "The singular values of convolutional layers", theorem 6: a periodic
operator of stride 1 falls apart, by the Fourier transform, into one ``f × c`` matrix for each
frequency. With stride s the s frequencies per axis that alias on the output belong together, to one
``f × (c s)`` matrix (Senderovich et al., 2022, "Towards practical control of singular values of
convolutional layers", theorem 1).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from convfc.indexmap import Indices
from convfc.methods.spectrum.blas import one_blas_thread
from convfc.methods.spectrum.structure import PeriodicAxis
from convfc.methods.spectrum.values import Values
from convfc.rounding import UNIT_ROUNDOFF, gamma

__all__ = ["fourier_error", "fourier_values", "frequencies"]

_BATCH = 2**25
"""Bytes of the matrices that one thread holds at a time."""

_Complex = npt.NDArray[np.complex128]


def fourier_values(
    taps: npt.NDArray[np.float64] | _Complex,
    axes: Sequence[PeriodicAxis],
    *,
    threads: int | None = None,
) -> Values:
    """Return all singular values of a periodic operator, in no order.

    Parameters
    ----------
    taps : array of float64 or complex128, shape (taps, groups, p, q)
        The matrix from the q fine channels of a group to its p coarse ones, for every tap of the
        window in row-major order.
    axes : sequence of PeriodicAxis
    threads : int, optional
        As many as there are cores, if threadpoolctl is there to keep BLAS from doing the same;
        else one.

    Notes
    -----
    Real filters have conjugate matrices at opposite frequencies: one of each pair is decomposed.

    Examples
    --------
    The average of three neighbours on a circle of four:

    >>> axis = PeriodicAxis(4, 1, np.array([3, 0, 1]))
    >>> np.sort(fourier_values(np.full((3, 1, 1, 1), 1 / 3), [axis])).round(12)
    array([0.33333333, 0.33333333, 0.33333333, 1.        ])
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
        found = np.concatenate(
            list(pool.map(of_batch, batches) if pool else map(of_batch, batches))
        )
    return np.repeat(found, times, axis=0).ravel()


def frequencies(sizes: Sequence[int], *, paired: bool) -> tuple[Indices, Indices]:
    """Return the frequencies to decompose, raveled, and how often each one counts.

    Parameters
    ----------
    sizes : sequence of int
        Number of frequencies on each axis.
    paired : bool
        Whether a frequency and its opposite give the same.

    Examples
    --------
    >>> frequencies([4], paired=True)
    (array([0, 1, 2]), array([1, 2, 1]))
    """
    everything = np.arange(math.prod(sizes))
    if not paired:
        return everything, np.ones_like(everything)
    opposite = [-k % n for k, n in zip(np.unravel_index(everything, sizes), sizes, strict=True)]
    partner = np.ravel_multi_index(opposite, sizes)
    first = everything <= partner
    return everything[first], np.where(everything == partner, 1, 2)[first]


def fourier_error(taps: npt.NDArray[np.float64] | _Complex, axes: Sequence[PeriodicAxis]) -> float:
    """Return how far any of `fourier_values` may be off.

    The sum over n taps is off by ``√2 γ_(2n + 24 axes)`` times the sum of their norms: two products
    of real and imaginary parts per tap (Higham, chapter 3), and for every axis a root of unity,
    whose angle, up to 2π, has three roundings. LAPACK's SVD adds ``p(m, n) eps`` times the norm
    (users' guide, section 4.9), with p = 2 max(m, n): twice that of NumPy's ``matrix_rank``, for
    complex numbers.
    """
    u = UNIT_ROUNDOFF["float64"]
    moduli: float = np.linalg.norm(taps.reshape(len(taps), -1), axis=1).sum().item()
    sums = math.sqrt(2) * gamma(2 * len(taps) + 24 * len(axes), u) * moduli
    _, _, p, q = taps.shape
    # No frequency's matrix has a norm above the sum of the taps' norms.
    size = max(p, q * math.prod(axis.step for axis in axes))
    return float(sums + size * 4 * u * moduli)


def _waves(batch: Indices, axes: Sequence[PeriodicAxis]) -> _Complex:
    """Return exp(2πi k·offset / fine) for each frequency, its aliases and the taps.

    Shape ``(len(batch), aliases, taps)``. The angles are reduced as integers, so that each is as
    exact as for the first turn of the circle.
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
    wanted = min(threads or _cores(), batches)
    with one_blas_thread() as held:
        if wanted == 1 or not held:  # BLAS has its own, and two kinds of them are slower than one
            yield None
            return
        pool = ThreadPoolExecutor(wanted)
        try:
            yield pool
        finally:  # after Ctrl-C, too: what has not begun does not begin
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
