"""Affine maps, found by calling them: on numbered elements, or on the vectors of a basis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.mlp.values import Tracked, Value, affine, refuse

_BLOCK = 2**26  # bytes of basis vectors, or of their images, that are in memory at a time
EACH = "it does not treat each example of a batch by itself"
DIFFERENT = "constants that differ from example to example"

Numbers: TypeAlias = npt.NDArray[Any]


def moved(
    call: Callable[[list[Numbers]], Sequence[Numbers]], inputs: Sequence[Tracked], where: str
) -> list[Tracked]:
    """Return what a call that only moves numbers, or adds constants to them, makes of values."""
    total = sum(one.value.size for one in inputs)
    given, first = [], 1
    for one in inputs:
        index = np.arange(first, first + one.value.size, dtype=np.float64)
        given.append(np.stack([index, index + total]).reshape(2, *one.shape))
        first += one.value.size
    made = []
    offsets, results = call([np.zeros_like(x) for x in given]), call(given)
    for offset, result in zip(offsets, results, strict=True):
        index = result - offset
        if index.shape[:1] != (2,):
            raise refuse(EACH, where)
        row, other = index
        if not np.array_equal(other, np.where(row > 0, row + total, 0.0)):
            raise refuse(EACH, where)
        number = row.ravel().astype(np.int64) - 1
        made.append(Tracked(_selected(inputs, number, offset[0].ravel()), row.shape))
    return made


def _selected(inputs: Sequence[Tracked], number: Numbers, offset: Numbers) -> Value:
    """Return the value with these elements of the inputs, none where the number is -1."""
    terms: dict[Value, Any] = {}
    first = 0
    for one in inputs:
        n = one.value.size
        rows = np.flatnonzero((number >= first) & (number < first + n))
        if len(rows):
            entries = (np.ones(len(rows)), (rows, number[rows] - first))
            matrix = sparse.csr_array(entries, shape=(len(number), n))
            terms[one.value] = terms[one.value] + matrix if one.value in terms else matrix
        first += n
    return affine(terms, offset)


def probed(
    call: Callable[[Numbers], Numbers],
    x: Tracked,
    where: str,
    *,
    channels: int | None = None,
) -> Tracked:
    """Return what an affine call makes of a value.

    With the axis of ``channels``, the first or the last, of one channel, if all are alike.
    """
    shape = x.shape
    if channels is not None:
        shape = (1, *shape[1:]) if channels == 0 else (*shape[:-1], 1)
    zero = call(np.zeros((2, *shape)))
    ramp = np.arange(2.0 * math.prod(shape)).reshape(2, *shape)
    if zero.shape[:1] != (2,) or not np.array_equal(call(ramp)[:1], call(ramp[[0, 0]])[:1]):
        raise refuse(EACH, where)
    n, rows = math.prod(shape), zero[0].size
    width = max(1, _BLOCK // (8 * max(n, rows, 1)))
    blocks = []
    for first in range(0, n, width):
        basis = np.eye(min(width, n - first), n, first)
        # Three examples or more: a constant with a part for each of two does not fit them.
        given = np.concatenate([basis, np.zeros((2, n))]).reshape(-1, *shape)
        try:
            image = call(given)[: len(basis)] - zero[:1]
        except (RuntimeError, TypeError, ValueError) as error:  # it has run on two
            raise refuse(
                f"{DIFFERENT}, or may: a constant has a part for each example", where
            ) from error
        blocks.append(sparse.csr_array(image.reshape(len(basis), -1)))
    matrix = sparse.csr_array(sparse.vstack(blocks).T)
    offset, out = zero[0].ravel(), zero.shape[1:]
    if channels is not None:
        count = x.shape[channels]
        eye = sparse.eye_array(count)
        pair = (eye, matrix) if channels == 0 else (matrix, eye)
        matrix = sparse.kron(*pair, format="csr")
        offset = np.tile(offset, count) if channels == 0 else np.repeat(offset, count)
        out = (count, *out[1:]) if channels == 0 else (*out[:-1], count)
    return Tracked(affine({x.value: matrix}, offset, roundings=2), out)
