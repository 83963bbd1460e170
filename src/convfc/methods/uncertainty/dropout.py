"""Dropout as a random weight: Monte Carlo dropout and Concrete Dropout, written for an FC layer.

Dropping inputs of an FC layer multiplies rows of its matrix K by Bernoulli variables, dropping
outputs multiplies columns: a random K. Gal (*Uncertainty in Deep Learning*, 2016, Section 3.4; Gal
& Ghahramani 2016, arXiv:1506.02158, Section 3) carries this to CONV layers through the patch
matrix, whose rows are the FC layer's inputs: ``y_n = m_n K diag(z_n)`` for patch n.

The regulariser is the divergence of that random K from a Gaussian prior of standard deviation 1/l
on every weight (Gal & Ghahramani, *Dropout as a Bayesian Approximation*, 2016, appendix,
Proposition 1, without its constants)::

    KL = l^2 (1 - p) / 2 · ||M||^2 - n H(p),      H(p) = -p ln p - (1 - p) ln(1 - p)

with M the weight that a unit has when it is not dropped, and n the number of Bernoulli variables of
one K: k inputs or f outputs. The layer keeps the mean weight W = (1 - p) M, as every framework's
dropout does ("inverted dropout"), so the first term is ``l^2 / (2 (1 - p)) · ||W||^2``: divided by
1 - p, not multiplied. The loss to minimise is the *mean* negative log-likelihood over the data
points plus KL / N, where N counts data points: images, not patches, and not batches. A common form
of the same thing has ``2 / N`` for the second term; it belongs to a squared error without its 1/2
(Gal's reply in yaringal/ConcreteDropout#8).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import RelaxedBernoulli
from torch.nn import functional

from convfc.errors import Refusal
from convfc.methods.uncertainty.randomness import Per, RandomLinear, check_choice, check_number

__all__ = ["ConcreteDropoutLinear", "Drop", "DropoutLinear"]

Drop: TypeAlias = Literal["kernels", "taps"]
"""What is dropped: outputs of the FC layer (kernels of a CONV layer), or its inputs (taps)."""


class DropoutLinear(RandomLinear):
    """An FC layer under Monte Carlo dropout.

    Parameters
    ----------
    linear : nn.Linear
        It stays the child ``linear``; its weight is the mean weight.
    rate : float
        Probability p that a unit is dropped, 0 <= p < 1.
    drop : {"kernels", "taps"}
        ``"kernels"``: columns of K, so outputs, each with its bias: Gal's own formula for CONV
        layers, and what `nn.Dropout` behind the layer does. ``"taps"``: rows of K, so inputs: what
        `nn.Dropout` in front of an FC layer does; a CONV layer then loses taps of its patches,
        which dropout of the image cannot do.
    per : {"patch", "image", "call"}
        For whom a draw holds; see `RandomLinear`. With kernels, ``"image"`` is what `nn.Dropout2d`
        behind the layer does.
    length_scale : float
        l of the prior, for `kl`.

    Examples
    --------
    >>> layer = DropoutLinear(nn.Linear(16, 128), rate=0.5)
    >>> rows = torch.randn(10, 169, 16)
    >>> y = layer(rows)
    >>> y.shape, 0.4 < float((y == 0).float().mean()) < 0.6
    (torch.Size([10, 169, 128]), True)
    """

    def __init__(
        self,
        linear: nn.Linear,
        rate: float = 0.5,
        *,
        drop: Drop = "kernels",
        per: Per = "patch",
        length_scale: float = 1.0,
    ) -> None:
        super().__init__(per)
        check_choice("drop", drop, Drop)
        check_number("rate", rate, below=1.0, open_=False)
        check_number("length_scale", length_scale)
        self.linear = linear
        self.drop, self.length_scale = drop, length_scale
        self._set_rate(rate)

    def _set_rate(self, rate: float) -> None:
        self._rate = rate

    @property
    def rate(self) -> Tensor:
        """The probability p that a unit is dropped; a scalar."""
        return self.linear.weight.new_tensor(self._rate)

    def _number(self) -> float:
        return self._rate

    def _kept(self, shape: tuple[int, ...]) -> Tensor:
        """Draw z / (1 - p): 0 where a unit is dropped, so that the mean is 1."""
        return functional.dropout(self.linear.weight.new_ones(shape), self._rate)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs ``(*, f)`` of rows ``(*, k)``."""
        if self.training and self.drop == "taps":
            rows = rows * self._kept(self._shape_of_a_draw(rows, self.linear.in_features))
        y: Tensor = self.linear(rows)
        if self.training and self.drop == "kernels":
            y = y * self._kept(self._shape_of_a_draw(y, self.linear.out_features))
        return y

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Draw a weight ``(f, k)`` and a bias ``(f,)``, as a call with per="call" does."""
        weight, bias = self.mean()
        if self.drop == "taps":
            return weight * self._kept((self.linear.in_features,)), bias
        kernels = self._kept((self.linear.out_features,))
        return weight * kernels[:, None], None if bias is None else bias * kernels

    def mean(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean weight and bias: those of the child."""
        return self.linear.weight, self.linear.bias

    def kl(self) -> Tensor:
        """Return the divergence from the prior but for a constant; see the head of this file.

        With ``drop="kernels"`` a bias belongs to its column; with taps it is not random and counts
        for nothing.
        """
        p, weight, bias = self.rate, self.linear.weight, self.linear.bias
        square = weight.square().sum()
        if self.drop == "kernels" and bias is not None:
            square = square + bias.square().sum()
        units = self.linear.in_features if self.drop == "taps" else self.linear.out_features
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        divergence: Tensor = self.length_scale**2 / (2 * (1 - p)) * square - units * entropy
        return divergence

    def as_plain(self) -> nn.Module | Refusal:
        """Return Linear and Dropout, where these two draw from the same distribution."""
        if self.drop != "kernels" or self.per != "patch":
            return super().as_plain()
        return nn.Sequential(self.linear, nn.Dropout(self._number())).train(self.training)

    def extra_repr(self) -> str:
        """Return the rate, and what is dropped for whom."""
        return f"rate={self.rate.item():.3g}, drop={self.drop!r}, per={self.per!r}"


