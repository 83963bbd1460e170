"""Layers against PyTorch's own in all forms: drawn at random, and all small ones of one axis."""

from __future__ import annotations

import collections
import itertools

import pytest
import torch
from drawn_layers import MODES, DrawnLayer, check, drawn_layers
from hypothesis import example, given, settings
from torch import nn

# PyTorch's layer warns that it will copy its input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def drawn(cls: type[nn.Module], shape: tuple[int, ...], memory: str = "contiguous", **rest: object):
    return DrawnLayer(cls, rest, shape, memory, weight_channels_last=False, certified=False)


def conv(
    cls: type[nn.Module], c: int, f: int, kernel: object, shape: tuple[int, ...], **rest: object
):
    memory = str(rest.pop("memory", "contiguous"))
    return drawn(cls, shape, memory, in_channels=c, out_channels=f, kernel_size=kernel, **rest)


@settings(max_examples=250)
@given(drawn_layers())
# A mode without effect must not begin to pad in the gradient.
@example(conv(nn.Conv1d, 1, 1, 3, (1, 1, 6), bias=False, padding_mode="replicate"))
@example(conv(nn.Conv1d, 1, 1, 3, (1, 1, 6), bias=False, padding_mode="reflect"))
@example(
    conv(
        nn.Conv2d,
        4,
        4,
        (3, 4),
        (1, 4, 10, 10),
        padding="valid",
        dilation=(2, 3),
        groups=2,
        padding_mode="circular",
    )
)
# The kernel fits only what has been padded.
@example(
    conv(
        nn.Conv2d,
        2,
        2,
        (3, 4),
        (3, 2, 9, 2),
        padding=(0, 1),
        padding_mode="replicate",
        memory="channels last",
    )
)
@example(
    conv(
        nn.Conv2d,
        1,
        1,
        3,
        (1, 1, 2, 2),
        padding=1,
        padding_mode="reflect",
        memory="channels last",
    )
)
# A kernel of PyTorch's that does not keep channels last, chosen for what has been padded.
@example(
    conv(
        nn.Conv3d,
        2,
        2,
        (1, 4, 2),
        (2, 2, 3, 2, 3),
        padding=(0, 2, 1),
        padding_mode="replicate",
        memory="channels last",
    )
)
@example(conv(nn.Conv2d, 3, 3, 2, (2, 3, 1, 1), padding="same", memory="channels last"))
@example(conv(nn.Conv2d, 3, 3, 2, (2, 3, 1, 5), padding="same", memory="channels last"))
# Without its output padding nothing would be left of the output.
@example(conv(nn.ConvTranspose1d, 2, 1, 3, (1, 2, 2), padding=3, dilation=2, output_padding=1))
@example(
    conv(nn.ConvTranspose1d, 2, 2, 2, (3, 2, 2), stride=2, padding=2, output_padding=1, groups=2)
)
@example(conv(nn.ConvTranspose2d, 2, 2, 2, (3, 2, 2, 2), stride=2, padding=1, output_padding=1))
# PyTorch goes round the input at most once.
@example(conv(nn.Conv1d, 1, 1, 3, (1, 1, 1), padding=2, padding_mode="circular"))
@example(
    conv(
        nn.Conv2d,
        1,
        1,
        (3, 4),
        (1, 1, 6, 4),
        padding="same",
        dilation=(1, 3),
        padding_mode="circular",
    )
)
def test_drawn_layers_are_exact_in_all_forms(drawn: DrawnLayer) -> None:
    check(drawn, collections.Counter())


@pytest.mark.parametrize("mode", MODES)
def test_every_small_layer_accepts_and_refuses_what_pytorch_does(mode: str) -> None:
    counted: collections.Counter[str] = collections.Counter()
    paddings = (0, 1, 2, 3, "same", "valid")
    for kernel, dilation, padding, size in itertools.product(
        range(1, 5), range(1, 3), paddings, range(1, 4)
    ):
        rest = {"padding": padding, "dilation": dilation, "padding_mode": mode}
        check(conv(nn.Conv1d, 1, 1, kernel, (1, 1, size), **rest), counted)
    assert counted["Conv1d"] > 40
    assert counted["refused by PyTorch, and by all forms"] > 20


@pytest.mark.parametrize("cls", [nn.Conv2d, nn.Conv3d])
def test_modes_of_two_and_three_axes(cls: type[nn.Module]) -> None:
    """Axes of which some are padded and some are too short."""
    counted: collections.Counter[str] = collections.Counter()
    ndim = 2 if cls is nn.Conv2d else 3
    generator = torch.Generator().manual_seed(0)
    for mode in MODES:
        for _ in range(25):
            size, padding, kernel = torch.randint(0, 4, (3, ndim), generator=generator).tolist()
            rest = {"padding": tuple(padding), "padding_mode": mode}
            shape = (1, 1, *(n + 1 for n in size))
            check(conv(cls, 1, 1, tuple(k + 1 for k in kernel), shape, **rest), counted)
    assert len(counted) == 2
