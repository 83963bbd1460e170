"""verify on the unrolled form: every wrong entry is named, and every test of it sees one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import net, network
from proofs import assert_proven, only
from torch import Tensor, nn

import convfc
from convfc.frameworks.torch.room import ROOM
from convfc.measure import Call, measure
from convfc.networks import find_pairs


def one_layer() -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(4, 1, 6, 6)
    return model, convfc.unroll(model, x), x


def test_other_batches_none_and_another_size():
    model = network()
    after = convfc.unroll(model, torch.randn(2, 3, 8, 8))
    for x in (torch.randn(5, 3, 8, 8), torch.randn(0, 3, 8, 8)):
        assert convfc.verify(model, after, x).holds
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(3, 5, 5)
    assert_proven(convfc.verify(layer, convfc.unroll(layer, x), x))
    certificate = convfc.verify(model, after, torch.ones(1, 3, 9, 9))
    assert not certificate.holds
    assert any("the second layer fails" in failure for failure in certificate.failures)


def test_the_gradient_of_a_weight_is_a_sum_over_all_its_entries():
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(2, 2, 5, 4)
    (pair,) = find_pairs(ROOM, layer, convfc.unroll(layer, x)).pairs
    found = measure(pair.on(Call(x))[0], seed=0)
    assert found.own["weight"].terms == found.own["bias"].terms == 2 * 5 * 4


def test_a_layer_that_the_input_does_not_reach_is_compared_at_its_own_size():
    def run(m: Any, x: Tensor, further: bool = True) -> Tensor:
        y = m.first(x)
        return m.second(y) if further else y

    model = net(run, first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 4, (5, 3), stride=3))
    x = torch.randn(1, 3, 9, 8)
    certificate = convfc.verify(model, convfc.unroll(model, x), (x, False))
    assert_proven(certificate)
    assert (
        "second: not called on this input, so compared on random numbers of shape (1, 4, 7, 6)"
        in (certificate.notes)
    )


Sabotage = Callable[[nn.Sequential], object]


def entry(name: str, change: Callable[[Tensor], object], which: str = "weight") -> Sabotage:
    """Change the matrix of one layer; its pattern is that of 3x3 filters on 8x8."""

    def sabotage(model: nn.Sequential) -> None:
        with torch.no_grad():
            change(getattr(model.get_submodule(name)[1], which))

    return sabotage


# In `first`, (0, 0) is the middle tap of channel 0.
SABOTAGE: dict[str, tuple[Sabotage, str]] = {
    "the first entry by a thousandth": (
        entry("first", lambda A: A[0, 0].mul_(1.001)),
        "first: its matrix at [0, 0] (filter 0, position 0); expected ",
    ),
    "an entry outside the pattern": (
        entry("first", lambda A: A[0, 30].fill_(1e-3)),
        "first: its matrix at [0, 30] (filter 0, position 0); expected 0.0, got 0.001",
    ),
    "one number of the vector": (
        entry("last", lambda b: b[7].add_(1e-3), "bias"),
        "last: its vector at [7] (filter 0, position 7); expected ",
    ),
}


@pytest.mark.parametrize(("sabotage", "reason"), SABOTAGE.values(), ids=SABOTAGE)
def test_it_says_no_and_names_the_entry(sabotage: Sabotage, reason: str):
    model, x = network(), torch.randn(1, 3, 8, 8)
    after = convfc.unroll(model, x)
    sabotage(after)
    certificate = convfc.verify(model, after, x)
    assert not certificate.holds
    assert any(failure.startswith(reason) for failure in certificate.failures), str(certificate)
    bad = {failure.partition(":")[0] for failure in certificate.failures}
    assert bad <= {reason.partition(":")[0], "network"}
    json.dumps(certificate.to_dict(), allow_nan=False)


def test_each_test_sees_a_wrong_entry_in_both_directions():
    """By a thousandth: the difference, the float64 one, the integers; not by bits of weights."""
    model, after, x = one_layer()
    with torch.no_grad():
        after[0][1].weight[5, 7] *= 1.001
    layer = only(convfc.verify(model, after, x))
    assert not layer.own["output"].holds
    assert not layer.float64["output"].holds
    assert not layer.own["input"].holds
    assert layer.exact.differing == ("output", "input")
    assert all(weight.same_bits for weight in layer.weights)  # the first entry of the tap is right
    assert layer.own["weight"].holds
    failures = convfc.verify(after, model, x).failures
    assert any(failure.startswith("0: its matrix at [5, 7] (") for failure in failures)


def test_an_entry_that_only_rounding_could_hide_is_seen():
    """In bfloat16 the bound is wide; the entries are compared by their bits all the same."""
    model, _, x = one_layer()
    model, x = model.bfloat16(), x.bfloat16()
    after = convfc.unroll(model, x)
    with torch.no_grad():
        after[0][1].weight[5, 7].mul_(1 + 2**-7)
    certificate = convfc.verify(model, after, x)
    assert only(certificate).own["output"].holds
    assert any("0: its matrix at [5, 7]" in failure for failure in certificate.failures)


def test_weights_of_another_layer_and_a_missing_bias():
    model, after, x = one_layer()
    other = one_layer()[0]
    certificate = convfc.verify(other, after, x)
    assert any("0: weight has other bits" in failure for failure in certificate.failures)
    after[0][1].bias = None
    certificate = convfc.verify(model, after, x)
    assert any("0: its bias; expected (2,)" in failure for failure in certificate.failures)
    assert_proven(convfc.verify(after, copy.deepcopy(after), x))


def test_a_layer_that_a_tool_has_changed_is_compared_without_its_weights():
    model, after, x = one_layer()
    factor = nn.Linear(32, 32, bias=False)
    nn.init.eye_(factor.weight)
    after[0][1] = nn.Sequential(after[0][1], factor)
    certificate = convfc.verify(model, after, x)
    assert certificate.holds, str(certificate)
    assert "more than a plain layer" in str(certificate)
    with torch.no_grad():
        factor.weight[0, 0] = 1.001
    assert not convfc.verify(model, after, x).holds


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padding_that_repeats_elements_is_rounded_once_more_and_still_proven(mode: str):
    """An entry is a sum of weights there: in float64 it is made of weights in float64 again."""
    model = nn.Sequential(nn.Conv2d(2, 3, 5, padding=2, padding_mode=mode), nn.Tanh())
    model.append(nn.Conv2d(3, 2, 5, padding=2, padding_mode=mode))
    x = torch.randn(2, 2, 3, 4)
    after = convfc.unroll(model, x)
    assert_proven(convfc.verify(model, after, x))
    with torch.no_grad():
        after[2][1].weight[0, 0] *= 1.001
    certificate = convfc.verify(model, after, x)
    assert any("2: its matrix at [0, 0]" in failure for failure in certificate.failures)
