"""Dtypes of the matrix, and what is refused: with the class, the place and the way out."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import Case, case
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


def test_unknown_names_are_refused():
    wrong: Any = "coo"
    with pytest.raises(ArgumentError, match="layout: there is no such layout; expected 'csr' or"):
        conv_matrix(ONES, (4,), PLAIN, layout=wrong)
    with pytest.raises(ArgumentError, match="order: there is no such order of axes"):
        conv_matrix(ONES, (4,), PLAIN, order=wrong)
    for make in (conv_matrix, conv_offset):
        with pytest.raises(ArgumentError, match=r"library: no matrix is made .*'scipy' or 'torch'"):
            make(ONES, (4,), PLAIN, library=wrong)


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
        ((nn.Linear(2, 2), (4,)), UnsupportedLayer, "it is no CONV layer"),
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
    tracemalloc.start()
    try:
        for layout in ("csr", "dense"):
            with pytest.raises(
                MemoryBudgetError, match=r"that the machine has free.*conv_operator\("
            ):
                conv_matrix(filters, (20_000, 20_000), geometry, layout=layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
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
