"""verify on PyTorch: it says yes to every form of every layer, and it can say no."""

from __future__ import annotations

import copy
import json
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import CASES, SMALL, ConvCase
from torch import Tensor, nn

import convfc
from convfc.certificate import Certificate, LayerCertificate
from convfc.errors import UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.measures import Call, integers_of, measure
from convfc.frameworks.torch.pairs import Pair, find_pairs
from convfc.frameworks.torch.tensors import compare, strides_of
from convfc.frameworks.torch.verify import verify
from convfc.rounding import rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]
FORMS: dict[str, dict[str, Any]] = {
    "patch": {"form": "patch"},
    "block_diagonal": {"form": "patch", "block_diagonal": True},
    "weight": {"form": "weight"},
}
QUANTITIES = {"output", "input", "weight", "bias"}


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


def normal(case: ConvCase, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The layer of a case and an input, of random numbers; the cases' own are integers."""
    x = torch.randn(2, case.args[0], *case.size, dtype=dtype)
    return case.cls(*case.args, **case.rest).to(dtype), x


def only(certificate: Certificate) -> LayerCertificate:
    (layer,) = certificate.layers
    return layer


def assert_proven(certificate: Certificate, *, dtype: torch.dtype = torch.float32) -> None:
    """It holds, and not because nothing was compared."""
    assert certificate.holds, str(certificate)
    for layer in certificate.layers:
        biased = len(layer.weights) == 2
        quantities = QUANTITIES if biased else QUANTITIES - {"bias"}
        assert layer.own.keys() == layer.float64.keys() == quantities
        assert layer.exact.identical is True
        for comparison in layer.float64.values():
            assert comparison.dtype == ("complex128" if dtype.is_complex else "float64")
            assert comparison.ratio is not None
            assert comparison.ratio <= 1
    for output in certificate.network.outputs:
        assert output.float64 is not None
        assert output.rounding is not None


# It says yes.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_in_every_form_in_both_directions(case: ConvCase, form: str):
    layer, x = normal(case)
    if form == "block_diagonal" and layer.groups == 1:
        form = "patch"
    fc = convfc.to_fc(layer, **FORMS[form])
    there, back = verify(layer, fc, x), verify(fc, layer, x)
    assert_proven(there)
    assert_proven(back)
    name = "weight" if form == "weight" else "patch"
    assert only(there).forms == ("conv", name)
    assert only(back).forms == (name, "conv")
    k = layer.weight.numel() // layer.out_channels
    y = layer(x)
    assert only(there).patch_matrix == (2, y[0, 0].numel(), k)
    assert only(there).filter_matrix == (k, layer.out_channels)


DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


@pytest.mark.parametrize("form", ["patch", "weight"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_dtype(case: ConvCase, dtype: torch.dtype, form: str):
    layer, x = normal(case, dtype)
    certificate = verify(layer, convfc.to_fc(layer, form=form), x)
    assert_proven(certificate, dtype=dtype)
    assert only(certificate).dtype == str(dtype).removeprefix("torch.")


class Block(nn.Module):
    """Branches, normalisation, dropout, a layer called twice and one at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.same = nn.ModuleDict({"place": self.stem})
        self.dropout = nn.Dropout(0.5)
        self.head = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        y = self.norm(self.stem(x) + self.same["place"](x.flip(-1)))
        y = self.twice(torch.relu(self.twice(y)))
        y = self.dropout(y) * scale
        return {"out": self.head(y), "features": (y, [y.mean()]), "name": "block", "size": 4}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", ["patch", "weight"])
def test_a_network_with_everything(form: str, training: bool):
    model = Block().train(training)
    certificate = verify(model, convfc.to_fc(model, form=form), torch.randn(2, 3, 6, 6))
    assert_proven(certificate)
    calls = [(layer.name, layer.call) for layer in certificate.layers]
    assert calls == [("stem", 0), ("stem", 1), ("twice", 0), ("twice", 1), ("head", 0)]
    paths = [output.path for output in certificate.network.outputs]
    assert paths == ["['out']", "['features'][0]", "['features'][1][0]"]


def test_back_again_after_to_conv():
    model = Block()
    certificate = verify(model, convfc.to_conv(convfc.to_fc(model)), torch.randn(2, 3, 6, 6))
    assert_proven(certificate)
    assert {layer.forms for layer in certificate.layers} == {("conv", "conv")}


@pytest.mark.parametrize("which", ["input", "weight"])
def test_channels_last_and_unbatched_and_empty(which: str):
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 7)
    if which == "input":
        x = x.to(memory_format=torch.channels_last)
    else:
        layer = layer.to(memory_format=torch.channels_last)
    for form in ("patch", "weight"):
        fc = convfc.to_fc(layer, form=form)
        for given in (x, x[0], x[:0]):
            certificate = verify(layer, fc, given)
            assert certificate.holds, str(certificate)
            assert certificate.notes == ()


def test_arguments_of_a_call():
    model = Block().eval()
    fc = convfc.to_fc(model)
    x = torch.randn(1, 3, 6, 6)
    by_name = verify(model, fc, {"x": x, "scale": 2.0})
    assert_proven(by_name)
    assert_proven(verify(model, fc, (x,)))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 2, 3, stride=2)
            self.by_name = False

        def forward(self, x: Tensor, size: list[int]) -> Tensor:
            x = nn.functional.relu(x)
            if self.by_name:
                return self.up(output_size=size, input=x)  # type: ignore[no-any-return]
            return self.up(x, output_size=size)  # type: ignore[no-any-return]

    decoder = Decoder()
    certificate = verify(decoder, convfc.to_fc(decoder), (x, [14, 14]))
    assert_proven(certificate)
    assert only(certificate).patch_matrix[1] == 14 * 14
    decoder.by_name = True
    assert_proven(verify(decoder, convfc.to_fc(decoder, form="weight"), (x, [14, 14])))


def test_a_layer_that_the_input_does_not_reach_is_compared_on_random_numbers():
    class Auxiliary(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[0](x)
            return y

    unused = [
        nn.Conv2d(4, 6, (5, 3), stride=3, padding=(4, 2), padding_mode="reflect", groups=2),
        nn.ConvTranspose1d(4, 6, 3, padding=4),
    ]
    model = Auxiliary(nn.Conv2d(3, 4, 3), *unused)
    fc = convfc.to_fc(model)
    certificate = verify(model, fc, torch.randn(1, 3, 6, 6))
    assert_proven(certificate)
    assert len(certificate.layers) == 3
    assert [layer.name for layer in certificate.layers if layer.notes] == ["1", "2"]
    assert "not called on this input" in certificate.notes[0]
    fc[1].padding_mode = "replicate"
    assert any("1: " in failure for failure in verify(model, fc, torch.randn(1, 3, 6, 6)).failures)


def test_nothing_of_the_two_networks_or_the_world_is_changed():
    model = Block().train()
    fc = convfc.to_fc(model)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    fc.norm.weight.requires_grad_(requires_grad=False)
    models = (model, fc)
    state = [copy.deepcopy(m.state_dict()) for m in models]
    hooks = [len(m._forward_pre_hooks) for whole in models for m in whole.modules()]
    before = (torch.get_rng_state(), random.getstate(), x.detach().clone())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        certificate = verify(model, fc, x)
        assert torch.is_autocast_enabled("cpu")
    assert only_float32(certificate)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.equal(x, before[2])
    for whole, kept in zip(models, state, strict=True):
        assert all(m.training for m in whole.modules())
        assert all(torch.equal(value, kept[key]) for key, value in whole.state_dict().items())
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"stem.weight"}
    assert x.grad is None
    assert all(p.grad is None for p in fc.parameters() if p.dim() == 4)
    assert not fc.norm.weight.requires_grad
    assert hooks == [len(m._forward_pre_hooks) for whole in models for m in whole.modules()]


def only_float32(certificate: Certificate) -> bool:
    return {layer.dtype for layer in certificate.layers} == {"float32"}


def test_it_runs_in_inference_mode_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    fc = convfc.to_fc(model)
    with torch.inference_mode():
        assert_proven(verify(model, fc, torch.randn(1, 3, 6, 6)))


def test_hooks_are_gone_when_a_network_raises():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"no {self.conv(x).shape}")

    model, state = Late(), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"no torch\.Size"):
        verify(model, copy.deepcopy(model), torch.randn(1, 3, 6, 6))
    assert not model.conv._forward_pre_hooks
    assert not torch.equal(torch.get_rng_state(), state)  # torch.randn's doing, here
    assert torch.is_grad_enabled()


# Its numbers are what they say.


def test_the_bound_is_that_of_the_paper_s_matrices():
    """B is |M||K| + |b|, |dy||K|, |M|^T|dy| and sum |dy|; n counts the terms."""
    conv, x = nn.Conv2d(2, 3, 3, stride=2), torch.randn(2, 2, 7, 7)
    fc = convfc.to_fc(conv)
    with torch.no_grad():
        fc.fc.weight[1, 5] += 0.125
    layer = measure(Pair("", conv, fc), Call(x), seed=0)
    patches = convfc.im2col(
        x.movedim(1, -1).double().abs(), convfc.ConvGeometry(2, 3, (3, 3), stride=2)
    )
    filters = convfc.to_fc(conv).matrix().detach().double().abs()
    output = layer.own["output"]
    image, channel, row, column = output.index
    position = 3 * row + column
    magnitude = float(patches[image, position] @ filters[channel]) + float(
        conv.bias[channel].detach().abs()
    )
    assert output.terms == 19
    assert output.bound == pytest.approx(rounding_bound(magnitude, 19, "float32"), rel=1e-12)
    assert output.difference == pytest.approx(
        abs(output.before - output.after), rel=1e-12, abs=output.difference
    )
    assert layer.own["weight"].terms == layer.own["bias"].terms == 2 * 9
    assert layer.own["input"].terms == 3 * 4  # a corner of the stride is read by 4 windows
    assert layer.own["input"].ratio > 1
    assert layer.own["weight"].ratio <= 1  # the gradient of the weight does not see the weight


def test_terms_of_padding_that_reads_an_element_often():
    conv, x = nn.Conv1d(1, 1, 5, padding=2, padding_mode="replicate"), torch.randn(1, 1, 6)
    layer = only(verify(conv, convfc.to_fc(conv), x))
    # Both ends of the input stand three times in the padded one.
    assert layer.own["input"].terms == 1 + 2 + 3


def test_the_float64_run_sees_what_float32_hides():
    """One weight of 4608 changed by a thousandth: below float32's bound, far above float64's."""
    conv, x = nn.Conv2d(512, 4, 3, padding=1), torch.randn(1, 512, 4, 4)
    changed = copy.deepcopy(conv)
    with torch.no_grad():
        changed.weight[1, 2, 0, 1] *= 1.001
    layer = only(verify(conv, convfc.to_fc(changed), x))
    assert layer.own["output"].ratio < 1
    assert layer.float64["output"].ratio > 1e3
    assert [w.same_bits for w in layer.weights] == [False, True]
    assert layer.weights[0].index == (1, 2, 0, 1)
    assert layer.weights[0].difference == pytest.approx(
        1e-3 * abs(layer.weights[0].before), rel=1e-3
    )


def test_a_dtype_without_a_bound_is_decided_in_float64():
    conv = nn.Conv2d(32, 4, 3, padding=1).bfloat16()
    x = torch.randn(1, 32, 4, 4).bfloat16()
    good = verify(conv, convfc.to_fc(conv), x)
    assert_proven(good)
    assert only(good).own["output"].terms == 289
    assert only(good).own["output"].ratio is None
    assert only(good).exact.dtype == "float32"
    large = nn.Conv2d(1, 1, 1).half()
    with torch.no_grad():
        large.weight.fill_(60000)
    overflowing = only(verify(large, convfc.to_fc(large), torch.full((1, 1, 1, 1), 100.0).half()))
    assert overflowing.own["output"].ratio is None
    assert overflowing.float64["output"].ratio == 0


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
def test_what_is_no_number_is_not_certified(value: float):
    conv = nn.Conv2d(1, 1, 1)
    certificate = verify(conv, convfc.to_fc(conv), torch.full((1, 1, 2, 2), value))
    assert not certificate.holds
    assert any("expected a rounding bound" in failure for failure in certificate.failures)


def test_the_network_s_measure_is_its_own_rounding():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()).double()
    x = torch.randn(2, 3, 6, 6).double()
    (output,) = verify(model, convfc.to_fc(model), x).network.outputs
    assert output.rounded_to == "float32"
    rounded = copy.deepcopy(model).float()(x.float())
    assert output.rounding == float((model(x) - rounded).abs().max().detach())
    single = copy.deepcopy(model).float()
    (output,) = verify(single, convfc.to_fc(single), x.float()).network.outputs
    assert output.rounded_to == "float32"
    exact = copy.deepcopy(single).double()(x.float().double())
    assert output.rounding == float((exact - single(x.float())).abs().max().detach())
    assert output.difference <= 2 * output.rounding
    doubled = copy.deepcopy(single)
    doubled[0].weight.data *= 2
    (output,) = verify(single, doubled, x.float()).network.outputs
    away = float((single(x.float()) - doubled(x.float())).abs().max().detach())
    assert output.difference == pytest.approx(away, rel=1e-6)
    assert output.relative == output.difference / float(single(x.float()).abs().max().detach())


def test_equal_infinities_are_no_difference_and_others_are():
    ours = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan])
    bound = torch.ones(4)
    assert compare(ours, ours.clone(), bound)["ratio"] == 0
    for index, other in ((1, -torch.inf), (2, 0.0), (3, 0.0)):
        theirs = ours.clone()
        theirs[index] = other
        result = compare(ours, theirs, bound)
        assert result["index"] == (index,)
        assert result["ratio"] == result["difference"] == torch.inf


def test_an_axis_of_one_element_has_any_stride():
    tensor = torch.zeros(2, 1, 3)
    assert strides_of(tensor) == strides_of(tensor.as_strided((2, 1, 3), (3, 7, 1))) == [3, 1]
    assert strides_of(tensor) != strides_of(tensor.as_strided((2, 1, 3), (1, 7, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES], ids=str)
@pytest.mark.parametrize("largest", [1, 4, 64])
def test_integers_depend_on_each_number_alone(largest: int, dtype: torch.dtype):
    numbers = torch.randn(64, 64, dtype=dtype)
    numbers[0, :2] = torch.tensor([0.0, -0.0], dtype=dtype)
    integers = integers_of(numbers, largest)
    assert integers.dtype == dtype
    assert torch.equal(integers_of(numbers.mT, largest), integers.mT)
    parts = torch.view_as_real(integers) if dtype.is_complex else integers
    own = torch.view_as_real(numbers) if dtype.is_complex else numbers
    assert torch.equal(parts == 0, own == 0)
    assert set(parts.unique().tolist()) == set(range(-largest, largest + 1))
    changed = integers_of(numbers * 1.015625, largest) != integers  # at least one bit of bfloat16
    assert changed.float().mean() > 0.8 * (1 - 1 / (2 * largest))


# It says no.

Sabotage = Callable[[nn.Sequential], Any]


def network() -> nn.Sequential:
    """Square kernels and equal sizes wherever a mistake could hide behind a shape."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            grouped=nn.Conv2d(4, 4, 3, padding=(2, 1), dilation=(2, 1), groups=2),
            strided=nn.Conv2d(4, 4, (3, 3), stride=(2, 1), padding=(1, 1)),
            up=nn.ConvTranspose2d(4, 4, 3, stride=(1, 2), padding=1, output_padding=(0, 1)),
            last=nn.Conv2d(4, 3, 1),
        )
    ).eval()


def set_weight(name: str, change: Callable[[Tensor], Tensor]) -> Sabotage:
    def sabotage(model: nn.Sequential) -> None:
        weight = model.get_submodule(name).weight
        weight.data = change(weight.data.clone())

    return sabotage


def set_to(name: str, **attributes: Any) -> Sabotage:
    def sabotage(model: nn.Sequential) -> None:
        layer = model.get_submodule(name)
        for key, value in attributes.items():
            setattr(layer, key, value)

    return sabotage


def in_one_weight(factor: float) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight[0, 1, 0, 0] *= factor
        return weight

    return change


def next_number(weight: Tensor) -> Tensor:
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(torch.inf))
    return weight


