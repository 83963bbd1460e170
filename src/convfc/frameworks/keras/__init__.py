"""The room of Keras 3: its layers, its backend and precision, and the layers of the FC form.

============== ==================================================================================
`read`         what one of Keras's CONV layers computes, in convfc's own terms
`forms`        one CONV layer as an FC layer, and back, in place
`children`     the FC layers in it
`parts`        what a CONV layer consists of, and its variables
`grouped`      the FC layer of all groups as one, and the layouts of kernels
`products`     the patch matrix M with ``keras.ops``
`layers`       the layer that builds M, for models written by hand
`backend`      choosing a backend and a precision
============== ==================================================================================

Importing the room does not import Keras, because the choice of a backend has to come before that;
its functions are only called when the user has imported Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convfc.layer import ConvLayer

__all__ = ["order_of", "owns", "read_layer"]


def owns(model: object) -> bool:
    """Return whether a layer or a model is one of Keras."""
    import keras

    return isinstance(model, keras.layers.Layer)


def order_of(layer: Any) -> str:
    """Return how a layer lays out its inputs and outputs."""
    return str(layer.data_format)


def read_layer(layer: Any, input_size: Sequence[int], *, differentiable: bool = False) -> ConvLayer:
    """Read a CONV layer: `convfc.frameworks.keras.read.read_layer`."""
    from convfc.frameworks.keras import read

    return read.read_layer(layer, input_size, differentiable=differentiable)
