"""What a converted model costs before and after a tool has touched it, beside the CNN itself.

Layers of every kind: forward pass and training step as converted, and with ``product="matrix"``.
Then whole networks: LoRA on every FC child of a resnet18 beside PEFT's own LoRA on its CONV layers,
hooks on all children, dynamic and int8 quantised children. Whatever is compared takes turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
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

import torch  # noqa: E402 (after the number of threads is set)
from torch import Tensor, nn  # noqa: E402

import convfc  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402
from convfc.runs.machine import peak_of  # noqa: E402

PACKAGES = ("torch", "torchvision", "peft")
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "depthwise 3x3": (lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64), (8, 64, 56, 56)),
    "depthwise 7x7": (lambda: nn.Conv2d(96, 96, 7, padding=3, groups=96), (8, 96, 28, 28)),
    "1x1": (lambda: nn.Conv2d(256, 64, 1), (8, 256, 28, 28)),
    "tiny, 1x8x8": (lambda: nn.Conv2d(1, 8, 3), (1, 1, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(64, 64, 5, padding=2), (8, 64, 400)),
    "conv3d": (lambda: nn.Conv3d(16, 16, 3, padding=1), (2, 16, 16, 28, 28)),
    "transposed": (lambda: nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), (8, 64, 28, 28)),
}
KINDS = {"forward": "forward pass", "step": "training step"}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="about so long per table row")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    warnings.simplefilter("ignore")
    header(f"Converted layers before and after a tool, on {CORES} threads", *PACKAGES)
    turns = partial(take_turns, rounds=5, seconds=arguments.seconds)
    with console.status("layers"):
        tables = [layers_table(turns)]
    with console.status("tools"):
        tables.append(tools_table(turns))
    for title, columns, lines in tables:
        table(title, columns, lines)
    if not arguments.no_write:
        write_tables("tools", tables, PACKAGES, "float32; medians of calls side by side")


def forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Run without recording gradients."""
    with torch.no_grad():
        y: Tensor = layer(x)
    return y


def step(layer: nn.Module, x: Tensor) -> None:
    """Run a training step without the optimizer's."""
    layer.zero_grad()
    layer(x).square().mean().backward()


def layers_table(turns: Callable[..., Any]) -> tuple[str, Any, Any]:
    """Return the times of layers to the native layer's."""
    lines = []
    for name, (make, shape) in LAYERS.items():
        torch.manual_seed(0)
        native, x = make(), torch.randn(shape, requires_grad=True)
        ways = {
            "native": native,
            "converted": convfc.to_fc(native),
            "matrix": convfc.to_fc(native, product="matrix"),
        }
        if not torch.equal(forward(ways["converted"], x), forward(native, x)):
            raise SystemExit(f"{name}: the converted layer has other bits")
        line = [name]
        for run in (forward, step):
            times = turns({way: partial(run, layer, x) for way, layer in ways.items()})
            line.append(milliseconds(statistics.median(times["native"])))
            line += [
                f"{per_round(times[way], times['native']):.2f}x" for way in ("converted", "matrix")
            ]
        lines.append(line)
    columns = ["layer"]
    for title in KINDS.values():
        columns += [f"{title}, ms", "converted", "M K"]
    return "Layers: time to the native layer's", columns, lines


def tools_table(turns: Callable[..., Any]) -> tuple[str, Any, Any]:
    """Return the times of a resnet18 with a tool on it, to the CNN's or to the tool's own."""
    import peft
    import torchvision

    torch.manual_seed(0)
    lines = []
    for size in (64, 224):
        cnn = torchvision.models.resnet18(num_classes=10)
        x = torch.randn(4, 3, size, size)
        convs = [name for name, part in cnn.named_modules() if isinstance(part, nn.Conv2d)]
        fc = convfc.to_fc(cnn)

        def tuned(model: nn.Module, names: list[str]) -> Any:
            config = peft.LoraConfig(r=8, target_modules=names)
            return peft.get_peft_model(copy.deepcopy(model), config)

        own = tuned(cnn, convs)
        ours = tuned(fc, [f"{name}.fc" for name in convs])
        lines.append(row(f"LoRA, rank 8, {size}x{size}", own, ours, step, x, turns))
        hooked = copy.deepcopy(fc)
        for name in convs:
            hooked.get_submodule(f"{name}.fc").register_forward_hook(lambda m, args, y: None)
        lines.append(row(f"hooks on all, {size}x{size}", cnn, hooked, step, x, turns))
        lines.append(row(f"untouched, {size}x{size}", cnn, fc, step, x, turns))
        dynamic = torch.ao.quantization.quantize_dynamic(fc.eval(), {nn.Linear}, torch.qint8)
        lines.append(row(f"dynamic int8, {size}x{size}", cnn.eval(), dynamic, forward, x, turns))
    columns = ["resnet18, 4 images", "CNN, ms", "converted", "CNN, MiB", "converted, MiB"]
    return "Tools: time and peak memory of a training step, or forward pass", columns, lines


def row(
    name: str,
    before: nn.Module,
    after: nn.Module,
    run: Callable[..., Any],
    x: Tensor,
    turns: Callable[..., Any],
) -> list[str]:
    """Return one line: what the CNN takes, and how many times that the converted model takes."""
    calls = {"before": partial(run, before, x), "after": partial(run, after, x)}
    times = turns(calls)
    peaks = [peak_of(call)[1] for call in calls.values()]
    return [
        name,
        milliseconds(statistics.median(times["before"])),
        f"{per_round(times['after'], times['before']):.2f}x",
        *map(mebibytes, peaks),
    ]


if __name__ == "__main__":
    main()
