"""Algorithm 1: the same bits as the oracle and three judges, its laws, gradients and rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from bounds import UNIT_ROUNDOFF, conv_bound, gamma, reference
from cases import CASES, Case, case
from hypothesis import given
from judges import EXACT_DTYPE, JUDGES, LARGEST_NDIM, jax_layer, judge_torch, torch_layer
from libraries import JAX, NUMPY, TORCH, Library, dtype_name, to_numpy
from strategies import cases, seeds

from convfc import (
    ConvGeometry,
    col2im,
    conv_as_matmul,
    filters_to_matrix,
    im2col,
    matrix_to_filters,
    patch_product,
    rows_to_output,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# On integers: the oracle, and judges none of us wrote.


@given(cases(), seeds)
def test_m_and_the_output_are_the_oracles(subject: Case, seed: int):
    x, filters, bias = subject.integers(seed)
    assert np.array_equal(im2col(x, subject.geometry), oracle.im2col(x, subject.geometry))
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    assert y.dtype == np.int64
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry, bias))


def judged_equal(judge: str, subject: Case, seed: int = 0) -> None:
    x, filters, bias = subject.integers(seed, EXACT_DTYPE[judge])
    verdict = JUDGES[judge](x, filters, subject.geometry, bias)
    ours = conv_as_matmul(x, filters, subject.geometry, bias)
    assert verdict.shape == ours.shape
    assert np.array_equal(ours, verdict)


# JAX compiles every case anew; the other two take the whole table, and drawn cases.
JUDGED = [
    (judge, subject)
    for judge in JUDGES
    for subject in (CASES[::4] if judge == "jax" else CASES)
    if subject.geometry.spatial_ndim <= LARGEST_NDIM[judge]
]


@pytest.mark.parametrize(("judge", "subject"), JUDGED, ids=str)
def test_conv_as_matmul_is_the_judges_on_the_table(judge: str, subject: Case):
    judged_equal(judge, subject)


@given(cases(max_ndim=LARGEST_NDIM["torch"]), seeds)
def test_conv_as_matmul_is_pytorchs(subject: Case, seed: int):
    judged_equal("torch", subject, seed)


LARGE = [  # M is larger than a core's cache, and its rows are of every kind that NumPy copies
    case((90, 80), (5, 5), c=1, f=2, batch=3, padding=2),
    case((90, 80), (3, 5), c=1, f=2, batch=3, dilation=(1, 2)),
    case((90, 80), (3, 4), c=1, f=2, batch=3, stride=(1, 2), flip=True),
    case((60, 70), (5, 3), c=4, f=4, batch=2, groups=4, padding=((1, 0), (0, 2))),
    case((60, 70), (3, 3), c=6, f=3, batch=2, groups=3, padding=1, padding_mode="circular"),
    case((40, 50), (3, 3), c=1, f=2, batch=2, transposed=True, stride=2),
    case((12, 20, 30), (3, 2, 3), c=1, f=1, batch=2, padding=1, padding_mode="replicate"),
]


@pytest.mark.parametrize("subject", LARGE, ids=str)
@pytest.mark.parametrize("dtype", [np.int8, np.float64])  # runs of one byte, and of eight
def test_large_inputs_are_pytorchs(subject: Case, dtype: type):
    """The oracle would take minutes here; PyTorch is exact on integers in float64."""
    x, filters, bias = subject.integers(dtype=dtype)
    wide = [a.astype(np.float64) for a in (x, filters, bias)]
    verdict = judge_torch(wide[0], wide[1], subject.geometry, wide[2])
    assert np.array_equal(conv_as_matmul(x, filters, subject.geometry, bias), verdict)


# The laws of the linear maps.


def random_patches(subject: Case, seed: int) -> np.ndarray:
    shape = subject.geometry.patch_matrix_shape(subject.batch, subject.input_size)
    return np.random.default_rng(seed).integers(-4, 5, size=shape)


def folded_by_hand(subject: Case, patches: np.ndarray) -> np.ndarray:
    """Every entry of M added to the element that the oracle says it reads."""
    total = np.zeros(subject.x_shape, patches.dtype)
    for p, row in enumerate(oracle.readings(subject.geometry, subject.input_size)):
        for q, element in enumerate(row):
            if element is not None:
                total[(slice(None), *element)] += patches[:, p, q]
    return total


@given(cases(), seeds)
def test_col2im_is_the_adjoint_of_im2col(subject: Case, seed: int):
    x, patches = subject.integers(seed)[0], random_patches(subject, seed)
    folded = col2im(patches, subject.geometry, subject.input_size)
    assert np.array_equal(folded, folded_by_hand(subject, patches))
    assert (im2col(x, subject.geometry) * patches).sum() == (x * folded).sum()


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_the_steps(subject: Case):
    """K and back; each group's columns of M meet its own filters; the five steps are the whole."""
    g = subject.geometry
    x, filters, _ = subject.integers()
    M, K = im2col(x, g), filters_to_matrix(filters, g)
    assert K.shape == g.filter_matrix_shape
    assert np.array_equal(matrix_to_filters(K, g), filters)
    rows = patch_product(M, K, g)
    groups = zip(np.split(M, g.groups, axis=-1), np.split(K, g.groups, axis=-1), strict=True)
    assert np.array_equal(rows, np.concatenate([m @ k for m, k in groups], axis=-1))
    assert np.array_equal(patch_product(M[:, 1:3], K, g), rows[:, 1:3])
    y = rows_to_output(rows, g, subject.input_size)
    assert np.array_equal(y, conv_as_matmul(x, filters, g))


