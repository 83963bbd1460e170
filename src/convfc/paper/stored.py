"""Reading what a run has stored: whatever is wrong with a file is one error that says its name.

A sealed file is JSON that holds the fingerprints of its own content and of files beside it. Written
last, it is the mark that these are whole, and the proof, when they are read, that they still are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from convfc.errors import RunError
from convfc.files import write_json

__all__ = [
    "Sealed",
    "read_json",
    "read_sealed",
    "readable",
    "removing",
    "require_folder",
    "write_sealed",
]

FORMAT = 1
"""Of all sealed files together; another number is another version of convfc."""


@contextlib.contextmanager
def readable(path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Turn whatever a damaged file does to its reader into an error with its name."""
    try:
        yield
    except RunError:
        raise
    # Here the file may be whole, and to remove it would be a loss.
    except (PermissionError, MemoryError) as error:
        denied = isinstance(error, PermissionError)
        raise RunError(
            f"the file cannot be read ({_reason(error)})",
            where=str(path),
            remedy="give yourself the right to read it" if denied else "free some memory",
        ) from error
    # zipfile, zlib, json, csv and NumPy have a dozen exceptions between them for a damaged file.
    except Exception as error:
        raise RunError(
            f"the file is damaged ({_reason(error)})", where=str(path), remedy=remedy
        ) from error


def _reason(error: Exception) -> str:
    """Return an exception in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    return textwrap.shorten(str(error), 120, placeholder=" ...") or type(error).__name__


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Return a JSON object whose numbers are all finite.

    Raises
    ------
    RunError
        The file is missing, or is anything else.
    """
    with readable(path, remedy):
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")  # which readable makes a RunError
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


@dataclass(frozen=True)
class Sealed:
    """A sealed file that was read and is whole.

    Attributes
    ----------
    path : pathlib.Path
    content : dict
        What it was written with.
    files : mapping
        Fingerprints of other files, by their path from its folder.
    remedy : str
        Of the errors about them.
    """

    path: pathlib.Path
    content: dict[str, Any]
    files: Mapping[str, str]
    remedy: str

    @contextlib.contextmanager
    def reading(self, name: str, remedy: str | None = None) -> Iterator[pathlib.Path]:
        """Yield the path of one of the files to read it there, if it is what was sealed."""
        path = self.path.parent / name
        with readable(path, remedy or self.remedy):
            if self.files[name] != _print_of_file(path):
                raise ValueError("its bytes are not those that were written")
            yield path


def write_sealed(
    path: pathlib.Path, content: Mapping[str, Any], files: Iterable[pathlib.Path]
) -> None:
    """Write a sealed file, for files that are in its folder or below.

    Raises
    ------
    RunError
        There is a number in it that is not finite.
    """
    prints = {file.relative_to(path.parent).as_posix(): _print_of_file(file) for file in files}
    sealed = {**content, "format": FORMAT, "files": prints}
    try:
        own = _print_of(sealed)
    except ValueError as error:
        raise RunError(
            f"a result is no finite number ({error})",
            where=str(path),
            remedy="choose other settings: with these the training has diverged",
        ) from error
    write_json(path, sealed | {"sha256": own})


def read_sealed(path: pathlib.Path, remedy: str) -> Sealed:
    """Return a sealed file.

    Raises
    ------
    RunError
        It is missing, damaged, or of another version.
    """
    content = read_json(path, remedy)
    if content.get("format") != FORMAT:
        raise RunError(
            "the file is of another version of convfc",
            where=str(path),
            expected=f"format {FORMAT}",
            got=textwrap.shorten(repr(content.get("format")), 40, placeholder=" ..."),
            remedy=remedy,
        )
    with readable(path, remedy):
        if content.pop("sha256") != _print_of(content):
            raise ValueError("its numbers are not those that were written")
        del content["format"]
        return Sealed(path, content, dict(content.pop("files")), remedy)


def removing(paths: Iterable[pathlib.Path], then: str) -> str:
    """Return the remedy to remove what is there of these, and what ``--resume`` does then."""
    names = " and ".join(str(path) for path in paths if os.path.lexists(path))
    return f"remove {names}, and continue with --resume: {then}"


def require_folder(
    path: pathlib.Path, remedy: str = "move this file away, and continue with --resume"
) -> None:
    """Raise if a file, or a link to nothing, is where a run has a folder."""
    if os.path.lexists(path) and not path.is_dir():
        raise RunError(
            "there is a file in the place of a folder",
            where=str(path),
            remedy=remedy,
        )


def _print_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _print_of_file(path: pathlib.Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
