"""A CONV network as a plain MLP: what is made, and that not a bit differs on integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conv_cases import integers
from networks import net, trained
from simplified_models import (
    NETWORKS,
    lenet,
    mobile,
    resnet,
)
from torch import Tensor, fx, nn
from torch_fixtures import with_integers

import convfc
from convfc import simplify
from convfc.errors import NothingToConvert
from convfc.rounding import rounding_bound

WAYS: dict[str, dict[str, Any]] = {
    "keep": {},
    "relu": {"max_pool": "relu"},
    "sequential": {"max_pool": "relu", "sequential": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_network = pytest.mark.parametrize("name", NETWORKS)


def linears(model: nn.Module) -> list[nn.Linear]:
    return [part for part in model.modules() if type(part) is nn.Linear]


def kinds(model: nn.Module) -> list[str]:
    return [type(part).__name__ for part in model]


def assert_plain(model: nn.Module) -> None:
    """Linear and ReLU between one Flatten and one Unflatten; of functions, additions only."""
    parts = [type(part) for part in model.modules()][1:]
    assert set(parts) <= {nn.Linear, nn.ReLU, nn.Flatten, nn.Unflatten}
    assert parts.count(nn.Flatten) <= 1
    assert parts.count(nn.Unflatten) <= 1
    if isinstance(model, fx.GraphModule):
        calls = [node for node in model.graph.nodes if node.op.startswith("call")]
        assert {node.op for node in calls} <= {"call_module", "call_function"}
        functions = {node.target.__name__ for node in calls if node.op == "call_function"}
        assert functions <= {"add"}
    else:
        assert type(model) is nn.Sequential


@each_way
@each_network
def test_on_integers_not_a_bit_differs(name: str, way: dict[str, Any]):
    """So the sequence is equal to the graph, too."""
    make, shape = NETWORKS[name]
    model, x = with_integers(make()), 3 * integers((3, *shape), seed=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    simple = simplify(model, x[:1], **way)
    y = model(x)
    assert y.abs().max() > 10  # no dead network
    assert torch.equal(simple(x), y)
    assert torch.equal(simple(x[:1]), y[:1])
    if way:
        assert_plain(simple)
    if "sequential" in way:
        inner = [type(part) for part in simple if not isinstance(part, (nn.Flatten, nn.Unflatten))]
        assert inner == ([nn.Linear, nn.ReLU] * len(inner))[: len(inner)]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_bound_knows_what_a_batch_norm_adds_and_takes_off_again():
    """Its bias is what its mean takes off: small numbers pass through large ones."""
    norm = nn.BatchNorm1d(4).eval()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1e3, -3e3, 1e4, 7e3]))
        norm.bias.copy_(norm.running_mean / (norm.running_var + norm.eps).sqrt())
    x = torch.rand(50, 4)
    simple = simplify(norm, x)
    certificate = convfc.verify(norm, simple, x)
    assert certificate.holds, str(certificate)
    terms = certificate.layers[0].own["output"].terms
    alone = rounding_bound(simple[0].weight.diagonal() * x.double(), terms, "float32")
    assert bool(((simple(x) - norm(x)).abs() > alone).any())


# What is made -------------------------------------------------------------------------------------


def test_a_lenet_becomes_four_layers_with_both_poolings_in_the_ones_after_them():
    simple = simplify(lenet().eval(), torch.ones(1, 1, 12, 12))
    expected = ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert kinds(simple) == expected
    assert [part.out_features for part in linears(simple)] == [4 * 12 * 12, 6 * 4 * 4, 12, 5]


def test_the_layers_that_nothing_is_merged_with_keep_their_bits():
    model = lenet(nn.MaxPool2d).eval()
    last = linears(simplify(model, torch.ones(1, 1, 12, 12)))[-1]
    assert torch.equal(last.weight, model[-1].weight)
    assert torch.equal(last.bias, model[-1].bias)


def test_a_value_is_multiplied_into_each_of_several_users():
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.norm(x)
        return torch.relu(m.one(x)) + torch.relu(m.other(x))

    parts = {"norm": nn.BatchNorm2d(2), "one": nn.Conv2d(2, 2, 3), "other": nn.Conv2d(2, 2, 3)}
    model, x = with_integers(net(run, **parts)), integers((2, 2, 4, 4))
    simple = simplify(model, x)
    assert len(linears(simple)) == 2
    assert torch.equal(simple(x), model(x))


def test_a_residual_network_keeps_its_additions_and_the_sequence_carries_the_branches():
    """The first block's input is never negative; the second one's shortcut is, but narrower."""
    model, x = with_integers(resnet()), integers((1, 2, 8, 8))
    simple = simplify(model, x)
    assert isinstance(simple, fx.GraphModule)
    assert len(linears(simple)) == 7
    assert sum(node.op == "call_function" for node in simple.graph.nodes) == 2
    block, strided = 3 * 64, 4 * 16
    widths = [part.out_features for part in linears(simplify(model, x, sequential=True))]
    assert widths == [block, 2 * block, block, strided + 2 * strided, strided, 3]


def test_a_bottleneck_is_not_multiplied_out_unless_the_sequence_has_to_alternate():
    model, x = with_integers(mobile()), integers((2, 2, 5, 5))
    narrow = 2 * 3 * 3
    assert narrow in [part.out_features for part in linears(simplify(model, x))]
    one = simplify(model, x, sequential=True)
    assert narrow not in [part.out_features for part in linears(one)]


def test_pooling_is_multiplied_into_the_next_layer_although_that_costs_a_few_numbers():
    """In LeNet-5: 4704 x 1600 for 4704 x 1176 and 1176 x 1600, with no activation between."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(400, 10)),
    )
    simple = simplify(model.eval(), torch.zeros(1, 1, 28, 28))
    assert kinds(simple) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_a_flat_input_needs_no_flatten_and_a_flat_output_no_unflatten():
    model = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    x = integers((2, 16))
    simple = simplify(with_integers(model), x)
    assert kinds(simple) == ["Linear", "ReLU"]
    assert torch.equal(simple(x), model(x))
    with pytest.raises(NothingToConvert, match=r"no layer other than nn\.Linear and ReLU"):
        simplify(nn.Sequential(*simple), x)


