"""The way back: a convolution's own filters bit for bit, any other matrix to the closest one."""

from __future__ import annotations

import tracemalloc
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from cases import CASES, UNREAD, Case, case
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse
from strategies import cases, seeds

from convfc import ConvGeometry
from convfc.errors import DtypeError, NotAConvolution, ShapeError
from convfc.operators.matrix import conv_matrix
from convfc.operators.nearest import nearest_conv
from convfc.rounding import gamma

ORDERS = ("channels_first", "channels_last")
orders = st.sampled_from(ORDERS)
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


# True convolutions


@given(cases(max_ndim=3), seeds, orders)
def test_a_convolution_comes_back(subject: Case, seed: int, order: str):
    """What the matrix determines exactly, the rest as the weights of least norm."""
    _, filters, _ = subject.integers(seed)
    columns = design(subject, order)
    A = matrix_of(filters, subject, order)
    found, distance = nearest(A, subject, order)
    weights = found.ravel()
    assert found.shape == filters.shape
    _, singular, right = np.linalg.svd(columns.T @ columns)
    rank = np.count_nonzero(singular > 1e-9)
    free = right[rank:]  # what the matrix does not see
    # The part of the weights that is seen, to the accuracy of LAPACK's basis of it.
    seen = filters.ravel() - free.T @ (free @ filters.ravel())
    assert np.abs(weights - seen).max() <= 1e3 * columns.shape[1] * U * max(np.abs(seen).max(), 1)
    if rank == columns.shape[1]:
        assert np.array_equal(found, filters)
        assert found.dtype == filters.dtype
        assert distance == 0.0
    assert distance == np.linalg.norm((A - matrix_of(found, subject, order)).toarray())
    assert distance <= 1e3 * U * max(abs(A).sum(), 1)


def adds_up(subject: Case) -> bool:
    """Whether some window reads an element twice."""
    rows = oracle.readings(subject.geometry, subject.input_size)
    read = [[element for element in row if element is not None] for row in rows]
    return any(len(set(row)) < len(row) for row in read)


FLOATS = ["float16", "float32", "float64", "complex64"]
WHOLE = ["int8", "uint64", "bool"]
# Sums of narrow integers wrap: such a matrix has other weights.
ALONE = [(c, dtype) for c in CASES for dtype in (FLOATS if adds_up(c) else FLOATS + WHOLE)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("subject", "dtype"), ALONE, ids=str)
def test_weights_that_stand_alone_come_back_bit_for_bit(subject: Case, dtype: str, order: str):
    _, filters, _ = subject.reals()
    filters = (filters > 0 if dtype == "bool" else 50 * filters).astype(dtype)
    columns = design(subject, "channels_last")
    # Which of them the oracle finds alone in some entry.
    alone = columns[columns.sum(axis=1) == 1].any(axis=0).reshape(filters.shape)
    A = matrix_of(filters, subject, order, layout="dense").astype(dtype)
    found, distance = nearest(A, subject, order)
    assert found.dtype == dtype
    assert bits(found[alone]) == bits(filters[alone])
    if adds_up(subject):
        unit = float(np.finfo(dtype).eps)
        assert distance <= gamma(20, unit) * np.linalg.norm(A.astype(complex))
    else:
        assert not np.any(found[~alone])
        assert distance == 0.0


def test_weights_that_are_not_numbers_come_back_too():
    subject = case((6, 5), (3, 2), stride=(2, 1))
    filters = subject.reals()[1]
    filters.flat[:5] = np.nan, np.inf, -np.inf, -0.0, 0.0
    for order in ORDERS:
        found, distance = nearest(matrix_of(filters, subject, order), subject, order)
        assert np.array_equal(found, filters, equal_nan=True)
        assert np.array_equal(np.signbit(found), np.signbit(filters))
        assert distance == 0.0


def test_a_tap_that_is_never_read_has_weight_zero():
    filters = np.arange(1, 1 + prod(UNREAD.filters_shape)).reshape(UNREAD.filters_shape)
    found, distance = nearest(matrix_of(filters, UNREAD, "channels_last"), UNREAD, "channels_last")
    assert found.shape == filters.shape
    assert found.dtype == filters.dtype
    assert not np.any(found)
    assert distance == 0.0


REPLICATE = case((2,), (3,), c=1, f=1, padding=1, padding_mode="replicate")
CIRCULAR = case((2,), (3,), c=1, f=1, padding=1, padding_mode="circular")
ONE = case((1,), (4,), c=1, f=1, padding=((2, 1),), padding_mode="replicate")


