"""Where the entries are, which weights they hold, and that it costs no more than it must."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, case
from designs import ORDERS, both, matrix_of
from hypothesis import given
from libraries import traced_peak
from strategies import seeds

from convfc import ConvGeometry
from convfc.errors import ShapeError
from convfc.operators import pattern as pattern_module
from convfc.operators.pattern import MatrixPattern, matrix_pattern


def of(subject: Case, order: Any = "channels_last") -> MatrixPattern:
    return matrix_pattern(subject.geometry, subject.input_size, order)


@given(both, seeds)
def test_fold_is_the_adjoint_of_values(subject: Case, seed: int):
    """And so are its halves, `totals` and `spread`; the blocks cover every entry once."""
    _, filters, _ = subject.integers(seed)
    for order in ORDERS:
        pattern = of(subject, order)
        entries = np.random.default_rng(seed).integers(-9, 10, pattern.nonzeros)
        folded, sums = pattern.fold(entries), pattern.sums(filters)
        assert folded.shape == filters.shape
        assert sums.shape == pattern.sums_shape
        product = np.vdot(pattern.values(filters), entries)
        assert product == np.vdot(filters, folded) == np.vdot(sums, pattern.totals(entries))
        visits = np.zeros(pattern.nonzeros, dtype=int)
        for block in pattern.blocks():
            block.view(visits)[...] += 1
        assert np.all(visits == 1)


@pytest.mark.parametrize(
    ("subject", "most"),
    [
        (case((64, 64), (3, 3), padding=1), 9),  # two edges and the inside, on each axis
        (case((64, 64), (3, 3), padding=1, padding_mode="circular"), 9),
        (case((64, 64), (3, 3), padding=1, padding_mode="reflect"), 9),
        (case((64, 64), (3, 3), padding=1, stride=2), 4),
        (case((64, 64), (3, 3), transposed=True, stride=2, padding=1, output_padding=1), 9),
        (case((64, 64), (1, 1)), 1),
    ],
    ids=str,
)
def test_positions_are_visited_in_few_blocks(subject: Case, most: int):
    assert len(list(of(subject).blocks())) <= most


def test_indices_are_int64_where_int32_would_not_do(monkeypatch: pytest.MonkeyPatch):
    subject = CASES[6]
    _, filters, _ = subject.integers()
    narrow = matrix_of(filters, subject, "channels_last")
    assert narrow.indices.dtype == narrow.indptr.dtype == np.int32
    for largest in (narrow.nnz, narrow.nnz - 1):
        monkeypatch.setattr(pattern_module, "_LARGEST_INT32", largest)
        wide = matrix_of(filters, subject, "channels_last")
        expected = np.int32 if largest == narrow.nnz else np.int64
        assert wide.indices.dtype == wide.indptr.dtype == expected
        assert np.array_equal(wide.toarray(), narrow.toarray())


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (ConvGeometry(2**16, 2**16, (1,)), (2**15,)),  # too many entries
        (ConvGeometry(1, 2**16, (1,), padding=2**15), (1,)),  # too many rows
        (ConvGeometry(2**16, 1, (1,), stride=2**15), (2**15,)),  # too many columns
    ],
    ids=["entries", "rows", "columns"],
)
def test_the_switch_to_int64_looks_at_entries_rows_and_columns(
    geometry: ConvGeometry, size: tuple[int]
):
    pattern = matrix_pattern(geometry, size, "channels_first")
    assert pattern.index_dtype == np.int64
    assert max(pattern.nonzeros, *pattern.shape) >= 2**31


@pytest.mark.parametrize(
    ("subject", "order"),
    [
        (case((20, 20), (3, 3), c=16, f=16, padding=1), "channels_first"),
        (case((40, 40), (3, 3), c=16, f=16, padding=1, groups=16), "channels_last"),
        (case((100, 100), (3, 3), c=1, f=1, padding=1, padding_mode="reflect"), "channels_last"),
        (case((100, 100), (2, 2), c=1, f=2, transposed=True, stride=2), "channels_first"),
    ],
    ids=str,
)
def test_the_peak_of_memory_is_under_one_and_a_half_results(subject: Case, order: str):
    _, filters, _ = subject.integers(dtype=np.float32)
    matrix_of(filters, subject, order)  # what is cached is not a part of it
    A, peak = traced_peak(lambda: matrix_of(filters, subject, order))
    result = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    assert result <= peak < 1.5 * result


def test_arrays_of_the_wrong_shape_are_refused():
    pattern = of(CASES[6])
    with pytest.raises(ShapeError, match=r"filters: wrong size.*\(f, \*kernel, c/groups\)"):
        pattern.values(np.ones((3, 3, 3, 4)))
    with pytest.raises(ShapeError, match=r"values: wrong size.*one value per stored entry"):
        pattern.fold(np.ones(pattern.nonzeros + 1))


def test_fold_widens_as_numpy_sums_do():
    pattern = of(case((300,), (1,), c=1, f=1))
    assert pattern.fold(np.ones(300, np.int8)).item() == 300
    assert pattern.fold(np.ones(300, bool)).item() == 300
    assert pattern.fold(np.ones(300, np.float32)).dtype == np.float32
