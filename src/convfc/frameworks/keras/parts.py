"""What one of Keras's CONV layers consists of, and how its variables are taken and given."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from convfc.extras import needing

with needing():
    import keras

from convfc.frameworks.keras import read
from convfc.frameworks.keras.grouped import (
    KernelConstraint,
    KernelRegularizer,
    to_kernel,
    to_matrix,
)

CONVS = (*read.KNOWN, *read.SEPARABLE)
"""The classes of Keras's CONV layers."""


class Part(NamedTuple):
    """One convolution of a layer; most layers have one, a separable one has two."""

    weight: str
    """Its kernel, as the CONV class calls it."""
    kind: str
    """What its regulariser and its constraint are named after."""
    fc: str
    """Where its FC layers stand in the patch form."""
    matrix: str
    """Where its FC matrix stands in the weight form."""
    shape: tuple[int, ...]
    """Of its kernel."""
    filters: int
    groups: int
    bias: bool
    """Whether the layer's bias is added to its outputs."""
    transposed: bool

    @property
    def taps(self) -> int:
        """Number k of columns of one group's M."""
        return math.prod(self.shape) // self.filters

    def to_matrix(self, kernel: Any, groups: int) -> Any:
        """Return its kernel as one matrix, or as one for each of its groups."""
        return to_matrix(kernel, self.filters, transposed=self.transposed, groups=groups)

    def to_kernel(self, matrix: Any) -> Any:
        """Return one matrix, or one for each of its groups, as its kernel."""
        return to_kernel(matrix, self.shape, transposed=self.transposed)


def convolutions(native: type) -> list[tuple[str, str, str, str]]:
    """Return the first fields of the parts of a CONV class."""
    whole = ("kernel", "kernel", "fc", "matrix")
    if issubclass(native, read.SEPARABLE):
        depthwise = ("depthwise_kernel", "depthwise", "depthwise_fc", "depthwise_matrix")
        return [depthwise, ("pointwise_kernel", "pointwise", *whole[2:])]
    if issubclass(native, read.DEPTHWISE):
        return [("kernel", "depthwise", *whole[2:])]
    return [whole]


def parts_of(layer: Any) -> tuple[Part, ...]:
    """Return the parts of a native layer that is built."""
    found = []
    names = convolutions(type(layer))
    for n, fields in enumerate(names):
        shape = tuple(getattr(layer, fields[0]).shape)
        depthwise = isinstance(layer, read.DEPTHWISE) or len(names) > n + 1
        transposed = isinstance(layer, read.TRANSPOSED)
        filters, groups = shape[-1], getattr(layer, "groups", 1)
        if depthwise:
            filters, groups = shape[-1] * shape[-2], shape[-2]
        elif transposed:
            filters = shape[-2]
        last = n + 1 == len(names)
        found.append(Part(*fields, shape, filters, groups, last, transposed))
    return tuple(found)


def attribute(layer: Any, part: Part) -> str:
    """Return where a native layer keeps the variable of a kernel."""
    return f"_{part.weight}" if isinstance(layer, read.PLAIN) else part.weight


@contextlib.contextmanager
def opened(layer: Any) -> Iterator[None]:
    """Let variables and layers be added to a layer that is built, as Keras's enable_lora does."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        with keras.name_scope(layer.name, caller=layer):
            yield
    finally:
        if locked:
            layer._tracker.lock()
    layer._post_build()  # on PyTorch, the layer's list of parameters


def forget(layer: Any, name: str) -> None:
    """Remove a variable, a layer or a list of layers from a layer."""
    held = getattr(layer, name)
    for each in held if isinstance(held, list) else [held]:
        if isinstance(each, keras.Variable):
            layer._untrack_variable(each)
        else:
            layer._tracker.untrack(each)
    super(keras.layers.Layer, layer).__delattr__(name)  # Layer's own collects garbage every time


def put_bias_last(layer: Any) -> None:
    """Have the bias, if a layer has one of its own, stand last among its weights."""
    bias = vars(layer).get("bias")
    if bias is not None:
        trainable, bias.trainable = bias.trainable, True
        layer._untrack_variable(bias)
        layer._track_variable(bias)
        bias.trainable = trainable


def add_weight(
    layer: Any,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    initializer: Any,
    part: Part | None = None,
    *,
    trainable: bool,
) -> Any:
    """Add a variable to a layer, with what acts on it in the CONV layer."""
    made = layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        dtype=layer.dtype,
        **acting(layer, kind, part=part),
    )
    made.trainable = trainable
    return made


def acting(layer: Any, kind: str, prefix: str = "", *, part: Part | None = None) -> dict[str, Any]:
    """Return the regulariser and the constraint of a weight, of a part's for its FC layer."""
    found = {}
    for name, made in (("regularizer", KernelRegularizer), ("constraint", KernelConstraint)):
        inner = getattr(layer, f"{kind}_{name}")
        if part is not None and inner is not None:
            inner = made(inner, part.shape, part.transposed)
        found[prefix + name] = inner
    return found


def is_acted_on(layer: Any, part: Part) -> bool:
    """Say whether anything acts on the weights of all groups together."""
    kinds = (part.kind, "bias") if part.bias else (part.kind,)
    return any(each is not None for kind in kinds for each in acting(layer, kind).values())


def value_of(source: Any, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return an initialiser that gives the value of a variable or tensor, changed.

    A variable that is made while Keras only looks at shapes has its value later, and until then a
    stand-in. Otherwise its own value is read: ``.value`` would be cast by the precision of a layer
    that is being called.
    """

    def initialize(shape: Any, dtype: Any = None) -> Any:
        value = source
        if isinstance(source, keras.Variable):
            value = source.value if source._value is None else source._value
        return change(keras.ops.cast(keras.ops.stop_gradient(value), dtype))

    return initialize
