"""How far rounding may carry a sum of products: the bound that a certificate measures with.

A sum of n products, in any order and with or without fused multiply-add, is computed in arithmetic
of unit roundoff u with an error of at most ``gamma_n * B``, where ``gamma_n = n*u / (1 - n*u)`` and
B is the same sum over absolute values (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2nd ed., chapter 3). The numbers here are NumPy's; the arrays may be of any library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

# Of a complex number, both parts are such; bfloat16 has float32's exponents and 8 bits.
_PART = {"complex64": "float32", "complex128": "float64"}
_FINFO = {
    name: np.finfo(_PART.get(name, name)) for name in ("float16", "float32", "float64", *_PART)
}

UNIT_ROUNDOFF: Mapping[str, float] = {
    "bfloat16": 2.0**-8,
    **{name: float(info.eps) / 2 for name, info in _FINFO.items()},
}
"""The largest relative error of one rounding to nearest, by the name of the dtype."""

SMALLEST_NORMAL: Mapping[str, float] = {
    "bfloat16": float(_FINFO["float32"].tiny),
    **{name: float(info.tiny) for name, info in _FINFO.items()},
}
"""A product below it may lose its digits, or be flushed to zero."""

# Often summed in wider arithmetic, then rounded once more to be stored.
_STORED_APART = frozenset({"bfloat16", "float16"})

Magnitude = TypeVar("Magnitude", bound=Any)


def gamma(terms: float, roundoff: float) -> float:
    """Return Higham's gamma_n, ``n*u / (1 - n*u)``; infinite from n*u = 1 on, where none exists.

    Examples
    --------
    >>> f"{gamma(1000, UNIT_ROUNDOFF['float32']):.3e}"
    '5.961e-05'
    >>> gamma(256, UNIT_ROUNDOFF["bfloat16"])
    inf
    """
    share = terms * roundoff
    return share / (1 - share) if share < 1 else math.inf


def rounding_bound(magnitude: Magnitude, terms: int, dtype: str) -> Magnitude | None:
    """Return how far two computed values of the same sum of products may lie apart.

    Each of the two is within ``gamma_n * B`` of the exact value, so they are within
    ``2 * gamma_n * B`` of each other.

    Parameters
    ----------
    magnitude : number or array
        The sum over absolute values, B, computed in float64, whose own rounding is paid for here.
    terms : int
        How many terms the sum has at most, a bias included.
    dtype : str
        Name of the arithmetic, one of `UNIT_ROUNDOFF`.

    Returns
    -------
    number or array, or None
        ``2 * gamma_n * B``, plus 2n smallest normal numbers for products that underflow. None if n
        is so large that the dtype's theory bounds nothing.

        For bfloat16 and float16 n is one more: a result that was summed in wider arithmetic is
        rounded again when it is stored. A complex sum is either two real ones of 2n products,
        ``sqrt(2) * gamma_2n``, or made of three real ones instead of four (Higham, section 23.2.4),
        as PyTorch does it: the imaginary part is ``(Re m + Im m)(Re k + Im k)``, at most
        ``2|m||k|``, less the other two, so that the error is ``sqrt(10) * gamma_(n+4)`` at most.
        The larger of the two counts.

    Examples
    --------
    >>> f"{rounding_bound(1.0, 100, 'float32'):.3e}"
    '1.192e-05'
    >>> rounding_bound(1.0, 4608, "bfloat16") is None
    True
    """
    u = UNIT_ROUNDOFF[dtype]
    if dtype in _PART:
        factor = max(math.sqrt(2) * gamma(2 * terms, u), math.sqrt(10) * gamma(terms + 4, u))
    else:
        factor = gamma(terms + (dtype in _STORED_APART), u)
    magnitude_off = gamma(terms, UNIT_ROUNDOFF["float64"])
    if math.isinf(factor) or magnitude_off >= 1:
        return None
    bound: Magnitude = magnitude * (2 * factor / (1 - magnitude_off))
    bound += 2 * terms * SMALLEST_NORMAL[dtype]
    return bound


def exact_limit(dtype: str) -> float:
    """Return up to which sum of absolute values a sum of integers is exact, in any order.

    For complex numbers a quarter of it: making them of three real products passes through values
    of up to four times the result.

    Examples
    --------
    >>> exact_limit("float32") == 2**24, exact_limit("complex64") == 2**22
    (True, True)
    """
    largest = 1 / UNIT_ROUNDOFF[dtype]
    return largest / 4 if dtype in _PART else largest
