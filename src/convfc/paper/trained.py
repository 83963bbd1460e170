"""The folder of one network: its checkpoint while it trains, its files when it is finished."""

from __future__ import annotations

import contextlib
import csv
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.files import read_arrays, replacing, write_arrays
from convfc.paper.stored import read_sealed, removing, require_folder, write_sealed

__all__ = ["SEAL", "Epoch", "NetworkFolder", "State"]

Array = NDArray[np.floating[Any]]

SEAL = "sha256.json"
_FILES = ("history.csv", "first_layer.npz", "weights.npz")


@dataclass(frozen=True)
class Epoch:
    """One line of ``history.csv``; epochs count from 1."""

    epoch: int
    loss: float
    val_loss: float
    seconds: float


@dataclass(frozen=True)
class State:
    """A network in the midst of its training.

    Attributes
    ----------
    variables : sequence of ndarray
        All variables of the model and its optimizer, in Keras's order.
    history : sequence of Epoch
        The epochs so far.
    trajectory : sequence of ndarray
        The first layer's weights before training and after each epoch, each ``(16, 128)``.
    """

    variables: Sequence[Array]
    history: Sequence[Epoch]
    trajectory: Sequence[Array]


class NetworkFolder:
    """The folder of one network: its checkpoint while it trains, its files when it is finished."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        """Whether the network is trained to its last epoch."""
        return (self.path / SEAL).exists()

    def save_checkpoint(self, state: State) -> None:
        """Write a checkpoint; it replaces the former one only when it is whole."""
        name = f"checkpoint-{len(state.history):06d}"
        unfinished = self.path / f"{name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            variables = {f"variable_{n:03d}": value for n, value in enumerate(state.variables)}
            write_arrays(unfinished / "state.npz", variables)
            self._write_course(unfinished, state.history, state.trajectory)
            write_sealed(unfinished / SEAL, {}, unfinished.iterdir())
            unfinished.rename(self.path / name)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for former in self._checkpoints():
            if former.name != name:
                _remove(former)

    def load_checkpoint(self) -> State | None:
        """Return the newest whole checkpoint, or None when there is none."""
        for path in sorted(self._checkpoints(), reverse=True):
            with contextlib.suppress(RunError):
                checkpoint = NetworkFolder(path)
                with checkpoint._reading("state.npz") as file:
                    stored = read_arrays(file)
                variables = [stored[key] for key in sorted(stored)]
                return State(variables, checkpoint.history(), list(checkpoint.trajectory()))
        return None

    def finish(
        self, history: Sequence[Epoch], trajectory: Sequence[Array], weights: Mapping[str, Array]
    ) -> None:
        """Write the files of a finished network, and remove what only its training needed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_course(self.path, history, trajectory)
        write_arrays(self.path / "weights.npz", weights)
        write_sealed(self.path / SEAL, {}, [self.path / name for name in _FILES])
        self.clean()

    def clean(self) -> None:
        """Remove what a killed process may have left: unfinished files, outdated checkpoints."""
        require_folder(self.path.parent)
        require_folder(self.path)
        for path in self.path.glob("*.tmp"):
            _remove(path)
        if self.finished:
            for path in self._checkpoints():
                _remove(path)

    @property
    def remedy(self) -> str:
        """What helps when a file of a finished network is damaged."""
        marks = [self.path, self.path.parent.parent / "results.json"]
        return removing(marks, "this network is trained again")

    def check(self) -> None:
        """Raise if a file of a finished network is damaged or missing."""
        self.history(), self.trajectory(), self.weights()

    def history(self) -> list[Epoch]:
        """Return the loss history of a finished network."""
        with self._reading("history.csv") as path:
            history = read_history(path)
            _require_finite([(line.loss, line.val_loss) for line in history])
        return history

    def trajectory(self) -> Array:
        """Return the first layer's weights of a finished network, ``(epochs + 1, 16, 128)``."""
        with self._reading("first_layer.npz") as path:
            weights = read_arrays(path)["weights"]
            _require_finite(weights)
        return weights

    def weights(self) -> dict[str, Array]:
        """Return the final weights: ``first`` (16, 128) and ``second`` (21632, 784)."""
        with self._reading("weights.npz") as path:
            weights = read_arrays(path)
            for array in weights.values():
                _require_finite(array)
        return weights

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[pathlib.Path]:
        """Yield the path of a file of this network, if it is what was written."""
        with read_sealed(self.path / SEAL, self.remedy).reading(name) as path:
            yield path

    def _checkpoints(self) -> list[pathlib.Path]:
        return [path for path in self.path.glob("checkpoint-*") if path.suffix != ".tmp"]

    @staticmethod
    def _write_course(
        folder: pathlib.Path, history: Sequence[Epoch], trajectory: Sequence[Array]
    ) -> None:
        write_history(folder / "history.csv", history)
        write_arrays(folder / "first_layer.npz", {"weights": np.stack(trajectory)})


def _remove(path: pathlib.Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _require_finite(numbers: object) -> None:
    if not np.isfinite(numbers).all():  # type: ignore[call-overload]
        raise ValueError("some of its numbers are not finite")


def write_history(path: pathlib.Path, history: Sequence[Epoch]) -> None:
    """Write the history as CSV, its numbers with all their digits."""
    with replacing(path) as handle:
        lines = [["epoch", "loss", "val_loss", "seconds"]]
        lines += [[repr(value) for value in asdict(epoch).values()] for epoch in history]
        handle.write("".join(",".join(line) + "\n" for line in lines).encode())


def read_history(path: pathlib.Path) -> list[Epoch]:
    """Return the history that :func:`write_history` wrote."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [
            Epoch(int(r["epoch"]), float(r["loss"]), float(r["val_loss"]), float(r["seconds"]))
            for r in csv.DictReader(handle)
        ]
