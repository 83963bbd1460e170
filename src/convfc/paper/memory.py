"""How much memory a call takes at its highest: the resident set's high-water mark, on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import pathlib
from collections.abc import Callable
from typing import Any

__all__ = ["has_high_water_mark", "peak_of"]

_RESET = pathlib.Path("/proc/self/clear_refs")
_STATUS = pathlib.Path("/proc/self/status")


def peak_of(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return what a call returns, and by how many bytes it raised the resident set.

    What it returns is counted, too. Memory that the process has freed before, and the system has
    back, hides nothing. None stands where there is no high-water mark that can be reset.

    Examples
    --------
    >>> result, peak = peak_of(lambda: 7)
    >>> result
    7
    """
    gc.collect()
    if not has_high_water_mark():
        return call(), None
    # Let glibc return its freed pages, so that the call has to take its memory anew.
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    _RESET.write_text("5")  # the high-water mark starts again from the present level
    result = call()
    return result, max(0, _status("VmHWM") - before)


def has_high_water_mark() -> bool:
    """Whether there is a high-water mark that can be reset: on Linux, not in every container."""
    try:
        _RESET.write_text("5")
        return _status("VmHWM") > 0
    except (OSError, ValueError):
        return False


def _status(field: str) -> int:
    """Return a field of the process's status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)
