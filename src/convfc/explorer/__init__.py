"""The interactive page: a window on an image, a row of M, a column of K and an output, together.

============== ==================================================================================
`state`        what the page shows, as JSON, from a layer and an input, and back
`page`         the page as one file that makes no request, and on the loopback interface
`film`         the window that slides, as a GIF for slides (needs Pillow; imported when asked for)
`widget`       the page in a notebook (needs anywidget; imported when asked for)
`inputs`       arrays, image files (needs Pillow), digits, and what reaches a layer in its model
`static`       the page's module and stylesheet, made of the sources in `web`
============== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convfc.errors import ArgumentError
from convfc.explorer.inputs import Source
from convfc.explorer.state import explorer_state
from convfc.geometry import ConvGeometry

__all__ = ["explore", "explorer_state"]


def explore(
    layer: Any = None,
    x: Source | None = None,
    geometry: ConvGeometry | None = None,
    *,
    input_size: Sequence[int] | None = None,
    filters: Sequence[int] | None = None,
    normalize: Any = None,
    title: str = "",
    height: int = 0,
) -> Any:
    """Show a layer in a notebook: its input, M, K, output and the one big matrix, linked.

    Outside a notebook, ``convfc explore`` opens the same page in a browser.

    Parameters
    ----------
    layer, x, geometry, input_size, filters, normalize, title
        As for `convfc.explorer.explorer_state`: a layer of one or two axes, or filters with a
        geometry; an array, an image file or a digit 0 to 9. Without a layer the page starts as
        `convfc explore` does, with a small picture.
    height : int
        Of the widget, in pixels; 0 for as high as the page is.

    Returns
    -------
    anywidget.AnyWidget
        With traitlets ``state``, ``selection`` and ``height``, readable and settable.

    Raises
    ------
    MissingDependencyError
        If anywidget is not installed.
    ArgumentError
        If there is an input and no layer.
    ConvfcError
        What `convfc.explorer.explorer_state` raises.

    Examples
    --------
    >>> import torch
    >>> widget = explore(torch.nn.Conv2d(1, 4, 3), torch.rand(1, 1, 8, 8))
    >>> widget.state["settings"]["filters"]
    4
    """
    given: dict[str, Any] = {"x": x, "geometry": geometry}
    given |= {"input_size": input_size, "filters": filters, "normalize": normalize}
    if layer is None and (named := [name for name in given if given[name] is not None]):
        raise ArgumentError(
            "there is no layer that it belongs to",
            where=named[0],
            remedy="give the layer first; without any, the page starts with a small picture",
        )
    state = {} if layer is None else explorer_state(layer, **given, title=title)
    from convfc.explorer.widget import ExplorerWidget

    return ExplorerWidget(state=state, height=height)
