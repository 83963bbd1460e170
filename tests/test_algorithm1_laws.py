"""Laws of the linear maps: adjoint, linearity, round trips, and the five steps as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import CASES, Case
from hypothesis import given
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


def random_patches(subject: Case, seed: int) -> np.ndarray:
    shape = subject.geometry.patch_matrix_shape(subject.batch, subject.input_size)
    return np.random.default_rng(seed).integers(-4, 5, size=shape)


@given(cases(), seeds)
def test_col2im_is_the_adjoint_of_im2col(subject: Case, seed: int):
    x, _, _ = subject.integers(seed)
    patches = random_patches(subject, seed)
    folded = col2im(patches, subject.geometry, subject.input_size)
    assert folded.shape == x.shape
    assert (im2col(x, subject.geometry) * patches).sum() == (x * folded).sum()


@given(cases(), seeds)
def test_col2im_adds_every_entry_to_the_element_it_reads(subject: Case, seed: int):
    patches = random_patches(subject, seed)
    expected = np.zeros(subject.x_shape, dtype=np.int64)
    for p, row in enumerate(oracle.readings(subject.geometry, subject.input_size)):
        for q, element in enumerate(row):
            if element is not None:
                expected[(slice(None), *element)] += patches[:, p, q]
    folded = col2im(patches, subject.geometry, subject.input_size)
    assert np.array_equal(folded, expected)


@given(cases(), seeds)
def test_im2col_and_col2im_are_linear(subject: Case, seed: int):
    g, n = subject.geometry, subject.input_size
    x, other = subject.integers(seed)[0], subject.integers(seed + 1)[0]
    assert np.array_equal(im2col(3 * x - 2 * other, g), 3 * im2col(x, g) - 2 * im2col(other, g))
    M, N = random_patches(subject, seed), random_patches(subject, seed + 1)
    assert np.array_equal(col2im(3 * M - 2 * N, g, n), 3 * col2im(M, g, n) - 2 * col2im(N, g, n))


@given(cases(), seeds)
def test_conv_as_matmul_is_linear_in_x_in_filters_and_in_bias(subject: Case, seed: int):
    g = subject.geometry
    x, filters, bias = subject.integers(seed)
    x2, filters2, bias2 = subject.integers(seed + 1)
    y = conv_as_matmul(x, filters, g)
    assert np.array_equal(
        conv_as_matmul(2 * x - x2, filters, g), 2 * y - conv_as_matmul(x2, filters, g)
    )
    assert np.array_equal(
        conv_as_matmul(x, 2 * filters - filters2, g), 2 * y - conv_as_matmul(x, filters2, g)
    )
    assert np.array_equal(conv_as_matmul(x, filters, g, bias - bias2), y + bias - bias2)


@given(cases(), seeds)
def test_a_transposed_layer_is_the_adjoint_of_its_convolution(subject: Case, seed: int):
    """<conv(x), v> == <x, transposed(v)>, which is where the name comes from."""
    g = replace(
        subject.geometry, groups=1, transposed=False, output_padding=0, padding_mode="zeros"
    )
    n = tuple(m + e for m, e in zip(subject.input_size, g.effective_kernel_size, strict=True))
    x, filters, _ = Case(g, n, subject.batch).integers(seed)
    y = conv_as_matmul(x, filters, g)
    v = np.random.default_rng(seed).integers(-4, 5, size=y.shape)
    axes = zip(n, g.padding, g.effective_kernel_size, g.stride, strict=True)
    backward = replace(
        g,
        in_channels=g.out_channels,
        out_channels=g.in_channels,
        transposed=True,
        output_padding=[(m + low + high - e) % s for m, (low, high), e, s in axes],  # the floor's
    )
    back = conv_as_matmul(v, np.swapaxes(filters, 0, -1), backward)
    assert back.shape == x.shape
    assert (y * v).sum() == (x * back).sum()


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_filters_to_matrix_and_back_is_the_identity(subject: Case):
    g = subject.geometry
    _, filters, _ = subject.integers()
    K = filters_to_matrix(filters, g)
    assert K.shape == g.filter_matrix_shape
    assert np.array_equal(matrix_to_filters(K, g), filters)
    assert np.array_equal(filters_to_matrix(matrix_to_filters(K, g), g), K)


def test_a_column_of_k_is_one_filter_flattened_row_by_row_channels_innermost():
    g = ConvGeometry(3, 2, (2, 2))
    filters = np.arange(24).reshape(2, 2, 2, 3)
    K = filters_to_matrix(filters, g)
    assert K[:, 0].tolist() == list(range(12))
    assert K[:, 1].tolist() == list(range(12, 24))


@given(cases(), seeds)
def test_the_five_steps_are_conv_as_matmul(subject: Case, seed: int):
    g = subject.geometry
    x, filters, _ = subject.integers(seed)
    rows = patch_product(im2col(x, g), filters_to_matrix(filters, g), g)
    assert rows.shape[-1] == g.out_channels
    y = rows_to_output(rows, g, subject.input_size)
    assert np.array_equal(y, conv_as_matmul(x, filters, g))


@pytest.mark.parametrize("subject", [c for c in CASES if c.geometry.groups == 1], ids=str)
def test_without_groups_the_product_is_plain_m_times_k(subject: Case):
    g = subject.geometry
    x, filters, _ = subject.integers()
    product = im2col(x, g) @ filters_to_matrix(filters, g)
    out = g.output_size(subject.input_size)
    assert np.array_equal(
        product.reshape(subject.batch, *out, g.out_channels), conv_as_matmul(x, filters, g)
    )


@pytest.mark.parametrize("subject", [c for c in CASES if c.geometry.groups > 1], ids=str)
def test_with_groups_each_block_of_columns_meets_its_own_filters(subject: Case):
    g = subject.geometry
    x, filters, _ = subject.integers()
    blocks = np.split(im2col(x, g), g.groups, axis=-1)
    parts = np.split(filters_to_matrix(filters, g), g.groups, axis=-1)
    product = np.concatenate([M @ K for M, K in zip(blocks, parts, strict=True)], axis=-1)
    assert np.array_equal(product, conv_as_matmul(x, filters, g).reshape(product.shape))


def test_patch_product_takes_any_number_of_rows():
    g = ConvGeometry(2, 4, (2,), groups=2)
    x, filters, _ = Case(g, (6,)).integers()
    M, K = im2col(x, g), filters_to_matrix(filters, g)
    whole = patch_product(M, K, g)
    assert np.array_equal(patch_product(M[:, 1:3], K, g), whole[:, 1:3])


@pytest.mark.parametrize(("flip", "expected"), [(False, [6, 5, 4]), (True, [4, 5, 6])])
def test_conv_of_a_delta_shows_the_kernel(flip: bool, expected: list[int]):
    """A cross-correlation shows it turned round, the true convolution of Eq. (3) as it is."""
    delta = np.array([0, 0, 1, 0, 0]).reshape(1, 5, 1)
    kernel = np.array([4, 5, 6]).reshape(1, 3, 1)
    y = conv_as_matmul(delta, kernel, ConvGeometry(1, 1, (3,), flip=flip))
    assert y.ravel().tolist() == expected


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_a_filter_that_is_one_tap_copies_one_column_of_m(subject: Case):
    g = subject.geometry
    x = subject.integers()[0]
    M = oracle.im2col(x, g)
    for tap in range(g.taps):
        K = np.zeros((g.taps, g.out_channels), dtype=np.int64)
        K[tap] = 1
        y = conv_as_matmul(x, matrix_to_filters(K, g), g).reshape(len(x), -1, g.out_channels)
        for f in range(g.out_channels):
            group = f // (g.out_channels // g.groups)
            assert np.array_equal(y[..., f], M[..., group * g.taps + tap])
