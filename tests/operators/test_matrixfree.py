"""The operator is the matrix: every product, both ways, in every dtype, and no M in memory."""

from __future__ import annotations

import sys
import tracemalloc
from math import prod

import numpy as np
import oracle
import pytest
import scipy.sparse.linalg as sla
from bounds import sum_bound
from cases import CASES, Case, case
from hypothesis import given
from hypothesis import strategies as st
from libraries import JAX, NUMPY_READ_ONLY, TORCH, Library
from scipy import sparse
from strategies import cases, seeds

from convfc import ConvGeometry, ConvLayer
from convfc.errors import ArgumentError, DtypeError, GeometryError
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.matrixfree import ConvOperator, conv_operator

ORDERS = ("channels_first", "channels_last")
orders = st.sampled_from(ORDERS)
MIB = 2**20


def flat(images: np.ndarray, order: str) -> np.ndarray:
    """A batch (b, *spatial, c) as the columns that the operator takes."""
    images = np.moveaxis(images, -1, 1) if order == "channels_first" else images
    return images.reshape(len(images), -1).T


def gaussian(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Gaussian integers: complex numbers on which all sums are exact."""
    parts = np.random.default_rng(seed).integers(-4, 5, size=(2, *shape)).astype(float)
    return parts[0] + 1j * parts[1]


@given(cases(), seeds, orders)
def test_it_is_the_layer_on_a_whole_batch(subject: Case, seed: int, order: str):
    x, filters, _ = subject.integers(seed)
    op = conv_operator(filters, subject.input_size, subject.geometry, order=order)
    y = flat(oracle.conv(x, filters, subject.geometry), order)
    assert np.array_equal(op @ flat(x, order), y)
    assert np.array_equal(op @ flat(x, order)[:, 0], y[:, 0])


@given(cases(), seeds, orders)
def test_every_product_is_that_of_the_matrix(subject: Case, seed: int, order: str):
    given_ = (subject.input_size, subject.geometry)
    filters = gaussian(subject.filters_shape, seed)
    op = conv_operator(filters, *given_, order=order)
    A = conv_matrix(filters, *given_, order=order, layout="dense")
    assert op.shape == A.shape
    assert op.dtype == A.dtype
    x, y = gaussian((op.shape[1], 3), seed + 1), gaussian((op.shape[0], 3), seed + 2)
    assert np.array_equal(op @ x, A @ x)
    assert np.array_equal(op.H @ y, A.conj().T @ y)
    assert np.array_equal(op.T @ y, A.T @ y)
    assert np.array_equal(op.rmatmat(y), A.conj().T @ y)
    assert np.array_equal(op.matvec(x[:, 0]), A @ x[:, 0])
    assert np.array_equal(op.matvec(x[:, :1]), A @ x[:, :1])
    assert np.array_equal(op.rmatvec(y[:, 0]), A.conj().T @ y[:, 0])
    assert np.array_equal(op.rmatvec(y[:, :1]), A.conj().T @ y[:, :1])
    assert np.array_equal(y.T @ op, y.T @ A)


@given(cases(), seeds, orders)
def test_the_adjoint_is_the_adjoint_exactly(subject: Case, seed: int, order: str):
    _, filters, _ = subject.integers(seed)
    op = conv_operator(filters, subject.input_size, subject.geometry, order=order)
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-9, 10, size=n) for n in op.shape[::-1])
    assert (op @ x) @ y == x @ (op.H @ y)
    assert (op @ x).dtype == (op.H @ y).dtype == np.int64
    z, v = gaussian((op.shape[1],), seed), gaussian((op.shape[0],), seed + 1)
    assert np.vdot(v, op @ z) == np.vdot(op.H @ v, z)


DTYPES = ["bool", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"]
DTYPES += ["complex64", "complex128"]
WIDENED = dict.fromkeys(("bool", "uint8", "int32"), "int64")
SMALL = case((5, 6), (3, 3), c=4, f=4, groups=2, padding=((2, 1), (1, 2)), padding_mode="reflect")


@pytest.mark.parametrize("vector", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_has_the_dtype_of_the_two_and_its_value(dtype: str, vector: str):
    filters = (np.arange(prod(SMALL.filters_shape)) % 5 % 3).reshape(SMALL.filters_shape)
    filters = filters.astype(dtype)
    op = conv_operator(filters, SMALL.input_size, SMALL.geometry)
    assert op.dtype == WIDENED.get(dtype, dtype)
    A = conv_matrix(filters.astype(op.dtype), SMALL.input_size, SMALL.geometry, layout="dense")
    for product, matrix in ((op, A), (op.H, A.conj().T)):
        x = (np.arange(2 * matrix.shape[1]) % 7 % 2).reshape(-1, 2).astype(vector)
        y = product @ x
        expected = matrix @ x
        assert y.dtype == expected.dtype
        assert np.array_equal(y, expected)
        assert np.array_equal(product @ x[:, 0], expected[:, 0])


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
@pytest.mark.parametrize("subject", CASES[::3], ids=str)
def test_real_numbers_are_within_the_rounding_bound(subject: Case, dtype: str):
    x, filters, _ = subject.reals(dtype=dtype)
    given_ = (subject.input_size, subject.geometry)
    op = conv_operator(filters, *given_)
    A = conv_matrix(filters.astype(np.clongdouble), *given_, layout="dense")
    moduli = conv_matrix(np.abs(filters).astype(np.longdouble), *given_, layout="dense")
    y = subject.reals(1, dtype)[0].ravel()
    y = np.resize(y, op.shape[0])
    for product, vector, exact, bound in (
        (op @ flat(x, "channels_last"), flat(x, "channels_last"), A, moduli),
        (op.H @ y, y, A.conj().T, moduli.T),
    ):
        assert product.dtype == dtype
        error = np.abs(product - exact @ vector)
        terms = int(np.count_nonzero(bound, axis=1).max(initial=1))
        # An element of a repeating padding is a sum of several weights.
        terms *= int(np.ceil(subject.geometry.taps))
        assert (error <= sum_bound(bound @ np.abs(vector), terms, dtype)).all()


def test_every_size_of_block_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    x, filters, _ = SMALL.integers()
    op = conv_operator(filters, SMALL.input_size, SMALL.geometry)
    y = np.random.default_rng(0).integers(-4, 5, size=(op.shape[0], 2))
    expected = op @ flat(x, "channels_last"), op.H @ y
    for size in (1, 2**10, 2**12):
        monkeypatch.setattr(sys.modules[ConvOperator.__module__], "_BLOCK", size)
        assert np.array_equal(op @ flat(x, "channels_last"), expected[0])
        assert np.array_equal(op.H @ y, expected[1])


def test_it_holds_a_copy_of_the_filters():
    _, filters, _ = SMALL.integers()
    op = conv_operator(filters, SMALL.input_size, SMALL.geometry)
    x = np.arange(op.shape[1])
    before = op @ x
    filters += 1
    assert np.array_equal(op @ x, before)
    with pytest.raises(ValueError, match="read-only"):
        op.filters[...] = 0


def test_what_it_says_of_itself():
    op = conv_operator(SMALL.integers()[1], SMALL.input_size, SMALL.geometry)
    assert (op.geometry, op.input_size, op.output_size) == (SMALL.geometry, (5, 6), (6, 7))
    assert op.order == "channels_last"
    assert repr(op) == "<168x120 ConvOperator with dtype=int64>"
    assert op.H.dtype == op.T.dtype == op.dtype


def test_the_bias_is_no_part_of_it():
    x, filters, bias = SMALL.integers()
    layer = ConvLayer(SMALL.geometry, filters, bias)
    op, b = conv_operator(layer, SMALL.input_size), conv_offset(layer, SMALL.input_size)
    assert not np.any(op @ np.zeros(op.shape[1], int))
    assert np.array_equal(op @ x[0].ravel() + b, layer(x[:1]).ravel())


@pytest.mark.parametrize("library", [NUMPY_READ_ONLY, TORCH, JAX], ids=str)
def test_filters_of_every_library(library: Library):
    x, filters, _ = SMALL.integers(dtype=np.float32)
    expected = oracle.conv(x, filters, SMALL.geometry)
    op = conv_operator(library.array(filters), SMALL.input_size, SMALL.geometry)
    assert np.array_equal(op @ flat(x, "channels_last"), flat(expected, "channels_last"))
    op = conv_operator(ConvLayer(SMALL.geometry, library.array(filters)), SMALL.input_size)
    assert np.array_equal(op @ flat(x, "channels_last"), flat(expected, "channels_last"))


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def test_vectors_in_every_memory_layout():
    filters = SMALL.integers()[1]
    op = conv_operator(filters, SMALL.input_size, SMALL.geometry)
    A = conv_matrix(filters, SMALL.input_size, SMALL.geometry, layout="dense")
    wide = np.random.default_rng(0).integers(-4, 5, size=(2 * op.shape[1], 6))
    for x in (
        wide[::2, ::-2],
        wide[::-2].T.copy().T,
        read_only(wide[1::2].copy()),
        wide[::2].astype(">i4"),
        wide[::2, :0],
    ):
        assert np.array_equal(op @ x, A @ x)


# What SciPy makes of operators, and what its methods find with them


TALL = case((6, 5), (3, 3), c=2, f=3, padding=1)
WIDE = case((6, 5), (3, 2), c=3, f=2, stride=2, padding=1)


def two_layers() -> tuple[ConvOperator, ConvOperator, np.ndarray, np.ndarray]:
    one, two = TALL.integers(1)[1], WIDE.integers(2)[1]
    operators = (
        conv_operator(one, (6, 5), TALL.geometry, order="channels_first"),
        conv_operator(two, (6, 5), WIDE.geometry, order="channels_first"),
    )
    return (*operators, one, two)


def test_the_product_of_two_operators_is_the_two_layers_in_sequence():
    op1, op2, one, two = two_layers()
    x = TALL.integers(3)[0]
    y = oracle.conv(oracle.conv(x, one, TALL.geometry), two, WIDE.geometry)
    both = op2 @ op1
    assert both.shape == (op2.shape[0], op1.shape[1])
    assert np.array_equal(both @ flat(x, "channels_first"), flat(y, "channels_first"))
    A1, A2 = (
        conv_matrix(f, (6, 5), s.geometry, order="channels_first", layout="dense")
        for f, s in ((one, TALL), (two, WIDE))
    )
    v = np.arange(op2.shape[0])
    assert np.array_equal(both.H @ v, (A2 @ A1).T @ v)
    assert np.array_equal((both.T @ v), (A2 @ A1).T @ v)


def test_sums_multiples_powers_and_matrices_beside_it():
    op, _, filters, _ = two_layers()
    A = conv_matrix(filters, (6, 5), TALL.geometry, order="channels_first")
    dense = A.toarray()
    x, y = np.arange(op.shape[1]), np.arange(op.shape[0])
    normal = dense.T @ dense
    assert np.array_equal((op + op) @ x, 2 * dense @ x)
    assert np.array_equal((3 * op - op) @ x, 2 * dense @ x)
    assert np.array_equal((-op).T @ y, -dense.T @ y)
    assert np.array_equal((2j * op).H @ y, -2j * dense.T @ y)
    assert np.array_equal(((op.H @ op) ** 2) @ x, normal @ (normal @ x))
    assert np.array_equal((sla.aslinearoperator(A.T) @ op) @ x, normal @ x)
    assert np.array_equal((op @ sla.aslinearoperator(A.T)) @ y, dense @ (dense.T @ y))
    assert sla.aslinearoperator(op) is op


def singular_bound(A: np.ndarray, dtype: str) -> float:
    """How far two computed sets of singular values may lie apart.

    Weyl: a backward error E moves none of them by more than |E|; for LAPACK's SVD |E| is a modest
    multiple of max(m, n) u |A| (LAPACK Users' Guide, section 4.9), and so it is for ARPACK at
    ``tol=0``, which orthogonalises to full precision.
    """
    return 10 * max(A.shape) * float(np.finfo(dtype).eps) * float(np.linalg.norm(A, 2))


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [("arpack", "float32"), ("arpack", "float64"), ("arpack", "complex128"), ("lobpcg", "float64")],
)
def test_svds_finds_the_largest_singular_values(solver: str, dtype: str):
    _, filters, _ = TALL.reals(dtype=dtype)
    op = conv_operator(filters, TALL.input_size, TALL.geometry)
    A = conv_matrix(filters, TALL.input_size, TALL.geometry, layout="dense")
    more = {"tol": 1e-6, "maxiter": 500} if solver == "lobpcg" else {}
    v0 = None if solver == "lobpcg" else np.ones(min(op.shape), dtype)
    rng = np.random.default_rng(0)
    left, found, right = sla.svds(op, k=3, solver=solver, v0=v0, rng=rng, **more)
    expected = np.linalg.svd(A.astype("complex128"), compute_uv=False)[:3]
    assert found.dtype == np.dtype(dtype).type(0).real.dtype
    bound = singular_bound(A, dtype)
    if (
        solver == "lobpcg"
    ):  # A residual r of the squared matrix moves s by r / s at most; r <= tol².
        bound += 1e-12 / expected[-1]
    assert np.abs(np.sort(found)[::-1] - expected).max() <= bound
    residual = np.linalg.norm(op @ right.conj().T - left * found, axis=0)
    assert residual.max() <= np.sqrt(bound) * expected[0]


def test_eigsh_and_lsqr_work_with_it():
    _, filters, _ = TALL.reals()
    op = conv_operator(filters, TALL.input_size, TALL.geometry)
    A = conv_matrix(filters, TALL.input_size, TALL.geometry, layout="dense")
    normal = A.T @ A
    largest = sla.eigsh(op.H @ op, k=2, v0=np.ones(op.shape[1]), return_eigenvectors=False)
    assert np.abs(np.sort(largest) - np.linalg.eigvalsh(normal)[-2:]).max() <= singular_bound(
        normal, "float64"
    )
    truth = np.linspace(-1, 1, op.shape[1])
    b = op @ truth
    solution = sla.lsqr(op, b, atol=1e-13, btol=1e-13)[0]
    # LSQR's own rule for stopping, with the Frobenius norm of A, and the rounding of the products.
    size = np.linalg.norm(A) * np.linalg.norm(solution)
    limit = 1e-13 * (size + np.linalg.norm(b)) + singular_bound(A, "float64") * size
    assert np.linalg.norm(A @ solution - b) <= limit
    smallest = np.linalg.svd(A, compute_uv=False)[-1]
    assert np.linalg.norm(solution - truth) <= 2 * limit / smallest


# Memory, and what is refused


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "subject",
    [
        case((160, 160), (9, 9), c=4, f=4, padding=4),
        case((160, 160), (9, 9), c=4, f=4, padding=4, padding_mode="circular", groups=2),
        case((80, 80), (9, 9), c=4, f=4, transposed=True, stride=2),
        case((20000,), (128,), c=4, f=4),
    ],
    ids=str,
)
def test_the_patch_matrix_is_never_held(subject: Case, order: str):
    _, filters, _ = subject.reals(dtype=np.float32)
    op = conv_operator(filters, subject.input_size, subject.geometry, order=order)
    size_of_m = 4 * prod(subject.geometry.patch_matrix_shape(1, subject.input_size))
    assert size_of_m > 30 * MIB
    x, y = (np.ones(n, np.float32) for n in op.shape[::-1])
    for product, vector in ((op, x), (op.H, y)):
        product @ vector  # warm: what is asked once, such as the index map
        tracemalloc.start()
        try:
            product @ vector
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # A block of M with what is made of it, and a few copies of input and output.
        assert peak < 3 * 4 * MIB + 6 * 4 * max(op.shape)


def test_vectors_that_hold_no_numbers_are_refused():
    op = conv_operator(SMALL.integers()[1], SMALL.input_size, SMALL.geometry)
    with pytest.raises(DtypeError, match=r"the vectors hold no numbers; .*got object"):
        op @ np.full(op.shape[1], None)
    with pytest.raises(ValueError, match="dimension mismatch"):
        op @ np.ones(op.shape[1] + 1)
    with pytest.raises(TypeError, match="Unable to multiply a LinearOperator with a sparse"):
        op @ sparse.eye_array(op.shape[1]).tocsr()


def test_filters_without_a_geometry_and_sizes_that_do_not_fit_are_refused():
    filters = SMALL.integers()[1]
    with pytest.raises(ArgumentError, match="filters alone do not say how they are moved"):
        conv_operator(filters, SMALL.input_size)
    with pytest.raises(GeometryError, match="the kernel is larger than the padded input"):
        conv_operator(np.ones((1, 3, 1)), (2,), ConvGeometry(1, 1, (3,)))
    bfloat16 = TORCH.array(np.ones((1, 3, 1), np.float32)).bfloat16()
    with pytest.raises(DtypeError, match="NumPy has no such dtype"):
        conv_operator(bfloat16, (4,), ConvGeometry(1, 1, (3,)))
