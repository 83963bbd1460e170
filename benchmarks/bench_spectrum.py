"""Singular values of CONV layers: all of a periodic one, and the norms of a network's layers.

All values of a circular 256 to 256 layer, 3 x 3 on 32 x 32, against the six lines of NumPy in
Sedghi, Gupta and Long (2019). The spectral norms of resnet18's distinct layers with their own
padding, at the sizes that an image of 224 x 224 has there, against power iteration in PyTorch to
the same accuracy. Values are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

from harness import (
    CORES,
    console,
    header,
    milliseconds,
    ratio,
    table,
    use_two_cores,
    write_tables,
)

use_two_cores()

import numpy as np  # noqa: E402 (after the number of threads is set)
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402 (its usual name)

from convfc import ConvGeometry  # noqa: E402
from convfc.methods.spectrum import SingularValues, singular_values  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402

PACKAGES = ("numpy", "scipy", "torch", "threadpoolctl")

CHANNELS, SIZE = 256, 32
MARK = 2.0
"""So many times as fast as the six lines: the mark for the periodic layer."""

SECONDS = 10.0
"""At most so long for the norm of one layer: the mark that "in seconds" sets."""

ACCURACY = 1e-3
"""Residual at which both ways to a norm end."""

MOST_STEPS = 400

# Channels, filters, kernel, stride, padding, input size: every geometry of resnet18.
LAYERS = (
    (3, 64, 7, 2, 3, 224),
    (64, 64, 3, 1, 1, 56),
    (64, 128, 3, 2, 1, 56),
    (64, 128, 1, 2, 0, 56),
    (128, 128, 3, 1, 1, 28),
    (128, 256, 3, 2, 1, 28),
    (128, 256, 1, 2, 0, 28),
    (256, 256, 3, 1, 1, 14),
    (256, 512, 3, 2, 1, 14),
    (256, 512, 1, 2, 0, 14),
    (512, 512, 3, 1, 1, 7),
)


def six_lines(kernel: np.ndarray, input_shape: tuple[int, int]) -> np.ndarray:
    """Return what the program in the paper's introduction does, kernel (k, k, c, f)."""
    transform_coefficients = np.fft.fft2(kernel, input_shape, axes=[0, 1])
    return np.linalg.svd(transform_coefficients, compute_uv=False)


def power_iteration(layer: nn.Conv2d, x: Tensor) -> tuple[float, float, int]:
    """Return norm, residual and steps; the residual is that of `SingularValues`."""
    stride, padding = layer.stride, layer.padding

    def product(v: Tensor) -> Tensor:
        return F.conv2d(v, layer.weight, None, stride, padding)

    with torch.no_grad():
        left = (x.shape[-1] + 2 * padding[0] - layer.kernel_size[0]) % stride[0]
        steps, residual = 0, math.inf
        while steps < MOST_STEPS and residual > ACCURACY:
            steps += 1
            x = x / x.norm()
            y = product(x)
            norm = y.norm()
            back = F.conv_transpose2d(y / norm, layer.weight, None, stride, padding, left)
            residual = float((back - norm * x).norm() / norm)
            x = back
    return float(norm), residual, steps


def periodic(rounds: int) -> tuple[list[list[str]], bool]:
    """Measure the periodic layer; return the table's rows, and whether the mark is met."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, CHANNELS, CHANNELS))
    filters = np.ascontiguousarray(np.moveaxis(kernel, -1, 0))
    geometry = ConvGeometry(CHANNELS, CHANNELS, (3, 3), padding=1)
    found: dict[str, np.ndarray] = {}
    residual = 0.0

    def ours() -> None:
        nonlocal residual
        values = singular_values(filters, (SIZE, SIZE), None, "circular", geometry)
        found["convfc"], residual = values.values, values.residual

    def theirs() -> None:
        found["six lines of NumPy"] = np.sort(six_lines(kernel, (SIZE, SIZE)), axis=None)[::-1]

    ways = {"convfc": ours, "six lines of NumPy": theirs}
    for way in ways.values():  # warmed up, and compared
        way()
    apart = np.abs(found["convfc"] - found["six lines of NumPy"]).max() / found["convfc"][0]
    # Weyl: neither is off by more than its backward error; the rival's is of the same kind.
    if apart > 2 * residual:
        raise SystemExit(f"the values differ by {apart:.1e}, more than rounding allows")
    times = take_turns(ways, rounds=rounds, seconds=0)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    best = medians["convfc"]
    rows = [
        [name, milliseconds(medians[name]), ratio(medians[name], best), f"{apart:.1e}"]
        for name in ways
    ]
    return rows, medians["six lines of NumPy"] >= MARK * best


def norms() -> tuple[list[list[str]], bool]:
    """Measure the norms; return the table's rows, and whether the mark is met."""
    rows, met = [], True
    for c, f, kernel, stride, padding, size in LAYERS:
        torch.manual_seed(0)
        layer = nn.Conv2d(c, f, kernel, stride=stride, padding=padding, bias=False)
        began = time.perf_counter()
        ours: SingularValues = singular_values(layer, (size, size), 1, tolerance=ACCURACY)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        norm, residual, steps = power_iteration(layer, torch.randn(1, c, size, size))
        rival = time.perf_counter() - began
        # What power iteration has is a lower bound, and within its residual of a singular value.
        if norm > float(ours.values[0]) * (1 + ours.residual + 1e-5):
            raise SystemExit(f"power iteration found {norm}, above {ours.values[0]}")
        met = met and seconds <= SECONDS
        rows.append(
            [
                f"{c}x{size}x{size}, {f}x{kernel}x{kernel} s{stride}",
                ours.method,
                f"{ours.values[0]:.5f}",
                f"{ours.residual:.0e}",
                f"{seconds:.2f}",
                f"{norm:.5f}",
                f"{residual:.0e}",
                f"{rival:.2f}",
                f"{steps}" + "+" * (residual > ACCURACY),
            ]
        )
    return rows, met


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="calls of each way, periodic layer")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    header(f"Singular values of CONV layers, on {CORES} threads", *PACKAGES)
    with console.status("all values of a periodic layer"):
        first, fast = periodic(arguments.rounds)
    with console.status("norms of resnet18's layers"):
        second, soon = norms()
    title = f"All singular values, circular, {CHANNELS} to {CHANNELS}, 3x3 on {SIZE}x{SIZE}"
    verdicts = {True: "met", False: "NOT met"}
    tables = [
        (
            f"{title} (mark: {MARK:g}x, {verdicts[fast]})",
            ["way", "ms", "time", "values differ by"],
            first,
        ),
        (
            f"Spectral norms, own padding (mark: below {SECONDS:g} s each, {verdicts[soon]}; +: "
            f"not there after {MOST_STEPS} steps)",
            ["layer", "by", "norm", "residual", "s", "power it.", "residual", "s", "steps"],
            second,
        ),
    ]
    for shown in tables:
        table(*shown)
    if not arguments.no_write:
        write_tables("spectrum", tables, PACKAGES, "filters in float32")


if __name__ == "__main__":
    main()
