"""The table of the study, and what its differences are worth with so few images.

A number of a method is compared with that of the network without it, on the same images. What the
choice of these images may do to the difference is estimated by the bootstrap (Efron 1979): images
are drawn again with replacement, the same for both networks, and the middle 95 % of the differences
are kept. It says nothing of what another training would do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.methods import uncertainty
from convfc.studies.folder import Array

__all__ = ["DRAWS", "MEASURES", "score_table"]

DRAWS = 400
"""Bootstrap samples."""

MEASURES: Mapping[str, tuple[str, int]] = {
    "accuracy": ("accuracy", 1),
    "nll": ("NLL", -1),
    "ece": ("ECE", -1),
    "brier": ("Brier", -1),
    "auroc_entropy": ("AUROC letters, entropy", 1),
    "auroc_mutual": ("AUROC letters, mutual information", 1),
    "moved_accuracy": ("accuracy, moved digits", 1),
    "moved_nll": ("NLL, moved digits", -1),
    "moved_ece": ("ECE, moved digits", -1),
}
"""Title, and whether more (1) or less (-1) is better."""

_ON_DIGITS: Mapping[str, Callable[[Any, Any], float]] = {
    "accuracy": uncertainty.accuracy,
    "nll": uncertainty.negative_log_likelihood,
    "ece": lambda p, y: uncertainty.calibration(p, y).ece,
    "brier": uncertainty.brier_score,
}


def score_table(
    predictions: Mapping[str, Mapping[str, Array]],
    labels: Mapping[str, Array],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, dict[str, dict[str, float] | None]]:
    """Return every measure of every method, with its difference from the network without a method.

    Parameters
    ----------
    predictions : mapping
        By method, ``plain`` among them: arrays ``test.mean`` (n, 10), ``test.entropy`` (n,),
        ``test.mutual``, and the same for ``letters`` and ``moved``.
    labels : mapping
        ``test`` and ``moved``.
    seed, draws : int
        Of the bootstrap.

    Returns
    -------
    dict
        By method and measure: ``value``, ``difference``, ``low`` and ``high``; None where there is
        no such number. The network without a method has no mutual information: there a method is
        compared with its predictive entropy, the only uncertainty that it has.
    """
    random = np.random.default_rng([seed, 3])
    sizes = [len(predictions["plain"][f"{name}.mean"]) for name in ("test", "letters", "moved")]
    whole = tuple(np.arange(size) for size in sizes)
    choices = [tuple(random.integers(0, size, size) for size in sizes) for _ in range(draws)]
    table: dict[str, dict[str, dict[str, float] | None]] = {}
    for measure in MEASURES:
        reference = _resampled("plain", measure, predictions, labels, [whole, *choices])
        for method in predictions:
            row = table.setdefault(method, {})
            if method == "plain":
                none = measure == "auroc_mutual"
                row[measure] = None if none else {"value": float(reference[0])}
                continue
            found = _resampled(method, measure, predictions, labels, [whole, *choices])
            low, high = np.quantile((found - reference)[1:], [0.025, 0.975])
            row[measure] = {
                "value": float(found[0]),
                "difference": float(found[0] - reference[0]),
                "low": float(low),
                "high": float(high),
            }
    return table


def _resampled(
    method: str,
    measure: str,
    predictions: Mapping[str, Mapping[str, Array]],
    labels: Mapping[str, Array],
    choices: list[Any],
) -> NDArray[np.float64]:
    """Return one measure of one method on several choices of images."""
    found, kind = predictions[method], measure.removeprefix("moved_")
    place = 2 if measure.startswith("moved_") else 0
    name = ("test", "letters", "moved")[place]
    if kind in _ON_DIGITS:
        p, y = found[f"{name}.mean"], labels[name]
        return np.array([_ON_DIGITS[kind](p[c[place]], y[c[place]]) for c in choices])
    score = kind.removeprefix("auroc_")
    if method == "plain":
        score = "entropy"
    inside, outside = found[f"test.{score}"], found[f"letters.{score}"]
    auroc = uncertainty.out_of_distribution_auroc
    return np.array([auroc(inside[c[0]], outside[c[1]]) for c in choices])
