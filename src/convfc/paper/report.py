"""The report of a run: its figures, ``report.md``, and the same text as one self-contained page."""

from __future__ import annotations

import importlib.resources
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("paper"):
    from matplotlib.figure import Figure

from convfc import drawing
from convfc.algorithm1 import matrix_to_filters
from convfc.explorer.page import write_page
from convfc.geometry import ConvGeometry
from convfc.paper import data, diagrams, figures
from convfc.paper.explore import record_state
from convfc.paper.findings import find
from convfc.paper.record import Record, read_record
from convfc.paper.runs import LEARNING_RATES
from convfc.paper.stored import readable, removing, require_folder
from convfc.reporting import escaped, render, write_report_files

__all__ = ["report_text", "write_report"]

_QUANTITIES = {
    "output_difference_mean": "outputs, mean of ‖V_n − U_n‖_F (authors' program)",
    "output_difference_printed": "outputs, (1/{images})‖V − U‖_F (as printed)",
    "weight_difference": "weights, ‖W_cnn − W_fc‖_F",
    "max_loss_difference": "largest difference of a loss",
}


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Draw the figures of a finished run and write its report.

    Parameters
    ----------
    folder : pathlib.Path
        The run's folder; ``figures/``, ``report.md``, ``report.html`` and ``explorer.html``, which
        shows the trained first layer, are written there, each file whole or not at all.

    Returns
    -------
    pathlib.Path
        ``report.html``: one file that loads nothing from anywhere.

    Raises
    ------
    RunError
        The folder is not a finished run, or a file of it cannot be read.
    DataError, MissingDependencyError
        The digit of Figure 6, or a package, cannot be had.
    """
    record = read_record(folder)
    require_folder(record.folder / "figures")
    with drawing.house_style():
        for name, figure in _drawn(record):
            drawing.save_figure(figure, record.folder / "figures", name)
    write_page(record.folder / "explorer.html", record_state(record))
    return write_report_files(record.folder, report_text(record))


def _drawn(record: Record) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the run has the numbers for, by file name."""
    optimizers = record.optimizers()
    settings = record.settings
    some = data.load(settings["data"], settings["seed"], settings["images"]).new[:10, :, :, 0]
    digit = some[some.sum(axis=(1, 2)).argmax()]  # much ink, so that many rows of M show something
    yield "figure-06", diagrams.stretch_figure(digit, _one_filter(record))
    yield "figure-08", diagrams.networks_figure(_layers(record))
    for name, optimizer in (("figure-07", "sgd"), ("figure-10", "adam")):
        if optimizer in optimizers:
            yield name, figures.loss_figure(record, optimizer)
    yield "figure-09", figures.histogram_figure(record, optimizers)
    yield "figure-difference", figures.difference_figure(record)
    if record.cost:
        yield "figure-cost", figures.cost_figure(record.cost)


def _one_filter(record: Record) -> np.ndarray[Any, Any]:
    """Return a trained filter of the CNN, ``(1, 4, 4, 1)``."""
    matrix = record.networks[record.dtype, record.optimizers()[0], "cnn"].first_layer[-1]
    geometry = ConvGeometry.valid(1, matrix.shape[1], (4, 4))
    return np.asarray(matrix_to_filters(matrix, geometry))[:1]


def _layers(record: Record) -> dict[str, list[diagrams.DrawnLayer]]:
    """Build the run's networks, untrained, and list their layers."""
    if "keras" not in sys.modules:
        # Any backend knows the shapes; take the run's own unless another one is at work already.
        from convfc.frameworks.keras.backend import choose_backend

        choose_backend(record.settings["backend"])
    from convfc.paper.networks import NETWORKS

    trained = {network for _, _, network in record.networks}
    return {
        name: diagrams.describe_layers(build())
        for name, build in NETWORKS.items()
        if name in trained
    }


def report_text(record: Record) -> str:
    """Write the report's text, whose conclusions depend on what the run measured.

    Parameters
    ----------
    record : Record
        The run.

    Returns
    -------
    str
        Markdown; the figures are named as files below ``figures/``.
    """
    path = record.folder / "results.json"
    record = replace(
        record,
        settings=escaped(record.settings),
        results=escaped(record.results),
        cost=escaped(record.cost),
    )
    # Its numbers may be sealed and yet not what this report is made of.
    with readable(path, removing([path], "what is trained stays")):
        images = record.settings["images"]
        quantities = {key: title.format(images=images) for key, title in _QUANTITIES.items()}
        values = find(record) | {"quantities": quantities, "rates": LEARNING_RATES}
        return render(_template("report.md.j2"), values)


def _template(name: str) -> str:
    folder = importlib.resources.files("convfc.paper") / "templates"
    return (folder / name).read_text(encoding="utf-8")