SABOTAGE: dict[str, tuple[Sabotage, str]] = {
    "one weight by a thousandth": (set_weight("grouped", in_one_weight(1.001)), "grouped: "),
    "one weight by a bit": (set_weight("first", next_number), "first: weight has other bits"),
    "swapped kernel axes": (set_weight("first", lambda w: w.mT), "first: output in float32"),
    "swapped channels": (set_weight("strided", lambda w: w[:, [1, 0, 2, 3]]), "strided: output"),
    "swapped filters": (set_weight("last", lambda w: w[[1, 0, 2]]), "last: output"),
    "groups in another order": (set_weight("grouped", lambda w: w.roll(2, 0)), "grouped: output"),
    "no flip": (set_weight("up", lambda w: w.flip(2, 3)), "up: output in float32"),
    "transposed channels": (set_weight("up", lambda w: w.transpose(0, 1)), "up: output"),
    "padding mode": (set_to("first", padding_mode="zeros"), "first: output in float32"),
    "stride order": (set_to("strided", stride=(1, 2)), "strided: its output; expected (1, 4"),
    "dilation order": (
        set_to("grouped", dilation=(1, 2), padding=(1, 2)),
        "grouped: output in float32",
    ),
    "bias dropped": (
        set_to("last", bias=None),
        "last: its bias; expected (3,) of float32, got none",
    ),
    "buffer": (lambda m: m.norm.running_var.mul_(1.001), "network: norm.running_var; expected"),
    "other parameter": (lambda m: m.norm.weight.data[0].mul_(1.001), "network: norm.weight"),
    "other attribute": (set_to("norm", eps=1e-3), "network: output in float64"),
    "other function": (lambda m: m.add_module("relu", nn.SiLU()), "network: output in float64"),
    "batch statistics": (lambda m: m.train(), "network: output in float64"),
    "dtype": (lambda m: m.norm.half(), "network: norm.weight; expected (4,) of float32"),
}


