"""The largest and smallest values by iterations, against LAPACK's SVD; and their residuals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from periodic import EPS, lapack
from torch import nn

from convfc import conv_matrix
from convfc.errors import NotConverged
from convfc.methods import spectrum
from convfc.methods.spectrum import algorithms, singular
from convfc.operators.matrixfree import conv_operator

LAYERS = {
    "zeros": (nn.Conv2d(3, 4, 3, padding=1, bias=False), (9, 8)),
    "strided": (nn.Conv2d(2, 9, 5, stride=2, padding=2), (13, 12)),
    "groups": (nn.Conv1d(4, 6, 3, groups=2, padding=1, padding_mode="replicate"), (60,)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (7, 8)),
}


@pytest.fixture(autouse=True)
def small_matrices_are_not_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular, "DENSE_LIMIT", 0)


def layer_of(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[int, ...]]:
    layer, size = LAYERS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return layer.to(dtype), size


def judged(layer: nn.Module, size: tuple[int, ...]) -> np.ndarray:
    return lapack(conv_matrix(layer, size, layout="dense").astype(float))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_largest_are_within_their_residual(name: str, dtype: torch.dtype) -> None:
    layer, size = layer_of(name, dtype)
    values = judged(layer, size)
    found = spectrum.singular_values(layer, size, 3)
    assert (found.method, found.measured, len(found.values)) == ("lanczos", True, 3)
    assert 0 < found.residual <= 2 * singular.TOLERANCE
    off = np.abs(found.values - values[:3]).max() / values[0]
    assert off <= found.residual + len(values) * EPS


@pytest.mark.parametrize("name", ["zeros", "strided", "groups"])
def test_the_smallest_by_inverse_iterations(name: str) -> None:
    layer, size = layer_of(name, torch.float64)
    values = judged(layer, size)
    found = spectrum.singular_values(layer, size, 2, which="smallest")
    assert found.method == "inverse"
    assert (
        np.abs(found.values - values[-2:]).max() <= (found.residual + len(values) * EPS) * values[0]
    )
    ratio = spectrum.condition_number(layer, size)
    assert ratio == pytest.approx(values[0] / values[-1], rel=1e-4)


def test_the_smallest_without_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, size = nn.Conv1d(2, 4, 3, padding=1, dtype=torch.float64), (40,)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 24, dtype=torch.float64).sin().reshape(4, 2, 3))
    monkeypatch.setattr(singular, "_factors_bytes", lambda *_: float("inf"))
    monkeypatch.setattr(singular, "_dense", lambda *_: None)
    values = judged(layer, size)
    found = spectrum.singular_values(layer, size, 1, which="smallest")
    assert (found.method, found.measured) == ("lanczos", True)
    assert abs(found.values[0] - values[-1]) <= (found.residual + len(values) * EPS) * values[0]


def test_what_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, size = layer_of("zeros", torch.float64)
    monkeypatch.setattr(algorithms, "_ITERATIONS", 1)
    with pytest.raises(NotConverged, match=r"were found in 1 restarts of ARPACK.*Remedy"):
        spectrum.singular_values(layer, size, 5, tolerance=1e-12)


def test_a_residual_is_that_of_explicit_vectors() -> None:
    """‖A* u − σ v‖ again, with the vectors from LAPACK's SVD of A restricted to what was found."""
    layer, size = layer_of("strided", torch.float64)
    operator = conv_operator(layer, size)
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(operator.shape[1], 2)))[0]
    matrix = conv_matrix(layer, size, layout="dense")
    found = algorithms._values(operator, vectors)
    u, s, vh = np.linalg.svd(matrix @ vectors, full_matrices=False)
    residual = matrix.T @ u - vectors @ vh.T * s
    assert np.abs(found.values - s).max() <= 1e3 * EPS * s[0]
    assert found.residual == pytest.approx(np.linalg.norm(residual, axis=0).max(), rel=1e-9)
    assert found.residual > 0.01 * s[0]


def test_the_same_call_gives_the_same_numbers() -> None:
    layer, size = layer_of("zeros", torch.float32)
    first, second = (spectrum.singular_values(layer, size, 2) for _ in range(2))
    assert np.array_equal(first.values, second.values)


def test_a_stride_that_does_not_divide_is_circular_without_a_matrix() -> None:
    layer = nn.Conv1d(2, 3, 3, stride=2, dtype=torch.float64)
    found = spectrum.singular_values(layer, (61,), 2, boundary="circular")
    assert (found.method, found.shape) == ("lanczos", (93, 122))
    assert "does not divide" in found.note
