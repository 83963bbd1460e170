"""PEFT tuners for Linear layers fine-tune the CONV layers of a CNN, and it goes back."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import convfc
from convfc.errors import UnsupportedLayer

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when peft is imported

import peft
from peft import PeftModel, VeraConfig, get_peft_model
from peft.tuners.vera import Linear as VeraLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


# --------------------------------------------------------------------- every tuner, on groups


class Tuner(NamedTuple):
    """A tuner for Linear layers: how it is asked for, and what becomes of it on a grouped CNN."""

    make: Callable[[list[str]], Any]
    on_the_cnn: str
    """RIGHT, or what PEFT says when it adapts the layer, trains or merges it."""
    rate: float


RIGHT = "right"
NOT_LINEAR = "is not supported|is not a plain torch.nn.Linear|does not support target modules"
NONE_FOUND = "No layers? types compatible with"
GROUPS = "groups > 1"
SHAPES = "shape .* is invalid for input"
TINY = "^'0'$"  # it counts the Linear layers, and does not find this one
PASSED_OVER = "empty parameter list"


def tuner(config: Any, on_the_cnn: str, rate: float = 0.01, **options: Any) -> Tuner:
    return Tuner(lambda targets: config(target_modules=targets, **options), on_the_cnn, rate)


TUNERS = {
    "LoRA": tuner(peft.LoraConfig, GROUPS, r=4),
    "LoRA-bias": tuner(peft.LoraConfig, GROUPS, r=4, lora_bias=True),
    "DoRA": tuner(peft.LoraConfig, GROUPS, r=4, use_dora=True),
    "AdaLoRA": tuner(peft.AdaLoraConfig, SHAPES, init_r=6, target_r=4, total_step=10),
    "LoHa": tuner(peft.LoHaConfig, RIGHT, r=4),
    "LoKr": tuner(peft.LoKrConfig, RIGHT, r=4),
    "OFT": tuner(peft.OFTConfig, SHAPES, oft_block_size=4),
    "BOFT": tuner(peft.BOFTConfig, GROUPS, boft_block_size=4),
    "IA3": tuner(peft.IA3Config, RIGHT, feedforward_modules=[]),
    "VeRA": tuner(peft.VeraConfig, NONE_FOUND, r=4),
    "HRA": tuner(peft.HRAConfig, GROUPS, r=4),
    "AdaMSS": tuner(peft.AdamssConfig, NOT_LINEAR, r=4),
    "BEFT": tuner(peft.BeftConfig, NOT_LINEAR),
    "C3A": tuner(peft.C3AConfig, NOT_LINEAR, block_size=48),
    "DEFT": tuner(peft.DeftConfig, NOT_LINEAR, r=4),
    "DeLoRA": tuner(peft.DeloraConfig, NOT_LINEAR, r=4),
    "FourierFT": tuner(peft.FourierFTConfig, NOT_LINEAR),
    "FRoD": tuner(peft.FrodConfig, NONE_FOUND),
    "GLoRA": tuner(peft.GloraConfig, NOT_LINEAR, r=4),
    "GraLoRA": tuner(peft.GraloraConfig, NOT_LINEAR, r=4),
    "HiRA": tuner(peft.HiraConfig, GROUPS, r=4),
    "MiSS": tuner(peft.MissConfig, NOT_LINEAR, r=4),
    "OSF": tuner(peft.OSFConfig, PASSED_OVER),
    "PEANuT": tuner(peft.PeanutConfig, NOT_LINEAR, r=4),
    "PSOFT": tuner(peft.PsoftConfig, NOT_LINEAR, r=4),
    "PVeRA": tuner(peft.PveraConfig, NONE_FOUND, r=4),
    "RandLoRA": tuner(peft.RandLoraConfig, NONE_FOUND, rate=1e-4, r=4),
    "RoAd": tuner(peft.RoadConfig, NOT_LINEAR, group_size=32),
    "SHiRA": tuner(peft.ShiraConfig, NOT_LINEAR, r=4),
    "TinyLoRA": tuner(peft.TinyLoraConfig, TINY, r=4),
    "Uni-LoRA": tuner(peft.UniLoraConfig, NOT_LINEAR, r=4),
    "VB-LoRA": tuner(peft.VBLoRAConfig, NOT_LINEAR, r=4, vector_length=48, num_vectors=8),
    "WaveFT": tuner(peft.WaveFTConfig, NOT_LINEAR),
}


class Tuned(NamedTuple):
    """A model after a few steps, the losses on the way, and what it computes."""

    model: PeftModel
    losses: list[float]
    y: Tensor


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Return a layer with groups, with numbers of its own."""
    # BOFT would compile a CUDA extension, and goes without where it cannot.
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    torch.manual_seed(1712)
    return nn.Sequential(nn.Conv2d(96, 192, 3, groups=2))


