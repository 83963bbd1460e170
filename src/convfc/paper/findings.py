"""What a run says about the paper's claims: every number and condition of the report's text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convfc.paper.record import Record
from convfc.paper.runs import LEARNING_RATES, Settings

__all__ = ["PAPER", "PAPER_EPOCHS", "adam_example", "command", "cost_findings", "find", "measured"]

PAPER_EPOCHS = 400
PAPER: Mapping[str, Mapping[str, str]] = {
    "sgd": {"output_difference_mean": "1.85e-6", "weight_difference": "2.12e-7"},
    "adam": {"output_difference_mean": "0.536", "weight_difference": "0.0742"},
}
"""The numbers of Section 5 as printed; the authors' program takes the mean over the images."""

_ADAM_DECAY, _ADAM_EPSILON = 0.999, 1e-7  # Keras's defaults, which the experiment uses


def find(record: Record) -> dict[str, Any]:
    """Compute what the report says about a run.

    Parameters
    ----------
    record : Record
        The run.

    Returns
    -------
    dict
        For the template: plain numbers, strings, lists and dicts; None where nothing was measured.
    """
    optimizers = record.optimizers()
    distances = {
        optimizer: float(record.results[optimizer]["fc"]["weight_difference"])
        for optimizer in optimizers
    }
    both = "sgd" in distances and "adam" in distances
    return {
        "settings": dict(record.settings),
        "command": command(record.settings),
        "results": dict(record.results),
        "dtype": record.dtype,
        "epochs": int(record.results["epochs"]),
        "optimizers": optimizers,
        "paper": PAPER,
        "paper_epochs": PAPER_EPOCHS,
        "roundings": {
            optimizer: distance / _one_rounding(record, optimizer)
            for optimizer, distance in distances.items()
        },
        "adam_over_sgd": _ratio(distances["adam"], distances["sgd"]) if both else None,
        "control": _control(record, optimizers),
        "companion": _companion(record),
        "losses": {optimizer: _losses(record, optimizer) for optimizer in optimizers},
        "dead": record.results.get("dead_outputs") or {},
        "adam_example": adam_example(),
        "cost": cost_findings(record.cost) if record.cost else None,
    }


def command(settings: Mapping[str, Any]) -> str:
    """Return the command line that repeats a run with these settings."""
    usual = Settings()
    words = ["convfc", "reproduce"]
    if settings["epochs"] == PAPER_EPOCHS:
        words.append("--paper")
    elif settings["epochs"] != usual.epochs:
        words.append(f"--epochs {settings['epochs']}")
    if set(settings["optimizers"]) != set(usual.optimizers):
        words += [f"--optimizer {optimizer}" for optimizer in settings["optimizers"]]
    words += [
        f"--{key} {settings[key]}"
        for key in ("backend", "dtype", "data", "seed")
        if settings[key] != getattr(usual, key)
    ]
    could = settings["dtype"] == usual.dtype and "adam" in settings["optimizers"]
    if could and not settings["float64_epochs"]:
        words.append("--no-companion")
    return " ".join(words)


def _one_rounding(record: Record, optimizer: str) -> float:
    """Return the F-norm of one rounding of every weight of the first layer: ``u ||W||_F``."""
    weights = record.networks[record.dtype, optimizer, "cnn"].first_layer[-1]
    unit = float(np.finfo(weights.dtype).eps) / 2
    return unit * float(np.linalg.norm(weights.astype(np.float64)))


def _control(record: Record, optimizers: Sequence[str]) -> dict[str, Any] | None:
    """Compare the control with the FC network, over all epochs and in all results."""
    largest = {}
    for optimizer in optimizers:
        distance = record.weight_difference(record.dtype, optimizer, "control", "fc")
        numbers = record.results[optimizer].get("control")
        if distance is not None and numbers is not None:
            largest[optimizer] = max(float(distance.max()), *map(float, numbers.values()))
    if not largest:
        return None
    return {
        "largest": largest,
        "exact": not any(largest.values()),
        "unequal": [optimizer for optimizer, value in largest.items() if value],
    }


def _companion(record: Record) -> dict[str, Any] | None:
    """Compare Adam's gap in float64 with the same gap of the run, after the same epochs."""
    here = record.weight_difference(record.dtype, "adam", "fc", "cnn")
    there = record.weight_difference("float64", "adam", "fc", "cnn")
    if record.dtype == "float64" or here is None or there is None:
        return None
    epochs = min(len(here), len(there)) - 1
    shrinks = _ratio(float(here[epochs]), float(there[epochs]))
    unit_ratio = float(np.finfo(record.dtype).eps / np.finfo("float64").eps)
    return {
        "epochs": epochs,
        "here": float(here[epochs]),
        "there": float(there[epochs]),
        "shrinks": shrinks,
        "unit_ratio": unit_ratio,
        # Rounding shrinks the gap by the unit ratio, a property of the layers by 1: which of these
        # factors is nearer to the measured one?
        "rounding": shrinks is None or shrinks > math.sqrt(unit_ratio),
    }


