"""What a run says about the paper's claims: every number and condition of the report's text."""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.errors import RunError
from convfc.extras import needing
from convfc.paper.experiment import NETWORK, PAPER_EPOCHS
from convfc.paper.optimizers import EPSILON, LEARNING_RATES
from convfc.runs.folder import FinishedRun, RunFolder
from convfc.runs.reporting import number
from convfc.runs.sealed import readable

with needing():
    from rich.table import Table


@dataclass(frozen=True)
class Trained:
    """One trained network of a run, with its losses after each epoch."""

    loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    first_layer: NDArray[Any]  # (epochs + 1, 16, 128): weights before training and after each epoch

    def one_rounding(self, epoch: int) -> float:
        """Return the F-norm of one rounding of every weight of the first layer: ``u ||W||_F``."""
        weights = self.first_layer[epoch]
        unit = float(np.finfo(weights.dtype).eps) / 2
        return unit * float(np.linalg.norm(weights.astype(np.float64)))


@dataclass(frozen=True)
class Record:
    """A run's settings, results and costs, and its networks by dtype, optimizer and name."""

    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    networks: Mapping[tuple[str, str, str], Trained]
    cost: Mapping[str, Any] | None

    @property
    def dtype(self) -> str:
        """The number format of the run itself (not of its float64 companion)."""
        return str(self.results["dtype"])

    def optimizers(self, dtype: str | None = None) -> tuple[str, ...]:
        """Return the optimizers with a trained CNN and FC network in ``dtype``, SGD first."""
        dtype = dtype or self.dtype
        pairs = {o: {(dtype, o, "cnn"), (dtype, o, "fc")} for o in LEARNING_RATES}
        return tuple(o for o, pair in pairs.items() if pair <= self.networks.keys())

    def weight_difference(
        self, dtype: str, optimizer: str, network: str, other: str
    ) -> NDArray[np.float64] | None:
        """Return ``||W_a - W_b||_F`` of two first layers after n epochs; None if one is missing."""
        pair = [self.networks.get((dtype, optimizer, name)) for name in (network, other)]
        if None in pair:
            return None
        a, b = (trained.first_layer.astype(np.float64) for trained in pair if trained)
        return np.asarray(np.linalg.norm(a - b, axis=(1, 2)))


def read_record(folder: pathlib.Path) -> Record:
    """Read a finished run of the paper's experiment."""
    run = RunFolder(pathlib.Path(folder)).read()
    with readable(run.folder.results_path, run.remedy):
        return record_of(run)


def record_of(run: FinishedRun) -> Record:
    """Return the record of a finished run; KeyError or ValueError if its results are no such."""
    settings, networks = run.results["settings"], {}
    if settings["study"] != "paper":
        raise RunError(
            f"a run of the study {settings['study']}",
            where=str(run.folder.path),
            expected="one of the paper's experiment",
            remedy="give another run, or start one with convfc reproduce",
        )
    for match in filter(None, map(NETWORK.fullmatch, run.results["seconds"])):
        dtype, optimizer, network = match.groups()
        networks[dtype, optimizer, network] = _read_network(run, match[0])
    record = Record(settings, run.results, networks, run.results.get("cost"))
    if not record.optimizers():
        raise ValueError("it names no pair of networks that can be compared")
    return record


def _read_network(run: FinishedRun, name: str) -> Trained:
    result, part = run.load(name), run.folder.part(name)
    with readable(part.path, part.remedy):
        first_layer = result.arrays["first_layer"]
        loss, val_loss = (np.array(result.numbers[kind], float) for kind in ("loss", "val_loss"))
        if (
            first_layer.ndim != 3
            or first_layer.dtype.kind != "f"
            or not len(loss) == len(val_loss) == len(first_layer) - 1
        ):
            raise ValueError("its losses and its first layers do not belong together")
    return Trained(loss, val_loss, first_layer)


PAPER: Mapping[str, Mapping[str, str]] = {
    "sgd": {"output_difference_mean": "1.85e-6", "weight_difference": "2.12e-7"},
    "adam": {"output_difference_mean": "0.536", "weight_difference": "0.0742"},
}
"""The numbers of Section 5 as printed; the authors' program takes the mean over the images."""

_ADAM_DECAY = 0.999  # Keras's, which the experiment uses


def find(record: Record) -> dict[str, Any]:
    """Return what the report says about a run; None where nothing was measured."""
    optimizers = record.optimizers()
    distances = {
        optimizer: float(record.results[optimizer]["fc"]["weight_difference"])
        for optimizer in optimizers
    }
    both = "adam" in distances and distances.get("sgd")
    return {
        "dtype": record.dtype,
        "epochs": int(record.results["epochs"]),
        "optimizers": optimizers,
        "paper": PAPER,
        "paper_epochs": PAPER_EPOCHS,
        "roundings": {
            optimizer: distance
            / record.networks[record.dtype, optimizer, "cnn"].one_rounding(epoch=-1)
            for optimizer, distance in distances.items()
        },
        "adam_over_sgd": distances["adam"] / distances["sgd"] if both else None,
        "control": _control(record, optimizers),
        "companion": _companion(record),
        "losses": {
            optimizer: {
                network: {
                    "first_loss": float(found.loss[0]),
                    "loss": float(found.loss[-1]),
                    "val_loss": float(found.val_loss[-1]),
                }
                for network in ("cnn", "fc", "control")
                if (found := record.networks.get((record.dtype, optimizer, network)))
            }
            for optimizer in optimizers
        },
        "dead": record.results.get("dead_outputs") or {},
        "adam_example": adam_example(),
        "cost": cost_findings(record.cost) if record.cost else None,
    }


