"""State dicts of the original load into both forms, and the other way round: unchanged, strict."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import convfc

# PyTorch's layer warns that it will copy its input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

FORMS = ("patch", "weight")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    ).double()


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_whole_models_through_a_file(form: str, assign: bool) -> None:
    model, other = network(), network()
    after = convfc.to_fc(model, form=form)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True), strict=True, assign=assign)
    assert_same_state(model, after)
    file = io.BytesIO()
    torch.save(after.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True, assign=assign)
    assert_same_state(model, other)


@pytest.mark.parametrize("form", FORMS)
def test_keep_vars_keeps_the_graph(form: str) -> None:
    after = convfc.to_fc(nn.Conv2d(3, 4, 3), form=form)
    assert after.state_dict(keep_vars=True)["weight"].requires_grad
    assert not after.state_dict()["weight"].requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_strict_loading_names_what_does_not_fit(form: str) -> None:
    model = convfc.to_fc(network(), form=form)
    state = network().state_dict()
    wrong = {**state, "0.weight": torch.zeros(9, 9, 3, 3)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight.*9, 9, 3, 3.*4, 3, 3, 3"):
        model.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"size mismatch for 3\.bias.*\[9\].*\[4\]") as raised:
        model.load_state_dict({**state, "3.bias": torch.zeros(9)})
    assert "Missing" not in str(raised.value)
    assert "Unexpected" not in str(raised.value)
    missing = {key: value for key, value in state.items() if key != "3.bias"}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(missing)


def test_a_tools_own_module_is_saved_as_it_saves_itself() -> None:
    after = convfc.to_fc(nn.Conv2d(3, 4, 3))
    after.fc = nn.Sequential(nn.Linear(27, 2), nn.Linear(2, 4))
    keys = ["fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"]
    assert list(after.state_dict()) == keys
    after.load_state_dict(after.state_dict(), strict=True)


def test_metadata_and_order_are_those_of_the_original() -> None:
    model = network()
    for form in FORMS:
        after = convfc.to_fc(model, form=form)
        assert list(after.state_dict(prefix="a.")) == list(model.state_dict(prefix="a."))
        assert after.state_dict()._metadata["1"] == model.state_dict()._metadata["1"]
