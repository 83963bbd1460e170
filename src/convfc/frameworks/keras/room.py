"""Keras as a `Room`: what its models are made of, and who does what in this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convfc.extras import needing

with needing():
    import keras

from convfc.frameworks.keras import read
from convfc.layer import ConvLayer
from convfc.room import Room


class KerasRoom(Room):
    """Keras, on every backend."""

    name = "Keras"
    kind = "a keras.Model"

    def owns(self, thing: object) -> bool:
        return isinstance(thing, keras.layers.Layer)

    def order_of(self, layer: Any) -> str:
        return str(layer.data_format)

    def read_layer(
        self, layer: Any, input_size: Sequence[int], *, differentiable: bool = False
    ) -> ConvLayer:
        return read.read_layer(layer, input_size, differentiable=differentiable)


ROOM = KerasRoom()
