"""The numbers of verify are what they say: bounds, terms, integers, the network's own rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import net
from proofs import assert_proven, only
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc import verify
from convfc.comparing import compare, strides_of
from convfc.frameworks.torch.certify.pairs import Pair
from convfc.measure import Call, integers_of, measure
from convfc.rounding import rounding_bound


def test_the_bound_is_that_of_the_paper_s_matrices():
    """B is |M||K| + |b|, |dy||K|, |M|^T|dy| and sum |dy|; n counts the terms."""
    conv, x = nn.Conv2d(2, 3, 3, stride=2), torch.randn(2, 2, 7, 7)
    fc = convfc.to_fc(conv)
    with torch.no_grad():
        fc.fc.weight[1, 5] += 0.125
    layer = measure(Pair("", conv, fc).on(Call(x))[0], seed=0)
    patches = convfc.im2col(
        x.movedim(1, -1).double().abs(), convfc.ConvGeometry(2, 3, (3, 3), stride=2)
    )
    filters = conv.weight.detach().movedim(1, -1).flatten(1).double().abs()
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


NO_NUMBERS = {
    "NaN": [torch.nan],
    "an infinity": [torch.inf],
    "NaN and an infinity": [-torch.inf, torch.nan],
}
WHY = "so there is no rounding bound to compare with; expected finite numbers:"
GIVE = "give an input on which they are"


@pytest.mark.parametrize(
    ("kind", "form"), list(zip(NO_NUMBERS, ["patch", "weight", "unrolled"], strict=True))
)
def test_what_is_no_number_is_not_certified(kind: str, form: str):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1))
    x = torch.ones(1, 1, 2, 2)
    after = in_form(model, form, x)
    x.view(-1)[: len(NO_NUMBERS[kind])] = torch.tensor(NO_NUMBERS[kind])
    first = verify(model, after, x).layers[0]
    assert first.failures == (f"0: its input holds {kind}, {WHY} {GIVE}",)
    assert all(weight.same_bits for weight in first.weights)


@pytest.mark.parametrize("form", ["patch", "weight", "unrolled"])
def test_a_weight_that_is_no_number_is_named(form: str):
    conv, x = nn.Conv2d(1, 2, 3), torch.ones(1, 1, 4, 4)
    with torch.no_grad():
        conv.bias[1] = torch.nan
    after = in_form(conv, form, x)
    (reason,) = only(verify(conv, after, x)).failures
    assert reason == f"the model: its bias holds NaN, {WHY} verify it with finite weights"


def test_an_infinity_inside_a_network_is_named_where_it_is():
    def run(m: Any, x: Tensor) -> Tensor:
        return m.last(m.first(x).masked_fill(x[:, :1] > 0, -torch.inf))

    model = net(run, first=nn.Conv2d(1, 1, 1), last=nn.Conv2d(1, 1, 1))
    certificate = verify(model, convfc.to_fc(model), torch.ones(1, 1, 2, 2))
    assert [layer.failures for layer in certificate.layers] == [
        (),
        (f"last: its input holds an infinity, {WHY} {GIVE}",),
    ]


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
    assert output.float64 < 1e-6 * output.rounding  # both networks ran in float64
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("largest", [1, 64])
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


@pytest.mark.parametrize("limit", [2.0**8, 2.0**11, 2.0**24])
def test_integers_are_as_large_as_exact_sums_allow(limit: float):
    conv = nn.Conv1d(1, 1, 1)
    (sides,) = Pair("", conv, copy.deepcopy(conv)).on(Call(torch.ones(1, 1, 1)))
    for longest in (1, 27, 289, 4608, 2**20):
        found = list(sides.integers(longest, limit))
        assert bool(found) is (longest <= limit)
        for largest in found:
            assert longest * largest**2 <= limit
            assert largest == 256 or longest * (2 * largest) ** 2 > limit


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_weight_that_is_no_number_meets_the_zeros_of_padding_in_m(cls: type, value: float):
    """``to_fc`` says so: 0 times it is NaN in the patch form; the unrolled form has no padding."""
    conv = cls(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = value
    ones = torch.ones(2, 1, 4, 4)
    reads = torch.zeros(4, 4, dtype=torch.bool)  # where the tap reads the image, not its padding
    reads[(slice(1, 4) if cls is nn.Conv2d else slice(0, 3),) * 2] = True
    patch = convfc.to_fc(conv, product="matrix")(ones)
    assert torch.equal(patch.isnan(), ~reads.expand_as(patch) | torch.tensor(value).isnan())
    unrolled = convfc.unroll(conv, ones)(ones)
    assert torch.equal(unrolled.isfinite(), ~reads.expand_as(unrolled))
    weight = convfc.to_fc(conv, form="weight")(ones)
    assert torch.equal(weight.isnan(), conv(ones).isnan()), "it runs the native kernel"
    assert not verify(conv, convfc.to_fc(conv), ones).holds