def _losses(record: Record, optimizer: str) -> dict[str, dict[str, float]]:
    """Return the first and last losses of every network of one optimizer."""
    trained = {
        network: found
        for network in ("cnn", "fc", "control")
        if (found := record.networks.get((record.dtype, optimizer, network)))
    }
    return {
        network: {
            "first_loss": float(found.loss[0]),
            "loss": float(found.loss[-1]),
            "val_loss": float(found.val_loss[-1]),
        }
        for network, found in trained.items()
    }


def adam_example(noise: float = 1e-9) -> list[dict[str, float]]:
    """Compare how SGD and Adam treat two gradients that a rounding tells apart.

    Parameters
    ----------
    noise : float
        The difference of the two gradients.

    Returns
    -------
    list of dict
        For gradients from large to zero: the difference of the two first steps under both
        optimizers. Adam's first step is ``rate * m / (sqrt(v) + epsilon)`` with its bias correction
        (Kingma & Ba 2014, Section 2, last paragraph), which is ``rate * g / (|g| + e)`` with
        ``e = epsilon / sqrt(1 - decay)``.

    Examples
    --------
    >>> [f"{row['gradient']:g}: {row['adam'] / row['sgd']:.2g}" for row in adam_example()]
    ['0.01: 0.0032', '0.0001: 30', '1e-06: 1.8e+04', '0: 3.2e+04']
    """
    epsilon = _ADAM_EPSILON / math.sqrt(1 - _ADAM_DECAY)
    rows = []
    for gradient in (1e-2, 1e-4, 1e-6, 0.0):
        # Steps of g + noise and g, subtracted on paper so that no digits cancel here.
        apart = noise * epsilon / ((gradient + noise + epsilon) * (gradient + epsilon))
        rows.append(
            {
                "gradient": gradient,
                "sgd": LEARNING_RATES["sgd"] * noise,
                "adam": LEARNING_RATES["adam"] * apart,
            }
        )
    return rows


def cost_findings(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Compute ratios of times and peak memory from ``cost.json``.

    Parameters
    ----------
    cost : mapping
        The content of ``cost.json``.

    Returns
    -------
    dict
        ``points``: how many sizes were measured; ``time`` and ``memory``: per pair of methods the
        least, median and most of the ratio over all sizes, None where the pair was never measured;
        ``growth``: the same of the size of M, divided by that of the input.
    """
    points = [point for rows in cost["axes"].values() for point in rows]

    def ratios(kind: str, method: str, other: str) -> dict[str, float] | None:
        pairs = [[measured(point, name, kind) for name in (method, other)] for point in points]
        found = [a / b for a, b in pairs if a and b]
        return _spread(found) if found else None

    growth = [point["patch_matrix_bytes"] / point["input_bytes"] for point in points]
    return {
        "points": len(points),
        "machine": cost.get("machine"),
        "memory_method": cost.get("memory_method"),
        "time": {
            "direct": ratios("seconds", "product", "direct sliding"),
            "native": ratios("seconds", "product", "native"),
            "blocks": ratios("seconds", "product in row blocks", "product"),
        },
        "memory": {
            "native": ratios("peak_bytes", "product", "native"),
            "direct": ratios("peak_bytes", "product", "direct sliding"),
            "blocks": ratios("peak_bytes", "product in row blocks", "product"),
        },
        "growth": _spread(growth) if growth else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def measured(point: Mapping[str, Any], method: str, kind: str) -> float | None:
    """Return one figure of ``cost.json``.

    Parameters
    ----------
    point : mapping
        One size on one of the axes.
    method : str
        The way to compute the layer.
    kind : {"seconds", "peak_bytes"}
        Which of its figures.

    Returns
    -------
    float or None
        None where nothing was measured, or less memory than the output alone takes: then the
        process had kept freed memory and used it again unseen.
    """
    value = (point.get("methods", {}).get(method) or {}).get(kind)
    if value is None or (kind == "peak_bytes" and value < point.get("output_bytes", 0)):
        return None
    return float(value)


def _ratio(a: float, b: float) -> float | None:
    """Return a / b, or None when b is 0 and no ratio exists."""
    return a / b if b else None