class ConcreteDropoutLinear(DropoutLinear):
    """Dropout whose rate is learned (Gal, Hron & Kendall 2017, arXiv:1705.07832).

    The Bernoulli variables are relaxed to concrete ones, which are differentiable in p (their Eq.
    (5)); PyTorch's `RelaxedBernoulli` draws them. Without `kl` in the loss a rate falls to 0.

    Parameters
    ----------
    linear, rate, drop, per, length_scale
        As for `DropoutLinear`; the rate is where it starts, 0 < p < 1.
    temperature : float
        Of the relaxation; 0.1 in the paper.

    Attributes
    ----------
    logit : nn.Parameter
        ln(p / (1 - p)), a scalar.

    Examples
    --------
    >>> layer = ConcreteDropoutLinear(nn.Linear(16, 128), rate=0.2)
    >>> loss = layer(torch.randn(10, 169, 16)).square().mean() + layer.kl() / 1000
    >>> loss.backward()
    >>> bool(layer.logit.grad != 0), round(layer.rate.item(), 3)
    (True, 0.2)
    """

    def __init__(
        self,
        linear: nn.Linear,
        rate: float = 0.1,
        *,
        drop: Drop = "taps",
        per: Per = "image",
        length_scale: float = 1.0,
        temperature: float = 0.1,
    ) -> None:
        check_number("rate", rate, below=1.0)
        check_number("temperature", temperature)
        super().__init__(linear, rate, drop=drop, per=per, length_scale=length_scale)
        self.temperature = temperature

    def _set_rate(self, rate: float) -> None:
        start = self.linear.weight.new_tensor(math.log(rate / (1 - rate)))
        self.logit = nn.Parameter(start)

    @property
    def rate(self) -> Tensor:
        """The probability p that a unit is dropped; gradients flow through it."""
        return torch.sigmoid(self.logit)

    def _number(self) -> float:
        return self.rate.item()

    def _kept(self, shape: tuple[int, ...]) -> Tensor:
        keep = RelaxedBernoulli(
            self.logit.new_tensor(self.temperature), logits=-self.logit, validate_args=False
        )
        return keep.rsample(shape) / (1 - self.rate)
