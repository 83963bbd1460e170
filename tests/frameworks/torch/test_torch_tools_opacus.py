"""Opacus: each sample's gradient, and by ghost clipping its norm without the gradient.

For CONV layers ghost clipping silently makes every sample's gradient, and the gradients are wrong
where the padding is not zeros.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import opacus.grad_sample.grad_sample_module_fast_gradient_clipping as ghost
import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import (
    GradSampleModule,
    GradSampleModuleFastGradientClipping,
    wrap_model,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch_fixtures import in_form

import convfc
from convfc.errors import UnsupportedLayer
from convfc.frameworks.torch import GroupedLinear
from convfc.frameworks.torch.forms import blocks
from convfc.rounding import UNIT_ROUNDOFF, gamma

pytestmark = [
    # The images need no gradient; so it is with any model whose first layer is hooked by Opacus.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients:UserWarning"),
]

BATCH = 6
CLIP = 0.5


def plain_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 10),
    )


def unusual_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), padding=2, dilation=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 20, 10),
    )


CNNS = {"strided": plain_cnn, "dilated-grouped-transposed": unusual_cnn}
each_cnn = pytest.mark.parametrize("name", CNNS)


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images[:BATCH]).reshape(-1, 1, 8, 8)
    return images / 16, torch.from_numpy(labels[:BATCH])


@pytest.fixture
def cnn(name: str) -> nn.Sequential:
    """Return a CNN in float64, the same in every test."""
    torch.manual_seed(1712)
    return CNNS[name]().double()


def with_integers(model: nn.Sequential) -> nn.Sequential:
    """Give a model weights of -1, 0 and 1, so that gradients and their squares are exact."""
    generator = torch.Generator().manual_seed(1259)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-1, 2, p.shape, generator=generator))
    return model


class Ghost(NamedTuple):
    """What Opacus found: each sample's norm, also per parameter, and gradients that it made."""

    norms: Tensor
    by_parameter: list[Tensor]
    gradients_made: list[tuple[int, ...]]


def ghost_norms(
    model: nn.Module, x: Tensor, losses: nn.Module, y: Tensor, patch: pytest.MonkeyPatch
) -> Ghost:
    made = []
    make = ghost.create_or_accumulate_grad_sample

    def record(*, param: Tensor, grad_sample: Tensor, max_batch_len: int) -> None:
        made.append(tuple(grad_sample.shape))
        make(param=param, grad_sample=grad_sample, max_batch_len=max_batch_len)

    patch.setattr(ghost, "create_or_accumulate_grad_sample", record)
    wrapped = GradSampleModuleFastGradientClipping(
        copy.deepcopy(model), loss_reduction="sum", use_ghost_clipping=True
    )
    losses(wrapped(x), y).sum().backward()
    norms = wrapped.get_norm_sample().detach()
    return Ghost(norms, [p._norm_sample for p in wrapped.parameters()], made)


def one_by_one(model: nn.Module, x: Tensor, losses: nn.Module, y: Tensor) -> list[list[Tensor]]:
    """Each sample's gradients, a backward pass for each, by the CNN."""
    model = copy.deepcopy(model)
    found = []
    for image, label in zip(x, y, strict=True):
        model.zero_grad()
        losses(model(image.unsqueeze(0)), label.unsqueeze(0)).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    return found


def norms_of(gradients: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([g.flatten() for g in each]).norm() for each in gradients])


class Weighted(nn.Module):
    """A loss of integers: the outputs, weighted by where they stand and by the label."""

    def forward(self, y: Tensor, label: Tensor) -> Tensor:
        places = torch.arange(y.shape[1], dtype=y.dtype) % 3 - 1
        return (y * places).sum(dim=1) * (1 + label % 2)


