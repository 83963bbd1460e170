"""Fixtures of all tests that compute with PyTorch; their folders' conftest.py take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import convfc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["in_form", "one_thread", "seed_zero", "with_integers"]


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


def in_form(model: nn.Module, form: str, x: Any = None, **options: Any) -> Any:
    """Return a model with its CONV layers in a form; ``x`` is an input of it."""
    if form == "native":
        return model
    if form == "simplified":
        return convfc.simplify(model, x, **options)
    if form == "unrolled":
        return convfc.unroll(model, x, **options)
    if form == "batched":
        return convfc.to_fc(model, groups="batched", product="matrix", **options)
    if form == "untouched":
        return convfc.to_fc(model, **options)
    if form == "patch":  # what PyTorch's own convolution computes would prove nothing
        options = {"product": "matrix", **options}
    return convfc.to_fc(model, form=form, **options)


def with_integers(model: nn.Module, seed: int = 0, *, multiple: int = 1) -> nn.Module:
    """Return a model in float64, its numbers small integers; weights are multiples of a number.

    BatchNorms scale by 1/2, 1 or 2, and so round nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: int, high: int) -> Tensor:
        return torch.randint(low, high, like.shape, generator=generator).double()

    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = multiple if parameter.dim() > 1 else 1
            parameter.copy_(draw(parameter, -2, 3) * scale)
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.eps = 0.0
                part.weight.copy_(draw(part.weight, 0, 2) * 3 - 1)  # -1 or 2
                part.running_mean.copy_(draw(part.running_mean, -2, 3))
                part.running_var.copy_(4.0 ** draw(part.running_var, -1, 2))
    return model
