"""The page's settings: a `ConvGeometry` and an input size in the words of the page, and back.

The page keeps the same rules (``web/src/model/geometry.js``); the tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convfc.errors import DataError, GeometryError, MemoryBudgetError
from convfc.explorer.pictures import LONGEST
from convfc.geometry import ConvGeometry
from convfc.sizes import Sizes, flag, input_sizes

__all__ = [
    "LARGEST",
    "LIMITS",
    "PADDING",
    "check_axes",
    "geometry_of_settings",
    "settings_of_geometry",
]

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
    """Return the settings of the page for a geometry on an input of this size.

    Raises
    ------
    GeometryError
        If the size does not fit, or if it is none that the page can show: of three or more axes, or
        beyond `LIMITS`.
    MemoryBudgetError
        If there are more numbers than `LARGEST`.

    Examples
    --------
    >>> settings = settings_of_geometry(ConvGeometry(1, 4, (3, 3), padding=1), (6, 7), bias=False)
    >>> settings["size"], settings["padding"], settings["mode"]
    ([6, 7], [[1, 1], [1, 1]], 'zeros')
    """
    check_axes(geometry)
    size = input_sizes(input_size, geometry.spatial_ndim)
    output = geometry.output_size(size)
    given = {theirs: _plain(getattr(geometry, ours)) for theirs, ours in _NAMES.items()}
    settings = {"axes": len(size), "size": list(size), **given, "bias": bias}
    for name, (least, most) in LIMITS.items():
        values = settings[name] if isinstance(settings[name], list) else [settings[name]]
        _check_limits(name, values, least, most)
    _check_limits("padding", [side for pair in geometry.padding for side in pair], *PADDING)
    for what, count in (
        ("input and filters have", _given(geometry, size)),
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


def check_axes(geometry: ConvGeometry) -> None:
    """Raise if the page cannot show as many axes.

    Examples
    --------
    >>> check_axes(ConvGeometry(1, 1, (3, 3, 3)))
    Traceback (most recent call last):
    ...
    convfc.errors.GeometryError: layer: the page shows one or two spatial axes; got 3. Remedy: ...
    """
    if geometry.spatial_ndim > 2:
        raise GeometryError(
            "the page shows one or two spatial axes",
            where="layer",
            got=geometry.spatial_ndim,
            remedy="show a slice of it, such as filters[:, 0] with a geometry of two axes; "
            "convfc.index_map and convfc.im2col take any number of axes",
        )


def geometry_of_settings(settings: Mapping[str, Any]) -> tuple[ConvGeometry, Sizes, bool]:
    """Return the geometry, the input size, and whether there is a bias, of the page's settings.

    Raises
    ------
    DataError
        If a field is missing, or there is one too many.
    GeometryError, MemoryBudgetError
        If they are no convolution, or none that the page can show.

    Examples
    --------
    >>> geometry = ConvGeometry(1, 1, (3,))
    >>> geometry_of_settings(settings_of_geometry(geometry, (5,), bias=False)) == (
    ...     geometry, (5,), False)
    True
    """
    names = {"axes", "size", "bias", *_NAMES}
    for wrong, what in ((names - set(settings), "a field is missing"),
                        (set(settings) - names, "there is no such field")):  # fmt: skip
        if wrong:
            raise DataError(
                what,
                where=f"settings.{min(wrong)}",
                expected=", ".join(sorted(names)),
                remedy="take the settings from explorer_state, or from the widget's .state",
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


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _check_limits(name: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        if not least <= value <= most:
            size = name == "size"
            raise GeometryError(
                "the page does not go so far",
                where=name,
                expected=f"{least} to {most}",
                got=value,
                remedy="make the input smaller" if size else "show fewer of them, or a part",
            )


def _given(geometry: ConvGeometry, size: Sizes) -> int:
    return math.prod(size) * geometry.in_channels + math.prod(geometry.filters_shape)