@each_cnn
def test_on_the_cnn_ghost_clipping_makes_every_gradient(
    cnn: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = GradSampleModuleFastGradientClipping.NORM_SAMPLERS
    assert nn.Linear in samplers
    convs = [m for m in cnn if isinstance(m, nn.modules.conv._ConvNd)]
    assert all(type(m) not in samplers for m in convs)
    images, labels = digits()
    found = ghost_norms(cnn, images, nn.CrossEntropyLoss(reduction="none"), labels, monkeypatch)
    made = sorted((BATCH, *p.shape) for m in convs for p in m.parameters())
    assert sorted(found.gradients_made) == made


@each_cnn
def test_in_patch_form_it_makes_none_and_its_norms_are_exact_on_integers(
    cnn: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn = with_integers(cnn)
    x, y = integer_images(), torch.arange(BATCH)
    found = ghost_norms(convfc.to_fc(cnn), x, Weighted(), y, monkeypatch)
    assert found.gradients_made == []

    # One Linear per group: the squares of its own part of the CONV layer's gradient.
    groups = [getattr(part, "groups", 1) for part in cnn for _ in part.parameters()]
    by_parameter = zip(*one_by_one(cnn, x, Weighted(), y), strict=True)
    squares = []
    for gradients, count in zip(by_parameter, groups, strict=True):
        parts = torch.stack(gradients).square().chunk(count, dim=1)
        squares += [part.flatten(1).sum(dim=1) for part in parts]
    total = torch.stack(squares).sum(dim=0)
    assert total.max() < 2**53, "too large to be exact"
    expected = [square.sqrt().tolist() for square in squares]
    assert sorted(norm.tolist() for norm in found.by_parameter) == sorted(expected)
    assert (total > 0).all()
    # The norm of norms rounds: roots, squares, a sum, a root.
    bound = gamma(len(squares) + 4, UNIT_ROUNDOFF["float64"]) * total.sqrt()
    assert ((found.norms - total.sqrt()).abs() <= bound).all()


@each_cnn
@pytest.mark.parametrize("hooked", ["forward", "backward"])
def test_a_hooked_fc_child_is_called_once_on_the_whole_patch_matrix(
    cnn: nn.Sequential, hooked: str
) -> None:
    """What ghost clipping rests on: blocks of M would be taken for samples of their own."""
    fc = convfc.to_fc(cnn)
    linears = {
        name: part for name, part in fc.named_modules() if type(part) is nn.Linear and ".fc" in name
    }
    calls: list[tuple[str, int]] = []
    for name, part in linears.items():
        if hooked == "forward":
            part.register_forward_hook(
                lambda m, args, y, name=name: calls.append((name, *args[0].shape))
            )
        else:
            part.register_full_backward_hook(
                lambda m, dx, dy, name=name: calls.append((name, *dy[0].shape))
            )
    x = torch.randn(BATCH, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    fc(x).sum().backward()
    positions = {}  # L, by place
    for place, layer in cnn.named_children():
        x = layer(x)
        positions[place] = x.shape[2:].numel()
    columns = "in_features" if hooked == "forward" else "out_features"
    assert sorted(calls) == sorted(
        (name, BATCH, positions[name.split(".", maxsplit=1)[0]], getattr(part, columns))
        for name, part in linears.items()
    )


@pytest.mark.parametrize("known", [True, False], ids=["own-rule", "vectorised"])
def test_many_groups_give_the_gradients_of_every_sample(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batched FC layer: by the rule that it gives Opacus, and without."""
    cnn = nn.Sequential(
        nn.Conv2d(1, 40, 3), nn.Conv2d(40, 80, 3, groups=40), nn.Flatten(), nn.Linear(1280, 10)
    )
    cnn = with_integers(cnn.double())
    fc = convfc.to_fc(cnn)
    assert type(fc[1].fc) is GroupedLinear
    samplers = GradSampleModule.GRAD_SAMPLERS
    assert GroupedLinear in samplers
    if not known:
        monkeypatch.delitem(samplers, GroupedLinear)
    x, labels = integer_images(), torch.arange(BATCH)
    model = GradSampleModule(fc, loss_reduction="sum")
    Weighted()(model(x), labels).sum().backward()
    expected = one_by_one(cnn, x, Weighted(), labels)
    for found, gradients in zip(in_the_cnns_layout(fc), expected, strict=True):
        assert all(map(torch.equal, found, gradients))
        assert all(gradient.any() for gradient in gradients)


def integer_images() -> Tensor:
    generator = torch.Generator().manual_seed(1712)
    return torch.randint(-2, 3, (BATCH, 1, 8, 8), generator=generator).double()


def in_the_cnns_layout(fc: nn.Module) -> list[list[Tensor]]:
    """Each sample's gradients of a model in patch form, as the CNN has its parameters."""
    found, one = [], copy.deepcopy(fc)
    for sample in range(BATCH):
        with torch.no_grad():
            for p, made in zip(one.parameters(), fc.parameters(), strict=True):
                p.copy_(made.grad_sample[sample])
        found.append([value.clone() for value in one.state_dict().values()])
    return found


def circular_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2, padding_mode="replicate"),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 10),
    )


MODES = ["hooks", "functorch", "ew"]
PADDED = {**CNNS, "circular-replicated": circular_cnn}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PADDED)
def test_every_way_to_sample_gradients_is_exact_on_the_patch_form(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1024)  # blocks of M would be taken for samples
    torch.manual_seed(1712)
    cnn = with_integers(PADDED[name]().double())
    x, labels = integer_images(), torch.arange(BATCH)
    fc = convfc.to_fc(cnn)
    model = wrap_model(fc, grad_sample_mode=mode, loss_reduction="sum")
    Weighted()(model(x), labels).sum().backward()
    expected = one_by_one(cnn, x, Weighted(), labels)
    for found, gradients in zip(in_the_cnns_layout(fc), expected, strict=True):
        assert all(map(torch.equal, found, gradients))
    assert all(gradient.any() for gradient in expected[0])


