"""What a finished run left behind, read once for the figures and the report."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.paper.runs import SETTINGS_REMEDY, RunFolder
from convfc.paper.stored import read_json, readable, removing, require_folder
from convfc.paper.trained import NetworkFolder

__all__ = ["Record", "Trained", "read_record"]

_NETWORK = re.compile(r"networks/(\w+)-(\w+)-(\w+)/sha256\.json")


@dataclass(frozen=True)
class Trained:
    """One trained network of a run.

    Attributes
    ----------
    epoch, loss, val_loss : numpy.ndarray
        The history, one entry per epoch; epochs count from 1.
    first_layer : numpy.ndarray
        Weights of the first layer, shape ``(epochs + 1, 16, 128)``; entry 0 is before training.
    """

    epoch: NDArray[np.integer[Any]]
    loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    first_layer: NDArray[Any]


@dataclass(frozen=True)
class Record:
    """A run's settings, results, trained networks and, where measured, costs.

    Attributes
    ----------
    folder : pathlib.Path
        The run's folder.
    settings, results : dict
        ``settings.json`` and ``results.json``.
    networks : dict
        ``(dtype, optimizer, network)`` to :class:`Trained`.
    cost : dict or None
        ``cost.json``; None when the costs were not measured.
    """

    folder: pathlib.Path
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    networks: Mapping[tuple[str, str, str], Trained]
    cost: Mapping[str, Any] | None

    @property
    def dtype(self) -> str:
        """The number format of the run itself (not of its float64 companion)."""
        return str(self.results["dtype"])

    def optimizers(self, dtype: str | None = None) -> tuple[str, ...]:
        """Return the optimizers with a trained CNN and FC network in ``dtype``, SGD first."""
        found = {o for d, o, _ in self.networks if d == (dtype or self.dtype)}
        return tuple(
            optimizer
            for optimizer in sorted(found, reverse=True)
            if all((dtype or self.dtype, optimizer, n) in self.networks for n in ("cnn", "fc"))
        )

    def weight_difference(
        self, dtype: str, optimizer: str, network: str, other: str
    ) -> NDArray[np.float64] | None:
        """Return the distance of two networks' first layers after every epoch.

        Parameters
        ----------
        dtype, optimizer : str
            What both networks were trained with.
        network, other : str
            Two of ``"cnn"``, ``"fc"`` and ``"control"``.

        Returns
        -------
        numpy.ndarray or None
            ``||W_a - W_b||_F``, entry n after n epochs; None when one of the two was not trained.
        """
        pair = [self.networks.get((dtype, optimizer, name)) for name in (network, other)]
        if pair[0] is None or pair[1] is None:
            return None
        a, b = (trained.first_layer.astype(np.float64) for trained in pair if trained)
        epochs = min(len(a), len(b))
        difference: NDArray[np.float64] = np.linalg.norm(a[:epochs] - b[:epochs], axis=(1, 2))
        return difference


def read_record(folder: pathlib.Path) -> Record:
    """Read a finished run.

    Parameters
    ----------
    folder : pathlib.Path
        The run's folder, with ``settings.json``, ``results.json`` and ``networks/``.

    Returns
    -------
    Record
        Everything the figures and the report are made of.

    Raises
    ------
    RunError
        The folder is not a finished run, or a file of it cannot be read.
    """
    run = RunFolder(pathlib.Path(folder))
    if not run.finished:
        trained = next(run.path.glob("networks/*"), None)
        raise RunError(
            "the run is not finished: no such file" if trained else "no trained network",
            where=str(run.results_path if trained else run.path / "networks"),
            remedy="finish the run with convfc reproduce --resume, or start one",
        )
    sealed = run.sealed_results()
    with sealed.reading("settings.json", SETTINGS_REMEDY) as path:
        settings = read_json(path, SETTINGS_REMEDY)
    places = run.path / "networks"
    require_folder(places, removing([places, run.results_path], "the networks are trained again"))
    networks = {}
    for match in filter(None, map(_NETWORK.fullmatch, sealed.files)):
        dtype, optimizer, network = match.groups()
        place = NetworkFolder(places / f"{dtype}-{optimizer}-{network}")
        with sealed.reading(match[0], place.remedy):
            networks[dtype, optimizer, network] = _read_network(place)
    record = Record(run.path, settings, sealed.content, networks, run.cost(sealed))
    with readable(run.results_path, sealed.remedy):
        if not record.optimizers():
            raise ValueError("it names no pair of networks that can be compared")
    return record


def _read_network(stored: NetworkFolder) -> Trained:
    history, first_layer = stored.history(), stored.trajectory()
    with readable(stored.path, stored.remedy):
        if (
            first_layer.ndim != 3
            or first_layer.dtype.kind != "f"
            or len(first_layer) != len(history) + 1
        ):
            raise ValueError("first_layer.npz and history.csv do not belong together")
    return Trained(
        epoch=np.array([line.epoch for line in history]),
        loss=np.array([line.loss for line in history]),
        val_loss=np.array([line.val_loss for line in history]),
        first_layer=first_layer,
    )
