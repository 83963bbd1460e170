"""Random FC layers on the rows of M: their draws, divergences and gradients, against judges.

The judges are PyTorch's convolution with the drawn weight, PyTorch's gradcheck, SciPy's
distributions and its numerical integration.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from conv_cases import CASES, ConvCase, integers
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.func import functional_call

import convfc
from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.forms import blocks
from convfc.methods import uncertainty
from convfc.methods.uncertainty import ConcreteDropoutLinear, DropoutLinear, GaussianLinear
from convfc.rounding import rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
HALF = 0.5  # kept units are doubled: exact
KINDS = [*CASES[1::8], CASES[26]]  # the laws of the patch form run on every layer
DRAWN = {"kernels": ("dropout", {"rate": HALF, "drop": "kernels", "where": "*"})}
DRAWN |= {"taps": ("dropout", {"rate": HALF, "drop": "taps"})}
DRAWN |= {"gaussian": ("gaussian", {"initial_std": HALF})}


@pytest.mark.parametrize("case", KINDS, ids=str)
@pytest.mark.parametrize("kind", DRAWN)
def test_a_draw_taken_back_to_conv_layers_computes_what_the_call_does(case: ConvCase, kind: str):
    """The proof of the methods: the FC path, and a CONV layer with the drawn weight."""
    method, options = DRAWN[kind]
    cnn, x = nn.Sequential(case.layer()), case.x()
    bayes = uncertainty.to_bayesian(cnn, method, per="call", **options)
    drawn = uncertainty.sample(bayes, seed=7)
    back = convfc.to_conv(drawn)
    assert type(back[0]) is case.cls
    assert not torch.equal(back[0].weight, cnn[0].weight)
    assert convfc.verify(back, drawn, x).holds
    torch.manual_seed(7)  # what `sample` drew is what a call draws
    y, expected = bayes.train()(x), back(x)
    if method == "dropout":
        assert torch.equal(y, expected)
        return
    moduli = copy.deepcopy(back)
    with torch.no_grad():
        for parameter in moduli.parameters():
            parameter.abs_()
        magnitude = moduli(x.abs())
    terms = math.prod(back[0].weight.shape[1:]) * 4 + 1
    assert ((y - expected).abs() <= rounding_bound(magnitude, terms, "float64")).all()


def checked_gradients(layer: nn.Module, x: Tensor) -> bool:
    """PyTorch's gradcheck through draws at fixed random numbers, and the divergence."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(3)
            return self.layer(x).square().sum() + self.layer.kl()

    names = [f"layer.{name}" for name, _ in layer.named_parameters()]

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(Loss(), dict(zip(names, values, strict=True)), (x,))

    return torch.autograd.gradcheck(loss, (x.requires_grad_(), *layer.parameters()))


# Dropout.


def half_dropped(layer: nn.Module, **options: Any) -> nn.Module:
    """The layer in patch form, under dropout in training mode."""
    model = nn.Sequential(layer)
    return uncertainty.to_bayesian(model, "dropout", rate=HALF, where="*", **options).train()


def test_every_patch_drops_kernels_of_its_own_as_native_dropout_after_the_layer_does():
    """Gal's formula, y_n = m_n K diag(z_n): an element is 0 or twice the layer's."""
    case = CASES[0]
    y, native = half_dropped(case.layer())(case.x(batch=50)), case.layer()(case.x(batch=50))
    kept = y != 0
    assert torch.equal(y[kept], 2 * native[kept])
    there = native != 0
    share = kept[there].double().mean(dim=0)
    # A binomial count of n: five standard deviations are 5 / (2 sqrt(n)).
    assert abs(float(share) - HALF) < 5 / (2 * math.sqrt(int(there.sum())))
    # Neither whole kernels nor whole patches are dropped.
    assert kept.flatten(2).any(2).all()
    assert kept.flatten(2).any(1).any()
    assert not kept.flatten(2).all(2).any()


