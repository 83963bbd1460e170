"""The way back: a convolution's own filters bit for bit, from every kind of matrix.

Of a matrix that is not a convolution: the entry that is named, and the closest convolution.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import UNREAD, Case, case
from designs import ORDERS, U, adds_up, bits, both, design, matrix_of, nearest, orders
from hypothesis import assume, given
from hypothesis import strategies as st
from libraries import traced_peak
from scipy import sparse
from strategies import cases, seeds

from convfc import ConvGeometry
from convfc.errors import DtypeError, NotAConvolution, ShapeError
from convfc.operators.nearest import nearest_conv
from convfc.rounding import gamma

LAST = "channels_last"


@given(cases(max_ndim=3), seeds, orders)
def test_a_convolution_comes_back(subject: Case, seed: int, order: str):
    """What the matrix determines exactly, the rest as the weights of least norm."""
    _, filters, _ = subject.integers(seed)
    columns = design(subject, order)
    A = matrix_of(filters, subject, order)
    found, distance = nearest(A, subject, order)
    assert found.shape == filters.shape
    _, singular, right = np.linalg.svd(columns.T @ columns)
    rank = np.count_nonzero(singular > 1e-9)
    free = right[rank:]  # what the matrix does not see
    # The part of the weights that is seen, to the accuracy of LAPACK's basis of it.
    seen = filters.ravel() - free.T @ (free @ filters.ravel())
    off = 1e3 * columns.shape[1] * U * max(np.abs(seen).max(), 1)
    assert np.abs(found.ravel() - seen).max() <= off
    if rank == columns.shape[1]:
        assert np.array_equal(found, filters)
        assert found.dtype == filters.dtype
        assert distance == 0.0
    assert distance == np.linalg.norm((A - matrix_of(found, subject, order)).toarray())
    assert distance <= 1e3 * U * max(abs(A).sum(), 1)


DTYPES = ["float16", "float32", "float64", "complex64", "int8", "uint64", "bool"]


@given(both, st.sampled_from(DTYPES), orders)
def test_weights_that_stand_alone_come_back_bit_for_bit(subject: Case, dtype: str, order: str):
    repeats = adds_up(subject)
    assume(not repeats or np.dtype(dtype).kind in "fc")  # sums of narrow integers wrap
    _, filters, _ = subject.reals()
    filters = (filters > 0 if dtype == "bool" else 50 * filters).astype(dtype)
    columns = design(subject, order)
    # Which of them the oracle finds alone in some entry.
    alone = columns[columns.sum(axis=1) == 1].any(axis=0).reshape(filters.shape)
    A = matrix_of(filters, subject, order, layout="dense").astype(dtype)
    found, distance = nearest(A, subject, order)
    assert found.dtype == dtype
    assert bits(found[alone]) == bits(filters[alone])
    if repeats:
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
    found, distance = nearest(matrix_of(filters, UNREAD, LAST), UNREAD, LAST)
    assert (found.shape, found.dtype, distance) == (filters.shape, filters.dtype, 0.0)
    assert not np.any(found)


REPLICATE = case((2,), (3,), c=1, f=1, padding=1, padding_mode="replicate")
CIRCULAR = case((2,), (3,), c=1, f=1, padding=1, padding_mode="circular")
ONE = case((1,), (4,), c=1, f=1, padding=((2, 1),), padding_mode="replicate")
TWO_OF_THREE = case(
    (4,), (3,), c=1, f=1, padding=((1, 0),), padding_mode="reflect", dilation=2
)  # of three taps two read the same element, the third another one


@pytest.mark.parametrize(
    ("subject", "matrix", "weights", "dtype"),
    [
        # Entries w0 + w1, w2, w0, w1 + w2: no entry holds the middle weight alone.
        (REPLICATE, np.array([[3 + 5, 7], [3, 5 + 7]]), [3, 5, 7], "int64"),
        (REPLICATE, np.array([[2**60 + 1, 7], [2**60, 8]]), [2**60, 1, 7], "int64"),
        *(
            (REPLICATE, np.array([[0, 1], [1, 0]], dtype), [1, -1, 1], "int64")
            for dtype in ("bool", "uint8", "uint64", "int8")
        ),
        (REPLICATE, np.array([[0, 1], [1, 0]], "float16"), [1, -1, 1], "float16"),
        # Only sums are determined: their shares are equal, the shortest weights.
        (CIRCULAR, np.array([[5, 6], [6, 5]]), [3, 5, 3], "float64"),
        (ONE, np.array([[10.0]]), [2.5] * 4, "float64"),
        (TWO_OF_THREE, np.array([[0, 0, 0, 4]]), [0, 0, 4], "float64"),
        (TWO_OF_THREE, np.array([[0, 4, 0, 0]]), [2, 2, 0], "float64"),
    ],
    ids=str,
)
def test_weights_hidden_in_sums(subject: Case, matrix: np.ndarray, weights: list, dtype: str):
    found, distance = nearest(matrix, subject, LAST)
    assert found.dtype == dtype
    assert np.abs(found.ravel() - weights).max() <= (100 * U if dtype == "float64" else 0)
    assert np.array_equal(found.ravel() == 0, np.array(weights) == 0)
    assert distance <= (100 * U if dtype == "float64" else 0)


def test_sums_that_differ_by_rounding_alone_are_the_same_sum():
    """Another program may add the weights of an entry in another order."""
    subject = case((3,), (6,), c=1, f=1, padding=((3, 3),), padding_mode="circular")
    filters = np.random.default_rng(0).standard_normal(subject.filters_shape)
    A = matrix_of(filters, subject, LAST, layout="dense")
    other = np.nextafter(A, np.inf)
    other[::2] = A[::2]
    found, distance = nearest(other, subject, LAST)
    norm = np.linalg.norm(A)
    assert 0 < distance <= 10 * U * norm
    assert np.linalg.norm(A - matrix_of(found, subject, LAST)) <= 20 * U * norm
    other[1, 0] += 100 * U * np.abs(A).max()
    with pytest.raises(NotAConvolution, match=r"matrix\[1, 0\]"):
        nearest(other, subject, LAST)


def test_a_weight_that_stands_alone_is_to_be_the_same_to_the_last_bit():
    """Rounding excuses sums only, also where a padding makes some."""
    subject = case((8,), (3,), c=1, f=1, padding=1, padding_mode="reflect")
    filters = subject.reals()[1]
    A = matrix_of(filters, subject, LAST, layout="dense")
    assert A[0, 1] == filters[0, 0, 0] + filters[0, 2, 0]
    A[4, 4] = np.nextafter(A[4, 4], np.inf)
    with pytest.raises(NotAConvolution, match=r"matrix\[4, 4\]"):
        nearest(A, subject, LAST)
    A[4, 4] = A[3, 3]
    A[0, 1] = np.nextafter(A[0, 1], np.inf)
    found, distance = nearest(A, subject, LAST)
    assert bits(found) == bits(filters)
    assert distance == A[0, 1] - (filters[0, 0, 0] + filters[0, 2, 0]) > 0


# Every kind of matrix


KINDS: dict[str, Any] = {
    "dense": lambda A: A.toarray(),
    "fortran": lambda A: np.asfortranarray(A.toarray()),
    "list": lambda A: A.toarray().tolist(),
    **{
        f"{name}_array": getattr(sparse, f"{name}_array")
        for name in ("csr", "csc", "coo", "bsr", "dok", "lil", "dia")
    },
    "csr_matrix": sparse.csr_matrix,
    "jax": lambda A: jnp.asarray(A.toarray().astype(np.int32)),
    "torch": lambda A: torch.from_numpy(A.toarray()),
    "torch csr": lambda A: torch.from_numpy(A.toarray()).to_sparse_csr(),
    "torch coo": lambda A: torch.from_numpy(A.toarray()).to_sparse(),
    "torch csc": lambda A: torch.from_numpy(A.toarray()).to_sparse_csc(),
}


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:Constructing a DIA matrix with")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix(kind: str):
    subject = case((5, 6), (3, 3), c=4, f=6, groups=2, padding=1, padding_mode="reflect")
    filters = subject.integers()[1]
    filters[0] = 0
    for order in ORDERS:
        found, distance = nearest(KINDS[kind](matrix_of(filters, subject, order)), subject, order)
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found, filters)
        assert distance == 0.0


def test_a_matrix_that_is_not_canonical_is_read_and_left_as_it_is():
    """Columns in any order, duplicates that add up, and only some of the zeros are stored."""
    subject = case((5, 4), (3, 2), padding=((1, 0), (0, 1)))
    filters = subject.integers()[1]
    filters[1, 1] = 0
    A = matrix_of(filters, subject, LAST)[::-1]  # and all of its arrays read backwards
    A.eliminate_zeros()
    halves = np.ravel([A.data - 1, np.ones_like(A.data)], order="F")[::-1]
    ends = 2 * (A.nnz - A.indptr[::-1])
    messy = sparse.csr_array((halves, np.repeat(A.indices, 2)[::-1], ends), shape=A.shape)
    assert not messy.has_canonical_format
    before = messy.copy()
    found, distance = nearest(messy, subject, LAST)
    assert np.array_equal(found, filters)
    assert distance == 0.0
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(messy, name), getattr(before, name))


def test_a_large_sparse_matrix_is_read_where_it_is():
    subject = case((28, 28), (3, 3), c=12, f=12, padding=1)
    filters = subject.reals(dtype=np.float32)[1]
    A = matrix_of(filters, subject, LAST)
    nearest(A, subject, LAST)  # warm
    (found, distance), peak = traced_peak(lambda: nearest(A, subject, LAST))
    assert bits(found) == bits(filters)
    assert distance == 0.0
    assert peak < A.data.nbytes + A.indices.nbytes


# What is not a convolution


@given(cases(max_ndim=2), seeds, orders, st.booleans())
def test_the_entry_that_breaks_the_pattern_is_named(
    subject: Case, seed: int, order: str, as_sparse: bool
):
    _, filters, _ = subject.integers(seed)
    columns = design(subject, order)
    A = matrix_of(filters, subject, order, layout="dense")
    entries = columns.sum(axis=1).reshape(A.shape)
    assume(entries.max(initial=0) <= 1)  # sums of weights may hide a change
    rng = np.random.default_rng(seed)
    row, column = (int(rng.integers(n)) for n in A.shape)
    weight = columns.reshape(*A.shape, -1)[row, column].argmax()
    # Of two entries of a tap, either may be wrong.
    assume(not entries[row, column] or columns[:, weight].sum() > 2)
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
    A = matrix_of(subject.integers()[1], subject, LAST, layout="dense")
    # Each time one more is changed; the last is the very first entry of its tap.
    for change, named in (((3, 0), (3, 0)), ((2, 5), (2, 5)), ((2, 3), (2, 3)), ((0, 0), (0, 0))):
        A[change] += 9
        with pytest.raises(NotAConvolution, match=rf"matrix\[{named[0]}, {named[1]}\]"):
            nearest(A, subject, LAST)


@pytest.mark.parametrize(
    ("matrix", "error", "text"),
    [
        (np.zeros((3, 2)), ShapeError, r"matrix: wrong size; expected \(2, 3\); got \(3, 2\)"),
        (np.zeros(6), ShapeError, "matrix: wrong rank"),
        (sparse.eye_array(3).tocsr(), ShapeError, "matrix: wrong size"),
        (np.full((2, 3), None), DtypeError, "matrix: NumPy has no such dtype"),
        (torch.zeros(2, 3).bfloat16(), DtypeError, "matrix: NumPy has no such dtype"),
    ],
    ids=["size", "rank", "sparse", "object", "bfloat16"],
)
def test_matrices_that_do_not_fit_or_hold_no_numbers_are_refused(
    matrix: Any, error: type, text: str
):
    with pytest.raises(error, match=text):
        nearest_conv(matrix, ConvGeometry(1, 1, (2,)), (3,))


# The projection


@given(cases(max_ndim=2), seeds, orders, st.booleans())
def test_the_projection_is_the_least_squares_solution(
    subject: Case, seed: int, order: str, as_sparse: bool
):
    check_projection(subject, seed, order, as_sparse=as_sparse)


@pytest.mark.parametrize(
    "subject",
    [
        case(size, kernel, c=1, f=2, padding=padding, padding_mode=mode)
        for size, kernel, padding, mode in [
            ((2,), (3,), 1, "replicate"),
            ((5,), (3,), ((3, 1),), "replicate"),
            ((4,), (3,), ((1, 2),), "reflect"),
            ((3,), (5,), ((2, 1),), "circular"),
            ((4, 3), (3, 3), ((1, 2), (2, 1)), "reflect"),
            ((3, 2), (2, 3), ((1, 1), (2, 1)), "replicate"),
        ]
    ],
    ids=str,
)
def test_the_projection_where_entries_are_sums_of_weights(subject: Case):
    """Sums that stand more often weigh more."""
    assert adds_up(subject)
    for order in ORDERS:
        check_projection(subject, 0, order, as_sparse=False)


def check_projection(subject: Case, seed: int, order: str, *, as_sparse: bool) -> None:
    columns = design(subject, order)
    shape = matrix_of(subject.integers()[1], subject, order).shape
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
    # Projected again it stays.
    again, apart = nearest(matrix_of(filters, subject, order), subject, order)
    assert np.abs(again - filters).max() <= bound
    assert apart <= bound
    if columns.sum(axis=1).max(initial=0) <= 1:
        assert bits(again) == bits(filters)
        assert apart == 0.0


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "complex64", "bool"])
def test_means_of_every_dtype(dtype: str):
    subject = case((5, 4), (3, 2), c=2, f=2, padding=1)
    shape = matrix_of(subject.integers()[1], subject, LAST).shape
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 2, shape).astype(dtype)
    if dtype == "complex64":
        matrix += 1j * rng.integers(0, 3, shape)
    filters, distance = nearest(matrix, subject, LAST, project=True)
    columns = design(subject, LAST)
    wide = matrix.ravel().astype(complex if dtype == "complex64" else float)
    means = columns.T @ wide / columns.sum(axis=0)
    assert filters.dtype == (dtype if dtype in ("float32", "complex64") else np.float64)
    unit = np.finfo(filters.dtype).eps
    assert np.abs(filters.ravel() - means).max() <= 4 * unit * np.abs(means).max()
    residual = np.linalg.norm(wide - columns @ filters.ravel())
    assert abs(distance - residual) <= gamma(matrix.size, U) * residual


def test_equal_entries_keep_their_value_beside_broken_ones():
    """The mean of equal numbers is that number, to the last bit; what is outside counts in full."""
    subject = case((50,), (3,), c=1, f=2)
    filters = subject.reals()[1]
    A = matrix_of(filters, subject, LAST, layout="dense")
    A[7, 40], A[60, 2] = 12, 5
    found, distance = nearest(A, subject, LAST, project=True)
    assert bits(found) == bits(filters)
    assert distance == 13.0


@pytest.mark.parametrize("as_sparse", [False, True])
def test_matrices_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, as_sparse: bool):
    """Of any size: what is found, named and summed is the same."""
    subject = case((4, 3), (3, 2), c=2, f=3, padding=1, padding_mode="circular")
    filters = subject.integers()[1].astype(float)
    A = matrix_of(filters, subject, LAST, layout="dense")
    kind = sparse.csc_array if as_sparse else np.asarray
    broken = A.copy()
    outside = np.argwhere(design(subject, LAST).sum(axis=1).reshape(A.shape) == 0)[[20, -20]]
    broken[tuple(outside.T)] = 3
    for size in (1, 50):
        monkeypatch.setattr(sys.modules["convfc.operators.nearest"], "_CHUNK", size)
        found, distance = nearest(kind(A), subject, LAST)
        assert np.array_equal(found, filters)
        assert distance == 0.0
        row, column = outside[0]
        with pytest.raises(NotAConvolution, match=rf"matrix\[{row}, {column}\].* got 3\.0\."):
            nearest(kind(broken), subject, LAST)
        found, distance = nearest(kind(broken), subject, LAST, project=True)
        assert np.array_equal(found, filters)
        assert distance == np.sqrt(18.0)
