"""The state of the page as JSON, from a layer and an input, and back.

The page's settings are a `ConvGeometry` and an input size in the page's words; numbers are flat, in
the layouts of convfc: input ``(*spatial, c)``, filters ``(f, *kernel, c / groups)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convfc.arrays import Array
from convfc.errors import DataError, GeometryError, MemoryBudgetError, ShapeError
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.registry import read_layer
from convfc.sizes import input_sizes

__all__ = ["LARGEST", "VERSION", "explorer_state", "geometry_of_settings", "state_layer"]

VERSION = 1
"""Of the JSON; the page knows the same one (web/src/model/store.js)."""

LARGEST = 4_000_000
"""Numbers that a state may hold: some 20 MB of JSON, which a browser still reads at once."""

_NAMES = {
    "channels": "in_channels",
    "filters": "out_channels",
    "kernel": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "mode": "padding_mode",
    "dilation": "dilation",
    "groups": "groups",
    "transposed": "transposed",
    "outputPadding": "output_padding",
    "flip": "flip",
}
"""The page's settings, and what `ConvGeometry` calls them."""


def explorer_state(
    layer: Any,
    x: Array | None = None,
    geometry: ConvGeometry | None = None,
    *,
    input_size: Sequence[int] | None = None,
    filters: Sequence[int] | None = None,
    title: str = "",
    source: str = "",
) -> dict[str, Any]:
    """Return what the page shows of a layer.

    Parameters
    ----------
    layer : object
        Whatever `convfc.conv_matrix` takes: a layer of PyTorch in any form, a `ConvLayer`, or, if a
        geometry is given, filters. Of one or two spatial axes.
    x : array, optional
        An input in the layer's own order of axes, with or without a batch axis; of a batch the
        first one is shown. If not given, the page makes small whole numbers up.
    geometry : ConvGeometry, optional
        Of filters.
    input_size : sequence of int, optional
        Spatial size, where there is no input.
    filters : sequence of int, optional
        Show only these; of a layer with groups, all or none.
    title, source : str
        What the page says that it shows, and where it comes from.

    Returns
    -------
    dict
        For `convfc.explorer.page.page`, for the widget, and for `json.dumps`.

    Raises
    ------
    UnsupportedModel, GeometryError
        If this is no layer, if it does not fit the input, or if it has three or more axes.
    ShapeError
        If the input has other axes than the layer, or there is neither an input nor a size.
    DataError
        If a number is not finite, or complex.
    MemoryBudgetError
        If the page would have to hold more than `LARGEST` numbers.

    Examples
    --------
    >>> import torch
    >>> state = explorer_state(torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 6, 7))
    >>> state["settings"]["size"], state["settings"]["padding"], len(state["filters"])
    ([6, 7], [[1, 1], [1, 1]], 216)
    """
    if x is not None and input_size is not None:
        raise ShapeError(
            "an input has its own size", where="input_size", got=tuple(input_size),
            remedy="leave input_size out",
        )  # fmt: skip
    if x is None and input_size is None:
        raise ShapeError(
            "neither an input nor its size", where="x",
            remedy="give an input x, or input_size=(28, 28)",
        )  # fmt: skip
    # A padding "same" is made explicit for a size; which one makes no difference to the rank.
    guess = input_size if input_size is not None else np.shape(x)[-2:]  # type: ignore[arg-type]
    reading = read_layer(layer, geometry, input_size=_spatial(guess, layer, geometry))
    order, found = reading.order, reading.layer
    ndim = found.geometry.spatial_ndim
    if ndim > 2:
        raise GeometryError(
            f"the page shows one or two spatial axes, not {ndim}",
            where="layer",
            remedy="look at convfc.im2col or convfc.conv_matrix for this layer",
        )
    values = None if x is None else _one_input(_numbers("x", x), found.geometry, order)
    size = tuple(input_size) if values is None else values.shape[:-1]  # type: ignore[arg-type]
    found = read_layer(layer, geometry, input_size=size).layer
    size = input_sizes(size, ndim)
    found.geometry.output_size(size)  # raises if it does not fit
    weights = _numbers("filters", found.filters).reshape(found.geometry.filters_shape)
    bias = None if found.bias is None else _numbers("bias", found.bias)
    settings = _settings(found.geometry, size, bias=bias is not None)
    if filters is not None:
        weights, bias = _chosen(settings, weights, bias, filters)
    count = weights.size + math.prod(size) * found.geometry.in_channels
    if count > LARGEST:
        raise MemoryBudgetError(
            "more numbers than a page should hold",
            where=title or "layer",
            expected=f"at most {LARGEST:,}",
            got=f"{count:,}",
            remedy="show some of the filters with filters=range(8), or a smaller input",
        )
    state: dict[str, Any] = {
        "version": VERSION,
        "title": title or found.name,
        "source": source,
        "settings": settings,
        "filters": _short(weights),
        "bias": None if bias is None else _short(bias),
        "selection": {"p": 0, "f": 0, "q": None, "element": None},
    }
    if values is not None:
        state["input"] = {"values": _short(values)}
    return state


