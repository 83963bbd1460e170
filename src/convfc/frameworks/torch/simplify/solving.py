"""The weight of a layer whose matrix is known with fixed matrices multiplied to it on both sides.

The matrices C(w) that a layer can have are a linear family in its weight w. It is known by C, by
its adjoint (the sum of all entries that hold a weight), and by the weight that the layer has.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor, nn

from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.read import matrix_to_weight
from convfc.frameworks.torch.simplify.ir import Affine, Value
from convfc.frameworks.torch.simplify.maps import numbers
from convfc.operators.pattern import matrix_pattern

__all__ = ["Convolutions", "Family", "Linears", "family_of", "least_squares"]

_ROUNDS = 4  # of iterative refinement: each one gains about half of the digits of float64


class Family(Protocol):
    """The matrices that a layer can have.

    Attributes
    ----------
    start : array
        The layer's own weight, flat.
    apart : bool
        Whether no entry of the matrix is a sum of two weights.
    """

    start: npt.NDArray[Any]
    apart: bool

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of the entries that hold it in C(w)."""

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""


class Linears:
    """All matrices of an ``nn.Linear``: one weight for each of the rows that it is called on."""

    def __init__(self, layer: nn.Linear, columns: int) -> None:
        self.shape, self.rows = layer.weight.shape, columns // layer.in_features
        self.start = numbers(layer.weight).ravel()
        self.apart = True

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""
        one = sparse.csr_array(weight.reshape(self.shape))
        return sparse.kron(sparse.eye_array(self.rows), one, format="csr")

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of its entries."""
        f, c = self.shape
        blocks = [matrix[i * f : (i + 1) * f, i * c : (i + 1) * c] for i in range(self.rows)]
        total = sum(blocks[1:], start=blocks[0])
        dense = total.toarray() if sparse.issparse(total) else total
        return np.asarray(dense).ravel()

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""
        return torch.from_numpy(weight.reshape(self.shape))


class Convolutions:
    """All matrices of a CONV layer's geometry."""

    def __init__(self, layer: Any, size: tuple[int, ...]) -> None:
        own = read_layer(layer, size)
        self.pattern = matrix_pattern(own.geometry, size, "channels_first")
        self.indices, self.indptr = self.pattern.indices(), self.pattern.indptr()
        self.start, self.layer = numbers(own.filters).ravel(), layer
        self.apart = not self.pattern.repeats
        self.rows = np.repeat(np.arange(self.pattern.shape[0]), np.diff(self.indptr))

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""
        filters = weight.reshape(self.pattern.geometry.filters_shape)
        values = self.pattern.values(filters)
        return sparse.csr_array((values, self.indices, self.indptr), shape=self.pattern.shape)

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of its entries."""
        values = np.asarray(matrix[self.rows, self.indices]).ravel()
        return np.asarray(self.pattern.fold(values)).ravel()

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""
        geometry = self.pattern.geometry
        table = torch.from_numpy(weight.reshape(geometry.out_channels, -1))
        shape = self.layer.weight.shape
        return matrix_to_weight(
            table, shape, transposed=geometry.transposed, groups=geometry.groups
        )


def family_of(step: Affine, inside: Value) -> Family:
    """Return the matrices that a layer could have: the layer of an affine value, and what it reads.

    Examples
    --------
    >>> from convfc.frameworks.torch.simplify.ir import Input
    >>> layer, x = nn.Linear(3, 2), Input(3)
    >>> step = Affine(2, {x: sparse.csr_array((2, 3))}, np.zeros(2), layer)
    >>> family_of(step, x).matrix(np.arange(6.0)).shape
    (2, 3)
    """
    if isinstance(step.layer, nn.Linear):
        return Linears(step.layer, inside.size)
    return Convolutions(step.layer, step.input_size)


def least_squares(
    family: Family, before: Any, behind: Any, wanted: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the weight w with the least squares |wanted - P C(w) Q|, next to the family's own.

    Where each entry of the matrix is a multiple of one weight, by a weighted mean. Else by
    conjugate gradients on the normal equations, from the old weight on, with refinement: in
    directions that the matrix says nothing about the weight stays as it was.

    Examples
    --------
    The FC layer behind a sum of two numbers.

    >>> both = sparse.csr_array([[1.0, 1.0]])
    >>> family = Linears(nn.Linear(1, 1), 1)
    >>> least_squares(family, sparse.eye_array(1, format="csr"), both, np.array([[3.0, 5.0]]))
    array([4.])
    """
    left, right = before.T @ before, behind @ behind.T
    n = len(family.start)
    weight: npt.NDArray[Any] = family.start.copy()

    def normal(w: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = family.adjoint(sparse.csr_array(left @ family.matrix(w) @ right))
        return found

    if family.apart and _is_diagonal(left) and _is_diagonal(right):
        total = family.adjoint(np.asarray(before.T @ wanted @ behind.T))
        share = normal(np.ones(n))
        np.divide(total, share, out=weight, where=share > 0)
        return weight
    equations = linalg.LinearOperator((n, n), matvec=normal, dtype=np.float64)
    for _ in range(_ROUNDS):
        rest = wanted - (before @ family.matrix(weight) @ behind).toarray()
        goal = family.adjoint(before.T @ rest @ behind.T)
        step, _ = linalg.cg(equations, goal, rtol=1e-14, maxiter=4 * n)
        weight += step
    return weight


def _is_diagonal(matrix: Any) -> bool:
    entries = sparse.coo_array(matrix)
    rows, columns = entries.coords
    return bool((entries.data[rows != columns] == 0).all())
