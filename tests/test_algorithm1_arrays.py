"""NumPy, PyTorch and JAX arrays: what comes in comes out, unchanged, exact, and traceable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from cases import CASES, UNREAD, Case, case
from libraries import JAX, LIBRARIES, NUMPY, TORCH, Library, dtype_name, to_numpy

from convfc import (
    col2im,
    conv_as_matmul,
    filters_to_matrix,
    im2col,
    matrix_to_filters,
    patch_product,
    rows_to_output,
)

EVERY_KIND = [
    case((6, 5), (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), c=4, f=6, groups=2),
    case((5, 4), (3, 3), padding=1, padding_mode="reflect"),
    case((5, 4), (3, 3), padding=((2, 0), (1, 2)), padding_mode="circular", flip=True),
    case((5,), (3,), padding=2, padding_mode="replicate", dilation=2),
    case((4, 3), (3, 2), transposed=True, stride=2, padding=1, output_padding=1),
    case((5, 4), (1, 1)),
    case((3, 3, 2), (2, 2, 2), c=1, f=2),
]
ONE = EVERY_KIND[0]
FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]
INTEGERS = ["bool", "int8", "int16", "int32", "int64", "uint8"]


def steps(library: Library, subject: Case, dtype: Any) -> dict[str, Any]:
    """Every public function's result on one library's arrays."""
    g = subject.geometry

    def all_steps(x: Any, filters: Any, bias: Any) -> dict[str, Any]:
        M, K = im2col(x, g), filters_to_matrix(filters, g)
        rows = patch_product(M, K, g)
        return {
            "im2col": M,
            "col2im": col2im(M, g, subject.input_size),
            "filters_to_matrix": K,
            "matrix_to_filters": matrix_to_filters(K, g),
            "patch_product": rows,
            "rows_to_output": rows_to_output(rows, g, subject.input_size),
            "conv_as_matmul": conv_as_matmul(x, filters, g, bias),
        }

    compiled = jax.jit(all_steps) if library is JAX else all_steps  # many times faster than eager
    return compiled(*library.arrays(*subject.integers(dtype=dtype)))


@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_every_library_gives_its_own_arrays_with_numpys_values(library: Library, subject: Case):
    expected = steps(NUMPY, subject, np.float32)
    for name, array in steps(library, subject, np.float32).items():
        assert isinstance(array, library.array_type), name
        assert dtype_name(array) == "float32", name
        assert np.array_equal(to_numpy(array), expected[name]), name


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_floating_or_complex_dtype_stays(library: Library, dtype: str):
    with jax.enable_x64(True):
        for name, array in steps(library, ONE, dtype).items():
            assert dtype_name(array) == dtype, name


@pytest.mark.parametrize("library", [TORCH, JAX], ids=str)
def test_bfloat16_stays(library: Library):
    x, filters, bias = ONE.integers()
    expected = oracle.conv(x, filters, ONE.geometry, bias)
    if library is TORCH:
        arrays = [torch.tensor(a).bfloat16() for a in (x, filters, bias)]
    else:
        arrays = [jnp.asarray(a, jnp.bfloat16) for a in (x, filters, bias)]
    y = conv_as_matmul(arrays[0], arrays[1], ONE.geometry, arrays[2])
    assert dtype_name(y) == "bfloat16"
    assert np.abs(expected).max() <= 256  # up to here bfloat16 has every integer
    assert np.array_equal(to_numpy(y), expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_and_booleans_are_added_up_in_the_default_integer(library: Library, dtype: str):
    x, filters, bias = (a.astype(dtype) for a in ONE.integers())
    g = ONE.geometry
    results = steps(library, ONE, dtype)
    for name in ("im2col", "filters_to_matrix", "matrix_to_filters"):
        expected = "int32" if library is JAX and dtype == "int64" else dtype
        assert dtype_name(results[name]) == expected, name
    for name in ("col2im", "patch_product", "rows_to_output", "conv_as_matmul"):
        assert dtype_name(results[name]) == library.default_integer, name
    expected = oracle.conv(x, filters, g, bias)
    assert np.array_equal(to_numpy(results["conv_as_matmul"]), expected)


EXTREMES = [("int8", -128), ("int8", 127), ("uint8", 255), ("int16", -32768), ("bool", True)]


@pytest.mark.parametrize(("dtype", "value"), EXTREMES)
def test_nothing_wraps_around(library: Library, dtype: str, value: int):
    subject = case((9,), (5,), c=4, f=2, padding=2)
    g = subject.geometry
    x, filters = library.arrays(
        np.full(subject.x_shape, value, dtype), np.full(subject.filters_shape, value, dtype)
    )
    with jax.enable_x64(True):
        M = im2col(x, g)
        y = conv_as_matmul(x, filters, g)
        folded = col2im(M, g, subject.input_size)
    taps = 4 * np.array([3, 4, 5, 5, 5, 5, 5, 4, 3])  # that do not meet the zeros of the padding
    assert to_numpy(y)[0, :, 0].tolist() == (taps * int(value) ** 2).tolist()
    readers = np.array([3, 4, 5, 5, 5, 5, 5, 4, 3])
    assert to_numpy(folded)[0, :, 0].tolist() == (readers * int(value)).tolist()


def test_signed_filters_meet_unsigned_images():
    x, filters, _ = ONE.integers()
    image = np.abs(x).astype(np.uint8) + np.uint8(200)
    y = conv_as_matmul(image, filters.astype(np.int8), ONE.geometry)
    assert np.array_equal(y, oracle.conv(image, filters, ONE.geometry))


LAYOUTS = {
    "contiguous": lambda a: a,
    "fortran": np.asfortranarray,
    "every-other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "negative-strides": lambda a: a[:, ::-1, :, ::-1][:, ::-1, :, ::-1],
    "flipped": lambda a: np.flip(np.flip(a).copy()),
    "channels-first-view": lambda a: np.moveaxis(np.moveaxis(a, -1, 1).copy(), 1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "subject", [c for c in EVERY_KIND if c.geometry.spatial_ndim == 2], ids=str
)
def test_numpy_arrays_of_any_layout_in_memory(layout: str, subject: Case):
    x, filters, _ = subject.integers()
    there = [LAYOUTS[layout](a) for a in (x, filters)]
    assert np.array_equal(there[0], x)
    assert np.array_equal(im2col(there[0], subject.geometry), oracle.im2col(x, subject.geometry))
    y = conv_as_matmul(*there, subject.geometry)
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry))
    K = filters_to_matrix(there[1], subject.geometry)
    assert np.array_equal(matrix_to_filters(K, subject.geometry), filters)


@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_torch_tensors_of_any_layout_in_memory(subject: Case):
    x, filters, _ = subject.integers()
    strided = [torch.tensor(a).movedim(-1, 1).contiguous().movedim(1, -1) for a in (x, filters)]
    wide = [torch.tensor(a).repeat_interleave(2, dim=1)[:, ::2] for a in (x, filters)]
    expected = oracle.conv(x, filters, subject.geometry)
    for tensors in (strided, wide):
        M = im2col(tensors[0], subject.geometry)
        assert np.array_equal(M.numpy(), oracle.im2col(x, subject.geometry))
        assert np.array_equal(conv_as_matmul(*tensors, subject.geometry).numpy(), expected)


def test_an_array_on_disk_is_read_as_any_other(tmp_path: Path):
    subject = EVERY_KIND[1]
    x, filters, _ = subject.integers()
    on_disk = np.memmap(tmp_path / "x.bin", dtype=x.dtype, mode="w+", shape=x.shape)
    on_disk[:] = x
    y = conv_as_matmul(on_disk, filters, subject.geometry)
    assert type(y) is np.ndarray
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry))


def test_broadcast_views_are_read_as_what_they_show():
    subject = EVERY_KIND[1]
    x = np.broadcast_to(np.arange(4)[None, None, :, None], subject.x_shape)
    filters = np.broadcast_to(np.array([1, -2]), subject.filters_shape)
    y = conv_as_matmul(x, filters, subject.geometry)
    assert np.array_equal(y, oracle.conv(x.copy(), filters.copy(), subject.geometry))


GREY = np.random.default_rng(0).integers(-9, 10, (4, 6, 5))
COLOUR = np.random.default_rng(0).integers(-9, 10, (4, 6, 5, 3))
ONE_CHANNEL = {
    "grey[..., None]": GREY[..., None],
    "colour[..., 0, None]": COLOUR[..., 0, None],
    "colour[..., 0:1]": COLOUR[..., 0:1],
    "colour[..., [1]]": COLOUR[..., [1]],
}


@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_an_axis_of_length_1_may_have_any_stride(name: str):
    x = ONE_CHANNEL[name]
    subject = case((6, 5), (3, 2), c=1, batch=4)
    filters = subject.integers()[1]
    expected = oracle.im2col(x.copy(), subject.geometry)
    assert np.array_equal(im2col(x, subject.geometry), expected)
    y = conv_as_matmul(x, filters, subject.geometry)
    assert np.array_equal(y, oracle.conv(x.copy(), filters, subject.geometry))


@pytest.mark.parametrize("library", [each for each in LIBRARIES if each is not JAX], ids=str)
@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_inputs_are_never_changed(library: Library, subject: Case):
    g = subject.geometry
    before = subject.integers()
    x, filters, bias = library.arrays(*before)
    M = im2col(x, g)
    M_before = to_numpy(M).copy()
    K = filters_to_matrix(filters, g)
    col2im(M, g, subject.input_size)
    patch_product(M, K, g)
    conv_as_matmul(x, filters, g, bias)
    conv_as_matmul(x, filters, g, bias, memory=g.groups * g.taps * 8)  # row by row
    for after, value in zip((x, filters, bias), before, strict=True):
        assert np.array_equal(to_numpy(after), value)
    assert np.array_equal(to_numpy(M), M_before)


@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_writing_into_the_output_leaves_the_inputs_alone(subject: Case):
    before = subject.integers()
    x, filters, bias = (a.copy() for a in before)
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    y += 100
    assert np.array_equal(x, before[0])
    assert np.array_equal(filters, before[1])
    assert np.array_equal(conv_as_matmul(x, filters, subject.geometry, bias) + 100, y)


@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_an_empty_batch_gives_an_empty_result_of_the_right_shape(library: Library, subject: Case):
    g = subject.geometry
    nobody = Case(g, subject.input_size, batch=0)
    x, filters, bias = library.arrays(*nobody.integers(dtype=np.float32))
    out = g.output_size(subject.input_size)
    M = im2col(x, g)
    y = conv_as_matmul(x, filters, g, bias)
    assert tuple(M.shape) == g.patch_matrix_shape(0, subject.input_size)
    assert tuple(y.shape) == (0, *out, g.out_channels)
    assert tuple(col2im(M, g, subject.input_size).shape) == nobody.x_shape
    assert {dtype_name(M), dtype_name(y)} == {"float32"}
    assert isinstance(y, library.array_type)


def test_meta_tensors_keep_their_device_and_cost_nothing():
    x = torch.empty(2, 6, 5, 4, device="meta")
    filters = torch.empty(ONE.filters_shape, device="meta")
    assert im2col(x, ONE.geometry).device.type == "meta"
    y = conv_as_matmul(x, filters, ONE.geometry)
    assert y.device.type == "meta"
    assert tuple(y.shape[1:-1]) == ONE.geometry.output_size((6, 5))


@pytest.mark.parametrize("subject", [*EVERY_KIND, UNREAD], ids=str)
def test_torch_results_stay_on_the_inputs_device_whatever_the_default(subject: Case):
    arrays = subject.integers()
    x, filters, bias = TORCH.arrays(*arrays)
    with torch.device("meta"):  # where new tensors go unless told otherwise
        y = conv_as_matmul(x, filters, subject.geometry, bias)
        M = im2col(x, subject.geometry)
        folded = col2im(M, subject.geometry, subject.input_size)
    assert {y.device.type, M.device.type, folded.device.type} == {"cpu"}
    assert np.array_equal(y.numpy(), oracle.conv(*arrays[:2], subject.geometry, arrays[2]))


@pytest.mark.parametrize("memory", [2**30, 2 * 24 * 4])
@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_jax_jit_and_vmap(subject: Case, memory: int):
    g = subject.geometry
    x, filters, bias = subject.integers(dtype=np.float32)
    xs, all_filters = np.stack([x, x[::-1]]), np.stack([filters, 2 * filters])
    whole = [conv_as_matmul(a, w, g, bias) for a, w in zip(xs, all_filters, strict=True)]

    def layer(a: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return conv_as_matmul(a, w, g, b, memory=memory)

    assert np.array_equal(jax.jit(layer)(x, filters, bias), whole[0])
    many = jax.jit(jax.vmap(layer, in_axes=(0, 0, None)))(xs, all_filters, bias)
    assert np.array_equal(many, np.stack(whole))


@pytest.mark.parametrize("memory", [2**30, 2 * 24 * 4])
@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_torch_vmap(subject: Case, memory: int):
    g = subject.geometry
    x, filters, bias = subject.integers(dtype=np.float32)
    xs, all_filters = np.stack([x, x[::-1]]), np.stack([filters, 2 * filters])
    whole = [conv_as_matmul(a, w, g, bias) for a, w in zip(xs, all_filters, strict=True)]
    many = torch.func.vmap(
        lambda a, w, b: conv_as_matmul(a, w, g, b, memory=memory), in_dims=(0, 0, None)
    )(torch.tensor(xs), torch.tensor(all_filters), torch.tensor(bias))
    assert np.array_equal(many.numpy(), np.stack(whole))


@pytest.mark.parametrize("library", [TORCH, JAX], ids=str)
@pytest.mark.parametrize("subject", CASES, ids=str)
def test_conv_as_matmul_is_the_oracles_in_torch_and_jax(library: Library, subject: Case):
    arrays = subject.integers(dtype=np.float32)

    def layer(x: Any, filters: Any, bias: Any) -> Any:
        return conv_as_matmul(x, filters, subject.geometry, bias)

    y = (jax.jit(layer) if library is JAX else layer)(*library.arrays(*arrays))
    assert np.array_equal(to_numpy(y), oracle.conv(*arrays[:2], subject.geometry, arrays[2]))
