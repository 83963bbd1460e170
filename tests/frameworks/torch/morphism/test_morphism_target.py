"""Morphs of one layer in whole models: shared layers, what stays, and all that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from morphism_layers import assert_unchanged, filled, numbers, state_of
from morphism_models import trained
from networks import net
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import convfc
from convfc.errors import DtypeError, NothingToConvert, ShapeError, UnsupportedLayer
from convfc.frameworks.torch.running import deep_copy
from convfc.methods.morphism import (
    Morph,
    deepen,
    factor,
    morph_activation,
    morph_depth,
    morph_kernel,
    morph_subnet,
)

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Morph]


def to_two_branches(model: nn.Module, name: str, **options: Any) -> Morph:
    layer = model.get_submodule(name)
    chain = [(1, max(layer.in_channels, layer.out_channels)), (1, None)]
    return morph_subnet(model, name, branches=[[(layer.kernel_size, None)], chain], **options)


def of_full_rank(model: nn.Module, name: str, **options: Any) -> Morph:
    return factor(model, name, energy=1.0, **options)


def larger(model: nn.Module, name: str, **options: Any) -> Morph:
    kernel = tuple(k + 1 for k in model.get_submodule(name).kernel_size)
    return morph_kernel(model, name, kernel_size=kernel, **options)


MORPHS: list[Make] = [
    *(deepen, morph_depth, morph_activation),
    *(larger, to_two_branches, of_full_rank),
]


@pytest.mark.parametrize("make", MORPHS, ids=lambda make: make.__name__)
def test_a_shared_layer_changes_at_all_its_places(make: Make) -> None:
    layer = filled(nn.Conv1d(2, 2, 3, padding=1))
    model = nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer))
    morph = make(model, "0", example=numbers((2, 2, 8), 1).float())
    assert morph.model[0] is morph.model[2][0]
    assert len(morph.certificate.layers) == 2
    assert morph.certificate.holds, str(morph)


@pytest.mark.parametrize(
    ("make", "linear"),
    [
        *((make, False) for make in MORPHS),
        *((make, True) for make in (deepen, morph_depth, of_full_rank)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_dtype_hooks_and_requires_grad_of_the_layer_are_those_of_the_new_part(
    make: Make, linear: bool
) -> None:
    layer = filled(nn.Linear(8, 8) if linear else nn.Conv1d(2, 3, 3, padding=1)).bfloat16()
    layer.weight.requires_grad_(False)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    x = numbers((2, 2, 8), 1).bfloat16()
    morph = make(nn.Sequential(layer), "0", example=x)
    assert morph.certificate.holds, str(morph)
    trains = {name: p.requires_grad for name, p in morph.model.named_parameters()}
    first, *others = [name for name, train in trains.items() if train]
    assert first.endswith("bias")
    assert all(name.endswith("bias") for name in others)
    assert {p.dtype for p in morph.model.parameters()} == {torch.bfloat16}
    seen.clear()
    y = morph.model(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], y)


@pytest.mark.parametrize("make", MORPHS, ids=lambda make: make.__name__)
def test_buffers_modes_hooks_and_attributes_of_the_rest_stay(make: Make) -> None:
    class Net(nn.Sequential):
        """A class with an attribute of its own."""

    model = trained(Net(nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.Dropout())).train()
    model.note = {"epoch": 3}
    model[2].eval()
    seen: list[str] = []
    model[1].register_forward_hook(lambda *_: seen.append("norm"))
    state, rng = state_of(model), torch.get_rng_state()
    morph = make(model, "0", example=numbers((4, 2, 8), 1).float())
    assert torch.equal(torch.get_rng_state(), rng)
    assert_unchanged(model, state)
    assert morph.certificate.holds, str(morph)
    assert type(morph.model) is Net
    assert morph.model.note == {"epoch": 3}
    assert [part.training for part in morph.model.children()] == [True, True, False]
    assert all(part.training for part in morph.model[0].modules())
    seen.clear()
    morph.model(numbers((4, 2, 8), 1).float())
    assert seen == ["norm"]
    morph = make(model.eval(), "0", example=numbers((4, 2, 8), 1).float())
    assert not any(part.training for part in morph.model.modules())


def test_copies_keep_circles_and_what_is_shared() -> None:
    class Child(nn.Module):
        def __setstate__(self, state: dict[str, Any]) -> None:  # a way of its own to be copied
            super().__setstate__(state)
            self.times = state["times"] + 1

    for kind, times in ((nn.Module, 1), (Child, 2)):
        model = nn.Sequential(nn.Conv1d(1, 1, 1), kind())
        model[1].parts, model[1].times, model.hooked = [model, model[0]], 1, {"conv": model[0]}
        model[0].note = model[1].note = {}
        model[0].register_forward_hook(lambda module, args, output: None)
        copied = deep_copy(model)
        assert copied is not model
        assert copied[1].parts[0] is copied
        assert copied[1].parts[1] is copied.hooked["conv"] is copied[0] is not model[0]
        assert copied[0].note is copied[1].note is not model[0].note
        assert len(copied[0]._forward_hooks) == 1
        assert copied[0].weight is not model[0].weight
        assert torch.equal(copied[0].weight, model[0].weight)
        assert copied[1].times == times


class DoubledConv(nn.Conv1d):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class DoubledLinear(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def form(name: str) -> nn.Module:
    conv = nn.Conv1d(2, 2, 3)
    if name == "unrolled":
        return convfc.unroll(conv, torch.ones(1, 2, 8))
    model: nn.Module = convfc.to_fc(conv, form=name)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward": (lambda: DoubledConv(2, 2, 3), "has a forward of its own; .* that it equals"),
    "linear": (
        lambda: DoubledLinear(8, 8),
        "DoubledLinear with a forward of its own; .* Remedy: put the nn.Linear",
    ),
    "lazy": (lambda: nn.LazyConv1d(2, 3), "its weight has no size yet; .* run the model once"),
    "parametrized": (
        lambda: parametrizations.orthogonal(nn.Linear(8, 8)),
        "Linear: its weight is computed by a parametrization; .*remove_parametrizations first",
    ),
    "pruned": (
        lambda: prune.random_unstructured(nn.Conv1d(2, 2, 3), "weight", amount=0.5),
        "its weight is not a parameter .*prune.remove",
    ),
    "patch": (lambda: form("patch"), "PatchConv: it is an FC form .* with convfc.to_conv"),
    "weight": (lambda: form("weight"), "it is an FC form of a CONV layer; .* with convfc.to_conv"),
    "unrolled": (lambda: form("unrolled"), "it is an unrolled CONV layer; .* with convfc.to_conv"),
    "norm": (
        lambda: nn.BatchNorm1d(2),
        "BatchNorm1d: it is not a CONV or FC layer; .* name a layer",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("make", [deepen, morph_depth, of_full_rank], ids=lambda f: f.__name__)
def test_layers_that_are_refused(make: Make, kind: str) -> None:
    layer, text = REFUSED[kind]
    model = nn.Sequential(layer())
    with pytest.raises(UnsupportedLayer, match=f"^0: .*{text}"):
        make(model, "0", example=torch.ones(1, 2, 8))


def test_what_is_inside_an_fc_form_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match=r"0.fc: Linear: it is an FC form .* convfc.to_conv"):
        deepen(nn.Sequential(form("patch")), "0.fc", example=torch.ones(1, 2, 8))
    with pytest.raises(UnsupportedLayer, match=r"0.1: Linear: it is an unrolled CONV layer"):
        deepen(nn.Sequential(form("unrolled")), "0.1", example=torch.ones(1, 2, 8))


def test_a_name_that_no_part_has_is_refused_with_those_that_there_are() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(NothingToConvert, match=r"conv1: the model has no such part; .* 0, 2\."):
        deepen(model, "conv1", example=torch.ones(1, 2, 8))
    with pytest.raises(NothingToConvert, match="expected a model with layers"):
        deepen(nn.Sequential(nn.ReLU()), "conv1", example=torch.ones(1, 2, 8))


def test_a_tied_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedLayer, match=r"also a parameter of 1 \(Linear\).* untie them"):
        morph_depth(model, "0", example=torch.ones(1, 8))
    model[1] = nn.Linear(8, 8)
    model[1].bias = model[0].bias
    with pytest.raises(UnsupportedLayer, match=r"also a parameter of 0 \(Linear\).* untie them"):
        morph_depth(model, "1", example=torch.ones(1, 8))


@pytest.mark.parametrize(
    ("name", "text"),
    [("up", "more than one tensor; .* got 2 arguments"), ("idle", "does not call it; .* got none")],
)
def test_calls_that_two_layers_cannot_take_are_refused(name: str, text: str) -> None:
    parts = {"up": nn.ConvTranspose1d(2, 2, 3, stride=2), "idle": nn.Linear(2, 2)}
    model = net(lambda m, x: m.up(x, [18])[..., :17] + m.up(x), **parts)
    with pytest.raises(UnsupportedLayer, match=f"{name}: .*{text}"):
        morph_depth(model, name, example=torch.ones(1, 2, 8))


def test_complex_weights_and_wrong_or_empty_examples_are_refused() -> None:
    linear = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(DtypeError, match=r"real weights; expected a real .* got complex64"):
        deepen(linear, "", example=torch.ones(1, 2, dtype=torch.complex64))
    with pytest.raises(ShapeError, match="example: the model does not run on this input"):
        deepen(nn.Linear(2, 2), "", example=torch.ones(1, 3))
    with pytest.raises(ShapeError, match="example: the example is empty"):
        deepen(nn.Linear(2, 2), "", example=torch.ones(0, 2))


@pytest.mark.parametrize("make", [morph_depth, to_two_branches], ids=lambda make: make.__name__)
def test_seeds_decide_and_the_global_generator_stays(make: Make) -> None:
    layer, x = filled(nn.Conv1d(2, 3, 3)), numbers((1, 2, 8), 1).float()
    state = torch.get_rng_state()
    made = [make(layer, "", example=x, seed=seed).model for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (dict(model.named_parameters()) for model in made)
    weights = [name for name, p in one.items() if p.dim() > 1]
    assert all(torch.equal(one[name], same[name]) for name in weights)
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_examples_may_be_keyword_arguments() -> None:
    example = {"x": numbers((2, 3), 1).float(), "scale": 2.0}

    def run(m: Any, x: Tensor, *, shift: float = 1.0, scale: float) -> Tensor:
        return torch.relu(m.layer(input=x)) * scale + shift

    model = trained(net(run, layer=nn.Linear(3, 3)))
    for make in (deepen, morph_depth, of_full_rank):
        morph = make(model, "layer", example=example)
        assert morph.certificate.network.holds, str(morph)
