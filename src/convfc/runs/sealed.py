"""The files of a run: whatever is wrong with one is one error that says its name and a remedy.

A sealed file is JSON that holds the fingerprints of its own content and of files beside it. Written
last, it is the mark that these are whole, and the proof, when they are read, that they still are.
Arrays that nothing seals, those of a checkpoint, hold a fingerprint of their own.
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

import numpy as np
from numpy.typing import NDArray

from convfc.errors import Diverged, RunError
from convfc.files import read_arrays, write_arrays, write_json

FORMAT = 2
"""Of all files of a run together; another number is another version of convfc."""

Array = NDArray[Any]


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
    """Return a JSON object whose numbers are all finite; everything else is a RunError."""
    with readable(path, remedy):
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")  # which readable makes a RunError
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


@dataclass(frozen=True)
class Sealed:
    """A sealed file that is whole; ``files`` are fingerprints by the path from its folder."""

    path: pathlib.Path
    content: dict[str, Any]
    files: Mapping[str, str]
    remedy: str

    def check(self, name: str, remedy: str | None = None) -> None:
        """Raise if one of the files is not what was sealed."""
        path = self.path.parent / name
        with readable(path, remedy or self.remedy):
            if self.files[name] != _print_of_file(path):
                raise ValueError("its bytes are not those that were written")


def write_sealed(
    path: pathlib.Path, content: Mapping[str, Any], files: Iterable[pathlib.Path]
) -> None:
    """Write a sealed file, for files that are in its folder or below."""
    prints = {file.relative_to(path.parent).as_posix(): _print_of_file(file) for file in files}
    sealed = {**content, "format": FORMAT, "files": prints}
    with _diverged(path):
        own = _print_of(sealed)
    write_json(path, sealed | {"sha256": own})


def read_sealed(path: pathlib.Path, remedy: str) -> Sealed:
    """Return a sealed file; one that is missing, damaged or of another version is a RunError."""
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


@contextlib.contextmanager
def _diverged(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Diverged(
            f"a result is not a finite number ({error})",
            where=str(path),
            remedy="choose other settings: with these the training has diverged",
        ) from error


def write_finite(path: pathlib.Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays, which a sealed file is about to seal."""
    with _diverged(path):
        _require_finite(arrays)
    write_arrays(path, arrays)


def read_finite(sealed: Sealed, path: pathlib.Path) -> dict[str, Array]:
    """Return the arrays of a file that may have been sealed beside the seal; none if it was not."""
    if path.name not in sealed.files:
        return {}
    sealed.check(path.name)
    with readable(path, sealed.remedy):
        arrays = read_arrays(path)
        _require_finite(arrays)
    return arrays


def _require_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: some of its numbers are not finite")


def print_of_arrays(arrays: Mapping[str, Array]) -> str:
    """Return a fingerprint of arrays, which is another one in another version of the files."""
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for name, array in sorted(arrays.items()):
        whole = np.ascontiguousarray(array)
        digest.update(f"{name} {whole.dtype.str} {np.shape(array)}".encode())
        digest.update(whole.data)
    return digest.hexdigest()


def removing(paths: Iterable[pathlib.Path], then: str) -> str:
    """Return the remedy to remove what is there of these, and what ``--resume`` does then."""
    names = " and ".join(str(path) for path in paths if os.path.lexists(path))
    return f"remove {names}, and continue with --resume: {then}"


def require_folder(
    path: pathlib.Path, remedy: str = "move this file away, and continue with --resume"
) -> None:
    """Raise if a file, or a link to nothing, is where a run has a folder."""
    if os.path.lexists(path) and not path.is_dir():
        raise RunError("a file in the place of a folder", where=str(path), remedy=remedy)


def _print_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _print_of_file(path: pathlib.Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
