"""PyTorch's own samples of its convolutions, as FC layers, with gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from operator_samples import DTYPES, OPERATORS, Sample, collect, samples_of
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.comparing import dtype_name, strides_of
from convfc.rounding import exact_limit


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The samples of the database."""
    return collect(tmp_path_factory.mktemp("samples") / "samples.pt")


def run(layer: nn.Module, x: Tensor, dy: Tensor | None, form: str = "native") -> dict[str, Tensor]:
    """The output in a form and, if ``dy`` is given, the gradients of the CONV layer."""
    model = in_form(nn.Sequential(copy.deepcopy(layer)), form, x)
    x = x.detach().clone().requires_grad_(dy is not None)
    y = model(x)
    results = {"output": y.detach()}
    if dy is not None:
        y.backward(dy)
        (back,) = model if form == "native" else convfc.to_conv(model, inplace=True)
        results |= {name: parameter.grad for name, parameter in back.named_parameters()}
        results["input"] = x.grad
    return results


def largest_sum(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """Of |M||K| + |b|, |dy||K|, |M|^T|dy| and |dy|, by the native layer in float64."""
    moduli = copy.deepcopy(layer)
    for name, parameter in layer.named_parameters():
        setattr(moduli, name, nn.Parameter(parameter.detach().abs().double()))
    sums = run(moduli, x.abs().double(), dy.abs().double()).values()
    return max((one.max().item() for one in sums if one.numel()), default=0.0)


def integers(like: Tensor, generator: torch.Generator, *, share: float = 1.0) -> Tensor:
    """-1, 0 and 1, at random; ``share`` of them kept and the others 0, so that sums stay small."""

    def draw() -> Tensor:
        return torch.randint(-1, 2, tuple(like.shape), generator=generator).double()

    values = torch.complex(draw(), draw()) if like.is_complex() else draw()
    kept = torch.rand(tuple(like.shape), generator=generator) < share
    return (values * kept).to(like.dtype)


def check_exact(sample: Sample, form: str) -> None:
    """On small integers no sum is rounded, so both must agree bit by bit, in layout too."""
    generator = torch.Generator().manual_seed(1712)
    layer, x = copy.deepcopy(sample.layer), integers(sample.x, generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(integers(parameter, generator))
    y, dy = layer(x), None
    if x.dtype.is_floating_point or x.is_complex():
        share = 100 * layer.out_channels / max(y.numel(), 1)  # of a channel's sums, 100 are left
        dy = integers(y, generator, share=share)
        limit = exact_limit(dtype_name(x.dtype))
        assert largest_sum(layer, x, dy) <= limit, f"{sample.name}: too large to be exact"
    expected, got = run(layer, x, dy), run(layer, x, dy, form)
    assert got.keys() == expected.keys()
    for quantity, value in expected.items():
        assert got[quantity].dtype == value.dtype, f"{sample.name}: {quantity}"
        assert torch.equal(got[quantity], value), f"{sample.name}: {quantity}"
    if y.numel():
        assert strides_of(got["output"]) == strides_of(expected["output"]), sample.name


def test_the_database_has_the_samples_that_these_tests_are_named_after(
    found: dict[str, Any],
) -> None:
    assert set(found) == set(OPERATORS)
    for operator, by_dtype in found.items():
        for dtype, samples in by_dtype.items():
            unbatched = [s for s in samples if s["x"].dim() < s["weight"].dim()]
            assert 0 < len(unbatched) < len(samples) >= 10, (operator, dtype)
    everything = [sample for by_dtype in found.values() for sample in by_dtype["torch.float64"]]
    assert len(everything) >= 92
    options = [s["options"] for s in everything]
    assert {"same", "valid"} <= {o["padding"] for o in options if "padding" in o}
    assert all(any(name in o for o in options) for name in ("dilation", "output_padding"))
    assert any(o.get("groups", 1) > 1 for o in options)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("dtype", "form"),
    [*((dtype, "patch") for dtype in DTYPES), (torch.float64, "weight")],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_sample_on_small_integers_is_bit_identical(
    found: dict[str, Any], dtype: torch.dtype, form: str, operator: str
) -> None:
    for sample in samples_of(found, operator, dtype):
        check_exact(sample, form)
