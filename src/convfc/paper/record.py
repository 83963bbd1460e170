"""What a finished run left behind, read once for the figures and the report."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.paper.runs import NetworkFolder

__all__ = ["Record", "Trained", "read_record"]

_REDO = "run the experiment again into a new folder, or finish it with --resume"


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
    folder = pathlib.Path(folder)
    networks = {}
    for place in sorted((folder / "networks").glob("*-*-*")):
        dtype, optimizer, network = place.name.split("-", 2)
        networks[dtype, optimizer, network] = _read_network(place)
    if not networks:
        raise RunError("no trained network", where=str(folder / "networks"), remedy=_REDO)
    cost = folder / "cost.json"
    return Record(
        folder=folder,
        settings=_read_json(folder / "settings.json"),
        results=_read_json(folder / "results.json"),
        networks=networks,
        cost=_read_json(cost) if cost.exists() else None,
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            "the run is not finished: no such file", where=str(path), remedy=_REDO
        ) from None
    except ValueError as error:
        raise RunError(f"not readable as JSON ({error})", where=str(path), remedy=_REDO) from error
    if not isinstance(content, dict):
        raise RunError("not a JSON object", where=str(path), got=content, remedy=_REDO)
    return content


def _read_network(place: pathlib.Path) -> Trained:
    stored = NetworkFolder(place)
    try:
        history, first_layer = stored.history(), stored.trajectory()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(
            f"not readable as a trained network ({error})", where=str(place), remedy=_REDO
        ) from error
    if first_layer.ndim != 3 or len(first_layer) != len(history) + 1:
        raise RunError(
            "first_layer.npz and history.csv do not belong together",
            where=str(place),
            expected=f"weights of shape ({len(history) + 1}, taps, filters)",
            got=first_layer.shape,
            remedy=_REDO,
        )
    return Trained(
        epoch=np.array([line.epoch for line in history]),
        loss=np.array([line.loss for line in history]),
        val_loss=np.array([line.val_loss for line in history]),
        first_layer=first_layer,
    )
