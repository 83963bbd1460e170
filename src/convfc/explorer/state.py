"""The state of the page as JSON, from a layer and an input, and back.

A state is a dict: ``version``, ``settings``, ``input`` (``{"values": [...]}``), ``filters``,
``bias``, ``selection``, ``title`` and ``source``. Numbers are flat, in the layouts of convfc: input
``(*spatial, c)``, filters ``(f, *kernel, c / groups)``. Once somebody has changed something on a
page, ``given`` holds the settings and numbers that title and source speak of.

The settings are a `ConvGeometry` and an input size in the words of the page. The page keeps the
same rules (``web/src/model/geometry.js``); the tests compare the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import ArgumentError, DataError, GeometryError, MemoryBudgetError
from convfc.explorer.inputs import LONGEST, Picture, Source, as_input, normalization, real_numbers
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.registry import Reading, read_layer
from convfc.sizes import Sizes, flag, input_sizes

LIMITS = {
    "size": (1, LONGEST),
    "kernel": (1, 64),
    "stride": (1, 64),
    "dilation": (1, 64),
    "outputPadding": (0, 63),
    "channels": (1, 4096),
    "filters": (1, 4096),
    "groups": (1, 4096),
}
"""The least and the most of a setting, per axis where there is one for each."""

PADDING = (0, 224)
"""The same of the padding on a side."""

LARGEST = 2_000_000
"""Numbers that the page holds: of input and filters together, and of one filter's output.

As JSON some 20 MB, which a browser still reads at once.
"""

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


def settings_of_geometry(
    geometry: ConvGeometry, input_size: Sequence[int], *, bias: bool
) -> dict[str, Any]:
    """Return the settings of the page for a geometry, or refuse what is beyond its limits."""
    _check_axes(geometry)
    size = input_sizes(input_size, geometry.spatial_ndim)
    output = geometry.output_size(size)
    given = {theirs: getattr(geometry, ours) for theirs, ours in _NAMES.items()}
    settings: dict[str, Any]
    settings = json.loads(json.dumps({"axes": len(size), "size": size, **given, "bias": bias}))
    for name, (least, most) in {**LIMITS, "padding": PADDING}.items():
        for value in np.ravel(settings[name]).tolist():
            if not least <= value <= most:
                smaller, fewer = "make the input smaller", "show fewer of them, or a part"
                raise GeometryError(
                    "the page does not go so far",
                    where=name,
                    expected=f"{least} to {most}",
                    got=value,
                    remedy=smaller if name == "size" else fewer,
                )
    numbers = math.prod(size) * geometry.in_channels + math.prod(geometry.filters_shape)
    for what, count in (
        ("input and filters have", numbers),
        ("the output of one filter has", math.prod(output)),
    ):
        if count > LARGEST:
            raise MemoryBudgetError(
                f"{what} more numbers than the page holds",
                where="layer",
                expected=f"at most {LARGEST:,}",
                got=f"{count:,}",
                remedy="show some of the filters (filters=range(8), --filters 8), or less input",
            )
    return settings


def _check_axes(geometry: ConvGeometry) -> None:
    """Raise if the page cannot show as many axes."""
    if geometry.spatial_ndim > 2:
        raise GeometryError(
            "the page shows one or two spatial axes",
            where="layer",
            got=geometry.spatial_ndim,
            remedy="show a slice of it, such as filters[:, 0] with a geometry of two axes; "
            "convfc.index_map and convfc.im2col take any number of axes",
        )


def geometry_of_settings(settings: Mapping[str, Any]) -> tuple[ConvGeometry, Sizes, bool]:
    """Return the geometry, the input size, and whether there is a bias, of the page's settings."""
    names = {"axes", "size", "bias", *_NAMES}
    if wrong := names ^ set(settings):
        missing = min(wrong) in names
        raise DataError(
            "a field is missing" if missing else "there is no such field",
            where=f"settings.{min(wrong)}",
            expected=", ".join(sorted(names)),
            remedy=_REMEDY,
        )
    given = {ours: settings[theirs] for theirs, ours in _NAMES.items()}
    sizes = [given.pop(name) for name in ("in_channels", "out_channels", "kernel_size")]
    geometry = ConvGeometry(*sizes, **given)
    size = input_sizes(settings["size"], geometry.spatial_ndim)
    if settings["axes"] != geometry.spatial_ndim:
        raise GeometryError(
            "the kernel has another number of axes",
            where="settings.axes",
            expected=geometry.spatial_ndim,
            got=settings["axes"],
            remedy="give one kernel size per axis",
        )
    bias = flag("settings.bias", settings["bias"])
    settings_of_geometry(geometry, size, bias=bias)  # for what it refuses
    return geometry, size, bias


