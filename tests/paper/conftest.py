"""Fixtures for the tests of the paper's experiment."""

from small_run import small, trained

__all__ = ["small", "trained"]
