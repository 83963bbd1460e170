"""Which dtypes go together: where nothing is rounded they do, and else one line makes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from cases import case
from libraries import JAX, LIBRARIES, TORCH, Library, dtype_name, to_numpy

from convfc import ConvGeometry, conv_as_matmul, filters_to_matrix, im2col, patch_product
from convfc.errors import DtypeError

INTEGERS = {"bool": 1, "int8": 7, "uint8": 8, "int16": 15, "uint16": 16}
INTEGERS |= {"int32": 31, "uint32": 32, "int64": 63, "uint64": 64}
"""Bits of their numbers, the sign aside."""

FLOATING = {"bfloat16": 8, "float16": 11, "float32": 24, "complex64": 24}
FLOATING |= {"float64": 53, "complex128": 53}
"""Bits up to which they have every integer."""

PAIRS = [
    pytest.param(library, floating, integer, role, id=f"{library}-{floating}-{integer}-{role}")
    for library in LIBRARIES
    for floating in FLOATING
    for integer in INTEGERS
    for role in (["x", "filters", "bias"] if floating == "float32" else ["x"])
    if library in (TORCH, JAX) or floating != "bfloat16"
]


def arrays(library: Library, floating: str, integer: str, role: str) -> dict[str, Any]:
    """A layer of one tap that gives back the smallest and the largest integer, held by one array.

    Two filters on one element, or one on two.
    """
    bounds = [False, True] if integer == "bool" else [*_limits(integer)]
    positions, filters = (2, 1) if role == "x" else (1, 2)
    held = {
        "x": np.full((1, positions, 1), role != "bias"),
        "filters": np.full((filters, 1, 1), role != "bias"),
        "bias": np.zeros(filters),
    }
    made = {
        name: _as(library, library.array(values.astype(np.float32)), floating)
        for name, values in held.items()
    }
    made[role] = library.array(np.array(bounds, integer).reshape(held[role].shape))
    return made


def _limits(integer: str) -> tuple[int, int]:
    return np.iinfo(integer).min, np.iinfo(integer).max


def _as(library: Library, array: Any, dtype: str) -> Any:
    return array.to(getattr(torch, dtype)) if library is TORCH else array.astype(dtype)


def output(x: Any, filters: Any, bias: Any) -> Any:
    geometry = ConvGeometry(1, filters.shape[0], (1,))
    return conv_as_matmul(x, filters, geometry, bias)


@pytest.mark.parametrize(("library", "floating", "integer", "role"), PAIRS)
def test_integers_stand_beside_a_floating_dtype_that_has_them_all(
    library: Library, floating: str, integer: str, role: str
):
    with jax.enable_x64(True):
        given = arrays(library, floating, integer, role)
        if INTEGERS[integer] <= FLOATING[floating]:
            y = output(**given)
            assert dtype_name(y) == floating
            assert to_numpy(y).ravel().tolist() == to_numpy(given[role]).ravel().tolist()
            return
        with pytest.raises(DtypeError) as refusal:
            output(**given)
        message, line = str(refusal.value).split(". Remedy: type ")
        dtype = given["bias" if role == "x" else "x"].dtype
        assert message == (
            "x and filters and bias: the dtypes differ, and convfc never rounds in silence; "
            f"expected integers that {dtype} has, up to 2**{FLOATING[floating]}; "
            f"got {', '.join(str(array.dtype) for array in given.values())}"
        )
        assert line.startswith(f"{role}.")
        given[role] = library.array(np.zeros(given[role].shape, integer))  # below that bound
        mended = eval(line, {"np": np, "jnp": jnp, "torch": torch, **given})  # noqa: S307 (ours)
        assert dtype_name(output(**given | {role: mended})) == floating


def test_images_of_bytes_meet_floating_filters(library: Library):
    subject = case((6, 5), (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), c=4, f=6, groups=2)
    g = subject.geometry
    x, filters, bias = subject.integers(dtype=np.float32)
    image = np.abs(x).astype(np.uint8) + np.uint8(200)
    expected = oracle.conv(image.astype(np.int64), filters, g, bias)
    images, weights, offsets = library.arrays(image, filters, bias)
    results = [
        conv_as_matmul(images, weights, g, offsets),
        conv_as_matmul(
            images, weights, g, offsets, memory=8 * g.groups * g.taps * 4
        ),  # eight rows at a time
    ]
    M, K = im2col(images, g), filters_to_matrix(weights, g)
    assert (dtype_name(M), dtype_name(K)) == ("uint8", "float32")
    rows = to_numpy(patch_product(M, K, g)) + bias
    assert np.array_equal(rows.reshape(expected.shape), expected)
    for y in results:
        assert dtype_name(y) == "float32"
        assert np.array_equal(to_numpy(y), expected)


@pytest.mark.parametrize("integer", ["bool", "uint8", "uint16", "uint32", "uint64"])
def test_unsigned_integers_are_added_up_in_uint64_where_one_is(integer: str):
    x = np.full((1, 2, 1), np.iinfo(np.uint64).max)
    y = output(x, np.ones((1, 1, 1), integer), None)
    assert y.dtype == np.uint64
    assert np.array_equal(y, x)
