"""Small networks for morphs: every kind of layer and of connection that units can pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from convfc.measure import integers_of
from convfc.methods.morphism import Morph


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model with numbers of no pattern, its running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5)
        for part in model.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_var.copy_(
                    0.5 + 1.5 * torch.rand(part.running_var.shape, generator=generator)
                )
    return model.eval()


def integers(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Small integers, in float64."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return integers_of(drawn, 2)


def mlp() -> nn.Module:
    """Three FC layers."""
    return nn.Sequential(*(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))


class Unet(nn.Module):
    """Down by stride, up by a transposed CONV layer, and a concatenation across."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 6, 2, stride=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        up = functional.interpolate(self.up(torch.relu(self.down(x))), size=x.shape[2:])
        y: Tensor = self.last(torch.cat([x, up], dim=1))
        return y


class Excite(nn.Module):
    """A residual block that weighs its channels (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding="same")
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem(x))
        y = self.conv(x)
        n, c = y.shape[:2]
        weights = self.excite(torch.relu(self.squeeze(y.mean((2, 3)))))
        y = y * functional.hardsigmoid(weights).view(n, c, 1, 1)
        y += x
        out: Tensor = self.head(y.amax(dim=(-2, -1)))
        return out


def separable() -> nn.Module:
    """Groups, a depthwise layer with a multiplier, slopes per channel, and a flattening."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, groups=2), nn.PReLU(4), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False), nn.PReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 1, groups=2), nn.Dropout2d(), nn.Flatten(), nn.Linear(24, 3)),
    )


class Volume(nn.Module):
    """Three axes, a layer that is called twice, and a reshape that follows the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 3, 2)
        self.twice = nn.Conv3d(3, 3, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool3d((2, 1, 2))
        self.hidden = nn.Linear(12, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(torch.relu(self.stem(x)))))
        x = self.pool(x)
        y: Tensor = self.last(torch.relu(self.hidden(x.view(x.size(0), -1))))
        return y


def upward() -> nn.Module:
    """Transposed CONV layers, in groups and depthwise."""
    return nn.Sequential(
        *(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU()),
        *(nn.ConvTranspose2d(6, 6, 3, stride=2, groups=6), nn.ReLU6()),
        *(
            nn.ConvTranspose2d(6, 4, 3, groups=2, output_padding=0),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 1, 2),
        ),
    )


class Tokens(nn.Module):
    """An FC layer on the last axis of images: channels last, with its normalisation around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 4, 2, stride=2)
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        y: Tensor = self.head(x.mean(dim=(1, 2)))
        return y


class Case(NamedTuple):
    """A network, the input that it gets, and its layers that can become wider."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: tuple[str, ...]


NETWORKS = {
    "mlp": Case(mlp, (3, 6), ("0", "2")),
    "unet": Case(Unet, (2, 2, 6, 8), ("first", "down", "up")),
    "excite": Case(Excite, (2, 2, 6, 5), ("stem", "conv", "squeeze", "excite")),
    "separable": Case(separable, (2, 2, 6, 6), ("0", "3", "6")),
    "volume": Case(Volume, (2, 1, 4, 3, 4), ("stem", "twice", "hidden")),
    "upward": Case(upward, (2, 4, 3, 2), ("0", "2", "4")),
    "tokens": Case(Tokens, (2, 2, 6, 4), ("up",)),
}
CASES = [(network, layer) for network, case in NETWORKS.items() for layer in case.layers]


def example(network: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The input of a network, of real numbers."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NETWORKS[network].shape, generator=generator).to(dtype)


def assert_proven(morph: Morph) -> None:
    """The certificate of a widening holds, and not because nothing was compared."""
    certificate = morph.certificate
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) > 1
    for layer in certificate.layers:
        assert layer.own["output"].ratio is not None
        assert layer.float64["output"].ratio is not None
        assert layer.forms[1] == "widened"
        if layer.exact.why_not != "normalisation divides by a square root":
            assert layer.exact.identical is True
    for output in certificate.network.outputs:
        assert output.float64 is not None
