"""The folder of a study: one file of numbers and one of arrays for each finished part.

``parts/NAME.json``, written last and under a temporary name, is what marks a part as finished. It
holds the fingerprints of both files, so that a damaged one is refused and never used.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.files import read_arrays, write_arrays
from convfc.paper.runs import RunFolder
from convfc.paper.stored import read_sealed, readable, removing, write_sealed

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
        write_sealed(self._numbers, content, [self._arrays])
        self.clean()

    def load(self) -> Result:
        """Return the result of a finished part.

        Raises
        ------
        RunError
            A file of it is damaged or missing.
        """
        marks = [self._numbers, self._numbers.parent.parent / "results.json"]
        sealed = read_sealed(self._numbers, removing(marks, "this part is computed again"))
        with sealed.reading(self._arrays.name) as path:
            arrays = read_arrays(path)
        return Result(sealed.content["numbers"], arrays, sealed.content["seconds"])

    def save_checkpoint(self, arrays: Mapping[str, Array]) -> None:
        """Write a checkpoint in the place of the former one."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self._checkpoint, arrays)

    def load_checkpoint(self) -> dict[str, Array] | None:
        """Return the checkpoint; None if there is none, or only a damaged one."""
        with contextlib.suppress(RunError), readable(self._checkpoint, ""):
            return read_arrays(self._checkpoint)
        return None

    def clean(self) -> None:
        """Remove what a killed process may have left: unfinished files, an outdated checkpoint."""
        files = (self._numbers, self._arrays, self._checkpoint)
        for path in files:
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        if self.finished:
            self._checkpoint.unlink(missing_ok=True)


class StudyFolder(RunFolder):
    """The folder of a run of a study."""

    def part(self, name: str) -> PartFile:
        """Return the files of one part."""
        return PartFile(self.path / "parts", name)
