"""On JAX every new layer is compiled, which takes seconds: there some files run in part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_PART = ("test_keras_simplify.py", "test_keras_unrolled.py")
"""They run whole on the other two backends, in `test_keras_backend.py`."""
ONE_IN = 5


@pytest.fixture(autouse=True)
def weights_drawn_by_numpy() -> Iterator[None]:
    """JAX compiles a program for every shape that it draws; here, too, a seed tells the numbers."""

    def draw(self: Any, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        drawn = np.random.default_rng(self.seed).standard_normal(shape)
        return (drawn / np.prod(shape[:-1]) ** 0.5).astype(dtype or keras.config.floatx())

    with pytest.MonkeyPatch.context() as patch:
        if keras.config.backend() == "jax":
            patch.setattr(keras.initializers.VarianceScaling, "__call__", draw)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave four tests in five of these files to `make test-all`, on JAX."""
    if keras.config.backend() == "jax":
        for number, item in enumerate(one for one in items if one.path.name in IN_PART):
            if number % ONE_IN:
                item.add_marker(pytest.mark.slow)
