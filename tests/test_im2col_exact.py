"""Algorithm 1 on small integers, bit for bit: against the oracle and against three judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import CASES, EXPERIMENT, FIGURE_6, Case
from hypothesis import assume, given
from judges import EXACT_DTYPE, JUDGES, LARGEST_NDIM
from strategies import cases, seeds

from convfc import conv_as_matmul, im2col


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_conv_as_matmul_is_the_oracles_on_the_table(subject: Case):
    x, filters, bias = subject.integers()
    y = conv_as_matmul(x, filters, subject.geometry, bias)
    assert y.dtype == np.int64
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry, bias))


@given(cases(), seeds)
def test_conv_as_matmul_is_the_oracles(subject: Case, seed: int):
    x, filters, _ = subject.integers(seed)
    y = conv_as_matmul(x, filters, subject.geometry)
    assert np.array_equal(y, oracle.conv(x, filters, subject.geometry))


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_every_entry_of_m_is_the_oracles_on_the_table(subject: Case):
    x, _, _ = subject.integers()
    assert np.array_equal(im2col(x, subject.geometry), oracle.im2col(x, subject.geometry))


@given(cases(), seeds)
def test_every_entry_of_m_is_the_oracles(subject: Case, seed: int):
    x, _, _ = subject.integers(seed)
    assert np.array_equal(im2col(x, subject.geometry), oracle.im2col(x, subject.geometry))


def test_figure_6_is_49_patches_of_16():
    x, _, _ = FIGURE_6.integers()
    assert im2col(x, FIGURE_6.geometry).shape == (1, 49, 16)


def test_the_experiment_is_169_patches_of_16():
    x, _, _ = EXPERIMENT.integers()
    assert im2col(x, EXPERIMENT.geometry).shape == (2, 169, 16)


def judged_equal(judge: str, subject: Case, seed: int) -> None:
    dtype = EXACT_DTYPE[judge]
    arrays = subject.integers(seed, dtype)
    x, filters, bias = arrays
    verdict = JUDGES[judge](x, filters, subject.geometry, bias)
    ours = conv_as_matmul(x, filters, subject.geometry, bias)
    assert verdict.shape == ours.shape
    assert np.array_equal(ours, verdict)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("subject", CASES, ids=str)
def test_conv_as_matmul_is_the_judges_on_the_table(judge: str, subject: Case):
    if subject.geometry.spatial_ndim > LARGEST_NDIM[judge]:
        pytest.skip(f"{judge} has no {subject.geometry.spatial_ndim}-D convolution")
    judged_equal(judge, subject, seed=0)


@given(cases(max_ndim=LARGEST_NDIM["torch"]), seeds)
def test_conv_as_matmul_is_pytorchs(subject: Case, seed: int):
    judged_equal("torch", subject, seed)


@given(cases(max_ndim=LARGEST_NDIM["jax"]), seeds)
def test_conv_as_matmul_is_jaxs(subject: Case, seed: int):
    judged_equal("jax", subject, seed)


@given(cases(max_ndim=LARGEST_NDIM["scipy"]), seeds)
def test_conv_as_matmul_is_scipys(subject: Case, seed: int):
    judged_equal("scipy", subject, seed)


@given(cases(flip=True), seeds)
def test_flip_is_the_filters_turned_round_on_every_spatial_axis(subject: Case, seed: int):
    x, filters, _ = subject.integers(seed)
    turned = np.flip(filters, axis=tuple(range(1, filters.ndim - 1)))
    straight = replace(subject.geometry, flip=False)
    assert np.array_equal(
        conv_as_matmul(x, filters, subject.geometry), conv_as_matmul(x, turned, straight)
    )


@given(cases(), seeds)
def test_groups_are_separate_layers_side_by_side(subject: Case, seed: int):
    g = subject.geometry
    assume(g.groups > 1)
    x, filters, _ = subject.integers(seed)
    one = replace(
        g, in_channels=g.in_channels // g.groups, out_channels=g.out_channels // g.groups, groups=1
    )
    parts = zip(np.split(x, g.groups, axis=-1), np.split(filters, g.groups), strict=True)
    side_by_side = np.concatenate([conv_as_matmul(xs, fs, one) for xs, fs in parts], axis=-1)
    assert np.array_equal(conv_as_matmul(x, filters, g), side_by_side)
