"""to_conv of the unrolled form: bit for bit, after a tool, and what is no convolution."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from conv_cases import CASES, CHANNELS_LAST, HYPER_PARAMETERS, ConvCase, integers
from torch import Tensor, nn

import convfc
from convfc.errors import ArgumentError, NotAConvolution, UnsupportedLayer, UnsupportedLayerWarning
from convfc.rounding import rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)


def unroll(model: nn.Module, x: object, **options: object) -> nn.Module:
    return convfc.unroll(model, x, **options)


def random_bits(case: ConvCase, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A layer of random numbers, some of them minus zero."""
    generator = torch.Generator().manual_seed(0)
    layer = case.layer(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.view(-1)[0] = -0.0
    return layer, case.x(dtype)


def bits(t: Tensor) -> bytes:
    t = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    return t.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_every_layer_comes_back_bit_for_bit(case: ConvCase, dtype: torch.dtype) -> None:
    layer, x = random_bits(case, dtype)
    back = convfc.to_conv(unroll(layer, x))
    assert type(back) is case.cls
    assert list(back.state_dict()) == list(layer.state_dict())
    for name, parameter in layer.named_parameters():
        assert bits(back.get_parameter(name)) == bits(parameter)
        assert back.get_parameter(name).dtype == dtype
    assert all(getattr(back, name) == getattr(layer, name) for name in HYPER_PARAMETERS)
    assert set(vars(back)) == set(vars(layer))


@pytest.mark.parametrize("case", [case for case in CASES if len(case.size) > 1], ids=str)
def test_the_memory_format_of_the_weight_comes_back(case: ConvCase) -> None:
    layer = case.layer().to(memory_format=CHANNELS_LAST[len(case.size) + 2])
    back = convfc.to_conv(unroll(layer, case.x()))
    assert back.weight.stride() == layer.weight.stride()
    assert torch.equal(back.weight, layer.weight)


class Stem(nn.Conv2d):
    """A class of the user's own, whose forward is PyTorch's."""


def test_class_hooks_attributes_mode_and_gradients_come_back() -> None:
    layer, calls = Stem(3, 4, 3).eval(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.note = "mine"
    layer.register_buffer("extra", torch.ones(2))
    layer.bias.requires_grad_(requires_grad=False)
    x = torch.randn(2, 3, 5, 6)
    after = unroll(layer, x)
    after.note = "changed since"
    after.stride = (2, 2)  # nothing reads it: the matrix is that of stride 1
    back = convfc.to_conv(after)
    assert type(back) is Stem
    assert (back.note, back.stride, back.training) == ("changed since", (1, 1), False)
    assert (back.weight.requires_grad, back.bias.requires_grad) == (True, False)
    assert torch.equal(back.extra, layer.extra)
    calls.clear()
    assert torch.equal(back(x), layer(x))
    assert len(calls) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_fold_back_to_those_of_the_convolution(case: ConvCase) -> None:
    layer, x = case.layer(), case.x()
    after = unroll(nn.Sequential(layer), x)
    y = layer(x)
    dy = integers(y.shape, seed=3)
    y.backward(dy)
    after(x).backward(dy)
    back = convfc.to_conv(after, inplace=True)[0]
    assert torch.equal(back.weight.grad, layer.weight.grad)
    if layer.bias is not None:
        assert torch.equal(back.bias.grad, layer.bias.grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_scaled_matrix_is_still_a_convolution(case: ConvCase) -> None:
    layer, x = case.layer(), case.x()
    after = unroll(layer, x)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.mul_(-3)
    back = convfc.to_conv(after)
    assert torch.equal(back.weight, -3 * layer.weight)
    assert torch.equal(back(x), after(x))


def test_loaded_matrices_of_another_convolution() -> None:
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(1, 3, 5, 6)
    after = unroll(first, x)
    after.load_state_dict(unroll(second, x).state_dict())
    back = convfc.to_conv(after)
    assert torch.equal(back.weight, second.weight)
    assert torch.equal(back.bias, second.bias)


def test_weights_that_no_output_reads_are_kept() -> None:
    """On one pixel a 3x3 kernel reads padding with eight of its nine taps."""
    layer = nn.Conv2d(2, 3, 3, padding=1)
    after = unroll(layer, torch.zeros(1, 2, 1, 1))
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
    after = unroll(layer, x)
    assert torch.equal(convfc.to_conv(after).weight, layer.weight)
    with torch.no_grad():
        after[1].weight.mul_(2)
    back = convfc.to_conv(after)
    moduli = 2 * layer.weight.detach().abs().sum((2, 3)) @ x[:, :, 0, 0].abs().T
    moduli = moduli.T + 2 * layer.bias.detach().abs()
    # 18 taps and a bias; the weights of least norm have taken another 9 terms, and so has A.
    bound = rounding_bound(moduli.double(), 18 + 1 + 9 + 9, "float32")
    assert ((back(x) - after(x)).detach().abs()[..., 0, 0] <= bound).all()


ENTRIES = {
    "in the pattern": ((5, 13), r"0: .*matrix\[5, 13\].*\(0, 5\), filter 0 <- .*as its tap has"),
    "off the pattern": ((5, 60), r"0: .*matrix\[5, 60\].*expected 0, since no tap reads there"),
}


@pytest.mark.parametrize(("index", "message"), ENTRIES.values(), ids=ENTRIES)
def test_a_matrix_that_is_no_convolution_is_refused_by_layer_and_entry(
    index: tuple[int, int], message: str
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    after = unroll(model, torch.zeros(1, 1, 9, 8))
    with torch.no_grad():
        after[0][1].weight[index] += 0.5
    with pytest.raises(UnsupportedLayer, match=message) as caught:
        convfc.to_conv(after)
    assert isinstance(caught.value.__cause__, NotAConvolution)
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: 0"):
        left = convfc.to_conv(after, strict=False)
    assert type(left[0]) is nn.Sequential


def test_a_bias_that_differs_between_positions_is_refused() -> None:
    after = unroll(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 5, 5))
    with torch.no_grad():
        after[0][1].bias[9 + 4] += 0.5
    with pytest.raises(UnsupportedLayer, match=r"0: .*bias\[13\]: the bias of a filter differs"):
        convfc.to_conv(after)
    with pytest.warns(UnsupportedLayerWarning, match="0: its bias .* mean over positions"):
        back = convfc.to_conv(after, project=True)
    assert torch.equal(back[0].bias, after[0][1].bias.view(2, 9).mean(1))


def test_the_closest_convolution_on_request() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    after = unroll(nn.Sequential(layer), torch.zeros(1, 2, 5, 4)).double()
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
    true = unroll(nn.Sequential(layer), torch.zeros(1, 2, 5, 4))
    assert torch.equal(convfc.to_conv(true, project=True)[0].weight, layer.weight)  # no warning


def test_the_closest_convolution_keeps_weights_that_no_output_reads() -> None:
    """On 2x2 a tap two elements away from the middle reads padding only."""
    layer = nn.Conv2d(1, 2, 5, padding=2)
    after = unroll(nn.Sequential(layer), torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        after[0][1].weight[0, 0] += 1
    with pytest.warns(UnsupportedLayerWarning, match="0: the closest convolution"):
        back = convfc.to_conv(after, project=True)[0]
    assert torch.equal(back.weight[..., 0, :], layer.weight[..., 0, :])
    torch.testing.assert_close(back.weight[0, 0, 2, 2], layer.weight[0, 0, 2, 2] + 0.25)


def test_factors_are_multiplied_out_and_others_refused() -> None:
    layer = nn.Conv2d(1, 2, 3, dtype=torch.float64)
    after = unroll(nn.Sequential(layer), torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    linear = after[0][1]
    double = nn.Linear(8, 8, bias=False, dtype=torch.float64)
    with torch.no_grad():
        double.weight.copy_(2 * torch.eye(8))
    after[0][1] = nn.Sequential(linear, double)
    back = convfc.to_conv(after)
    assert torch.equal(back[0].weight, 2 * layer.weight)
    assert torch.equal(back[0].bias, 2 * layer.bias)
    after[0][1] = nn.Sequential(linear, nn.ReLU(), double)
    with pytest.raises(UnsupportedLayer, match="0: its FC part is no product of matrices"):
        convfc.to_conv(after)
    after[0][1] = nn.Linear(16, 9)
    with pytest.raises(UnsupportedLayer, match=r"0: its FC part has the sizes \(9, 16\), where"):
        convfc.to_conv(after)
    after[0].append(nn.ReLU())
    with pytest.raises(UnsupportedLayer, match="0: its parts are Flatten, Linear, Unflatten, ReLU"):
        convfc.to_conv(after)


def test_in_place_and_where() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    x = torch.zeros(1, 1, 7, 7)
    after = unroll(model, x)
    some = convfc.to_conv(after, where="1")
    assert [type(part) for part in some] == [nn.Sequential, nn.Conv2d]
    assert convfc.to_conv(after, inplace=True) is after
    assert [type(part) for part in after] == [nn.Conv2d, nn.Conv2d]
    alone = unroll(model[0], x)
    with pytest.raises(ArgumentError, match="the model is itself the FC layer"):
        convfc.to_conv(alone, inplace=True)


def test_a_matrix_that_something_else_holds_is_refused() -> None:
    after = unroll(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 5, 5))
    after.append(nn.Linear(25, 18))
    after[1].weight = after[0][1].weight
    with pytest.raises(UnsupportedLayer, match="0: its FC weight is also a parameter of 1"):
        convfc.to_conv(after)


def test_heads_are_found_behind_unrolled_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4))
    x = torch.randn(2, 1, 5, 5)
    back = convfc.to_fully_convolutional(unroll(model, x), x)
    convs = [part for part in back.modules() if isinstance(part, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 3), (3, 3)]
    assert back(torch.zeros(1, 1, 9, 9)).shape == (1, 4, 5, 5)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_matrix_is_still_a_convolution() -> None:
    """Equal entries stay equal, and zero is zero."""
    after = unroll(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 6, 6))
    tool = torch.ao.quantization.quantize_dynamic(after, {nn.Linear}, dtype=torch.qint8)
    child = tool[0][1]
    assert isinstance(child, torch.ao.nn.quantized.dynamic.Linear)
    with pytest.warns(UnsupportedLayerWarning, match="^0: only the rounded weights come back"):
        back = convfc.to_conv(tool)[0]
    A = convfc.conv_matrix(back, (6, 6), layout="dense")
    assert torch.equal(child.weight().dequantize(), torch.from_numpy(A))


def test_an_adapter_is_merged() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    after = unroll(model, torch.zeros(1, 1, 5, 5))
    tool = peft.get_peft_model(after, peft.LoraConfig(r=2, target_modules=["0.1"]))
    assert torch.equal(convfc.to_conv(tool)[0].weight, model[0].weight)  # it changes nothing yet
    adapter = tool.base_model.model[0][1]
    with torch.no_grad():
        adapter.lora_B["default"].weight.fill_(0.25)
    with pytest.raises(UnsupportedLayer, match="0: its matrix is no convolution's"):
        convfc.to_conv(tool)
    with pytest.warns(UnsupportedLayerWarning, match="0: the closest convolution"):
        convfc.to_conv(tool, project=True)
