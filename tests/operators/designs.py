"""What the tests of matrices share: where the oracle says that each weight stands, in loops."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import oracle
from hypothesis import strategies as st
from strategies import cases

from convfc.operators.matrix import conv_matrix
from convfc.operators.nearest import nearest_conv

if TYPE_CHECKING:
    from cases import Case

ORDERS = ("channels_first", "channels_last")
U = 2.0**-53

orders = st.sampled_from(ORDERS)
# In a padding that repeats elements a window may read one twice: half of the cases are such.
both = st.one_of(
    cases(), cases(modes=("reflect", "replicate", "circular"), transposed=False, max_ndim=3)
)


def flat(images: np.ndarray, order: str) -> np.ndarray:
    """Images ``(b, *spatial, c)`` as columns, each as `order` flattens it."""
    images = np.moveaxis(images, -1, 1) if order == "channels_first" else images
    return images.reshape(len(images), -1).T


def _numbers(channels: int, size: tuple[int, ...], order: str) -> np.ndarray:
    """The row, or column, of each element ``(*spatial, c)``."""
    numbers = np.arange(channels * prod(size))
    if order == "channels_last":
        return numbers.reshape(*size, channels)
    return np.moveaxis(numbers.reshape(channels, *size), 0, -1)


def places(subject: Case, order: str) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """The shape of the matrix, and row, column and number of each weight in each window."""
    g, size = subject.geometry, subject.input_size
    outputs = _numbers(g.out_channels, oracle.output_size(g, size), order)
    inputs = _numbers(g.in_channels, size, order)
    taps, found = prod(subject.filters_shape[1:]), []
    table = oracle.readings(g, size)
    for row, reads in zip(outputs.reshape(-1, g.out_channels), table, strict=True):
        for f, number in enumerate(row):
            begin = f * g.groups // g.out_channels * taps
            for tap, element in enumerate(reads[begin : begin + taps]):
                if element is not None:
                    found.append((number, inputs[element], f * taps + tap))
    return (outputs.size, inputs.size), found


def oracle_matrix(subject: Case, filters: np.ndarray, order: str) -> np.ndarray:
    """The matrix, one weight of one output at a time; weights that meet in an entry are summed."""
    shape, found = places(subject, order)
    A = np.zeros(shape, filters.dtype)
    for row, column, weight in found:
        A[row, column] += filters.flat[weight]
    return A


def design(subject: Case, order: str) -> np.ndarray:
    """Every weight as a column of zeros and ones: the least-squares problem of `nearest_conv`."""
    shape, found = places(subject, order)
    columns = np.zeros((*shape, prod(subject.filters_shape)))
    for row, column, weight in found:
        columns[row, column, weight] += 1
    return columns.reshape(prod(shape), -1)


def matrix_of(filters: np.ndarray, subject: Case, order: str, **more: Any) -> Any:
    return conv_matrix(filters, subject.input_size, subject.geometry, order=order, **more)


def nearest(matrix: Any, subject: Case, order: str, **more: Any) -> Any:
    return nearest_conv(matrix, subject.geometry, subject.input_size, order=order, **more)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def adds_up(subject: Case) -> bool:
    """Whether some window reads an element twice."""
    rows = oracle.readings(subject.geometry, subject.input_size)
    read = [[element for element in row if element is not None] for row in rows]
    return any(len(set(row)) < len(row) for row in read)
