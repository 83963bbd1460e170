"""Settings and fixtures for the whole suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from libraries import LIBRARIES

if TYPE_CHECKING:
    from libraries import Library

# By default every run draws the same examples; `--hypothesis-profile=deep` searches for new ones.
shared = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=60, derandomize=True, **shared)
settings.register_profile("deep", max_examples=2000, **shared)
settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is slow, with a word in the last lines of the run, unless -m says what to run."""
    if not config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make test-all runs it"))


@pytest.fixture(params=LIBRARIES, ids=str)
def library(request: pytest.FixtureRequest) -> Library:
    """Each array library in turn, with a read-only NumPy among them."""
    return request.param
