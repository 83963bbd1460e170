"""Single layers for morphs, drawn by hypothesis: every kind, with every hyper-parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from convfc.comparing import same_bits

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "reflect", "replicate", "circular")
SIZE = {1: 9, 2: 7, 3: 6}


class LayerCase(NamedTuple):
    """A layer and an input."""

    layer: nn.Module
    x: Tensor


def numbers(shape: Any, seed: int, *, whole: bool = False) -> Tensor:
    """Random numbers in float64; small integers if they are to be whole."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-3, 4, tuple(shape), generator=generator).double()
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def filled(layer: nn.Module, seed: int = 0, *, whole: bool = False) -> nn.Module:
    """The layer with such numbers as parameters."""
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(numbers(parameter.shape, seed + number, whole=whole))
    return layer


@st.composite
def layers(draw: st.DrawFn, *, linear: bool = True, dtype: torch.dtype | None = None) -> LayerCase:
    """A layer of float64 or float32, and a batch of two that it takes."""
    seed = draw(st.integers(0, 999))
    kind = dtype or draw(st.sampled_from([torch.float64, torch.float32]))
    groups = draw(st.integers(1, 2))
    channels, filters = (groups * draw(st.integers(1, 3)) for _ in range(2))
    bias = draw(st.booleans())
    if linear and draw(st.integers(0, 5)) == 0:
        layer: nn.Module = nn.Linear(channels, filters, bias=bias, dtype=kind)
        return LayerCase(filled(layer, seed), numbers((2, channels), seed + 7).to(kind))
    ndim = draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, stride, dilation = sizes(1, 3 if ndim < 3 else 2), sizes(1, 3), sizes(1, 2)
    options: Any = {"groups": groups, "bias": bias, "dtype": kind, "dilation": dilation}
    if draw(st.booleans()):
        extra = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        options |= {"stride": stride, "output_padding": extra, "padding": sizes(0, 1)}
        layer = TRANSPOSED[ndim - 1](channels, filters, kernel, **options)
        size = (3,) * ndim
    else:
        mode = draw(st.sampled_from(MODES))
        if draw(st.integers(0, 3)) == 0:
            options |= {"padding": "same", "padding_mode": mode}
        else:
            options |= {"padding": sizes(0, 2), "padding_mode": mode, "stride": stride}
        layer = CONVS[ndim - 1](channels, filters, kernel, **options)
        size = (SIZE[ndim],) * ndim
    return LayerCase(filled(layer, seed), numbers((2, channels, *size), seed + 7).to(kind))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, state: dict[str, Tensor]) -> None:
    """It has the same parameters and buffers, to the bit."""
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(same_bits(now[name], tensor) for name, tensor in state.items())


def train_a_step(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """Say of every parameter whether one step of gradient descent changes it."""
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    y = model(x)
    (y * numbers(y.shape, 5).to(y)).sum().backward()
    optimizer.step()
    return {name: not torch.equal(p, old[name]) for name, p in model.named_parameters()}
