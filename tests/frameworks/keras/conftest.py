"""On JAX every new layer is compiled, which takes seconds: there some files run in part."""

from __future__ import annotations

import keras
import pytest

IN_PART = ("test_keras_simplify.py", "test_keras_unrolled.py")
"""They run whole on the other two backends, in `test_keras_backend.py`."""
ONE_IN = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave four tests in five of these files to `make test-all`, on JAX."""
    if keras.config.backend() == "jax":
        for number, item in enumerate(one for one in items if one.path.name in IN_PART):
            if number % ONE_IN:
                item.add_marker(pytest.mark.slow)
