"""What each of Keras's layers does to a value of a network: a table, open for registration.

CONV layers, Dense and BatchNormalization are built from their weights. What only moves numbers is
run on numbered elements, and other affine layers without weights on the vectors of a basis, in
float64, so that Keras itself says what it does. A layer whose class is not in the table, or has a
``call`` of its own, is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from convfc.extras import needing

with needing():
    import keras

from convfc.comparing import first_words
from convfc.frameworks.keras.parts import CONVS
from convfc.frameworks.keras.read import numbers, read_in_turn
from convfc.layer import ConvLayer
from convfc.mlp.maps import DIFFERENT, moved, probed
from convfc.mlp.pieces import between, leaky, maxima, pool_windows, scaled, shifted
from convfc.mlp.values import (
    Opaque,
    Operations,
    Tracked,
    Value,
    affine,
    diagonal,
    identity,
    linear,
    refuse,
    relu,
    total,
)
from convfc.operators.matrix import conv_matrix, conv_offset

L = keras.layers

_NORM_ROUNDINGS = 8  # eps, the root, its inverse, two products, a difference, a sum, one to store
_PRODUCT = "a product of two values of the network is not affine"
_UNKNOWN = "is not known to be affine or an activation"


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a layer, or of an operation of ``keras.ops``."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    max_pool: str
    memory: float | None

    @property
    def place(self) -> str:
        """The layer's name, for messages."""
        return str(self.layer.name)

    @property
    def words(self) -> str:
        """What was called, for messages."""
        return f"a {type(self.layer).__name__}"

    @property
    def inputs(self) -> list[Tracked]:
        """The values of the network among the arguments."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tracked)]

    def again(self, given: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Call it on arrays in the places of the network's values, in float64."""
        call, instead = self.layer, iter(given)
        if isinstance(call, L.Layer):
            policy = {"dtype": "float64", "name": "in_float64"}
            call = type(call).from_config({**call.get_config(), **policy})

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Tracked):
                return keras.ops.convert_to_tensor(next(instead), dtype="float64")
            return leaf

        try:
            args, kwargs = keras.tree.map_structure(argument, (self.args, self.kwargs))
            results = keras.tree.flatten(call(*args, **kwargs))
            return [np.asarray(keras.ops.convert_to_numpy(result)) for result in results]
        except Exception as error:
            what = first_words(error) or type(error).__name__
            raise refuse(f"{self.words} fails in float64: {what}", self.place) from error

    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's result."""
        (x,) = self.inputs
        return tuple(self.layer.compute_output_shape((2, *x.shape))[1:])

    def constant(self, operand: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return constants, one for each element of one example."""
        array = np.asarray(operand, float) if np.isscalar(operand) else numbers(operand)
        spread = np.broadcast_to(array.astype(np.float64), (2, *shape))
        if not np.array_equal(spread[0], spread[1]):
            raise refuse(DIFFERENT, self.place)
        flat: npt.NDArray[Any] = spread[0].ravel()
        return flat


OPERATIONS = Operations()
"""By the classes of layers, or by the names of operations of ``keras.ops``."""


def made_of(step: Step) -> list[Any]:
    """Return what a layer or operation makes of its inputs, and that after its `activation_of`.

    Each is one `Tracked`, or a list of them.
    """
    layer, key = step.layer, None  # type: Any, Any
    if isinstance(layer, L.Layer):
        key = next((cls for cls in type(layer).__mro__ if cls in OPERATIONS), None)
        if key is None:
            raise refuse(f"{step.words} {_UNKNOWN}", step.place)
        own = type(layer).call is not key.call or {"call", "__call__"} & vars(layer).keys()
        if own and key not in CONVS:  # `read_in_turn` says of these what they are
            raise refuse(f"its class {type(layer).__name__} has its own call", step.place)
    else:
        key = type(layer).__name__
        if not type(layer).__module__.startswith("keras.") or key not in OPERATIONS:
            raise refuse(f"keras.ops's {key} {_UNKNOWN}", step.place)
    made, activation = OPERATIONS[key](step, *step.inputs), activation_of(layer)
    return [made] if activation is None else [made, _activated(step, made, activation)]


def activation_of(layer: Any) -> Any:
    """Return the function that a layer applies to what it computes, if it has one."""
    known = isinstance(layer, (*CONVS, L.Dense, L.Activation))
    return layer.activation if known else None


def _each(kind: str, axes: str = "123") -> list[Any]:
    """Return the layers of a kind, for these numbers of axes."""
    return [getattr(L, kind.replace("*", n)) for n in axes if hasattr(L, kind.replace("*", n))]


# Layers with weights ------------------------------------------------------------------------------


@OPERATIONS.register(*CONVS)
def _(step: Step, x: Tracked) -> Tracked:
    order = step.layer.data_format
    first = order == "channels_first"
    for read, size in read_in_turn(step.layer, x.shape[1:] if first else x.shape[:-1]):
        bias = None if read.bias is None else np.asarray(read.bias, np.float64)
        wide = ConvLayer(read.geometry, np.asarray(read.filters, np.float64), bias)
        matrix = conv_matrix(wide, size, order=order, memory=step.memory)
        offset = conv_offset(wide, size, order=order)
        channels, out = read.geometry.out_channels, read.geometry.output_size(size)
        shape = (channels, *out) if first else (*out, channels)
        x = Tracked(affine({x.value: matrix}, offset, of_layer=True), shape)
    return x


@OPERATIONS.register(L.Dense)
def _(step: Step, x: Tracked) -> Tracked:
    layer = step.layer
    if layer.quantization_mode is not None:
        raise refuse("a quantised Dense layer", step.place, "simplify it before it is quantised")
    matrix = sparse.csr_array(numbers(layer.kernel).astype(np.float64).T)
    rows = math.prod(x.shape[:-1])
    offset = np.zeros(matrix.shape[0])
    if layer.bias is not None:
        offset = numbers(layer.bias).astype(np.float64)
    whole = matrix if rows == 1 else sparse.kron(identity(rows), matrix, format="csr")
    value = affine({x.value: whole}, np.tile(offset, rows), of_layer=True)
    return Tracked(value, (*x.shape[:-1], matrix.shape[0]))


@OPERATIONS.register(L.BatchNormalization)
def _(step: Step, x: Tracked) -> Tracked:
    """Scale and shift: ``(x - m) * gamma / sqrt(v + eps) + beta``, of mean m and variance v."""
    layer = step.layer
    if step.kwargs.get("training"):
        raise refuse("a BatchNormalization that is always in training mode", step.place)
    if step.kwargs.get("mask") is not None:
        raise refuse("a BatchNormalization with a mask", step.place)
    mean, variance = (
        numbers(weight).astype(np.float64) for weight in (layer.moving_mean, layer.moving_variance)
    )
    scale = 1 / np.sqrt(variance + layer.epsilon)
    scale = scale * numbers(layer.gamma).astype(np.float64) if layer.scale else scale
    shift = numbers(layer.beta).astype(np.float64) if layer.center else np.zeros_like(mean)
    axis = layer.axis - 1 if layer.axis > 0 else len(x.shape) + layer.axis
    along = [-1 if a == axis else 1 for a in range(len(x.shape))]

    def each(numbers_: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(numbers_.reshape(along), x.shape).ravel()

    value = affine(
        {x.value: diagonal(each(scale))},
        each(shift - mean * scale),
        of_layer=True,
        offset_bound=each(np.abs(shift) + np.abs(mean * scale)),
        roundings=_NORM_ROUNDINGS,
    )
    return Tracked(value, x.shape)


@OPERATIONS.register(L.Normalization)
def _(step: Step, x: Tracked) -> Tracked:
    layer = step.layer
    mean, variance = (step.constant(each, x.shape) for each in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return Tracked(shifted(scaled(x.value, deviation), mean), x.shape)
    return Tracked(scaled(shifted(x.value, -mean), 1 / deviation), x.shape)


@OPERATIONS.register(L.Rescaling)
def _(step: Step, x: Tracked) -> Tracked:
    """Ask the layer for its two constants: with no offset on ones, and on zeros."""
    offset = step.again([np.zeros((2, *x.shape))])[0]
    config = {**step.layer.get_config(), "offset": 0.0}
    plain = Step(L.Rescaling.from_config(config), step.args, {}, step.max_pool, step.memory)
    scale = plain.again([np.ones((2, *x.shape))])[0]
    value = scaled(x.value, step.constant(scale, x.shape))
    return Tracked(shifted(value, step.constant(offset, x.shape)), x.shape)


# What moves numbers, and sums ---------------------------------------------------------------------


@OPERATIONS.register(*_each("ZeroPadding*D"), *_each("Cropping*D"), *_each("UpSampling*D", "13"))
@OPERATIONS.register(L.Flatten, L.Reshape, L.Permute, L.RepeatVector, L.Concatenate)
@OPERATIONS.register("Reshape", "Transpose", "Concatenate", "GetItem", "Squeeze", "ExpandDims")
@OPERATIONS.register("Flip", "Roll", "Moveaxis", "Swapaxes", "Stack", "Split", "Repeat", "Tile")
def _(step: Step, *inputs: Tracked) -> Any:
    made = moved(step.again, inputs, step.place)
    return made[0] if len(made) == 1 else made


@OPERATIONS.register(L.UpSampling2D)
def _(step: Step, x: Tracked) -> Any:
    if step.layer.interpolation == "nearest":
        return moved(step.again, [x], step.place)[0]
    return _channelwise(step, x)


@OPERATIONS.register(*_each("AveragePooling*D"), *_each("GlobalAveragePooling*D"))
@OPERATIONS.register(*_each("AdaptiveAveragePooling*D"))
def _channelwise(step: Step, x: Tracked) -> Tracked:
    channels = 0 if step.layer.data_format == "channels_first" else -1
    return probed(lambda given: step.again([given])[0], x, step.place, channels=channels)


@OPERATIONS.register("Mean", "Sum")
def _(step: Step, x: Tracked) -> Tracked:
    return probed(lambda given: step.again([given])[0], x, step.place)


@OPERATIONS.register(
    L.Dropout, *_each("SpatialDropout*D"), L.GaussianDropout, L.GaussianNoise, L.AlphaDropout
)
@OPERATIONS.register(L.Identity, L.ActivityRegularization)
def _(step: Step, x: Tracked) -> Tracked:
    if step.kwargs.get("training") or any(arg is True for arg in step.args):
        raise refuse("a dropout that is always on", step.place, "leave out training=True")
    return x


@OPERATIONS.register(L.Add)
def _(step: Step, *inputs: Tracked) -> Tracked:
    _check_same(step, inputs)
    return Tracked(total([x.value for x in inputs]), inputs[0].shape)


@OPERATIONS.register(L.Average)
def _(step: Step, *inputs: Tracked) -> Tracked:
    _check_same(step, inputs)
    whole = total([x.value for x in inputs])
    return Tracked(scaled(whole, 1 / len(inputs)), inputs[0].shape)


@OPERATIONS.register(L.Subtract)
def _(step: Step, x: Tracked, other: Tracked) -> Tracked:
    _check_same(step, (x, other))
    return Tracked(total([x.value, scaled(other.value, -1)]), x.shape)


@OPERATIONS.register(L.Maximum, L.Minimum)
def _(step: Step, x: Tracked, *others: Tracked) -> Tracked:
    """Return the larger one, a + relu(b - a), or the smaller one, a - relu(a - b)."""
    _check_same(step, (x, *others))
    value, sign = x.value, 1 if isinstance(step.layer, L.Maximum) else -1
    for other in others:
        rise = relu(total([scaled(other.value, sign), scaled(value, -sign)]))
        value = total([value, scaled(rise, sign)])
    return Tracked(value, x.shape)


def _check_same(step: Step, inputs: Sequence[Tracked]) -> None:
    if len({x.shape for x in inputs}) > 1:
        shapes = " and ".join(str(x.shape) for x in inputs)
        what = f"{step.words} of values of the shapes {shapes}"
        raise refuse(what, step.place, "bring them to one shape with a layer before it")


@OPERATIONS.register("Add", "Subtract")
def _(step: Step, *inputs: Tracked) -> Tracked:
    """Return the sum of two operands, of which one may be a constant."""
    first, second = (*step.args, *step.kwargs.values())
    shape = _broadcast(step, first, second)
    values: list[Value] = []
    constant = np.zeros(math.prod(shape))
    for operand, sign in ((first, 1), (second, 1 if type(step.layer).__name__ == "Add" else -1)):
        if isinstance(operand, Tracked):
            value = _spread(step, operand, shape)
            values.append(value if sign == 1 else scaled(value, sign))
        else:
            constant = constant + sign * step.constant(operand, shape)
    whole = total(values)
    return Tracked(shifted(whole, constant) if constant.any() else whole, shape)


@OPERATIONS.register("Multiply", "Divide", "TrueDivide")
def _(step: Step, *inputs: Tracked) -> Tracked:
    first, second = (*step.args, *step.kwargs.values())
    divides = type(step.layer).__name__ != "Multiply"
    if len(inputs) > 1 or (divides and isinstance(second, Tracked)):
        raise refuse(_PRODUCT, step.place)
    x, factor = (first, second) if isinstance(first, Tracked) else (second, first)
    shape = _broadcast(step, first, second)
    factors = step.constant(factor, shape)
    return Tracked(scaled(_spread(step, x, shape), 1 / factors if divides else factors), shape)


@OPERATIONS.register("Negative")
def _(step: Step, x: Tracked) -> Tracked:
    return Tracked(scaled(x.value, -1), x.shape)


def _broadcast(step: Step, *operands: Any) -> tuple[int, ...]:
    """Return the shape of one example's result; the axis of the batch is the first of both."""
    shapes = [(2, *o.shape) if isinstance(o, Tracked) else np.shape(o) for o in operands]
    shape = np.broadcast_shapes(*shapes)
    tracked = {len(o.shape) for o in operands if isinstance(o, Tracked)}
    if tracked != {len(shape) - 1}:
        raise refuse(f"{step.words} of values with different numbers of axes", step.place)
    return tuple(shape[1:])


def _spread(step: Step, x: Tracked, shape: tuple[int, ...]) -> Value:
    if x.shape == shape:
        return x.value
    return moved(lambda t: [np.broadcast_to(t[0], (2, *shape))], [x], step.place)[0].value


# Activations --------------------------------------------------------------------------------------

A = keras.activations

_KEPT = [
    *(A.elu, A.selu, A.softplus, A.softsign, A.soft_shrink, A.sparse_plus, A.silu, A.squareplus),
    *(A.gelu, A.celu, A.tanh, A.tanh_shrink, A.hard_shrink, A.sigmoid, A.exponential),
    *(A.log_sigmoid, A.sparse_sigmoid, A.hard_silu, A.mish),
]
"""Functions of single elements that stay as they are."""
_VECTORS = [A.softmax, A.log_softmax]
"""Functions of the last axis, which stay where it is the only one."""
_OF_OPS = ("Relu", "Relu6", "Sigmoid", "Tanh", "Softplus", "Softsign", "Silu", "HardSigmoid")


def _activated(step: Step, x: Tracked, function: Any) -> Tracked:
    """Return a value after an activation."""
    if isinstance(function, L.Layer):
        inside = Step(function, (x,), {}, step.max_pool, step.memory)
        made: Tracked = made_of(inside)[-1]
        return made
    name = getattr(function, "__name__", type(function).__name__)
    if function is None or function is A.linear:
        value = x.value
    elif function is A.relu:
        value = relu(x.value)
    elif function is A.relu6:
        value = between(x.value, 0.0, 6.0)
    elif function is A.leaky_relu:
        value = leaky(x.value, 0.2)
    elif function is A.hard_tanh:
        value = between(x.value, -1.0, 1.0)
    elif function is A.hard_sigmoid:
        clamped = between(shifted(x.value, np.full(x.value.size, 3.0)), 0.0, 6.0)
        value = linear(clamped, diagonal(np.full(x.value.size, 1 / 6)), roundings=2)
    elif function in _KEPT or (function in _VECTORS and len(x.shape) == 1):
        value = _kept(step, x, L.Activation(function, name=name))
    else:
        raise refuse(f"its activation {name} {_UNKNOWN}", step.place)
    return Tracked(value, x.shape)


def _kept(step: Step, x: Tracked, layer: Any) -> Value:
    return Opaque(x.value.size, x.value, (layer,), step.place)


@OPERATIONS.register(L.Activation)
def _(step: Step, x: Tracked) -> Tracked:
    return x


@OPERATIONS.register(*_OF_OPS)
def _(step: Step, x: Tracked) -> Tracked:
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(step.layer).__name__)
    return _activated(step, x, getattr(A, name.strip("_")))


