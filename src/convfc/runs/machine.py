"""What numbers were measured on, with which versions, and how much memory a call takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return processor, cores that this process may use, and system; no names."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    told = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*:\s*(.*?)\s*$", told, re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "byte_order": sys.byteorder,
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, of these packages, and of convfc."""
    versions = {"python": platform.python_version()}
    for package in (*packages, "convfc"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


_RESET = pathlib.Path("/proc/self/clear_refs")
_STATUS = pathlib.Path("/proc/self/status")


def peak_of(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return what a call returns, and by how many bytes it raised the resident set.

    What it returns is counted, too. None stands where there is no mark that can be reset.
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
