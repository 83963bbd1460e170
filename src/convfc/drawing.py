"""What all figures share: their style, their width, and how they are written."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the one style of all figures, whatever the user's own matplotlib settings are."""
    with matplotlib.style.context(["default", dict(_STYLE)]):
        yield


def save_figure(figure: Figure, folder: pathlib.Path, name: str) -> None:
    """Write a figure, drawn in the house's style, as ``<name>.png`` and ``<name>.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    undated: Mapping[str, Mapping[str, Any]] = {
        "png": {"Software": "convfc"},
        "svg": {"Creator": "convfc", "Date": None},
    }
    for kind, metadata in undated.items():
        with replacing(folder / f"{name}.{kind}") as handle:
            figure.savefig(handle, format=kind, metadata=dict(metadata))
