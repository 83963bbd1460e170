"""Depth morphing: two layers whose composition, by SciPy's own convolution, is the old one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from conv_cases import CASES, ConvCase
from hypothesis import given, settings
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import Tensor, nn

from convfc.errors import ArgumentError, GeometryError
from convfc.frameworks.torch.morphism.composition import composed, factorised
from convfc.frameworks.torch.read import weight_to_matrix
from convfc.methods.morphism import IdentityStart, morph_depth
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


def kernels_of(layer: nn.Module) -> np.ndarray:
    """The filters (f, c / groups, *kernel) of a layer, transposed or not."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight.numpy()
    kernel, groups = weight.shape[2:], layer.groups
    matrix = weight_to_matrix(weight, transposed=layer.transposed, groups=groups)
    return matrix.unflatten(1, (*kernel, -1)).movedim(-1, 1).numpy()


def judged(second: np.ndarray, first: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's full convolution of two layers' kernels, summed over the channels between; and B."""
    wholes, sums = [], []
    for b, a in zip(np.split(second, groups), np.split(first, groups), strict=True):
        pairs = [
            [[scipy.signal.convolve(b[f, m], a[m, c], method="direct") for m in range(len(a))]
             for c in range(a.shape[1])]
            for f in range(len(b))
        ]  # fmt: skip
        moduli = [
            [[scipy.signal.convolve(abs(b[f, m]), abs(a[m, c]), method="direct")
              for m in range(len(a))] for c in range(a.shape[1])]
            for f in range(len(b))
        ]  # fmt: skip
        wholes.append(np.array(pairs).sum(axis=2))
        sums.append(np.array(moduli).sum(axis=2))
    return np.concatenate(wholes), np.concatenate(sums)


def layers_in(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if hasattr(part, "weight") and part.weight.dim() > 1]


@given(case=layers(), more=st.integers(0, 2), turned=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_every_layer_is_two(case: LayerCase, more: int, turned: bool, seed: int) -> None:
    layer, x = case
    state = state_of(layer)
    kernels: Any = None
    channels = None
    if not isinstance(layer, nn.Linear):
        own, one = layer.kernel_size, (1,) * len(layer.kernel_size)
        kernels = [tuple(k + more for k in own), one]
        channels = max(layer.out_channels, layer.in_channels)
        if turned:
            kernels = kernels[::-1]
    try:
        morph = morph_depth(
            layer, "", example=x, kernel_sizes=kernels, channels=channels, seed=seed
        )
    except ArgumentError as error:
        assert "padding_mode" in str(error)  # noqa: PT017 (of the few that have no room)
        assert layer.padding_mode in ("reflect", "circular")
        return
    assert morph.certificate.holds, str(morph)
    assert_unchanged(layer, state)
    first, second = layers_in(morph.model)
    if not more:  # both are dense: neither is the identity
        assert bool((first.weight != 0).all())
        assert bool((second.weight != 0).all())
    assert first.weight.dtype == second.weight.dtype == layer.weight.dtype


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_composition_by_scipy_is_the_old_kernel(case: ConvCase) -> None:
    layer = filled(case.layer())
    kernels = (tuple(k + 2 for k in layer.kernel_size), (1,) * len(layer.kernel_size))
    if layer.padding_mode == "reflect":
        kernels = (layer.kernel_size, kernels[1])
    channels = 4 * max(case.args[:2])
    morph = morph_depth(layer, "", example=case.x(), kernel_sizes=kernels, channels=channels)
    first, second = layers_in(morph.model)
    whole, sums = judged(kernels_of(second), kernels_of(first), layer.groups)
    old = kernels_of(layer)
    border = [
        ((n - k) // 2, n - k - (n - k) // 2) for n, k in zip(whole.shape, old.shape, strict=True)
    ]
    wanted = np.pad(old, border)
    if layer.padding == "same" or any(high != low for low, high in border):
        # The odd element stands where the padding can be said: compare the taps only.
        assert whole.shape == wanted.shape
    terms = channels // layer.groups * int(np.prod(kernels[0]))
    assert (abs(whole - wanted) <= rounding_bound(sums, terms, "float64")).all()


def test_stride_padding_and_output_padding_stand_where_they_belong() -> None:
    conv = filled(nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, padding_mode="circular"))
    x = numbers((1, 2, 9, 9), 1).float()
    first, _, second = morph_depth(conv, "", example=x, kernel_sizes=(3, 3), channels=18).model
    assert (first.stride, first.padding, first.padding_mode) == ((1, 1), (3, 3), "circular")
    assert (second.stride, second.padding, second.padding_mode) == ((2, 2), (0, 0), "zeros")
    assert first.dilation == second.dilation == (2, 2)
    up = filled(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1))
    first, _, second = morph_depth(up, "", example=x, kernel_sizes=(1, 3)).model
    assert (first.stride, first.padding, first.output_padding) == ((2, 2), (0, 0), (1, 1))
    assert (second.stride, second.padding, second.output_padding) == ((1, 1), (1, 1), (0, 0))


def test_an_odd_growth_gets_a_layer_of_padding_or_of_cropping() -> None:
    x = numbers((1, 2, 9), 1).float()
    conv = filled(nn.Conv1d(2, 4, 3, padding=1, padding_mode="replicate"))
    morph = morph_depth(conv, "", example=x, kernel_sizes=(4, 1))
    assert [type(part) for part in morph.model][:2] == [nn.ReplicationPad1d, nn.Conv1d]
    assert morph.certificate.holds
    up = filled(nn.ConvTranspose1d(2, 4, 3, padding=1))
    morph = morph_depth(up, "", example=x, kernel_sizes=(4, 1))
    assert type(morph.model[-1]) is nn.ZeroPad1d
    assert morph.certificate.holds


def test_where_nothing_is_free_zeros_stay_zeros() -> None:
    layer, x = filled(nn.Conv1d(2, 2, 1)).double(), numbers((1, 2, 8), 1)
    morph = morph_depth(layer, "", example=x, kernel_sizes=(1, 3))
    assert int((morph.model[2].weight != 0).sum()) == 4
    up = filled(nn.ConvTranspose1d(2, 1, 1, stride=2, bias=False)).double()
    assert morph_depth(up, "", example=x, kernel_sizes=(1, 2), channels=2).certificate.holds


def test_no_channel_between_the_two_repeats_the_others() -> None:
    layer, x = filled(nn.Conv2d(2, 3, 3)).double(), numbers((1, 2, 8, 8), 1)
    first, _, second = morph_depth(layer, "", example=x, channels=8).model
    assert int(torch.linalg.matrix_rank(first.weight.flatten(1))) == 8
    assert int(torch.linalg.matrix_rank(second.weight.flatten(1))) == 3


@pytest.mark.parametrize("size", [(6, 5), (5, 6)], ids=str)
def test_the_solved_factor_fits_the_given_one_as_it_is_stored(size: tuple[int, int]) -> None:
    layer, x = filled(nn.Linear(*size, bias=False)), numbers((1, size[0]), 1).float()
    first, _, second = morph_depth(layer, "", example=x, channels=5).model
    pair, old = [second.weight.detach().double(), first.weight.detach().double()], layer.weight
    if size == (5, 6):  # transposed, the first layer is the one that was given
        pair, old = [pair[1].mT, pair[0].mT], old.mT
    given, stored = pair
    solved = torch.linalg.solve(given, old.detach().double())
    sums = torch.linalg.inv(given).abs() @ (given.abs() @ solved.abs())
    room = UNIT_ROUNDOFF["float32"] * solved.abs() + rounding_bound(sums, 5 * 5, "float64")
    assert bool(((stored - solved).abs() <= room).all())


@given(seed=st.integers(0, 999), sizes=st.tuples(*[st.integers(1, 3)] * 2))
def test_every_number_of_the_solved_factor_is_as_exact_as_its_size_asks_for(
    seed: int, sizes: Any
) -> None:
    c, more = sizes
    kernel = numbers((3, 2, c), seed)
    options: Any = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    found = factorised([kernel], ((1,), (2,)), (0,), c + more - 1, where="", **options)
    sums = composed(found.second.abs(), found.first.abs())
    missing = (composed(found.second, found.first) - kernel).abs()
    assert bool((missing <= rounding_bound(sums, 2 * (c + more), "float64")).all())


def test_the_first_bias_is_zero_and_the_second_the_layers() -> None:
    conv = filled(nn.Conv2d(2, 4, 3))
    first, _, second = morph_depth(conv, "", example=numbers((1, 2, 6, 6), 1).float()).model
    assert not first.bias.any()
    assert torch.equal(second.bias, conv.bias)
    bare = morph_depth(nn.Linear(3, 2, bias=False), "", example=torch.ones(1, 3)).model
    assert bare[0].bias is bare[2].bias is None


@pytest.mark.parametrize(
    ("kernels", "channels", "least", "enough"),
    [((2, 2), 6, 7, 12), ((2, 2), 5, 7, 12), (((2, 1), (2, 3)), 4, 5, 6)],
    ids=str,
)
def test_too_few_channels_are_refused_with_how_many_it_takes(
    kernels: Any, channels: int, least: int, enough: int
) -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3)), numbers((1, 3, 8, 8), 1).float()
    options: Any = {"example": x, "kernel_sizes": kernels}
    with pytest.raises(ArgumentError, match=f"expected {least} or more; {enough} always do"):
        morph_depth(conv, "", channels=channels, **options)
    assert morph_depth(conv, "", channels=least, **options).certificate.holds
    assert morph_depth(conv, "", channels=enough, **options).certificate.holds


def test_a_point_needs_as_many_channels_as_the_rank() -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3)).double(), numbers((1, 3, 8, 8), 1)
    with pytest.raises(ArgumentError, match="expected 4 or more; got 3"):
        morph_depth(conv, "", example=x, channels=3)
    with torch.no_grad():  # of rank 2, exactly
        conv.weight.copy_(
            (numbers((4, 2), 3, whole=True) @ numbers((2, 27), 4, whole=True)).reshape(4, 3, 3, 3)
        )
    assert morph_depth(conv, "", example=x, channels=2).certificate.holds
    with pytest.raises(ArgumentError, match="got 1"):
        morph_depth(conv, "", example=x, channels=1)


def test_with_a_residual_the_pair_is_the_closest_and_the_certificate_says_no() -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3)).double(), numbers((1, 3, 8, 8), 1)
    morph = morph_depth(conv, "", example=x, channels=3, allow_residual=True)
    assert not morph.certificate.holds
    values = np.linalg.svd(conv.weight.detach().flatten(1).numpy(), compute_uv=False)
    share = values[3] / np.linalg.norm(values)
    assert f"{share:.3g} of the kernel's norm is missing" in morph.what
    first, _, second = morph.model
    whole = torch.einsum("fm,mcij->fcij", second.weight[:, :, 0, 0], first.weight)
    missing = float((whole - conv.weight).detach().norm())
    assert f"{missing:.6g}" == f"{values[3]:.6g}"


def test_numbers_that_suffice_may_not_make_the_rank_on_two_axes() -> None:
    # 2 polynomials in two variables meet in points: C |K2| = 18 unknowns for 16 equations, rank 14.
    generator = torch.Generator().manual_seed(0)
    kernel = numbers((1, 4, 4, 1), 1)
    options: Any = {"generator": generator, "dtype": torch.float64, "where": "layer"}
    with pytest.raises(ArgumentError, match="layer: so few channels"):
        factorised([kernel], ((2, 2), (3, 3)), (0, 0), 2, **options)
    found = factorised([kernel], ((2, 2), (3, 3)), (0, 0), 4, **options)
    sums = composed(found.second.abs(), found.first.abs())
    missing = (composed(found.second, found.first) - kernel).abs()
    assert bool((missing <= rounding_bound(sums, 4 * 4, "float64")).all())


@given(seed=st.integers(0, 99), whole=st.tuples(*[st.integers(1, 3)] * 4))
def test_composition_on_integers_is_exact_and_associative(seed: int, whole: Any) -> None:
    f, m, n, c = whole
    third, second, first = (
        numbers(shape, seed + number, whole=True)
        for number, shape in enumerate([(f, 2, 3, m), (m, 3, 1, n), (n, 1, 2, c)])
    )
    once = composed(composed(third, second), first)
    assert torch.equal(once, composed(third, composed(second, first)))
    assert once.shape == (f, 4, 4, c)


def test_where_channels_are_scarce_a_smaller_kernel_inside_is_solved_for() -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3, padding=1)), numbers((2, 3, 8, 8), 1).float()
    morph = morph_depth(conv, "", example=x, kernel_sizes=(3, 3))
    assert morph.certificate.holds
    assert "of which 1×2 and 3×3 are not zero" in morph.what
    first, _, second = morph.model
    assert (first.weight.shape, second.weight.shape) == ((4, 3, 3, 3), (4, 4, 3, 3))
    assert int((first.weight != 0).sum()) == 4 * 3 * 2
    changed = trains(morph.model, x)
    assert all(changed.values()), changed
    assert bool((first.weight != 0).all())  # the zeros around have gradients


@pytest.mark.parametrize(
    "activation", ["prelu", None, nn.SiLU(), IdentityStart(nn.Tanh())], ids=repr
)
def test_training_moves_every_parameter(activation: Any) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    x = numbers((4, 2, 9), 1).float()
    for name in ("0", "3"):
        morph = morph_depth(model, name, example=x, activation=activation)
        assert morph.certificate.holds, str(morph)
        model = morph.model
    changed = trains(model, x)
    assert all(changed.values()), changed


def test_morphs_of_morphs_hold() -> None:
    model, x = filled(nn.Conv2d(2, 4, 3, padding=1)).double(), numbers((2, 2, 8, 8), 1)
    want, name = model(x), ""
    for step in range(3):
        morph = morph_depth(model, name, example=x, kernel_sizes=(3, 1), seed=step)
        assert morph.certificate.holds
        model, name = morph.model, f"{name}.0".strip(".")
    assert len(layers_in(model)) == 4
    assert morph.certificate.network.outputs[0].difference < float(want.detach().abs().max())


def test_seeds_decide_and_the_global_generator_stays() -> None:
    conv, x = filled(nn.Conv2d(2, 4, 3)), numbers((1, 2, 6, 6), 1).float()
    state = torch.get_rng_state()
    one, same, other = (
        morph_depth(conv, "", example=x, seed=seed).model[0].weight for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_hold_in_float64(dtype: torch.dtype) -> None:
    conv = filled(nn.Conv1d(2, 3, 3)).to(dtype)
    morph = morph_depth(conv, "", example=numbers((1, 2, 8), 1).to(dtype))
    assert morph.model[0].weight.dtype == morph.model[1].weight.dtype == dtype
    assert morph.certificate.holds, str(morph)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_sizes": (2, 1)}, r"kernel_sizes: the composition .* expected K1 \+ K2 - 1 of 3"),
        ({"kernel_sizes": (3, 1, 1)}, "kernel_sizes: two layers have two kernels; expected a pair"),
        ({"kernel_sizes": (3, 0)}, r"kernel_sizes\[1\]: a size is too small; expected 1 or more"),
        ({"channels": 3}, "a multiple of 2; got 3. Remedy: give 4"),
        ({"activation": "relu"}, "activation: there is no such activation; expected 'prelu'"),
    ],
    ids=str,
)
def test_what_is_no_pair_of_layers_is_refused(options: Any, text: str) -> None:
    conv = nn.Conv2d(2, 4, 3, groups=2)
    with pytest.raises(ArgumentError, match=text):
        morph_depth(conv, "", example=torch.ones(1, 2, 6, 6), **options)


def test_a_padding_that_a_mode_cannot_make_is_refused() -> None:
    conv, x = nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), torch.ones(1, 1, 5)
    with pytest.raises(GeometryError, match=r"expected at most 4 for the input size \(5,\); got 5"):
        morph_depth(conv, "", example=x, kernel_sizes=(11, 1))


def test_hooks_modes_and_requires_grad_move_to_the_two(seed_zero: None) -> None:
    conv, x = nn.Conv2d(2, 4, 3), numbers((1, 2, 6, 6), 1).float()
    conv.weight.requires_grad_(False)
    seen: list[Tensor] = []
    conv.register_forward_hook(lambda module, args, output: seen.append(output))
    model = nn.Sequential(conv).eval()
    morph = morph_depth(model, "0", example=x)
    seen.clear()
    y = morph.model(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], y)
    assert not any(part.training for part in morph.model.modules())
    names = [name for name, p in morph.model.named_parameters() if p.requires_grad]
    assert names == ["0.0.bias", "0.2.bias"]
