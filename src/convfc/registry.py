"""Finds the room of the framework that a model or layer belongs to, and reads a layer.

Users register classes of layers of their own here.

A user's object can only belong to a framework that is already imported: none is imported for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import array_api_compat

from convfc.arrays import Array
from convfc.errors import ArgumentError, UnsupportedModel
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer, Order
from convfc.room import Room
from convfc.sizes import one_of

ROOMS = {
    "keras": "convfc.frameworks.keras",
    "torch": "convfc.frameworks.torch",
    "onnx": "convfc.frameworks.onnx",
}
"""Framework, as ``sys.modules`` names it, and its folder, where ``room.ROOM`` is; in this order.

Keras before PyTorch: where it computes with PyTorch, its layers are modules of PyTorch as well.
"""


REGISTERED: dict[type, Callable[[Any], Mapping[str, Any]]] = {}
"""The classes of layers that users have registered, each with its reader."""


def register_layer(cls: type, reader: Callable[[Any], Mapping[str, Any]]) -> None:
    """Have `convfc.to_fc` convert layers of a class that is none of PyTorch's CONV classes.

    For a module that convolves with a parameter ``weight`` of its own, by PyTorch's functions. In
    patch form its forward runs as it is, and its convolution is computed by the FC layer; `to_conv`
    gives the class back. Subclasses of PyTorch's CONV layers need no registration.

    Parameters
    ----------
    cls : type
        The class of a ``torch.nn.Module``; subclasses of it are not meant.
    reader : function
        Returns of a layer what its ``weight`` does not say: a mapping with ``groups`` and
        ``transposed``, where these are not 1 and False.

    Raises
    ------
    ArgumentError
        If it is not a class.

    Examples
    --------
    >>> import torch, convfc
    >>> from torch import nn
    >>> class Equalised(nn.Module):  # as StyleGAN's: the weight is scaled at every call
    ...     def __init__(self, channels, filters):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.randn(filters, channels, 3, 3))
    ...
    ...     def forward(self, x):
    ...         return nn.functional.conv2d(x, self.weight * 0.1, padding=1)
    >>> convfc.register_layer(Equalised, lambda layer: {})
    >>> model = nn.Sequential(Equalised(2, 4), nn.ReLU())
    >>> fc, x = convfc.to_fc(model), torch.randn(1, 2, 5, 5)
    >>> type(fc[0].fc) is nn.Linear, torch.equal(fc(x), model(x))
    (True, True)
    >>> type(convfc.to_conv(fc)[0]) is Equalised
    True
    """
    if not isinstance(cls, type):
        raise ArgumentError(
            "only a class can be registered",
            where="cls",
            expected="a class of torch.nn.Module",
            got=type(cls).__name__,
            remedy="give the class of the layer, type(layer)",
        )
    REGISTERED[cls] = reader


ITSELF = "give the model object itself, not its class, its file or its state dict"
"""The remedy for what is no model."""


def room_of(
    model: object,
    where: str = "model",
    *,
    kind: str = "model",
    expected: str = "a torch.nn.Module, a keras.Model or an onnx.ModelProto",
) -> Room:
    """Return the room that owns a model or a layer."""
    for framework, folder in ROOMS.items():
        if sys.modules.get(framework) is not None:
            room: Room = importlib.import_module(f"{folder}.room").ROOM
            if room.owns(model):
                return room
    raise UnsupportedModel(
        f"this is not a {kind} that convfc knows",
        where=where,
        expected=expected,
        got=type(model).__name__,
        remedy=ITSELF,
    )


class Reading(NamedTuple):
    """A layer in convfc's own terms, its framework's order, and room (None of none)."""

    layer: ConvLayer
    order: Order
    room: Room | None


def read_layer(
    layer: Any,
    geometry: ConvGeometry | None = None,
    *,
    input_size: Sequence[int],
    bias: Array | None = None,
    order: Order | None = None,
    differentiable: bool = False,
) -> Reading:
    """Read what a user calls a layer: a framework's own, a `ConvLayer`, or filters and a geometry.

    Filters are ``(f, *kernel, c / groups)``; ``differentiable`` asks for the framework's own
    parameters, not copies out of its graph.
    """
    if order is not None:
        one_of("order", order, Order)
    if geometry is not None and not isinstance(layer, ConvLayer) and _is_array(layer):
        return Reading(ConvLayer(geometry, layer, bias), order or "channels_last", None)
    if geometry is not None or bias is not None:
        raise ArgumentError(
            "only filters are given a geometry and a bias; a layer has its own",
            where="geometry" if geometry is not None else "bias",
            got=type(layer).__name__,
            remedy="leave them out, or give the layer's filters (f, *kernel, c/groups)",
        )
    if isinstance(layer, ConvLayer):
        return Reading(layer, order or "channels_last", None)
    if _is_array(layer):
        raise ArgumentError(
            "filters alone do not say how they are moved",
            where="geometry",
            remedy="ConvGeometry(in_channels, out_channels, kernel_size, stride=..., padding=...)",
        )
    choices = "a CONV layer of PyTorch or Keras, a ConvLayer, or filters with a geometry"
    room = room_of(layer, "layer", kind="layer", expected=choices)
    read = room.read_layer(layer, input_size, differentiable=differentiable)
    return Reading(read, order or room.order_of(layer), room)


def room_of_filters(filters: Array) -> Room | None:
    """Return the room whose framework the filters are tensors of, if it convolves by itself."""
    if not array_api_compat.is_torch_array(filters):
        return None
    room: Room = importlib.import_module(f"{ROOMS['torch']}.room").ROOM
    return room


def _is_array(thing: object) -> bool:
    return bool(array_api_compat.is_array_api_obj(thing))
