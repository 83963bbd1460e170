"""CONV nodes as FC layers in onnxruntime: single layers in several ways, and whole models.

Layers: what ``convfc.to_fc`` makes (slices of one axis after the other), against onnxruntime's own
Conv and three other ways to write the product: one slice for each tap, one Gather with the index
table, and a sum over taps that never holds M. All take turns, call by call. Models: torchvision's,
exported by PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
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

import numpy as np  # noqa: E402 (after the number of threads)
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import convfc  # noqa: E402
from convfc import ConvGeometry, index_map  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402
from convfc.runs.machine import peak_of  # noqa: E402

PACKAGES = ("onnx", "onnxruntime", "onnx-ir", "torchvision")
END = np.iinfo(np.int64).max
# Batch, channels, filters, size, kernel, stride, padding, groups.
LAYERS = {
    "8x64x56x56, 64x3x3": (8, 64, 64, (56, 56), 3, 1, 1, 1),
    "8x3x224x224, 64x7x7 s2": (8, 3, 64, (224, 224), 7, 2, 3, 1),
    "8x512x7x7, 512x3x3": (8, 512, 512, (7, 7), 3, 1, 1, 1),
    "8x64x56x56, 256x1x1": (8, 64, 256, (56, 56), 1, 1, 0, 1),
    "8x64x1000, 64x9": (8, 64, 64, (1000,), 9, 1, 4, 1),
    "8x64x56x56, 64x3x3, depthwise": (8, 64, 64, (56, 56), 3, 1, 1, 64),
    "8x64x56x56, 64x3x3, 8 groups": (8, 64, 64, (56, 56), 3, 1, 1, 8),
}
MODELS = ("resnet18", "resnet50", "mobilenet_v3_small")


class Graph:
    """A model of one layer, written node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.held: list[Any] = []

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node; arrays among its inputs become initializers."""
        names = [given if isinstance(given, str) else self.array(given) for given in inputs]
        self.nodes.append(helper.make_node(kind, names, [f"v{len(self.nodes)}"], **attributes))
        return f"v{len(self.nodes) - 1}"

    def array(self, array: Any) -> str:
        """Add an initializer."""
        self.held.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.held)}"))
        return self.held[-1].name

    def model(self, x: Sequence[int], output: str) -> onnx.ModelProto:
        """Return the model."""
        made = helper.make_tensor_value_info("x", TensorProto.FLOAT, x)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "layer", [made], [y], self.held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer(way: str, sizes: tuple[Any, ...]) -> onnx.ModelProto:
    """Return a layer in a way."""
    batch, c, f, size, kernel, stride, padding, groups = sizes
    n, g = len(size), Graph()
    w = np.random.default_rng(0).standard_normal((f, c // groups, *[kernel] * n), np.float32)
    if way in ("native", "convfc"):
        options = {"strides": [stride] * n, "pads": [padding] * 2 * n, "group": groups}
        native = g.model((batch, c, *size), g.op("Conv", "x", w, **options))
        return native if way == "native" else convfc.to_fc(native)
    geometry = ConvGeometry(
        c, f, (kernel,) * n, stride=stride, padding=((padding, padding),) * n, groups=groups
    )
    out = geometry.output_size(size)
    per_group = (batch, groups, -1, int(np.prod(out)))
    x: str = g.op("Pad", "x", np.array([0, 0, *[padding] * n] * 2))
    k = w.reshape(groups, f // groups, -1)
    if way == "one Gather":
        one = ConvGeometry(1, 1, (kernel,) * n, stride=stride)
        taps = index_map(one, tuple(s + 2 * padding for s in size)).flat().T
        x = g.op("Reshape", x, np.array([batch, c, -1]))
        m = g.op("Reshape", g.op("Gather", x, taps.ravel(), axis=2), np.array(per_group))
        y = g.op("MatMul", k, m)
        return g.model((batch, c, *size), g.op("Reshape", y, np.array([batch, f, *out])))
    slices, y = [], ""
    for tap in itertools.product(range(kernel), repeat=n):
        stops = [t - kernel + 1 or END for t in tap]
        cut = (np.array(tap), np.array(stops), np.arange(2, 2 + n), np.array([stride] * n))
        slices.append(g.op("Slice", x, *cut))
        if way == "sum over taps":
            part = np.ascontiguousarray(w[(..., *tap)]).reshape(groups, f // groups, -1)
            product = g.op("MatMul", part, g.op("Reshape", slices[-1], np.array(per_group)))
            y = g.op("Add", y, product) if y else product
    if way == "slice per tap":
        alone = np.array([batch, c, 1, *out])
        x = g.op("Concat", *(g.op("Reshape", one, alone) for one in slices), axis=2)
        y = g.op("MatMul", k, g.op("Reshape", x, np.array(per_group)))
    return g.model((batch, c, *size), g.op("Reshape", y, np.array([batch, f, *out])))


WAYS = ("convfc", "slice per tap", "one Gather", "sum over taps")


def running(model: onnx.ModelProto) -> Any:
    """Return an onnxruntime session on our cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def layer_row(name: str, rounds: int, seconds: float) -> tuple[list[str], list[str]]:
    """Measure one layer; return times and peak memory as rows."""
    sizes = LAYERS[name]
    x = np.random.default_rng(1).standard_normal((sizes[0], sizes[1], *sizes[3]), np.float32)
    turns = {
        way: partial(running(layer(way, sizes)).run, None, {"x": x}) for way in ("native", *WAYS)
    }
    expected = turns["native"]()[0]
    for way, call in turns.items():
        largest = np.abs(call()[0] - expected).max() / np.abs(expected).max()
        if not largest < 1e-5:
            raise SystemExit(f"{way} is another function: {name}, {largest}")
    peaks = {way: peak_of(call)[1] for way, call in turns.items()}
    times = take_turns(turns, rounds=rounds, seconds=seconds)
    native = times["native"]
    shown = [name, milliseconds(statistics.median(native))]
    shown += [f"{per_round(times[way], native):.2f}x" for way in WAYS]
    return shown, [name, *(mebibytes(peaks[way]) for way in turns)]


