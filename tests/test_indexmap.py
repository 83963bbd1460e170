"""Eq. (8): which element each entry of M reads, and every entry that reads an element."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import oracle
import pytest
from cases import FIGURE_6, Case, case
from hypothesis import given
from strategies import cases

from convfc import ConvGeometry, IndexMap, algorithm1, im2col, index_map
from convfc.errors import GeometryError, OutOfRangeError


def mapped(subject: Case) -> IndexMap:
    return index_map(subject.geometry, subject.input_size)


def elements(subject: Case) -> list[tuple[int, ...]]:
    """Every element (*position, channel) of one input."""
    return list(oracle.positions((*subject.input_size, subject.geometry.in_channels)))


@given(cases())
def test_element_flat_and_readers_are_the_oracles(subject: Case):
    """Eq. (8) at every entry, as one array, and read backwards."""
    table = oracle.readings(subject.geometry, subject.input_size)
    where, shape = mapped(subject), (*subject.input_size, subject.geometry.in_channels)
    assert [[where.element(p, q) for q in range(len(row))] for p, row in enumerate(table)] == table
    flat = [
        [-1 if e is None else int(np.ravel_multi_index(e, shape)) for e in row] for row in table
    ]
    assert where.flat().shape == where.shape
    assert where.flat().tolist() == flat
    readers = defaultdict(list)
    for p, row in enumerate(table):
        for q, element in enumerate(row):
            readers[element].append((p, q))
    for element in elements(subject):
        assert where.readers(element) == readers[element]


def test_equation_8_as_meant_on_figure_6():
    """p = W_out i'' + j'', q = (k_w i' + j') C + d, i = s i'' + i', all counted from 0."""
    where = mapped(FIGURE_6)
    for i2, j2, i1, j1 in product(range(7), range(7), range(4), range(4)):
        assert where.element(7 * i2 + j2, 4 * i1 + j1) == (4 * i2 + i1, 4 * j2 + j1, 0)
    assert {len(where.readers(e)) for e in elements(FIGURE_6)} == {1}  # no window overlaps another


def test_a_map_is_cached_and_cannot_be_spoiled_through_what_it_returns():
    geometry = ConvGeometry(2, 2, (2, 2), padding=1)
    flat = index_map(geometry, (3, 3)).flat()
    expected = flat.copy()
    if flat.flags.writeable:
        flat[:] = 0
    assert index_map(geometry, [3, 3]) is index_map(geometry, (3, 3))
    assert np.array_equal(index_map(geometry, (3, 3)).flat(), expected)


@pytest.mark.parametrize("name", ["source", "table", "readers"])
def test_what_the_cached_maps_share_cannot_be_written(name: str):
    axis = index_map(ConvGeometry(1, 1, (2,), padding=1), (3,)).axes[0]
    with pytest.raises(ValueError, match="read-only"):
        getattr(axis, name)[:] = 0


@pytest.mark.parametrize("entry", [(-1, 0), (0, -1), (9, 0), (0, 8)], ids=str)
def test_an_entry_that_m_does_not_have_is_refused(entry):
    where = index_map(ConvGeometry(2, 2, (2, 2), padding=1, groups=2), (2, 2))
    assert where.shape == (9, 8)
    with pytest.raises(
        OutOfRangeError, match=rf"expected 0 <= index < \(9, 8\); got \({entry[0]}, "
    ):
        where.element(*entry)


@pytest.mark.parametrize(
    "element", [(2, 0, 0), (0, -1, 0), (0, 0, 2), (0, 0), (0, 0, 0, 0)], ids=str
)
def test_an_element_that_the_input_does_not_have_is_refused(element):
    where = index_map(ConvGeometry(2, 2, (2, 2), padding=1, groups=2), (2, 2))
    with pytest.raises(OutOfRangeError, match=r"element: .*expected 0 <= index < \(2, 2, 2\)"):
        where.readers(element)


def test_the_cache_does_not_let_a_wrong_size_through():
    geometry = ConvGeometry(1, 1, (3,))
    assert index_map(geometry, (5,)).input_size == (5,)
    with pytest.raises(GeometryError, match=r"input_size\[0\]: .*not an integer.*got 5\.0"):
        index_map(geometry, (5.0,))
    with pytest.raises(GeometryError, match=r"larger than the padded input on axis 0; .*got 3"):
        index_map(geometry, (2,))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_map_alone_says_what_is_read(axis: int, monkeypatch):
    """M follows also a map that is wrong: there is no second definition of a convolution."""
    subject = case((6, 5), (3, 2), stride=(2, 1), padding=1)
    x, right = subject.integers()[0], mapped(subject)
    axes = list(right.axes)
    axes[axis] = replace(axes[axis], source=np.roll(axes[axis].source, 1))
    wrong = replace(right, axes=tuple(axes))
    monkeypatch.setattr(algorithm1, "index_map", lambda *_: wrong)
    read = [np.append(one, 0)[wrong.flat()] for one in x]
    assert np.array_equal(im2col(x, subject.geometry), read)
    assert not np.array_equal(wrong.flat(), right.flat())
