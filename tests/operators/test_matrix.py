"""A @ x + b is the layer, on small integers where `==` holds: the oracle, and judges of others.

Then its dtypes, and what is refused: with the class, the place and the remedy.
"""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import CASES, Case, case
from designs import ORDERS, both, flat, oracle_matrix
from hypothesis import given
from judges import EXACT_DTYPE, JUDGES, LARGEST_NDIM
from libraries import Library, traced_peak
from scipy import sparse
from sparse_convolution import Toeplitz_convolution2d
from strategies import seeds
from torch import nn

from convfc import ConvGeometry
from convfc.errors import (
    ArgumentError,
    DtypeError,
    GeometryError,
    MemoryBudgetError,
    ShapeError,
    UnsupportedLayer,
    UnsupportedModel,
)
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


# Dtypes and refusals.

# Every output is read twice by the taps of an axis: entries are sums of up to nine weights.
FAR_OUT = case((2, 2), (3, 3), c=1, f=2, padding=3, padding_mode="replicate")
PLAIN = ConvGeometry(1, 1, (2,))
ONES = np.ones((1, 2, 1))


def of(filters: Any, subject: Case = FAR_OUT, **rest: Any) -> Any:
    return conv_matrix(filters, subject.input_size, subject.geometry, **rest)


KEPT = ["int64", "uint64", "float32", "longdouble", "complex64", "complex128"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *((dtype, "int64") for dtype in ("bool", "int8", "uint8", "uint32")),
        *((dtype, dtype) for dtype in KEPT),
    ],
)
def test_the_dtype_is_that_of_the_filters_and_sums_do_not_wrap(given: str, kept: str):
    value = 1 if given == "bool" else 100
    filters = np.full(FAR_OUT.filters_shape, value, dtype=given)
    for layout in ("csr", "dense"):
        A = of(filters, layout=layout)
        assert A.dtype == np.dtype(kept)
        assert A.max() == 9 * value
    b = conv_offset(filters, FAR_OUT.input_size, FAR_OUT.geometry)
    assert b.dtype == np.dtype(kept)
    assert not b.any()


def test_a_library_s_own_default_integer_counts():
    jax_filters = jnp.full(FAR_OUT.filters_shape, 100, dtype=jnp.int8)
    assert of(jax_filters).dtype == np.int32
    assert of(jax_filters).max() == 900
    assert of(torch.full(FAR_OUT.filters_shape, 100, dtype=torch.int8)).dtype == np.int64


def test_float16_has_a_dense_matrix_only():
    filters = np.full(FAR_OUT.filters_shape, 0.5, dtype=np.float16)
    with pytest.raises(DtypeError, match=r"filters: SciPy has no sparse matrix.*layout='dense'"):
        of(filters)
    dense = of(filters, layout="dense")
    assert dense.dtype == np.float16
    assert np.array_equal(dense, of(filters.astype(np.float64), layout="dense"))


def test_bfloat16_has_none():
    for layout in ("csr", "dense"):
        with pytest.raises(DtypeError, match=r"filters: NumPy has no such dtype.*layer\.float\(\)"):
            of(torch.ones(FAR_OUT.filters_shape, dtype=torch.bfloat16), layout=layout)
        with pytest.raises(DtypeError, match="filters: NumPy has no such dtype"):
            of(jnp.ones(FAR_OUT.filters_shape, dtype=jnp.bfloat16), layout=layout)


def test_a_tensor_is_made_of_tensors_only():
    for filters in (ONES, jnp.ones((1, 2, 1))):
        for make in (conv_matrix, conv_offset):
            with pytest.raises(ArgumentError, match=r"library: .*PyTorch's f.*torch\.as_tensor"):
                make(filters, (4,), PLAIN, library="torch")


@pytest.mark.parametrize("make", [conv_matrix, conv_offset])
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((ONES, (4,)), ArgumentError, "geometry: filters alone do not say"),
        ((ConvLayer(PLAIN, ONES), (4,), PLAIN), ArgumentError, "geometry: only filters are given"),
        (("conv", (4,)), UnsupportedModel, "layer: this is not a layer that convfc knows"),
        ((nn.Linear(2, 2), (4,)), UnsupportedLayer, "it is not a CONV layer"),
        ((np.ones((1, 3, 1)), (4,), PLAIN), ShapeError, "filters: wrong size"),
        ((ONES, (1,), PLAIN), GeometryError, "the kernel is larger than the padded input"),
        ((ONES, (4, 4), PLAIN), GeometryError, "input_size: the kernel has 1 spatial axes"),
    ],
)
def test_what_is_no_layer_is_refused(make: Any, arguments: tuple, error: type, text: str):
    with pytest.raises(error, match=text):
        make(*arguments)


def test_what_would_not_fit_is_refused_before_any_work():
    geometry = ConvGeometry(64, 64, (3, 3), padding=1)
    filters = np.ones(geometry.filters_shape, dtype=np.float32)

    def refused(layout: Any) -> None:
        with pytest.raises(MemoryBudgetError, match=r"the machine has free.*conv_operator\("):
            conv_matrix(filters, (20_000, 20_000), geometry, layout=layout)

    for layout in ("csr", "dense"):
        _, peak = traced_peak(lambda layout=layout: refused(layout))
        assert peak < 16 * 2**20  # tables of the two axes


def test_memory_is_a_promise():
    A = conv_matrix(ONES, (4,), PLAIN)
    needed = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes
    assert conv_matrix(ONES, (4,), PLAIN, memory=needed).nnz == 6
    text = re.escape("got 3 x 4, 6 entries (50 %), 88 bytes")
    with pytest.raises(MemoryBudgetError, match=rf"memory: .*at most the 87 bytes.*{text}"):
        conv_matrix(ONES, (4,), PLAIN, memory=needed - 1)
    # The dense one is made of the sparse one.
    dense = needed + 8 * 3 * 4
    assert conv_matrix(ONES, (4,), PLAIN, layout="dense", memory=dense).shape == (3, 4)
    with pytest.raises(MemoryBudgetError, match="memory: the matrix does not fit"):
        conv_matrix(ONES, (4,), PLAIN, layout="dense", memory=dense - 1)
