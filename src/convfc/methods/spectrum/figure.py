"""The distribution of the singular values of a model's layers, drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convfc.errors import ArgumentError, RunError
from convfc.extras import needing
from convfc.methods.spectrum.algorithms import Values
from convfc.methods.spectrum.models import LayerSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ENDINGS = (".png", ".svg")

_COLUMNS = 5
_POINTS = 400
"""Of a curve: more than a panel has pixels."""

_DEPTH = 1e-6
"""Values below this part of the largest one are off the picture, and counted in it."""

_CIRCULAR, _OWN, _KERNEL = "#0072B2", "#D55E00", "#888888"  # Okabe and Ito's palette


def check_figure(path: pathlib.Path) -> None:
    """Raise before any work if the figure cannot be drawn or written."""
    if path.suffix.lower() not in ENDINGS:
        raise ArgumentError(
            "figures are PNG or SVG",
            where=str(path),
            expected=" or ".join(ENDINGS),
            got=path.suffix or "no ending",
            remedy="give the file one of these endings",
        )
    if not path.parent.is_dir():
        raise RunError(
            "there is no such folder",
            where=str(path.parent),
            remedy="make it first, or write the figure somewhere else",
        )
    with needing(where=str(path), otherwise="--no-figure for the table alone"):
        import matplotlib as _  # noqa: F401


def save_spectra(spectra: Sequence[LayerSpectrum], path: pathlib.Path, title: str) -> None:
    """Draw the spectra, and write them as PNG or SVG, whole or not at all."""
    check_figure(path)
    from convfc.drawing import house_style
    from convfc.files import replacing

    kind = path.suffix.lower().removeprefix(".")
    metadata = {"png": {"Software": "convfc"}, "svg": {"Creator": "convfc", "Date": None}}[kind]
    with house_style():
        figure = draw_spectra(spectra, title)
        with replacing(path) as handle:
            figure.savefig(handle, format=kind, metadata=metadata)


def draw_spectra(spectra: Sequence[LayerSpectrum], title: str) -> Figure:
    """Return a figure with a panel for each layer: its values in descending order.

    The curve is the layer on a circle, of which all values are known; the points are those with the
    layer's own padding; the dotted line is the norm of the reshaped kernel.
    """
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(spectra))
    rows = -(-len(spectra) // columns)
    figure = Figure(figsize=(0.6 + 1.75 * max(columns, 3), 1.3 + 1.55 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for number, panel in enumerate(panels):
        if number < len(spectra):
            _draw_layer(panel, spectra[number])
            panel.tick_params(labelbottom=number + columns >= len(spectra), labelsize="small")
        else:
            panel.set_visible(False)
    top, bottom = _limits(spectra)
    panels[0].set_yscale("log")
    panels[0].set_ylim(bottom, top)
    panels[0].set_xlim(-3, 103)
    panels[0].set_xticks([0, 50, 100], ["0", "50", "100 %"])
    figure.supylabel("singular value", fontsize="medium")
    figure.supxlabel("share of the values that are larger", fontsize="medium")
    labels = {
        label: handle
        for panel in panels[: len(spectra)]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside upper center",
        ncols=3,
        fontsize="small",
        title=title,
        title_fontsize="large",
    )
    return figure


def _draw_layer(panel: Axes, layer: LayerSpectrum) -> None:
    """Draw one layer; a circle's values that are not all known are drawn as points."""
    largest = max(float(s.values[0]) for s in (layer.own, layer.circular) if s is not None)
    if layer.circular is not None:
        values = layer.circular.values
        share = 100 * np.arange(len(values)) / max(1, layer.circular.count - 1)
        chosen = _spread(len(values)) if layer.circular.complete else slice(None)
        shown = np.where(values > _DEPTH * largest, values, np.nan)
        style = "-" if layer.circular.complete and len(values) > 1 else "."
        panel.plot(
            share[chosen], shown[chosen], style, color=_CIRCULAR, linewidth=1.6, label="on a circle"
        )
        hidden = int(np.count_nonzero(np.isnan(shown)))
        if hidden:
            panel.text(
                0.97, 0.05, f"{_percent(hidden / len(values))} below\n{_DEPTH:.0e} σ max",
                transform=panel.transAxes, ha="right", fontsize=6.5, color="#666666",
            )  # fmt: skip
    if layer.own is not None:
        share = 100 * np.arange(len(layer.own.values)) / max(1, layer.own.count - 1)
        panel.plot(
            share, _positive(layer.own.values), "o", color=_OWN, markersize=3.5,
            label="own padding (the largest ones)", zorder=3, clip_on=False,
        )  # fmt: skip
    if layer.smallest is not None:
        panel.plot([100], _positive(layer.smallest.values), "o", color=_OWN, markersize=3.5)
    if layer.best.reshaped_norm > 0:
        panel.axhline(
            layer.best.reshaped_norm, color=_KERNEL, linewidth=1.1, linestyle=(0, (1, 1.5)),
            label="norm of the reshaped kernel",
        )  # fmt: skip
    panel.set_title(_short(layer.name), fontsize=8, pad=3)
    panel.text(
        0.04, 0.05, f"σ max {layer.norm:.3g}\n{layer.ratio:.2f} times ‖K‖",
        transform=panel.transAxes, fontsize=6.5,
    )  # fmt: skip


def _spread(count: int) -> npt.NDArray[np.int64]:
    """Return where to sample a curve: evenly, but closely at both ends, where it is steep."""
    if count <= _POINTS:
        return np.arange(count)
    ends = (np.geomspace(1, count / 2, _POINTS // 2) - 1).astype(int)
    even = np.linspace(0, count - 1, _POINTS // 2).astype(int)
    return np.unique(np.concatenate([ends, count - 1 - ends, even]))


def _limits(spectra: Sequence[LayerSpectrum]) -> tuple[float, float]:
    """Return the range of the common axis: all that is drawn, and a little more."""
    drawn = [s.values for layer in spectra for s in (layer.own, layer.circular) if s is not None]
    drawn += [np.array([layer.best.reshaped_norm]) for layer in spectra]
    top = max(float(values.max()) for values in drawn) or 1.0
    least = [float(v[v > _DEPTH * v.max()].min()) for v in drawn if v.max() > 0]
    return top * 1.8, min(least, default=top) / 1.8


def _positive(values: Values) -> Values:
    """Return what a logarithmic axis can show; the rest becomes a gap."""
    return np.where(values > 0, values, np.nan)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _short(name: str) -> str:
    """Keep the end of a long name, which tells layers apart."""
    return name if len(name) <= 24 else "…" + name[-23:]
