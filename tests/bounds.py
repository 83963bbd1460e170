"""How far floating point may be from the truth, per element: no tolerance is picked by hand.

Higham, *Accuracy and Stability of Numerical Algorithms*, chapter 3: a sum of n products, in any
order, with or without fused multiply-add, in arithmetic of unit roundoff u, has
``|computed - exact| <= gamma_n * sum |m||k|`` with ``gamma_n = n*u / (1 - n*u)``. A bias is one
more term.

A complex sum of n products is two real sums of 2n products each (its real and imaginary part), and
``|Re m||Re k| + |Im m||Im k| <= |m||k|``; so the modulus of the error is at most
``sqrt(2) * gamma_{2n} * sum |m||k|``.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import oracle

if TYPE_CHECKING:
    from convfc import ConvGeometry

UNIT_ROUNDOFF = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "complex64": 2.0**-24,
    "complex128": 2.0**-53,
}
REFERENCE_ROUNDOFF = float(np.finfo(np.longdouble).eps) / 2


def gamma(n: int, u: float) -> float:
    """Higham's gamma_n; without meaning once n*u reaches 1."""
    assert n * u < 1, f"{n} terms are too many for a unit roundoff of {u}"
    return n * u / (1 - n * u)


def sum_bound(magnitude: np.ndarray, terms: int, dtype: str) -> np.ndarray:
    """The bound on a sum of ``terms`` products against its longdouble reference.

    ``magnitude`` is the sum of the moduli; the reference and the magnitude are rounded too,
    which the second gamma pays for.
    """
    factor, count = (sqrt(2.0), 2 * terms) if dtype.startswith("complex") else (1.0, terms)
    computed = factor * gamma(count, UNIT_ROUNDOFF[dtype])
    reference = factor * gamma(count, REFERENCE_ROUNDOFF)
    return (computed + reference) * magnitude / (1 - reference)


def reference(
    x: np.ndarray, filters: np.ndarray, geometry: ConvGeometry, bias: np.ndarray | None = None
) -> np.ndarray:
    """The oracle in the widest arithmetic NumPy has."""
    dtype = np.clongdouble if np.iscomplexobj(x) else np.longdouble
    return oracle.conv(x, filters, geometry, bias, dtype=dtype)


def conv_bound(
    x: np.ndarray,
    filters: np.ndarray,
    geometry: ConvGeometry,
    bias: np.ndarray | None = None,
    *,
    dtype: str,
) -> np.ndarray:
    """The bound on every output element computed in ``dtype``: gamma * (|M||K| + |b|)."""
    terms = int(np.prod(filters.shape[1:])) + (bias is not None)
    moduli = (np.abs(x), np.abs(filters), geometry, None if bias is None else np.abs(bias))
    return sum_bound(oracle.conv(*moduli, dtype=np.longdouble), terms, dtype)