def test_weights_hidden_in_sums_are_found_by_subtraction():
    """Entries w0 + w1, w2, w0, w1 + w2: no entry holds the middle weight alone."""
    matrix = np.array([[3 + 5, 7], [3, 5 + 7]])
    found, distance = nearest(matrix, REPLICATE, "channels_last")
    assert found.ravel().tolist() == [3, 5, 7]
    assert (found.dtype, distance) == (matrix.dtype, 0.0)


def test_where_only_sums_are_determined_their_shares_are_equal():
    """The shortest weights with given sums of disjoint sets."""
    found, distance = nearest(np.array([[5, 6], [6, 5]]), CIRCULAR, "channels_last")
    assert np.abs(found.ravel() - [3, 5, 3]).max() <= 100 * U
    assert found.dtype == np.float64
    assert distance <= 100 * U
    found, distance = nearest(np.array([[10.0]]), ONE, "channels_last")
    assert np.abs(found.ravel() - 2.5).max() <= 100 * U
    assert distance <= 100 * U


def test_sums_that_differ_by_rounding_alone_are_the_same_sum():
    """Another program may add the weights of an entry in another order."""
    subject = case((3,), (6,), c=1, f=1, padding=((3, 3),), padding_mode="circular")
    rng = np.random.default_rng(0)
    filters = rng.standard_normal(subject.filters_shape)
    A = matrix_of(filters, subject, "channels_last", layout="dense")
    other = np.nextafter(A, np.inf)
    other[::2] = A[::2]
    found, distance = nearest(other, subject, "channels_last")
    assert 0 < distance <= 10 * U * np.linalg.norm(A)
    assert np.linalg.norm(
        A - matrix_of(found, subject, "channels_last")
    ) <= 20 * U * np.linalg.norm(A)
    other[1, 0] += 100 * U * np.abs(A).max()
    with pytest.raises(NotAConvolution, match=r"matrix\[1, 0\]"):
        nearest(other, subject, "channels_last")


# Every kind of matrix


KINDS = {
    "dense": lambda A: A.toarray(),
    "fortran": lambda A: np.asfortranarray(A.toarray()),
    "list": lambda A: A.toarray().tolist(),
    "csr_array": lambda A: A,
    "csr_matrix": sparse.csr_matrix,
    "csc_array": sparse.csc_array,
    "coo_array": sparse.coo_array,
    "bsr_array": sparse.bsr_array,
    "dok_array": sparse.dok_array,
    "lil_array": sparse.lil_array,
    "dia_array": sparse.dia_array,
    "jax": lambda A: jnp.asarray(A.toarray().astype(np.int32)),
    "torch": lambda A: torch.from_numpy(A.toarray()).requires_grad_(False),
    "torch csr": lambda A: torch.sparse_csr_tensor(
        *(torch.from_numpy(a) for a in (A.indptr, A.indices, A.data)),
        size=A.shape,
        check_invariants=True,
    ),
    "torch coo": lambda A: torch.from_numpy(A.toarray()).to_sparse(),
    "torch csc": lambda A: torch.from_numpy(A.toarray()).to_sparse_csc(),
}


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix with")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_kind_of_matrix(kind: str, order: str):
    subject = case((5, 6), (3, 3), c=4, f=6, groups=2, padding=1, padding_mode="reflect")
    filters = subject.integers()[1]
    filters[0] = 0
    A = matrix_of(filters, subject, order)
    matrix = KINDS[kind](A)
    found, distance = nearest(matrix, subject, order)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, filters)
    assert distance == 0.0


@pytest.mark.parametrize("order", ORDERS)
def test_a_matrix_that_is_not_canonical_is_read_and_left_as_it_is(order: str):
    """Columns in any order, duplicates that add up, and only some of the zeros are stored."""
    subject = case((5, 4), (3, 2), padding=((1, 0), (0, 1)))
    filters = subject.integers()[1]
    filters[1, 1] = 0
    A = sparse.coo_array(matrix_of(filters, subject, order))
    rng = np.random.default_rng(0)
    keep = A.data != 0
    again = rng.permutation(2 * keep.sum())
    parts = [np.concatenate([a[keep], a[keep]])[again] for a in A.coords]
    halves = np.concatenate([A.data[keep] - 1, np.ones(keep.sum(), int)])[again]
    ends = np.concatenate([[0], np.cumsum(np.bincount(parts[0], minlength=A.shape[0]))])
    by_row = np.argsort(parts[0], kind="stable")
    messy = sparse.csr_array((halves[by_row], parts[1][by_row], ends), shape=A.shape)
    assert not messy.has_canonical_format
    before = messy.data.copy(), messy.indices.copy(), messy.nnz
    found, distance = nearest(messy, subject, order)
    assert np.array_equal(found, filters)
    assert distance == 0.0
    assert np.array_equal(messy.data, before[0])
    assert np.array_equal(messy.indices, before[1])
    assert messy.nnz == before[2]


