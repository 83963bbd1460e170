"""Singular values of CONV layers, against LAPACK's SVD of the explicit matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import strategies
import torch
from cases import CASES, Case, case
from hypothesis import given
from periodic import EPS, apart, lapack, lapack_bound, periodic_matrix
from torch import nn

from convfc import ConvGeometry, conv_matrix
from convfc.errors import (
    ArgumentError,
    DtypeError,
    MemoryBudgetError,
    NotConverged,
)
from convfc.methods import spectrum
from convfc.methods.spectrum import algorithms
from convfc.methods.spectrum.algorithms import periodic_axes

CIRCULAR = [
    case((6,), (3,)),
    case((7,), (3,)),  # no Nyquist frequency
    case((6, 4), (3, 3), padding=1),
    case((5, 8), (4, 2), stride=(1, 2)),
    case((8, 6), (3, 3), stride=2, padding=1),
    case((9, 6), (4, 5), stride=3, c=3, f=2),
    case((6, 6), (3, 2), dilation=(2, 3), c=4, f=6, groups=2),
    case((4, 4), (5, 5), padding=2),  # the kernel reaches around the circle
    case((4, 3, 2), (2, 3, 1), stride=(2, 1, 1)),
    case((2, 3, 2, 2), (2, 2, 1, 2), c=1, f=2),
    case((4, 3), (3, 3), transposed=True, stride=2, padding=1, output_padding=1),
    case((3, 4), (3, 2), transposed=True, stride=(2, 1), c=4, f=6, groups=2, dilation=(1, 2)),
    case((5, 4), (3, 2), flip=True),
    case((3,), (4,), transposed=True, flip=True, stride=2),
]


def check(found: spectrum.SingularValues, matrix: np.ndarray) -> None:
    """Judged by LAPACK: every value is within the residual, and LAPACK's own error."""
    assert found.shape == matrix.shape
    assert found.complete
    assert np.all(np.diff(found.values) <= 0)
    assert apart(found.values, lapack(matrix)) <= found.residual + lapack_bound(matrix)


@pytest.mark.parametrize("c", CASES[::2], ids=str)
def test_own_padding_is_the_svd_of_the_matrix(c: Case) -> None:
    filters = c.reals()[1]
    found = spectrum.singular_values(filters, c.input_size, geometry=c.geometry)
    check(found, conv_matrix(filters, c.input_size, c.geometry, layout="dense"))


@pytest.mark.parametrize("c", CIRCULAR, ids=str)
def test_a_circle_is_the_svd_of_the_definition(c: Case) -> None:
    dtype = np.complex128 if c.geometry.stride[0] == 1 else np.float64
    filters = c.reals(dtype=dtype)[1]
    found = spectrum.singular_values(filters, c.input_size, None, "circular", c.geometry)
    assert found.method == "fourier"
    check(found, periodic_matrix(filters, c.geometry, c.input_size))


@given(c=strategies.cases(max_ndim=2))
def test_every_geometry_on_a_circle(c: Case) -> None:
    filters = c.reals()[1]
    found = spectrum.singular_values(filters, c.input_size, None, "circular", c.geometry)
    check(found, periodic_matrix(filters, c.geometry, c.input_size))
    divides = all(n % s == 0 for n, s in zip(c.input_size, c.geometry.stride, strict=True))
    if found.method == "dense":
        assert not divides
        assert "does not divide" in found.note


def test_an_orthogonal_1x1_layer_is_orthogonal() -> None:
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    geometry = ConvGeometry(5, 5, (1, 1))
    filters = orthogonal.reshape(5, 1, 1, 5)
    found = spectrum.singular_values(filters, (7, 6), geometry=geometry)
    assert found.method == "kernel"
    assert np.abs(found.values - 1).max() <= 5 * 5 * EPS
    assert found.condition_number == pytest.approx(1, abs=50 * EPS)
    assert spectrum.effective_rank(filters, (7, 6), geometry=geometry) == pytest.approx(210)


def test_elements_that_no_window_reads_are_exact_zeros() -> None:
    layer = nn.Conv2d(2, 8, 1, stride=2, dtype=torch.float64)
    found = spectrum.singular_values(layer, (5, 5))
    assert (found.method, found.count) == ("kernel", 50)
    assert np.count_nonzero(found.values) == found.rank() == 18
    assert math.isinf(found.condition_number)
    assert math.isinf(spectrum.condition_number(layer, (5, 5)))


