"""The folder of a study: one file of numbers and one of arrays for each finished part.

``parts/NAME.json``, written last and under a temporary name, is what marks a part as finished. It
holds the fingerprints of both files, so that a damaged one is refused and never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.files import read_arrays, write_arrays, write_json
from convfc.paper.runs import RunFolder

__all__ = ["PartFile", "Result", "StudyFolder"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Result:
    """What a part of a study found.

    Attributes
    ----------
    numbers : mapping
        What JSON can hold; the same in every run with the same settings.
    arrays : mapping
        NumPy arrays by name; the same in every run with the same settings.
    seconds : mapping
        CPU time that something took; never the same twice, so kept apart.
    """

    numbers: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class PartFile:
    """The files of one part: its result when it is finished, its checkpoint before."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self._numbers = folder / f"{name}.json"
        self._arrays = folder / f"{name}.npz"
        self._checkpoint = folder / f"{name}.checkpoint.npz"

    @property
    def finished(self) -> bool:
        """Whether the part has its result."""
        return self._numbers.exists()

    def save(self, result: Result) -> None:
        """Write the result, the mark last, and remove the checkpoint."""
        self._numbers.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self._arrays, result.arrays)
        content = {"numbers": dict(result.numbers), "seconds": dict(result.seconds)}
        prints = {"numbers": _print_of(content), "arrays": _print_of_file(self._arrays)}
        write_json(self._numbers, content | {"sha256": prints})
        self.clean()

    def load(self) -> Result:
        """Return the result of a finished part.

        Raises
        ------
        RunError
            A file of it is damaged or missing.
        """
        with self._readable(self._numbers):
            content = json.loads(self._numbers.read_text("utf-8"))
            prints = content.pop("sha256")
            if prints["numbers"] != _print_of(content):
                raise ValueError("its numbers are not those that were written")
        with self._readable(self._arrays):
            if prints["arrays"] != _print_of_file(self._arrays):
                raise ValueError("its bytes are not those that were written")
            arrays = read_arrays(self._arrays)
        return Result(content["numbers"], arrays, content["seconds"])

    def save_checkpoint(self, arrays: Mapping[str, Array]) -> None:
        """Write a checkpoint in the place of the former one."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self._checkpoint, arrays)

    def load_checkpoint(self) -> dict[str, Array] | None:
        """Return the checkpoint; None if there is none, or only a damaged one."""
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return dict(read_arrays(self._checkpoint))
        return None

    def clean(self) -> None:
        """Remove what a killed process may have left: unfinished files, an outdated checkpoint."""
        files = (self._numbers, self._arrays, self._checkpoint)
        for path in files:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        if self.finished:
            self._checkpoint.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _readable(self, path: pathlib.Path) -> Any:
        """Turn whatever a damaged file does to its reader into an error with its name."""
        try:
            yield
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise RunError(
                f"the file is damaged ({error})",
                where=str(path),
                remedy=f"remove {self._numbers.name} there, and continue with --resume: this part "
                "is computed again",
            ) from error


class StudyFolder(RunFolder):
    """The folder of a run of a study."""

    def part(self, name: str) -> PartFile:
        """Return the files of one part."""
        return PartFile(self.path / "parts", name)


def _print_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _print_of_file(path: pathlib.Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