@pytest.mark.parametrize(("mode", "right"), [("hooks", False), ("functorch", True), ("ew", True)])
def test_on_the_cnn_its_own_rule_takes_every_padding_for_zeros(mode: str, right: bool) -> None:
    torch.manual_seed(1712)
    cnn = with_integers(circular_cnn().double())
    x, labels = integer_images(), torch.arange(BATCH)
    expected = one_by_one(cnn, x, Weighted(), labels)
    model = wrap_model(cnn, grad_sample_mode=mode, loss_reduction="sum")
    Weighted()(model(x), labels).sum().backward()
    for layer, index in ((cnn[0], 0), (cnn[2], 2)):
        truth = torch.stack([gradients[index] for gradients in expected])
        away = ((layer.weight.grad_sample - truth).norm() / truth.norm()).item()
        assert away == 0 if right else away > 0.2


@pytest.mark.parametrize("wrap", [GradSampleModule, GradSampleModuleFastGradientClipping])
@pytest.mark.parametrize("form", ["patch", "unrolled"])
def test_a_model_in_the_hands_of_opacus_says_how_to_get_it_out(form: str, wrap: type) -> None:
    cnn = plain_cnn()
    model = wrap(in_form(cnn, form, torch.zeros(1, 1, 8, 8)))
    for held in (model, model._module):
        with pytest.raises(
            UnsupportedLayer, match=r"0: hooks stand on.*what model\.to_standard_module\(\) returns"
        ):
            convfc.to_conv(held)
    back = convfc.to_conv(model.to_standard_module())
    assert [torch.equal(a, b) for a, b in zip(back.parameters(), cnn.parameters(), strict=True)]
    assert [type(part) for part in back] == [type(part) for part in cnn]


# Opacus reminds of it, always.
@pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning")
@each_cnn
@pytest.mark.parametrize("mode", ["ghost", "hooks", "functorch"])
def test_a_private_step_in_patch_form_comes_back_as_the_cnns(cnn: nn.Sequential, mode: str) -> None:
    """Opacus end to end, without noise so that there is something to compare with."""
    images, labels = digits()
    before = [p.detach().clone() for p in cnn.parameters()]
    fc = convfc.to_fc(cnn)
    model, optimizer, *losses, loader = PrivacyEngine().make_private(
        module=fc,
        optimizer=torch.optim.SGD(fc.parameters(), lr=1.0),
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(images, labels), batch_size=BATCH),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        grad_sample_mode=mode,
        poisson_sampling=False,
    )
    for x, y in loader:
        optimizer.zero_grad()
        criterion = losses[0] if losses else nn.CrossEntropyLoss()
        criterion(model(x), y).backward()
        optimizer.step()
    model.remove_hooks()
    back = convfc.to_conv(model._module)
    assert [type(part) for part in back] == [type(part) for part in cnn]

    expected, rounded = stepped(cnn, images, labels), stepped(cnn.float(), images.float(), labels)
    for old, got, exact, near in zip(before, back.parameters(), expected, rounded, strict=True):
        assert not torch.equal(got, old)
        assert (got - exact).abs().max() < (near - exact).abs().max()


def stepped(cnn: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """The parameters after a step of SGD on clipped gradients, made one by one."""
    gradients = one_by_one(cnn, x, nn.CrossEntropyLoss(reduction="none"), y)
    factors = (CLIP / (norms_of(gradients) + 1e-6)).clamp(max=1)
    assert (factors < 1).any(), "nothing is clipped"
    return [
        p.detach() - sum(c * g for c, g in zip(factors, each, strict=True)) / len(y)
        for p, each in zip(cnn.parameters(), zip(*gradients, strict=True), strict=True)
    ]