@pytest.mark.parametrize("form", ["patch", "weight", "conv"])
@pytest.mark.parametrize(("sabotage", "reason"), SABOTAGE.values(), ids=SABOTAGE)
def test_it_says_no(sabotage: Sabotage, reason: str, form: str):
    model, x = network(), torch.randn(1, 3, 8, 8)
    after = copy.deepcopy(model)
    convert = (lambda m: m) if form == "conv" else (lambda m: convfc.to_fc(m, form=form))
    assert_proven(verify(model, convert(after), x))
    sabotage(after)
    certificate = verify(model, convert(after), x)
    assert not certificate.holds
    assert any(failure.startswith(reason) for failure in certificate.failures), str(certificate)
    json.dumps(certificate.to_dict(), allow_nan=False)


def test_padding_off_by_one_at_the_same_output_size():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model)
    shifted = nn.Sequential(nn.ZeroPad2d((0, 2, 1, 1)), nn.Conv2d(3, 4, 3))
    shifted[1].load_state_dict(model[0].state_dict())
    fc[0].padding_mode = "replicate"
    assert not verify(model, fc, x).holds
    certificate = verify(model, nn.Sequential(shifted), x)
    assert not certificate.holds
    assert any("0: output in float32" in failure for failure in certificate.failures)


@pytest.mark.parametrize("form", ["patch", "weight"])
@pytest.mark.parametrize("what", ["weight", "geometry"])
def test_it_says_no_where_the_input_is_zero(what: str, form: str):
    """The output hides it: all of it is the bias."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
    x = -torch.rand(1, 2, 6, 6)
    after = copy.deepcopy(model)
    if what == "weight":
        after[1].weight.data[0, 0, 0, 0] *= 1.001
    else:
        after[1].padding_mode = "zeros"
    layer = only(verify(model, convfc.to_fc(after, form=form), x))
    assert layer.own["output"].ratio == layer.float64["output"].ratio == 0
    assert layer.float64["input"].ratio > 1
    assert not layer.holds
    assert layer.exact.identical is False


class Wrong(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.001 * gradient


def test_it_says_no_to_a_gradient_alone():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    fc = convfc.to_fc(model)
    fc[0].fc.register_forward_hook(lambda module, args, y: Wrong.apply(y))
    layer = only(verify(model, fc, torch.randn(1, 2, 6, 6)))
    assert layer.own["output"].holds
    assert [name for name, c in layer.own.items() if not c.holds] == ["input", "weight", "bias"]
    assert layer.exact.differing == ("input", "weight", "bias")


def test_it_says_no_without_a_converted_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    certificate = verify(model, copy.deepcopy(model), torch.randn(2, 3))
    assert not certificate.holds
    assert certificate.failures[0].startswith("no converted layer was found")
    assert certificate.network.holds


def test_layers_that_one_network_does_not_have():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1)))
    x = torch.randn(1, 3, 6, 6)
    fewer = nn.Sequential(convfc.to_fc(model[0]), nn.Sequential())
    for before, after in ((model, fewer), (fewer, model)):
        certificate = verify(before, after, x)
        assert certificate.missing == ("1.0",)
        assert not certificate.holds
        assert "1.0: expected this layer in both networks, got one" in certificate.failures


def test_layers_that_cannot_be_converted_are_listed_and_part_of_the_whole():
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).abs()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own(4, 4, 3))
    after = copy.deepcopy(model)
    after[0] = convfc.to_fc(after[0])
    x = torch.randn(1, 3, 8, 8)
    certificate = verify(model, after, x)
    assert certificate.holds
    assert certificate.unconverted == ("1",)
    assert "1: cannot be converted, not compared" in str(certificate)
    after[1].weight.data[0, 0, 0, 0] *= 1.001
    assert any("network: 1.weight" in failure for failure in verify(model, after, x).failures)


def test_a_second_network_that_cannot_run_is_a_finding():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 6, 6)
    after = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    failures = verify(model, after, x).failures
    assert any(f.startswith("0: the second layer fails; expected an output") for f in failures)
    assert any(f.startswith("network: the second network fails") for f in failures)
    assert any(f.startswith("0: its weight; expected (4, 3, 3, 3)") for f in failures)


class Returns(nn.Module):
    """A CONV layer and a choice of what to return."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.conv(x))