@OPERATIONS.register(L.ReLU)
def _(step: Step, x: Tracked) -> Tracked:
    layer = step.layer
    slope, top = float(layer.negative_slope or 0), layer.max_value
    if layer.threshold:
        raise refuse("a ReLU with a threshold jumps there", step.place)
    if slope:
        value = between(leaky(x.value, slope), None, top)
    else:
        value = relu(x.value) if top is None else between(x.value, 0.0, float(top))
    return Tracked(value, x.shape)


@OPERATIONS.register(L.LeakyReLU)
def _(step: Step, x: Tracked) -> Tracked:
    return Tracked(leaky(x.value, float(step.layer.negative_slope)), x.shape)


@OPERATIONS.register(L.PReLU)
def _(step: Step, x: Tracked) -> Tracked:
    slopes = step.constant(numbers(step.layer.alpha).astype(np.float64)[None], x.shape)
    return Tracked(leaky(x.value, slopes), x.shape)


@OPERATIONS.register(L.ELU, L.Softmax)
def _(step: Step, x: Tracked) -> Tracked:
    layer = step.layer
    if isinstance(layer, L.Softmax) and (len(x.shape) != 1 or layer.axis not in (1, -1)):
        raise refuse("a Softmax over one of several axes", step.place)
    return Tracked(_kept(step, x, layer), x.shape)


