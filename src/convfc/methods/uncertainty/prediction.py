"""Predictions of a network with random weights: many draws, their mean, and how far they disagree.

The measures are those of Gal (2016, Section 3.3.1), in nats: the *predictive entropy* of the mean
is all uncertainty; the *expected entropy* of the single draws remains when the weights are known
(aleatoric); their difference, the *mutual information* of prediction and weights, is what more data
can reduce (epistemic; Houlsby et al. 2011 call it BALD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from convfc.errors import ArgumentError, NothingToConvert, ShapeError
from convfc.frameworks.torch.running import call_model, in_mode, random_numbers
from convfc.methods.uncertainty.layers import draws
from convfc.sizes import one_of

Output: TypeAlias = Literal["logits", "probabilities", "log_probabilities"]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found for n images and C classes; float64, on the CPU.

    Parameters
    ----------
    mean : Tensor, shape (n, C)
        Mean probability of each class over the draws.
    predictive_entropy, expected_entropy, mutual_information : Tensor, shape (n,)
        In nats. All uncertainty, its aleatoric and its epistemic part; the first is the sum of the
        other two.
    draws : Tensor, shape (samples, n, C), or None
        What the network returned at every draw, if ``keep`` was set.
    samples : int
    """

    mean: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    draws: Tensor | None
    samples: int

    @property
    def label(self) -> Tensor:
        """The most probable class of each image, shape (n,)."""
        return self.mean.argmax(dim=1)

    @classmethod
    def of(cls, probabilities: Tensor, draws: Tensor | None = None) -> Prediction:
        """Return the prediction of draws that another library made, such as laplace-torch.

        Parameters
        ----------
        probabilities : Tensor, shape (samples, n, C)
            At each draw; rows of the last axis are divided by their sum.
        draws : Tensor, optional
            What to keep in the field of this name.

        Examples
        --------
        >>> found = Prediction.of(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> bool(found.mutual_information == found.predictive_entropy)  # each draw is certain
        True
        """
        p = probabilities.detach().double().cpu()
        p = p / p.sum(dim=-1, keepdim=True)
        return cls._from_sums(p.sum(dim=0), _entropy(p).sum(dim=0), len(p), draws)

    @classmethod
    def _from_sums(
        cls, total: Tensor, entropy: Tensor, samples: int, draws: Tensor | None
    ) -> Prediction:
        """Return the prediction from probabilities and entropies summed over the draws."""
        mean = total / samples
        predictive = _entropy(mean)
        # The expected entropy is at most the predictive one (Jensen); rounding can change that.
        expected = torch.minimum(entropy / samples, predictive)
        return cls(mean, predictive, expected, predictive - expected, draws, samples)


def predict(
    model: nn.Module,
    x: Tensor,
    samples: int = 100,
    *,
    seed: int = 0,
    batch_size: int = 256,
    output: Output = "logits",
    keep: bool = False,
    progress: Progress | bool = False,
) -> Prediction:
    """Predict with many draws of a classifier's random weights.

    Random layers and every kind of PyTorch's dropout draw, also in networks that are not convfc's;
    the rest, such as BatchNorm, is in evaluation mode. Modes and random generators are restored.

    Parameters
    ----------
    model : nn.Module
        It takes a batch of images and returns ``(n, C)``.
    x : Tensor, shape (n, ...)
    samples : int
        Draws, or forward passes.
    seed : int
        Each draw has its own seed, the same for all batches: weights drawn once per call
        (``per="call"``) are one network for all images, whatever the batch size.
    batch_size : int
        Images that are run at a time.
    output : {"logits", "probabilities", "log_probabilities"}
        What the network returns.
    keep : bool
        Whether to keep what the network returned, ``(samples, n, C)``.
    progress : callable or bool
        Called with the draws done and all draws; True shows a bar (package rich).

    Returns
    -------
    Prediction

    Raises
    ------
    NothingToConvert
        If nothing in the network is random: two draws are the same bits.
    ShapeError
        If there are no images, or the network does not take them or return ``(n, C)``.
    ArgumentError
        If a number is below one, or the output does not exist.

    Examples
    --------
    >>> from convfc.methods.uncertainty import to_bayesian
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 10))
    >>> found = predict(to_bayesian(cnn, "dropout"), torch.rand(5, 1, 28, 28), samples=20)
    >>> found.mean.shape, found.mutual_information.shape
    (torch.Size([5, 10]), torch.Size([5]))
    >>> bool((found.mean.sum(dim=1) - 1).abs().max() < 1e-12)
    True
    """
    one_of("output", output, Output)
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise ArgumentError("a count below one", where=name, expected="1 or more", got=value)
    if len(x) == 0:
        raise ShapeError("no images", where="x", expected="(n, ...) with n >= 1", got=(*x.shape,))
    numbers: Iterable[int] = range(samples)
    if progress is True:
        from rich.progress import track

        numbers = track(numbers, "draws", transient=True)
    total: Any = 0.0
    entropy: Any = 0.0
    kept: list[Tensor] = []
    with in_mode(model, draws), torch.no_grad():
        for number in numbers:
            drawn = _one_draw(model, x.split(batch_size), seed + number)
            if number == 1 and torch.equal(kept[0], drawn):
                raise NothingToConvert(
                    "two draws are the same: nothing in the network is random",
                    where=type(model).__name__,
                    remedy="make it random with convfc.methods.uncertainty.to_bayesian, or ask for "
                    "one sample",
                )
            if keep or not kept:
                kept.append(drawn)
            y = drawn.double()
            p = torch.log_softmax(y.log() if output == "probabilities" else y, dim=1).exp()
            total = total + p
            entropy = entropy + _entropy(p)
            if callable(progress):
                progress(number + 1, samples)
    return Prediction._from_sums(total, entropy, samples, torch.stack(kept) if keep else None)


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy of each row, in nats."""
    return -torch.xlogy(p, p).sum(dim=-1)


def _one_draw(model: nn.Module, batches: tuple[Tensor, ...], seed: int) -> Tensor:
    """Run all batches, each from the same seed; return ``(n, C)`` on the CPU."""
    outputs = []
    for batch in batches:
        with random_numbers((batch, *model.parameters()), seed):
            y = call_model(model, (batch,), {}, "x")
        if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(batch):
            raise ShapeError(
                "the network does not return one row of classes per image",
                where=type(model).__name__,
                expected=f"a tensor of shape ({len(batch)}, C)",
                got=tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__,
                remedy="wrap it in a module that returns its logits",
            )
        outputs.append(y.cpu())
    return torch.cat(outputs)
