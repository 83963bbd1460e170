"""Wider layers compute the same: exactly on integers, within the bound on real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from morphism_layers import assert_unchanged, numbers, state_of
from morphism_models import CASES, NETWORKS, assert_proven, example, integers, mlp, trained
from networks import net
from torch import Tensor, nn
from torch.nn import functional
from torch_fixtures import with_integers

from convfc.comparing import same_bits
from convfc.frameworks.torch.morphism.widening import draw_copies
from convfc.methods.morphism import Morph, widen

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = {
    "equal": {},
    "random": {"split": "random"},
    "zero": {"how": "zero"},
}
# Whatever the copies' shares are, this is divided by them: counts of up to 4, and random shares.
DIVISIBLE = 12 * 64
# Activations that do not keep integers what they are.
ROUNDING = {"excite", "tokens"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("network", "layer"), CASES)
def test_wider_networks_are_the_same_function(network: str, layer: str, way: str):
    """On integers to the bit: all weights are multiples of what copies divide them by."""
    case = NETWORKS[network]
    if exact := network not in ROUNDING:
        model, x = with_integers(case.make(), multiple=DIVISIBLE), integers(case.shape)
    else:
        model, x = trained(case.make()), example(network)
    morph = widen(model, layer, factor=2, example=x, seed=3, **WAYS[way])
    assert_proven(morph)
    assert layer in morph.changed
    old, new = model.get_submodule(layer).weight, morph.model.get_submodule(layer).weight
    assert new.numel() > old.numel()
    if exact:
        expected = model(x)
        assert torch.isfinite(expected).all()
        assert expected.unique().numel() > 2
        assert torch.equal(expected, morph.model(x))


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_what_computes_nothing_in_one_mode_only_is_the_same_forward(mode: bool):
    """As diffusers' blocks with a shortcut have it; names of values differ between the modes."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = functional.dropout(m.one(x.contiguous()), 0.5, m.training)
        if m.training is mode:
            x, y = m.same(x.contiguous()), y.contiguous()
        return m.two(functional.dropout(y.contiguous(), 0.5, training=m.training)) + m.short(x)

    layers = {name: nn.Conv2d(3, 3, 1) for name in ("one", "two", "short")}
    model, x = net(run, same=nn.Identity(), **layers).eval(), integers((2, 3, 4, 4))
    with_integers(model, multiple=DIVISIBLE)
    morph = widen(model, "one", factor=2, example=x)
    assert_proven(morph)
    assert torch.equal(morph.model(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype):
    model = trained(NETWORKS["unet"].make()).to(dtype)
    x = example("unet", dtype)
    morph = widen(model, "first", width=10, example=x, split="random")
    assert morph.certificate.holds, str(morph.certificate)
    assert {p.dtype for p in morph.model.parameters()} == {dtype}
    assert {layer.own["output"].dtype for layer in morph.certificate.layers} == {
        str(dtype).removeprefix("torch.")
    }


def test_the_given_model_and_the_random_numbers_are_as_before():
    model = trained(NETWORKS["volume"].make()).train()
    model.stem.weight.requires_grad_(False)
    before, objects = state_of(model), dict(model.named_parameters())
    state = torch.get_rng_state()
    morph = widen(model, "stem", width=5, example=example("volume"), split="random", noise=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter is objects[name] for name, parameter in model.named_parameters())
    assert_unchanged(model, before)
    assert all(part.training for part in (*model.modules(), *morph.model.modules()))
    trains = {name: p.requires_grad for name, p in morph.model.named_parameters()}
    assert trains == {name: name != "stem.weight" for name in objects}


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    model, x = trained(mlp()), example("mlp")
    options = {"width": 9, "example": x, "split": "random", "noise": 0.5}
    one, again, other = (
        widen(model, "0", seed=seed, **options).model.state_dict() for seed in (7, 7, 8)
    )
    assert all(same_bits(one[name], again[name]) for name in one)
    assert not all(same_bits(one[name], other[name]) for name in one)


def test_classes_attributes_hooks_and_state_dicts_stay():
    model = trained(NETWORKS["unet"].make())
    calls = []
    model.down.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    model.down.note = "kept"
    morph = widen(model, "down", width=8, example=example("unet"))
    assert type(morph.model) is type(model)
    assert [type(part) for part in morph.model.modules()] == [type(p) for p in model.modules()]
    calls.clear()
    morph.model(example("unet"))
    assert calls == [8]
    assert morph.model.down.note == "kept"
    assert (morph.model.down.stride, morph.model.down.bias) == ((2, 2), None)
    assert (morph.model.up.in_channels, morph.model.up.weight.shape) == (8, (8, 3, 3, 3))
    loaded = widen(model, "down", width=8, example=example("unet"), seed=99).model
    loaded.load_state_dict(morph.model.state_dict())
    assert torch.equal(loaded(example("unet")), morph.model(example("unet")))
    assert list(morph.model.state_dict()) == list(model.state_dict())


def test_weights_in_channels_last_stay_so():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    model = model.to(memory_format=torch.channels_last)
    morph = widen(model, "0", width=6, example=torch.ones(1, 3, 6, 6))
    for layer in (morph.model[0], morph.model[2]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_no_wider_is_the_same_network():
    model = trained(mlp())
    for way in WAYS.values():
        morph = widen(model, "0", width=5, example=example("mlp"), **way)
        assert morph.certificate.holds
        for name, tensor in morph.model.state_dict().items():
            assert same_bits(tensor, model.state_dict()[name]), name


# Net2Net on FC layers alone, in NumPy, as the paper writes it


def net2wider(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, g: np.ndarray) -> tuple:
    """Net2WiderNet: the columns of U are those of W at g(j), the rows of V are shared out."""
    counts = np.bincount(g)
    return w1[g], b1[g], w2[:, g] / counts[g].astype(w2.dtype)


def as_rows(model: nn.Module) -> list[np.ndarray]:
    """All weights of a chain of layers as FC matrices, and their biases."""
    return [
        p.detach().flatten(1).numpy() if p.dim() > 1 else p.detach().numpy()
        for p in model.parameters()
    ]


def mapping_of(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """g, read off the rows: those of the old matrix are all different."""
    equal = (new[:, None, :] == old[None, :, :]).all(axis=2)
    assert (equal.sum(axis=1) == 1).all()
    return equal.argmax(axis=1)


def with_weights_of(model: nn.Module, fc: nn.Module) -> nn.Module:
    with torch.no_grad():
        for mine, other in zip(model.parameters(), fc.parameters(), strict=True):
            mine.copy_(other.reshape(mine.shape))
    return model


def test_fc_layers_are_widened_as_in_the_paper():
    model = trained(mlp())
    new = as_rows(widen(model, "0", width=12, example=example("mlp"), seed=4).model)
    w1, b1, w2, b2, w3, b3 = as_rows(model)
    g = mapping_of(w1, new[0])
    assert list(g[:5]) == list(range(5))
    assert len(set(g[5:])) > 1
    expected = (*net2wider(w1, b1, w2, g), b2, w3, b3)
    for ours, theirs in zip(expected, new, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


@pytest.mark.parametrize("way", WAYS)
def test_conv_layers_are_widened_to_the_same_bits_as_the_fc_layers_they_equal(way: str):
    fc, rows = trained(mlp()), example("mlp")
    first, window = nn.Conv2d(6, 5, 1), nn.Conv2d(1, 5, (2, 3))  # as large as its image
    points = nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU()
    one = with_weights_of(nn.Sequential(first, *points, nn.Conv2d(4, 3, 1)), fc)
    image = with_weights_of(nn.Sequential(window, *points, nn.Flatten(), nn.Linear(4, 3)), fc)
    options = {"width": 11, "seed": 2, **WAYS[way]}
    expected = as_rows(widen(fc, "0", example=rows, **options).model)
    for conv, x in ((one, rows[:, :, None, None]), (image, rows.view(3, 1, 2, 3))):
        found = as_rows(widen(conv, "0", example=x, **options).model)
        for ours, theirs in zip(expected, found, strict=True):
            assert (ours == theirs).all()


# Symmetry


def copies_of(morph: Morph, layer: str, old: nn.Module) -> list[tuple[int, int]]:
    """Pairs of rows of the new layer that are copies of one old row."""
    new = morph.model.get_submodule(layer).weight.detach().flatten(1).numpy()
    g = mapping_of(old.get_submodule(layer).weight.detach().flatten(1).numpy(), new)
    return [(i, j) for j in range(len(g)) for i in range(j) if g[i] == g[j]]


@pytest.mark.parametrize(("split", "same"), [("equal", True), ("random", False)])
def test_copies_get_the_same_gradients_unless_their_shares_differ(split: str, same: bool):
    model = trained(mlp()).double()
    x = example("mlp", torch.float64)
    morph = widen(model, "0", width=9, example=x, split=split, seed=1)
    morph.model(x).square().sum().backward()
    gradient = morph.model[0].weight.grad
    pairs = copies_of(morph, "0", model)
    live = [(i, j) for i, j in pairs if gradient[i].any()]
    assert live
    for i, j in live:
        assert torch.equal(gradient[i], gradient[j]) is same


def test_new_units_without_outgoing_weights_are_no_dead_end():
    model, x = trained(mlp()), example("mlp")
    morph = widen(model, "0", width=8, example=x, how="zero")
    outgoing = morph.model[2].weight
    assert not outgoing[:, 5:].any()
    assert torch.equal(outgoing[:, :5], model[2].weight)
    assert morph.model[0].weight[5:].std() > 0
    assert not morph.model[0].bias[5:].any()
    morph.model(x).square().sum().backward()
    assert outgoing.grad[:, 5:].any()


def test_new_units_are_normalised_as_a_new_layer_does():
    """Statistics of other units would say nothing of random ones."""
    model, x = trained(NETWORKS["separable"].make()), example("separable")
    grown = widen(model, "0", width=6, example=x, how="zero").model
    slopes, norm = grown[1], grown[2]
    new = [2, 5]  # of two groups, each with one filter more
    assert slopes.weight[new].tolist() == [0.25, 0.25]
    assert norm.weight[new].tolist() == norm.running_var[new].tolist() == [1, 1]
    assert norm.bias[new].tolist() == norm.running_mean[new].tolist() == [0, 0]
    assert torch.equal(norm.running_mean[[0, 1, 3, 4]], model[2].running_mean)
    assert torch.equal(slopes.weight[[0, 1, 3, 4]], model[1].weight)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_random_shares_add_up_exactly_and_no_two_are_alike(count: int):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        copies = draw_copies(1, count, split="random", generator=generator)
        shares = copies.numerators / copies.denominators
        assert (shares > 0).all()
        assert shares.sum().item() == 1
        assert shares.unique().numel() == count
        assert all(float(d).hex().startswith("0x1.0000000000000p") for d in copies.denominators)


def test_blocks_keep_their_copies():
    generator = torch.Generator().manual_seed(0)
    copies = draw_copies(6, 15, blocks=3, generator=generator)
    assert (copies.index // 2).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert copies.index[~copies.fresh].tolist() == list(range(6))
    assert (copies.denominators == copies.index.bincount()[copies.index]).all()


# Noise


def test_noise_is_added_to_copies_only_and_the_certificate_says_no():
    model, x = trained(mlp()), example("mlp")
    clean = widen(model, "0", width=8, example=x, seed=6).model
    morph = widen(model, "0", width=8, example=x, seed=6, noise=0.25)
    assert morph.noise == 0.25
    assert not morph.certificate.holds
    assert "0: output in float32" in morph.certificate.failures[0]
    assert "Symmetry breaking: noise of 0.25 of the weights' standard deviation" in str(morph)
    assert "DOES NOT HOLD" in repr(morph)
    assert "Symmetry" not in str(widen(model, "0", width=8, example=x))
    weight, other = clean[0].weight, morph.model[0].weight
    assert torch.equal(weight[:5], other[:5])
    assert not (weight[5:] == other[5:]).any()
    assert torch.equal(clean[0].bias, morph.model[0].bias)
    assert torch.equal(clean[2].weight, morph.model[2].weight)
    layer = {one.name: one for one in morph.certificate.layers}
    assert layer["0"].exact.why_not == "noise was added"
    assert layer["2"].holds


def test_noise_has_the_standard_deviation_that_was_asked_for():
    """Of n normal numbers the sample variance has a standard deviation of sqrt(2 / n)."""
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 2)).double()
    x = torch.ones(1, 100, dtype=torch.float64)
    clean, noisy = (
        widen(model, "0", width=250, example=x, noise=noise).model[0].weight for noise in (0, 0.1)
    )
    added = (noisy - clean)[50:]
    variance = added.square().mean() / (0.1 * model[0].weight.std(correction=0)) ** 2
    six_deviations = 6 * (2 / added.numel()) ** 0.5
    assert abs(variance.item() - 1) < six_deviations


@pytest.mark.parametrize("name", ["0", "3"])
def test_a_subclass_with_the_forward_of_its_class_is_widened(name: str):
    conv, linear = (type(f"Own{cls.__name__}", (cls,), {}) for cls in (nn.Conv1d, nn.Linear))
    layers = conv(1, 4, 3), nn.ReLU(), nn.Flatten(), linear(24, 5), nn.ReLU(), linear(5, 2)
    model, x = trained(nn.Sequential(*layers)), numbers((2, 1, 8), 0).float()
    morph = widen(model, name, width=7, example=x)
    assert morph.certificate.holds, str(morph.certificate)
    assert [type(part) for part in morph.model] == [type(part) for part in model]
    assert morph.model.get_submodule(name).weight.shape[0] == 7
