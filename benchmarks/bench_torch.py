"""A CONV layer of PyTorch and the same layer after ``convfc.to_fc``: time and memory.

Forward pass (without gradients) and training step (forward pass, and the gradients of input, weight
and bias) of seven layers in float32: as converted, with ``product="matrix"``, and with a module in
the place of the FC layer. They stand against the native layer in the better of its two memory
formats, and against what else computes a convolution as a matrix product: ``torch.nn.functional.
unfold`` and ``matmul``, unfoldNd, and einconv. All ways take turns, call by call. Each is compared
with float64 first and has to stay within the rounding bound.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

from harness import (
    CORES,
    RESULTS,
    console,
    header,
    mebibytes,
    milliseconds,
    ratio,
    table,
    use_two_cores,
    write_tables,
)
from harness import version as version_of

use_two_cores()

import torch  # noqa: E402 (after the number of threads is set)
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402 (its usual name)

import convfc  # noqa: E402
from convfc.files import write_json  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402
from convfc.rounding import UNIT_ROUNDOFF, gamma  # noqa: E402
from convfc.runs.machine import describe_machine, peak_of  # noqa: E402

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
PACKAGES = ("torch", "unfoldNd", "einconv")

# Batch, channels, size, filters, kernel, stride and padding of each.
LAYERS = (
    (8, 3, 224, 64, 7, 2, 3),
    (8, 64, 56, 64, 3, 1, 1),
    (8, 128, 28, 128, 3, 1, 1),
    (8, 256, 14, 256, 3, 1, 1),
    (8, 512, 7, 512, 3, 1, 1),
    (8, 256, 56, 64, 1, 1, 0),
    (128, 1, 28, 128, 4, 2, 0),
)
RIVALS = ("swapped", "unfold", "unfoldNd", "einconv")

Inputs = tuple[Tensor, Tensor, Tensor]
Way = tuple[Callable[[Tensor], Tensor], Inputs]
"""A layer as a function of its input, and what it is differentiated by: input, weight, bias."""


class Swapped(nn.Linear):
    """An FC layer as a tool would put it in the place of the plain one: called as a module."""

    takes_blocks = True


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long per table row")
    parser.add_argument("--layer", type=int, nargs="*", help="only these of the layers, from 0")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    if arguments.memory_of is not None:
        sys.stdout.write(json.dumps(extra_memory(LAYERS[arguments.memory_of])))
        return
    header(f"A CONV layer of PyTorch and its FC layer, on {CORES} threads", *PACKAGES)
    rows = []
    with console.status("") as status:
        for number, layer in enumerate(LAYERS):
            if arguments.layer and number not in arguments.layer:
                continue
            status.update(f"{name_of(layer)} ({number + 1} of {len(LAYERS)})")
            ways = ways_of(layer)
            rows.append({"layer": layer, "memory": memory_in_a_process(number)})
            for kind, run in (("forward", forward), ("step", step)):
                calls = {}
                bound = bound_of(layer, ways["native NCHW"], kind)
                for name, way in ways.items():
                    checked(name, run(*way), bound)
                    calls[name] = lambda run=run, way=way: run(*way)
                times = take_turns(calls, rounds=arguments.rounds, seconds=arguments.seconds)
                rows[-1][kind] = {
                    name: {"median": statistics.median(taken), "least": min(taken)}
                    for name, taken in times.items()
                }
    tables = [table_of(rows, kind, figure) for kind in ("forward", "step") for figure in FIGURES]
    tables += [memory_table(rows, kind) for kind in ("forward", "step")]
    for title, columns, lines in tables:
        table(title, columns, lines)
    if not arguments.no_write:
        write(rows, tables)


FIGURES = {"median": "medians", "least": "least times"}


def name_of(layer: tuple[int, ...]) -> str:
    """Return the layer as text."""
    b, c, size, f, k, s, p = layer
    return f"{b}x{c}x{size}x{size}, {f}x{k}x{k} s{s} p{p}"


def ways_of(layer: tuple[int, ...]) -> dict[str, Way]:
    """Return every way to compute a layer, on the same numbers."""
    b, c, size, f, k, s, p = layer
    torch.manual_seed(0)
    conv = nn.Conv2d(c, f, k, stride=s, padding=p)
    contiguous = torch.randn(b, c, size, size)
    swapped, matrix = convfc.to_fc(conv), convfc.to_fc(conv, product="matrix")
    swapped.fc.__class__ = Swapped
    ways: dict[str, Way] = {}
    for memory, memory_format in FORMATS.items():
        x = contiguous.to(memory_format=memory_format).requires_grad_()
        native = copy.deepcopy(conv).to(memory_format=memory_format)
        ways[f"native {memory}"] = (native, (x, native.weight, native.bias))
        fc = convfc.to_fc(native)
        ways[f"convfc {memory}"] = (fc, (x, fc.fc.weight, fc.fc.bias))
        ways[f"matrix {memory}"] = (matrix, (x, matrix.fc.weight, matrix.fc.bias))
    ways["swapped"] = (swapped, (x, swapped.fc.weight, swapped.fc.bias))
    x = contiguous.clone().requires_grad_()
    weight, bias = conv.weight, conv.bias
    sizes = {"stride": s, "padding": p}
    output_size = ((size + 2 * p - k) // s + 1,) * 2

    def product(columns: Tensor) -> Tensor:
        return (weight.flatten(1) @ columns + bias[:, None]).unflatten(2, output_size)

    ways["unfold"] = (lambda x: product(F.unfold(x, k, **sizes)), (x, weight, bias))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import unfoldNd
    from einconv.expressions import convNd_forward

    ways["unfoldNd"] = (
        lambda x: product(unfoldNd.unfoldNd(x, k, **sizes)),
        (x, weight, bias),
    )
    # Its index patterns are made once, and not timed.
    equation, operands, shape = convNd_forward.einsum_expression(x, weight, **sizes)

    def einconv(x: Tensor) -> Tensor:
        images = x.reshape(operands[0].shape)
        filters = weight.reshape(operands[-1].shape)
        y = torch.einsum(equation, images, *operands[1:-1], filters).reshape(shape)
        return y + bias[:, None, None]

    ways["einconv"] = (einconv, (x, weight, bias))
    return ways


def forward(layer: Callable[[Tensor], Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """Run the layer without recording gradients."""
    with torch.no_grad():
        return (layer(inputs[0]),)


def step(layer: Callable[[Tensor], Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """Run the layer and its backward pass; the gradient of the output is what it gave: no copy."""
    y = layer(inputs[0])
    return (y, *torch.autograd.grad(y, inputs, y.detach()))


def bound_of(layer: tuple[int, ...], way: Way, kind: str) -> list[tuple[Tensor, Tensor]]:
    """Return each result in float64, and the rounding error that float32 may have.

    A sum of n products has an error of at most gamma_n times the sum of the moduli; see
    `convfc.rounding`. In the backward pass the gradient of the output carries the error of the
    forward pass.
    """
    b, c, _, f, k, s, p = layer
    x, weight, bias = (t.detach().double() for t in way[1])

    def results(*inputs: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
        if kind == "forward":
            return (F.conv2d(*inputs, stride=s, padding=p),)
        inputs = tuple(t.requires_grad_() for t in inputs)
        y = F.conv2d(*inputs, stride=s, padding=p)
        dx, dweight, dbias = torch.autograd.grad(y, inputs, y.detach() if dy is None else dy)
        return (y.detach(), dx, dweight, dbias)

    exact = results(x, weight, bias)
    # The moduli of dy are at most those of |M||K| + |b|, and so is what it is off by.
    moduli = results(x.abs(), weight.abs(), bias.abs())
    rows = b * exact[0].shape[2] * exact[0].shape[3]
    terms = [c * k * k + 1]
    terms += [n + terms[0] for n in (f * k * k, rows, rows)] if kind == "step" else []
    return [
        (value, gamma(n, UNIT_ROUNDOFF["float32"]) * size)
        for value, size, n in zip(exact, moduli, terms, strict=True)
    ]


def checked(name: str, found: tuple[Tensor, ...], expected: list[tuple[Tensor, Tensor]]) -> None:
    """Stop when a way does not compute the layer: its time would say nothing."""
    for tensor, (value, bound) in zip(found, expected, strict=True):
        if tensor.ndim == 2:  # an FC weight's gradient
            tensor = tensor.reshape(value.shape)  # noqa: PLW2901
        if tensor.shape != value.shape or bool(((tensor - value).abs() > bound).any()):
            raise SystemExit(f"{name} does not compute this layer")


def better(row: dict[str, Any], kind: str, figure: str, who: str) -> tuple[float, str]:
    """Return the time of the better memory format, and which one it is."""
    times = {memory: row[kind][f"{who} {memory}"][figure] for memory in FORMATS}
    best = min(times, key=times.__getitem__)
    return times[best], best


def table_of(rows: list[dict[str, Any]], kind: str, figure: str) -> tuple[str, Any, Any]:
    """Return the times to the native layer's as a table, with their geometric means."""
    columns = ["layer", "native, ms", "in", "convfc", "M K", "in", *RIVALS]
    lines, ratios = [], []
    for row in rows:
        native, native_format = better(row, kind, figure, "native")
        ours, _ = better(row, kind, figure, "convfc")
        product, its_format = better(row, kind, figure, "matrix")
        taken = [ours, product, *(row[kind][name][figure] for name in RIVALS)]
        ratios.append([time / native for time in taken])
        shown = [ratio(time, native) for time in taken]
        line = [name_of(row["layer"]), milliseconds(native), native_format, *shown[:2], its_format]
        lines.append([*line, *shown[2:]])
    means = [ratio(statistics.geometric_mean(column), 1) for column in zip(*ratios, strict=True)]
    lines.append(["geometric mean", "", "", *means[:2], "", *means[2:]])
    names = {"forward": "Forward pass", "step": "Training step"}
    return (f"{names[kind]}: time to the native layer's, {FIGURES[figure]}", columns, lines)


