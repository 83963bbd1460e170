"""Settings and fixtures for the whole suite."""

from __future__ import annotations

from itertools import groupby
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-in", type=int, default=1, help="of every file, one test in so many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what --one-in does; skip what is slow, and say so, unless -m says what to run."""
    one_in = config.getoption("--one-in")
    if one_in > 1:
        long = {"slow", "long"}
        quick = [one for one in items if long.isdisjoint(m.name for m in one.iter_markers())]
        files = groupby(quick, lambda item: item.path)
        kept = [item for _, file in files for item in [*file][::one_in]]
        config.hook.pytest_deselected(items=[*set(items) - set(kept)])
        items[:] = kept
    if not config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make test-all runs it"))


@pytest.fixture(params=LIBRARIES, ids=str)
def library(request: pytest.FixtureRequest) -> Library:
    """Each array library in turn, with a read-only NumPy among them."""
    return request.param
