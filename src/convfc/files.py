"""Files that are written whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside the path, and rename it to the path when all is written.

    A link stays, and its target is replaced. What is not a regular file, such as ``/dev/stdout``,
    is written directly. An error of the system names the path.
    """
    place, replaced = pathlib.Path(os.path.realpath(path)), _is_file_or_missing(path)
    written = place.with_name(place.name + ".tmp") if replaced else path
    try:
        with written.open("wb") as handle:
            yield handle
        if replaced:
            written.replace(place)
    except BaseException as error:
        # The system names the temporary file; for a full disk it names none. Errors of convfc may
        # be OSErrors, too, but have no number, and name what they are about.
        named = None, str(written)
        if isinstance(error, OSError) and error.errno is not None and error.filename in named:
            error.filename, error.filename2 = str(path), None
        if replaced:
            with contextlib.suppress(OSError):
                written.unlink()
        raise


def _is_file_or_missing(path: pathlib.Path) -> bool:
    """Return whether a file can be put here; an impossible path raises the system's error."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    with replacing(path) as handle:
        handle.write((json.dumps(content, indent=2) + "\n").encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file."""
    with replacing(path) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def read_arrays(path: pathlib.Path) -> dict[str, Array]:
    """Return the arrays of an npz file."""
    # Opened here, because NumPy forgets to close a file that turns out to be damaged.
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return dict(stored)
