"""Fixtures for the tests of methods."""

from torch_fixtures import one_thread, seed_zero

__all__ = ["one_thread", "seed_zero"]