def state_layer(state: Mapping[str, Any]) -> tuple[ConvLayer, np.ndarray[Any, Any] | None]:
    """Return the layer of a state, and its input ``(*spatial, c)``, if it has one.

    Parameters
    ----------
    state : mapping
        From the page, or from `explorer_state`.

    Raises
    ------
    DataError
        If it is no state: the message names the field.
    GeometryError
        If its settings are no convolution.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 2, (3,))
    >>> state = explorer_state(np.arange(6).reshape(2, 3, 1), np.arange(5)[:, None], geometry)
    >>> layer, x = state_layer(state)
    >>> layer.geometry == geometry, x.ravel().tolist()
    (True, [0, 1, 2, 3, 4])
    """
    geometry, size = geometry_of_settings(_field(state, "settings", Mapping))
    filters = _array(state, "filters", geometry.filters_shape)
    bias = None if state.get("bias") is None else _array(state, "bias", (geometry.out_channels,))
    values = state.get("input")
    x = None
    if values is not None:
        x = _array(_field(state, "input", Mapping), "values", (*size, geometry.in_channels))
    return ConvLayer(geometry, filters, bias, str(state.get("title", ""))), x


def geometry_of_settings(settings: Mapping[str, Any]) -> tuple[ConvGeometry, tuple[int, ...]]:
    """Return the geometry and the input size that the page's settings stand for.

    Raises
    ------
    DataError
        If a field is missing.
    GeometryError
        If they are no convolution.

    Examples
    --------
    >>> state = explorer_state(np.ones((1, 3, 1)), np.ones((5, 1)), ConvGeometry(1, 1, (3,)))
    >>> geometry_of_settings(state["settings"])[1]
    (5,)
    """
    missing = [name for name in (*_NAMES, "size") if name not in settings]
    if missing:
        raise DataError(
            "no state of the explorer", where="settings", expected=f"a field {missing[0]}",
            got=", ".join(map(str, settings)) or "nothing",
            remedy="take it from explorer_state, or from the widget's .state",
        )  # fmt: skip
    given = {ours: settings[theirs] for theirs, ours in _NAMES.items()}
    geometry = ConvGeometry(
        given.pop("in_channels"), given.pop("out_channels"), given.pop("kernel_size"), **given
    )
    size = input_sizes(settings["size"], geometry.spatial_ndim)
    geometry.output_size(size)
    return geometry, size


def _spatial(size: Sequence[int], layer: Any, geometry: ConvGeometry | None) -> tuple[int, ...]:
    """Return as many sizes as a layer has axes, from what an input's shape ends with."""
    if geometry is None:
        geometry = layer.geometry if isinstance(layer, ConvLayer) else None
    if geometry is not None:
        return (*size, 1, 1, 1)[: geometry.spatial_ndim]
    kernel = getattr(layer, "kernel_size", (0, 0))
    return (*size, 1, 1, 1)[: len(kernel) if isinstance(kernel, tuple) else 2]


