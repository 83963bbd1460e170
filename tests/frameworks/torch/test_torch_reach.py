"""Convolutions outside Python: found where they are, and no alarm where there are none."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import net
from torch import nn

from convfc.errors import Refusal
from convfc.frameworks.torch.forms.calls import CONVOLUTIONS
from convfc.frameworks.torch.reach import out_of_reach


def scripted(model: nn.Module, how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that TorchScript is deprecated
        if how == "trace":
            return torch.jit.trace(model.eval(), torch.ones(1, 1, 6, 6))
        made = torch.jit.script(model.eval())
        return torch.jit.freeze(made) if how == "freeze" else made


@pytest.mark.parametrize(
    ("how", "inner"),
    [
        ("script", nn.Conv2d(1, 1, 2)),
        ("trace", net(lambda m, x: F.conv2d(x, torch.ones(1, 1, 2, 2)))),
        ("freeze", nn.ConvTranspose2d(1, 1, 2)),
    ],
    ids=["script", "trace", "freeze"],
)
def test_torchscript_with_a_convolution_is_found_once(how: str, inner: nn.Module) -> None:
    part = scripted(nn.Sequential(inner, nn.ReLU()), how)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), part)
    found = Refusal(
        "it is TorchScript with convolutions inside",
        "convert the Python model, before torch.jit.script, trace or freeze",
        "1",
    )
    assert out_of_reach(model) == [("TorchScript", found)]


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_without_a_convolution_is_not(how: str) -> None:
    part = scripted(nn.Sequential(nn.Flatten(0), nn.ReLU()), how)
    assert out_of_reach(nn.Sequential(part)) == []


def test_quantised_layers_are_found_and_fused_float_ones_are_not() -> None:
    from torch.ao.nn import intrinsic
    from torch.ao.nn import quantized as q

    fused = intrinsic.ConvReLU2d(nn.Conv2d(1, 1, 2), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that quantised tensors are deprecated
        layers = q.Conv2d(1, 1, 2), fused, intrinsic.quantized.ConvReLU2d(1, 1, 2), q.Linear(2, 2)
    model = nn.Sequential(*layers)
    findings = out_of_reach(model)
    assert [(found.where, kind) for kind, found in findings] == [
        ("0", "quantised"),
        ("2", "quantised"),
    ]
    _, first = findings[0]
    assert "torch.ao.nn.quantized" in first.reason
    assert first.remedy == "convert the float model, and quantise the FC model afterwards"


def test_the_functions_of_torch_are_all_known() -> None:
    """A new function of PyTorch that convolves has to be looked at."""
    names = {name for name in dir(torch.nn.functional) if name.startswith("conv")}
    assert {getattr(F, name) for name in names} <= set(CONVOLUTIONS)
    assert {"conv2d", "conv_transpose3d", "conv_tbc", "convolution"} <= set(CONVOLUTIONS.values())
