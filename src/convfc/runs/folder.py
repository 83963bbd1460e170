"""The folder of a run: its settings, its parts with their checkpoints, its results, and its lock.

Whatever happens to the process, the folder stays valid: every file is written under a temporary
name and renamed. ``parts/NAME.json``, written last, marks a part as finished, ``results.json`` the
run; each holds the fingerprints of the files it stands for, so that a damaged one is never used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from convfc.errors import ArgumentError, RunError
from convfc.files import read_arrays, write_arrays
from convfc.runs.sealed import (
    Array,
    Sealed,
    print_of_arrays,
    read_finite,
    read_json,
    read_sealed,
    readable,
    removing,
    require_folder,
    write_finite,
    write_sealed,
)

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *", re.IGNORECASE)
_OTHER_PLACE = (
    "choose another --name or --runs-dir, or remove the whole folder if nothing in it is needed"
)


@dataclass(frozen=True, eq=False)
class Result:
    """What a part found; but for the seconds, the same in every run with the same settings."""

    numbers: Mapping[str, Any] = field(default_factory=dict)  # what JSON can hold
    arrays: Mapping[str, Array] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # of CPU time
    weights: Mapping[str, Array] = field(default_factory=dict)  # large, only for later parts


class PartFiles:
    """The files of one part: its result when it is finished, its checkpoint before."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self.path = folder / f"{name}.json"
        self.checkpoint = folder / f"{name}.checkpoint.npz"
        self._arrays, self._weights = folder / f"{name}.npz", folder / f"{name}.weights.npz"

    @property
    def finished(self) -> bool:
        """Whether the part has its result."""
        return self.path.exists()

    @property
    def remedy(self) -> str:
        """What helps when a file of a finished part is damaged."""
        marks = [self.path, self.path.parent.parent / "results.json"]
        return removing(marks, "this part is computed again")

    def save(self, result: Result) -> None:
        """Write the result, the mark last, and remove the checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files = []
        for path, arrays in ((self._arrays, result.arrays), (self._weights, result.weights)):
            if arrays:
                write_finite(path, arrays)
                files.append(path)
        content = {"numbers": dict(result.numbers), "seconds": dict(result.seconds)}
        write_sealed(self.path, content, files)
        self.clean()

    def load(self) -> Result:
        """Return the result of a finished part, without its weights."""
        sealed = self._sealed()
        with readable(self.path, self.remedy):
            numbers, seconds = sealed.content["numbers"], sealed.content["seconds"]
        return Result(numbers, read_finite(sealed, self._arrays), seconds)

    def weights(self) -> dict[str, Array]:
        """Return the weights of a finished part."""
        sealed = self._sealed()
        if self._weights.name not in sealed.files:
            raise RunError(
                "the weights of this part were not kept", where=str(self.path), remedy=self.remedy
            )
        return read_finite(sealed, self._weights)

    def forget_weights(self) -> None:
        """Remove the weights of a finished part, which is whole without them from then on."""
        sealed = self._sealed()
        kept = [name for name in sealed.files if name != self._weights.name]
        for name in kept:
            sealed.check(name)
        if len(kept) < len(sealed.files):
            write_sealed(self.path, sealed.content, [self.path.parent / name for name in kept])
        self._weights.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise if a file of a finished part is damaged or missing."""
        sealed = self._sealed()
        for name in sealed.files:
            sealed.check(name)

    def save_checkpoint(self, arrays: Mapping[str, Array]) -> None:
        """Write a checkpoint in the place of the former one, with its fingerprint inside."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self.checkpoint, {**arrays, "sha256": np.array(print_of_arrays(arrays))})

    def load_checkpoint(self) -> dict[str, Array] | None:
        """Return the checkpoint; None if there is none that is whole and of this version."""
        with contextlib.suppress(RunError), readable(self.checkpoint, ""):
            arrays = read_arrays(self.checkpoint)
            if str(arrays.pop("sha256")) == print_of_arrays(arrays):
                return arrays
        return None

    def clean(self) -> None:
        """Remove what a killed process may have left: unfinished files, an outdated checkpoint."""
        for path in (self.path, self._arrays, self._weights, self.checkpoint):
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        if self.finished:
            self.checkpoint.unlink(missing_ok=True)

    def _sealed(self) -> Sealed:
        return read_sealed(self.path, self.remedy)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as it is read: its results, and the parts from which they were computed."""

    folder: RunFolder
    results: Mapping[str, Any]

    @property
    def remedy(self) -> str:
        """What helps when the results are not what they should be."""
        return removing([self.folder.results_path], "what is computed stays")

    def load(self, name: str) -> Result:
        """Return the result of a part."""
        part = self.folder.part(name)
        sealed = read_sealed(self.folder.results_path, self.remedy)
        sealed.check(f"parts/{name}.json", part.remedy)
        return part.load()


