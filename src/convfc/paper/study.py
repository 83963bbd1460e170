"""The paper's experiment as the engine runs it: its parts, its report, the explorer beside it."""

from __future__ import annotations

import importlib.resources
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("paper"):
    from matplotlib.figure import Figure

from convfc.algorithm1 import matrix_to_filters
from convfc.explorer.page import write_page
from convfc.explorer.state import explorer_state
from convfc.frameworks.keras.backend import choose_backend
from convfc.geometry import ConvGeometry
from convfc.paper import data, experiment, figures
from convfc.paper.findings import Record, find, record_of, summary_table
from convfc.paper.optimizers import INITIALIZERS, LEARNING_RATES, TITLES
from convfc.runs.folder import FinishedRun
from convfc.runs.sealed import Array
from convfc.runs.study import Study

_QUANTITIES = {
    "output_difference_mean": "outputs, mean of ‖V_n − U_n‖_F (authors' program)",
    "output_difference_printed": "outputs, (1/{images})‖V − U‖_F (as printed)",
    "weight_difference": "weights, ‖W_cnn − W_fc‖_F",
    "max_loss_difference": "largest difference of a loss",
}


def explored(record: Record) -> dict[str, Any]:
    """Return the explorer's state of the CNN's filters, which a finished run has trained."""
    filters = _filters(record)
    state = explorer_state(
        filters,
        np.round(_digit(record), 4),
        ConvGeometry.valid(1, len(filters), (4, 4), stride=2),
        title="The filters of the experiment, trained",
        source=f"run {record.settings['name']}, {record.optimizers()[0]}",
    )
    state["input"]["range"] = [0, 1]
    return state


def _digit(record: Record) -> Array:
    """Return an image that no network has seen, with much ink: many rows of M show something."""
    settings = record.settings
    some = data.load(settings["data"], settings["seed"], settings["images"]).new[:10]
    return np.asarray(some[some.sum(axis=(1, 2, 3)).argmax()])


def _filters(record: Record) -> Array:
    """Return the trained filters of the CNN, ``(128, 4, 4, 1)``."""
    matrix = record.networks[record.dtype, record.optimizers()[0], "cnn"].first_layer[-1]
    return np.asarray(matrix_to_filters(matrix, ConvGeometry.valid(1, matrix.shape[1], (4, 4))))


def _drawn(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the run has the numbers for, by file name."""
    record = record_of(run)
    optimizers = record.optimizers()
    yield "figure-06", figures.stretch_figure(_digit(record)[:, :, 0], _filters(record)[:1])
    yield "figure-08", figures.networks_figure(_models(record))
    for optimizer in optimizers:
        yield (
            figures.LOSSES.get(optimizer, f"figure-{optimizer}"),
            figures.loss_figure(record, optimizer),
        )
    yield "figure-09", figures.histogram_figure(record, optimizers)
    yield "figure-difference", figures.difference_figure(record)
    if record.cost:
        yield "figure-cost", figures.cost_figure(record.cost)


def _models(record: Record) -> dict[str, Any]:
    """Build the run's networks, untrained."""
    if "keras" not in sys.modules:
        # Any backend knows the shapes; take the run's own unless another one is at work already.
        choose_backend(record.settings["backend"])
    from convfc.paper.keras_networks import NETWORKS, build

    trained = {network for _, _, network in record.networks}
    filters = record.settings["filters"]
    return {name: build(name, filters=filters) for name in NETWORKS if name in trained}


def _found(run: FinishedRun) -> dict[str, Any]:
    """Return the values of the report's template."""
    images = run.results["settings"]["images"]
    quantities = {key: title.format(images=images) for key, title in _QUANTITIES.items()}
    rates = LEARNING_RATES | run.results["settings"]["learning_rates"]
    settings = {**experiment.PaperSettings.later, **run.results["settings"]}
    start = INITIALIZERS[settings["initializer"]]
    own = {"quantities": quantities, "rates": rates, "names": TITLES, "initializer": start}
    return find(record_of(run)) | own


STUDY = Study(
    settings=experiment.PaperSettings,
    packages=experiment.packages,
    parts=experiment.parts,
    results=experiment.results,
    figures=_drawn,
    findings=_found,
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary_table,
    prepare=lambda settings: choose_backend(settings.backend),
    beside=lambda run: write_page(run.folder.path / "explorer.html", explored(record_of(run))),
    words=("networks", "epoch"),
)
