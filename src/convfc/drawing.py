"""What all figures share: their style, their width, and how they are written."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

from convfc.extras import needing

with needing():
    import matplotlib.style
    from matplotlib.figure import Figure

from convfc.files import replacing

INK = "#333333"
WIDTH = 7.2  # inches; a README shows it at about twice this in centimetres
_STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 170,
    "svg.fonttype": "path",
    "svg.hashsalt": "convfc",
}
_UNDATED: Mapping[str, Mapping[str, Any]] = {
    "png": {"Software": "convfc"},
    "svg": {"Creator": "convfc", "Date": None},
}


def house_style() -> contextlib.AbstractContextManager[None]:
    """Draw in the one style of all figures, whatever the user's own matplotlib settings are."""
    return matplotlib.style.context(["default", dict(_STYLE)])


def save_figure(figure: Figure, folder: pathlib.Path, name: str) -> None:
    """Write a figure as ``<name>.png`` and ``<name>.svg``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in _UNDATED:
        write_figure(figure, folder / f"{name}.{kind}")


def write_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as PNG or SVG, by the path's ending, without the date."""
    kind = path.suffix.lower().removeprefix(".")
    with replacing(path) as handle:
        figure.savefig(handle, format=kind, metadata=dict(_UNDATED[kind]))
