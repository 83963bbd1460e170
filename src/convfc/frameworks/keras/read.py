"""What one of Keras's CONV layers computes, in convfc's own terms.

Keras's padding is a word (``valid``, ``same``, ``causal``); here it becomes numbers for one input
size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import array_api_compat
import numpy as np

from convfc.extras import needing

with needing():
    import keras

from convfc.arrays import Array
from convfc.errors import Refusal, UnsupportedLayer
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.sizes import Sizes, input_sizes

PLAIN = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
KNOWN = (*PLAIN, *TRANSPOSED, *DEPTHWISE)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
"""Two convolutions, which make one FC form, and are read in turn."""

_ALIKE = (3, 15)
"""The first version of Keras that crops a transposed output in the same way on every backend."""


def read_layer(layer: Any, input_size: Sequence[int], *, differentiable: bool = False) -> ConvLayer:
    """Read a CONV layer for one spatial input size, without its activation."""
    _check(layer, KNOWN)
    kernel, bias = (_array(weight, differentiable) for weight in (layer.kernel, layer.bias))
    return _as_read(geometry_of(layer, kernel.shape, input_size), kernel, bias, _name(layer))


def read_in_turn(layer: Any, input_size: Sequence[int]) -> list[tuple[ConvLayer, Sizes]]:
    """Read the convolutions of a layer, two of a separable one, each with its own input size."""
    if not isinstance(layer, SEPARABLE):
        return [(read_layer(layer, input_size), tuple(input_size))]
    _check(layer, SEPARABLE)
    weights = layer.depthwise_kernel, layer.pointwise_kernel, layer.bias
    depthwise, pointwise, bias = (_array(weight, False) for weight in weights)
    geometry = geometry_of(layer, depthwise.shape, input_size)
    size = geometry.output_size(input_size)
    channels, count = pointwise.shape[-2:]
    point = ConvGeometry(channels, count, (1,) * len(size))
    return [
        (_as_read(geometry, depthwise, None, layer.name), tuple(input_size)),
        (_as_read(point, pointwise, bias, _name(layer)), size),
    ]


def _as_read(geometry: ConvGeometry, kernel: Array, bias: Array | None, name: str) -> ConvLayer:
    xp = array_api_compat.array_namespace(kernel)
    if geometry.transposed:  # (*kernel, f, c)
        kernel = xp.moveaxis(kernel, -1, -2)
    size = geometry.filters_shape[1:]  # otherwise (*kernel, c / groups, f), or what is read as such
    filters = xp.moveaxis(xp.reshape(kernel, (*size, geometry.out_channels)), -1, 0)
    return ConvLayer(geometry, filters, bias, name)


def geometry_of(layer: Any, kernel_shape: Sequence[int], input_size: Sequence[int]) -> ConvGeometry:
    """Return what a layer with such a kernel convolves by, on inputs of one spatial size.

    Of a separable layer, its first convolution.
    """
    *sizes, first, second = kernel_shape
    groups, transposed = 1, isinstance(layer, TRANSPOSED)
    if transposed:  # (*kernel, f, c)
        channels, count = second, first
    elif isinstance(layer, (*DEPTHWISE, *SEPARABLE)):  # (*kernel, c, filters of a channel)
        channels, count, groups = first, first * second, first
    else:  # (*kernel, c / groups, f)
        groups = layer.groups
        channels, count = first * groups, second
    geometry = ConvGeometry(
        channels,
        count,
        tuple(sizes),
        stride=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        groups=groups,
        transposed=transposed,
    )
    return _padded(geometry, layer, input_sizes(input_size, len(sizes)))


def spatial_size(layer: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial part of the shape of a layer's input."""
    return tuple(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])


def numbers(weight: Any) -> np.ndarray[Any, Any]:
    """Return a weight as NumPy has it; float32 holds every number of bfloat16."""
    array = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight)))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def class_of(layer: Any) -> type:
    """Return the class of a layer; of one in FC form, the class that it had."""
    native: type = vars(type(layer)).get("native", type(layer))
    return native


