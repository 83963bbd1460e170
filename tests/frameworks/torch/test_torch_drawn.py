"""Layers drawn at random, in all forms against PyTorch's own; see `drawn_layers`."""

from __future__ import annotations

import collections

import pytest
from drawn_layers import DrawnLayer, check, drawn_layers
from hypothesis import given, settings


# PyTorch's layer warns that it will copy its input.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=400)
@given(drawn_layers())
def test_drawn_layers_are_exact_in_all_forms(drawn: DrawnLayer) -> None:
    check(drawn, collections.Counter())
