"""PyTorch's own samples of its convolutions, in every dtype, as FC layers, with gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from operator_samples import (
    LAYERS,
    OPERATOR_DTYPES,
    OPERATORS,
    Sample,
    collect,
    layer_samples,
    operator_samples,
)
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.errors import UnsupportedLayer
from convfc.rounding import exact_limit, rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What the native layer says of some samples, once in a process.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

Results = dict[str, Tensor]
BOUNDED = (torch.float32, torch.bfloat16, torch.complex64)
"""A dtype with few bits, for whose long sums there is no bound, and those with 32."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


each_form = pytest.mark.parametrize("form", ["patch", "weight"])
each_operator = pytest.mark.parametrize("operator", OPERATORS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The samples of both databases."""
    return collect(tmp_path_factory.mktemp("samples") / "samples.pt")


def inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def run(layer: nn.Module, x: Tensor, dy: Tensor | None, form: str = "native") -> Results:
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


def moduli(layer: nn.Module, x: Tensor, dy: Tensor | None) -> Results:
    """The sums |M||K| + |b|, |dy||K|, |M|^T|dy| and of |dy|, by the native layer in float64."""
    twin = copy.deepcopy(layer)
    twin.weight = nn.Parameter(layer.weight.detach().abs().double())
    if layer.bias is not None:
        twin.bias = nn.Parameter(layer.bias.detach().abs().double())
    return run(twin, x.abs().double(), None if dy is None else dy.abs().double())


def terms(layer: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """How many products each of these sums has at most."""
    taps = layer.weight[0, 0].numel()
    read, written = x.numel() // layer.in_channels, y.numel() // layer.out_channels
    return {
        "output": taps * layer.in_channels // layer.groups + 1,
        "input": taps * layer.out_channels // layer.groups,
        "weight": read if layer.transposed else written,
        "bias": written,
    }


def integers(like: Tensor, generator: torch.Generator, *, share: float = 1.0) -> Tensor:
    """-1, 0 and 1, at random; ``share`` of them kept and the others 0, so that sums stay small."""

    def draw() -> Tensor:
        return torch.randint(-1, 2, tuple(like.shape), generator=generator).double()

    values = torch.complex(draw(), draw()) if like.is_complex() else draw()
    kept = torch.rand(tuple(like.shape), generator=generator) < share
    return (values * kept).to(like.dtype)


def small_integers(sample: Sample) -> tuple[nn.Module, Tensor]:
    """The sample with its values replaced by small integers."""
    generator = torch.Generator().manual_seed(1712)
    layer = copy.deepcopy(sample.layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(integers(parameter, generator))
    return layer, integers(sample.x, generator)


def layout(y: Tensor) -> list[int]:
    """The strides that matter: of axes with more than one element."""
    return [step for step, n in zip(y.stride(), y.shape, strict=True) if n > 1 and y.numel()]


def check_exact(sample: Sample, form: str) -> None:
    """On small integers no sum is rounded, so both must agree bit by bit, in layout too."""
    layer, x = small_integers(sample)
    y = layer(x)
    dy = None
    if inexact(x.dtype):
        share = 100 * layer.out_channels / max(y.numel(), 1)  # of a channel's sums, 100 are left
        dy = integers(y, torch.Generator().manual_seed(1259), share=share)
        largest = max(
            (sums.max().item() for sums in moduli(layer, x, dy).values() if sums.numel()), default=0
        )
        assert largest <= exact_limit(name_of(x.dtype)), f"{sample.name}: too large to be exact"
    expected, got = run(layer, x, dy), run(layer, x, dy, form)
    assert got.keys() == expected.keys()
    for quantity, value in expected.items():
        assert got[quantity].dtype == value.dtype, f"{sample.name}: {quantity}"
        assert torch.equal(got[quantity], value), f"{sample.name}: {quantity}"
    assert layout(got["output"]) == layout(expected["output"]), sample.name


def check_bound(sample: Sample) -> None:
    """On the sample's own values both must agree as far as rounding lets them."""
    layer, x = sample.layer, sample.x
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1712)).to(y.dtype)
    expected, got = run(layer, x, dy), run(layer, x, dy, "patch")
    magnitudes, counts = moduli(layer, x, dy), terms(layer, x, y)
    assert got.keys() == expected.keys() == magnitudes.keys()
    wide = torch.complex128 if x.is_complex() else torch.float64
    for quantity, value in expected.items():
        bound = rounding_bound(magnitudes[quantity], counts[quantity], name_of(x.dtype))
        if bound is None:  # so many terms that these few bits bound nothing
            assert counts[quantity] + 1 >= {torch.bfloat16: 2**8, torch.float16: 2**11}[x.dtype]
            continue
        difference = (got[quantity].to(wide) - value.to(wide)).abs()
        assert (difference <= bound).all(), f"{sample.name}: {quantity}"


