"""The singular values of a model's layers, and the norms of several models' layers, drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convfc.errors import ArgumentError, RunError
from convfc.extras import needing
from convfc.methods.spectrum.models import LayerSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ENDINGS = (".png", ".svg")

_COLUMNS = 5

_DEPTH = 1e-6
"""Values below this part of the largest one are off the picture."""

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
    _save(lambda: draw_spectra(spectra, title), path)


def save_models(
    models: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path, title: str
) -> None:
    """Draw the norms of several models' layers, and write them as PNG or SVG, whole or not."""
    _save(lambda: draw_models(models, title), path)


def _save(draw: Callable[[], Figure], path: pathlib.Path) -> None:
    from convfc.drawing import house_style, write_figure

    with house_style():
        write_figure(draw(), path)


def draw_spectra(spectra: Sequence[LayerSpectrum], title: str) -> Figure:
    """Return a figure with a panel for each layer: its values in descending order."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(spectra))
    rows = -(-len(spectra) // columns)
    figure = Figure(figsize=(0.6 + 1.75 * max(columns, 3), 1.3 + 1.55 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(spectra) :]:
        panel.set_visible(False)
    panels = panels[: len(spectra)]
    for number, (panel, layer) in enumerate(zip(panels, spectra, strict=True)):
        panel.tick_params(labelbottom=number + columns >= len(spectra), labelsize="small")
        _draw_layer(panel, layer)
    drawn = np.concatenate([line.get_ydata() for panel in panels for line in panel.lines])
    top = np.nanmax(drawn, initial=0.0) or 1.0
    panels[0].set_yscale("log")
    panels[0].set_ylim(drawn[drawn > _DEPTH * top].min(initial=top) / 1.8, top * 1.8)
    panels[0].set_xlim(-3, 103)
    panels[0].set_xticks([0, 50, 100], ["0", "50", "100 %"])
    figure.supylabel("singular value", fontsize="medium")
    figure.supxlabel("share of the values that are larger", fontsize="medium")
    _legend(figure, title)
    return figure


def _legend(figure: Figure, title: str) -> None:
    """Put one legend with a title above all panels."""
    labels = {
        label: handle
        for panel in figure.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    style: dict[str, Any] = {
        "loc": "outside upper center",
        "fontsize": "small",
        "title_fontsize": "large",
    }
    figure.legend(labels.values(), labels.keys(), title=title, ncols=3, **style)


def _short(name: str, most: int) -> str:
    """Return the end of a long name: ends tell them apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def draw_models(models: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Return a figure with a panel for each model: the norms of its layers, from input to output.

    Layers are what `LayerSpectrum.to_dict` returns. All panels have one axis of norms.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(0.6 + 2.9 * max(columns, 2), 1.3 + 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(models) :]:
        panel.set_visible(False)
    for panel, (name, layers) in zip(panels, models.items(), strict=False):
        at = range(1, len(layers) + 1)
        kernels = [layer["reshaped_norm"] or np.nan for layer in layers]
        dotted: dict[str, Any] = {"color": _KERNEL, "linestyle": (0, (1, 1.5)), "linewidth": 1.1}
        panel.plot(
            at, kernels, marker=".", markersize=3, label="norm of the reshaped kernel", **dotted
        )
        for own, colour, label in (
            (True, _OWN, "norm, own padding"),
            (False, _CIRCULAR, "norm, on a circle"),
        ):
            norms = [
                layer["norm"] or np.nan if (layer["own"] is not None) == own else np.nan
                for layer in layers
            ]
            if not np.isnan(norms).all():
                line: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3}
                panel.plot(at, norms, label=label, linewidth=1.1, **line)
        panel.set_title(_short(name, 34), fontsize=9, pad=3)
        panel.tick_params(labelsize="small")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].set_yscale("log")
    axis = panels[0].yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    figure.supylabel("norm of the layer", fontsize="medium")
    figure.supxlabel("CONV layer, from the input to the output", fontsize="medium")
    _legend(figure, title)
    return figure


def _draw_layer(panel: Axes, layer: LayerSpectrum) -> None:
    """Draw one layer; a circle's values that are not all known are drawn as points."""
    whole = layer.circular is not None and layer.circular.complete and layer.circular.count > 1
    points: dict[str, Any] = {"color": _OWN, "markersize": 3.5, "zorder": 3, "clip_on": False}
    for found, style, more in (
        (layer.circular, "-" if whole else ".", {"color": _CIRCULAR, "label": "on a circle"}),
        (layer.own, "o", {**points, "label": "own padding (the largest ones)"}),
        (layer.smallest, "o", points),
    ):
        if found is None:
            continue
        n = len(found.values)
        share = np.arange(n) + (found.count - n if found.which == "smallest" else 0)
        # More points than a panel has pixels, and closely at both ends, where a curve is steep.
        ends = np.geomspace(1, n, 200).astype(int) - 1
        at = np.unique([*ends, *(n - 1 - ends), *np.linspace(0, n - 1, 200).astype(int)])
        values = np.where(found.values > 0, found.values, np.nan)  # a logarithmic axis has no 0
        panel.plot(100 * share[at] / max(1, found.count - 1), values[at], style, **more)
    if (norm := layer.best.reshaped_norm) > 0:
        dotted: dict[str, Any] = {"color": _KERNEL, "linewidth": 1.1, "linestyle": (0, (1, 1.5))}
        panel.axhline(norm, label="norm of the reshaped kernel", **dotted)
    panel.set_title(_short(layer.name, 24), fontsize=8, pad=3)
    text = f"σ max {layer.norm:.3g}\n{layer.ratio:.2f} times ‖K‖"
    panel.text(0.04, 0.05, text, transform=panel.transAxes, fontsize=6.5)
