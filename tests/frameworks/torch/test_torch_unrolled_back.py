"""to_conv of the unrolled form: what the matrix says of the layer, and what it does not."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from conv_cases import integers
from torch import nn

import convfc
from convfc.errors import NotAConvolution, UnsupportedLayer, UnsupportedLayerWarning
from convfc.rounding import rounding_bound


class Stem(nn.Conv2d):
    """A class of the user's own, whose forward is PyTorch's."""


def test_class_attributes_mode_and_frozen_parameters_come_back() -> None:
    layer = Stem(3, 4, 3).eval()
    layer.note = "mine"
    layer.register_buffer("extra", torch.ones(2))
    layer.bias.requires_grad_(requires_grad=False)
    after = convfc.unroll(layer, torch.randn(2, 3, 5, 6))
    assert (after.note, after.kernel_size) == ("mine", (3, 3))  # what the model may ask
    after.note = "changed since"
    after.stride = (2, 2)  # nothing reads it: the matrix is that of stride 1
    back = convfc.to_conv(after)
    assert type(back) is Stem
    assert (back.note, back.stride, back.training) == ("changed since", (1, 1), False)
    assert (back.weight.requires_grad, back.bias.requires_grad) == (True, False)
    assert torch.equal(back.extra, layer.extra)


def test_weights_that_no_output_reads_are_kept() -> None:
    """On one pixel a 3x3 kernel reads padding with eight of its nine taps."""
    layer = nn.Conv2d(2, 3, 3, padding=1)
    after = convfc.unroll(layer, torch.zeros(1, 2, 1, 1))
    assert torch.equal(convfc.to_conv(after).weight, layer.weight)
    with torch.no_grad():
        after[1].weight.mul_(2)
    back = convfc.to_conv(after).weight
    assert torch.equal(back[..., 1, 1], 2 * layer.weight[..., 1, 1])
    assert torch.equal(back[..., 0, :], layer.weight[..., 0, :])


def test_weights_of_which_the_matrix_has_only_sums() -> None:
    """On one pixel in replicate padding all nine taps read the same element."""
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")
    x = torch.randn(4, 2, 1, 1)
    after = convfc.unroll(layer, x)
    assert torch.equal(convfc.to_conv(after).weight, layer.weight)
    with torch.no_grad():
        after[1].weight.mul_(2)
    back = convfc.to_conv(after)
    sums = 2 * layer.weight.detach().abs().sum((2, 3)) @ x[:, :, 0, 0].abs().T
    sums = sums.T + 2 * layer.bias.detach().abs()
    # 18 taps and a bias; the weights of least norm have taken another 9 terms, and so has A.
    bound = rounding_bound(sums.double(), 18 + 1 + 9 + 9, "float32")
    assert ((back(x) - after(x)).detach().abs()[..., 0, 0] <= bound).all()


ENTRIES = {
    "in the pattern": ((5, 13), r"0: .*matrix\[5, 13\].*\(0, 5\), filter 0 <- .*as its tap has"),
    "off the pattern": ((5, 60), r"0: .*matrix\[5, 60\].*expected 0, since no tap reads there"),
}


@pytest.mark.parametrize(("index", "message"), ENTRIES.values(), ids=ENTRIES)
def test_a_matrix_that_is_not_a_convolution_is_refused_by_layer_and_entry(
    index: tuple[int, int], message: str
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    after = convfc.unroll(model, torch.zeros(1, 1, 9, 8))
    with torch.no_grad():
        after[0][1].weight[index] += 0.5
    with pytest.raises(UnsupportedLayer, match=message) as caught:
        convfc.to_conv(after)
    assert isinstance(caught.value.__cause__, NotAConvolution)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: 0"):
        left = convfc.to_conv(after, strict=False)
    assert type(left[0]) is nn.Sequential


def test_a_bias_that_differs_between_positions_is_refused() -> None:
    after = convfc.unroll(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 5, 5))
    with torch.no_grad():
        after[0][1].bias[9 + 4] += 0.5
    with pytest.raises(UnsupportedLayer, match=r"0: .*bias\[13\]: the bias of a filter differs"):
        convfc.to_conv(after)
    with pytest.warns(UnsupportedLayerWarning, match="0: its bias .* mean over positions"):
        back = convfc.to_conv(after, project=True)
    assert torch.equal(back[0].bias, after[0][1].bias.view(2, 9).mean(1))


def test_the_closest_convolution_on_request() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    after = convfc.unroll(nn.Sequential(layer), torch.zeros(1, 2, 5, 4)).double()
    matrix = after[0][1].weight
    with torch.no_grad():
        matrix.add_(torch.randn_like(matrix))
    with pytest.warns(UnsupportedLayerWarning, match=r"0: the closest convolution is .* away") as w:
        back = convfc.to_conv(after, project=True)
    A = torch.from_numpy(convfc.conv_matrix(back[0], (5, 4), layout="dense"))
    matrix = matrix.detach()
    assert f"{float((A - matrix).norm()):.3g} away" in str(w[0].message)
    # The residual of least squares is orthogonal to the matrix of every convolution.
    for seed in range(3):
        probe = copy.deepcopy(back[0])
        probe.weight.data = integers(probe.weight.shape, seed=seed)
        other = torch.from_numpy(convfc.conv_matrix(probe, (5, 4), layout="dense"))
        bound = 2 * matrix.numel() * 2.0**-53 * float((other.abs() * (A - matrix).abs()).sum())
        assert abs(float((other * (A - matrix)).sum())) <= bound
    true = convfc.unroll(nn.Sequential(layer), torch.zeros(1, 2, 5, 4))
    assert torch.equal(convfc.to_conv(true, project=True)[0].weight, layer.weight)  # no warning


def test_the_closest_convolution_keeps_weights_that_no_output_reads() -> None:
    """On 2x2 a tap two elements away from the middle reads padding only."""
    layer = nn.Conv2d(1, 2, 5, padding=2)
    after = convfc.unroll(nn.Sequential(layer), torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        after[0][1].weight[0, 0] += 1
    with pytest.warns(UnsupportedLayerWarning, match="0: the closest convolution"):
        back = convfc.to_conv(after, project=True)[0]
    assert torch.equal(back.weight[..., 0, :], layer.weight[..., 0, :])
    torch.testing.assert_close(back.weight[0, 0, 2, 2], layer.weight[0, 0, 2, 2] + 0.25)


def test_factors_are_multiplied_out_and_others_refused() -> None:
    layer = nn.Conv2d(1, 2, 3, dtype=torch.float64)
    after = convfc.unroll(nn.Sequential(layer), torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    linear = after[0][1]
    double = nn.Linear(8, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(8))
    after[0][1] = nn.Sequential(linear, double)
    back = convfc.to_conv(after)
    assert torch.equal(back[0].weight, 2 * layer.weight)
    assert back[0].weight.requires_grad
    assert torch.equal(back[0].bias, 2 * layer.bias)
    after[0][1] = nn.Sequential(linear, nn.ReLU(), double)
    with pytest.raises(UnsupportedLayer, match="0: its FC part is not a product of matrices"):
        convfc.to_conv(after)
    after[0][1] = nn.Linear(16, 9)
    with pytest.raises(UnsupportedLayer, match=r"0: its FC part has the sizes \(9, 16\), where"):
        convfc.to_conv(after)
    after[0].append(nn.ReLU())
    with pytest.raises(UnsupportedLayer, match="0: its parts are Flatten, Linear, Unflatten, ReLU"):
        convfc.to_conv(after)


def test_a_matrix_that_something_else_holds_is_refused() -> None:
    after = convfc.unroll(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 5, 5))
    after.append(nn.Linear(25, 18))
    after[1].weight = after[0][1].weight
    with pytest.raises(UnsupportedLayer, match="0: its FC weight is also a parameter of 1"):
        convfc.to_conv(after)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_matrix_is_still_a_convolution() -> None:
    """Equal entries stay equal, and zero is zero."""
    after = convfc.unroll(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 6, 6))
    tool = torch.ao.quantization.quantize_dynamic(after, {nn.Linear}, dtype=torch.qint8)
    child = tool[0][1]
    assert isinstance(child, torch.ao.nn.quantized.dynamic.Linear)
    with pytest.warns(UnsupportedLayerWarning, match="^0: only the rounded weights come back"):
        back = convfc.to_conv(tool)[0]
    A = convfc.conv_matrix(back, (6, 6), layout="dense")
    assert torch.equal(child.weight().dequantize(), torch.from_numpy(A))


def test_an_adapter_is_merged() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    after = convfc.unroll(model, torch.zeros(1, 1, 5, 5))
    tool = peft.get_peft_model(after, peft.LoraConfig(r=2, target_modules=["0.1"]))
    assert torch.equal(convfc.to_conv(tool)[0].weight, model[0].weight)  # it changes nothing yet
    adapter = tool.base_model.model[0][1]
    with torch.no_grad():
        adapter.lora_B["default"].weight.fill_(0.25)
    with pytest.raises(UnsupportedLayer, match="0: its matrix is not a convolution's"):
        convfc.to_conv(tool)
    with pytest.warns(UnsupportedLayerWarning, match="0: the closest convolution"):
        convfc.to_conv(tool, project=True)
