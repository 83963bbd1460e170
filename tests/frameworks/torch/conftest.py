"""Fixtures for the tests of PyTorch's room."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.fixture(scope="module")
def no_network() -> Iterator[None]:
    """Fail a test that tries to reach another machine."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"tried to reach the network: {args[1:] or kwargs}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