def obstacle(layer: Any) -> Refusal | None:
    """Return why a CONV layer may compute something else than its class is known for."""
    native = next(cls for cls in type(layer).__mro__ if cls in (*KNOWN, *SEPARABLE))
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    early = keras.config.backend() == "torch" and version < _ALIKE
    what = remedy = None
    if own := _own(layer, native):
        what = f"its class {class_of(layer).__name__} has its own {own}"
        remedy = f"give the keras.layers.{native.__name__} that computes the same, if there is one"
    elif not layer.built:
        what, remedy = "it has no weights yet", "call it once on an input, or layer.build(shape)"
    elif native in TRANSPOSED and layer.padding == "same" and early:
        what = "on PyTorch this version of Keras crops padding='same' as no other backend does"
        remedy = f"pip install 'keras>={'.'.join(map(str, _ALIKE))}', or set KERAS_BACKEND=jax"
    return Refusal(what, remedy, f"layer {layer.name}") if what and remedy else None


def _check(layer: Any, kinds: tuple[type, ...]) -> None:
    """Raise unless the layer is of these classes, and computes what they are known for."""
    if isinstance(layer, kinds):
        refusal = obstacle(layer)
    elif isinstance(layer, SEPARABLE):
        what = "it is two convolutions, one after the other"
        remedy = "make a DepthwiseConv and a Conv of kernel size 1 with its weights"
        refusal = Refusal(what, remedy)
    else:
        remedy = "give one layer"
        if isinstance(layer, keras.Model):
            remedy = "give one layer of the model, such as model.get_layer('conv2d')"
        refusal = Refusal("it is not a CONV layer that can be read", remedy)
    if refusal is not None:
        known = f"one of {', '.join(cls.__name__ for cls in kinds)}"
        where, got = f"layer {layer.name}", type(layer).__name__
        raise UnsupportedLayer(
            refusal.reason, where=where, expected=known, got=got, remedy=refusal.remedy
        )


def _own(layer: Any, native: type) -> str | None:
    """Return the method that a layer replaces, so that it may compute something else, or None."""
    for name in ("call", "convolution_op", "__call__"):
        known = getattr(native, name, None)
        if getattr(class_of(layer), name, None) is not known or name in vars(layer):
            return name
    return None


def _array(weight: Any, differentiable: bool) -> Array:
    if weight is None:
        return None
    if differentiable and keras.config.backend() == "torch":
        return keras.ops.convert_to_tensor(weight)
    return numbers(weight)


def _name(layer: Any) -> str:
    activation = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    linear = layer.activation is None or activation == "linear"
    return str(layer.name) if linear else f"{layer.name}, before its {activation}"


def _padded(geometry: ConvGeometry, layer: Any, input_size: Sizes) -> ConvGeometry:
    """Return the geometry with the layer's padding in numbers."""
    pairs, extra = [], []
    given = getattr(layer, "output_padding", None) or (None,) * geometry.spatial_ndim
    for size, extent, step, more in zip(
        input_size, geometry.effective_kernel_size, geometry.stride, given, strict=True
    ):
        if geometry.transposed:
            low, high = _transposed_crop(extent, step, layer.padding, more)
        elif layer.padding == "same":
            total = max((math.ceil(size / step) - 1) * step + extent - size, 0)
            low, high = total // 2, total - total // 2
        else:
            low, high = extent - 1 if layer.padding == "causal" else 0, 0
        pairs.append((low, max(high, 0)))
        extra.append(max(-high, 0))  # a negative crop adds elements
    return replace(geometry, padding=tuple(pairs), output_padding=tuple(extra))


def _transposed_crop(extent: int, step: int, padding: str, more: int | None) -> tuple[int, int]:
    """Return (low, high) cropped from the ``(n - 1) * step + extent`` elements of an axis.

    Of these, ``valid`` has ``more`` in addition (by default enough for n whole strides); ``same``
    has ``n * step`` elements, or with ``more``, ``(n - 1) * step + extent % 2 + more``.
    """
    if padding == "valid":
        return 0, -(max(step - extent, 0) if more is None else more)
    total = extent - step if more is None else extent - extent % 2 - more
    low = max(total, 0) // 2
    return low, total - low
