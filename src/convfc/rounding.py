"""How far rounding can move a sum of products: the bound of the certificates.

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

LARGEST_FINITE: Mapping[str, float] = {
    "bfloat16": float((2 - 2.0**-7) * 2.0**127),
    **{name: float(info.max) for name, info in _FINFO.items()},
}
"""The largest finite number of each dtype."""

# Often summed in wider arithmetic, and rounded when the sum is stored.
_STORED_APART = frozenset({"bfloat16", "float16"})

Magnitude = TypeVar("Magnitude", bound=Any)


def unit_roundoff(dtype: str) -> float:
    """Return the unit roundoff of a dtype; it is 0 of integers, whose sums are exact."""
    return 0.0 if dtype.startswith(("int", "uint")) else UNIT_ROUNDOFF[dtype]


def gamma(terms: float, roundoff: float) -> float:
    """Return Higham's gamma_n, ``n*u / (1 - n*u)``; infinite from n*u = 1 on: no bound exists."""
    share = terms * roundoff
    return share / (1 - share) if share < 1 else math.inf


def rounding_bound(magnitude: Magnitude, terms: int, dtype: str) -> Magnitude | None:
    """Return how far two computed values of one sum of products can differ, per element.

    ``2 * gamma_n * B``, as each is within ``gamma_n * B`` of the exact value, plus 2n smallest
    normal numbers for products that underflow; None where n is too large for any bound.
    ``magnitude`` is B, the sum over absolute values computed in float64, whose own rounding is
    included; ``terms`` is n at most, a bias included.
    """
    u = unit_roundoff(dtype)
    if dtype in _PART:
        # A complex sum is two real ones of 2n products, sqrt(2) * gamma_2n; or, as PyTorch computes
        # it, made of three real products instead of four (Higham, section 23.2.4): the imaginary
        # part is (Re m + Im m)(Re k + Im k), at most 2|m||k|, less the other two, with an error of
        # at most sqrt(10) * gamma_(n+4).
        factor = max(math.sqrt(2) * gamma(2 * terms, u), math.sqrt(10) * gamma(terms + 4, u))
    else:
        # A sum that was made in wider arithmetic is rounded once more when it is stored.
        factor = gamma(terms + (dtype in _STORED_APART), u)
    magnitude_off = gamma(terms, UNIT_ROUNDOFF["float64"])
    if math.isinf(factor) or magnitude_off >= 1:
        return None
    bound: Magnitude = magnitude * (2 * factor / (1 - magnitude_off))
    bound += 2 * terms * SMALLEST_NORMAL.get(dtype, 0.0)
    return bound


def exact_limit(dtype: str) -> float:
    """Return up to which sum of absolute values a sum of integers is exact, in any order."""
    # A complex product that is made of three real ones passes through four times its value.
    u = unit_roundoff(dtype)
    return 1 / u / (4 if dtype in _PART else 1) if u else math.inf
