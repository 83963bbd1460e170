"""Libraries that make FC layers uncertain, on CONV networks in patch form."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convfc
from convfc.methods import uncertainty

pytestmark = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


def cnn(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(4, 6, 3, dilation=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 3 * 3, 3),
    ).to(dtype).eval()  # fmt: skip


def posterior(model: nn.Module, dtype: torch.dtype) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what laplace-torch imports
        from laplace import Laplace
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 1, 13, 13, generator=generator).to(dtype)
    y = torch.randint(0, 3, (24,), generator=generator)
    found = Laplace(model, "classification", subset_of_weights="all", hessian_structure="kron")
    found.fit(DataLoader(TensorDataset(x, y), batch_size=8))
    return found


def test_laplace_of_the_fc_form_is_laplace_of_the_cnn():
    """laplace-torch knows Conv2d as well: it is the judge. Kronecker factors see only patches."""
    x = torch.randn(5, 1, 13, 13, generator=torch.Generator().manual_seed(2))
    variances = {}
    for dtype in (torch.float32, torch.float64):
        for name, model in (("cnn", cnn(dtype)), ("fc", convfc.to_fc(cnn(dtype)))):
            found = posterior(model, dtype)
            mean, variance = found._glm_predictive_distribution(x.to(dtype))
            assert mean.shape == (5, 3)
            variances[name, dtype] = variance.double()
    rounding = (variances["cnn", torch.float32] - variances["cnn", torch.float64]).abs().max()
    apart = (variances["cnn", torch.float64] - variances["fc", torch.float64]).abs().max()
    assert rounding > 0
    assert apart <= rounding, "in float64 they differ by less than rounding to float32 makes"
    assert variances["fc", torch.float64].diagonal(dim1=1, dim2=2).min() > 0


def test_a_laplace_draw_goes_home():
    model = convfc.to_fc(cnn(torch.float64))
    found = posterior(model, torch.float64)
    drawn = copy.deepcopy(model)
    # laplace-torch orders a sample as the parameters of the model.
    vector = found.sample(1, generator=torch.Generator().manual_seed(3))[0]
    nn.utils.vector_to_parameters(vector, drawn.parameters())
    back = convfc.to_conv(drawn)
    assert type(back[0]) is nn.Conv2d
    assert not torch.equal(back[0].weight, cnn(torch.float64)[0].weight)
    x = torch.randn(2, 1, 13, 13, dtype=torch.float64)
    assert convfc.verify(back, drawn, x).holds


def flipped(fc: nn.Module, kind: str) -> nn.Module:
    """What bayesian-torch makes of a network: every Linear, by the type."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    dnn_to_bnn(
        fc,
        {
            "prior_mu": 0.0,
            "prior_sigma": 1.0,
            "posterior_mu_init": 0.0,
            "posterior_rho_init": -3.0,
            "type": kind,
            "moped_enable": True,
            "moped_delta": 0.5,
        },
    )
    return fc


@pytest.mark.parametrize("kind", ["Reparameterization", "Flipout"])
def test_bayesian_torch_takes_the_patch_form_and_keeps_every_hyper_parameter(kind: str):
    """On the CNN itself it drops the padding mode; on FC layers there is none to drop."""
    conv = nn.Conv2d(1, 4, 3, padding=2, padding_mode="circular", dtype=torch.float32)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3))
    bayes = flipped(convfc.to_fc(model), kind)
    assert type(bayes[0].fc).__name__ == f"Linear{kind}"
    found = uncertainty.predict(bayes, torch.randn(4, 1, 8, 8), 10)
    assert found.mutual_information.min() > 0
    # Deviations of almost nothing: the mean network, through the circular padding.
    x = torch.randn(2, 1, 8, 8)
    layer = bayes[0].fc
    with torch.no_grad():
        layer.rho_weight.fill_(-40.0)
        layer.rho_bias.fill_(-40.0)
        y, native = bayes[0](x), conv(x)
        magnitude = nn.functional.conv2d(
            nn.functional.pad(x.abs(), (2, 2, 2, 2), mode="circular"),
            layer.mu_weight.abs().reshape(4, 3, 3, 1).movedim(-1, 1),
            layer.mu_bias.abs(),
        )
        assert torch.equal(layer.mu_weight.reshape(4, 3, 3, 1).movedim(-1, 1), conv.weight)
        assert ((y - native).abs() <= 2 * 12 * 2.0**-24 * magnitude).all()
        plain = flipped(nn.Sequential(copy.deepcopy(conv)), kind)
        plain[0].rho_kernel.fill_(-40.0)
        plain[0].rho_bias.fill_(-40.0)
        theirs = plain(x)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        assert (theirs - native).abs().max() > 0.01, "it keeps the padding mode now"


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("size", [16, 64, 200, 400])
def test_a_layer_of_another_library_draws_once_for_all_images_of_a_call(
    size: int, mode: str, grad: bool
):
    """At 200 pixels and more M is larger than a block, and every block would see a draw."""
    bayes = flipped(convfc.to_fc(nn.Sequential(nn.Conv2d(3, 8, 3))), "Reparameterization")
    getattr(bayes, mode)()
    x = torch.ones(2, 3, size, size)
    with torch.set_grad_enabled(grad):
        first, second = bayes(x), bayes(x)
    # One draw gives one number at all positions, but for the rounding of 28 terms of size below 1.
    spread = (first - first[:1, :, :1, :1]).abs().max().item()
    assert spread <= 2 * 28 * 2.0**-24 * 28
    assert (first - second).abs().max() > 1e-3, "the next call draws again"
