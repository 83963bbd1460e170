"""Where the entries are, which weights they hold, and that it costs no more than it must."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import oracle
import pytest
from cases import CASES, Case, case
from hypothesis import given
from strategies import cases, seeds

from convfc import ConvGeometry
from convfc.errors import ArgumentError, ShapeError
from convfc.operators import pattern as pattern_module
from convfc.operators.matrix import conv_matrix
from convfc.operators.pattern import MatrixPattern, matrix_pattern

ORDERS = ("channels_first", "channels_last")
REPEATING = ("reflect", "replicate", "circular")  # a window may read an element twice


def of(subject: Case, order: Any = "channels_last") -> MatrixPattern:
    return matrix_pattern(subject.geometry, subject.input_size, order)


def check_adjoint(subject: Case, seed: int) -> None:
    _, filters, _ = subject.integers(seed)
    for order in ORDERS:
        pattern = of(subject, order)
        entries = np.random.default_rng(seed).integers(-9, 10, pattern.nonzeros)
        folded = pattern.fold(entries)
        assert folded.shape == filters.shape
        assert np.vdot(pattern.values(filters), entries) == np.vdot(filters, folded)


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_fold_is_the_adjoint_of_values(subject: Case):
    check_adjoint(subject, seed=1)


@given(cases(), seeds)
def test_fold_is_the_adjoint_of_values_for_every_geometry(subject: Case, seed: int):
    check_adjoint(subject, seed)


@given(cases(modes=REPEATING, transposed=False), seeds)
def test_fold_is_the_adjoint_of_values_where_weights_meet(subject: Case, seed: int):
    check_adjoint(subject, seed)


@given(cases())
def test_an_entry_holds_the_weight_that_it_says(subject: Case):
    if of(subject).repeats:  # then an entry may hold several
        return
    numbers = np.arange(np.prod(subject.filters_shape)).reshape(subject.filters_shape)
    for order in ORDERS:
        pattern = of(subject, order)
        held = pattern.values(numbers)
        counts = np.bincount(held, minlength=numbers.size).reshape(numbers.shape)
        assert np.array_equal(counts, pattern.fold(np.ones(pattern.nonzeros, dtype=int)))
        channel_of = pattern.indices() // np.prod(subject.input_size)
        if order == "channels_last":
            channel_of = pattern.indices() % subject.geometry.in_channels
        per_group = subject.filters_shape[-1]
        assert np.array_equal(held % per_group, channel_of % per_group)


@given(cases(modes=REPEATING, transposed=False))
def test_gram_counts_the_entries_that_two_taps_share(subject: Case):
    for axis in of(subject).axes:
        reads = [set(enumerate(axis.axis.table[:, tap])) for tap in range(axis.axis.taps)]
        expected = [
            [len({(o, i) for o, i in one & other if i >= 0}) for other in reads] for one in reads
        ]
        assert np.array_equal(axis.gram, expected)


@given(cases(max_ndim=2, modes=REPEATING, transposed=False), seeds)
def test_gram_is_fold_after_values(subject: Case, seed: int):
    """The Gram matrix of the taps, on all axes at once, for one filter and channel."""
    pattern = of(subject)
    gram = np.ones((1, 1), dtype=int)
    for axis in pattern.axes:
        gram = np.kron(gram, axis.gram)
    _, filters, _ = subject.integers(seed)
    expected = np.einsum("st,ftc->fsc", gram, filters.reshape(len(filters), len(gram), -1))
    assert np.array_equal(pattern.fold(pattern.values(filters)), expected.reshape(filters.shape))


@pytest.mark.parametrize("subject", CASES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_the_blocks_cover_every_entry_once(subject: Case, order: Any):
    pattern = of(subject, order)
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
    narrow = conv_matrix(filters, subject.input_size, subject.geometry)
    assert narrow.indices.dtype == narrow.indptr.dtype == np.int32
    for largest in (narrow.nnz, narrow.nnz - 1):
        monkeypatch.setattr(pattern_module, "_LARGEST_INT32", largest)
        wide = conv_matrix(filters, subject.input_size, subject.geometry)
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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "subject",
    [
        case((20, 20), (3, 3), c=16, f=16, padding=1),
        case((40, 40), (3, 3), c=16, f=16, padding=1, groups=16),
        case((100, 100), (3, 3), c=1, f=1, padding=1, padding_mode="reflect"),
        case((100, 100), (2, 2), c=1, f=2, transposed=True, stride=2),
    ],
    ids=str,
)
def test_the_peak_of_memory_is_under_one_and_a_half_results(subject: Case, order: Any):
    _, filters, _ = subject.integers(dtype=np.float32)
    arguments = (filters, subject.input_size, subject.geometry)
    conv_matrix(*arguments, order=order)  # what is cached is no part of it
    tracemalloc.start()
    try:
        A = conv_matrix(*arguments, order=order)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    result = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    assert result <= held
    assert peak < 1.5 * result


def test_arrays_of_the_wrong_shape_are_refused():
    pattern = of(CASES[6])
    with pytest.raises(ShapeError, match=r"filters: wrong size.*\(f, \*kernel, c/groups\)"):
        pattern.values(np.ones((3, 3, 3, 4)))
    with pytest.raises(ShapeError, match=r"values: wrong size.*one value per stored entry"):
        pattern.fold(np.ones(pattern.nonzeros + 1))
    with pytest.raises(ArgumentError, match="order: there is no such order"):
        of(CASES[6], "channels_middle")


def test_fold_widens_as_numpy_sums_do():
    pattern = of(case((300,), (1,), c=1, f=1))
    assert pattern.fold(np.ones(300, np.int8)).item() == 300
    assert pattern.fold(np.ones(300, bool)).item() == 300
    assert pattern.fold(np.ones(300, np.float32)).dtype == np.float32


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_rows_are_what_the_oracle_counts(subject: Case):
    readings = oracle.readings(subject.geometry, subject.input_size)
    distinct = [len({element for element in row if element}) for row in readings]
    per_group = np.array(distinct) // subject.geometry.groups
    first, last = (np.diff(of(subject, order).indptr()) for order in ORDERS)
    f = subject.geometry.out_channels
    assert np.array_equal(first, np.tile(per_group, f))
    assert np.array_equal(last, np.repeat(per_group, f))
