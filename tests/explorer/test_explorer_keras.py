"""Layers of Keras on the page: their linear part, their padding in numbers, their order of axes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import convfc
from convfc.errors import UnsupportedLayer
from convfc.explorer.state import explorer_state, state_layer


def made(layer: Any, *shape: int) -> Any:
    """A layer with small whole numbers as weights."""
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.integers(-4, 5, w.shape).astype("float32") for w in layer.weights])
    return layer


LAYERS = {
    "same": ("Conv2D", (3, (3, 2)), {"strides": 2, "padding": "same"}, (7, 6, 2)),
    "causal": ("Conv1D", (3, 3), {"dilation_rate": 2, "padding": "causal"}, (9, 2)),
    "depthwise": ("DepthwiseConv2D", (3,), {"depth_multiplier": 2}, (5, 6, 3)),
    "transposed": ("Conv2DTranspose", (2, 3), {"strides": 2, "padding": "same"}, (4, 5, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batched", [True, False])
def test_the_page_shows_what_keras_computes(name: str, *, batched: bool) -> None:
    cls, arguments, rest, shape = LAYERS[name]
    layer = made(getattr(keras.layers, cls)(*arguments, **rest), *shape)
    x = np.random.default_rng(1).integers(-4, 5, (2, *shape)).astype("float32")
    found, shown = state_layer(explorer_state(layer, x if batched else x[0]))
    assert shown is not None
    theirs = keras.ops.convert_to_numpy(layer(x))[0]
    assert np.array_equal(found(shown[None])[0], theirs)


def test_channels_may_come_first() -> None:
    layer = made(keras.layers.Conv2D(3, 3, data_format="channels_first"), 2, 6, 5)
    x = np.random.default_rng(1).integers(-4, 5, (1, 2, 6, 5)).astype("float32")
    found, shown = state_layer(explorer_state(layer, x))
    assert shown is not None
    theirs = keras.ops.convert_to_numpy(layer(x))[0]
    assert np.array_equal(np.moveaxis(found(shown[None])[0], -1, 0), theirs)


def test_an_array_of_the_backend_is_an_input_too() -> None:
    layer = made(keras.layers.Conv1D(3, 3), 9, 2)
    x = keras.ops.reshape(keras.ops.arange(18, dtype="float32"), (1, 9, 2))
    _, shown = state_layer(explorer_state(layer, x))
    assert shown is not None
    assert shown.ravel().tolist() == list(range(18))


def test_the_widget_takes_it_and_names_its_activation() -> None:
    layer = made(keras.layers.Conv2D(3, 3, activation="relu", name="first"), 6, 5, 1)
    widget = convfc.explore(layer, np.ones((6, 5, 1), np.float32))
    assert widget.state["title"] == "first, before its relu"


def test_a_layer_without_weights_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="it has no weights yet"):
        convfc.explore(keras.layers.Conv2D(3, 3), np.ones((6, 5, 1), np.float32))
