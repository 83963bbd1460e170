"""The way back: a convolution's own filters bit for bit, from every kind of matrix."""

from __future__ import annotations

import tracemalloc
from math import prod

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import CASES, UNREAD, Case, case
from designs import ORDERS, U, adds_up, bits, design, matrix_of, nearest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from strategies import cases, seeds

from convfc.errors import NotAConvolution
from convfc.rounding import gamma

orders = st.sampled_from(ORDERS)


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


FLOATS = ["float16", "float32", "float64", "complex64"]
WHOLE = ["int8", "uint64", "bool"]
# Sums of narrow integers wrap: such a matrix has other weights.
ALONE = [(c, dtype) for c in CASES for dtype in (FLOATS if adds_up(c) else FLOATS + WHOLE)]
ALONE = [(*one, order) for one in ALONE for order in ORDERS[: 2 if one[1] == "float32" else 1]]


@pytest.mark.parametrize(("subject", "dtype", "order"), ALONE, ids=str)
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
    if adds_up(subject) and (dtype == "float16" or not alone.all()):
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


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint64", "int8", "float16"])
def test_weights_that_are_differences_may_be_negative(dtype: str):
    found, distance = nearest(np.array([[0, 1], [1, 0]], dtype), REPLICATE, "channels_last")
    assert found.ravel().tolist() == [1, -1, 1]
    assert found.dtype == ("float16" if dtype == "float16" else "int64")
    assert distance == 0.0


def test_where_only_sums_are_determined_their_shares_are_equal():
    """The shortest weights with given sums of disjoint sets."""
    found, distance = nearest(np.array([[5, 6], [6, 5]]), CIRCULAR, "channels_last")
    assert np.abs(found.ravel() - [3, 5, 3]).max() <= 100 * U
    assert found.dtype == np.float64
    assert distance <= 100 * U
    found, distance = nearest(np.array([[10.0]]), ONE, "channels_last")
    assert np.abs(found.ravel() - 2.5).max() <= 100 * U
    assert distance <= 100 * U


def test_what_is_not_determined_leaves_what_is_alone():
    """Of three taps two read the same element, the third another one."""
    subject = case((4,), (3,), c=1, f=1, padding=((1, 0),), padding_mode="reflect", dilation=2)
    found, distance = nearest(np.array([[0, 0, 0, 4]]), subject, "channels_last")
    assert found.ravel().tolist() == [0, 0, 4]
    found, distance = nearest(np.array([[0, 4, 0, 0]]), subject, "channels_last")
    assert found[0, 2, 0] == 0
    assert np.abs(found[0, :2, 0] - 2).max() <= 100 * U
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


def test_a_weight_that_stands_alone_is_to_be_the_same_to_the_last_bit():
    """Rounding excuses sums only, also where a padding makes some."""
    subject = case((8,), (3,), c=1, f=1, padding=1, padding_mode="reflect")
    filters = subject.reals()[1]
    A = matrix_of(filters, subject, "channels_last", layout="dense")
    assert A[0, 1] == filters[0, 0, 0] + filters[0, 2, 0]
    A[4, 4] = np.nextafter(A[4, 4], np.inf)
    with pytest.raises(NotAConvolution, match=r"matrix\[4, 4\]"):
        nearest(A, subject, "channels_last")
    A[4, 4] = A[3, 3]
    A[0, 1] = np.nextafter(A[0, 1], np.inf)
    found, distance = nearest(A, subject, "channels_last")
    assert bits(found) == bits(filters)
    assert distance == A[0, 1] - (filters[0, 0, 0] + filters[0, 2, 0]) > 0


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
