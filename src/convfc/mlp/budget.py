"""Whether the FC layers of a program fit into memory, told before any of them is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from convfc.errors import MemoryBudgetError
from convfc.mlp.values import Affine, Program, Value, is_identity, sources, topological
from convfc.operators.estimate import MatrixEstimate, check_fits, check_together

_REMEDY = (
    "a smaller example; a part of the network only; or convfc.unroll with where= for some layers "
    "(the bytes are those of all FC layers together, the sizes those of the largest)"
)


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Say what was being done when the memory runs out, where no check has foreseen it."""
    try:
        yield
    except MemoryError as error:
        if isinstance(error, MemoryBudgetError):
            raise
        raise MemoryBudgetError(
            "the memory ran out while matrices of layers were made and multiplied",
            where="memory",
            got=str(error) or None,
            remedy="a smaller example, or a part of the network only",
        ) from error


def check_memory(program: Program, itemsize: int, memory: float | None) -> None:
    """Refuse weights that do not fit into memory, before the first of them is made."""
    largest, total, nonzeros = (0, 0), 0, 0
    for value in topological(program.output):
        for matrix in value.terms.values() if isinstance(value, Affine) else ():
            if not is_identity(matrix):
                largest = max(largest, matrix.shape, key=np.prod)
                nonzeros += matrix.nnz
                total += itemsize * int(np.prod(matrix.shape))
    if total:
        check_fits(MatrixEstimate(largest, nonzeros, total), memory, _REMEDY)


def check_least(program: Program, itemsize: int, memory: float | None) -> None:
    """Refuse weights whose least size does not fit, before anything is multiplied.

    The input of an activation is never multiplied away, and its matrix has at least as many columns
    as the narrowest of the affine values that it may be multiplied with.
    """
    least: dict[Value, int] = {}
    mixing: set[Value] = set()  # no mere permutations, which another one may undo
    estimates: dict[str, MatrixEstimate] = {}
    order = topological(program.output)
    for value in order:
        if isinstance(value, Affine) and value.terms:
            least[value] = min(min(s.size, least.get(s, s.size)) for s in value.terms)
            if not mixing.isdisjoint(value.terms) or any(
                matrix.nnz > value.size for matrix in value.terms.values()
            ):
                mixing.add(value)
    kept = dict.fromkeys(s for v in order if not isinstance(v, Affine) for s in sources(v))
    for value in [*kept, program.output]:
        if value in mixing:
            entries = value.size * least[value]
            name = program.places.get(value, "max-pooling")
            name += f" ({len(estimates)})" * (name in estimates)
            shape = (value.size, least[value])
            estimates[name] = MatrixEstimate(shape, entries, itemsize * entries)
    what = "the FC layers, with at least as many numbers as these,"
    check_together(estimates, memory, what=what, remedy=_REMEDY)