RETURNS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = {
    "fewer": (lambda y: (y, y), lambda y: (y,), r"output\[1\]; expected Tensor, got NoneType"),
    "more": (lambda y: (y,), lambda y: (y, y), r"output\[1\]; expected none, got one"),
    "value": (lambda y: (y, 1), lambda y: (y, 2), r"output\[1\]; expected 1, got 2"),
    "dtype": (lambda y: y, lambda y: y.double(), "output; expected .* got .* of float64"),
    "no tensor": (lambda y: 1, lambda y: 1, "expected tensors among the outputs, got none"),
    "unknown": (lambda y: {y}, lambda y: {y}, "output is a set, whose tensors are not seen"),
    "integers": (lambda y: y.argmax(), lambda y: y.argmin(), "output in float64; expected"),
}


@pytest.mark.parametrize(("ours", "theirs", "reason"), RETURNS.values(), ids=RETURNS)
def test_outputs_of_another_kind(
    ours: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any], reason: str
):
    before, after = Returns(ours), Returns(theirs)
    after.load_state_dict(before.state_dict())
    (failure,) = verify(before, after, torch.randn(1, 3, 6, 6)).failures
    assert failure.startswith("network: ")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(failure)


def test_other_strides_are_noted_and_no_failure():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    after = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    after.load_state_dict(model.state_dict())
    certificate = verify(model, after, torch.randn(1, 3, 6, 6))
    assert certificate.holds
    assert any("strides" in note for note in certificate.notes)


