"""Fixtures for the tests of PyTorch's room."""

from __future__ import annotations

import socket
import warnings
from typing import TYPE_CHECKING

import pytest
from torch_fixtures import one_thread, seed_zero

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["no_network", "one_thread", "seed_zero"]


@pytest.fixture(autouse=True)
def _calm(one_thread: None, seed_zero: None) -> None:
    """One thread and the same random numbers for every test, and silence from PyTorch's layers."""
    for words in ("Using padding='same' with even kernel", "Complex modules are a new feature"):
        warnings.filterwarnings("ignore", words, UserWarning)  # pytest undoes it after the test


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
