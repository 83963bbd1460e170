"""An N-dimensional convolution as one 1-D convolution, exactly; others compute that one."""

from __future__ import annotations

from math import prod

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, case
from hypothesis import given
from libraries import JAX, Library, to_numpy
from strategies import cases, seeds
from torch import nn

from convfc import ConvGeometry, ConvLayer
from convfc.errors import ShapeError
from convfc.operators.conv1d import as_conv1d


@given(cases(), seeds)
def test_it_is_the_layer_and_pytorch_s_1d_convolution_computes_it(subject: Case, seed: int):
    x, filters, bias = subject.integers(seed)
    layer = ConvLayer(subject.geometry, filters, bias)
    form = as_conv1d(layer, subject.input_size)
    expected = oracle.conv(x, filters, subject.geometry, bias)
    assert np.array_equal(form(x), expected)
    row = form.lay_out(x)
    assert row.shape == (subject.batch, form.length, subject.geometry.in_channels)
    parts = (torch.from_numpy(np.moveaxis(a, -1, 1).astype(float)) for a in (row, form.filters))
    y = F.conv1d(*parts, groups=subject.geometry.groups).numpy()
    assert np.array_equal(form.read_out(np.moveaxis(y, 1, -1)) + bias, expected)


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_the_form_is_plain_and_as_short_as_can_be(subject: Case):
    g = subject.geometry
    form = as_conv1d(np.ones(subject.filters_shape, int), subject.input_size, g)
    assert form.geometry == ConvGeometry(
        g.in_channels, g.out_channels, form.filters.shape[1:2], groups=g.groups
    )
    assert form.filters.shape == form.geometry.filters_shape
    taps = prod(g.kernel_size)
    assert np.count_nonzero(form.filters) == g.out_channels * taps * form.filters.shape[-1]
    assert np.all(form.filters[:, [0, -1]])  # no zeros at its ends
    assert form.zeros == 1 - taps / form.filters.shape[1]
    if not g.transposed:  # the length is that of the padded input, and of its rows
        sizes = [n + sum(p) for n, p in zip(subject.input_size, g.padding, strict=True)]
        assert form.length == prod(sizes)
        rows = [prod(sizes[a + 1 :]) for a in range(len(sizes))]
        reach = zip(g.effective_kernel_size, rows, strict=True)
        assert form.filters.shape[1] == 1 + sum((k - 1) * row for k, row in reach)


def test_the_zeros_that_separate_rows_are_the_padding():
    geometry = ConvGeometry(1, 1, (3, 3), padding=((0, 0), (1, 1)))
    form = as_conv1d(np.ones((1, 3, 3, 1), int), (3, 2), geometry)
    x = np.arange(1, 7).reshape(1, 3, 2, 1)
    assert form.lay_out(x).ravel().tolist() == [0, 1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0]
    assert form.filters.ravel().tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1]
    assert form(x).ravel().tolist() == [21, 21]
    # And a 1-D convolution stays what it is.
    subject = case((9,), (3,), padding=((2, 1),))
    filters = subject.integers()[1]
    form = as_conv1d(filters, subject.input_size, subject.geometry)
    assert np.array_equal(form.filters, filters)
    assert form.zeros == 0


def test_arrays_of_every_library_come_back(library: Library):
    subject = case((6,), (3,), padding=((2, 1),), stride=2)
    x, filters, bias = subject.integers(dtype=np.float32)
    layer = ConvLayer(subject.geometry, library.array(filters), library.array(bias))
    y = as_conv1d(layer, subject.input_size)(library.array(x))
    assert isinstance(y, library.array_type)
    assert np.array_equal(to_numpy(y), oracle.conv(x, filters, subject.geometry, bias))
    if library is JAX:
        assert y.dtype == "float32"


def test_gradients_flow_to_the_input_of_a_layer_of_pytorch():
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) % 5 - 2)
    x = torch.arange(120.0, dtype=torch.float64).reshape(2, 2, 5, 6).requires_grad_(True)
    y = as_conv1d(conv, (5, 6))(x.movedim(1, -1)).movedim(-1, 1)
    assert torch.equal(y, conv(x))
    weights = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)
    (ours,), (native,) = (torch.autograd.grad(out, x, weights) for out in (y, conv(x)))
    assert torch.equal(ours, native)


def test_what_does_not_fit_is_refused():
    geometry = ConvGeometry(1, 1, (2, 2))
    form = as_conv1d(np.ones((1, 2, 2, 1)), (3, 3), geometry)
    with pytest.raises(ShapeError, match=r"x: wrong size; expected \(b, 3, 3, 1\)"):
        form(np.ones((1, 3, 4, 1)))
    with pytest.raises(ShapeError, match=r"y: wrong size; expected \(b, 5, 1\)"):
        form.read_out(np.ones((1, 6, 1)))
