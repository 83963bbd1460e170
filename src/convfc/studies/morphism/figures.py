"""What the report shows: the curves of all networks, with their spread over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from convfc.drawing import INK, WIDTH
from convfc.studies.folder import Result

__all__ = ["figures"]

# Okabe and Ito's palette: told apart by colour-blind readers too.
_ROLES = {
    "teacher": ("teacher", "#666666", "solid"),
    "on": ("teacher trained on", "#0072B2", (0, (5, 2))),
    "student": ("student", "#D55E00", "solid"),
    "scratch": ("student's layers from scratch", "#009E73", (0, (2, 1.5))),
}


def figures(
    results: Mapping[str, Any], load: Callable[[str], Result]
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of the report by file name."""
    del load  # the curves are in results.json
    yield "figure-curves", _curves(results)


def _curves(results: Mapping[str, Any]) -> Figure:
    """Draw loss and accuracy on the test against the epochs after the morph."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, kind, title in zip(
        panels,
        ("test_loss", "test_accuracy"),
        ("loss on the test", "errors on the test"),
        strict=True,
    ):
        for role in _ROLES:
            _curve(panel, results["runs"], role, kind)
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.set_yscale("log")
        _plain_numbers(panel, percent=kind == "test_accuracy")
        panel.set_title(title)
        panel.set_xlabel("epochs after the morph")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(visible=True, which="minor", linewidth=0.3)
    panels[0].set_ylabel("cross-entropy, nats")
    panels[1].set_ylabel("share of the images, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def _plain_numbers(panel: Axes, *, percent: bool) -> None:
    """Write 0.2 and not 2 times a power, at 1, 2 and 5 of each decade."""
    factor = 100 if percent else 1
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _curve(panel: Axes, runs: Any, role: str, kind: str) -> None:
    """Draw the median over the seeds, and a band from the least to the most."""
    title, colour, dashes = _ROLES[role]
    values = np.array([run[role][kind] for run in runs])
    if kind == "test_accuracy":
        # On a logarithmic axis an error of 0 is a gap.
        values = np.where(values < 1, 1 - values, np.nan)
    epochs = np.arange(values.shape[1])
    if role == "teacher":
        epochs = epochs - epochs[-1]
    panel.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15,
                       linewidth=0)  # fmt: skip
    panel.plot(
        epochs,
        np.median(values, axis=0),
        color=colour,
        linestyle=dashes,
        marker="o",
        markersize=3,
        label=title,
    )
