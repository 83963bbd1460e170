"""Write files so that a reader, or a resumed run, never finds half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError

__all__ = ["full_disk_explained", "read_arrays", "replacing", "write_arrays", "write_json"]

Array = NDArray[np.floating[Any]]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def full_disk_explained(folder: pathlib.Path) -> Iterator[None]:
    """Turn the system's error for a full disk into a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RunError(
            f"the disk is full ({error.strerror})",
            where=str(folder),
            remedy="free some space (1 GB is plenty) and continue with --resume",
        ) from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside the path, and rename it to the path when all is written."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as handle:
            yield handle
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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
