"""SingularValues: the values, how they were obtained, and how far they may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.errors import NotConverged

__all__ = ["METHODS", "Method", "SingularValues", "Values", "Which"]

Values: TypeAlias = npt.NDArray[np.float64]
Method: TypeAlias = Literal["zero", "kernel", "fourier", "dense", "lanczos", "inverse"]
Which: TypeAlias = Literal["largest", "smallest"]

METHODS: dict[str, str] = {
    "zero": "all filters are 0, or read nothing but padding; exact",
    "kernel": "no two windows overlap, so the layer is copies of K; LAPACK's SVD of K",
    "fourier": "the operator is periodic; LAPACK's SVD of one small matrix per frequency",
    "dense": "LAPACK's SVD of the whole matrix",
    "lanczos": "Lanczos iterations (ARPACK) with the layer and its adjoint; no matrix",
    "inverse": "inverse iterations (ARPACK) with a sparse factorisation of the Gram matrix",
}
"""How values were obtained, in a word and in a sentence."""

_MEASURED = frozenset({"lanczos", "inverse"})


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Singular values of a CONV layer; `singular_values` makes it.

    Parameters
    ----------
    values : NumPy array of float64
        In descending order, each as often as it occurs.
    method : {"zero", "kernel", "fourier", "dense", "lanczos", "inverse"}
        How they were obtained; `explanation` says it in a sentence.
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
    >>> print(SingularValues(np.array([2.0, 1.0, 0.5]), "dense", 1e-15, (3, 4), 1.25))
    3 of 3 singular values of a 3 × 4 operator, from 2 to 0.5
    dense: LAPACK's SVD of the whole matrix
    relative error at most 1.0e-15, by theory
    norm of the reshaped kernel 1.25: the layer's is 1.6 times as large
    """

    values: Values
    method: Method
    residual: float
    shape: tuple[int, int]
    reshaped_norm: float
    which: Which = "largest"
    note: str = ""

    @property
    def explanation(self) -> str:
        """The method in a sentence."""
        return METHODS[self.method]

    @property
    def measured(self) -> bool:
        """Whether the residual was measured; else it is a bound of theory."""
        return self.method in _MEASURED

    @property
    def count(self) -> int:
        """How many singular values the operator has, counted as often as they occur."""
        return min(self.shape)

    @property
    def complete(self) -> bool:
        """Whether these are all of them."""
        return len(self.values) == self.count

    @property
    def threshold(self) -> float:
        """Below it a value may well be 0: what NumPy's ``matrix_rank`` takes, ``max(shape) eps σ``.

        Or the residual, where that is larger.
        """
        relative = max(max(self.shape) * float(np.finfo(np.float64).eps), self.residual)
        return relative * float(self.values.max(initial=0.0))

    def rank(self, relative: float | None = None) -> int:
        """Return how many values are above ``relative`` times the largest.

        Parameters
        ----------
        relative : float, optional
            By default what rounding may leave of a 0 (`threshold`).

        Raises
        ------
        NotConverged
            If not all values are known.

        Examples
        --------
        >>> SingularValues(np.array([2.0, 1.0, 0.0]), "dense", 1e-15, (3, 4), 1.25).rank()
        2
        """
        self._check_complete("the rank")
        limit = self.threshold if relative is None else relative * float(self.values[0])
        return int(np.count_nonzero(self.values > limit))

    @property
    def effective_rank(self) -> float:
        """The effective rank of Roy and Vetterli (2007), "The effective rank", definition 1.

        ``exp(−Σ p log p)`` with ``p = σ / Σ σ``: so many equal values would have the same entropy.

        Examples
        --------
        >>> SingularValues(np.array([3.0, 3.0, 0.0]), "dense", 1e-15, (3, 4), 3.0).effective_rank
        2.0
        """
        self._check_complete("the effective rank")
        share = self.values[self.values > 0]
        if not share.size:
            return 0.0
        share = share / share.sum()
        return math.exp(-float(share @ np.log(share)))

    @property
    def condition_number(self) -> float:
        """The largest value to the smallest; infinite where the smallest cannot be told from 0.

        Examples
        --------
        >>> SingularValues(np.array([3.0, 1.5]), "dense", 1e-15, (2, 4), 3.0).condition_number
        2.0
        """
        self._check_complete("the condition number")
        smallest = float(self.values[-1])
        return math.inf if smallest <= self.threshold else float(self.values[0]) / smallest

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
            "values": self.values.tolist(),
            "method": self.method,
            "residual": self.residual,
            "residual_is": "measured" if self.measured else "theory",
            "shape": list(self.shape),
            "count": self.count,
            "complete": self.complete,
            "which": self.which,
            "reshaped_norm": self.reshaped_norm,
            "note": self.note,
        }

    def __str__(self) -> str:
        rows, columns = self.shape
        how_many = f"{len(self.values)} of {self.count}"
        if not self.complete:
            how_many = f"the {len(self.values)} {self.which} of {self.count}"
        lines = [
            f"{how_many} singular values of a {rows} × {columns} operator, "
            f"from {self.values[0]:.6g} to {self.values[-1]:.6g}",
            f"{self.method}: {self.explanation}",
            f"relative error at most {self.residual:.1e}, "
            + ("measured" if self.measured else "by theory"),
        ]
        if self.complete or self.which == "largest":
            times = float(self.values[0]) / self.reshaped_norm if self.reshaped_norm else 1.0
            lines.append(
                f"norm of the reshaped kernel {self.reshaped_norm:.6g}: "
                f"the layer's is {times:.4g} times as large"
            )
        return "\n".join([*lines, *[self.note] * bool(self.note)])
