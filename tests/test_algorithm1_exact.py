"""Algorithm 1 on small integers, bit for bit: against the oracle and against three judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
from cases import CASES, EXPERIMENT, FIGURE_6, Case, case
from hypothesis import assume, given
from judges import EXACT_DTYPE, JUDGES, LARGEST_NDIM, judge_torch
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
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float64])
def test_large_inputs_are_pytorchs(subject: Case, dtype: type):
    """The oracle would take minutes here; PyTorch is exact on integers in float64."""
    x, filters, bias = subject.integers(dtype=dtype)
    wide = [a.astype(np.float64) for a in (x, filters, bias)]
    verdict = judge_torch(wide[0], wide[1], subject.geometry, wide[2])
    assert np.array_equal(conv_as_matmul(x, filters, subject.geometry, bias), verdict)


JUDGED = [(j, c) for j in JUDGES for c in CASES if c.geometry.spatial_ndim <= LARGEST_NDIM[j]]


@pytest.mark.parametrize(("judge", "subject"), JUDGED, ids=str)
def test_conv_as_matmul_is_the_judges_on_the_table(judge: str, subject: Case):
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
