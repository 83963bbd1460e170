"""Larger kernels: exact on integers, in every padding mode, at every parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import nn

from convfc.errors import ArgumentError, GeometryError, UnsupportedLayer
from convfc.frameworks.torch.morphism.target import kernel_of, resized
from convfc.methods.morphism import morph_kernel

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


@given(case=layers(linear=False, dtype=torch.float64), more=st.tuples(*[st.integers(0, 3)] * 3))
def test_a_larger_kernel_is_the_same_function_on_integers(case: LayerCase, more: Any) -> None:
    layer = filled(case.layer, 3, whole=True)
    x = numbers(case.x.shape, 4, whole=True)
    state = state_of(layer)
    kernel = tuple(k + n for k, n in zip(layer.kernel_size, more, strict=False))
    try:
        morph = morph_kernel(layer, "", example=x, kernel_size=kernel)
    except ArgumentError as error:
        assert "cannot pad an axis by as much" in str(error)  # noqa: PT017
        return
    assert torch.equal(morph.model(x), layer(x))
    assert morph.certificate.holds, str(morph)
    assert all(one.exact.identical for one in morph.certificate.layers)
    assert_unchanged(layer, state)
    (conv,) = (part for part in morph.model.modules() if type(part) is type(layer))
    assert conv.kernel_size == tuple(conv.weight.shape[2:]) == kernel


@pytest.mark.parametrize(
    ("options", "kernel", "padding", "parts"),
    [
        ({"padding": 1}, 5, (2,), 1),
        ({"padding": 1, "dilation": 2}, 5, (3,), 1),
        ({"padding": 1}, 4, (0,), 2),
        ({"padding": "same"}, 4, "same", 1),
        ({"padding": "same", "dilation": 2}, 4, (0,), 2),
        ({"padding": "valid"}, 3, (0,), 1),
        ({"padding": 1, "padding_mode": "circular", "stride": 2}, 7, (3,), 1),
    ],
    ids=str,
)
def test_the_padding_grows_with_the_kernel(
    options: Any, kernel: int, padding: Any, parts: int
) -> None:
    layer, x = filled(nn.Conv1d(2, 3, 3, **options)), numbers((2, 2, 12), 1).float()
    morph = morph_kernel(nn.Sequential(layer), "0", example=x, kernel_size=kernel)
    new = morph.model[0]
    conv = new if parts == 1 else new[-1]
    assert (len(new) if parts > 1 else 1) == parts
    assert conv.padding == padding
    assert morph.certificate.holds


@pytest.mark.parametrize(
    ("options", "kernel", "padding", "extra", "parts"),
    [
        ({"padding": 1}, 5, (2,), (0,), 1),
        ({"padding": 1, "stride": 2}, 4, (2,), (1,), 1),
        ({"padding": 1, "stride": 2, "output_padding": 1}, 4, (1,), (0,), 1),
        ({"padding": 0}, 4, (0,), (0,), 2),
    ],
    ids=str,
)
def test_a_transposed_layer_crops_more(
    options: Any, kernel: int, padding: Any, extra: Any, parts: int
) -> None:
    layer, x = filled(nn.ConvTranspose1d(2, 3, 3, **options)), numbers((2, 2, 6), 1).float()
    morph = morph_kernel(nn.Sequential(layer), "0", example=x, kernel_size=kernel)
    new = morph.model[0]
    conv = new if parts == 1 else new[0]
    assert (conv.padding, conv.output_padding) == (padding, extra)
    assert morph.certificate.holds


@given(case=layers(linear=False), at=st.integers(0, 2))
def test_what_grows_and_is_cut_again_is_as_before(case: LayerCase, at: int) -> None:
    kernel = kernel_of(case.layer)
    size = tuple(k + 2 for k in kernel.size)
    larger = resized(kernel, size, (at,) * len(size))
    back = resized(larger, kernel.size, (-at,) * len(size))
    assert torch.equal(back.filters, kernel.filters)
    assert back.pads == kernel.pads
    assert int((larger.filters != 0).sum()) == int((kernel.filters != 0).sum())


def test_the_layer_stays_the_same_object_with_all_that_it_has() -> None:
    class Stem(nn.Conv2d):
        """A class of the user's."""

    layer = Stem(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
    layer.note = "mine"
    layer.weight.requires_grad_(False)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    morph = morph_kernel(model, "0", example=numbers((1, 2, 6, 6), 1).float(), kernel_size=(3, 5))
    new = morph.model[0]
    assert type(new) is Stem
    assert (new.note, new.training, new.weight.requires_grad) == ("mine", False, False)
    assert new.bias.requires_grad
    assert new.weight.is_contiguous(memory_format=torch.channels_last)
    assert (new.kernel_size, new.padding) == ((3, 5), (1, 2))


def test_new_taps_train() -> None:
    layer, x = filled(nn.Conv2d(2, 3, 1)), numbers((2, 2, 6, 6), 1).float()
    morph = morph_kernel(layer, "", example=x, kernel_size=3)
    assert all(trains(morph.model, x).values())
    assert bool((morph.model.weight != 0).all())


def test_noise_is_in_the_new_taps_only_and_reported() -> None:
    layer, x = filled(nn.Conv2d(2, 3, 3, padding=1)), numbers((2, 2, 6, 6), 1).float()
    state = torch.get_rng_state()
    one, same, other = (
        morph_kernel(layer, "", example=x, kernel_size=5, noise=0.01, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    weight = one.model.weight
    assert torch.equal(weight[:, :, 1:-1, 1:-1], layer.weight)
    assert bool((weight != 0).all())
    scale = 0.01 * layer.weight.detach().double().std(correction=0)
    drawn = scale * numbers((3, 5, 5, 2), 1)
    assert torch.equal(weight[:, :, 0], drawn[:, 0].movedim(-1, 1).float())
    assert torch.equal(weight, same.model.weight)
    assert not torch.equal(weight, other.model.weight)
    assert one.noise == 0.01
    assert not one.certificate.holds
    assert "noise of 0.01" in str(one)


def test_a_shared_layer_grows_at_all_its_places() -> None:
    layer = filled(nn.Conv1d(2, 2, 3, padding=1))
    model = nn.Sequential(layer, nn.ReLU(), layer)
    morph = morph_kernel(model, "2", example=numbers((1, 2, 8), 1).float(), kernel_size=5)
    assert morph.model[0] is morph.model[2]
    assert len(morph.certificate.layers) == 2
    assert morph.certificate.holds


@pytest.mark.parametrize(
    ("kernel", "error", "text"),
    [
        (2, ArgumentError, r"kernel_size: a kernel cannot become smaller .* at least \(3, 3\)"),
        ((3, 3, 3), ArgumentError, "kernel_size: the kernel has 2 spatial axes"),
        (4.5, ArgumentError, "kernel_size: a size is not an integer"),
    ],
    ids=str,
)
def test_what_is_no_larger_kernel_is_refused(kernel: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        morph_kernel(nn.Conv2d(1, 1, 3), "", example=torch.ones(1, 1, 5, 5), kernel_size=kernel)


def test_an_fc_layer_and_too_much_noise_are_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="an FC layer has no kernel"):
        morph_kernel(nn.Linear(2, 2), "", example=torch.ones(1, 2), kernel_size=3)
    with pytest.raises(ArgumentError, match=r"noise: a number out of its range; .* from 0 to 1"):
        morph_kernel(nn.Conv1d(1, 1, 1), "", example=torch.ones(1, 1, 5), kernel_size=3, noise=-0.1)


def test_more_padding_than_a_circle_has_is_refused() -> None:
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    with pytest.raises(GeometryError, match=r"'circular' cannot pad .* at most 4 .* got 5"):
        morph_kernel(layer, "", example=torch.ones(1, 1, 4), kernel_size=11)
    assert morph_kernel(layer, "", example=torch.ones(1, 1, 4), kernel_size=9).certificate.holds
