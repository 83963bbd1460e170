"""Arrays of NumPy, PyTorch and JAX: what comes in comes out; dtypes that go together; refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from cases import CASES, UNREAD, Case, case
from libraries import JAX, NUMPY, NUMPY_READ_ONLY, TORCH, Library, dtype_name, to_numpy

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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def steps(library: Library, subject: Case, arrays: list[Any]) -> dict[str, Any]:
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

    if library is JAX:
        return jax.jit(all_steps)(*arrays)  # many times faster than eager
    # A few rows at a time; at least one, whatever the dtype.
    blocks = conv_as_matmul(*arrays[:2], g, arrays[2], memory=g.groups * g.taps * 16)
    return all_steps(*arrays) | {"in blocks": blocks}


def each(names: str, values: list[Any], in_jax: list[Any], libraries: Any = (NUMPY, TORCH)) -> Any:
    """Every library with every value; JAX, which compiles each anew, with few of them."""
    found = [(library, value) for library in libraries for value in values]
    found += [(JAX, value) for value in in_jax]
    return pytest.mark.parametrize(("library", names), found, ids=str)


@each("subject", EVERY_KIND, [ONE, EVERY_KIND[4]], (NUMPY, NUMPY_READ_ONLY, TORCH))
def test_every_library_gives_its_own_arrays_with_numpys_values(library: Library, subject: Case):
    given = subject.integers(dtype=np.float32)
    expected, arrays = steps(NUMPY, subject, list(given)), library.arrays(*given)
    for name, array in steps(library, subject, arrays).items():
        assert isinstance(array, library.array_type), name
        assert dtype_name(array) == "float32", name
        assert np.array_equal(to_numpy(array), expected[name]), name
    for array, before in zip(arrays, given, strict=True):  # inputs are never changed
        assert np.array_equal(to_numpy(array), before)


@each("dtype", FLOATS, ["complex64"])
def test_a_floating_or_complex_dtype_stays(library: Library, dtype: str):
    with jax.enable_x64(True):
        arrays = library.arrays(*ONE.integers(dtype=dtype))
        for name, array in steps(library, ONE, arrays).items():
            assert dtype_name(array) == dtype, name


@each("dtype", ["bool", "int8", "int16", "int32", "int64", "uint8"], ["int64", "uint8"])
def test_integers_and_booleans_are_added_up_in_the_default_integer(library: Library, dtype: str):
    x, filters, bias = arrays = [a.astype(dtype) for a in ONE.integers()]
    results = steps(library, ONE, library.arrays(*arrays))
    for name, array in results.items():
        moved = name in ("im2col", "filters_to_matrix", "matrix_to_filters")
        expected = "int32" if library is JAX and dtype == "int64" else dtype
        assert dtype_name(array) == (expected if moved else library.default_integer), name
    y = oracle.conv(x, filters, ONE.geometry, bias)
    assert np.array_equal(to_numpy(results["conv_as_matmul"]), y)


EXTREMES = [np.int8(-128), np.int8(127), np.uint8(255), np.int16(-32768), np.bool_(True)]


@each("value", EXTREMES, EXTREMES[:1])
def test_nothing_wraps_around(library: Library, value: np.generic):
    subject = case((9,), (5,), c=4, f=2, padding=2)
    g = subject.geometry
    x, filters = library.arrays(
        np.full(subject.x_shape, value), np.full(subject.filters_shape, value)
    )
    with jax.enable_x64(True):
        y = conv_as_matmul(x, filters, g)
        folded = col2im(im2col(x, g), g, subject.input_size)
    readers = np.array([3, 4, 5, 5, 5, 5, 5, 4, 3])  # windows that read each element
    assert to_numpy(y)[0, :, 0].tolist() == (4 * readers * int(value) ** 2).tolist()
    assert to_numpy(folded)[0, :, 0].tolist() == (readers * int(value)).tolist()


def test_signed_filters_meet_unsigned_images():
    x, filters, _ = ONE.integers()
    image = np.abs(x).astype(np.uint8) + np.uint8(200)
    y = conv_as_matmul(image, filters.astype(np.int8), ONE.geometry)
    assert np.array_equal(y, oracle.conv(image, filters, ONE.geometry))


# Any layout in memory.


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "fortran": np.asfortranarray,
    "every-other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "negative-strides": lambda a: a[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
    "flipped": lambda a: np.flip(np.flip(a).copy()),
    "channels-first": lambda a: np.moveaxis(np.moveaxis(a, -1, 1).copy(), 1, -1),
    "torch-channels-first": lambda a: torch.tensor(a).movedim(-1, 1).contiguous().movedim(1, -1),
    "torch-every-other": lambda a: torch.tensor(a).repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "subject", [c for c in EVERY_KIND if c.geometry.spatial_ndim == 2], ids=str
)
def test_arrays_of_any_layout_in_memory(layout: str, subject: Case):
    x, filters, _ = subject.integers()
    there = [LAYOUTS[layout](a) for a in (x, filters)]
    assert np.array_equal(there[0], x)
    M, y = im2col(there[0], subject.geometry), conv_as_matmul(*there, subject.geometry)
    assert np.array_equal(M, oracle.im2col(x, subject.geometry))
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry))
    K = filters_to_matrix(there[1], subject.geometry)
    assert np.array_equal(matrix_to_filters(K, subject.geometry), filters)


COLOUR = np.random.default_rng(0).integers(-9, 10, (4, 6, 5, 3))
VIEWS = {  # an axis of length 1 may have any stride; a broadcast one has 0
    "grey[..., None]": COLOUR[..., 0].copy()[..., None],
    "colour[..., 0, None]": COLOUR[..., 0, None],
    "colour[..., 0:1]": COLOUR[..., 0:1],
    "colour[..., [1]]": COLOUR[..., [1]],
    "broadcast": np.broadcast_to(np.arange(5)[:, None], (4, 6, 5, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_read_as_what_they_show(name: str, tmp_path: Path):
    x, geometry = VIEWS[name], ConvGeometry(1, 3, (3, 2))
    on_disk = np.memmap(tmp_path / "x.bin", dtype=x.dtype, mode="w+", shape=x.shape)
    on_disk[:] = x
    filters = np.broadcast_to(np.array([1, -2])[:, None], geometry.filters_shape)
    expected = oracle.conv(x.copy(), filters.copy(), geometry)
    assert np.array_equal(im2col(x, geometry), oracle.im2col(x.copy(), geometry))
    for given in (x, on_disk):
        y = conv_as_matmul(given, filters, geometry)
        assert type(y) is np.ndarray
        assert np.array_equal(y, expected)


@pytest.mark.parametrize("subject", EVERY_KIND, ids=str)
def test_writing_into_the_output_leaves_the_inputs_alone(subject: Case):
    before = subject.integers()
    x, filters, bias = (a.copy() for a in before)
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    y += 100
    assert np.array_equal(x, before[0])
    assert np.array_equal(filters, before[1])


@each("subject", EVERY_KIND[::2], [ONE])
def test_an_empty_batch_gives_an_empty_result_of_the_right_shape(library: Library, subject: Case):
    g = subject.geometry
    nobody = Case(g, subject.input_size, batch=0)
    x, filters, bias = library.arrays(*nobody.integers(dtype=np.float32))
    M, y = im2col(x, g), conv_as_matmul(x, filters, g, bias)
    assert tuple(M.shape) == g.patch_matrix_shape(0, subject.input_size)
    assert tuple(y.shape) == (0, *g.output_size(subject.input_size), g.out_channels)
    assert tuple(col2im(M, g, subject.input_size).shape) == nobody.x_shape
    assert {dtype_name(M), dtype_name(y)} == {"float32"}
    assert isinstance(y, library.array_type)


def test_meta_tensors_keep_their_device_and_cost_nothing():
    x = torch.empty(2, 6, 5, 4, device="meta")
    y = conv_as_matmul(x, torch.empty(ONE.filters_shape, device="meta"), ONE.geometry)
    assert im2col(x, ONE.geometry).device.type == y.device.type == "meta"
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
@each("subject", EVERY_KIND, [ONE, EVERY_KIND[3]], [TORCH])
def test_vmap(library: Library, subject: Case, memory: int):
    g = subject.geometry
    x, filters, bias = subject.integers(dtype=np.float32)
    xs, all_filters = np.stack([x, x[::-1]]), np.stack([filters, 2 * filters])
    whole = [conv_as_matmul(a, w, g, bias) for a, w in zip(xs, all_filters, strict=True)]

    def layer(a: Any, w: Any, b: Any) -> Any:
        return conv_as_matmul(a, w, g, b, memory=memory)

    if library is JAX:
        many = jax.jit(jax.vmap(layer, in_axes=(0, 0, None)))
    else:
        many = torch.func.vmap(layer, in_dims=(0, 0, None))
    assert np.array_equal(many(*library.arrays(xs, all_filters, bias)), np.stack(whole))


@each("subject", CASES, CASES[::6], [TORCH])
def test_conv_as_matmul_is_the_oracles_in_torch_and_jax(library: Library, subject: Case):
    arrays = subject.integers(dtype=np.float32)

    def layer(x: Any, filters: Any, bias: Any) -> Any:
        return conv_as_matmul(x, filters, subject.geometry, bias)

    y = (jax.jit(layer) if library is JAX else layer)(*library.arrays(*arrays))
    assert np.array_equal(to_numpy(y), oracle.conv(*arrays[:2], subject.geometry, arrays[2]))


# Which dtypes go together: those of which nothing is rounded; else one line makes them.

INTEGERS = {"bool": 1, "int8": 7, "uint8": 8, "int16": 15, "uint16": 16}
INTEGERS |= {"int32": 31, "uint32": 32, "int64": 63, "uint64": 64}
"""Bits of their numbers, without the sign."""

FLOATING = {"bfloat16": 8, "float16": 11, "float32": 24, "complex64": 24}
FLOATING |= {"float64": 53, "complex128": 53}
"""Bits up to which they have every integer."""

PAIRS = [
    pytest.param(library, floating, integer, role, id=f"{library}-{floating}-{integer}-{role}")
    for library in (NUMPY, TORCH, JAX)
    for floating in FLOATING
    for integer in INTEGERS
    for role in (["x", "filters", "bias"] if floating == "float32" else ["x"])
    if (library is TORCH) + (library is NUMPY) * (floating != "bfloat16")
    or (library is JAX and floating in ("bfloat16", "float32") and INTEGERS[integer] < 32)
]


def layer_of_one_tap(library: Library, floating: str, integer: str, role: str) -> dict[str, Any]:
    """A layer that gives back the smallest and the largest integer, held by one array.

    Two filters on one element, or one on two.
    """
    bounds = [False, True] if integer == "bool" else [np.iinfo(integer).min, np.iinfo(integer).max]
    positions, filters = (2, 1) if role == "x" else (1, 2)
    held = {
        "x": np.full((1, positions, 1), role != "bias"),
        "filters": np.full((filters, 1, 1), role != "bias"),
        "bias": np.zeros(filters),
    }
    made = {name: library.array(values.astype(np.float32)) for name, values in held.items()}
    for name, array in made.items():
        wide = getattr(torch, floating) if library is TORCH else floating
        made[name] = array.to(wide) if library is TORCH else array.astype(wide)
    made[role] = library.array(np.array(bounds, integer).reshape(held[role].shape))
    return made


def output(x: Any, filters: Any, bias: Any) -> Any:
    return conv_as_matmul(x, filters, ConvGeometry(1, filters.shape[0], (1,)), bias)


def typed(remedy: str, **arrays: Any) -> Any:
    """What the line gives that a remedy says to type."""
    names = {"np": np, "jnp": jnp, "torch": torch}
    return eval(remedy.partition(": type ")[2], names | arrays)  # noqa: S307 (our own line)


@pytest.mark.parametrize(("library", "floating", "integer", "role"), PAIRS)
def test_integers_stand_beside_a_floating_dtype_that_has_them_all(
    library: Library, floating: str, integer: str, role: str
):
    with jax.enable_x64(True):
        given = layer_of_one_tap(library, floating, integer, role)
        if INTEGERS[integer] <= FLOATING[floating]:
            y = output(**given)
            assert dtype_name(y) == floating
            assert to_numpy(y).ravel().tolist() == to_numpy(given[role]).ravel().tolist()
            return
        with pytest.raises(DtypeError) as refusal:
            output(**given)
        message, remedy = str(refusal.value).split(". Remedy")
        dtype = given["bias" if role == "x" else "x"].dtype
        assert message == (
            "x and filters and bias: the dtypes differ, and convfc never rounds in silence; "
            f"expected integers that {dtype} has, up to 2**{FLOATING[floating]}; "
            f"got {', '.join(str(array.dtype) for array in given.values())}"
        )
        assert remedy.startswith(f": type {role}.")
        given[role] = library.array(np.zeros(given[role].shape, integer))  # below that bound
        assert dtype_name(output(**given | {role: typed(remedy, **given)})) == floating


@pytest.mark.parametrize("library", [NUMPY_READ_ONLY, TORCH, JAX], ids=str)
def test_images_of_bytes_meet_floating_filters(library: Library):
    g = ONE.geometry
    x, filters, bias = ONE.integers(dtype=np.float32)
    image = np.abs(x).astype(np.uint8) + np.uint8(200)
    expected = oracle.conv(image.astype(np.int64), filters, g, bias)
    given = library.arrays(image, filters, bias)
    results = steps(library, ONE, given)
    assert dtype_name(results["im2col"]) == "uint8"
    for name in {"conv_as_matmul", "in blocks"} & results.keys():
        assert dtype_name(results[name]) == "float32"
        assert np.array_equal(to_numpy(results[name]), expected)


@pytest.mark.parametrize("integer", ["bool", "uint8", "uint16", "uint32", "uint64"])
def test_unsigned_integers_are_added_up_in_uint64_where_one_is(integer: str):
    x = np.full((1, 2, 1), np.iinfo(np.uint64).max)
    y = output(x, np.ones((1, 1, 1), integer), None)
    assert y.dtype == np.uint64
    assert np.array_equal(y, x)


# Arrays that do not fit: refused with what, where, expected, got and remedy.

G = ConvGeometry(2, 3, (3, 2))
X = np.ones((1, 4, 4, 2))
W = np.ones((3, 3, 2, 2))
M = np.ones((1, 6, 12))
K = np.ones((12, 3))
ROWS = np.ones((1, 6, 3))


def conv(x: Any = X, filters: Any = W, bias: Any = None, **rest: Any) -> Any:
    return conv_as_matmul(x, filters, G, bias, **rest)


REFUSED: list[tuple[type[ConvfcError], Callable[[], Any], str]] = [
    (ShapeError, lambda: conv(X[0]), r"x: wrong rank; .*got \(4, 4, 2\).*: type x\[None\]$"),
    (ShapeError, lambda: im2col(X[..., :1], G), r"x: wrong size; .*got \(1, 4, 4, 1\)"),
    (ShapeError, lambda: conv(filters=W[:2]), r"filters: .*\(3, 3, 2, 2\); got \(2, 3, 2, 2\)"),
    (ShapeError, lambda: conv(bias=np.ones(2)), r"bias: .*expected \(3.*got \(2,\)"),
    (ShapeError, lambda: col2im(M[:, :5], G, (4, 4)), r"patches: .*\(b, 6, 12\); got \(1, 5, 12\)"),
    (
        ShapeError,
        lambda: filters_to_matrix(W[0], G),
        r"filters: .*layout \(f, \*kernel, c/groups\)",
    ),
    (ShapeError, lambda: matrix_to_filters(K.T, G), r"matrix: .*\(12, 3\); got \(3, 12\)"),
    (ShapeError, lambda: patch_product(M, K[:5], G), r"matrix: .*got \(5, 3\)"),
    (ShapeError, lambda: patch_product(M[..., :5], K, G), r"patches: .*\(1, 6, 5\)"),
    (
        ShapeError,
        lambda: rows_to_output(ROWS[:, :5], G, (4, 4)),
        r"rows: .*\(b, 6, 3\); got \(1, 5",
    ),
    (DtypeError, lambda: conv(X.tolist()), r"x: this is not an array.*got list.*asarray"),
    (DtypeError, lambda: conv(np.ma.masked_less(X, 0)), r"x: .*got MaskedArray"),
    (DtypeError, lambda: conv(X.astype(str)), r"x: .*not hold numbers.*got <U"),
    (DtypeError, lambda: col2im(M.astype(str), G, (4, 4)), r"patches: .*numbers"),
    (
        DtypeError,
        lambda: conv(X.astype(np.float32)),
        r"x and filters: the dtypes differ; .*float32, float64\..* type x\.astype\(np\.float64\)$",
    ),
    (
        DtypeError,
        lambda: conv(X.astype(np.uint64), W.astype(np.int8)),
        r"common integer dtype.*got uint64, int8\. Remedy: type x\.astype\(np\.int64\)$",
    ),
    (
        DtypeError,
        lambda: conv(torch.ones(1, 4, 4, 2), torch.tensor(W)),
        r"got torch\.float32, torch\.float64\. Remedy: type x\.to\(torch\.float64\)$",
    ),
    (
        DtypeError,
        lambda: conv(torch.tensor(X).half(), torch.tensor(W).bfloat16()),
        r"type x\.to\(torch\.float32\) and filters\.to\(torch\.float32\)$",
    ),
    (DtypeError, lambda: conv(filters=torch.tensor(W)), r"different libraries; got numpy, torch"),
    (GeometryError, lambda: conv(X[:, :2]), r"kernel_size: .*larger than the padded"),
    (GeometryError, lambda: conv(X[:, :0]), r"input_size\[0\]: .*got 0"),
    (GeometryError, lambda: col2im(M, G, (4,)), r"input_size: .*got \(4,\)"),
    (GeometryError, lambda: conv_as_matmul(X, W, (3, 2)), r"geometry: .*got tuple"),
    (MemoryBudgetError, lambda: conv(memory=float("nan")), r"memory: .*got nan"),
    (MemoryBudgetError, lambda: im2col(X, G, memory=-1), r"memory: .*got -1"),
    (ConvfcError, lambda: index_map(G, (4, 4)).element(0.5, 0), r"\(p, q\): .*got \(0\.5, 0\)"),
]


@pytest.mark.parametrize(("error", "call", "message"), REFUSED)
def test_refused(error: type[ConvfcError], call: Callable[[], Any], message: str):
    with pytest.raises(error, match=message):
        call()


def test_the_arrays_these_are_changed_from_are_accepted():
    assert conv().shape == (1, 2, 3, 3)
    assert col2im(M, G, (4, 4)).shape == X.shape
    assert np.array_equal(filters_to_matrix(W, G), K)
    assert np.array_equal(matrix_to_filters(K, G), W)
    assert np.array_equal(im2col(X, G), M)
    assert np.array_equal(rows_to_output(patch_product(M, K, G), G, (4, 4)), conv())


PICTURE = np.arange(90).reshape(5, 6, 3)
GREY = PICTURE[..., 0].copy()
MISLAID = {
    "one-grey-image": (GREY, GREY[None, ..., None]),
    "grey-images": (GREY[None], GREY[None, ..., None]),
    "one-image": (PICTURE, PICTURE[None]),
    "one-image-channels-first": (np.moveaxis(PICTURE, -1, 0), PICTURE[None]),
    "images-channels-first": (np.moveaxis(PICTURE, -1, 0)[None], PICTURE[None]),
}


@pytest.mark.parametrize("library", [NUMPY, TORCH, JAX], ids=str)
@pytest.mark.parametrize("name", MISLAID)
def test_the_remedy_for_a_layout_is_a_line_that_works(library: Library, name: str):
    given, wanted = MISLAID[name]
    geometry = ConvGeometry(wanted.shape[-1], 1, (2, 2))
    x = library.array(given)
    filters = library.array(np.ones(geometry.filters_shape, np.float32))
    for call in (lambda x: im2col(x, geometry), as_conv1d(filters, (5, 6), geometry).lay_out):
        with pytest.raises(ShapeError, match=r"^x: wrong .*\(b, \*spatial, c\): type ") as refusal:
            call(x)
        mended = typed(str(refusal.value), x=x)
        assert np.array_equal(to_numpy(mended), wanted)
        call(mended)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 2), (1, 5, 6, 2), (1, 1, 5, 6, 3)], ids=str)
def test_no_line_is_given_where_none_works(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"use the layout \(b, \*spatial, c\)$"):
        im2col(np.ones(shape), ConvGeometry(3, 1, (2, 2)))
