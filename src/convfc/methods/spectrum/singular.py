"""singular_values of a CONV layer, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convfc.geometry import ConvGeometry
from convfc.methods.spectrum.values import SingularValues, Which
from convfc.methods.spectrum.ways import MEMORY, TOLERANCE, Boundary, find

__all__ = ["condition_number", "effective_rank", "singular_values", "spectral_norm"]

_DEFAULTS: dict[str, Any] = {"tolerance": TOLERANCE, "memory": MEMORY, "threads": None}


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
    layer : object
        A framework's CONV layer in any form, a `ConvLayer`, or filters ``(f, *kernel, c / groups)``
        with a geometry. The bias plays no part.
    input_size : sequence of int
        Spatial size of the input.
    k : int, optional
        How many; by default all of them.
    boundary : {"circular"}, optional
        The same kernel, stride, dilation and groups on a circle, with ceil(input / stride) windows
        on each axis, instead of the layer's own padding. (Transposed: input * stride outputs.)
    geometry : ConvGeometry, optional
        Of filters; a layer has its own.
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
        If this is no layer that convfc knows, or it does not fit the input size.

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
    found = find(layer, input_size, k, boundary, geometry, which, tolerance, memory, threads)
    if k is None or len(found.values) == k:
        return found
    values = found.values[:k] if which == "largest" else found.values[-k:]
    return replace(found, values=values, which=which)


def spectral_norm(
    layer: Any,
    input_size: Sequence[int],
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    **options: Any,
) -> float:
    """Return the largest singular value of a CONV layer: its norm, and its Lipschitz constant.

    Parameters are those of `singular_values`.

    Examples
    --------
    >>> average = ConvGeometry(1, 1, (3,), padding=1, padding_mode="circular")
    >>> round(spectral_norm(np.full((1, 3, 1), 1 / 3), (8,), geometry=average), 12)
    1.0
    """
    return float(singular_values(layer, input_size, 1, boundary, geometry, **options).values[0])


def condition_number(
    layer: Any,
    input_size: Sequence[int],
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    **options: Any,
) -> float:
    """Return the largest singular value of a CONV layer to its smallest; infinite if that is 0.

    It counts as 0 below ``max(shape) eps`` times the largest, as for NumPy's ``matrix_rank``, and
    below the residual with which it was found. Parameters are those of `singular_values`.

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
    options = _DEFAULTS | options
    smallest = find(*arguments, "smallest", **options)
    if smallest.complete:
        return smallest.condition_number
    largest = float(find(*arguments, "largest", **options).values[0])
    least = float(smallest.values[0])
    eps = float(np.finfo(np.float64).eps)
    zero = max(max(smallest.shape) * eps, smallest.residual) * largest
    return math.inf if least <= zero else largest / least


def effective_rank(
    layer: Any,
    input_size: Sequence[int],
    boundary: Boundary | None = None,
    geometry: ConvGeometry | None = None,
    **options: Any,
) -> float:
    """Return the effective rank of Roy and Vetterli (2007), ``exp(−Σ p log p)`` with p = σ / Σ σ.

    Parameters are those of `singular_values`; all values are needed. For the number of values above
    a threshold see `SingularValues.rank`.

    Examples
    --------
    A 1 × 1 layer that keeps one channel of two:

    >>> keep = np.array([[[1.0, 0.0]], [[0.0, 0.0]]])
    >>> round(effective_rank(keep, (8,), geometry=ConvGeometry(2, 2, (1,))), 12)
    8.0
    """
    found = singular_values(layer, input_size, None, boundary, geometry, **options)
    return found.effective_rank