# Max-pooling --------------------------------------------------------------------------------------


@OPERATIONS.register(*_each("MaxPooling*D"))
def _(step: Step, x: Tracked) -> Tracked:
    layer, shape = step.layer, step.shape()
    if step.max_pool == "keep":
        return _pool_kept(step, x, shape)
    first = int(layer.data_format == "channels_first")
    axes = slice(1, None) if first else slice(0, -1)
    size, out = x.shape[axes], shape[axes]
    lows = [
        max((m - 1) * s + k - n, 0) // 2 if layer.padding == "same" else 0
        for n, m, k, s in zip(size, out, layer.pool_size, layer.strides, strict=True)
    ]
    windows = pool_windows(size, out, kernel=layer.pool_size, stride=layer.strides, low=lows)
    return Tracked(maxima(x, windows, first), shape)


@OPERATIONS.register(*_each("GlobalMaxPooling*D"))
def _(step: Step, x: Tracked) -> Tracked:
    shape = step.shape()
    if step.max_pool == "keep":
        return _pool_kept(step, x, shape)
    first = int(step.layer.data_format == "channels_first")
    size = x.shape[1:] if first else x.shape[:-1]
    return Tracked(maxima(x, [[tuple(range(n))] for n in size], first), shape)


@OPERATIONS.register(*_each("AdaptiveMaxPooling*D"))
def _(step: Step, x: Tracked) -> Tracked:
    if step.max_pool != "keep":
        raise refuse("an adaptive max-pooling as ReLU", step.place, "leave out max_pool='relu'")
    return _pool_kept(step, x, step.shape())


def _pool_kept(step: Step, x: Tracked, shape: tuple[int, ...]) -> Tracked:
    layers: list[Any] = [
        L.Reshape(x.shape, name="reshape"),
        step.layer,
        L.Flatten(data_format="channels_last", name="flatten"),
    ]
    layers = layers[1:] if len(x.shape) == 1 else layers
    layers = layers[:-1] if len(shape) == 1 else layers
    known = x.value.nonnegative
    value = Opaque(math.prod(shape), x.value, tuple(layers), step.place, nonnegative=known)
    return Tracked(value, shape)