def _settings(geometry: ConvGeometry, size: Sequence[int], *, bias: bool) -> dict[str, Any]:
    given = {theirs: _plain(getattr(geometry, ours)) for theirs, ours in _NAMES.items()}
    return {"axes": geometry.spatial_ndim, "size": list(size), **given, "bias": bias}


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _numbers(name: str, values: Any) -> np.ndarray[Any, Any]:
    """Return an array of any library as real, finite numbers."""
    if hasattr(values, "detach"):  # a tensor of PyTorch, perhaps elsewhere and of 16 bits
        values = values.detach().cpu()
        values = (
            values.float() if values.dtype.is_floating_point and values.itemsize < 4 else values
        )
    array = np.asarray(values)
    if np.iscomplexobj(array) or array.dtype.kind not in "biuf":
        raise DataError(
            "the page shows real numbers", where=name, got=str(array.dtype),
            remedy="give its real part, or its modulus",
        )  # fmt: skip
    if not np.isfinite(array).all():
        raise DataError(
            "a number that is not finite", where=name,
            got=f"{int((~np.isfinite(array)).sum())} of {array.size}",
            remedy="replace infinities and NaN first (numpy.nan_to_num)",
        )  # fmt: skip
    return array


def _one_input(x: np.ndarray[Any, Any], geometry: ConvGeometry, order: str) -> Any:
    """Return one input as ``(*spatial, c)``."""
    ndim, channels = geometry.spatial_ndim, geometry.in_channels
    if x.ndim == ndim + 2 and len(x):
        x = x[0]
    first = order == "channels_first"
    if x.ndim != ndim + 1 or x.shape[0 if first else -1] != channels:
        sizes = ["size"] * ndim
        axes = ", ".join([str(channels), *sizes] if first else [*sizes, str(channels)])
        raise ShapeError(
            "the input does not fit the layer", where="x",
            expected=f"({axes}), with or without a batch axis before", got=x.shape,
        )  # fmt: skip
    return np.moveaxis(x, 0, -1) if first else x


def _chosen(
    settings: dict[str, Any], weights: Any, bias: Any, filters: Sequence[int]
) -> tuple[Any, Any]:
    """Keep some filters."""
    if settings["groups"] > 1:
        raise GeometryError(
            "filters of a layer with groups belong together", where="filters",
            got=f"groups={settings['groups']}", remedy="leave filters= out",
        )  # fmt: skip
    index = list(filters)
    if not index or min(index) < 0 or max(index) >= len(weights):
        raise ShapeError(
            "there are no such filters", where="filters", got=index,
            expected=f"numbers from 0 to {len(weights) - 1}",
        )  # fmt: skip
    settings["filters"] = len(index)
    return weights[index], None if bias is None else bias[index]


def _short(values: np.ndarray[Any, Any]) -> list[float | int]:
    """Return numbers as short as they come back the same: whole ones without a point."""
    flat = values.ravel()
    if flat.dtype.kind in "biu":
        return [int(v) for v in flat]
    # A float32 is written with its own few digits, which float64 would not end with.
    texts = (np.format_float_positional(v, trim="-") for v in flat)
    return [int(t) if "." not in t else float(t) for t in texts]


def _field(state: Mapping[str, Any], name: str, kind: type) -> Any:
    value = state.get(name)
    if not isinstance(value, kind):
        raise DataError(
            "no state of the explorer", where=name, expected="a mapping", got=type(value).__name__,
            remedy="take it from explorer_state, or from the widget's .state",
        )  # fmt: skip
    return value


def _array(state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    try:
        values = np.asarray(state.get(name))
    except ValueError as error:
        raise DataError("these are no numbers", where=name, got=str(error)) from None
    if values.dtype.kind not in "iuf" or values.size != math.prod(shape):
        raise DataError(
            "these are not the numbers of its settings", where=name,
            expected=f"{math.prod(shape)} numbers, {shape}", got=f"{values.size} of {values.dtype}",
        )  # fmt: skip
    return values.reshape(shape)
