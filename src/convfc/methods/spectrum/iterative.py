"""The largest or smallest few singular values, by iterations with the layer and its adjoint.

The Gram operator A*A, or A A* if that is smaller, is symmetric, and ARPACK finds the ends of its
spectrum. It squares the singular values; therefore the vectors alone are taken from it, and the
values from A itself, in float64, with their residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh, splu

from convfc.errors import NotConverged
from convfc.methods.spectrum.values import Values, Which

__all__ = ["Found", "largest_values", "smallest_by_inverse", "smallest_values"]

_SEED = 20171204
"""Of the first vector: the same call gives the same numbers."""

_ITERATIONS = 300
"""Restarts of ARPACK, each of about as many products as it keeps vectors."""

_SINGLE = 1e-5
"""Down to this residual float32 is good for a layer that has it."""

Vectors = npt.NDArray[Any]


class Found(NamedTuple):
    """Values in descending order, and the largest ``‖A* u − σ v‖``, not yet divided."""

    values: Values
    residual: float


def largest_values(operator: LinearOperator, k: int, tolerance: float) -> Found:
    """Return the k largest singular values.

    Raises
    ------
    NotConverged
        If ARPACK ends before the residuals are below ``tolerance`` times the largest value.

    Examples
    --------
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> largest_values(aslinearoperator(np.diag(np.arange(30.0))), 2, 1e-9).values.round(6)
    array([29., 28.])
    """
    gram = _gram(operator, tolerance)
    vectors = _ends(gram, k, tolerance, "largest")
    return _values(operator, vectors)


def smallest_values(operator: LinearOperator, k: int, norm: float, tolerance: float) -> Found:
    """Return the k smallest singular values, from products alone: slow where they lie close.

    Parameters
    ----------
    operator : LinearOperator
    k : int
    norm : float
        The largest singular value.
    tolerance : float

    Raises
    ------
    NotConverged
        If the residuals, relative to the norm, are not below the tolerance in the end.

    Examples
    --------
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> operator = aslinearoperator(np.diag(np.arange(1.0, 31.0)))
    >>> smallest_values(operator, 2, 30.0, 1e-6).values.round(6)
    array([2., 1.])
    """
    gram = _gram(operator, 0.0)
    # Turned round, the wanted end is the largest in size: ARPACK measures its residuals with that.
    limit = (1.01 * norm) ** 2
    turned = LinearOperator(
        gram.shape, matvec=lambda v: limit * v - gram.matvec(v), dtype=gram.dtype
    )
    found = _values(operator, _ends(turned, k, tolerance**2, "smallest"))
    if found.residual > tolerance * norm:
        raise _not_converged(k, "smallest", tolerance, found, norm)
    return found


def smallest_by_inverse(matrix: sparse.csr_array, k: int, norm: float) -> Found:
    """Return the k smallest singular values, by inverse iterations with a sparse factorisation.

    The factorisation is of the Gram matrix plus a multiple of the identity as large as its own
    rounding, so that it exists whatever the rank.

    Examples
    --------
    >>> smallest_by_inverse(sparse.csr_array(np.diag(np.arange(1.0, 31.0))), 2, 30.0).values
    array([2., 1.])
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
    vectors = _ends(inverse, k, 0.0, "smallest")
    return _values(sparse.linalg.aslinearoperator(matrix), vectors)


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
    rng = np.random.default_rng(_SEED)
    start = rng.standard_normal(n).astype(gram.dtype)
    try:
        _, vectors = eigsh(
            gram,
            k=k,
            which="LA",
            tol=tolerance,
            v0=start,
            ncv=min(n, max(2 * k + 1, 20)),
            maxiter=_ITERATIONS,
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


_REMEDY = (
    "a larger tolerance, all values by boundary='circular', or more memory, so that the matrix can "
    "be factorised"
)


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


def _not_converged(
    k: int, which: Which, tolerance: float, found: Found, norm: float
) -> NotConverged:
    return NotConverged(
        f"the {k} {which} singular values are not found: the residual stays above the tolerance "
        f"(the smallest value is {found.values[-1]:.3g} at most)",
        where="tolerance",
        expected=tolerance,
        got=f"{found.residual / norm:.1e}",
        remedy=_REMEDY,
    )
