"""The way back from a plain MLP to the CONV network, and what the MLP remembers of it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from conv_cases import integers
from simplified_models import NETWORKS, exactly, lenet, mobile, resnet, trained
from torch import nn

from convfc.errors import NotAConvolution, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.certify.simplified import stages
from convfc.frameworks.torch.simplify import record_of, restore, simplify
from convfc.rounding import UNIT_ROUNDOFF, gamma

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = [
    {"max_pool": "keep"},
    {"max_pool": "relu", "branches": "carry"},
    {"max_pool": "relu", "sparse": True},
]


def linears(model: nn.Module) -> list[nn.Linear]:
    return [part for part in model.modules() if type(part) is nn.Linear]


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert list(found.state_dict()) == list(state)
    for key, value in found.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("name", NETWORKS)
def test_what_has_not_changed_comes_back_bit_for_bit(name: str, way: dict[str, Any]):
    make, shape = NETWORKS[name]
    model = trained(make())
    back = restore(simplify(model, (torch.randn(1, *shape),), **way))
    assert type(back) is type(model)
    assert [type(part) for part in back.modules()] == [type(part) for part in model.modules()]
    assert_same_state(back, model)
    assert back is not model
    assert not back.training


@pytest.mark.parametrize("branches", ["add", "carry"])
def test_the_record_is_no_part_of_the_module_but_of_its_copies(branches: str):
    model, x = trained(resnet()), torch.randn(2, 2, 8, 8)
    simple = simplify(model, (x,), branches=branches)
    assert all(parameter.dim() <= 2 for parameter in simple.parameters())
    file = io.BytesIO()
    torch.save(simple, file)
    file.seek(0)
    for other in (copy.deepcopy(simple), torch.load(file, weights_only=False)):
        assert record_of(other) is not None
        assert torch.equal(other(x), simple(x))
        assert_same_state(restore(other), model)
    assert record_of(model) is None
    with torch.no_grad():
        model[0].weight.zero_()
    assert restore(simple)[0].weight.any()


def test_it_comes_back_in_the_dtype_that_it_has_now():
    model = trained(lenet())
    simple = simplify(model, (torch.randn(1, 1, 12, 12),)).double()
    back = restore(simple)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float64}
    assert_same_state(back, model.double())


@pytest.mark.parametrize("name", ["lenet", "lenet_max", "mobilenet"])
def test_a_changed_convolution_is_found_again(name: str):
    """Another network of the same kind: its MLP's numbers, in the first one's MLP."""
    make, shape = NETWORKS[name]
    model, other, x = exactly(make()).float(), exactly(make()).float(), integers((2, *shape))
    with torch.no_grad():
        for part in other.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.copy_(integers(part.weight.shape, seed=8))
                part.bias.copy_(integers(part.bias.shape, seed=9))
    simple = simplify(model, (x.float(),))
    assert_same_state(restore(simple), model)
    simple.load_state_dict(simplify(other, (x.float(),)).state_dict())
    back = restore(simple)
    for key, value in back.state_dict().items():
        if "weight" in key:
            assert torch.equal(value, other.state_dict()[key]), key
    bound = gamma(64, UNIT_ROUNDOFF["float32"]) * 64 * other(x.float()).abs().max()
    assert bool(((back(x.float()) - other(x.float())).abs() <= bound).all())


def test_a_pooling_with_overlap_is_undone_by_least_squares():
    model = nn.Sequential(nn.AvgPool2d(3, 2), nn.Conv2d(2, 3, 2, bias=False)).eval()
    other = copy.deepcopy(model)
    nn.init.normal_(other[1].weight)
    x = torch.randn(1, 2, 9, 9)
    simple = simplify(model, (x,))
    simple.load_state_dict(simplify(other, (x,)).state_dict())
    # Each number of the matrix is rounded once, so the filters move by about as much.
    bound = 9 * gamma(36, UNIT_ROUNDOFF["float32"]) * other[1].weight.abs().max()
    assert bool(((restore(simple)[1].weight - other[1].weight).abs() <= bound).all())


def test_one_branch_of_a_residual_network():
    model, x = exactly(resnet()).float(), torch.randn(2, 2, 8, 8)
    simple = simplify(model, (x,))
    last = linears(simple)[2]  # the second convolution of the first block
    with torch.no_grad():
        last.weight.mul_(2)
    back = restore(simple)
    assert torch.equal(back[3].conv2.weight, 2 * model[3].conv2.weight)
    state, expected = back.state_dict(), model.state_dict()
    assert {key for key in state if not torch.equal(state[key], expected[key])} == {
        "3.conv2.weight"
    }


def test_a_bias_goes_into_the_batch_norm_where_the_layer_has_none():
    model, x = exactly(resnet()).float(), integers((2, 2, 8, 8)).float()
    simple = simplify(model, (x,))
    with torch.no_grad():
        linears(simple)[1].bias.add_(3)
    back = restore(simple)
    assert torch.equal(back[3].bn1.bias, model[3].bn1.bias + 3)
    assert torch.equal(simple(x), back(x))


def test_what_is_no_convolution_is_refused_or_projected():
    model, x = trained(lenet()), torch.randn(2, 1, 12, 12)
    simple = simplify(model, (x,))
    with torch.no_grad():
        linears(simple)[0].weight[0, 0] += 1
    with pytest.raises(NotAConvolution, match=r"1: the weight at \[\d+, \d+\] .* project=True"):
        restore(simple)
    back = restore(simple, project=True)
    changed = {
        key
        for key, value in back.state_dict().items()
        if not torch.equal(value, model.state_dict()[key])
    }
    assert changed == {"0.weight"}
    away = (simplify(back, (x,))[1].weight - linears(simple)[0].weight).norm()
    kept = (simplify(model, (x,))[1].weight - linears(simple)[0].weight).norm()
    assert away < kept
    simple = simplify(model, (x,))
    with torch.no_grad():
        linears(simple)[0].weight[0, -1] = 1  # no window reads from corner to corner
    with pytest.raises(NotAConvolution, match=r"1: the weight at \[0, 143\]"):
        restore(simple)
    simple = simplify(model, (x,))
    with torch.no_grad():
        linears(simple)[0].bias[3] += 1
    with pytest.raises(NotAConvolution, match=r"1: the bias at \[\d+\]"):
        restore(simple)


def test_what_cannot_come_back_is_named():
    x = torch.randn(2, 2, 8, 8)
    carried = simplify(trained(resnet()), (x,), branches="carry")
    with torch.no_grad():
        carried[3].weight.mul_(2)
    with pytest.raises(UnsupportedLayer, match=r"3: .* carries values .* branches='add'"):
        restore(carried)
    model = simplify(trained(lenet()), (x[:, :1].repeat(1, 1, 2, 2)[..., :12, :12],))
    model[3] = nn.Linear(model[3].in_features, 7)
    with pytest.raises(UnsupportedLayer, match="3: it has another size"):
        restore(model)
    model[3] = nn.Sequential()
    with pytest.raises(UnsupportedLayer, match=r"3: a Sequential stands in the place"):
        restore(model)
    twice = nn.Conv2d(2, 2, 1)
    shared = simplify(nn.Sequential(twice, nn.ReLU(), twice).eval(), (x,))
    with torch.no_grad():
        shared[1].weight.mul_(2)
    with pytest.raises(UnsupportedLayer, match=r"1: .* is called more than once"):
        restore(shared)
    product = simplify(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)).eval(), (x,))
    with torch.no_grad():
        product[1].weight.mul_(2)
    with pytest.raises(UnsupportedLayer, match=r"1: .* 2 layers with weights"):
        restore(product)
    with pytest.raises(UnsupportedLayer, match="it has no record"):
        restore(nn.Sequential())


def test_stages_know_the_network_that_they_belong_to():
    model, x = trained(mobile()), torch.randn(2, 2, 5, 5)
    simple = simplify(model, (x,))
    names = [stage.name for stage in stages(model, simple, x)]
    assert names == ["7", "8"]  # in front of a ReLU6 there is more than the value
    with pytest.raises(UnsupportedModel, match="was made of another one"):
        next(stages(trained(lenet()), simple, torch.randn(1, 1, 12, 12)))
    images = torch.randn(3, 1, 12, 12)
    other = simplify(trained(lenet()), (images,))
    with pytest.raises(UnsupportedModel, match=r"another one; .* on the same shape of input"):
        next(stages(trained(lenet(nn.MaxPool2d)), other, images))

    class Counting(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)
            return y if len(x) == 2 else 2 * y / 2

    counting = Counting(*trained(lenet()))
    with pytest.raises(UnsupportedModel, match="another one; expected the same calls"):
        next(stages(counting.eval(), simplify(counting, (images,)), images))
    with pytest.raises(UnsupportedModel, match="has no record"):
        next(stages(model, model, x))
    del simple[5:]
    with pytest.raises(UnsupportedModel, match="its parts are not those"):
        list(stages(model, simple, x))
