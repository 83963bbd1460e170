"""CONV layers of PyTorch with every hyper-parameter, on small integers where all sums are exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
HYPER_PARAMETERS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "output_padding",
    "transposed",
    "_reversed_padding_repeated_twice",
)


@dataclass(frozen=True)
class ConvCase:
    """A layer's class, its arguments, and the input size that it is tried on."""

    cls: type[nn.Module]
    args: tuple[int, int, Any]
    size: tuple[int, ...]
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rest = "-".join(f"{key}{value}" for key, value in self.rest.items())
        return f"{self.cls.__name__}-{self.args}-{self.size}-{rest}".replace(" ", "")

    def layer(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        layer = self.cls(*self.args, **self.rest, dtype=dtype)
        with torch.no_grad():
            for seed, parameter in enumerate(layer.parameters()):
                parameter.copy_(integers(parameter.shape, dtype, seed + 10))
        return layer

    def x(self, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
        return integers((batch, self.args[0], *self.size), dtype, 0)


def integers(shape: Any, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """-2 to 2: sums of a few hundred products are exact in every dtype but the 16-bit ones."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, tuple(shape), generator=generator).to(dtype)
    if dtype.is_complex:
        values = values + 1j * torch.randint(-2, 3, tuple(shape), generator=generator)
    return values


def case(cls: type[nn.Module], args: tuple[int, int, Any], *size: int, **rest: Any) -> ConvCase:
    return ConvCase(cls, args, size, rest)


CASES = [
    case(nn.Conv2d, (3, 4, 3), 7, 6),
    case(nn.Conv2d, (3, 4, (3, 2)), 7, 6, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    case(nn.Conv2d, (3, 4, 1), 5, 6),
    case(nn.Conv2d, (3, 4, 1), 5, 6, stride=2, bias=False),
    case(nn.Conv2d, (3, 4, 2), 6, 4, stride=2),  # kernel == stride: a patch embedding
    case(nn.Conv2d, (3, 4, (5, 6)), 5, 6),  # one window
    case(nn.Conv2d, (3, 4, 3), 7, 6, padding="same", dilation=2),
    case(nn.Conv2d, (3, 4, (2, 4)), 7, 6, padding="same"),  # an odd element of padding
    case(nn.Conv2d, (3, 4, (2, 4)), 7, 6, padding="same", padding_mode="circular"),
    case(nn.Conv2d, (3, 4, 3), 7, 6, padding="valid"),
    case(nn.Conv2d, (3, 4, 3), 7, 6, padding=2, padding_mode="reflect"),
    case(nn.Conv2d, (3, 4, 3), 7, 6, padding=(2, 1), padding_mode="replicate", stride=2),
    case(nn.Conv2d, (3, 4, 3), 7, 6, padding=(1, 2), padding_mode="circular"),
    case(nn.Conv2d, (4, 6, 3), 7, 6, groups=2, padding=1),
    case(nn.Conv2d, (4, 4, 3), 7, 6, groups=4, padding=1),
    case(nn.Conv2d, (3, 6, 3), 7, 6, groups=3, stride=2, bias=False),
    case(nn.Conv2d, (1, 4, 4), 8, 8, stride=2),
    case(nn.Conv1d, (3, 4, 3), 9),
    case(nn.Conv1d, (4, 6, 5), 9, stride=2, padding=2, groups=2, padding_mode="replicate"),
    case(nn.Conv1d, (3, 4, 2), 8, stride=2),
    case(nn.Conv3d, (2, 3, 2), 4, 3, 5, padding=1, dilation=(1, 2, 1)),
    case(
        nn.Conv3d, (2, 4, (2, 1, 3)), 4, 3, 5, groups=2, padding=(1, 0, 1), padding_mode="circular"
    ),
    case(nn.Conv3d, (2, 3, 2), 4, 2, 6, stride=2),
    case(nn.ConvTranspose1d, (3, 4, 3), 5, stride=2, output_padding=1),
    case(nn.ConvTranspose2d, (3, 4, 3), 4, 5),
    case(nn.ConvTranspose2d, (3, 4, (3, 2)), 4, 5, stride=(2, 3), padding=1, output_padding=(1, 2)),
    case(nn.ConvTranspose2d, (4, 6, 3), 4, 5, groups=2, dilation=2, padding=(2, 1)),
    case(nn.ConvTranspose2d, (4, 4, 2), 4, 5, groups=4, stride=2, bias=False),
    case(nn.ConvTranspose2d, (3, 4, 1), 4, 5),
    case(nn.ConvTranspose3d, (2, 4, 2), 3, 2, 3, stride=2, groups=2, output_padding=(1, 0, 1)),
]
SMALL = [c for c in CASES if c.size in ((7, 6), (9,), (4, 5))][::3]
GROUPED = [c for c in CASES if c.rest.get("groups", 1) > 1]
