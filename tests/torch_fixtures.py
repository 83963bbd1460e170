"""Fixtures of all tests that compute with PyTorch; their folders' conftest.py take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_thread", "seed_zero"]


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
