"""A network as values: flat vectors that are sums of matrices times vectors, or ReLU of one.

What a network computes between two activations is affine, however many layers it takes. Here
every value is a flat vector of one example, in the order of its framework. Matrices and offsets
are float64 (complex128 for complex networks): products are rounded there, and once more when they
become the weights of an FC layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.errors import UnsupportedLayer

_REMEDY = (
    "use convfc.unroll, which keeps every layer and unrolls the convolutions only, or simplify the "
    "parts before and after it"
)
_DENSE = 2**26  # entries: half a gigabyte

Matrix: TypeAlias = Any  # a scipy.sparse.csr_array
Vector: TypeAlias = npt.NDArray[Any]


@dataclass(eq=False)
class Value:
    """A vector of the network, for one example; two values are equal if they are one object."""

    size: int
    nonnegative: bool = field(default=False, kw_only=True)  # whether it is known to be


@dataclass(eq=False)
class Input(Value):
    """The input of the network."""


@dataclass(eq=False)
class Affine(Value):
    """The sum over j of A_j x_j, plus an offset; ``terms`` has the A_j by their x_j."""

    terms: Mapping[Value, Matrix]
    offset: Vector
    of_layer: bool = False  # of the original network, with weights
    # The sum of the absolute values that the offset is computed from: more than |offset| where the
    # original network adds and subtracts again, as a BatchNorm does.
    offset_bound: Vector = None  # type: ignore[assignment]
    roundings: int = 0  # more than a sum of products has: of the original layer's other steps

    def __post_init__(self) -> None:
        if self.offset_bound is None:
            self.offset_bound = np.abs(self.offset)


@dataclass(eq=False)
class Relu(Value):
    """The ReLU of a value."""

    source: Value


@dataclass(eq=False)
class Opaque(Value):
    """Modules that are neither affine nor ReLU: they stay, in a sequence on the flat vector."""

    source: Value
    modules: tuple[Any, ...]  # the framework's
    name: str  # the place in the original network


@dataclass(frozen=True, eq=False)
class Tracked:
    """A value of the network, and the shape that one example's tensor has."""

    value: Value
    shape: tuple[int, ...]


@dataclass(eq=False)
class Program:
    """A whole network as values; the shapes are those of one example."""

    input: Input
    output: Value
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    places: Mapping[Value, str] = field(default_factory=dict)  # in the original network
    tensors: Mapping[Value, int] = field(default_factory=dict)  # their numbers in its trace
    signature: tuple[Any, ...] = ()  # of its trace


def refuse(what: str, where: str, remedy: str = _REMEDY) -> UnsupportedLayer:
    """Return the error for something that a plain MLP does not compute, or is not known to."""
    return UnsupportedLayer(f"{what}; it cannot be simplified", where=where, remedy=remedy)


class Operations(dict[Any, Callable[..., Any]]):
    """What each operation of a framework does to values: functions, by its names or classes."""

    def register(self, *keys: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function for these operations."""

        def enter(operation: Callable[..., Any]) -> Callable[..., Any]:
            self.update(dict.fromkeys(keys, operation))
            return operation

        return enter


def check_as_made(differences: Iterator[str]) -> None:
    """Raise for the first difference, in words, of a network from what it was simplified to."""
    different = next(differences, None)
    if different is not None:
        place, _, found = different.partition("; ")
        raise UnsupportedLayer(
            f"this is not as convfc.simplify made it; {found}",
            where=place,
            remedy="let tools change the layers that convfc.to_fc makes, which go back with any "
            "numbers, and simplify after that",
        )


def affine(
    terms: Mapping[Value, Matrix],
    offset: Vector,
    *,
    nonnegative: bool | None = None,
    of_layer: bool = False,
    **rest: Any,
) -> Value:
    """Return the affine value, or the one value in ``terms`` if nothing is done to it.

    Whether it can be negative follows from the numbers, unless it is given or they are a layer's:
    what is made of a network must not depend on the numbers that it has learnt.
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
    """Return the ReLU of a value, or the value itself if it has no negative element."""
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
    """Return the product of two matrices, sparse or dense, whichever is faster."""
    if is_identity(left):
        return right
    if is_identity(right):
        return left
    (rows, inner), columns = left.shape, right.shape[1]
    products = int(np.diff(right.indptr)[left.indices].sum())
    small = max(rows * inner, inner * columns, rows * columns) <= _DENSE
    # A product in the sparse loop takes about as long as thirty in the dense one.
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
    """Return every value that an output needs, each after its sources; none before a stop."""
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


def is_chain(program: Program) -> bool:
    """Say whether a program is one sequence: each value but the input is made of one other."""
    order = topological(program.output)
    return all(value is program.input or len(sources(value)) == 1 for value in order)


def users_of(output: Value) -> dict[Value, list[Value]]:
    """Return, for each value, the values that are made of it."""
    users: dict[Value, list[Value]] = {value: [] for value in topological(output)}
    for value in users:
        for source in sources(value):
            users[source].append(value)
    return users
