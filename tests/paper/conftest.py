"""Fixtures for the tests of the paper's experiment."""

from small_run import small_networks, trained

__all__ = ["small_networks", "trained"]
