"""Gaussian weights: the draws against SciPy's distributions, divergence and gradients by judges."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from conv_cases import CASES, ConvCase
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.func import functional_call

import convfc
from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.methods import uncertainty
from convfc.methods.uncertainty import GaussianLinear
from convfc.rounding import rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


def layer_of(k: int = 5, f: int = 3, **options: Any) -> GaussianLinear:
    """A layer whose deviations are all different."""
    layer = GaussianLinear(nn.Linear(k, f, dtype=torch.float64), **options)
    with torch.no_grad():
        layer.weight_rho.add_(torch.randn_like(layer.weight_rho))
        layer.bias_rho.add_(torch.randn_like(layer.bias_rho))
    return layer


def moments(layer: GaussianLinear, row: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every output, from the definition."""
    std, bias_std = (nn.functional.softplus(rho) for rho in (layer.weight_rho, layer.bias_rho))
    mean = layer.weight_mean @ row + layer.bias_mean
    return mean.detach().numpy(), ((std * row) ** 2).sum(1).add(bias_std**2).sqrt().detach().numpy()


@pytest.mark.parametrize("per", ["patch", "image", "call"])
def test_outputs_have_the_distribution_of_a_random_weight(per: str):
    """Kolmogorov and Smirnov judge: three ways to draw, one distribution of an output."""
    layer, row = layer_of(per=per), torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        if per == "call":
            y = torch.stack([layer(row[None])[0] for _ in range(3000)])
        else:
            y = layer(row.expand(3000, 5))
    for output, mean, std in zip(y.T.numpy(), *moments(layer, row), strict=True):
        assert stats.kstest(output, stats.norm(mean, std).cdf).pvalue > 1e-3
        # The test would see it: a deviation that is a quarter off.
        assert stats.kstest(output, stats.norm(mean, 1.25 * std).cdf).pvalue < 1e-3


@pytest.mark.parametrize(
    ("per", "within", "across"), [("patch", 0, 0), ("image", 1, 0), ("call", 1, 1)], ids=str
)
def test_for_whom_a_draw_holds(per: str, within: int, across: int):
    """Equal patches give equal outputs where they share a weight, and others where not."""
    conv = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    bayes = uncertainty.to_bayesian(nn.Sequential(conv), "gaussian", per=per).train()
    y = bayes(torch.ones(3, 1, 4, 4, dtype=torch.float64)).detach().flatten(2)
    # Ten terms of at most 1 + 5 * 0.05: what rounding makes of them, and what another draw does.
    rounding, another = 2 * 10 * 2.0**-53 * 10 * 1.25, 1e-3
    for one, other, same in ((y[:, :, 0], y[:, :, 9], within), (y[0], y[1], across)):
        apart = float((one - other).abs().max())
        assert apart <= rounding if same else apart > another


@pytest.mark.parametrize("case", [*CASES[1::8], CASES[26]], ids=str)
def test_a_drawn_network_as_conv_layers_is_its_fc_path(case: ConvCase):
    """The proof: what is drawn for the FC layer goes back to a CONV layer, with a certificate."""
    cnn = nn.Sequential(case.layer())
    bayes = uncertainty.to_bayesian(cnn, "gaussian", initial_std=0.5, per="call")
    drawn = uncertainty.sample(bayes, seed=7)
    back = convfc.to_conv(drawn)
    assert type(back[0]) is case.cls
    assert not torch.equal(back[0].weight, cnn[0].weight)
    assert convfc.verify(back, drawn, case.x()).holds
    torch.manual_seed(7)  # what `sample` drew is what a call draws
    y, expected = bayes.train()(case.x()), drawn(case.x())
    moduli = copy.deepcopy(back)
    with torch.no_grad():
        for parameter in moduli.parameters():
            parameter.abs_()
        magnitude = moduli(case.x().abs())
    terms = math.prod(back[0].weight.shape[1:]) * 4 + 1
    bound = rounding_bound(magnitude, terms, "float64")
    assert ((y - expected).abs() <= bound).all()


def one_weight(**options: Any) -> tuple[GaussianLinear, Any]:
    """A layer of one weight, and SciPy's distribution of it."""
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    layer = GaussianLinear(linear, initial_std=0.3, **options)
    std = nn.functional.softplus(layer.weight_rho).item()
    return layer, stats.norm(layer.weight_mean.item(), std)


def divergence_by_quadrature(q: Any, log_prior: Any) -> tuple[float, float]:
    def density(w: float) -> float:
        return q.pdf(w) * (q.logpdf(w) - log_prior(w))

    mean, std = q.args
    return quad(density, mean - 12 * std, mean + 12 * std, epsabs=1e-13, limit=200)


