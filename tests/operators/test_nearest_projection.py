"""A matrix that is no convolution: the entry that is named, and the closest convolution."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from cases import Case, case
from designs import ORDERS, U, adds_up, bits, design, matrix_of, nearest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse
from strategies import cases, seeds

from convfc import ConvGeometry
from convfc.errors import DtypeError, NotAConvolution, ShapeError
from convfc.operators.nearest import nearest_conv
from convfc.rounding import gamma

orders = st.sampled_from(ORDERS)


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
    A[2, 3] += 1
    A[3, 0] = 9
    with pytest.raises(NotAConvolution, match=r"matrix\[2, 3\]"):
        nearest(A, subject, "channels_last")
    A[2, 5] = 9
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
    check_projection(subject, seed, order, as_sparse=as_sparse)


ADDING_UP = [
    case(size, kernel, c=1, f=2, padding=padding, padding_mode=mode)
    for size, kernel, padding, mode in [
        ((2,), (3,), 1, "replicate"),
        ((5,), (3,), ((3, 1),), "replicate"),
        ((3,), (4,), ((3, 2),), "replicate"),
        ((4,), (3,), ((1, 2),), "reflect"),
        ((3,), (5,), ((2, 1),), "circular"),
        ((4, 3), (3, 3), ((1, 2), (2, 1)), "reflect"),
        ((3, 2), (2, 3), ((1, 1), (2, 1)), "replicate"),
    ]
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("subject", ADDING_UP, ids=str)
def test_the_projection_where_entries_are_sums_of_weights(subject: Case, order: str):
    """Sums that stand more often weigh more."""
    assert adds_up(subject)
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


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("as_sparse", [False, True])
def test_matrices_are_looked_at_in_parts(
    monkeypatch: pytest.MonkeyPatch, as_sparse: bool, order: str, size: int
):
    """Of any size: what is found, named and summed is the same."""
    subject = case((4, 3), (3, 2), c=2, f=3, padding=1, padding_mode="circular")
    filters = subject.integers()[1].astype(float)
    A = matrix_of(filters, subject, order, layout="dense")
    kind = sparse.csr_array if as_sparse else np.asarray
    broken = A.copy()
    entries = design(subject, order).sum(axis=1).reshape(A.shape)
    outside = [tuple(place) for place in np.argwhere(entries == 0)[[20, -20]]]
    for place in outside:
        broken[place] = 3
    noise = np.random.default_rng(0).standard_normal(A.shape)
    expected = nearest(noise, subject, order, project=True)
    monkeypatch.setattr(sys.modules["convfc.operators.nearest"], "_CHUNK", size)
    found, distance = nearest(kind(A), subject, order)
    assert np.array_equal(found, filters)
    assert distance == 0.0
    row, column = outside[0]
    with pytest.raises(NotAConvolution, match=rf"matrix\[{row}, {column}\].* got 3\.0\."):
        nearest(kind(broken), subject, order)
    found, distance = nearest(kind(broken), subject, order, project=True)
    assert np.array_equal(found, filters)
    assert distance == np.sqrt(18.0)
    found, distance = nearest(kind(noise), subject, order, project=True)
    bound = gamma(A.size, U) * np.abs(noise).max()
    assert np.abs(found - expected.filters).max() <= bound
    assert abs(distance - expected.distance) <= gamma(A.size, U) * distance
