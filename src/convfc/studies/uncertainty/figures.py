"""What the report shows: the turned 1, reliability, entropies inside and outside, learned rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convfc.drawing import WIDTH
from convfc.methods import uncertainty
from convfc.studies.folder import Result
from convfc.studies.uncertainty.methods import METHODS
from convfc.studies.uncertainty.parts import ANGLES

__all__ = ["figures"]

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "plain": "#666666",
    "kernels": "#D55E00",
    "taps": "#E69F00",
    "concrete": "#009E73",
    "gaussian": "#0072B2",
    "laplace": "#CC79A7",
}
_CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_DASHES = {"plain": (0, (1, 1)), "taps": (0, (4, 2)), "laplace": (0, (6, 1, 1, 1))}
_IN_THE_STRIP = "kernels"

Load = Callable[[str], Result]


def figures(results: Mapping[str, Any], load: Load) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of the report by file name."""
    yield "figure-images", _images(load)
    yield "figure-turned", _turned(results, load)
    yield "figure-reliability", _reliability(load)
    yield "figure-entropy", _entropy(results, load)
    yield "figure-rates", _rates(load)


def _images(load: Load) -> Figure:
    """Show some of the images: digits, digits turned and moved, letters."""
    shown = load("scores").arrays
    rows = (("test", "digits"), ("moved", "moved digits"), ("letters", "letters"))
    figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(3, 1), rows, strict=True):
        count = min(16, len(shown[f"{name}.images"]))
        strip = np.concatenate([image[0] for image in shown[f"{name}.images"][:count]], axis=1)
        panel.imshow(strip, cmap="gray", vmin=0, vmax=1)
        panel.set_axis_off()
        panel.text(-0.01, 0.5, title, transform=panel.transAxes, ha="right", va="center")
    return figure


def _turned(results: Mapping[str, Any], load: Load) -> Figure:
    """Draw what Gal & Ghahramani (2016, arXiv 1506.02142) show in their Figure 4, and more below.

    Above, for one method, every draw of the softmax's inputs and outputs for the three classes
    with the largest mean probability; below, the uncertainties of all methods.
    """
    found = load(f"predict-{_IN_THE_STRIP}").arrays
    draws, mean = found["turned.draws"], found["turned.mean"]
    probabilities = np.exp(draws - draws.max(axis=2, keepdims=True))
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    classes = np.sort(mean.mean(axis=0).argsort()[::-1][:3])
    figure = Figure(figsize=(WIDTH, 8.6), layout="constrained")
    rows = figure.subplots(
        5, 1, sharex=True, gridspec_kw={"height_ratios": [0.5, 2, 2, 1.6, 1.6]}, squeeze=True
    )
    _strip(rows[0], load("scores").arrays["turned.images"])
    for panel, values, title in (
        (rows[1], draws, "softmax input"),
        (rows[2], probabilities, "softmax output"),
    ):
        for number, (label, colour) in enumerate(zip(classes, _CLASS_COLOURS, strict=True)):
            # Side by side, so that the clouds of the classes do not hide one another.
            x = np.broadcast_to(np.array(ANGLES) + 3.4 * (number - 1), values.shape[:2])
            panel.scatter(x, values[:, :, label], s=12, marker="_", color=colour, alpha=0.35,
                          linewidth=1.1)  # fmt: skip
            panel.plot([], [], color=colour, linewidth=3, label=f"class {label}")
        panel.set_ylabel(title)
    rows[1].set_title(f"{METHODS[_IN_THE_STRIP].title}: {len(draws)} draws", loc="left")
    rows[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8.5)
    for panel, kind, title in (
        (rows[3], "entropy", "predictive entropy"),
        (rows[4], "mutual", "mutual information"),
    ):
        for key, numbers in results["turned"].items():
            if (key, kind) == ("plain", "mutual"):
                continue
            panel.plot(
                ANGLES,
                numbers[kind],
                color=COLOURS[key],
                linestyle=_DASHES.get(key, "solid"),
                marker="o",
                markersize=3,
                label=METHODS[key].title,
            )
        panel.set_ylabel(f"{title}\nnats")
        panel.set_ylim(bottom=0)
    handles, labels = rows[3].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    rows[4].set_xlabel("turned by, degrees")
    rows[4].set_xticks(ANGLES)
    return figure


def _strip(panel: Axes, images: np.ndarray[Any, Any]) -> None:
    """Show the images above their angles."""
    half = 6.6
    for angle, image in zip(ANGLES, images[:, 0], strict=True):
        panel.imshow(image, cmap="gray_r", extent=(angle - half, angle + half, 0, 1), aspect="auto")
    panel.set_xlim(-10, 190)
    panel.set_ylim(0, 1)
    panel.set_axis_off()


def _reliability(load: Load) -> Figure:
    """Draw the reliability diagrams of all methods on the digits of the test."""
    labels = load("scores").arrays["test.labels"]
    found = {
        method.title: uncertainty.calibration(load(f"predict-{key}").arrays["test.mean"], labels)
        for key, method in METHODS.items()
    }
    figure: Figure = uncertainty.reliability_figure(found)
    return figure


def _entropy(results: Mapping[str, Any], load: Load) -> Figure:
    """Draw histograms of the predictive entropy of digits and of letters."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    bins = np.linspace(0, np.log(10), 26)
    for panel, (key, method) in zip(panels, METHODS.items(), strict=True):
        found = load(f"predict-{key}").arrays
        for name, title, colour in (
            ("test", "digits", "#0072B2"),
            ("letters", "letters", "#D55E00"),
        ):
            values = found[f"{name}.entropy"]
            share = np.full(len(values), 1 / len(values))
            panel.hist(values, bins, weights=share, color=colour, alpha=0.55, label=title)
        value = results["table"][key]["auroc_entropy"]["value"]
        panel.set_title(f"{method.title}\nAUROC {value:.3f}")
    for panel in panels[3:]:
        panel.set_xlabel("predictive entropy, nats")
    for panel in panels[::3]:
        panel.set_ylabel("share of the images")
    panels[0].legend()
    return figure


def _rates(load: Load) -> Figure:
    """Draw the dropout rate of each layer against the epoch."""
    arrays = load("concrete").arrays
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panel = figure.subplots()
    curves = {n[6:]: a for n, a in arrays.items() if n.startswith("curve.") and n != "curve.loss"}
    for place, colour in zip(curves, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True):
        kind = "CONV" if place.endswith("fc") else "FC"
        name = place.removesuffix(".fc")
        panel.plot(curves[place], color=colour, marker="o", markersize=3, label=f"{kind} {name}")
    panel.set_xlabel("epoch (0: before training)")
    panel.set_ylabel("dropout rate")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(ncols=2)
    return figure
