"""The operator is the matrix: every product, both ways, in every dtype, and no M in memory."""

from __future__ import annotations

import sys
from math import prod

import numpy as np
import oracle
import pytest
from bounds import sum_bound
from cases import CASES, Case, case
from designs import flat, matrix_of, orders
from hypothesis import example, given
from hypothesis import strategies as st
from libraries import JAX, NUMPY_READ_ONLY, TORCH, Library, traced_peak
from scipy import sparse
from strategies import cases, seeds

from convfc import ConvGeometry, ConvLayer
from convfc.errors import DtypeError
from convfc.operators.matrixfree import ConvOperator, conv_operator

LAST = "channels_last"
MIB = 2**20


def operator(filters: np.ndarray, subject: Case, order: str = LAST) -> ConvOperator:
    return conv_operator(filters, subject.input_size, subject.geometry, order=order)


def dense(filters: np.ndarray, subject: Case, order: str = LAST) -> np.ndarray:
    return matrix_of(filters, subject, order, layout="dense")


def gaussian(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Gaussian integers: complex numbers on which all sums are exact."""
    parts = np.random.default_rng(seed).integers(-4, 5, size=(2, *shape)).astype(float)
    return parts[0] + 1j * parts[1]


@given(cases(), seeds, orders, st.sampled_from([NUMPY_READ_ONLY, TORCH]))
@example(case((2, 2, 2, 3), (1, 2, 1, 2)), 0, LAST, TORCH)  # more axes than PyTorch has
def test_every_product_is_that_of_the_matrix(
    subject: Case, seed: int, order: str, library: Library
):
    filters = gaussian(subject.filters_shape, seed)
    op = operator(library.array(filters), subject, order)
    A = dense(filters, subject, order)
    assert op.shape == A.shape
    assert op.dtype == A.dtype
    x, y = gaussian((op.shape[1], 3), seed + 1), gaussian((op.shape[0], 3), seed + 2)
    assert np.array_equal(op @ x, A @ x)
    assert np.array_equal(op.H @ y, A.conj().T @ y)
    assert np.array_equal(op.T @ y, A.T @ y)
    assert np.array_equal(op.rmatmat(y), A.conj().T @ y)
    for column in (0, slice(1)):
        assert np.array_equal(op.matvec(x[:, column]), A @ x[:, column])
        assert np.array_equal(op.rmatvec(y[:, column]), A.conj().T @ y[:, column])
    assert np.array_equal(y.T @ op, y.T @ A)


DTYPES = ["bool", "uint8", "int64", "uint64", "float16", "float32", "float64", "complex64"]
SMALL = case((5, 6), (3, 3), c=4, f=4, groups=2, padding=((2, 1), (1, 2)), padding_mode="reflect")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_has_the_dtype_of_the_two_and_its_value(dtype: str):
    filters = (np.arange(prod(SMALL.filters_shape)) % 5 % 3).reshape(SMALL.filters_shape)
    filters = filters.astype(dtype)
    op = operator(filters, SMALL)
    assert op.dtype == {"bool": "int64", "uint8": "int64"}.get(dtype, dtype)
    A = dense(filters.astype(op.dtype), SMALL)
    for vector in (*DTYPES, "complex128"):
        for product, matrix in ((op, A), (op.H, A.conj().T)):
            x = (np.arange(2 * matrix.shape[1]) % 7 % 2).reshape(-1, 2).astype(vector)
            y = product @ x
            expected = matrix @ x
            assert y.dtype == expected.dtype
            assert np.array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("subject", CASES[::5], ids=str)
def test_real_numbers_are_within_the_rounding_bound(subject: Case, dtype: str):
    x, filters, _ = subject.reals(dtype=dtype)
    op = operator(filters, subject)
    A = dense(filters.astype(np.clongdouble), subject)
    moduli = dense(np.abs(filters).astype(np.longdouble), subject)
    y = np.resize(subject.reals(1, dtype)[0].ravel(), op.shape[0])
    for product, vector, exact, bound in (
        (op @ flat(x, LAST), flat(x, LAST), A, moduli),
        (op.H @ y, y, A.conj().T, moduli.T),
    ):
        assert product.dtype == dtype
        error = np.abs(product - exact @ vector)
        # An element of a repeating padding is a sum of several weights.
        terms = int(np.count_nonzero(bound, axis=1).max(initial=1)) * subject.geometry.taps
        assert (error <= sum_bound(bound @ np.abs(vector), terms, dtype)).all()


def test_every_size_of_block_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    x, filters, _ = SMALL.integers()
    op = operator(filters, SMALL)
    expected = op @ flat(x, LAST)
    for size in (1, 2**10, 2**12):
        monkeypatch.setattr(sys.modules[ConvOperator.__module__], "_BLOCK", size)
        assert np.array_equal(op @ flat(x, LAST), expected)


def test_it_holds_a_copy_of_the_filters_and_says_what_it_is():
    _, filters, _ = SMALL.integers()
    op = operator(filters, SMALL)
    x = np.arange(op.shape[1])
    before = op @ x
    filters += 1
    assert np.array_equal(op @ x, before)
    with pytest.raises(ValueError, match="read-only"):
        op.filters[...] = 0
    assert (op.geometry, op.input_size, op.output_size) == (SMALL.geometry, (5, 6), (6, 7))
    assert (op.order, repr(op)) == (LAST, "<168x120 ConvOperator with dtype=int64>")
    assert op.H.dtype == op.T.dtype == op.dtype


@pytest.mark.parametrize("library", [NUMPY_READ_ONLY, TORCH, JAX], ids=str)
def test_filters_of_every_library(library: Library):
    x, filters, _ = SMALL.integers(dtype=np.float32)
    expected = flat(oracle.conv(x, filters, SMALL.geometry), LAST)
    assert np.array_equal(operator(library.array(filters), SMALL) @ flat(x, LAST), expected)
    op = conv_operator(ConvLayer(SMALL.geometry, library.array(filters)), SMALL.input_size)
    assert np.array_equal(op @ flat(x, LAST), expected)


def test_vectors_in_every_memory_layout():
    filters = SMALL.integers()[1]
    op, A = operator(filters, SMALL), dense(filters, SMALL)
    wide = np.random.default_rng(0).integers(-4, 5, size=(2 * op.shape[1], 6))
    read_only = wide[1::2].copy()
    read_only.setflags(write=False)
    strange = (wide[::2, ::-2], wide[::-2].T.copy().T, read_only, wide[::2].astype(">i4"))
    for x in (*strange, wide[::2, :0]):
        assert np.array_equal(op @ x, A @ x)


# Memory, and what is refused


@pytest.mark.parametrize(
    "subject",
    [
        case((110, 110), (9, 9), c=4, f=4, padding=4, padding_mode="circular", groups=2),
        case((60, 60), (9, 9), c=4, f=4, transposed=True, stride=2),
        case((8000,), (128,), c=4, f=4),
    ],
    ids=str,
)
def test_the_patch_matrix_is_never_held(subject: Case):
    op = operator(subject.reals(dtype=np.float32)[1], subject)
    size_of_m = 4 * prod(subject.geometry.patch_matrix_shape(1, subject.input_size))
    assert size_of_m > 14 * MIB
    for product, n in ((op, op.shape[1]), (op.H, op.shape[0])):
        vector = np.ones(n, np.float32)
        product @ vector  # warm: what is asked once, such as the index map
        _, peak = traced_peak(lambda product=product, vector=vector: product @ vector)
        # Forwards a block of M with what is made of it; and a few copies of input and output.
        assert peak < 2 * 4 * MIB * (product is op) + 8 * 4 * max(op.shape) < size_of_m


def test_what_does_not_fit_is_refused():
    op = operator(SMALL.integers()[1], SMALL)
    with pytest.raises(DtypeError, match=r"the vectors hold no numbers; .*got object"):
        op @ np.full(op.shape[1], None)
    with pytest.raises(ValueError, match="dimension mismatch"):
        op @ np.ones(op.shape[1] + 1)
    with pytest.raises(TypeError, match="Unable to multiply a LinearOperator with a sparse"):
        op @ sparse.eye_array(op.shape[1]).tocsr()
    bfloat16 = TORCH.array(np.ones((1, 3, 1), np.float32)).bfloat16()
    with pytest.raises(DtypeError, match="NumPy has no such dtype"):
        conv_operator(bfloat16, (4,), ConvGeometry(1, 1, (3,)))
