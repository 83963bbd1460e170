"""Fixtures of all tests that compute with PyTorch; their folders' conftest.py take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import convfc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["in_form", "one_thread", "seed_zero"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: pytest-xdist has given every core a process already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seed_zero() -> None:
    """Draw the same random numbers in every run."""
    torch.manual_seed(0)


def in_form(model: nn.Module, form: str, x: Any, **options: Any) -> Any:
    """Return a model with its CONV layers in a form; ``x`` is an input of it."""
    if form == "native":
        return model
    if form == "simplified":
        return convfc.simplify(model, x, **options)
    if form == "unrolled":
        return convfc.unroll(model, x, **options)
    if form == "batched":
        return convfc.to_fc(model, groups="batched", **options)
    return convfc.to_fc(model, form=form, **options)