# Gradients, against the native layers' own.


def cotangent(subject: Case, seed: int, dtype: Any) -> np.ndarray:
    """What flows back into the output: small integers."""
    g = subject.geometry
    shape = (subject.batch, *g.output_size(subject.input_size), g.out_channels)
    return np.random.default_rng(seed).integers(-4, 5, size=shape).astype(dtype)


def torch_gradients(layer: Any, subject: Case, seed: int, **rest: Any) -> list[np.ndarray]:
    leaves = [torch.tensor(a, requires_grad=True) for a in subject.integers(seed, np.float64)]
    x, filters, bias = leaves
    y = layer(x, filters, subject.geometry, bias, **rest)
    y.backward(torch.tensor(cotangent(subject, seed, np.float64)))
    assert all(leaf.grad is not None for leaf in leaves)
    return [leaf.grad.numpy() for leaf in leaves]


def vjp_in_jax(
    layer: Any, subject: Case, arrays: Sequence[np.ndarray], v: np.ndarray, **rest: Any
) -> list[np.ndarray]:
    @jax.jit
    def pulled_back(leaves: list[jax.Array], v: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda x, w, b: layer(x, w, subject.geometry, b, **rest), *leaves)[1](v)

    gradients = pulled_back([jnp.asarray(a) for a in arrays], jnp.asarray(v))
    return [np.asarray(gradient) for gradient in gradients]


def same(ours: list[np.ndarray], native: list[np.ndarray]) -> None:
    for name, mine, theirs in zip(("x", "filters", "bias"), ours, native, strict=True):
        assert np.array_equal(mine, theirs), name


@given(cases(max_ndim=3), seeds)
def test_torch_gradients_are_the_native_layers(subject: Case, seed: int):
    native = torch_gradients(torch_layer, subject, seed)
    same(torch_gradients(conv_as_matmul, subject, seed), native)


@pytest.mark.parametrize("subject", CASES[2:], ids=str)
def test_torch_gradients_in_blocks_of_rows_are_the_same(subject: Case):
    whole = torch_gradients(conv_as_matmul, subject, 0)
    memory = 2 * subject.geometry.groups * subject.geometry.taps * 8  # two rows
    same(torch_gradients(conv_as_matmul, subject, 0, memory=memory), whole)


