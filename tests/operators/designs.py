"""What the tests of the way back share: the matrices of a case, and its design matrix in loops."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import oracle

from convfc.operators.matrix import conv_matrix
from convfc.operators.nearest import nearest_conv

if TYPE_CHECKING:
    from cases import Case

ORDERS = ("channels_first", "channels_last")
U = 2.0**-53


def columns_of(order: str, row: tuple[int, ...], channel: int, size: tuple[int, ...]) -> int:
    shape = (channel, *size) if order == "channels_first" else (*size, channel)
    index = (row[-1], *row[:-1]) if order == "channels_first" else row
    return int(np.ravel_multi_index(index, shape))


def design(subject: Case, order: str) -> np.ndarray:
    """Every weight as a column: where the oracle says that its entries are."""
    g, size = subject.geometry, subject.input_size
    output = oracle.output_size(g, size)
    table = oracle.readings(g, size)
    per_group, taps = g.out_channels // g.groups, prod(subject.filters_shape[1:])
    shape = (prod(output) * g.out_channels, prod(size) * g.in_channels)
    columns = np.zeros((*shape, g.out_channels, taps))
    for position, row in zip(oracle.positions(output), table, strict=True):
        for f in range(g.out_channels):
            for tap in range(taps):
                element = row[f // per_group * taps + tap]
                if element is not None:
                    at = columns_of(order, (*position, f), g.out_channels, output)
                    columns[at, columns_of(order, element, g.in_channels, size), f, tap] += 1
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
