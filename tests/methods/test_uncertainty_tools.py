"""Libraries that make FC layers uncertain, on CONV networks in patch form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import convfc
from convfc.methods import uncertainty

pytestmark = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


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
