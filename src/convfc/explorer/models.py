"""A layer in a model, and what reaches it there: for the page of a layer deep inside."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.convert import inspect
from convfc.errors import NothingToConvert, ShapeError
from convfc.explorer.pictures import Source, as_input
from convfc.geometry import ConvGeometry
from convfc.registry import room_of

__all__ = ["input_for", "layer_in_model", "layer_names"]


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
    model: Any, sizes: Sequence[int] | None = None, source: Source | None = None
) -> tuple[NDArray[np.float32], str]:
    """Return an input of a model, and what it is: an image, a digit, or random numbers from 0 to 1.

    Parameters
    ----------
    model : object
        Its first CONV layer says how many axes and channels there are, where no sizes do.
    sizes : sequence of int, optional
        Shape ``(c, *spatial)``, with or without a batch axis before.
    source : path or int, optional
        An image or a digit, see `convfc.explorer.pictures.as_input`; fitted to the sizes.

    Returns
    -------
    x : numpy.ndarray, shape (1, c, *spatial)
    said : str

    Raises
    ------
    ShapeError
        If there is neither a source nor sizes, or if the source does not fit the sizes.
    DataError, MissingDependencyError
        If it is no image, or the package that reads it is not installed.

    Examples
    --------
    >>> x, said = input_for(None, (3, 8, 8))
    >>> x.shape, said
    ((1, 3, 8, 8), 'random numbers, 3 × 8 × 8')
    """
    if sizes is None and source is None:
        raise ShapeError(
            "the size of the model's input is not known",
            where="input",
            remedy="give --image photo.png, or --input 3,224,224",
        )
    ndim = None if sizes is None else _axes(model, sizes)
    if source is None:
        assert sizes is not None, "checked before"  # noqa: S101
        shape = tuple(sizes)[-(ndim or 0) - 1 :]
        noise = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
        return noise, f"random numbers, {' × '.join(map(str, shape))}"
    if sizes is None or ndim is None:
        first = _first(model)
        geometry, size = ConvGeometry(first.in_channels, 1, (1,) * first.spatial_ndim), None
    else:
        channels, *size = tuple(sizes)[-ndim - 1 :]
        geometry = ConvGeometry(channels, 1, (1,) * ndim)
    picture = as_input(source, geometry, size)
    x = np.moveaxis(picture.values, -1, 0)[None].astype(np.float32)
    return x, picture.said


def _axes(model: Any, sizes: Sequence[int]) -> int:
    """Return the number of spatial axes of sizes, with a batch axis or without."""
    if len(sizes) in (2, 4):
        return len(sizes) // 2
    if len(sizes) == 3:  # (c, h, w), or (b, c, n)
        return 2 if model is None else _first(model).spatial_ndim
    raise ShapeError(
        "the page shows one or two spatial axes",
        where="input",
        expected="sizes such as 3,224,224, or 1,3,224,224",
        got=",".join(map(str, sizes)),
        remedy="give channels and spatial sizes",
    )


def _first(model: Any) -> ConvGeometry:
    """Return the geometry of a model's first CONV layer; of an image, if it is not known."""
    known = (row.geometry for row in inspect(model) if row.geometry is not None)
    return next(known, None) or ConvGeometry(3, 1, (1, 1))
