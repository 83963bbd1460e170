"""CONV layers of Keras with every hyper-parameter, computed by Keras and as convfc reads them."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from convfc.registry import read_layer

FORMATS = ("channels_last", "channels_first")


@dataclass(frozen=True)
class Layer:
    """A layer's class by name, its positional arguments, and the input that it is tried on."""

    cls: str
    args: tuple[Any, ...]
    size: tuple[int, ...]
    channels: int = 3
    rest: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rest = "-".join(f"{key}{value}" for key, value in self.rest.items())
        sizes = "x".join(map(str, self.size))
        return f"{self.cls}-{self.args}-{sizes}x{self.channels}-{rest}".replace(" ", "")

    def made(self, data_format: str = "channels_last") -> Any:
        """The layer, with small whole numbers as weights."""
        zeros = "depthwise_initializer" if "Depthwise" in self.cls else "kernel_initializer"
        options = {"data_format": data_format, zeros: "zeros", **self.rest}  # set below
        layer = getattr(keras.layers, self.cls)(*self.args, **options)
        first = data_format == "channels_first"
        layer.build(
            (None, self.channels, *self.size) if first else (None, *self.size, self.channels)
        )
        rng = np.random.default_rng(1)
        layer.set_weights([rng.integers(-4, 5, w.shape).astype("float32") for w in layer.weights])
        return layer

    def x(self) -> np.ndarray:
        rng = np.random.default_rng(2)
        return rng.integers(-4, 5, (2, *self.size, self.channels)).astype("float32")


def layer(cls: str, *args: Any, size: tuple[int, ...], channels: int = 3, **rest: Any) -> Layer:
    return Layer(cls, args, size, channels, rest)


# What "same" cuts depends on the parity of kernel and stride, and on which is larger.
TRANSPOSED = [
    layer("Conv1DTranspose", 2, kernel, size=(4,), strides=stride, padding=padding, **extra)
    for stride, kernels in {1: (2, 3), 2: (1, 2, 3, 4), 3: (1, 2, 3, 4)}.items()
    for kernel, padding in itertools.product(kernels, ("valid", "same"))
    for extra in ({}, *({"output_padding": more} for more in range(stride)))
]
SAME = [
    layer("Conv1D", 2, kernel, size=(size,), strides=stride, padding="same")
    for kernel, size, stride in itertools.product((2, 3), (5, 6), (1, 2, 3))
]
LAYERS = [
    *SAME,
    *TRANSPOSED,
    layer("Conv1D", 4, 3, size=(9,), padding="causal", dilation_rate=2),
    layer("Conv1D", 4, 3, size=(9,), padding="causal", strides=2, use_bias=False),
    layer("Conv1D", 4, 2, size=(8,), channels=4, groups=2),
    layer("Conv2D", 4, (3, 2), size=(7, 6), strides=(2, 1)),
    layer("Conv2D", 4, (3, 2), size=(7, 6), padding="same", dilation_rate=(2, 3)),
    layer("Conv2D", 6, 3, size=(7, 6), channels=4, groups=2, padding="same", activation="relu"),
    layer("Conv3D", 2, (2, 1, 3), size=(4, 3, 5), strides=(1, 2, 1), padding="same"),
    layer("Conv2DTranspose", 4, (3, 2), size=(4, 5), strides=(2, 3)),
    layer("Conv2DTranspose", 4, 3, size=(4, 5), strides=2, padding="same", use_bias=False),
    layer("Conv2DTranspose", 4, 3, size=(4, 5), dilation_rate=2),
    layer("Conv3DTranspose", 2, 2, size=(3, 2, 3), strides=2, padding="same"),
    layer("DepthwiseConv1D", 3, 2, size=(9,), padding="same"),
    layer("DepthwiseConv2D", 3, size=(7, 6), strides=2, padding="same", depth_multiplier=2),
    layer("DepthwiseConv2D", (2, 3), size=(7, 6), dilation_rate=2, use_bias=False),
]


def both(case: Layer, data_format: str) -> tuple[np.ndarray, np.ndarray]:
    """What Keras computes of a layer, and what convfc does that has read it, channels last."""
    made, x = case.made(data_format), case.x()
    given = np.moveaxis(x, -1, 1) if data_format == "channels_first" else x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*backend.*")  # Keras says that they may differ
        theirs = keras.ops.convert_to_numpy(made(given))
    reading = read_layer(made, input_size=case.size)
    assert reading.order == data_format
    ours = np.asarray(reading.layer(x))
    if case.rest.get("activation") == "relu":
        ours = np.maximum(ours, 0)
    return np.moveaxis(theirs, 1, -1) if data_format == "channels_first" else theirs, ours
