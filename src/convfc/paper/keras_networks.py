"""The networks of Section 5, Figure 8, and the control, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    import keras

import convfc
from convfc.algorithm1 import filters_to_matrix, im2col, matrix_to_filters
from convfc.digits import IMAGE_SHAPE
from convfc.frameworks.keras.backend import pullback
from convfc.geometry import ConvGeometry
from convfc.paper.data import Digits
from convfc.paper.optimizers import INITIALIZER
from convfc.runs.folder import Result
from convfc.sizes import one_of

Array = NDArray[np.floating[Any]]

FILTERS = 128
"""How many filters the CONV layer of Section 5 has."""


def geometry(filters: int = FILTERS) -> ConvGeometry:
    """Return the CONV layer of Section 5: filters of 4x4, stride 2, no padding."""
    return ConvGeometry.valid(1, filters, (4, 4), stride=2)


_POSITIONS, _TAPS = geometry().patch_matrix_shape(1, IMAGE_SHAPE[:2])[1:]
_PIXELS = int(np.prod(IMAGE_SHAPE))


_TRUNCATED = 0.87962566103423978
"""Standard deviation of a normal distribution that is cut off at two of its own."""


@dataclass(frozen=True)
class Weights:
    """The weights of any of the three networks: the filter matrix K, the last kernel."""

    first: Array  # (16, filters)
    second: Array  # (169 * filters, 784)


NETWORKS = ("cnn", "fc", "control")
"""The CNN and the FC network of Figure 8, and the FC network with Algorithm 1 inside it."""

PAIR = NETWORKS[:2]
"""The two whose difference the paper measures."""


def build(network: str, weights: Weights | None = None, filters: int = FILTERS) -> keras.Model:
    """Return the network of this name in Keras's current precision.

    With weights, it has these, and as many filters as they do.
    """
    one_of("network", network, NETWORKS)
    model = _made(network, _tail(), filters if weights is None else weights.first.shape[1])
    if weights is not None:
        first = _kernel(model.get_layer("first"))
        first.assign(_as_kernel(weights.first, first))
        model.get_layer("second").kernel.assign(weights.second)
    return model


def initial_weights(seed: int, filters: int = FILTERS, initializer: str = INITIALIZER) -> Weights:
    """Draw the weights from which all three networks start, as the CNN's layers would draw them."""
    # By NumPy, in float32, so that every backend and both precisions start at the same numbers.
    generator = np.random.default_rng([seed, 0x4E])
    layer = geometry(filters)
    # Of a CONV layer Keras counts every tap that leads to one of its outputs, and from one input.
    fans = layer.taps, filters * math.prod(layer.kernel_size)
    first = _drawn(generator, layer.filters_shape, fans, initializer)
    fans = _POSITIONS * filters, _PIXELS
    second = _drawn(generator, fans, fans, initializer)
    return Weights(filters_to_matrix(first, layer), second)


def read_weights(model: keras.Model) -> Weights:
    """Return a copy of a network's weights."""
    second = keras.ops.convert_to_numpy(model.get_layer("second").kernel.value)
    return Weights(read_first(model), np.array(second))


def read_first(model: keras.Model) -> Array:
    """Return a copy of the first layer's weights as the filter matrix K, ``(16, filters)``."""
    return _as_matrix(_kernel(model.get_layer("first")).value)


def network_input(network: str, images: Array) -> Array:
    """Return what a network of this name takes: its images, or for the FC network their M."""
    return im2col(images, geometry()) if network == "fc" else images


def first_layer_output(network: str, first: Array, images: Array) -> Array:
    """Return the first layer's own output before ReLU, ``(n, 169, filters)``: the paper's V or U.

    Images are cast to the precision of its weights, the filter matrix K.
    """
    model = _made(network, [], first.shape[1])
    kernel = _kernel(model.get_layer("first"))
    kernel.assign(_as_kernel(first, kernel))
    inputs = network_input(network, images.astype(first.dtype))
    output = keras.ops.convert_to_numpy(model(inputs))
    return np.asarray(output).reshape(len(images), _POSITIONS, first.shape[1])


def compare(
    networks: Mapping[str, Result], pair: tuple[str, str], digits: Digits
) -> dict[str, float]:
    """Return how far apart two trained networks are: outputs on the new images, weights, losses.

    The mean of ``||V_n - U_n||_F`` over the images is what the authors' program computes,
    ``||V - U||_F / n`` of the whole what the paper prints.
    """
    first = [networks[name].arrays["first_layer"][-1] for name in pair]
    v, u = (
        first_layer_output(name, weights, digits.new)
        for name, weights in zip(pair, first, strict=True)
    )
    difference = v.astype(np.float64) - u
    losses = [
        np.array([networks[name].numbers[kind] for kind in ("loss", "val_loss")], np.float64)
        for name in pair
    ]
    return {
        "output_difference_mean": float(np.linalg.norm(difference, axis=(1, 2)).mean()),
        "output_difference_printed": float(np.linalg.norm(difference.ravel()) / len(difference)),
        "weight_difference": float(np.linalg.norm(first[0].astype(np.float64) - first[1])),
        "max_loss_difference": float(np.abs(losses[0] - losses[1]).max()),
    }


