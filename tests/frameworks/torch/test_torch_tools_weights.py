"""Quantisation and pruning of FC layers, on the CONV layers of a CNN, and back.

The judges are the same tools on plain nn.Linear whose rows are PyTorch's own `unfold`, and on the
CONV layers themselves where a tool knows them.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import through_a_file
from torch import Tensor, nn
from torch.nn.utils import prune

import convfc
from convfc.errors import UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch.forms import blocks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch, about what torchao imports
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


@pytest.fixture
def cnn() -> nn.Sequential:
    """Return a CNN with a strided layer, a grouped one and a dilated one."""
    torch.manual_seed(1712)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 16, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    ).eval()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """What a tool finds that looks for the type."""
    return {name: part for name, part in model.named_modules() if type(part) is nn.Linear}


def conv_layers(model: nn.Module) -> list[nn.Conv2d]:
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)]


# ---------------------------------------------------------------------------------- quantisation


def torchao_int8(model: nn.Module) -> nn.Module:
    quantize_(model, Int8WeightOnlyConfig())
    return model


def dynamic_int8(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


QUANTISE = {"torchao-int8-weights": torchao_int8, "torch.ao-dynamic-int8": dynamic_int8}
each_tool = pytest.mark.parametrize("quantise", QUANTISE.values(), ids=QUANTISE)


def children(layer: nn.Module) -> list[nn.Module]:
    return list(layer.fc) if isinstance(layer.fc, nn.ModuleList) else [layer.fc]


def by_unfold(conv: nn.Conv2d, quantise: Callable[[nn.Module], nn.Module], x: Tensor) -> Tensor:
    """A layer as quantised nn.Linear on the rows that PyTorch's own `unfold` gives, per group."""
    options = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    parts = []
    for weight, bias, channels in zip(
        conv.weight.chunk(conv.groups), conv.bias.chunk(conv.groups), x.chunk(conv.groups, 1),
        strict=True,
    ):  # fmt: skip
        linear = nn.Linear(weight[0].numel(), len(weight))
        linear.weight, linear.bias = nn.Parameter(weight.flatten(1)), nn.Parameter(bias)
        rows = nn.functional.unfold(channels, conv.kernel_size, **options).transpose(1, 2)
        parts.append(quantise(nn.Sequential(linear))(rows.contiguous()))
    return torch.cat(parts, dim=-1).transpose(1, 2)


def dequantised(child: Any) -> Tensor:
    weight: Tensor = (child.weight() if callable(child.weight) else child.weight).dequantize()
    return weight


@each_tool
def test_it_leaves_the_conv_layers_of_a_cnn_as_they_are(
    quantise: Callable[[nn.Module], nn.Module], cnn: nn.Sequential
) -> None:
    tool = quantise(copy.deepcopy(cnn))
    assert all(map(torch.equal, *([c.weight for c in conv_layers(m)] for m in (tool, cnn))))
    assert type(tool[6]) is not nn.Linear or type(tool[6].weight) is not nn.Parameter


@each_tool
def test_in_patch_form_it_quantises_every_layer_as_it_does_linear_layers_on_unfolded_inputs(
    quantise: Callable[[nn.Module], nn.Module], cnn: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call: dynamic quantisation measures all rows of it."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1024)
    tool = quantise(convfc.to_fc(cnn))
    for _, child in tool.named_modules():
        assert type(child) is not nn.Linear or type(child.weight) is not nn.Parameter
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for layer, conv in zip(tool, cnn, strict=True):
            y = layer(x)
            if isinstance(conv, nn.Conv2d):
                assert torch.equal(y.flatten(2), by_unfold(conv, quantise, x))
                assert not torch.equal(y, conv(x))
            x = y


@each_tool
def test_a_quantised_network_comes_back_with_the_rounded_weights(
    quantise: Callable[[nn.Module], nn.Module], cnn: nn.Sequential
) -> None:
    tool = quantise(convfc.to_fc(cnn))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if quantise is torchao_int8 else "ignore")
        back = convfc.to_conv(tool)
    for layer, conv, old in zip(tool, back, cnn, strict=True):
        if isinstance(old, nn.Conv2d):
            assert type(conv) is nn.Conv2d
            rounded = torch.cat([dequantised(child) for child in children(layer)])
            assert torch.equal(conv.weight, rounded.view_as(conv.weight))
            step = old.weight.abs().amax() / 127
            assert 0 < (conv.weight - old.weight).abs().max() <= step
            assert torch.equal(conv.bias, old.bias)
    if quantise is torchao_int8:  # it rounds weights only, so that this is the same network
        x = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(back(x), tool(x), rtol=0, atol=1e-6)
    else:
        with pytest.warns(UnsupportedLayerWarning, match="rounds its input as well"):
            convfc.to_conv(tool)


