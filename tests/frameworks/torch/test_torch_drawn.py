"""Layers drawn at random, in all forms against PyTorch's own; see `drawn_layers`."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from drawn_layers import DrawnLayer, check, drawn_layers
from hypothesis import given, settings
from torch import nn


# PyTorch's layer warns that it will copy its input.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=400)
@given(drawn_layers())
def test_drawn_layers_are_exact_in_all_forms(drawn: DrawnLayer) -> None:
    check(drawn, collections.Counter())


@pytest.mark.parametrize(
    ("cls", "rest", "shape"),
    [
        (nn.ConvTranspose1d, {"padding": 3, "dilation": 2}, (1, 2, 2)),
        (nn.ConvTranspose1d, {"padding": 2, "stride": 2, "groups": 2}, (3, 2, 2)),
        (nn.ConvTranspose2d, {"padding": 1, "stride": 2}, (3, 2, 1, 2)),
        (nn.ConvTranspose2d, {"padding": 1, "stride": 2}, (2, 1, 1)),
        (nn.ConvTranspose3d, {"padding": 1, "stride": 2}, (2, 2, 1, 2, 1)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_the_output_padding_may_be_all_of_a_transposed_output(
    cls: type[nn.Module], rest: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Without it no output is left on an axis, so the geometry of none cannot be asked."""
    size = 3 if "dilation" in rest else 2
    arguments = {"in_channels": 2, "out_channels": 2, "kernel_size": size, "output_padding": 1}
    drawn = DrawnLayer(cls, {**arguments, **rest}, shape, "contiguous", False, certified=True)
    counted: collections.Counter[str] = collections.Counter()
    check(drawn, counted)
    assert counted == {cls.__name__: 1}