def test_taps_of_a_patch_are_dropped_in_that_patch_only():
    """One pixel under nine windows: each window keeps or loses it by itself."""
    conv = nn.Conv2d(1, 1, 3, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    x = torch.zeros(200, 1, 5, 5, dtype=torch.float64)
    x[:, :, 2, 2] = 1
    y = half_dropped(conv, drop="taps", per="patch")(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    patterns = {tuple(image.flatten().tolist()) for image in y}
    assert len(patterns) > 100, "windows must not agree"


@pytest.mark.parametrize("per", ["image", "call"])
@pytest.mark.parametrize("drop", ["kernels", "taps"])
def test_a_draw_holds_for_all_rows_however_small_the_blocks_of_m_are(
    per: str, drop: str, monkeypatch: pytest.MonkeyPatch
):
    """M is cut into blocks where it is large; a draw must not change between two blocks."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    conv = nn.Conv2d(1, 6, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(integers(conv.weight.shape))
        conv.bias.fill_(1.0)
    y = half_dropped(conv, drop=drop, per=per)(torch.ones(3, 1, 6, 6, dtype=torch.float64))
    flat = y.flatten(2)
    assert torch.equal(flat, flat[:, :, :1].expand_as(flat)), "all windows see the same numbers"
    same_for_all = torch.equal(y, y[:1].expand_as(y))
    assert same_for_all == (per == "call")


def test_gradients_in_blocks_use_the_draws_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch):
    """Blocks are built again for the backward pass. y is linear in W: <dy/dW, W> = y."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(integers(conv.weight.shape))
    for drop in ("kernels", "taps"):
        bayes = half_dropped(conv, drop=drop)
        weight = bayes[0].fc.linear.weight
        total = (bayes(integers((3, 2, 6, 6))) * integers((3, 3, 4, 4), seed=5)).sum()
        (gradient,) = torch.autograd.grad(total, weight)
        assert (gradient * weight).sum() == total


def test_rate_zero_and_evaluation_mode_change_nothing():
    case = CASES[0]
    x = case.x()
    none = uncertainty.to_bayesian(nn.Sequential(case.layer()), "dropout", rate=0.0, where="*")
    assert torch.equal(none.train()(x), case.layer()(x))
    assert torch.equal(half_dropped(case.layer()).eval()(x), case.layer()(x))


def test_to_conv_makes_the_layer_and_native_dropout_where_that_is_the_same():
    conv = nn.Conv2d(3, 8, 3, stride=2)
    bayes = uncertainty.to_bayesian(nn.Sequential(conv), "dropout", rate=0.3, where="*")
    layer, dropout = convfc.to_conv(bayes)[0]
    assert type(layer) is nn.Conv2d
    assert torch.equal(layer.weight, conv.weight)
    assert (type(dropout), round(dropout.p, 6)) == (nn.Dropout, 0.3)


@pytest.mark.parametrize("options", [{"drop": "taps"}, {"per": "image"}, {"per": "call"}, None])
def test_to_conv_refuses_what_no_layer_with_dropout_does(options: dict[str, str] | None):
    """None: Gaussian."""
    conv = nn.Conv2d(3, 8, 3)
    if options is None:
        bayes = uncertainty.to_bayesian(nn.Sequential(conv), "gaussian")
    else:
        bayes = half_dropped(conv, **options)
    text = r"^0: its FC part is random \((Dropout|Gaussian)Linear\).*Remedy: take one draw first"
    with pytest.raises(UnsupportedLayer, match=text + ", with convfc.methods.uncertainty.sample"):
        convfc.to_conv(bayes)


def mixture_divergence(p: float, m: float, length_scale: float, s: float) -> Any:
    """KL of the mixture p N(0, s^2) + (1 - p) N(m, s^2) from N(0, 1 / l^2), and quad's error."""

    def log_q(w: float) -> float:
        one, two = (
            math.log(part) - (w - at) ** 2 / (2 * s**2) for part, at in ((p, 0), (1 - p, m))
        )
        top = max(one, two)
        return top + math.log(math.exp(one - top) + math.exp(two - top)) - math.log(s)

    def density(w: float) -> float:
        log_prior = math.log(length_scale) - (length_scale * w) ** 2 / 2
        return math.exp(log_q(w)) / math.sqrt(2 * math.pi) * (log_q(w) - log_prior)

    pieces = [quad(density, at - 12 * s, at + 12 * s, epsabs=1e-13, limit=200) for at in (0.0, m)]
    return sum(value for value, _ in pieces), sum(error for _, error in pieces)


def test_the_regulariser_is_the_divergence_of_gals_mixture():
    """Its constants fall out of a difference; W = (1 - p) M is where the usual mistake is made."""
    s, scale = 0.01, 0.7
    settings = [(0.1, 1.0), (0.5, 1.0), (0.5, -2.5), (0.9, 0.8)]
    theirs, ours, errors = [], [], []
    for p, m in settings:
        linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.fill_((1 - p) * m)
        layer = DropoutLinear(linear, p, drop="taps", length_scale=scale)
        value, error = mixture_divergence(p, m, scale, s)
        # 12 standard deviations lie inside; the two Gaussians are 80 or more apart.
        theirs.append(value)
        errors.append(error + math.erfc(12 / math.sqrt(2)) * 100)
        ours.append(float(layer.kl().detach()))
    for one in range(len(settings)):
        for other in range(one):
            apart = abs((ours[one] - ours[other]) - (theirs[one] - theirs[other]))
            assert apart <= errors[one] + errors[other] + 1e-12 * abs(theirs[one])


@pytest.mark.parametrize("drop", ["kernels", "taps"])
def test_the_units_of_the_regulariser(drop: str):
    """k inputs or f outputs; a bias belongs to its column. At p = 1/2, H is ln 2."""
    linear = nn.Linear(5, 3, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.fill_(2.0)
        linear.bias.fill_(3.0)
    units, square = (5, 60.0) if drop == "taps" else (3, 60.0 + 27.0)
    layer = DropoutLinear(linear, HALF, drop=drop, length_scale=2.0)
    expected = 4.0 * square - units * math.log(2)
    assert abs(layer.kl().item() - expected) <= 4 * torch.finfo(torch.float64).eps * abs(expected)


def test_a_conv_layer_has_the_regulariser_of_its_fc_layer_whatever_the_image():
    """It counts kernels of K, not patches: the size of the image must not enter."""
    conv = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    bayes = uncertainty.to_bayesian(nn.Sequential(conv), "concrete", rate=0.2)
    by_hand = ConcreteDropoutLinear(convfc.to_fc(conv).fc, 0.2).kl()
    before = uncertainty.kl(bayes)
    bayes(torch.randn(2, 2, 20, 20, dtype=torch.float64))
    assert before == uncertainty.kl(bayes) == by_hand


def test_concrete_gradients_against_finite_differences():
    layer = ConcreteDropoutLinear(nn.Linear(4, 3, dtype=torch.float64), 0.3, temperature=0.5)
    assert len(list(layer.parameters())) == 3
    assert checked_gradients(layer, torch.randn(2, 5, 4, dtype=torch.float64))


def test_concrete_masks_are_almost_bernoulli_and_gone_in_evaluation_mode():
    layer = ConcreteDropoutLinear(nn.Linear(1, 1, dtype=torch.float64), 0.25, temperature=0.01)
    kept = layer._kept((20000,)) * 0.75
    assert float(((kept > 0.01) & (kept < 0.99)).double().mean()) < 0.05
    count, mean = len(kept), float((kept > 0.5).double().mean())
    assert abs(mean - 0.75) < 5 * math.sqrt(0.25 * 0.75 / count)
    x = torch.randn(3, 1, dtype=torch.float64)
    assert torch.equal(layer.eval()(x), layer.linear(x))


# Gaussian weights.


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
def test_gaussian_gradients_against_finite_differences(per: str):
    layer = layer_of(4, 2, per=per)
    assert len(list(layer.parameters())) == 4
    assert checked_gradients(layer, torch.randn(2, 3, 4, dtype=torch.float64))


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


def test_one_row_without_a_batch_axis():
    layer = layer_of(per="image")
    torch.manual_seed(1)
    y = layer(torch.ones(5, dtype=torch.float64))
    torch.manual_seed(1)
    weight, bias = layer.draw()
    assert torch.equal(y, nn.functional.linear(torch.ones(5, dtype=torch.float64), weight, bias))


# What is refused.

MANY = Normal(torch.zeros(3), torch.ones(3))
RANGE = "a number out of range; expected"
REFUSED = [
    (DropoutLinear, {"rate": 1.0}, rf"rate: {RANGE} at least 0 and below 1; got 1.0"),
    (DropoutLinear, {"rate": -0.1}, r"rate: .*got -0.1"),
    (DropoutLinear, {"drop": "rows"}, r"drop: .*; expected 'kernels' or 'taps'; got 'rows'"),
    (DropoutLinear, {"per": "batch"}, r"per: .*; expected 'patch' or 'image' or 'call'"),
    (DropoutLinear, {"length_scale": 0.0}, rf"length_scale: {RANGE} above 0; got 0"),
    (ConcreteDropoutLinear, {"rate": 0.0}, rf"rate: {RANGE} above 0 and below 1; got 0"),
    (ConcreteDropoutLinear, {"temperature": 0.0}, rf"temperature: {RANGE} above 0; got 0"),
    (GaussianLinear, {"initial_std": 0.0}, rf"initial_std: {RANGE} above 0; got 0"),
    (GaussianLinear, {"prior": -1.0}, rf"prior: {RANGE} above 0; got -1"),
    (GaussianLinear, {"prior": MANY}, r"prior: the prior is not of a single weight; .*\[3\]"),
]


@pytest.mark.parametrize(("cls", "options", "text"), REFUSED)
def test_refused_numbers(cls: type[nn.Module], options: dict[str, Any], text: str):
    with pytest.raises(ArgumentError, match=text):
        cls(nn.Linear(2, 2), **options)
