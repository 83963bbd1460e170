"""Convolutions that are no CONV layer: found where they are, and no alarm where there are none."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from functional_models import REAL, SEEMING, ByMethod, ByName, ByTable, Direct, Parent, helper
from networks import net
from torch import nn

import convfc
from convfc.errors import Refusal
from convfc.frameworks.torch.functional import CONVOLUTIONS, functional_convolutions


@pytest.mark.parametrize("cls", REAL, ids=lambda cls: cls.__name__)
def test_a_convolution_in_a_forward_is_found(cls: type[nn.Module]) -> None:
    part = cls()
    assert part(torch.ones(2, 1, 4, 4)) is not None  # it is code that runs
    ((kind, finding),) = functional_convolutions(nn.Sequential(nn.Conv2d(1, 1, 1), part))
    assert finding.where == "1"
    assert kind == "function"
    assert "conv" in finding.reason
    assert "functional_models.py:" in finding.reason
    assert finding.remedy == "call an nn.Conv module instead, whose weight is its parameter"


def test_the_message_names_function_and_place() -> None:
    line = ByMethod.blur.__code__.co_firstlineno
    found = Refusal(
        f"its forward reaches conv2d as a function (ByMethod.blur, functional_models.py:{line})",
        "call an nn.Conv module instead, whose weight is its parameter",
    )
    assert functional_convolutions(ByMethod()) == [("function", found)]


def test_a_forward_set_on_the_object_counts() -> None:
    part = nn.Identity()
    assert functional_convolutions(part) == []
    part.forward = lambda x: F.conv2d(x, torch.ones(1, 1, 2, 2))
    assert [finding.where for _, finding in functional_convolutions(part)] == [""]


def test_findings_come_in_the_models_order_and_once_for_the_part_that_convolves() -> None:
    shared = Direct()
    model = nn.Sequential(ByName(), shared, nn.Sequential(shared, ByTable()))
    assert [finding.where for _, finding in functional_convolutions(model)] == ["0", "1", "2.1"]
    assert [finding.where for _, finding in functional_convolutions(Parent())] == ["part"]
    graph = torch.fx.symbolic_trace(Direct())
    assert ["conv2d" in finding.reason for _, finding in functional_convolutions(graph)] == [True]


@pytest.mark.parametrize("cls", SEEMING, ids=lambda cls: cls.__name__)
def test_no_false_alarm(cls: type[nn.Module]) -> None:
    assert cls()(torch.ones(1, 1, 4, 4)) is not None
    assert functional_convolutions(cls()) == []


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_no_alarm_in_the_forms_themselves(form: str) -> None:
    layers = nn.Conv2d(2, 4, 2, groups=2), nn.ConvTranspose2d(4, 2, 2), nn.LazyConv2d(3, 1)
    model = convfc.to_fc(nn.Sequential(*layers[:2]), form=form)
    assert functional_convolutions(nn.Sequential(model, *layers)) == []


ZOO = [
    *("alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "fasterrcnn_resnet50_fpn"),
    *("googlenet", "maxvit_t", "quantized_resnet18", "raft_small", "shufflenet_v2_x0_5"),
    *("squeezenet1_0", "ssdlite320_mobilenet_v3_large", "swin3d_t", "vit_b_16"),
]
"""Forwards of every kind; without numbers, since only code is read."""


@pytest.mark.parametrize("name", ZOO)
def test_no_false_alarm_in_torchvision(name: str) -> None:
    parts = {"weights_backbone": None} if name.startswith(("deeplab", "faster", "ssd")) else {}
    if name == "googlenet":
        parts = {"init_weights": False}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **parts)
    assert functional_convolutions(model) == []


def scripted(model: nn.Module, how: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that TorchScript is deprecated
        if how == "trace":
            return torch.jit.trace(model.eval(), torch.ones(1, 1, 6, 6))
        made = torch.jit.script(model.eval())
        return torch.jit.freeze(made) if how == "freeze" else made


@pytest.mark.parametrize(
    ("how", "inner"),
    [("script", nn.Conv2d(1, 1, 2)), ("trace", Direct()), ("freeze", nn.ConvTranspose2d(1, 1, 2))],
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
    assert functional_convolutions(model) == [("TorchScript", found)]


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_without_a_convolution_is_not(how: str) -> None:
    part = scripted(nn.Sequential(nn.Flatten(0), nn.ReLU()), how)
    assert functional_convolutions(nn.Sequential(part)) == []


def test_a_scripted_function_in_a_forward_is_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blur = torch.jit.script(helper)

    part = net(lambda m, x: blur(x, torch.ones(1, 1, 2, 2)))
    ((_, finding),) = functional_convolutions(part)
    assert "helper (TorchScript)" in finding.reason


def test_quantised_layers_are_found_and_fused_float_ones_are_not() -> None:
    from torch.ao.nn import intrinsic
    from torch.ao.nn import quantized as q

    fused = intrinsic.ConvReLU2d(nn.Conv2d(1, 1, 2), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that quantised tensors are deprecated
        layers = q.Conv2d(1, 1, 2), fused, intrinsic.quantized.ConvReLU2d(1, 1, 2), q.Linear(2, 2)
    model = nn.Sequential(*layers)
    findings = functional_convolutions(model)
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