# After a tool.


class LoRA(nn.Module):
    """What a PEFT tool puts in the place of a Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return y


def test_a_tool_s_layer_is_compared_as_a_function():
    model, x = network(), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model)
    fc.strided.fc = LoRA(fc.strided.fc)
    fresh = verify(model, fc, x)
    assert fresh.holds
    layer = next(layer for layer in fresh.layers if layer.name == "strided")
    assert layer.own.keys() == {"output", "input"}
    assert layer.exact.identical is None
    assert layer.exact.why_not == "one side is more than a plain layer"
    fc.strided.fc.b.data.normal_()
    assert not verify(model, fc, x).holds
    merged = copy.deepcopy(model)
    extra = fc.strided.to_weight(fc.strided.fc.b @ fc.strided.fc.a)
    merged.strided.weight.data += extra
    assert verify(fc, merged, x).holds
    merged.strided.weight.data[0] += 0.001 * extra[0]
    assert not verify(fc, merged, x).holds


def test_a_tool_on_the_weight_form_is_compared_as_a_function():
    model, x = network(), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model, form="weight")
    assert_proven(verify(model, fc, x))
    nn.utils.parametrize.register_parametrization(fc.strided, "weight", nn.Identity())
    certificate = verify(model, fc, x)
    assert certificate.holds
    layer = next(layer for layer in certificate.layers if layer.name == "strided")
    assert layer.exact.identical is None


def test_a_factored_layer_becomes_two_and_is_compared_as_a_whole():
    model, x = network(), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model)
    fc.strided.fc = nn.Sequential(nn.Linear(36, 2, bias=False), nn.Linear(2, 4))
    cnn = convfc.to_conv(fc)
    for before, after in ((fc, cnn), (cnn, fc)):
        certificate = verify(before, after, x)
        assert certificate.holds, str(certificate)
        layer = next(layer for layer in certificate.layers if layer.name == "strided")
        assert layer.own["output"].ratio is not None
        assert layer.weights == ()
    cnn.strided[1].weight.data[0, 0] *= 1.01
    assert not verify(fc, cnn, x).holds


def test_a_head_that_became_conv_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(128, 10), nn.Linear(10, 3))
    x = torch.randn(2, 3, 8, 8)
    cnn = convfc.to_conv(model, example=x)
    certificate = verify(model, cnn, x)
    assert_proven(certificate)
    assert [layer.forms for layer in certificate.layers[1:]] == [("Linear", "conv")] * 2
    assert certificate.layers[1].patch_matrix == (2, 1, 128)
    cnn[2].weight.data = cnn[2].weight.data.mT.contiguous()
    assert not verify(model, cnn, x).holds


class NoGradient(nn.Linear):
    """What a quantised layer is like."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise NotImplementedError("float32 only")
        return super().forward(x.detach()).detach()


