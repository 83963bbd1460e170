"""How large the matrix of a CONV layer would be, known exactly before any of it is built."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from convfc.arrays import accumulating_dtype, itemsize, namespace
from convfc.errors import ArgumentError, MemoryBudgetError
from convfc.geometry import ConvGeometry
from convfc.layer import Order
from convfc.operators.pattern import MatrixPattern, matrix_pattern
from convfc.registry import read_layer
from convfc.sizes import budget, one_of

Layout: TypeAlias = Literal["csr", "dense"]
"""How a matrix is stored: compressed sparse rows, or every entry."""

_MATRIX_FREE = (
    "convfc.conv_operator(layer, input_size) applies the same matrix without building it; or give "
    "a smaller input_size, or memory= in bytes to allow more"
)


class SizedGeometry(NamedTuple):
    """What a layer computes, and the one spatial size that its matrix is for."""

    geometry: ConvGeometry
    input_size: tuple[int, ...]


@dataclass(frozen=True)
class MatrixEstimate:
    """The size of a matrix: rows and columns, entries (weights of 0, too), bytes with indices.

    Examples
    --------
    >>> print(MatrixEstimate((4, 4), 10, 100))
    4 x 4, 10 entries (62.5 %), 100 bytes
    """

    shape: tuple[int, int]
    nonzeros: int
    bytes: int

    def __str__(self) -> str:
        rows, columns = self.shape
        entries = f"{self.nonzeros:,} entries ({100 * self.nonzeros / (rows * columns):.3g} %)"
        return f"{rows:,} x {columns:,}, {entries}, {_readable(self.bytes)}"


def matrix_estimate(
    layer: Any,
    input_size: Sequence[int],
    geometry: ConvGeometry | None = None,
    *,
    layout: Layout = "csr",
    dtype: Any = None,
) -> MatrixEstimate:
    """Return how large `convfc.conv_matrix` would be: exact, and at once for every input size.

    An axis has one entry per distinct pair of an output position and an input element that it
    reads; the matrix has the product of these numbers over the axes, times f c / groups.

    Parameters
    ----------
    layer, input_size, geometry, layout
        As for `convfc.conv_matrix`, which raises the same errors; or a `ConvGeometry` as the layer.
    dtype : dtype, optional
        Of the entries; that of the matrix by default, float32 for a geometry alone.

    Examples
    --------
    The first layer of a ResNet, on an image of ImageNet:

    >>> stem = ConvGeometry(3, 64, (7, 7), stride=2, padding=3)
    >>> print(matrix_estimate(stem, (224, 224)))
    802,816 x 150,528, 116,214,528 entries (0.0962 %), 890 MiB
    >>> print(matrix_estimate(stem, (224, 224), layout="dense"))
    802,816 x 150,528, 116,214,528 entries (0.0962 %), 450 GiB
    """
    if isinstance(layer, ConvGeometry):
        if geometry is not None:
            raise ArgumentError("two geometries were given", where="geometry", got=geometry)
        geometry, own = layer, np.float32
    else:
        read = read_layer(layer, geometry, input_size=input_size).layer
        geometry = read.geometry
        own = accumulating_dtype(namespace(filters=read.filters), filters=read.filters)
    pattern = matrix_pattern(geometry, input_size, "channels_last")
    return pattern_estimate(pattern, own if dtype is None else dtype, layout)


def pattern_estimate(pattern: MatrixPattern, dtype: Any, layout: Layout = "csr") -> MatrixEstimate:
    """Return the size of the matrix that has a pattern."""
    one_of("layout", layout, Layout)
    size = itemsize(dtype)
    if layout == "dense":
        needed = math.prod(pattern.shape) * size
    else:
        index = pattern.index_dtype.itemsize
        needed = pattern.nonzeros * (size + index) + (pattern.shape[0] + 1) * index
    return MatrixEstimate(pattern.shape, pattern.nonzeros, needed)


def check_fits(
    estimate: MatrixEstimate, memory: float | None = None, remedy: str = _MATRIX_FREE
) -> None:
    """Raise MemoryBudgetError unless a matrix fits, before anything is built.

    Without a number of bytes it may take what the machine has free now, if the system says so.
    """
    allowed = _allowed(memory)
    if estimate.bytes > allowed:
        whose = "that the machine has free" if memory is None else "that it may take"
        raise MemoryBudgetError(
            "the matrix does not fit",
            where="memory",
            expected=f"at most the {_readable(allowed)} {whose}",
            got=estimate,
            remedy=remedy,
        )


def check_together(
    estimates: Mapping[str, MatrixEstimate],
    memory: float | None = None,
    *,
    what: str,
    remedy: str,
    working: int = 0,
) -> None:
    """Raise MemoryBudgetError unless the matrices of several layers, by name, fit at once.

    ``working`` are the bytes that building them takes besides.
    """
    allowed = _allowed(memory)
    needed = sum(estimate.bytes for estimate in estimates.values()) + working
    if needed <= allowed:
        return
    largest = max(estimates, key=lambda name: estimates[name].bytes)
    together = "it takes" if len(estimates) == 1 else f"all {len(estimates)} layers take"
    raise MemoryBudgetError(
        f"{what} do not fit",
        where=largest or "the model itself",
        expected=f"at most {allowed:,} bytes" + " that are free" * (memory is None),
        got=f"{estimates[largest]}; {together} {needed:,} bytes while they are made",
        remedy=remedy,
    )


def check_dense(
    layers: Mapping[str, Any],
    sized: Mapping[int, Sequence[SizedGeometry]],
    memory: float | None,
    *,
    order: Callable[[Any], Order],
    dtype: Callable[[Any], str],
    times: int = 1,
) -> None:
    """Raise MemoryBudgetError unless the dense matrices of unrolled layers fit together.

    Given are the layers by name, a shared one maybe by several; by their ``id``, of each of their
    matrices geometry and input size; what says a layer's order of axes and its dtype's name; and
    how many times the matrices are held while they are made.
    """
    unique: dict[int, str] = {}
    for name, layer in layers.items():
        unique.setdefault(id(layer), name)
    estimates: dict[str, MatrixEstimate] = {}
    working = 0  # bytes needed while one matrix is filled: its entries and their places
    for key, name in unique.items():
        layer = layers[name]
        # bfloat16 takes what float16 takes, and NumPy does not know it.
        known = "float16" if dtype(layer) == "bfloat16" else dtype(layer)
        for number, one in enumerate(sized[key], start=1):
            pattern = matrix_pattern(*one, order(layer))
            part = name + f" (matrix {number})" * (number > 1)
            estimates[part] = pattern_estimate(pattern, known, "dense")
            working = max(working, pattern.nonzeros * (8 + itemsize(known)))
    working += (times - 1) * sum(estimate.bytes for estimate in estimates.values())
    check_together(
        estimates,
        memory,
        what="the matrices of the unrolled layers",
        remedy="convfc.to_fc needs no such matrix; convfc.conv_operator(layer, input_size) applies "
        "it without building it; or give a smaller example, or name fewer layers with where=",
        working=working,
    )


def _allowed(memory: float | None) -> float:
    """Return the bytes that may be taken: any number if there is nothing to say so."""
    if memory is None:
        free = available_memory()
        return math.inf if free is None else free
    return budget(memory, remedy="leave it out for what the machine has free")


def available_memory(root: str | os.PathLike[str] = "/") -> int | None:
    """Return the bytes that a process can still take without swapping; None if nothing says so.

    On Linux what the kernel or the control group leaves; elsewhere the free pages, if counted.
    """
    files = Path(root)
    for line in _lines(files / "proc/meminfo"):
        name, size, *_ = line.split()
        if name == "MemAvailable:":
            return min(1024 * int(size), *_left_in_groups(files))
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # no such call, no such name, no such value
        return None


_V1 = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "", "memory.max", "memory.current", "inactive_file"
"""Of control groups: where they are mounted, and the names of limit, usage and cached files."""


def _left_in_groups(files: Path) -> Iterator[int]:
    """Yield what is left of every memory limit that this process is under."""
    yield sys.maxsize  # of no limit
    for line in _lines(files / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit, usage, cache = _V1 if controllers else _V2
        group = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's: then only its root can be seen.
        for place in (group, *group.parents):
            directory = files / "sys/fs/cgroup" / mount / place
            limits, used = _lines(directory / limit), _lines(directory / usage)
            if limits and used and limits[0] != "max":
                # Pages of files that nobody uses are given back before the limit is felt.
                stat = dict(words.split() for words in _lines(directory / "memory.stat"))
                yield max(0, int(limits[0]) - int(used[0]) + int(stat.get(cache, 0)))


def _lines(path: Path) -> list[str]:
    """Lines of a file of the system; none where it cannot be read."""
    try:
        return path.read_text("ascii").split("\n")[:-1]
    except OSError:
        return []


def _readable(size: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(int(math.log2(max(size, 1))) // 10, len(units) - 1)
    return f"{size / 1024**power:.3g} {units[power]}"
