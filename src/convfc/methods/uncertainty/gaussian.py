"""Bayes by Backprop: an FC layer whose weights are independent Gaussians.

Blundell, Cornebise, Kavukcuoglu & Wierstra (2015, arXiv:1505.05424) learn mean and standard
deviation of every weight; sigma = ln(1 + e^rho) (their Section 3.2). Kingma, Salimans & Welling
(2015, arXiv:1506.02557) draw the outputs instead, which are Gaussian too: the local
reparameterisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn import functional

from convfc.errors import ArgumentError
from convfc.methods.uncertainty.randomness import Per, RandomLinear, check_number

__all__ = ["GaussianLinear"]


class GaussianLinear(RandomLinear):
    """An FC layer with a Gaussian weight and bias.

    Parameters
    ----------
    linear : nn.Linear
        Its parameters become the means.
    prior : float or torch.distributions.Distribution
        Standard deviation of a Gaussian prior around 0, or any distribution of single weights, such
        as the scale mixture of Blundell et al. (Eq. (7)); if the divergence from it has no closed
        form, one draw estimates it.
    initial_std : float
        Where the standard deviations start.
    per : {"patch", "image", "call"}
        ``"patch"``: the local reparameterisation; the outputs of one row are drawn, each row by
        itself. Its variance is the smallest and M need not be held; two patches of one image then
        see different weights, each with the right distribution. ``"image"``: one weight for each
        image. ``"call"``: one weight for all, as Blundell et al. draw.

    Attributes
    ----------
    weight_mean, weight_rho : nn.Parameter, shape (f, k)
    bias_mean, bias_rho : nn.Parameter, shape (f,), or None

    Examples
    --------
    >>> layer = GaussianLinear(nn.Linear(16, 128), initial_std=0.01)
    >>> layer(torch.randn(10, 169, 16)).shape
    torch.Size([10, 169, 128])
    >>> bool(layer.kl() > 0)
    True
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        prior: float | Distribution = 1.0,
        initial_std: float = 0.05,
        per: Per = "patch",
    ) -> None:
        super().__init__(per)
        check_number("initial_std", initial_std)
        if not isinstance(prior, Distribution):
            check_number("prior", prior)
        elif prior.batch_shape or prior.event_shape:
            raise ArgumentError(
                "a prior of more than one weight",
                where="prior",
                expected="a distribution of a single number",
                got=f"batch_shape {prior.batch_shape}, event_shape {prior.event_shape}",
            )
        self.prior = prior
        start = math.log(math.expm1(initial_std))
        self.weight_mean = linear.weight
        self.weight_rho = _like(linear.weight, start)
        self.bias_mean = linear.bias
        self.bias_rho = None if linear.bias is None else _like(linear.bias, start)

    def _stds(self) -> tuple[Tensor, Tensor | None]:
        bias = None if self.bias_rho is None else functional.softplus(self.bias_rho)
        return functional.softplus(self.weight_rho), bias

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs ``(*, f)`` of rows ``(*, k)``."""
        if not self.training:
            return functional.linear(rows, self.weight_mean, self.bias_mean)
        if self.per == "call" or (self.per == "image" and rows.dim() == 1):
            return functional.linear(rows, *self.draw())
        if self.per == "image":
            weight, bias = self._draws(len(rows))
            y = torch.bmm(rows.reshape(len(rows), -1, rows.shape[-1]), weight.transpose(1, 2))
            y = y if bias is None else y + bias[:, None]
            return y.reshape(*rows.shape[:-1], -1)
        std, bias_std = self._stds()
        mean = functional.linear(rows, self.weight_mean, self.bias_mean)
        square = None if bias_std is None else bias_std.square()
        variance = functional.linear(rows.square(), std.square(), square)
        # The square root has no slope at 0, which is what a patch of padding gives.
        spread = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + spread * torch.randn_like(mean)

    def _draws(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Draw so many weights ``(count, f, k)`` and biases ``(count, f)``."""
        std, bias_std = self._stds()
        weight = self.weight_mean + std * torch.randn_like(std.expand(count, *std.shape))
        if bias_std is None:
            return weight, None
        noise = torch.randn_like(bias_std.expand(count, *bias_std.shape))
        return weight, self.bias_mean + bias_std * noise

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Draw a weight ``(f, k)`` and a bias ``(f,)``, as a call with per="call" does."""
        weight, bias = self._draws(1)
        return weight[0], None if bias is None else bias[0]

    def mean(self) -> tuple[Tensor, Tensor | None]:
        """Return the means."""
        return self.weight_mean, self.bias_mean

    def kl(self) -> Tensor:
        """Return the divergence of all weights and biases from the prior."""
        weight_std, bias_std = self._stds()
        total = self._kl(self.weight_mean, weight_std)
        if bias_std is not None:
            total = total + self._kl(self.bias_mean, bias_std)
        return total

    def _kl(self, mean: Tensor, std: Tensor) -> Tensor:
        posterior = Normal(mean, std, validate_args=False)
        if not isinstance(self.prior, Distribution):
            prior: Distribution = Normal(torch.zeros_like(mean), self.prior, validate_args=False)
            divergence: Tensor = kl_divergence(posterior, prior).sum()
            return divergence
        try:
            divergence = kl_divergence(posterior, self.prior).sum()
        except NotImplementedError:  # PyTorch knows no closed form
            weight = posterior.rsample()
            divergence = (posterior.log_prob(weight) - self.prior.log_prob(weight)).sum()
        return divergence

    def extra_repr(self) -> str:
        """Return sizes, prior and for whom a draw holds."""
        f, k = self.weight_mean.shape
        return f"in_features={k}, out_features={f}, prior={self.prior}, per={self.per!r}"


def _like(parameter: Tensor, value: float) -> nn.Parameter:
    """Return a parameter of the same shape, filled, that trains if the other one does."""
    filled = torch.full_like(parameter, value, memory_format=torch.contiguous_format)
    return nn.Parameter(filled.detach(), requires_grad=parameter.requires_grad)
