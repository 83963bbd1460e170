"""A network as values: flat vectors that are sums of matrices times vectors, or ReLU of one.

What a CONV network computes between two activations is affine, however many layers it takes. Here
every value of one example is a flat vector, in PyTorch's order of elements, and says what it is
made of. Matrices and offsets are float64 (complex128 for complex networks): products are rounded
there, and once more when they become the weights of an ``nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn

from convfc.frameworks.torch.tensors import wide

_DENSE = 2**26  # entries: half a gigabyte

Matrix: TypeAlias = Any  # a scipy.sparse.csr_array
Vector: TypeAlias = npt.NDArray[Any]


@dataclass(eq=False)
class Value:
    """A vector of the network, for one example.

    It is compared by what it is, not by its numbers.
    """

    size: int
    # Whether it is known to have no negative element.
    nonnegative: bool = field(default=False, kw_only=True)


@dataclass(eq=False)
class Input(Value):
    """What the network is given."""


@dataclass(eq=False)
class Affine(Value):
    """The sum over j of A_j x_j, plus an offset; ``terms`` has the A_j by their x_j."""

    terms: Mapping[Value, Matrix]
    offset: Vector
    # Whether it is a layer of the original network, with numbers that it has learnt.
    of_layer: bool = False
    # What the moduli of the offset's own parts add up to; more than |offset| where the original
    # network adds and takes off again, as a BatchNorm does.
    offset_modulus: Vector = None  # type: ignore[assignment]
    # How many more roundings than a sum of products has: of the original layer's other steps.
    roundings: int = 0

    def __post_init__(self) -> None:
        if self.offset_modulus is None:
            self.offset_modulus = np.abs(self.offset)


@dataclass(eq=False)
class Relu(Value):
    """The ReLU of a value."""

    source: Value


@dataclass(eq=False)
class Opaque(Value):
    """Modules that are neither: they stay as they are, one after the other, on the flat vector.

    ``name`` is their place in the original network.
    """

    source: Value
    modules: tuple[nn.Module, ...]
    name: str


@dataclass(eq=False)
class Program:
    """A whole network as values; the shapes are those of one example.

    ``places`` says where the original network has a value, and ``tensors`` which one of its trace
    it is. ``signature`` is the trace's.
    """

    input: Input
    output: Value
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    places: Mapping[Value, str] = field(default_factory=dict)
    tensors: Mapping[Value, int] = field(default_factory=dict)
    signature: tuple[tuple[str, str], ...] = ()


def affine(
    terms: Mapping[Value, Matrix],
    offset: Vector,
    *,
    nonnegative: bool | None = None,
    of_layer: bool = False,
    **rest: Any,
) -> Value:
    """Return the affine value; the value itself where nothing is done to it.

    Whether it can be negative is worked out from the numbers unless it is given, or they are a
    layer's: what a network looks like must not depend on the numbers that it has learnt.
    """
    if not of_layer and len(terms) == 1 and not offset.any():
        ((source, matrix),) = terms.items()
        if is_identity(matrix):
            return source
    if nonnegative is None:
        known = not of_layer and _no_negative(offset)
        nonnegative = known and all(
            source.nonnegative and _no_negative(matrix.data) for source, matrix in terms.items()
        )
    return Affine(len(offset), terms, offset, nonnegative=nonnegative, of_layer=of_layer, **rest)


def _no_negative(numbers: Vector) -> bool:
    return not np.iscomplexobj(numbers) and bool((numbers >= 0).all())


def linear(source: Value, matrix: Matrix, **rest: Any) -> Value:
    """Return a matrix times a value."""
    return affine({source: matrix}, np.zeros(matrix.shape[0], matrix.dtype), **rest)


def relu(source: Value) -> Value:
    """Return the ReLU of a value; the value itself if it has no negative element."""
    return source if source.nonnegative else Relu(source.size, source, nonnegative=True)


def total(values: Sequence[Value]) -> Value:
    """Return the sum of values of one size."""
    eye = identity(values[0].size)
    terms: dict[Value, Any] = {}
    for value in values:
        terms[value] = terms[value] + eye if value in terms else eye
    return affine(terms, np.zeros(values[0].size))


def identity(n: int) -> Matrix:
    """Return the identity."""
    return sparse.eye_array(n, format="csr")


def diagonal(entries: Vector) -> Matrix:
    """Return a diagonal matrix."""
    return sparse.diags_array(entries, format="csr")


def numbers(t: Tensor) -> Vector:
    """Return a tensor as float64 or complex128."""
    t = t.detach().cpu()
    t = t if t.layout is torch.strided else t.to_dense()
    array: Vector = wide(t).resolve_conj().numpy()
    return array


def is_identity(matrix: Matrix) -> bool:
    """Say whether a matrix is the identity."""
    n, columns = matrix.shape
    return bool(
        n == columns == matrix.nnz
        and (matrix.data == 1).all()
        and (matrix.indices == np.arange(n)).all()
        and (matrix.indptr == np.arange(n + 1)).all()
    )


def times(left: Matrix, right: Matrix) -> Matrix:
    """Return the product of two matrices, by the way that is faster for them."""
    if is_identity(left):
        return right
    if is_identity(right):
        return left
    (rows, inner), columns = left.shape, right.shape[1]
    products = int(np.diff(right.indptr)[left.indices].sum())
    small = max(rows * inner, inner * columns, rows * columns) <= _DENSE
    # One product by way of an index takes about as long as thirty of those in a dense loop.
    if small and 30 * products > rows * inner * columns:
        return sparse.csr_array(left.toarray() @ right.toarray())
    product = sparse.csr_array(left @ right)
    product.sort_indices()
    return product


def sources(value: Value) -> list[Value]:
    """Return the values that a value is made of."""
    if isinstance(value, Affine):
        return list(value.terms)
    return [value.source] if isinstance(value, (Relu, Opaque)) else []


def topological(output: Value, stops: Collection[Value] = ()) -> list[Value]:
    """Return every value that an output needs, each behind its sources; of a stop, no sources."""
    order: dict[Value, None] = {}
    open_: set[Value] = set()
    stack = [output]
    while stack:  # no recursion: networks are deeper than Python's stack
        value = stack[-1]
        own = [] if value in stops else sources(value)
        waiting = [one for one in own if one not in order]
        if value in open_ or not waiting:
            order.setdefault(stack.pop())
        else:
            open_.add(value)
            stack += waiting[::-1]
    return list(order)


def users_of(output: Value) -> dict[Value, list[Value]]:
    """Return by value the values that are made of it."""
    users: dict[Value, list[Value]] = {value: [] for value in topological(output)}
    for value in users:
        for source in sources(value):
            users[source].append(value)
    return users
