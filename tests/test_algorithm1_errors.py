"""Arrays that do not fit: refused with what, where, expected, got and remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from libraries import Library, to_numpy

from convfc import (
    ConvGeometry,
    as_conv1d,
    col2im,
    conv_as_matmul,
    filters_to_matrix,
    im2col,
    index_map,
    matrix_to_filters,
    patch_product,
    rows_to_output,
)
from convfc.errors import ConvfcError, DtypeError, GeometryError, MemoryBudgetError, ShapeError

G = ConvGeometry(2, 3, (3, 2))
X = np.ones((1, 4, 4, 2))
W = np.ones((3, 3, 2, 2))
M = np.ones((1, 6, 12))
K = np.ones((12, 3))
ROWS = np.ones((1, 6, 3))

Refusal = tuple[Callable[[], Any], type[ConvfcError], str]


def conv(x: Any = X, filters: Any = W, bias: Any = None, **rest: Any) -> Any:
    return conv_as_matmul(x, filters, G, bias, **rest)


SHAPES: dict[str, Refusal] = {
    "x-rank": (
        lambda: conv(X[0]),
        ShapeError,
        r"x: wrong rank; .*got \(4, 4, 2\).*: type x\[None\]$",
    ),
    "x-channels": (lambda: conv(X[..., :1]), ShapeError, r"x: .*got \(1, 4, 4, 1\). Remedy"),
    "x-size": (lambda: conv(X[:, :2]), GeometryError, r"kernel_size: .*larger than the padded"),
    "x-empty-axis": (lambda: conv(X[:, :0]), GeometryError, r"input_size\[0\]: .*got 0"),
    "filters-rank": (lambda: conv(filters=W[0]), ShapeError, r"filters: wrong rank; .*\(3, 2, 2\)"),
    "filters-count": (
        lambda: conv(filters=W[:2]),
        ShapeError,
        r"filters: .*expected \(3, 3, 2, 2\); got \(2, 3, 2, 2\)",
    ),
    "filters-channels": (
        lambda: conv(filters=W[..., :1]),
        ShapeError,
        r"filters: .*\(3, 3, 2, 1\)",
    ),
    "bias-size": (lambda: conv(bias=np.ones(2)), ShapeError, r"bias: .*expected \(3.*got \(2,\)"),
    "bias-rank": (lambda: conv(bias=np.ones((1, 3))), ShapeError, r"bias: .*rank.*got \(1, 3\)"),
    "im2col-rank": (lambda: im2col(X[0], G), ShapeError, r"x: wrong rank; .*got \(4, 4, 2\)"),
    "im2col-channels": (lambda: im2col(X[..., :1], G), ShapeError, r"x: .*got \(1, 4, 4, 1\)"),
    "col2im-rows": (
        lambda: col2im(M[:, :5], G, (4, 4)),
        ShapeError,
        r"patches: .*expected \(b, 6, 12\); got \(1, 5, 12\)",
    ),
    "col2im-rank": (lambda: col2im(M[0], G, (4, 4)), ShapeError, r"patches: .*got \(6, 12\)"),
    "col2im-columns": (lambda: col2im(M[..., :3], G, (4, 4)), ShapeError, r"got \(1, 6, 3\)"),
    "col2im-axes": (lambda: col2im(M, G, (4,)), GeometryError, r"input_size: .*got \(4,\)"),
    "col2im-size": (lambda: col2im(M, G, (2, 2)), GeometryError, r"larger than the padded input"),
    "filters_to_matrix": (
        lambda: filters_to_matrix(W[0], G),
        ShapeError,
        r"filters: wrong rank; .*layout \(f, \*kernel, c/groups\)",
    ),
    "matrix_to_filters": (
        lambda: matrix_to_filters(K.T, G),
        ShapeError,
        r"matrix: .*expected \(12, 3\); got \(3, 12\)",
    ),
    "product-K": (lambda: patch_product(M, K[:5], G), ShapeError, r"matrix: .*got \(5, 3\)"),
    "product-M": (lambda: patch_product(M[..., :5], K, G), ShapeError, r"patches: .*\(1, 6, 5\)"),
    "product-rank": (lambda: patch_product(M[0], K, G), ShapeError, r"patches: .*got \(6, 12\)"),
    "rows-count": (
        lambda: rows_to_output(ROWS[:, :5], G, (4, 4)),
        ShapeError,
        r"rows: .*expected \(b, 6, 3\); got \(1, 5, 3\)",
    ),
    "rows-filters": (lambda: rows_to_output(ROWS[..., :2], G, (4, 4)), ShapeError, r"\(1, 6, 2\)"),
}

DTYPES: dict[str, Refusal] = {
    "x-list": (lambda: conv(X.tolist()), DtypeError, r"x: this is not an array.*got list.*asarray"),
    "filters-list": (lambda: conv(filters=W.tolist()), DtypeError, r"filters: .*got list"),
    "bias-list": (lambda: conv(bias=[1.0, 2.0, 3.0]), DtypeError, r"bias: .*got list"),
    "x-none": (lambda: conv(None), DtypeError, r"x: this is not an array.*got NoneType"),
    "x-string": (lambda: conv(X.astype(str)), DtypeError, r"x: .*no numbers.*got <U"),
    "x-object": (lambda: conv(X.astype(object)), DtypeError, r"x: .*no numbers.*got object"),
    "x-date": (lambda: conv(X.astype("datetime64[s]")), DtypeError, r"x: .*got datetime64\[s\]"),
    "filters-string": (lambda: conv(filters=W.astype(str)), DtypeError, r"filters: .*no numbers"),
    "im2col-list": (lambda: im2col(X.tolist(), G), DtypeError, r"x: .*got list"),
    "im2col-string": (lambda: im2col(X.astype(str), G), DtypeError, r"x: .*no numbers"),
    "col2im-string": (lambda: col2im(M.astype(str), G, (4, 4)), DtypeError, r"patches: .*numbers"),
    "float32-float64": (
        lambda: conv(X.astype(np.float32)),
        DtypeError,
        r"x and filters: the dtypes differ; .*float32, float64\..* type x\.astype\(np\.float64\)$",
    ),
    "complex-real": (lambda: conv(X.astype(complex)), DtypeError, r"got complex128, float64"),
    "uint64-int8": (
        lambda: conv(X.astype(np.uint64), W.astype(np.int8)),
        DtypeError,
        r"common integer dtype.*got uint64, int8\. Remedy: type x\.astype\(np\.int64\)$",
    ),
    "bias-float32": (
        lambda: conv(bias=np.ones(3, np.float32)),
        DtypeError,
        r"bias.*dtypes differ.*float32",
    ),
    "product-dtypes": (lambda: patch_product(M, K.astype("f4"), G), DtypeError, r"dtypes differ"),
    "torch-dtypes": (
        lambda: conv(torch.ones(1, 4, 4, 2), torch.tensor(W)),
        DtypeError,
        r"got torch\.float32, torch\.float64\. Remedy: type x\.to\(torch\.float64\)$",
    ),
    "half-bfloat16": (
        lambda: conv(torch.tensor(X).half(), torch.tensor(W).bfloat16()),
        DtypeError,
        r"type x\.to\(torch\.float32\) and filters\.to\(torch\.float32\)$",
    ),
    "int64-float32-float64": (
        lambda: conv(X.astype(int), W.astype("f4"), np.ones(3)),
        DtypeError,
        r"type x\.astype\(np\.float64\) and filters\.astype\(np\.float64\)$",
    ),
    "numpy-torch": (
        lambda: conv(filters=torch.tensor(W)),
        DtypeError,
        r"x and filters: .*different libraries; expected one library; got numpy, torch",
    ),
    "torch-numpy": (lambda: conv(torch.tensor(X)), DtypeError, r"got torch, numpy"),
    "torch-jax": (
        lambda: conv(torch.ones(1, 4, 4, 2), jnp.ones((3, 3, 2, 2))),
        DtypeError,
        r"different libraries.*got torch, jax",
    ),
    "bias-torch": (lambda: conv(bias=torch.ones(3)), DtypeError, r"libraries.*torch"),
    "product-libraries": (
        lambda: patch_product(M, torch.tensor(K), G),
        DtypeError,
        r"patches and matrix: .*got numpy, torch",
    ),
    "masked": (
        lambda: conv(np.ma.masked_less(X, 0)),
        DtypeError,
        r"x: .*got MaskedArray",
    ),
}

OTHERS: dict[str, Refusal] = {
    "geometry-tuple": (lambda: conv_as_matmul(X, W, (3, 2)), ConvfcError, r"geometry: .*got tuple"),
    "memory-nan": (lambda: conv(memory=float("nan")), MemoryBudgetError, r"memory: .*got nan"),
    "memory-text": (lambda: conv(memory="1 GB"), MemoryBudgetError, r"memory: .*got '1 GB'"),
    "memory-none": (lambda: conv(memory=None), MemoryBudgetError, r"memory: .*got None"),
    "memory-true": (lambda: conv(memory=True), MemoryBudgetError, r"memory: .*got True"),
    "entry-float": (
        lambda: index_map(G, (4, 4)).element(0.5, 0),
        ConvfcError,
        r"\(p, q\): .*got \(0\.5, 0\)",
    ),
}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [*SHAPES.values(), *DTYPES.values(), *OTHERS.values()],
    ids=[*SHAPES, *DTYPES, *OTHERS],
)
def test_refused(call: Callable[[], Any], error: type[ConvfcError], message: str):
    with pytest.raises(error, match=message):
        call()


def test_the_arrays_these_are_changed_from_are_accepted():
    assert conv().shape == (1, 2, 3, 3)
    assert col2im(M, G, (4, 4)).shape == X.shape
    assert np.array_equal(filters_to_matrix(W, G), K)
    assert np.array_equal(matrix_to_filters(K, G), W)
    assert np.array_equal(im2col(X, G), M)
    assert np.array_equal(rows_to_output(patch_product(M, K, G), G, (4, 4)), conv())


GREY = np.arange(30).reshape(5, 6)
COLOUR = np.arange(90).reshape(5, 6, 3)
LAYOUTS = {
    "one-grey-image": (GREY, GREY[None, ..., None]),
    "grey-images": (GREY[None], GREY[None, ..., None]),
    "one-image": (COLOUR, COLOUR[None]),
    "one-image-channels-first": (np.moveaxis(COLOUR, -1, 0), COLOUR[None]),
    "images-channels-first": (np.moveaxis(COLOUR, -1, 0)[None], COLOUR[None]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_remedy_for_a_layout_is_a_line_that_works(library: Library, name: str):
    given, wanted = LAYOUTS[name]
    geometry = ConvGeometry(wanted.shape[-1], 1, (2, 2))
    x = library.array(given)
    for call in (lambda x: im2col(x, geometry), as_conv1d_of(library, geometry).lay_out):
        with pytest.raises(ShapeError, match=r"^x: wrong .*\(b, \*spatial, c\): type ") as refusal:
            call(x)
        line = str(refusal.value).split(": type ")[1]
        mended = eval(line, {"np": np, "jnp": jnp, "torch": torch, "x": x})  # noqa: S307 (ours)
        assert np.array_equal(to_numpy(mended), wanted)
        call(mended)


def as_conv1d_of(library: Library, geometry: ConvGeometry) -> Any:
    filters = library.array(np.ones(geometry.filters_shape, np.float32))
    return as_conv1d(filters, (5, 6), geometry)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 2), (1, 5, 6, 2), (1, 1, 5, 6, 3)], ids=str)
def test_no_line_is_given_where_none_works(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"use the layout \(b, \*spatial, c\)$"):
        im2col(np.ones(shape), ConvGeometry(3, 1, (2, 2)))
