"""The network of the study, the methods, and the measures by which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("study"):
    from torch import Tensor, nn

from convfc.methods import uncertainty
from convfc.runs.sealed import Array
from convfc.runs.study import seed_of
from convfc.studies.torch_training import RATE, Loss, StudySettings, cross_entropy, lenet

ANGLES = tuple(range(0, 181, 15))
"""Degrees by which the 1 of Gal's figure is turned."""


@dataclass(frozen=True)
class UncertaintySettings(StudySettings):
    """What decides the numbers of this study; ``samples`` are the draws of a prediction.

    ``seeds`` is how often all is done, with other first weights, orders of images and draws.
    """

    study: ClassVar[str] = "uncertainty"
    later: ClassVar[Mapping[str, Any]] = {"seeds": 1}

    epochs: int = 15
    samples: int = 100
    seeds: int = 1

    @property
    def letters(self) -> int:
        """Letters to tell from digits: about a third as many as there are digits in the test."""
        return max(16, 320 * self.images // 3000)

    @property
    def moved(self) -> int:
        """Digits that are turned and shifted."""
        return max(10, self.images // 10)


@dataclass(frozen=True)
class Method:
    """A method, as the study uses it."""

    title: str
    source: str
    name: str = ""  # that of `to_bayesian`, empty where it is not used
    options: Mapping[str, Any] = field(default_factory=dict)  # chosen on validation, of seed 0
    divergence: bool = False  # whether `kl` is in the loss

    @property
    def settings(self) -> str:
        """The options in words."""
        return ", ".join(f"{key} {value}".replace("_", " ") for key, value in self.options.items())


_GAL = "Gal 2016, *Uncertainty in Deep Learning*, Section 3.4"
METHODS: Mapping[str, Method] = {
    "plain": Method("no method", "the network itself, evaluated once"),
    "kernels": Method("MC dropout (kernels)", _GAL, "dropout", {"rate": 0.1, "drop": "kernels"}),
    "taps": Method("MC dropout (taps)", _GAL, "dropout", {"rate": 0.1, "drop": "taps"}),
    "concrete": Method(
        "Concrete Dropout",
        "Gal, Hron & Kendall 2017, [arXiv:1705.07832](https://arxiv.org/abs/1705.07832)",
        "concrete",
        {"rate": 0.1},
        divergence=True,
    ),
    "gaussian": Method(
        "Bayes by Backprop",
        "Blundell et al. 2015, [arXiv:1505.05424](https://arxiv.org/abs/1505.05424), outputs drawn "
        "as by Kingma et al. 2015, [arXiv:1506.02557](https://arxiv.org/abs/1506.02557)",
        "gaussian",
        {"prior": 1.0, "initial_std": 0.02},
        divergence=True,
    ),
    "laplace": Method(
        "Laplace (Kronecker)",
        "Ritter et al. 2018; Immer et al. 2021, "
        "[arXiv:2008.08217](https://arxiv.org/abs/2008.08217); laplace-torch (Daxberger et al. "
        "2021, [arXiv:2106.14806](https://arxiv.org/abs/2106.14806))",
        options={"prior_precision": 300.0},
    ),
}
"""In the order of the tables; Laplace needs no training of its own."""


def untrained(key: str, settings: UncertaintySettings, number: int = 0) -> nn.Module:
    """Return the network of a method before its training; all of a seed begin with its weights."""
    more = (number,) if number else ()  # the first of the seeds is that of a run with one
    network, method = lenet(seed_of(settings.seed, "weights", *more)), METHODS[key]
    if not method.name:
        return network
    made: nn.Module = uncertainty.to_bayesian(network, method.name, **method.options)  # type: ignore[arg-type]
    return made


def loss_of(key: str, images: int) -> Loss:
    """Return the loss of a method: cross-entropy, and the divergence per image where it has one."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x, y) + uncertainty.kl(model) / images

    return loss if METHODS[key].divergence else cross_entropy


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters for the optimizer; learned rates take ten times longer steps."""
    # Their logits start at -2.2 and have to go far in few steps.
    logits = [p for name, p in model.named_parameters() if name.endswith("logit")]
    others = [p for name, p in model.named_parameters() if not name.endswith("logit")]
    groups = [{"params": others, "lr": RATE}]
    return [*groups, {"params": logits, "lr": 10 * RATE}] if logits else groups


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

    A cell is None where there is no such number: the network without a method has no mutual
    information, so that of a method is compared with its entropy. ``low`` and ``high`` are the
    middle 95 % of the differences under the bootstrap (Efron 1979), the images drawn again with
    replacement, the same for both networks. They say nothing of what another training would do.
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