def test_a_layer_without_gradient_or_float64_says_so():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    fc = convfc.to_fc(model)
    fc[0].fc.__class__ = NoGradient
    certificate = verify(model, fc, torch.randn(1, 2, 6, 6))
    assert "0: gradient of the input; expected one, got none" in certificate.failures
    assert any("float32 only" in note for note in certificate.notes)


# It refuses.


def test_what_is_no_model_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    for models in ((model, "model"), ("model", model)):
        with pytest.raises(UnsupportedModel, match=r"expected a torch\.nn\.Module; got str"):
            verify(*models, torch.randn(1, 3, 6, 6))


def test_a_lazy_layer_is_refused():
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(UnsupportedLayer, match=r"before: 0\.weight: .* run the model once"):
        verify(model, copy.deepcopy(model), torch.randn(1, 3, 6, 6))


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    after = convfc.to_fc(model)
    model.kept = 2 * model[0].weight
    with pytest.raises(UnsupportedModel, match="cannot be copied"):
        verify(model, after, torch.randn(1, 3, 6, 6))


def test_pairs_of_nested_and_shared_layers():
    model = Block()
    found = find_pairs(model, convfc.to_fc(model))
    assert [pair.name for pair in found.pairs] == ["stem", "twice", "head"]
    assert found.places == {"stem", "twice", "same.place", "head"}
    apart = convfc.to_fc(model)
    apart.same["place"] = convfc.to_fc(copy.deepcopy(model.stem))
    assert [pair.name for pair in find_pairs(model, apart).pairs][:3] == [
        "stem",
        "twice",
        "same.place",
    ]
