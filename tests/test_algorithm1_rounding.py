"""Real values within the rounding bound gamma_n * (|M||K| + |b|) per element; NaN and Inf."""

from __future__ import annotations

import jax
import numpy as np
import oracle
import pytest
import torch
from bounds import UNIT_ROUNDOFF, conv_bound, gamma, reference
from cases import CASES, Case, case
from hypothesis import given
from judges import jax_layer, torch_layer
from libraries import JAX, NUMPY, TORCH, Library, dtype_name, to_numpy
from strategies import cases, seeds

from convfc import ConvGeometry, conv_as_matmul


def within(
    computed: np.ndarray, arrays: tuple[np.ndarray, ...], geometry: ConvGeometry, dtype: str
):
    x, filters, bias = arrays
    error = np.abs(computed.astype(np.clongdouble) - reference(x, filters, geometry, bias))
    allowed = conv_bound(x, filters, geometry, bias, dtype=dtype)
    assert error.shape == allowed.shape
    assert (error <= allowed).all()


@given(cases(), seeds)
def test_float32_is_within_the_bound(subject: Case, seed: int):
    arrays = subject.reals(seed, np.float32)
    within(
        conv_as_matmul(*arrays[:2], subject.geometry, arrays[2]),
        arrays,
        subject.geometry,
        "float32",
    )


TABLE = [c for c in CASES if np.prod(c.input_size) < 100][::2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", [NUMPY, TORCH, JAX], ids=str)
@pytest.mark.parametrize("subject", TABLE[::2], ids=str)
def test_every_dtype_is_within_its_bound(library: Library, dtype: str, subject: Case):
    arrays = subject.reals(dtype=dtype)
    with jax.enable_x64(True):
        x, filters, bias = library.arrays(*arrays)
        y = conv_as_matmul(x, filters, subject.geometry, bias)
    assert dtype_name(y) == dtype
    within(to_numpy(y), arrays, subject.geometry, dtype)


@pytest.mark.parametrize("subject", TABLE[::2], ids=str)
def test_bfloat16_is_within_its_bound(subject: Case):
    tensors = [torch.tensor(a).bfloat16() for a in subject.reals(dtype=np.float32)]
    x, filters, bias = tensors
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    arrays = tuple(to_numpy(tensor) for tensor in tensors)
    within(to_numpy(y), arrays, subject.geometry, "bfloat16")


@pytest.mark.parametrize("subject", [c for c in TABLE if c.geometry.spatial_ndim < 4], ids=str)
def test_the_native_layers_are_within_the_same_bound(subject: Case):
    """So ours and theirs differ by rounding alone."""
    arrays = subject.reals(dtype=np.float32)
    for library, layer in ((TORCH, torch_layer), (JAX, jax_layer)):
        x, filters, bias = library.arrays(*arrays)
        y = to_numpy(layer(x, filters, subject.geometry, bias))
        within(y, arrays, subject.geometry, "float32")


def test_the_bound_is_tight_enough_to_fail():
    """A change of the answer by a few units in the last place of |M||K| is seen."""
    subject = case((6, 5), (3, 2))
    arrays = subject.reals(dtype=np.float32)
    x, filters, bias = arrays
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    allowed = conv_bound(x, filters, subject.geometry, bias, dtype="float32")
    assert np.array_equal(np.isfinite(allowed), np.ones_like(allowed, dtype=bool))
    with pytest.raises(AssertionError, match="all"):
        within(y + 3 * allowed, arrays, subject.geometry, "float32")


def test_gamma_is_highams():
    assert gamma(1, 0.5) == 1.0
    assert gamma(3, 2.0**-24) == 3 * 2.0**-24 / (1 - 3 * 2.0**-24)
    with pytest.raises(AssertionError, match="2 terms are too many"):
        gamma(2, 0.5)
    for name in ("float16", "float32", "float64"):
        assert UNIT_ROUNDOFF[name] == np.finfo(name).eps / 2
    assert UNIT_ROUNDOFF["bfloat16"] == torch.finfo(torch.bfloat16).eps / 2


SPECIAL = [
    case((6, 5), (3, 2), stride=(2, 1)),
    case((6, 5), (3, 3), padding=1, padding_mode="reflect"),
    case((6, 5), (3, 3), padding=1, padding_mode="circular", c=4, f=4, groups=2),
    case((7,), (3,), dilation=2, flip=True),
]


def kinds(y: np.ndarray) -> np.ndarray:
    """NaN, -inf, +inf or finite, per element."""
    return np.where(np.isnan(y), 9, np.where(np.isinf(y), np.sign(y), 0))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "filters", "bias"])
@pytest.mark.parametrize("subject", SPECIAL, ids=str)
def test_nan_and_inf_pass_through_as_in_the_native_layer(subject: Case, where: str, special: float):
    arrays = dict(zip(("x", "filters", "bias"), subject.reals(dtype=np.float32), strict=True))
    arrays[where].flat[arrays[where].size // 2] = special
    x, filters, bias = arrays.values()
    native = torch_layer(
        *(torch.tensor(a) for a in (x, filters)), subject.geometry, torch.tensor(bias)
    )
    with np.errstate(invalid="ignore"):
        ours = conv_as_matmul(x, filters, subject.geometry, bias)
    assert np.array_equal(kinds(ours), kinds(native.numpy()))
    assert 0 < np.count_nonzero(kinds(ours)) <= ours.size


PADDED = case((6, 5), (3, 3), padding=1)
TRANSPOSED = case((4, 3), (3, 3), transposed=True, stride=2, padding=1, output_padding=1)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("subject", [PADDED, TRANSPOSED], ids=str)
def test_nan_and_inf_of_the_input_pass_zero_padding_as_in_the_native_layers(
    subject: Case, special: float
):
    x, filters, bias = subject.reals(dtype=np.float32)
    x.flat[x.size // 2] = special
    ours = kinds(conv_as_matmul(x, filters, subject.geometry, bias))
    for library, layer in ((TORCH, torch_layer), (JAX, jax_layer)):
        arrays = library.arrays(x, filters, bias)
        native = layer(arrays[0], arrays[1], subject.geometry, arrays[2])
        assert np.array_equal(ours, kinds(to_numpy(native)))
    assert np.any(ours)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("subject", [PADDED, TRANSPOSED], ids=str)
def test_a_filter_that_is_not_finite_meets_the_zeros_of_m(subject: Case, special: float):
    """0 * inf is NaN: M K multiplies the zeros that PyTorch's layers skip; JAX's multiply them
    too where they are padding, and skip those that spread a transposed layer's input.
    """
    x, filters, bias = subject.reals(dtype=np.float32)
    filters.flat[0] = special
    with np.errstate(invalid="ignore"):
        ours = kinds(conv_as_matmul(x, filters, subject.geometry, bias))
    native = {}
    for library, layer in ((TORCH, torch_layer), (JAX, jax_layer)):
        arrays = library.arrays(x, filters, bias)
        native[library.name] = kinds(
            to_numpy(layer(arrays[0], arrays[1], subject.geometry, arrays[2]))
        )
    with np.errstate(invalid="ignore"):
        zeros_too = oracle.im2col(x, subject.geometry) @ filters.reshape(len(filters), -1).T + bias
    assert np.array_equal(ours, kinds(zeros_too.reshape(ours.shape)))
    if not subject.geometry.transposed:
        assert np.array_equal(ours, native["jax"])
    for theirs in native.values():
        assert np.array_equal(ours[theirs != 0], theirs[theirs != 0])
        assert set(ours[theirs == 0].tolist()) <= {0, 9}