@pytest.mark.parametrize("filters", [np.zeros((2, 3, 1)), np.ones((2, 3, 1))], ids=["0", "unread"])
def test_an_operator_that_is_zero(filters: np.ndarray) -> None:
    geometry = ConvGeometry(1, 2, (3,), padding=((2, 0),), stride=3)
    if filters.any():
        geometry = ConvGeometry(1, 2, (1,), padding=((1, 0),), stride=9)
        filters = filters[:, :1]
    found = spectrum.singular_values(filters, (4,), geometry=geometry)
    assert (found.method, found.residual, found.rank(), found.effective_rank) == ("zero", 0, 0, 0)
    assert not found.values.any()
    assert "0" in str(found)


def test_the_layers_own_circular_padding_is_recognised() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    own = spectrum.singular_values(layer, (6, 5))
    asked = spectrum.singular_values(layer, (6, 5), boundary="circular")
    assert own.method == "fourier"
    check(own, conv_matrix(layer, (6, 5), layout="dense"))
    assert np.array_equal(own.values, asked.values)


def test_circular_padding_of_another_width_is_not_periodic() -> None:
    geometry = ConvGeometry(1, 1, (3,), padding=2, padding_mode="circular")
    assert periodic_axes(geometry, (5,)) is None
    filters = np.array([[[1.0], [2.0], [3.0]]])
    found = spectrum.singular_values(filters, (5,), geometry=geometry)
    assert found.method == "dense"
    check(found, conv_matrix(filters, (5,), geometry, layout="dense"))


def test_the_reshaped_norm_is_what_pytorchs_spectral_norm_takes() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    found = spectrum.singular_values(layer, (6, 6))
    judged = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
    assert found.reshaped_norm == pytest.approx(judged, rel=36 * 6 * EPS)
    assert found.reshaped_norm < found.values[0] < 3 * found.reshaped_norm


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_some_are_a_part_of_all(which: str) -> None:
    c = CIRCULAR[2]
    filters = c.reals()[1]
    everything = spectrum.singular_values(filters, c.input_size, None, "circular", c.geometry)
    some = spectrum.singular_values(
        filters, c.input_size, 5, "circular", c.geometry, which=which, threads=2
    )
    part = everything.values[:5] if which == "largest" else everything.values[-5:]
    assert np.array_equal(some.values, part)
    assert not some.complete
    assert f"the 5 {which} of" in str(some)


@pytest.mark.parametrize("what", ["rank", "effective_rank", "condition_number"])
def test_what_takes_all_values_says_so(what: str) -> None:
    some = spectrum.singular_values(np.ones((1, 2, 1)), (4,), 1, geometry=ConvGeometry(1, 1, (2,)))
    assert not some.complete
    ask = some.rank if what == "rank" else lambda: getattr(some, what)
    with pytest.raises(NotConverged, match="takes all singular values; expected all 3"):
        ask()


def test_float32_and_integers_are_decomposed_in_float64() -> None:
    filters = np.random.default_rng(0).integers(-3, 4, (2, 3, 2))
    geometry = ConvGeometry(2, 2, (3,), padding=1)
    kinds = [filters, filters.astype(np.float32), filters.astype(float)]
    found = [spectrum.singular_values(f, (6,), geometry=geometry).values for f in kinds]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_threads_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = np.random.default_rng(0).normal(size=(6, 3, 3, 4))
    arguments = (filters, (12, 10), None, "circular", ConvGeometry(4, 6, (3, 3)))
    whole = spectrum.singular_values(*arguments, threads=1)
    monkeypatch.setattr(algorithms, "_BATCH", 1)  # one frequency at a time
    parts = spectrum.singular_values(*arguments, threads=3)
    assert apart(parts.values, whole.values) <= parts.residual + whole.residual


GEOMETRY = ConvGeometry(1, 1, (3,))
ONES = np.ones((1, 3, 1))
BIG = ConvGeometry(8, 8, (3, 3), padding=1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((ONES, (5,), 4, None, GEOMETRY), ArgumentError, "k: .*expected 3 at most"),
        ((ONES * np.nan, (5,), 1, None, GEOMETRY), DtypeError, "NaN or infinity"),
        (
            (np.ones((8, 3, 3, 8)), (64, 64), None, None, BIG),
            MemoryBudgetError,
            "all 32768 singular values take the dense matrix.*boundary='circular'",
        ),
        (
            (np.ones((8, 3, 3, 8)), (64, 64), 20000, None, BIG),
            MemoryBudgetError,
            "iterations are for a few",
        ),
    ],
    ids=["k", "nan", "all", "many"],
)
def test_refusals(arguments: tuple, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        spectrum.singular_values(*arguments)
