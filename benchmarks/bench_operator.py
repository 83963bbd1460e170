"""A CONV layer as a linear operator: against PyTorch's own convolution, and the sparse product.

One vector forwards (``matvec``), one back (``rmatvec``) and a batch of eight (``matmat``), of
layers as they stand in networks, in float32. Native is PyTorch's convolution on tensors of its own,
and for ``rmatvec`` its backward pass to the input, the forward pass being done. Beside them the
operator of plain filters, which NumPy computes, and the product of SciPy with the matrix in
compressed rows, where that has few enough entries. Each takes turns with the native way, and is
compared with ``==`` first, on small integers. A ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

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
from torch import nn  # noqa: E402

from convfc.operators import conv_matrix, conv_operator, matrix_estimate  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402

PACKAGES = ("numpy", "scipy", "torch")
BATCH = 8
MARK = 1.5
"""How many times the native convolution's time ``matvec`` and ``rmatvec`` may take."""

NATIVE, OURS, NUMPY, SPARSE = "native", "convfc", "convfc, NumPy", "CSR product"
KINDS = ("matvec", "rmatvec", "matmat")
Ways = dict[str, Callable[[], Any]]
Table = tuple[str, list[str], list[list[str]]]


class Layer(NamedTuple):
    """A layer of a network: channels, filters, kernel, size of the input, and the rest."""

    c: int
    f: int
    k: int
    n: int
    rest: dict[str, Any]

    def __str__(self) -> str:
        rest = "".join(f" {SHORT.get(name, '')}{value}" for name, value in self.rest.items())
        return f"{self.c}->{self.f}, {self.k}x{self.k}{rest}, {self.n}x{self.n}"


SHORT = {"stride": "s", "padding": "p", "groups": "g"}


LAYERS = (
    Layer(32, 32, 3, 56, {"padding": 1}),
    Layer(64, 64, 3, 56, {"padding": 1}),
    Layer(128, 128, 3, 28, {"padding": 1}),
    Layer(256, 256, 3, 14, {"padding": 1}),
    Layer(512, 512, 3, 7, {"padding": 1}),
    Layer(3, 64, 7, 224, {"stride": 2, "padding": 3}),
    Layer(256, 64, 1, 56, {}),
    Layer(144, 144, 3, 56, {"padding": 1, "groups": 144}),
    Layer(64, 64, 3, 56, {"padding": 1, "padding_mode": "circular"}),
    Layer(64, 64, 3, 56, {"padding": 1, "padding_mode": "reflect"}),
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=0.4, help="about so long per pair")
    parser.add_argument("--entries", type=float, default=3e7, help="largest matrix to build")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    header(f"A CONV layer as a linear operator, on {CORES} threads", *PACKAGES)
    lines: dict[str, list[list[str]]] = {kind: [] for kind in KINDS}
    ratios: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    with console.status("") as status, torch.no_grad():
        for layer in LAYERS:
            status.update(str(layer))
            ways, size = ways_of(layer, arguments.entries)
            for kind in KINDS:
                checked(f"{kind} of {layer}", ways[kind])
                slower: dict[str, float] = {}
                taken: list[float] = []
                # In pairs: the threads of NumPy's library, still waiting for work, would slow down
                # a native call that follows.
                for way in (w for w in (OURS, NUMPY, SPARSE) if w in ways[kind]):
                    pair = {w: ways[kind][w] for w in (NATIVE, way)}
                    times = take_turns(pair, rounds=arguments.rounds, seconds=arguments.seconds)
                    slower[way] = per_round(times[way], times[NATIVE])
                    taken = taken or times[NATIVE]
                native = statistics.median(taken)
                shown = [f"{slower[w]:.2f}x" if w in slower else "-" for w in (OURS, NUMPY, SPARSE)]
                lines[kind].append([str(layer), milliseconds(native), *shown, mebibytes(size)])
                ratios[kind][str(layer)] = slower[OURS]
    columns = ["layer", "native, ms", OURS, NUMPY, SPARSE, "matrix, MiB"]
    tables: list[Table] = [
        (f"{kind}: time to the native convolution's", columns, lines[kind]) for kind in KINDS
    ]
    tables.append(marks_table(ratios))
    for title, names, rows in tables:
        table(title, names, rows)
    if not arguments.no_write:
        write_tables("operator", tables, PACKAGES, f"float32; matmat: {BATCH} vectors")


def ways_of(layer: Layer, largest: float) -> tuple[dict[str, Ways], int]:
    """Return every way to each product, and the bytes of the matrix."""
    c, f, k, n, rest = layer
    conv = nn.Conv2d(c, f, k, bias=False, **rest)
    rng = np.random.default_rng(0)
    conv.weight.copy_(torch.from_numpy(rng.integers(-4, 5, conv.weight.shape)))
    op = conv_operator(conv, (n, n))
    plain = conv_operator(op.filters, (n, n), op.geometry, order=op.order)

    def integers(*shape: int) -> np.ndarray:
        return rng.integers(-4, 5, shape).astype(np.float32)

    x, y, batch = integers(op.shape[1]), integers(op.shape[0]), integers(op.shape[1], BATCH)
    tensors = [torch.from_numpy(a.copy()).view(-1, c, n, n) for a in (x, batch.T)]
    gradient = torch.from_numpy(y.copy()).view(1, f, *op.output_size)
    size = matrix_estimate(conv, (n, n))
    ways: dict[str, Ways] = {
        "matvec": {
            NATIVE: lambda: conv(tensors[0]),
            OURS: lambda: op @ x,
            NUMPY: lambda: plain @ x,
        },
        "rmatvec": {
            NATIVE: backward(conv, tensors[0], gradient),
            OURS: lambda: op.rmatvec(y),
            NUMPY: lambda: plain.rmatvec(y),
        },
        "matmat": {
            NATIVE: lambda: conv(tensors[1]),
            OURS: lambda: op @ batch,
            NUMPY: lambda: plain @ batch,
        },
    }
    if size.nonzeros <= largest:
        matrix = conv_matrix(conv, (n, n))
        ways["matvec"][SPARSE] = lambda: matrix @ x
        ways["rmatvec"][SPARSE] = lambda: matrix.T @ y
        ways["matmat"][SPARSE] = lambda: matrix @ batch
    return ways, size.bytes


def backward(conv: nn.Conv2d, x: torch.Tensor, gradient: torch.Tensor) -> Callable[[], Any]:
    """Return PyTorch's backward pass to the input: its own operation, or two, recorded before."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        conv.weight.requires_grad_(requires_grad=False)
        output = conv(leaf)
    return lambda: torch.autograd.grad(output, leaf, gradient, retain_graph=True)[0]


def checked(name: str, ways: Ways) -> None:
    """Stop when a way does not give the same product: its time would say nothing."""
    expected = np.asarray(ways[NATIVE]())
    expected = expected.reshape(len(expected), -1).T
    for way, call in ways.items():
        found = np.asarray(call())
        if way != NATIVE and not np.array_equal(found.reshape(expected.shape), expected):
            raise SystemExit(f"{way}: not the {name}")


def marks_table(ratios: dict[str, dict[str, float]]) -> Table:
    """Return what was asked for, and whether it came: the worst layer decides."""
    lines = []
    for kind in ("matvec", "rmatvec"):
        worst = max(ratios[kind], key=ratios[kind].__getitem__)
        found = ratios[kind][worst]
        met = "yes" if found <= MARK else "no"
        lines.append([f"{kind}, worst: {worst}", f"{found:.2f}x", f"at most {MARK}x", met])
    return ("Marks", ["mark", "measured", "asked", "met"], lines)


if __name__ == "__main__":
    main()
