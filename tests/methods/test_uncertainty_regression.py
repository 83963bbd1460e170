"""Values with their variances: the law of total variance, against PyTorch's mixtures and fractions.

The judges are exact fractions, PyTorch's MixtureSameFamily and GaussianNLLLoss, and NumPy.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from convfc.errors import ShapeError
from convfc.methods import uncertainty
from convfc.methods.uncertainty import RegressionPrediction

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")
U = 2.0**-53


class Drawn(nn.Module):
    """What was drawn beforehand, one after the other: what `predict` makes of it is the test."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs, self.calls = outputs, -1

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        parts = [part[self.calls] for part in self.outputs]
        return parts[0] if len(parts) == 1 else tuple(parts)


def found(*outputs: Tensor, **options: Any) -> RegressionPrediction:
    draws, count = outputs[0].shape[:2]
    x = torch.zeros(count, 1)
    return uncertainty.predict(Drawn(*outputs), x, draws, output="values", **options)


def test_means_and_variances_of_integers_are_those_of_fractions():
    """Of two, four, and of three draws, whose thirds are rounded once at a time."""
    for draws in (1, 2, 3, 4, 8):
        values = torch.randint(-9, 10, (draws, 5, 2, 3)).double()
        got = found(values)
        for place in np.ndindex(5, 2, 3):
            one = [Fraction(v.item()) for v in values[(slice(None), *place)]]
            mean = sum(one, Fraction()) / draws
            variance = sum(((v - mean) ** 2 for v in one), Fraction()) / draws
            # Each update is a few roundings of numbers below 18, or of squares below 18 ** 2.
            assert abs(Fraction(got.mean[place].item()) - mean) <= 4 * draws * 18 * U
            assert abs(Fraction(got.variance[place].item()) - variance) <= 8 * draws * 18**2 * U
        assert torch.equal(got.variance, got.epistemic_variance)
        assert got.aleatoric_variance.abs().max() == 0
    exact = found(torch.tensor([[[1.0]], [[5.0]]]))
    assert (exact.mean.item(), exact.variance.item(), exact.std.item()) == (3.0, 4.0, 2.0)


def test_the_variance_of_large_numbers_that_hardly_differ():
    """Welford's bound, n κ u (Chan, Golub & LeVeque 1983); squares would lose κ times more."""
    draws = 20
    values = 1e8 + torch.randn(draws, 6, 4, dtype=torch.float64)
    got = found(values)
    for place in np.ndindex(6, 4):
        one = [Fraction(v.item()) for v in values[(slice(None), *place)]]
        mean = sum(one, Fraction()) / draws
        variance = float(sum(((v - mean) ** 2 for v in one), Fraction()) / draws)
        condition = (1 + float(mean) ** 2 / variance) ** 0.5
        assert abs(got.variance[place].item() - variance) <= draws * condition * U * variance
        assert variance > 0.1


def test_the_law_of_total_variance_against_pytorchs_mixture():
    """The mixture of the draws' Gaussians: its mean and variance, whichever draw it was."""
    values = torch.randn(16, 4, 3, 5, dtype=torch.float64)
    log_variance = torch.randn(16, 4, 3, 5, dtype=torch.float64)
    got = found(values, log_variance, keep=True)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(4, 3, 5, 16, dtype=torch.float64)),
        Normal(values.movedim(0, -1), (log_variance / 2).exp().movedim(0, -1)),
    )
    size = float(values.abs().max() ** 2 + log_variance.max().exp())
    assert (got.mean - mixture.mean).abs().max() <= 64 * U * size
    assert (got.variance - mixture.variance).abs().max() <= 64 * U * size
    assert torch.equal(got.variance, got.epistemic_variance + got.aleatoric_variance)
    assert got.epistemic_variance.min() > 1e-3
    assert got.aleatoric_variance.min() > 1e-3
    # Each part alone: equal values leave the mean of the variances, equal variances their own.
    noisy = found(values[:1].expand_as(values), log_variance)
    assert noisy.epistemic_variance.max() <= 64 * U * size * U * size
    assert (noisy.aleatoric_variance - log_variance.exp().mean(dim=0)).abs().max() <= 64 * U * size
    assert isinstance(got.draws, tuple)
    assert all(map(torch.equal, got.draws, (values, log_variance)))
    assert torch.equal(got.std.square().sqrt(), got.std)