def gradient_rounding(initial: Weights, images: Array) -> dict[str, float]:
    """Return the size of the first layer's gradient at the start, and of its rounding.

    Both are root mean squares, the second of the difference between the CNN and the FC network.
    """
    gradients = []
    for network in PAIR:
        model = build(network, initial)
        given = images.astype(initial.first.dtype)
        y, pulled = pullback(model, network_input(network, given))
        error = 2 * (keras.ops.convert_to_numpy(y) - given) / given.size  # of the mean square
        gradients.append(_as_matrix(pulled(error)[1]).astype(np.float64))
        del model
        keras.utils.clear_session()
    difference = gradients[0] - gradients[1]
    return {
        name: float(np.sqrt(np.mean(values**2)))
        for name, values in (("size", gradients[0]), ("rounding", difference))
    }


def dead_outputs(initial: Weights, final: Weights, digits: Digits) -> dict[str, float]:
    """Return how many final ReLUs of the CNN are zero on every validation image, and the cost.

    Such a ReLU has no gradient and stays zero: right where no image has ink, elsewhere
    ``wrongly_dead``. Beside the losses stand those of two constant answers.
    """
    images = digits.validation.astype(final.first.dtype)
    targets = images.reshape(len(images), -1).astype(np.float64)

    outputs = []
    for state in (initial, final):
        model = build("cnn", state)
        prediction = keras.ops.convert_to_numpy(model(images))
        outputs.append(prediction.reshape(targets.shape).astype(np.float64))
        del model
        keras.utils.clear_session()
    dead_at_start, dead_at_end = ((output == 0).all(axis=0) for output in outputs)
    inked = (targets != 0).any(axis=0)
    squares = (outputs[1] - targets) ** 2
    mean_image = digits.training.astype(np.float64).mean(axis=0).ravel()
    return {
        "outputs": int(targets.shape[1]),
        "dead_at_start": int(dead_at_start.sum()),
        "dead_at_end": int(dead_at_end.sum()),
        "wrongly_dead": int((dead_at_end & inked).sum()),
        "val_loss": float(squares.mean()),
        "val_loss_of_dead": float(squares[:, dead_at_end].sum() / squares.size),
        "val_loss_of_zeros": float((targets**2).mean()),
        "val_loss_of_mean_image": float(((targets - mean_image) ** 2).mean()),
    }


def _made(network: str, tail: list[keras.layers.Layer], filters: int) -> keras.Model:
    """Return a network; the control is what `convfc.to_fc` makes of the CNN."""
    model = keras.Sequential([*_head(network, filters), *tail], name=network)
    if network == "control":
        convfc.to_fc(model, product="matrix", inplace=True)
    return model


def _head(network: str, filters: int) -> list[Any]:
    """Return the input and the first layer, which is all that tells the networks apart."""
    named: dict[str, Any] = {"kernel_initializer": "he_uniform", "use_bias": False, "name": "first"}
    if network != "fc":
        layer = geometry(filters)
        options = {"strides": layer.stride, "padding": "valid", "data_format": "channels_last"}
        kernel = (filters, layer.kernel_size)
        return [keras.Input(IMAGE_SHAPE), keras.layers.Conv2D(*kernel, **options, **named)]
    dense = keras.layers.Dense(filters, **named)  # one for all rows of M
    return [keras.Input((_POSITIONS, _TAPS)), dense]


def _tail() -> list[keras.layers.Layer]:
    """Return what follows the first layer, the same in all networks of Figure 8."""
    return [
        keras.layers.ReLU(),
        keras.layers.Flatten(data_format="channels_last"),
        keras.layers.Dense(_PIXELS, use_bias=False, kernel_initializer="he_uniform", name="second"),
        keras.layers.ReLU(),
        keras.layers.Reshape(IMAGE_SHAPE),
    ]


def _kernel(layer: keras.layers.Layer) -> Any:
    """Return the variable of a first layer: of the control, that of its FC layer."""
    return layer.fc.kernel if hasattr(layer, "fc") else layer.kernel


def _as_kernel(first: Array, kernel: Any) -> Array:
    """Return K in the shape of a kernel; Keras keeps filters as ``(*kernel, c, f)``."""
    if len(kernel.shape) == 2:
        return first
    return np.moveaxis(np.asarray(matrix_to_filters(first, geometry(first.shape[1]))), 0, -1)


def _as_matrix(kernel: Any) -> Array:
    """Return a copy of what has the shape of a kernel as a filter matrix."""
    kernel = keras.ops.convert_to_numpy(kernel)
    if kernel.ndim == 2:
        return np.array(kernel)
    filters = np.moveaxis(kernel, -1, 0)
    return np.array(filters_to_matrix(filters, geometry(len(filters))))


def _drawn(
    generator: np.random.Generator, shape: tuple[int, ...], fans: tuple[int, int], initializer: str
) -> NDArray[np.float32]:
    """Draw weights with the scale of one of Keras's initializers."""
    rule = keras.initializers.get(initializer)
    fan = {"fan_in": fans[0], "fan_out": fans[1], "fan_avg": sum(fans) / 2}[rule.mode]
    if rule.distribution == "uniform":
        limit = np.float32(np.sqrt(3 * rule.scale / fan))
        return (2 * generator.random(shape, dtype=np.float32) - 1) * limit
    drawn = generator.standard_normal(shape, dtype=np.float32)
    while (far := np.abs(drawn) > 2).any():  # a truncated normal has nothing there
        drawn[far] = generator.standard_normal(int(far.sum()), dtype=np.float32)
    return drawn * np.float32(np.sqrt(rule.scale / fan) / _TRUNCATED)