VERSION = 1
"""Of the JSON; the page knows the same one (web/src/model/store.js)."""

_USUAL = 28
"""Size of an axis where nobody has said one: that of the experiment's images."""

_REMEDY = "take the state from explorer_state, or from the widget's .state"


def explorer_state(
    layer: Any,
    x: Source | None = None,
    geometry: ConvGeometry | None = None,
    *,
    input_size: Sequence[int] | None = None,
    filters: Sequence[int] | None = None,
    normalize: Any = None,
    title: str = "",
    source: str = "",
) -> dict[str, Any]:
    """Return what the page shows of a layer.

    Parameters
    ----------
    layer : object
        Whatever `convfc.conv_matrix` takes: a layer of a framework in any form, a `ConvLayer`, or,
        if a geometry is given, filters. Of one or two spatial axes.
    x : array, path or int, optional
        An input in the layer's own order of axes, with or without a batch axis (of a batch the
        first one is shown), the path of an image, or a handwritten digit 0 to 9. If not given, the
        page makes small whole numbers up.
    geometry : ConvGeometry, optional
        Of filters.
    input_size : sequence of int, optional
        Spatial size: what an image is made to fit, or where there is no input.
    filters : sequence of int, optional
        Show only these; of a layer with groups, all or none.
    normalize : str or (mean, std), optional
        What an image or a digit becomes, which is 0 to 1 without it: "imagenet", or mean and std,
        one number per channel, also as a text "0.5,0.5,0.5/0.2,0.2,0.2".
    title, source : str
        What the page says that it shows, and where it comes from. If there is no title, it is the
        layer's name, or its kind and sizes.

    Returns
    -------
    dict
        For `convfc.explorer.page.page`, for the widget, and for `json.dumps`.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer, GeometryError
        If this is not a layer, if it does not fit the input, or if the page cannot show it.
    ShapeError
        If the input has other axes than the layer.
    DataError
        If a number is complex or not finite, or if it is not an image that can be read.
    MemoryBudgetError
        If the page would have to hold too many numbers.

    Examples
    --------
    >>> import torch
    >>> state = explorer_state(torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 6, 7))
    >>> state["settings"]["size"], state["settings"]["padding"], len(state["filters"])
    ([6, 7], [[1, 1], [1, 1]], 216)
    """
    picture = None
    # The number of axes and the channels are known before the size is, which decides the padding.
    reading = _read(layer, geometry, input_size)
    if x is not None:
        how = normalization(normalize)
        order = reading.order
        picture = as_input(x, reading.layer.geometry, input_size, order=order, normalize=how)
    elif normalize is not None:
        raise ArgumentError(
            "there is no picture to normalize",
            where="normalize",
            remedy="give the path of an image, or leave normalize out",
        )
    size = _size(reading.layer.geometry, picture, input_size)
    found = read_layer(layer, geometry, input_size=size).layer
    weights = real_numbers("filters", found.filters)
    bias = None if found.bias is None else real_numbers("bias", found.bias)
    shown = found.geometry
    if filters is not None:
        weights, bias, shown = _chosen(shown, weights, bias, filters)
    settings = settings_of_geometry(shown, size, bias=bias is not None)
    output = shown.output_size(size)
    middle = int(np.ravel_multi_index([n // 2 for n in output], output))
    given: dict[str, Any] | None = None
    if picture is not None:
        given = {"values": _short(picture.values)}
        if picture.span is not None:
            given["range"] = list(picture.span)
    return {
        "version": VERSION,
        "title": title or found.name or _described(layer, shown),
        "source": source or ("" if picture is None else f"Input: {picture.said}"),
        "settings": settings,
        "input": given,
        "filters": _short(weights),
        "bias": None if bias is None else _short(bias),
        "selection": {"p": middle, "f": 0, "q": None, "element": None},
    }


def state_layer(state: Mapping[str, Any]) -> tuple[ConvLayer, NDArray[Any] | None]:
    """Return the layer of a state, named as its title says, and its input ``(*spatial, c)``.

    There is no input if the state has none, or one of the page's own digits.
    """
    if state.get("version", VERSION) != VERSION:
        raise DataError(
            "a state of another version",
            where="version",
            expected=VERSION,
            got=repr(state["version"]),
            remedy="make it again with the convfc that is installed",
        )
    geometry, size, has_bias = geometry_of_settings(_mapping(state, "settings"))
    filters = _array("filters", state.get("filters"), geometry.filters_shape)
    bias = state.get("bias")
    if has_bias:
        bias = _array("bias", bias, (geometry.out_channels,))
    elif bias is not None:
        raise DataError(
            "there are numbers of a bias, and the settings have none",
            where="bias",
            remedy="set settings.bias to True, or bias to None",
        )
    x = None
    if state.get("input") is not None:
        given = _mapping(state, "input")
        if not isinstance(given.get("digit"), int):
            x = _array("input.values", given.get("values"), (*size, geometry.in_channels))
    if state.get("selection") is not None:
        check_selection(_mapping(state, "selection"), geometry, size)
    name = str(state.get("title", ""))
    if state.get("given") is not None:
        state_layer(_mapping(state, "given"))  # for what it refuses
        name = f"{name}, changed here".removeprefix(", ")
    return ConvLayer(geometry, filters, bias, name), x


def check_selection(
    selection: Mapping[str, Any], geometry: ConvGeometry | None = None, size: Sizes = ()
) -> None:
    """Raise unless a selection names rows, filters, columns and elements that there can be."""
    words = {"p": "row of M", "f": "filter", "q": "column of M", "element": "input element"}
    ends = dict.fromkeys(words, math.inf)
    if geometry is not None:
        rows, columns = geometry.patch_matrix_shape(1, size)[1:]
        elements = math.prod(size) * geometry.in_channels
        ends = {"p": rows, "f": geometry.out_channels, "q": columns, "element": elements}
    for name, value in selection.items():
        if name not in words:
            raise DataError(
                "a selection has no such part",
                where=f"selection.{name}",
                expected=", ".join(words),
                remedy="leave it out",
            )
        if value is None and name in ("q", "element"):
            continue
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < ends[name]:
            raise DataError(
                f"there is no such {words[name]}",
                where=f"selection.{name}",
                expected="a whole number from 0 on" if not geometry else f"0 to {ends[name] - 1}",
                got=repr(value),
                remedy="count from 0",
            )


def _read(layer: Any, geometry: ConvGeometry | None, input_size: Sequence[int] | None) -> Reading:
    """Read a layer for a size that may not be known yet, to know its axes and channels."""
    kernel = getattr(geometry or getattr(layer, "geometry", layer), "kernel_size", ())
    ndim = len(kernel) if isinstance(kernel, (tuple, list)) else 2
    size = tuple(input_size) if input_size is not None else (_USUAL,) * ndim
    reading = read_layer(layer, geometry, input_size=size)
    _check_axes(reading.layer.geometry)
    return reading


def _size(
    geometry: ConvGeometry, picture: Picture | None, input_size: Sequence[int] | None
) -> Sizes:
    """Return the size of the input: its own, the one that was said, or one that fits the layer."""
    if picture is not None:
        return picture.values.shape[:-1]
    if input_size is not None:
        return input_sizes(input_size, geometry.spatial_ndim)
    return tuple(
        max(_USUAL, extent, *(side + 1 for side in pair))
        for extent, pair in zip(geometry.effective_kernel_size, geometry.padding, strict=True)
    )


def _described(layer: Any, geometry: ConvGeometry) -> str:
    """Return a title for a layer without a name: its kind, if it says one, and its settings."""
    plain = isinstance(layer, ConvLayer) or hasattr(layer, "shape")
    kernel = " × ".join(map(str, geometry.kernel_size))
    parts = [f"{geometry.in_channels}, {geometry.out_channels}, kernel {kernel}"]
    pads = [str(low) if low == high else f"{low}+{high}" for low, high in geometry.padding]
    for name, values, usual in (
        ("stride", geometry.stride, 1),
        ("padding", pads, "0"),
        ("output padding", geometry.output_padding, 0),
        ("dilation", geometry.dilation, 1),
        ("groups", (geometry.groups,), 1),
    ):
        if {*values} != {usual}:
            same = len({*values}) == 1
            parts.append(f"{name} {' × '.join(map(str, values[:1] if same else values))}")
    if geometry.padding_mode != "zeros":
        parts.append(geometry.padding_mode)
    return f"{'CONV layer ' if plain else type(layer).__name__}({', '.join(parts)})"


def _chosen(
    geometry: ConvGeometry, weights: Any, bias: Any, filters: Sequence[int]
) -> tuple[Any, Any, ConvGeometry]:
    """Keep some filters."""
    if geometry.groups > 1:
        raise ArgumentError(
            "filters of a layer with groups belong together",
            where="filters",
            got=f"groups={geometry.groups}",
            remedy="leave filters= out",
        )
    index = [filters] if isinstance(filters, int) else list(filters)
    if not index or min(index) < 0 or max(index) >= len(weights):
        raise ArgumentError(
            "there are no such filters",
            where="filters",
            expected=f"numbers from 0 to {len(weights) - 1}",
            got=index if len(index) < 9 else f"{index[0]}, ..., {index[-1]}",
            remedy="count from 0",
        )
    kept = replace(geometry, out_channels=len(index))
    return weights[index], None if bias is None else bias[index], kept


def _short(values: NDArray[Any]) -> list[float | int]:
    """Return numbers as short as they come back the same: whole ones without a point.

    A float32 is written with its own few digits, which float64 would not end with.
    """
    flat = values.ravel()
    if flat.dtype.kind in "biu":
        return [int(v) for v in flat]
    numbers = map(float, flat if flat.dtype.itemsize > 4 else flat.astype(str))
    return [int(v) if v.is_integer() and abs(v) < 2**53 else v for v in numbers]


def _mapping(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = state.get(name)
    if not isinstance(value, Mapping):
        raise DataError(
            "no state of the explorer",
            where=name,
            expected="a mapping",
            got=type(value).__name__,
            remedy=_REMEDY,
        )
    return value


def _array(name: str, given: Any, shape: Sizes) -> NDArray[Any]:
    try:
        values = np.asarray(given)
    except ValueError:  # lists of different lengths
        values = np.empty(0, dtype=object)
    if values.dtype.kind not in "iuf" or values.size != math.prod(shape):
        raise DataError(
            "these are not the numbers of its settings",
            where=name,
            expected=f"{math.prod(shape)} numbers, {shape}",
            got=f"{values.size} of {values.dtype}" if values.ndim else type(given).__name__,
            remedy=_REMEDY,
        )
    return real_numbers(name, values).reshape(shape)