def _control(record: Record, optimizers: Sequence[str]) -> dict[str, Any] | None:
    """Compare the control with the FC network, over all epochs and in all results."""
    largest = {}
    for optimizer in optimizers:
        distance = record.weight_difference(record.dtype, optimizer, "control", "fc")
        numbers = record.results[optimizer].get("control")
        if distance is not None and numbers is not None:
            largest[optimizer] = max(float(distance.max()), *map(float, numbers.values()))
    unequal = [optimizer for optimizer, value in largest.items() if value]
    return {"largest": largest, "exact": not unequal, "unequal": unequal} if largest else None


def _companion(record: Record) -> dict[str, Any] | None:
    """Compare Adam's gap in float64 with the same gap of the run, after the same epochs."""
    here = record.weight_difference(record.dtype, "adam", "fc", "cnn")
    there = record.weight_difference("float64", "adam", "fc", "cnn")
    if record.dtype == "float64" or here is None or there is None:
        return None
    epochs = min(len(here), len(there)) - 1
    gaps = float(here[epochs]), float(there[epochs])
    shrinks = gaps[0] / gaps[1] if gaps[1] else None
    unit_ratio = float(np.finfo(record.dtype).eps / np.finfo("float64").eps)
    return {
        "epochs": epochs,
        "here": gaps[0],
        "there": gaps[1],
        "shrinks": shrinks,
        "unit_ratio": unit_ratio,
        # Rounding shrinks the gap by the unit ratio, a property of the layers by 1: which of these
        # factors is nearer to the measured one?
        "rounding": shrinks is None or shrinks > math.sqrt(unit_ratio),
    }


def adam_example() -> list[dict[str, float]]:
    """Compare how the first steps of SGD and Adam treat two gradients that a rounding tells apart.

    >>> [f"{row['gradient']:g}: {row['adam'] / row['sgd']:.2g}" for row in adam_example()]
    ['0.01: 0.0032', '0.0001: 30', '1e-06: 1.8e+04', '0: 3.2e+04']
    """
    # With its bias correction Adam's first step is rate * g / (|g| + epsilon / sqrt(1 - decay)):
    # Kingma & Ba 2014, Section 2, last paragraph.
    epsilon = EPSILON / math.sqrt(1 - _ADAM_DECAY)
    noise, gradients = 1e-9, (1e-2, 1e-4, 1e-6, 0.0)
    # Steps of g + noise and g, subtracted on paper so that no digits cancel here.
    apart = [noise * epsilon / ((g + noise + epsilon) * (g + epsilon)) for g in gradients]
    sgd, adam = LEARNING_RATES["sgd"], LEARNING_RATES["adam"]
    return [
        {"gradient": gradient, "sgd": sgd * noise, "adam": adam * step}
        for gradient, step in zip(gradients, apart, strict=True)
    ]


def cost_findings(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return ratios of times and peak memory over all sizes; None where nothing was measured."""
    points = [point for rows in cost["axes"].values() for point in rows]
    pairs = {
        "direct": ("product", "direct sliding"),
        "native": ("product", "native"),
        "blocks": ("product in row blocks", "product"),
    }

    def ratios(kind: str) -> dict[str, dict[str, float] | None]:
        found = {}
        for name, pair in pairs.items():
            two = ([measured(point, method, kind) for method in pair] for point in points)
            found[name] = _spread([a / b for a, b in two if a and b])
        return found

    return {
        "points": len(points),
        "machine": cost.get("machine"),
        "memory_method": cost.get("memory_method"),
        "time": ratios("seconds"),
        "memory": ratios("peak_bytes"),
        "growth": _spread([p["patch_matrix_bytes"] / p["input_bytes"] for p in points]),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def measured(point: Mapping[str, Any], method: str, kind: str) -> float | None:
    """Return the seconds or peak bytes of a way to compute the layer, at one size, or None."""
    # Less memory than the output takes: the process had kept freed memory and used it again.
    value = (point.get("methods", {}).get(method) or {}).get(kind)
    if value is None or (kind == "peak_bytes" and value < point.get("output_bytes", 0)):
        return None
    return float(value)


_TITLES = {
    "output_difference_mean": "outputs of layer 1, mean ‖V − U‖",
    "output_difference_printed": "the same as printed, ‖V − U‖ / 1000",
    "weight_difference": "weights of layer 1, ‖W − W′‖",
    "max_loss_difference": "largest difference of a loss",
}


def summary_table(results: Mapping[str, Any]) -> Table:
    """Return the differences of a finished run beside the paper's, for the terminal."""
    table = Table(title=f"Differences after {results['epochs']} epochs, {results['dtype']}")
    table.add_column("")
    for title in (f"paper, {PAPER_EPOCHS} epochs", "FC − CNN", "control − FC"):
        table.add_column(title, justify="right")
    for optimizer in (name for name in LEARNING_RATES if name in results):
        table.add_section()
        for key, title in _TITLES.items():
            found = (number(results[optimizer][n][key]) for n in ("fc", "control"))
            paper = PAPER.get(optimizer, {}).get(key, "–")
            table.add_row(f"{optimizer}: {title}", paper, *found)
    return table
