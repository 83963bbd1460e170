"""A layer in a model, and what reaches it there: for the page of a layer deep inside."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.convert import inspect
from convfc.errors import NothingToConvert, ShapeError
from convfc.explorer.pictures import read_image
from convfc.registry import room_of

__all__ = ["input_for", "layer_in_model", "layer_names"]

LONGEST = 224
"""Pixels of the longer side of an image whose size nobody has given."""


def layer_names(model: Any) -> list[str]:
    """Return the places of a model's CONV layers, in its order.

    Raises
    ------
    UnsupportedModel
        If no framework owns it.

    Examples
    --------
    >>> import torch
    >>> layer_names(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(1, 2, 3)))
    ['1']
    """
    rows = [row for row in inspect(model) if row.form in ("native", "patch", "weight")]
    return list(dict.fromkeys(row.names[0] if row.names else row.name for row in rows))


def layer_in_model(model: Any, name: str | None, x: Any) -> tuple[str, Any, Any]:
    """Return a layer's place, the layer, and what it is called with when the model is run.

    Parameters
    ----------
    model : object
        Of a framework that convfc knows; it is left as it was.
    name : str, optional
        The place; the first CONV layer if not given.
    x : array
        An input of the model.

    Raises
    ------
    NothingToConvert
        If there is no such layer; the message lists those that there are.
    ShapeError, UnsupportedLayer
        If the model does not run on the input, or does not call the layer.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Conv2d(1, 2, 3))
    >>> name, layer, x = layer_in_model(model, None, torch.zeros(1, 1, 12, 12))
    >>> name, x.shape
    ('1', torch.Size([1, 1, 6, 6]))
    """
    names = layer_names(model)
    place = (names[0] if names else None) if name is None else name
    if place not in names:
        raise NothingToConvert(
            "the model has no such CONV layer" if names else "the model has no CONV layer",
            where="layer",
            expected=f"one of {', '.join(names)}" if names else None,
            got=name,
            remedy="convfc inspect lists the layers of a model",
        )
    room = room_of(model)
    watch = importlib.import_module(f"{room.__name__}.watch")
    return place, model.get_submodule(place), watch.layer_input(model, place, x)


def input_for(
    model: Any, sizes: Sequence[int] | None = None, image: pathlib.Path | None = None
) -> NDArray[np.float32]:
    """Return an input of a model: an image, or random numbers from 0 to 1.

    Parameters
    ----------
    model : object
        Its first CONV layer says how many channels there are, where no sizes are given.
    sizes : sequence of int, optional
        Shape ``(c, *spatial)``, with or without a batch axis before.
    image : pathlib.Path, optional
        Fitted to the sizes; without them, made so small that no side is longer than 224.

    Returns
    -------
    numpy.ndarray, shape (1, c, *spatial)

    Raises
    ------
    ShapeError
        If there is neither an image nor sizes, or an image for sizes that have not two axes.
    DataError, MissingDependencyError
        What `convfc.explorer.pictures.read_image` raises.

    Examples
    --------
    >>> input_for(None, (3, 8, 8)).shape
    (1, 3, 8, 8)
    """
    if sizes is None and image is None:
        raise ShapeError(
            "the size of the model's input is not known",
            where="input",
            remedy="give --image photo.png, or --input 3,224,224",
        )
    if image is None:
        assert sizes is not None, "checked before"  # noqa: S101
        shape = (1, *sizes) if len(sizes) < 4 else tuple(sizes)
        return np.random.default_rng(0).random(shape).astype(np.float32)
    if sizes is not None and len(sizes) not in (3, 4):
        raise ShapeError(
            "an image has two axes and its channels",
            where="input",
            expected="sizes such as 3,224,224",
            got=tuple(sizes),
        )
    channels = _channels(model) if sizes is None else sizes[-3]
    size = _small(image) if sizes is None else tuple(sizes[-2:])
    pixels = np.moveaxis(read_image(image, channels, size), -1, 0)
    return pixels[None].astype(np.float32)


def _channels(model: Any) -> int:
    """Return the channels that the first CONV layer of a model reads."""
    rows = [row for row in inspect(model) if row.geometry is not None]
    return rows[0].geometry.in_channels if rows else 3  # type: ignore[union-attr]


def _small(image: pathlib.Path) -> tuple[int, int]:
    """Return height and width of an image, made smaller where it is large."""
    height, width, _ = read_image(image, 1).shape
    scale = min(1.0, LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
