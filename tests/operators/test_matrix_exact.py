"""A @ x + b is the layer, on small integers where `==` holds: the oracle, and judges of others."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from cases import CASES, Case, case
from designs import ORDERS, both, flat, oracle_matrix
from hypothesis import given
from judges import EXACT_DTYPE, JUDGES, LARGEST_NDIM
from libraries import Library
from scipy import sparse
from sparse_convolution import Toeplitz_convolution2d
from strategies import seeds

from convfc import ConvGeometry
from convfc.layer import ConvLayer
from convfc.operators.matrix import conv_matrix, conv_offset


@given(both, seeds)
def test_every_geometry_gives_the_oracle_s_matrix(subject: Case, seed: int):
    """And stores what the geometry has, also where a weight is 0."""
    _, filters, _ = subject.integers(seed)
    for order in ORDERS:
        A = conv_matrix(filters, subject.input_size, subject.geometry, order=order)
        expected = oracle_matrix(subject, filters, order)
        assert type(A) is sparse.csr_array
        assert A.shape == expected.shape
        assert np.array_equal(A.toarray(), expected)
        assert A.has_canonical_format
        stored = sparse.csr_array((np.ones(A.nnz), A.indices, A.indptr), shape=A.shape)
        stored.check_format(full_check=True)
        assert stored.has_canonical_format  # SciPy, which looks for itself
        held = oracle_matrix(subject, np.ones(filters.shape, int), order) > 0
        assert np.array_equal(stored.toarray(), held)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        pytest.param(name, case, id=f"{case}-{name}")
        for number, name in enumerate(JUDGES)
        for case in CASES[number::4]
        if case.geometry.spatial_ndim <= LARGEST_NDIM[name]
    ],
)
def test_it_computes_what_the_judges_compute(subject: Case, name: str):
    given_ = (subject.input_size, subject.geometry)
    x, filters, bias = subject.integers(dtype=EXACT_DTYPE[name])
    y = JUDGES[name](x, filters, subject.geometry, bias)
    for order in ORDERS:
        b = conv_offset(filters, *given_, bias=bias, order=order)
        for layout in ("csr", "dense"):
            A = conv_matrix(filters, *given_, layout=layout, order=order)
            assert np.array_equal(A @ flat(x, order) + b[:, None], flat(y, order))


def test_the_array_libraries_give_the_same(library: Library):
    subject = case((5, 6), (2, 3), c=4, f=4, groups=2, padding=1, padding_mode="reflect")
    _, filters, bias = subject.integers(dtype=np.float32)
    expected = oracle_matrix(subject, filters, "channels_last")
    layer = ConvLayer(subject.geometry, *library.arrays(filters, bias))
    for layout in ("csr", "dense"):
        A = conv_matrix(layer, subject.input_size, layout=layout)
        assert A.dtype == np.float32
        assert np.array_equal(A.toarray() if layout == "csr" else A, expected)
    b = conv_offset(layer, subject.input_size)
    assert np.array_equal(b, np.tile(bias, len(b) // len(bias)))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("taps", "size"), [(1, 4), (3, 7), (4, 7), (7, 9)])
def test_scipy_s_convolution_matrix(mode: str, taps: int, size: int):
    w = np.arange(1, taps + 1)
    low = {"full": taps - 1, "same": taps // 2, "valid": 0}[mode]
    high = {"full": taps - 1, "same": (taps - 1) // 2, "valid": 0}[mode]
    geometry = ConvGeometry(1, 1, (taps,), padding=[(low, high)], flip=True)
    A = conv_matrix(w.reshape(1, taps, 1), (size,), geometry, layout="dense")
    assert np.array_equal(A, scipy.linalg.convolution_matrix(w, size, mode))


def test_it_is_doubly_block_toeplitz():
    w = np.arange(1, 10).reshape(3, 3)
    geometry = ConvGeometry(1, 1, (3, 3), padding=1)
    A = conv_matrix(w[None, ..., None], (4, 5), geometry, layout="dense")

    def toeplitz(middle: np.ndarray, n: int) -> np.ndarray:
        """Tridiagonal from the weights (left, middle, right) of one row of the filter."""
        rest = [0] * (n - 2)
        return scipy.linalg.toeplitz([middle[1], middle[0], *rest], [middle[1], middle[2], *rest])

    blocks = [toeplitz(row, 5) for row in w]
    expected = sum(np.kron(np.eye(4, k=k, dtype=int), blocks[k + 1]) for k in (-1, 0, 1))
    assert np.array_equal(A, expected)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(("kernel", "size"), [((2, 4), (5, 6)), ((5, 1), (6, 5))])
def test_the_package_sparse_convolution(mode: str, kernel: tuple[int, int], size: tuple[int, int]):
    k = np.arange(1.0, 1 + np.prod(kernel)).reshape(kernel)
    peer = Toeplitz_convolution2d(size, k, mode=mode, method="precomputed")
    expected = peer(np.eye(np.prod(size)), batching=True).T  # one image per element, as columns
    pads = {
        "full": [(n - 1, n - 1) for n in kernel],
        "same": [(n // 2, (n - 1) // 2) for n in kernel],
        "valid": [(0, 0)] * 2,
    }
    geometry = ConvGeometry(1, 1, kernel, padding=pads[mode], flip=True)
    A = conv_matrix(k[None, ..., None], size, geometry, layout="dense")
    assert np.array_equal(A, expected)


def test_a_sum_of_weights_that_meet_is_within_the_rounding_bound():
    """Replicated far out, the whole window reads one element: its entry is the filter's sum."""
    subject = case((2, 2), (3, 3), c=1, f=2, padding=4, padding_mode="replicate")
    _, filters, _ = subject.reals(dtype=np.float32)
    A = conv_matrix(filters, subject.input_size, subject.geometry)
    exact = filters.astype(np.longdouble).sum(axis=(1, 2, 3))
    u = 2.0**-24
    bound = 8 * u / (1 - 8 * u) * np.abs(filters.astype(np.longdouble)).sum(axis=(1, 2, 3))
    assert A[[0]].nnz == A[[1]].nnz == 1
    assert np.all(np.abs(A[[0, 1], [0, 0]].astype(np.longdouble) - exact) <= bound)
