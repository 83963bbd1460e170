"""The matrix of a CONV layer: against writing its bytes, and against every other way to get it.

First the layer 64 to 64, 3 x 3, 56 x 56, padding 1, in float32: 113 million entries. The yardstick
is the least that any way can take, which is to fill three new arrays of the same sizes with a
constant; memory is how far one call raises the resident set, in a process of its own. Then two
layers that are small enough for the others: one image per input element through the layer,
``torch.func.jacfwd`` and ``jacrev``, a list of all entries that SciPy sorts, and the package
sparse_convolution. Ways take turns, call by call, and each is compared with ``==`` first, on small
integers. A ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

from harness import (
    CORES,
    console,
    header,
    mebibytes,
    milliseconds,
    per_round,
    table,
    use_two_cores,
    write_tables,
)

use_two_cores()

import numpy as np  # noqa: E402 (after the number of threads is set)
import torch  # noqa: E402
from scipy import sparse  # noqa: E402
from sparse_convolution import Toeplitz_convolution2d  # noqa: E402

from convfc import ConvGeometry  # noqa: E402
from convfc.indexmap import index_map  # noqa: E402
from convfc.operators.matrix import conv_matrix  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402
from convfc.registry import Order  # noqa: E402
from convfc.runs.machine import peak_of  # noqa: E402

PACKAGES = ("numpy", "scipy", "torch", "sparse_convolution")
ORDERS: tuple[Order, ...] = ("channels_first", "channels_last")

LARGE = (ConvGeometry(64, 64, (3, 3), padding=1), (56, 56))
SMALL = (ConvGeometry(16, 16, (3, 3), padding=1), (28, 28))
PLANE = (ConvGeometry(1, 1, (3, 3), padding=2, flip=True), (224, 224))

WRITE, OURS = "writing the same bytes", "convfc"
Ways = dict[str, Callable[[], Any]]
Table = tuple[str, list[str], list[list[str]]]
Mark = tuple[str, float, float, str]
"""What is asked, the number that was measured, the one that is asked for, and how they compare."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=5.0, help="about so long per table")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    parser.add_argument("--memory-of", choices=ORDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # jacfwd's own
    if arguments.memory_of is not None:
        sys.stdout.write(json.dumps(extra_memory(arguments.memory_of)))
        return
    header(f"The matrix of a CONV layer, on {CORES} threads", *PACKAGES)
    with console.status("64 to 64, 3 x 3, 56 x 56"):
        tables, marks = large_layer(arguments.rounds, arguments.seconds)
    for measure in (small_layer, plane):
        with console.status(str(measure.__doc__)):
            more, further = measure(arguments.rounds, arguments.seconds)
        tables, marks = tables + more, marks + further
    tables.append(marks_table(marks))
    for title, columns, lines in tables:
        table(title, columns, lines)
    if not arguments.no_write:
        write_tables("matrix", tables, PACKAGES, "float32, int32 indices")


def large_layer(rounds: int, seconds: float) -> tuple[list[Table], list[Mark]]:
    """64 to 64, 3 x 3, 56 x 56: time and memory, against writing the bytes."""
    geometry, size = LARGE
    filters = integers(geometry)
    ways: Ways = {}
    for order in ORDERS:
        matrix = conv_matrix(filters, size, geometry, order=order)
        check_product(matrix, filters, order)
        sizes = [(a.size, a.dtype) for a in (matrix.indptr, matrix.indices, matrix.data)]
        del matrix
        ways[f"{WRITE}, {order}"] = lambda sizes=sizes: [
            np.empty(n, dtype).fill(1) for n, dtype in sizes
        ]
        ways[f"{OURS}, {order}"] = lambda order=order: conv_matrix(
            filters, size, geometry, order=order
        )
    times = take_turns(ways, rounds=rounds, seconds=seconds)
    lines, marks = [], []
    for order in ORDERS:
        written, ours = times[f"{WRITE}, {order}"], times[f"{OURS}, {order}"]
        slower = per_round(ours, written)
        memory = memory_in_a_process(order)
        marks.append((f"time to writing the bytes, {order}", slower, 4.0, "at most"))
        shown = [milliseconds(statistics.median(t)) for t in (written, ours)]
        shown += [milliseconds(min(t)) for t in (written, ours)]
        line = [order, *shown, f"{slower:.2f}x", mebibytes(memory["result"])]
        if memory["peak"] is None:  # not on Linux
            lines.append([*line, "-"])
            continue
        more = memory["peak"] / memory["result"]
        marks.append((f"peak memory to the result, {order}", more, 1.5, "below"))
        lines.append([*line, f"{more:.2f}x"])
    columns = ["order", "writing, ms", "convfc, ms", "least", "least", "ratio", "result, MiB"]
    return [(f"{name_of(LARGE)}: CSR, medians", [*columns, "peak memory"], lines)], marks


