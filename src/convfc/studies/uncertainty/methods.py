"""The network of the study, and the methods: what each makes of it, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from convfc.methods import uncertainty
from convfc.studies.runner import seed_of
from convfc.studies.settings import StudySettings

__all__ = ["METHODS", "Method", "Settings", "lenet", "untrained"]


@dataclass(frozen=True)
class Settings(StudySettings):
    """What decides the numbers of this study.

    Attributes
    ----------
    samples : int
        Draws of a prediction.
    """

    study: ClassVar[str] = "uncertainty"

    epochs: int = 15
    threads: int = 1
    samples: int = 100

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
    """A method, as the study uses it.

    Attributes
    ----------
    title : str
    source : str
        Who, when, where.
    name : str
        Of `convfc.methods.uncertainty.to_bayesian`; empty where that is not used.
    options : mapping
        What it is given. The numbers were chosen once, on the validation images of seed 0.
    divergence : bool
        Whether `kl` is in the loss.
    """

    title: str
    source: str
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    divergence: bool = False

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


def lenet(seed: int) -> nn.Sequential:
    """Return the network: two CONV layers with pooling, two FC layers, as in LeNet, but smaller.

    Parameters
    ----------
    seed : int
        Of its weights; PyTorch's global generator is left as it was.

    Examples
    --------
    >>> lenet(0)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(320, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


def untrained(key: str, settings: Settings) -> nn.Module:
    """Return the network of a method before its training; all begin with the same weights."""
    network, method = lenet(seed_of(settings.seed, "weights")), METHODS[key]
    if not method.name:
        return network
    made: nn.Module = uncertainty.to_bayesian(network, method.name, **method.options)  # type: ignore[arg-type]
    return made


def loss_of(key: str, images: int) -> Any:
    """Return the loss of a method: cross-entropy, and the divergence per image where it has one."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = functional.cross_entropy(model(x), y)
        return value + uncertainty.kl(model) / images if METHODS[key].divergence else value

    return loss


def groups_of(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Return the parameters for the optimizer; learned dropout rates take steps ten times as long.

    Their logits start at -2.2 and have to go far in few steps.
    """
    logits = [p for name, p in model.named_parameters() if name.endswith("logit")]
    others = [p for name, p in model.named_parameters() if not name.endswith("logit")]
    groups = [{"params": others, "lr": rate}]
    return [*groups, {"params": logits, "lr": 10 * rate}] if logits else groups