def model_row(name: str, rounds: int, seconds: float) -> list[str]:
    """Measure one model: convert, verify, run."""
    import torch
    import torchvision

    torch.manual_seed(0)
    example = torch.randn(1, 3, 224, 224)
    net = getattr(torchvision.models, name)().eval()
    model = torch.onnx.export(net, (example,), dynamo=True, verbose=False).model_proto
    x = {model.graph.input[0].name: example.numpy()}
    began = time.perf_counter()
    fc = convfc.to_fc(model)
    converted = time.perf_counter()
    certificate = convfc.verify(model, fc, x)
    verified = time.perf_counter()
    if not certificate.holds:
        raise SystemExit(f"{name}: {certificate}")
    turns = {
        "native": partial(running(model).run, None, x),
        "convfc": partial(running(fc).run, None, x),
    }
    for call in turns.values():
        call()
    times = take_turns(turns, rounds=rounds, seconds=seconds)
    native = statistics.median(times["native"])
    return [
        name,
        milliseconds(native),
        f"{per_round(times['convfc'], times['native']):.2f}x",
        f"{fc.ByteSize() / model.ByteSize():.3f}x",
        milliseconds(converted - began),
        milliseconds(verified - converted),
        f"{(verified - began) / native:.0f}",
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=4.0, help="about so long per table row")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    header(f"CONV nodes as FC layers in onnxruntime, on {CORES} threads", *PACKAGES)
    rows = []
    for name in LAYERS:
        with console.status(name):
            rows.append(layer_row(name, arguments.rounds, arguments.seconds))
    models = []
    for name in MODELS:
        with console.status(name):
            models.append(model_row(name, arguments.rounds, arguments.seconds))
    costs = ["convert, ms", "verify, ms", "both, in forward passes"]
    tables = [
        ("Layers: time to that of Conv", ["layer", "Conv, ms", *WAYS], [row for row, _ in rows]),
        ("Layers: peak memory of a call, MiB", ["layer", "Conv", *WAYS], [row for _, row in rows]),
        (
            "Models of torchvision, batch 1: time to the native model's, and what it costs",
            ["model", "native, ms", "FC", "file size", *costs],
            models,
        ),
    ]
    for title, names, lines in tables:
        table(title, names, lines)
    if not arguments.no_write:
        write_tables("onnx", tables, PACKAGES, "float32; medians of calls side by side")


if __name__ == "__main__":
    main()