def pair(per: str = "patch") -> nn.Module:
    """From images (n, 1, 6, 6) to a map of values and one of log variances, as many do it."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
            self.mean, self.log_variance = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x)
            return self.mean(h), self.log_variance(h)

    return uncertainty.to_bayesian(Heads(), "gaussian", per=per)


def test_a_network_of_two_heads_against_numpy_in_batches_and_at_once():
    model, x = pair("call").double(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    got = uncertainty.predict(model, x, 12, output="values", keep=True, seed=4)
    values, log_variance = (draws.numpy() for draws in got.draws)
    assert values.shape == (12, 5, 2, 6, 6)
    size = np.abs(values).max() ** 2 + np.exp(log_variance.max())
    assert np.abs(got.mean.numpy() - values.mean(axis=0)).max() <= 64 * U * size
    assert np.abs(got.epistemic_variance.numpy() - values.var(axis=0)).max() <= 64 * U * size
    noise = np.exp(log_variance).mean(axis=0)
    assert np.abs(got.aleatoric_variance.numpy() - noise).max() <= 64 * U * size
    assert got.epistemic_variance.min() > 0
    few = uncertainty.predict(model, x, 12, output="values", keep=True, seed=4, batch_size=2)
    assert [draws.shape for draws in few.draws] == [draws.shape for draws in got.draws]
    # Products of other sizes may be added in another order: at most 15 terms of numbers below 20.
    assert (few.mean - got.mean).abs().max() <= 2 * 15 * U * 20
    alone = uncertainty.predict(model, x, 1, output="values")
    assert alone.epistemic_variance.abs().max() == 0
    assert alone.aleatoric_variance.min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_added_is_float64_whatever_the_network_computes_in(dtype: torch.dtype):
    """256 draws of 100 and 101: in half precision their sum would stop growing."""
    values = (100 + torch.arange(256)[:, None, None] % 2).to(dtype).expand(256, 3, 1)
    got = found(values, torch.zeros_like(values))
    assert got.mean.dtype == got.variance.dtype == torch.float64
    assert (got.mean - 100.5).abs().max() <= 1024 * U * 100
    assert (got.epistemic_variance - 0.25).abs().max() <= 1024 * U * 100
    assert torch.equal(got.aleatoric_variance, torch.ones(3, 1, dtype=torch.float64))


def test_pytorchs_loss_is_the_papers():
    """Kendall & Gal, Eq. (8), with the half of every Gaussian: nothing of ours is needed."""
    model, x = pair().double(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    y = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    mean, log_variance = model(x)
    theirs = nn.GaussianNLLLoss()(mean, y, log_variance.exp())
    eq8 = (0.5 * (-log_variance).exp() * (y - mean) ** 2 + 0.5 * log_variance).mean()
    assert abs(theirs - eq8) <= 400 * U * (y - mean).detach().square().max()
    ours, gradients = (
        torch.autograd.grad(loss, [log_variance], retain_graph=True)[0] for loss in (eq8, theirs)
    )
    assert (ours - gradients).abs().max() <= 64 * U * float(ours.abs().max())


class Named(nn.Module):
    """Outputs by name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": x, "scale": torch.zeros_like(x), "rest": x}


def test_refusals_of_values():
    values, log_variance = torch.randn(2, 4, 3), torch.randn(2, 4, 1)
    for outputs, text in (
        ((values, log_variance), r"got tuple of \(4, 3\), \(4, 1\)"),
        ((values, values, values), r"got tuple of \(4, 3\), \(4, 3\), \(4, 3\)"),
        ((values[:, :2], values[:, :2]), r"got tuple of \(2, 3\)"),
    ):
        with pytest.raises(ShapeError, match=r"Drawn: the network does not return one row of "
                           r"values per image; expected values of shape \(4, ...\), or a pair: "
                           r"values and log variances; " + text):  # fmt: skip
            uncertainty.predict(Drawn(*outputs), torch.zeros(4, 1), 2, output="values")
    assert found(values[..., 0]).mean.shape == (4,)
    named = nn.Sequential(nn.Dropout(), Named())
    with pytest.raises(
        ShapeError,
        match=r"got dict of mean, scale, rest\. Remedy: have it return "
        r"them alone, .*\(lambda module, inputs, y: \(y\['mean'\], y\['scale'\]\)\)$",
    ):
        uncertainty.predict(named, torch.ones(4, 3), 2, output="values")
    named.register_forward_hook(lambda module, inputs, y: (y["mean"], y["scale"]))
    assert uncertainty.predict(named, torch.ones(4, 3), 9, output="values").variance.min() > 1