def test_the_databases_have_the_samples_that_these_tests_are_named_after(
    found: dict[str, Any],
) -> None:
    assert set(found["operators"]) == set(OPERATORS)
    assert set(found["layers"]) == set(LAYERS)
    names = {str(dtype) for dtype in OPERATOR_DTYPES}
    for operator, by_dtype in found["operators"].items():
        assert set(by_dtype) == names, operator
        for dtype, samples in by_dtype.items():
            unbatched = [s for s in samples if s["x"].dim() < s["weight"].dim()]
            assert len(samples) >= 10, (operator, dtype)
            assert 0 < len(unbatched) < len(samples), (operator, dtype)
    everything = [s for d in found["operators"].values() for s in d[str(torch.float32)]]
    assert len(everything) >= 92
    options = [s["options"] for s in everything]
    assert {"same", "valid"} <= {o["padding"] for o in options if "padding" in o}
    assert all(any(name in o for o in options) for name in ("dilation", "output_padding"))
    assert any(o.get("groups", 1) > 1 for o in options)
    assert all(len(samples) >= 2 for samples in found["layers"].values())


@each_operator
@pytest.mark.parametrize(
    ("dtype", "form"),
    [*((dtype, "patch") for dtype in OPERATOR_DTYPES), (torch.float32, "weight")],
    ids=str,
)
def test_an_operator_sample_on_small_integers_is_bit_identical(
    found: dict[str, Any], dtype: torch.dtype, form: str, operator: str
) -> None:
    samples = operator_samples(found, operator, dtype)
    assert len(samples) >= 10
    for sample in samples:
        check_exact(sample, form)


@each_operator
@pytest.mark.parametrize("dtype", BOUNDED, ids=name_of)
def test_an_operator_sample_is_within_the_rounding_bound(
    found: dict[str, Any], dtype: torch.dtype, operator: str
) -> None:
    samples = operator_samples(found, operator, dtype)
    assert len(samples) >= 10
    for sample in samples:
        check_bound(sample)


# PyTorch says so of complex32, once in a process.
experimental = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")


@experimental
@each_form
@pytest.mark.parametrize("cls", [name for name in LAYERS if not name.startswith("Lazy")])
def test_a_module_sample_agrees_exactly(found: dict[str, Any], cls: str, form: str) -> None:
    samples = layer_samples(found, cls)
    dtypes = {dtype for dtype, _ in samples}
    assert {torch.float32, torch.float64} <= dtypes
    for dtype, sample in samples:
        (check_half_complex if dtype == torch.complex32 else check_exact)(sample, form)


def check_half_complex(sample: Sample, form: str) -> None:
    """PyTorch convolves complex32 on the CPU as three real ones, but it has no matrix product."""
    fc = convfc.to_fc(sample.layer, form=form)
    if form == "weight":
        # Nor a comparison; complex64 holds every complex32.
        y, expected = (part(sample.x).to(torch.complex64) for part in (fc, sample.layer))
        assert torch.equal(y, expected), sample.name
    else:
        with pytest.raises(NotImplementedError, match="not implemented for 'ComplexHalf'"):
            fc(sample.x)


# PyTorch says so of its lazy layers, when they are made.
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("cls", [name for name in LAYERS if name.startswith("Lazy")])
def test_a_lazy_layer_is_refused_until_it_has_seen_an_input(
    found: dict[str, Any], cls: str
) -> None:
    for _, sample in layer_samples(found, cls):
        with pytest.raises(UnsupportedLayer, match=r"its weight has no size yet.*Remedy: run the"):
            convfc.to_fc(nn.Sequential(sample.layer))
        sample.layer(sample.x)
        check_exact(sample, "patch")