# What is no convolution


@given(cases(max_ndim=3), seeds, orders, st.booleans())
def test_the_entry_that_breaks_the_pattern_is_named(
    subject: Case, seed: int, order: str, as_sparse: bool
):
    _, filters, _ = subject.integers(seed)
    columns = design(subject, order)
    entries = columns.sum(axis=1).reshape(matrix_of(filters, subject, order).shape)
    assume(entries.max(initial=0) <= 1)  # sums of weights may hide a change
    of_tap = columns.sum(axis=0)
    A = matrix_of(filters, subject, order, layout="dense")
    rng = np.random.default_rng(seed)
    row, column = (int(rng.integers(n)) for n in A.shape)
    weight = columns.reshape(*A.shape, -1)[row, column]
    assume(not entries[row, column] or of_tap[weight.argmax()] > 2)  # of two, either may be wrong
    expected = A[row, column].item()
    A[row, column] += 100
    where = rf"matrix\[{row}, {column}\]: .* expected {expected}, .* got {expected + 100}\."
    with pytest.raises(NotAConvolution, match=where):
        nearest(sparse.csr_array(A) if as_sparse else A, subject, order)


def test_the_message_says_what_is_there_what_should_be_and_what_to_do():
    subject = case((4, 5), (2, 3), c=2, f=3)
    filters = subject.integers()[1].astype(np.float32)
    A = matrix_of(filters, subject, "channels_first", layout="dense")
    position, f, read, channel = (1, 2), 2, (2, 3), 1  # tap (1, 1)
    row = int(np.ravel_multi_index((f, *position), (3, 3, 3)))
    column = int(np.ravel_multi_index((channel, *read), (2, 4, 5)))
    weight = filters[2, 1, 1, 1]
    assert A[row, column] == weight
    A[row, column] = 0.1
    with pytest.raises(NotAConvolution) as caught:
        nearest(A, subject, "channels_first")
    assert str(caught.value) == (
        f"matrix[{row}, {column}]: output position (1, 2), filter 2 <- input position (2, 3), "
        f"channel 1 is not that of a convolution; expected {weight}, as its tap has elsewhere; "
        "got 0.1. Remedy: check geometry, input size and order; project=True gives the closest "
        "convolution"
    )
    A[row, column] = weight
    A[row, 0] = 7
    with pytest.raises(NotAConvolution, match=r"0, since no tap reads there; got 7\.0\. Remedy"):
        nearest(A, subject, "channels_first")


def test_the_first_of_several_is_named_row_by_row():
    subject = case((6,), (2,), c=1, f=1)
    A = np.array(matrix_of(subject.integers()[1], subject, "channels_last", layout="dense"))
    A[3, 0] = A[2, 5] = 9
    A[2, 3] += 1
    with pytest.raises(NotAConvolution, match=r"matrix\[2, 3\]"):
        nearest(A, subject, "channels_last")
    A[2, 3] -= 1
    with pytest.raises(NotAConvolution, match=r"matrix\[2, 5\]"):
        nearest(A, subject, "channels_last")
    A[0, 0] += 1  # the very first entry of its tap
    with pytest.raises(NotAConvolution, match=r"matrix\[0, 0\]"):
        nearest(A, subject, "channels_last")


def test_the_order_of_axes_matters():
    subject = case((3, 4), (2, 2))
    A = matrix_of(subject.integers()[1], subject, "channels_first")
    with pytest.raises(NotAConvolution, match="check geometry, input size and order"):
        nearest(A, subject, "channels_last")


def test_matrices_that_do_not_fit_or_hold_no_numbers_are_refused():
    geometry = ConvGeometry(1, 1, (2,))
    with pytest.raises(ShapeError, match=r"matrix: wrong size; expected \(2, 3\); got \(3, 2\)"):
        nearest_conv(np.zeros((3, 2)), geometry, (3,))
    with pytest.raises(ShapeError, match=r"matrix: wrong rank"):
        nearest_conv(np.zeros(6), geometry, (3,))
    with pytest.raises(ShapeError, match=r"matrix: wrong size"):
        nearest_conv(sparse.eye_array(3).tocsr(), geometry, (3,))
    with pytest.raises(DtypeError, match="matrix: NumPy has no such dtype"):
        nearest_conv(np.full((2, 3), None), geometry, (3,))
    with pytest.raises(DtypeError, match="matrix: NumPy has no such dtype"):
        nearest_conv(torch.zeros(2, 3, dtype=torch.bfloat16), geometry, (3,))


