"""Layers against PyTorch's own in all forms: drawn at random, and all small ones of one axis."""

from __future__ import annotations

import collections
import itertools

import pytest
import torch
from drawn_layers import MODES, DrawnLayer, check, drawn_layers
from hypothesis import given, settings
from torch import nn


def conv(
    cls: type[nn.Module], c: int, f: int, kernel: object, shape: tuple[int, ...], **rest: object
) -> DrawnLayer:
    memory = str(rest.pop("memory", "contiguous"))
    arguments = {"in_channels": c, "out_channels": f, "kernel_size": kernel, **rest}
    return DrawnLayer(cls, arguments, shape, memory, weight_channels_last=False, certified=False)


LAST = {"memory": "channels last"}
REFLECT, REPLICATE, CIRCULAR = ({"padding_mode": mode} for mode in MODES[1:])
ROUND = {**CIRCULAR, "padding": "valid", "groups": 2}
FOUND = [
    # A mode without effect must not begin to pad in the gradient.
    conv(nn.Conv1d, 1, 1, 3, (1, 1, 6), bias=False, **REPLICATE),
    conv(nn.Conv1d, 1, 1, 3, (1, 1, 6), bias=False, **REFLECT),
    conv(nn.Conv2d, 4, 4, (3, 4), (1, 4, 10, 10), dilation=(2, 3), **ROUND),
    # The kernel fits only what has been padded.
    conv(nn.Conv2d, 2, 2, (3, 4), (3, 2, 9, 2), padding=(0, 1), **REPLICATE, **LAST),
    conv(nn.Conv2d, 1, 1, 3, (1, 1, 2, 2), padding=1, **REFLECT, **LAST),
    # A kernel of PyTorch's that does not keep channels last, chosen for what has been padded.
    conv(nn.Conv3d, 2, 2, (1, 4, 2), (2, 2, 3, 2, 3), padding=(0, 2, 1), **REPLICATE, **LAST),
    conv(nn.Conv2d, 3, 3, 2, (2, 3, 1, 1), padding="same", **LAST),
    conv(nn.Conv2d, 3, 3, 2, (2, 3, 1, 5), padding="same", **LAST),
    # Without its output padding nothing would be left of the output.
    conv(nn.ConvTranspose1d, 2, 1, 3, (1, 2, 2), padding=3, dilation=2, output_padding=1),
    conv(nn.ConvTranspose1d, 2, 2, 2, (3, 2, 2), stride=2, padding=2, output_padding=1, groups=2),
    conv(nn.ConvTranspose2d, 2, 2, 2, (3, 2, 2, 2), stride=2, padding=1, output_padding=1),
    # PyTorch goes round the input at most once.
    conv(nn.Conv1d, 1, 1, 3, (1, 1, 1), padding=2, **CIRCULAR),
    conv(nn.Conv2d, 1, 1, (3, 4), (1, 1, 6, 4), padding="same", dilation=(1, 3), **CIRCULAR),
]


@pytest.mark.long
@settings(max_examples=250)
@given(drawn_layers())
def test_drawn_layers_are_exact_in_all_forms(drawn: DrawnLayer) -> None:
    check(drawn, collections.Counter())


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_layers_that_once_differed_are_exact_in_all_forms(found: DrawnLayer) -> None:
    check(found, collections.Counter())


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
