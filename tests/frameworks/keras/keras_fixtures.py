"""What the tests of Keras share: its backend, both layouts, small whole numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()
needs_first = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow has no channels first on a processor"
)
FORMATS = ["channels_last", pytest.param("channels_first", marks=needs_first)]


def numpy(tensors: Any) -> Any:
    """A tensor as NumPy's, or a list of them."""
    if isinstance(tensors, (list, tuple)):
        return [numpy(each) for each in tensors]
    return np.array(keras.ops.convert_to_numpy(tensors))


def integers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype("float32")