# The projection


@given(cases(max_ndim=2), seeds, orders, st.booleans())
def test_the_projection_is_the_least_squares_solution(
    subject: Case, seed: int, order: str, as_sparse: bool
):
    columns = design(subject, order)
    shape = matrix_of(subject.integers()[1], subject, order).shape
    assume(columns.size < 2_000_000)
    matrix = np.random.default_rng(seed).standard_normal(shape)
    given_ = sparse.csr_array(matrix) if as_sparse else matrix
    filters, distance = nearest(given_, subject, order, project=True)
    solution = np.linalg.lstsq(columns, matrix.ravel(), rcond=None)[0]
    norm = np.linalg.norm(matrix)
    # Both solve the same normal equations, whose condition is small: rounding of n terms.
    singular = np.linalg.svd(columns, compute_uv=False)
    condition = singular[0] / singular[singular > 1e-9][-1] if singular.any() else 1.0
    bound = 100 * gamma(len(columns), U) * condition**2 * norm
    assert np.abs(filters.ravel() - solution).max() <= bound
    residual = matrix.ravel() - columns @ filters.ravel()
    assert abs(distance - np.linalg.norm(residual)) <= bound
    # Orthogonal to every convolution, and of all of them none is closer.
    assert np.abs(columns.T @ residual).max() <= bound * singular[0]
    # Projected again it stays.
    closest = matrix_of(filters, subject, order)
    again, apart = nearest(closest, subject, order)
    assert np.abs(again - filters).max() <= bound
    assert apart <= bound
    if columns.sum(axis=1).max(initial=0) <= 1:
        assert bits(again) == bits(filters)
        assert apart == 0.0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "complex64", "bool"])
def test_means_of_every_dtype(dtype: str, order: str):
    subject = case((5, 4), (3, 2), c=2, f=2, padding=1)
    shape = matrix_of(subject.integers()[1], subject, order).shape
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 2, shape).astype(dtype)
    if dtype == "complex64":
        matrix += 1j * rng.integers(0, 3, shape)
    filters, distance = nearest(matrix, subject, order, project=True)
    columns = design(subject, order)
    wide = matrix.ravel().astype(complex if dtype == "complex64" else float)
    means = columns.T @ wide / columns.sum(axis=0)
    assert filters.dtype == (dtype if dtype in ("float32", "complex64") else np.float64)
    unit = np.finfo(filters.dtype).eps
    assert np.abs(filters.ravel() - means).max() <= 4 * unit * np.abs(means).max()
    residual = np.linalg.norm(wide - columns @ filters.ravel())
    assert abs(distance - residual) <= gamma(matrix.size, U) * residual


def test_what_is_outside_the_pattern_counts_in_full():
    subject = case((6,), (2,), c=1, f=1)
    filters = np.array([3.0, 4.0]).reshape(1, 2, 1)
    A = matrix_of(filters, subject, "channels_last", layout="dense")
    A[0, 4], A[4, 0] = 12, 5
    found, distance = nearest(A, subject, "channels_last", project=True)
    assert np.array_equal(found, filters)
    assert distance == 13.0


def test_equal_entries_keep_their_value_beside_a_broken_one():
    """The mean of equal numbers is that number, to the last bit."""
    subject = case((50,), (3,), c=1, f=2)
    filters = subject.reals()[1]
    A = matrix_of(filters, subject, "channels_last", layout="dense")
    A[7, 40] = 1
    found, distance = nearest(A, subject, "channels_last", project=True)
    assert bits(found) == bits(filters)
    assert distance == 1.0


# Size


@pytest.mark.parametrize("order", ORDERS)
def test_a_large_sparse_matrix_is_read_where_it_is(order: str):
    subject = case((28, 28), (3, 3), c=24, f=24, padding=1)
    filters = subject.reals(dtype=np.float32)[1]
    A = matrix_of(filters, subject, order)
    assert A.nnz > 3.5e6
    nearest(A, subject, order)  # warm
    tracemalloc.start()
    try:
        found, distance = nearest(A, subject, order)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bits(found) == bits(filters)
    assert distance == 0.0
    assert peak < 1.2 * (A.data.nbytes + A.indices.nbytes + A.indptr.nbytes)