def small_layer(rounds: int, seconds: float) -> tuple[list[Table], list[Mark]]:
    """16 to 16, 3 x 3, 28 x 28: against the general ways to get the matrix of a linear map."""
    geometry, size = SMALL
    filters = integers(geometry)
    layer = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False).requires_grad_(requires_grad=False)
    layer.weight.copy_(torch.from_numpy(filters).movedim(-1, 1))
    zeros = torch.zeros(16, *size)
    columns = zeros.numel()

    def probing() -> Any:
        """One-hot images, 784 at a time: what the layer makes of one is a column."""
        found = [
            sparse.csr_array(layer(images.view(-1, 16, *size)).flatten(1).numpy())
            for images in torch.eye(columns).split(784)
        ]
        return sparse.vstack(found).T.tocsr()

    def jacobian(transform: Any) -> Callable[[], Any]:
        def flat(x: torch.Tensor) -> torch.Tensor:
            return layer(x.view_as(zeros)).flatten()

        return lambda: transform(flat)(zeros.flatten()).numpy()

    ways: Ways = {
        OURS: lambda: conv_matrix(layer, size),
        "convfc, torch tensor": lambda: conv_matrix(layer, size, library="torch"),
        "list of entries, SciPy sorts it": lambda: by_coordinates(filters, SMALL),
        "one-hot images": probing,
        "torch.func.jacfwd (dense)": jacobian(torch.func.jacfwd),
        "torch.func.jacrev (dense)": jacobian(torch.func.jacrev),
    }
    lines, marks = compared(ways, name_of(SMALL), rounds=max(2, rounds // 2), seconds=seconds)
    return [lines], [mark for mark in marks if "one-hot" in mark[0] or "jacfwd" in mark[0]]


def plane(rounds: int, seconds: float) -> tuple[list[Table], list[Mark]]:
    """1 to 1, 3 x 3, 224 x 224, full: what sparse_convolution can build, too."""
    geometry, size = PLANE
    filters = integers(geometry)
    image = filters[0, ..., 0]

    def peer() -> Any:
        return Toeplitz_convolution2d(size, image, mode="full", method="precomputed")

    ways: Ways = {
        OURS: lambda: conv_matrix(filters, size, geometry),
        "list of entries, SciPy sorts it": lambda: by_coordinates(filters, PLANE),
        "sparse_convolution": peer,
    }
    return [compared(ways, name_of(PLANE), rounds=rounds, seconds=seconds)[0]], []


def by_coordinates(filters: np.ndarray, layer: tuple[ConvGeometry, tuple[int, ...]]) -> Any:
    """Return the matrix as one writes it with SciPy: rows, columns and weights in a list."""
    geometry, size = layer
    where = index_map(geometry, size)
    p, tap = np.nonzero(where.flat() >= 0)
    element, channel = np.divmod(where.flat()[p, tap], geometry.in_channels)
    f = np.arange(geometry.out_channels)[:, None]
    rows = f * where.shape[0] + p
    columns = np.broadcast_to(channel * math.prod(size) + element, rows.shape)
    weights = filters.reshape(len(filters), -1)[:, tap]
    shape = (len(filters) * where.shape[0], geometry.in_channels * math.prod(size))
    entries = (weights.ravel(), (rows.ravel(), columns.ravel()))
    return sparse.csr_array(sparse.coo_array(entries, shape=shape))


def compared(ways: Ways, name: str, *, rounds: int, seconds: float) -> tuple[Table, list[Mark]]:
    """Return times of the ways to get one matrix, after checking that it is one."""
    expected = ways[OURS]()
    for way, call in ways.items():
        check_equal(way, call(), expected)
    times = take_turns(ways, rounds=rounds, seconds=seconds)
    lines, marks = [], []
    for way, taken in times.items():
        slower = per_round(taken, times[OURS])
        shown = [milliseconds(statistics.median(taken)), milliseconds(min(taken))]
        lines.append([way, *shown, f"{slower:,.1f}x"])
        marks.append((f"{way}: its time to convfc's", slower, 100.0, "at least"))
    return (
        f"{name}: {expected.nnz:,} entries",
        ["way", "median, ms", "least, ms", "ratio"],
        lines,
    ), marks


def check_equal(way: str, found: Any, expected: Any) -> None:
    """Stop when a way does not give the matrix: its time would say nothing."""
    if isinstance(found, torch.Tensor):
        parts = (found.values(), found.col_indices(), found.crow_indices())
        found = sparse.csr_array(tuple(part.numpy() for part in parts), shape=tuple(found.shape))
    if isinstance(found, Toeplitz_convolution2d):  # its matrix has no public name
        x = np.arange(expected.shape[1], dtype=np.float32) % 9
        same = np.array_equal(found(x[None], batching=True)[0], expected @ x)
    else:
        same = (
            found.shape == expected.shape
            and not (expected - sparse.csr_array(found)).count_nonzero()
        )
    if not same:
        raise SystemExit(f"{way} does not give this matrix")


def check_product(matrix: Any, filters: np.ndarray, order: Order) -> None:
    """Stop when the large matrix does not compute what PyTorch's layer computes."""
    _, size = LARGE
    x = torch.randint(-4, 5, (1, 64, *size), generator=torch.manual_seed(0)).float()
    y = torch.nn.functional.conv2d(x, torch.from_numpy(filters).movedim(-1, 1), padding=1)
    if order == "channels_last":
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    if not np.array_equal(matrix @ x.reshape(-1).numpy(), y.reshape(-1).numpy()):
        raise SystemExit(f"convfc, {order}, does not compute this layer")


def integers(geometry: ConvGeometry) -> np.ndarray:
    """Return filters of small integers but 0, on which every sum is exact."""
    drawn = np.random.default_rng(0).integers(1, 5, geometry.filters_shape)
    return drawn.astype(np.float32)


def memory_in_a_process(order: Order) -> dict[str, Any]:
    """Measure memory in a process of its own, in which nothing has been freed before."""
    command = [sys.executable, __file__, "--memory-of", order]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(  # noqa: S603
        command, check=True, capture_output=True, text=True, env=environment
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def extra_memory(order: Order) -> dict[str, int | None]:
    """Return how far one call raises the resident set, and what it returns, in bytes."""
    geometry, size = LARGE
    filters = integers(geometry)
    conv_matrix(integers(SMALL[0]), SMALL[1], SMALL[0], order=order)  # what is made once and kept
    matrix, peak = peak_of(lambda: conv_matrix(filters, size, geometry, order=order))
    result = sum(a.nbytes for a in (matrix.indptr, matrix.indices, matrix.data))
    return {"peak": peak, "result": result}


def name_of(layer: tuple[ConvGeometry, tuple[int, ...]]) -> str:
    """Return a layer as text."""
    geometry, size = layer
    kernel, image = ("x".join(map(str, sizes)) for sizes in (geometry.kernel_size, size))
    (low, _), *_ = geometry.padding
    return f"{geometry.in_channels}->{geometry.out_channels}, {kernel} p{low}, {image}"


def marks_table(marks: list[Mark]) -> Table:
    """Return what was asked for, and whether it came."""
    lines = []
    for asked, found, limit, relation in marks:
        met = {"at least": found >= limit, "at most": found <= limit, "below": found < limit}
        lines.append(
            [asked, f"{found:.2f}x", f"{relation} {limit:g}x", "yes" if met[relation] else "no"]
        )
    return ("Marks", ["mark", "measured", "asked", "met"], lines)


if __name__ == "__main__":
    main()