def test_the_divergence_of_one_weight_against_quadrature():
    layer, q = one_weight(prior=0.7)
    value, error = divergence_by_quadrature(q, stats.norm(0, 0.7).logpdf)
    assert abs(layer.kl().item() - value) <= error + 1e-12 * abs(value)


def test_the_divergence_counts_every_weight_and_bias_once():
    """Twelve equal weights and four equal biases: so many times that of one."""
    one = GaussianLinear(nn.Linear(1, 1, bias=False, dtype=torch.float64), initial_std=0.3)
    many = GaussianLinear(nn.Linear(3, 4, dtype=torch.float64), initial_std=0.3)
    with torch.no_grad():
        for mean in (one.weight_mean, many.weight_mean, many.bias_mean):
            mean.fill_(0.25)
    # Sixteen numbers are added with at most 15 roundings.
    bound = 16 * torch.finfo(torch.float64).eps * many.kl().abs()
    assert (many.kl() - 16 * one.kl()).abs() <= bound
    whole = nn.ModuleList([many, one, many])
    assert uncertainty.kl(whole) == many.kl() + one.kl()


@pytest.mark.parametrize("per", ["patch", "image", "call"])
def test_gradients_against_finite_differences(per: str):
    """PyTorch's gradcheck is the judge, at fixed random numbers."""
    layer = layer_of(4, 2, per=per)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(3)
            return self.layer(x).square().sum() + self.layer.kl()

    names = [f"layer.{name}" for name, _ in layer.named_parameters()]
    assert len(names) == 4

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(Loss(), dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x, *layer.parameters()))


def test_a_patch_of_padding_has_a_gradient():
    """Its variance is 0, where the square root has no slope."""
    conv = nn.Conv2d(1, 2, 3, padding=3, bias=False)
    bayes = uncertainty.to_bayesian(nn.Sequential(conv), "gaussian").train()
    y = bayes(torch.randn(1, 1, 4, 4))
    y.square().sum().backward()
    assert y[0, :, 0, 0].abs().max() < 1e-12
    for parameter in bayes.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_a_scale_mixture_as_prior_is_estimated_without_bias():
    """Blundell et al., Eq. (7): no closed form. The mean of many estimates is near quadrature."""
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([0.25, 0.75], dtype=torch.float64)),
        Normal(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64)),
    )
    layer, q = one_weight(prior=mixture)
    value, _ = divergence_by_quadrature(
        q, lambda w: np.log(0.25 * stats.norm(0, 1).pdf(w) + 0.75 * stats.norm(0, 0.1).pdf(w))
    )
    with torch.no_grad():
        estimates = np.array([layer.kl().item() for _ in range(1000)])
    spread = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - value) < 5 * spread


def test_evaluation_mode_is_the_network_of_the_means():
    conv = nn.Conv2d(2, 3, 3)
    bayes = uncertainty.to_bayesian(nn.Sequential(conv), "gaussian").eval()
    x = torch.randn(2, 2, 6, 6)
    means = uncertainty.mean_network(bayes)
    assert torch.equal(convfc.to_conv(means)[0].weight, conv.weight)
    assert torch.equal(bayes(x), bayes(x))
    certificate = convfc.verify(nn.Sequential(conv), means, x)
    assert certificate.holds, str(certificate)


def test_one_row_without_a_batch_axis():
    layer = layer_of(per="image")
    torch.manual_seed(1)
    y = layer(torch.ones(5, dtype=torch.float64))
    torch.manual_seed(1)
    weight, bias = layer.draw()
    assert torch.equal(y, nn.functional.linear(torch.ones(5, dtype=torch.float64), weight, bias))


def test_refusals_of_gaussian_layers():
    with pytest.raises(ArgumentError, match=r"initial_std: a number out of range; .* above 0"):
        GaussianLinear(nn.Linear(2, 2), initial_std=0.0)
    with pytest.raises(ArgumentError, match=r"prior: a number out of range; .*got -1"):
        GaussianLinear(nn.Linear(2, 2), prior=-1.0)
    many = Normal(torch.zeros(3), torch.ones(3))
    with pytest.raises(ArgumentError, match=r"prior: a prior of more than one weight; .*\[3\]"):
        GaussianLinear(nn.Linear(2, 2), prior=many)
    bayes = uncertainty.to_bayesian(nn.Sequential(nn.Conv2d(1, 2, 3)), "gaussian")
    with pytest.raises(UnsupportedLayer, match=r"its FC part is random \(GaussianLinear\)"):
        convfc.to_conv(bayes)