# --------------------------------------------------------------------------------------- pruning


def pruned(model: nn.Module, amount: float = 0.7) -> nn.Module:
    """All weights together, the smallest ones, as PyTorch's tutorial does it for Linear layers."""
    targets = [(part, "weight") for part in linears(model).values()]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=amount)
    return model


def made_permanent(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if prune.is_pruned(part) and "weight_mask" in part._buffers:
            prune.remove(part, "weight")
    return model


def test_pruned_fc_children_come_back_as_the_pruned_cnn(cnn: nn.Sequential) -> None:
    x = torch.randn(2, 3, 16, 16)
    fc = pruned(convfc.to_fc(cnn))
    with torch.no_grad():
        y = fc(x)
    with pytest.raises(UnsupportedLayer, match=r"computed before every call.*prune\.remove"):
        convfc.to_conv(fc)
    back = convfc.to_conv(made_permanent(fc))

    targets = [(part, "weight") for part in [*conv_layers(cnn), cnn[6]]]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=0.7)
    expected = made_permanent(cnn)
    for ours, theirs in zip(conv_layers(back), conv_layers(expected), strict=True):
        assert torch.equal(ours.weight, theirs.weight)
    assert sum((p == 0).sum().item() for p in back.parameters()) > 0.6 * sum(
        p.numel() for p in back.parameters()
    )
    with torch.no_grad():
        torch.testing.assert_close(y, expected(x))
        assert torch.equal(back(x), expected(x))


def test_whole_taps_are_pruned_which_axes_of_a_conv_weight_cannot_say(cnn: nn.Sequential) -> None:
    """The axis ``dim=1`` is a pixel of a channel here; of a CONV weight, a channel."""
    fc = convfc.to_fc(cnn, where="0")
    prune.ln_structured(fc[0].fc, "weight", amount=14, n=2, dim=1)
    back = convfc.to_conv(made_permanent(fc))[0]
    empty = (back.weight == 0).all(dim=0)  # (c, *kernel)
    assert empty.sum() == 14
    assert (empty.any(dim=(1, 2)) & ~empty.all(dim=(1, 2))).any()  # a part of a channel
    norms = cnn[0].weight.detach().square().sum(dim=0)
    assert norms[empty].max() < norms[~empty].min()


def test_training_goes_on_under_the_mask(cnn: nn.Sequential) -> None:
    fc = pruned(convfc.to_fc(cnn))
    optimizer = torch.optim.SGD(fc.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = fc(torch.ones(2, 3, 16, 16)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    masks = [child.weight_mask for layer in (fc[0], fc[2], fc[4]) for child in children(layer)]
    back = through_a_file(convfc.to_conv(made_permanent(fc)))
    weights = [w for conv in conv_layers(back) for w in conv.weight.chunk(conv.groups)]
    for mask, weight, old in zip(masks, weights, [
        w for conv in conv_layers(cnn) for w in conv.weight.chunk(conv.groups)
    ], strict=True):  # fmt: skip
        assert not weight.flatten(1)[mask == 0].any()
        assert not torch.equal(weight.flatten(1), old.flatten(1) * mask)