class RunFolder:
    """The folder of a run, below the runs folder."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.results_path = path / "results.json"  # exists only when the run is finished

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        runs: pathlib.Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        outdated: Callable[[Mapping[str, Any]], Sequence[str] | None] = lambda found: None,
    ) -> Iterator[Self]:
        """Keep other processes out of the folder for these settings, new or resumed, and yield it.

        A folder that exists is an error without ``resume``, or ``overwrite``, which empties it.
        ``outdated`` says of other settings that are found there which parts have to be done again
        if these take their place; with None they cannot.
        """
        _check_name(settings["name"])
        run = cls(runs / settings["name"])
        if resume and overwrite:
            raise ArgumentError("resume and overwrite exclude each other", remedy="give only one")
        # Before there is a lock in it: it may be no run.
        run._check(resume=resume, overwrite=overwrite)
        run.path.mkdir(parents=True, exist_ok=True)
        with locked(run.path):
            if run._check(resume=resume, overwrite=overwrite) and overwrite:
                run._empty()
            if run._occupied():
                run._check_settings(settings, outdated)
            else:
                write_sealed(run.path / "settings.json", settings, [])
            yield run

    @property
    def finished(self) -> bool:
        """Whether everything is trained and compared."""
        return self.results_path.exists()

    def part(self, name: str) -> PartFiles:
        """Return the files of one part."""
        return PartFiles(self.path / "parts", name)

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
        )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``, which seals what it was computed from."""
        files = [self.path / "settings.json", *sorted(self.path.glob("parts/*.json"))]
        write_sealed(self.results_path, results, files)

    def read(self) -> FinishedRun:
        """Return a finished run; whatever is wrong with it is a RunError."""
        if not self.finished:
            begun = (self.path / "settings.json").exists()
            raise RunError(
                "the run is not finished: no such file" if begun else "no run",
                where=str(self.results_path if begun else self.path),
                remedy="finish the run with convfc reproduce --resume, or start one",
            )
        self._settings()  # first: of another version it says so with the remedy that helps
        sealed = read_sealed(self.results_path, FinishedRun(self, {}).remedy)
        sealed.check("settings.json", _OTHER_PLACE)
        places = self.path / "parts"
        require_folder(places, removing([places, self.results_path], "all is computed again"))
        return FinishedRun(self, sealed.content)

    def _occupied(self) -> bool:
        """Whether the folder holds more than a lock and the beginnings of a settings file."""
        return self.path.is_dir() and any(
            path.suffix != ".tmp" and path.name != LOCK for path in self.path.iterdir()
        )

    def _check(self, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run; raise if there is, and it is not to be touched."""
        if not self._occupied():
            return False
        if not (resume or overwrite):
            raise RunError(
                "the folder exists",
                where=str(self.path),
                remedy="--resume continues it, --overwrite starts anew, --name takes another",
            )
        self._settings(any_version=overwrite)
        if overwrite and self.path.is_symlink():
            raise RunError(
                "a link to a run, which --overwrite does not follow",
                where=str(self.path),
                remedy="remove the link, or what it points to; or choose another --name",
            )
        return True

    def _empty(self) -> None:
        """Remove a former run, its settings last, so that what is left is always a run."""
        last = {LOCK: 2, "settings.json": 1, "results.json": -1}
        for path in sorted(self.path.iterdir(), key=lambda path: last.get(path.name, 0)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _settings(self, *, any_version: bool = False) -> dict[str, Any]:
        path = self.path / "settings.json"
        if not path.exists():
            raise RunError(
                "the folder is not a run of convfc: it has no settings.json",
                where=str(self.path),
                remedy="choose another --name or --runs-dir",
            )
        if any_version:
            return read_json(path, _OTHER_PLACE)
        return read_sealed(path, _OTHER_PLACE).content

    def _check_settings(
        self,
        wanted: Mapping[str, Any],
        outdated: Callable[[Mapping[str, Any]], Sequence[str] | None],
    ) -> None:
        found = self._settings()
        again = None if found == wanted else outdated(found)
        if again is not None:
            # In this order: killed in between, it is a run of the former settings.
            for path in (self.results_path, *(self.part(name).path for name in again)):
                path.unlink(missing_ok=True)
            write_sealed(self.path / "settings.json", wanted, [])
            return
        if found.get("study") == wanted.get("study") and found.keys() != wanted.keys():
            raise RunError(
                "the settings are those of another version of convfc",
                where=str(self.path / "settings.json"),
                remedy=_OTHER_PLACE,
            )
        self._check_same(
            found,
            wanted,
            "the run was started with other settings",
            "repeat the first settings, or start a new run with --name",
        )

    def _check_same(
        self, found: Mapping[str, Any], wanted: Mapping[str, Any], what: str, remedy: str
    ) -> None:
        """Raise with what differs between the run that is there and the one that is asked for."""
        expected, got = differing(found, wanted)
        if expected != got:
            raise RunError(what, where=str(self.path), expected=expected, got=got, remedy=remedy)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str]:
    """Return in words in what two settings differ: what the one has there, and the other."""
    keys = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    found, wanted = (", ".join(f"{key}={each.get(key)}" for key in keys) for each in (one, other))
    return found, wanted


LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

if sys.platform == "win32":
    import msvcrt

    def _lock(opened: int) -> None:
        # Far behind its text, because nobody may read what is locked.
        os.lseek(opened, 2**30, os.SEEK_SET)
        msvcrt.locking(opened, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(opened: int) -> None:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str = LOCK) -> Iterator[None]:
    """Keep other processes out of a folder; the system frees it when this one ends, however."""
    path = folder / name
    opened = _take_lock(path)
    try:
        with contextlib.suppress(OSError):  # a full disk: a lock without a name is one, too
            os.truncate(opened, 0)
            os.lseek(opened, 0, os.SEEK_SET)
            os.write(opened, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        # First the name, then the lock: who opens it in between sees that its name is gone.
        with contextlib.suppress(OSError):  # Windows keeps what is open
            path.unlink()
        os.close(opened)


def _take_lock(path: pathlib.Path) -> int:
    """Return the file of the lock, opened and locked by this process alone."""
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(opened)
            if os.path.lexists(path) and os.path.samestat(os.fstat(opened), path.stat()):
                return opened
            os.close(opened)  # the process that had it has removed it
        except FileNotFoundError:
            os.close(opened)
        except OSError as error:
            if error.errno in _NO_LOCKS:  # such a file system keeps nobody apart
                return opened
            os.lseek(opened, 0, os.SEEK_SET)
            holder = os.read(opened, 200).decode(errors="replace")
            os.close(opened)
            raise RunError(
                "another process is at work on this run",
                where=str(path.parent),
                got=holder or "one that has only begun",
                remedy="wait for it, or stop it, and continue with --resume; or choose another "
                "--name",
            ) from error


def _check_name(name: str) -> None:
    """Raise if a name does not stand for one folder, on every system and in every command line."""
    rules = {
        "one name without separators": name in ("", ".", "..") or any(c in name for c in "/\\:"),
        "printable characters only": not name.isprintable(),
        "no - at its beginning": name.startswith("-"),
        "no dot or space at its end": name.endswith((".", " ")),
        "no name that Windows keeps for a device": _DEVICE.fullmatch(name.partition(".")[0]),
    }
    broken = [rule for rule, is_broken in rules.items() if is_broken]
    if broken:
        raise RunError(
            "not a folder's name",
            where="name",
            expected=broken[0],
            got=repr(name),
            remedy="use letters, digits, - and _; --runs-dir says where runs are kept",
        )
