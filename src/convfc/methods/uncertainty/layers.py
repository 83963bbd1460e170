"""FC layers with a random weight: Monte Carlo dropout, Concrete Dropout and Bayes by Backprop.

Dropping inputs of an FC layer multiplies rows of its matrix K by Bernoulli variables, dropping
outputs columns. Gal (*Uncertainty in Deep Learning*, 2016, Section 3.4; Gal & Ghahramani 2016,
arXiv:1506.02158, Section 3) carries this to CONV layers: ``y_n = m_n K diag(z_n)`` for patch n.

The loss is the *mean* negative log-likelihood of the data points plus ``KL / N``, for N data points
(images, not patches). For dropout, KL is the divergence from a Gaussian prior of standard deviation
1/l on every weight, without constants (Gal & Ghahramani, *Dropout as a Bayesian Approximation*,
2016, appendix, Proposition 1)::

    KL = l^2 / (2 (1 - p)) · ||W||^2 - n H(p),      H(p) = -p ln p - (1 - p) ln(1 - p)

with n Bernoulli variables (k inputs or f outputs) and the mean weight W = (1 - p) M, which the
layer stores ("inverted dropout"); in M, the weight of a unit that is kept, the first term is
``l^2 (1 - p) / 2 · ||M||^2``. Programs with ``2 / N`` before H have a squared error without its 1/2
(Gal's reply in yaringal/ConcreteDropout#8).

Blundell, Cornebise, Kavukcuoglu & Wierstra (2015, arXiv:1505.05424) learn mean and standard
deviation of independent Gaussian weights; sigma = ln(1 + e^rho) (their Section 3.2). Kingma,
Salimans & Welling (2015, arXiv:1506.02557) draw the outputs instead, which are Gaussian too: the
local reparameterisation.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, RelaxedBernoulli, kl_divergence
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from convfc.errors import ArgumentError, Refusal
from convfc.frameworks.torch.forms.children import as_parameter
from convfc.sizes import one_of

Per: TypeAlias = Literal["patch", "image", "call"]
"""What shares one draw of the weight: one row of M, all rows of one image, or a whole call."""


class RandomLinear(nn.Module):
    """An FC layer ``(*, k) -> (*, f)`` whose weight is random: base class of the others.

    In training mode every call draws, with PyTorch's global generator; in evaluation mode the layer
    computes with the mean weight, as `nn.Dropout` does.

    Parameters
    ----------
    per : {"patch", "image", "call"}
        What shares a draw. The input of a CONV layer is its patch matrix ``(N, L, k)``: ``"patch"``
        draws for each of the N·L rows, ``"image"`` for each of the N images, ``"call"`` once. For
        an input ``(N, k)`` the first two are the same.
    """

    def __init__(self, per: Per) -> None:
        super().__init__()
        one_of("per", per, Per)
        self.per = per

    @property
    def takes_blocks(self) -> bool:
        """Whether M may come in blocks of rows: no two rows share a draw."""
        return not self.training or self.per == "patch"

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Draw a weight ``(f, k)`` and a bias ``(f,)``, as a call with per="call" does."""
        raise NotImplementedError

    def mean(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean weight ``(f, k)`` and bias ``(f,)``."""
        raise NotImplementedError

    def kl(self) -> Tensor:
        """Return the divergence from the prior: a sum over weights and random biases, in nats."""
        raise NotImplementedError

    def as_plain(self) -> nn.Module | Refusal:
        """Return what `convfc.to_conv` makes CONV layers of, or why it cannot."""
        return Refusal(
            f"its FC part is random ({type(self).__name__})",
            "take one draw first, with convfc.methods.uncertainty.sample, or the mean, with "
            "mean_network",
        )

    def linear_state(self) -> dict[str, Tensor]:
        """Return the mean weight and bias under the names that they have in an `nn.Linear`."""
        weight, bias = self.mean()
        return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the state of such a layer, or of an `nn.Linear`, whose weight becomes the mean.

        What an `nn.Linear` does not know, deviations and rates, stays as it is.
        """
        means = {id(mean): prefix + name for name, mean in self.linear_state().items()}
        own = {prefix + name: parameter for name, parameter in self.named_parameters()}
        places = {key: means[id(p)] for key, p in own.items() if id(p) in means}
        if not places.keys() & state_dict.keys() and set(places.values()) & state_dict.keys():
            for key, parameter in own.items():
                if key not in places:
                    state_dict.setdefault(key, parameter)
                elif places[key] in state_dict:
                    state_dict[key] = state_dict.pop(places[key])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _shape_of_a_draw(self, x: Tensor, width: int) -> tuple[int, ...]:
        """Return the shape of random numbers for rows of this width that broadcasts against x."""
        if self.per == "patch":
            return (*x.shape[:-1], width)
        if self.per == "call" or x.dim() == 1:
            return (width,)
        return (len(x), *(1,) * (x.dim() - 2), width)


# PyTorch's layers with dropout inside. In evaluation mode an encoder layer may pass over its own.
_WITH_DROPOUT = (_DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


def draws(module: nn.Module) -> bool:
    """Return whether a module may draw in training mode: a random FC layer, or dropout."""
    return isinstance(module, (RandomLinear, *_WITH_DROPOUT))


def check_number(
    name: str, value: float, *, below: float = math.inf, positive: bool = True
) -> None:
    """Raise if a number is negative, or 0 where it is to be ``positive``, or not below another."""
    if not (value > 0 if positive else value >= 0) or not value < below:
        rule = "above 0" if positive else "at least 0"
        rule += f" and below {below:g}" * math.isfinite(below)
        raise ArgumentError("a number out of range", where=name, expected=rule, got=value)


Drop: TypeAlias = Literal["kernels", "taps"]
"""What is dropped: outputs of the FC layer (kernels of a CONV layer), or its inputs (taps)."""


class DropoutLinear(RandomLinear):
    """An FC layer under Monte Carlo dropout.

    Parameters
    ----------
    linear : nn.Linear
        It becomes the child ``linear``; its weight is the mean weight.
    rate : float
        Probability p that a unit is dropped, 0 <= p < 1.
    drop : {"kernels", "taps"}
        ``"kernels"``: columns of K, so outputs with their biases: Gal's formula for CONV layers,
        and the same as `nn.Dropout` after the layer. ``"taps"``: rows of K, so inputs: the same as
        `nn.Dropout` before an FC layer; a CONV layer then loses taps of its patches, which dropout
        of the image cannot do.
    per : {"patch", "image", "call"}
        What shares a draw; see `RandomLinear`. With kernels, ``"image"`` is the same as
        `nn.Dropout2d` after the layer.
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
        one_of("drop", drop, Drop)
        check_number("rate", rate, below=1.0, positive=False)
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
        """Return the divergence from the prior without its constants: a sum, in nats.

        The module's docstring has the formula. With ``drop="kernels"`` a bias belongs to its
        column; with taps it is not random and is left out.
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
        """Return Linear and Dropout where they draw from the same distribution."""
        if self.drop != "kernels" or self.per != "patch":
            return super().as_plain()
        return nn.Sequential(self.linear, nn.Dropout(self._number())).train(self.training)

    def extra_repr(self) -> str:
        """Return the rate, what is dropped, and what shares a draw."""
        return f"rate={self.rate.item():.3g}, drop={self.drop!r}, per={self.per!r}"


class ConcreteDropoutLinear(DropoutLinear):
    """Dropout whose rate is learned (Gal, Hron & Kendall 2017, arXiv:1705.07832).

    The Bernoulli variables are relaxed to concrete ones, which are differentiable in p (their Eq.
    (5)); PyTorch's `RelaxedBernoulli` draws them. Without `kl` in the loss the rate goes to 0.

    Parameters
    ----------
    linear, rate, drop, per, length_scale
        As for `DropoutLinear`; the rate is the initial one, 0 < p < 1.
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
        temperature = self.logit.new_tensor(self.temperature)
        keep = RelaxedBernoulli(temperature, logits=-self.logit, validate_args=False)
        return keep.rsample(shape) / (1 - self.rate)


class GaussianLinear(RandomLinear):
    """An FC layer with a Gaussian weight and bias.

    Parameters
    ----------
    linear : nn.Linear
        Its parameters become the means.
    prior : float or torch.distributions.Distribution
        Standard deviation of a Gaussian prior around 0, or any distribution of single weights, such
        as the scale mixture of Blundell et al. (Eq. (7)); if the divergence from it has no closed
        form, it is estimated from one draw.
    initial_std : float
        The initial standard deviations.
    per : {"patch", "image", "call"}
        ``"patch"``: the local reparameterisation; the outputs of each row are drawn. Its gradients
        vary least and M need not be held; two patches of one image see different weights, each with
        the right distribution. ``"image"``: one weight for each image. ``"call"``: one weight for
        all, as in Blundell et al.

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
            shapes = f"batch_shape {prior.batch_shape}, event_shape {prior.event_shape}"
            raise ArgumentError("the prior is not of a single weight", where="prior", got=shapes)
        self.prior = prior
        start = math.log(math.expm1(initial_std))
        self.weight_mean = linear.weight
        self.bias_mean = linear.bias
        self.weight_rho, self.bias_rho = (
            None if mean is None else as_parameter(torch.full_like(mean, start), mean)
            for mean in (linear.weight, linear.bias)
        )

    def _moments(self) -> list[tuple[Tensor, Tensor]]:
        """Return mean and standard deviation of the weight, and of the bias if there is one."""
        pairs = ((self.weight_mean, self.weight_rho), (self.bias_mean, self.bias_rho))
        return [(mean, functional.softplus(rho)) for mean, rho in pairs if rho is not None]

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs ``(*, f)`` of rows ``(*, k)``."""
        if not self.training:
            return functional.linear(rows, self.weight_mean, self.bias_mean)
        if self.per == "call" or (self.per == "image" and rows.dim() == 1):
            return functional.linear(rows, *self.draw())
        if self.per == "image":
            weight, bias = self._draws(len(rows))
            y = torch.bmm(rows.reshape(len(rows), -1, rows.shape[-1]), weight.transpose(1, 2))
            y = y if bias is None else y + bias[:, None].to(y.dtype)  # autocast has chosen y's
            return y.reshape(*rows.shape[:-1], -1)
        mean = functional.linear(rows, self.weight_mean, self.bias_mean)
        squares = [std.square() for _, std in self._moments()]
        variance = functional.linear(rows.square(), *squares)
        # The square root has no derivative at 0, the variance of a patch of padding.
        spread = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + spread * torch.randn_like(mean)

    def _draws(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Draw weights ``(count, f, k)`` and biases ``(count, f)``."""
        weight, *bias = (
            mean + std * torch.randn_like(std.expand(count, *std.shape))
            for mean, std in self._moments()
        )
        return weight, bias[0] if bias else None

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Draw a weight ``(f, k)`` and a bias ``(f,)``, as a call with per="call" does."""
        weight, bias = self._draws(1)
        return weight[0], None if bias is None else bias[0]

    def mean(self) -> tuple[Tensor, Tensor | None]:
        """Return the means."""
        return self.weight_mean, self.bias_mean

    def kl(self) -> Tensor:
        """Return the divergence of all weights and biases from the prior."""
        return torch.stack([self._kl(mean, std) for mean, std in self._moments()]).sum()

    def _kl(self, mean: Tensor, std: Tensor) -> Tensor:
        posterior, prior = Normal(mean, std, validate_args=False), self.prior
        if not isinstance(prior, Distribution):
            prior = Normal(torch.zeros_like(mean), prior, validate_args=False)
        try:
            divergence: Tensor = kl_divergence(posterior, prior)
        except NotImplementedError:  # PyTorch has no closed form
            weight = posterior.rsample()
            divergence = posterior.log_prob(weight) - prior.log_prob(weight)
        return divergence.sum()

    def extra_repr(self) -> str:
        """Return sizes, prior and what shares a draw."""
        f, k = self.weight_mean.shape
        return f"in_features={k}, out_features={f}, prior={self.prior}, per={self.per!r}"