def memory_table(rows: list[dict[str, Any]], kind: str) -> tuple[str, Any, Any]:
    """Return the extra memory as a table."""
    names = list(rows[0]["memory"][kind])
    what = {"forward": "the output", "step": "output and gradients"}[kind]
    lines = []
    for row in rows:
        b, c, size, _, k, s, p = row["layer"]
        out = (size + 2 * p - k) // s + 1
        matrix = 4 * b * out * out * k * k * c
        shown = [mebibytes(row["memory"][kind][name]) for name in names]
        lines.append([name_of(row["layer"]), mebibytes(matrix), *shown])
    titles = {"forward": "Forward pass", "step": "Training step"}
    return (
        f"{titles[kind]}: peak memory beyond {what}, MiB",
        ["layer", "M", *names],
        lines,
    )


def memory_in_a_process(number: int) -> dict[str, Any]:
    """Measure memory in a process of its own, in which nothing has been freed before."""
    command = [sys.executable, __file__, "--memory-of", str(number)]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(  # noqa: S603
        command, check=True, capture_output=True, text=True, env=environment
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def extra_memory(layer: tuple[int, ...]) -> dict[str, dict[str, int | None]]:
    """Return how far each way raises the resident set, less what it returns."""
    ways = ways_of(layer)
    found: dict[str, dict[str, int | None]] = {}
    for kind, run in (("forward", forward), ("step", step)):
        found[kind] = {}
        for name, way in ways.items():
            run(*way)  # what libraries make once and keep
            kept, peak = peak_of(functools.partial(run, *way))
            returned = sum(t.nbytes for t in kept)
            found[kind][name] = None if peak is None else max(0, peak - returned)
            del kept
    return found


def write(rows: list[dict[str, Any]], tables: list[tuple[str, Any, Any]]) -> None:
    """Write the figures as JSON, and the tables as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    machine = describe_machine()
    versions = {name: version_of(name) for name in PACKAGES}
    about = {"machine": machine, "threads": CORES, "dtype": "float32", "versions": versions}
    layers = [{"name": name_of(row["layer"]), **row} for row in rows]
    means = {
        kind: {
            figure: statistics.geometric_mean(
                better(row, kind, figure, "convfc")[0] / better(row, kind, figure, "native")[0]
                for row in rows
            )
            for figure in FIGURES
        }
        for kind in ("forward", "step")
    }
    write_json(RESULTS / "torch.json", {**about, "geometric_mean": means, "layers": layers})
    note = "float32. 1.00x is the native layer in the better of its memory formats"
    write_tables("torch", tables, PACKAGES, note)


if __name__ == "__main__":
    main()