def fine_tuned(name: str, model: nn.Module, targets: list[str], x: Tensor) -> Tuned:
    """Train a few steps, towards numbers that the network does not give, without dropout."""
    tuned = get_peft_model(model, TUNERS[name].make(targets)).eval()
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=TUNERS[name].rate)
    goal = 2 * torch.randn(2, 192, 4, 4)
    losses = []
    for _ in range(4):
        loss = (tuned(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return Tuned(tuned, losses, tuned(x))


def assert_rounded(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("name", TUNERS)
def test_what_a_tuner_makes_of_a_grouped_conv_layer(name: str, grouped: nn.Sequential) -> None:
    """The second column of the documentation's table."""
    x, expected = torch.randn(2, 96, 6, 6), TUNERS[name].on_the_cnn

    def run() -> None:
        tuned = fine_tuned(name, grouped, ["0"], x)
        assert_rounded(tuned.model.merge_and_unload()(x), tuned.y)

    if expected == RIGHT:
        run()
        return
    errors = (TypeError, ValueError, NotImplementedError, RuntimeError, KeyError)
    with pytest.raises(errors, match=expected):
        run()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", TUNERS)
def test_in_patch_form_every_tuner_trains_a_layer_that_comes_back_as_peft_merges_it(
    name: str, groups: int, grouped: nn.Sequential
) -> None:
    layer = grouped[0] if groups == 2 else nn.Conv2d(96, 192, 3)
    fc = convfc.to_fc(nn.Sequential(layer))
    names = [name for name, part in fc.named_modules() if type(part) is nn.Linear]
    assert len(names) == groups
    x = torch.randn(2, 96, 6, 6)
    model, losses, y = fine_tuned(name, fc, names, x)
    assert losses[-1] < losses[0]
    back = convfc.to_conv(model)[0]
    merged = model.merge_and_unload()
    home = convfc.to_conv(merged)[0]
    for conv in (back, home):
        assert type(conv) is nn.Conv2d
        assert conv.extra_repr() == layer.extra_repr()
        assert torch.equal(conv.weight, merged[0].weight)
        assert torch.equal(conv.bias, merged[0].bias)
        assert_rounded(conv(x), y)
    assert not torch.equal(home.weight, layer.weight) or not torch.equal(home.bias, layer.bias)


def test_the_documentation_sorts_every_tuner_as_it_was_found() -> None:
    """By what stands before the colon of a row that begins with PEFT."""
    page = Path(__file__).parents[3] / "docs" / "pytorch.md"
    rows = re.findall(r"^\| PEFT, (.*?): ([\w, -]+) \|", page.read_text("utf-8"), re.MULTILINE)
    found = {
        "tuners for `nn.Linear` only": (NOT_LINEAR, NONE_FOUND, PASSED_OVER, TINY),
        "tuners that stop at groups": (GROUPS, SHAPES),
        "tuners that are right on grouped layers, too": (RIGHT,),
    }
    assert {words: names.split(", ") for words, names in rows} == {
        words: sorted(
            {
                name.removesuffix("-bias")
                for name, tuner in TUNERS.items()
                if tuner.on_the_cnn in kinds
            },
            key=str.lower,
        )
        for words, kinds in found.items()
    }


def test_lily_has_no_merge_of_its_own_and_is_refused(grouped: nn.Sequential) -> None:
    model = get_peft_model(
        convfc.to_fc(grouped), peft.LilyConfig(r=4, target_modules=["0.fc.0", "0.fc.1"])
    )
    assert model(torch.randn(2, 96, 6, 6)).shape == (2, 192, 4, 4)
    with pytest.raises(UnsupportedLayer, match=r"cannot be merged.*not supported for Lily"):
        convfc.to_conv(model)
