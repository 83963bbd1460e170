"""PEFT tuners for Linear layers fine-tune the CONV layers of a CNN, and it goes back."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import convfc

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when peft is imported

from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.vera import Linear as VeraLinear

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_network")

HEAD = "6"


@pytest.fixture
def cnn() -> nn.Module:
    """Return a CNN with a strided layer, a grouped one, a 1x1 one and a classifier."""
    torch.manual_seed(1712)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return real handwritten digits, 8 x 8, from scikit-learn."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images[:count]).float().reshape(-1, 1, 8, 8) / 16
    return images, torch.from_numpy(labels[:count])


def vera(**options: Any) -> VeraConfig:
    return VeraConfig(r=16, vera_dropout=0.0, projection_prng_key=1712, **options)


def targets(model: PeftModel) -> list[str]:
    prefix = "base_model.model."
    return [
        name.removeprefix(prefix)
        for name, part in model.named_modules()
        if isinstance(part, VeraLinear)
    ]


@pytest.fixture
def tuned(cnn: nn.Module) -> tuple[PeftModel, list[float]]:
    """Return the FC form of the CNN, its CONV layers fine-tuned by VeRA, and the losses."""
    fc = convfc.to_fc(cnn)
    names = [name for name, part in fc.named_modules() if type(part) is nn.Linear]
    model = get_peft_model(fc, vera(target_modules=[name for name in names if name != HEAD]))
    assert targets(model) == ["0.fc", "2.fc.0", "2.fc.1", "3.fc"]
    images, labels = digits(200)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def conv_layers(model: nn.Module) -> Iterator[nn.Module]:
    return (part for part in model.modules() if isinstance(part, nn.modules.conv._ConvNd))


def test_vera_refuses_conv_layers(cnn: nn.Module) -> None:
    refusal = r"Target module Conv2d\(1, 8.* is not supported\. Currently, only `torch\.nn\.Linear`"
    with pytest.raises(TypeError, match=refusal):
        get_peft_model(cnn, vera(target_modules=r"\d"))


def test_vera_asked_for_all_linear_layers_passes_over_conv_layers(cnn: nn.Module) -> None:
    """What a user who follows PEFT's guide writes: on the CNN it tunes the classifier only."""
    assert targets(get_peft_model(cnn, vera(target_modules="all-linear"))) == [HEAD]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": "all-linear"}, ["0.fc", "2.fc.0", "2.fc.1", "3.fc", HEAD]),
        ({"target_modules": ["0.fc", "3.fc"]}, ["0.fc", "3.fc"]),
        ({"target_modules": r".*\.fc\.\d+"}, ["2.fc.0", "2.fc.1"]),  # groups
    ],
    ids=["all-linear", "names", "regex"],
)
def test_vera_finds_the_fc_children(
    cnn: nn.Module, options: dict[str, Any], expected: list[str]
) -> None:
    assert targets(get_peft_model(convfc.to_fc(cnn), vera(**options))) == expected


def test_vera_trains_the_conv_layers(cnn: nn.Module, tuned: tuple[PeftModel, list[float]]) -> None:
    model, losses = tuned
    assert losses[-1] < losses[0]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("vera_lambda" in name for name in trained)
    untouched = convfc.to_fc(cnn)
    for name in targets(model):  # the CONV weights themselves are frozen
        base = model.base_model.model.get_submodule(name).base_layer
        assert torch.equal(base.weight, untouched.get_submodule(name).weight), name


# What a user may hold when the training is over.
STATES = {
    "merged": lambda model: copy.deepcopy(model).merge_and_unload(),
    "unmerged": lambda model: model,
    "unwrapped": lambda model: model.base_model.model,  # as `inject_adapter_in_model` leaves it
}


@pytest.mark.parametrize("state", STATES)
def test_a_tuned_network_comes_back_as_a_cnn(
    cnn: nn.Module, tuned: tuple[PeftModel, list[float]], state: str
) -> None:
    model, _ = tuned
    images, _ = digits(8)
    fc = STATES[state](model)
    back = convfc.to_conv(fc)

    assert type(back) is nn.Sequential
    assert [type(part) for part in back] == [type(part) for part in cnn]
    assert list(back.state_dict()) == list(cnn.state_dict())
    for layer, old in zip(conv_layers(back), conv_layers(cnn), strict=True):
        assert type(layer) is nn.Conv2d
        assert not torch.equal(layer.weight, old.weight)
        assert layer.extra_repr() == old.extra_repr()
    assert torch.equal(back[int(HEAD)].weight, cnn[int(HEAD)].weight)

    # Layer by layer, outputs and gradients within the rounding bound.
    tuner = fc.base_model.model if isinstance(fc, PeftModel) else fc
    certificate = convfc.verify(tuner, back, images)
    assert certificate.holds, str(certificate)
    assert {layer.name for layer in certificate.layers} == {"0", "2", "3"}
    assert not convfc.verify(cnn, back, images).holds  # it is another network than before


def test_every_way_back_gives_the_same_cnn(tuned: tuple[PeftModel, list[float]]) -> None:
    model, _ = tuned
    states = [convfc.to_conv(unfinished(model)).state_dict() for unfinished in STATES.values()]
    for name, value in states[0].items():
        assert all(torch.equal(state[name], value) for state in states), name


TUNERS: dict[str, Any] = {
    "LoRA-bias": lambda t: LoraConfig(r=2, lora_bias=True, target_modules=t),
    "DoRA": lambda t: LoraConfig(r=2, use_dora=True, target_modules=t),
    "LoHa": lambda t: LoHaConfig(r=2, target_modules=t),
    "LoKr": lambda t: LoKrConfig(r=2, target_modules=t),
    "OFT": lambda t: OFTConfig(oft_block_size=4, target_modules=t),
    "BOFT": lambda t: BOFTConfig(boft_block_size=4, target_modules=t),
    "IA3": lambda t: IA3Config(target_modules=t, feedforward_modules=[]),
    "VeRA": lambda t: VeraConfig(r=2, target_modules=t),
    "HRA": lambda t: HRAConfig(r=2, target_modules=t),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tuner", TUNERS)
def test_every_tuner_of_linear_layers_comes_back_as_peft_merges_it(
    tuner: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BOFT would compile a CUDA extension, and goes without where it cannot.
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    torch.manual_seed(1712)
    layer = nn.Conv2d(8, 16, 3, groups=groups)
    fc = convfc.to_fc(nn.Sequential(layer))
    names = [name for name, part in fc.named_modules() if type(part) is nn.Linear]
    model = get_peft_model(fc, TUNERS[tuner](names)).eval()
    with torch.no_grad():
        for p in filter(lambda p: p.requires_grad, model.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        y = model(x)
    back = convfc.to_conv(fc)[0]
    merged = model.merge_and_unload()[0]
    assert type(back) is nn.Conv2d
    assert torch.equal(back.weight, merged.weight)
    assert torch.equal(back.bias, merged.bias)
    assert not torch.equal(back.weight, layer.weight)
    torch.testing.assert_close(back(x), y)