@pytest.mark.parametrize("subject", [CASES[10], CASES[14], CASES[22]], ids=str)
def test_jax_gradients_are_the_native_layers(subject: Case):
    arrays, v = subject.integers(0, np.float32), cotangent(subject, 0, np.float32)
    native = vjp_in_jax(jax_layer, subject, arrays, v)
    same(vjp_in_jax(conv_as_matmul, subject, arrays, v), native)
    if subject.geometry.spatial_ndim > 1:
        return
    _, rows, columns = subject.geometry.patch_matrix_shape(1, subject.input_size)
    memory = -(-rows // 3) * columns * 4  # a third of an image: JAX unrolls the blocks
    same(vjp_in_jax(conv_as_matmul, subject, arrays, v, memory=memory), native)


@pytest.mark.parametrize("subject", CASES[2:], ids=str)
def test_the_gradient_of_im2col_is_col2im(subject: Case):
    x = torch.tensor(subject.integers(dtype=np.float64)[0], requires_grad=True)
    v = random_patches(subject, 0).astype(np.float64)
    im2col(x, subject.geometry).backward(torch.tensor(v))
    assert np.array_equal(x.grad.numpy(), folded_by_hand(subject, v))


@pytest.mark.parametrize("subject", CASES[5:20:3], ids=str)
def test_second_derivatives_are_the_native_layers(subject: Case):
    """The gradient for x is linear in the filters: its own gradient is exact too."""

    def second(layer: Any) -> np.ndarray:
        x, filters, _ = (
            torch.tensor(a, requires_grad=True) for a in subject.integers(0, np.float64)
        )
        v = torch.tensor(cotangent(subject, 0, np.float64))
        (first,) = torch.autograd.grad(layer(x, filters, subject.geometry), x, v, create_graph=True)
        u = torch.tensor(subject.integers(1, np.float64)[0])
        return torch.autograd.grad(first, filters, u)[0].numpy()

    assert np.array_equal(second(conv_as_matmul), second(torch_layer))


def test_only_what_is_asked_for_gets_a_gradient():
    subject = CASES[8]
    x, filters, bias = (torch.tensor(a) for a in subject.integers(dtype=np.float32))
    assert not conv_as_matmul(x, filters, subject.geometry, bias).requires_grad
    filters.requires_grad_()
    conv_as_matmul(x, filters, subject.geometry, bias).sum().backward()
    assert x.grad is None
    assert filters.grad is not None


# On real numbers: the rounding bound gamma_n * (|M||K| + |b|) per element.


def within(
    computed: np.ndarray, arrays: tuple[np.ndarray, ...], geometry: ConvGeometry, dtype: str
) -> None:
    x, filters, bias = arrays
    error = np.abs(computed.astype(np.clongdouble) - reference(x, filters, geometry, bias))
    allowed = conv_bound(x, filters, geometry, bias, dtype=dtype)
    assert error.shape == allowed.shape
    assert (error <= allowed).all()


@given(cases(), seeds)
def test_float32_is_within_the_bound(subject: Case, seed: int):
    x, filters, bias = arrays = subject.reals(seed, np.float32)
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    within(y, arrays, subject.geometry, "float32")


TABLE = [c for c in CASES if np.prod(c.input_size) < 100][::4]
REAL = ("float16", "float32", "float64", "complex64", "complex128")
LIBRARY_DTYPES = [(library, dtype) for library in (NUMPY, TORCH) for dtype in REAL]
LIBRARY_DTYPES += [(JAX, "float16"), (JAX, "float64")]


@pytest.mark.parametrize(("library", "dtype"), LIBRARY_DTYPES, ids=str)
def test_every_dtype_is_within_its_bound(library: Library, dtype: str):
    for subject in TABLE[:1] if library is JAX else TABLE:
        arrays = subject.reals(dtype=dtype)
        with jax.enable_x64(True):
            x, filters, bias = library.arrays(*arrays)
            y = conv_as_matmul(x, filters, subject.geometry, bias)
        assert dtype_name(y) == dtype
        within(to_numpy(y), arrays, subject.geometry, dtype)


@pytest.mark.parametrize("subject", TABLE, ids=str)
def test_bfloat16_is_within_its_bound(subject: Case):
    tensors = [torch.tensor(a).bfloat16() for a in subject.reals(dtype=np.float32)]
    y = conv_as_matmul(tensors[0], tensors[1], subject.geometry, tensors[2])
    within(to_numpy(y), tuple(map(to_numpy, tensors)), subject.geometry, "bfloat16")


def test_the_bound_is_tight_enough_to_fail():
    """A change of the answer by a few units in the last place of |M||K| is seen."""
    subject = case((6, 5), (3, 2))
    x, filters, bias = arrays = subject.reals(dtype=np.float32)
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    allowed = conv_bound(x, filters, subject.geometry, bias, dtype="float32")
    assert np.isfinite(allowed).all()
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


# NaN and infinity.

SPECIAL = [
    case((6, 5), (3, 2), stride=(2, 1)),
    case((6, 5), (3, 3), padding=1, padding_mode="reflect"),
    case((6, 5), (3, 3), padding=1, padding_mode="circular", c=4, f=4, groups=2),
    case((7,), (3,), dilation=2, flip=True),
]
PADDED = case((6, 5), (3, 3), padding=1)
TRANSPOSED = case((4, 3), (3, 3), transposed=True, stride=2, padding=1, output_padding=1)
NOT_FINITE = pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)


