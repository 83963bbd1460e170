"""What a draw costs: 100 samples of the paper's CNN, against the same CNN with native dropout.

The CNN of Section 5 (4 x 4 filters, stride 2, 128 of them, then an FC layer to 784 outputs), 16
images, float32. Native is the CNN with `nn.Dropout` behind its CONV layer. Every way is sampled by
the same `convfc.methods.uncertainty.predict`, takes turns with the native one, and a ratio is the
median of the ratios of the rounds. Each way is also given for the CONV layer alone (behind it the
mean over all positions), since the FC layer behind it does most of the arithmetic. What `predict`
itself adds is measured against a bare loop of forward passes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from harness import (
    CORES,
    console,
    header,
    milliseconds,
    per_round,
    table,
    use_two_cores,
    write_tables,
)

use_two_cores()

import torch  # noqa: E402 (after the number of threads is set)
from torch import nn  # noqa: E402

import convfc  # noqa: E402
from convfc.methods import uncertainty  # noqa: E402
from convfc.paper.cost import take_turns  # noqa: E402

PACKAGES = ("torch", "laplace-torch")
IMAGES, SAMPLES = 16, 100
MARK = 1.5
"""How many times native dropout's time the same dropout on the rows of M may take."""

SAME = "dropout of kernels, per patch"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    SAME: ("dropout", {"rate": 0.5}),
    "dropout of kernels, per image": ("dropout", {"rate": 0.5, "per": "image"}),
    "dropout of taps, per patch": ("dropout", {"rate": 0.5, "drop": "taps"}),
    "Concrete Dropout, per image": ("concrete", {"rate": 0.5}),
    "Gaussian, local": ("gaussian", {}),
    "Gaussian, per call": ("gaussian", {"per": "call"}),
}
HOME = "Gaussian, drawn and taken back to CONV"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="least calls of each way")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    header(f"{arguments.samples} samples of the paper's CNN, on {CORES} threads", *PACKAGES)
    conv = nn.Conv2d(1, 128, 4, stride=2, bias=False)
    behind = [nn.ReLU(), nn.Flatten(), nn.Linear(128 * 13 * 13, 784, bias=False)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    x = torch.rand(IMAGES, 1, 28, 28)
    lines, same = [], {}
    with console.status("") as status:
        for title, rest in (("whole CNN", behind), ("CONV layer", pooled)):
            native = nn.Sequential(conv, nn.Dropout(0.5), *rest)
            calls = {name: sampled(made(name, conv, rest), x, arguments.samples) for name in WAYS}
            calls["a bare loop over the native CNN"] = bare(native, x, arguments.samples)
            calls[HOME] = taken_back(conv, rest, x, arguments.samples)
            for name, call in calls.items():
                status.update(f"{title}: {name}")
                pair = {"native": sampled(native, x, arguments.samples), name: call}
                times = take_turns(pair, rounds=arguments.rounds, seconds=0)
                slower = per_round(times[name], times["native"])
                taken = statistics.median(times["native"])
                lines.append([f"{title}: {name}", milliseconds(taken), f"{slower:.2f}x"])
                if name == SAME:
                    same[title] = slower
    columns = ["way", f"native, ms for {arguments.samples} samples", "convfc to native"]
    marks = [
        [
            f"{title}: {SAME}",
            f"{slower:.2f}x",
            f"at most {MARK}x",
            "yes" if slower <= MARK else "no",
        ]
        for title, slower in same.items()
    ]
    tables = [
        ("Sampling, against native dropout", columns, lines),
        ("Marks", ["mark", "measured", "asked", "met"], marks),
    ]
    for title, names, rows in tables:
        table(title, names, rows)
    if not arguments.no_write:
        note = f"float32; {IMAGES} images of 28 x 28"
        write_tables("uncertainty", tables, PACKAGES, note)


def made(name: str, conv: nn.Module, rest: list[nn.Module]) -> nn.Module:
    """Return the CNN with a random CONV layer, as native dropout makes that layer random only."""
    method, options = WAYS[name]
    model: nn.Module = uncertainty.to_bayesian(
        nn.Sequential(conv, *rest), method, where="0", **options
    )
    return model


def sampled(model: nn.Module, x: torch.Tensor, samples: int) -> Callable[[], Any]:
    """Return the prediction as a call."""
    return lambda: uncertainty.predict(model, x, samples, batch_size=IMAGES)


def bare(model: nn.Module, x: torch.Tensor, samples: int) -> Callable[[], Any]:
    """Return forward passes only, and the mean of their softmax."""

    @torch.no_grad()
    def run() -> torch.Tensor:
        model.train()
        return sum(model(x).softmax(dim=1) for _ in range(samples)) / samples  # type: ignore[return-value]

    return run


def taken_back(
    conv: nn.Module, rest: list[nn.Module], x: torch.Tensor, samples: int
) -> Callable[[], Any]:
    """Return a loop over networks that are drawn and taken back to native CONV layers."""
    bayes = uncertainty.to_bayesian(nn.Sequential(conv, *rest), "gaussian", where="0")

    @torch.no_grad()
    def run() -> torch.Tensor:
        total: Any = 0
        for seed in range(samples):
            drawn = convfc.to_conv(uncertainty.sample(bayes, seed), inplace=True)
            total = total + drawn(x).softmax(dim=1)
        return total / samples

    return run


if __name__ == "__main__":
    main()
