"""PyTorch's own test samples of its convolutions, as CONV layers and inputs.

Importing ``torch.testing._internal`` changes PyTorch for the whole process (it freezes the flags of
``torch.backends``, for one). So this file, run as a program, does that in a process of its own and
writes what it finds; tests read the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

OPERATORS = tuple(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))
# One of each kind in which PyTorch's database offers samples of a convolution on CPU.
DTYPES = (torch.float64, torch.bfloat16, torch.complex64, torch.int64)


class Sample(NamedTuple):
    """A layer, an input for it, and where they come from."""

    layer: nn.Module
    x: torch.Tensor
    name: str


def layer_of(operator: str, sample: dict[str, Any]) -> nn.Module:
    """Return the CONV layer that computes this sample of a functional convolution."""
    weight, bias, options = sample["weight"], sample["bias"], sample["options"]
    transposed = "transpose" in operator
    groups = options.get("groups", 1)
    first, second, *kernel = weight.shape
    channels, filters = (first, second * groups) if transposed else (second * groups, first)
    cls = getattr(nn, operator.replace("conv_transpose", "ConvTranspose").replace("conv", "Conv"))
    layer = cls(channels, filters, kernel, bias=bias is not None, **options)
    # Not `.to(dtype)`: that refuses integers, on which the native layer does run.
    trains = weight.dtype.is_floating_point or weight.dtype.is_complex
    layer.weight = nn.Parameter(weight.clone(), requires_grad=trains)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=trains)
    return layer


def samples_of(found: dict[str, Any], operator: str, dtype: torch.dtype) -> list[Sample]:
    """Return samples as layers; the batched ones as zero batches too."""
    samples = []
    for sample in found[operator][str(dtype)]:
        layer, x = layer_of(operator, sample), sample["x"]
        name = f"{operator}({tuple(x.shape)}, {tuple(layer.weight.shape)}, {sample['options']})"
        samples.append(Sample(layer, x, name))
        if x.dim() == layer.weight.dim():
            samples.append(Sample(layer, x[:0], f"empty batch of {name}"))
    return samples


def collect(path: Path) -> dict[str, Any]:
    """Write the database's samples to a file, in a process of its own, and return them."""
    # PyTorch's test code looks for a compiler and for GPUs, and says so on stderr.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCH_LOGS": "-all"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, __file__, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def _all_samples() -> dict[str, dict[str, list[dict[str, Any]]]]:
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for op in op_db:
        name = op.name.removeprefix("nn.functional.")
        if not name.startswith("conv"):
            continue
        by_dtype = found.setdefault(name, {})
        for dtype in DTYPES:
            torch.manual_seed(0)
            by_dtype[str(dtype)] = [
                {"x": s.input, "weight": s.args[0], "bias": s.args[1], "options": dict(s.kwargs)}
                for s in op.sample_inputs("cpu", dtype, requires_grad=False)
            ]
    return found


if __name__ == "__main__":
    torch.save(_all_samples(), sys.argv[1])