def kinds(y: Any) -> np.ndarray:
    """NaN, -inf, +inf or finite, per element."""
    y = to_numpy(y)
    return np.where(np.isnan(y), 9, np.where(np.isinf(y), np.sign(y), 0))


def native_kinds(subject: Case, arrays: Sequence[np.ndarray], library: Library) -> np.ndarray:
    x, filters, bias = library.arrays(*arrays)
    layer = torch_layer if library is TORCH else jax_layer
    return kinds(layer(x, filters, subject.geometry, bias))


PASSED_ON = [(subject, where) for subject in SPECIAL for where in ("x", "filters", "bias")]
PASSED_ON += [(PADDED, "x"), (TRANSPOSED, "x")]


@NOT_FINITE
@pytest.mark.parametrize(("subject", "where"), PASSED_ON, ids=str)
def test_nan_and_inf_pass_through_as_in_the_native_layers(
    subject: Case, where: str, special: float
):
    arrays = subject.reals(dtype=np.float32)
    changed = arrays[("x", "filters", "bias").index(where)]
    changed.flat[changed.size // 2] = special
    with np.errstate(invalid="ignore"):
        ours = kinds(conv_as_matmul(*arrays[:2], subject.geometry, arrays[2]))
    assert np.array_equal(ours, native_kinds(subject, arrays, TORCH))
    if subject in (PADDED, TRANSPOSED):
        assert np.array_equal(ours, native_kinds(subject, arrays, JAX))
    assert np.any(ours)


@NOT_FINITE
@pytest.mark.parametrize("subject", [PADDED, TRANSPOSED], ids=str)
def test_a_filter_that_is_not_finite_meets_the_zeros_of_m(subject: Case, special: float):
    """0 * inf is NaN: M K multiplies the zeros that PyTorch's layers skip; JAX's multiply them
    too where they are padding, and skip those that spread a transposed layer's input.
    """
    x, filters, bias = arrays = subject.reals(dtype=np.float32)
    filters.flat[0] = special
    with np.errstate(invalid="ignore"):
        ours = kinds(conv_as_matmul(x, filters, subject.geometry, bias))
        zeros_too = oracle.im2col(x, subject.geometry) @ filters.reshape(len(filters), -1).T + bias
    native = {library: native_kinds(subject, arrays, library) for library in (TORCH, JAX)}
    assert np.array_equal(ours, kinds(zeros_too.reshape(ours.shape)))
    if not subject.geometry.transposed:
        assert np.array_equal(ours, native[JAX])
    for theirs in native.values():
        assert np.array_equal(ours[theirs != 0], theirs[theirs != 0])
        assert set(ours[theirs == 0].tolist()) <= {0, 9}