def test_it_follows_dtype_mode_and_gradients():
    model = trained(lenet()).to(torch.bfloat16)
    x = torch.randn(2, 1, 12, 12).to(torch.bfloat16)
    simple = simplify(model, x)
    assert {parameter.dtype for parameter in simple.parameters()} == {torch.bfloat16}
    assert simple(x).dtype == torch.bfloat16
    assert not simple.training
    assert simplify(nn.Sequential(nn.Conv1d(1, 1, 1)), torch.ones(1, 1, 2)).training
    assert all(parameter.requires_grad for parameter in simple.parameters())


def test_a_part_of_a_network_is_simplified_by_itself():
    """A CONV layer and the FC layer after it are one matrix; the rest of the network stays."""
    model, x = with_integers(lenet()), integers((2, 1, 12, 12))
    features = model[:3](x)
    part = simplify(model[3:8], features)
    assert kinds(part) == ["Flatten", "Linear", "ReLU", "Linear"]
    whole = nn.Sequential(*model[:3], part, *model[8:])
    assert torch.equal(whole(x), model(x))
    both = simplify(nn.Sequential(model[3], nn.Flatten(), nn.Linear(96, 5).double()), features)
    assert kinds(both) == ["Flatten", "Linear"]
    again = simplify(whole, x)  # a network with a simplified part is a network
    assert kinds(again) == kinds(simplify(model, x))
    assert torch.equal(again(x), model(x))
    assert torch.equal(convfc.to_conv(part)[0].weight, model[3].weight)
