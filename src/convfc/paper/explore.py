"""The explorer on what a run has trained: its first layer, on a digit that no network has seen."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from convfc.algorithm1 import matrix_to_filters
from convfc.explorer.state import explorer_state
from convfc.geometry import ConvGeometry
from convfc.paper import data
from convfc.paper.record import Record, read_record

__all__ = ["record_state", "run_state"]


def run_state(folder: pathlib.Path) -> dict[str, Any]:
    """Return the explorer's state of the first layer that a finished run has trained.

    Raises
    ------
    RunError
        If the folder is not a finished run.
    DataError, MissingDependencyError
        If its images cannot be had.
    """
    return record_state(read_record(folder))


def record_state(record: Record) -> dict[str, Any]:
    """Return the same of a run that has been read: the CNN's filters, 128 of 4 x 4 at stride 2."""
    optimizer = record.optimizers()[0]
    matrix = record.networks[record.dtype, optimizer, "cnn"].first_layer[-1]
    geometry = ConvGeometry.valid(1, matrix.shape[1], (4, 4), stride=2)
    settings = record.settings
    some = data.load(settings["data"], settings["seed"], settings["images"]).new[:10]
    digit = some[some.sum(axis=(1, 2, 3)).argmax()]  # much ink: many rows of M show something
    state = explorer_state(
        np.asarray(matrix_to_filters(matrix, geometry)),
        np.round(digit, 4),
        geometry,
        title="The filters of the experiment, trained",
        source=f"run {settings['name']}, {optimizer}",
    )
    state["input"]["range"] = [0, 1]
    return state
